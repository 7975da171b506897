"""What people ask of the jobs through the ledger: who is paused, and who was triggered."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import final

from aiolease._jobs.due import Skip
from aiolease._jobs.job_state import JobStates
from aiolease._jobs.places import Places
from aiolease._jobs.plan import Plan
from aiolease._jobs.waiting_line import WaitingLine
from aiolease.stores.batch import LedgerReading

_MOMENT = timedelta(microseconds=1)


@final
class Requests:
    """The triggers of one registry's jobs that were not seen to.

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

    def see(self, stock: LedgerReading) -> None:
        """Takes from a reading who is paused and who was triggered."""
        for name, state in self._jobs.items():
            record = stock.jobs.get(name)  # none, if there is nothing to see
            state.paused = record is not None and record.paused_at is not None
        self._triggered = {
            name: record.requested_at
            for name, record in stock.jobs.items()
            if name in self._jobs and name not in self._jobs.aside and record.requested_at is not None
        }

    def plan(self, plan: Plan, free: float, most: int) -> int:
        """Claims the ticks of triggers; returns how many runs start.

        Args:
            plan: Takes them.
            free: How many places there are.
            most: How many claims go into one batch.
        """
        started = 0
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
            if of_schedule and (not state.paused or state.settled_until >= requested_at):
                continue  # it is run, or was, as a tick of the schedule
            if job.overlap == "skip" and self._places.goes_on(state):
                plan.claim_skip(job, Skip(tick, tick, 1, "triggered while its last run had not ended"))
                continue
            start = started < free and not self._line.waits(plan, state) and self._places.has_thread(plan, job)
            if start:
                self._line.serve(plan, state)
            plan.claim_run(job, tick, start=start)
            started += start
        return started

    def written(self, plan: Plan) -> None:
        """The triggers of a plan are seen to."""
        for name in plan.batch.requests:
            self._triggered.pop(name, None)
            self._jobs[name].refused = 0

    def refused(self, plan: Plan) -> None:
        """The triggers of a plan were refused."""
        for name in plan.batch.requests:
            self._jobs[name].refused += 1
