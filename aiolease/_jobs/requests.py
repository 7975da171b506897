"""What people ask of the jobs through the ledger: who is paused, and who was triggered.

What they ask for by hand is read with all else: a look only finds that there is something (`aiolease._jobs.cancels`,
`aiolease._jobs.backfills`).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import final

from aiolease._jobs.due import Skip
from aiolease._jobs.job_state import NEVER, JobState, JobStates
from aiolease._jobs.pauses import is_covered, is_paused
from aiolease._jobs.places import Places
from aiolease._jobs.plan import Plan
from aiolease._jobs.waiting_line import WaitingLine
from aiolease.stores.batch import LedgerReading
from aiolease.stores.records import JobRecord

_MOMENT = timedelta(microseconds=1)


@final
class Requests:
    """The triggers of one registry's jobs that were not seen to, and their pauses.

    Args:
        jobs: How the jobs stand; `JobState.paused` is set here.
        line: The runs that wait.
        places: The places.
    """

    def __init__(self, jobs: JobStates, line: WaitingLine, places: Places) -> None:
        self._jobs = jobs
        self._line = line
        self._places = places
        self._triggered: dict[str, datetime] = {}  # by job, when
        self._asked: dict[str, datetime] = {}  # the jobs of which runs by hand were read, and when they were asked for
        self._whole: JobRecord | None = None  # the pause of the whole lease

    def see(self, stock: LedgerReading) -> None:
        """Takes from a reading who is paused and who was triggered."""
        whole = stock.pause
        for name, state in self._jobs.items():
            record = stock.jobs.get(name)
            if record is not None:
                state.paused = is_paused(record, whole)
            else:  # there is nothing to see of it but the pause of the lease
                state.paused = state.covered and whole is not None and whole.paused_until is None
        self._triggered = {
            name: record.requested_at for name, record in self._own(stock) if record.requested_at is not None
        }

    def see_all(self, stock: LedgerReading) -> None:
        """Does the same with a whole reading, which knows all jobs."""
        self._whole = stock.pause
        for name in self._jobs.known(stock.jobs):
            state, record = self._jobs[name], stock.jobs[name]
            state.paused_until = record.paused_until
            state.covered = is_covered(record.known_since, record.resumed_at, stock.pause)
        self._asked = {name: record.asked_at for name, record in self._own(stock) if record.asked_at is not None}
        self.see(stock)

    def are_new(self, stock: LedgerReading) -> bool:
        """True if a look shows what only a whole reading tells: an end of a pause, a pause of all, runs by hand."""
        if _facts(stock.pause) != _facts(self._whole):
            return True
        own = dict(self._own(stock))
        if any(record.asked_at not in {None, self._asked.get(name)} for name, record in own.items()):
            return True
        ends = {name: record.paused_until for name, record in own.items()}
        return any(
            state.paused_until != ends.get(name) for name, state in self._jobs.items() if name not in self._jobs.aside
        )

    def _own(self, stock: LedgerReading) -> list[tuple[str, JobRecord]]:
        return [(name, stock.jobs[name]) for name in self._jobs.known(stock.jobs) - self._jobs.aside]

    def plan(self, plan: Plan, free: float, most: int) -> int:
        """Claims the ticks of triggers; returns how many runs start.

        Args:
            plan: Takes them.
            free: How many places there are.
            most: How many claims go into one batch.
        """
        started = 0
        plan.batch.asked |= {name: at for name, at in self._asked.items() if name not in self._jobs.aside}
        for name, requested_at in self._triggered.items():
            if len(plan.claims) >= most:
                break
            state = self._jobs[name]
            job = state.job
            if name in self._jobs.aside:
                continue
            try:
                of_schedule = job.schedule.latest_between(requested_at - _MOMENT, requested_at) is not None
                # A clock that was set back may show one moment twice; but a refusal may have had another cause.
                tick = requested_at + max(state.refused - 1, 0) * _MOMENT
            except Exception as error:  # noqa: BLE001 - of a row by another hand; it is its job's trouble
                self._jobs.cannot_be_planned(name, error)
                continue
            plan.batch.requests[name] = requested_at
            if of_schedule and not _is_passed_over(state, requested_at):
                continue  # it is run, or was, as a tick of the schedule
            if job.overlap == "skip" and self._places.goes_on(state):
                plan.claim_skip(job, Skip(tick, tick, 1, "triggered while its last run had not ended"))
                continue
            start = started < free and not self._line.waits(plan, state) and self._places.has_thread(plan, job)
            start = start and not (job.one_by_one and state.by_hand)
            if start:
                self._line.serve(plan, state)
            plan.claim_run(job, tick, start=start, request="trigger")
            started += start
        return started

    def written(self, plan: Plan) -> None:
        """The triggers of a plan are seen to."""
        for name in plan.batch.requests:
            self._triggered.pop(name, None)
            self._jobs[name].refused = 0
        for name, asked_at in plan.batch.asked.items():
            if self._asked.get(name) == asked_at:
                del self._asked[name]

    def refused(self, plan: Plan) -> None:
        """The triggers of a plan were refused."""
        for name in plan.batch.requests:
            self._jobs[name].refused += 1


def _facts(whole: JobRecord | None) -> tuple[datetime | None, datetime | None]:
    return (None, None) if whole is None else (whole.paused_at, whole.paused_until)


def _is_passed_over(state: JobState, tick: datetime) -> bool:
    """True if a tick of the schedule is not run as such, since its job is paused then."""
    if state.paused:
        return state.settled_until < tick
    return state.paused_until is not None and tick < state.paused_until and (state.high_tick or NEVER) < tick
