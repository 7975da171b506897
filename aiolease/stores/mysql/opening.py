"""Opening a connection by the addresses of its host: both drivers leave the look-up of the name to others."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from aiolease.events import describe
from aiolease.stores.network.connecting import CONNECT_LIMIT
from aiolease.stores.network.resolve import resolve

_TLS = 1 << 11
"""The capability of a server that offers TLS."""


class Misconfigured(Exception):
    """The driver refuses its parameters, before anything is sent."""


async def open_asyncmy(**parameters: Any) -> Any:
    """Opens a connection of asyncmy; closes what is half made when it is cancelled."""
    from asyncmy.connection import Connection

    return await _open(Connection, "connect", "_connect_timeout", parameters)


async def open_aiomysql(**parameters: Any) -> Any:
    """Opens a connection of aiomysql; closes what is half made when it is cancelled."""
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
    """A connection that looks up the host's name on its own, and knows what TLS is for. Goes before a driver's class.

    Both drivers would have the event loop look the name up, in its default executor, behind all that an application
    does there; and aiomysql would send all in the clear to a server that offers no TLS.
    """

    _greeted = False
    _name: str
    _host: str
    _ssl_context: Any
    server_capabilities: int

    async def open(self, start: Callable[[], Awaitable[object]], limit: str) -> None:
        """Connects by `start` to one address of the host after the other; closing is the caller's.

        Args:
            start: The driver's method.
            limit: The name of the attribute that limits it.
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
        self._host = self._name  # what TLS verifies
        await super()._get_server_information()  # type: ignore[misc]  # the driver's
        if self._ssl_context and not self.server_capabilities & _TLS:
            raise ssl.SSLError("TLS is asked for, and the server offers none")
