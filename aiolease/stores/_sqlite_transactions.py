"""Fenced transactions on SQLite, over a connection of aiosqlite.

SQLite has one writer: from its first moment such a transaction excludes everyone else's writes, renewals included. So
it must end within the time that is left to the term; the term ends when it does not, and its block is cancelled.
"""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from aiolease._lease import FenceBroken, Term
from aiolease.errors import CommitUnknown, ConfigurationError, StoreUnavailable, TransactionEnded

if TYPE_CHECKING:
    import aiosqlite

_SAVEPOINT = "aiolease_transaction"

_TRY = 0.1
"""Seconds that one try waits for another's write to end."""


class SQLiteTransaction:
    """One transaction, on a connection of its own."""

    def __init__(self, store: str, connection: aiosqlite.Connection, fence_sql: str) -> None:
        self.connection = connection
        self._store = store
        self._fence_sql = fence_sql

    @classmethod
    async def begin(cls, store: str, path: Path, fence_sql: str) -> SQLiteTransaction:
        """Opens a connection and begins, as the only writer; waits for others as long as it is let.

        Raises:
            ConfigurationError: aiosqlite is not installed.
            StoreUnavailable: The file cannot be opened or written.
        """
        try:
            import aiosqlite
        except ImportError:
            problem = "transactions on SQLite need aiosqlite: install aiolease[aiosqlite]"
            raise ConfigurationError("target", store, problem) from None
        connection = aiosqlite.connect(path, timeout=_TRY, isolation_level=None)
        try:
            await connection
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
                raise StoreUnavailable(store, str(error)) from error
            raise
        return cls(store, connection, fence_sql)

    async def commit(self, term: Term) -> None:
        """See `Transaction.commit`."""
        try:
            try:
                await self.connection.execute(f"RELEASE {_SAVEPOINT}")
            except (sqlite3.OperationalError, sqlite3.ProgrammingError) as error:
                raise TransactionEnded(self._store) from error
            await fence_connection(self._store, self.connection, term, self._fence_sql)
            try:
                await self.connection.commit()
            except sqlite3.Error as error:
                raise CommitUnknown(self._store, str(error)) from error
        except ValueError as error:  # of aiosqlite: the block closed the connection, and so undid the transaction
            raise TransactionEnded(self._store) from error
        finally:
            await self.connection.close()  # and with it whatever was not committed

    async def roll_back(self) -> None:
        """See `Transaction.roll_back`."""
        await self.connection.close()


async def fence_connection(store: str, connection: aiosqlite.Connection, term: Term, fence_sql: str) -> None:
    """Fences a transaction on a connection of aiosqlite.

    Raises:
        FenceBroken: The term is over.
        StoreUnavailable: The file is locked, or cannot be written.
    """
    try:
        cursor = await connection.execute(fence_sql, {"name": term.name, "holder": term.holder, "token": term.token})
    except sqlite3.Error as error:
        raise StoreUnavailable(store, str(error)) from error
    if cursor.rowcount != 1:
        raise FenceBroken
