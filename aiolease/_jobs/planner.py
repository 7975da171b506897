"""What the jobs of one term have to do next: which ticks are due, which runs wait, what is written. No I/O here.

`aiolease._jobs.runner` asks for a plan, has it written, and starts the runs of what was written. It tells the planner
what it has read, and which runs have ended. What a plan costs depends on what it changes, not on how much waits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import final

from aiolease._jobs.backlog import Backlog
from aiolease._jobs.changed import plan_former
from aiolease._jobs.claims import Claims
from aiolease._jobs.due import inherited, start_of_last
from aiolease._jobs.job_state import NEVER, JobState, JobStates
from aiolease._jobs.next_ticks import NextTicks
from aiolease._jobs.places import Places
from aiolease._jobs.plan import Plan, Waiting
from aiolease._jobs.requests import Requests
from aiolease._jobs.schedule import ticks_between
from aiolease._jobs.series import SkippedSeries
from aiolease._jobs.waiting_line import WaitingLine
from aiolease.stores.batch import Batch, Change, LedgerReading
from aiolease.stores.records import Place, RunKey, RunRecord, TermKey

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
        self._first = True
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
            free = self.places.max_running - running
            free -= self._line.plan(plan, now, free, most)
            free -= self._requests.plan(plan, free, most)
            self._claims.plan(plan, now, free, most)
        elif not claim:
            self._claims.plan_last(plan, now, most)
        return plan if plan.batch or plan.waiting else None

    def until_next(self, now: datetime) -> float | None:
        """Seconds until a tick is due, or is to be written; ``None`` if none is in sight."""
        return self._ticks.until_next(now)

    # -- what the ledger says

    def take(
        self,
        stock: LedgerReading,
        *,
        running: Collection[Place],
        pending: Sequence[Change],
        postponed: Collection[Place],
        ended: Collection[RunKey],
        unanswered: Collection[RunKey],
    ) -> list[tuple[RunRecord, Change]]:
        """Starts anew from a whole reading of the ledger, which knows all jobs.

        Args:
            stock: The reading.
            running: The runs of this term that go on.
            pending: Changes that are not written yet.
            postponed: Runs of this term that are to be queued anew, but not yet.
            ended: Runs of this term that have ended although the reading may not show it.
            unanswered: Runs of this term that were to start: the ledger may call them running, and they are not.

        Returns:
            The runs that earlier terms have left behind, and what becomes of each: to be written and told.
        """
        known = {*running, *self._backlog.start_anew(pending), *postponed}
        self._ticks.start_anew(self._now)
        self._line.start_anew()
        self.places.start_anew(self.jobs[name].job for name, _ in running)
        self._take_jobs(stock)
        self._requests.see(stock)
        self._ticks.line_up(self.jobs)
        for name, _ in running:
            self.jobs[name].going_on += 1
            self.jobs[name].running += 1
        for change in pending:
            if change.status == "queued":  # it counts at once; the reading that follows the writing lines it up
                state = self.jobs[change.key.job]
                state.going_on += 1
                state.backlog = True
        for name, _ in postponed:
            self.jobs[name].going_on += 1
        return self._sort_out(stock, known, ended, unanswered)

    def _take_jobs(self, stock: LedgerReading) -> None:
        """Takes from a reading how far each job is settled, and how many of its runs are queued."""
        for name, state in self.jobs.items():
            if name not in self.jobs.aside:
                record = stock.jobs[name]
                state.settled_until, state.high_tick = record.settled_until, record.high_tick
            self.series.read(state)
            state.lined_up = state.held = state.in_line = False
            state.going_on = state.unread = stock.queued.get(name, 0)
            state.running = 0
            if state.unread:
                self._backlog.ran_out(state)
                state.backlog = True
                state.inherited |= self._first
        self._first = False

    def _sort_out(
        self, stock: LedgerReading, known: set[Place], ended: Collection[RunKey], unanswered: Collection[RunKey]
    ) -> list[tuple[RunRecord, Change]]:
        """Decides on the runs that the ledger calls unfinished; see `take`."""
        left_behind = []
        for run in stock.unfinished:
            key = RunKey(run.job, run.tick, run.attempt, run.token)
            state = self.jobs.get(run.job)
            if state is None or run.job in self.jobs.aside or (run.job, run.tick) in known or key in ended:
                continue  # of a job that another leader has, or known better here
            if key in unanswered:
                # It was to be started, and has not been. It is not written back: the server may execute such a change
                # later than it should, when it is true again.
                state.going_on += 1
                self._line.add(state, run)
                continue
            job = state.job
            change = inherited(run, rerun_lost=job.rerun_lost, max_age=job.max_age, now=stock.now)
            left_behind.append((run, change))
            if change.status == "queued":
                state.going_on += 1
                state.backlog = state.inherited = True
                self._backlog.is_pending(run.job)
        return left_behind

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
            True if somebody has set the rows of a job right: then all is to be read anew.
        """
        before = {name for name, state in self.jobs.items() if state.paused}
        self._requests.see(stock)
        resumed = {name for name in before if not self.jobs[name].paused}
        for name in resumed & stock.jobs.keys():
            state = self.jobs[name]
            state.settled_until = max(state.settled_until, stock.jobs[name].settled_until)
        self._ticks.line_up(resumed)
        known = self.jobs.known(stock.jobs) - self.jobs.aside
        return any(stock.jobs[name].high_tick != self.jobs[name].high_tick for name in known)

    def silent(self, stock: LedgerReading) -> dict[str, datetime]:
        """The jobs of which no tick is due for a while since a clock was ahead, and until when."""
        ahead = stock.now + timedelta(seconds=_AHEAD)
        settled = {name: stock.jobs[name].settled_until for name in self.jobs.known(stock.jobs)}
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
        for waiting in plan.waiting:
            self.jobs[waiting.job.name].running += 1
        for waiting in plan.overdue:
            self._gone(self.jobs[waiting.job.name])
        starting = plan.waiting.copy()
        for job, record in plan.claims:
            if record.status != "skipped":
                self._claimed(self.jobs[job.name], record)
            if record.status == "running":
                starting.append(Waiting(job, record.tick, 1, self._term.token, "running"))
        self.series.written(plan)
        self._requests.written(plan)
        for name, tick in plan.batch.high_ticks.items():
            state = self.jobs[name]
            state.settled_until = state.high_tick = tick
            state.busy_until = state.there = None
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

    def ended(self, name: str, now: datetime) -> None:
        """A run of a job is over, by the database's clock at `now`."""
        self._now = now
        state = self.jobs[name]
        state.running -= 1
        self.places.give_back(state.job)
        self._gone(state)

    def postponed(self, name: str) -> None:
        """A run of a job that is over is to be queued anew after a while: until then it goes on, in no place."""
        self.jobs[name].going_on += 1

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
