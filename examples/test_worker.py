"""How an application tests that its jobs are right when leaders come and go: in milliseconds, the same at every run.

    pytest examples/test_worker.py      # asyncio_mode = "auto", and pytest-asyncio 1.5 or newer

Two `MemoryStore`s on one `MemoryServer` are two processes of a fleet and their database. The loop's clock jumps to the
next moment at which something is to happen, so that a night takes no time: ``conftest.py`` gives such a loop to the
tests of pytest-asyncio. Without that hook, `aiolease.testing.virtual_time` does the same for a single test.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from aiolease import JobRegistry, JobRun, LeadershipLost
from aiolease.testing import MemoryServer, MemoryStore, job_run

# -- the application, a module of its own as a rule

jobs = JobRegistry(timezone="America/New_York")


@dataclass
class Shop:
    """What the jobs work on: what a test looks at."""

    orders: list[str] = field(default_factory=list)
    reminded: list[datetime] = field(default_factory=list)
    charged: list[datetime] = field(default_factory=list)
    printed: list[str] = field(default_factory=list)

    def print(self, statement: str) -> None:
        self.printed.append(statement)


@jobs.cron("@hourly")
async def import_orders(run: JobRun) -> None:
    shop: Shop = run.context
    shop.orders.append("begun")
    try:
        await asyncio.sleep(600)  # the supplier is slow
        shop.orders.append("imported")
    finally:
        shop.orders.append("closed")


@jobs.cron("0 9 * * *")
async def remind_debtors(run: JobRun) -> None:
    run.context.reminded.append(run.tick)


@jobs.cron("* * * * *", missed="all", rerun_lost=True)
async def charge_cards(run: JobRun) -> None:
    async with run.transaction(final=True) as calls:  # in memory a connection is a list of calls
        calls.append(lambda: run.context.charged.append(run.tick))


@jobs.cron("0 3 * * *")
def print_statements(run: JobRun) -> None:
    for customer in ("Ann", "Bob", "Cid"):
        run.check()
        run.context.print(customer)


# -- its tests


@pytest.fixture
def server() -> MemoryServer:
    """A database whose clock shows half a minute to nine in New York."""
    return MemoryServer(start=datetime(2026, 3, 2, 13, 59, 30, tzinfo=UTC))


async def test_my_import_is_cancelled_when_the_lease_is_lost(server: MemoryServer) -> None:
    """A database that is out of reach ends the term, and the import with it, before another process may lead."""
    store, shop = MemoryStore(server), Shop()
    async with jobs.background(store, context=shop) as campaign:
        await asyncio.sleep(40)
        assert (campaign.is_leader, shop.orders) == (True, ["begun"])
        store.down = True
        await asyncio.sleep(30)
        assert (campaign.is_leader, shop.orders) == (False, ["begun", "closed"])


async def test_my_nine_oclock_job_runs_after_a_failover(server: MemoryServer) -> None:
    """The leader dies before nine, and nobody leads at nine. The next leader reminds the debtors, once."""
    first, second = MemoryStore(server), MemoryStore(server)
    dying, living = Shop(), Shop()
    async with jobs.background(first, context=dying), jobs.background(second, context=living):
        await asyncio.sleep(25)
        first.down = True  # as if the machine had died, five seconds before nine
        await asyncio.sleep(3600)
    assert (dying.reminded, living.reminded) == ([], [datetime(2026, 3, 2, 14, tzinfo=UTC)])


async def test_my_customers_are_charged_once_though_the_answer_is_lost(server: MemoryServer) -> None:
    """Whether the COMMIT was lost, or only its answer: the charge and its success are there together, once."""
    store, shop = MemoryStore(server), Shop()
    async with jobs.background(store, context=shop):
        for lose in (store.lose_request, store.lose_reply):
            lose("commit")
            await asyncio.sleep(60)
        await asyncio.sleep(60)
        assert [tick.minute for tick in shop.charged] == [0, 1, 2]
        assert {run.status for run in await store.history("default", "charge_cards")} == {"succeeded"}


def test_my_statements_stop_when_the_lease_is_lost() -> None:
    """A `def` job runs in a thread, which nobody can cancel. It stops at its next `check`, and prints nothing more."""

    class Resigning(Shop):
        def print(self, statement: str) -> None:
            super().print(statement)
            if statement == "Bob":
                run.leadership.resign()

    run = job_run("print_statements", context=Resigning())
    with pytest.raises(LeadershipLost):
        print_statements(run)
    assert run.context.printed == ["Ann", "Bob"]
