"""The tables on SQLite; finds, creates and upgrades them."""

from __future__ import annotations

import sqlite3

from aiolease.errors import SchemaMissing
from aiolease.stores.sql.schema import SCHEMA_VERSION, VERSION_ROW, Upgrades, of_version, upgrade
from aiolease.stores.sqlite.dialect import transaction

WAY_OUT = "A worker that may write the file makes it and its tables at its first start; or is the path another?"

_ALL = ("lease", "fence", "job", "run", "run_unfinished", "run_queued", "run_skipped")
"""The tables, and the indexes that statements name as hints."""

# Two of the indexes follow SQLite's planner. With an index on (lease, status) it would still take the primary key, and
# read all runs of a lease: so the index is a partial one. `run_queued` includes the status, so that SQLite counts in
# the index alone, without the rows.
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
    high_tick INTEGER, requested_at INTEGER,
    PRIMARY KEY (lease, job)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS "{p}run" (
    lease TEXT NOT NULL, job TEXT NOT NULL, tick INTEGER NOT NULL, attempt INTEGER NOT NULL, token INTEGER NOT NULL,
    holder TEXT NOT NULL, status TEXT NOT NULL, started_at INTEGER, finished_at INTEGER, error TEXT,
    tick_from INTEGER, count INTEGER,
    PRIMARY KEY (lease, job, tick)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS "{p}run_unfinished" ON "{p}run" (lease, tick, job) WHERE status IN ('queued', 'running');
CREATE INDEX IF NOT EXISTS "{p}run_queued" ON "{p}run" (lease, job, tick, status) WHERE status = 'queued';
CREATE INDEX IF NOT EXISTS "{p}run_skipped" ON "{p}run" (lease, job, tick) WHERE status = 'skipped'
"""

_UPGRADES: Upgrades = {1: ()}


class SQLiteSchema:
    """The tables of one prefix in one file."""

    def __init__(self, store: str, prefix: str, *, create: bool) -> None:
        """Makes it.

        Args:
            store: The store's description, for errors.
            prefix: What the names of the tables start with.
            create: Whether to create missing tables, and to upgrade those of an older version.
        """
        self._store = store
        self._prefix = prefix
        self._create = create
        lease = f'"{prefix}lease"'
        self._version_sql = f"SELECT token FROM {lease} WHERE name = '{VERSION_ROW}'"
        self._new_sql = (
            f"INSERT OR IGNORE INTO {lease} (name, token, beat, elected_at, renewed_at, expires_at) "
            f"VALUES ('{VERSION_ROW}', {SCHEMA_VERSION}, 0, 0, 0, 0)"
        )
        self._upgraded_sql = (
            f"UPDATE {lease} SET token = {SCHEMA_VERSION} WHERE name = '{VERSION_ROW}' AND token < {SCHEMA_VERSION}"
        )

    def find(self, connection: sqlite3.Connection) -> None:
        """Looks for the tables. Creates or upgrades them where that is needed and allowed.

        Raises:
            SchemaMissing: They are missing, or of a version that this code does not know, or may not be created.
        """
        version, complete = self._found(connection)
        known = version is None or upgrade(version, _UPGRADES) is not None
        if known and not (complete and version == SCHEMA_VERSION):
            self._make(connection, version)
            version, _ = self._found(connection)
        if version != SCHEMA_VERSION:
            raise SchemaMissing(self._store, of_version(self._prefix, version), WAY_OUT)

    def _make(self, connection: sqlite3.Connection, version: int | None) -> None:
        """Creates what is missing in one transaction, which reads the version again first."""
        older = version is not None and version < SCHEMA_VERSION
        problem = of_version(self._prefix, version) if older else f"the tables {self._prefix}* are missing"
        if not self._create:
            raise SchemaMissing(self._store, f"{problem}, and create_tables=False", WAY_OUT)
        try:
            if version is None:
                connection.execute("PRAGMA journal_mode = WAL")
            with transaction(connection):
                found, _ = self._found(connection)  # another process may have been faster
                steps = (upgrade(found, _UPGRADES) or ()) if found is not None else ()
                for statement in (*_TABLES.split(";"), *steps, self._new_sql, self._upgraded_sql):
                    connection.execute(statement.replace("{p}", self._prefix))
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF != sqlite3.SQLITE_READONLY:
                raise
            raise SchemaMissing(self._store, f"{problem}, and the file may not be written", WAY_OUT) from error

    def _found(self, connection: sqlite3.Connection) -> tuple[int | None, bool]:
        """The version of the tables, and whether all tables and indexes exist."""
        names = [f"{self._prefix}{table}".lower() for table in _ALL]
        places = ", ".join("?" * len(names))
        tables_sql = f"SELECT LOWER(name) FROM sqlite_master WHERE LOWER(name) IN ({places})"
        found = {name for (name,) in connection.execute(tables_sql, names)}
        row = connection.execute(self._version_sql).fetchone() if names[0] in found else None
        return (row and row[0]), row is not None and len(found) == len(names)
