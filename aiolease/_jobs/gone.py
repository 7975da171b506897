"""Closes the queued and running rows of jobs that no leader has had for a day."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import final

from aiolease._election.term import Term
from aiolease._jobs.due import lost, withdrawn
from aiolease._jobs.ledger import Ledger
from aiolease._jobs.notices import Notices
from aiolease._jobs.planner import Planner
from aiolease._jobs.quarantine import Quarantine
from aiolease._jobs.unwritten import Unwritten
from aiolease.stores.batch import Change, LedgerReading
from aiolease.stores.records import RunKey, RunRecord

_GONE = timedelta(days=1)
"""How long a job must have had no tick before its rows are closed."""

_EVERY, _SOON = 3600.0, 5.0
"""Seconds after which a leader looks for such rows again; the second number if there are more."""

_JOBS_AT_ONCE, _RUNS_OF_EACH = 50, 20
"""Of how many jobs queued runs are read at once, and how many of each."""

_LATER = 1000
"""How many of the runs that wait for their moment are looked at."""

_WHY = "no leader has had this job for a day"


@final
class GoneJobs:
    """Jobs that the ledger knows, and no leader has any more.

    Args:
        term: The term; other registries in this process have the jobs of `Term.jobs`.
        planner: Knows the jobs of this registry.
        ledger: The ledger.
        quarantine: Says which jobs are left alone.
        unwritten: Takes the changes.
        notices: Tells of them.
    """

    def __init__(
        self,
        term: Term,
        *,
        planner: Planner,
        ledger: Ledger,
        quarantine: Quarantine,
        unwritten: Unwritten,
        notices: Notices,
    ) -> None:
        self._term = term
        self._planner = planner
        self._ledger = ledger
        self._quarantine = quarantine
        self._unwritten = unwritten
        self._notices = notices
        self._clock = asyncio.get_running_loop().time
        self._look_at = 0.0

    @property
    def is_due(self) -> bool:
        """True if it is time to look for their rows."""
        return self._clock() >= self._look_at

    async def close(self, stock: LedgerReading) -> None:
        """Closes some of their rows; the next ones soon after."""
        long_ago = stock.now - _GONE
        gone = {
            name
            for name in self._planner.jobs.unknown(stock) - self._term.jobs - self._quarantine.left_alone
            if max(stock.jobs[name].settled_until, stock.jobs[name].schedule_since) < long_ago
        }
        waiting = sorted(gone & stock.queued.keys())[:_JOBS_AT_ONCE]
        queued: list[RunRecord] = []
        if waiting:
            queued, _ = await self._ledger.queued(waiting, _RUNS_OF_EACH)
        if gone & stock.later.keys():
            later, _ = await self._ledger.later(_LATER)
            queued += [run for run in later if run.job in gone]
        gone -= {change.key.job for change in self._unwritten.changes}
        left = [run for run in (*stock.unfinished, *queued) if run.job in gone and run.tick < long_ago]
        for run in left:
            self._unwritten.add(_closed(run))
        if left:
            jobs = ", ".join(sorted({run.job for run in left}))
            text = f"closed {len(left)} runs of jobs that no leader has had for a day: {jobs}"
            self._notices.tell("WARNING", text)
        self._look_at = self._clock() + (_SOON if queued else _EVERY)


def _closed(run: RunRecord) -> Change:
    """The end of a run that nobody will run any more."""
    key = RunKey(run.job, run.tick, run.attempt, run.token)
    if run.status == "running":
        return lost(key, rerun=False, why=_WHY)
    if run.not_before is not None:
        return withdrawn(key, _WHY, required=False, had_succeeded=run.had_succeeded)
    # A further attempt that has not begun: it is the one before that was lost.
    return Change(key=key, was="queued", status="lost", attempt=max(run.attempt - 1, 1), error=_WHY)
