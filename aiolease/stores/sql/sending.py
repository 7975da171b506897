"""How a database is sent the statements of the ledger: its own part of a store. No I/O here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from aiolease.stores.batch import JobDefinition
from aiolease.stores.records import TermKey
from aiolease.stores.sql.rows import Row
from aiolease.stores.sql.statement import Asked, Step


class Sending(Protocol):
    """How a database is sent the statements of the ledger: its own part of a `LedgerStore`."""

    async def read(self, asked: Sequence[Asked]) -> Sequence[Sequence[Row]]:
        """Reads for the leader; gives the rows of each statement."""

    async def enroll(self, term: TermKey, jobs: Sequence[JobDefinition]) -> None:
        """See `LedgerStore.enroll`."""

    async def record(self, term: TermKey, steps: Iterable[Step]) -> None:
        """Takes the steps in one transaction, behind the fence.

        Raises:
            FenceBroken: The term is over; nothing was written.
            Refused: A step changed another number of rows than it must, or rows are in the way; nothing was written.
        """

    async def prune(self, name: str, jobs: Sequence[str], keep: int) -> list[str]:
        """See `LedgerStore.prune`."""

    async def ask(self, asked: Sequence[Asked]) -> Sequence[Row]:
        """Executes what people ask in one transaction; gives the rows of the last statement."""

    async def look(self, asked: Sequence[Asked]) -> Sequence[Sequence[Row]]:
        """Reads for people; gives the rows of each statement."""
