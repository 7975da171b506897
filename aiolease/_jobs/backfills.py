"""Queues the ticks of backfills, a portion at a time (DESIGN rule 34).

Somebody has written a span into the job's row. A portion is one fenced transaction: the ticks are queued, and the span
becomes shorter. If its answer is lost, or the leader dies, the ledger says where to go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import final

from aiolease._election.term import Term
from aiolease._jobs.backfill import is_range, of_schedule, portion
from aiolease._jobs.cancels import Cancels
from aiolease._jobs.job import Job
from aiolease._jobs.ledger import Ledger
from aiolease._jobs.planner import Planner
from aiolease._jobs.quarantine import Quarantine
from aiolease.events import describe
from aiolease.stores.batch import LedgerReading
from aiolease.stores.contract import Refused
from aiolease.stores.records import RunRecord

_MOMENT = timedelta(microseconds=1)

_ENOUGH = 100
"""How many runs by hand of a job wait at least before no more are queued."""

_REFUSALS = 3
"""How often in a row a portion is refused before its job is set aside."""


@final
class Backfills:
    """The backfills of one term.

    Args:
        term: The term.
        planner: Knows the jobs, and what of them waits.
        ledger: Is read and written.
        quarantine: Takes a job whose backfill cannot be written.
        cancels: Says which backfills are to be forgotten.
    """

    def __init__(
        self, term: Term, *, planner: Planner, ledger: Ledger, quarantine: Quarantine, cancels: Cancels
    ) -> None:
        self._term = term
        self._planner = planner
        self._ledger = ledger
        self._quarantine = quarantine
        self._cancels = cancels
        self._spans: dict[str, tuple[datetime, datetime]] = {}
        self._refused: dict[str, int] = {}

    def see(self, stock: LedgerReading) -> None:
        """Takes from a reading which backfills are to be queued."""
        jobs: Mapping[str, object] = self._planner.jobs
        self._spans = {
            name: (record.backfill_since, record.backfill_until or record.backfill_since)
            for name, record in stock.jobs.items()
            if name in jobs and record.backfill_since is not None
        }

    def next_job(self) -> str | None:
        """A job of which a portion may be queued now."""
        for name in self._spans:
            if name in self._planner.jobs.aside or self._cancels.is_open(name):
                continue
            if self._planner.later.number_by_hand(name) < _ENOUGH:
                return name
        return None

    async def queue(self, name: str) -> bool:
        """Queues a portion of a job's backfill; returns True if something is to be read then.

        Raises:
            Refused: The rows are others by now: they are read again.
        """
        since, until = self._spans[name]
        state, now, most = self._planner.jobs[name], self._term.database_now(), self._ledger.most
        rows, complete = await self._read(state.job, since)
        span = since, min(until, self._planner.seen_to(name, now))
        try:
            plan, changed = portion(state.job, self._term.key, rows, span, now, most=most, complete=complete)
        except Exception as error:  # noqa: BLE001 - of a row by another hand; it is its job's trouble
            self._quarantine.set_aside({name: describe(error)})
            return False
        self._planner.end_series(name, changed)
        try:
            await self._ledger.record(plan.batch)
        except Refused as error:
            self._refused[name] = self._refused.get(name, 0) + 1
            if self._refused[name] >= _REFUSALS:
                self._refused[name] = 0
                why = f"its backfill cannot be written: {error.__cause__ or 'refused'}"
                self._quarantine.set_aside({name: why})
            raise
        except BaseException:  # nobody knows whether it was written
            self._ledger.went_unanswered()
            raise
        self._refused.pop(name, None)
        rest = plan.batch.backfills[name].since
        if rest is None:
            del self._spans[name]
        else:
            self._spans[name] = rest, until
        return bool(plan.batch.claims or plan.batch.changes)

    async def _read(self, job: Job, since: datetime) -> tuple[list[RunRecord], bool]:
        """The rows of a job from a moment on that matter, up to one of its schedule; and whether these are all.

        Others are those of triggers, or of a former schedule: there may be any number of them.
        """
        found, limit = list[RunRecord](), 2 * self._ledger.most
        while True:
            rows = await self._ledger.rows_from(job.name, since, limit)
            complete, is_enough = len(rows) < limit, False
            for row in rows:
                mine = of_schedule(job, row)
                is_enough |= mine
                if mine or is_range(row):
                    found.append(row)
            if complete or is_enough:
                return found, complete
            since = rows[-1].tick + _MOMENT
