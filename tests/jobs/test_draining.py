"""A drain lets running jobs finish, and ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiolease import ConfigurationError, JobRegistry
from aiolease.events import Released, RunFinished
from aiolease.testing import MemoryStore
from tests.jobs.worlds import Diary, Observed, memory
from tests.virtual import virtual


@virtual
async def test_a_drain_lets_running_jobs_finish() -> None:
    """Leaving `background` starts no new run, lets running ones finish while heartbeats go on, and then releases."""
    jobs, store, observed, diary = JobRegistry(), memory(), Observed(), Diary()

    @jobs.every(10)
    async def job() -> None:
        await asyncio.sleep(0.1)

    @jobs.every(30)
    async def slow() -> None:
        await asyncio.sleep(45)
        diary.note("slow ends")

    async with jobs.background(store, drain_timeout=60, on_event=observed) as campaign:
        await asyncio.sleep(35)
        left_at = diary.now
    assert diary.when("slow ends") == [pytest.approx(75)]
    assert diary.now == pytest.approx(75, abs=0.01)
    assert observed.started("job") == [10, 20, 30]
    assert [each.status for each in observed.finished("slow")] == ["succeeded"]
    renewals = [moment - 1000 for what, moment in store.sent if what == "renew" and moment - 1000 > left_at]
    assert len(renewals) == 4
    assert isinstance(observed.events[-1], Released)
    assert isinstance(observed.events[-2], RunFinished)
    assert campaign.status().state == "stopped"


@virtual
async def test_a_drain_ends() -> None:
    """After `drain_timeout` the jobs that still run are cancelled and awaited; only then is the lease released."""
    jobs, observed, diary = JobRegistry(), Observed(), Diary()

    @jobs.every(10)
    async def job() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            diary.note("cancelled")
            await asyncio.sleep(2)
            diary.note("ends")

    async with jobs.background(memory(), drain_timeout=7, on_event=observed):
        await asyncio.sleep(15)
    assert [(round(moment, 2), what) for moment, what in diary.lines] == [(22, "cancelled"), (24, "ends")]
    assert diary.now == pytest.approx(24, abs=0.01)
    assert isinstance(observed.events[-1], Released)
    assert isinstance(observed.events[-2], RunFinished)


@virtual
async def test_a_drain_without_time_cancels_at_once() -> None:
    """With ``drain_timeout=0`` leaving cancels the running jobs."""
    jobs, diary = JobRegistry(), Diary()

    @jobs.every(10)
    async def job() -> None:
        await asyncio.sleep(1000)

    async with jobs.background(memory(), drain_timeout=0):
        await asyncio.sleep(15)
    assert diary.now == pytest.approx(15, abs=0.01)


@virtual
async def test_a_loss_during_a_drain_cancels_at_once() -> None:
    """A lease that is lost while jobs finish leaves them no more time: they are cancelled as by any other loss."""
    jobs, store, diary = JobRegistry(), memory(), Diary()

    @jobs.every(10)
    async def job() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            diary.note("cancelled")

    async with jobs.background(store, drain_timeout=800):
        await asyncio.sleep(15)
        store.down = True
    (cancelled,) = diary.when("cancelled")
    assert cancelled == pytest.approx(35, abs=0.01)
    assert diary.now == pytest.approx(36, abs=1)


@virtual
async def test_what_waits_for_its_turn_does_not_start_in_a_drain() -> None:
    """A run that waits for `max_running` is not started any more once the drain has begun."""
    jobs, observed = JobRegistry(max_running=1), Observed()

    async def job() -> None:
        await asyncio.sleep(10)

    for name in ("first", "second"):
        jobs.every(30, name=name)(job)
    async with jobs.background(memory(), drain_timeout=60, on_event=observed):
        await asyncio.sleep(35)
    assert [each.status for each in observed.finished("first")] == ["succeeded"]
    assert observed.started("second") == []


@pytest.mark.parametrize("drain_timeout", [-1, float("inf"), float("nan"), "5"])
async def test_a_drain_that_cannot_work_is_refused(drain_timeout: Any) -> None:
    """`drain_timeout` is a finite number of seconds, from 0."""
    jobs = JobRegistry()
    with pytest.raises(ConfigurationError) as refused:
        await jobs.serve(MemoryStore(), drain_timeout=drain_timeout)
    assert refused.value.field == "drain_timeout"
