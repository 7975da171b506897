"""The jobs of one registry during one term: what is written, what runs, and that all of it ends with the term.

What is to be done next is reckoned by `aiolease._jobs.planner`. One sleeper serves any number of jobs; no task waits
for a job that is not due. One loop writes the ledger: all that has come together by then, in one fenced transaction,
and only what was written is run. If an answer is lost, or the rows are not as they should be, it reads them again
(`_take_stock`) and goes on from what they say: so a new term begins, and so an old one recovers.

A run is a task of its own, cancelled once when the term ends, as by ``Task.cancel()``, and awaited before the lease is
released; what has become of it is written before that, too.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, TypeVar

import anyio

from aiolease._clock import jitter
from aiolease._election.health import STORE_ERRORS
from aiolease._election.leadership import Leadership, is_within, leading
from aiolease._interrupts import is_for_the_program
from aiolease._jobs.changed import unknown_to
from aiolease._jobs.due import Skip, lost, overdue
from aiolease._jobs.job_state import JobStates
from aiolease._jobs.places import Places
from aiolease._jobs.plan import Plan, Waiting
from aiolease._jobs.planner import Planner
from aiolease._jobs.run import Execution, Job, JobRun, Outcome, Threads
from aiolease._logging import emit
from aiolease._waiting import cancel_and_wait, retried, time_limited, wait_shielded
from aiolease.events import Event, Notice, RunFinished, RunStarted, TickSkipped, TicksMissed, describe
from aiolease.stores.contract import FenceBroken, Refused
from aiolease.stores.records import Batch, Change, JobDefinition, LedgerReading, Place, RunKey, RunRecord

R = TypeVar("R")

_SLICE = 5.0
"""The longest sleep between two looks at the database's clock, in seconds: it may be found to have stepped."""

_MOST = 1000
"""How many ticks are claimed in one transaction."""

_JOBS_AT_ONCE = 50
"""Of how many jobs queued runs are read at once."""

_RUNS_AT_ONCE = 1000
"""How many queued runs are read at once."""

_FIRST_PAUSE = 1.0
"""Seconds before a run is begun again whose final transaction met trouble; doubled each time."""

_ASIDE = 60.0
"""Seconds after which a job that was set aside is tried again."""

_NARROWED = 40
"""How many refusals in a row it takes at most to find the job at fault."""

_SUSPICIOUS = 4
"""How often in a row a batch is refused before it is the fault of a job."""

_PRUNED_AT_ONCE = 50
"""For how many jobs old rows are deleted between two looks at what is due."""

_RESTED = 4.0
"""How many times as long as a step of deleting took the next one waits: what is due comes first."""

_BUSY_FOR = 1.0
"""Seconds without an idle moment after which old rows are deleted all the same."""

_GONE = timedelta(days=1)
"""How long a job must have had no tick before what is left of it is closed by a leader that does not have it."""

_GONE_EVERY = 3600.0
"""Seconds after which a leader looks for that again."""

_QUIETEST = 60.0
"""Seconds between two warnings about a ledger that cannot be written, and at most before a run is begun again."""


@dataclass(frozen=True, slots=True)
class _Exit:
    """What a call raised to end its program. Its caller gets it: raised by a task, it would end the loop."""

    error: BaseException


class Runner:
    """The jobs of one registry during one term."""

    def __init__(  # noqa: PLR0915
        self,
        lead: Leadership,
        jobs: Iterable[Job],
        threads: Threads,
        *,
        max_running: int | None,
        max_threads: int | None,
        history: int | None,
        context: Any,
        told: set[str],
    ) -> None:
        self.lead = lead
        self.term = lead.term
        self._threads = threads
        self._history = history
        self._context = context
        self._told = told
        self._loop = asyncio.get_running_loop()
        self._store = lead.term.store
        self._wake = asyncio.Event()
        self._jobs = JobStates(jobs)
        self._places = Places(
            max_running=max_running or math.inf,
            max_threads=max_threads or math.inf,
            in_thread=self._in_thread,
            left_behind=self._left_behind,
        )
        self._planner = Planner(
            self._jobs,
            self.term.key,
            self._places,
            young=2 * lead.term.timings.lease_duration,
            patience=lead.term.timings.heartbeat_interval,
        )
        # What runs
        self._running: dict[asyncio.Task[Outcome], Execution] = {}
        self._calls: set[asyncio.Task[Any]] = set()
        # What the ledger does not know yet
        self._changes: list[Change] = []
        self._committed: set[RunKey] | None = (
            None  # runs that their final transactions end while a reading is under way
        )
        self._in_doubt: dict[Place, Execution] = {}
        self._uncounted: dict[Place, int] = {}  # attempts that failed before anything could have taken effect
        self._postponed: dict[Place, Change] = {}  # runs that are to be begun again after a pause
        self._threadless = 0  # how often in a row there was no thread
        self._fed = False  # by the last turn
        self._stock_wanted = True
        self._look_at = 0.0
        self._gone_at = 0.0  # when to look for what jobs that are gone have left
        self._failures = 0  # exchanges in a row, but for readings, that went wrong
        self._why = ""
        # Jobs that are in the way of the others
        self._aside: dict[str, float] = {}  # until when
        self._refusals = 0  # in a row
        self._unwritten: Plan | None = None  # what could not be written
        self._silent: dict[str, datetime] = {}  # until when
        self._held_back: set[str] = set()  # while it is found out of which job it is the fault
        self._cleared: set[str] = set()  # of which it is not
        self._unwritable: set[str] = set()  # those of which it was
        self._refused_once: set[str] = set()  # jobs whose change of schedule was
        self._left_alone: set[str] = set()  # jobs that are not here, and whose rows cannot be written
        self._probation: list[str] = []  # those of these that are to be tried again, each by itself
        self._alone: str | None = None  # which of them is
        self._most = _MOST
        self._warned_at = -math.inf
        self._under_way: tuple[asyncio.Task[None], Plan] | None = None
        self._missed: list[TickSkipped] = []  # not told yet: ticks from before this term
        self._not_last: set[str] = set()  # jobs whose last changes were refused
        self._late_until = -math.inf  # a batch without an answer may take effect until then
        self._unanswered: set[RunKey] = set()  # runs that were to start: the ledger may call them running
        self._pruned_at = -math.inf
        self._grown: dict[str, float] = {}  # finished rows since the last pruning
        self._pruned_at_once = _PRUNED_AT_ONCE
        self._full: dict[str, None] = {}  # jobs that are to be pruned, in this order
        self.ended = False
        self._reason: str | None = None  # why it has
        self.open = True
        """Whether calls are let in: not when it drains, nor when it ends."""

    @property
    def lets_in(self) -> bool:
        """Whether a call may run within this term: not when it drains, but for calls of its own jobs."""
        return self.lead.is_leader and not self.ended and (self.open or is_within(self.lead))

    async def run(self, stopping: asyncio.Event, drain_timeout: float) -> None:
        """Runs what falls due until told to stop, then drains; cancels what is left, and awaits it, however it ends."""
        loop, wakers = self._loop, [asyncio.create_task(self._wake_at(self.term.over))]
        try:
            async with asyncio.timeout(None) as drained:

                async def stop() -> None:
                    await self._wake_at(stopping)
                    drained.reschedule(loop.time() + drain_timeout)

                wakers.append(asyncio.create_task(stop()))
                while not stopping.is_set():
                    await self._turn(claim=True)
                self.open = False
                while self._running or self._calls:
                    await self._turn(claim=False)
        except TimeoutError:  # an exchange that is under way is seen to by `_end`
            if not drained.expired():
                raise
        finally:
            for waker in wakers:
                waker.cancel()
            cancelled = await self._end()
            if cancelled is not None:
                raise cancelled

    async def _wake_at(self, event: asyncio.Event) -> None:
        await event.wait()
        self._wake.set()

    # -- the loop

    async def _turn(self, *, claim: bool) -> None:
        """Writes what there is to write, starts what was written, and sleeps until there is more."""
        self._wake.clear()
        self.lead.check()
        pause = _SLICE
        if not self._jobs:
            pass
        elif (reading := self._reading(claim=claim)) is not None:
            pause = min(pause, await self._attempt(reading))
        elif plan := self._plan(claim=claim):
            self._fed = False
            pause = min(pause, await self._attempt(self._carry_out(plan)))
            if self._loop.time() - self._pruned_at > _BUSY_FOR:
                await self._prune()
        elif self._fed:
            self._fed, pause = False, 0.0
        else:
            self._worked()  # not after a reading alone: what was to be written may fail each time
            pause = min(pause, await self._prune())
            if claim:
                pause = min(pause, self._look_at - self._loop.time())
                if (left := self._planner.until_next(self.lead.database_now())) is not None:
                    pause = min(pause, left)
        if pause > 0:
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _reading(self, *, claim: bool) -> Coroutine[Any, Any, None] | None:
        """What is to be read before more can be planned."""
        if self._stock_wanted or self._comes_back():
            return self._take_stock()
        if self._unwritten is not None:
            return self._narrow_down(self._unwritten)
        if claim and (now := self._loop.time()) >= self._look_at:
            # Of a job that is silent somebody may set the row right by hand, which only a whole reading shows.
            whole = now < self._late_until or now >= self._gone_at or self._silent
            return self._take_stock() if whole else self._look()
        if claim and not self._fed and (hungry := self._planner.hungry(_JOBS_AT_ONCE)):
            self._fed = True  # and now what is due
            return self._feed(hungry)
        return None

    async def _attempt(self, call: Coroutine[Any, Any, None]) -> float:
        """Has one exchange with the ledger; returns for how long to wait before the next: 0 if it went well."""
        try:
            await call
        except FenceBroken:
            self.term.end("taken", raised=True)
            self.lead.check()
            raise
        except Refused as error:
            self._stock_wanted = True
            pause = self._failed(f"its rows are not as they should be: {error.__cause__ or 'read again'}")
            return 0.0 if _SUSPICIOUS <= self._refusals < _NARROWED else pause
        except STORE_ERRORS as error:
            self._stock_wanted = True
            return self._failed(str(error))
        return 0.0

    def _failed(self, why: str) -> float:
        timings, now = self.term.timings, self._loop.time()
        self._failures += 1
        self._why = why
        text = f"could not write the ledger of {self.lead.name!r}, nothing new is started: {why}"
        self.term.trouble = text
        if self._failures > 1 and now - self._warned_at >= min(timings.retry_interval * self._failures, _QUIETEST):
            self._warned_at = now
            self._emit(Notice(**self._facts(), severity="WARNING", text=text))
        return 0.0 if self._failures == 1 else min(0.05 * 2.0 ** min(self._failures, 10), timings.retry_interval)

    def _worked(self) -> None:
        self._failures = 0
        aside, silent = (", ".join(map(repr, sorted(names))) for names in (self._aside, self._silent))
        troubles = [f"set aside, since their rows are in the way: {aside}"] if aside else []
        troubles += [f"silent, since their ticks are settled ahead of the clock: {silent}"] if silent else []
        self.term.trouble = "; ".join(troubles) or None

    async def _bounded(self, call: Coroutine[Any, Any, R]) -> R:
        return await time_limited(self.term.timings.attempt, self._store.description, call)

    # -- what the ledger says

    async def _take_stock(self) -> None:
        """Reads the ledger: at the start of the term, and when it is not known what it says."""
        self._committed = set()
        try:
            await self._read_stock(self._committed)
        finally:
            self._committed = None
        self._stock_wanted = False
        self._look_at = self._loop.time() + self.term.timings.heartbeat_interval

    async def _read_stock(self, committed: set[RunKey]) -> None:
        stock = await self._bounded(self._store.take_stock(self.lead.name, counted=True))
        self._saw(stock)
        new = unknown_to(stock, self._jobs)
        if new:
            await self._close_former(stock, [each for each in new if each.job in stock.jobs])
            if unknown := [each for each in new if each.job not in stock.jobs]:
                await self._bounded(self._store.enroll(self.term.key, unknown))
            stock = await self._bounded(self._store.take_stock(self.lead.name, counted=True))
            self._saw(stock)
        if any(job.job not in stock.jobs for job in unknown_to(stock, self._jobs)):
            raise Refused  # another node has not heard of them yet
        self._set_aside(stock.unreadable)
        await asyncio.sleep(0)  # with 20,000 jobs each step takes a while: others of the loop have their turn between
        self._tell_of_silent(stock)
        self._tell_of_unknown(stock)
        self._tell_of_requests(stock)
        pending = {(change.key.job, change.key.tick) for change in self._changes}
        doubted = [place for place in self._in_doubt if place not in pending]
        found = await self._bounded(self._store.look_up(self.lead.name, doubted)) if doubted else []
        self._sort_out(stock, committed)
        self._resolve(doubted, found)
        if self._loop.time() >= self._gone_at:
            await self._close_gone(stock)

    async def _close_former(self, stock: LedgerReading, changed: list[JobDefinition]) -> None:
        """Sees to the ticks of schedules that are changed, up to the reading, and changes them: some jobs at a time.

        What is due is queued, or skipped. A job that is set aside keeps the schedule whose ticks are to be seen to.
        """
        plans: list[Plan] = []
        ready: list[JobDefinition] = []
        for number, enrolment in enumerate(changed, 1):
            plan = None if enrolment.job in self._aside else self._planner.plan_changed(stock, enrolment.job)
            if plan is not None:
                plans.append(plan)
            ready.append(enrolment)
            if number == len(changed) or len(ready) == _MOST or sum(len(each.claims) for each in plans) >= _MOST:
                await self._change(plans, ready)
                plans, ready = [], []
            elif number % _JOBS_AT_ONCE == 0:
                await asyncio.sleep(0)

    async def _change(self, plans: list[Plan], changed: list[JobDefinition]) -> None:
        self._set_aside(self._jobs.take_faults())
        if plans:
            await self._write_former(plans)
        if ready := [enrolment for enrolment in changed if enrolment.job not in self._aside]:
            await self._bounded(self._store.enroll(self.term.key, ready))

    async def _write_former(self, plans: list[Plan]) -> None:
        batch = Batch()
        for plan in plans:
            batch.claims += plan.batch.claims
            batch.high_ticks |= plan.batch.high_ticks
            batch.seen |= plan.batch.seen
        places = [(run.job, run.tick) for run in batch.claims]
        if there := await self._bounded(self._store.look_up(self.lead.name, places)):
            self._planner.are_there(there)
            raise Refused  # and reckoned anew
        try:
            await self._bounded(self._store.record(self.term.key, batch))
        except Refused as error:
            if len(plans) > 1:
                for plan in plans:
                    await self._write_former([plan])
                return
            [name] = plans[0].jobs()
            if name not in self._refused_once:  # somebody may just have paused it
                self._refused_once.add(name)
                raise
            self._refused_once.discard(name)
            self._set_aside({name: f"its rows cannot be written: {error.__cause__ or 'refused'}"})
            return
        for plan in plans:
            for job, skip in plan.skips:
                self._skipped(job.name, skip)

    async def _close_gone(self, stock: LedgerReading) -> None:
        """Closes what waits, or seems to run, of jobs that no leader has had for a day: some of it, and more soon."""
        long_ago = stock.now - _GONE
        gone = {
            name
            for name in self._jobs.unknown(stock) - self.term.jobs - self._left_alone
            if max(stock.jobs[name].settled_until, stock.jobs[name].schedule_since) < long_ago
        }
        waiting = sorted(gone & stock.queued.keys())[:_JOBS_AT_ONCE]
        queued: list[RunRecord] = []
        if waiting:
            limit = _RUNS_AT_ONCE // _JOBS_AT_ONCE
            queued, _ = await self._bounded(self._store.queued(self.lead.name, waiting, limit))
        pending = {change.key.job for change in self._changes}
        left = [run for run in (*stock.unfinished, *queued) if run.job in gone - pending and run.tick < long_ago]
        for run in left:
            key, why = RunKey(run.job, run.tick, run.attempt, run.token), "no leader has had this job for a day"
            if run.status == "running":
                self._changes.append(lost(key, rerun=False, why=why))
            else:  # a further attempt that has not begun: it is the one before that was lost
                attempt = max(run.attempt - 1, 1)
                self._changes.append(Change(key=key, was="queued", status="lost", attempt=attempt, error=why))
        if left:
            jobs = ", ".join(sorted({run.job for run in left}))
            text = f"closed {len(left)} runs of jobs that no leader has had for a day: {jobs}"
            self._emit(Notice(**self._facts(), severity="WARNING", text=text))
        self._gone_at = self._loop.time() + (_SLICE if queued else _GONE_EVERY)

    async def _feed(self, jobs: list[str]) -> None:
        """Reads the next queued runs of some jobs: a backlog is read as it is worked off (DESIGN rule 46)."""
        limit = _RUNS_AT_ONCE // len(jobs)
        found, unreadable = await self._bounded(self._store.queued(self.lead.name, jobs, limit))
        self._planner.feed([job for job in jobs if job not in unreadable], found, limit)
        self._set_aside(unreadable)

    async def _look(self) -> None:
        """Reads who was paused, resumed or triggered."""
        stock = await self._bounded(self._store.take_stock(self.lead.name, attention=True))
        self._saw(stock)
        self._tell_of_requests(stock)
        self._set_aside(stock.unreadable)
        if self._planner.look(stock):
            self._stock_wanted = True
        self._look_at = self._loop.time() + self.term.timings.heartbeat_interval

    def _saw(self, stock: LedgerReading) -> None:
        # Only if the clock has stepped: a renewal is a shorter exchange, and measures better.
        if abs((stock.now - self.lead.database_now()).total_seconds()) > 1:
            self.term.saw_database_time(stock.now)

    def _tell_of_unknown(self, stock: LedgerReading) -> None:
        unknown = sorted(self._jobs.unknown(stock) - self._told)
        if unknown:
            self._told.update(unknown)
            text = f"the database knows jobs of {self.lead.name!r} that this process has not: {', '.join(unknown[:20])}"
            self._emit(Notice(**self._facts(), severity="WARNING", text=text))

    def _tell_of_silent(self, stock: LedgerReading) -> None:
        self._silent = self._planner.silent(stock)
        for name, until in sorted(self._silent.items()):
            if (told := f"{name} until {until}") not in self._told:
                self._told.add(told)
                text = (
                    f"{name!r} is silent until {until:%Y-%m-%d %H:%M:%S} UTC: so far its ticks are settled, by a clock "
                    f"that was ahead or by hand; `aiolease settle {name}` lets it go on now"
                )
                self._emit(Notice(**self._facts(), severity="WARNING", text=text))

    def _tell_of_requests(self, stock: LedgerReading) -> None:
        for name in sorted(self._jobs.unknown(stock) - self.term.jobs):
            requested_at = stock.jobs[name].requested_at
            if requested_at is not None and (told := f"{name} {requested_at}") not in self._told:
                self._told.add(told)
                text = f"{name!r} was triggered, and this leader has no such job: it runs when a leader has it"
                self._emit(Notice(**self._facts(), severity="WARNING", text=text))

    def _sort_out(self, stock: LedgerReading, committed: set[RunKey]) -> None:
        """Takes over the runs of earlier terms, and finds those of this term whose answer was lost."""
        left_behind = self._planner.take(
            stock,
            running=[(execution.job.name, execution.run.tick) for execution in self._running.values()],
            pending=self._changes,
            postponed=self._postponed,
            ended=committed,
            unanswered=self._unanswered,
        )
        for run, change in left_behind:
            self._changes.append(change)
            if run.status == "running":
                took = (stock.now - run.started_at).total_seconds() if run.started_at else 0.0
                facts: Any = {"lease": self.lead.name, "holder": run.holder, "token": run.token}  # of the lost term
                self._emit(RunFinished(**facts, job=run.job, tick=run.tick, status="lost", took=took))

    def _resolve(self, doubted: Iterable[Place], found: Iterable[RunRecord]) -> None:
        """Tells of the runs whose final commit went unanswered, and has worked: they are not to be run again."""
        left = {(run.job, run.tick) for run in found if run.status in {"queued", "running"}}
        for place in doubted:
            execution = self._in_doubt.pop(place)
            if place not in left:
                self._tell(execution, Outcome("succeeded", 0.0))

    # -- a job that is in the way of the others (DESIGN rule 44)

    def _set_aside(self, jobs: Mapping[str, str]) -> None:
        """Has nothing planned of some jobs for a minute, each for a reason that is told once."""
        for job in sorted(self._jobs.known(jobs)):
            self._aside[job] = self._loop.time() + _ASIDE
            if (told := f"{job} set aside") not in self._told:
                self._told.add(told)
                text = (
                    f"{job!r} is set aside, the other jobs go on: {jobs[job]}; it is tried again each minute, and "
                    f"`aiolease settle {job}` sets its rows right"
                )
                self._emit(Notice(**self._facts(), severity="CRITICAL", text=text))
        self._exclude()

    def _exclude(self) -> None:
        self._jobs.aside = {*self._aside, *self._held_back}

    def _comes_back(self) -> bool:
        """Whether a job that was set aside is to be tried again."""
        now = self._loop.time()
        back = [job for job, until in self._aside.items() if until <= now]
        for job in back:
            del self._aside[job]
            if job in self._unwritable:
                self._unwritable.discard(job)
                self._probation.append(job)
        self._exclude()
        return bool(back)

    async def _narrow_down(self, plan: Plan) -> None:
        """Finds out why a plan is refused, time after time.

        What it was to claim may be there already. Else, if anything can be written at all, a half of its jobs is held
        back, and so on, until one is left. Those that could be written meanwhile are above suspicion.
        """
        self._unwritten = None
        name, places = self.lead.name, [(run.job, run.tick) for run in plan.batch.claims]
        there = await self._bounded(self._store.look_up(name, places))
        if there:
            others = self._planner.conflicts(plan, there, self.lead.database_now())
            for start in range(0, len(others), _RUNS_AT_ONCE):
                more = await self._bounded(self._store.look_up(name, others[start : start + _RUNS_AT_ONCE]))
                self._planner.conflicts(plan, more, self.lead.database_now())
            return
        if self._refusals < _SUSPICIOUS or self._loop.time() < self._late_until:
            return  # what the server delayed may have come in between
        await self._bounded(self._store.record(self.term.key, Batch()))
        suspects = sorted(plan.jobs() - self._cleared) or sorted(plan.jobs())
        if len(suspects) > 1:
            self._held_back |= set(suspects[len(suspects) // 2 :])
            self._exclude()
        elif suspects:
            self._held_back.clear()
            self._cleared.clear()
            [job] = suspects
            if self._jobs.known([job]):
                self._unwritable.add(job)
                self._set_aside({job: f"its rows cannot be written: {self._why}"})
            else:  # what a job that is gone has left
                self._left_alone.add(job)
                self._changes = [change for change in self._changes if change.key.job != job]
                text = f"{job!r}, which this process has not, is left alone: its rows cannot be written: {self._why}"
                self._emit(Notice(**self._facts(), severity="CRITICAL", text=text))
                self._exclude()
        self._stock_wanted = True

    # -- what is to be done

    def _plan(self, *, claim: bool) -> Plan | None:
        """The next plan: of all jobs, or of one that could not be written a while ago."""
        while self._probation:
            self._alone = self._probation.pop()
            self._jobs.aside |= self._jobs.keys() - {self._alone}
            plan = self._plan_of_all(claim=claim)
            self._exclude()
            self._stock_wanted = True  # what is due of the others was passed over
            if plan is not None or not self._probation:
                return plan
        self._alone = None
        return self._plan_of_all(claim=claim)

    def _plan_of_all(self, *, claim: bool) -> Plan | None:
        pending = [change for change in self._changes if change.key.job not in self._jobs.aside][: self._most]
        written = pending
        if self._failures > 3:  # perhaps it is the text of an error that cannot be written
            pending = [replace(change, error=change.error and ascii(change.error)) for change in pending]
        now, running = self.lead.database_now(), len(self._running)
        plan = self._planner.plan(now, pending, running, claim=claim, most=self._most)
        if plan is not None:
            plan.pending = written
        if faults := self._jobs.take_faults():
            self._set_aside(faults)
        return plan

    def _in_thread(self, job: Job) -> bool:
        return any(thread.is_alive() for thread in self._threads.get(job.name, ()))

    def _left_behind(self) -> int:
        return sum(thread.is_alive() for threads in self._threads.values() for thread in threads)

    async def _carry_out(self, plan: Plan) -> None:
        """Writes a plan, in a task of its own: cancelled here, it is seen to by `_end`."""
        if plan.batch:
            task = asyncio.create_task(self._bounded(self._store.record(self.term.key, plan.batch)))
            self._under_way = (task, plan)
            await asyncio.wait([task])
            self._under_way = None
            try:
                task.result()
            except BaseException as error:
                self._planner.not_written(plan, refused=isinstance(error, Refused))
                self._refusals = self._refusals + 1 if isinstance(error, Refused) else 0
                if self._alone is not None and self._refusals:
                    self._refusals = 0
                    self._unwritable.add(self._alone)
                    self._set_aside({self._alone: f"its rows cannot be written: {error.__cause__ or 'refused'}"})
                self._unwritten = plan if self._refusals > 1 else None
                self._unanswered.update(plan.starting())
                if not isinstance(error, Refused):
                    self._late_until = self._loop.time() + 2 * self.term.timings.lease_duration
                self._most = max(self._most // 2, 10)  # it may have been too much for the server, or for the time
                raise
        starting = self._written(plan)
        if self.lead.is_leader:
            for execution in starting:
                self._start(execution)
        else:  # the answer was read too late: the process stood still
            self._unanswered.update(plan.starting())

    def _written(self, plan: Plan) -> list[Execution]:
        """Notes that a plan was written; returns what is to be started."""
        self._worked()
        self._refusals, self._unwritten = 0, None
        self._told.difference_update(f"{job} set aside" for job in plan.jobs())
        if self._held_back:  # it is not the fault of these, and now it is the turn of the others
            self._cleared |= plan.jobs()
            self._held_back.clear()
            self._exclude()
            self._stock_wanted = True
        self._most = min(self._most * 2, _MOST)
        if any(change.status == "queued" for change in plan.pending):
            self._stock_wanted = True  # to see whether they had an effect: if so, the runs wait their turn
        done = set(map(id, plan.pending))
        self._changes = [change for change in self._changes if id(change) not in done]
        starting = [self._execution(run) for run in self._planner.written(plan)]
        for job, skip in plan.skips:
            self._skipped(job.name, skip, grows=(job.name, skip.last) in plan.batch.extends)
        self._tell_of_series()
        left = self._planner.until_next(self.lead.elected_at)
        if left is None or left > 0:  # no tick from before this term is still to be seen to
            self._tell_of_missed()
        return starting

    def _skipped(self, job: str, skip: Skip, *, grows: bool = False) -> None:
        facts = self._facts() | {"job": job, "since": skip.first, "count": skip.count, "reason": skip.reason}
        event = TickSkipped(**facts, quiet=grows)
        if grows:
            self._emit(event)
            return
        if skip.first <= self.lead.elected_at:  # nobody led: after a stop so it is with most jobs at once
            self._missed.append(event)
        else:
            self._emit(event)
        self._grew(job)

    def _tell_of_series(self) -> None:
        """Tells of ticks that were skipped one after another, and are not any more: how many they were in the end."""
        for job, skip in self._planner.series.take_over():
            first, last = f"{skip.first:%Y-%m-%d %H:%M:%S}", f"{skip.last:%Y-%m-%d %H:%M:%S}"
            text = f"skipped {job!r}, {skip.count} ticks since {first}: {skip.reason} (until {last}, and now no more)"
            self._emit(Notice(**self._facts(), severity="WARNING", text=text))

    def _tell_of_missed(self) -> None:
        """Tells of the ticks that nobody ran before this term, of all jobs in one line."""
        missed, self._missed = self._missed, []
        jobs = tuple(sorted({each.job for each in missed}))
        for each in missed:
            self._emit(replace(each, quiet=len(jobs) > 1))
        if len(jobs) > 1:
            since, count = min(each.since for each in missed), sum(each.count for each in missed)
            self._emit(TicksMissed(**self._facts(), jobs=jobs, since=since, count=count))

    # -- a run

    def _execution(self, run: Waiting) -> Execution:
        name, tick, attempt = run.job.name, run.tick, run.attempt
        given = JobRun(job=name, tick=tick, attempt=attempt, leadership=self.lead, context=self._context)
        return Execution(run.job, given, self._threads)

    def _start(self, execution: Execution) -> None:
        run, now = execution.run, self.lead.database_now()
        self._unanswered.discard(run._key)
        why = overdue(run.tick, execution.job.max_age, now) if run.attempt == 1 else None
        if why is not None:  # the answer to its claim was late, or lost and then found
            self._changes.append(Change(key=run._key, was="running", status="skipped", attempt=1, error=why))
            self._planner.ended(run.job, now)
            self._skipped(run.job, Skip(run.tick, run.tick, 1, why))
            self._wake.set()
            return
        late = (now - run.tick).total_seconds()
        self._emit(RunStarted(**self._facts(), job=run.job, tick=run.tick, late=late))
        task = asyncio.create_task(execution.go(), name=f"aiolease job {run.job}")
        self._running[task] = execution
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Outcome]) -> None:
        execution = self._running.pop(task)
        self._wake.set()
        self._ended_as(task, execution)
        self._planner.ended(execution.job.name, self.lead.database_now())

    def _ended_as(self, task: asyncio.Task[Outcome], execution: Execution) -> None:
        """Notes what is to be written of a run that has ended, and tells of it."""
        job, run, place = execution.job, execution.run, (execution.job.name, execution.run.tick)
        if not execution.begun:  # the term was over before, and another leader is to run it; or there is no thread
            self._planner.postponed(job.name)
            self._changes.append(_handed_back(run._key))
            if execution.no_thread is not None:
                self._wait_for_threads(execution.no_thread)
            return
        if job.threaded:
            self._threadless = 0
        ended_in_order = not task.cancelled() and task.exception() is None  # else a signal's handler raised in it
        outcome = task.result() if ended_in_order else Outcome("lost", 0.0)
        uncounted = self._uncounted.pop(place, 0)
        why: str | None = None
        self._grew(job.name)
        if outcome.committed:
            if self._committed is not None:
                self._committed.add(run._key)
            self._tell(execution, outcome)
            return
        if outcome.status == "lost":
            harmless = run._doubt is not None and not run._unknown
            uncounted += harmless
            why = self._reason or self.term.ended or "its term seemed to be over"
            if run._doubt is not None:
                why = describe(run._doubt)
            change = lost(run._key, rerun=job.rerun_lost, uncounted=uncounted, why=why)
            if change.status == "queued":
                self._uncounted[place] = uncounted
                self._planner.postponed(job.name)
                if harmless and not self.ended:
                    self._postpone(place, change, uncounted, f"its final transaction was not committed: {why}")
                    return
        else:
            error = None if outcome.error is None else describe(outcome.error)
            change = Change(key=run._key, was="running", status=outcome.status, attempt=run.attempt, error=error)
        self._changes.append(change)
        if run._doubt is not None and change.status == "queued" and not self.ended:
            self._in_doubt[place] = execution  # a commit that went unanswered may have worked
            text = f"{job.name!r} is begun again if its final transaction was not committed: {describe(run._doubt)}"
            self._emit(Notice(**self._facts(), severity="WARNING", text=text))
        else:
            self._tell(execution, outcome, why)

    def _wait_for_threads(self, error: BaseException) -> None:
        """Has no ``def`` job begun for a while: there is no thread for one."""
        if self._places.threadless or self.ended:
            return
        pause = self._pause(self._threadless)
        self._threadless += 1
        self._places.threadless = True
        self._loop.call_later(pause, self._try_threads)
        text = f"there is no thread, jobs that are no coroutines wait for {pause:.1f} s: {describe(error)}"
        self._emit(Notice(**self._facts(), severity="WARNING", text=text))

    def _try_threads(self) -> None:
        self._places.threadless = False
        self._wake.set()

    @staticmethod
    def _pause(times: int) -> float:
        """Seconds until what has failed so many times before is tried again."""
        return jitter(0.5, 1.0) * min(_FIRST_PAUSE * 2.0 ** min(times, 10), _QUIETEST)

    def _postpone(self, place: Place, change: Change, times: int, why: str) -> None:
        """Has a run begun again after a pause: it is known that nothing of it took effect."""
        pause = self._pause(times - 1)
        self._postponed[place] = change
        self._loop.call_later(pause, self._resume, place)
        text = f"{place[0]!r} is begun again in {pause:.1f} s, {why}"
        self._emit(Notice(**self._facts(), severity="WARNING", text=text))

    def _resume(self, place: Place) -> None:
        if (change := self._postponed.pop(place, None)) is not None:
            self._changes.append(change)
            self._wake.set()

    def _tell(self, execution: Execution, outcome: Outcome, reason: str | None = None) -> None:
        run = execution.run
        error = outcome.error if outcome.status == "failed" else None
        facts = self._facts()
        facts |= {"job": run.job, "tick": run.tick}
        self._emit(RunFinished(**facts, status=outcome.status, took=outcome.took, error=error, reason=reason))
        if outcome.status != "failed" and outcome.error is not None and execution.run._doubt is not outcome.error:
            when = "after its final transaction, which counts" if outcome.committed else "while it was cancelled"
            text = f"{run.job!r} raised {when}: {describe(outcome.error)}"
            self._emit(Notice(**self._facts(), severity="ERROR", text=text))

    def _grew(self, job: str) -> None:
        """Counts a row that is, or will be, finished. Not from 0, since nobody knows how many there were."""
        if self._history is not None:
            grown = self._grown[job] = self._grown.get(job, jitter(0, self._history / 10)) + 1
            if grown > self._history / 10:  # a tenth of what is kept
                self._full[job] = None

    async def _prune(self) -> float:
        """Deletes old rows of some jobs that have grown, a step of them; returns for how long to wait for the next."""
        now, full = self._loop.time(), [*islice(self._full, self._pruned_at_once)]
        if not full or self._history is None:
            return math.inf
        if now >= self._pruned_at:
            try:
                left = await self._bounded(self._store.prune(self.lead.name, full, self._history))
            except STORE_ERRORS:  # another time: it is only tidying up; and perhaps it is one of them
                for job in full:
                    self._full[job] = self._full.pop(job)
                self._pruned_at = now + (_QUIETEST if self._pruned_at_once == 1 else _FIRST_PAUSE)
                self._pruned_at_once = max(self._pruned_at_once // 2, 1)
            else:
                self._pruned_at_once = min(2 * self._pruned_at_once, _PRUNED_AT_ONCE)
                for job in full:
                    del self._full[job]
                    self._grown[job] = 0
                self._full.update(dict.fromkeys(left))  # behind the others
                after = self._loop.time()
                self._pruned_at = after + _RESTED * (after - now)
        return max(self._pruned_at - self._loop.time(), 0.0)

    async def within(self, call: Callable[[], Awaitable[R]]) -> R:
        """Runs a call as a part of the term: cancelled with it, and awaited before the lease is released."""
        if asyncio.get_running_loop() is self._loop:
            came_out = await self._within(call)
        else:  # another scheduler's thread, with a loop of its own
            came_out = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._within(call), self._loop))
        if isinstance(came_out, _Exit):
            raise came_out.error
        return came_out

    async def _within(self, call: Callable[[], Awaitable[R]]) -> R | _Exit:
        async def run() -> R | _Exit:
            with leading(self.lead):
                try:
                    return await call()
                except (KeyboardInterrupt, SystemExit) as error:
                    if is_for_the_program(error):
                        raise
                    return _Exit(error)

        task = asyncio.create_task(run())
        self._calls.add(task)
        task.add_done_callback(self._call_ended)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            if not self.ended:  # else the term has cancelled it already, once
                task.cancel()
            await wait_shielded(task)
            if not task.cancelled():
                task.exception()  # the caller's cancellation goes before it
            raise
        if task.cancelled() and self.ended:
            raise self.term.loss
        return task.result()

    def _call_ended(self, task: asyncio.Task[Any]) -> None:
        self._calls.discard(task)
        self._wake.set()

    # -- the end

    async def _end(self) -> asyncio.CancelledError | None:
        """Cancels what still runs, once, and again after half the time to unwind; returns when all has ended."""
        self.ended, self.open = True, False
        self._reason = self.term.ended or ("the term was ended" if self.lead.is_leader else "expired")
        again: float | None = self._loop.time() + self.term.timings.unwind / 2
        cancelled = None
        for execution in self._running.values():
            execution.given_up = True
        for task in (*self._running, *self._calls):
            task.cancel()
        # Shielded, so that an anyio scope around it does not cancel the wait over and over.
        with anyio.CancelScope(shield=True):
            while busy := {*self._running, *self._calls}:
                try:
                    await asyncio.wait(busy, timeout=None if again is None else max(again - self._loop.time(), 0.0))
                except asyncio.CancelledError as error:
                    cancelled = cancelled or error
                if again is not None and self._loop.time() >= again:
                    again = None
                    for task in (*self._running, *self._calls):
                        task.cancel()
                    # From now on it is counted how long they take, told, and not renewed for ever.
                    self.lead.resign()
        another = await wait_shielded(asyncio.create_task(self._close()))
        return cancelled or another

    async def _close(self) -> None:
        """Writes how the last runs have ended, so that the next leader need not guess. Bounded; raises nothing."""
        lost, limit = self.term.ended in {"expired", "taken"}, self.term.timings.attempt
        until = self._loop.time() + limit
        if self._under_way is not None:
            task, plan = self._under_way
            if not lost:
                await asyncio.wait([task], timeout=limit / 2)  # what is left is for the last writes
            await cancel_and_wait(task)
            if not task.cancelled() and task.exception() is None:
                self._written(plan)
            self._unanswered.update(plan.starting())
        self._tell_of_missed()
        self._planner.series.end_all()
        self._tell_of_series()
        self._changes += self._postponed.values()
        self._postponed.clear()
        # Claimed, or perhaps claimed, and not begun: another leader is to run them.
        self._changes += map(_handed_back, self._unanswered)
        if self.term.ended == "taken" or not self._changes:
            return
        if lost:  # the database does not answer: this is no time to wait for it
            limit = min(limit, self.term.timings.unwind / 5)
        limit = min(limit, until - self._loop.time())
        written = 0

        async def write() -> None:
            # None of the changes refuses the batch, so that it may be written again though its answer was lost.
            nonlocal written
            while written < len(self._changes):
                some = self._changes[written : written + self._most]
                try:
                    await self._write_last(some)
                except STORE_ERRORS:
                    self._most = max(self._most // 2, 10)  # as above
                    raise
                written += len(some)

        try:
            await retried(limit, self._store.description, write)
        except FenceBroken:
            pass
        except STORE_ERRORS as error:
            self._not_closed(str(error))
        if self._not_last:
            self._not_closed(f"the rows of {', '.join(sorted(self._not_last))} cannot be written")

    async def _write_last(self, changes: Sequence[Change]) -> None:
        """Writes changes; where the rows of one job are in the way, all others."""
        try:
            await self._store.record(self.term.key, Batch(changes=[*changes]))
        except Refused:
            if len({change.key.job for change in changes}) == 1:
                self._not_last.add(changes[0].key.job)
                return
            jobs = sorted({change.key.job for change in changes})
            half = set(jobs[len(jobs) // 2 :])
            await self._write_last([change for change in changes if change.key.job not in half])
            await self._write_last([change for change in changes if change.key.job in half])

    def _not_closed(self, why: str) -> None:
        text = f"could not write how the last runs of {self.lead.name!r} ended, the next term calls them lost: {why}"
        self._emit(Notice(**self._facts(), severity="WARNING", text=text))

    def _facts(self) -> dict[str, Any]:
        return self.term.facts()

    def _emit(self, event: Event) -> None:
        emit(event, self.term.observer)


def _handed_back(key: RunKey) -> Change:
    """A run that was claimed, and has not begun: it waits its turn again."""
    return Change(key=key, was="running", status="queued", attempt=key.attempt)
