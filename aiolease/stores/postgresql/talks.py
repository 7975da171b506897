"""What is sent over a connection that is a user's: the same few things for each driver."""

from __future__ import annotations

import importlib
from typing import Any, Protocol, cast


class Talk(Protocol):
    """What a module such as `by_asyncpg` can do with a driver's connection."""

    async def send(self, raw: Any, message: str) -> None:
        """Sends statements in one message of the simple protocol: an error keeps those behind it from being done."""

    async def is_primary(self, raw: Any) -> bool:
        """Whether a fresh connection leads to a server that takes writes."""

    def in_transaction(self, raw: Any) -> bool:
        """Whether a transaction is open."""

    def will_begin(self, raw: Any) -> bool:
        """Whether the driver begins a transaction by itself, with the next statement."""

    async def begin(self, raw: Any, first: str) -> None:
        """Begins a transaction with a first statement."""

    def ended(self, raw: Any) -> None:
        """Tells the driver that its transaction was ended by a message."""

    def drop(self, raw: Any) -> None:
        """Closes it without a word, and without waiting."""

    async def close(self, raw: Any) -> None:
        """Closes it with a good-bye."""

    def is_busy(self, error: BaseException) -> bool:
        """Whether an error says that nothing was sent, since the user's own statement is still under way."""


def talk_by(driver: str) -> Talk:
    """The talk of a driver, ``"asyncpg"`` or ``"psycopg"``."""
    return cast(Talk, importlib.import_module(f"aiolease.stores.postgresql.by_{driver}"))


def talk_over(connection: Any) -> Talk | None:
    """The talk of a connection's own driver; ``None`` if it is of neither."""
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(connection).__mro__}
    if ("psycopg", "AsyncConnection") in kinds:  # and not a connection that blocks
        return talk_by("psycopg")
    asyncpg = any(package == "asyncpg" for package, _ in kinds) and hasattr(connection, "is_in_transaction")
    return talk_by("asyncpg") if asyncpg else None
