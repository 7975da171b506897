"""`schema` and `migrate`."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from uuid import uuid4

import pytest

from aiolease import open_store
from aiolease.stores import schema as statements_of
from tests.cli.commands import Aiolease, in_thread
from tests.project import ROOT
from tests.servers import PostgreSQLServer, Server


def test_schema_of_each_dialect(aiolease: Aiolease, tmp_path: Path) -> None:
    """`schema --dialect` prints the tables of each kind of database; those of SQLite make a file that works."""
    text = (ROOT / "schema.sql").read_text(encoding="utf-8")
    assert aiolease("schema").out == text
    assert aiolease("schema", "--dialect", "mariadb").out == text
    assert aiolease("schema", "--dialect", "postgresql").out == statements_of("postgresql")
    statements = aiolease("schema", "--dialect", "sqlite").out
    connection = sqlite3.connect(tmp_path / "made.db")
    connection.executescript(statements)
    connection.close()
    assert aiolease("status", "--url", f"sqlite:///{tmp_path}/made.db").out == "'default' never had a leader\n"
    assert aiolease("schema", "--dialect", "oracle").status == 2


def old_file(path: Path) -> None:
    """A file as version 0.1.0 made it: without the new columns and the row of the revision."""
    connection = sqlite3.connect(path)
    for table, column in (("job", "token"), ("run", "request")):
        connection.execute(f"ALTER TABLE aiolease_{table} DROP COLUMN {column}")
    connection.execute("DELETE FROM aiolease_lease WHERE name = 'schema revision'")
    connection.commit()
    connection.close()


async def test_migrate_on_a_database(aiolease: Aiolease, any_url: str) -> None:
    """Tables that are of this version need nothing; `--check` says so with status 0."""
    async with open_store(any_url) as store:
        await store.status("default")
    for arguments in ((), ("--check",)):
        run = await in_thread(aiolease, "migrate", *arguments)
        assert (run.status, run.out, run.err) == (0, "the tables are of this version\n", "")
    assert json.loads((await in_thread(aiolease, "migrate", "--json")).out) == {"done": []}


def test_migrate_of_an_older_version(aiolease: Aiolease, url: str, tmp_path: Path) -> None:
    """`migrate --check` prints what is missing, to be piped, with status 1 and no change; `migrate` does it."""
    old_file(tmp_path / "jobs.db")
    for _ in range(2):
        run = aiolease("migrate", "--check")
        assert (run.status, run.err) == (1, "")
        assert [line for line in run.out.splitlines() if not line.endswith(";")] == []
        assert "token" in run.out
    assert len(json.loads(aiolease("migrate", "--check", "--json").out)["missing"]) == run.out.count(";")
    done = aiolease("migrate")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("brought the tables to this version: ")
    assert aiolease("migrate", "--check").out == "the tables are of this version\n"


def test_the_printed_tables_of_postgresql_are_whole(aiolease: Aiolease, postgresql: PostgreSQLServer) -> None:
    """What `schema --dialect postgresql` prints makes the tables by hand, also twice; nothing is missing then."""
    postgresql.recover()
    name = f"test_{uuid4().hex[:12]}"
    postgresql.create_database(name)
    statements = aiolease("schema", "--dialect", "postgresql").out
    for _ in range(2):
        postgresql.sql(statements, name)
    run = aiolease("migrate", "--check", "--url", postgresql.url(name))
    assert (run.status, run.out, run.err) == (0, "the tables are of this version\n", "")
    postgresql.drop_database(name)


@pytest.mark.parametrize("mysql_server", ["mariadb", "mysql9", "postgresql"], indirect=True)
def test_migrate_makes_the_tables_of_a_server(aiolease: Aiolease, mysql_url: str, mysql_server: Server) -> None:
    """Where there are no tables `migrate` makes them; `--check` names their statements."""
    run = aiolease("migrate", "--check", "--url", mysql_url)
    assert run.status == 1
    assert "CREATE TABLE" in run.out
    assert aiolease("status", "--url", mysql_url).status == 1
    run = aiolease("migrate", "--url", mysql_url)
    assert (run.status, run.err) == (0, "")
    assert aiolease("migrate", "--check", "--url", mysql_url).out == "the tables are of this version\n"
    assert aiolease("status", "--url", mysql_url).out == "'default' never had a leader\n"


def test_migrate_without_the_right(aiolease: Aiolease, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Who may not change the tables gets the statements, to be handed to who may, and one line that says so."""
    from aiolease.errors import SchemaMissing

    async def refuse(*_: object, **__: object) -> list[str]:
        raise SchemaMissing("mysql://db", "ALTER is denied", statements=["ALTER TABLE aiolease_job ADD token INT;\n"])

    monkeypatch.setattr("aiolease.cli.tables.bring_up_to_date", refuse)
    run = aiolease("migrate", "--url", url)
    assert (run.status, run.out) == (1, "ALTER TABLE aiolease_job ADD token INT;\n")
    assert run.err.startswith("aiolease: mysql://db: ALTER is denied")
    assert run.err.count("\n") == 1
