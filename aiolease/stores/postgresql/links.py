"""A connection of aiolease's own to PostgreSQL, whatever the driver: statements with rows, messages without, bells.

Where a pooler stands between (PgBouncer), each transaction may reach another session of the server. So nothing is
settled for the session there, but in each transaction; no statement is prepared beyond it; and nobody listens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any

from aiolease.stores.postgresql.dialect import Bound

Row = tuple[Any, ...]

Ring = Callable[[str, str], None]
"""Is called with the name of a channel and what was told there; that is empty when the connection has ended."""


class Link(ABC):
    """One connection of our own.

    Attributes:
        raw: The driver's.
        pooled: Whether a pooler may lead each transaction to another session; so it is until the contrary is known.
        settle: What each transaction begins with then.
        narrow: Whether the database's encoding lacks characters.
        heard: The channels that it listens on; none once it has ended.
    """

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.pooled, self.narrow = True, False
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
    def reported(self, name: str) -> str:
        """A parameter that the server reported when it was connected; empty if it did not."""

    @abstractmethod
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""

    @abstractmethod
    async def query(self, sql: str, parameters: Sequence[object]) -> list[Row]:
        """Sends one statement with parameters; gives its rows."""

    @abstractmethod
    async def get_ready(self, statements: Sequence[str]) -> None:
        """Has the first `query` of each statement take one round trip, as all later ones, where it would take more."""

    @abstractmethod
    async def tell(self, message: str) -> None:
        """Sends statements in one message of the simple protocol: an error keeps what is behind it from being done.

        Outside a transaction they are one.
        """

    @abstractmethod
    async def hear(self, channels: Sequence[str], ring: Ring, *, instead: Collection[str]) -> None:
        """Listens on channels, in one round trip, and no longer on those that these stand `instead` of.

        Has `ring` called when somebody notifies, or when the connection ends.
        """

    @abstractmethod
    def drop(self) -> None:
        """Closes it without a word, and without waiting; rings. Idempotent."""

    @abstractmethod
    async def close(self) -> None:
        """Closes it with a good-bye."""

    # What they share.

    @property
    def says(self) -> str:
        """What the server said of its version when it was connected; another database has a name of its own in it."""
        found = ((name, self.reported(name)) for name in ("server_version", "crdb_version"))
        return " ".join(f"{name} {value}" for name, value in found if value)

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

    async def listen(self, channels: Sequence[str], ring: Ring) -> None:
        """Listens on channels, where that reaches it; once there is a new one, no longer on any others."""
        if self.pooled:
            return
        if missing := [channel for channel in channels if channel not in self.heard]:
            gone = self.heard.difference(channels)
            await self.hear(missing, ring, instead=gone)
            self.heard.difference_update(gone)
            self.heard.update(missing)


def listening(channels: Sequence[str], instead: Collection[str]) -> str:
    """The message with which `Link.hear` does so."""
    return "; ".join([*(f'UNLISTEN "{channel}"' for channel in instead), *(f'LISTEN "{each}"' for each in channels)])
