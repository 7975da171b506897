"""The ledger of a store on a database that takes SQL: what is asked, and what is made of the answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Protocol

from aiolease._names import check_name
from aiolease.errors import InvalidJob
from aiolease.stores.batch import Batch, JobDefinition, LedgerReading
from aiolease.stores.records import Place, RunRecord, TermKey, checked_limit
from aiolease.stores.sql.dialect import Dialect
from aiolease.stores.sql.ledger import LedgerStatements
from aiolease.stores.sql.recording import Recording
from aiolease.stores.sql.rows import Row, Rows, read_each, readable, there
from aiolease.stores.sql.statement import Asked, Statement, Step


class SQLLedger:
    """A `LedgerStore`; how its statements are sent is the database's own part."""

    description: str

    def __init__(self, dialect: Dialect, rows: Rows, sending: Sending) -> None:
        self._rows = rows
        self._sending = sending
        self._ledger = LedgerStatements(dialect, rows)
        self._recording = Recording(dialect)

    # -- what the leader reads and writes

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

    # -- what people ask

    async def history(self, name: str, job: str, *, limit: int = 100) -> list[RunRecord]:
        """See `LedgerStore.history`."""
        values = {"lease": check_name(name), "job": job, "limit": checked_limit(limit)}
        rows = await self._sending.ask([(self._ledger.history, values)]) if _is_name(job) else []
        return read_each(reversed(rows), self._rows.run, {})

    async def settle(self, name: str, job: str) -> None:
        """See `LedgerStore.settle`."""
        await self._ask_job(name, job, *self._ledger.settle)

    async def trigger(self, name: str, job: str) -> datetime:
        """See `LedgerStore.trigger`."""
        requested_at = await self._ask_job(name, job, self._ledger.trigger)
        with readable(self.description, f"the ledger of {name!r}"):
            return self._rows.moment(requested_at)

    async def pause(self, name: str, job: str) -> None:
        """See `LedgerStore.pause`."""
        await self._ask_job(name, job, self._ledger.pause)

    async def resume(self, name: str, job: str) -> None:
        """See `LedgerStore.resume`."""
        await self._ask_job(name, job, self._ledger.resume)

    async def _ask_job(self, name: str, job: str, *changes: Statement) -> Any:
        """Changes a job; returns when it was triggered, as the table keeps it."""
        values = {"lease": check_name(name), "job": job}
        asked = [(statement, values) for statement in (*changes, self._ledger.requested_at)]
        rows = await self._sending.ask(asked) if _is_name(job) else []
        if not rows:
            raise InvalidJob(job, f"no leader of {name!r} ever had such a job")
        return rows[0][0]


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


def _is_name(job: str) -> bool:
    """Whether a job can have this name: a server would compare others by rules of its own, or not at all."""
    return bool(re.fullmatch(r"[!-~]{1,100}", job))
