"""Ticks beside a running run, and runs that wait for a place."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from aiolease import JobRun, StoreUnavailable
from aiolease.events import RunStarted
from tests.jobs.worlds import Line, Observed, Work, four, registry, seconds, world
from tests.virtual import START, lines, virtual

if TYPE_CHECKING:
    from loguru import Message


@virtual
async def test_a_tick_beside_a_running_one_is_a_row(log: list[Message]) -> None:
    """With ``overlap="skip"`` ticks beside a run are one row that grows, and why; the log has its start and end."""
    async with world() as here:
        work = Work(45)
        process = here.start(registry(work))
        await here.until(25)
        assert here.rows() == ["10 running", "20 skipped 1"]
        await here.until(65)
        assert work.ticks == [10, 60]
        assert here.rows() == ["10 succeeded", "50 skipped 4", "60 running"]
        (skipped,) = [row for row in here.records() if row.status == "skipped"]
        assert (skipped.error, seconds(skipped.tick_from or START)) == ("its last run has not ended", 20)
        assert sum(each.count for each in process.observed.skipped("job")) == 4
        assert [line.partition(": ")[0] for line in lines(log, "WARNING") if "has not ended" in line] == [
            "skipped 'job', 1 tick since 2026-01-01 00:00:20",
            "skipped 'job', 4 ticks since 2026-01-01 00:00:20",
        ]


@virtual
async def test_ticks_that_were_put_off_are_not_claimed_ahead_of_a_clock_that_went_back(log: list[Message]) -> None:
    """Found by the simulation, seed 81003551: the job was set aside, since its row is ahead of the clock each time."""
    async with world() as here:
        work = Work(200)
        process = here.start(registry(work, 2))
        await here.until(41)
        process.store.delay("record", 3)
        await here.until(52)
        here.step(-15)
        await here.until(60)
        process.store.delay("record", 3)
        await here.until(199)
        assert not any("set aside" in message for message in log)
        assert not any("could not write" in line for line in lines(log, "WARNING"))
        ticks = sum(row.count or 1 for row in here.records())
        assert ticks > 80


@virtual
async def test_skipped_ticks_that_only_lengthen_a_row_cost_no_writing_of_their_own() -> None:
    """A job each second that takes 99.5: beside its claim and its end it costs a first skip, and one per heartbeat."""
    async with world() as here:
        process = here.start(registry(Work(99.5), 1))
        await here.until(2.5)
        before = process.store.count("record")
        await here.until(101.5)
        assert process.store.count("record") - before <= 12  # one in each heartbeat of 10 s, and the end of the run
        assert here.rows() == ["1 succeeded", "100 skipped 99", "101 running"]


@virtual
@pytest.mark.parametrize("missed", ["once", "all", "skip"])
async def test_ticks_that_were_put_off_are_no_backlog(missed: Any) -> None:
    """A job's own slowness is overlap, whatever is done with missed ticks; in a drain they are recorded, too."""
    async with world() as here:
        work = Work(35)
        jobs = registry(work, 1, missed=missed)
        async with jobs.background(here.someone(), drain_timeout=5):
            await here.until(120)
        assert work.ticks == [1, 37, 73, 109]
        assert here.rows()[:6] == [
            *("1 succeeded", "36 skipped 35", "37 succeeded", "72 skipped 35", "73 succeeded", "108 skipped 35")
        ]
        assert here.rows()[6] == "109 lost"
        [last] = here.rows()[7:]
        assert last in {"119 skipped 10", "120 skipped 11"}


@virtual
async def test_a_row_of_skipped_ticks_goes_on_over_a_reading(log: list[Message]) -> None:
    """The ledger is read anew every ten seconds, since another job's final commits meet a conflict: it is one row."""
    async with world() as here:
        work = Work(300)
        jobs = registry(work, 1)

        @jobs.every(10, rerun_lost=True)
        async def unlucky(run: JobRun) -> None:
            process.store.fail("commit", StoreUnavailable("memory", "deadlock"))
            async with run.transaction(final=True):
                pass

        process = here.start(jobs)
        await here.until(280)
        assert len([row for row in here.rows() if "skipped" in row]) == 1
        assert not [line for line in lines(log, "WARNING") if "and now no more" in line]


@virtual
async def test_what_falls_due_when_the_run_has_ended_is_run_though_ticks_before_it_were_put_off() -> None:
    """The ledger cannot be written as the run ends: its ticks until then are skipped, the newest since then runs."""
    async with world() as here:
        work = Work(30)
        process = here.start(registry(work, 1))
        await here.until(30.5)
        process.store.refused = {"record"}
        await here.until(33.5)
        process.store.refused = set()
        await here.until(36)
        assert work.ticks[0] == 1
        assert work.ticks[1] >= 33
        rows = {row.tick: row for row in here.records()}
        assert sum(row.count or 1 for row in rows.values()) == seconds(max(rows))
        (skipped,) = [
            row for row in rows.values() if row.tick_from and seconds(row.tick_from) < 31 <= seconds(row.tick)
        ]
        assert skipped.error == "its last run has not ended"
        assert seconds(skipped.tick) == 31


@virtual
@pytest.mark.parametrize("between", ["a pause", "a trigger", "a deleted row", "nothing"])
async def test_a_row_of_skipped_ticks_ends_where_something_comes_between(between: str) -> None:
    """Only ticks that follow on one another, for one reason, are one row; one that is gone is made anew."""
    async with world() as here:
        process = here.start(registry(Work(1000)))
        await here.until(35)
        assert here.rows() == ["10 running", "30 skipped 2"]
        if between == "a pause":
            await process.store.pause("default", "job")
            await here.until(55)
            await process.store.resume("default", "job")
        elif between == "a trigger":
            await process.store.trigger("default", "job")
        elif between == "a deleted row":
            del here.server.ledgers["default"].runs["job", START + timedelta(seconds=30)]
        await here.until(95)
        rows = [row.split() for row in here.rows() if "skipped" in row]
        expected = {
            "a pause": [["30", "2"], ["90", "4"]],
            "a trigger": [["35", "1"], ["90", "8"]],
            "a deleted row": [["90", "6"]],
            "nothing": [["90", "8"]],
        }[between]
        assert [[tick, count] for tick, _, count in rows] == expected


@virtual
async def test_ticks_that_are_skipped_together_are_one_row() -> None:
    """Several ticks that are found at once beside a run are one row, from the first of them, with their number."""
    async with world() as here:
        process = here.start(registry(Work(60)))
        await here.until(15)
        process.store.refused = {"record"}
        await here.until(45)
        process.store.refused = set()
        await here.until(49)
        assert here.rows() == ["10 running", "40 skipped 3"]
        (skipped,) = process.observed.skipped("job")
        assert (seconds(skipped.since), skipped.count) == (20, 3)
        assert seconds(here.records()[1].tick_from or START) == 20


@virtual
async def test_overlapping_runs_are_rows_of_their_own() -> None:
    """With ``overlap="allow"`` runs go on beside each other, each with its row."""
    async with world() as here:
        work = Work(25)
        here.start(registry(work, overlap="allow"))
        await here.until(36)
        assert (work.ticks, work.most_at_once) == ([10, 20, 30], 3)
        assert here.rows() == ["10 succeeded", "20 running", "30 running"]


def names(observed: Observed) -> str:
    return "".join(each.job for each in observed.events if isinstance(each, RunStarted))


@virtual
async def test_a_run_that_waits_for_a_place_is_queued() -> None:
    """Beyond `max_running` runs are queued in the ledger, and start in their order as places get free."""
    async with world() as here:
        work = Work(5)
        process = here.start(four(work))
        await here.until(102)
        assert [here.rows(name) for name in "abcd"] == [["100 running"]] * 2 + [["100 queued"]] * 2
        assert all(row.started_at is None for row in here.records("c"))
        await here.until(107)
        assert [here.rows(name) for name in "abcd"] == [["100 succeeded"]] * 2 + [["100 running"]] * 2
        await here.until(120)
        assert names(process.observed) == "abcd"
        assert work.most_at_once == 2
        started = here.records("d")[0].started_at
        assert started is not None
        assert seconds(started) == pytest.approx(105, abs=0.01)


@pytest.mark.parametrize("how", ["kill", "end", "drain", "cancelled drain"])
@virtual
async def test_a_queued_run_is_not_lost_with_its_leader(how: str) -> None:
    """However a term ends, what it had queued is adopted by the next, and run there once."""
    async with world() as here:
        work, first, second = Work(5), Line(here.server), Observed()
        jobs = four(work)

        async def behind_an_application() -> None:
            async with jobs.background(first, drain_timeout=60):
                await asyncio.sleep(102)

        application = asyncio.create_task(behind_an_application())
        await here.until(102)
        await asyncio.sleep(0)
        if how == "drain":
            await application
            assert here.now == pytest.approx(105, abs=0.01)
        else:
            if how == "cancelled drain":
                await asyncio.sleep(1)
            first.down = how == "kill"
            application.cancel()
            with suppress(asyncio.CancelledError):
                await application
        ended = "succeeded" if how == "drain" else "running" if how == "kill" else "lost"
        assert [here.rows(name) for name in "abcd"] == [[f"100 {ended}"]] * 2 + [["100 queued"]] * 2
        old = here.records("c")[0]
        other = here.start(four(work), on_event=second)
        await here.until(160)
        assert names(second) == "cd"
        assert sorted(work.ticks) == [100] * 4
        row = here.records("c")[0]
        assert (row.status, row.attempt) == ("succeeded", 1)
        assert (old.token, row.token) == (1, 2)
        assert row.holder != old.holder
        assert here.rows("a") == ["100 lost" if how != "drain" else "100 succeeded"]
        assert other.store.count("record") < 20
