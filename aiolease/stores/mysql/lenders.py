"""Lends connections for transactions: from the user's pool or engine, or new ones if the target is a URL."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

from aiolease.errors import TransactionEnded
from aiolease.stores.mysql.drivers import listen
from aiolease.stores.mysql.unofficial import wake_pool

_ENDED = "aiolease_ended"
"""The key in the ``info`` of a SQLAlchemy connection: its user has ended the transaction."""

ROLLBACK_LIMIT = 2.0
"""Seconds for a rollback. A connection that takes longer is closed; the server then rolls back."""


class Lender(Protocol):
    """Lends connections for transactions."""

    async def lend(self) -> Any:
        """Gets a connection of the kind that the user works with. Waits for one until the caller cancels."""

    async def raw(self, connection: Any) -> Any:
        """The driver's connection behind it."""

    def ended(self, connection: Any) -> bool:
        """Whether the user has ended the transaction, as far as can be seen without asking the server."""

    async def give_back(self, connection: Any, *, broken: bool) -> None:
        """Takes it back; closes it if it is `broken`."""


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
        # Not awaited: the result waits for any connecting in the pool, and the commit would seem to take that long.
        self._pool.release(connection)
        if broken:
            waking = asyncio.create_task(wake_pool(self._pool))
            self._waking.add(waking)
            waking.add_done_callback(self._waking.discard)


class EngineLender:
    """A SQLAlchemy `AsyncEngine`: its transactions are `AsyncConnection`s.

    SQLAlchemy knows of the transaction, too. So a session on this connection joins it, and does not commit by itself.

    1. What would commit the transaction is refused: `AsyncConnection.commit`, a session that controls it fully.
    2. After that, or after a rollback, each further statement is refused: the server might commit it by itself.
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
        # SQLAlchemy replaces a lost connection with a new one, and on that no transaction was begun.
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
        # Closing rolls back, and may fail if the session is gone. The outcome of the transaction is known already.
        if not broken:
            try:
                async with asyncio.timeout(ROLLBACK_LIMIT):
                    await connection.close()
            except (Exception, asyncio.CancelledError):  # noqa: BLE001 - it is invalidated below
                pass
            else:
                return
        with suppress(Exception):
            await connection.invalidate()
        with suppress(Exception):
            await connection.close()


class DriverLender:
    """For a URL, where there is no pool: makes a connection for each transaction."""

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
                async with asyncio.timeout(ROLLBACK_LIMIT):
                    await connection.ensure_closed()
            except (Exception, asyncio.CancelledError):  # noqa: BLE001 - it is closed below
                pass
        connection.close()
