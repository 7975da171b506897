"""What people ask for: pauses, resumptions and triggers."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from aiolease import JobRegistry
from aiolease.stores.contract import Refused
from aiolease.stores.records import RunRecord
from tests.jobs.worlds import Work, registry, seconds, world
from tests.virtual import virtual


@virtual
async def test_paused_ticks_are_not_missed() -> None:
    """Paused from another process, a job runs no tick and records none; resumed, it starts with its next tick."""
    async with world() as here:
        work = Work()
        leader = here.start(registry(work, missed="all"))
        await here.until(25)
        await here.someone().pause("default", "job")
        await here.until(87)
        assert work.ticks == [10, 20]
        assert leader.store.count("record") == 4 + 1  # and the row of the term
        await here.someone().resume("default", "job")
        await here.until(101)  # a heartbeat later
        assert work.ticks == [10, 20, 90, 100]
        await here.until(125)
        await here.someone().pause("default", "job")
        await here.until(185)
        await leader.kill()
        here.start(registry(work, missed="all"))
        await here.until(245)
        assert max(work.ticks) == 120
        await here.someone().resume("default", "job")
        await here.until(271)
        assert work.ticks[-2:] == [260, 270]
        expected = [10, 20, *range(90, 121, 10), *range(250, 271, 10)]
        assert work.ticks == expected
        assert here.rows() == [f"{tick} succeeded" for tick in expected]


@virtual
async def test_a_pause_holds_from_its_own_moment() -> None:
    """A tick that falls due before the leader has seen the pause is not claimed either; nor is one that it knew of."""
    async with world() as here:
        jobs, work, other = JobRegistry(), Work(), Work()
        jobs.every(7, name="job")(work)
        jobs.every(7, name="other")(other)
        process = here.start(jobs)
        await here.until(27.9)  # the last heartbeat was at 20, the next is at 30; a tick at 28
        await here.someone().pause("default", "job")
        await here.until(40)
        await here.someone().resume("default", "job")
        await here.until(57)
        assert work.ticks[:4] == [7, 14, 21, 42]
        assert other.ticks == [7, 14, 21, 28, 35, 42, 49, 56]
        assert here.rows()[:4] == ["7 succeeded", "14 succeeded", "21 succeeded", "42 succeeded"]
        assert process.observed.skipped("job") == []


@virtual
async def test_a_resume_holds_from_its_own_moment() -> None:
    """The leader sees it at its next heartbeat; a tick that fell due between the two is run then, for its moment."""
    async with world() as here:
        jobs, work = JobRegistry(), Work()
        jobs.every(14, name="job")(work)
        here.start(jobs)
        await here.until(15)
        await here.someone().pause("default", "job")
        await here.until(31)  # the last heartbeat was at 30, the next is at 40
        await here.someone().resume("default", "job")
        await here.until(45)
        assert work.ticks == [14, 42]
        await here.someone().pause("default", "job")
        await here.until(81)
        await here.someone().resume("default", "job")
        await here.until(89)
        assert work.ticks == [14, 42]
        await here.until(91)
        assert work.ticks == [14, 42, 84]


@virtual
async def test_a_pause_that_no_leader_saw_counts() -> None:
    """Ticks of a pause that was over before the next leader came are not missed, those after it are."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, missed="all"))
        await here.until(15)
        await process.end()
        await here.until(25)
        await here.someone().pause("default", "job")
        await here.until(55)
        await here.someone().resume("default", "job")
        await here.until(75)
        here.start(registry(work, missed="all"))
        await here.until(85)
        assert work.ticks == [10, 60, 70, 80]


@virtual
async def test_a_resumption_after_a_tick_that_is_still_lined_up() -> None:
    """A tick that fell due in a pause, during a slow exchange behind which the pause is found over, is not missed."""
    async with world() as here:
        jobs, work, other = JobRegistry(), Work(), Work()
        jobs.every(10, name="job")(work)
        jobs.every(28, name="other")(other)
        await here.until(2)
        process = here.start(jobs)
        await here.until(21)
        await here.someone().pause("default", "job")
        await here.until(23)  # it was seen at 22
        process.store.latency = 4.8  # the claim of 28 is answered at 32.8, and a reading follows
        await here.until(31)
        await here.someone().resume("default", "job")
        await here.until(38)
        process.store.latency = 0
        await here.until(65)
        assert (work.ticks, other.ticks) == ([10, 20, 40, 50, 60], [28, 56])


@virtual
async def test_a_trigger_runs_at_the_next_heartbeat() -> None:
    """A trigger is a run of its own, whose tick is the moment of the request; several before it is seen are one."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, 1200))
        await here.until(31.5)
        asked = await here.someone().trigger("default", "job")
        await asyncio.sleep(2)
        assert await here.someone().trigger("default", "job") == asked
        await here.until(42)
        assert work.begun == [(31.5, 1)]
        assert here.rows() == ["31.5 succeeded"]
        assert here.jobs["job"].high_tick is None
        assert here.jobs["job"].requested_at is None
        assert process.store.count("record") == 2 + 1  # and the row of the term
        await here.until(50)
        await here.someone().trigger("default", "job")
        await here.until(61)
        assert work.ticks == [31.5, 50]
        await process.end()
        await here.someone().trigger("default", "job")
        here.start(registry(work, 1200))
        await here.until(62)
        assert work.ticks == [31.5, 50, 61]
        await here.until(1201)
        assert work.ticks[-1] == 1200


@pytest.mark.parametrize(("in_the_way", "microseconds"), [("another refusal", 0), ("a row", 1), ("two rows", 2)])
@virtual
async def test_a_trigger_has_the_tick_of_its_request_unless_a_row_is_there(in_the_way: str, microseconds: int) -> None:
    """A clock that was set back may show a moment twice: then the run is a microsecond later; but not without need."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, 1000))
        await here.until(5)
        tick = await process.store.trigger("default", "job")
        runs = here.server.ledgers["default"].runs
        for number in range(microseconds):
            there = tick + timedelta(microseconds=number)
            runs["job", there] = RunRecord(job="job", tick=there, token=1, holder="another", status="succeeded")
        if in_the_way == "another refusal":
            process.store.fail("record", Refused())
        await here.until(60)
        assert work.ticks == [seconds(tick + timedelta(microseconds=microseconds))]


@virtual
async def test_a_trigger_waits_for_a_place() -> None:
    """A triggered run, too, is queued while as many runs go on as may."""
    async with world() as here:
        jobs, long, work = JobRegistry(max_running=1), Work(50), Work()
        jobs.every(100, name="long")(long)
        jobs.every(1200, name="job")(work)
        here.start(jobs)
        await here.until(105)
        await here.someone().trigger("default", "job")
        await here.until(125)
        assert here.rows() == ["105 queued"]
        await here.until(155)
        assert here.rows() == ["105 succeeded"]
        assert work.begun == [(105, 1)]


@virtual
async def test_a_trigger_obeys_overlap_and_ignores_pause() -> None:
    """Beside a run that goes on a trigger is skipped, or allowed; a paused job is run when it is triggered."""
    async with world() as here:
        jobs, skip, allow, paused = JobRegistry(), Work(40), Work(40), Work()
        jobs.every(100, name="skip")(skip)
        jobs.every(100, name="allow", overlap="allow")(allow)
        jobs.every(100, name="paused")(paused)
        process = here.start(jobs)
        await here.until(99)
        await here.someone().pause("default", "paused")
        await here.until(105)
        for name in ("skip", "allow", "paused"):
            await here.someone().trigger("default", name)
        await here.until(116)
        assert (skip.ticks, allow.ticks, paused.ticks) == ([100], [100, 105], [105])
        assert here.rows("skip") == ["100 running", "105 skipped 1"]
        assert [seconds(each.since) for each in process.observed.skipped("skip")] == [105]
        assert here.records("skip")[1].error
        await here.until(210)
        assert paused.ticks == [105]
        assert here.jobs["paused"].high_tick is None


@pytest.mark.parametrize("moment", [20.0, 30.0, 37.0], ids=str)
@pytest.mark.parametrize("overlap", ["skip", "allow"])
@virtual
async def test_a_trigger_at_the_moment_of_a_tick(moment: float, overlap: Any) -> None:
    """Asked for at the very moment of a tick, a run is that tick's, or another's: nothing stands still over it."""
    async with world() as here:
        work, someone = Work(), here.someone()

        async def trigger() -> None:
            await asyncio.sleep(moment)
            await someone.trigger("default", "job")

        asking = asyncio.create_task(trigger())
        process = here.start(registry(work, overlap=overlap))
        await here.until(65)
        await asking
        work.once_each()
        skipped = [seconds(each.since) for each in process.observed.skipped("job")]
        assert {10, 20, 30, 40, 50, 60} <= {*work.ticks, *skipped}
        assert moment in work.ticks
        assert {40, 50, 60} <= set(work.ticks)
        assert here.jobs["job"].requested_at is None
        assert process.store.count("record") < 30
