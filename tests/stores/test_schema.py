"""The tables of an older revision: what an upgrade adds, and what it leaves alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aiolease import SchemaMissing
from aiolease.stores import migrate, schema
from aiolease.stores.mysql import schema as mysql_schema
from aiolease.stores.sqlite import schema as sqlite_schema
from tests import first_release
from tests.project import ROOT
from tests.servers import Server
from tests.stores.databases import Database, InSQLite, MakeStore, OnServer, claim, with_old_tables, with_tables
from tests.stores.ledgers import claiming, enrolled, everything, now_of, run


def sql(database: Database, *statements: str) -> list[tuple[object, ...]]:
    """Executes statements as a person would; gives the rows of the last."""
    rows: list[tuple[object, ...]] = []
    for statement in statements:
        if isinstance(database, InSQLite):
            rows = database.sql(statement)
        else:
            assert isinstance(database, OnServer)
            rows = [tuple(row) for row in database.server.sql(statement, database.schema)]
    return rows


def target_of(database: Database) -> str:
    if isinstance(database, InSQLite):
        return f"sqlite:///{database.path}"
    assert isinstance(database, OnServer)
    return database.server.url(database.schema)


async def old_tables(database: Database) -> None:
    """Has version 0.1.0 make its tables."""
    await asyncio.to_thread(first_release.make_tables, target_of(database))
    assert sql(database, REVISION) == [("schema version", 2)]


def tables(database: Database) -> object:
    """What the tables have, to be compared."""
    if isinstance(database, InSQLite):
        names = sql(database, "SELECT name FROM sqlite_master WHERE name LIKE 'aiolease_%' ORDER BY name")
        found: dict[str, object] = {}
        for (name,) in names:
            found[str(name)] = [row[1:] for row in sql(database, f"PRAGMA table_info({name})")]
        indexes = sql(
            database, "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL ORDER BY 1"
        )
        return found, [(name, " ".join(str(text).split())) for name, text in indexes]
    all_columns = (
        "SELECT table_name, column_name, column_type, is_nullable, column_default, collation_name, ordinal_position "
        "FROM information_schema.columns WHERE table_schema = DATABASE() ORDER BY 1, 7"
    )
    all_indexes = (
        "SELECT table_name, index_name, seq_in_index, column_name FROM information_schema.statistics "
        "WHERE table_schema = DATABASE() ORDER BY 1, 2, 3"
    )
    return sql(database, all_columns), sql(database, all_indexes)


REVISION = "SELECT name, token FROM aiolease_lease WHERE name LIKE 'schema %' ORDER BY name"
CURRENT = [("schema revision", 3), ("schema version", 2)]


async def fresh_tables(database: Database, make_store: MakeStore) -> object:
    """The tables as they are made anew; they are dropped again."""
    await (await make_store()).read("cron")
    made = tables(database)
    assert sql(database, REVISION) == CURRENT
    sql(database, *(f"DROP TABLE aiolease_{table}" for table in ("run", "job", "fence", "lease")))
    return made


@with_old_tables
async def test_tables_of_the_first_release_are_upgraded_once(database: Database, make_store: MakeStore) -> None:
    """Processes that upgrade at once all get on; the tables are those of a fresh database, the rows as they were."""
    fresh = await fresh_tables(database, make_store)
    await old_tables(database)
    sql(
        database,
        "INSERT INTO aiolease_job (lease, job, schedule, timezone, known_since, schedule_since) "
        "SELECT 'cron', 'a', 'every 30s', '', elected_at, elected_at FROM aiolease_lease",
        "INSERT INTO aiolease_run (lease, job, tick, attempt, token, holder, status) "
        "SELECT 'cron', 'a', elected_at, 3, 7, 'somebody', 'queued' FROM aiolease_lease",
    )
    stores = [await make_store() for _ in range(4)]
    assert await asyncio.gather(*(store.read("cron") for store in stores)) == [None] * 4
    assert tables(database) == fresh
    assert sql(database, REVISION) == CURRENT
    [left] = (await stores[0].take_stock("cron")).unfinished
    assert (left.attempt, left.failures, left.uncounted, left.not_before, left.request) == (3, 0, 0, None, None)
    await (await make_store(create_tables=False)).read("cron")  # nothing is left to do


@with_old_tables
async def test_an_upgrade_that_broke_off_is_gone_on_with(database: Database, make_store: MakeStore) -> None:
    """Whichever statement was the last of a process that died, the next one makes the rest."""
    fresh = await fresh_tables(database, make_store)
    for done in (1, 2, 3):
        await old_tables(database)
        with pytest.raises(SchemaMissing) as missing:
            await (await make_store(create_tables=False)).read("cron")
        assert len(missing.value.statements) > done
        sql(database, *missing.value.statements[:done])
        await (await make_store()).read("cron")
        assert tables(database) == fresh
        assert sql(database, REVISION) == CURRENT
        sql(database, *(f"DROP TABLE aiolease_{table}" for table in ("run", "job", "fence", "lease")))


@with_tables
async def test_a_higher_revision_is_fine(database: Database, make_store: MakeStore) -> None:
    """A later release adds a column: this one goes on, and leaves the rows of version and revision alone."""
    store = await make_store()
    term = await enrolled(store, "a")
    raised = "UPDATE aiolease_lease SET token = 9 WHERE name = 'schema revision'"
    sql(database, raised, "ALTER TABLE aiolease_run ADD COLUMN colour VARCHAR(10) NULL")
    assert await migrate(target_of(database), check=True) == []
    later = await make_store(create_tables=False)
    await later.record(term, claiming(run(term, "a", await now_of(later))))
    assert sql(database, REVISION) == [("schema revision", 9), ("schema version", 2)]


@with_old_tables
async def test_who_may_not_upgrade_is_told_the_statements(database: Database, make_store: MakeStore) -> None:
    """With `create_tables=False` it is `SchemaMissing`; its statements, executed by hand, are all that it takes."""
    await old_tables(database)
    with pytest.raises(SchemaMissing, match="revision 2, this aiolease needs 3") as missing:
        await (await make_store(create_tables=False)).read("cron")
    assert any("ADD COLUMN" in statement for statement in missing.value.statements)
    sql(database, *missing.value.statements)
    await (await make_store(create_tables=False)).read("cron")
    assert sql(database, REVISION) == CURRENT


@with_old_tables
async def test_migrate_checks_and_does(database: Database, make_store: MakeStore) -> None:
    """`migrate` tells what is missing; with `check` it changes nothing; after it nothing is left."""
    made = await migrate(target_of(database), check=True)
    assert len([each for each in made if each.startswith("CREATE TABLE")]) == 4
    await old_tables(database)
    before = tables(database)
    asked = await migrate(target_of(database), check=True)
    assert any("ADD COLUMN" in statement for statement in asked)
    assert tables(database) == before
    assert await migrate(target_of(database)) == asked
    assert tables(database) != before
    assert await migrate(target_of(database), check=True) == await migrate(target_of(database)) == []
    assert (await claim(await make_store(create_tables=False), "cron")).token == 1


async def test_an_index_of_an_older_form_is_made_anew(tmp_path: Path) -> None:
    """As it was on SQLite before the column that it now has as well."""
    database = InSQLite(tmp_path / "leases.db")
    await migrate(target_of(database))
    made = tables(database)
    old = "ON aiolease_run (lease, job, tick, status) WHERE status = 'queued'"
    sql(
        database,
        "DROP INDEX aiolease_run_queued",
        f"CREATE INDEX aiolease_run_queued {old}",
        "DELETE FROM aiolease_lease WHERE name = 'schema revision'",
    )
    assert tables(database) != made
    assert any("DROP INDEX" in statement for statement in await migrate(target_of(database)))
    assert tables(database) == made


async def test_migrate_makes_no_file_to_look_at(tmp_path: Path) -> None:
    """`check` of a file that is not there tells all the statements, and makes none."""
    path = tmp_path / "leases.db"
    assert len(await migrate(f"sqlite:///{path}", check=True)) > 4
    assert not path.exists()
    await migrate(f"sqlite:///{path}", table_prefix="shop_")
    assert path.exists()
    assert await migrate(f"sqlite:///{path}", table_prefix="shop_", check=True) == []


def test_the_tables_are_printed_for_each_database() -> None:
    """`schema` gives the statements of both kinds of tables; another kind is refused."""
    assert schema("mysql") == (ROOT / "schema.sql").read_text(encoding="utf-8")
    assert 'CREATE TABLE IF NOT EXISTS "aiolease_lease"' in schema("sqlite")
    with pytest.raises(ValueError, match="oracle"):
        schema("oracle")


def test_the_printed_tables_are_those_that_are_made(tmp_path: Path) -> None:
    """Executed by hand, the text for SQLite makes what a store makes; twice does no harm."""
    by_hand = InSQLite(tmp_path / "by-hand.db")
    statements = [each for each in schema("sqlite").split(";\n") if each.strip()]
    sql(by_hand, *statements, *statements)
    assert sql(by_hand, REVISION) == CURRENT
    assert sqlite_schema.schema() == schema("sqlite")


async def test_running_schema_sql_over_older_tables_does_not_call_them_new(
    mysql_server: Server, mysql_url: str
) -> None:
    """schema.sql makes no columns in tables that are there: they stay of the older revision, to be upgraded."""
    database = OnServer(mysql_server)
    try:
        await old_tables(database)
        sql(database, *mysql_schema.schema_statements("aiolease_"))
        assert sql(database, REVISION) == [("schema version", 2)]
        async with database.open("aiolease_", True) as store:
            await store.read("cron")
            assert (await everything(store)).jobs == {}
        assert sql(database, REVISION) == CURRENT
    finally:
        mysql_server.drop_database(database.schema)
