"""The table that fenced transactions write to."""

from __future__ import annotations

import pytest

from tests.campaigns import database_of
from tests.servers import Server
from tests.stores.transactions.lending import Work


@pytest.fixture
def work(mysql_server: Server, mysql_url: str) -> Work:
    database = database_of(mysql_url)
    mysql_server.sql(f"CREATE TABLE work (id {mysql_server.serial}, who VARCHAR(40) UNIQUE)", database)
    return Work(mysql_server, database)
