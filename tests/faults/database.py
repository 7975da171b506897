"""The database as a worker reaches it: what it hands to aiolease, and one way to run a statement on any connection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from tests.faults import postgresql

Driver = Literal["url", "asyncmy", "aiomysql", "asyncpg", "psycopg", "sqlalchemy"]

DRIVERS: tuple[Driver, ...] = ("asyncmy", "url", "aiomysql", "sqlalchemy")
ON_POSTGRESQL: tuple[Driver, ...] = ("asyncpg", "url", "psycopg", "sqlalchemy")

TABLES = (
    """CREATE TABLE effects (
    id INTEGER PRIMARY KEY {increment}, process VARCHAR(20) NOT NULL, token BIGINT NOT NULL, n BIGINT NOT NULL,
    UNIQUE (token, n)
)""",
    # Nothing here keeps a payment from being made twice: that is for the package to do.
    """CREATE TABLE payments (
    id INTEGER PRIMARY KEY {increment}, process VARCHAR(20) NOT NULL, token BIGINT NOT NULL, job VARCHAR(20) NOT NULL,
    tick VARCHAR(40) NOT NULL, attempt BIGINT NOT NULL
)""",
    "CREATE TABLE probes (id INTEGER PRIMARY KEY {increment})",
)


@asynccontextmanager
async def target(url: str, driver: Driver) -> AsyncIterator[Any]:
    """What the worker hands to aiolease."""
    if url.startswith("postgresql:"):
        async with postgresql.target(url, driver) as there:
            yield there
        return
    login, _, database = url.removeprefix("mysql://").rpartition("/")
    user, _, address = login.partition("@")
    host, _, port = address.partition(":")
    parameters: dict[str, Any] = {"host": host, "user": user.rstrip(":"), "connect_timeout": 2}
    match driver:
        case "asyncmy":
            import asyncmy

            async with asyncmy.create_pool(minsize=0, port=int(port), db=database, **parameters) as pool:
                yield pool
        case "aiomysql":
            import aiomysql

            async with aiomysql.create_pool(minsize=0, port=int(port), db=database, **parameters) as pool:
                yield pool
        case "sqlalchemy":
            from sqlalchemy.ext.asyncio import create_async_engine

            engine = create_async_engine(
                url.replace("mysql://", "mysql+asyncmy://"), connect_args={"connect_timeout": 2}
            )
            try:
                yield engine
            finally:
                await engine.dispose()
        case _:
            yield url


async def execute(connection: Any, sql: str) -> Any:
    """Runs a statement on whatever `Leadership.transaction` gave; returns the first row."""
    if hasattr(connection, "get_raw_connection"):  # SQLAlchemy's
        result = await connection.exec_driver_sql(sql)
        return result.fetchone() if result.returns_rows else None
    if hasattr(connection, "execute_fetchall"):  # aiosqlite's
        async with connection.execute(sql) as cursor:
            return await cursor.fetchone()
    if hasattr(connection, "fetchrow"):  # asyncpg's
        return await connection.fetchrow(sql)
    async with connection.cursor() as cursor:
        await cursor.execute(sql)
        return await cursor.fetchone() if cursor.description else None
