"""The filter for Alembic on the page of the database, given to Alembic itself."""

from __future__ import annotations

import asyncio
from typing import Any

import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from aiolease.stores import migrate
from tests.docs.pages import blocks_of
from tests.docs.setups.database import Context
from tests.project import ROOT

DRIVERS = {"mysql:": "mysql+pymysql:", "postgresql:": "postgresql+psycopg:"}


def test_alembic_leaves_the_tables_alone(url: str) -> None:
    """By the line of the page it drops what the models lack, in each schema, and nothing of aiolease's."""
    context = Context()
    [line] = [block.text for block in blocks_of(ROOT / "docs" / "database.md") if block.name == "migrations"]
    exec(line, {"context": context})
    scheme, _, rest = url.partition("//")
    engine = sqlalchemy.create_engine(f"{DRIVERS.get(scheme, scheme)}//{rest}")
    prefixes = ["aiolease_"]
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE invoices (id INTEGER PRIMARY KEY)"))
        if engine.dialect.name == "postgresql":
            connection.execute(sqlalchemy.text("CREATE SCHEMA ops"))
            prefixes.append("ops.aiolease_")
    for prefix in prefixes:
        asyncio.run(migrate(url, table_prefix=prefix))
    with engine.connect() as connection:
        dropped = dropped_by_alembic(connection, None)
        assert len([name for name in dropped if name.startswith("aiolease_")]) == 4 * len(prefixes)
        assert dropped_by_alembic(connection, context.filter) == ["invoices"]
    engine.dispose()


def dropped_by_alembic(connection: Any, include_name: Any) -> list[str]:
    """The names of tables and indexes that Alembic would drop for models that have none."""
    several = connection.dialect.name == "postgresql"
    options = {"include_schemas": several, "include_name": include_name}
    changes = compare_metadata(MigrationContext.configure(connection, opts=options), sqlalchemy.MetaData())
    assert {change[0] for change in changes} <= {"remove_table", "remove_index"}
    return sorted(change[1].name for change in changes if change[0] == "remove_table")
