"""What ends a transaction: statements, lost answers, conflicts."""

# ruff: noqa: PT012 - the blocks are what is tested: which is inside which, and that it raises

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import anyio
import asyncmy
import pytest

from aiolease import CommitUnknown, LeadershipLost, StoreUnavailable, TransactionEnded, leadership
from aiolease._clock import boot_clock
from tests.campaigns import LIMIT, apart, once, proxy_of, until
from tests.servers import Action, Server
from tests.stores.mysql.connecting import SLACK
from tests.stores.transactions.lending import (
    COMMIT,
    Boom,
    Work,
    every_pair,
    every_server,
    insert,
    lent,
    one_server,
    some_kinds,
    some_pairs,
)

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
    "SET autocommit = 1; BEGIN",
    "connection.commit",
    "connection.rollback",
]


OF_POSTGRESQL = [
    "COMMIT",
    "ROLLBACK",
    "COMMIT AND CHAIN",
    "ROLLBACK AND CHAIN",
    "COMMIT; BEGIN",
    "no SQL at all",
    "connection.commit",
    "connection.rollback",
]


@every_pair
async def test_what_ends_the_transaction_is_found(mysql_url: str, work: Work, kind: str) -> None:
    """A block that ends its transaction itself gets `TransactionEnded`; what it did after that is not committed.

    The pool gets a connection back that holds no lock, or none.
    """
    async with lent(kind, mysql_url) as lend, leadership(lend.target) as lead:
        postgresql = work.server.kind == "postgresql"
        endings = OF_POSTGRESQL if postgresql else ENDINGS
        for number, ending in enumerate(endings):
            if ending.startswith("connection") and kind.endswith("asyncpg") and not kind.startswith("engine"):
                continue  # it has none
            print(ending)  # which one it was, if it fails
            with pytest.raises(TransactionEnded):
                async with lead.transaction() as connection:
                    await lend.run(connection, insert(f"before {number}"))
                    if ending.startswith("connection"):
                        await getattr(connection, ending.partition(".")[2])()
                    else:
                        for statement in ending.split("; "):
                            # One that fails, and is swallowed, has ended it as well on PostgreSQL.
                            with contextlib.suppress(*([Exception] if postgresql else [])):
                                await lend.run(connection, statement)
                    if ending in {"COMMIT AND CHAIN", "BEGIN", "START TRANSACTION"}:
                        await lend.run(connection, insert("unfenced"))
            lead.check()
            async with asyncio.timeout(5.0):
                await asyncio.to_thread(work.server.sql, insert(f"another {number}"), work.database)
            async with lead.transaction() as connection:
                await lend.run(connection, insert(f"fenced {number}"))
        assert sum(row.startswith("fenced") for row in work.rows()) >= len(endings) - 2
        assert "unfenced" not in work.rows()
        await lend.whole()


@some_kinds
async def test_tables_that_a_failed_block_locked_are_unlocked(mysql_url: str, work: Work, kind: str) -> None:
    """A block that locks tables and raises gives the pool a connection back that holds no lock."""
    async with lent(kind, mysql_url) as lend, leadership(lend.target) as lead:
        with pytest.raises(Boom):
            async with lead.transaction() as connection:
                await lend.run(connection, work.server.lock_table.format("work"))
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
        ("postgresql", "asyncpg", "answer", "cut"),
        ("postgresql", "asyncpg", "answer", "swallow"),
        ("postgresql", "psycopg", "answer", "swallow"),
        ("postgresql", "psycopg", "query", "cut"),
        ("postgresql", "engine-asyncpg", "query", "swallow"),
        ("postgresql", "engine-psycopg", "answer", "cut"),
        ("postgresql", "url-asyncpg", "query", "cut"),
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
        proxy_of(mysql_server) as proxy,
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
            if kind != "psycopg":  # whose pool makes another at once
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
        ("postgresql", "asyncpg", "native"),
        ("postgresql", "psycopg", "twice"),
        ("postgresql", "engine-asyncpg", "anyio"),
    ],
    indirect=["mysql_server"],
)
async def test_a_cancellation_does_not_tear_the_commit(
    mysql_server: Server, mysql_url: str, work: Work, kind: str, how: str
) -> None:
    """A cancellation while the COMMIT is under way waits for its outcome: committed, then the cancellation goes on."""
    async with (
        proxy_of(mysql_server) as proxy,
        lent(kind, mysql_url, port=proxy.port) as lend,
    ):
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
        proxy_of(mysql_server) as proxy,
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
        be_impatient, error = work.server.lock_wait
        stranger = "asyncpg" if work.server.kind == "postgresql" else "asyncmy"
        async with leadership(lend.target) as lead, lent(stranger, mysql_url) as others:
            async with others.target.acquire() as other:
                await others.run(other, "BEGIN")
                await others.run(other, "SELECT * FROM aiolease_fence FOR UPDATE")
                with pytest.raises(StoreUnavailable, match=error):
                    async with lead.transaction() as connection:
                        await lend.run(connection, be_impatient)
                        await lend.run(connection, insert("never"))
                await others.run(other, "ROLLBACK")
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
