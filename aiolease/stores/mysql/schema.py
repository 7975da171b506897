"""Finds, creates and upgrades the tables on MySQL and MariaDB. They are in ``schema.sql``."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from aiolease.errors import SchemaMissing, StoreUnavailable
from aiolease.stores.mysql.drivers import NO_SUCH_TABLE, TABLE_EXISTS, Execute, denied, error_number
from aiolease.stores.sql.schema import (
    NOT_MADE_YET,
    REVISION_ROW,
    VERSION_ROW,
    AddedColumns,
    is_current,
    is_unknown,
    what_is_wrong,
)

_COLUMN_EXISTS, _NO_SUCH_KEY, _KEY_EXISTS = 1060, 1091, 1061

_FASTER = {TABLE_EXISTS, _COLUMN_EXISTS, _NO_SUCH_KEY, _KEY_EXISTS}
"""What a server says when another process has been faster."""

_NOT_SO = {1845, 1846}
"""An ALTER cannot be done in the way that it asks for."""

_ROUNDS = 20
"""How often is looked for what is missing, and the first of it made: others may be at it, too."""

_TEXT = "CHARACTER SET utf8mb4 NULL"
_ADDED: AddedColumns = {
    "job": {
        "paused_until": "DATETIME(6) NULL",
        "pause_note": f"VARCHAR(255) {_TEXT}",
        "asked_at": "DATETIME(6) NULL",
        "cancel_at": "DATETIME(6) NULL",
        "backfill_since": "DATETIME(6) NULL",
        "backfill_until": "DATETIME(6) NULL",
        "token": "BIGINT UNSIGNED NULL",
    },
    "run": {
        "not_before": "DATETIME(6) NULL",
        "failures": "INT UNSIGNED NOT NULL DEFAULT 0",
        "uncounted": "INT UNSIGNED NOT NULL DEFAULT 0",
        "request": "VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NULL",
        "earlier": f"VARCHAR(4000) {_TEXT}",
    },
}
# Columns at the end cost nothing on either server, which take the quickest way by themselves. The index is made anew
# while others read and write; after the columns, since it stands for all of the revision in schema.sql.
_INDEX = "DROP KEY unfinished, ADD KEY unfinished (lease, status, not_before)"
_ONLINE = ", ALGORITHM=INPLACE, LOCK=NONE"


def schema() -> str:
    """The text of ``schema.sql``, which lies in the wheel, or beside the package in a checkout."""
    packaged = resources.files("aiolease") / "schema.sql"
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).parents[3] / "schema.sql").read_text(encoding="utf-8")


def schema_statements(prefix: str) -> list[str]:
    """The statements of ``schema.sql`` with another prefix."""
    bare = re.sub(r"--[^\n]*", "", schema()).replace("aiolease_", prefix)
    return [statement.strip() for statement in bare.split(";") if statement.strip()]


class MySQLSchema:
    """The tables of one prefix in one database."""

    def __init__(self, store: str, prefix: str, *, create: bool) -> None:
        """Makes it.

        Args:
            store: The store's description, for errors.
            prefix: What the names of the tables start with.
            create: Whether to make them if they are missing, or of a revision that can be upgraded.
        """
        self._store = store
        self._prefix = prefix
        self._create = create
        names = f"'{VERSION_ROW}', '{REVISION_ROW}'"
        self._rows_sql = f"SELECT name, token FROM {prefix}lease WHERE name IN ({names})"

    async def find(self, execute: Execute) -> None:
        """Looks for the tables. Creates or upgrades them where that is needed and allowed.

        Raises:
            SchemaMissing: They are missing, or of a version that this code does not know, or may not be created.
        """
        found = await self._found(execute)
        if is_current(found):
            return
        if self._create:
            await self.upgrade(execute)
            return
        problem = what_is_wrong(self._prefix, found)
        statements = await self.missing(execute)
        if VERSION_ROW not in found:
            problem = f"{problem}; {NOT_MADE_YET}"
        raise SchemaMissing(self._store, problem, statements=statements)

    async def missing(self, execute: Execute) -> list[str]:
        """The statements that bring the tables to this revision; none if they are of it, or of a higher one.

        Raises:
            SchemaMissing: They are of a version from which there is no way.
        """
        found = await self._found(execute)
        if is_unknown(found):
            raise SchemaMissing(self._store, what_is_wrong(self._prefix, found))
        if is_current(found):
            return []
        columns = await self._columns(execute)
        *tables, revision, version = schema_statements(self._prefix)
        # Without IF NOT EXISTS, which warns where they do.
        made = [table.replace("IF NOT EXISTS ", "") for table in tables]
        statements = [table for table in made if table.split()[2].lower() not in columns]
        for table, added in _ADDED.items():
            name = f"{self._prefix}{table}"
            lacking = [column for column in added if column not in columns.get(name.lower(), added)]
            if lacking:
                adding = ", ".join(f"ADD COLUMN {column} {added[column]}" for column in lacking)
                statements.append(f"ALTER TABLE {name} {adding}")
        if await self._has_old_index(execute):
            statements.append(f"ALTER TABLE {self._prefix}run {_INDEX}{_ONLINE}")
        return [*statements, revision, version]

    async def upgrade(self, execute: Execute) -> None:
        """Makes what is missing, a statement at a time: who comes second finds less.

        The version comes last: who finds it finds all that stands before it.

        Raises:
            SchemaMissing: This user may not.
        """
        found = await self._found(execute)
        for _ in range(_ROUNDS):
            statements = await self.missing(execute)
            if not statements:
                return
            *changes, revision, version = statements
            for statement in changes[:1] or (revision, version):
                await self._make(execute, found, statement, statements)
        raise StoreUnavailable(self._store, what_is_wrong(self._prefix, found))

    async def _make(self, execute: Execute, found: dict[str, int], statement: str, all_of_them: list[str]) -> None:
        try:
            try:
                await execute(statement.replace("%", "%%"))
            except Exception as error:
                if error_number(error) not in _NOT_SO:
                    raise
                await execute(statement.removesuffix(_ONLINE))
        except Exception as error:
            if denied(error):
                what = "create" if VERSION_ROW not in found else "change"
                problem = f"{what_is_wrong(self._prefix, found)}, and this user may not {what} them"
                raise SchemaMissing(self._store, problem, statements=all_of_them) from error
            if error_number(error) not in _FASTER:
                raise

    async def _found(self, execute: Execute) -> dict[str, int]:
        """The rows of the version and the revision; none without the table."""
        try:
            rows = (await execute(self._rows_sql))[0]
        except Exception as error:
            if error_number(error) == NO_SUCH_TABLE:
                return {}
            raise
        return {str(name): int(token) for name, token in rows}

    async def _columns(self, execute: Execute) -> dict[str, set[str]]:
        """The columns of those of our tables that are there."""
        rows = (await execute(self._about("table_name, column_name", "columns")))[0]
        columns: dict[str, set[str]] = {}
        for table, column in rows:
            columns.setdefault(str(table).lower(), set()).add(str(column).lower())
        return columns

    async def _has_old_index(self, execute: Execute) -> bool:
        rows = (await execute(self._about("table_name, column_name", "statistics", "AND index_name = 'unfinished'")))[0]
        columns = {str(column).lower() for table, column in rows if str(table).lower().endswith("run")}
        return bool(columns) and "not_before" not in columns

    def _about(self, columns: str, view: str, more: str = "") -> str:
        names = ", ".join(f"'{self._prefix}{table}'" for table in ("lease", "fence", "job", "run"))
        return (
            f"SELECT {columns} FROM information_schema.{view} "
            f"WHERE table_schema = DATABASE() AND table_name IN ({names}) {more}"
        )
