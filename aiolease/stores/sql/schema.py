"""The version of the tables, and the way from an older version: the same for all databases.

The tables themselves have one source for each database: ``schema.sql`` for MySQL, `aiolease.stores.sqlite.schema` for
SQLite. Their version is the token of a row in the table of leases that no lease can be named like, since it has a
space in its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SCHEMA_VERSION = 2
"""What this aiolease needs."""

VERSION_ROW = "schema version"

Upgrades = Mapping[int, Sequence[str]]
"""From each older version to the next one: the statements that change tables which are there; ``{p}`` is the prefix.

Tables and indexes that a version adds stand in the source of the tables, where an upgrade makes those that are missing.
So version 1, which only lacks tables, needs no statement. A new column needs one, an ``ALTER TABLE``. Two processes may
do it at once: that the column is there already is no error.
"""


def upgrade(found: int, upgrades: Upgrades) -> list[str] | None:
    """The statements that lead from a version to `SCHEMA_VERSION`; ``None`` if there is no way."""
    statements: list[str] = []
    while found != SCHEMA_VERSION:
        if found not in upgrades:
            return None
        statements += upgrades[found]
        found += 1
    return statements


def of_version(prefix: str, version: int | None) -> str:
    """Says that the tables are of another version."""
    return f"the tables {prefix}* are of version {version}, this aiolease needs {SCHEMA_VERSION}"
