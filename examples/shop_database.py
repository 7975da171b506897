"""A shop's database: one way to run the same SQL in a transaction on SQLite, MySQL or MariaDB.

Parameters are named, ``:like_this``, and always bound. Moments are bound as text in UTC, which both kinds of database
compare in order, and the current moment is the database's, so that copies on several hosts agree on it.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import asyncmy
import asyncmy.errors

T = TypeVar("T")
Parameters = Mapping[str, object]


class ShopError(Exception):
    """The base of what a shop raises; its text is one line for a person."""


class ShopUnreachable(ShopError):
    """The database could not be opened; it may well be there later."""


class StatementFailed(ShopError):
    """The database refused a statement; its transaction was rolled back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a statement did.

    Attributes:
        rows: What it returned.
        count: How many rows it changed.
        id: The id of the row that it inserted.
    """

    rows: Sequence[tuple[Any, ...]]
    count: int
    id: int


class Transaction(Protocol):
    """Statements that take effect together, or not at all."""

    async def execute(self, sql: str, parameters: Parameters | None = None) -> Outcome:
        """Runs one statement.

        Raises:
            StatementFailed: The database refused it.
        """

    async def execute_many(self, sql: str, parameters: Sequence[Parameters]) -> None:
        """Runs one statement for each of many parameters.

        Raises:
            StatementFailed: The database refused one.
        """

    async def now(self) -> datetime:
        """The moment by the database's clock, in UTC."""


class Database(Protocol):
    """Where transactions begin."""

    auto_id: str
    """How a table's definition says that the database numbers its rows."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Begins one. Commits at the end of the block, rolls back if the block raises or is cancelled.

        Raises:
            ShopUnreachable: There is no connection to be had.
        """


def as_text(moment: datetime) -> str:
    """A moment as both kinds of database store and compare it: UTC, always six digits of a second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


def insert(table: str, row: Parameters) -> tuple[str, Parameters]:
    """The statement that adds a row, and the row; the names are the program's own, the values are bound."""
    values = ", ".join(f":{column}" for column in row)
    return f"INSERT INTO {table} ({', '.join(row)}) VALUES ({values})", row


@asynccontextmanager
async def open_database(url: str) -> AsyncIterator[Database]:
    """Opens the database that `url` names, ``sqlite:///file`` or ``mysql://user:password@host:port/database``.

    Connects when the first transaction begins, not here.

    Raises:
        ShopError: The URL cannot be understood.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ShopError(f"the shop's URL cannot be understood: {error}") from None
    if parts.scheme == "sqlite" and parts.path.strip("/"):
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="shop") as thread:
            database = _SQLite(unquote(parts.path[1:]), thread)
            try:
                yield database
            finally:
                await database.close()
    elif parts.scheme in {"mysql", "mysql+asyncmy"} and parts.path.strip("/"):
        query = dict(parse_qsl(parts.query))
        async with asyncmy.create_pool(
            minsize=0,
            maxsize=4,
            host=parts.hostname or "localhost",
            port=port or 3306,
            unix_socket=query.get("unix_socket"),
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            database=unquote(parts.path.strip("/")),
            ssl=ssl.create_default_context(cafile=query["ssl_ca"]) if "ssl_ca" in query else None,
            charset="utf8mb4",
            # Without it asyncmy 0.2.18 takes a connection to be in its transaction still after the COMMIT, and closes it.
            autocommit=True,
            connect_timeout=5,
            read_timeout=30,
            # Locks no gaps between rows, so that visitors and jobs do not wait for each other.
            init_command="SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
        ) as pool:
            yield _MySQL(pool)
    else:
        raise ShopError("the shop's URL must look like sqlite:///shop.db or mysql://user:password@host:3306/database")


class _SQLite:
    """SQLite, in a thread of its own: a rollback waits for the cancelled statement before it."""

    auto_id = "INTEGER PRIMARY KEY"

    def __init__(self, path: str, thread: ThreadPoolExecutor) -> None:
        self._path = path
        self._thread = thread
        self._turn = asyncio.Lock()
        self._connection: sqlite3.Connection | None = None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        async with self._turn:
            if self._connection is None:
                try:
                    self._connection = await self._call(self._connect)
                except StatementFailed as error:
                    raise ShopUnreachable(f"{error} ({self._path})") from error
            try:
                # The one lock for writing is taken at the start: taken halfway, it could not be waited for.
                await self._call(self._connection.execute, "BEGIN IMMEDIATE")
                yield self
                await self._call(self._connection.commit)
            except BaseException:
                await self._call(self._connection.rollback)
                raise

    async def execute(self, sql: str, parameters: Parameters | None = None) -> Outcome:
        return await self._call(self._execute, sql, parameters)

    async def execute_many(self, sql: str, parameters: Sequence[Parameters]) -> None:
        assert self._connection is not None
        await self._call(self._connection.executemany, sql, parameters)

    async def now(self) -> datetime:
        [[moment]] = (await self.execute("SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')")).rows
        return datetime.fromisoformat(moment).replace(tzinfo=UTC)

    async def close(self) -> None:
        if self._connection is not None:
            await self._call(self._connection.close)

    def _connect(self) -> sqlite3.Connection:
        # No isolation level: this module says when a transaction begins. Two seconds to wait for other processes.
        return sqlite3.connect(self._path, timeout=2, isolation_level=None, check_same_thread=False)

    def _execute(self, sql: str, parameters: Parameters | None) -> Outcome:
        assert self._connection is not None
        cursor = self._connection.execute(sql, parameters or {})
        return Outcome(rows=cursor.fetchall(), count=cursor.rowcount, id=cursor.lastrowid or 0)

    async def _call(self, call: Callable[..., T], *arguments: Any) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)
        except sqlite3.Error as error:
            raise StatementFailed(f"SQLite: {error}") from error


class _MySQL:
    """MySQL or MariaDB, over a pool of asyncmy."""

    auto_id = "INTEGER AUTO_INCREMENT PRIMARY KEY"

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
