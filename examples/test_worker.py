"""How an application tests that its jobs are right when leaders come and go: in milliseconds, the same at every run.

    pytest examples/test_worker.py      # asyncio_mode = "auto", and pytest-asyncio 1.5 or newer

Two `MemoryStore`s on one `MemoryServer` are two processes of a fleet and their database. The loop's clock jumps to the
next moment at which something is to happen, so that a night takes no time: ``conftest.py`` gives such a loop to the
tests of pytest-asyncio. Without that hook, `aiolease.testing.virtual_time` does the same for a single test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from aiolease import JobRegistry, JobRun, LeadershipLost
from aiolease.testing import MemoryServer, MemoryStore, job_run


@pytest.fixture
def server() -> MemoryServer:
    return MemoryServer(start=datetime(2026, 3, 2, 8, 59, 30, tzinfo=UTC))


async def test_my_job_is_cancelled_when_the_lease_is_lost(server: MemoryServer) -> None:
    """A database that is out of reach ends the term, and the report with it, before another process may lead."""
    jobs, told = JobRegistry(), []

    @jobs.every(60)
    async def report() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            told.append("cancelled")

    store = MemoryStore(server)
    async with jobs.background(store):
        await asyncio.sleep(40)  # it began at 9:00
        store.down = True
        await asyncio.sleep(30)
        assert told == ["cancelled"]
        store.down = False


async def test_my_nine_oclock_job_runs_after_a_failover(server: MemoryServer) -> None:
    """The leader dies before nine, and nobody leads at nine. The next leader runs the job, once."""
    ran: list[tuple[str, datetime]] = []

    def registry(process: str) -> JobRegistry:
        jobs = JobRegistry()

        @jobs.cron("0 9 * * *")
        async def debt_aging(run: JobRun) -> None:
            ran.append((process, run.tick))

        return jobs

    first, second = MemoryStore(server), MemoryStore(server)
    async with registry("first").background(first):
        async with registry("second").background(second):
            await asyncio.sleep(25)
            first.down = True  # as if the machine had died, five seconds before nine
            await asyncio.sleep(120)
        assert ran == [("second", datetime(2026, 3, 2, 9, tzinfo=UTC))]
        first.down = False


async def test_my_payment_is_made_once_though_the_answer_is_lost(server: MemoryServer) -> None:
    """Whether the COMMIT was lost, or only its answer: the payment and its success are there together, once."""
    jobs, paid = JobRegistry(), []

    @jobs.cron("* * * * *", missed="all", rerun_lost=True)
    async def pay(run: JobRun) -> None:
        async with run.transaction(final=True) as calls:  # in memory a connection is a list of calls
            calls.append(lambda: paid.append(run.tick.minute))

    store = MemoryStore(server)
    async with jobs.background(store):
        for lose in (store.lose_request, store.lose_reply):
            lose("commit")
            await asyncio.sleep(60)
        await asyncio.sleep(60)
        assert paid == [0, 1, 2]
        assert {run.status for run in await store.history("default", "pay")} == {"succeeded"}


@pytest.mark.parametrize(("ends", "pages"), [(None, 3), (1, 1)])
def test_my_plain_job_stops_when_it_is_told(ends: int | None, pages: int) -> None:
    """A `def` job, called by itself: it stops at the next `check` once its term is over."""
    written: list[int] = []

    def make_report(run: JobRun, after: Callable[[int], Any]) -> None:
        for page in range(3):
            run.check()
            written.append(page)
            after(page + 1)

    run = job_run("make_report", tick=datetime(2026, 3, 2, 3, tzinfo=UTC))
    try:
        make_report(run, lambda page: run.leadership.resign() if page == ends else None)
    except LeadershipLost:
        assert ends is not None
    assert len(written) == pages
