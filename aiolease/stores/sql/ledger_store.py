"""The ledger of a store on a database that takes SQL: what the leader asks, and what is made of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING

from aiolease.stores.batch import Batch, JobDefinition, LedgerReading
from aiolease.stores.records import Place, RunRecord, TermKey
from aiolease.stores.seen import Overview
from aiolease.stores.sql.people import SQLRequests
from aiolease.stores.sql.recording import Recording
from aiolease.stores.sql.rows import read_each, there

if TYPE_CHECKING:
    from aiolease.stores.sql.overview import OverviewStatements


class SQLLedger(SQLRequests):
    """A `LedgerStore` and a `JobStore`; how its statements are sent is the database's own part."""

    @cached_property
    def _recording(self) -> Recording:
        """Made by a leader: who waits writes nothing."""
        return Recording(self._words)

    @cached_property
    def _overview(self) -> OverviewStatements:
        """Made by who looks: a leader does without."""
        from aiolease.stores.sql.overview import OverviewStatements

        return OverviewStatements(self._words, self._rows)

    async def take_stock(
        self, name: str, *, attention: bool = False, runs: bool = True, counted: bool = False
    ) -> LedgerReading:
        """See `LedgerStore.take_stock`."""
        reading = self._ledger.reading(attention=attention, runs=runs, counted=counted)
        results = await self._sending.read([(statement, {"lease": name}) for statement in reading.values()])
        return self._ledger.read(dict(zip(reading, results, strict=True)))

    async def queued(self, name: str, jobs: Sequence[str], limit: int) -> tuple[list[RunRecord], dict[str, str]]:
        """See `LedgerStore.queued`."""
        asked = [(self._ledger.queued, {"lease": name, "job": job, "limit": limit}) for job in jobs]
        results = await self._sending.read(asked) if asked else []
        unreadable: dict[str, str] = {}
        found = read_each((row for rows in results for row in rows), self._rows.run, unreadable)
        return sorted(found, key=lambda run: (run.tick, run.job)), unreadable

    async def look_up(self, name: str, places: Sequence[Place]) -> list[RunRecord]:
        """See `LedgerStore.look_up`."""
        asked = [(self._ledger.look_up, {"lease": name, "job": job, "tick": tick}) for job, tick in places]
        results = await self._sending.read(asked) if asked else []
        return [there(place, row, self._rows.run) for place, rows in zip(places, results, strict=True) for row in rows]

    async def enroll(self, term: TermKey, jobs: Sequence[JobDefinition]) -> None:
        """See `LedgerStore.enroll`."""
        await self._sending.enroll(term, jobs)

    async def record(self, term: TermKey, batch: Batch) -> None:
        """See `LedgerStore.record`."""
        await self._sending.record(term, self._recording.recording(term, batch))

    async def prune(self, name: str, jobs: Sequence[str], keep: int) -> list[str]:
        """See `LedgerStore.prune`."""
        return await self._sending.prune(name, jobs, keep)

    async def later(self, name: str, limit: int) -> tuple[list[RunRecord], dict[str, str]]:
        """See `LedgerStore.later`."""
        [rows] = await self._sending.read([(self._ledger.later, {"lease": name, "limit": limit})])
        unreadable: dict[str, str] = {}
        return read_each(rows, self._rows.run, unreadable), unreadable

    async def rows_from(self, name: str, job: str, since: datetime, limit: int) -> list[RunRecord]:
        """See `LedgerStore.rows_from`."""
        values = {"lease": name, "job": job, "since": since, "limit": limit}
        [rows] = await self._sending.read([(self._ledger.rows_from, values)])
        return read_each(rows, self._rows.run_or_sign, {})

    async def have(self, term: TermKey, jobs: Sequence[str]) -> None:
        """See `LedgerStore.have`."""
        await self._sending.record(term, self._recording.having(term, jobs))

    async def overview(self, name: str, jobs: Sequence[str] | None = None) -> Overview:
        """See `LedgerStore.overview`."""
        [found] = await self._sending.read([self._overview.asking(name, jobs)])
        now = found[0][-1] if found else (await self._sending.read([(self._overview.clock, {})]))[0][0][0]
        return self._overview.read(found, now, jobs)
