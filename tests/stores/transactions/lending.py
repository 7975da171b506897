"""Pools of every kind that lend connections to fenced transactions, and a table."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiomysql
import asyncmy
import asyncpg
import pytest
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import BigInteger, String, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.campaigns import LIMIT, apart, through
from tests.servers import PostgreSQLServer, Server

SERVERS = ["mariadb", "mariadb_snapshot", "mysql9"]
POOLS = ["asyncmy", "asyncmy-autocommit", "aiomysql", "engine-asyncmy", "engine-aiomysql"]
KINDS = [*POOLS, "url"]
COMMIT = b"; COMMIT"

PAIRS = [*(("mariadb", kind) for kind in KINDS), ("mariadb_snapshot", "asyncmy"), ("mysql9", "aiomysql")]
FEW = [("mariadb", "aiomysql"), ("mariadb_snapshot", "engine-asyncmy"), ("mysql9", "url")]

PG_POOLS = ["asyncpg", "psycopg", "psycopg-autocommit", "engine-asyncpg", "engine-psycopg"]
PG_KINDS = [*PG_POOLS, "url-asyncpg", "url-psycopg"]
PAIRS += [("postgresql", kind) for kind in PG_KINDS]
FEW += [*(("postgresql", kind) for kind in ("asyncpg", "psycopg", "engine-asyncpg")), ("postgresql_new", "asyncpg")]


def pairs(*choice: tuple[str, str]) -> pytest.MarkDecorator:
    """What is tried on several pools is tried on MariaDB, and what the server decides with one pool of each other."""
    return pytest.mark.parametrize(("mysql_server", "kind"), choice, indirect=["mysql_server"])


every_pair, some_pairs = pairs(*PAIRS), pairs(*FEW)
every_pool = pairs(*(("mariadb", kind) for kind in POOLS), *(("postgresql", kind) for kind in PG_POOLS))
some_kinds = pairs(
    ("mariadb", "asyncmy"), ("mariadb", "engine-aiomysql"), ("mariadb", "url"), ("postgresql", "engine-psycopg"),
    ("postgresql", "psycopg"), ("postgresql", "url-asyncpg"),
)  # fmt: skip
every_server = pytest.mark.parametrize("mysql_server", SERVERS, indirect=True)
one_server = pytest.mark.parametrize("mysql_server", ["mariadb"], indirect=True)
one_pool = pairs(("mariadb", "asyncmy"), ("postgresql", "asyncpg"), ("postgresql", "psycopg"))


class Boom(Exception):
    """What a body may raise."""


@dataclass
class Lent:
    """What a leadership is given, and what is left in it afterwards."""

    kind: str
    target: Any
    size: int
    in_transaction: str = Server.in_transaction

    async def run(self, connection: Any, sql: str) -> list[tuple[Any, ...]]:
        """Sends a statement on what `transaction` gave, as a user of this target would."""
        if self.kind.startswith("engine"):
            result = await connection.execute(text(sql))
            return [tuple(row) for row in result] if result.returns_rows else []
        if self.kind.endswith("asyncpg"):
            return [tuple(row) for row in await connection.fetch(sql)]
        async with connection.cursor() as cursor:
            await cursor.execute(sql)
            return list(await cursor.fetchall()) if cursor.description else []

    @property
    def used(self) -> int:
        """How many connections are lent."""
        if self.kind.startswith("engine"):
            return int(self.target.sync_engine.pool.checkedout())
        if self.kind == "asyncpg":
            return int(self.target.get_size() - self.target.get_idle_size())
        return int(self.target.size - self.target.freesize)

    async def acquire(self) -> Any:
        """A connection, as a user of this target takes one."""
        if self.kind.startswith("engine"):
            return await self.target.connect()
        return await (self.target.getconn() if self.kind.startswith("psycopg") else self.target.acquire())

    async def release(self, connection: Any) -> None:
        """Gives it back."""
        if self.kind.startswith("engine"):
            await connection.close()
        else:
            psycopg_pool = self.kind.startswith("psycopg")
            released = (self.target.putconn if psycopg_pool else self.target.release)(connection)
            if released is not None:
                await released

    async def whole(self) -> None:
        """The pool has all its connections, and none is in a transaction."""
        if self.kind.startswith("url"):
            return
        lent: list[Any] = []
        if not self.kind.startswith("psycopg"):  # whose pool counts those that it is making anew
            assert self.used == 0, "a connection did not come back to its pool"
        try:
            async with asyncio.timeout(LIMIT):
                while len(lent) < self.size:
                    lent.append(await self.acquire())
                for connection in lent:
                    assert await self.run(connection, self.in_transaction) == [(0,)]
                    await self.run(connection, "ROLLBACK")
        finally:
            for connection in lent:
                await self.release(connection)


@asynccontextmanager
async def lent(kind: str, url: str, *, port: int | None = None, size: int = 2, **options: Any) -> AsyncIterator[Lent]:
    """A pool, an engine or a URL on a database, perhaps behind a proxy."""
    if port is not None:
        url = through(url, port)
    if url.startswith("postgresql"):
        async with _lent_by_postgresql(kind, url, size, options) as lend:
            yield lend
        return
    address, _, database = url.rpartition("/")
    login = {"host": "127.0.0.1", "port": int(address.rpartition(":")[2]), "user": "root", "db": database}
    if kind == "url":
        yield Lent(kind, apart(url), size)
    elif kind.startswith("engine"):
        engine = create_async_engine(
            url.replace("mysql:", f"mysql+{kind.removeprefix('engine-')}:"), pool_size=size, max_overflow=0, **options
        )
        try:
            yield Lent(kind, engine, size)
        finally:
            await engine.dispose()
    else:
        driver = aiomysql if kind == "aiomysql" else asyncmy
        autocommit = kind.endswith("autocommit")
        pool = await driver.create_pool(**login, minsize=0, maxsize=size, autocommit=autocommit, **options)
        try:
            yield Lent(kind, pool, size)
        finally:
            pool.close()
            async with asyncio.timeout(LIMIT):
                await pool.wait_closed()


@asynccontextmanager
async def _lent_by_postgresql(kind: str, url: str, size: int, options: dict[str, Any]) -> AsyncIterator[Lent]:
    shown = PostgreSQLServer.in_transaction
    driver = kind.rpartition("-")[2]
    if kind.startswith("url"):
        yield Lent(kind, apart(url.replace("postgresql:", f"postgresql+{driver}:")), size, shown)
    elif kind.startswith("engine"):
        named = url.replace("postgresql:", f"postgresql+{driver}:")
        if driver == "psycopg":
            options = {"connect_args": {"sslmode": "disable"}} | options
        engine = create_async_engine(named, pool_size=size, max_overflow=0, **options)
        try:
            yield Lent(kind, engine, size, shown)
        finally:
            await engine.dispose()
    elif kind == "asyncpg":
        async with asyncpg.create_pool(url, min_size=0, max_size=size, ssl=False, **options) as pool:
            yield Lent(kind, pool, size, shown)
    else:
        # The pool itself makes another for one that was thrown away, and tries no other way while it waits for that.
        given = {"autocommit": kind.endswith("autocommit"), "sslmode": "disable", "connect_timeout": 2}
        async with AsyncConnectionPool(url, min_size=0, max_size=size, kwargs=given, open=False, **options) as pool:
            yield Lent(kind, pool, size, shown)


@dataclass
class Work:
    """The user's table, as the administrator sees it."""

    server: Server
    database: str

    def rows(self) -> list[str]:
        """Who has written a row, in order."""
        return [row[0] for row in self.server.sql("SELECT who FROM work ORDER BY id", self.database)]

    def new_term(self) -> None:
        """A newer term begins, and the leader has not heard of it: as if it had been frozen meanwhile."""
        sql = "UPDATE {} SET holder = 'another', token = token + 1 WHERE name = 'default'"
        for table in ("aiolease_fence", "aiolease_lease"):
            self.server.sql(sql.format(table), self.database)


def insert(who: str) -> str:
    return f"INSERT INTO work (who) VALUES ('{who}')"


class Base(DeclarativeBase):
    """The user's models."""


class Row(Base):
    """A row of the user's table."""

    __tablename__ = "work"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    who: Mapped[str] = mapped_column(String(40))
