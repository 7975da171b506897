"""What a term on MySQL and MariaDB survives, and how it ends where it cannot: real servers, real faults."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import aiomysql
import anyio
import asyncmy
import pymysql
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from aiolease import Leadership, LeadershipLost, leadership, open_store
from aiolease._clock import boot_clock
from aiolease._waiting import time_limited
from aiolease.errors import StoreUnavailable
from aiolease.events import Elected, Event, Lost, Released, Renewed, RenewFailed, Waiting
from tests.campaigns import (
    LIMIT,
    Journal,
    Recorder,
    apart,
    campaign,
    database_of,
    row,
    sessions,
    through,
    until,
)
from tests.conftest import open_sockets
from tests.servers import Action, MariaDBServer, Server, TCPProxy

SLACK = 0.6
"""Seconds that a busy machine may be late."""

RENEWAL = b"UPDATE aiolease_lease SET beat"
CLAIM = b"JOIN aiolease_fence"


@asynccontextmanager
async def proxied(server: Server, url: str) -> AsyncIterator[tuple[TCPProxy, str]]:
    """A proxy before the server, and the URL of the database behind it."""
    async with TCPProxy(server.host, server.port) as proxy:
        yield proxy, through(url, proxy.port)


def once(statement: bytes, action: Action) -> Callable[[bytes], Action | None]:
    """A fault that happens to one query: the next that holds some text."""
    left = [action]

    def choose(query: bytes) -> Action | None:
        return left.pop() if left and statement in query else None

    return choose


def kill_sessions(server: Server, url: str) -> set[int]:
    """Ends all connections to a database, as an administrator does; gives their ids."""
    killed = set(sessions(server, url))
    for number in killed:
        with contextlib.suppress(pymysql.Error):  # gone by itself
            server.sql(f"KILL {number}")
    return killed


async def connect(server: Server, database: str = "mysql") -> Any:
    return await asyncmy.connect(host=server.host, port=server.port, user="root", database=database)


# -- a server that does not answer


@pytest.mark.parametrize("thawed", [False, True], ids=["rolls back elsewhere", "rolls back on the thawed server"])
async def test_a_frozen_server_leaves_time_to_unwind(
    mysql_server: Server, mysql_url: str, mariadb_snapshot: MariaDBServer, thawed: bool
) -> None:
    """When the lease's server freezes.

    The body is cancelled by `renew_deadline` after the last renewal was sent, and its clean-up may await: a
    rollback is done before the database would let anyone else lead.
    """
    heard = Recorder()
    work = mysql_server if thawed else mariadb_snapshot
    connection = await connect(work)
    cancelled = rolled_back = sent_at = 0.0
    try:
        with pytest.raises(LeadershipLost) as lost:  # noqa: PT012 - the block is the term
            async with leadership(mysql_url, lease_duration=3.0, on_event=heard) as lead:
                async with connection.cursor() as cursor:
                    await cursor.execute("CREATE TEMPORARY TABLE mysql.work (id INT) ENGINE = InnoDB")
                    await connection.begin()
                    await cursor.execute("INSERT INTO mysql.work VALUES (1)")
                await heard.next(Renewed)
                received, renewed = heard.last(Renewed)
                mysql_server.freeze()
                sent_at = received - renewed.took
                try:
                    await asyncio.sleep(LIMIT)
                except asyncio.CancelledError:
                    cancelled = boot_clock()
                    assert not lead.is_leader
                    if thawed:
                        mysql_server.thaw()
                    await connection.rollback()
                    rolled_back = boot_clock()
                    raise
        left = boot_clock()
        assert lost.value.reason == "expired"
        assert sent_at + 2.0 <= cancelled <= sent_at + 2.5 + 0.2
        assert rolled_back < sent_at + 3.0
        assert left < cancelled + 1.5, "leaving the block waited for the database"
        mysql_server.thaw()
        async with connection.cursor() as cursor:
            await cursor.execute("SELECT COUNT(*) FROM mysql.work")
            assert await cursor.fetchone() == (0,)
    finally:
        mysql_server.thaw()
        connection.close()


async def test_a_term_goes_on_after_a_short_freeze(mysql_server: Server, mysql_url: str) -> None:
    """A server that stands still for longer than a renewal may take, but not until the deadline, costs no term."""
    heard = Recorder()
    async with leadership(mysql_url, lease_duration=3.0, on_event=heard) as lead:
        await heard.next(Renewed)
        mysql_server.freeze()
        await heard.next(RenewFailed)
        mysql_server.thaw()
        await heard.next(Renewed, 2)
        lead.check()
    assert not heard.of(Lost)


# -- answers that are lost, statements that are late


@pytest.mark.parametrize("fate", ["swallow", "cut"])
async def test_a_renewal_whose_answer_is_lost_costs_nothing(mysql_server: Server, mysql_url: str, fate: Any) -> None:
    """The renewal took effect, its answer never came: the term goes on over a new connection.

    One whose connection ended is sent again at once, and is no trouble; one without an answer is followed by another.
    """
    heard = Recorder()
    async with (
        proxied(mysql_server, mysql_url) as (proxy, url),
        leadership(url, lease_duration=3.0, on_event=heard) as lead,
    ):
        await heard.next(Renewed)
        before, beat = proxy.connections, row(mysql_server, mysql_url)["beat"]
        answered = asyncio.Event()
        proxy.on_query = once(RENEWAL, Action(answer=fate, answered=answered))
        if fate == "swallow":
            await heard.next(RenewFailed)
            assert row(mysql_server, mysql_url)["beat"] > beat, "the lost renewal took effect"
        renewed = await heard.next(Renewed)
        assert answered.is_set()
        lead.check()
        assert renewed.beat > beat + (fate == "swallow")
        assert len(heard.of(RenewFailed)) == (fate == "swallow")
        assert (renewed.holder, renewed.token) == (lead.holder, lead.token)
        assert proxy.connections > before
        assert lead.remaining > 2.5 - 1.0
    assert heard.of(Released)


@pytest.mark.parametrize("fate", ["swallow", "cut"])
async def test_a_claim_whose_answer_is_lost_is_adopted(mysql_server: Server, mysql_url: str, fate: Any) -> None:
    """The candidate finds its own attempt in the row and leads by it, with the deadline of that attempt's sending."""
    heard, sent_at = Recorder(), [0.0]
    async with proxied(mysql_server, mysql_url) as (proxy, url):
        lose = once(CLAIM, Action(answer=fate))

        def note(query: bytes) -> Action | None:
            if CLAIM in query:
                sent_at[0] = boot_clock()
            return lose(query)

        proxy.on_query = note
        async with leadership(url, timeout=LIMIT, lease_duration=3.0, on_event=heard) as lead:
            assert lead.remaining <= sent_at[0] + 2.5 - boot_clock() + 0.001
            now = row(mysql_server, mysql_url)
            assert (now["holder"], now["token"], lead.token) == (lead.holder, 1, 1), "nobody led before"
            assert boot_clock() < sent_at[0] + 3.0, "it did not wait until its own claim ran out"
            assert bool(heard.of(Waiting)) == (fate == "swallow")  # over a new connection it is asked again at once
            await heard.next(Renewed)
            lead.check()


async def test_a_claim_that_is_found_too_late_is_given_back(mysql_server: Server, mysql_url: str) -> None:
    """An own claim that is found with little time left is not led by, nor waited for until it runs out."""
    heard, sent_at = Recorder(), [0.0]
    async with proxied(mysql_server, mysql_url) as (proxy, url):

        def lose(query: bytes) -> Action | None:
            if CLAIM in query and not sent_at[0]:
                sent_at[0] = boot_clock()
                asyncio.get_running_loop().call_later(3.4, proxy.heal)
                proxy.refuse()
                return Action(answer="cut")
            return None

        proxy.on_query = lose
        async with leadership(url, timeout=LIMIT, lease_duration=6.0, on_event=heard) as lead:
            assert boot_clock() < sent_at[0] + 6.0, "it waited for itself"
            assert lead.token == 2
            assert lead.remaining > 3.0


async def test_renewals_that_arrive_late_undo_nothing(mysql_server: Server, mysql_url: str) -> None:
    """A renewal that reaches the server over its old connection, after newer ones, moves neither beat nor expiry."""
    heard = Recorder()
    async with (
        proxied(mysql_server, mysql_url) as (proxy, url),
        # The server ends a session that is silent for as long as the lease: the late renewal must come sooner.
        leadership(url, lease_duration=9.0, heartbeat_interval=1.0, on_event=heard) as lead,
    ):
        await heard.next(Renewed)
        hold, old = asyncio.Event(), set(sessions(mysql_server, mysql_url))
        proxy.on_query = once(RENEWAL, Action(hold=hold))
        await heard.next(RenewFailed)
        await heard.next(Renewed, 2)
        before = row(mysql_server, mysql_url)
        assert old < set(sessions(mysql_server, mysql_url)), "the old connection is still there"
        hold.set()
        await until(lambda: old.isdisjoint(sessions(mysql_server, mysql_url)), "the server has read it to its end")
        after = row(mysql_server, mysql_url)
        # The next own renewal may have come in between; then both have risen by a whole heartbeat.
        moved = after["expires_at"] - before["expires_at"]
        assert after["beat"] >= before["beat"]
        assert (after["beat"], moved) == (before["beat"], timedelta(0)) or (
            after["beat"] == before["beat"] + 1 and moved > timedelta(seconds=0.8)
        )
        await heard.next(Renewed)
        lead.check()


# -- one connection for several leases


async def test_a_connection_that_hangs_as_it_is_made_costs_no_other_lease(mysql_server: Server, mysql_url: str) -> None:
    """A lease with time connects anew, and gets no greeting; one without gives up, and then both have a connection."""
    async with proxied(mysql_server, mysql_url) as (proxy, url), open_store(url) as store:
        for name in ("long", "short"):
            assert await store.claim(name, "me", 60.0, seen=None, force=False)
        proxy.cut()
        lost = proxy.swallowed["to_client"]
        proxy.swallow("to_client")
        long = asyncio.create_task(store.renew("long", "me", 1, 6, 60.0))
        await until(lambda: proxy.swallowed["to_client"] > lost, "the greeting is lost")
        proxy.heal()
        with pytest.raises(StoreUnavailable):
            await time_limited(0.5, "short", store.renew("short", "me", 1, 5, 60.0))
        renewed = await time_limited(5.0, "both", asyncio.gather(long, store.renew("short", "me", 1, 6, 60.0)))
        assert [(lease.name, lease.beat) for lease in renewed if lease] == [("long", 6), ("short", 6)]


async def test_a_lease_too_short_for_its_network_costs_no_longer_one(mysql_server: Server, mysql_url: str) -> None:
    """Who gives up again and again, before a slow network can answer, does not end what others have the time for."""
    async with proxied(mysql_server, mysql_url) as (proxy, url), open_store(url) as store:
        assert await store.claim("long", "me", 60.0, seen=None, force=False)
        proxy.delay(0.2)

        async def impatient(seconds: float) -> None:
            while True:
                with contextlib.suppress(StoreUnavailable):
                    await time_limited(seconds, "short", store.read("short"))
                await asyncio.sleep(0.05)

        neighbours = [asyncio.create_task(impatient(seconds)) for seconds in (0.25, 0.33)]
        try:
            failures = 0
            for beat in range(5, 11):
                try:
                    lease = await time_limited(4.0, "long", store.renew("long", "me", 1, beat, 60.0))
                except StoreUnavailable:
                    failures += 1
                else:
                    assert lease is not None
                    assert lease.beat == beat
            assert failures <= 2, "while it learns how slow the network is"
        finally:
            for neighbour in neighbours:
                neighbour.cancel()
            await asyncio.wait(neighbours)


# -- connections that end


async def test_a_killed_connection_is_replaced(mysql_server: Server, mysql_url: str) -> None:
    """An administrator's KILL of the lease's connection costs no term: it goes on over a new one."""
    heard = Recorder()
    async with leadership(mysql_url, lease_duration=3.0, on_event=heard) as lead:
        for _ in range(2):
            await heard.next(Renewed)
            killed = kill_sessions(mysql_server, mysql_url)
            assert killed
            await heard.next(Renewed)
            lead.check()
            assert sessions(mysql_server, mysql_url).keys().isdisjoint(killed)
        now = row(mysql_server, mysql_url)
        assert (now["holder"], now["token"]) == (lead.holder, lead.token)
    assert heard.of(Released)
    assert not heard.of(Lost)


async def test_a_restart_within_the_lease_costs_no_term(mysql_server: Server, mysql_url: str) -> None:
    """A server that comes back before the deadline finds its leader, and a candidate goes on waiting."""
    heard, journal = Recorder(), Journal()
    async with leadership(mysql_url, lease_duration=15.0, heartbeat_interval=1.0, on_event=heard) as lead:
        async with campaign(apart(mysql_url), journal=journal, lease_duration=15.0) as waiting:
            await heard.next(Renewed)
            await asyncio.to_thread(mysql_server.restart)
            await heard.next(Renewed, 2)
            lead.check()
            await until(lambda: len(sessions(mysql_server, mysql_url)) >= 2, "the candidate is back")
            assert not journal.terms
            assert not waiting.of(Elected)
        now = row(mysql_server, mysql_url)
        assert (now["holder"], now["token"]) == (lead.holder, lead.token)
    assert not heard.of(Lost)


async def test_a_server_that_became_read_only_is_left(mysql_server: Server, mysql_url: str) -> None:
    """Error 1290 costs the connection; the term goes on if writing is allowed in time, else ends by the deadline."""
    user, variable = "worker", "super_read_only" if mysql_server.kind == "mysql" else "read_only"
    mysql_server.create_user(user, "s3cret", f"ALL ON {database_of(mysql_url)}.*")
    heard = Recorder()
    url = mysql_server.url(database_of(mysql_url), user=user, password="s3cret")
    try:
        with pytest.raises(LeadershipLost) as lost:  # noqa: PT012 - the block is the term
            async with leadership(url, lease_duration=3.0, on_event=heard) as lead:
                await heard.next(Renewed)
                before = set(sessions(mysql_server, url))
                mysql_server.sql(f"SET GLOBAL {variable} = 1")
                assert "1290" in (await heard.next(RenewFailed)).error
                mysql_server.sql("SET GLOBAL read_only = 0")
                await heard.next(Renewed)
                lead.check()
                assert before.isdisjoint(sessions(mysql_server, url)), "a connection that found no primary is kept"
                mysql_server.sql(f"SET GLOBAL {variable} = 1")
                received, renewed = heard.last(Renewed)
                sent_at = received - renewed.took
                try:
                    await asyncio.sleep(LIMIT)
                finally:
                    assert sent_at + 2.0 < boot_clock() < sent_at + 2.5 + SLACK
        assert lost.value.reason == "expired"
        assert len(heard.of(RenewFailed)) >= 3
        mysql_server.sql("SET GLOBAL read_only = 0")
        async with leadership(url, timeout=LIMIT, lease_duration=3.0) as lead:
            assert lead.token == lost.value.token + 1
    finally:
        mysql_server.sql("SET GLOBAL read_only = 0")
        mysql_server.sql(f"DROP USER '{user}'@'%'")


# -- the application's own doing


async def test_jobs_that_exhaust_their_pool_do_not_cost_the_lease(mysql_server: Server, mysql_url: str) -> None:
    """A body that holds the only connection of its pool for longer than the lease leads on: all kinds of pools."""
    login = {"host": mysql_server.host, "port": mysql_server.port, "user": "root", "db": database_of(mysql_url)}
    where = f"root@{mysql_server.host}:{mysql_server.port}/{database_of(mysql_url)}"

    async def leads(target: Any, name: str, borrow: Callable[[], Any]) -> None:
        heard = Recorder()
        async with borrow() as held, leadership(target, name, lease_duration=1.5, on_event=heard) as lead:
            waiting = asyncio.create_task(borrow().__aenter__())
            await heard.next(Renewed, 4)
            assert not waiting.done(), "the pool is not exhausted"
            waiting.cancel()
            await asyncio.wait([waiting])
            lead.check()
            if hasattr(held, "cursor"):
                async with held.cursor() as cursor:
                    await cursor.execute("SELECT 1")
            else:
                await held.execute(text("SELECT 1"))
        assert not heard.of(RenewFailed)

    async with AsyncExitStack() as stack:
        works = []
        for module in (asyncmy, aiomysql):
            pool = await stack.enter_async_context(module.create_pool(minsize=1, maxsize=1, **login))
            works.append(leads(pool, module.__name__, pool.acquire))
            engine = create_async_engine(f"mysql+{module.__name__}://{where}", pool_size=1, max_overflow=0)
            stack.push_async_callback(engine.dispose)
            works.append(leads(engine, f"engine-{module.__name__}", engine.connect))
        await asyncio.gather(*works)


async def test_a_stranger_who_locks_the_row_for_a_while_costs_no_term(mysql_server: Server, mysql_url: str) -> None:
    """A transaction that holds the lease's row for longer than a renewal may take, but not until the deadline."""
    heard = Recorder()
    async with leadership(mysql_url, lease_duration=3.0, on_event=heard) as lead:
        await heard.next(Renewed)
        stranger = await connect(mysql_server, database_of(mysql_url))
        try:
            await stranger.begin()
            async with stranger.cursor() as cursor:
                await cursor.execute("SELECT * FROM aiolease_lease FOR UPDATE")
            await heard.next(RenewFailed)
            await stranger.rollback()
        finally:
            stranger.close()
        await heard.next(Renewed, 2)
        lead.check()
        assert not heard.of(Lost)


async def test_what_is_done_to_the_row_by_hand_ends_the_term(mysql_server: Server, mysql_url: str) -> None:
    """A row that was taken, cleared or deleted ends the term at its next heartbeat, as "taken".

    Then somebody leads again, with a higher token.
    """
    edits = {
        "taken": "UPDATE {} SET holder = 'me', token = token + 1, expires_at = UTC_TIMESTAMP(6) + INTERVAL 2 SECOND",
        "cleared": "UPDATE {} SET holder = NULL",
        "deleted": "DELETE FROM {}",
        "outbid": "UPDATE {} SET token = token + 1",
    }

    async def edited(name: str, edit: str) -> None:
        journal = Journal()
        async with campaign(mysql_url, name, journal=journal, lease_duration=3.0, heartbeat_interval=0.6) as heard:
            first = await journal.leader()
            await heard.next(Renewed)
            statement = edit.format("aiolease_lease") + f" WHERE name = '{name}'"
            mysql_server.sql(statement, database_of(mysql_url))
            at = boot_clock()
            assert (await heard.next(Lost)).reason == "taken"
            assert boot_clock() < at + 0.6 + SLACK
            second = await journal.leader(above=first.token)
            assert second.token == first.token + (2 if "token + 1" in edit else 1)
        journal.check()

    async with asyncio.TaskGroup() as tasks:
        for name, edit in edits.items():
            tasks.create_task(edited(name, edit))


async def test_a_lease_is_not_released_under_its_body(mysql_server: Server, mysql_url: str) -> None:
    """While a body ignores its cancellation, its lease is renewed and held, and nobody else leads."""
    heard, journal = Recorder(), Journal()

    async def stubborn() -> float:
        async with leadership(mysql_url, lease_duration=3.0, on_event=heard) as lead:
            led.set()
            await heard.next(Renewed)
            lead.resign()
            beat, ends = row(mysql_server, mysql_url)["beat"], boot_clock() + 2.6
            while boot_clock() < ends:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.05)
                assert row(mysql_server, mysql_url)["holder"] == lead.holder
            assert row(mysql_server, mysql_url)["beat"] >= beat + 2
            return boot_clock()

    led = asyncio.Event()
    body = asyncio.create_task(stubborn())
    async with asyncio.timeout(LIMIT):
        await led.wait()
        async with campaign(apart(mysql_url), journal=journal, lease_duration=3.0):
            ended = await body
            assert (await journal.leader()).began >= ended
    assert heard.of(Released)


# -- clocks


async def test_sessions_of_different_time_zones_agree(mysql_server: Server, mysql_url: str) -> None:
    """Whatever the time zones of the server and of two sessions, both read one expiry, and neither claims early."""
    login: dict[str, Any] = {"host": mysql_server.host, "port": mysql_server.port, "db": database_of(mysql_url)}
    try:
        mysql_server.sql("SET GLOBAL time_zone = '+11:00'")
        async with AsyncExitStack() as stack:
            stores = []
            for zone in ("+05:00", "-08:00", None):
                setting: dict[str, Any] = {"init_command": f"SET time_zone = '{zone}'"} if zone else {}
                pool = await stack.enter_async_context(asyncmy.create_pool(minsize=0, user="root", **login, **setting))
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
        mysql_server.sql("SET GLOBAL time_zone = 'SYSTEM'")


@pytest.mark.parametrize("steps", [(3600, 0), (-3600, 0)], ids=["forward, then back", "back, then forward"])
async def test_a_step_of_the_clock_makes_neither_two_leaders_nor_none(
    mariadb_faketime: MariaDBServer, steps: tuple[int, int]
) -> None:
    """The server's clock steps by an hour.

    Candidates that ran before and that start after, with equal and with different timings, never make two leaders,
    and replace one that vanished within its lease's time.
    """
    server = mariadb_faketime
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


@pytest.mark.parametrize("hint", [False, True], ids=["polls", "waits in the lock"])
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


async def test_a_process_that_starts_after_a_step_does_not_lead_beside_the_leader(
    mariadb_faketime: MariaDBServer,
) -> None:
    """The clock goes forward by most of a lease and the leader is cut off: a process that starts waits for a lease."""
    server, journal, lease = mariadb_faketime, Journal(), 3.0
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


# -- cancellation


@pytest.mark.parametrize("kind", ["native", "native twice", "anyio"])
async def test_cancellation_leaves_nothing_behind(mysql_server: Server, mysql_url: str, kind: str) -> None:
    """A campaign that is cancelled.

    At any turn of the loop, while it connects, reads, waits, claims, leads or releases, ends, leaves no task and no
    connection, here or at the server, and the row at most until it expires.
    """

    async def leads(name: str) -> None:
        async with leadership(mysql_url, name, lease_duration=1.5):
            await asyncio.sleep(0.002)

    async def work(name: str, scope: anyio.CancelScope) -> None:
        with scope:
            await leads(name)

    async def cancelled(names: tuple[str, ...], turns: int) -> bool:
        """Whether the campaigns ended, cancelled after so many turns of the loop."""
        scopes = [anyio.CancelScope() for _ in names]
        tasks = [asyncio.create_task(work(name, scope)) for name, scope in zip(names, scopes, strict=True)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for _ in range(2 if kind == "native twice" else 1):
            for task, scope in zip(tasks, scopes, strict=True):
                scope.cancel() if kind == "anyio" else task.cancel()
            await asyncio.sleep(0)
        _, pending = await asyncio.wait(tasks, timeout=2.0)
        for task in pending:
            task.cancel()  # it went on as if nothing had been
            await asyncio.wait([task], timeout=LIMIT)
        return not pending

    left: dict[tuple[str, int], list[str]] = {}

    async def check(phase: str, names: tuple[str, ...], turns: int) -> None:
        tasks, sockets = asyncio.all_tasks(), open_sockets()
        ended = await cancelled(names, turns)
        await asyncio.sleep(0)
        found = [peer for name, peer in open_sockets().items() if name not in sockets]
        found += [repr(task) for task in asyncio.all_tasks() - tasks]
        if found or not ended:
            left[phase, turns] = found if ended else ["the cancellation was swallowed"]

    points = [*range(30), *range(30, 90, 4), *range(90, 500, 20)]
    await leads("tables")
    for turns in points:
        await check("alone", (f"alone-{turns}",), turns)
    holders = [apart(mysql_url), apart(mysql_url)]
    async with leadership(holders[0], "one", lease_duration=60), leadership(holders[1], "two", lease_duration=60):
        await asyncio.sleep(0.1)  # their keepers have begun
        for turns in points:
            await check("waits in the lock", ("one",), turns)
            await check("polls", ("one", "two"), turns)
    assert not left
    await until(lambda: not sessions(mysql_server, mysql_url), "the server has no connection left")
    taken = mysql_server.sql("SELECT name FROM aiolease_lease WHERE holder IS NOT NULL", database_of(mysql_url))
    assert len(taken) < len(points) / 2, "most claims are given back"
    for name in [name for (name,) in taken][:1]:
        began = boot_clock()
        async with leadership(mysql_url, name, timeout=LIMIT, lease_duration=1.5):
            assert boot_clock() < began + 1.5 + SLACK


def outcome(event: Event) -> str:
    return type(event).__name__


async def test_a_body_may_hold_two_leases_and_lose_one(mysql_server: Server, mysql_url: str) -> None:
    """Two leases of one process share a connection, not a fate: one that is taken by hand leaves the other alone."""
    outer, inner = Recorder(), Recorder()

    async def nested(lead: Leadership) -> None:
        async with leadership(mysql_url, "inner", lease_duration=3.0, heartbeat_interval=0.5, on_event=inner):
            await inner.next(Renewed)
            mysql_server.sql("UPDATE aiolease_lease SET holder = 'x' WHERE name = 'inner'", database_of(mysql_url))
            await asyncio.sleep(LIMIT)

    async with leadership(mysql_url, "outer", lease_duration=3.0, on_event=outer) as lead:
        with pytest.raises(LeadershipLost) as lost:
            await nested(lead)
        assert lost.value.name == "inner"
        await outer.next(Renewed, 2)
        lead.check()
    assert [outcome(event) for _, event in outer.events if isinstance(event, RenewFailed | Lost)] == []
