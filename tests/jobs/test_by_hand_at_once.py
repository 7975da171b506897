"""What people ask for by hand, two things at once, or much of it (DESIGN rules 34 to 36)."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from aiolease import JobRegistry
from aiolease.stores.records import RunRecord
from tests.jobs.worlds import Work, registry, world
from tests.virtual import START, virtual


def at(moment: float) -> datetime:
    return START + timedelta(seconds=moment)


@pytest.mark.parametrize("before", [False, True])
@virtual
async def test_a_backfill_that_is_asked_for_after_a_cancel_is_not_cancelled(before: bool) -> None:
    """Both are seen at one look; the backfill from before the cancel, if there is one, is what ends."""
    async with world() as here:
        work, someone = Work(), here.someone()
        here.start(registry(work, 100))
        await here.until(10)
        if before:
            await someone.backfill("default", "job", at(-900), at(-500))
        await someone.cancel("default", "job")
        await here.until(10.1)
        await someone.backfill("default", "job", at(-300), at(0))
        await here.until(60)
        assert sorted(work.ticks) == [-300, -200, -100, 0]
        assert here.jobs["job"].cancel_at is None
        assert here.jobs["job"].backfill_since is None


@virtual
async def test_a_rerun_that_is_asked_for_after_a_cancel_is_not_cancelled() -> None:
    async with world() as here:
        work, someone = Work(10_000), here.someone()
        here.start(registry(work, 100, rerun_lost=True))
        await here.until(110)
        await someone.cancel("default", "job")
        await here.until(125)
        work.takes = 1
        await someone.cancel("default", "job")
        await here.until(125.1)
        await someone.rerun("default", "job", at(100))
        await here.until(150)
        assert here.rows() == ["100 succeeded #2"]


@virtual
async def test_one_of_several_long_backfills_is_cancelled() -> None:
    """Its runs do not begin, although those of the others fill what is read at once."""
    async with world() as here:
        jobs, a, b = JobRegistry(history=None), Work(10_000), Work(2)
        for name, work in (("a", a), ("b", b), ("c", a)):
            jobs.every(1000, name=name)(work)
        here.start(jobs)
        for number, name in enumerate("ac"):
            await here.until(5 + 10 * number)
            await here.someone().backfill("default", name, at(-5_000_000), at(0))
        await here.until(25)
        await here.someone().backfill("default", "b", at(-5_000_000), at(0))
        await here.until(45)
        assert len(b.ticks) > 1
        await here.someone().cancel("default", "b")
        await here.until(56)
        count = len(b.ticks)
        await here.until(110)
        assert len(b.ticks) == count
        assert here.jobs["b"].cancel_at is None
        assert all(row.status != "queued" for row in here.records("b"))


@virtual
async def test_a_backfill_of_a_stretch_in_which_a_job_is_paused() -> None:
    """What people ask for is run, the ticks of a pause that goes on as well; `resume` does not run them again."""
    async with world() as here:
        work = Work()
        here.start(registry(work, 10))
        await here.until(15)
        await here.someone().pause("default", "job")
        await here.until(65)
        await here.someone().backfill("default", "job", at(20), at(50))
        await here.until(85)
        assert work.ticks == [10, 20, 30, 40, 50]
        await here.someone().resume("default", "job")
        await here.until(101)
        work.once_each()
        assert work.ticks[-1] == 100


@virtual
async def test_a_success_that_was_to_be_run_again_stays_one() -> None:
    """A rerun by force that is cancelled before it begins: the run that succeeded did so."""
    async with world() as here:
        jobs, work, other = JobRegistry(max_running=1), Work(), Work(10_000)
        jobs.every(100, name="job")(work)
        jobs.every(1000, name="other", overlap="allow")(other)
        here.start(jobs)
        await here.until(105)
        await here.someone().trigger("default", "other")  # it takes the one place
        await here.until(125)
        await here.someone().rerun("default", "job", at(100), force=True)
        await here.until(145)
        assert here.rows() == ["100 queued #2"]
        await here.someone().cancel("default", "job")
        await here.until(165)
        assert here.rows() == ["100 succeeded"]


@virtual
async def test_much_of_what_another_leader_is_to_run_costs_no_endless_reading() -> None:
    """Of two applications on one lease each has many runs by hand waiting: those of this one are found."""
    async with world() as here:
        jobs, work = JobRegistry(history=None), Work(0.001)
        jobs.every(5000, name="job")(work)
        process = here.start(jobs)
        await here.until(10)
        await process.end()
        runs = here.server.ledgers["default"].runs
        for number in range(1500):
            for name in ("job", "other"):
                tick = at(-number - 1)
                runs[name, tick] = RunRecord(
                    job=name, tick=tick, token=1, holder="h", status="queued", request="backfill", not_before=at(5)
                )  # fmt: skip
        here.start(jobs)
        await here.until(60)
        assert len(work.ticks) == 1500


@pytest.mark.parametrize("skipped", [False, True])
@virtual
async def test_a_backfill_over_many_rows_of_a_former_schedule(skipped: bool) -> None:
    """None of the 3,000 rows is of a tick of the schedule; behind them may lie a range of skipped ticks of it."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, 100, history=None))
        await here.until(10)
        await process.end()
        runs = here.server.ledgers["default"].runs
        for number in range(3000):
            tick = at(-3050.5 + number)
            runs["job", tick] = RunRecord(job="job", tick=tick, token=1, holder="h", status="succeeded")
        if skipped:
            runs["job", at(0)] = RunRecord(
                job="job", tick=at(0), token=1, holder="h", status="skipped", tick_from=at(-3500), count=36, error="why"
            )  # fmt: skip
        here.start(registry(work, 100, history=None))
        await here.until(30)
        await here.someone().backfill("default", "job", at(-3300), at(-100))
        await here.until(90)
        assert work.ticks == [float(tick) for tick in range(-3300, 0, 100)]
        if skipped:
            left = [row for row in here.records() if row.status == "skipped"]
            assert [(row.tick, row.tick_from, row.count) for row in left] == [
                (at(-3400), at(-3500), 2),
                (at(0), None, 1),
            ]
