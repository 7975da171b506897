"""Fenced transactions on MySQL and MariaDB: fence and COMMIT travel in one packet.

Between the last check of a process and its COMMIT it may be frozen for an hour. So the fence is a statement of the
transaction itself, and the COMMIT follows it without a round trip: a frozen process holds no lock that a claim needs.
The fence raises an error unless exactly one row of the fence table belongs to the term, and a server does not execute
what stands behind an error in a packet.
"""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC
from typing import Any, Protocol

from aiolease.errors import AioleaseError, CommitUnknown, ConfigurationError, StoreUnavailable, TransactionEnded
from aiolease.stores.contract import FenceBroken, Refused
from aiolease.stores.mysql.drivers import Rows, error_number, execute, listen, plain_cursor, translate
from aiolease.stores.records import RunKey, TermKey

_SAVEPOINT = "aiolease_transaction"
_NO_SUCH_SAVEPOINT = 1305
CHECK_FAILED = 1242
"""What a check raises: a subquery that returns more than one row."""

_CONFLICTS = frozenset({1020, 1205, 1213})  # record changed since the snapshot, lock wait time-out, deadlock
# A fence that is refused leaves the transaction open, and the fence's row locked, until the client has rolled back. One
# that is frozen just then holds up every takeover; so the server ends its session.
# COMMIT is to do no more than that, whatever the session's completion_type.
_IMPATIENT = (
    "SET @aiolease_patience = @@SESSION.wait_timeout, @aiolease_completion = @@SESSION.completion_type, "
    "@@SESSION.wait_timeout = 1, @@SESSION.completion_type = 'NO_CHAIN'"
)
_PATIENT = (
    "SET @@SESSION.wait_timeout = @aiolease_patience, @@SESSION.completion_type = @aiolease_completion, "
    "@@SESSION.autocommit = @aiolease_autocommit"
)
# What the block sends behind a ROLLBACK of its own must not be committed statement by statement.
_BEGIN = "SET @aiolease_autocommit = @@SESSION.autocommit, @@SESSION.autocommit = 0; START TRANSACTION"
_ROLLBACK = "ROLLBACK; UNLOCK TABLES; SET @@SESSION.autocommit = @aiolease_autocommit"
_FENCE_RESULTS = 2  # of its UPDATE and its check
_CLIENT_SIDE = range(2000, 3000)
_INTERRUPTED = frozenset({1053, 1180, 1317, 1927})  # a COMMIT that was interrupted: shutdown, killed, lost its cluster

_ENDED = "aiolease_ended"
"""Where a connection of SQLAlchemy's notes that its user has ended the transaction."""

_ROLLBACK_LIMIT = 2.0
"""Seconds; a connection that has not rolled back by then is closed, which rolls back as well."""


class Lender(Protocol):
    """Where the connections of transactions come from: the user's pool."""

    async def lend(self) -> Any:
        """A connection as the user knows it; may wait for long."""

    async def raw(self, connection: Any) -> Any:
        """The driver's connection behind it."""

    def ended(self, connection: Any) -> bool:
        """Whether the user has ended the transaction himself, as far as is seen without asking the server."""

    async def give_back(self, connection: Any, *, broken: bool) -> None:
        """Takes it back; closes it if it is `broken`."""


def check(count: int) -> str:
    """A statement that fails unless the one before it changed so many rows.

    No SELECT: a session with ``sql_select_limit = 0`` would not evaluate it.
    """
    return f"SET @aiolease_check = IF(ROW_COUNT() = {count}, 1, (SELECT 1 UNION SELECT 2))"


class FenceSQL:
    """The statements of the fence, for one prefix of the tables."""

    def __init__(self, prefix: str) -> None:
        self.without_snapshot = False
        """Whether the server can be asked to update rows that have changed since a transaction's snapshot."""
        self.limits_idle = False
        """Whether the server can end a session that is idle in a transaction which has written."""
        self.database = ""
        """The database of the fence: the user's session may have gone to another with USE."""
        self._prefix = prefix

    def statements(self, term: TermKey, final: RunKey | None = None) -> tuple[str, tuple[object, ...]]:
        """The fence, which fails unless it matched one row; being a write, a cluster certifies it.

        With `final`, that run is recorded as succeeded behind it, which fails unless it is the running one.
        """
        sql = self._updating("fence", "fence = fence + 1 WHERE name = %s AND holder = %s AND token = %s")
        values: tuple[object, ...] = (term.name, term.holder, term.token)
        if final is not None:
            succeeded = "status = 'succeeded', finished_at = UTC_TIMESTAMP(6), error = NULL"
            run = "lease = %s AND job = %s AND tick = %s AND attempt = %s AND token = %s AND status = 'running'"
            sql += f"; {self._updating('run', f'{succeeded} WHERE {run}')}"
            tick = final.tick.astimezone(UTC).replace(tzinfo=None)
            values += (term.name, final.job, tick, final.attempt, final.token)
        return sql, values

    def limit_idle(self, seconds: float) -> str:
        """Has the server end this session if it is idle in a transaction that has written; nothing if it cannot."""
        variable = "@@SESSION.idle_write_transaction_timeout"
        limit = f"SET {variable} = IF({variable} = 0, {math.ceil(seconds)}, {variable}); "
        return limit if self.limits_idle else ""

    def _updating(self, table: str, change: str) -> str:
        database = self.database.replace("`", "``").replace("%", "%%")
        update = f"UPDATE `{database}`.{self._prefix}{table} SET {change}"
        if self.without_snapshot:
            # The row was written by others since the transaction's snapshot; that is no conflict.
            update = f"SET STATEMENT innodb_snapshot_isolation = OFF FOR {update}"
        return f"{update}; {check(1)}"


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
        """Lends a connection and begins.

        Raises:
            StoreUnavailable: The pool, or the database, does not give one.
        """
        connection = None
        try:
            connection = await lender.lend()
            raw = await lender.raw(connection)
            await execute(raw, cursor, f"{_BEGIN}; SAVEPOINT {_SAVEPOINT}")
        except BaseException as error:
            if connection is not None:
                # Closing does not wait, so that this holds when it is being cancelled.
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
        sql = f"{_IMPATIENT}; RELEASE SAVEPOINT {_SAVEPOINT}; {fence}; COMMIT; {_PATIENT}"
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
                # Closed: the block may have locked tables, or changed autocommit.
                raise TransactionEnded(self._store) from error
            await self._roll_back()
            if number == CHECK_FAILED:
                raise (FenceBroken if len(results) < 2 + _FENCE_RESULTS else Refused) from error
            if number in _CONFLICTS:
                text = f"{error.args[1]} ({number}); nothing was committed, try the transaction again"
                raise StoreUnavailable(self._store, text) from error
            raise translate(self._store, error) from error
        finally:
            await self._lender.give_back(self.connection, broken=broken)

    async def roll_back(self) -> None:
        """Undoes it, and gives the connection back. Bounded, and raises nothing."""
        done = False
        try:
            done = await self._roll_back()
        finally:
            await self._lender.give_back(self.connection, broken=not done)

    async def _roll_back(self) -> bool:
        try:
            async with asyncio.timeout(_ROLLBACK_LIMIT):
                await execute(self._raw, self._cursor, _ROLLBACK)
        except (Exception, asyncio.CancelledError):  # noqa: BLE001 - closed instead; what the server said still counts
            return False
        return True


async def _read_pending(connection: Any, cursor: type) -> None:
    """Reads what the user has not read of his own results; what the server says there is his, and raised as it is.

    A cursor that does not buffer, or the second statement of a packet: our packet would meet their errors in its place.
    """
    result = getattr(connection, "_result", None)
    if getattr(result, "unbuffered_active", False) or getattr(result, "has_next", False):
        await execute(connection, cursor, "DO 0")


async def fence_connection(  # noqa: PLR0917
    store: str, connection: Any, cursor: type, fence: FenceSQL, term: TermKey, final: RunKey | None, within: float
) -> None:
    """Fences a transaction that the user commits: a driver's connection, or SQLAlchemy's connection or session.

    Raises:
        FenceBroken: The term is over.
        Refused: The run is not the running one.
        TransactionEnded: The connection is in no transaction, and commits each statement by itself.
        StoreUnavailable: A conflict, or the connection is lost; the transaction has to be rolled back, and tried again.
    """
    results: list[Rows] = []
    if hasattr(connection, "flush"):  # a session: what it still holds back must not come after the fence
        await connection.flush()  # the user's own SQL: what it raises comes out as it is
    try:
        if hasattr(connection, "flush"):
            connection = await connection.connection()
        if hasattr(connection, "get_raw_connection"):
            if not connection.in_transaction():
                await connection.begin()
            connection = (await connection.get_raw_connection()).driver_connection
        if not hasattr(connection, "get_autocommit"):
            problem = "use a connection to the lease's database, or a session"
            raise ConfigurationError("connection", f"<{type(connection).__name__}>", problem)
        if connection.get_autocommit() and not connection.get_transaction_status():
            raise TransactionEnded(store)  # the fence would be committed by itself, and guard nothing
        await _read_pending(connection, plain_cursor(connection) or cursor)
    except AioleaseError:
        raise
    except Exception as error:
        number = error_number(error)
        if number is not None and number not in _CLIENT_SIDE:
            raise  # of his own results
        raise translate(store, error) from error
    limit, (sql, values) = fence.limit_idle(within), fence.statements(term, final)
    try:
        await execute(connection, plain_cursor(connection) or cursor, limit + sql, values, results)
    except Exception as error:
        if error_number(error) == CHECK_FAILED:
            raise (FenceBroken if len(results) < _FENCE_RESULTS + bool(limit) else Refused) from error
        raise translate(store, error) from error


class PoolLender:
    """A pool of asyncmy or aiomysql."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._waking: set[asyncio.Task[None]] = set()

    async def lend(self) -> Any:
        """See `Lender.lend`."""
        return await self._pool.acquire()

    async def raw(self, connection: Any) -> Any:
        """See `Lender.raw`."""
        return connection

    def ended(self, connection: Any) -> bool:
        """See `Lender.ended`."""
        return False

    async def give_back(self, connection: Any, *, broken: bool) -> None:
        """See `Lender.give_back`."""
        if broken:
            connection.close()
        # Not awaited: who is connecting holds up what it returns, and a committed transaction would seem late.
        self._pool.release(connection)
        if broken:
            # aiomysql tells nobody that there is a place for a new connection.
            waking = asyncio.create_task(self._pool._wakeup())
            self._waking.add(waking)
            waking.add_done_callback(self._waking.discard)


class EngineLender:
    """A SQLAlchemy `AsyncEngine`: its transactions are `AsyncConnection`s.

    The connection is in a transaction for SQLAlchemy, too, so that a session on it joins that, and does not commit by
    itself. What would commit it all the same is refused (`AsyncConnection.commit`, a session that controls it fully);
    what is sent after that, or after a rollback, is refused as well: the server might commit each statement by itself.
    """

    def __init__(self, engine: Any, store: str) -> None:
        self._engine = engine
        self._store = store
        self._lent: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # the driver's, by SQLAlchemy's

    async def lend(self) -> Any:
        """See `Lender.lend`."""
        connection = await self._engine.connect()
        try:
            await connection.begin()
            connection.sync_connection.info.pop(_ENDED, None)
            self._lent[connection.sync_connection] = connection.sync_connection.connection.dbapi_connection
            heard = {"commit": self._refuse_commit, "rollback": self._rolled_back}
            listen(connection, heard | {"before_cursor_execute": self._refuse_if_ended})
        except BaseException:
            await self.give_back(connection, broken=True)
            raise
        return connection

    def _refuse_commit(self, connection: Any) -> None:
        connection.info[_ENDED] = True
        raise TransactionEnded(self._store)

    @staticmethod
    def _rolled_back(connection: Any) -> None:
        connection.info[_ENDED] = True

    def _refuse_if_ended(self, connection: Any, *_: Any) -> None:
        # After a lost connection SQLAlchemy makes another, which knows nothing of what was begun on the first.
        if connection.info.get(_ENDED) or connection.connection.dbapi_connection is not self._lent[connection]:
            raise TransactionEnded(self._store)

    def ended(self, connection: Any) -> bool:
        """See `Lender.ended`."""
        return connection.sync_connection.info.get(_ENDED, False)  # type: ignore[no-any-return]

    async def raw(self, connection: Any) -> Any:
        """See `Lender.raw`."""
        return (await connection.get_raw_connection()).driver_connection

    async def give_back(self, connection: Any, *, broken: bool) -> None:
        """See `Lender.give_back`."""
        # It rolls back, and the session may be gone: what became of the transaction is known already.
        if not broken:
            try:
                async with asyncio.timeout(_ROLLBACK_LIMIT):
                    await connection.close()
            except (Exception, asyncio.CancelledError):  # noqa: BLE001 - given up: it is thrown away
                pass
            else:
                return
        with suppress(Exception):
            await connection.invalidate()
        with suppress(Exception):
            await connection.close()


class DriverLender:
    """No pool, only a URL: a connection for each transaction."""

    def __init__(self, connect: Callable[[], Awaitable[Any]]) -> None:
        self._connect = connect

    async def lend(self) -> Any:
        """See `Lender.lend`."""
        return await self._connect()

    async def raw(self, connection: Any) -> Any:
        """See `Lender.raw`."""
        return connection

    def ended(self, connection: Any) -> bool:
        """See `Lender.ended`."""
        return False

    async def give_back(self, connection: Any, *, broken: bool) -> None:
        """See `Lender.give_back`."""
        if not broken:
            try:
                async with asyncio.timeout(_ROLLBACK_LIMIT):
                    await connection.ensure_closed()
            except (Exception, asyncio.CancelledError):  # noqa: BLE001 - it is being thrown away
                pass
        connection.close()
