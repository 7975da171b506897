"""Jobs among each other: failures, timeouts, overlap and places."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aiolease import JobRegistry, JobRun
from tests.jobs.worlds import Diary, Observed, a_term, memory, seconds
from tests.virtual import failures, lines, virtual

if TYPE_CHECKING:
    from loguru import Message


@virtual
async def test_a_job_that_raises_hurts_no_other(log: list[Message]) -> None:
    """A job that raises is logged with its traceback, and it and all others run at their next ticks."""
    jobs, observed = JobRegistry(), Observed()

    @jobs.every(10)
    async def bad() -> None:
        raise ValueError("no such {customer}")

    @jobs.every(10)
    async def good() -> None:
        await asyncio.sleep(1)

    async with a_term(jobs, memory(), on_event=observed):
        await asyncio.sleep(35)
    assert observed.started("bad") == observed.started("good") == [10, 20, 30]
    assert [each.status for each in observed.finished("good")] == ["succeeded"] * 3
    said = [
        f"'bad' failed: ValueError: no such {{customer}} (tick 2026-01-01 00:00:{tick} UTC)" for tick in (10, 20, 30)
    ]
    assert lines(log, "ERROR") == said
    for failure in [each.record for each in log if each.record["level"].name == "ERROR"]:
        assert failure["exception"] is not None
        assert failure["exception"].traceback is not None
        assert failure["extra"]["lease"] == "default"
        assert failure["extra"]["token"] == 1


@virtual
async def test_what_is_no_exception_is_not_lost_either(log: list[Message]) -> None:
    """A job that ends with another kind of error, a framework's own say, is reported like one that raises."""
    jobs, observed = JobRegistry(), Observed()
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    class Odd(BaseException):
        pass

    @jobs.every(10)
    async def bad() -> None:
        raise Odd("strange")

    async with a_term(jobs, memory(), on_event=observed):
        await asyncio.sleep(25)
    assert [each.status for each in observed.finished("bad")] == ["failed", "failed"]
    assert failures(log) == ["'bad' failed: Odd: strange"] * 2
    gc.collect()
    assert complaints == []


@virtual
async def test_a_run_is_logged_with_its_duration(log: list[Message]) -> None:
    """A run that succeeded is one line at INFO, in words that people alert on."""
    jobs = JobRegistry()

    @jobs.every(10)
    async def debt_aging() -> None:
        await asyncio.sleep(0.42)

    async with a_term(jobs, memory()):
        await asyncio.sleep(15)
    assert [line for line in lines(log, "INFO") if "debt_aging" in line] == ["ran 'debt_aging' in 0.42 s"]


@virtual
async def test_a_cancellation_of_its_own_making_is_a_failure() -> None:
    """A job that awaits a task which somebody cancels has failed; it was not cancelled, and runs at the next tick."""
    jobs, observed = JobRegistry(), Observed()

    @jobs.every(10)
    async def job() -> None:
        task = asyncio.create_task(asyncio.sleep(5))
        asyncio.get_running_loop().call_later(1, task.cancel)
        await task

    async with a_term(jobs, memory(), on_event=observed):
        await asyncio.sleep(25)
    assert observed.started("job") == [10, 20]
    assert [each.status for each in observed.finished("job")] == ["failed", "failed"]
    assert isinstance(observed.finished("job")[0].error, asyncio.CancelledError)


@virtual
async def test_a_run_that_takes_too_long_has_failed(log: list[Message]) -> None:
    """After its `timeout` a run is cancelled, has failed, and the job runs at its next tick."""
    jobs, observed, diary = JobRegistry(), Observed(), Diary()

    @jobs.every(10, timeout=5)
    async def job() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            diary.note("cancelled")

    async with a_term(jobs, memory(), on_event=observed):
        await asyncio.sleep(29)
    assert diary.when("cancelled") == [15, 25]
    assert [each.status for each in observed.finished("job")] == ["failed", "failed"]
    assert failures(log) == ["'job' failed: TimeoutError: it took longer than 5 s"] * 2


@virtual
async def test_a_run_that_swallows_its_timeout_has_failed_too() -> None:
    """A run that was cancelled by its `timeout` did not succeed, even if it returns as though nothing had happened."""
    jobs, observed = JobRegistry(), Observed()

    @jobs.every(10, timeout=5)
    async def job() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(100)

    async with a_term(jobs, memory(), on_event=observed):
        await asyncio.sleep(19)
    assert [each.status for each in observed.finished("job")] == ["failed"]


@virtual
async def test_a_timeout_inside_a_job_is_the_jobs_own(log: list[Message]) -> None:
    """A `TimeoutError` that the job raises itself is reported as it is, not as the job's `timeout`."""
    jobs = JobRegistry()

    @jobs.every(10, timeout=5)
    async def job() -> None:
        async with asyncio.timeout(1):
            await asyncio.sleep(100)

    async with a_term(jobs, memory()):
        await asyncio.sleep(15)
    assert failures(log) == ["'job' failed: TimeoutError"]


@virtual
async def test_a_tick_beside_a_running_job_is_skipped(log: list[Message]) -> None:
    """By default a job does not run beside itself: a tick that meets its last run is skipped, with two WARNINGs."""
    jobs, observed = JobRegistry(), Observed()

    @jobs.every(10)
    async def slow() -> None:
        await asyncio.sleep(25)

    async with a_term(jobs, memory(), on_event=observed):
        await asyncio.sleep(45)
    assert observed.started("slow") == [10, 40]
    assert lines(log, "WARNING")[:2] == [
        "skipped 'slow', 1 tick since 2026-01-01 00:00:20: its last run has not ended",
        (
            "skipped 'slow', 2 ticks since 2026-01-01 00:00:20: its last run has not ended "
            "(until 2026-01-01 00:00:30, and now no more)"
        ),
    ]


@virtual
async def test_a_job_may_run_beside_itself() -> None:
    """With ``overlap="allow"`` every tick starts a run."""
    jobs, observed = JobRegistry(), Observed()

    @jobs.every(10, overlap="allow")
    async def slow() -> None:
        await asyncio.sleep(25)

    async with a_term(jobs, memory(), on_event=observed):
        await asyncio.sleep(45)
    assert observed.started("slow") == [10, 20, 30, 40]
    assert not observed.skipped("slow")


@virtual
async def test_no_more_runs_at_once_than_allowed() -> None:
    """`max_running` runs go on at once; the others wait for their turn, and start in order."""
    jobs, observed, diary = JobRegistry(max_running=2), Observed(), Diary()
    running = most = 0

    async def job(run: JobRun) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        diary.note(run.job)
        await asyncio.sleep(9)
        running -= 1

    for name in "abcde":
        jobs.every(20, name=name)(job)
    async with a_term(jobs, memory(), on_event=observed):
        await asyncio.sleep(59)
    assert most == 2
    assert [(round(moment), name) for moment, name in diary.lines] == [
        *((20, "a"), (20, "b"), (29, "c"), (29, "d"), (38, "e")),
        *((40, "a"), (47, "b"), (49, "c"), (56, "d")),
    ]
    assert [seconds(each.since) for each in observed.skipped("e")] == [40]
    assert not observed.skipped("d")


@virtual
async def test_a_run_that_waits_counts_as_running() -> None:
    """A tick of a job that waits for its turn is skipped like one of a job that runs."""
    jobs, observed = JobRegistry(max_running=1), Observed()

    @jobs.every(10)
    async def long() -> None:
        await asyncio.sleep(35)

    @jobs.every(10)
    async def short() -> None: ...

    async with a_term(jobs, memory(), on_event=observed):
        await asyncio.sleep(46)
    assert observed.started("short") == [10]
    assert [seconds(each.since) for each in observed.skipped("short")] == [20, 30, 40]
