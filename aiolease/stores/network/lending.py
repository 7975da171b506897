"""Lends connections for transactions: from the user's engine, or new ones if the target is a URL."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from aiolease.errors import TransactionEnded

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
            _listen(connection, heard | {"before_cursor_execute": self._refuse_if_ended})
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
        another = connection.connection.dbapi_connection is not self._lent[connection]
        if another or connection.info.get(_ENDED) or self.is_over(connection):
            raise TransactionEnded(self._store)

    def is_over(self, connection: Any) -> bool:
        """Whether the driver knows that the transaction of SQLAlchemy's blocking connection has ended."""
        return False

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


async def behind(connection: Any, has_begun: Callable[[Any], bool] = lambda raw: True) -> Any:
    """The driver's connection behind what a user gave. SQLAlchemy begins a transaction on its own connection.

    Args:
        connection: A driver's, or SQLAlchemy's connection or session.
        has_begun: Says of a driver's connection whether SQLAlchemy has begun there, where it does so with the first
            statement only.
    """
    if hasattr(connection, "flush"):
        connection = await connection.connection()
    if not hasattr(connection, "get_raw_connection"):
        return connection
    if not connection.in_transaction():
        await connection.begin()
    raw = (await connection.get_raw_connection()).driver_connection
    if not has_begun(raw):
        await connection.exec_driver_sql("SELECT 1")
    return raw


def _listen(connection: Any, events: Mapping[str, Callable[..., None]]) -> None:
    """Registers functions for events of an `AsyncConnection`; they hold until it is closed."""
    from sqlalchemy import event

    for name, function in events.items():
        event.listen(connection.sync_connection, name, function)


class DriverLender:
    """For a URL, where there is no pool: makes a connection for each transaction."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Any]],
        close: Callable[[Any], Awaitable[None]],
        drop: Callable[[Any], None],
    ) -> None:
        """Makes it.

        Args:
            connect: Makes a connection.
            close: Closes one, and tells the server.
            drop: Closes one at once, without telling the server.
        """
        self._connect = connect
        self._close = close
        self._drop = drop

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
                    await self._close(connection)
            except (Exception, asyncio.CancelledError):  # noqa: BLE001 - it is closed below
                pass
        self._drop(connection)
