"""What aiolease needs of a driver or a pool that has no public name there. Nothing else touches their private parts.

By `getattr`, so that each such place is here and nowhere else: a new version of a driver is checked against this page.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping
from typing import Any


def pool_connects(pool: Any) -> tuple[Any, tuple[Any, ...], Mapping[str, Any]]:
    """What a pool of asyncpg connects by, and with: a function, its arguments, and those with names."""
    return _get(pool, "_connect"), _get(pool, "_connect_args"), _get(pool, "_connect_kwargs")


async def pool_parameters(pool: Any) -> tuple[str, Mapping[str, Any]]:
    """What a pool of psycopg connects with, as it is now: either may be a function that says so."""
    if hasattr(pool, "_resolve_kwargs"):
        conninfo: Awaitable[str] = _get(pool, "_resolve_conninfo")()
        kwargs: Awaitable[Mapping[str, Any]] = _get(pool, "_resolve_kwargs")()
        return await conninfo, await kwargs
    return pool.conninfo or "", pool.kwargs or {}


def give_loop(connection: Any, loop: Any) -> None:
    """Has a connection of asyncpg use a loop from now on, where another one stood in for it while it was made."""
    if hasattr(connection, "_loop"):
        setattr(connection, "_loop", loop)  # noqa: B010 - see above


def listens_on(connection: Any, channels: Iterable[str], instead: Iterable[str]) -> None:
    """Tells asyncpg on which channels its session listens now: its `add_listener` takes a round trip for each."""
    listeners = _get(connection, "_listeners")
    for channel in instead:
        listeners.pop(channel, None)
    for channel in channels:
        listeners.setdefault(channel, set())


def remember_transaction(connection: Any, transaction: Any) -> None:
    """Tells asyncpg that a transaction of its connection has begun: the BEGIN went out by another way than its own."""
    setattr(getattr(connection, "_con", connection), "_top_xact", transaction)  # noqa: B010 - see above


def forget_transaction(connection: Any) -> None:
    """Tells asyncpg that its transaction is over: the COMMIT went out by another way than its own."""
    connection = getattr(connection, "_con", connection)  # behind what a pool lends
    if getattr(connection, "_top_xact", None) is not None:
        setattr(connection, "_top_xact", None)  # noqa: B010 - see above


def beginning(connection: Any) -> str:
    """What psycopg begins a transaction with on this connection, by its isolation level and the like."""
    start: bytes = _get(connection, "_get_tx_start_command")()
    return start.decode()


def forget_adapted(adapted: Any) -> None:
    """Tells SQLAlchemy's adapter of asyncpg the same: it would send a ROLLBACK, and the server would log a warning."""
    for name, value in (("_transaction", None), ("_started", False)):
        if hasattr(adapted, name):
            setattr(adapted, name, value)


def _get(thing: Any, name: str) -> Any:
    return getattr(thing, name)
