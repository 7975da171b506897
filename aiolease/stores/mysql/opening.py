"""Opens a connection by the addresses of its host, which aiolease looks up itself: see `_ByAddress`."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from aiolease.events import describe
from aiolease.stores.network.connecting import CONNECT_LIMIT
from aiolease.stores.network.resolve import resolve

_TLS = 1 << 11
"""The capability flag of a server that offers TLS."""


class Misconfigured(Exception):
    """The driver refused its parameters before it sent anything."""


async def open_asyncmy(**parameters: Any) -> Any:
    """Opens a connection of asyncmy. If it is cancelled, it closes the unfinished connection."""
    from asyncmy.connection import Connection

    return await _open(Connection, "connect", "_connect_timeout", parameters)


async def open_aiomysql(**parameters: Any) -> Any:
    """Opens a connection of aiomysql. If it is cancelled, it closes the unfinished connection."""
    from aiomysql import Connection

    return await _open(Connection, "_connect", "connect_timeout", parameters)  # its connect() leaks when cancelled


async def _open(kind: type, start: str, limit: str, parameters: dict[str, Any]) -> Any:
    seconds = min(parameters.get("connect_timeout") or CONNECT_LIMIT, CONNECT_LIMIT)
    try:
        connection = _by_address(kind)(**{**parameters, "connect_timeout": seconds})
    except (TypeError, ValueError, OSError) as error:
        raise Misconfigured(describe(error)) from error
    try:
        await connection.open(getattr(connection, start), limit)
    except BaseException:
        connection.close()
        raise
    return connection


@functools.cache
def _by_address(kind: type) -> Any:
    return type("Connection", (_ByAddress, kind), {"__module__": kind.__module__})


class _ByAddress:
    """A mixin for a driver's connection: it looks up the host's name itself, and insists on TLS where it is asked for.

    Both drivers look the name up in the loop's default executor, where it would wait behind the application's threads.
    And aiomysql sends everything in the clear to a server that offers no TLS.
    """

    _greeted = False
    _name: str
    _host: str
    _ssl_context: Any
    server_capabilities: int

    async def open(self, start: Callable[[], Awaitable[object]], limit: str) -> None:
        """Tries the addresses of the host one after the other. The caller closes the connection if this raises.

        Args:
            start: The driver's method that connects.
            limit: The name of the attribute with its time limit.
        """
        self._name = self._host
        over_tcp = not getattr(self, "_unix_socket", None) and getattr(self, "_sock", None) is None
        addresses = await resolve(self._host) if over_tcp else [self._host]
        setattr(self, limit, getattr(self, limit) / len(addresses))
        for left in reversed(range(len(addresses))):
            self._host = addresses[-1 - left]
            try:
                await start()
            except Exception:
                if self._greeted or not left:
                    raise
            else:
                break

    async def _get_server_information(self) -> None:
        self._greeted = True
        self._host = self._name  # TLS verifies the name, not the address
        await super()._get_server_information()  # type: ignore[misc]  # the driver's
        if self._ssl_context and not self.server_capabilities & _TLS:
            raise ssl.SSLError("TLS is asked for, and the server offers none")
