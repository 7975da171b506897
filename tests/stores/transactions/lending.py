"""Pools of every kind that lend connections to fenced transactions, and a table."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiomysql
import asyncmy
import pytest
from sqlalchemy import BigInteger, String, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.campaigns import LIMIT, apart, through
from tests.servers import Server

SERVERS = ["mariadb", "mariadb_snapshot", "mysql9"]
POOLS = ["asyncmy", "asyncmy-autocommit", "aiomysql", "engine-asyncmy", "engine-aiomysql"]
KINDS = [*POOLS, "url"]
COMMIT = b"; COMMIT"

PAIRS = [*(("mariadb", kind) for kind in KINDS), ("mariadb_snapshot", "asyncmy"), ("mysql9", "aiomysql")]
FEW = [("mariadb", "aiomysql"), ("mariadb_snapshot", "engine-asyncmy"), ("mysql9", "url")]


def pairs(*choice: tuple[str, str]) -> pytest.MarkDecorator:
    """What is tried on several pools is tried on MariaDB, and what the server decides with one pool of each other."""
    return pytest.mark.parametrize(("mysql_server", "kind"), choice, indirect=["mysql_server"])


every_pair, some_pairs = pairs(*PAIRS), pairs(*FEW)
every_pool = pairs(*(("mariadb", kind) for kind in POOLS))
some_kinds = pairs(("mariadb", "asyncmy"), ("mariadb", "engine-aiomysql"), ("mariadb", "url"))
every_server = pytest.mark.parametrize("mysql_server", SERVERS, indirect=True)
one_server = pytest.mark.parametrize("mysql_server", ["mariadb"], indirect=True)


class Boom(Exception):
    """What a body may raise."""


@dataclass
class Lent:
    """What a leadership is given, and what is left in it afterwards."""

    kind: str
    target: Any
    size: int

    async def run(self, connection: Any, sql: str) -> list[tuple[Any, ...]]:
        """Sends a statement on what `transaction` gave, as a user of this target would."""
        if self.kind.startswith("engine"):
            result = await connection.execute(text(sql))
            return [tuple(row) for row in result] if result.returns_rows else []
        async with connection.cursor() as cursor:
            await cursor.execute(sql)
            return list(await cursor.fetchall()) if cursor.description else []

    async def whole(self) -> None:
        """The pool has all its connections, and none is in a transaction."""
        if self.kind == "url":
            return
        lent: list[Any] = []
        pool = self.target.sync_engine.pool if self.kind.startswith("engine") else self.target
        used = pool.checkedout() if self.kind.startswith("engine") else pool.size - pool.freesize
        assert used == 0, "a connection did not come back to its pool"
        try:
            async with asyncio.timeout(LIMIT):
                for _ in range(self.size):
                    engine = self.kind.startswith("engine")
                    lent.append(await (self.target.connect() if engine else self.target.acquire()))
                for connection in lent:
                    mine = "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = "
                    assert await self.run(connection, f"{mine}CONNECTION_ID()") == [(0,)]
                    await self.run(connection, "ROLLBACK")
        finally:
            for connection in lent:
                if self.kind.startswith("engine"):
                    await connection.close()
                else:
                    released = self.target.release(connection)
                    if released is not None:
                        await released


@asynccontextmanager
async def lent(kind: str, url: str, *, port: int | None = None, size: int = 2, **options: Any) -> AsyncIterator[Lent]:
    """A pool, an engine or a URL on a database, perhaps behind a proxy."""
    if port is not None:
        url = through(url, port)
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
