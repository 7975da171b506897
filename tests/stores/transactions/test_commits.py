"""What commits, what does not, and how long a transaction may take."""

# ruff: noqa: PT012, SIM117 - the blocks are what is tested: which is inside which, and that it raises

from __future__ import annotations

import asyncio
import random

import anyio
import pytest

from aiolease import CommitUnknown, Leadership, LeadershipLost, StoreUnavailable, leadership
from aiolease._clock import boot_clock
from aiolease.events import Lost, Renewed, RenewFailed
from tests.campaigns import LIMIT, Recorder
from tests.servers import Server
from tests.stores.mysql.connecting import SLACK
from tests.stores.transactions.lending import (
    KINDS,
    PG_KINDS,
    Boom,
    Work,
    every_pair,
    every_pool,
    insert,
    lent,
    one_server,
    pairs,
    some_kinds,
    some_pairs,
)

# -- what commits, and what does not


@every_pair
async def test_the_transaction_commits_when_its_block_ends(mysql_url: str, work: Work, kind: str) -> None:
    """What the block wrote is committed when the block ends, again and again, and nothing before."""
    async with lent(kind, mysql_url) as lend:
        async with leadership(lend.target) as lead:
            for number in range(3):
                async with lead.transaction() as connection:
                    await lend.run(connection, insert(f"row {number}"))
                    assert await lend.run(connection, "SELECT COUNT(*) FROM work") == [(number + 1,)]
                    assert len(work.rows()) == number
                assert len(work.rows()) == number + 1
        await lend.whole()


@every_pair
async def test_the_exception_of_the_block_comes_out_as_itself(mysql_url: str, work: Work, kind: str) -> None:
    """A block that raises is rolled back, its exception is the one that comes out, and the term goes on."""
    async with lent(kind, mysql_url) as lend:
        async with leadership(lend.target) as lead:
            boom = Boom()
            with pytest.raises(Boom) as raised:
                async with lead.transaction() as connection:
                    await lend.run(connection, insert("never"))
                    raise boom
            assert raised.value is boom
            assert boom.__cause__ is None
            with pytest.raises(Exception, match=work.server.syntax_error):
                async with lead.transaction() as connection:
                    await lend.run(connection, insert("never"))
                    await lend.run(connection, "no SQL at all")
            lead.check()
            async with lead.transaction() as connection:
                await lend.run(connection, insert("after"))
        assert work.rows() == ["after"]
        await lend.whole()


@some_pairs
async def test_a_cancelled_block_is_rolled_back(mysql_url: str, work: Work, kind: str) -> None:
    """A block that is cancelled, idle or in a statement, is rolled back; the cancellation goes on, and the term too."""
    async with lent(kind, mysql_url) as lend, leadership(lend.target) as lead:

        async def write(inside: asyncio.Event, statement: str | None) -> None:
            async with lead.transaction() as connection:
                await lend.run(connection, f"INSERT INTO work (who) VALUES ({work.server.uuid})")
                inside.set()
                await (lend.run(connection, statement) if statement else asyncio.sleep(LIMIT))

        for statement in (None, work.server.sleeping(LIMIT)):
            async with asyncio.timeout(LIMIT / 2):
                inside = asyncio.Event()
                task = asyncio.create_task(write(inside, statement))
                await inside.wait()
                await asyncio.sleep(0.05)
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()

                inside = asyncio.Event()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(write, inside, statement)
                    await inside.wait()
                    await asyncio.sleep(0.05)
                    tasks.cancel_scope.cancel()

                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await write(asyncio.Event(), statement)
        async with lead.transaction() as connection:
            await lend.run(connection, insert("after"))
        assert work.rows() == ["after"]
        await lend.whole()


@every_pool
async def test_a_waiter_gets_the_place_of_a_broken_connection(
    mysql_server: Server, mysql_url: str, work: Work, kind: str
) -> None:
    """When a transaction's connection is discarded, a task that waits for the full pool gets a new one."""
    async with lent(kind, mysql_url, size=1) as lend:
        async with leadership(lend.target, lease_duration=6.0) as lead:
            with pytest.raises(CommitUnknown):
                async with lead.transaction() as connection:
                    [(number,)] = await lend.run(connection, f"SELECT {mysql_server.own_id}")

                    async def next_one() -> None:
                        async with lead.transaction() as connection:
                            await lend.run(connection, insert("after"))

                    waiting = asyncio.create_task(next_one())
                    await asyncio.sleep(0.1)
                    mysql_server.end_session(number)
            async with asyncio.timeout(2.0):
                await waiting
        assert work.rows() == ["after"]
        await lend.whole()


@some_pairs
async def test_an_older_term_cannot_commit(mysql_url: str, work: Work, kind: str) -> None:
    """Once a newer term has begun, the commit is refused with `LeadershipLost`, and nothing of it is visible.

    The body that gets the loss may await in its clean-up: no cancellation comes on top.
    """
    cleaned = False
    async with lent(kind, mysql_url) as lend:
        with pytest.raises(LeadershipLost) as lost:
            async with leadership(lend.target) as lead:
                try:
                    async with lead.transaction() as connection:
                        await lend.run(connection, insert("never"))
                        work.new_term()
                finally:
                    assert not lead.is_leader
                    await asyncio.sleep(0.2)
                    cleaned = True
        assert lost.value.reason == "taken"
        assert (lost.value.holder, lost.value.token) == (lead.holder, lead.token)
        assert cleaned
        assert work.rows() == []
        await lend.whole()


@one_server
async def test_a_loss_found_by_a_job_cancels_the_others(mysql_url: str, work: Work) -> None:
    """A commit that is refused in one task of the term ends the term: the body, in another task, is cancelled."""
    found: list[BaseException] = []
    async with lent("asyncmy", mysql_url) as lend:
        with pytest.raises(LeadershipLost) as lost:
            async with leadership(lend.target) as lead:

                async def job() -> None:
                    try:
                        async with lead.transaction() as connection:
                            await lend.run(connection, insert("never"))
                            work.new_term()
                    except LeadershipLost as error:
                        found.append(error)

                task = asyncio.create_task(job())
                try:
                    await asyncio.sleep(LIMIT)
                except asyncio.CancelledError:
                    found.append(Boom("cancelled"))
                    raise
                finally:
                    await task
        assert lost.value.reason == "taken"
        assert sorted(type(error).__name__ for error in found) == ["Boom", "LeadershipLost"]
        assert work.rows() == []
        await lend.whole()


@some_kinds
async def test_a_term_that_is_over_refuses_at_entry(mysql_url: str, work: Work, kind: str) -> None:
    """`transaction` and `fence` of a term that is over raise at once, before a connection is touched."""
    async with lent(kind, mysql_url) as lend:
        async with leadership(lend.target) as lead:
            pass
        entered = False
        with pytest.raises(LeadershipLost) as lost:
            async with lead.transaction():
                entered = True
        assert (entered, lost.value.reason) == (False, "resigned")
        with pytest.raises(LeadershipLost):
            await lead.fence(None)
        await lend.whole()


@one_server
async def test_a_term_that_ends_within_the_block_refuses_the_commit(mysql_url: str, work: Work) -> None:
    """A term that ended while the block ran is found before the commit: rolled back, `LeadershipLost`."""
    written, over = asyncio.Event(), asyncio.Event()
    async with lent("asyncmy", mysql_url) as lend:

        async def job(lead: Leadership) -> None:
            async with lead.transaction() as connection:
                await lend.run(connection, insert("never"))
                written.set()
                await over.wait()

        async with leadership(lend.target) as lead:
            task = asyncio.create_task(job(lead))
            await written.wait()
        over.set()
        with pytest.raises(LeadershipLost) as lost:
            await task
        assert lost.value.reason == "resigned"
        assert work.rows() == []
        await lend.whole()


# -- time


@one_server
async def test_an_open_transaction_costs_no_heartbeat(mysql_url: str, work: Work) -> None:
    """An open transaction that a live leader holds for three leases costs no lease and no heartbeat, and commits."""
    heard, lease = Recorder(), 3.0
    async with lent("asyncmy", mysql_url) as lend:
        async with leadership(lend.target, lease_duration=lease, on_event=heard) as lead:
            began = boot_clock()
            async with lead.transaction() as connection:
                await lend.run(connection, insert("slow"))
                while boot_clock() < began + 3 * lease:
                    await heard.next(Renewed)
                    await lend.run(connection, "SELECT COUNT(*) FROM work FOR UPDATE")
            assert len(heard.of(Renewed)) >= 7
            lead.check()
    assert not heard.of(RenewFailed)
    assert not heard.of(Lost)
    assert work.rows() == ["slow"]


@pytest.mark.parametrize(
    ("mysql_server", "kind", "level"),
    [
        ("mariadb", "aiomysql", "REPEATABLE READ"),
        ("mariadb_snapshot", "engine-asyncmy", "REPEATABLE READ"),
        ("mariadb_snapshot", "asyncmy", "READ COMMITTED"),
        ("mariadb_snapshot", "asyncmy", "SERIALIZABLE"),
        ("mysql9", "url", "REPEATABLE READ"),
    ],
    indirect=["mysql_server"],
)
async def test_a_transaction_that_reads_early_commits_late(mysql_url: str, work: Work, kind: str, level: str) -> None:
    """A transaction whose snapshot is older than heartbeats and other fenced commits of its term commits too."""
    heard = Recorder()
    async with lent(kind, mysql_url, size=3) as lend:
        async with leadership(lend.target, lease_duration=12.0, heartbeat_interval=1.0, on_event=heard) as lead:
            work.server.sql(f"SET GLOBAL TRANSACTION ISOLATION LEVEL {level}")  # of new sessions
            try:
                async with lead.transaction() as early:
                    assert await lend.run(early, "SELECT COUNT(*) FROM work") == [(0,)]
                    if level != "SERIALIZABLE":
                        await lend.run(early, "SELECT * FROM aiolease_fence")
                    for number in range(2):
                        if level != "SERIALIZABLE":  # there, a read keeps the others from writing
                            async with lead.transaction() as connection:
                                await lend.run(connection, insert(f"late {number}"))
                        await heard.next(Renewed)
                    await lend.run(early, "INSERT INTO work (id, who) VALUES (1000, 'early')")
            finally:
                work.server.sql("SET GLOBAL TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    assert not heard.of(RenewFailed)
    assert work.rows() == [*(["late 0", "late 1"] if level != "SERIALIZABLE" else []), "early"]


@pairs(("mariadb", "asyncmy"), ("mariadb", "aiomysql"), ("mariadb", "engine-asyncmy"))
async def test_waiting_for_a_connection_is_bounded(mysql_url: str, work: Work, kind: str) -> None:
    """Where the pool is exhausted, `transaction` gives up by the time that the term had left, and the term goes on."""
    heard = Recorder()
    async with lent(kind, mysql_url, size=1) as lend:
        async with leadership(lend.target, lease_duration=3.0, on_event=heard) as lead:
            entered = False
            async with lead.transaction():
                began, left = boot_clock(), lead.remaining
                with pytest.raises(StoreUnavailable):
                    async with lead.transaction():
                        entered = True
                assert boot_clock() - began < left + SLACK
            assert not entered
            lead.check()
            async with lead.transaction() as connection:
                await lend.run(connection, insert("after"))
        assert work.rows() == ["after"]
        assert not heard.of(RenewFailed)
        await lend.whole()


@every_pool
async def test_waiting_for_a_connection_is_cancelled_at_once(mysql_url: str, work: Work, kind: str) -> None:
    """A task that is cancelled while it waits for a connection ends at once, and the pool loses nothing."""
    async with lent(kind, mysql_url, size=1) as lend:
        async with leadership(lend.target) as lead:

            async def waiter() -> None:
                async with lead.transaction():
                    pass

            async with lead.transaction():
                task = asyncio.create_task(waiter())
                await asyncio.sleep(0.1)
                task.cancel()
                began = boot_clock()
                await asyncio.wait([task], timeout=3.0)
                took = boot_clock() - began
            await asyncio.wait([task])
            assert took < 1.0, "the cancellation waited for a connection"
            assert task.cancelled()
        await lend.whole()


@pairs(*(("mariadb", kind) for kind in KINDS), *(("postgresql", kind) for kind in PG_KINDS))
async def test_opening_is_cancelled_at_any_moment_without_loss(mysql_url: str, work: Work, kind: str) -> None:
    """Cancelled at any moment of the opening or of the commit, a transaction loses the pool no connection."""
    dice = random.Random(7)
    async with lent(kind, mysql_url, size=2) as lend:
        async with leadership(lend.target) as lead:

            async def write(who: str) -> None:
                async with lead.transaction() as connection:
                    await lend.run(connection, insert(who))

            for number in range(60):
                task = asyncio.create_task(write(f"row {number}"))
                for _ in range(dice.randrange(12)):
                    await asyncio.sleep(0)
                await asyncio.sleep(dice.choice([0, 0.0005, 0.001, 0.002, 0.004]))
                task.cancel()
                await asyncio.wait([task], timeout=LIMIT)
                assert task.done()
            before = len(work.rows())
            await write("after")
        assert len(work.rows()) == before + 1
        await lend.whole()
