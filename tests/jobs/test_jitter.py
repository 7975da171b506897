"""Jitter: each tick starts late by an amount that is fixed for lease, job and tick (DESIGN rule 37)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolease import JobRegistry, JobRun
from aiolease._jobs.jitter import delayed, reached
from aiolease._jobs.job import Job
from aiolease._jobs.schedule import Cron, Every, Schedule, ticks_between
from aiolease.events import RunStarted
from tests.jobs.worlds import Work, registry, world
from tests.virtual import START, virtual


def job(jitter: float, schedule: Schedule | None = None, name: str = "job") -> Job:
    return Job(name=name, function=print, schedule=schedule or Every(60), argument=None, jitter=jitter)


def test_a_delay_is_fixed_for_lease_job_and_tick() -> None:
    """It is the same in every process, below the jitter, and another for another lease, job or tick."""
    delays = {
        delayed(job(30, name=name), lease, START + timedelta(minutes=minute)) - START - timedelta(minutes=minute)
        for lease in ("a", "b")
        for name in ("job", "other")
        for minute in range(50)
    }
    assert len(delays) == 200
    assert timedelta() <= min(delays) < timedelta(seconds=2)
    assert timedelta(seconds=28) < max(delays) < timedelta(seconds=30)
    assert delayed(job(30), "a", START) == START + timedelta(seconds=6.80617)
    assert delayed(job(0), "a", START) == START


@given(
    jitter=st.floats(0, 600),
    after=st.floats(0, 3000),
    left=st.floats(0, 2000),
    schedule=st.sampled_from([Every(60), Every(601), Cron("* * * * *"), Cron("*/7 * * * * *")]),
)
def test_ticks_are_reached_in_their_order(jitter: float, after: float, left: float, schedule: Schedule) -> None:
    """What is reached is due by its delay, with all before it; and no tick waits longer than the jitter."""
    it, since, now = job(jitter, schedule), START + timedelta(seconds=after), START + timedelta(seconds=after + left)
    until = reached(it, "default", since, now)
    assert until <= now
    for tick in ticks_between(schedule, since, until):
        assert delayed(it, "default", tick) <= now
    following = schedule.next_after(max(until, since))
    assert following is not None
    assert following > now or delayed(it, "default", following) > now
    assert following + timedelta(seconds=jitter) > now


@virtual
async def test_ticks_start_late_by_their_jitter_in_every_term() -> None:
    """No earlier, whoever leads; `RunStarted.late` counts from the delayed moment; a trigger is not delayed."""
    async with world() as here:
        work = Work()
        jobs = registry(work, 100, jitter=60)
        process = here.start(jobs)
        it = jobs.registered["job"]
        for number in range(1, 6):
            tick = START + timedelta(seconds=100 * number)
            due = (delayed(it, "default", tick) - START).total_seconds()
            await here.until(due - 0.01)
            assert 100 * number not in work.ticks
            await here.until(due + 0.01)
            assert work.ticks[-1] == 100 * number
            if number == 3:
                await process.end()
                process = here.start(registry(work, 100, jitter=60))
        started = [each for each in process.observed.events if isinstance(each, RunStarted)]
        assert all(each.late < 0.01 for each in started)
        work.once_each()
        await here.until(605)
        asked = await here.someone().trigger("default", "job")
        await here.until(616)
        assert (asked - START).total_seconds() in work.ticks


@pytest.mark.parametrize("missed", ["once", "all", "skip"])
@virtual
async def test_no_tick_is_lost_or_doubled_with_jitter(missed: Any) -> None:
    """Of a job whose jitter is longer than the time between its ticks, and whose leader is gone for a while, too."""
    async with world() as here:
        work = Work(3)

        def jobs() -> JobRegistry:
            made = JobRegistry(history=None)
            made.cron("* * * * *", name="job", missed=missed, jitter=150)(work)
            return made

        process = here.start(jobs())
        await here.until(1000)
        await process.end()
        await here.until(1500)
        here.start(jobs())
        await here.until(3000)
        work.once_each()
        covered: list[float] = []
        for row in here.records():
            first = ((row.tick_from or row.tick) - START).total_seconds()
            covered += [first + 60 * number for number in range(row.count or 1)]
        assert covered == [60.0 * number for number in range(1, len(covered) + 1)]
        assert covered[-1] >= 2800


@pytest.mark.parametrize("missed", ["once", "all", "skip"])
@virtual
async def test_a_start_that_is_delayed_is_not_late_for_that(missed: Any) -> None:
    """A tick grows old from its start on: a jitter above `max_age`, and above two leases, makes none too old."""
    async with world() as here:
        work = Work()
        here.start(registry(work, 2400, jitter=2300, max_age=60, missed=missed))
        await here.until(14_350)
        assert work.ticks == [2400, 4800, 7200, 9600, 12_000]
        assert here.rows() == [f"{tick:g} succeeded" for tick in work.ticks]


@virtual
async def test_a_delayed_start_that_nobody_was_there_for_is_too_late_after_max_age() -> None:
    """Where the leader comes back within `max_age` of the delayed start the tick is run, and else skipped."""
    async with world() as here:
        work = Work()
        it = registry(work, 2400, jitter=2300, max_age=60).registered["job"]
        ticks = [START + timedelta(seconds=tick) for tick in (2400, 4800)]
        starts = [(delayed(it, "default", tick) - START).total_seconds() for tick in ticks]
        process = here.start(registry(work, 2400, jitter=2300, max_age=60))
        for start, late in zip(starts, (50, 70), strict=True):
            await here.until(start - 1)
            await process.end()
            await here.until(start + late)
            process = here.start(registry(work, 2400, jitter=2300, max_age=60))
        await here.until(starts[1] + 80)
        assert here.rows() == ["2400 succeeded", "4800 skipped 1"]


@virtual
async def test_a_delayed_start_does_not_use_up_the_time_of_retries() -> None:
    """`max_age` counts from the start that `jitter` has delayed, for retries as for the first attempt."""
    async with world() as here:
        tries: list[float] = []

        async def job(run: JobRun) -> None:
            tries.append(here.now)
            raise ValueError("no")

        here.start(registry(job, 2400, jitter=2300, max_age=60, retries=1, backoff=20))
        await here.until(4790)
        assert len(tries) == 2
