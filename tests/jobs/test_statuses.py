"""What becomes of runs: true statuses, with reasons, and no more threads than were asked for (rules 47 and 49)."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from aiolease import InvalidJob, JobRegistry, JobRun, LeadershipLost, leadership
from aiolease.stores.records import JobRecord, RunRecord
from aiolease.testing import MemoryServer, MemoryStore
from tests.jobs.worlds import Observed, Work, a_term, registry, world
from tests.virtual import LIMIT, SHORT, START, lines, until, virtual

if TYPE_CHECKING:
    from loguru import Message


# -- threads


async def test_no_more_threads_than_were_asked_for() -> None:
    """Of ten ``def`` jobs that are due two run at once; the others wait, and hold up no coroutine."""
    jobs, observed, go_on = JobRegistry(max_threads=2), Observed(), threading.Event()
    at_once, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        go_on.wait(LIMIT)
        with lock:
            at_once -= 1

    names = [f"thread-{number}" for number in range(10)]
    for name in names:
        jobs.every(0.5, name=name)(work)

    @jobs.every(0.1)
    async def light() -> None: ...

    try:
        async with a_term(jobs, MemoryStore(), on_event=observed, lease_duration=10):
            await until(lambda: at_once == 2)
            ran = len(observed.finished("light"))
            await until(lambda: len(observed.finished("light")) > ran + 3)
            assert most == 2
            go_on.set()
            await until(lambda: all(observed.finished(name) for name in names))
            assert most == 2
    finally:
        go_on.set()


async def test_a_run_for_which_there_is_no_thread_waits_and_has_not_failed(
    monkeypatch: pytest.MonkeyPatch, log: list[Message]
) -> None:
    """A process that may start no more threads hands the run back, and tries again."""
    start, refusals = threading.Thread.start, 2

    def refusing(thread: threading.Thread) -> None:
        nonlocal refusals
        if thread.name == "aiolease job job" and refusals:
            refusals -= 1
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refusing)
    jobs, observed, ticks = JobRegistry(), Observed(), []

    @jobs.every(1)
    def job(run: JobRun) -> None:
        ticks.append(run.tick)

    async with a_term(jobs, MemoryStore(), on_event=observed, lease_duration=10):
        await until(lambda: len(ticks) > 1)
    assert {event.status for event in observed.finished("job")} == {"succeeded"}
    assert len([line for line in lines(log, "WARNING") if line.startswith("there is no thread, ")]) == 2


# -- what is no job


class Yielding:
    def __call__(self) -> Iterator[int]:
        yield 1


class YieldingAsync:
    async def __call__(self) -> AsyncIterator[int]:
        yield 1


def generator() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    "function",
    [generator, functools.partial(generator), Yielding(), YieldingAsync(), functools.partial(Yielding())],
    ids=["function", "partial", "callable", "async callable", "partial of a callable"],
)
def test_a_generator_is_no_job(function: Any) -> None:
    """Called, it would do nothing."""
    with pytest.raises(InvalidJob, match="generator"):
        JobRegistry().every(1, name="job")(function)


@virtual
async def test_what_gives_back_a_generator_has_failed() -> None:
    """A decorator may hide one until it is called."""
    async with world() as here:

        @functools.wraps(generator)
        def hidden(*args: Any, **kwargs: Any) -> Any:
            return generator(*args, **kwargs)

        here.start(registry(hidden, 10))
        await here.until(11)
        (row,) = here.records()
        assert row.status == "failed"
        assert "generator" in (row.error or "")


# -- lost, or not


def until_told(run: JobRun) -> None:
    """Waits in a thread until the run is told that its term ends."""
    deadline = time.monotonic() + LIMIT
    with suppress(LeadershipLost):
        while time.monotonic() < deadline:
            run.check()
            time.sleep(0.01)


@virtual
async def test_the_loss_of_another_lease_is_a_failure() -> None:
    """A job that holds a lease of its own, and loses that, has raised; its term goes on."""
    async with world() as here:

        async def job() -> None:
            raise LeadershipLost("another", "somebody", 1, "expired")

        here.start(registry(job, 10, rerun_lost=True))
        await here.until(11)
        (row,) = here.records()
        assert row.status == "failed"


@pytest.mark.parametrize("rerun_lost", [True, False])
@virtual
async def test_a_coroutine_that_swallows_the_end_of_its_term_is_lost(rerun_lost: bool) -> None:
    """A run that swallowed its cancellation and returned is lost: nobody knows how far it came."""
    async with world() as here:

        async def job() -> None:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(30)

        process = here.start(registry(job, 10, rerun_lost=rerun_lost))
        await here.until(15)
        await process.end()
        (row,) = here.records()
        assert row.status == ("queued" if rerun_lost else "lost")


async def test_a_thread_that_completes_while_its_lease_is_kept_has_succeeded() -> None:
    """The term ends in order, and waits for the thread: what it did is done, and is not to be done again."""
    server, started, loop, jobs = MemoryServer(), asyncio.Event(), asyncio.get_running_loop(), JobRegistry()

    @jobs.every(1, rerun_lost=True)
    def job(run: JobRun) -> None:
        loop.call_soon_threadsafe(started.set)
        until_told(run)

    async with leadership(MemoryStore(server), lease_duration=10) as lead:
        running = asyncio.create_task(jobs.run(lead))
        await started.wait()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
    rows = server.ledgers["default"].history("job")
    assert rows[0].status == "succeeded"


@pytest.mark.parametrize("kind", ["coroutine", "generator"])
async def test_a_thread_that_gives_back_what_is_still_to_be_run_has_not_completed(kind: str) -> None:
    """If the thread returned a coroutine or a generator, nothing of the job ran: the run is lost."""
    server, started, ran = MemoryServer(), asyncio.Event(), list[int]()
    loop, jobs = asyncio.get_running_loop(), JobRegistry()

    async def work() -> None:
        ran.append(1)

    @jobs.every(1)
    def job(run: JobRun) -> object:
        loop.call_soon_threadsafe(started.set)
        until_told(run)
        return work() if kind == "coroutine" else generator()

    async with leadership(MemoryStore(server), lease_duration=10) as lead:
        running = asyncio.create_task(jobs.run(lead))
        await started.wait()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
    assert ([row.status for row in server.ledgers["default"].history("job")], ran) == (["lost"], [])


@virtual
async def test_a_coroutine_behind_a_plain_function_that_swallows_the_end_of_its_term_is_lost() -> None:
    """As any other coroutine, though a thread has made it."""
    async with world() as here:

        async def work() -> None:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(30)

        def job() -> object:
            return work()

        process = here.start(registry(job, 10))
        await here.until(15)
        await process.end()
        (row,) = here.records()
        assert row.status == "lost"


@pytest.mark.parametrize("rerun_lost", [True, False])
@virtual
async def test_a_leader_killed_while_a_run_waits_for_a_thread_leaves_it_queued(rerun_lost: bool) -> None:
    """If the run has not begun, the ledger says so at once."""
    start = threading.Thread.start

    def refusing(thread: threading.Thread) -> None:
        if thread.name == "aiolease job job":
            raise RuntimeError("can't start new thread")
        start(thread)

    attempts: list[int] = []

    def job(run: JobRun) -> None:
        attempts.append(run.attempt)

    async with world() as here:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading.Thread, "start", refusing)
            process = here.start(registry(job, 400, rerun_lost=rerun_lost))
            await here.until(500)
            assert here.rows() == ["400 queued"]
            await process.kill()
        here.start(registry(job, 400, rerun_lost=rerun_lost))
        await here.until(600)
        assert (here.rows(), attempts) == (["400 succeeded"], [1])


async def test_a_thread_left_behind_counts() -> None:
    """It is one of those that the registry may have."""
    jobs, store, go_on, begun = JobRegistry(max_threads=2), MemoryStore(), threading.Event(), list[str]()

    def work(run: JobRun) -> None:
        begun.append(run.job)
        go_on.wait(LIMIT)

    for name in "abcd":
        jobs.every(0.1, name=name)(work)
    ticks: list[int] = []

    @jobs.every(0.1)
    async def light() -> None:
        ticks.append(1)

    try:
        async with a_term(jobs, store, **SHORT):
            await until(lambda: len(begun) == 2)
        ran = len(ticks)
        async with a_term(jobs, store, **SHORT):
            await until(lambda: len(ticks) > ran + 3)
        assert len(begun) == 2
    finally:
        go_on.set()


@virtual
async def test_a_lost_run_says_why(log: list[Message]) -> None:
    """In the ledger, and in the log."""
    async with world() as here:
        first = here.start(registry(Work(50), 10))
        await here.until(15)
        first.store.down = True
        await here.until(60)
        first.store.down = False
        assert any(
            line.startswith("'job' was lost with term 1 (holder ") and line.endswith("): expired")
            for line in lines(log, "WARNING")
        )
        second = here.start(registry(Work(50), 1000, name="other"))
        await here.until(80)
        await second.end()
    async with world() as here:
        process = here.start(registry(Work(50), 10))
        await here.until(15)
        await process.end()
        (row,) = here.records()
        assert (row.status, row.error) == ("lost", "lost with term 1: the term was ended")


@virtual
async def test_what_a_job_that_is_gone_has_left_is_closed_after_a_day(log: list[Message]) -> None:
    """Queued or running: nobody begins it, and nobody would ever say so."""
    async with world() as here:
        ledger = here.server.ledgers["default"]
        for name, age in (("old", timedelta(days=2)), ("young", timedelta(hours=23))):
            then = START - age
            ledger.jobs[name] = JobRecord(
                job=name, schedule="every 10s", timezone="", known_since=then, schedule_since=then, high_tick=then
            )
            for number, status in enumerate(("queued", "running")):
                tick = then - timedelta(minutes=number)
                record = RunRecord(job=name, tick=tick, token=0, holder="old", status="queued")
                ledger.runs[name, tick] = record if status == "queued" else replace(record, status="running")
        here.start(registry(Work(), 10))
        await here.until(60)
        assert {(run.status, run.error) for run in ledger.history("old")} == {
            ("lost", "no leader has had this job for a day"),
            ("lost", "lost with term 0: no leader has had this job for a day"),
        }
        assert {run.status for run in ledger.history("young")} == {"queued", "running"}
        assert [line for line in lines(log, "WARNING") if line.startswith("closed 2 runs of jobs that no leader has")]
        await here.until(2.5 * 3600)  # within the same term
        assert {run.status for run in ledger.history("young")} == {"lost"}


@virtual
async def test_a_backlog_of_a_job_that_is_gone_is_closed_whole() -> None:
    """Page after page; and an attempt that has not begun is not the one that was lost."""
    async with world() as here:
        ledger, then = here.server.ledgers["default"], START - timedelta(days=2)
        ledger.jobs["old"] = JobRecord(
            job="old", schedule="every 10s", timezone="", known_since=then, schedule_since=then, high_tick=then
        )
        for number in range(100):
            tick = then - timedelta(minutes=number)
            ledger.runs["old", tick] = RunRecord(
                job="old", tick=tick, token=0, holder="old", status="queued", attempt=2
            )
        here.start(registry(Work(), 600))
        await here.until(3600)
        assert {(run.status, run.attempt) for run in ledger.history("old")} == {("lost", 1)}
