"""Looks up host names in a thread of its own: the loop's default executor may be busy with the application."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

# A lookup cannot be cancelled, and may take half a minute. So callers for one host share the lookup that is under way.
# The key has the process id, because a forked child has none of its parent's threads.
_under_way: dict[tuple[int, str], Future[list[str]]] = {}
_lock = threading.Lock()


async def resolve(host: str) -> list[str]:
    """Looks up the addresses of a host, in the order in which they are to be tried.

    The answer is not kept: after a failover of the database the name may mean another machine.

    Raises:
        OSError: The name is not known, or no server of names answers.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, ValueError):
            socket.inet_pton(family, host)
            return [host]  # an address already
    key = (os.getpid(), host)
    with _lock:
        answer = _under_way.get(key)
        if answer is None:
            answer = _under_way[key] = Future()
            # A daemon thread, so that the end of the program does not wait for it.
            threading.Thread(target=_look_up, args=(key, answer), name="aiolease-resolver", daemon=True).start()
    # Shielded, because others may wait for the same lookup.
    return await asyncio.shield(asyncio.wrap_future(answer))


class LookupLoop:
    """The running event loop, for a driver that connects by ``loop.create_connection``: names are looked up here.

    The driver goes on to know the host by its name, by which TLS verifies the server.
    """

    def __init__(self, limit: float) -> None:
        """Makes it.

        Args:
            limit: Seconds for all addresses of one host; each has an equal part of them.
        """
        self._loop = asyncio.get_running_loop()
        self._limit = limit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def create_connection(self, protocol: Callable[[], Any], host: str, port: int, **options: Any) -> Any:
        """Tries the addresses of the host one after the other; see `asyncio.loop.create_connection`."""
        addresses = await resolve(host)
        if options.get("ssl"):
            options.setdefault("server_hostname", host)
        for left in reversed(range(len(addresses))):
            try:
                async with asyncio.timeout(self._limit / len(addresses)):
                    return await self._loop.create_connection(protocol, addresses[-1 - left], port, **options)
            except OSError:
                if not left:
                    raise
        raise AssertionError("a host has an address")  # `resolve` raises otherwise


def _look_up(key: tuple[int, str], answer: Future[list[str]]) -> None:
    try:
        found = socket.getaddrinfo(key[1], None, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(address[0]) for _, _, _, _, address in found))
    except BaseException as error:  # noqa: BLE001 - every caller gets it
        _end(key)
        answer.set_exception(error)
    else:
        _end(key)
        answer.set_result(addresses)


def _end(key: tuple[int, str]) -> None:
    with _lock:
        _under_way.pop(key, None)
