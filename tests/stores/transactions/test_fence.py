"""`fence()` for people who commit themselves: it guards a transaction, or says that there is none, on every store."""

# ruff: noqa: PT012, SIM117 - the blocks are what is tested: which is inside which, and that it raises

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiosqlite
import asyncmy
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from aiolease import AioleaseError, ConfigurationError, LeadershipLost, StoreUnavailable, TransactionEnded, leadership
from tests.servers import Server
from tests.stores.transactions.lending import Row

INSERT = "INSERT INTO work (who) VALUES ('row')"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shop.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE work (id INTEGER PRIMARY KEY, who TEXT UNIQUE)")
    return path


def rows(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as connection:
        return [who for (who,) in connection.execute("SELECT who FROM work ORDER BY id")]


def new_term(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE aiolease_fence SET holder = 'another', token = token + 1")


@asynccontextmanager
async def engine_on(file: Path, **options: Any) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{file}", **options)
    try:
        yield engine
    finally:
        await engine.dispose()


@pytest.mark.parametrize("how", ["nothing begun", "committed already"])
async def test_a_fence_outside_a_transaction_is_refused_on_sqlite(file: Path, how: str) -> None:
    """A connection that commits each statement by itself: the fence would guard nothing, and says so."""
    async with (
        leadership(f"sqlite:///{file}") as lead,
        aiosqlite.connect(file, isolation_level=None) as connection,
    ):
        if how == "committed already":
            await connection.execute("BEGIN")
            await connection.execute(INSERT)
            await connection.commit()
        with pytest.raises(TransactionEnded, match="Begin one before it"):
            await lead.fence(connection)
        await connection.execute("BEGIN")
        await lead.fence(connection)
        await connection.rollback()


async def test_a_fence_outside_a_transaction_is_refused_on_mysql(mysql_server: Server, mysql_url: str) -> None:
    """The same for a connection of asyncmy in autocommit mode."""
    async with leadership(mysql_url) as lead:
        connection = await asyncmy.connect(
            host=mysql_server.host, port=mysql_server.port, user="root", db=mysql_url.rsplit("/", 1)[1], autocommit=True
        )
        try:
            with pytest.raises(TransactionEnded, match="Begin one before it"):
                await lead.fence(connection)
            await connection.begin()
            await lead.fence(connection)
            await connection.rollback()
        finally:
            await connection.ensure_closed()


async def test_on_an_engine_of_sqlite_autocommit_is_refused(file: Path) -> None:
    """SQLAlchemy's own autocommit begins nothing either."""
    async with leadership(f"sqlite:///{file}") as lead, engine_on(file, isolation_level="AUTOCOMMIT") as engine:
        async with engine.connect() as connection:
            with pytest.raises(TransactionEnded, match="Begin one before it"):
                await lead.fence(connection)


@pytest.mark.parametrize("fate", ["kept", "fenced"])
@pytest.mark.parametrize("kind", ["connection", "session", "aiosqlite"])
async def test_what_is_fenced_on_sqlite_stands_or_falls_with_the_term(file: Path, kind: str, fate: str) -> None:
    """A session, a connection of an engine, and one of the driver: committed if the term is the latest."""

    async def write(lead: Any, engine: AsyncEngine) -> None:
        if kind == "session":
            async with AsyncSession(engine) as session, session.begin():
                session.add(Row(id=1, who="row"))
                await lead.fence(session)
        elif kind == "connection":
            async with engine.begin() as connection:
                await connection.execute(text(INSERT))
                await lead.fence(connection)
        else:
            async with aiosqlite.connect(file) as connection:
                await connection.execute(INSERT)
                await lead.fence(connection)
                await connection.commit()

    async with engine_on(file) as engine:
        if fate == "kept":
            async with leadership(f"sqlite:///{file}") as lead:
                await write(lead, engine)
        else:
            with pytest.raises(LeadershipLost):
                async with leadership(f"sqlite:///{file}") as lead:
                    new_term(file)
                    await write(lead, engine)
    assert rows(file) == (["row"] if fate == "kept" else [])


async def test_errors_of_other_libraries_do_not_come_out_of_a_fence_on_sqlite(file: Path, tmp_path: Path) -> None:
    """Closed connections, tables that are not there and strangers are errors of aiolease; the user's own SQL is his."""
    async with (
        leadership(f"sqlite:///{file}") as lead,
        engine_on(file) as engine,
        engine_on(tmp_path / "b.db") as other,
    ):
        connection = await aiosqlite.connect(file)
        await connection.close()
        with pytest.raises(StoreUnavailable):
            await lead.fence(connection)
        async with engine.connect() as closed:
            pass
        with pytest.raises(StoreUnavailable):
            await lead.fence(closed)
        async with other.connect() as elsewhere:
            with pytest.raises(StoreUnavailable):
                await lead.fence(elsewhere)
        with closing(sqlite3.connect(file)) as blocking:
            for stranger in (object(), blocking, "connection"):
                with pytest.raises(ConfigurationError):
                    await lead.fence(stranger)
        with pytest.raises(IntegrityError):
            async with AsyncSession(engine) as session, session.begin():
                session.add_all([Row(id=1, who="same"), Row(id=2, who="same")])
                await lead.fence(session)
    assert rows(file) == []


@pytest.mark.parametrize("made", ["as it is", "with rows as dicts", "with text as bytes"])
async def test_a_connection_to_a_copy_of_the_file_is_refused_on_sqlite(file: Path, tmp_path: Path, made: str) -> None:
    """A copy has a fence of its own, which no newer term reaches."""

    async def connect(path: Path) -> aiosqlite.Connection:
        connection = await aiosqlite.connect(path, isolation_level=None)
        if made == "with rows as dicts":
            connection.row_factory = lambda cursor, row: dict(zip([each[0] for each in cursor.description], row))  # type: ignore[assignment] # noqa: B905
        elif made == "with text as bytes":
            connection.text_factory = bytes
        await connection.execute("BEGIN")
        return connection

    copy, link = tmp_path / "copy.db", tmp_path / "link.db"
    link.symlink_to(file)
    async with leadership(f"sqlite:///{file}") as lead:
        with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
        for path, problem in (file, None), (link, None), (copy, "it is not to"), (Path(":memory:"), "aiolease_fence"):
            connection = await connect(path)
            if problem is None:
                await lead.fence(connection)
            else:
                with pytest.raises(AioleaseError, match=problem):
                    await lead.fence(connection)
            await connection.close()


async def test_a_deferred_constraint_is_the_users_error_and_no_unknown_commit_on_sqlite(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What COMMIT refuses is not committed, and says which of the user's constraints it was."""
    plain = sqlite3.connect

    def checking(*arguments: Any, **options: Any) -> sqlite3.Connection:  # as a SQLite does that is built so
        connection: sqlite3.Connection = plain(*arguments, **options)
        connection.execute("PRAGMA foreign_keys = 1")
        return connection

    monkeypatch.setattr(sqlite3, "connect", checking)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE part (work INTEGER REFERENCES work DEFERRABLE INITIALLY DEFERRED)")
    async with leadership(f"sqlite:///{file}") as lead:
        with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
            async with lead.transaction() as connection:
                await connection.execute(INSERT)
                await connection.execute("INSERT INTO part VALUES (7)")
        assert rows(file) == []
        async with lead.transaction() as connection:
            await connection.execute(INSERT)
    assert rows(file) == ["row"]


AWKWARD = [
    *("synchronous = OFF", "temp_store = MEMORY"),  # not within a transaction
    *("count_changes = 1", "empty_result_callbacks = 1", "full_column_names = 1", "short_column_names = 0"),
    *("read_uncommitted = 1", "recursive_triggers = 1", "reverse_unordered_selects = 1", "case_sensitive_like = 1"),
    *("foreign_keys = 1", "defer_foreign_keys = 1", "ignore_check_constraints = 1", "legacy_alter_table = 1"),
    *(
        "trusted_schema = 0",
        "automatic_index = 0",
        "cache_spill = 0",
        "cell_size_check = 1",
        "secure_delete = 1",
        "writable_schema = 1",
    ),
]


@pytest.mark.parametrize("fate", ["kept", "fenced"])
@pytest.mark.parametrize("when", ["before the transaction", "in it"])
async def test_no_pragma_of_the_users_opens_or_shuts_the_fence_on_sqlite(file: Path, when: str, fate: str) -> None:
    """All at once, but those that shut out everybody: the fence holds for the latest term, and for no other."""
    async with aiosqlite.connect(file, isolation_level=None) as connection:

        async def write(lead: Any) -> None:
            for begun in (False, True):
                if begun:
                    await connection.execute("BEGIN IMMEDIATE")
                if begun == (when == "in it"):
                    for pragma in AWKWARD[2 if begun else 0 :]:
                        await connection.execute(f"PRAGMA {pragma}")
            await connection.execute(INSERT)
            await lead.fence(connection)
            await connection.commit()

        if fate == "kept":
            async with leadership(f"sqlite:///{file}") as lead:
                await write(lead)
        else:
            with pytest.raises(LeadershipLost):
                async with leadership(f"sqlite:///{file}") as lead:
                    new_term(file)
                    await write(lead)
    assert rows(file) == (["row"] if fate == "kept" else [])


async def test_a_connection_that_may_only_read_is_no_lost_lease_on_sqlite(file: Path) -> None:
    """What the fence cannot write, it says; the term goes on."""
    async with leadership(f"sqlite:///{file}") as lead:
        with pytest.raises(StoreUnavailable, match="readonly"):
            async with lead.transaction() as connection:
                await connection.execute(INSERT)
                await connection.execute("PRAGMA query_only = 1")
        assert lead.is_leader
    assert rows(file) == []


@pytest.mark.parametrize("how", ["transaction", "fence"])
async def test_a_temporary_table_of_the_same_name_does_not_open_the_fence_on_sqlite(file: Path, how: str) -> None:
    """SQLite looks for a name among the temporary tables first."""
    shadow = "CREATE TEMP TABLE aiolease_fence AS SELECT * FROM main.aiolease_fence"
    with pytest.raises(LeadershipLost):
        async with leadership(f"sqlite:///{file}") as lead:
            if how == "transaction":
                async with lead.transaction() as connection:
                    await connection.execute(shadow)
                    # The newer term's row, as it would be: nobody else can write to the file in this block.
                    await connection.execute("UPDATE main.aiolease_fence SET holder = 'another', token = token + 1")
                    await connection.execute(INSERT)
            else:
                async with aiosqlite.connect(file, isolation_level=None) as connection:
                    await connection.execute(shadow)
                    new_term(file)
                    await connection.execute("BEGIN")
                    await connection.execute(INSERT)
                    await lead.fence(connection)
                    await connection.commit()
    assert rows(file) == []


async def test_results_that_were_not_read_are_no_ended_transaction_on_sqlite(file: Path) -> None:
    """A statement that writes and gives rows keeps the transaction open until they are read: it says so."""
    async with leadership(f"sqlite:///{file}") as lead:
        with pytest.raises(StoreUnavailable, match="read the results of the block to their end"):
            async with lead.transaction() as connection:
                unread = await connection.execute("INSERT INTO work (who) VALUES ('a'), ('b') RETURNING id")
                assert unread is not None
        assert rows(file) == []
        async with lead.transaction() as connection:
            cursor = await connection.execute("INSERT INTO work (who) VALUES ('a'), ('b') RETURNING id")
            assert len(list(await cursor.fetchall())) == 2
    assert rows(file) == ["a", "b"]
