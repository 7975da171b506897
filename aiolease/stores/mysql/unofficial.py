"""What aiolease needs of a driver or a pool that has no public name there. Nothing else touches their private parts.

By `getattr`, so that each such place is here and nowhere else: a new version of a driver is checked against this page,
and against `aiolease.stores.mysql.opening`, whose class goes before the driver's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def pool_parameters(pool: Any) -> Mapping[str, Any]:
    """What a pool connects with, as it is now: a connection of our own needs the same."""
    parameters: Mapping[str, Any] = _get(pool, "_conn_kwargs")
    return parameters


async def wake_pool(pool: Any) -> None:
    """Tells those who wait for a connection that there is a place for a new one: aiomysql tells nobody."""
    await _get(pool, "_wakeup")()


def tls_context(connection: Any) -> Any:
    """The context that asyncmy makes of its argument ``ssl``, before it connects."""
    return _get(connection, "_ssl_context")


def wait_for_ever(connection: Any) -> None:
    """Takes away asyncmy's time limit for an answer: a wait for a lock may be longer."""
    if hasattr(connection, "_read_timeout"):
        _set(connection, "_read_timeout", None)


def send_utf8(connection: Any) -> None:
    """Has a driver encode texts in the character set that the session was told to use."""
    _set(connection, "_charset", "utf8mb4")
    _set(connection, "_encoding", "utf8")


def has_pending(connection: Any) -> bool:
    """Whether a user has not read all results: a cursor that does not buffer, or the second statement of a packet."""
    result = getattr(connection, "_result", None)
    return bool(getattr(result, "unbuffered_active", False) or getattr(result, "has_next", False))


def _get(thing: Any, name: str) -> Any:
    return getattr(thing, name)


def _set(thing: Any, name: str, value: object) -> None:
    setattr(thing, name, value)
