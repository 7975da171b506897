"""Processes that look how their jobs stand, in virtual time, and what they told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from aiolease import JobRegistry, JobStanding, StoreUnavailable
from aiolease._election.campaign import Campaign
from aiolease.events import Event, JobsSeen, Leaderless, Overdue, UnknownJobs
from aiolease.testing import MemoryServer, MemoryStore
from tests.jobs.worlds import Observed

LEASE = 30.0
E = TypeVar("E", bound=Event)


def registry(*names: str, every: float = 20, **options: Any) -> JobRegistry:
    jobs = JobRegistry()

    async def job() -> None: ...

    for name in names:
        jobs.every(every, name=name, **options)(job)
    return jobs


def in_every_state() -> JobRegistry:
    """Jobs of which one fails, one goes on for ever, one waits for a place, and one may be paused."""
    jobs = JobRegistry(max_running=1)

    async def fail() -> None:
        raise ValueError

    async def hang() -> None:
        await asyncio.sleep(10_000)

    async def nothing() -> None: ...

    jobs.every(10, name="fails", max_age=15)(fail)
    jobs.every(100, name="hangs")(hang)
    jobs.every(20, name="waits", overlap="allow")(nothing)
    jobs.every(20, name="paused")(nothing)
    return jobs


class Process:
    """A process of a fleet, and what it told."""

    def __init__(self, server: MemoryServer, jobs: JobRegistry | None = None, **options: Any) -> None:
        self.jobs = jobs or registry("job")
        self.store = MemoryStore(server)
        self.observed = Observed()
        server.now()  # its clock starts
        self.options = options

    @asynccontextmanager
    async def runs(self) -> AsyncIterator[Campaign]:
        async with self.jobs.background(self.store, on_event=self.observed, **self.options) as campaign:
            yield campaign

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.observed.events if isinstance(event, kind)]

    @property
    def wrong(self) -> list[Event]:
        """All that it found wrong."""
        return [*self.of(Overdue), *self.of(Leaderless), *self.of(UnknownJobs)]

    @property
    def latest(self) -> dict[str, JobStanding]:
        return {job.job: job for job in self.of(JobsSeen)[-1].jobs}

    def sent(self, method: str) -> int:
        return sum(sent == method for sent, _ in self.store.sent)

    def cannot_write(self) -> None:
        """Its lease is kept, its ledger is not: it hangs."""
        self.store.fail("record", StoreUnavailable("memory", "a lock"), times=10_000)

    def can_write(self) -> None:
        self.store._faults.clear()


@asynccontextmanager
async def pair(server: MemoryServer, *jobs: JobRegistry) -> AsyncIterator[tuple[Process, Process, Campaign]]:
    """A leader, and a process that waits, with its campaign."""
    leader, follower = (Process(server, each) for each in (jobs or (registry("job"), registry("job"))))
    async with leader.runs(), follower.runs() as campaign:
        yield leader, follower, campaign
