"""Databases of every kind with several stores on each, and short ways to ask a store."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast
from uuid import uuid4

import asyncmy
import asyncpg
import psycopg
import pymysql
import pytest

from aiolease._election.claim import new_holder
from aiolease.stores import Store, open_store
from aiolease.stores.memory import MemoryServer, MemoryStore
from aiolease.stores.records import Lease
from aiolease.stores.sqlite import SQLiteStore
from tests.campaigns import LIMIT
from tests.project import ROOT
from tests.servers import Server, awkward


class Database:
    """One fresh database: handles on it, and what a person with a client program could do to it."""

    kind: str

    def open(self, prefix: str, create_tables: bool) -> AbstractAsyncContextManager[Store]:
        """A handle of its own, shared with nobody."""
        raise NotImplementedError

    def fence(self, name: str) -> tuple[str | None, int] | None:
        """Holder and token of a row of the fence table."""
        raise NotImplementedError

    def delete_lease(self, name: str) -> None:
        """Deletes a row of the lease table by hand."""
        raise NotImplementedError

    def delete_fence(self, name: str) -> None:
        """Deletes a row of the fence table by hand."""
        raise NotImplementedError

    def set_token(self, name: str, token: int) -> None:
        """Sets the token of a row of the lease table by hand, as from an older backup."""
        raise NotImplementedError


class InMemory(Database):
    kind = "memory"

    def __init__(self) -> None:
        self.server = MemoryServer()

    def open(self, prefix: str, create_tables: bool) -> AbstractAsyncContextManager[Store]:
        return aclosing(cast(Any, MemoryStore(self.server)))

    def fence(self, name: str) -> tuple[str | None, int] | None:
        row = self.server.fences.get(name)
        return None if row is None else (row.holder, row.token)

    def delete_lease(self, name: str) -> None:
        del self.server.leases[name]

    def delete_fence(self, name: str) -> None:
        del self.server.fences[name]

    def set_token(self, name: str, token: int) -> None:
        self.server.leases[name] = replace(self.server.leases[name], token=token)


class InSQLite(Database):
    kind = "sqlite"

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, prefix: str, create_tables: bool) -> AbstractAsyncContextManager[Store]:
        return aclosing(cast(Store, SQLiteStore(self.path, table_prefix=prefix, create_tables=create_tables)))

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            return connection.execute(statement, values).fetchall()

    def fence(self, name: str) -> tuple[str | None, int] | None:
        rows = self.sql("SELECT holder, token FROM aiolease_fence WHERE name = ?", name)
        return rows[0] if rows else None

    def delete_lease(self, name: str) -> None:
        self.sql("DELETE FROM aiolease_lease WHERE name = ?", name)

    def delete_fence(self, name: str) -> None:
        self.sql("DELETE FROM aiolease_fence WHERE name = ?", name)

    def set_token(self, name: str, token: int) -> None:
        self.sql("UPDATE aiolease_lease SET token = ? WHERE name = ?", token, name)


class OnServer(Database):
    utc = ""
    """How a moment in UTC ends, as it stands in a statement."""
    harmless = "charset=utf8mb4"
    """A parameter of a URL that changes nothing."""

    def __init__(self, server: Server) -> None:
        self.kind = server.kind
        self.server = server
        self.schema = f"test_{uuid4().hex[:12]}"
        self._handles = 0
        server.create_database(self.schema)

    def damage(self, column: str, name: str) -> None:
        """Writes a moment into the row of a lease for which Python has none."""
        server = self.server
        with (
            pymysql.connect(
                host=server.host, port=server.port, user="root", database=self.schema, autocommit=True,
                init_command="SET sql_mode = ''",
            ) as lenient,
            lenient.cursor() as cursor,
        ):  # fmt: skip
            cursor.execute(f"UPDATE aiolease_lease SET {column} = '0000-00-00 00:00:00' WHERE name = %s", (name,))

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """A connection of a user's own, in a transaction."""
        own = await asyncmy.connect(host="127.0.0.1", port=self.server.port, user="root", db=self.schema)
        try:
            yield own
        finally:
            await own.ensure_closed()

    @property
    def url(self) -> str:
        """Where it is, by its driver."""
        return self.server.url(self.schema)

    def open(self, prefix: str, create_tables: bool) -> AbstractAsyncContextManager[Store]:
        # Within a process, a URL that is the same to the letter gets the same store.
        self._handles += 1
        url = f"{self.url}?{'&'.join([self.harmless] * self._handles)}"
        return open_store(url, table_prefix=prefix, create_tables=create_tables)

    @contextlib.contextmanager
    def locked(self, name: str, table: str = "lease") -> Iterator[None]:
        """While the block runs, a stranger has locked the row of a lease, or of its fence."""
        with self.stranger() as connection, connection.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute(f"SELECT 1 FROM aiolease_{table} WHERE name = {self.server.text(name)} FOR UPDATE")
            yield
            connection.rollback()

    def stranger(self) -> Any:
        """A connection of somebody else's, which blocks."""
        return pymysql.connect(host=self.server.host, port=self.server.port, user="root", database=self.schema)

    def fence(self, name: str) -> tuple[str | None, int] | None:
        where = f"name = {self.server.text(name)}"
        rows = self.server.sql(f"SELECT holder, token FROM aiolease_fence WHERE {where}", self.schema)
        return (rows[0][0], rows[0][1]) if rows else None

    def delete_lease(self, name: str) -> None:
        self.server.sql(f"DELETE FROM aiolease_lease WHERE name = {self.server.text(name)}", self.schema)

    def delete_fence(self, name: str) -> None:
        self.server.sql(f"DELETE FROM aiolease_fence WHERE name = {self.server.text(name)}", self.schema)

    def set_token(self, name: str, token: int) -> None:
        where = f"name = {self.server.text(name)}"
        self.server.sql(f"UPDATE aiolease_lease SET token = {token} WHERE {where}", self.schema)


class InPostgreSQL(OnServer):
    """A database of PostgreSQL, by one of its drivers."""

    utc = "+00"
    harmless = "sslmode=disable"
    user = "postgres"

    def __init__(self, server: Server, driver: str) -> None:
        super().__init__(server)
        self._driver = driver

    @property
    def url(self) -> str:
        return self.server.url(self.schema, user=self.user).replace("postgresql:", f"postgresql+{self._driver}:")

    def damage(self, column: str, name: str) -> None:
        text = self.server.text(name)
        self.server.sql(f"UPDATE aiolease_lease SET {column} = '0044-03-15 BC' WHERE name = {text}", self.schema)

    def stranger(self) -> Any:
        return psycopg.connect(self.server.url(self.schema), sslmode="disable", autocommit=True)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        login: dict[str, Any] = {"host": self.server.host, "port": self.server.port, "user": self.server.user}
        if self._driver == "asyncpg":
            own = await asyncpg.connect(**login, database=self.schema, ssl=False)
            await own.execute("BEGIN")
        else:
            own = await psycopg.AsyncConnection.connect(**login, dbname=self.schema)
        try:
            yield own
        finally:
            await own.close()


class Awkward(OnServer):
    """Every session has awkward settings, from the server and from the pool, which also leaves open state behind."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        server.sql(
            f"GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, LOCK TABLES ON {self.schema}.* TO {awkward.USER}@'%'"
        )
        server.sql("CREATE TABLE IF NOT EXISTS stray (id INT PRIMARY KEY)", self.schema)

    @asynccontextmanager
    async def open(self, prefix: str, create_tables: bool) -> AsyncIterator[Store]:
        left_behind = "START TRANSACTION; SELECT 1; LOCK TABLES stray READ; SELECT 2"
        pool = asyncmy.create_pool(
            minsize=0, host=self.server.host, port=self.server.port, user=awkward.USER, database=self.schema,
            init_command=f"{awkward.settings(self.server)}; {left_behind}",
        )  # fmt: skip
        async with pool as made, open_store(made, table_prefix=prefix, create_tables=create_tables) as store:
            yield store


class AwkwardPostgreSQL(InPostgreSQL):
    """Every session has awkward settings, by its role."""

    user = awkward.USER

    def __init__(self, server: Server, driver: str) -> None:
        super().__init__(server, driver)
        server.sql(f"GRANT ALL ON SCHEMA public TO {self.user}", self.schema)
        for what in ("TABLES", "SEQUENCES"):  # that a test makes
            server.sql(f"ALTER DEFAULT PRIVILEGES GRANT ALL ON {what} TO {self.user}", self.schema)

    def bear_transactions(self) -> None:
        """Has transactions of the user's own work, which obey the role's settings: they may write, and think."""
        for name in ("idle_in_transaction_session_timeout", "idle_session_timeout", "default_transaction_read_only"):
            self.server.sql(f"ALTER ROLE {self.user} IN DATABASE {self.schema} SET {name} = 0")


class MakeStore(Protocol):
    async def __call__(self, *, table_prefix: str = "aiolease_", create_tables: bool = True) -> Store: ...


with_tables = pytest.mark.parametrize("database", ["sqlite", "mariadb", "mysql9", "postgresql+asyncpg"], indirect=True)
"""For the rules about tables, which memory has none of."""

with_old_tables = pytest.mark.parametrize("database", ["sqlite", "mariadb", "mysql9"], indirect=True)
"""For tables of the first release, which did not know PostgreSQL."""


async def claim(store: Store, name: str, duration: float = 30.0, *, force: bool = False) -> Lease:
    """Reads the row and claims on what it shows; the claim must be won."""
    holder = new_holder()
    lease = await store.claim(name, holder, duration, seen=await store.read(name), force=force)
    assert lease is not None
    assert lease.holder == holder
    return lease


async def free(store: Store, lease: Lease) -> None:
    assert lease.holder is not None
    assert await store.release(lease.name, lease.holder, lease.token)


async def renew(store: Store, lease: Lease, beat: int, duration: float = 30.0) -> Lease | None:
    assert lease.holder is not None
    return await store.renew(lease.name, lease.holder, lease.token, beat, duration)


async def row(store: Store, name: str) -> Lease:
    lease = await store.read(name)
    assert lease is not None
    return lease


async def expired(store: Store, name: str) -> Lease:
    """Waits until the row has run out by the database's clock."""
    async with asyncio.timeout(LIMIT):
        while not (lease := await row(store, name)).expired:
            await asyncio.sleep(0.01)
    return lease


def state(lease: Lease | None) -> tuple[object, ...] | None:
    """All values of a row except the moment of the reading."""
    if lease is None:
        return None
    moments = (lease.elected_at, lease.renewed_at, lease.expires_at)
    return (lease.name, lease.holder, lease.token, lease.beat, *moments, lease.resign_token)


NAMES = [
    *("cron", "Cron", "CRON", "cro", "cron.", "cron_", "crons", "cr_n", "cr%n", "%", "_", "%s", "%%", "%(name)s"),
    *("'", "''", '"', '""', "`", "\\", "\\\\", "\\'", "x'--", "x';DROP", "?", ":name", "{}", "{0}", "@a", "#", "/*"),
    *("1", "01", "1.0", "1e0", "0x31", "-1", "NULL", "x" * 100, "x" * 99 + "y", "x" * 99, "~!"),
]


Make = Callable[..., SQLiteStore]


def execute(path: Path, statement: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(statement).fetchall()


def run_script(script: str, *arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> str:
    """What a script printed; it must end in time and in order."""
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return out
