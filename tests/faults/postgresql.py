"""What the faults of a server are on PostgreSQL, and what a worker there hands to aiolease."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from tests.servers import Server


def prepare(server: Server, database: str, users: tuple[str, ...], tables: list[str]) -> None:
    """Makes the users, and tables that they may use."""
    for user in users:
        with contextlib.suppress(psycopg.Error):  # it is there from an earlier run
            server.create_user(user, "", "")
        server.sql(f"GRANT ALL ON SCHEMA public TO {user}", database)
    for table in tables:
        server.sql(f"SET ROLE {users[0]}; {table}", database)


def connect(server: Server, user: str, database: str) -> Any:
    """A session of a user's; it begins a transaction with its first statement."""
    return psycopg.connect(
        host=server.host, port=server.port, user=user, dbname=database, connect_timeout=10, sslmode="disable"
    )


def end_sessions(server: Server, database: str) -> int:
    """Ends the workers' sessions; returns how many there were."""
    sessions = f"FROM pg_stat_activity WHERE usename = 'worker' AND datname = '{database}'"
    return len(server.sql(f"SELECT pg_terminate_backend(pid) {sessions}"))


def let_in(server: Server, database: str, *, nobody: bool) -> str:
    """Refuses the workers any session, or no longer; returns what the server says then."""
    server.sql(f"ALTER ROLE worker CONNECTION LIMIT {0 if nobody else -1}")
    try:
        connect(server, "worker", database).close()
    except psycopg.OperationalError as error:
        return str(error).strip()
    return ""


def waited_for(server: Server) -> set[str]:
    """The statements that wait for a lock."""
    return {row[0] for row in server.sql("SELECT query FROM pg_stat_activity WHERE wait_event_type = 'Lock'")}


@asynccontextmanager
async def target(url: str, driver: str) -> AsyncIterator[Any]:
    """What the worker hands to aiolease: see `database.target`."""
    match driver:
        case "asyncpg":
            import asyncpg

            async with asyncpg.create_pool(url, min_size=0, ssl=False, timeout=2) as pool:
                yield pool
        case "psycopg":
            from psycopg_pool import AsyncConnectionPool

            given = {"sslmode": "disable", "connect_timeout": 2}

            async with AsyncConnectionPool(url, min_size=0, max_size=10, kwargs=given, open=False) as pool:
                yield pool
        case "sqlalchemy":
            from sqlalchemy.ext.asyncio import create_async_engine

            engine = create_async_engine(
                url.replace("postgresql:", "postgresql+asyncpg:"), connect_args={"timeout": 2, "ssl": False}
            )
            try:
                yield engine
            finally:
                await engine.dispose()
        case _:
            yield f"{url}?sslmode=disable"
