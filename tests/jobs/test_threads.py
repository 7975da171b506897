"""Jobs in threads: in real time, with a lease of half a second."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from aiolease import JobRegistry, JobRun, LeadershipLost, current_leadership
from aiolease.testing import MemoryStore
from tests.jobs.worlds import Observed, a_term
from tests.virtual import LIMIT, SHORT, failures, lines, until

if TYPE_CHECKING:
    from loguru import Message


variable: ContextVar[str] = ContextVar("variable", default="unset")


async def test_a_plain_function_runs_in_a_thread(log: list[Message]) -> None:
    """A ``def`` job runs beside the loop, with the term's context: context variables and `current_leadership()`."""
    jobs, seen, observed = JobRegistry(), [], Observed()

    @jobs.every(0.1)
    def job(run: JobRun) -> str:
        seen.append((threading.get_ident(), variable.get(), current_leadership(), run.leadership, run.job))
        run.check()
        return "ignored"

    @jobs.every(0.1)
    def bad() -> None:
        raise ValueError("in a thread")

    variable.set("set by the caller")
    async with a_term(jobs, MemoryStore(), on_event=observed, **SHORT) as lead:
        await until(lambda: len(observed.finished("job")) >= 2 and observed.finished("bad"))
    thread, *rest = seen[0]
    assert thread != threading.get_ident()
    assert rest == ["set by the caller", lead, lead, "job"]
    assert observed.finished("job")[0].status == "succeeded"
    assert "'bad' failed: ValueError: in a thread" in failures(log)


async def test_a_thread_does_not_hold_up_the_loop() -> None:
    """While ``def`` jobs block in their threads, the loop and the other jobs go on, however many threads there are."""
    jobs, observed, go_on = JobRegistry(max_threads=50), Observed(), threading.Event()
    blocked = [f"blocked-{number}" for number in range(50)]
    for name in blocked:
        jobs.every(0.1, name=name)(lambda: go_on.wait(LIMIT))

    @jobs.every(0.05)
    async def job() -> None: ...

    try:
        async with a_term(jobs, MemoryStore(), on_event=observed, lease_duration=10):
            await until(lambda: all(observed.started(name) for name in blocked))
            ran = len(observed.finished("job"))
            await until(lambda: len(observed.finished("job")) > ran + 2)
            assert not any(observed.finished(name) for name in blocked)
            go_on.set()
            await until(lambda: all(observed.finished(name) for name in blocked))
    finally:
        go_on.set()


async def test_a_thread_learns_that_the_lease_is_lost() -> None:
    """`run.check()` in a ``def`` job raises `LeadershipLost` from the loss on, with the true reason."""
    jobs, store, raised = JobRegistry(), MemoryStore(), []
    started = threading.Event()

    @jobs.every(0.1)
    def job(run: JobRun) -> None:
        started.set()
        for _ in range(int(LIMIT / 0.01)):
            time.sleep(0.01)
            try:
                run.check()
            except LeadershipLost as error:
                raised.append(error)
                if len(raised) == 10:  # long after the job was cancelled
                    raise

    async with a_term(jobs, store, **SHORT) as lead:
        await until(started.is_set)
        store.down = True
        await until(lambda: len(raised) == 10)
    assert {(error.reason, error.holder, error.token) for error in raised} == {("expired", lead.holder, 1)}


async def test_a_thread_learns_of_its_timeout(log: list[Message]) -> None:
    """`run.check()` in a ``def`` job raises `TimeoutError` after the job's `timeout`, and the run has failed."""
    jobs, observed, raised = JobRegistry(), Observed(), []

    @jobs.every(0.1, timeout=0.1)
    def job(run: JobRun) -> None:
        for _ in range(int(LIMIT / 0.01)):
            time.sleep(0.01)
            try:
                run.check()
            except TimeoutError:
                raised.append("told")
                raise

    async with a_term(jobs, MemoryStore(), on_event=observed, lease_duration=10):
        await until(lambda: observed.finished("job"))
    assert raised
    assert observed.finished("job")[0].status == "failed"
    assert "'job' failed: TimeoutError: it took longer than 0.1 s" in failures(log)


async def test_a_thread_that_does_not_end_is_left_behind(log: list[Message]) -> None:
    """A thread that outlives its term by one more lease is left behind; beside it the job does not start again."""
    jobs, store, observed = JobRegistry(), MemoryStore(), Observed()
    go_on, started = threading.Event(), threading.Event()
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    @jobs.every(0.1)
    def stuck(run: JobRun) -> None:
        started.set()
        go_on.wait(LIMIT)
        run.check()

    @jobs.every(0.1)
    async def other() -> None: ...

    try:
        async with a_term(jobs, store, on_event=observed, **SHORT) as lead:
            await until(started.is_set)
            store.down = True
            await until(lambda: not lead.is_leader)
            lost_at = time.monotonic()
            await until(lambda: observed.finished("stuck"))
            assert 0.5 < time.monotonic() - lost_at < 1.5
        assert any("thread of 'stuck'" in line for line in lines(log, "CRITICAL"))
        store.down = False
        async with a_term(jobs, store, on_event=observed, **SHORT):
            before = len(observed.finished("other"))
            await until(lambda: len(observed.finished("other")) >= before + 4)
            assert len(observed.started("stuck")) == 1
            assert observed.skipped("stuck")
            go_on.set()
            await until(lambda: len(observed.started("stuck")) > 1)
    finally:
        go_on.set()
    gc.collect()
    assert complaints == []
