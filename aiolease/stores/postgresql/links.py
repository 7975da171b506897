"""A connection of aiolease's own to PostgreSQL, whatever the driver: statements with rows, messages without, bells.

Where a pooler stands between (PgBouncer), each transaction may reach another session of the server. So nothing is
settled for the session there, but in each transaction; no statement is prepared beyond it; and nobody listens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from aiolease.stores.postgresql.dialect import Bound

Row = tuple[Any, ...]


class Link(ABC):
    """One connection of our own.

    Attributes:
        raw: The driver's.
        pooled: Whether a pooler may lead each transaction to another session; so it is until the contrary is known.
        settle: What each transaction begins with then.
        heard: The channels that it listens on; none once it has ended.
    """

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.pooled = True
        self.settle = ""
        self.heard: set[str] = set()

    # What the drivers differ in.

    @property
    @abstractmethod
    def backend(self) -> int:
        """The process of the session, as the server, or a pooler, named it when it was connected."""

    @property
    @abstractmethod
    def version(self) -> int:
        """The server's major version."""

    @abstractmethod
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""

    @abstractmethod
    async def query(self, sql: str, parameters: Sequence[object]) -> list[Row]:
        """Sends one statement with parameters; gives its rows."""

    @abstractmethod
    async def tell(self, message: str) -> None:
        """Sends statements in one message of the simple protocol: an error keeps what is behind it from being done.

        Outside a transaction they are one.
        """

    @abstractmethod
    async def hear(self, channel: str, ring: Callable[[str], None]) -> None:
        """Listens on a channel; has `ring` called with its name when somebody notifies, or when it ends."""

    @abstractmethod
    def drop(self) -> None:
        """Closes it without a word, and without waiting; rings. Idempotent."""

    @abstractmethod
    async def close(self) -> None:
        """Closes it with a good-bye."""

    # What they share.

    async def fetch(self, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Sends one statement with parameters, a transaction of its own; gives its rows."""
        if self.pooled:
            return (await self.fetch_together([(sql, tuple(parameters))]))[0]
        return await self.query(sql, parameters)

    async def fetch_each(self, asked: Sequence[Bound]) -> list[list[Row]]:
        """Sends statements one after the other, that only read."""
        if self.pooled:
            return await self.fetch_together(asked)
        return [await self.query(sql, parameters) for sql, parameters in asked]

    async def fetch_together(self, asked: Sequence[Bound]) -> list[list[Row]]:
        """Sends statements in one transaction; gives the rows of each.

        A process that is frozen in it is ended by the server (``idle_in_transaction_session_timeout``).
        """
        await self.tell(f"BEGIN; {self.settle}")
        rows = [await self.query(sql, parameters) for sql, parameters in asked]
        await self.tell("COMMIT")
        return rows

    async def send(self, message: str) -> None:
        """Sends statements in one message, as one transaction."""
        await self.tell(f"{self.settle}; {message}" if self.pooled else message)

    async def listen(self, channels: Sequence[str], ring: Callable[[str], None]) -> None:
        """Listens on channels on which it does not yet, where that reaches it."""
        if self.pooled:
            return
        for channel in channels:
            if channel not in self.heard:
                await self.hear(channel, ring)
                self.heard.add(channel)
