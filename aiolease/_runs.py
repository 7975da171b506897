"""The jobs of one registry during one term: what is due, the runs, and that all have ended with the term.

One heap and one sleeper serve any number of jobs; no task waits for a job that is not due. A run is a task of its
own, cancelled once when the term ends, as by ``Task.cancel()``, and awaited before the lease is released.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
import inspect
import math
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, TypeVar, final

import anyio

from aiolease._leadership import Leadership, is_within, leading
from aiolease._schedule import Schedule
from aiolease._settle import settled
from aiolease.errors import InvalidJob, LeadershipLost
from aiolease.events import Event, Notice, RunFinished, RunStarted, TickSkipped, emit

R = TypeVar("R")

_CALLERS = frozenset({"aiolease", "asyncio"})
Overlap = Literal["skip", "allow"]

_SLICE = 5.0
"""The longest sleep between two looks at the database's clock, in seconds: it may be found to have stepped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A function and its schedule, as they were registered."""

    name: str
    function: Callable[..., object]
    schedule: Schedule
    takes_run: bool
    overlap: Overlap
    timeout: float | None

    @property
    def threaded(self) -> bool:
        """Whether its runs need a thread."""
        return not is_async(self.function)


@final
class JobRun:
    """One execution of a job, handed to a job that takes an argument.

    Attributes:
        job: The job's name.
        tick: The moment at which its schedule fell due: aware UTC.
        attempt: 1, and more for each further attempt at the same tick.
        token: The fencing token of the term.
        context: What was given to `JobRegistry.run`, `serve` or `background` as ``context``.
        leadership: The term.
    """

    def __init__(
        self, *, job: str, tick: datetime, leadership: Leadership, context: Any = None, attempt: int = 1
    ) -> None:
        self.job = job
        self.tick = tick
        self.attempt = attempt
        self.token = leadership.token
        self.context = context
        self.leadership = leadership
        self._stopped: BaseException | None = None

    def check(self) -> None:
        """Returns if the run may go on; no I/O, from any thread. A ``def`` job is to call it between two steps.

        Raises:
            LeadershipLost: The term has ended, or is about to.
            TimeoutError: The job's time-out is over.
        """
        if self._stopped is not None:
            raise self._stopped
        self.leadership.check()

    def __repr__(self) -> str:
        return f"<JobRun {self.job!r} {self.tick:%Y-%m-%dT%H:%M:%SZ} attempt {self.attempt}>"


def _start_thread(call: Callable[[], object], name: str) -> asyncio.Future[object]:
    """Runs a call in a thread of its own; the future is its end, and nobody's cancellation can say otherwise."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[object] = loop.create_future()
    context = copy_context()

    def settle(result: object, error: BaseException | None) -> None:
        if error is None:
            ended.set_result(result)
        else:
            ended.set_exception(error)

    def work() -> None:
        result: object = None
        error: BaseException | None = None
        try:
            result = context.run(call)
        except StopIteration as raised:
            error = RuntimeError(f"the job raised {raised!r}")
        except BaseException as raised:  # noqa: BLE001 - it is the run's
            error = raised
        with suppress(RuntimeError):  # the loop may have been closed meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name=f"aiolease job {name}", daemon=True).start()
    return ended


def _of_the_job(trace: TracebackType | None) -> TracebackType | None:
    """What of a traceback lies behind this package and the libraries that call a job for it."""
    own = trace
    while own is not None and own.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _CALLERS:
        own = own.tb_next
    return own


def is_async(function: Callable[..., object]) -> bool:
    """Whether a call gives something to await: a coroutine function, a partial of one, an object with an async call."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def takes_run(name: str, function: Callable[..., object]) -> bool:
    """Whether a job takes a `JobRun`.

    Raises:
        InvalidJob: It cannot be a job.
    """
    if not callable(function):
        raise InvalidJob(name, "register a function")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidJob(name, "a generator cannot be a job, use a function that does not yield")
    try:
        signature = inspect.signature(function)
    except ValueError:
        raise InvalidJob(name, "what it takes cannot be seen, wrap it in a function of your own") from None
    taken = 0
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            taken += 1
        elif parameter.kind is not parameter.KEYWORD_ONLY or parameter.default is parameter.empty:
            taken += 2
    if taken > 1:
        raise InvalidJob(name, f"it must take nothing or one JobRun, not {signature}")
    return taken == 1


class TermOfJobs:
    """The jobs of one registry during one term."""

    def __init__(
        self,
        lead: Leadership,
        jobs: Iterable[Job],
        threads: dict[str, set[asyncio.Future[object]]],
        *,
        max_running: int | None,
        context: Any,
    ) -> None:
        self.lead = lead
        self._jobs: list[Job] = list(jobs)
        self._threads = threads
        self._max_running = max_running or math.inf
        self._context = context
        self._running: dict[asyncio.Task[None], tuple[Job, JobRun]] = {}
        self._calls: set[asyncio.Task[Any]] = set()
        self._queued: deque[tuple[Job, datetime]] = deque()
        self._going_on: Counter[str] = Counter()  # runs of each job, running or queued
        self._loop = asyncio.get_running_loop()
        self.ended = False
        self.open = True
        """Whether calls are let in: not when it drains, nor when it ends."""

    @property
    def lets_in(self) -> bool:
        """Whether a call may run within this term: not when it drains, but for calls of its own jobs."""
        return self.lead.is_leader and not self.ended and (self.open or is_within(self.lead))

    async def run(self, stopping: asyncio.Event, drain_timeout: float) -> None:
        """Schedules until told to stop, then drains; cancels what is left, and awaits it, however it ends."""
        try:
            await self._schedule(stopping)
            await self._drain(drain_timeout)
        finally:
            cancelled = await self._end()
            if cancelled is not None:
                raise cancelled

    # -- what is due

    async def _schedule(self, stopping: asyncio.Event) -> None:
        now = self.lead.database_now()
        heap: list[tuple[datetime, int]] = []
        for index, job in enumerate(self._jobs):
            tick = job.schedule.next_after(now)
            if tick is not None:
                heap.append((tick, index))
        heapq.heapify(heap)
        ends = [asyncio.create_task(event.wait()) for event in (stopping, self.lead._over)]
        try:
            await self._start_what_falls_due(heap, stopping, ends)
        finally:
            for end in ends:
                end.cancel()

    async def _start_what_falls_due(
        self, heap: list[tuple[datetime, int]], stopping: asyncio.Event, ends: list[asyncio.Task[Literal[True]]]
    ) -> None:
        while not stopping.is_set():
            self.lead.check()
            now = self.lead.database_now()
            while heap and heap[0][0] <= now:
                tick, index = heap[0]
                job = self._jobs[index]
                newest = job.schedule.latest_between(tick, now) or tick
                following = job.schedule.next_after(now)
                if following is None:
                    heapq.heappop(heap)
                else:
                    heapq.heapreplace(heap, (following, index))
                if newest > tick:
                    count = job.schedule.count_between(tick, newest)
                    self._skip(job, tick, count, "a newer one was due as well")
                self._due(job, newest)
            pause = min((heap[0][0] - now).total_seconds(), _SLICE) if heap else _SLICE
            await asyncio.wait(ends, timeout=max(pause, 0.0), return_when=asyncio.FIRST_COMPLETED)

    def _due(self, job: Job, tick: datetime) -> None:
        if job.overlap == "skip" and self._runs(job):
            self._skip(job, tick, 1, "its last run has not ended")
            return
        self._going_on[job.name] += 1
        if len(self._running) < self._max_running:
            self._start(job, tick)
        else:
            self._queued.append((job, tick))

    def _runs(self, job: Job) -> bool:
        alive = any(not thread.done() for thread in self._threads.get(job.name, ()))
        return alive or self._going_on[job.name] > 0

    def _skip(self, job: Job, since: datetime, count: int, reason: str) -> None:
        self._emit(TickSkipped(**self._facts(), job=job.name, since=since, count=count, reason=reason))

    # -- a run

    def _start(self, job: Job, tick: datetime) -> None:
        run = JobRun(job=job.name, tick=tick, leadership=self.lead, context=self._context)
        task = asyncio.create_task(self._execute(job, run), name=f"aiolease job {job.name}")
        self._running[task] = (job, run)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        job, _ = self._running.pop(task)
        self._going_on[job.name] -= 1
        while self._queued and not self.ended and len(self._running) < self._max_running:
            self._start(*self._queued.popleft())

    async def _execute(self, job: Job, run: JobRun) -> None:
        late = (self.lead.database_now() - run.tick).total_seconds()
        self._emit(RunStarted(**self._facts(), job=job.name, tick=run.tick, late=late))
        clock = asyncio.get_running_loop().time
        started = clock()
        status = "succeeded"
        error: BaseException | None = None
        limit = asyncio.timeout(job.timeout)
        try:
            async with limit:
                await self._call(job, run)
        except asyncio.CancelledError as raised:
            # Cancelled by the end of the term, or by itself: by something it awaited that was cancelled elsewhere.
            status, error = ("lost", None) if self.ended or self._being_cancelled() else ("failed", raised)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as raised:  # noqa: BLE001 - a job that raises hurts no other job
            status, error = "failed", raised
            if limit.expired() and isinstance(raised, TimeoutError):
                error = TimeoutError(f"it took longer than {job.timeout:g} s")
            elif self.ended and isinstance(raised, LeadershipLost):
                status, error = "lost", None
        else:
            if limit.expired():  # it swallowed the cancellation
                status, error = "failed", TimeoutError(f"it took longer than {job.timeout:g} s")
        if error is not None:
            # From the job's own frame on: loguru prints the variables of all others too, a URL with its password say.
            error = error.with_traceback(_of_the_job(error.__traceback__))
        took = clock() - started
        self._emit(RunFinished(**self._facts(), job=job.name, tick=run.tick, status=status, took=took, error=error))

    @staticmethod
    def _being_cancelled() -> bool:
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    async def _call(self, job: Job, run: JobRun) -> None:
        arguments = (run,) if job.takes_run else ()
        if not job.threaded:
            await job.function(*arguments)  # type: ignore[misc]
            return
        call = functools.partial(job.function, *arguments)
        thread = _start_thread(call, job.name)
        try:
            await asyncio.wait([thread])
        except asyncio.CancelledError:
            run._stopped = (
                LeadershipLost(self.lead.name, self.lead.holder, self.lead.token, self.lead._ended or "resigned")
                if self.ended
                else TimeoutError(f"it took longer than {job.timeout or 0:g} s")
            )
            await self._outwait(job, thread)
            raise
        result = thread.result()
        if inspect.isawaitable(result):  # a callable that only looks like a plain function
            await result

    async def _outwait(self, job: Job, thread: asyncio.Future[object]) -> None:
        """A thread cannot be cancelled: waits for it as long as the lease is kept for it, then leaves it behind."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self.lead._timings.lease_duration
        while not thread.done() and (left := until - loop.time()) > 0:
            try:
                await asyncio.wait([thread], timeout=left)
            except asyncio.CancelledError:
                continue  # the second cancellation; the thread has been told already
        if thread.done():
            thread.exception()
            return
        left_behind = self._threads.setdefault(job.name, set())
        left_behind.add(thread)
        thread.add_done_callback(left_behind.discard)
        thread.add_done_callback(lambda ended: None if ended.cancelled() else ended.exception())
        text = f"the thread of {job.name!r} does not end, and is left behind; the job does not start again beside it"
        self._emit(Notice(**self._facts(), severity="CRITICAL", text=text))

    async def within(self, call: Callable[[], Awaitable[R]]) -> R:
        """Runs a call as a part of the term: cancelled with it, and awaited before the lease is released."""
        if asyncio.get_running_loop() is not self._loop:  # another scheduler's thread, with a loop of its own
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.within(call), self._loop))

        async def run() -> R:
            with leading(self.lead):
                return await call()

        task = asyncio.create_task(run())
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
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

    # -- the end

    def _drop_queued(self) -> None:
        while self._queued:
            job, tick = self._queued.popleft()
            self._skip(job, tick, 1, "the term ended before its turn came")

    async def _drain(self, drain_timeout: float) -> None:
        self.open = False
        self._drop_queued()
        busy = {*self._running, *self._calls}
        if busy:
            await asyncio.wait(busy, timeout=drain_timeout)

    async def _end(self) -> asyncio.CancelledError | None:
        """Cancels what still runs, once, and again after half the time to unwind; returns when all has ended."""
        self.ended, self.open = True, False
        self._drop_queued()
        loop = asyncio.get_running_loop()
        again: float | None = loop.time() + self.lead._timings.unwind / 2
        cancelled = None
        for task in (*self._running, *self._calls):
            task.cancel()
        # Shielded, so that an anyio scope around it does not cancel the wait over and over.
        with anyio.CancelScope(shield=True):
            while busy := {*self._running, *self._calls}:
                try:
                    await asyncio.wait(busy, timeout=None if again is None else max(again - loop.time(), 0.0))
                except asyncio.CancelledError as error:
                    cancelled = error
                if again is not None and loop.time() >= again:
                    again = None
                    for task in (*self._running, *self._calls):
                        task.cancel()
        return cancelled

    def _facts(self) -> dict[str, Any]:
        return {"lease": self.lead.name, "holder": self.lead.holder, "token": self.lead.token}

    def _emit(self, event: Event) -> None:
        emit(event, self.lead._observer)
