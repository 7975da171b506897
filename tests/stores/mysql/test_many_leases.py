"""Many leases of one process on MySQL and MariaDB: those that write at one moment share one commit."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncmy
import pytest

from aiolease import open_store
from aiolease._election.claim import new_holder
from aiolease._waiting import time_limited
from aiolease.errors import StoreUnavailable
from aiolease.stores.mysql.drivers import Rows
from aiolease.stores.mysql.store import MySQLStore
from aiolease.stores.mysql.writes import Kind, Run, Write, Writes
from aiolease.stores.records import TermKey
from tests.campaigns import LIMIT, apart, counter, database_of, row
from tests.servers import Server

everywhere = pytest.mark.parametrize("mysql_server", ["mariadb", "mariadb_snapshot", "mysql9"], indirect=True)


async def connect(server: Server, database: str) -> Any:
    return await asyncmy.connect(host=server.host, port=server.port, user=server.user, database=database)


@everywhere
async def test_many_leases_share_commits(mysql_server: Server, mysql_url: str) -> None:
    """Claims, renewals and releases of 250 leases take a few transactions; each gets the answer that is its own."""
    holders = {f"lease-{number}": new_holder() for number in range(250)}
    commits = "Com_commit"
    async with open_store(mysql_url) as store:
        claims = (store.claim(name, holder, 30.0, seen=None, force=False) for name, holder in holders.items())
        for name, lease in zip(holders, await asyncio.gather(*claims), strict=True):
            assert lease is not None
            assert (lease.name, lease.holder, lease.token) == (name, holders[name], 1)
        mysql_server.sql(
            "UPDATE aiolease_lease SET holder = 'me', token = 2 WHERE name = 'lease-7'", database_of(mysql_url)
        )
        mysql_server.sql("DELETE FROM aiolease_lease WHERE name = 'lease-8'", database_of(mysql_url))
        before = counter(mysql_server, commits)
        renewals = (store.renew(name, holder, 1, 5, 30.0) for name, holder in holders.items())
        renewed = dict(zip(holders, await asyncio.gather(*renewals), strict=True))
        assert counter(mysql_server, commits) - before == 3
        assert renewed.pop("lease-8") is None
        taken = renewed.pop("lease-7")
        assert taken is not None
        assert (taken.holder, taken.token, taken.beat) == ("me", 2, 1)
        for name, lease in renewed.items():
            assert lease is not None
            assert (lease.name, lease.holder, lease.beat) == (name, holders[name], 5)
        before = counter(mysql_server, commits)
        released = await asyncio.gather(*(store.release(name, holder, 1) for name, holder in holders.items()))
        assert counter(mysql_server, commits) - before == 3
        assert [name for name, done in zip(holders, released, strict=True) if not done] == ["lease-7", "lease-8"]
        assert row(mysql_server, mysql_url, "lease-9")["holder"] is None


@everywhere
async def test_who_leads_many_leases_has_their_locks(mysql_server: Server, mysql_url: str) -> None:
    """The locks are the leader's from its claims on, and after the end of its session from its renewals on."""
    holders = {f"lease-{number}": new_holder() for number in range(3)}
    async with open_store(mysql_url) as store:
        assert isinstance(store, MySQLStore)

        def having() -> set[int | None]:
            locks = [f"IS_USED_LOCK('{store._sql.lock_name(name)}')" for name in holders]
            return set(mysql_server.sql(f"SELECT {', '.join(locks)}")[0])

        claims = (store.claim(name, holder, 30.0, seen=None, force=False) for name, holder in holders.items())
        assert all(await asyncio.gather(*claims))
        (first,) = having()
        for beat in (2, 4):  # the first reads the rows again, over the new connection; the second knows them
            if beat == 2:
                mysql_server.sql(f"KILL {first}")
            renewals = (store.renew(name, holder, 1, beat, 30.0) for name, holder in holders.items())
            renewed = await asyncio.gather(*renewals)
            assert [lease and (lease.name, lease.holder, lease.beat) for lease in renewed] == [
                (name, holder, beat) for name, holder in holders.items()
            ]
            (second,) = having()
            assert second not in {first, None}


@everywhere
async def test_many_claims_of_two_processes(mysql_server: Server, mysql_url: str) -> None:
    """Two processes that claim the same leases at one moment do not get in each other's way; each lease has one."""
    names = [f"lease-{number}" for number in range(150)]
    async with open_store(mysql_url) as first, open_store(apart(mysql_url)) as second:
        for seen_before in (False, True):
            claims = []
            for store in (first, second):
                seen = [await store.read(name) if seen_before else None for name in names]
                claims += [
                    store.claim(name, new_holder(), 30.0, seen=lease, force=True)
                    for name, lease in zip(names, seen, strict=True)
                ]
            answers = await asyncio.gather(*claims, return_exceptions=True)
            for mine, other in zip(answers[:150], answers[150:], strict=True):
                shown = [answer.holder for answer in (mine, other) if answer and not isinstance(answer, BaseException)]
                assert shown
                assert len(set(shown)) == 1
        assert await first.release(names[0], shown[0] or "", 1) is False


async def test_a_locked_fence_holds_up_its_own_claim_only(mysql_server: Server, mysql_url: str) -> None:
    """A process that was frozen before its COMMIT holds up the claim of its lease; those beside it are soon made."""
    holders = {f"lease-{number:02}": new_holder() for number in range(20)}
    async with open_store(mysql_url) as store:
        await asyncio.gather(*(store.claim(name, "old", 0.1, seen=None, force=False) for name in holders))
        seen = {name: await store.read(name) for name in holders}
        stranger = await connect(mysql_server, database_of(mysql_url))
        try:
            await stranger.begin()
            async with stranger.cursor() as cursor:
                await cursor.execute("UPDATE aiolease_fence SET fence = fence + 1 WHERE name = 'lease-05'")
            claims = (store.claim(name, holder, 30.0, seen=seen[name], force=True) for name, holder in holders.items())
            async with asyncio.timeout(LIMIT):
                answers = dict(zip(holders, await asyncio.gather(*claims, return_exceptions=True), strict=True))
        finally:
            stranger.close()
        assert isinstance(answers.pop("lease-05"), StoreUnavailable)
        for name, answer in answers.items():
            assert not isinstance(answer, BaseException), answer
            assert answer is not None
            assert answer.holder == holders[name]


@pytest.mark.parametrize("table", ["lease", "fence"])
async def test_a_claim_that_meets_a_locked_row_delays_no_heartbeat(
    mysql_server: Server, mysql_url: str, table: str
) -> None:
    """A row of a lease stays locked: who claims it is told, beside it no lease misses a beat; once free, it is won."""
    async with open_store(mysql_url) as store:
        for name in ("one", "two"):
            assert await store.claim(name, "me", 30.0, seen=None, force=False)
        await store.claim("other", "old", 0.1, seen=None, force=False)
        store.abandon("other")
        seen = await store.read("other")
        stranger = await connect(mysql_server, database_of(mysql_url))
        try:
            await stranger.begin()
            async with stranger.cursor() as cursor:
                await cursor.execute(f"SELECT * FROM aiolease_{table} WHERE name = 'other' FOR UPDATE")
            claim = asyncio.create_task(store.claim("other", "new", 30.0, seen=seen, force=True))
            beat = 5
            while not claim.done():
                for name in ("one", "two"):
                    renewed = await time_limited(0.7, name, store.renew(name, "me", 1, beat, 30.0))
                    assert renewed is not None
                    assert renewed.beat == beat
                beat += 1
                await asyncio.sleep(0.05)
            with pytest.raises(StoreUnavailable, match=r"1205|3572"):
                await claim
            claim = asyncio.create_task(store.claim("other", "new", 30.0, seen=seen, force=True))
            await asyncio.sleep(0.05)  # it is at it
            await stranger.rollback()
            won = await time_limited(LIMIT, "other", claim)
            assert won is not None
            assert (won.holder, won.token) == ("new", 2)
        finally:
            stranger.close()


async def test_who_gives_up_takes_nobody_along(mysql_server: Server, mysql_url: str) -> None:
    """Callers that stop waiting leave the others their answers; when all have, the next exchange works."""
    holders = {f"lease-{number}": new_holder() for number in range(50)}
    async with open_store(mysql_url) as store:
        await asyncio.gather(
            *(store.claim(name, holder, 30.0, seen=None, force=False) for name, holder in holders.items())
        )
        for beat, stays in ((5, 10), (6, 0)):
            calls = [asyncio.create_task(store.renew(name, holder, 1, beat, 30.0)) for name, holder in holders.items()]
            while not store._lease_session.busy:  # type: ignore[attr-defined]  # it is under way
                await asyncio.sleep(0)
            for call in calls[stays:]:
                call.cancel()
            await asyncio.wait(calls)
            assert [lease.beat for call in calls[:stays] if (lease := call.result())] == [beat] * stays
        lease = await store.renew("lease-0", holders["lease-0"], 1, 7, 30.0)
        assert lease is not None
        assert lease.beat == 7


class Wire:
    """A connection that answers when it is told to, and keeps what it was sent."""

    def __init__(self) -> None:
        self.packets: list[str] = []
        self.answers: asyncio.Queue[None] = asyncio.Queue()

    async def run(self, sql: str, parameters: tuple[object, ...], *, repeat: bool) -> list[Rows]:
        self.packets.append(" ".join(str(value) for value in parameters))
        await self.answers.get()
        return [[(part,)] for part in sql.split("; ")]


def writes_over(run: Run, *, others: bool = False) -> Writes:
    """The writes of a process, over a connection of the test's own; `others`: it has other leases."""
    return Writes(
        "wire",
        run,
        gave_up=lambda: None,
        has_others=lambda _: others,
        read=lambda _: ("read", ()),
        table="l",
        fence_table="f",
    )


async def test_heartbeats_go_before_claims() -> None:
    """What is more urgent overtakes what waits longer; of one kind, the first goes first, a hundred at a time."""
    wire = Wire()
    writes = writes_over(wire.run)

    def send(kind: Kind, *names: str) -> list[asyncio.Task[list[Rows]]]:
        return [asyncio.create_task(writes.send(Write(kind, name, f"write {name}", (name,)))) for name in names]

    sent = send(Kind.CLAIM, "first")
    while not wire.packets:
        await asyncio.sleep(0)
    sent += send(Kind.MAKE, "m")
    sent += send(Kind.CLAIM, *(f"{number:03}" for number in range(101)))
    sent += send(Kind.RELEASE, "r")
    sent += send(Kind.RENEW, "b", "a")
    await asyncio.sleep(0)
    for _ in range(6):
        wire.answers.put_nowait(None)
    answers = [(await task)[0] for task in sent]
    names = [f"{number:03}" for number in range(100)]
    batch = " ".join([*(f"{name} {name}" for name in names), *names])  # both rows of each are locked first
    assert wire.packets == ["first", "a b a b", "r", batch, "100", "m"]
    assert [answer[0][0] for answer in answers[-2:]] == ["write b", "write a"]


async def test_who_only_reads_locks_no_row() -> None:
    """The second exchange of a renewal, which reads what the first has not told, meets no stranger's lock."""
    sent: list[str] = []

    async def run(sql: str, parameters: tuple[object, ...], *, repeat: bool) -> list[Rows]:
        sent.append(sql)
        return [[(1,)] for _ in sql.split("; ")]

    writes = writes_over(run, others=True)
    await writes.send(Write(Kind.RENEW, "a", "write", (), reads=TermKey("a", "me", 1)))
    await writes.send(Write(Kind.RENEW, "a", "", (), reads=TermKey("a", "me", 1)))
    assert sent == ["(SELECT 1 FROM l WHERE name = %s FOR UPDATE NOWAIT); write; read", "read"]


async def test_what_is_cancelled_behind_its_back_is_an_error() -> None:
    """Somebody who cancels every task does not leave those that wait without an answer."""
    wire = Wire()
    writes = writes_over(wire.run)
    mine = asyncio.all_tasks()
    calls = []
    for name in ("first", "under way", "waiting"):
        calls.append(asyncio.create_task(writes.send(Write(Kind.RENEW, name, "write", (name,)))))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    for task in asyncio.all_tasks() - mine - set(calls):
        task.cancel()
    with pytest.raises(StoreUnavailable):
        await calls[1]
    for call in (calls[0], calls[2]):
        wire.answers.put_nowait(None)
        assert (await call)[0] == [("write",)]
    assert wire.packets == ["first", "under way", "waiting"]
