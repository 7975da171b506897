"""A database of PostgreSQL, and the table that fenced transactions write to."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.campaigns import database_of
from tests.servers import PostgreSQLServer
from tests.stores.transactions.lending import Work


@pytest.fixture
def postgresql_url(postgresql: PostgreSQLServer) -> Iterator[str]:
    """The URL of a fresh, empty database."""
    postgresql.recover()
    name = f"test_{uuid4().hex[:12]}"
    postgresql.create_database(name)
    yield postgresql.url(name)
    postgresql.recover()
    postgresql.drop_database(name)


@pytest.fixture
def work(postgresql: PostgreSQLServer, postgresql_url: str) -> Work:
    database = database_of(postgresql_url)
    postgresql.sql(f"CREATE TABLE work (id {postgresql.serial}, who VARCHAR(40) UNIQUE)", database)
    return Work(postgresql, database)
