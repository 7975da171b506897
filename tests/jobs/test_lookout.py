"""A process that waits sees that the leader does not run its jobs, and a leader that it has no such job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from loguru import logger

from aiolease import JobRegistry, open_store
from aiolease._election.campaign import Campaign
from aiolease.errors import StoreUnavailable
from aiolease.events import UnknownJobs
from aiolease.stores.records import TermKey
from aiolease.testing import MemoryServer, MemoryStore
from tests.jobs.worlds import Observed
from tests.virtual import START, virtual

if TYPE_CHECKING:
    from loguru import Message


LEASE = 30.0


@pytest.fixture
def log() -> Iterator[list[Message]]:
    """What was logged during the test."""
    records: list[Message] = []
    sink = logger.add(records.append, level="WARNING", format="{message}")
    yield records
    logger.remove(sink)


def registry(*names: str, interval: float = 3600, **options: Any) -> JobRegistry:
    jobs = JobRegistry()

    async def job() -> None: ...

    for name in names:
        jobs.every(interval, name=name, **options)(job)
    return jobs


class Older(MemoryStore):
    """The store of a version that does not note in the rows of its jobs which term has them."""

    async def have(self, term: TermKey, jobs: Sequence[str]) -> None: ...


class Process:
    """One process with a registry, and what it told."""

    def __init__(self, jobs: JobRegistry, server: MemoryServer, *, older: bool = False) -> None:
        self.jobs = jobs
        self.store = Older(server) if older else MemoryStore(server)
        self.observed = Observed()

    @asynccontextmanager
    async def runs(self) -> AsyncIterator[Campaign]:
        async with self.jobs.background(self.store, on_event=self.observed) as campaign:
            yield campaign

    @property
    def unknown(self) -> list[tuple[str, ...]]:
        return [each.jobs for each in self.observed.events if isinstance(each, UnknownJobs)]

    def looks(self) -> int:
        return sum(method == "overview" for method, _ in self.store.sent)


@virtual
async def test_two_applications_on_one_lease_are_told(log: list[Message]) -> None:
    """Within two leases the one that waits names its jobs that the leader does not run: event, log and status, once."""
    server = MemoryServer(START)
    leader, follower = Process(registry("mine", "both"), server), Process(registry("yours", "both"), server)
    async with leader.runs(), follower.runs() as campaign:
        await asyncio.sleep(2 * LEASE)
        assert follower.unknown == [("yours",)]
        (event,) = [each for each in follower.observed.events if isinstance(each, UnknownJobs)]
        assert (event.token, event.holder) == (1, campaign.status().leader)
        (line,) = [each.record["message"] for each in log]
        assert line.startswith(
            f"the leader of 'default' (term 1, {event.holder}) does not run jobs of this process: yours"
        )
        assert campaign.status().error == line
        await asyncio.sleep(20 * LEASE)
        assert follower.unknown == [("yours",)]
        assert follower.looks() <= 22
    assert leader.unknown == []


@virtual
async def test_a_follower_that_the_leader_serves_says_nothing() -> None:
    """Copies of one application look at the ledger once per lease at most, and find nothing wrong."""
    server = MemoryServer(START)
    for options in ({"interval": 5}, {"interval": 3600}, {"interval": 45, "missed": "all"}):
        leader, follower = Process(registry("job", **options), server), Process(registry("job", **options), server)
        async with leader.runs(), follower.runs() as campaign:
            await asyncio.sleep(10 * LEASE)
            assert campaign.status().state == "following"
            assert campaign.status().error is None
        assert follower.unknown == []
        assert 5 <= follower.looks() <= 10


@virtual
async def test_what_an_earlier_leader_left_is_not_taken_for_the_leaders() -> None:
    """Two applications that lead in turn: a job whose row is old is told when a tick of it passed by this leader.

    The leader is of a version that does not note its term; another one is found out by the first look.
    """
    server = MemoryServer(START)
    async with Process(registry("yours", interval=20), server, older=True).runs():
        await asyncio.sleep(LEASE)
    leader = Process(registry("mine", interval=20), server, older=True)
    follower = Process(registry("yours", interval=20), server)
    async with leader.runs(), follower.runs():
        await asyncio.sleep(2 * LEASE)
        assert follower.unknown == []
        await asyncio.sleep(2 * LEASE)
        assert follower.unknown == [("yours",)]


@virtual
async def test_a_paused_job_is_known() -> None:
    """A job whose ticks pass because somebody has paused it is nobody's mistake."""
    server = MemoryServer(START)
    leader, follower = Process(registry("job", interval=20), server), Process(registry("job", interval=20), server)
    async with leader.runs(), follower.runs() as campaign:
        await asyncio.sleep(5)
        await leader.store.pause("default", "job")
        await asyncio.sleep(10 * LEASE)
        assert campaign.status().error is None
    assert follower.unknown == []


@virtual
async def test_it_is_told_again_when_it_has_changed() -> None:
    """A follower that has led meanwhile says it anew; while it leads its status has no error."""
    server = MemoryServer(START)
    leader, follower = Process(registry("mine", interval=20), server), Process(registry("yours", interval=20), server)
    async with leader.runs() as other, follower.runs() as campaign:
        await asyncio.sleep(2 * LEASE)
        assert follower.unknown == [("yours",)]
        other.resign()
        await asyncio.sleep(1)
        assert campaign.is_leader
        assert campaign.status().error is None
        await asyncio.sleep(2 * LEASE)
        campaign.resign()
        await asyncio.sleep(1)
        assert (other.is_leader, campaign.status().error) == (True, None)
        await asyncio.sleep(4 * LEASE)
        assert follower.unknown == [("yours",), ("yours",)]


@pytest.mark.parametrize("fault", ["fail", "lose"])
@virtual
async def test_a_look_that_fails_is_no_news(fault: str, log: list[Message]) -> None:
    """A ledger that cannot be read, or does not answer, says nothing of jobs; the next look does."""
    server = MemoryServer(START)
    leader, follower = Process(registry("mine"), server), Process(registry("yours"), server)
    async with leader.runs(), follower.runs() as campaign:
        if fault == "fail":
            follower.store.fail("overview", StoreUnavailable("memory", "cut"), times=3)
        else:
            follower.store.lose_request("overview", times=3)
        await asyncio.sleep(2.5 * LEASE)
        assert (campaign.status().state, follower.unknown) == ("following", [])
        await asyncio.sleep(6 * LEASE)
        assert follower.unknown == [("yours",)]


@virtual
async def test_a_follower_without_jobs_does_not_look() -> None:
    """A registry without jobs costs the ledger nothing."""
    server = MemoryServer(START)
    leader, follower = Process(registry("mine"), server), Process(registry(), server)
    async with leader.runs(), follower.runs():
        await asyncio.sleep(10 * LEASE)
    assert follower.looks() == 0


@virtual
async def test_a_trigger_for_a_job_that_the_leader_has_not_is_told(log: list[Message]) -> None:
    """The leader says once that it was asked for a job that it has not; a leader that has it runs it later."""
    server = MemoryServer(START)
    async with Process(registry("yours"), server).runs():
        await asyncio.sleep(1)
    async with Process(registry("mine"), server).runs():
        await asyncio.sleep(1)
        async with open_store(MemoryStore(server)) as store:
            await store.trigger("default", "yours")
        await asyncio.sleep(100)
    lines = [each.record["message"] for each in log]
    assert lines.count("'yours' was triggered, and this leader has no such job: it runs when a leader has it") == 1
    again = Process(registry("yours"), server)
    async with again.runs():
        await asyncio.sleep(5)
    assert [each.status for each in again.observed.finished("yours")] == ["succeeded"]
    assert timedelta(0) < again.observed.finished("yours")[0].tick - START < timedelta(seconds=10)
