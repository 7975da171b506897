"""Tools for tests, of aiolease and of its users: virtual time, a store with faults, and a run to call a job with.

In virtual time a loop's clock jumps to its next timer as soon as nothing is left to do, so that an hour takes a
millisecond, and every run is the same::

    @virtual_time
    async def test_the_body_is_cancelled_when_the_lease_is_lost() -> None:
        store = MemoryStore()
        with pytest.raises(LeadershipLost):
            async with leadership(store):
                store.down = True
                await asyncio.sleep(3600)

It knows no threads and no sockets: a ``def`` job or a real database does not run in it. ``examples/test_worker.py``
shows how an application is tested with it, and pytest-asyncio.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, ParamSpec, TypeVar

from aiolease._candidate import Claim
from aiolease._clock import boot_clock, current_clock, replaced
from aiolease._leadership import Leadership
from aiolease._lease import Lease
from aiolease._records import RunRecord
from aiolease._runs import JobRun
from aiolease._settings import Timings
from aiolease.errors import LossReason, StoreUnavailable
from aiolease.stores.memory import Fence, MemoryServer
from aiolease.stores.memory import MemoryStore as _PlainStore

__all__ = ["MemoryServer", "MemoryStore", "VirtualLoop", "job_run", "run_virtual", "virtual_time"]

P = ParamSpec("P")
T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits for a timer: moves the loop's clock there instead."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            # No timer is left: only a thread or a signal can go on from here. A real wait, but not for ever.
            ready = super().select(5.0)
            if not ready:
                raise RuntimeError("virtual time stands still: every task waits for something that nothing will do")
        elif not ready and timeout:
            self.loop.advance(timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps. Starts at 1,000 s, so that no moment is mistaken for "not set"."""

    def __init__(self) -> None:
        self._virtual_now = 1000.0
        selector = _JumpingSelector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        """The virtual clock, in seconds."""
        return self._virtual_now

    def boot_clock(self) -> float:
        """The clock of aiolease's deadlines: in virtual time the loop's own."""
        return self._virtual_now

    def advance(self, seconds: float) -> None:
        """Moves the clock. From a test it is a process that stood still: timers that fell due fire late."""
        self._virtual_now += seconds


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def virtual_time(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Makes an ``async def`` test a plain one that runs in virtual time."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return run_virtual(test(*args, **kwargs))

    return run


Method = Literal[
    "read", "claim", "renew", "release", "resign", "begin", "commit", "fence",
    "take_stock", "enroll", "record", "prune", "history", "trigger", "pause", "resume",
]  # fmt: skip


class MemoryStore(_PlainStore):
    """One process's way to a `MemoryServer`, with faults that a test sets.

    Attributes:
        down: Every exchange fails at once.
        latency: Seconds that each exchange takes, half of it before the server acts.
    """

    def __init__(self, server: MemoryServer | None = None) -> None:
        super().__init__(server)
        self.down = False
        self.latency = 0.0
        self.sent: list[tuple[str, float]] = []
        """What was sent, and when by the loop's clock."""
        self._faults: dict[str, deque[Callable[[Callable[[], Any]], Awaitable[Any]]]] = {}

    def lose_request(self, method: Method, times: int = 1) -> None:
        """The next such exchanges never reach the server, and are never answered."""

        async def lose(statement: Callable[[], Any]) -> Any:
            await asyncio.get_running_loop().create_future()

        self._add(method, lose, times)

    def lose_reply(self, method: Method, times: int = 1) -> None:
        """The next such exchanges take effect, but are never answered."""

        async def lose(statement: Callable[[], Any]) -> Any:
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
        """The next such exchanges raise `error` and have no effect."""

        async def refuse(statement: Callable[[], Any]) -> Any:
            raise error

        self._add(method, refuse, times)

    def _add(self, method: Method, fault: Callable[[Callable[[], Any]], Awaitable[Any]], times: int) -> None:
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


def job_run(job: str = "job", *, tick: datetime | None = None, attempt: int = 1, context: Any = None) -> JobRun:
    """A run to call a job's function with, outside of any registry; also where no loop runs, for a ``def`` job.

    Its term lasts for hours of the clock, and ends when ``run.leadership.resign()`` is called: `JobRun.check` raises
    then. Its transactions are those of a `MemoryStore`: the connection is a list of calls, made when it commits.

    Args:
        job: The job's name.
        tick: The moment at which it fell due, aware; now by default.
        attempt: The number of the attempt.
        context: What the job finds as ``run.context``.
    """
    now = datetime.now(UTC)
    tick = now if tick is None else tick.astimezone(UTC)
    try:
        clock = current_clock()
    except RuntimeError:  # no loop runs
        clock = boot_clock
    store, day = MemoryStore(), timedelta(days=1)
    lease = Lease(
        name="default", holder="test", token=1, beat=1, elected_at=now, renewed_at=now, expires_at=now + day,
        resign_token=None, now=now,
    )  # fmt: skip
    store.server.leases[lease.name] = lease
    store.server.fences[lease.name] = Fence("test", 1)
    record = RunRecord(job=job, tick=tick, attempt=attempt, token=1, holder="test", status="running", started_at=now)
    store.server.ledgers[lease.name].runs[job, tick] = record

    def end(reason: LossReason, **_: bool) -> None:
        lead._ended = lead._ended or reason

    undo = replaced.set(clock)
    try:
        timings = Timings.make(lease_duration=day.total_seconds())
        lead = Leadership(store, Claim(lease, clock(), clock()), timings, end)
    finally:
        replaced.reset(undo)
    return JobRun(job=job, tick=tick, attempt=attempt, leadership=lead, context=context)
