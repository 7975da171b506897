"""Clocks of sessions and of servers: zones, steps, and looks that end by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncmy
import asyncpg
import pytest

from aiolease import leadership, open_store
from aiolease.errors import StoreUnavailable
from tests.campaigns import LIMIT, Journal, campaign, database_of, proxied
from tests.servers import Server, TCPProxy

with_steps = pytest.mark.parametrize("stepping", ["mariadb_faketime", "postgresql_faketime"], indirect=True)


@pytest.fixture
def stepping(request: pytest.FixtureRequest) -> Server:
    """A server whose clock steps."""
    server: Server = request.getfixturevalue(request.param)
    return server


@asynccontextmanager
async def pool_in(zone: str | None, server: Server, url: str) -> AsyncIterator[Any]:
    """A pool whose sessions are in a time zone."""
    if server.kind == "postgresql":
        options: dict[str, Any] = {"server_settings": {"TimeZone": zone}} if zone else {}
        async with asyncpg.create_pool(url, min_size=0, ssl=False, **options) as pool:
            yield pool
    else:
        login: dict[str, Any] = {"host": server.host, "port": server.port, "user": "root", "db": database_of(url)}
        options = {"init_command": f"SET time_zone = '{zone}'"} if zone else {}
        async with asyncmy.create_pool(minsize=0, **login, **options) as pool:
            yield pool


def set_zone(server: Server, zone: str) -> None:
    """Sets the time zone of the server; an empty one is what it starts with."""
    if server.kind == "postgresql":
        server.sql(f"ALTER SYSTEM SET TimeZone = {zone or 'DEFAULT'}")
        server.sql("SELECT pg_reload_conf()")
    else:
        server.sql(f"SET GLOBAL time_zone = '{zone or 'SYSTEM'}'")


@pytest.mark.parametrize("mysql_server", ["mariadb", "mysql9", "postgresql"], indirect=True)
async def test_sessions_of_different_time_zones_agree(mysql_server: Server, mysql_url: str) -> None:
    """Whatever the time zones of the server and of two sessions, both read one expiry, and neither claims early."""
    try:
        set_zone(mysql_server, "'Etc/GMT-11'" if mysql_server.kind == "postgresql" else "+11:00")
        async with AsyncExitStack() as stack:
            stores = []
            for zone in ("+05:00", "-08:00", None):
                pool = await stack.enter_async_context(pool_in(zone, mysql_server, mysql_url))
                stores.append(await stack.enter_async_context(open_store(pool)))
            for turn, store in enumerate(stores):
                won = await store.claim("cron", f"holder-{turn}", 0.7, seen=await store.read("cron"), force=False)
                assert won is not None
                assert won.holder == f"holder-{turn}"
                for other in stores:
                    seen = await other.read("cron")
                    assert seen is not None
                    assert (seen.expires_at, seen.elected_at) == (won.expires_at, won.elected_at)
                    assert timedelta(0) <= seen.now - won.now < timedelta(seconds=5)
                rival = stores[(turn + 1) % len(stores)]
                if not (seen := await rival.read("cron")) or seen.expired:
                    continue  # a slow machine
                early = await rival.claim("cron", "early", 9.0, seen=seen, force=False)
                assert early is not None
                assert early.holder == won.holder or early.elected_at >= won.expires_at
                async with asyncio.timeout(LIMIT):
                    while not (seen := await rival.read("cron")) or not seen.expired:
                        await asyncio.sleep(0.02)
                assert seen.now - won.now < timedelta(seconds=5)
    finally:
        set_zone(mysql_server, "")


@pytest.mark.parametrize(
    ("stepping", "steps"),
    [
        *[("mariadb_faketime", (3600, 0)), ("mariadb_faketime", (-3600, 0))],
        ("postgresql_faketime", (-3600, 0)),
    ],
    indirect=["stepping"],
)
async def test_a_step_of_the_clock_makes_neither_two_leaders_nor_none(stepping: Server, steps: tuple[int, int]) -> None:
    """The server's clock steps by an hour.

    Candidates that ran before and that start after, with equal and with different timings, never make two leaders,
    and replace one that vanished within its lease's time.
    """
    server = stepping
    database = f"test_steps_{steps[0] > 0:d}"
    server.create_database(database)
    url = server.url(database)

    async def fleet(name: str, leases: list[float]) -> None:
        journal, bound = Journal(), max(leases) * 2 + 1.5
        async with AsyncExitStack() as stack:
            proxies: dict[str, TCPProxy] = {}

            async def start(who: str, lease: float) -> None:
                proxy, its_url = await stack.enter_async_context(proxied(server, url))
                proxies[who] = proxy
                await stack.enter_async_context(campaign(its_url, name, journal=journal, who=who, lease_duration=lease))

            for number in range(2):
                await start(f"old-{number}", leases[number])
            leader = await journal.leader()
            for number, step in enumerate(steps):
                await barrier.wait()
                server.step_clock(step)
                await start(f"fresh-{number}", leases[2 - number])
                # The leader, if it was not the step that ended it, renews on; nobody takes its lease.
                await asyncio.sleep(max(leases) * 0.8)
                leader = await journal.leader(limit=bound)
                proxies[leader.who].swallow()
                old, leader = leader, await journal.leader(above=leader.token, but=leader.who, limit=bound)
                journal.check()
                proxies[old.who].heal()
            assert len(journal.terms) == 1 + len(steps), f"the steps alone ended terms: {journal.terms}"
        journal.check()

    barrier = asyncio.Barrier(2)
    try:
        async with leadership(url, "tables", timeout=LIMIT):
            pass
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fleet("equal", [1.5, 1.5, 1.5]))
            tasks.create_task(fleet("different", [2.4, 0.9, 1.5]))
    finally:
        server.drop_database(database)


@pytest.mark.parametrize("mysql_server", ["mariadb", "mysql9", "postgresql"], indirect=True)
@pytest.mark.parametrize("hint", [False, True], ids=["polls", "waits for a hint"])
async def test_a_look_whose_answer_is_lost_ends_by_itself(mysql_server: Server, mysql_url: str, hint: bool) -> None:
    """A candidate that watches for long, and loses the answer of one reading, hears of it soon, and looks again."""
    async with (
        proxied(mysql_server, mysql_url) as (proxy, url),
        open_store(mysql_url) as leader,
        open_store(url) as candidate,
    ):
        lease = await leader.claim("cron", "leader", 3.0, seen=None, force=False)
        assert lease is not None
        assert await candidate.read("cron") is not None
        wait = {"lease": lease, "poll": 0.2, "hint": hint}
        proxy.swallow("to_client")
        async with asyncio.timeout(LIMIT):
            with pytest.raises(StoreUnavailable):
                await candidate.watch("cron", 3600.0, **wait)  # type: ignore[arg-type]
            proxy.heal()
            while (await candidate.watch("cron", 0.2, **wait)) is None:  # type: ignore[arg-type]
                pass


@with_steps
async def test_a_process_that_starts_after_a_step_does_not_lead_beside_the_leader(stepping: Server) -> None:
    """The clock goes forward by most of a lease and the leader is cut off: a process that starts waits for a lease."""
    server, journal, lease = stepping, Journal(), 3.0
    database = "test_fresh_after_step"
    server.create_database(database)
    try:
        async with AsyncExitStack() as stack:
            proxy, url = await stack.enter_async_context(proxied(server, server.url(database)))
            options: dict[str, Any] = {"journal": journal, "lease_duration": lease}
            await stack.enter_async_context(campaign(url, "cron", who="old", **options))
            leader = await journal.leader()
            server.step_clock(lease * 0.7)
            proxy.swallow()
            fresh = server.url(database)
            await stack.enter_async_context(campaign(fresh, "cron", who="fresh", **options))
            await journal.leader(above=leader.token, but="old", limit=3 * lease)
            journal.check()
        journal.check()
    finally:
        server.drop_database(database)
