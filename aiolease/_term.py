"""The jobs of one registry during one term: what is due, what runs, what the ledger says, and that all end with it.

One heap and one sleeper serve any number of jobs; no task waits for a job that is not due. One loop writes the ledger:
all that has come together by then, in one fenced transaction, and only what was written is run. If an answer is lost,
or the rows are not as they should be, it reads them again (`_take_stock`) and goes on from what they say: so a new term
begins, and so an old one recovers.

A run is a task of its own, cancelled once when the term ends, as by ``Task.cancel()``, and awaited before the lease is
released; what has become of it is written before that, too.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar, cast

import anyio

from aiolease._candidate import TROUBLE
from aiolease._clock import jitter
from aiolease._fence import FenceBroken, Refused, RunKey, Term
from aiolease._leadership import Leadership, is_within, leading
from aiolease._ledger import MOST_MISSED, Skip, due, inherited, lost, overdue
from aiolease._records import Batch, Change, Enrolment, LedgerStore, RunRecord, RunStatus, Stock
from aiolease._runs import Execution, Job, JobRun, Outcome, Threads
from aiolease._settle import bounded, given_up, settled
from aiolease.errors import LeadershipLost
from aiolease.events import Event, Notice, RunFinished, RunStarted, TickSkipped, describe, emit

R = TypeVar("R")

_SLICE = 5.0
"""The longest sleep between two looks at the database's clock, in seconds: it may be found to have stepped."""

_MOMENT = timedelta(microseconds=1)

_MOST = 1000
"""How many ticks are claimed in one transaction."""

_PRUNED_AT_ONCE = 50
"""For how many jobs old rows are deleted between two looks at what is due."""

_BUSY_FOR = 1.0
"""Seconds without an idle moment after which old rows are deleted all the same."""

_QUIETEST = 60.0
"""Seconds between two warnings about a ledger that cannot be written."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """A run that is claimed and waits its turn: queued in the ledger, or running there if its answer was lost."""

    job: Job
    tick: datetime
    attempt: int
    status: RunStatus = "queued"


@dataclass(slots=True)
class _Plan:
    """A batch, and what follows once it is written."""

    batch: Batch
    pending: int  # how many of its changes were to be written anyhow
    waiting: list[_Waiting] = field(default_factory=list)  # that start
    overdue: list[_Waiting] = field(default_factory=list)  # that are too old to start
    claims: list[tuple[Job, RunRecord]] = field(default_factory=list)
    skips: list[tuple[Job, Skip]] = field(default_factory=list)

    def starting(self, token: int) -> list[RunKey]:
        """The runs that start once it is written."""
        waiting = [RunKey(run.job.name, run.tick, run.attempt, token) for run in self.waiting]
        return waiting + [RunKey(run.job, run.tick, 1, token) for _, run in self.claims if run.status == "running"]


class TermOfJobs:
    """The jobs of one registry during one term."""

    def __init__(
        self,
        lead: Leadership,
        jobs: Iterable[Job],
        threads: Threads,
        *,
        max_running: int | None,
        history: int | None,
        context: Any,
        told: set[str],
    ) -> None:
        self.lead = lead
        self._jobs = {job.name: job for job in jobs}
        self._threads = threads
        self._max_running = max_running or math.inf
        self._history = history
        self._context = context
        self._told = told
        self._loop = asyncio.get_running_loop()
        self._store = cast(LedgerStore, lead._store)  # every store that `open_store` makes is one
        self._term = Term(lead.name, lead.holder, lead.token)
        self._wake = asyncio.Event()
        # What is due
        self._heap: list[tuple[datetime, str]] = []
        self._lined_up: set[str] = set()  # the jobs on the heap
        self._settled_until: dict[str, datetime] = {}
        self._high_ticks: dict[str, datetime | None] = {}  # as the ledger had them
        self._paused: set[str] = set()
        self._held: set[str] = set()  # ticks that wait until the job's earlier ones have been run
        self._requests: dict[str, datetime] = {}
        self._refused: Counter[str] = Counter()  # how often a batch with the job's request was
        # What runs
        self._running: dict[asyncio.Task[Outcome], Execution] = {}
        self._waiting: deque[_Waiting] = deque()
        self._going_on: Counter[str] = Counter()  # runs of each job, running or waiting
        self._inherited: set[str] = set()  # jobs with a run of an earlier term, until none goes on any more
        self._backlog: set[str] = set()  # jobs some run of which has waited, until none goes on any more
        self._calls: set[asyncio.Task[Any]] = set()
        # What the ledger does not know yet
        self._changes: list[Change] = []
        self._committed: set[RunKey] = set()  # runs that their final transactions ended since the latest reading
        self._in_doubt: dict[tuple[str, datetime], Execution] = {}
        self._stock_wanted = True
        self._look_at = 0.0
        self._failures = 0  # exchanges in a row, but for readings, that went wrong
        self._most = _MOST
        self._warned_at = -math.inf
        self._under_way: tuple[asyncio.Task[None], _Plan] | None = None
        self._unanswered: set[RunKey] = set()  # runs that were to start: the ledger may call them running
        self._pruned_at = -math.inf
        self._grown: dict[str, float] = {}  # finished rows since the last pruning
        self.ended = False
        self.open = True
        """Whether calls are let in: not when it drains, nor when it ends."""

    @property
    def lets_in(self) -> bool:
        """Whether a call may run within this term: not when it drains, but for calls of its own jobs."""
        return self.lead.is_leader and not self.ended and (self.open or is_within(self.lead))

    async def run(self, stopping: asyncio.Event, drain_timeout: float) -> None:
        """Runs what falls due until told to stop, then drains; cancels what is left, and awaits it, however it ends."""
        wakers = [asyncio.create_task(self._wake_at(event)) for event in (stopping, self.lead._over)]
        try:
            while not stopping.is_set():
                await self._turn(claim=True)
            self.open = False
            until = self._loop.time() + drain_timeout
            while (self._running or self._calls) and (left := until - self._loop.time()) > 0:
                await self._turn(claim=False, longest=left)
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

    async def _turn(self, *, claim: bool, longest: float = _SLICE) -> None:
        """Writes what there is to write, starts what was written, and sleeps until there is more."""
        self._wake.clear()
        self.lead.check()
        pause = min(longest, _SLICE)
        if not self._jobs:
            pass
        elif self._stock_wanted:
            pause = min(pause, await self._attempt(self._take_stock()))
        elif claim and self._loop.time() >= self._look_at:
            pause = min(pause, await self._attempt(self._look()))
        elif plan := self._plan(claim=claim):
            pause = min(pause, await self._attempt(self._carry_out(plan)))
            if self._loop.time() - self._pruned_at > _BUSY_FOR:
                await self._prune()
        else:
            self._failures = 0  # not after a reading alone: what was to be written may fail each time
            await self._prune()
            if claim:
                pause = min(pause, self._look_at - self._loop.time(), self._until_next())
        if pause > 0:
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _attempt(self, call: Coroutine[Any, Any, None]) -> float:
        """Has one exchange with the ledger; returns for how long to wait before the next: 0 if it went well."""
        try:
            await call
        except FenceBroken:
            self.lead._end("taken", raised=True)
            self.lead.check()
            raise
        except Refused as error:
            self._stock_wanted = True
            return self._failed(f"its rows are not as they should be: {error.__cause__ or 'read again'}")
        except TROUBLE as error:
            self._stock_wanted = True
            return self._failed(str(error))
        return 0.0

    def _failed(self, why: str) -> float:
        timings, now = self.lead._timings, self._loop.time()
        self._failures += 1
        if self._failures > 1 and now - self._warned_at >= min(timings.retry_interval * self._failures, _QUIETEST):
            self._warned_at = now
            text = f"could not write the ledger of {self.lead.name!r}, nothing new is started: {why}"
            self._emit(Notice(**self._facts(), severity="WARNING", text=text))
        return 0.0 if self._failures == 1 else min(0.05 * 2.0 ** min(self._failures, 10), timings.retry_interval)

    async def _bounded(self, call: Awaitable[R]) -> R:
        return await bounded(self.lead._timings.attempt, self.lead._store.description, call)

    def _until_next(self) -> float:
        return (self._heap[0][0] - self.lead.database_now()).total_seconds() if self._heap else _SLICE

    # -- what the ledger says

    async def _take_stock(self) -> None:
        """Reads the ledger: at the start of the term, and when it is not known what it says."""
        self._committed.clear()
        stock = await self._bounded(self._store.take_stock(self.lead.name))
        self._saw(stock)
        new = [
            Enrolment(job=job.name, schedule=job.schedule.expression, timezone=job.schedule.timezone)
            for job in self._jobs.values()
            if (known := stock.jobs.get(job.name)) is None
            or (known.schedule, known.timezone) != (job.schedule.expression, job.schedule.timezone)
        ]
        if new:
            await self._bounded(self._store.enroll(self._term, new))
            stock = await self._bounded(self._store.take_stock(self.lead.name))
            self._saw(stock)
        if not self._jobs.keys() <= stock.jobs.keys():
            raise Refused  # another node has not heard of them yet
        self._tell_of_unknown(stock)
        for name, record in stock.jobs.items():
            if name in self._jobs:
                self._settled_until[name] = record.settled_until
                self._high_ticks[name] = record.high_tick
        self._see_requests(stock)
        self._held.clear()
        self._heap.clear()
        self._lined_up.clear()
        self._line_up_ticks(self._jobs)
        self._sort_out(stock)
        self._stock_wanted = False
        self._look_at = self._loop.time() + self.lead._timings.heartbeat_interval

    async def _look(self) -> None:
        """Reads who was paused, resumed or triggered."""
        stock = await self._bounded(self._store.take_stock(self.lead.name, attention=True))
        self._saw(stock)
        before = self._paused
        self._see_requests(stock)
        for name in (before - self._paused) & stock.jobs.keys():
            self._settled_until[name] = max(self._settled_until[name], stock.jobs[name].settled_until)
        self._line_up_ticks(before - self._paused)
        self._look_at = self._loop.time() + self.lead._timings.heartbeat_interval

    def _saw(self, stock: Stock) -> None:
        # Only if the clock has stepped: a renewal is a shorter exchange, and measures better.
        if abs((stock.now - self.lead.database_now()).total_seconds()) > 1:
            self.lead._saw_database_time(stock.now)

    def _see_requests(self, stock: Stock) -> None:
        known = {name: record for name, record in stock.jobs.items() if name in self._jobs}
        self._paused = {name for name, record in known.items() if record.paused_at is not None}
        self._requests = {
            name: record.requested_at for name, record in known.items() if record.requested_at is not None
        }

    def _line_up_ticks(self, names: Iterable[str]) -> None:
        """Puts the next tick of jobs on the heap, but for those that are there or wait for something."""
        for name in names:
            if name not in self._lined_up and name not in self._held and name not in self._paused:
                tick = self._jobs[name].schedule.next_after(self._settled_until[name])
                if tick is not None:
                    self._lined_up.add(name)
                    heapq.heappush(self._heap, (tick, name))

    def _tell_of_unknown(self, stock: Stock) -> None:
        unknown = sorted(set(stock.jobs) - set(self._jobs) - self._told)
        if unknown:
            self._told.update(unknown)
            text = f"the database knows jobs of {self.lead.name!r} that this process has not: {', '.join(unknown[:20])}"
            self._emit(Notice(**self._facts(), severity="WARNING", text=text))

    def _sort_out(self, stock: Stock) -> None:
        """Takes over the runs of earlier terms, and finds those of this term whose answer was lost."""
        running = {(execution.job.name, execution.run.tick) for execution in self._running.values()}
        pending = {(change.key.job, change.key.tick) for change in self._changes}
        self._waiting.clear()
        self._going_on = Counter(name for name, _ in running)
        for change in self._changes:
            if change.status == "queued":  # it counts at once; the reading that follows the writing lines it up
                self._going_on[change.key.job] += 1
                self._backlog.add(change.key.job)
        for run in stock.unfinished:
            place, job = (run.job, run.tick), self._jobs.get(run.job)
            if place in pending or place in running:
                continue
            key = RunKey(run.job, run.tick, run.attempt, run.token)
            if key in self._committed:
                continue
            mine = run.token == self.lead.token and (run.status == "queued" or key in self._unanswered)
            if not mine:
                self._inherit(run, job, stock.now)
            elif job is not None:
                # One that is running was to be started, and has not been. It is not written back: the server may
                # execute such a change later than it should, when it is true again.
                self._line_up(job, run.tick, run.attempt, run.status)
        # The unanswered commit of a run that is not to be run again has worked.
        left = {(run.job, run.tick) for run in stock.unfinished}
        for place in [place for place in self._in_doubt if place not in pending]:
            execution = self._in_doubt.pop(place)
            if place not in left:
                self._tell(execution, Outcome("succeeded", 0.0))

    def _inherit(self, run: RunRecord, job: Job | None, now: datetime) -> None:
        if job is None:
            return  # for a leader that has the job
        change = inherited(run, rerun_lost=job.rerun_lost, max_age=job.max_age, now=now)
        self._changes.append(change)
        if run.status == "running":
            took = (now - run.started_at).total_seconds() if run.started_at else 0.0
            facts: Any = {"lease": self.lead.name, "holder": run.holder, "token": run.token}  # of the term that lost it
            self._emit(RunFinished(**facts, job=run.job, tick=run.tick, status="lost", took=took))
        elif change.status == "skipped":
            self._skipped(run.job, Skip(run.tick, run.tick, 1, change.error or ""))
        if change.status == "queued":
            self._going_on[run.job] += 1
            self._backlog.add(run.job)
            self._inherited.add(run.job)

    def _line_up(self, job: Job, tick: datetime, attempt: int, status: RunStatus = "queued") -> None:
        self._going_on[job.name] += 1
        self._backlog.add(job.name)
        self._waiting.append(_Waiting(job, tick, attempt, status))

    # -- what is to be done

    def _plan(self, *, claim: bool) -> _Plan | None:
        pending = self._changes[: self._most]
        if self._failures > 3:  # perhaps it is the text of an error that cannot be written
            pending = [replace(change, error=change.error and ascii(change.error)) for change in pending]
        plan = _Plan(Batch(changes=pending), len(pending))
        if claim and len(pending) < self._most:
            free = self._max_running - len(self._running)
            free -= self._plan_waiting(plan, free)
            free -= self._plan_requests(plan, free)
            self._plan_due(plan, free)
        return plan if plan.batch or plan.waiting else None

    def _plan_waiting(self, plan: _Plan, free: float) -> int:
        """Starts runs that wait their turn, while there are places."""
        busy = {execution.job.name for execution in self._running.values()} if self._waiting else set()
        now = self.lead.database_now()
        for waiting in self._waiting:
            job = waiting.job
            if len(plan.waiting) >= free or len(plan.batch.changes) >= 2 * self._most:
                break
            key = RunKey(job.name, waiting.tick, waiting.attempt, self.lead.token)
            if waiting.status == "queued" and waiting.attempt == 1 and (why := overdue(waiting.tick, job.max_age, now)):
                plan.overdue.append(waiting)
                change = Change(key=key, was="queued", status="skipped", attempt=1, error=why, required=True)
                plan.batch.changes.append(change)
                plan.skips.append((job, Skip(waiting.tick, waiting.tick, 1, why)))
                continue
            if (job.overlap == "skip" or job.missed == "all") and (job.name in busy or self._in_thread(job)):
                continue
            busy.add(job.name)
            plan.waiting.append(waiting)
            if waiting.status == "queued":
                plan.batch.changes.append(
                    Change(key=key, was="queued", status="running", attempt=waiting.attempt, required=True)
                )
        return len(plan.waiting)

    def _plan_requests(self, plan: _Plan, free: float) -> int:
        started = 0
        for name, requested_at in self._requests.items():
            if len(plan.claims) >= self._most:
                break
            job = self._jobs[name]
            plan.batch.requests[name] = requested_at
            of_schedule = job.schedule.latest_between(requested_at - _MOMENT, requested_at) is not None
            if of_schedule and (name not in self._paused or self._settled_until[name] >= requested_at):
                continue  # it is run, or was, as a tick of the schedule
            # A clock that was set back may show one moment twice; but a refusal may have had another cause.
            tick = requested_at + max(self._refused[name] - 1, 0) * _MOMENT
            if job.overlap == "skip" and self._goes_on(job):
                self._plan_skip(plan, job, Skip(tick, tick, 1, "triggered while its last run had not ended"))
            else:
                self._plan_run(plan, job, tick, start=started < free)
                started += 1
        return started

    def _plan_due(self, plan: _Plan, free: float) -> None:
        """Claims all that is due now; what is popped from the heap is put back when it is known what was written."""
        now = self.lead.database_now()
        triggered = {job.name for job, run in plan.claims if run.status != "skipped"}
        while self._heap and self._heap[0][0] <= now and len(plan.claims) < 2 * self._most:
            if len(plan.claims) - len(plan.skips) >= self._most:
                break
            _, name = heapq.heappop(self._heap)
            self._lined_up.discard(name)
            job = self._jobs[name]
            if name in self._paused:
                continue
            late = (job.missed == "all" and name in self._backlog) or name in self._inherited
            if (late and self._going_on[name]) or (job.overlap == "skip" and name in triggered):
                self._held.add(name)  # it follows, and is no overlap
                continue
            after = self._settled_until[name]
            young = 2 * self.lead._timings.lease_duration
            found = due(job.schedule, after, now, missed=job.missed, max_age=job.max_age, young=young)
            if not found.run and not found.skipped:  # settled since it was lined up: paused, and resumed
                self._line_up_ticks([name])
                continue
            busy, backlog = self._goes_on(job), job.missed == "all" and len(found.run) > 1
            why = None
            if self._going_on[name] >= MOST_MISSED:
                why = f"{MOST_MISSED} of its runs wait"
            elif job.overlap == "skip" and busy and not backlog:
                why = "its last run has not ended"
            if found.run and why is not None:
                count = job.schedule.count_between(after, found.run[-1])
                first = found.skipped[0].first if found.skipped else found.run[0]
                found.skipped = [Skip(first, found.run[-1], count, why)]
                found.run = []
            for skip in found.skipped:
                self._plan_skip(plan, job, skip)
            for number, tick in enumerate(found.run):
                start = free > 0 and number == 0 and not (busy and backlog)
                self._plan_run(plan, job, tick, start=start)
                free -= start
            plan.batch.high_ticks[name] = (found.run or [found.skipped[-1].last])[-1]
            plan.batch.seen[name] = self._high_ticks[name]

    def _plan_run(self, plan: _Plan, job: Job, tick: datetime, *, start: bool) -> None:
        status: Literal["running", "queued"] = "running" if start else "queued"
        record = RunRecord(job=job.name, tick=tick, token=self.lead.token, holder=self.lead.holder, status=status)
        plan.claims.append((job, record))
        plan.batch.claims.append(record)

    def _plan_skip(self, plan: _Plan, job: Job, skip: Skip) -> None:
        record = RunRecord(
            job=job.name, tick=skip.last, token=self.lead.token, holder=self.lead.holder, status="skipped",
            error=skip.reason, tick_from=skip.first, count=skip.count,
        )  # fmt: skip
        plan.claims.append((job, record))
        plan.batch.claims.append(record)
        plan.skips.append((job, skip))

    def _goes_on(self, job: Job) -> bool:
        return self._going_on[job.name] > 0 or self._in_thread(job)

    def _in_thread(self, job: Job) -> bool:
        return any(thread.is_alive() for thread in self._threads.get(job.name, ()))

    async def _carry_out(self, plan: _Plan) -> None:
        """Writes a plan, in a task of its own: cancelled here, it is seen to by `_end`."""
        if plan.batch:
            task = asyncio.create_task(self._bounded(self._store.record(self._term, plan.batch)))
            self._under_way = (task, plan)
            await asyncio.wait([task])
            self._under_way = None
            try:
                task.result()
            except BaseException as error:
                self._line_up_ticks(plan.batch.high_ticks)
                self._unanswered.update(plan.starting(self.lead.token))
                self._most = max(self._most // 2, 10)  # it may have been too much for the server, or for the time
                if isinstance(error, Refused):
                    self._refused.update(plan.batch.requests.keys())
                raise
        starting = self._written(plan)
        if self.lead.is_leader:
            for execution in starting:
                self._start(execution)
        else:  # the answer was read too late: the process stood still
            self._unanswered.update(plan.starting(self.lead.token))

    def _written(self, plan: _Plan) -> list[Execution]:
        """Notes that a plan was written; returns what is to be started."""
        self._failures = 0
        self._most = min(self._most * 2, _MOST)
        if any(change.status == "queued" for change in self._changes[: plan.pending]):
            self._stock_wanted = True  # to see whether they had an effect: if so, the runs wait their turn
        del self._changes[: plan.pending]
        starting = []
        for waiting in plan.overdue:
            self._waiting.remove(waiting)
            self._went_on(waiting.job)
        for waiting in plan.waiting:
            self._waiting.remove(waiting)
            starting.append(self._execution(waiting.job, waiting.tick, waiting.attempt))
        for job, record in plan.claims:
            if record.status == "running":
                self._going_on[job.name] += 1
                starting.append(self._execution(job, record.tick, 1))
            elif record.status == "queued":
                self._line_up(job, record.tick, 1)
        for name in plan.batch.requests:
            self._requests.pop(name, None)
            self._refused.pop(name, None)
        self._settled_until.update(plan.batch.high_ticks)
        self._high_ticks.update(plan.batch.high_ticks)
        self._line_up_ticks(plan.batch.high_ticks)
        for job, skip in plan.skips:
            self._skipped(job.name, skip)
        return starting

    def _skipped(self, job: str, skip: Skip) -> None:
        event = TickSkipped(**self._facts(), job=job, since=skip.first, count=skip.count, reason=skip.reason)
        self._emit(event)
        self._grew(job)

    # -- a run

    def _execution(self, job: Job, tick: datetime, attempt: int) -> Execution:
        run = JobRun(job=job.name, tick=tick, attempt=attempt, leadership=self.lead, context=self._context)
        return Execution(job, run, self._threads)

    def _start(self, execution: Execution) -> None:
        run = execution.run
        self._unanswered.discard(run._key)
        late = (self.lead.database_now() - run.tick).total_seconds()
        self._emit(RunStarted(**self._facts(), job=run.job, tick=run.tick, late=late))
        task = asyncio.create_task(execution.go(), name=f"aiolease job {run.job}")
        self._running[task] = execution
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Outcome]) -> None:
        execution = self._running.pop(task)
        job, run = execution.job, execution.run
        self._went_on(job)
        self._wake.set()
        if not execution.begun:  # the term was over before; another leader is to run it
            self._changes.append(_handed_back(run._key))
            return
        if task.cancelled():
            outcome = Outcome("lost", 0.0)
        elif task.exception() is not None:  # the process ends by it
            return
        else:
            outcome = task.result()
        self._grew(job.name)
        if outcome.committed:
            self._committed.add(run._key)
            self._tell(execution, outcome)
            return
        if outcome.status == "lost":
            change = lost(run._key, rerun=job.rerun_lost)
        else:
            error = None if outcome.error is None else describe(outcome.error)
            change = Change(key=run._key, was="running", status=outcome.status, attempt=run.attempt, error=error)
        self._changes.append(change)
        if run._doubt is not None and change.status == "queued" and not self.ended:
            self._in_doubt[job.name, run.tick] = execution  # a commit that went unanswered may have worked
            text = f"{job.name!r} is begun again if its final transaction was not committed: {describe(run._doubt)}"
            self._emit(Notice(**self._facts(), severity="WARNING", text=text))
        else:
            self._tell(execution, outcome)

    def _went_on(self, job: Job) -> None:
        """A run of the job is over."""
        self._going_on[job.name] -= 1
        if not self._going_on[job.name]:
            self._inherited.discard(job.name)
            if job.name in self._held:
                self._held.discard(job.name)
                self._line_up_ticks([job.name])
            else:
                self._backlog.discard(job.name)

    def _tell(self, execution: Execution, outcome: Outcome) -> None:
        run = execution.run
        error = outcome.error if outcome.status == "failed" else None
        facts = self._facts()
        self._emit(
            RunFinished(**facts, job=run.job, tick=run.tick, status=outcome.status, took=outcome.took, error=error)
        )
        if outcome.status != "failed" and outcome.error is not None and execution.run._doubt is not outcome.error:
            when = "after its final transaction, which counts" if outcome.committed else "while it was cancelled"
            text = f"{run.job!r} raised {when}: {describe(outcome.error)}"
            self._emit(Notice(**facts, severity="ERROR", text=text))

    def _grew(self, job: str) -> None:
        """Counts a row that is, or will be, finished. Not from 0, since nobody knows how many there were."""
        if self._history is not None:
            self._grown[job] = self._grown.get(job, jitter(0, self._history / 10)) + 1

    async def _prune(self) -> None:
        """Deletes old rows of some jobs: those that have grown by a tenth of what is kept."""
        if self._history is None:
            return
        now = self._loop.time()
        if now < self._pruned_at:
            return
        self._pruned_at = now
        full = [job for job, grown in self._grown.items() if grown > self._history / 10][:_PRUNED_AT_ONCE]
        if full:
            try:
                await self._bounded(self._store.prune(self.lead.name, full, self._history))
            except TROUBLE:
                self._pruned_at = now + _QUIETEST  # another time: it is only tidying up
                return
            self._grown.update(dict.fromkeys(full, 0))
            self._wake.set()

    async def within(self, call: Callable[[], Awaitable[R]]) -> R:
        """Runs a call as a part of the term: cancelled with it, and awaited before the lease is released."""
        if asyncio.get_running_loop() is not self._loop:  # another scheduler's thread, with a loop of its own
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.within(call), self._loop))

        async def run() -> R:
            with leading(self.lead):
                return await call()

        task = asyncio.create_task(run())
        self._calls.add(task)
        task.add_done_callback(self._call_ended)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            if not self.ended:  # else the term has cancelled it already, once
                task.cancel()
            await settled(task)
            if not task.cancelled():
                task.exception()  # the caller's cancellation goes before it
            raise
        if task.cancelled() and self.ended:
            raise LeadershipLost(self.lead.name, self.lead.holder, self.lead.token, self.lead._ended or "resigned")
        return task.result()

    def _call_ended(self, task: asyncio.Task[Any]) -> None:
        self._calls.discard(task)
        self._wake.set()

    # -- the end

    async def _end(self) -> asyncio.CancelledError | None:
        """Cancels what still runs, once, and again after half the time to unwind; returns when all has ended."""
        self.ended, self.open = True, False
        again: float | None = self._loop.time() + self.lead._timings.unwind / 2
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
        another = await settled(asyncio.create_task(self._close()))
        return cancelled or another

    async def _close(self) -> None:
        """Writes how the last runs have ended, so that the next leader need not guess. Bounded; raises nothing."""
        lost, limit = self.lead._ended in {"expired", "taken"}, self.lead._timings.attempt
        if self._under_way is not None:
            task, plan = self._under_way
            if lost:
                await given_up(task)
            else:
                await asyncio.wait([task])
            if not task.cancelled() and task.exception() is None:
                self._written(plan)
            self._unanswered.update(plan.starting(self.lead.token))
        # Claimed, or perhaps claimed, and not begun: another leader is to run them.
        self._changes += map(_handed_back, self._unanswered)
        if self.lead._ended == "taken" or not self._changes:
            return
        if lost:  # the database does not answer: this is no time to wait for it
            limit = min(limit, self.lead._timings.unwind / 5)
        try:
            async with asyncio.timeout(limit):
                for start in range(0, len(self._changes), _MOST):
                    await self._store.record(self._term, Batch(changes=self._changes[start : start + _MOST]))
        except TimeoutError:
            self._not_closed("no answer in time")
        except (FenceBroken, Refused):
            pass
        except TROUBLE as error:
            self._not_closed(str(error))

    def _not_closed(self, why: str) -> None:
        text = f"could not write how the last runs of {self.lead.name!r} ended, the next term calls them lost: {why}"
        self._emit(Notice(**self._facts(), severity="WARNING", text=text))

    def _facts(self) -> dict[str, Any]:
        return {"lease": self.lead.name, "holder": self.lead.holder, "token": self.lead.token}

    def _emit(self, event: Event) -> None:
        emit(event, self.lead._observer)


def _handed_back(key: RunKey) -> Change:
    """A run that was claimed, and has not begun: it waits its turn again."""
    return Change(key=key, was="running", status="queued", attempt=key.attempt)
