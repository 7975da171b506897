"""Fenced transactions on MySQL and MariaDB: fence and COMMIT are sent in one packet.

A process may be frozen for an hour between its last check and its COMMIT. So the fence is a statement of the
transaction itself, and the COMMIT follows it without a round trip: a frozen process holds no lock that a claim needs.
The fence raises an error unless exactly one row of the fence table belongs to the term. After an error the server
executes nothing more of the packet.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiolease.errors import (
    NOT_BEGUN,
    AioleaseError,
    CommitUnknown,
    ConfigurationError,
    StoreUnavailable,
    TransactionEnded,
)
from aiolease.stores.contract import FenceBroken, Refused
from aiolease.stores.mysql.dialect import CHECK_FAILED
from aiolease.stores.mysql.drivers import Rows, error_number, execute, plain_cursor, translate
from aiolease.stores.mysql.fence import FENCE_RESULTS, FenceSQL
from aiolease.stores.mysql.unofficial import has_pending
from aiolease.stores.network.lending import ROLLBACK_LIMIT, Lender, behind
from aiolease.stores.records import RunKey, TermKey

_SAVEPOINT = "aiolease_transaction"
_NO_SUCH_SAVEPOINT = 1305
_CONFLICTS = frozenset({1020, 1205, 1213})  # record changed since the snapshot, lock wait time-out, deadlock
# A fence that is refused leaves the transaction open, and the fence's row locked, until the client rolls back. A client
# that is frozen just then would delay every takeover: so the server ends its session after a second.
_IMPATIENT = "SET @aiolease_patience = @@SESSION.wait_timeout, @@SESSION.wait_timeout = 1"
_PATIENT = "SET @@SESSION.wait_timeout = @aiolease_patience, @@SESSION.autocommit = @aiolease_autocommit"
# Statements that the block sends after a ROLLBACK of its own must not be committed one by one.
_BEGIN = "SET @aiolease_autocommit = @@SESSION.autocommit, @@SESSION.autocommit = 0; START TRANSACTION"
_COMMIT = "COMMIT AND NO CHAIN NO RELEASE"  # whatever the session's completion_type is
_ROLLBACK = "ROLLBACK AND NO CHAIN NO RELEASE; UNLOCK TABLES; SET @@SESSION.autocommit = @aiolease_autocommit"
_CLIENT_SIDE = range(2000, 3000)
_INTERRUPTED = frozenset({1053, 1180, 1317, 1927})  # a COMMIT was interrupted: shutdown, killed, cluster lost


class MySQLTransaction:
    """One transaction on a connection of the user's pool."""

    def __init__(  # noqa: PLR0917
        self, store: str, lender: Lender, connection: Any, raw: Any, cursor: type, fence: FenceSQL
    ) -> None:
        self.connection = connection
        self._fence = fence
        self._store = store
        self._lender = lender
        self._raw = raw
        self._cursor = cursor

    @classmethod
    async def begin(cls, store: str, lender: Lender, cursor: type, fence: FenceSQL) -> MySQLTransaction:
        """Borrows a connection, and begins a transaction on it.

        Raises:
            StoreUnavailable: The pool, or the database, has no connection to give.
        """
        connection = None
        try:
            connection = await lender.lend()
            raw = await lender.raw(connection)
            await execute(raw, cursor, f"{_BEGIN}; SAVEPOINT {_SAVEPOINT}")
        except BaseException as error:
            if connection is not None:
                # Closing does not wait, so this works during a cancellation, too.
                await lender.give_back(connection, broken=True)
            if isinstance(error, Exception):
                raise translate(store, error) from error
            raise
        return cls(store, lender, connection, raw, cursor, fence)

    async def commit(self, term: TermKey, final: RunKey | None = None) -> None:
        """See `Transaction.commit`: fence and COMMIT in one packet."""
        if self._lender.ended(self.connection):
            await self.roll_back()
            raise TransactionEnded(self._store)
        try:
            await _read_pending(self._raw, self._cursor)
        except BaseException:
            await self.roll_back()
            raise
        fence, parameters = self._fence.statements(term, final)
        sql = f"{_IMPATIENT}; RELEASE SAVEPOINT {_SAVEPOINT}; {fence}; {_COMMIT}; {_PATIENT}"
        results: list[Rows] = []
        broken = True
        try:
            await execute(self._raw, self._cursor, sql, parameters, results)
            broken = False
        except Exception as error:
            number = error_number(error)
            if number is None or number in _CLIENT_SIDE or number in _INTERRUPTED:
                raise CommitUnknown(self._store, str(translate(self._store, error))) from error
            if number == _NO_SUCH_SAVEPOINT and len(results) == 1:
                # The connection is closed: the block may have locked tables, or changed autocommit.
                raise TransactionEnded(self._store) from error
            await self._roll_back()
            if number == CHECK_FAILED:
                raise (FenceBroken if len(results) < 2 + FENCE_RESULTS else Refused) from error
            if number in _CONFLICTS:
                text = f"{error.args[1]} ({number}); nothing was committed, try the transaction again"
                raise StoreUnavailable(self._store, text) from error
            raise translate(self._store, error) from error
        finally:
            await self._lender.give_back(self.connection, broken=broken)

    async def roll_back(self) -> None:
        """Rolls back, with a time limit, and gives the connection back. Raises nothing."""
        done = False
        try:
            done = await self._roll_back()
        finally:
            await self._lender.give_back(self.connection, broken=not done)

    async def _roll_back(self) -> bool:
        try:
            async with asyncio.timeout(ROLLBACK_LIMIT):
                await execute(self._raw, self._cursor, _ROLLBACK)
        except (Exception, asyncio.CancelledError):  # noqa: BLE001 - the caller closes the connection; an earlier error counts
            return False
        return True


async def _read_pending(connection: Any, cursor: type) -> None:
    """Reads the results that the user has not read. Errors among them are the user's, and are raised as they are.

    Without this, aiolease's own packet would get these errors.
    """
    if has_pending(connection):
        await execute(connection, cursor, "DO 0")


async def fence_connection(  # noqa: PLR0917
    store: str, connection: Any, cursor: type, fence: FenceSQL, term: TermKey, final: RunKey | None, within: float
) -> None:
    """Fences a transaction that the user commits: a driver's connection, or SQLAlchemy's connection or session.

    Raises:
        FenceBroken: The term is over.
        Refused: This attempt is not the running one.
        TransactionEnded: The connection is in no transaction, and commits each statement by itself.
        StoreUnavailable: A conflict, or the connection is lost; the transaction has to be rolled back, and tried again.
    """
    results: list[Rows] = []
    if hasattr(connection, "flush"):  # a session: its unsent changes must come before the fence
        await connection.flush()  # the user's own SQL: what it raises comes out as it is
    try:
        connection = await behind(connection)
        if not hasattr(connection, "get_autocommit"):
            problem = "use a connection to the lease's database, or a session"
            raise ConfigurationError("connection", f"<{type(connection).__name__}>", problem)
        if connection.get_autocommit() and not connection.get_transaction_status():
            raise TransactionEnded(store, NOT_BEGUN)  # autocommit: the fence would be a transaction of its own
        await _read_pending(connection, plain_cursor(connection) or cursor)
    except AioleaseError:
        raise
    except Exception as error:
        number = error_number(error)
        if number is not None and number not in _CLIENT_SIDE:
            raise  # an error among the user's results
        raise translate(store, error) from error
    limit, (sql, values) = fence.limit_idle(within), fence.statements(term, final)
    try:
        await execute(connection, plain_cursor(connection) or cursor, limit + sql, values, results)
    except Exception as error:
        if error_number(error) == CHECK_FAILED:
            raise (FenceBroken if len(results) < FENCE_RESULTS + bool(limit) else Refused) from error
        raise translate(store, error) from error
