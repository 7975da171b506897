"""Our own sessions are settled on PostgreSQL, whatever others set; the user's are left alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event

from aiolease import leadership, open_store
from aiolease.stores import migrate
from aiolease.stores.postgresql import settling
from tests.campaigns import LIMIT
from tests.servers import PostgreSQLServer
from tests.stores.databases import AwkwardPostgreSQL
from tests.stores.postgresql.using import by, drivers, uses_all
from tests.stores.transactions.lending import lent

SETTLED = {
    "default_transaction_isolation": "read committed", "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off", "synchronous_commit": "on", "statement_timeout": "30s",
    "transaction_timeout": "0", "lock_timeout": "2s", "idle_in_transaction_session_timeout": "2s",
    "idle_session_timeout": "0", "tcp_user_timeout": "0", "TimeZone": "UTC", "DateStyle": "ISO, YMD",
    "standard_conforming_strings": "on", "client_encoding": "UTF8", "row_security": "off", "exit_on_error": "off",
    "search_path": '"public", "pg_temp"', "application_name": "aiolease", "jit": "off",
    "max_parallel_workers_per_gather": "0",
}  # fmt: skip


@pytest.fixture
def database(postgresql_awkward: PostgreSQLServer, driver: str) -> Iterator[AwkwardPostgreSQL]:
    """A fresh database; the sessions there are awkward."""
    made = AwkwardPostgreSQL(postgresql_awkward, driver)
    yield made
    postgresql_awkward.drop_database(made.schema)


@drivers
async def test_our_sessions_are_settled(database: AwkwardPostgreSQL) -> None:
    """Whatever stops, slows or changes a statement of aiolease is settled on all of its connections."""
    await uses_all(database.url)
    async with database.open("aiolease_", True) as store:
        sessions: Any = store
        for session in (sessions._lease_session, sessions._ledger_session, sessions._asking_session):
            found = {name: value for name, value, *_ in await session.fetch(("SHOW ALL", ()))}
            assert {name: found[name] for name in SETTLED if name in found} == {
                name: value for name, value in SETTLED.items() if name in found
            }


@drivers
async def test_the_users_sessions_are_left_alone(database: AwkwardPostgreSQL, driver: str) -> None:
    """A term over a pool, and a fenced transaction, change nothing in the sessions that the pool lends."""
    database.bear_transactions()
    url = database.server.url(database.schema, user=database.user)

    async def seen(lend: Any) -> list[Any]:
        connection = await lend.acquire()
        found: list[Any] = await lend.run(connection, "SHOW ALL")
        await lend.run(connection, "ROLLBACK")
        await lend.release(connection)
        return found

    async with lent(driver, url, size=1) as lend:
        before = await seen(lend)
        async with leadership(lend.target, timeout=LIMIT) as lead:
            assert await seen(lend) == before
            async with lead.transaction() as connection:
                await lend.run(connection, "SELECT 1")
            assert await seen(lend) == before
        assert await seen(lend) == before
        assert ("exit_on_error", "on") in {(name, value) for name, value, *_ in before}, "nothing is awkward here"


@drivers
async def test_an_index_that_takes_long_is_made(
    database: AwkwardPostgreSQL, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`migrate` waits for an index of a large table for longer than any other statement of ours may take."""
    server, name = database.server, database.schema
    url = by(driver, server.url(name))  # an awkward role has no triggers
    await migrate(url)
    server.sql("DROP INDEX aiolease_run_unfinished", name)
    body = "BEGIN PERFORM pg_sleep(1); END"
    server.sql(f"CREATE FUNCTION slow() RETURNS event_trigger LANGUAGE plpgsql AS '{body}'", name)
    server.sql("CREATE EVENT TRIGGER slow ON ddl_command_start EXECUTE FUNCTION slow()", name)
    monkeypatch.setitem(settling._IN_TRANSACTION, "statement_timeout", 500)
    (made, *_) = await migrate(url)
    assert "aiolease_run_unfinished" in made
    assert await migrate(url, check=True) == []


@drivers
async def test_an_engines_connect_event_is_settled(database: AwkwardPostgreSQL, driver: str) -> None:
    """What an engine's `connect` event sets and leaves behind stops no term."""
    database.server.sql("CREATE TABLE stray (id INT)", database.schema)
    database.server.sql(f"GRANT ALL ON stray TO {database.user}", database.schema)
    database.bear_transactions()
    url = database.server.url(database.schema, user=database.user)
    async with lent(f"engine-{driver}", url) as lend:

        @event.listens_for(lend.target.sync_engine, "connect")
        def connected(connection: Any, _: object) -> None:
            cursor = connection.cursor()
            for statement in ("SET SESSION lock_timeout = 7", "LOCK TABLE stray", "SET LOCAL statement_timeout = 9000"):
                cursor.execute(statement)
            cursor.close()

        async with leadership(lend.target, timeout=LIMIT) as lead, open_store(lend.target) as store:
            lease = await store.status("default")
            assert lease is not None
            assert lease.token == lead.token
