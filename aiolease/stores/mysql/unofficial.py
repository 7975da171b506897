"""Uses private attributes of drivers and pools, where they have no public name for what aiolease needs.

Check a new version of a driver against this file, and against `aiolease.stores.mysql.opening`, which subclasses the
driver's connection. Nothing else touches private attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def pool_parameters(pool: Any) -> Mapping[str, Any]:
    """The current parameters of a pool, for a connection of aiolease's own."""
    parameters: Mapping[str, Any] = _get(pool, "_conn_kwargs")
    return parameters


async def wake_pool(pool: Any) -> None:
    """Tells the tasks that wait for a connection that the pool has room for a new one. aiomysql does not tell them."""
    await _get(pool, "_wakeup")()


def tls_context(connection: Any) -> Any:
    """The context that asyncmy makes of its argument ``ssl``, before it connects."""
    return _get(connection, "_ssl_context")


def wait_for_ever(connection: Any) -> None:
    """Removes asyncmy's time limit for an answer: a wait for a lock may take longer."""
    if hasattr(connection, "_read_timeout"):
        _set(connection, "_read_timeout", None)


def send_utf8(connection: Any) -> None:
    """Sets a driver's encoding to utf8mb4, to which the session was set before."""
    _set(connection, "_charset", "utf8mb4")
    _set(connection, "_encoding", "utf8")


def has_pending(connection: Any) -> bool:
    """Whether the user has left results unread: of an unbuffered cursor, or of a second statement in a packet."""
    result = getattr(connection, "_result", None)
    return bool(getattr(result, "unbuffered_active", False) or getattr(result, "has_next", False))


def _get(thing: Any, name: str) -> Any:
    return getattr(thing, name)


def _set(thing: Any, name: str, value: object) -> None:
    setattr(thing, name, value)
