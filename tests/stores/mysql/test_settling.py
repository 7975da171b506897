"""aiolease settles its own sessions, whatever others set, and leaves the user's sessions alone."""

from __future__ import annotations

from typing import Any

import asyncmy
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine

from aiolease import leadership, open_store
from tests.servers import Server, awkward
from tests.stores.databases import Awkward

SETTLED = {
    "autocommit": "ON", "completion_type": "NO_CHAIN", "sql_safe_updates": "OFF", "sql_big_selects": "ON",
    "sql_select_limit": str(2**64 - 1), "max_sort_length": "1024", "lock_wait_timeout": "2",
    "innodb_lock_wait_timeout": "2", "character_set_client": "utf8mb4", "collation_connection": "utf8mb4_bin",
    "net_read_timeout": "30", "net_write_timeout": "60", "max_statement_time": "0.000000", "max_execution_time": "0",
    "tmp_disk_table_size": str(2**64 - 1), "max_session_mem_used": str(2**63 - 1), "use_secondary_engine": "OFF",
    "range_optimizer_max_mem_size": "8388608", "tx_isolation": "REPEATABLE-READ", "tx_read_only": "OFF",
    "transaction_isolation": "REPEATABLE-READ", "transaction_read_only": "OFF",
}  # fmt: skip


@pytest.fixture(params=["mariadb_awkward", "mysql9_awkward"])
def server(request: pytest.FixtureRequest) -> Server:
    made: Server = request.getfixturevalue(request.param)
    return made


async def settings_of(session: Any) -> dict[str, str]:
    return dict((await session.run("SHOW SESSION VARIABLES"))[0])


async def test_our_sessions_are_settled(server: Server) -> None:
    """Whatever stops, slows or changes a statement of aiolease is settled on both of its connections."""
    database = Awkward(server)
    async with database.open("aiolease_", True) as store:
        sessions: Any = store
        for session in (sessions._lease_session, sessions._other_session):
            found = await settings_of(session)
            wanted = {name: value for name, value in SETTLED.items() if name in found}
            assert {name: found[name] for name in wanted} == wanted
    server.drop_database(database.schema)


async def test_the_users_sessions_are_left_alone(server: Server) -> None:
    """A term over a pool changes nothing in the sessions that the pool lends."""
    database = Awkward(server)
    pool = asyncmy.create_pool(
        minsize=1, maxsize=1, host=server.host, port=server.port, user=awkward.USER, database=database.schema,
        init_command=awkward.settings(server),
    )  # fmt: skip

    names = ["autocommit", "completion_type", "sql_mode", "sql_safe_updates", "sql_select_limit", "lock_wait_timeout"]
    names += ["wait_timeout", "character_set_client", "max_sort_length", "net_read_timeout", "time_zone", "timestamp"]

    async def seen(made: Any) -> tuple[Any, ...]:
        async with made.acquire() as connection, connection.cursor() as cursor:
            await cursor.execute(f"SELECT {', '.join(f'@@{name}' for name in names)}")
            found: tuple[Any, ...] = await cursor.fetchone()
            return found

    async with pool as made:
        before = await seen(made)
        async with leadership(made):
            assert await seen(made) == before
        assert await seen(made) == before
    server.drop_database(database.schema)


async def test_an_engines_connect_event_is_settled(server: Server) -> None:
    """What an engine's `connect` event sets and leaves behind stops no term."""
    database = Awkward(server)
    engine = create_async_engine(f"mysql+aiomysql://{awkward.USER}@{server.host}:{server.port}/{database.schema}")

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        for statement in (*awkward.settings(server).split("; "), "START TRANSACTION", "LOCK TABLES stray READ"):
            cursor.execute(statement)
        cursor.close()

    async with leadership(engine, timeout=10.0) as lead, open_store(engine) as store:
        lease = await store.status("default")
        assert lease is not None
        assert lease.token == lead.token
    await engine.dispose()
    server.drop_database(database.schema)
