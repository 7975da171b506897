"""Places go round the jobs, a backlog holds up nobody, and nothing begins when it is too old. In virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiolease import JobRegistry, JobRun
from tests import test_jobs
from tests.test_jobs import seconds, virtual
from tests.test_ledger_jobs import Work, registry, world

if TYPE_CHECKING:
    from loguru import Message

log = test_jobs.log


@virtual
async def test_a_backlog_of_one_job_delays_another_by_one_run() -> None:
    """Two places, and a job that falls due each second and takes three: alerts each minute are in time all the same."""
    late: list[float] = []
    async with world() as here:
        jobs = JobRegistry(max_running=2)
        jobs.every(1, name="busy", overlap="allow")(Work(3))

        @jobs.every(60)
        async def alert(run: JobRun) -> None:
            late.append(here.now - seconds(run.tick))

        here.start(jobs)
        await here.until(30 * 60 + 10)
    assert len(late) == 30
    assert max(late) < 3.5


@virtual
async def test_places_go_round_and_each_jobs_oldest_tick_goes_first() -> None:
    """Three jobs with many runs that wait, and one place: each has its turn, and takes its ticks in their order."""
    order: list[tuple[str, float]] = []
    async with world() as here:
        jobs = JobRegistry(max_running=1)

        async def work(run: JobRun) -> None:
            order.append((run.job, seconds(run.tick)))
            await asyncio.sleep(3)

        for name in "abc":
            jobs.every(1, name=name, overlap="allow")(work)
        here.start(jobs)
        await here.until(200)
    for name in "abc":
        ticks = [tick for job, tick in order if job == name]
        assert ticks == sorted(ticks)
        assert len(ticks) > 20
    turns = [job for job, _ in order]
    assert all(set(turns[number : number + 3]) == set("abc") for number in range(0, 60, 3))


@virtual
async def test_what_grew_too_old_while_its_claim_was_under_way_is_not_begun(log: list[Message]) -> None:
    """The answer to a claim was late: how old the tick is, is asked again before the job is called."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, 100, max_age=2))
        await here.until(99.5)
        process.store.delay("record", 3)
        await here.until(120)
        assert work.begun == []
        assert here.rows() == ["100 skipped"]
        assert here.records()[0].error == "more than 2 s late"
        assert [message.record["message"] for message in log if "skipped" in message] == [
            "skipped 'job', 1 tick since 2026-01-01 00:01:40: more than 2 s late"
        ]
        await here.until(201)
        assert work.begun == [(200, 1)]


@virtual
async def test_what_grew_too_old_while_the_answer_to_its_claim_was_lost_is_not_begun() -> None:
    """The ledger says that it runs; it never began, and is skipped, not lost."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, 100, max_age=2))
        await here.until(99.5)
        process.store.lose_reply("record")  # no answer within 5 s
        await here.until(120)
        assert work.begun == []
        assert here.rows() == ["100 skipped"]


@virtual
async def test_a_run_that_ends_while_the_start_of_the_next_is_written_puts_nobody_in_line_twice() -> None:
    """The job is in line no more: its last waiting run is the one that is about to start."""
    begun: list[float] = []

    async def work(run: JobRun) -> None:
        begun.append(seconds(run.tick))
        await asyncio.sleep({10: 21.3, 20: 11}.get(seconds(run.tick), 1))  # the one ends at 31.7, the other at 32

    async with world() as here:
        process = here.start(registry(work, 10, overlap="allow", max_running=2))
        await here.until(1)
        process.store.latency = 0.7
        await here.until(65)
        assert begun == [10, 20, 30, 40, 50, 60]
        assert here.rows()[:5] == [f"{tick} succeeded" for tick in range(10, 60, 10)]
