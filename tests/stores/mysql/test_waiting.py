"""How candidates on MySQL and MariaDB wait: woken by a release, quiet otherwise, whatever becomes of the lock."""

from __future__ import annotations

import asyncio
import gc
import re
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from typing import Any

import pymysql
import pytest

from aiolease import StoreUnavailable, leadership, open_store
from aiolease._clock import boot_clock
from aiolease.events import Elected, Following, Renewed
from aiolease.stores.mysql import MySQLStore
from aiolease.stores.network.polls import Polls
from aiolease.stores.records import Lease
from tests.campaigns import (
    LIMIT,
    Journal,
    Recorder,
    apart,
    campaign,
    counter,
    database_of,
    leader_process,
    row,
    sessions,
    spend,
    through,
    until,
)
from tests.servers import Server, TCPProxy

SLACK = 0.8
"""Seconds that a busy machine may be late."""

SLOW: dict[str, Any] = {"lease_duration": 60.0, "retry_interval": 30.0}
"""Timings with which no poll explains a quick hand-over."""


def waits_in_lock(server: Server, url: str) -> int:
    """How many sessions wait for the lock."""
    return sum("GET_LOCK" in doing for doing in sessions(server, url).values())


async def test_a_release_wakes_a_candidate_of_another_process(mysql_server: Server, mysql_url: str) -> None:
    """A leader that ends in order is followed at once, not at the next poll."""
    journal = Journal()
    async with leader_process(mysql_url, **SLOW) as process, campaign(mysql_url, journal=journal, **SLOW):
        await until(lambda: waits_in_lock(mysql_server, mysql_url), "the candidate waits in the lock")
        assert process.stdin is not None
        released = boot_clock()
        process.stdin.write(b"\n")
        assert (await journal.leader()).began < released + SLACK


async def test_a_killed_process_is_followed_as_its_lease_expires(mysql_server: Server, mysql_url: str) -> None:
    """After SIGKILL of the leader the next term begins as the lease expires, by the database's clock."""
    journal = Journal()
    async with leader_process(mysql_url, lease_duration=3.0) as process, campaign(mysql_url, journal=journal):
        await until(lambda: row(mysql_server, mysql_url)["beat"] >= 3, "it renewed")
        process.kill()
        await process.wait()
        expires_at = row(mysql_server, mysql_url)["expires_at"]
        await journal.leader()
        late = row(mysql_server, mysql_url)["elected_at"] - expires_at
        assert timedelta(0) <= late < timedelta(seconds=SLACK / 2)


async def test_takeover_is_not_rounded(mysql_server: Server, mysql_url: str) -> None:
    """A lease that was never released is taken as it expires.

    Whatever fraction of a second that is, by a candidate that waits in its lock: neither earlier, nor a rounded
    second or a poll later.
    """

    async def taken(duration: float) -> timedelta:
        name = f"lease-{duration:g}"
        async with open_store(apart(mysql_url)) as vanished, open_store(apart(mysql_url)) as store:
            lease = await vanished.claim(name, "vanished", duration, seen=None, force=False)
            assert lease is not None
            async with leadership(store, name, timeout=LIMIT, **SLOW) as lead:
                expired: datetime = lease.expires_at
                return lead.elected_at - expired

    async with leadership(mysql_url, "tables", timeout=LIMIT):
        pass
    durations = (1.1, 1.3, 1.5, 1.7, 1.9, 2.45, 2.55)
    for late in await asyncio.gather(*map(taken, durations)):
        assert timedelta(0) <= late < timedelta(seconds=0.4)


@pytest.mark.parametrize("name", ["x" * 100, "it's%s\\", '`"%(a)s?:#--'], ids=["long", "quoted", "odd"])
async def test_any_name_has_a_lock(mysql_server: Server, mysql_url: str, name: str) -> None:
    """Longer names than the server's locks may have, and all signs, are handed over at once, beat after beat."""
    journal, timings = Journal(), {"heartbeat_interval": 0.5, **SLOW}
    async with campaign(apart(mysql_url), name, journal=journal, who="first", **timings) as heard:
        await heard.next(Renewed)
        async with campaign(apart(mysql_url), name, journal=journal, who="second", **SLOW):
            await until(lambda: waits_in_lock(mysql_server, mysql_url), "the candidate waits in the lock")
            await heard.next(Renewed)
            first = journal.running[0]
            mysql_server.sql(
                f"UPDATE aiolease_lease SET resign_token = token WHERE name = X'{name.encode().hex()}'",
                database_of(mysql_url),
            )
            second = await journal.leader(above=first.token, but="first")
            assert first.ended is not None
            assert second.began < first.ended + SLACK
    journal.check()


async def test_the_lock_does_not_stack(mysql_server: Server, mysql_url: str) -> None:
    """After many heartbeats over one connection, one release frees the lock, though the connection lives on."""
    heard, journal = Recorder(), Journal()
    async with open_store(mysql_url) as store:
        async with leadership(store, heartbeat_interval=0.3, on_event=heard, **SLOW):
            await heard.next(Renewed, 6)
            waiting = campaign(apart(mysql_url), journal=journal, **SLOW)
            await waiting.__aenter__()
            await until(lambda: waits_in_lock(mysql_server, mysql_url), "the candidate waits in the lock")
        released = boot_clock()
        try:
            assert (await journal.leader()).began < released + SLACK
            assert len(heard.of(Renewed)) >= 6
        finally:
            await waiting.__aexit__(None, None, None)


async def test_candidates_do_not_pass_an_orphaned_lock_round(mysql_server: Server, mysql_url: str) -> None:
    """When the leader's connection dies, its lock is free though its lease is not.

    Ten candidates stay quiet, the leader takes the lock again with its next heartbeat, and its release wakes one of
    them as before.
    """
    heard, journal = Recorder(), Journal()
    timings: dict[str, Any] = {"lease_duration": 12.0, "heartbeat_interval": 3.0, "retry_interval": 0.8}
    async with AsyncExitStack() as stack:
        async with leadership(mysql_url, on_event=heard, **timings) as lead:
            (leaders,) = sessions(mysql_server, mysql_url)
            for number in range(10):
                url = apart(mysql_url)
                await stack.enter_async_context(campaign(url, journal=journal, who=str(number), **timings))
            await until(lambda: waits_in_lock(mysql_server, mysql_url) == 10, "all wait in the lock")
            await heard.next(Renewed)
            mysql_server.sql(f"KILL {leaders}")
            # Each got the lock once and gave it back; from then on each polls every 0.8 s.
            assert await spend(mysql_server, 2.0, "Questions") < 150
            await heard.next(Renewed)
            lead.check()
            assert not journal.terms
            await until(lambda: waits_in_lock(mysql_server, mysql_url) >= 5, "they wait in the lock again")
        released = boot_clock()
        assert (await journal.leader()).began < released + SLACK
    journal.check()


@pytest.mark.parametrize(("age", "least", "most"), [(0, 0.0, 1.0), (10, 14.0, 18.0)])
async def test_a_new_leader_is_given_time_to_take_its_lock(
    mysql_server: Server, mysql_url: str, age: int, least: float, most: float
) -> None:
    """A candidate that finds the lock free tries it again soon if the term is new: its leader is about to ask for it.

    If the term is old, its leader has died or lost its connection, and the lock is left alone for half a lease.
    """
    async with open_store(mysql_url) as store:
        assert isinstance(store, MySQLStore)
        await store.claim("cron", "another", 30.0, seen=None, force=False)
        store.abandon("cron")  # the lock is free, and the row is held
        elected_at = f"UTC_TIMESTAMP(6) - INTERVAL {age} SECOND"
        mysql_server.sql(
            f"UPDATE aiolease_lease SET elected_at = {elected_at} WHERE name = 'cron'", database_of(mysql_url)
        )
        lease = await store.read("cron")
        await store.watch("cron", 5.0, lease=lease, poll=2.0, hint=True)
        assert least <= store._waiting.distrust_until - asyncio.get_running_loop().time() <= most


async def test_a_lock_in_a_strangers_hands_is_not_needed(mysql_server: Server, mysql_url: str) -> None:
    """Where a stranger holds the lock, or a wait in it is killed, leases are won, kept and handed over all the same."""
    names: set[str] = set()

    def listen(query: bytes) -> None:
        names.update(found.decode() for found in re.findall(rb"RELEASE_LOCK\('(aiolease-[^']*)'", query))

    async with TCPProxy(mysql_server.host, mysql_server.port, mysql_server.kind) as proxy:
        proxy.on_query = listen
        async with leadership(through(mysql_url, proxy.port), timeout=LIMIT):
            pass
    (name,) = names
    login = {"host": mysql_server.host, "port": mysql_server.port, "user": "root"}
    stranger = await asyncio.to_thread(pymysql.connect, **login)
    journal = Journal()
    timings: dict[str, Any] = {"lease_duration": 3.0}
    try:
        with stranger.cursor() as cursor:
            cursor.execute("SELECT GET_LOCK(%s, 5)", (name,))
            assert cursor.fetchone() == (1,)
        async with AsyncExitStack() as stack:
            heard = Recorder()
            async with leadership(mysql_url, timeout=LIMIT, on_event=heard, **timings):
                waiting = await stack.enter_async_context(campaign(apart(mysql_url), journal=journal, **timings))
                await until(lambda: waits_in_lock(mysql_server, mysql_url), "the candidate waits in the lock")
                for number, doing in sessions(mysql_server, mysql_url).items():
                    if "GET_LOCK" in doing:
                        mysql_server.sql(f"KILL QUERY {number}")
                await heard.next(Renewed, 2)
                assert not waiting.of(Elected)
            released = boot_clock()
            assert (await journal.leader()).began < released + 3.0 + SLACK
    finally:
        stranger.close()


async def test_candidates_are_quiet(mysql_server: Server, mysql_url: str) -> None:
    """Candidates that wait send next to nothing, a leader one exchange per heartbeat; only the leader writes."""
    heard = Recorder()
    async with AsyncExitStack() as stack:
        lead = leadership(mysql_url, heartbeat_interval=0.5, on_event=heard, lease_duration=30.0)
        await stack.enter_async_context(lead)
        for _ in range(10):
            await stack.enter_async_context(campaign(apart(mysql_url), lease_duration=30.0))
        await until(lambda: waits_in_lock(mysql_server, mysql_url) == 10, "all wait in the lock")
        writes = counter(mysql_server, "Com_insert", "Com_delete", "Com_create_table")
        beats = len(heard.of(Renewed))
        asked = await spend(mysql_server, 3.0, "Questions")
        beats = len(heard.of(Renewed)) - beats
        assert beats >= 4
        assert asked <= 2 * (beats + 1) + 10
        assert counter(mysql_server, "Com_insert", "Com_delete", "Com_create_table") == writes


async def test_a_process_that_waits_for_many_leases_asks_once_for_all(mysql_server: Server, mysql_url: str) -> None:
    """Twenty leases, of which a process leads or awaits all, cost it two connections and one statement per poll."""
    timings: dict[str, Any] = {"lease_duration": 60.0, "retry_interval": 0.5}
    async with AsyncExitStack() as stack:
        leading, waiting = mysql_url, apart(mysql_url)
        mine = await stack.enter_async_context(open_store(leading))
        for number in range(20):
            await stack.enter_async_context(leadership(leading, f"lease-{number}", timeout=LIMIT, **timings))
        await mine.status("lease-0")
        assert len(sessions(mysql_server, mysql_url)) <= 2
        theirs = await stack.enter_async_context(open_store(waiting))
        heard = [
            await stack.enter_async_context(campaign(waiting, f"lease-{number}", **timings)) for number in range(20)
        ]
        await asyncio.gather(*(one.first(Following) for one in heard))
        await theirs.status("lease-0")
        assert len(sessions(mysql_server, mysql_url)) <= 4
        async with asyncio.timeout(LIMIT):  # all fall into step, on a busy machine later
            while not 2 <= await spend(mysql_server, 3.0, "Com_select") <= 14:
                pass
        assert len(sessions(mysql_server, mysql_url)) <= 4


async def test_what_a_session_is_set_to(mysql_server: Server, mysql_url: str) -> None:
    """No lock is waited for longer than a lease can bear.

    The leader's session ends with its lease, autocommit is on, whatever server and pool say.
    """
    asked = "SELECT @@autocommit, @@innodb_lock_wait_timeout, @@lock_wait_timeout, @@wait_timeout"
    mysql_server.sql("SET GLOBAL autocommit = 0")
    try:
        async with open_store(mysql_url) as store:
            assert isinstance(store, MySQLStore)
            for _ in range(2):  # the second time over a new connection, in the midst of the term
                heard = Recorder()
                async with leadership(store, lease_duration=6.0, on_event=heard, heartbeat_interval=0.5):
                    ((claimed,),) = await store._lease_session.run("SELECT @@wait_timeout")
                    assert int(claimed[0]) == 6
                    for number in sessions(mysql_server, mysql_url):
                        mysql_server.sql(f"KILL {number}")
                    await heard.next(Renewed)
                    ((found,),) = await store._lease_session.run(asked)
                    autocommit, row_wait, table_wait, idle = map(int, found)
                    assert autocommit == 1
                    assert row_wait <= 6
                    assert table_wait <= 6
                    assert idle == 6
    finally:
        mysql_server.sql("SET GLOBAL autocommit = 1")


async def test_the_server_ends_the_session_of_a_leader_that_vanished(mysql_server: Server, mysql_url: str) -> None:
    """A leader that falls silent, its connection open, blocks neither row nor lock for longer than its lease."""
    journal = Journal()
    async with TCPProxy(mysql_server.host, mysql_server.port, mysql_server.kind) as proxy:
        url = through(mysql_url, proxy.port)
        async with campaign(url, journal=journal, who="silent", lease_duration=3.0):
            first = await journal.leader()
            (session,) = sessions(mysql_server, mysql_url)
            async with campaign(apart(mysql_url), journal=journal, who="next", lease_duration=3.0):
                await until(lambda: waits_in_lock(mysql_server, mysql_url), "the candidate waits in the lock")
                proxy.swallow()
                silent = boot_clock()
                second = await journal.leader(above=first.token, but="silent")
                assert second.began < silent + 3.0 + SLACK
                # Closed by nobody on this side: the proxy keeps what it swallows open.
                await until(lambda: session not in sessions(mysql_server, mysql_url), "the server ended it", 10.0)
    journal.check()


async def test_a_store_that_led_and_was_idle_still_works(mysql_server: Server, mysql_url: str) -> None:
    """A session that the server ended because nobody used it since its term is replaced without a word."""
    async with open_store(mysql_url) as store:
        await store.read("default")  # makes the tables, for which so short a lease may not have the time
        async with leadership(store, timeout=0, lease_duration=1.0):
            pass
        async with asyncio.timeout(LIMIT):
            while sessions(mysql_server, mysql_url):
                await asyncio.sleep(0.05)
        async with leadership(store, timeout=0, lease_duration=1.0) as lead:
            assert lead.token == 2


async def test_rapid_changes_keep_order(mysql_server: Server, mysql_url: str) -> None:
    """Leaders that resign at once, one after another, never overlap, and every term is above the one before."""
    journal = Journal()

    async def eager(who: str) -> None:
        url = apart(mysql_url)
        for _ in range(6):
            async with leadership(url, timeout=LIMIT, lease_duration=3.0) as lead:
                await journal.body(who, lead, asyncio.sleep(0.002))

    await asyncio.gather(*(eager(str(number)) for number in range(4)))
    journal.check()
    assert len(journal.terms) == 24


async def test_a_reading_that_fails_when_nobody_waits_for_it_any_more_is_no_complaint() -> None:
    """Candidates that stop waiting, at the end of a process say, leave no exception behind that nobody has taken."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    reading = asyncio.Event()

    async def read_many(_: list[str]) -> dict[str, Lease]:
        reading.set()
        try:
            await asyncio.sleep(LIMIT)
        except asyncio.CancelledError:
            raise StoreUnavailable("a server", "the connection was closed under it") from None
        raise AssertionError

    for ends in ("candidate", "store"):
        polls = Polls(read_many)
        candidate = asyncio.create_task(polls.read("default", 0.0, 1.0))
        await asyncio.wait_for(reading.wait(), LIMIT)
        if ends == "candidate":
            candidate.cancel()
            await asyncio.wait([candidate])
        await polls.aclose()
        candidate.cancel()
        await asyncio.wait([candidate])
        reading.clear()
        del polls, candidate
    gc.collect()
    assert not complaints


async def test_a_session_that_lost_its_lock_has_it_again(mysql_server: Server, mysql_url: str) -> None:
    """The session lives on, as behind a proxy that has replaced it: the leader asks again within three renewals."""
    async with open_store(mysql_url) as store:
        assert isinstance(store, MySQLStore)
        lease = await store.claim("default", "me", 60.0, seen=None, force=False)
        assert lease is not None
        asked = f"SELECT IS_USED_LOCK('{store._sql.lock_name('default')}')"
        assert mysql_server.sql(asked) != [(None,)]
        await store._lease_session.run("DO RELEASE_LOCK(%s)", (store._sql.lock_name("default"),))
        assert mysql_server.sql(asked) == [(None,)]
        for beat in range(lease.beat + 1, lease.beat + 4):
            assert await store.renew("default", "me", lease.token, beat, 60.0)
        assert mysql_server.sql(asked) != [(None,)]
