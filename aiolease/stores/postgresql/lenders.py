"""Where the connections of transactions come from: pools, engines, a driver; a transaction is begun there."""

from __future__ import annotations

import asyncio
import weakref
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from aiolease._waiting import ended, run_apart
from aiolease.stores.network.lending import ROLLBACK_LIMIT, DriverLender, EngineLender, Lender
from aiolease.stores.postgresql.talks import Talk
from aiolease.stores.postgresql.unofficial import forget_adapted

_END = 1.0
"""Seconds for the release of a connection that was closed meanwhile."""


class Beginning(Lender, Protocol):
    """A lender that begins transactions, in the way of what it lends."""

    async def begin(self, connection: Any, first: str) -> None:
        """Begins a transaction on what `lend` gave, with a first statement."""

    def over(self, connection: Any) -> None:
        """The transaction was ended by a message, which the driver has not understood."""


class PoolLender:
    """A pool of asyncpg or psycopg."""

    def __init__(self, pool: Any, talk: Talk) -> None:
        self._talk = talk
        self._acquire, self._release = (
            (pool.acquire, pool.release) if hasattr(pool, "acquire") else (pool.getconn, pool.putconn)
        )
        self._releasing: set[asyncio.Future[None]] = set()

    async def lend(self) -> Any:
        """See `Lender.lend`."""
        return await self._acquire()

    async def raw(self, connection: Any) -> Any:
        """See `Lender.raw`."""
        return connection

    def ended(self, connection: Any) -> bool:
        """See `Lender.ended`."""
        return False

    async def begin(self, connection: Any, first: str) -> None:
        """See `Beginning.begin`."""
        await self._talk.begin(connection, first)

    def over(self, connection: Any) -> None:
        """See `Beginning.over`."""
        self._talk.ended(connection)

    async def give_back(self, connection: Any, *, broken: bool) -> None:
        """See `Lender.give_back`."""
        if broken:
            self._talk.drop(connection)
        # Never cancelled: the pool of asyncpg shields what it does then, and nobody would read what that fails with.
        # The caller's cancellation is swallowed: what became of the transaction is known already.
        releasing, _ = await run_apart(partial(self._release, connection), ROLLBACK_LIMIT)
        if releasing.done() and not _failed(releasing):
            return
        self._talk.drop(connection)  # which ends the release, too
        self._releasing.add(releasing)
        releasing.add_done_callback(self._releasing.discard)
        releasing.add_done_callback(_failed)
        with suppress(asyncio.CancelledError):
            await ended(releasing, _END)


def _failed(done: asyncio.Future[None]) -> bool:
    """Whether it has failed. Reading the exception keeps asyncio from logging that nobody read it."""
    return not done.cancelled() and done.exception() is not None


class EnginesLender(EngineLender):
    """A SQLAlchemy `AsyncEngine` on either driver. Its adapter of asyncpg begins transactions itself."""

    def __init__(self, engine: Any, store: str, talk: Talk) -> None:
        super().__init__(engine, store)
        self._talk = talk
        self._begun: weakref.WeakSet[Any] = weakref.WeakSet()

    async def begin(self, connection: Any, first: str) -> None:
        """See `Beginning.begin`."""
        if _adapted(connection).autocommit:
            await self._talk.send(await self.raw(connection), f"BEGIN; {first}")
        else:
            await connection.exec_driver_sql(first)
        self._begun.add(connection.sync_connection)

    def is_over(self, connection: Any) -> bool:
        """See `EngineLender.is_over`. Behind a ROLLBACK the server would commit each statement by itself."""
        raw = connection.connection.dbapi_connection.driver_connection
        return connection in self._begun and not self._talk.in_transaction(raw)

    async def give_back(self, connection: Any, *, broken: bool) -> None:
        """See `Lender.give_back`."""
        if broken:
            with suppress(Exception):  # SQLAlchemy would say good-bye to a server that may not answer
                self._talk.drop(_adapted(connection).driver_connection)
        await super().give_back(connection, broken=broken)

    def over(self, connection: Any) -> None:
        """See `Beginning.over`."""
        with suppress(Exception):  # the connection may be gone
            adapted = _adapted(connection)
            self._talk.ended(adapted.driver_connection)
            forget_adapted(adapted)


def _adapted(connection: Any) -> Any:
    """The adapter of the driver's connection that SQLAlchemy works with."""
    return connection.sync_connection.connection.dbapi_connection


class OwnLender(DriverLender):
    """No pool, only a URL: a connection for each transaction."""

    def __init__(self, opening: Any, talk: Talk) -> None:
        super().__init__(opening, talk.close, talk.drop)
        self._talk = talk

    async def begin(self, connection: Any, first: str) -> None:
        """See `Beginning.begin`."""
        await self._talk.begin(connection, first)

    def over(self, connection: Any) -> None:
        """See `Beginning.over`."""
        self._talk.ended(connection)
