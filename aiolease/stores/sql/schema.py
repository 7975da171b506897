"""The version of the tables, and the way from an older one: the same for all databases.

The tables themselves have one source for each database: ``schema.sql`` for MySQL, `aiolease.stores.sqlite.schema` for
SQLite. What is known of them stands in two rows of the table of leases that no lease can be named like, since they have
a space in their names.

The *version* says who can work with the tables: each aiolease refuses another than its own. The *revision* says what
they have: a lower one lacks columns, which each database adds while others work; a higher one has more than we know,
and is fine. So workers of two releases run side by side, whichever comes first.
"""

from __future__ import annotations

from collections.abc import Mapping

SCHEMA_VERSION = 2
"""The version that this aiolease can work with."""

SCHEMA_REVISION = 3
"""The lowest revision that this aiolease needs."""

VERSION_ROW, REVISION_ROW = "schema version", "schema revision"

AddedColumns = Mapping[str, Mapping[str, str]]
"""The columns that revisions have added to tables, with their definitions."""


def is_current(found: Mapping[str, int]) -> bool:
    """Whether nothing is left to do.

    Args:
        found: The tokens of `VERSION_ROW` and `REVISION_ROW`, of those that are there.
    """
    return found.get(VERSION_ROW) == SCHEMA_VERSION and found.get(REVISION_ROW, 0) >= SCHEMA_REVISION


def is_unknown(found: Mapping[str, int]) -> bool:
    """Whether the tables are of a version from which there is no way. One that is missing is made."""
    return found.get(VERSION_ROW, SCHEMA_VERSION) not in {1, SCHEMA_VERSION}  # 1 lacked the tables of the ledger


NOT_MADE_YET = (
    "nobody has made them yet: a worker makes them at its start if it may; a command does not, nor create_tables=False"
)


def what_is_wrong(prefix: str, found: Mapping[str, int]) -> str:
    """Says in which way tables are not what is needed."""
    if (version := found.get(VERSION_ROW)) is None:
        return f"the tables {prefix}* are missing"
    if version != SCHEMA_VERSION:
        return f"the tables {prefix}* are of version {version}, this aiolease needs {SCHEMA_VERSION}"
    revision = found.get(REVISION_ROW, SCHEMA_VERSION)
    return f"the tables {prefix}* are of revision {revision}, this aiolease needs {SCHEMA_REVISION}"
