"""What the jobs of one term have to do next: which ticks are due, which runs wait, what is written. No I/O here.

`aiolease._jobs.runner` asks for a plan, has it written, and starts the runs of what was written. It tells the planner
what it has read, and which runs have ended. What a plan costs depends on what it changes, not on how much waits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import final

from aiolease._jobs.backlog import Backlog
from aiolease._jobs.changed import plan_former
from aiolease._jobs.claims import Claims
from aiolease._jobs.due import start_of_last
from aiolease._jobs.inventory import Inventory, KnownRuns
from aiolease._jobs.job_state import NEVER, JobState, JobStates
from aiolease._jobs.later import Later, makes_busy
from aiolease._jobs.next_ticks import NextTicks
from aiolease._jobs.pauses import settled_until
from aiolease._jobs.places import Places
from aiolease._jobs.plan import Plan, Waiting
from aiolease._jobs.requests import Requests
from aiolease._jobs.schedule import ticks_between
from aiolease._jobs.series import SkippedSeries
from aiolease._jobs.waiting_line import WaitingLine
from aiolease.stores.batch import Batch, Change, LedgerReading
from aiolease.stores.records import Place, RunRecord, TermKey

_AHEAD = 60.0
"""Seconds by which a job may be settled ahead of the database's clock before it is told."""


@final
class Planner:
    """What is due, and what waits, of the jobs of one registry in one term.

    Args:
        jobs: How the jobs stand.
        term: The term.
        places: The places and threads of the term.
        young: Seconds for which a tick is due and not yet missed.
        patience: Seconds for which skipped ticks that follow on others sooner than that wait for other writing.

    Attributes:
        jobs: How the jobs stand.
        places: The places and threads.
        series: The series of skipped ticks.
        later: The runs that wait for their moment.
    """

    def __init__(self, jobs: JobStates, term: TermKey, places: Places, *, young: float, patience: float = 0.0) -> None:
        self.jobs = jobs
        self._term = term
        self.places = places
        self._young = young
        self.series = SkippedSeries(jobs)
        self._ticks = NextTicks(jobs, patience)
        self._line = WaitingLine(jobs, places, term.token)
        self._backlog = Backlog(jobs, self._line)
        self._requests = Requests(jobs, self._line, places)
        self._claims = Claims(jobs, self._ticks, self.series, self._line, places, young=young)
        self.later = Later(jobs, self._line, places, term.token)
        self._inventory = Inventory(
            jobs,
            ticks=self._ticks,
            line=self._line,
            backlog=self._backlog,
            later=self.later,
            requests=self._requests,
            series=self.series,
            places=places,
        )
        self._now = NEVER  # when it was last told

    def plan(self, now: datetime, pending: list[Change], running: int, *, claim: bool, most: int) -> Plan | None:
        """What is to be written, and done once it is; ``None`` if there is nothing.

        Args:
            now: The database's clock.
            pending: Changes that are to be written anyhow.
            running: How many runs go on.
            claim: True if runs may start.
            most: How many changes, and how many claims, go into one batch.
        """
        self._now = now
        plan = Plan(self._term, Batch(changes=pending.copy()), pending)
        if claim and len(pending) < most:
            self.later.ripen(now)
            free = self.places.max_running - running
            free -= self._line.plan(plan, now, free, most)
            free -= self._requests.plan(plan, free, most)
            free = self._claims.plan(plan, now, free, most)
            if not (self._ticks.is_due(now) or self._backlog.next_jobs(1)) and len(plan.claims) < most:
                self.later.plan(plan, now, free, most)
        elif not claim:
            self._claims.plan_last(plan, now, most)
        return plan if plan.batch or plan.waiting else None

    def until_next(self, now: datetime) -> float | None:
        """Seconds until a tick is due, or is to be written, or a run is; ``None`` if none is in sight."""
        left = (self._ticks.until_next(now), self.later.until_next(now))
        return min((seconds for seconds in left if seconds is not None), default=None)

    def until_tick(self, now: datetime) -> float | None:
        """Seconds until a tick is due, or is to be written; ``None`` if none is in sight."""
        return self._ticks.until_next(now)

    # -- what the ledger says

    def take(self, stock: LedgerReading, known: KnownRuns) -> list[tuple[RunRecord, Change]]:
        """Starts anew from a whole reading of the ledger, which knows all jobs: see `Inventory.take`."""
        return self._inventory.take(stock, known, self._now)

    def hungry(self, most: int) -> list[str]:
        """The jobs, at most so many, whose next queued runs are to be read."""
        return self._backlog.next_jobs(most)

    def feed(self, names: Collection[str], runs: Iterable[RunRecord], limit: int) -> None:
        """Lines up what was read: of each of the jobs the queued runs with the oldest ticks, at most `limit`."""
        for name in self._backlog.feed(names, runs, limit):
            self._gone(self.jobs[name])

    def look(self, stock: LedgerReading) -> bool:
        """Sees who was paused, resumed or triggered since the last reading.

        Returns:
            True if all is to be read anew: somebody has set the rows of a job right, or has asked for more than that.
        """
        before = {name for name, state in self.jobs.items() if state.paused}
        self._requests.see(stock)
        resumed = {name for name in before if not self.jobs[name].paused}
        for name in resumed & stock.jobs.keys():
            state = self.jobs[name]
            state.settled_until = max(state.settled_until, settled_until(stock.jobs[name], stock.pause))
        self._ticks.line_up(resumed)
        known = self.jobs.known(stock.jobs) - self.jobs.aside
        settled = any(stock.jobs[name].high_tick != self.jobs[name].high_tick for name in known)
        return settled or self._requests.are_new(stock)

    def silent(self, stock: LedgerReading) -> dict[str, datetime]:
        """The jobs of which no tick is due for a while since a clock was ahead, and until when."""
        ahead = stock.now + timedelta(seconds=_AHEAD)
        records = [stock.jobs[name] for name in self.jobs.known(stock.jobs)]
        settled = {record.job: record.settled_until for record in records if not record.is_paused(stock.now)}
        return {name: until for name, until in settled.items() if until > ahead}

    def plan_changed(self, stock: LedgerReading, name: str) -> Plan | None:
        """What is to be written before a job gets another schedule; ``None`` if there is nothing (DESIGN rule 50)."""
        return plan_former(stock, self.jobs, name, self._term, young=self._young)

    def are_there(self, rows: Iterable[RunRecord]) -> None:
        """Takes the ticks of some rows for settled, since they are there."""
        for run in rows:
            self.jobs[run.job].note_row(run.tick)

    def conflicts(self, plan: Plan, rows: Iterable[RunRecord], now: datetime) -> list[Place]:
        """Takes the ticks of rows that are there for settled (DESIGN rule 44): of those that a plan was to claim.

        Returns:
            Other ticks of those jobs that may have a row, too: to be looked up as well.
        """
        claimed = {(run.job, run.tick) for run in plan.batch.claims}
        others = set[Place]()
        rows = list(rows)
        self.are_there(rows)
        for run in rows:
            if (run.job, run.tick) in claimed:
                state = self.jobs[run.job]
                since = start_of_last(state.job.schedule, state.settled_until, now)
                others |= {(run.job, tick) for tick in ticks_between(state.job.schedule, since, now)}
        return sorted(others - claimed)

    # -- what became of a plan

    def written(self, plan: Plan) -> list[Waiting]:
        """Notes that a plan was written; returns the runs that start."""
        self.places.take(plan)
        for state in self._line.written(plan):
            self._backlog.ran_out(state)
        self.later.written(plan)
        for waiting in plan.waiting:
            state = self.jobs[waiting.job.name]
            state.running += 1
            state.by_hand += waiting.by_hand
        for waiting in plan.overdue:
            self._gone(self.jobs[waiting.job.name])
        starting = plan.waiting.copy()
        for job, record in plan.claims:
            if record.status != "skipped":
                self._claimed(self.jobs[job.name], record)
            if record.status == "running":
                starting.append(Waiting(job, record.tick, 1, self._term.token, "running", request=record.request))
        self.series.written(plan)
        self._requests.written(plan)
        for name, tick in plan.batch.high_ticks.items():
            state = self.jobs[name]
            state.settled_until = state.high_tick = tick
            state.busy_until = state.there = None
            state.behind_hand = False
        self._ticks.line_up(plan.batch.high_ticks)
        return starting

    def _claimed(self, state: JobState, run: RunRecord) -> None:
        state.going_on += 1
        if run.status == "running":
            state.running += 1
        elif state.unread:  # it is read in its turn
            state.unread += 1
        else:
            self._line.add(state, run)

    def not_written(self, plan: Plan, *, refused: bool) -> None:
        """Notes that a plan was perhaps not written, or was refused."""
        self._ticks.line_up(plan.batch.high_ticks)
        self._line.not_written(plan)
        if refused:
            self._requests.refused(plan)
            self.series.refused(plan)

    def ended(self, run: Waiting, now: datetime) -> None:
        """A run is over, by the database's clock at `now`."""
        self._now = now
        state = self.jobs[run.job.name]
        state.running -= 1
        self.places.give_back(state.job)
        if not run.by_hand:
            self._gone(state)
            return
        state.by_hand -= 1
        self._line.put_in_line(state)
        if state.held:  # until now: if an ordinary run goes on, they are held again
            state.held = False
            self._ticks.line_up([state.job.name])

    def queued_anew(self, run: Waiting, change: Change) -> None:
        """A run that is over is to be queued anew: until then it goes on, in no place, if it makes its job busy."""
        if makes_busy(run.job, change.again):
            self.jobs[run.job.name].going_on += 1

    def seen_to(self, name: str, now: datetime) -> datetime:
        """The moment up to which the ticks of a job are claimed, skipped, or not to be run: at most now.

        While it is paused none of its ticks is run as one of the schedule.
        """
        state = self.jobs[name]
        return now if state.paused else min(state.settled_until, now)

    def end_series(self, name: str, ticks: Collection[datetime]) -> None:
        """Ends the series of skipped ticks of a job if its row, which stands at its last tick, is changed."""
        state = self.jobs[name]
        if state.series is not None and state.series.last in ticks:
            self.series.end(state)

    def exclude(self, run: RunRecord) -> bool:
        """Keeps a queued run, which was not read yet, from beginning; returns False if a change of it waits."""
        return self._backlog.exclude(run)

    def withdraw(self, runs: Collection[Waiting]) -> None:
        """Takes runs out that wait for their moment, and are not to begin."""
        for state in self.later.take_out(runs):
            self._gone(state)

    def _gone(self, state: JobState) -> None:
        """A run of a job does not go on, nor wait, any more."""
        state.going_on -= 1
        if state.going_on:
            self._line.put_in_line(state)
            return
        state.inherited = False
        self._ticks.no_run_left(state, self._now)
        if state.held:
            state.held = False
            self._ticks.line_up([state.job.name])
        else:
            state.backlog = False
