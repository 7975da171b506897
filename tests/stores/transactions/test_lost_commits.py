"""What a COMMIT that was struck down is told as, and who ends a session that froze at a refused fence."""

# ruff: noqa: PT012 - the blocks are what is tested

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import aiomysql
import asyncmy.cursors
import pymysql
import pytest

from aiolease import CommitUnknown, LeadershipLost, StoreUnavailable, leadership, open_store
from aiolease.stores.contract import FenceBroken
from aiolease.stores.mysql import MySQLStore, drivers, transactions
from aiolease.stores.mysql.transactions import MySQLTransaction
from aiolease.stores.records import TermKey
from tests.campaigns import LIMIT
from tests.servers import Server
from tests.stores.transactions.lending import insert, lent, pairs

kinds = pairs(("mariadb", "asyncmy"), ("mariadb", "engine-aiomysql"), ("mysql9", "aiomysql"))


@pytest.mark.parametrize("number", [1053, 1180, 1317, 1927, 2013])
@kinds
async def test_a_commit_that_was_struck_down_is_unknown(
    mysql_url: str, work: Any, kind: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is shut down, or a session that is killed, in the middle of a COMMIT may have committed."""
    execute = drivers.execute

    async def struck(
        connection: Any, cursor: type, sql: str, parameters: Sequence[object] = (), results: Any = None
    ) -> Any:
        answer = await execute(connection, cursor, sql, parameters, results)
        if "; COMMIT " in sql:  # it took effect, and the server says that it was interrupted
            raise pymysql.err.OperationalError(number, "struck down")
        return answer

    monkeypatch.setattr(transactions, "execute", struck)
    async with lent(kind, mysql_url) as lend, leadership(lend.target, timeout=LIMIT) as lead:
        with pytest.raises(CommitUnknown):
            async with lead.transaction() as connection:
                await lend.run(connection, insert("row"))
    assert work.rows() == ["row"]


@kinds
async def test_the_server_ends_a_session_that_froze_at_a_refused_fence(
    mysql_server: Server, mysql_url: str, work: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, a fence leaves its row locked until the client rolls back: one that is frozen then holds up nobody."""
    frozen = asyncio.Event()

    async def stands_still(_: MySQLTransaction) -> bool:
        frozen.set()
        await asyncio.Event().wait()
        return False

    async with lent(kind, mysql_url) as lend, open_store(lend.target) as store, open_store(mysql_url) as other:
        assert isinstance(store, MySQLStore)
        assert await store.claim("default", "old", 0.1, seen=None, force=False) is not None
        transaction = await store.begin()
        await lend.run(transaction.connection, insert("row"))
        newer = None
        while newer is None or newer.holder != "new":
            seen = await other.read("default")
            newer = await other.claim("default", "new", 30.0, seen=seen, force=True)
        monkeypatch.setattr(MySQLTransaction, "_roll_back", stands_still)
        committing = asyncio.create_task(transaction.commit(TermKey("default", "old", 1)))
        await frozen.wait()
        async with asyncio.timeout(LIMIT):  # the fence's row is free once the server has ended that session
            while True:
                with contextlib.suppress(StoreUnavailable):
                    seen = await other.read("default")
                    latest = await other.claim("default", "newest", 30.0, seen=seen, force=True)
                    if latest is not None and latest.holder == "newest":
                        break
        committing.cancel()
        with contextlib.suppress(asyncio.CancelledError, FenceBroken):
            await committing
    assert work.rows() == []


PENDING = {
    "a check that fails like ours": ("SELECT 1; SELECT 9223372036854775807 + 1", 1690),
    "a table that is not there": ("SELECT 1; SELECT * FROM nowhere", 1146),
    "a session that was interrupted": ("SELECT 1; SIGNAL SQLSTATE '70100' SET MYSQL_ERRNO = 1317", 1317),
}


@pytest.mark.parametrize("pending", PENDING)
@pairs(("mariadb", "asyncmy"), ("mariadb", "aiomysql"), ("mysql9", "asyncmy"))
async def test_errors_of_unread_results_are_the_users(mysql_url: str, work: Any, kind: str, pending: str) -> None:
    """What the block did not read of its own packet fails as itself: it is no broken fence, and no unknown commit."""
    sql, number = PENDING[pending]
    async with lent(kind, mysql_url) as lend, leadership(lend.target, timeout=LIMIT) as lead:
        with pytest.raises(Exception, match=str(number)) as raised:
            async with lead.transaction() as connection:
                await lend.run(connection, insert("never"))
                cursor = await connection.cursor()
                await cursor.execute(sql)
        assert raised.value.args[0] == number
        lead.check()
        async with lead.transaction() as connection:
            await lend.run(connection, insert("row"))
        connection = await lend.target.acquire()
        try:
            await connection.begin()
            await lend.run(connection, insert("never"))
            cursor = await connection.cursor()
            await cursor.execute(sql)
            with pytest.raises(Exception, match=str(number)) as raised:
                await lead.fence(connection)
            assert raised.value.args[0] == number
        finally:
            connection.close()
            lend.target.release(connection)
        lead.check()
    assert work.rows() == ["row"]


@pytest.mark.filterwarnings("ignore:Previous unbuffered result was left incomplete")
@pairs(("mariadb", "asyncmy"), ("mariadb", "aiomysql"))
async def test_rows_that_the_block_has_not_read_do_not_disturb_the_commit(mysql_url: str, work: Any, kind: str) -> None:
    """A cursor that does not buffer, left in the middle of its rows: the transaction is committed."""
    module: Any = asyncmy.cursors if kind == "asyncmy" else aiomysql
    async with lent(kind, mysql_url) as lend, leadership(lend.target, timeout=LIMIT) as lead:
        async with lead.transaction() as connection:
            await lend.run(connection, insert("row"))
            cursor = await connection.cursor(module.SSCursor)
            await cursor.execute("SELECT 1 UNION SELECT 2 UNION SELECT 3")
            await cursor.fetchone()
        lead.check()
    assert work.rows() == ["row"]


SETTINGS = [
    "sql_select_limit = 0",
    "sql_select_limit = 1",
    "sql_safe_updates = 1",
    "completion_type = 1",
    "completion_type = 2",
    "sql_mode = 'ANSI,NO_BACKSLASH_ESCAPES'",
    "sql_mode = ''",
    "sql_auto_is_null = 1",
    "group_concat_max_len = 4",
    "time_zone = '+05:00'",
    "timestamp = 1",
    "foreign_key_checks = 0",
    "sql_big_selects = 0",
]


@pytest.mark.parametrize("setting", SETTINGS)
@pairs(("mariadb", "asyncmy"), ("mysql9", "aiomysql"))
async def test_no_setting_of_the_session_opens_the_fence(mysql_url: str, work: Any, kind: str, setting: str) -> None:
    """Whatever the block sets for its session: an older term does not commit, and the latest does."""
    async with lent(kind, mysql_url) as lend:
        async with leadership(lend.target, timeout=LIMIT) as lead:
            async with lead.transaction() as connection:
                await lend.run(connection, insert("row"))
                await lend.run(connection, f"SET SESSION {setting}")
            assert work.rows() == ["row"]
        with pytest.raises(LeadershipLost):
            async with leadership(lend.target, timeout=LIMIT) as lead, lead.transaction() as connection:
                await lend.run(connection, insert("never"))
                await lend.run(connection, f"SET SESSION {setting}")
                work.new_term()
    assert work.rows() == ["row"]
