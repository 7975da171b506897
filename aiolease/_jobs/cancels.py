"""Cancels the runs of jobs because somebody asked for that (DESIGN rule 35).

The request stays in the ledger until all that it is about has ended, and is written: if the leader dies before, the
next one goes on with it. Each part of it happens once in a term:

1. Runs that go on here are cancelled, as a time-out cancels them. What an earlier term had begun has failed.
2. What waits to be begun again, in the ledger or in this process, has failed. What was asked for by hand before, and
   has not begun, goes back to what it was.
3. What more of a backfill was to be queued, the request itself has ended. No other one is queued before all this is
   done: what is queued then is not meant.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import final

from aiolease._jobs.due import CANCELLED, withdrawn
from aiolease._jobs.plan import Plan, Waiting
from aiolease._jobs.planner import Planner
from aiolease._jobs.runs import Runs
from aiolease._jobs.unwritten import Unwritten
from aiolease.stores.batch import Change, LedgerReading
from aiolease.stores.records import RunKey, RunRecord


@final
class Cancels:
    """The requests to cancel of one term.

    Args:
        planner: Knows what waits.
        runs: Are cancelled.
        unwritten: Takes what is to be written.
    """

    def __init__(self, planner: Planner, runs: Runs, unwritten: Unwritten) -> None:
        self._planner = planner
        self._runs = runs
        self._unwritten = unwritten
        self._seen: dict[str, datetime] = {}  # the requests that are seen to
        self._open: dict[str, datetime] = {}  # those that have not been cleared
        self._more = planner.later.sought  # jobs of which more may wait than was read, or is written

    def are_new(self, stock: LedgerReading) -> bool:
        """True if a look shows a request that was not seen to."""
        return any(self._seen.get(name) != at for name, at in self._requests(stock).items())

    def to_read(self, stock: LedgerReading) -> list[str]:
        """The jobs of which the queued runs are to be read before `see`: some may have begun once, and wait anew."""
        new = [name for name, at in self._requests(stock).items() if self._seen.get(name) != at]
        return [name for name in new if stock.queued.get(name)]

    def see(self, stock: LedgerReading, queued: Sequence[RunRecord] = ()) -> None:
        """Sees to the requests that a whole reading shows.

        Args:
            stock: The reading.
            queued: What was read of the queued runs: those that have begun once do not begin again.
        """
        requests = self._requests(stock)
        self._open = requests
        self._more &= requests.keys()  # another may be gone: somebody has set the rows right
        for name, cancel_at in requests.items():
            is_new = self._seen.get(name) != cancel_at
            if is_new:
                self._seen[name] = cancel_at
                self._runs.cancel(name)
            if is_new or name in self._more:
                self._withdraw(name, cancel_at)
        for run in queued:
            if run.attempt > 1 and self._planner.exclude(run):
                key = RunKey(run.job, run.tick, run.attempt, run.token)
                self._unwritten.add(withdrawn(key, CANCELLED, required=False))

    def see_more(self) -> None:
        """Sees to what was read since of the jobs of which more waited than was read: before any of it begins."""
        for name in [name for name in self._more if name in self._open]:
            self._withdraw(name, self._open[name])

    def _requests(self, stock: LedgerReading) -> dict[str, datetime]:
        jobs = self._planner.jobs
        records = [stock.jobs[name] for name in jobs.known(stock.jobs) - jobs.aside]
        return {record.job: record.cancel_at for record in records if record.cancel_at is not None}

    def _withdraw(self, name: str, cancel_at: datetime) -> None:
        self._more.discard(name)
        if self._unwritten.withdraw(name, CANCELLED) or self._planner.jobs[name].unseen:
            self._more.add(name)  # the ledger may know it as queued already
        gone = [waiting for waiting in self._planner.later.of(name) if _is_meant(waiting, cancel_at)]
        self._planner.withdraw(gone)
        for waiting in gone:
            if waiting.status == "queued":
                had_succeeded = waiting.had_succeeded
                self._unwritten.add(withdrawn(waiting.key, CANCELLED, required=False, had_succeeded=had_succeeded))
            else:  # it was to begin, and has not
                self._unwritten.add(
                    Change(key=waiting.key, was="running", status="failed", attempt=waiting.attempt, error=CANCELLED)
                )

    @property
    def are_open(self) -> bool:
        """True if a request has not been cleared."""
        return bool(self._open)

    def is_open(self, name: str) -> bool:
        """True if one of a job has not been."""
        return name in self._open

    def plan(self, plan: Plan, changes: Collection[Change]) -> None:
        """Has the requests cleared of which all has ended, and is written with a plan.

        Args:
            plan: The plan.
            changes: All changes that wait to be written.
        """
        written = set(map(id, plan.pending))
        left = {change.key.job for change in changes if id(change) not in written}
        for name, cancel_at in self._open.items():
            if name not in left | self._more | self._planner.jobs.aside and not self._runs.has_cancelled(name):
                plan.batch.cancels[name] = cancel_at

    def written(self, plan: Plan) -> bool:
        """Notes that a plan was written; returns True if more of a job is to be read, and cancelled."""
        for name in plan.batch.cancels:
            self._open.pop(name, None)
        return any(change.key.job in self._more for change in plan.pending)


def _is_meant(waiting: Waiting, cancel_at: datetime) -> bool:
    """True if a request is about a run that waits: not if it was asked for by hand since."""
    if waiting.request != "rerun" or waiting.failures:
        return True
    return waiting.not_before is None or waiting.not_before <= cancel_at
