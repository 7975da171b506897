"""Fixtures of the tests of stores: each database in turn, and stores on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from aiolease.stores import Store
from tests.stores.databases import (
    Awkward,
    AwkwardPostgreSQL,
    Database,
    InMemory,
    InPostgreSQL,
    InSQLite,
    MakeStore,
    OnServer,
)

KINDS = [
    *("memory", "sqlite", "mariadb", "mysql9", "mariadb_awkward", "mysql9_awkward"),
    *("postgresql+asyncpg", "postgresql+psycopg", "postgresql_awkward+psycopg"),
]


ONE_DRIVER = ("test_ledger_again", "test_ledger_jobs", "test_ledger_requests", "test_ledger_seen")
"""Where the statements are tried, and no longer how PostgreSQL's drivers send them and read their rows."""


AWKWARD = ("test_claiming", "test_ledger_jobs")
"""Where PostgreSQL's awkward sessions are tried; elsewhere are the same statements."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what would prove the same of PostgreSQL by its other driver, or by other sessions."""
    again = {item for item in items if item.path.stem in ONE_DRIVER and "[postgresql+psycopg" in item.name}
    again |= {item for item in items if item.path.stem not in AWKWARD and "[postgresql_awkward" in item.name}
    items[:] = [item for item in items if item not in again]
    config.hook.pytest_deselected(items=list(again))


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A fresh, empty database of every kind."""
    if request.param == "memory":
        yield InMemory()
    elif request.param == "sqlite":
        yield InSQLite(tmp_path / "leases.db")
    else:
        kind, _, driver = request.param.partition("+")
        server = request.getfixturevalue(kind)
        server.recover()
        awkward = kind.endswith("awkward")
        if driver:
            made: OnServer = (AwkwardPostgreSQL if awkward else InPostgreSQL)(server, driver)
            if isinstance(made, AwkwardPostgreSQL):
                made.bear_transactions()
        else:
            made = (Awkward if awkward else OnServer)(server)
        yield made
        server.drop_database(made.schema)


@pytest.fixture
async def make_store(database: Database) -> AsyncIterator[MakeStore]:
    """Opens any number of handles on the database; closes them in the end."""
    async with AsyncExitStack() as stack:

        async def make(*, table_prefix: str = "aiolease_", create_tables: bool = True) -> Store:
            return await stack.enter_async_context(database.open(table_prefix, create_tables))

        yield make
