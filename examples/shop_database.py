"""A shop's database: one way to run the same SQL in a transaction on SQLite, MySQL, MariaDB or PostgreSQL.

Parameters are named, ``:like_this``, and always bound. Moments are bound as text in UTC, which every kind of database
compares in order, and the current moment is the database's, so that copies on several hosts agree on it.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    import aiosqlite

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
    moment: str
    """How a table's definition says that a column holds moments."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Begins one. Commits at the end of the block, rolls back if the block raises or is cancelled.

        Raises:
            ShopUnreachable: There is no connection to be had.
        """

    def joined(self, connection: Any) -> Transaction:
        """The transaction that somebody else has begun on `connection`, and will commit.

        Args:
            connection: One of aiosqlite for SQLite, of asyncmy for MySQL and MariaDB, of asyncpg for PostgreSQL.
        """


def as_text(moment: datetime) -> str:
    """A moment as every kind of database takes and compares it: UTC, always six digits of a second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


def insert(table: str, row: Parameters) -> tuple[str, Parameters]:
    """The statement that adds a row, and the row; the names are the program's own, the values are bound."""
    values = ", ".join(f":{column}" for column in row)
    return f"INSERT INTO {table} ({', '.join(row)}) VALUES ({values})", row


@asynccontextmanager
async def open_database(url: str) -> AsyncIterator[Database]:
    """Opens the database that `url` names.

    Connects when the first transaction begins, not here.

    Args:
        url: ``sqlite:///file``, ``mysql://user:password@host:port/database`` or ``postgresql://…``.

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
            sqlite = _SQLite(unquote(parts.path[1:]), thread)
            try:
                yield sqlite
            finally:
                await sqlite.close()
    elif parts.scheme in {"mysql", "mysql+asyncmy"} and parts.path.strip("/"):
        from shop_mysql import open_mysql  # the driver is 12 MB, which SQLite does without

        async with open_mysql(parts, port) as database:
            yield database
    elif parts.scheme in {"postgresql", "postgres", "postgresql+asyncpg"} and parts.path.strip("/"):
        async with _open_postgresql(parts.geturl()) as database:
            yield database
    else:
        raise ShopError(
            "the shop's URL must look like sqlite:///shop.db, mysql://user:password@host:3306/database "
            "or postgresql://user:password@host:5432/database"
        )


def _open_postgresql(url: str) -> AbstractAsyncContextManager[Database]:
    try:
        from shop_postgresql import open_postgresql
    except ModuleNotFoundError:
        raise ShopError("the shop needs asyncpg for PostgreSQL: pip install 'aiolease[asyncpg]'") from None
    return open_postgresql(url.replace("+asyncpg", "", 1))


class _SQLite:
    """SQLite, in a thread of its own: a rollback waits for the cancelled statement before it."""

    auto_id = "INTEGER PRIMARY KEY"
    moment = "DATETIME(6)"

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

    def joined(self, connection: Any) -> Transaction:
        return _JoinedSQLite(connection)

    async def execute(self, sql: str, parameters: Parameters | None = None) -> Outcome:
        return await self._call(self._execute, sql, parameters)

    async def execute_many(self, sql: str, parameters: Sequence[Parameters]) -> None:
        assert self._connection is not None
        await self._call(self._connection.executemany, sql, parameters)

    async def now(self) -> datetime:
        return await _sqlite_now(self)

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


class _JoinedSQLite:
    """A transaction on a connection of aiosqlite, which has a thread of its own as well."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def execute(self, sql: str, parameters: Parameters | None = None) -> Outcome:
        try:
            async with self._connection.execute(sql, parameters or {}) as cursor:
                rows = [tuple(row) for row in await cursor.fetchall()]
                return Outcome(rows=rows, count=cursor.rowcount, id=cursor.lastrowid or 0)
        except sqlite3.Error as error:
            raise StatementFailed(f"SQLite: {error}") from error

    async def execute_many(self, sql: str, parameters: Sequence[Parameters]) -> None:
        try:
            await self._connection.executemany(sql, parameters)
        except sqlite3.Error as error:
            raise StatementFailed(f"SQLite: {error}") from error

    async def now(self) -> datetime:
        return await _sqlite_now(self)


async def _sqlite_now(transaction: Transaction) -> datetime:
    [[moment]] = (await transaction.execute("SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')")).rows
    return datetime.fromisoformat(moment).replace(tzinfo=UTC)
