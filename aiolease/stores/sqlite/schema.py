"""The tables on SQLite: what they are, and how they are found and made."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from aiolease.errors import SchemaMissing
from aiolease.stores.sql.schema import (
    REVISION_ROW,
    SCHEMA_REVISION,
    SCHEMA_VERSION,
    VERSION_ROW,
    AddedColumns,
    is_current,
    is_unknown,
    what_is_wrong,
)
from aiolease.stores.sqlite.dialect import transaction

WAY_OUT = "A worker that may write the file makes it and its tables at its first start; or is the path another?"

_ALL = ("lease", "fence", "job", "run", "run_unfinished", "run_queued", "run_later", "run_skipped")
"""The tables, and the indexes that statements name."""

# Two of the indexes are as they are because of how SQLite plans. It takes the primary key, and so reads all runs of a
# lease, where it has an index on (lease, status). And the status stands in `run_queued`, so that the rows themselves
# need not be looked up to be counted.
_TABLES = """
CREATE TABLE IF NOT EXISTS "{p}lease" (
    name TEXT NOT NULL PRIMARY KEY, holder TEXT, token INTEGER NOT NULL, beat INTEGER NOT NULL,
    elected_at INTEGER NOT NULL, renewed_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, resign_token INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS "{p}fence" (
    name TEXT NOT NULL PRIMARY KEY, holder TEXT, token INTEGER NOT NULL, fence INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS "{p}job" (
    lease TEXT NOT NULL, job TEXT NOT NULL, schedule TEXT NOT NULL, timezone TEXT NOT NULL,
    known_since INTEGER NOT NULL, schedule_since INTEGER NOT NULL, resumed_at INTEGER, paused_at INTEGER,
    high_tick INTEGER, requested_at INTEGER, paused_until INTEGER, pause_note TEXT, asked_at INTEGER, cancel_at INTEGER,
    backfill_since INTEGER, backfill_until INTEGER, token INTEGER,
    PRIMARY KEY (lease, job)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS "{p}run" (
    lease TEXT NOT NULL, job TEXT NOT NULL, tick INTEGER NOT NULL, attempt INTEGER NOT NULL, token INTEGER NOT NULL,
    holder TEXT NOT NULL, status TEXT NOT NULL, started_at INTEGER, finished_at INTEGER, error TEXT,
    tick_from INTEGER, count INTEGER, not_before INTEGER, failures INTEGER NOT NULL DEFAULT 0,
    uncounted INTEGER NOT NULL DEFAULT 0, request TEXT, earlier TEXT,
    PRIMARY KEY (lease, job, tick)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS "{p}run_unfinished" ON "{p}run" (lease, tick, job) WHERE status IN ('queued', 'running');
CREATE INDEX IF NOT EXISTS "{p}run_queued" ON "{p}run" (lease, job, tick, status, not_before)
    WHERE status = 'queued';
CREATE INDEX IF NOT EXISTS "{p}run_later" ON "{p}run" (lease, not_before, job, tick)
    WHERE status = 'queued' AND not_before IS NOT NULL;
CREATE INDEX IF NOT EXISTS "{p}run_skipped" ON "{p}run" (lease, job, tick) WHERE status = 'skipped'
"""

_ADDED: AddedColumns = {
    "job": {
        "paused_until": "INTEGER",
        "pause_note": "TEXT",
        "asked_at": "INTEGER",
        "cancel_at": "INTEGER",
        "backfill_since": "INTEGER",
        "backfill_until": "INTEGER",
        "token": "INTEGER",
    },
    "run": {
        "not_before": "INTEGER",
        "failures": "INTEGER NOT NULL DEFAULT 0",
        "uncounted": "INTEGER NOT NULL DEFAULT 0",
        "request": "TEXT",
        "earlier": "TEXT",
    },
}


def schema() -> str:
    """The statements that make the tables in an empty file, with the default prefix."""
    statements = [*_TABLES.strip().split(";\n"), *_rows("aiolease_")]
    return "".join(f"{statement.strip()};\n" for statement in statements).replace("{p}", "aiolease_")


def _rows(prefix: str) -> list[str]:
    """The statements for the rows of the revision and of the version; that comes last."""
    return [
        f'INSERT INTO "{prefix}lease" (name, token, beat, elected_at, renewed_at, expires_at) '
        f"VALUES ('{name}', {token}, 0, 0, 0, 0) ON CONFLICT (name) DO UPDATE SET token = MAX(token, excluded.token)"
        for name, token in ((REVISION_ROW, SCHEMA_REVISION), (VERSION_ROW, SCHEMA_VERSION))
    ]


class SQLiteSchema:
    """The tables of one prefix in one file."""

    def __init__(self, store: str, prefix: str, *, create: bool) -> None:
        """Knows them.

        Args:
            store: The store's description, for errors.
            prefix: What the names of the tables start with.
            create: Whether to make them if they are missing, or of a revision that can be upgraded.
        """
        self._store = store
        self._prefix = prefix
        self._create = create
        self._rows_sql = f"SELECT name, token FROM \"{prefix}lease\" WHERE name IN ('{VERSION_ROW}', '{REVISION_ROW}')"

    def find(self, connection: sqlite3.Connection) -> None:
        """Looks for the tables; makes them, or upgrades them.

        Raises:
            SchemaMissing: They are missing or of another version, and may not be made.
        """
        found, complete = self._found(connection)
        if complete and is_current(found):
            return
        if is_unknown(found):
            raise SchemaMissing(self._store, what_is_wrong(self._prefix, found), WAY_OUT)
        if not self._create:
            problem = f"{what_is_wrong(self._prefix, found)}, and create_tables=False"
            raise SchemaMissing(self._store, problem, WAY_OUT, statements=self.missing(connection))
        self.upgrade(connection)

    def missing(self, connection: sqlite3.Connection) -> list[str]:
        """The statements that bring the tables to this revision; none if they are of it, or of a higher one.

        Raises:
            SchemaMissing: They are of a version from which there is no way.
        """
        found, complete = self._found(connection)
        if is_unknown(found):
            raise SchemaMissing(self._store, what_is_wrong(self._prefix, found), WAY_OUT)
        if complete and is_current(found):
            return []
        there = self._names(connection)
        statements: list[str] = []
        for statement in _TABLES.replace("{p}", self._prefix).split(";\n"):
            made = statement.split('"')[1].lower()
            if made == f"{self._prefix}run_unfinished".lower():
                statements += self._changes(connection, there)
            if made not in there or (made.endswith("run_queued") and any("DROP" in each for each in statements)):
                statements.append(statement.strip())
        return [*statements, *_rows(self._prefix)]

    def _changes(self, connection: sqlite3.Connection, there: dict[str, str]) -> Iterator[str]:
        """What makes the tables that are there, of an older revision, what they are to be."""
        for table, columns in _ADDED.items():
            name = f"{self._prefix}{table}"
            known = {row[1] for row in connection.execute(f'PRAGMA table_info("{name}")')}
            if name.lower() in there:
                yield from (
                    f'ALTER TABLE "{name}" ADD COLUMN {column} {kind}'
                    for column, kind in columns.items()
                    if column not in known
                )
        index = f"{self._prefix}run_queued"
        if "not_before" not in there.get(index.lower(), "not_before"):
            yield f'DROP INDEX "{index}"'

    def upgrade(self, connection: sqlite3.Connection) -> list[str]:
        """Makes what is missing, in one transaction: another process may have been faster. Returns the statements.

        Raises:
            SchemaMissing: They are of a version from which there is no way, or the file may not be written.
        """
        found, complete = self._found(connection)
        try:
            if not is_unknown(found) and VERSION_ROW not in found:
                connection.execute("PRAGMA journal_mode = WAL")
            with transaction(connection):
                statements = self.missing(connection)
                for statement in statements:
                    connection.execute(statement)
                return statements
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF != sqlite3.SQLITE_READONLY:
                raise
            wrong = what_is_wrong(self._prefix, found) if complete else f"the tables {self._prefix}* are missing"
            problem, statements = f"{wrong}, and the file may not be written", self.missing(connection)
            raise SchemaMissing(self._store, problem, WAY_OUT, statements=statements) from error

    def _found(self, connection: sqlite3.Connection) -> tuple[dict[str, int], bool]:
        """The rows of the version and the revision, and whether all tables are there, with their indexes."""
        there = self._names(connection)
        rows = connection.execute(self._rows_sql).fetchall() if f"{self._prefix}lease".lower() in there else []
        return {str(name): int(token) for name, token in rows}, len(there) == len(_ALL)

    def _names(self, connection: sqlite3.Connection) -> dict[str, str]:
        """The tables and indexes of ours that are there, in lower case, and what made them."""
        names = [f"{self._prefix}{table}".lower() for table in _ALL]
        places = ", ".join("?" * len(names))
        sql = f"SELECT LOWER(name), sql FROM sqlite_master WHERE LOWER(name) IN ({places})"
        return dict(connection.execute(sql, names).fetchall())
