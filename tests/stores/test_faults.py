"""What a term on a server survives, and how it ends where it cannot: real servers, real faults."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import aiomysql
import asyncmy
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from aiolease import LeadershipLost, leadership, open_store
from aiolease._clock import boot_clock
from aiolease._waiting import time_limited
from aiolease.errors import StoreUnavailable
from aiolease.events import Elected, Lost, Released, Renewed, RenewFailed, Waiting
from aiolease.stores import Store
from tests.campaigns import (
    LIMIT,
    Journal,
    Recorder,
    apart,
    campaign,
    database_of,
    kill_sessions,
    once,
    proxied,
    row,
    sessions,
    until,
)
from tests.servers import Action, MariaDBServer, Server
from tests.stores.mysql.connecting import SLACK

RENEWAL = b"SET beat"
CLAIMS = {"mariadb": b"JOIN aiolease_fence", "mysql": b"JOIN aiolease_fence", "postgresql": b"AS l SET holder"}


def everywhere(driver: str) -> pytest.MarkDecorator:
    """On every server, on PostgreSQL by one of its drivers."""
    return pytest.mark.parametrize("mysql_server", ["mariadb", "mysql9", f"postgresql+{driver}"], indirect=True)


by_asyncpg, by_psycopg = everywhere("asyncpg"), everywhere("psycopg")


# -- a server that does not answer


@pytest.mark.parametrize(
    ("mysql_server", "thawed"),
    [("mariadb", False), ("mariadb", True), ("mysql9", False), ("mysql9", True), ("postgresql+asyncpg", True)],
    indirect=["mysql_server"],
)
async def test_a_frozen_server_leaves_time_to_unwind(
    mysql_server: Server, mysql_url: str, mariadb_snapshot: MariaDBServer, thawed: bool
) -> None:
    """When the lease's server freezes.

    The body is cancelled by `renew_deadline` after the last renewal was sent, and its clean-up may await: a
    rollback is done before the database would let anyone else lead.
    """
    heard = Recorder()
    work = mysql_server if thawed else mariadb_snapshot
    connection = work.session()
    cancelled = rolled_back = sent_at = 0.0
    try:
        with pytest.raises(LeadershipLost) as lost:  # noqa: PT012 - the block is the term
            async with leadership(mysql_url, lease_duration=3.0, on_event=heard) as lead:
                cursor = connection.cursor()
                cursor.execute("CREATE TEMPORARY TABLE work (id INT)")
                connection.commit()
                cursor.execute("INSERT INTO work VALUES (1)")
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
                    await asyncio.to_thread(connection.rollback)
                    rolled_back = boot_clock()
                    raise
        left = boot_clock()
        assert lost.value.reason == "expired"
        assert sent_at + 2.0 <= cancelled <= sent_at + 2.5 + 0.2
        assert rolled_back < sent_at + 3.0
        assert left < cancelled + 1.5, "leaving the block waited for the database"
        mysql_server.thaw()
        cursor.execute("SELECT COUNT(*) FROM work")
        assert cursor.fetchone() == (0,)
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


@pytest.mark.parametrize(
    ("mysql_server", "fate"),
    [
        *[("mariadb", "swallow"), ("mariadb", "cut"), ("mysql9", "swallow"), ("mysql9", "cut")],
        ("postgresql+asyncpg", "swallow"),
    ],
    indirect=["mysql_server"],
)
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


@by_psycopg
@pytest.mark.parametrize("fate", ["swallow", "cut"])
async def test_a_claim_whose_answer_is_lost_is_adopted(mysql_server: Server, mysql_url: str, fate: Any) -> None:
    """The candidate finds its own attempt in the row and leads by it, with the deadline of that attempt's sending."""
    heard, sent_at = Recorder(), [0.0]
    async with proxied(mysql_server, mysql_url) as (proxy, url):
        claim = CLAIMS[mysql_server.kind]
        lose = once(claim, Action(answer=fate))

        def note(query: bytes) -> Action | None:
            if claim in query:
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
    """A process that finds its own claim with little time left neither leads by it nor waits until it expires."""
    heard, sent_at = Recorder(), [0.0]
    async with proxied(mysql_server, mysql_url) as (proxy, url):

        def lose(query: bytes) -> Action | None:
            if CLAIMS[mysql_server.kind] in query and not sent_at[0]:
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


@by_asyncpg
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
            await time_limited(2.0, "short", store.renew("short", "me", 1, 5, 60.0))
        renewed = await time_limited(5.0, "both", asyncio.gather(long, store.renew("short", "me", 1, 6, 60.0)))
        assert [(lease.name, lease.beat) for lease in renewed if lease] == [("long", 6), ("short", 6)]


async def test_an_exchange_that_hangs_costs_no_other_lease(mysql_server: Server, mysql_url: str) -> None:
    """Who gives up waiting for its turn ends the exchange before it, whose lease has the time to wait for long."""
    async with proxied(mysql_server, mysql_url) as (proxy, url), open_store(url) as store:
        for name in ("long", "short"):
            assert await store.claim(name, "me", 60.0, seen=None, force=False)
        hangs = asyncio.Event()

        def swallow(query: bytes) -> Action | None:
            if RENEWAL not in query:
                return None
            proxy.on_query = None
            hangs.set()
            return Action(answer="swallow")

        proxy.on_query = swallow
        long = asyncio.create_task(time_limited(10.0, "long", store.renew("long", "me", 1, 5, 60.0)))
        await hangs.wait()
        with pytest.raises(StoreUnavailable):
            await time_limited(2.0, "short", store.renew("short", "me", 1, 5, 60.0))
        with pytest.raises(StoreUnavailable, match="others wait for the connection"):
            await long
        lease = await time_limited(5.0, "short", store.renew("short", "me", 1, 6, 60.0))
        assert lease is not None
        assert lease.beat == 6


@contextlib.asynccontextmanager
async def impatient_readers(store: Store, *limits: float) -> AsyncIterator[None]:
    """Some who read again and again while the block runs, each with so many seconds for an answer."""

    async def read(limit: float) -> None:
        while True:
            with contextlib.suppress(StoreUnavailable):
                await time_limited(limit, "short", store.read("short"))
            await asyncio.sleep(0.05)

    readers = [asyncio.create_task(read(limit)) for limit in limits]
    try:
        yield
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.wait(readers)


async def failed_renewals(store: Store, beats: Iterable[int]) -> int:
    """Renews a long lease; says how many of the renewals failed."""
    failed = 0
    for beat in beats:
        try:
            lease = await time_limited(4.0, "long", store.renew("long", "me", 1, beat, 60.0))
        except StoreUnavailable:
            failed += 1
        else:
            assert lease is not None
            assert lease.beat == beat
    return failed


async def test_a_lease_too_short_for_its_network_costs_no_longer_one(mysql_server: Server, mysql_url: str) -> None:
    """A caller with little time does not end the exchanges of callers that can wait for a slow network."""
    async with proxied(mysql_server, mysql_url) as (proxy, url), open_store(url) as store:
        assert await store.claim("long", "me", 60.0, seen=None, force=False)
        proxy.delay(0.2)

        async with impatient_readers(store, 0.25, 0.33):
            assert await failed_renewals(store, range(5, 11)) <= 2, "while it learns how slow the network is"


async def test_a_lease_too_short_for_slow_commits_costs_no_longer_one(mysql_server: Server, mysql_url: str) -> None:
    """The same where only commits are slow: the quick answers between them do not make it impatient again."""

    def slowly(query: bytes) -> Action | None:
        if RENEWAL not in query:
            return None
        committed = asyncio.Event()
        asyncio.get_running_loop().call_later(1.0, committed.set)
        return Action(hold=committed)

    async with proxied(mysql_server, mysql_url) as (proxy, url), open_store(url) as store:
        assert await store.claim("long", "me", 60.0, seen=None, force=False)
        proxy.on_query = slowly
        async with impatient_readers(store, 0.5, 0.6):
            assert await failed_renewals(store, range(5, 11)) <= 2, "while it learns how slow the commits are"


# -- connections that end


@by_psycopg
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
        async with borrow() as held, leadership(target, name, lease_duration=3.0, on_event=heard) as lead:
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


@by_psycopg
async def test_a_stranger_who_locks_the_row_for_a_while_costs_no_term(mysql_server: Server, mysql_url: str) -> None:
    """A transaction that holds the lease's row for longer than a renewal may take, but not until the deadline."""
    heard = Recorder()
    async with leadership(mysql_url, lease_duration=3.0, on_event=heard) as lead:
        await heard.next(Renewed)
        stranger = mysql_server.session(database_of(mysql_url))
        try:
            stranger.cursor().execute("SELECT * FROM aiolease_lease FOR UPDATE")
            await heard.next(RenewFailed)
            stranger.rollback()
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
