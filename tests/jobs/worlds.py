"""Jobs in virtual time: a term that runs them, a world of processes on one server, and what both saw.

Moments are given in seconds since `START`. A process of a world is a task with its own way to the server (`Line`),
and may be killed: nothing that it sends arrives any more.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Any, TypeVar

from aiolease import JobRegistry, JobRun, Leadership, LeadershipLost, StoreUnavailable, leadership
from aiolease.events import Event, RunFinished, RunStarted, TickSkipped
from aiolease.stores.records import RunRecord
from aiolease.testing import MemoryServer, MemoryStore
from tests.virtual import START


class Observed:
    """The events of one test, in their order; an observer."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def started(self, job: str) -> list[float]:
        """For which ticks a job started, in seconds since `START`."""
        return [seconds(each.tick) for each in self.events if isinstance(each, RunStarted) and each.job == job]

    def finished(self, job: str) -> list[RunFinished]:
        return [each for each in self.events if isinstance(each, RunFinished) and each.job == job]

    def skipped(self, job: str) -> list[TickSkipped]:
        return [each for each in self.events if isinstance(each, TickSkipped) and each.job == job]


class Diary:
    """What jobs did and when, in seconds of the loop's clock since the diary was made."""

    def __init__(self) -> None:
        self._since = asyncio.get_running_loop().time()
        self.lines: list[tuple[float, str]] = []

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time() - self._since

    def note(self, what: str) -> None:
        self.lines.append((self.now, what))

    def when(self, what: str) -> list[float]:
        return [moment for moment, noted in self.lines if noted == what]


def seconds(moment: datetime) -> float:
    return (moment - START).total_seconds()


def memory(start: datetime = START) -> MemoryStore:
    return MemoryStore(MemoryServer(start))


@asynccontextmanager
async def a_term(jobs: JobRegistry, store: MemoryStore, **options: Any) -> AsyncIterator[Leadership]:
    """The registry runs within one term while the block does; then it is cancelled from outside."""
    led: asyncio.Future[Leadership] = asyncio.get_running_loop().create_future()
    context = options.pop("context", None)

    async def term() -> None:
        async with leadership(store, **options) as lead:
            led.set_result(lead)
            await jobs.run(lead, context=context)

    task = asyncio.create_task(term())
    try:
        yield await led
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, LeadershipLost):
            await task


async def nothing() -> None: ...


def nothing_in_a_thread() -> None: ...


T = TypeVar("T")


MOST_SENT = 5000
"""More than any test here needs to send: who sends more asks without a pause."""


class Line(MemoryStore):
    """A process's way to the server. `refused` names the methods that fail for now."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server)
        self.refused: set[str] = set()

    async def exchange(self, method: str, statement: Callable[[], T]) -> T:
        assert len(self.sent) < MOST_SENT, "it asks without a pause"
        if method not in self.refused:
            return await super().exchange(method, statement)
        self.sent.append((method, asyncio.get_running_loop().time()))
        await asyncio.sleep(0)
        raise StoreUnavailable(self.description, f"{method} is refused")

    def count(self, method: str) -> int:
        return sum(sent == method for sent, _ in self.sent)


class Process:
    """A process that serves a registry."""

    def __init__(self, server: MemoryServer, jobs: JobRegistry, **options: Any) -> None:
        self.store, self.observed = Line(server), Observed()
        options = {"on_event": self.observed} | options
        self.task = asyncio.create_task(jobs.serve(self.store, **options))

    async def end(self) -> None:
        """It is stopped in order: its jobs are cancelled, and it releases."""
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    async def kill(self) -> None:
        """Nothing that it sends arrives any more, and nothing of it goes on."""
        self.store.down = True
        await self.end()


class World:
    """One server, and the processes of a test."""

    def __init__(self, start: datetime = START) -> None:
        self.server = MemoryServer(start)
        self.server.now()
        self._since = asyncio.get_running_loop().time()
        self.processes: list[Process] = []

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time() - self._since

    async def until(self, moment: float) -> None:
        """Waits until then; fails at once if a process has."""
        tasks = [process.task for process in self.processes if not process.task.done()]
        waiting = asyncio.create_task(asyncio.sleep(moment - self.now))
        await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            for task in tasks:
                if task.done():
                    task.result()
        assert waiting.done()

    def start(self, jobs: JobRegistry, **options: Any) -> Process:
        self.processes.append(Process(self.server, jobs, **options))
        return self.processes[-1]

    def someone(self) -> Line:
        """The way to the server of one who only asks."""
        return Line(self.server)

    def step(self, by: float) -> None:
        """Steps the server's clock."""
        self.server.clock_offset += timedelta(seconds=by)

    @property
    def jobs(self) -> dict[str, Any]:
        return self.server.ledgers["default"].jobs

    def records(self, job: str = "job") -> list[RunRecord]:
        return self.server.ledgers["default"].history(job)

    def rows(self, job: str = "job") -> list[str]:
        """The rows of a job: ``10 succeeded``, ``20 queued #2`` for a second attempt, ``60 skipped 3`` for a range."""
        found = []
        for row in self.records(job):
            attempt = f" #{row.attempt}" if row.attempt > 1 else ""
            count = f" {row.count}" if row.status == "skipped" and row.count is not None else ""
            found.append(f"{seconds(row.tick):g} {row.status}{attempt}{count}")
        return found

    def accounted(self, first: float, last: float, interval: float, job: str = "job") -> None:
        """Every tick of a job, and none else, is one finished run, or in one range of skipped ones."""
        ticks: list[float] = []
        for row in self.records(job):
            assert row.status in {"succeeded", "skipped"}, row
            since = row.tick_from or row.tick
            of_row = [seconds(since)]
            while of_row[-1] < seconds(row.tick):
                of_row.append(of_row[-1] + interval)
            assert len(of_row) == (row.count or 1)
            ticks += of_row
        assert ticks == [first + number * interval for number in range(round((last - first) / interval) + 1)]


@asynccontextmanager
async def world(start: datetime = START) -> AsyncIterator[World]:
    """Its processes are killed when the block ends."""
    new = World(start)
    try:
        yield new
    finally:
        for process in new.processes:
            await process.kill()


class Work:
    """What a job did, in all processes: a function that takes some time."""

    def __init__(self, takes: float = 0.0) -> None:
        self.takes = takes
        self.begun: list[tuple[float, int]] = []
        self.ended: list[float] = []
        self.at_once = 0
        self.most_at_once = 0

    async def __call__(self, run: JobRun) -> None:
        self.begun.append((seconds(run.tick), run.attempt))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.takes)
        finally:
            self.at_once -= 1
        self.ended.append(seconds(run.tick))

    @property
    def ticks(self) -> list[float]:
        return [tick for tick, _ in self.begun]

    def once_each(self) -> None:
        assert [tick for tick, times in Counter(self.ticks).items() if times > 1] == []


def registry(
    work: Callable[..., object],
    every: float = 10,
    *,
    history: int | None = 100,
    max_running: int | None = None,
    **options: Any,
) -> JobRegistry:
    """A process's own registry, of one job."""
    jobs = JobRegistry(history=history, max_running=max_running)
    jobs.every(every, name=options.pop("name", "job"), **options)(work)
    return jobs


def four(work: Work, **options: Any) -> JobRegistry:
    """Four jobs that fall due together every 100 s, with two places."""
    jobs = JobRegistry(max_running=2)
    for name in "abcd":
        jobs.every(100, name=name, **options)(work)
    return jobs
