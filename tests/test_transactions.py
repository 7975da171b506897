"""Fenced transactions: what commits, what never does, and what the pool gets back: real servers, real faults."""

# ruff: noqa: PT012, SIM117 - the blocks are what is tested: which is inside which, and that it raises

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiomysql
import aiosqlite
import anyio
import asyncmy
import pytest
from sqlalchemy import BigInteger, String, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from aiolease import (
    CommitUnknown,
    Leadership,
    LeadershipLost,
    StoreUnavailable,
    TransactionEnded,
    leadership,
    open_store,
)
from aiolease._clock import boot_clock
from aiolease.events import Lost, Renewed, RenewFailed
from aiolease.stores.mysql.lenders import EngineLender
from aiolease.stores.records import TermKey
from aiolease.testing import MemoryStore, virtual_time
from tests.campaigns import LIMIT, ROOT, Recorder, apart, database_of, through, until
from tests.servers import Action, Server, TCPProxy

SLACK = 0.6
"""Seconds that a busy machine may be late."""

SERVERS = ["mariadb", "mariadb_snapshot", "mysql9"]
POOLS = ["asyncmy", "asyncmy-autocommit", "aiomysql", "engine-asyncmy", "engine-aiomysql"]
KINDS = [*POOLS, "url"]
COMMIT = b"; COMMIT"

PAIRS = [*(("mariadb", kind) for kind in KINDS), ("mariadb_snapshot", "asyncmy"), ("mysql9", "aiomysql")]
FEW = [("mariadb", "aiomysql"), ("mariadb_snapshot", "engine-asyncmy"), ("mysql9", "url")]


def pairs(*choice: tuple[str, str]) -> pytest.MarkDecorator:
    """What is tried on several pools is tried on MariaDB, and what the server decides with one pool of each other."""
    return pytest.mark.parametrize(("mysql_server", "kind"), choice, indirect=["mysql_server"])


every_pair, some_pairs = pairs(*PAIRS), pairs(*FEW)
every_pool = pairs(*(("mariadb", kind) for kind in POOLS))
some_kinds = pairs(("mariadb", "asyncmy"), ("mariadb", "engine-aiomysql"), ("mariadb", "url"))
every_server = pytest.mark.parametrize("mysql_server", SERVERS, indirect=True)
one_server = pytest.mark.parametrize("mysql_server", ["mariadb"], indirect=True)


class Boom(Exception):
    """What a body may raise."""


@dataclass
class Lent:
    """What a leadership is given, and what is left in it afterwards."""

    kind: str
    target: Any
    size: int

    async def run(self, connection: Any, sql: str) -> list[tuple[Any, ...]]:
        """Sends a statement on what `transaction` gave, as a user of this target would."""
        if self.kind.startswith("engine"):
            result = await connection.execute(text(sql))
            return [tuple(row) for row in result] if result.returns_rows else []
        async with connection.cursor() as cursor:
            await cursor.execute(sql)
            return list(await cursor.fetchall()) if cursor.description else []

    async def whole(self) -> None:
        """The pool has all its connections, and none is in a transaction."""
        if self.kind == "url":
            return
        lent: list[Any] = []
        pool = self.target.sync_engine.pool if self.kind.startswith("engine") else self.target
        used = pool.checkedout() if self.kind.startswith("engine") else pool.size - pool.freesize
        assert used == 0, "a connection did not come back to its pool"
        try:
            async with asyncio.timeout(LIMIT):
                for _ in range(self.size):
                    engine = self.kind.startswith("engine")
                    lent.append(await (self.target.connect() if engine else self.target.acquire()))
                for connection in lent:
                    mine = "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = "
                    assert await self.run(connection, f"{mine}CONNECTION_ID()") == [(0,)]
                    await self.run(connection, "ROLLBACK")
        finally:
            for connection in lent:
                if self.kind.startswith("engine"):
                    await connection.close()
                else:
                    released = self.target.release(connection)
                    if released is not None:
                        await released


@asynccontextmanager
async def lent(kind: str, url: str, *, port: int | None = None, size: int = 2, **options: Any) -> AsyncIterator[Lent]:
    """A pool, an engine or a URL on a database, perhaps behind a proxy."""
    if port is not None:
        url = through(url, port)
    address, _, database = url.rpartition("/")
    login = {"host": "127.0.0.1", "port": int(address.rpartition(":")[2]), "user": "root", "db": database}
    if kind == "url":
        yield Lent(kind, apart(url), size)
    elif kind.startswith("engine"):
        engine = create_async_engine(
            url.replace("mysql:", f"mysql+{kind.removeprefix('engine-')}:"), pool_size=size, max_overflow=0, **options
        )
        try:
            yield Lent(kind, engine, size)
        finally:
            await engine.dispose()
    else:
        driver = aiomysql if kind == "aiomysql" else asyncmy
        autocommit = kind.endswith("autocommit")
        pool = await driver.create_pool(**login, minsize=0, maxsize=size, autocommit=autocommit, **options)
        try:
            yield Lent(kind, pool, size)
        finally:
            pool.close()
            async with asyncio.timeout(LIMIT):
                await pool.wait_closed()


@dataclass
class Work:
    """The user's table, as the administrator sees it."""

    server: Server
    database: str

    def rows(self) -> list[str]:
        """Who has written a row, in order."""
        return [row[0] for row in self.server.sql("SELECT who FROM work ORDER BY id", self.database)]

    def new_term(self) -> None:
        """A newer term begins, and the leader has not heard of it: as if it had been frozen meanwhile."""
        sql = "UPDATE {} SET holder = 'another', token = token + 1 WHERE name = 'default'"
        for table in ("aiolease_fence", "aiolease_lease"):
            self.server.sql(sql.format(table), self.database)


@pytest.fixture
def work(mysql_server: Server, mysql_url: str) -> Work:
    database = database_of(mysql_url)
    mysql_server.sql("CREATE TABLE work (id BIGINT AUTO_INCREMENT PRIMARY KEY, who VARCHAR(40) UNIQUE)", database)
    return Work(mysql_server, database)


def insert(who: str) -> str:
    return f"INSERT INTO work (who) VALUES ('{who}')"


def once(statement: bytes, action: Action) -> Callable[[bytes], Action | None]:
    """A fault that happens to one query: the next that holds some text."""
    left = [action]

    def choose(query: bytes) -> Action | None:
        return left.pop() if left and statement in query else None

    return choose


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
            with pytest.raises(Exception, match="1064"):
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
                await lend.run(connection, "INSERT INTO work (who) VALUES (UUID())")
                inside.set()
                await (lend.run(connection, statement) if statement else asyncio.sleep(LIMIT))

        for statement in (None, f"DO SLEEP({LIMIT})"):
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
    """When a transaction's connection is thrown away, who waits for the full pool gets a new one."""
    async with lent(kind, mysql_url, size=1) as lend:
        async with leadership(lend.target, lease_duration=6.0) as lead:
            with pytest.raises(CommitUnknown):
                async with lead.transaction() as connection:
                    [(number,)] = await lend.run(connection, "SELECT CONNECTION_ID()")

                    async def next_one() -> None:
                        async with lead.transaction() as connection:
                            await lend.run(connection, insert("after"))

                    waiting = asyncio.create_task(next_one())
                    await asyncio.sleep(0.1)
                    mysql_server.sql(f"KILL {number}")
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
    heard, lease = Recorder(), 1.5
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
        async with leadership(lend.target, lease_duration=1.5, heartbeat_interval=0.2, on_event=heard) as lead:
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
        async with leadership(lend.target, lease_duration=1.2, on_event=heard) as lead:
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


@pairs(*(("mariadb", kind) for kind in KINDS))
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


# -- what ends a transaction


ENDINGS = [
    "COMMIT",
    "ROLLBACK",
    "COMMIT AND CHAIN",
    "BEGIN",
    "START TRANSACTION",
    "START TRANSACTION READ ONLY",
    "CREATE TABLE other (id INT)",
    "ALTER TABLE work ADD COLUMN more INT",
    "TRUNCATE TABLE other",
    "LOCK TABLES work WRITE",
    "ROLLBACK; SET autocommit = 0; INSERT INTO work (who) VALUES ('unfenced')",
    "SET autocommit = 0; SET autocommit = 1",
    "connection.commit",
    "connection.rollback",
]


@every_pair
async def test_what_ends_the_transaction_is_found(mysql_url: str, work: Work, kind: str) -> None:
    """A block that ends its transaction itself gets `TransactionEnded`; what it did after that is not committed.

    The pool gets a connection back that holds no lock, or none.
    """
    async with lent(kind, mysql_url) as lend, leadership(lend.target) as lead:
        for number, ending in enumerate(ENDINGS):
            print(ending)  # which one it was, if it fails
            with pytest.raises(TransactionEnded):
                async with lead.transaction() as connection:
                    await lend.run(connection, insert(f"before {number}"))
                    if ending.startswith("connection"):
                        await getattr(connection, ending.partition(".")[2])()
                    else:
                        for statement in ending.split("; "):
                            await lend.run(connection, statement)
                    if ending in {"COMMIT AND CHAIN", "BEGIN", "START TRANSACTION"}:
                        await lend.run(connection, insert("unfenced"))
            lead.check()
            async with asyncio.timeout(5.0):
                await asyncio.to_thread(work.server.sql, insert(f"another {number}"), work.database)
            async with lead.transaction() as connection:
                await lend.run(connection, insert(f"fenced {number}"))
        assert sum(row.startswith("fenced") for row in work.rows()) == len(ENDINGS)
        assert "unfenced" not in work.rows()
        await lend.whole()


@some_kinds
async def test_tables_that_a_failed_block_locked_are_unlocked(mysql_url: str, work: Work, kind: str) -> None:
    """A block that locks tables and raises gives the pool a connection back that holds no lock."""
    async with lent(kind, mysql_url) as lend, leadership(lend.target) as lead:
        with pytest.raises(Boom):
            async with lead.transaction() as connection:
                await lend.run(connection, "LOCK TABLES work WRITE")
                raise Boom
        async with asyncio.timeout(5.0):
            await asyncio.to_thread(work.server.sql, insert("another"), work.database)
        assert work.rows() == ["another"]


@every_server
async def test_a_transaction_that_the_server_undid_is_found(mysql_server: Server, mysql_url: str, work: Work) -> None:
    """A deadlock that the block swallows has undone the transaction: what the block does after it is not committed."""
    work.server.sql("INSERT INTO work (id, who) VALUES (1, 'a'), (2, 'b')", work.database)
    work.server.sql("CREATE TABLE ballast (id INT PRIMARY KEY)", work.database)
    async with lent("asyncmy", mysql_url) as lend, leadership(lend.target) as lead:
        other = await lend.target.acquire()
        await lend.run(other, "BEGIN")
        await lend.run(other, f"INSERT INTO ballast VALUES {', '.join(f'({n})' for n in range(200))}")
        await lend.run(other, "UPDATE work SET who = 'other b' WHERE id = 2")
        with pytest.raises((TransactionEnded, StoreUnavailable)):
            async with lead.transaction() as connection:
                await lend.run(connection, "UPDATE work SET who = 'never' WHERE id = 1")
                blocked = asyncio.create_task(lend.run(other, "UPDATE work SET who = 'other a' WHERE id = 1"))
                await asyncio.sleep(0.2)
                with contextlib.suppress(asyncmy.errors.OperationalError):
                    await lend.run(connection, "UPDATE work SET who = 'never' WHERE id = 2")
                async with asyncio.timeout(LIMIT):
                    await blocked
                await other.commit()
                lend.target.release(other)
                await lend.run(connection, insert("half"))
        assert work.rows() == ["other a", "other b"]
        await lend.whole()


# -- answers that are lost


@pytest.mark.parametrize(
    ("mysql_server", "kind", "lost", "fate"),
    [
        ("mariadb", "asyncmy", "answer", "cut"),
        ("mariadb", "aiomysql", "answer", "swallow"),
        ("mariadb", "engine-asyncmy", "query", "swallow"),
        ("mariadb", "url", "query", "cut"),
        ("mysql9", "asyncmy", "answer", "swallow"),
        ("mysql9", "engine-aiomysql", "answer", "cut"),
    ],
    indirect=["mysql_server"],
)
async def test_a_lost_commit_is_unknown(  # noqa: PLR0917
    mysql_server: Server, mysql_url: str, work: Work, kind: str, lost: str, fate: Any
) -> None:
    """A COMMIT whose answer is lost, or which is lost itself, is `CommitUnknown`, never `LeadershipLost`.

    It is so by the time that the term has left; its connection is closed, and the term goes on.
    """
    async with (
        TCPProxy(mysql_server.host, mysql_server.port) as proxy,
        lent(kind, mysql_url, port=proxy.port) as lend,
        leadership(apart(mysql_url), lease_duration=1.5) as other,
    ):
        assert other.is_leader
        async with leadership(lend.target, "behind", lease_duration=1.5, heartbeat_interval=0.3) as lead:
            before = -1
            with pytest.raises(CommitUnknown):
                async with lead.transaction() as connection:
                    await lend.run(connection, insert("perhaps"))
                    before = proxy.live
                    proxy.on_query = once(COMMIT, Action(**{lost: fate}))
                    began, left = boot_clock(), lead.remaining
            assert boot_clock() - began < left + SLACK
            await until(lambda: proxy.live == before - 1, "the connection is closed")
            lead.check()
            async with lead.transaction() as connection:
                await lend.run(connection, insert("after"))
        if lost == "query":
            assert work.rows() == ["after"]
        elif fate == "swallow":  # a server whose answer meets a cut connection may stop before the COMMIT
            assert work.rows() == ["perhaps", "after"]
        await lend.whole()


@pytest.mark.parametrize(
    ("mysql_server", "kind", "how"),
    [
        ("mariadb", "asyncmy", "native"),
        ("mariadb", "url", "twice"),
        ("mariadb", "aiomysql", "anyio"),
        ("mariadb", "engine-asyncmy", "native"),
        ("mysql9", "engine-aiomysql", "twice"),
    ],
    indirect=["mysql_server"],
)
async def test_a_cancellation_does_not_tear_the_commit(
    mysql_server: Server, mysql_url: str, work: Work, kind: str, how: str
) -> None:
    """A cancellation while the COMMIT is under way waits for its outcome: committed, then the cancellation goes on."""
    async with TCPProxy(mysql_server.host, mysql_server.port) as proxy, lent(kind, mysql_url, port=proxy.port) as lend:
        async with leadership(lend.target) as lead:
            hold, seen, after = asyncio.Event(), asyncio.Event(), False

            def choose(query: bytes) -> Action | None:
                if COMMIT not in query or seen.is_set():
                    return None
                seen.set()
                return Action(hold=hold)

            proxy.on_query = choose

            async def write(scope: anyio.CancelScope) -> None:
                nonlocal after
                with scope:
                    async with lead.transaction() as connection:
                        await lend.run(connection, insert("whole"))
                    await asyncio.sleep(LIMIT)
                    after = True

            scope = anyio.CancelScope()
            task = asyncio.create_task(write(scope))
            async with asyncio.timeout(LIMIT):
                await seen.wait()
                for _ in range(2 if how == "twice" else 1):
                    if how == "anyio":
                        scope.cancel()
                    else:
                        task.cancel()
                    await asyncio.sleep(0.1)
                assert not task.done()
                assert work.rows() == []
                hold.set()
                await asyncio.wait([task])
            assert not after
            assert scope.cancelled_caught if how == "anyio" else task.cancelled()
        assert work.rows() == ["whole"]
        await lend.whole()


@one_server
@pytest.mark.parametrize("trouble", ["ended", "conflict", "no connection"])
async def test_a_cancellation_is_not_swallowed_by_trouble(
    mysql_server: Server, mysql_url: str, work: Work, trouble: str
) -> None:
    """A cancellation goes before the trouble that the commit meets: a loop that tries again must not outlive it."""
    async with (
        TCPProxy(mysql_server.host, mysql_server.port) as proxy,
        lent("asyncmy", mysql_url, port=proxy.port) as lend,
    ):
        async with leadership(lend.target) as lead:
            hold, seen = asyncio.Event(), asyncio.Event()
            text = b"SAVEPOINT" if trouble == "no connection" else COMMIT

            def choose(query: bytes) -> Action | None:
                if text not in query or seen.is_set():
                    return None
                seen.set()
                return Action(hold=hold, query="cut" if trouble == "no connection" else "forward")

            proxy.on_query = choose

            async def write() -> None:
                async with lead.transaction() as connection:
                    await lend.run(connection, insert("never"))
                    if trouble == "ended":
                        await lend.run(connection, "ROLLBACK")
                    elif trouble == "conflict":
                        await lend.run(connection, "SET SESSION innodb_lock_wait_timeout = 1")

            task = asyncio.create_task(write())
            async with asyncio.timeout(LIMIT):
                await seen.wait()
                holder = await asyncmy.connect(
                    host=mysql_server.host, port=mysql_server.port, user="root", db=work.database
                )
                try:
                    await lend.run(holder, "SELECT * FROM aiolease_fence FOR UPDATE")
                    task.cancel()
                    await asyncio.sleep(0.05)
                    hold.set()
                    await asyncio.wait([task])
                finally:
                    await holder.rollback()
                    await holder.ensure_closed()
            assert task.cancelled(), f"the cancellation was swallowed by {task.exception()!r}"
        assert work.rows() == []
        await lend.whole()


# -- conflicts


@some_pairs
async def test_overlapping_transactions_of_one_term_do_not_fail_each_other(
    mysql_url: str, work: Work, kind: str
) -> None:
    """Fenced transactions of one term that overlap all commit, or meet a conflict that may be tried again."""
    async with lent(kind, mysql_url, size=4) as lend:
        async with leadership(lend.target) as lead:
            committed = conflicts = 0
            barrier = asyncio.Barrier(4)

            async def write(who: str) -> None:
                nonlocal committed, conflicts
                for number in range(10):
                    try:
                        async with lead.transaction() as connection:
                            await lend.run(connection, "SELECT COUNT(*) FROM work")
                            await lend.run(connection, insert(f"{who} {number}"))
                            await barrier.wait()
                        committed += 1
                    except StoreUnavailable:
                        conflicts += 1

            async with asyncio.timeout(LIMIT), asyncio.TaskGroup() as tasks:
                for who in "abcd":
                    tasks.create_task(write(who))
            lead.check()
        assert len(work.rows()) == committed
        assert committed + conflicts == 40
        assert conflicts == 0
        await lend.whole()


@some_pairs
async def test_a_lock_wait_at_the_fence_may_be_tried_again(mysql_url: str, work: Work, kind: str) -> None:
    """Where the fence cannot be locked in time, it is `StoreUnavailable`: nothing was committed, the term goes on."""
    async with lent(kind, mysql_url, size=3) as lend:
        async with leadership(lend.target) as lead, lent("asyncmy", mysql_url) as others:
            async with others.target.acquire() as other:
                await others.run(other, "SELECT * FROM aiolease_fence FOR UPDATE")
                with pytest.raises(StoreUnavailable, match="1205"):
                    async with lead.transaction() as connection:
                        await lend.run(connection, "SET SESSION innodb_lock_wait_timeout = 1")
                        await lend.run(connection, insert("never"))
                await other.rollback()
            lead.check()
            async with lead.transaction() as connection:
                await lend.run(connection, insert("after"))
        assert work.rows() == ["after"]
        await lend.whole()


@every_server
async def test_a_deadlock_at_the_fence_may_be_tried_again(mysql_url: str, work: Work) -> None:
    """A deadlock at the fence is `StoreUnavailable`: nothing was committed, the term goes on."""
    work.server.sql("INSERT INTO work (id, who) VALUES (1, 'first')", work.database)
    work.server.sql("CREATE TABLE ballast (id INT PRIMARY KEY)", work.database)
    async with lent("asyncmy", mysql_url, size=3) as lend:
        async with leadership(lend.target) as lead:
            async with lend.target.acquire() as other:
                await lend.run(other, "BEGIN")
                await lend.run(other, f"INSERT INTO ballast VALUES {', '.join(f'({n})' for n in range(500))}")
                await lend.run(other, "UPDATE aiolease_fence SET fence = fence + 1")
                with pytest.raises(StoreUnavailable, match="1213"):
                    async with lead.transaction() as connection:
                        await lend.run(connection, "UPDATE work SET who = 'never' WHERE id = 1")
                        blocked = asyncio.create_task(lend.run(other, "UPDATE work SET who = 'other' WHERE id = 1"))
                        await asyncio.sleep(0.2)
                async with asyncio.timeout(LIMIT):
                    await blocked
                await other.commit()
            lead.check()
        assert work.rows() == ["other"]
        await lend.whole()


@pytest.mark.parametrize(
    ("mysql_server", "options"),
    [
        ("mariadb", {"stmt_cache_size": 16}),
        ("mariadb", {"cursor_cls": asyncmy.cursors.SSDictCursor}),
        ("mariadb", {"init_command": "SET sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,ORACLE'"}),
        ("mysql9", {"init_command": "SET sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES'"}),
        ("mariadb", {"init_command": "SET SESSION completion_type = 'CHAIN'"}),
        ("mariadb", {"init_command": "SET SESSION sql_safe_updates = 1"}),
    ],
    indirect=["mysql_server"],
    ids=str,
)
async def test_the_fence_works_whatever_the_pool_is_set_to(mysql_url: str, work: Work, options: dict[str, Any]) -> None:
    """Whatever sessions and cursors the user's pool has, transactions commit, and an older term is refused."""
    async with lent("asyncmy", mysql_url, **options) as lend:
        with pytest.raises(LeadershipLost):
            async with leadership(lend.target) as lead:
                for number in range(3):
                    async with lead.transaction() as connection, connection.cursor(asyncmy.cursors.Cursor) as cursor:
                        await cursor.execute(insert(f"row {number}"))
                assert work.rows() == ["row 0", "row 1", "row 2"]
                async with lead.transaction() as connection, connection.cursor(asyncmy.cursors.Cursor) as cursor:
                    await cursor.execute(insert("never"))
                    work.new_term()
        assert work.rows() == ["row 0", "row 1", "row 2"]


@one_server
async def test_the_fence_is_found_from_another_database(mysql_url: str, work: Work) -> None:
    """A block that changed to another database with USE commits."""
    async with lent("asyncmy", mysql_url, size=1) as lend, leadership(lend.target) as lead:
        async with lead.transaction() as connection:
            await lend.run(connection, insert("one"))
            await lend.run(connection, "USE mysql")
        assert work.rows() == ["one"]


# -- fence(): who commits themselves


class Base(DeclarativeBase):
    """The user's models."""


class Row(Base):
    """A row of the user's table."""

    __tablename__ = "work"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    who: Mapped[str] = mapped_column(String(40))


FENCED = [
    "asyncmy connection",
    "aiomysql connection",
    "asyncmy AsyncConnection",
    "aiomysql AsyncConnection",
    "asyncmy AsyncSession",
    "aiomysql AsyncSession",
]


@asynccontextmanager
async def own_transaction(how: str, url: str, who: str) -> AsyncIterator[Any]:
    """A transaction of the user's own that has written a row, and is committed as its kind is; gives what to fence."""
    driver, kind = how.split()
    if kind == "connection":
        async with lent(driver, url) as lend, lend.target.acquire() as connection:
            await connection.begin()
            try:
                await lend.run(connection, insert(who))
                yield connection
                await connection.commit()
            except BaseException:
                with contextlib.suppress(asyncmy.errors.InterfaceError):  # it was closed: that rolls back as well
                    await connection.rollback()
                raise
        return
    async with lent(f"engine-{driver}", url) as lend:
        if kind == "AsyncConnection":
            async with lend.target.begin() as connection:
                await connection.execute(text(insert(who)))
                yield connection
        else:
            async with AsyncSession(lend.target) as session, session.begin():
                session.add(Row(who=who))
                yield session


@pytest.mark.parametrize(
    ("mysql_server", "kind", "how"),
    [
        *(("mariadb", "aiomysql" if how.startswith("asyncmy") else "engine-asyncmy", how) for how in FENCED),
        ("mariadb", "url", "aiomysql AsyncSession"),
        ("mariadb_snapshot", "asyncmy", "aiomysql AsyncConnection"),
        ("mysql9", "engine-aiomysql", "asyncmy connection"),
    ],
    indirect=["mysql_server"],
)
async def test_fence_lets_this_term_commit_and_no_older_one(mysql_url: str, work: Work, kind: str, how: str) -> None:
    """`fence` on any connection to the lease's database, of whatever driver: the term commits, an older one does not.

    Once a newer one has begun it raises `LeadershipLost`, and nothing of the transaction is visible.
    """
    async with lent(kind, mysql_url) as lend:
        with pytest.raises(LeadershipLost) as lost:
            async with leadership(lend.target) as lead:
                async with own_transaction(how, mysql_url, "fenced") as own:
                    await lead.fence(own)
                    assert work.rows() == []
                assert work.rows() == ["fenced"]
                async with own_transaction(how, mysql_url, "never") as own:
                    work.new_term()
                    await lead.fence(own)
        assert lost.value.reason == "taken"
        assert work.rows() == ["fenced"]
        await lend.whole()


@pytest.mark.parametrize(
    ("mysql_server", "how"),
    [
        ("mariadb", "aiomysql connection"),
        ("mariadb_snapshot", "asyncmy AsyncConnection"),
        ("mariadb_snapshot", "aiomysql AsyncSession"),
        ("mysql9", "asyncmy AsyncSession"),
    ],
    indirect=["mysql_server"],
)
async def test_fence_outlasts_other_fences(mysql_url: str, work: Work, how: str) -> None:
    """A transaction of the user's own that read before others were fenced is fenced and commits."""
    async with lent("asyncmy", mysql_url) as lend, leadership(lend.target) as lead:
        async with own_transaction(how, mysql_url, "early") as own:
            if "AsyncSession" in how:
                await own.execute(text("SELECT * FROM aiolease_fence"))
            else:
                await Lent("engine" if "Async" in how else "pool", None, 1).run(own, "SELECT * FROM aiolease_fence")
            async with lead.transaction() as connection:
                await lend.run(connection, insert("other"))
            await lead.fence(own)
        assert sorted(work.rows()) == ["early", "other"]


@one_server
async def test_fence_outside_a_transaction_is_refused(mysql_url: str, work: Work) -> None:
    """A connection that commits each statement by itself, and is in no transaction, is not fenced: an error says so."""
    async with lent("asyncmy-autocommit", mysql_url) as lend, leadership(lend.target) as lead:
        async with lend.target.acquire() as connection:
            await lend.run(connection, insert("unfenced"))
            with pytest.raises(TransactionEnded):
                await lead.fence(connection)


@one_server
async def test_fence_is_bounded(mysql_url: str, work: Work) -> None:
    """Where another keeps the fence locked, `fence` gives up by the time that the term has left: try again."""
    async with lent("asyncmy", mysql_url) as lend, leadership(lend.target, lease_duration=1.2) as lead:
        async with lent("asyncmy", mysql_url, size=1) as others, others.target.acquire() as other:
            await lend.run(other, "SELECT * FROM aiolease_fence FOR UPDATE")
            began, left = boot_clock(), lead.remaining
            with pytest.raises(StoreUnavailable):
                async with own_transaction("asyncmy connection", mysql_url, "never") as own:
                    await lead.fence(own)
            assert boot_clock() - began < left + SLACK
            await other.rollback()
        lead.check()
        assert work.rows() == []


@one_server
async def test_the_server_ends_a_session_that_stays_behind_its_fence(mysql_url: str, work: Work) -> None:
    """MariaDB ends the session of a process that was frozen between `fence` and its COMMIT: others may lead then."""
    async with (
        lent("asyncmy", mysql_url, size=1) as frozen,
        frozen.target.acquire() as connection,
        open_store(apart(mysql_url)) as store,
    ):
        seen = await store.claim("default", "old", 30.0, seen=None, force=False)
        assert seen is not None
        await frozen.run(connection, insert("old"))
        await store.fence(connection, TermKey("default", "old", seen.token), within=1.0)
        claimed = None
        async with asyncio.timeout(LIMIT):
            while claimed is None:  # a claim waits for the fence, for two seconds at a time
                with contextlib.suppress(StoreUnavailable):
                    claimed = await store.claim("default", "new", 30.0, seen=seen, force=True)
        assert claimed.holder == "new"
        with pytest.raises(asyncmy.errors.OperationalError):
            await frozen.run(connection, "COMMIT")
    assert work.rows() == []


@one_server
async def test_what_a_session_flushes_fails_as_itself(mysql_url: str, work: Work) -> None:
    """An error of the user's own rows that shows when `fence` flushes them comes out as itself."""
    async with lent("engine-asyncmy", mysql_url) as lend, leadership(lend.target) as lead:
        with pytest.raises(IntegrityError):
            async with AsyncSession(lend.target) as session, session.begin():
                session.add_all([Row(who="same"), Row(who="same")])
                await lead.fence(session)
        assert work.rows() == []
        await lend.whole()


# -- frozen processes

LEASE = 1.2
"""Seconds; of the one that is frozen, and of the one that follows."""

WORKER = """
import asyncio, json, os, signal, sys
import asyncmy
from aiolease import leadership, CommitUnknown, LeadershipLost, StoreUnavailable
from aiolease.stores.mysql import transactions as _transactions

url, port, database, point, lease, loops = sys.argv[1:]
port, lease, loops = int(port), float(lease), int(loops)

def tell(*what):
    print(json.dumps(what), flush=True)

def stop(here):
    if here == point:
        tell("stopping")
        os.kill(os.getpid(), signal.SIGSTOP)

execute = _transactions.execute
async def watched(connection, cursor, sql, parameters=(), results=None):
    if "; COMMIT; " in sql:
        stop("before the packet")
    answer = await execute(connection, cursor, sql, parameters, *([] if results is None else [results]))
    if "; COMMIT; " in sql:
        stop("after the answer")
    return answer
_transactions.execute = watched

async def main():
    async with asyncmy.create_pool(host="127.0.0.1", port=port, user="root", db=database, maxsize=2) as pool:
        try:
            async with leadership(pool, timeout=20, lease_duration=lease) as lead:
                tell("leading", lead.token)
                for number in range(loops):
                    outcome = "committed"
                    try:
                        async with lead.transaction() as connection:
                            stop("begun")
                            async with connection.cursor() as cursor:
                                await cursor.execute("SELECT COUNT(*) FROM work")
                                await cursor.execute(f"INSERT INTO work (who) VALUES ('old {number}')")
                                stop("written")
                    except (CommitUnknown, StoreUnavailable) as error:
                        outcome = type(error).__name__
                    except asyncio.CancelledError:  # by the loss, perhaps behind the COMMIT
                        tell("cancelled", number)
                        raise
                    tell(outcome, number)
                await asyncio.sleep(30)
        except LeadershipLost as error:
            tell("LeadershipLost", error.reason)
asyncio.run(main())
"""


@dataclass
class Worker:
    """A leader in a process of its own, and what it told."""

    process: asyncio.subprocess.Process
    told: list[list[Any]] = field(default_factory=list)

    async def hear(self, word: str) -> list[Any]:
        assert self.process.stdout is not None
        async with asyncio.timeout(LIMIT):
            while line := await self.process.stdout.readline():
                self.told.append(json.loads(line))
                if self.told[-1][0] == word:
                    return self.told[-1]
        raise AssertionError(f"the worker ended, and told only {self.told}")

    async def end(self) -> None:
        """Hears all that it has to tell, until it ends by itself."""
        assert self.process.stdout is not None
        async with asyncio.timeout(LIMIT):
            while line := await self.process.stdout.readline():
                self.told.append(json.loads(line))
            assert await self.process.wait() == 0

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def stopped(self) -> None:
        path = Path(f"/proc/{self.process.pid}/status")
        await until(lambda: "\nState:\tT" in path.read_text(), "the worker is frozen")


@asynccontextmanager
async def worker(url: str, point: str, *, port: int = 0, loops: int = 1) -> AsyncIterator[Worker]:
    address, _, database = url.rpartition("/")
    port = port or int(address.rpartition(":")[2])
    arguments = (url, str(port), database, point, str(LEASE), str(loops))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", WORKER, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield Worker(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def take_over(url: str, frozen_at: float) -> int:
    """Leads in the frozen one's place, commits, and says by which token. It must not take longer than the lease."""
    async with lent("asyncmy", url) as lend, leadership(lend.target, timeout=LIMIT, lease_duration=LEASE) as lead:
        assert boot_clock() - frozen_at < LEASE + SLACK + 0.4, "the frozen leader held up the takeover"
        async with lead.transaction() as connection:
            await lend.run(connection, insert("new"))
        return lead.token


@pytest.mark.parametrize(
    ("mysql_server", "point"),
    [
        ("mariadb", "begun"),
        ("mariadb", "written"),
        ("mariadb", "before the packet"),
        ("mariadb", "after the answer"),
        ("mariadb_snapshot", "before the packet"),
        ("mysql9", "before the packet"),
    ],
    indirect=["mysql_server"],
)
async def test_a_frozen_leader_holds_up_nobody_and_commits_nothing(mysql_url: str, work: Work, point: str) -> None:
    """A leader that is frozen anywhere in a transaction is followed when its lease expires.

    Thawed, it gets `LeadershipLost` and nothing of it is visible, unless it had committed before the newer term began.
    """
    async with worker(mysql_url, point) as old:
        _, token = await old.hear("leading")
        await old.hear("stopping")
        await old.stopped()
        assert await take_over(mysql_url, boot_clock()) == token + 1
        at_takeover = work.rows()
        old.send(signal.SIGCONT)
        await old.end()
    assert work.rows() == at_takeover == (["old 0", "new"] if point == "after the answer" else ["new"])
    assert old.told[-1][0] == "LeadershipLost"
    if point != "after the answer":  # what the server has refused, or was never asked, is not unknown
        assert not {"committed", "CommitUnknown"} & {told[0] for told in old.told}


@one_server
async def test_a_leader_frozen_behind_its_commit_has_committed(
    mysql_server: Server, mysql_url: str, work: Work
) -> None:
    """A leader that is frozen after it has sent its COMMIT holds up nobody: it is committed before the newer term."""
    async with TCPProxy(mysql_server.host, mysql_server.port) as proxy, worker(mysql_url, "", port=proxy.port) as old:
        answered = asyncio.Event()

        def freeze(query: bytes) -> Action | None:
            if COMMIT not in query:
                return None
            old.send(signal.SIGSTOP)
            return Action(answered=answered)

        await old.hear("leading")
        proxy.on_query = freeze
        async with asyncio.timeout(LIMIT):
            await answered.wait()
        await take_over(mysql_url, boot_clock())
        at_takeover = work.rows()
        proxy.on_query = None  # the release that it tries is let through
        old.send(signal.SIGCONT)
        await old.end()
    assert work.rows() == at_takeover == ["old 0", "new"]
    assert old.told[-1][0] == "LeadershipLost"


@pytest.mark.parametrize(
    ("mysql_server", "seed"),
    [("mariadb", 0), ("mariadb_snapshot", 1), ("mysql9", 2)],
    indirect=["mysql_server"],
)
async def test_a_leader_frozen_at_random_holds_up_nobody(mysql_url: str, work: Work, seed: int) -> None:
    """Frozen at any moment of a stream of transactions, a leader delays no takeover, and commits nothing after it."""
    dice = random.Random(seed)
    async with worker(mysql_url, "", loops=1_000_000) as old:
        await old.hear("committed")
        await asyncio.sleep(dice.uniform(0.0, 0.3))
        old.send(signal.SIGSTOP)
        await old.stopped()
        await take_over(mysql_url, boot_clock())
        at_takeover = work.rows()
        old.send(signal.SIGCONT)
        await old.end()
    assert work.rows() == at_takeover
    assert at_takeover[-1] == "new"
    assert old.told[-1][0] == "LeadershipLost"
    known = {f"old {number}" for outcome, number in old.told if outcome == "committed"}
    unknown = {f"old {number}" for outcome, number in old.told if outcome in {"CommitUnknown", "cancelled"}}
    assert known <= set(at_takeover) - {"new"} <= known | unknown


@one_server
async def test_a_committed_transaction_succeeds_whatever_comes_after(mysql_url: str, work: Work) -> None:
    """A session that dies between its COMMIT and its return to the pool of an engine takes nothing back."""
    give_back = EngineLender.give_back

    async def late(self: EngineLender, connection: Any, *, broken: bool) -> None:
        raw = await self.raw(connection)
        work.server.sql(f"KILL {raw.thread_id()}")
        await give_back(self, connection, broken=broken)

    async with lent("engine-asyncmy", mysql_url) as lend, leadership(lend.target, timeout=LIMIT) as lead:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(EngineLender, "give_back", late)
            async with lead.transaction() as connection:
                await lend.run(connection, insert("committed"))
        await lend.whole()
    assert work.rows() == ["committed"]


# -- SQLite


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[Path]:
    path = tmp_path / "jobs.db"
    async with aiosqlite.connect(path) as connection:
        await connection.execute("CREATE TABLE work (id INTEGER PRIMARY KEY, who TEXT)")
        await connection.commit()
    before = set(threading.enumerate())
    yield path

    def left() -> set[str]:  # the watchdog stays for the next leader
        return {thread.name for thread in threading.enumerate() if thread not in before} - {"aiolease-watchdog"}

    await until(lambda: not left(), "no thread is left")


async def rows(path: Path) -> list[str]:
    async with aiosqlite.connect(path) as connection:
        return [row[0] for row in await connection.execute_fetchall("SELECT who FROM work ORDER BY id")]


async def new_term(connection: aiosqlite.Connection) -> None:
    await connection.execute("UPDATE aiolease_fence SET holder = 'another', token = token + 1")
    await connection.commit()


async def test_sqlite_commits_and_rolls_back(file: Path) -> None:
    """On SQLite a block commits, or is rolled back by its exception or cancellation, which come out as themselves."""
    async with leadership(f"sqlite:///{file}") as lead:
        async with lead.transaction() as connection:
            await connection.execute(insert("one"))
        assert await rows(file) == ["one"]
        with pytest.raises(Boom):
            async with lead.transaction() as connection:
                await connection.execute(insert("never"))
                raise Boom
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2), lead.transaction() as connection:
                await connection.execute(insert("never"))
                await asyncio.sleep(LIMIT)
        with anyio.move_on_after(0.2) as scope:
            async with lead.transaction() as connection:
                await connection.execute(insert("never"))
                await asyncio.sleep(LIMIT)
        assert scope.cancelled_caught
        async with lead.transaction() as connection:
            await connection.execute(insert("two"))
    assert await rows(file) == ["one", "two"]


@pytest.mark.parametrize(
    "ending", ["COMMIT", "ROLLBACK", "connection.commit", "connection.rollback", "connection.close", "ROLLBACK; BEGIN"]
)
async def test_what_ends_a_transaction_of_sqlite_is_found(file: Path, ending: str) -> None:
    """A block that ends its transaction on SQLite gets `TransactionEnded`, and what it does after is not committed."""
    async with leadership(f"sqlite:///{file}") as lead:
        with pytest.raises(TransactionEnded):
            async with lead.transaction() as connection:
                await connection.execute(insert("before"))
                if ending.startswith("connection"):
                    await getattr(connection, ending.partition(".")[2])()
                else:
                    for statement in ending.split("; "):
                        await connection.execute(statement)
                if ending != "connection.close":
                    await connection.execute(insert("after"))
        lead.check()
        with pytest.raises(Boom):
            async with lead.transaction() as connection:
                await connection.execute("ROLLBACK")
                await connection.execute(insert("beside a job that failed"))
                raise Boom
        assert {"after", "beside a job that failed"}.isdisjoint(await rows(file))


async def test_an_older_term_cannot_commit_on_sqlite(file: Path) -> None:
    """On SQLite, too, the commit of an older term is refused: here its fence was changed within the transaction."""
    with pytest.raises(LeadershipLost) as lost:
        async with leadership(f"sqlite:///{file}") as lead, lead.transaction() as connection:
            await connection.execute(insert("never"))
            await connection.execute("UPDATE aiolease_fence SET holder = 'another', token = token + 1")
    assert lost.value.reason == "taken"
    assert await rows(file) == []


async def test_sqlite_ends_a_long_transaction_by_remaining(file: Path) -> None:
    """A transaction held on SQLite ends by the time that the term has left: cancelled, undone, another may lead."""
    url, heard = f"sqlite:///{file}", Recorder()
    with pytest.raises(LeadershipLost) as lost:
        async with leadership(url, lease_duration=2.0, on_event=heard) as lead:
            async with lead.transaction() as connection:
                began, left = boot_clock(), lead.remaining
                await connection.execute(insert("never"))
                await asyncio.sleep(LIMIT)
    assert lost.value.reason == "expired"
    assert boot_clock() - began < left + SLACK
    assert await rows(file) == []
    async with leadership(url, timeout=LIMIT, lease_duration=2.0) as lead, lead.transaction() as connection:
        await connection.execute(insert("next"))
    assert await rows(file) == ["next"]


async def test_sqlite_waits_for_another_writer_by_remaining(file: Path) -> None:
    """Where another keeps the file locked, `transaction` waits by what the term has left, and can be cancelled."""
    async with leadership(f"sqlite:///{file}", lease_duration=3.0) as lead:
        async with aiosqlite.connect(file, isolation_level=None) as other:
            await other.execute("BEGIN IMMEDIATE")

            async def write(who: str) -> None:
                async with lead.transaction() as connection:
                    await connection.execute(insert(who))

            cancelled, patient = asyncio.create_task(write("never")), asyncio.create_task(write("patient"))
            await asyncio.sleep(0.3)
            cancelled.cancel()
            await asyncio.wait([cancelled], timeout=1.0)
            assert cancelled.cancelled()
            await other.execute("ROLLBACK")
            async with asyncio.timeout(LIMIT):
                await patient
    assert await rows(file) == ["patient"]


async def test_fence_on_a_connection_of_aiosqlite(file: Path) -> None:
    """`fence` on a connection of aiosqlite: the term commits, and an older one does not."""
    with pytest.raises(LeadershipLost) as lost:
        async with leadership(f"sqlite:///{file}") as lead, aiosqlite.connect(file) as connection:
            await connection.execute(insert("fenced"))
            await lead.fence(connection)
            await connection.commit()
            await new_term(connection)
            await connection.execute(insert("never"))
            try:
                await lead.fence(connection)
            finally:
                await connection.rollback()
    assert lost.value.reason == "taken"
    assert await rows(file) == ["fenced"]


async def test_overlapping_transactions_on_sqlite_wait_for_each_other(file: Path) -> None:
    """Transactions of one term on SQLite that overlap run one after another, and all commit; renewals come between."""
    heard = Recorder()
    async with leadership(f"sqlite:///{file}", lease_duration=3.0, heartbeat_interval=0.1, on_event=heard) as lead:

        async def write(who: str) -> None:
            for number in range(5):
                async with lead.transaction() as connection:
                    await connection.execute(insert(f"{who} {number}"))
                    await asyncio.sleep(0.01)

        async with asyncio.timeout(LIMIT), asyncio.TaskGroup() as tasks:
            for who in "abcd":
                tasks.create_task(write(who))
    assert len(await rows(file)) == 20
    assert not heard.of(Lost)


# -- memory


@virtual_time
async def test_memory_commits_rolls_back_and_refuses() -> None:
    """In memory a transaction's calls are made when it commits, not when its block raises, and not by an older term."""
    store, made = MemoryStore(), []
    with pytest.raises(LeadershipLost) as lost:
        async with leadership(store) as lead:
            async with lead.transaction() as calls:
                calls.append(lambda: made.append("one"))
                assert made == []
            assert made == ["one"]
            with pytest.raises(Boom):
                async with lead.transaction() as calls:
                    calls.append(lambda: made.append("never"))
                    raise Boom
            await lead.fence(None)
            async with lead.transaction() as calls:
                calls.append(lambda: made.append("never"))
                store.server.fences["default"].token += 1
    assert lost.value.reason == "taken"
    assert made == ["one"]


@virtual_time
async def test_a_commit_in_memory_whose_answer_is_lost_is_unknown() -> None:
    """In memory, too, a lost answer is `CommitUnknown`, by what the term has left; the term goes on."""
    store, made = MemoryStore(), []
    async with leadership(store) as lead:
        store.lose_reply("commit")
        left, began = lead.remaining, asyncio.get_running_loop().time()
        with pytest.raises(CommitUnknown):
            async with lead.transaction() as calls:
                calls.append(lambda: made.append("perhaps"))
        assert asyncio.get_running_loop().time() - began <= left + 0.1
        assert made == ["perhaps"]
        lead.check()
