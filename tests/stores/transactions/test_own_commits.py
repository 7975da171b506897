"""`fence()` for those who commit themselves, on every driver."""

# ruff: noqa: PT012, SIM117 - the blocks are what is tested: which is inside which, and that it raises

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncmy
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from aiolease import LeadershipLost, StoreUnavailable, TransactionEnded, leadership, open_store
from aiolease._clock import boot_clock
from aiolease.stores.records import TermKey
from tests.campaigns import LIMIT, apart
from tests.stores.mysql.connecting import SLACK
from tests.stores.transactions.lending import Lent, Row, Work, insert, lent, one_server

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
    if kind == "connection" and driver in {"asyncpg", "psycopg"}:
        async with lent(driver, url) as lend:
            connection = await lend.acquire()
            try:
                async with connection.transaction():
                    await lend.run(connection, insert(who))
                    yield connection
            finally:
                await lend.release(connection)
        return
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
        ("postgresql", "asyncpg", "psycopg connection"),
        ("postgresql", "engine-psycopg", "asyncpg connection"),
        ("postgresql", "url-psycopg", "asyncpg AsyncConnection"),
        ("postgresql", "asyncpg", "psycopg AsyncConnection"),
        ("postgresql", "psycopg", "asyncpg AsyncSession"),
        ("postgresql", "url-asyncpg", "psycopg AsyncSession"),
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
        ("postgresql", "asyncpg connection"),
        ("postgresql", "psycopg AsyncSession"),
    ],
    indirect=["mysql_server"],
)
async def test_fence_outlasts_other_fences(mysql_url: str, work: Work, how: str) -> None:
    """A transaction of the user's own that read before others were fenced is fenced and commits."""
    kind = "asyncpg" if work.server.kind == "postgresql" else "asyncmy"
    async with lent(kind, mysql_url) as lend, leadership(lend.target) as lead:
        async with own_transaction(how, mysql_url, "early") as own:
            if "AsyncSession" in how:
                await own.execute(text("SELECT * FROM aiolease_fence"))
            else:
                await Lent("engine" if "Async" in how else how.split(maxsplit=1)[0], None, 1).run(
                    own, "SELECT * FROM aiolease_fence"
                )
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
