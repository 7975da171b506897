"""A session of SQLAlchemy on the connection of a fenced transaction: its rows stand or fall with the fence."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import PendingRollbackError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from aiolease import LeadershipLost, TransactionEnded, leadership
from tests.stores.transactions.lending import Boom, Row, Work, insert, lent, pairs

MODES = ["conditional_savepoint", "rollback_only", "create_savepoint"]

engines = pairs(
    ("mariadb", "engine-asyncmy"), ("mariadb", "engine-aiomysql"), ("mysql9", "engine-asyncmy"),
    ("postgresql", "engine-asyncpg"), ("postgresql", "engine-psycopg"),
)  # fmt: skip
an_engine = pairs(("mariadb", "engine-asyncmy"), ("postgresql", "engine-asyncpg"))


async def _flushes(session: AsyncSession) -> None:
    session.add(Row(who="row"))
    await session.flush()


async def _commits(session: AsyncSession) -> None:
    session.add(Row(who="row"))
    await session.commit()


async def _begins(session: AsyncSession) -> None:
    async with session.begin():
        session.add(Row(who="row"))


async def _nests(session: AsyncSession) -> None:
    async with session.begin():
        session.add(Row(who="row"))
        with contextlib.suppress(Boom):
            async with session.begin_nested():
                session.add(Row(who="undone"))
                await session.flush()
                raise Boom


async def _commits_and_goes_on(session: AsyncSession) -> None:
    await _commits(session)
    with contextlib.suppress(Boom):
        async with session.begin_nested():
            session.add(Row(who="undone"))
            await session.flush()
            raise Boom
    await session.close()


async def _reads_back(session: AsyncSession) -> None:
    row = Row(who="row")
    session.add(row)
    await session.commit()
    await session.refresh(row)
    assert row.who == "row"
    session.expire_all()
    await session.refresh(row)


JOINED = [_flushes, _commits, _begins, _nests, _commits_and_goes_on, _reads_back]


@pytest.mark.parametrize("fate", ["kept", "fenced", "raises"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("use", JOINED, ids=lambda use: use.__name__.strip("_"))
@engines
async def test_a_session_joins_the_transaction(  # noqa: PLR0917 - its parameters
    mysql_url: str, work: Work, kind: str, use: Callable[[AsyncSession], Awaitable[None]], mode: Any, fate: str
) -> None:
    """However it ends, nothing is committed before the block ends, and its rows are there if the fence held."""
    async with lent(kind, mysql_url) as lend:
        with contextlib.suppress(LeadershipLost, Boom):
            async with leadership(lend.target) as lead, lead.transaction() as connection:
                session = AsyncSession(bind=connection, join_transaction_mode=mode, expire_on_commit=False)
                await use(session)
                assert work.rows() == [], "it has committed by itself"
                if fate == "fenced":
                    work.new_term()
                if fate == "raises":
                    raise Boom
        # A savepoint of a session that was never ended is the session's own business: the block ends the transaction.
        assert work.rows() == (["row"] if fate == "kept" else [])
        await lend.whole()


async def _connection_commits(connection: AsyncConnection) -> None:
    await connection.execute(text(insert("row")))
    await connection.commit()


async def _connection_commits_and_goes_on(connection: AsyncConnection) -> None:
    with contextlib.suppress(TransactionEnded):
        await _connection_commits(connection)
    await connection.execute(text(insert("another")))


async def _connection_rolls_back(connection: AsyncConnection) -> None:
    await connection.execute(text(insert("row")))
    await connection.rollback()


async def _connection_rolls_back_and_goes_on(connection: AsyncConnection) -> None:
    await _connection_rolls_back(connection)
    await connection.execute(text(insert("another")))


async def _session_rolls_back(connection: AsyncConnection) -> None:
    session = AsyncSession(bind=connection)
    await _flushes(session)
    await session.rollback()


async def _session_rolls_back_and_goes_on(connection: AsyncConnection) -> None:
    session = AsyncSession(bind=connection)
    await _flushes(session)
    await session.rollback()
    session.add(Row(who="another"))
    await session.commit()


async def _session_in_full_control(connection: AsyncConnection) -> None:
    session = AsyncSession(bind=connection, join_transaction_mode="control_fully")
    await _commits(session)


async def _session_in_full_control_swallows(connection: AsyncConnection) -> None:
    with contextlib.suppress(TransactionEnded, SQLAlchemyError):
        await _session_in_full_control(connection)


async def _blocking_session_in_full_control(connection: AsyncConnection) -> None:
    def use(sync: Any) -> None:
        with Session(bind=sync, join_transaction_mode="control_fully") as session, session.begin():
            session.add(Row(who="row"))

    await connection.run_sync(use)


async def _sends_a_rollback_and_goes_on(connection: AsyncConnection) -> None:
    await connection.execute(text("ROLLBACK"))
    await connection.execute(text(insert("another")))


ENDED = [
    _connection_commits,
    _connection_commits_and_goes_on,
    _connection_rolls_back,
    _connection_rolls_back_and_goes_on,
    _session_rolls_back,
    _session_rolls_back_and_goes_on,
    _session_in_full_control,
    _session_in_full_control_swallows,
    _blocking_session_in_full_control,
    _sends_a_rollback_and_goes_on,
]


@pytest.mark.parametrize("isolation", [None, "AUTOCOMMIT", "READ COMMITTED"])
@pytest.mark.parametrize("use", ENDED, ids=lambda use: use.__name__.strip("_"))
@engines
async def test_what_ends_the_transaction_commits_nothing(
    mysql_url: str, work: Work, kind: str, use: Callable[[AsyncConnection], Awaitable[None]], isolation: str | None
) -> None:
    """A commit or a rollback of the connection's own is found: `TransactionEnded`, and nothing is in the table."""
    options: dict[str, Any] = {"isolation_level": isolation} if isolation else {}
    async with lent(kind, mysql_url, **options) as lend:
        async with leadership(lend.target) as lead:
            # SQLAlchemy's own, where the block swallowed ours and went on: it does not go on then.
            with pytest.raises((TransactionEnded, PendingRollbackError)):
                async with lead.transaction() as connection:
                    await use(connection)
            assert work.rows() == []
            async with lead.transaction() as connection, AsyncSession(bind=connection) as session, session.begin():
                session.add(Row(who="after"))
        assert work.rows() == ["after"]
        await lend.whole()


@pytest.mark.parametrize("isolation", [None, "AUTOCOMMIT"])
@pytest.mark.parametrize("by", ["connection", "session"])
@engines
async def test_what_follows_a_lost_connection_commits_nothing(
    mysql_url: str, work: Work, kind: str, by: str, isolation: str | None
) -> None:
    """A block that goes on after its connection was ended does so on another one, on which nothing was begun."""
    options: dict[str, Any] = {"isolation_level": isolation} if isolation else {}

    async def go_on(connection: AsyncConnection) -> None:
        user = AsyncSession(bind=connection) if by == "session" else connection
        number = (await user.execute(text(f"SELECT {work.server.own_id}"))).scalar_one()
        work.server.end_session(number)
        for _ in range(3):
            with contextlib.suppress(SQLAlchemyError, TransactionEnded):
                await user.execute(text(insert("row")))
            with contextlib.suppress(SQLAlchemyError, TransactionEnded):
                await user.rollback()
        raise Boom

    async with lent(kind, mysql_url, **options) as lend, leadership(lend.target) as lead:
        with pytest.raises(Boom):
            async with lead.transaction() as connection:
                await go_on(connection)
        assert work.rows() == []
        async with lead.transaction() as connection:
            await connection.execute(text(insert("after")))
        assert work.rows() == ["after"]
        await lend.whole()


@an_engine
async def test_a_blocking_session_joins_too(mysql_url: str, work: Work, kind: str) -> None:
    """A `Session` in `run_sync` joins the transaction as an `AsyncSession` does."""

    def use(sync: Any) -> None:
        with Session(bind=sync) as session, session.begin():
            session.add(Row(who="row"))

    async with lent(kind, mysql_url) as lend, leadership(lend.target) as lead:
        async with lead.transaction() as connection:
            await connection.run_sync(use)
            assert work.rows() == []
        assert work.rows() == ["row"]
        await lend.whole()
