"""When jobs fall due: by the clock of the database, whatever it does."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from aiolease import JobRegistry
from aiolease.events import RunFinished
from aiolease.testing import MemoryServer, MemoryStore
from tests.jobs.worlds import Diary, Observed, a_term, memory, nothing, seconds
from tests.virtual import HOUR, START, lines, virtual

if TYPE_CHECKING:
    from loguru import Message


@virtual
async def test_ticks_follow_the_clock_of_the_database() -> None:
    """What is due is told by the database's clock, whatever the machine's own clock shows."""
    jobs, store, observed = JobRegistry(), memory(), Observed()
    store.server.clock_offset = HOUR

    @jobs.cron("30 1 * * *")
    async def job() -> None: ...

    async with a_term(jobs, store, on_event=observed) as lead:
        assert abs((lead.database_now() - store.server.now()).total_seconds()) < 0.001
        await asyncio.sleep(1800 - 1)
        assert observed.started("job") == []
        await asyncio.sleep(1.1)
        assert observed.started("job") == [5400]
        await asyncio.sleep(7200)
        assert observed.started("job") == [5400]


@virtual
async def test_a_zone_is_the_jobs_or_else_the_registrys() -> None:
    """A cron expression is read in its job's zone, or in the registry's."""
    jobs, observed = JobRegistry(timezone="America/New_York"), Observed()

    async def job() -> None: ...

    jobs.cron("0 9 * * *", name="new_york")(job)
    jobs.cron("0 9 * * *", name="berlin", timezone="Europe/Berlin")(job)
    async with a_term(jobs, memory(), on_event=observed):
        await asyncio.sleep(86_000)
    assert observed.started("new_york") == [14 * 3600]
    assert observed.started("berlin") == [8 * 3600]


@virtual
async def test_a_clock_that_steps_forward_is_noticed_in_seconds() -> None:
    """When the database's clock jumps ahead, the newest tick runs within a heartbeat and a few seconds; none twice."""
    jobs, store, observed, diary = JobRegistry(), memory(), Observed(), Diary()

    @jobs.every(1800)
    async def job() -> None:
        diary.note("job")

    async with a_term(jobs, store, on_event=observed):
        await asyncio.sleep(35)
        store.server.clock_offset = HOUR
        await asyncio.sleep(1800)
    assert observed.started("job") == [3600, 5400]
    stepped, following = diary.when("job")
    assert 35 < stepped <= 35 + 10 + 5
    assert following == pytest.approx(1800, abs=0.01)
    (skipped,) = observed.skipped("job")
    assert (seconds(skipped.since), skipped.count) == (1800, 1)


@virtual
async def test_a_clock_that_steps_back_repeats_no_tick() -> None:
    """When the database's clock is put back, no tick runs twice, and the ticks go on when it gets there again."""
    jobs, store, observed = JobRegistry(), memory(), Observed()

    @jobs.every(60)
    async def job() -> None: ...

    async with a_term(jobs, store, on_event=observed):
        await asyncio.sleep(305)
        store.server.clock_offset = -timedelta(seconds=240)
        await asyncio.sleep(600)
    assert observed.started("job") == list(range(60, 661, 60))


@virtual
async def test_the_next_leader_keeps_the_rhythm() -> None:
    """Intervals lie on a grid from the Unix epoch: a new leader ticks where the last would have, none twice."""
    server = MemoryServer(START + timedelta(seconds=3.3))
    jobs, observed, number = JobRegistry(), Observed(), 0

    @jobs.every(7)
    async def job() -> None: ...

    for number in range(1, 6):
        async with a_term(jobs, MemoryStore(server), on_event=observed) as lead:
            assert lead.token == number
            await asyncio.sleep(30)
    ticks = [START.timestamp() + tick for tick in observed.started("job")]
    assert len(ticks) >= 19
    assert all(tick % 7 == 0 for tick in ticks)
    assert ticks == sorted(set(ticks))


@virtual
async def test_ticks_that_a_blocked_loop_missed_are_one_run(log: list[Message]) -> None:
    """A loop that stood still for a while runs the newest of the missed ticks, and says how many it skipped."""
    jobs, observed = JobRegistry(), Observed()

    @jobs.every(1)
    async def job() -> None: ...

    async with a_term(jobs, memory(), on_event=observed):
        await asyncio.sleep(5.5)
        asyncio.get_running_loop().advance(6)  # type: ignore[attr-defined]
        await asyncio.sleep(1)
    assert observed.started("job") == [1, 2, 3, 4, 5, 11, 12]
    assert lines(log, "WARNING") == ["skipped 'job', 5 ticks since 2026-01-01 00:00:06: a newer one was due as well"]


@virtual
async def test_ten_thousand_jobs_wait_without_a_task() -> None:
    """Jobs that are not due cost no task and no timer: ten thousand of them wait like one."""
    loop, counts = asyncio.get_running_loop(), []
    for number in (1, 10_000):
        jobs, observed = JobRegistry(), Observed()
        for index in range(number):
            jobs.cron(f"{index % 60} {index // 60 % 24} * * *", name=f"job-{index}")(nothing)
        async with a_term(jobs, memory(), on_event=observed):
            await asyncio.sleep(30)
            timers = [timer for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
            counts.append((len(asyncio.all_tasks()), len(timers)))
            await asyncio.sleep(600)
            assert len([each for each in observed.events if isinstance(each, RunFinished)]) == (70 if number > 1 else 0)
    assert counts[0][0] == counts[1][0]
    assert max(timers for _, timers in counts) < 10


@virtual
async def test_many_jobs_that_fall_due_at_once_cost_each_the_same() -> None:
    """What a job costs at the moment it falls due does not grow with the number of those that fall due beside it."""
    costs = []
    for number in (500, 2_000):
        jobs, observed, calls = JobRegistry(), Observed(), Calls()
        for index in range(number):
            jobs.every(60, name=f"job-{index}")(nothing)
        async with a_term(jobs, memory(), on_event=observed):
            await asyncio.sleep(59)
            with calls:
                await asyncio.sleep(2)
        assert len([each for each in observed.events if isinstance(each, RunFinished)]) == number
        costs.append(calls.count / number)
    assert costs[1] < 1.2 * costs[0]


class Calls:
    """Counts what this thread calls while the block runs: a measure that no other process disturbs."""

    def __init__(self) -> None:
        self.count = 0

    def _note(self, _: object, event: str, __: object) -> None:
        self.count += event == "call"

    def __enter__(self) -> None:
        self._earlier = sys.getprofile()
        sys.setprofile(self._note)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._earlier)
