"""Many jobs, several processes, and jobs and surroundings that behave badly."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aiolease import ConfigurationError, JobRegistry, JobRun, leadership
from aiolease.events import BodyStuck, Event
from aiolease.stores import open_store
from aiolease.testing import MemoryStore
from tests.jobs.worlds import Work, registry, world
from tests.virtual import virtual

# -- many


def spread(jobs: JobRegistry, count: int, work: Callable[..., object]) -> None:
    """Jobs whose ticks are spread: each second of a minute, by the number of the job."""
    for number in range(count):
        jobs.cron(f"{number % 60} * * * * *", name=f"job-{number}")(work)


@pytest.mark.parametrize("together", [True, False])
@virtual
async def test_ten_thousand_jobs_cost_few_exchanges(together: bool) -> None:
    """Ticks that fall due together are claimed together, and their ends are written together."""
    async with world() as here:
        jobs, ran = JobRegistry(history=None), Counter[str]()

        async def work(run: JobRun) -> None:
            ran[run.job] += 1

        if together:
            for number in range(10_000):
                jobs.every(60, name=f"job-{number}")(work)
        else:
            spread(jobs, 10_000, work)
        began = time.process_time()
        process = here.start(jobs)
        await here.until(70)
        assert time.process_time() - began < 15
        assert len(ran) == 10_000
        assert set(ran.values()) <= ({1} if together else {1, 2})
        records = [run for run in here.server.ledgers["default"].runs.values() if run.status != "succeeded"]
        assert records == []
        assert process.store.count("record") <= (40 if together else 200)
        assert len(process.store.sent) < 700


@virtual
async def test_a_job_that_raises_among_many() -> None:
    """One job raises at each tick, among others that go on: its rows say why, theirs that they have succeeded."""
    async with world() as here:
        jobs, work = JobRegistry(), Work(3)

        async def bad() -> None:
            await asyncio.sleep(1)
            raise ValueError("x" * 5000)

        jobs.every(10, name="bad")(bad)
        for name in "abc":
            jobs.every(10, name=name)(work)
        here.start(jobs)
        await here.until(38)
        assert here.rows("bad") == ["10 failed", "20 failed", "30 failed"]
        error = here.records("bad")[0].error
        assert error is not None
        assert error.startswith("ValueError: xxx")
        assert len(error) == 1000
        for name in "abc":
            assert here.rows(name) == ["10 succeeded", "20 succeeded", "30 succeeded"]


@virtual
async def test_a_job_that_ignores_its_cancellation_is_recorded() -> None:
    """A run that goes on after its cancellation keeps the lease until it ends; then it is lost, and none ran beside."""
    async with world() as here:
        begun: list[float] = []

        async def stubborn(run: JobRun) -> None:
            begun.append(here.now)
            until = here.now + 20
            while here.now < until:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(until - here.now)

        first = here.start(registry(stubborn, 100))
        await here.until(50)
        here.start(registry(stubborn, 100))
        await here.until(105)
        await first.end()
        assert here.now == pytest.approx(120, abs=0.1)
        assert here.rows()[0] in {"100 lost", "100 succeeded"}
        await here.until(215)
        assert begun == [pytest.approx(100, abs=0.1), pytest.approx(200, abs=0.1)]
        assert here.rows()[1:] == ["200 running"]


# -- on a database


async def test_processes_on_one_file_run_each_tick_once(tmp_path: Path) -> None:
    """In real time, on SQLite: leaders that come and go, and one that breaks off, run no tick twice and lose none."""
    ticks: list[datetime] = []
    options: dict[str, Any] = {"lease_duration": 6.0}

    async def job(run: JobRun) -> None:
        ticks.append(run.tick)

    async with open_store(f"sqlite:///{tmp_path}/jobs.db") as store:
        for leader in range(3):
            serving = asyncio.create_task(registry(job, 0.1, missed="all", overlap="allow").serve(store, **options))
            while len(ticks) < 5 * (leader + 1) and not serving.done():
                await asyncio.sleep(0.01)
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving
        rows = [row for row in await store.history("default", "job") if row.status != "queued"]
    assert len(ticks) == len(set(ticks)) > 10
    gaps = {later - earlier for earlier, later in zip(sorted(ticks), sorted(ticks)[1:], strict=False)}
    assert gaps == {timedelta(seconds=0.1)}
    assert {row.status for row in rows} == {"succeeded"}


@virtual
async def test_jobs_run_once_in_a_term() -> None:
    """Two loops over one ledger in one term would each take the other's runs for lost: the second is refused."""
    jobs, work = JobRegistry(), Work()
    jobs.every(10, name="job")(work)
    async with leadership(MemoryStore()) as lead:
        first = asyncio.create_task(jobs.run(lead))
        await asyncio.sleep(1)
        with pytest.raises(ConfigurationError, match="already"):
            await jobs.run(lead)
        first.cancel()
        await asyncio.wait([first])
        async with asyncio.timeout(30):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(25):
                    await jobs.run(lead)
    assert len(work.ticks) == len(set(work.ticks)) >= 2


# -- what a hostile reader found


@virtual
async def test_a_clean_up_that_raises_does_not_make_a_lost_run_a_failed_one() -> None:
    """A session that is closed under a query raises in the clean-up; the run is lost all the same, and begun again."""
    async with world() as here:
        begun: list[int] = []
        jobs = JobRegistry()

        @jobs.every(100, name="job", rerun_lost=True)
        async def job(run: JobRun) -> None:
            begun.append(run.attempt)
            try:
                await asyncio.sleep(60 if run.attempt == 1 else 0)
            finally:
                if run.attempt == 1:
                    raise OSError("lost connection")

        first = here.start(jobs)
        await here.until(110)
        await first.end()
        here.start(jobs)
        await here.until(180)
        assert begun == [1, 2]
        assert here.rows() == ["100 succeeded #2"]


@virtual
async def test_an_error_that_cannot_be_told_is_a_failure_all_the_same() -> None:
    """An exception whose text raises ends its run as failed, and hurts nobody."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    async with world() as here:
        jobs = JobRegistry()

        @jobs.every(100, name="job")
        async def job() -> None:
            raise Mute

        here.start(jobs)
        await here.until(210)
        assert here.rows() == ["100 failed", "200 failed"]


@virtual
async def test_a_trigger_in_an_outage_costs_no_tick_of_a_backlog() -> None:
    """With `missed="all"` every tick of an outage is run, although somebody triggered the job meanwhile."""
    async with world() as here:
        jobs, work = JobRegistry(), Work()
        jobs.every(100, name="job", missed="all")(work)
        first = here.start(jobs)
        await here.until(110)
        await first.end()
        await here.until(555)
        await here.someone().trigger("default", "job")
        here.start(jobs)
        await here.until(650)
        assert sorted(work.ticks) == pytest.approx([100, 200, 300, 400, 500, 555, 600], abs=0.1)


@virtual
async def test_what_another_registry_runs_is_left_to_it() -> None:
    """A leader without a job leaves its runs alone: the next one that has it begins them again, or calls them lost."""
    async with world() as here:
        jobs, other, work = JobRegistry(), JobRegistry(), Work(50)
        jobs.every(100, name="job", rerun_lost=True)(work)
        other.every(100, name="other")(Work())
        first = here.start(jobs)
        await here.until(110)
        await first.kill()
        second = here.start(other)
        await here.until(190)
        assert here.rows("job") == ["100 running"]
        await second.end()
        work.takes = 0
        here.start(jobs)
        await here.until(195)
        assert work.begun == [(100, 1), (100, 2)]


@virtual
async def test_a_drain_that_a_job_swallows_is_bounded() -> None:
    """A job that swallows its cancellations in a drain is told of, and the lease is not renewed for ever."""
    store, jobs, let_go, events = MemoryStore(), JobRegistry(), asyncio.Event(), list[Event]()

    @jobs.every(10)
    async def stubborn() -> None:
        while not let_go.is_set():
            with suppress(asyncio.CancelledError):
                await let_go.wait()

    async def application() -> None:
        async with jobs.background(store, drain_timeout=1.0, on_event=events.append):
            await asyncio.sleep(25)

    running = asyncio.create_task(application())
    try:
        await asyncio.sleep(100)
        assert [event for event in events if isinstance(event, BodyStuck)]
        renewals = [method for method, _ in store.sent].count("renew")
        await asyncio.sleep(300)
        assert [method for method, _ in store.sent].count("renew") == renewals
    finally:
        let_go.set()
        await running
