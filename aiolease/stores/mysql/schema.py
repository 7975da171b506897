"""Finds, creates and upgrades the tables on MySQL and MariaDB. They are in ``schema.sql``."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from aiolease.errors import SchemaMissing
from aiolease.stores.mysql.drivers import NO_SUCH_TABLE, TABLE_EXISTS, Execute, denied, error_number
from aiolease.stores.sql.schema import SCHEMA_VERSION, VERSION_ROW, Upgrades, of_version, upgrade

_COLUMN_EXISTS = 1060

_UPGRADES: Upgrades = {1: ()}


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
            create: Whether to create missing tables, and to upgrade those of an older version.
        """
        self._store = store
        self._prefix = prefix
        self._create = create
        self._version_sql = f"SELECT token FROM {prefix}lease WHERE name = '{VERSION_ROW}'"

    async def find(self, execute: Execute) -> None:
        """Looks for the tables. Creates or upgrades them where that is needed and allowed.

        Raises:
            SchemaMissing: They are missing, or of a version that this code does not know, or may not be created.
        """
        found = await self._version(execute)
        steps = [] if found is None else upgrade(found, _UPGRADES)
        if found != SCHEMA_VERSION and steps is not None and (found is None or self._create):
            if not self._create:
                reason = f"the tables {self._prefix}* are missing; nobody has made them yet (create_tables=False)"
                raise SchemaMissing(self._store, reason)
            # The version is written last: a process that finds it finds all tables.
            *tables, version = schema_statements(self._prefix)
            await self._make(execute, [*tables, *(step.replace("{p}", self._prefix) for step in steps), version])
            found = await self._version(execute)
        if found != SCHEMA_VERSION:
            raise SchemaMissing(self._store, of_version(self._prefix, found))

    async def _make(self, execute: Execute, statements: list[str]) -> None:
        for statement in statements:
            try:
                # Without IF NOT EXISTS, which makes the server warn if the table exists.
                await execute(statement.replace("IF NOT EXISTS ", "").replace("%", "%%"))
            except Exception as error:
                if denied(error):
                    reason = f"the tables {self._prefix}* are missing, and this user may not create them"
                    raise SchemaMissing(self._store, reason) from error
                if error_number(error) not in {TABLE_EXISTS, _COLUMN_EXISTS}:
                    raise

    async def _version(self, execute: Execute) -> int | None:
        try:
            rows = (await execute(self._version_sql))[0]
        except Exception as error:
            if error_number(error) == NO_SUCH_TABLE:
                return None
            raise
        return int(rows[0][0]) if rows else None
