"""Claims the ticks that are due: which of them are run, which are skipped, which are put off."""

from __future__ import annotations

import functools
import math
from datetime import datetime
from typing import final

from aiolease._jobs.due import MOST_MISSED, Due, Skip, due, without
from aiolease._jobs.jitter import reached
from aiolease._jobs.job_state import JobState, JobStates
from aiolease._jobs.next_ticks import NextTicks
from aiolease._jobs.places import Places
from aiolease._jobs.plan import Plan
from aiolease._jobs.series import SkippedSeries, continues
from aiolease._jobs.waiting_line import WaitingLine

_NOT_ENDED = "its last run has not ended"

_WAITS = "its last run waits to be tried again"

_SOON = 0.1
"""Ticks that were put off join a batch that is written anyhow, once this part of the patience has passed."""


@final
class Claims:
    """Claims the due ticks of one registry's jobs.

    Args:
        jobs: How the jobs stand.
        ticks: When their next ticks are.
        series: Their skipped ticks.
        line: The runs that wait.
        places: The places.
        young: Seconds for which a tick is due and not yet missed.
    """

    def __init__(
        self,
        jobs: JobStates,
        ticks: NextTicks,
        series: SkippedSeries,
        line: WaitingLine,
        places: Places,
        *,
        young: float,
    ) -> None:
        self._jobs = jobs
        self._ticks = ticks
        self._series = series
        self._line = line
        self._places = places
        self._young = young

    def plan(self, plan: Plan, now: datetime, free: float, most: int) -> float:
        """Claims all that is due; returns how many places are left.

        What leaves the heap comes back when it is known whether the plan was written.

        Args:
            plan: Takes the claims.
            now: The database's clock.
            free: How many places there are.
            most: How many runs are claimed in one batch, about.
        """
        triggered = {job.name for job, run in plan.claims if run.status != "skipped"}
        recalled = self._ticks.recall(now, self._ticks.patience * (_SOON if plan.batch else 1.0))
        while len(plan.claims) < 2 * most and len(plan.claims) - len(plan.skips) < most:
            if (name := self._ticks.pop_due(now)) is None:
                break
            state = self._jobs[name]
            job = state.job
            if state.paused or name in self._jobs.aside:
                continue
            if job.one_by_one and state.by_hand:
                state.held = state.behind_hand = True  # it follows, and is in time then
                continue
            late = (job.missed == "all" and state.backlog) or state.inherited
            if (late and state.going_on) or (job.overlap == "skip" and name in triggered):
                state.held = True  # it runs after the others, and is no overlap
                continue
            try:
                found = self._due(state, now)
            except Exception as error:  # noqa: BLE001 - somebody changed the row; only its own job is set aside
                self._jobs.cannot_be_planned(name, error)
                continue
            if not found.run and not found.skipped:  # settled meanwhile: the job was paused, and resumed
                self._ticks.line_up([name])
            elif name not in recalled and self._may_wait(state, found):
                self._ticks.put_off(state, now, found.skipped[0].reason)
            else:
                free -= self._claim(plan, state, found, free)
        return free

    def _claim(self, plan: Plan, state: JobState, found: Due, free: float) -> int:
        """Claims the due ticks of one job; returns how many of its runs start."""
        job, started = state.job, 0
        backlog = job.missed == "all" and len(found.run) > 1
        behind_all = backlog and self._places.goes_on(state)
        last = (found.run or [found.skipped[-1].last])[-1]
        if state.there:
            found = without(found, state.there, job.schedule)
        self._series.plan(plan, state, found.skipped, runs=bool(found.run))
        for skip in found.skipped:
            plan.claim_skip(job, skip)
        for number, tick in enumerate(found.run):
            behind = number > 0 or behind_all or self._line.waits(plan, state)
            start = free > started and not behind and self._places.has_thread(plan, job)
            if start:
                self._line.serve(plan, state)
            plan.claim_run(job, tick, start=start)
            started += start
        plan.settle(job.name, last, state.high_tick)
        return started

    def _due(self, state: JobState, now: datetime) -> Due:
        """Decides on the due ticks of a job, considering its runs that go on."""
        job, after = state.job, state.settled_until
        while_busy = self._due_while_busy(state, now)
        if while_busy is not None:
            after = while_busy.last
        young = math.inf if state.behind_hand else self._young
        may_start = functools.partial(reached, job, self._jobs.lease, after)
        found = due(job.schedule, after, now, missed=job.missed, max_age=job.max_age, young=young, reached=may_start)
        why, backlog = None, job.missed == "all" and len(found.run) > 1
        if state.going_on >= MOST_MISSED:
            why = f"{MOST_MISSED} of its runs wait"
        elif job.overlap == "skip" and not backlog and self._places.goes_on(state):
            why = _WAITS if 0 < state.going_on == state.retrying else _NOT_ENDED
        if found.run and why is not None:
            count = job.schedule.count_between(after, found.run[-1])
            first = found.skipped[0].first if found.skipped else found.run[0]
            found = Due(skipped=[Skip(first, found.run[-1], count, why)])
        if while_busy is not None:
            found.skipped.insert(0, while_busy)
        return found

    def _may_wait(self, state: JobState, found: Due) -> bool:
        """True if the ticks only extend a series of skipped ones, because a run goes on, and more come soon."""
        if found.run or len(found.skipped) != 1 or not state.going_on:
            return False
        [skip] = found.skipped
        following = state.job.schedule.next_after(skip.last)
        soon = following is not None and (following - skip.last).total_seconds() < self._ticks.patience
        return soon and skip.reason in {_NOT_ENDED, _WAITS} and continues(state, skip)

    def plan_last(self, plan: Plan, now: datetime, most: int) -> None:
        """Plans the ticks that were put off, before the term ends: it claims no more."""
        for state in self._ticks.recall_all(now, most):
            job = state.job
            if state.paused or job.name in self._jobs.aside or (skip := self._due_while_busy(state, now)) is None:
                continue
            self._series.plan(plan, state, [skip], runs=False)
            plan.claim_skip(job, skip)
            plan.settle(job.name, skip.last, state.high_tick)

    def _due_while_busy(self, state: JobState, now: datetime) -> Skip | None:
        """The ticks of a job that were put off, and fell due before its last run ended."""
        after, schedule = state.settled_until, state.job.schedule
        if state.busy_until is None:
            return None
        # The clock may have gone back meanwhile.
        until = reached(state.job, self._jobs.lease, after, min(state.busy_until, now))
        if until <= after:
            return None
        first, last = schedule.next_after(after), schedule.latest_between(after, until)
        if first is None or last is None:
            return None
        return Skip(first, last, schedule.count_between(after, until), state.busy_why)
