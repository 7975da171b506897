"""Jobs: what is registered, when it runs, and that it runs only within a term.

One heap and one sleeper serve any number of jobs; no task waits for a job that is not due. A run is a task of its
own, cancelled once when the term ends, as by ``Task.cancel()``, and awaited before the lease is released.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
import inspect
import math
import signal
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, ParamSpec, TypeVar, Unpack, final

import anyio
import anyio.to_thread

from aiolease._campaign import Campaign, Options
from aiolease._leadership import Leadership, leading
from aiolease._lease import check_name
from aiolease._schedule import Cron, Every, Schedule
from aiolease._settle import settled
from aiolease.errors import ConfigurationError, DuplicateJob, InvalidJob, LeadershipLost
from aiolease.events import Event, Notice, RunFinished, RunStarted, TickSkipped, emit
from aiolease.stores import Target

P = ParamSpec("P")
R = TypeVar("R")
JobFunction = TypeVar("JobFunction", bound=Callable[..., object])
Overlap = Literal["skip", "allow"]

_SLICE = 5.0
"""The longest sleep between two looks at the database's clock, in seconds: it may be found to have stepped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    name: str
    function: Callable[..., object]
    schedule: Schedule
    takes_run: bool
    overlap: Overlap
    timeout: float | None

    @property
    def threaded(self) -> bool:
        return not _is_async(self.function)


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


def _is_async(function: Callable[..., object]) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _takes_run(name: str, function: Callable[..., object]) -> bool:
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


@final
class JobRegistry:
    """The jobs of an application. Make one, decorate functions, and `run`, `serve` or put it in the `background`.

    Args:
        timezone: The zone of `cron` expressions that name none of their own, such as ``"America/New_York"``.
        max_running: How many runs may go on at once; those beyond wait their turn. ``None`` for no limit.
    """

    def __init__(self, timezone: str = "UTC", max_running: int | None = None) -> None:
        if max_running is not None and (not isinstance(max_running, int) or max_running < 1):
            raise ConfigurationError("max_running", max_running, "use a number from 1, or None for no limit")
        Cron("@daily", timezone)  # refuses an unknown zone
        self._timezone = timezone
        self._max_running = max_running
        self._jobs: dict[str, _Job] = {}
        self._terms: list[_Term] = []
        self._threads: dict[str, set[asyncio.Task[object]]] = {}  # runs that outlived their term

    def every(
        self,
        interval: float | timedelta,
        *,
        name: str | None = None,
        overlap: Overlap = "skip",
        timeout: float | None = None,
    ) -> Callable[[JobFunction], JobFunction]:
        """Registers a job that runs every `interval`: seconds, or a timedelta.

        Ticks lie on a grid that is anchored at the Unix epoch, so that a new leader keeps the rhythm.

        Args:
            interval: From 1 ms.
            name: The job's name, ``__name__`` by default. Keep it for years.
            overlap: What becomes of a tick while the job's last run goes on: ``"skip"`` it, or ``"allow"`` both.
            timeout: Seconds after which a run is cancelled, and has failed.

        Raises:
            InvalidSchedule: The interval cannot work.
            InvalidJob: The function cannot be a job.
            DuplicateJob: The name is taken.
        """
        return self._register(Every(interval), name, overlap, timeout)

    def cron(
        self,
        expression: str,
        *,
        timezone: str | None = None,
        name: str | None = None,
        overlap: Overlap = "skip",
        timeout: float | None = None,
    ) -> Callable[[JobFunction], JobFunction]:
        """Registers a job by a cron expression.

        A job with a fixed hour and minute runs once on the days on which the clocks change; others follow elapsed time.

        Args:
            expression: Five fields, six with seconds first, or a name such as ``@hourly``.
            timezone: The zone of the expression; the registry's by default.
            name: See `every`, as for the other arguments.
            overlap: See `every`.
            timeout: See `every`.

        Raises:
            InvalidSchedule: The expression cannot work, can never fire, or its zone is unknown.
            InvalidJob: The function cannot be a job.
            DuplicateJob: The name is taken.
        """
        return self._register(Cron(expression, timezone or self._timezone), name, overlap, timeout)

    def _register(
        self, schedule: Schedule, name: str | None, overlap: Overlap, timeout: float | None
    ) -> Callable[[JobFunction], JobFunction]:
        def register(function: JobFunction) -> JobFunction:
            key = name if name is not None else getattr(function, "__name__", "")
            if not key or key == "<lambda>":
                raise InvalidJob(key or repr(function), "it has no name of its own, give it one with name=…")
            try:
                check_name(key)
            except ConfigurationError as error:
                raise InvalidJob(key, f"{error.problem}; give it another name with name=…") from None
            if overlap not in ("skip", "allow"):
                raise InvalidJob(key, f'overlap={overlap!r}: use "skip" or "allow"')
            if timeout is not None and not (isinstance(timeout, int | float) and 0 < timeout < math.inf):
                raise InvalidJob(key, f"timeout={timeout!r}: use a finite, positive number of seconds")
            if key in self._jobs:
                raise DuplicateJob(key)
            for term in self._terms:
                text = f"{key!r} was registered while the jobs run: it starts with the next term"
                emit(Notice(lease=term.lead.name, severity="WARNING", text=text))
            takes_run = _takes_run(key, function)
            self._jobs[key] = _Job(
                name=key, function=function, schedule=schedule, takes_run=takes_run, overlap=overlap, timeout=timeout
            )
            return function

        return register

    def __repr__(self) -> str:
        return f"<JobRegistry of {len(self._jobs)} jobs{', leading' if self.is_leader else ''}>"

    @property
    def is_leader(self) -> bool:
        """Whether a term of this registry runs in this process."""
        return self._term() is not None

    def _term(self) -> _Term | None:
        return next((term for term in reversed(self._terms) if term.lead.is_leader and not term.ended), None)

    def leader_only(self, function: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R | None]]:
        """Makes a coroutine function run only where this registry leads, for calls that every process makes.

        While a term of this registry runs in this process, a call runs within that term, and is cancelled with it:
        its caller gets `LeadershipLost`. Otherwise it returns ``None`` at once, with a DEBUG line.

        Raises:
            InvalidJob: It is not a coroutine function; nothing else could be cancelled.
        """
        if not _is_async(function):
            raise InvalidJob(getattr(function, "__name__", repr(function)), "leader_only needs an `async def` function")

        @functools.wraps(function)
        async def call(*args: P.args, **kwargs: P.kwargs) -> R | None:
            term = self._term()
            if term is None:
                called = getattr(function, "__name__", repr(function))
                text = f"{called!r} was not called: this process does not lead"
                emit(Notice(lease="", severity="DEBUG", text=text))
                return None
            return await term.within(functools.partial(function, *args, **kwargs))

        return call

    async def run(self, lead: Leadership, *, context: Any = None, drain_timeout: float = 10.0) -> None:
        """Runs the jobs as they fall due, until it is cancelled: by the end of the term, or from outside.

        Args:
            lead: The term, from ``async with leadership(…) as lead``.
            context: Any object; jobs find it as ``run.context``.
            drain_timeout: Not used here: a cancelled run does not drain.

        Raises:
            LeadershipLost: The term has ended already.
        """
        await self._run(lead, asyncio.Event(), context=context, drain_timeout=drain_timeout)

    async def _run(self, lead: Leadership, stopping: asyncio.Event, *, context: Any, drain_timeout: float) -> None:
        lead.check()
        term = _Term(lead, self._jobs.values(), self._threads, max_running=self._max_running, context=context)
        self._terms.append(term)
        try:
            await term.run(stopping, drain_timeout)
        finally:
            self._terms.remove(term)

    def _campaign(self, target: Target, name: str, context: Any, drain_timeout: float, options: Options) -> Campaign:
        if not (isinstance(drain_timeout, int | float) and 0 <= drain_timeout < math.inf):
            raise ConfigurationError("drain_timeout", drain_timeout, "use a finite number of seconds, from 0")
        return Campaign(
            target,
            name,
            functools.partial(self._run, context=context, drain_timeout=drain_timeout),
            options,
        )

    async def serve(
        self,
        target: Target,
        name: str = "default",
        *,
        context: Any = None,
        drain_timeout: float = 10.0,
        handle_signals: bool = False,
        **options: Unpack[Options],
    ) -> None:
        """Runs the jobs in every term of this process, for ever: elected, lost, elected again.

        Args:
            target: See `leadership`, as for the options.
            name: The lease.
            context: Any object; jobs find it as ``run.context``.
            drain_timeout: Seconds that running jobs may take to finish after the first signal.
            handle_signals: Whether SIGTERM and SIGINT end it: the first lets running jobs finish and releases the
                lease, a second cancels them. `serve` then returns, and handlers set with `signal` are back. For
                programs of their own, not for a web server.
            **options: See `leadership`.

        Raises:
            ConfigurationError: A setting cannot work.
            StoreRejected: And `SchemaMissing`: by the first attempt only; later they are logged and tried again.
        """
        campaign = self._campaign(target, name, context, drain_timeout, options)
        if not handle_signals:
            await campaign.run()
            return
        at_once = asyncio.timeout(None)
        try:
            async with at_once:
                with _signals(name, campaign, at_once, drain_timeout):
                    await campaign.run()
        except TimeoutError:
            if not at_once.expired():
                raise

    @asynccontextmanager
    async def background(
        self,
        target: Target,
        name: str = "default",
        *,
        context: Any = None,
        drain_timeout: float = 10.0,
        **options: Unpack[Options],
    ) -> AsyncIterator[Campaign]:
        """Does the same as `serve` behind an application, while the block runs: for a lifespan, or a fixture.

        Enters after the first attempt, or after 5 s. From then on no failure of it harms the block: it is logged as
        CRITICAL, `Campaign.status` says ``"failed"``, and it is tried again. Leaving the block drains; being cancelled
        does not. The block may be left in another task than it was entered in.

        Args:
            target: See `serve`, as for the other arguments.
            name: The lease.
            context: Any object; jobs find it as ``run.context``.
            drain_timeout: Seconds that running jobs may take to finish when the block ends.
            **options: See `leadership`.

        Raises:
            ConfigurationError: A setting cannot work.
            StoreRejected: The database refused the first attempt.
            SchemaMissing: The tables are missing and cannot be created.
        """
        async with self._campaign(target, name, context, drain_timeout, options).in_background() as campaign:
            yield campaign


@contextmanager
def _signals(name: str, campaign: Campaign, at_once: asyncio.Timeout, drain_timeout: float) -> Iterator[None]:
    """Lets the first SIGTERM or SIGINT drain the campaign and a second one cancel it, until the block ends."""
    loop = asyncio.get_running_loop()

    def received(number: signal.Signals) -> None:
        if not campaign.stopping:
            text = f"{number.name}: {name!r} stops; running jobs have {drain_timeout:g} s, a second signal cancels them"
            emit(Notice(lease=name, severity="INFO", text=text))
            campaign.stop()
        else:
            emit(Notice(lease=name, severity="WARNING", text=f"{number.name} again: {name!r} cancels its jobs"))
            at_once.reschedule(loop.time())

    numbers = (signal.SIGTERM, signal.SIGINT)
    earlier = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        loop.add_signal_handler(number, received, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, earlier[number])


class _Term:
    """The jobs of one registry during one term."""

    def __init__(
        self,
        lead: Leadership,
        jobs: Any,
        threads: dict[str, set[asyncio.Task[object]]],
        *,
        max_running: int | None,
        context: Any,
    ) -> None:
        self.lead = lead
        self._jobs: list[_Job] = list(jobs)
        self._threads = threads
        self._max_running = max_running or math.inf
        self._context = context
        self._running: dict[asyncio.Task[None], tuple[_Job, JobRun]] = {}
        self._calls: set[asyncio.Task[Any]] = set()
        self._queued: deque[tuple[_Job, datetime]] = deque()
        self._going_on: Counter[str] = Counter()  # runs of each job, running or queued
        self.ended = False

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
        while not stopping.is_set():
            now = self.lead.database_now()
            while heap and heap[0][0] <= now:
                self.lead.check()
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
            try:
                async with asyncio.timeout(max(pause, 0.0)):
                    await stopping.wait()
            except TimeoutError:
                pass

    def _due(self, job: _Job, tick: datetime) -> None:
        if job.overlap == "skip" and self._runs(job):
            self._skip(job, tick, 1, "its last run has not ended")
            return
        self._going_on[job.name] += 1
        if len(self._running) < self._max_running:
            self._start(job, tick)
        else:
            self._queued.append((job, tick))

    def _runs(self, job: _Job) -> bool:
        alive = any(not thread.done() for thread in self._threads.get(job.name, ()))
        return alive or self._going_on[job.name] > 0

    def _skip(self, job: _Job, since: datetime, count: int, reason: str) -> None:
        self._emit(TickSkipped(**self._facts(), job=job.name, since=since, count=count, reason=reason))

    # -- a run

    def _start(self, job: _Job, tick: datetime) -> None:
        run = JobRun(job=job.name, tick=tick, leadership=self.lead, context=self._context)
        task = asyncio.create_task(self._execute(job, run), name=f"aiolease job {job.name}")
        self._running[task] = (job, run)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        job, _ = self._running.pop(task)
        self._going_on[job.name] -= 1
        while self._queued and not self.ended and len(self._running) < self._max_running:
            self._start(*self._queued.popleft())

    async def _execute(self, job: _Job, run: JobRun) -> None:
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
        took = clock() - started
        self._emit(RunFinished(**self._facts(), job=job.name, tick=run.tick, status=status, took=took, error=error))

    @staticmethod
    def _being_cancelled() -> bool:
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    async def _call(self, job: _Job, run: JobRun) -> None:
        arguments = (run,) if job.takes_run else ()
        if not job.threaded:
            await job.function(*arguments)  # type: ignore[misc]
            return
        call = functools.partial(job.function, *arguments)
        # A limiter of its own: the application's threads and the jobs must not wait for each other.
        limiter = anyio.CapacityLimiter(1)
        thread: asyncio.Task[object] = asyncio.create_task(
            anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=limiter)
        )
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

    async def _outwait(self, job: _Job, thread: asyncio.Task[object]) -> None:
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

        async def run() -> R:
            with leading(self.lead):
                return await call()

        task = asyncio.create_task(run())
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
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
        self._drop_queued()
        busy = {*self._running, *self._calls}
        if busy:
            await asyncio.wait(busy, timeout=drain_timeout)

    async def _end(self) -> asyncio.CancelledError | None:
        """Cancels what still runs, once, and again after half the time to unwind; returns when all has ended."""
        self.ended = True
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
