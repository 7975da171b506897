"""What a look makes of the ledger, where it depends on what is known of the leader: looks made by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime

import pytest

from aiolease import StoreUnavailable
from aiolease._election.status import Sight
from aiolease._election.timings import Timings
from aiolease._jobs.lookout import Lookout
from aiolease.events import Notice, Overdue, UnknownJobs
from aiolease.testing import MemoryServer
from tests.jobs.watchers import LEASE, Process, registry
from tests.virtual import START, virtual


def sight(*, token: int = 2, age: float, vacant: float = 0.0) -> Sight:
    return Sight(holder="a" if vacant == 0 else None, token=token, leads=False, age=age, vacant=vacant, duration=LEASE)


@asynccontextmanager
async def looking() -> AsyncIterator[tuple[Process, Lookout]]:
    """A ledger that knows a job and that nobody writes any more, and one who looks at it by hand."""
    server = MemoryServer(START)
    process = Process(server)
    async with process.runs():
        await asyncio.sleep(5)
    process.observed.events.clear()
    yield process, Lookout(process.jobs.registered, "default", Timings.make(), process.observed)


@pytest.mark.parametrize(("age", "vacant", "told_at"), [(100, 0, 3), (15, 0, 3), (14, 0, 4), (0, 0, 4), (0, 100, 3)])
@virtual
async def test_a_leader_that_has_just_taken_over_is_given_its_time(age: float, vacant: float, told_at: int) -> None:
    """In the first half of a lease it may not have claimed yet what is due; an excuse that holds for four looks."""
    async with looking() as (process, lookout):
        for number in range(1, 6):
            await asyncio.sleep(LEASE)
            await lookout.look(process.store, sight(age=age, vacant=vacant))
            assert (process.of(Overdue) != []) == (number >= told_at)
            assert (process.latest["job"].overdue > 0) == (number >= told_at)


@virtual
async def test_what_is_overdue_stays_so_under_the_next_leader() -> None:
    """A leader that hangs is followed by one that hangs as well: nothing has changed, and nothing is told anew."""
    async with looking() as (process, lookout):
        for number in range(10):
            await asyncio.sleep(LEASE)
            if number == 5:  # what could not be read has not changed
                process.store.fail("overview", StoreUnavailable("memory", "cut"))
            await lookout.look(process.store, sight(token=2 + number // 4, age=number % 4 * LEASE))
        assert len(process.of(Overdue)) == 1
        assert process.of(Notice) == []
        lookout.forget()
        assert lookout.trouble is None
        for number in range(2):
            await asyncio.sleep(LEASE)
            await lookout.look(process.store, sight(age=100))
            assert len(process.of(Overdue)) == 1 + number


@virtual
async def test_a_young_leader_may_still_be_making_the_rows_of_its_jobs() -> None:
    """A job without a row is told of half a lease after the election at the earliest; what was told stays."""
    async with looking() as (process, lookout):
        process.jobs.registered |= registry("new").registered
        for number, age in enumerate((14.0, 15.0, 5.0)):
            await lookout.look(process.store, sight(age=age))
            assert [event.jobs for event in process.of(UnknownJobs)] == [("new",)] * (number > 0)
        assert lookout.trouble is not None
        await lookout.look(process.store, sight(age=100, vacant=1))
        assert lookout.trouble is None


@virtual
async def test_a_row_of_a_later_term_is_known() -> None:
    """This process has not heard of that term yet: it stood still, or the leader has just changed."""
    async with looking() as (process, lookout):
        rows = process.store.server.ledgers["default"].jobs
        rows |= {"other": replace(rows["job"], job="other", token=2), "job": replace(rows["job"], token=3)}
        await lookout.look(process.store, sight(age=100))
        assert process.of(UnknownJobs) == []
        rows["job"] = replace(rows["job"], token=1)
        await lookout.look(process.store, sight(age=100))
        assert [event.jobs for event in process.of(UnknownJobs)] == [("job",)]


CHANGES = ["missed all", "another schedule", "nobody claims", "it claimed some", "young"]


@pytest.mark.parametrize("change", ["none", *CHANGES])
@virtual
async def test_signs_of_an_older_leader_that_does_not_run_a_job(change: str) -> None:
    """It lets ticks pass, and claims those of others. Not: a backlog, another version, one that claims nothing."""
    async with looking() as (process, lookout):
        rows, jobs = process.store.server.ledgers["default"].jobs, process.jobs.registered
        rows["other"] = replace(rows["job"], job="other")
        if change == "missed all":
            jobs["job"] = replace(jobs["job"], missed="all")
        if change == "another schedule":
            rows["job"] = replace(rows["job"], schedule="every 25s")
        told = []
        for number in range(1, 6):
            await asyncio.sleep(LEASE)
            now = process.store.server.now()
            if change != "nobody claims":
                rows["other"] = replace(rows["other"], high_tick=now)
            if change == "it claimed some" and number == 1:
                rows["job"] = replace(rows["job"], high_tick=now)
            await lookout.look(process.store, sight(age=2 * LEASE if change == "young" else 1000))
            told.append(bool(process.of(UnknownJobs)))
        assert told == [change == "none" and number >= 3 for number in range(1, 6)]
        assert (process.of(Overdue) != []) == (change in CHANGES)


@virtual
async def test_a_step_of_the_clock_makes_no_job_unknown_to_an_older_leader() -> None:
    """Its claims before the step look as if they were those of an earlier term."""
    async with looking() as (process, lookout):
        rows, server = process.store.server.ledgers["default"].jobs, process.store.server
        rows["other"] = replace(rows["job"], job="other")
        for _ in range(5):
            await asyncio.sleep(LEASE)
            for name in rows:
                rows[name] = replace(rows[name], high_tick=server.now())
            await lookout.look(process.store, sight(age=1000))
        server.step_clock(86_400)
        rows["other"] = replace(rows["other"], high_tick=server.now())
        await lookout.look(process.store, sight(age=1000))
        assert process.wrong == []


@virtual
async def test_the_looks_at_many_jobs_leave_the_loop_to_others() -> None:
    """With 2,000 jobs others of the loop have their turn in between, also while it is told that all are overdue."""
    server = MemoryServer(START)
    process = Process(server, registry(*(f"job{number}" for number in range(2000))))
    async with process.runs():
        await asyncio.sleep(1)
    process.observed.events.clear()
    lookout = Lookout(process.jobs.registered, "default", Timings.make(), process.observed)
    turns = []
    for number in range(5):
        await asyncio.sleep(LEASE)
        look = asyncio.create_task(lookout.look(process.store, sight(age=100)))
        turns.append(0)
        while not look.done():
            await asyncio.sleep(0)
            turns[-1] += 1
        assert len(process.of(Overdue)) == (2000 if number >= 2 else 0)
    assert turns[0] >= 10
    assert turns[2] >= turns[1] + 10


@virtual
async def test_a_row_of_another_hand_ends_no_looking() -> None:
    """A moment without a zone cannot be compared with others: that is an ERROR, and the next look comes."""
    async with looking() as (process, lookout):
        rows = process.store.server.ledgers["default"].jobs
        good, rows["job"] = rows["job"], replace(rows["job"], high_tick=datetime(2026, 1, 1))  # noqa: DTZ001
        await lookout.look(process.store, sight(age=100))
        (notice,) = process.of(Notice)
        assert (notice.severity, notice.text) == ("ERROR", lookout.trouble)
        assert notice.text.startswith("could not judge how the jobs of 'default' stand: TypeError")
        rows["job"] = good
        await lookout.look(process.store, sight(age=100))
        assert (lookout.trouble, process.latest["job"].job) == (None, "job")
