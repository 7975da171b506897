"""Fenced transactions on SQLite, over a connection of aiosqlite.

SQLite has one writer at a time. So a fenced transaction keeps everybody else from writing from its start on, renewals
included. It must end before the term's deadline. If it does not, the term ends, and its block is cancelled.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiolease.errors import (
    NOT_BEGUN,
    AioleaseError,
    CommitUnknown,
    ConfigurationError,
    StoreUnavailable,
    TransactionEnded,
)
from aiolease.events import describe
from aiolease.stores.contract import FenceBroken, Refused
from aiolease.stores.network.lending import behind
from aiolease.stores.records import RunKey, TermKey
from aiolease.stores.sql.lease import FenceStatements, of_run, of_term
from aiolease.stores.sqlite.dialect import SQLiteDialect

if TYPE_CHECKING:
    import aiosqlite

_SAVEPOINT = "aiolease_transaction"

_TRY = 0.1
"""Seconds that one try waits for the write of another process to end."""

_CHUNK = 64
"""How many rows aiosqlite fetches at once: its own default."""


class _File:
    """The file, opened in aiosqlite's thread. Cancelled before that has answered, aiosqlite would never close it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened: sqlite3.Connection | None = None
        self._wanted = True

    def open(self) -> sqlite3.Connection:
        # Either thread may close it.
        self._opened = sqlite3.connect(self._path, timeout=_TRY, isolation_level="IMMEDIATE", check_same_thread=False)
        if not self._wanted:
            self._opened.close()
        return self._opened

    def unwanted(self) -> None:
        """Closes it now, or as soon as it is open."""
        self._wanted = False
        if self._opened is not None:
            self._opened.close()


class SQLiteTransaction:
    """One fenced transaction, on a connection of its own."""

    def __init__(self, connection: aiosqlite.Connection, fence: Fence) -> None:
        self.connection = connection
        self._store = fence.store
        self._fence = fence

    @classmethod
    async def begin(cls, path: Path, fence: Fence) -> SQLiteTransaction:
        """Opens a connection and begins a transaction, as the only writer. Waits for others until the caller cancels.

        Raises:
            ConfigurationError: aiosqlite is not installed.
            StoreUnavailable: The file cannot be opened or written.
        """
        try:
            import aiosqlite
        except ImportError:
            problem = "transactions on SQLite need aiosqlite: install aiolease[aiosqlite]"
            raise ConfigurationError("target", fence.store, problem) from None
        # If the block commits or rolls back, its next statement begins a new transaction, which is undone at the end.
        file = _File(path)
        connection = aiosqlite.Connection(file.open, iter_chunk_size=_CHUNK)
        try:
            try:
                await connection
            except BaseException:
                file.unwanted()
                raise
            while True:
                try:
                    await connection.execute("BEGIN IMMEDIATE")
                    break
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                        raise
                await asyncio.sleep(0.01)
            await connection.execute(f"SAVEPOINT {_SAVEPOINT}")
        except BaseException as error:
            await connection.close()
            if isinstance(error, sqlite3.Error):
                raise StoreUnavailable(fence.store, str(error)) from error
            raise
        return cls(connection, fence)

    async def commit(self, term: TermKey, final: RunKey | None = None) -> None:
        """See `Transaction.commit`. The error of a deferred constraint is raised as it is."""
        try:
            try:
                await self.connection.execute(f"RELEASE {_SAVEPOINT}")
            except (sqlite3.OperationalError, sqlite3.ProgrammingError) as error:
                if "statements in progress" in str(error):  # still open: an INSERT … RETURNING, half read
                    raise StoreUnavailable(
                        self._store, f"read the results of the block to their end: {error}"
                    ) from error
                raise TransactionEnded(self._store) from error
            await self._fence.execute(self.connection, term, final)
            try:
                await self.connection.commit()
            except sqlite3.IntegrityError:  # a deferred constraint of the user's tables: nothing was committed
                raise
            except sqlite3.Error as error:
                raise CommitUnknown(self._store, str(error)) from error
        except ValueError as error:  # from aiosqlite: the block closed the connection, and so undid the transaction
            raise TransactionEnded(self._store) from error
        finally:
            await self.roll_back()

    async def roll_back(self) -> None:
        """See `Transaction.roll_back`."""
        with suppress(sqlite3.Error, ValueError):  # the latter from aiosqlite: the connection is closed
            # Closing alone is not enough: a result that is half read would keep the file locked.
            await self.connection.rollback()
        await self.connection.close()


class Fence:
    """The fence of a transaction, over a connection of aiosqlite. It can also record that a run has succeeded."""

    def __init__(self, store: str, statements: FenceStatements, dialect: SQLiteDialect, now: Callable[[], int]) -> None:
        self.store = store
        self._statements = statements
        self._dialect = dialect
        self._now = now

    async def execute(self, connection: aiosqlite.Connection, term: TermKey, final: RunKey | None) -> None:
        """Counts the fence up, and records the success of the run `final`.

        Raises:
            FenceBroken: The term is over.
            Refused: This attempt is not the running one.
            StoreUnavailable: The file is locked, or cannot be written.
        """
        try:
            if await _changed(connection, self._statements.count.text, of_term(term)) != 1:
                raise FenceBroken
            if final is not None:
                values = self._dialect.named(of_run(term, final), self._now())
                if await _changed(connection, self._statements.final.text, values) != 1:
                    raise Refused
        except sqlite3.Error as error:
            raise StoreUnavailable(self.store, str(error)) from error

    async def put_on(self, connection: Any, path: Path, term: TermKey, final: RunKey | None) -> None:
        """Fences a transaction that the user commits: on aiosqlite's connection, or SQLAlchemy's, or its session.

        Raises:
            FenceBroken: The term is over.
            Refused: This attempt is not the running one.
            TransactionEnded: The connection is in no transaction, and commits each statement by itself.
            ConfigurationError: It is no connection of aiosqlite, or one to another file.
            StoreUnavailable: The file is locked, or cannot be written; or the connection is closed.
        """
        if hasattr(connection, "flush"):  # a session: its unsent changes must come before the fence
            await connection.flush()  # the user's own SQL: what it raises comes out as it is
        try:
            raw = await _raw(connection)
            await self.execute(raw, term, final)
            if not await _is_to(raw, path):
                raise ConfigurationError("connection", f"<{type(connection).__name__}>", f"it is not to {path}")
            if not raw.in_transaction:  # autocommit: the fence was a transaction of its own
                raise TransactionEnded(self.store, NOT_BEGUN)
        except (AioleaseError, FenceBroken, Refused):
            raise
        except Exception as error:
            raise StoreUnavailable(self.store, describe(error)) from error


async def _raw(connection: Any) -> Any:
    """The connection of aiosqlite behind what the user gave. SQLAlchemy begins a transaction on its own connection."""
    raw = await behind(connection)
    if type(raw).__module__.partition(".")[0] != "aiosqlite":
        problem = "use a connection to the lease's database, or a session"
        raise ConfigurationError("connection", f"<{type(raw).__name__}>", problem)
    return raw


async def _is_to(connection: aiosqlite.Connection, path: Path) -> bool:
    """Whether a connection's main database is the file of the store: a copy of the file would have an old fence."""
    async with connection.execute("PRAGMA database_list") as cursor:
        cursor.row_factory = None  # plain rows, and below plain texts, whatever the user's connection is set to
        [main] = [row[2] for row in await cursor.fetchall() if os.fsdecode(row[1]) == "main"]
    return _is_same(Path(os.fsdecode(main or "")), path)


def _is_same(file: Path, path: Path) -> bool:
    return file.is_file() and file.samefile(path)


async def _changed(connection: aiosqlite.Connection, statement: str, values: dict[str, Any]) -> int:
    """How many rows a statement changes. It is known once all of the statement's own rows are read."""
    cursor = await connection.execute(statement, values)
    await cursor.fetchall()  # the row that `PRAGMA count_changes` asks for
    return cursor.rowcount
