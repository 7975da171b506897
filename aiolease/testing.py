"""Tools for tests: virtual time, a store with faults, and a run to call a job with.

In virtual time a loop's clock jumps to its next timer as soon as nothing is left to do, so that an hour takes
milliseconds. The jitter of aiolease and the start of a `MemoryServer`'s clock are fixed, so that every run is the same,
except for the names of holders::

    @virtual_time
    async def test_the_body_is_cancelled_when_the_lease_is_lost() -> None:
        store = MemoryStore()
        with pytest.raises(LeadershipLost):
            async with leadership(store):
                store.down = True
                await asyncio.sleep(3600)

1. The clock stands still while the loop waits for a thread: a ``def`` job, or a call of `asyncio.to_thread`.
2. Virtual time knows no sockets: a real database or HTTP call does not run in it.
3. ``datetime.now()`` stays the machine's. Let jobs take the date from ``run.tick``: it is right after a failover, too.
4. While a lease is renewed, a wait for an event that never comes goes on for ever. Give it a time limit:
   ``asyncio.timeout(3600)`` costs nothing.

`virtual_time` works with every test runner: pytest alone, `unittest.TestCase`, hypothesis (``@given`` above it). If
fixtures must share the test's loop, give `VirtualLoop` to the runner: to pytest-asyncio by its hook
``pytest_asyncio_loop_factories``, to anyio's plugin by an ``anyio_backend`` of ``("asyncio", {"loop_factory":
VirtualLoop})``. ``examples/test_worker.py`` tests an application with pytest-asyncio.
"""

from __future__ import annotations

import asyncio
import functools
import math
import random
import selectors
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, ParamSpec, TypeVar, TypeVarTuple, Unpack, get_args

from aiolease._clock import boot_clock, current_clock, replaced
from aiolease._election.claim import Claim
from aiolease._election.leadership import Leadership, leading
from aiolease._election.term import Term
from aiolease._election.timings import Timings
from aiolease._jobs.execution import Execution
from aiolease._jobs.plan import Waiting
from aiolease._jobs.registry import JobRegistry
from aiolease._jobs.run import JobRun
from aiolease._jobs.threads import LeftThreads
from aiolease._logging import emit, in_run
from aiolease.errors import ConfigurationError, InvalidJob, LossReason, StoreUnavailable
from aiolease.events import Notice, describe
from aiolease.stores.batch import Batch, Change
from aiolease.stores.contract import FenceBroken
from aiolease.stores.memory import VIRTUAL_START, Fence, MemoryServer
from aiolease.stores.memory import MemoryStore as _PlainStore
from aiolease.stores.records import Lease, RunRecord, RunStatus

__all__ = ["MemoryServer", "MemoryStore", "VirtualLoop", "job_run", "run_job", "run_virtual", "virtual_time"]

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


_FIRST = 1000.0
"""What the virtual clock shows at first, in seconds: not 0, so that no moment is mistaken for "not set"."""

_PATIENCE = 5.0
"""Seconds of real time that the loop waits for a thread or a signal when nothing else is left to do."""

_SAYS_AFTER = 1.0
"""Seconds of real time after which a line in the log names the thread that time stands still for."""


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits for a timer: moves the loop's clock to it instead."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        threads = self.loop.threads
        if timeout is not None and not threads:
            self.loop.advance(timeout)
            return ready
        soon = min(_SAYS_AFTER, _PATIENCE)
        ready = super().select(soon)
        which = ", ".join(threads.values())
        if not ready and threads:
            text = f"virtual time stands still for {soon:g} s already, and waits for a thread: {which}"
            emit(Notice(lease="", severity="WARNING", text=text))
        ready = ready or super().select(_PATIENCE - soon)
        if not ready:
            why = "every task waits for what nothing will do"
            if threads:
                why = f"a thread has worked for {_PATIENCE:g} s: {which}"
            threads.clear()  # so that the clean-up does not wait for it, too
            raise RuntimeError(f"virtual time stands still: {why}")
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps. Starts at 1,000 s, so that no moment is mistaken for "not set".

    If nothing can go on for 5 s of real time, the call that runs the loop raises `RuntimeError`. Then every task waits
    for something that no other task will do, or a thread does not end, perhaps because it waits for the virtual clock.
    After 1 s a line in the log, at WARNING, names the thread.
    """

    def __init__(self) -> None:
        self._virtual_now = _FIRST
        self._chance = random.Random(0)
        self.threads: dict[asyncio.Future[Any], str] = {}
        selector = _JumpingSelector()
        selector.loop = self
        super().__init__(selector)
        self.advance(0)

    def time(self) -> float:
        """The virtual clock, in seconds."""
        return self._virtual_now

    def boot_clock(self) -> float:
        """The clock of aiolease's deadlines: in virtual time the loop's own."""
        return self._virtual_now

    def wall_clock(self) -> datetime:
        """The machine's wall clock, as aiolease compares it with the database's: midnight of 1 January 2026 at first.

        As a `MemoryServer`'s, if that is first read at the loop's start.
        """
        return VIRTUAL_START + timedelta(seconds=self._virtual_now - _FIRST)

    def jitter(self, low: float, high: float) -> float:
        """The random numbers of aiolease: the same in every run, and independent of `random`."""
        return self._chance.uniform(low, high)

    def advance(self, seconds: float) -> None:
        """Moves the clock by `seconds`, as if the process had stood still: timers that fell due meanwhile fire late.

        Everything on this loop stood still, and the clock of the `MemoryServer` went on. Call `MemoryServer.take` for
        another leader meanwhile.
        """
        self._virtual_now += seconds
        # asyncio lets a timer fire a little early. Here it must not: a task that then sleeps for the rest would loop,
        # because no time passes.
        self._clock_resolution = math.ulp(self._virtual_now)

    def stand_still_for(self, thread: asyncio.Future[Any], what: str = "unnamed") -> None:
        """Holds the clock until a thread has set a future; `what` names the thread if that takes long."""
        self.threads[thread] = what
        thread.add_done_callback(lambda done: self.threads.pop(done, None))

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """See `asyncio.loop.run_in_executor`, and with it `asyncio.to_thread`: no virtual time passes meanwhile."""
        future = super().run_in_executor(executor, func, *args)
        self.stand_still_for(future, _name_of(func))
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        """See `asyncio.loop.shutdown_default_executor`: no virtual time passes meanwhile."""
        shutdown = self.create_task(super().shutdown_default_executor(*args))
        self.stand_still_for(shutdown, "what is left in the default executor")
        await shutdown


def _name_of(call: Callable[..., object]) -> str:
    """The name of a function, also if `asyncio.to_thread` wrapped it in a partial of `Context.run`."""
    while isinstance(call, functools.partial):
        call = call.args[0] if getattr(call.func, "__name__", "") == "run" and call.args else call.func
    return getattr(call, "__qualname__", None) or repr(call)


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end, in virtual time.

    Raises:
        RuntimeError: Virtual time stands still: see `VirtualLoop`.
    """
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def virtual_time(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Makes an ``async def`` test a plain one that runs in virtual time. It may not use fixtures that need a loop."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return run_virtual(test(*args, **kwargs))

    return run


Method = Literal[
    "read", "claim", "renew", "release", "resign", "begin", "commit", "fence",
    "take_stock", "enroll", "record", "prune", "overview", "history", "trigger", "pause", "resume", "settle",
]  # fmt: skip


class MemoryStore(_PlainStore):
    """One process's way to a `MemoryServer`, with faults that a test sets: a target like any other.

    Two stores on one server are two processes. Each fault is for one exchange of one method; the faults of a method
    come in the order in which they were set. `down` and `latency` stay until they are changed. The methods:

    ================================================  ==================================================================
    ``"read"``, ``"claim"``, ``"renew"``,             the lease: a candidate's look, its claim, a heartbeat, the end;
    ``"release"``, ``"resign"``                       what `resign` on the store asks of the leader
    ``"begin"``, ``"commit"``, ``"fence"``            ``transaction()``: its connection, fence and COMMIT; ``fence()``
    ``"take_stock"``, ``"enroll"``, ``"record"``,     the ledger as a leader reads it, tells it its jobs, writes which
    ``"prune"``                                       ticks it claims and how runs ended, and deletes old rows
    ``"overview"``                                    how its jobs stand, as each process looks once per lease
    ``"history"``, ``"trigger"``, ``"pause"``,        those methods of the store
    ``"resume"``, ``"settle"``
    ================================================  ==================================================================

    Attributes:
        server: The database.
        down: Every exchange fails at once with `StoreUnavailable`, as where a connection is refused.
        latency: Seconds that each exchange takes, half of it before the server acts. With a latency that no caller
            waits for, the network swallows everything.
        sent: The method of each exchange so far, and when it was sent, in seconds by the loop's clock.
    """

    def __init__(self, server: MemoryServer | None = None) -> None:
        super().__init__(server)
        self.down = False
        self.latency = 0.0
        self.sent: list[tuple[str, float]] = []
        self._faults: dict[str, deque[Callable[[Callable[[], Any]], Awaitable[Any]]]] = {}

    def lose_request(self, method: Method, times: int = 1) -> None:
        """The next such exchanges never reach the server, and are never answered. aiolease's time limit ends the wait.

        Raises:
            ValueError: There is no such method; and so do the other faults.
        """

        async def lose(statement: Callable[[], Any]) -> Any:
            await asyncio.get_running_loop().create_future()

        self._add(method, lose, times)

    def lose_reply(self, method: Method, times: int = 1) -> None:
        """The next such exchanges take effect, but are never answered."""

        async def lose(statement: Callable[[], Any]) -> Any:
            with suppress(Exception):  # a refusal is an answer, too
                statement()
            await asyncio.get_running_loop().create_future()

        self._add(method, lose, times)

    def delay(self, method: Method, seconds: float, times: int = 1) -> None:
        """The next such exchanges take effect after `seconds`, whether or not anybody still waits for the answer."""

        async def late(statement: Callable[[], Any]) -> Any:
            loop = asyncio.get_running_loop()
            answer: asyncio.Future[Any] = loop.create_future()

            def act() -> None:
                try:
                    result = statement()
                except Exception as error:  # noqa: BLE001 - it is the answer
                    if not answer.done():
                        answer.set_exception(error)
                    return
                if not answer.done():
                    answer.set_result(result)

            loop.call_later(seconds, act)
            return await answer

        self._add(method, late, times)

    def fail(self, method: Method, error: Exception, times: int = 1) -> None:
        """The next such exchanges raise `error` and have no effect.

        `StoreUnavailable` stands for a conflict or a lost connection. ``TransactionEnded("memory")`` at the commit
        stands for a block that ended its transaction itself, which in memory a block cannot do.
        """

        async def refuse(statement: Callable[[], Any]) -> Any:
            raise error

        self._add(method, refuse, times)

    def _add(self, method: Method, fault: Callable[[Callable[[], Any]], Awaitable[Any]], times: int) -> None:
        if method not in get_args(Method):
            raise ValueError(f"{method!r} is never sent; use one of {', '.join(get_args(Method))}")
        self._faults.setdefault(method, deque()).extend([fault] * times)

    async def exchange(self, method: str, statement: Callable[[], T]) -> T:
        """Sends one statement, or has its fault happen."""
        self.sent.append((method, asyncio.get_running_loop().time()))
        await asyncio.sleep(self.latency / 2)
        if self.down:
            raise StoreUnavailable(self.description, "the network is down")
        faults = self._faults.get(method)
        answer = await faults.popleft()(statement) if faults else statement()
        await asyncio.sleep(self.latency / 2)
        return answer


def job_run(
    job: str = "job",
    *,
    tick: datetime | None = None,
    attempt: int = 1,
    context: Any = None,
    store: MemoryStore | None = None,
) -> JobRun:
    """Makes a run to call a job's function with, without a registry. It needs no loop, so it serves ``def`` jobs, too.

    Its term lasts for hours of the clock, or until you call ``run.leadership.resign()``: then `JobRun.check` raises.
    Its transactions are those of a `MemoryStore`: the connection is a list of calls, which are made when it commits.
    After a final transaction the store's ``history("default", job)`` says ``"succeeded"``. When the term ends nothing
    is cancelled, and `current_leadership` does not know this term. For both use a registry, or `leadership`, on a
    `MemoryStore`.

    Args:
        job: The job's name.
        tick: The moment at which it fell due, aware; now by default.
        attempt: The number of the attempt.
        context: What the job finds as ``run.context``.
        store: A fresh store, for a test that sets its faults or reads its history; by default a new one.

    Raises:
        ConfigurationError: `tick` has no time zone.
    """
    now = datetime.now(UTC)
    if tick is not None and tick.tzinfo is None:
        raise ConfigurationError("tick", tick, "give it a time zone, tzinfo=UTC for example")
    tick = now if tick is None else tick.astimezone(UTC)
    try:
        clock = current_clock()
    except RuntimeError:  # no loop runs
        clock = boot_clock
    store, day = store or MemoryStore(MemoryServer(start=now)), timedelta(days=1)
    lease = Lease(
        name="default", holder="test", token=1, beat=1, elected_at=now, renewed_at=now, expires_at=now + day,
        resign_token=None, now=now,
    )  # fmt: skip
    store.server.leases[lease.name] = lease
    store.server.fences[lease.name] = Fence("test", 1)
    record = RunRecord(job=job, tick=tick, attempt=attempt, token=1, holder="test", status="running", started_at=now)
    store.server.ledgers[lease.name].runs[job, tick] = record

    def end(reason: LossReason, *, requested: bool = False, raised: bool = False) -> None:
        term.lost = term.lost or reason
        term.over.set()

    undo = replaced.set(clock)
    try:
        timings = Timings.make(lease_duration=day.total_seconds())
        term = Term(store, Claim(lease, sent_at=clock(), received_at=clock()), timings, end, None)
    finally:
        replaced.reset(undo)
    return JobRun(job=job, tick=tick, attempt=attempt, leadership=Leadership(term), context=context)


async def run_job(
    jobs: JobRegistry,
    job: str,
    *,
    tick: datetime | None = None,
    attempt: int = 1,
    context: Any = None,
    store: MemoryStore | None = None,
) -> None:
    """Runs one job of a registry once, now and alone, for its ``timeout`` at most; a ``def`` job in a thread.

    Raises what the job raises. For the term in which it runs, and the arguments, see `job_run`; `current_leadership`
    knows this term. ``await store.history("default", job)`` says how the run ended.

    Args:
        jobs: The registry.
        job: The job's name.
        tick: See `job_run`, as for the others.
        attempt: See `job_run`.
        context: See `job_run`.
        store: See `job_run`.

    Raises:
        InvalidJob: The registry has no such job.
        TimeoutError: The job took longer than its ``timeout``, or raised this error itself.
    """
    registered = jobs.registered.get(job)
    if registered is None:
        raise InvalidJob(job, f"this registry has no such job, but: {', '.join(sorted(jobs.registered)) or 'none'}")
    store = store or MemoryStore(MemoryServer(start=datetime.now(UTC)))
    run = job_run(job, tick=tick, attempt=attempt, context=context, store=store)
    lead, limit = run.leadership, asyncio.timeout(registered.timeout)
    waiting = Waiting(registered, run.tick, attempt, run.token)

    def end(status: RunStatus, error: str | None = None) -> None:
        change = Change(key=run.fate.key, was="running", status=status, attempt=attempt, error=error)
        with suppress(FenceBroken):  # the test had another holder take the lease
            store.server.record(lead.term.key, Batch(changes=[change]))

    try:
        async with limit:
            with leading(lead), in_run(lease=lead.name, job=job, tick=run.tick, attempt=attempt):
                await Execution(waiting, run, LeftThreads(), jobs.around).call()
        if limit.expired():
            raise TimeoutError(f"it took longer than {registered.timeout:g} s, and swallowed its cancellation")
    except asyncio.CancelledError:
        end("lost")
        raise
    except BaseException as error:
        end("failed", describe(error))
        raise
    end("succeeded")
