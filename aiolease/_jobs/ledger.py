"""The ledger as one term reads and writes it: each exchange has a time limit, each batch a limit of rows."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime
from typing import TypeVar, final

from aiolease._election.term import Term
from aiolease._waiting import time_limited
from aiolease.stores.batch import Batch, JobDefinition, LedgerReading
from aiolease.stores.records import Place, RunRecord
from aiolease.stores.seen import TERMS, TermRecord

R = TypeVar("R")

_MOST = 1000
"""How many ticks are claimed in one transaction."""

_LEAST = 10
"""The smallest limit, however often a batch fails."""

_FIRST = datetime(1000, 1, 1, tzinfo=UTC)
"""Before all ticks, and a moment on every store."""


@final
class Ledger:
    """The ledger of a term's lease. Its methods are those of `LedgerStore`, and raise the same.

    Attributes:
        largest: How many changes, and how many claims, go into one batch at most.
        most: How many go into the next batch: fewer after a batch that failed.
    """

    def __init__(self, term: Term) -> None:
        self.largest = self.most = _MOST
        self._term = term
        self._late_until = -math.inf

    async def take_stock(self) -> LedgerReading:
        """Reads all jobs, the runs with status ``running``, and how many are queued; takes the database's clock."""
        return self._saw(await self._limited(self._term.store.take_stock(self._term.key.name, counted=True)))

    async def attention(self) -> LedgerReading:
        """Reads who was paused, resumed or triggered; takes the database's clock."""
        return self._saw(await self._limited(self._term.store.take_stock(self._term.key.name, attention=True)))

    async def enroll(self, jobs: Sequence[JobDefinition]) -> None:
        """Writes jobs that are new or have another schedule."""
        await self._limited(self._term.store.enroll(self._term.key, jobs))

    async def queued(self, jobs: Sequence[str], limit: int) -> tuple[list[RunRecord], dict[str, str]]:
        """Reads the oldest queued runs of some jobs."""
        return await self._limited(self._term.store.queued(self._term.key.name, jobs, limit))

    async def look_up(self, places: Sequence[Place]) -> list[RunRecord]:
        """Reads which of some ticks have a row."""
        return await self._limited(self._term.store.look_up(self._term.key.name, places))

    async def later(self, limit: int) -> tuple[list[RunRecord], dict[str, str]]:
        """Reads the earliest of the runs that wait for their moment."""
        return await self._limited(self._term.store.later(self._term.key.name, limit))

    async def rows_from(self, job: str, since: datetime, limit: int) -> list[RunRecord]:
        """Reads the rows of a job from a moment on."""
        return await self._limited(self._term.store.rows_from(self._term.key.name, job, since, limit))

    async def have(self, jobs: Sequence[str]) -> None:
        """Writes that this term's leader has some jobs."""
        await self._limited(self._term.store.have(self._term.key, jobs))

    async def terms(self, limit: int) -> list[TermRecord]:
        """Reads the oldest terms of the lease: over the leader's connection, so that it needs none for people."""
        return [TermRecord.of(run) for run in await self.rows_from(TERMS, _FIRST, limit)]

    async def record(self, batch: Batch) -> None:
        """Writes a batch, all of it or nothing."""
        await self._limited(self._term.store.record(self._term.key, batch))

    async def prune(self, jobs: Sequence[str], keep: int) -> list[str]:
        """Deletes a step of the old rows of some jobs; returns those that have more."""
        return list(await self._limited(self._term.store.prune(self._term.key.name, jobs, keep)))

    async def _limited(self, call: Coroutine[object, object, R]) -> R:
        return await time_limited(self._term.timings.attempt, self._term.store.description, call)

    def _saw(self, stock: LedgerReading) -> LedgerReading:
        # Used only if the clock was stepped: a renewal is a shorter exchange, and measures better.
        if abs((stock.now - self._term.database_now()).total_seconds()) > 1:
            self._term.saw_database_time(stock.now)
        return stock

    @property
    def may_be_late(self) -> bool:
        """True while a batch that went unanswered may still take effect."""
        return asyncio.get_running_loop().time() < self._late_until

    def went_unanswered(self) -> None:
        """Notes that a batch went unanswered."""
        self._late_until = asyncio.get_running_loop().time() + 2 * self._term.timings.lease_duration

    def smaller_batches(self) -> None:
        """Halves the next batch: the last one may have been too much for the server, or for the time."""
        self.most = max(self.most // 2, _LEAST)

    def larger_batches(self) -> None:
        """Doubles the next batch, up to the largest."""
        self.most = min(self.most * 2, self.largest)
