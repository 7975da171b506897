"""A shop's database on MySQL or MariaDB, over a pool of asyncmy."""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import cache
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote

import asyncmy
import asyncmy.errors

from shop_database import Database, Outcome, Parameters, ShopError, ShopUnreachable, StatementFailed, Transaction


@asynccontextmanager
async def open_mysql(url: SplitResult, port: int | None) -> AsyncIterator[Database]:
    """Makes a pool for ``mysql://user:password@host:port/database``; it connects when it is used."""
    query = dict(parse_qsl(url.query))
    if query.keys() - {"ssl_ca", "unix_socket"}:
        raise ShopError(
            "the shop's URL takes no parameters but ssl_ca and unix_socket"
        )  # not: in the clear all the same
    async with asyncmy.create_pool(
        minsize=0,
        maxsize=4,
        host=url.hostname or "localhost",
        port=port or 3306,
        unix_socket=query.get("unix_socket"),
        user=unquote(url.username or ""),
        password=unquote(url.password or ""),
        database=unquote(url.path.strip("/")),
        ssl=ssl.create_default_context(cafile=query["ssl_ca"]) if "ssl_ca" in query else None,
        charset="utf8mb4",
        # Without it asyncmy 0.2.18 thinks that a transaction goes on after its COMMIT, and closes the connection.
        autocommit=True,
        connect_timeout=5,
        read_timeout=30,
        # Locks no gaps between rows, so that visitors and jobs do not wait for each other.
        init_command="SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    ) as pool:
        yield _MySQL(pool)


class _MySQL:
    auto_id = "INTEGER AUTO_INCREMENT PRIMARY KEY"
    moment = "DATETIME(6)"

    def __init__(self, pool: asyncmy.Pool) -> None:
        self._pool = pool

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        try:
            connection = await self._pool.acquire()
        except (asyncmy.errors.MySQLError, OSError) as error:
            raise ShopUnreachable(_reason(error)) from error
        try:
            transaction = _MySQLTransaction(connection)
            await transaction.execute("BEGIN")
            yield transaction
            await transaction.execute("COMMIT")
        finally:
            # Still in its transaction, it is closed rather than given to the next one, and the server rolls back.
            self._pool.release(connection)

    def joined(self, connection: Any) -> Transaction:
        return _MySQLTransaction(connection)


class _MySQLTransaction:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def execute(self, sql: str, parameters: Parameters | None = None) -> Outcome:
        async with self._connection.cursor() as cursor:
            try:
                await cursor.execute(_with_percents(sql), parameters)
            except asyncmy.errors.MySQLError as error:
                raise StatementFailed(_reason(error)) from error
            rows = await cursor.fetchall() if cursor.description else []
            return Outcome(rows=rows, count=cursor.rowcount, id=cursor.lastrowid)

    async def execute_many(self, sql: str, parameters: Sequence[Parameters]) -> None:
        async with self._connection.cursor() as cursor:
            try:
                await cursor.executemany(_with_percents(sql), parameters)
            except asyncmy.errors.MySQLError as error:
                raise StatementFailed(_reason(error)) from error

    async def now(self) -> datetime:
        [[moment]] = (await self.execute("SELECT UTC_TIMESTAMP(6)")).rows
        assert isinstance(moment, datetime)
        return moment.replace(tzinfo=UTC)


@cache
def _with_percents(sql: str) -> str:
    return re.sub(r":([a-z]\w*)", r"%(\1)s", sql)


def _reason(error: Exception) -> str:
    """A driver's error as one line: MySQL's are a number and a text."""
    return f"MySQL: {error.args[-1]}" if error.args else type(error).__name__
