"""psycopg: connections of our own, and what is sent over a user's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import AsyncConnection, pq, waiting
from psycopg.rows import tuple_row

from aiolease.stores.postgresql.links import Link, Row

__all__ = ["OURS", "AsyncConnection", "OwnConnection", "PsycopgLink", "connect"]


class OwnConnection(AsyncConnection[Any]):
    """One of our own: who cancels what it waits for throws it away, so it does not ask the server to cancel first.

    psycopg would wait for the server then, which may be the one that does not answer.
    """

    async def wait(self, gen: Any, *_: Any, **__: Any) -> Any:
        """Waits for what a generator of psycopg waits for."""
        return await waiting.wait_async(gen, self.pgconn.socket, interval=_INTERVAL)


_INTERVAL = 5.0
"""Seconds after which psycopg looks up from a wait, though nothing happened."""

OURS: dict[str, Any] = {
    "autocommit": True,
    "row_factory": tuple_row,
    "prepare_threshold": None,
}
"""What a connection of our own is made with, whatever the pool's."""


class PsycopgLink(Link):
    """See `Link`.

    psycopg reads notifications when it reads an answer. So while nothing is asked, the event loop watches the socket.
    """

    def __init__(self, raw: AsyncConnection[Any]) -> None:
        super().__init__(raw)
        self._rings: dict[str, Callable[[str], None]] = {}
        self._watched = -1
        raw.add_notify_handler(self._notified)

    @property
    def backend(self) -> int:
        """See `Link.backend`."""
        return int(self.raw.info.backend_pid)

    @property
    def version(self) -> int:
        """See `Link.version`."""
        return int(self.raw.info.server_version // 10_000)

    def reported(self, name: str) -> str:
        """See `Link.reported`."""
        return self.raw.info.parameter_status(name) or ""

    def in_transaction(self) -> bool:
        """See `Link.in_transaction`."""
        return in_transaction(self.raw)

    async def query(self, sql: str, parameters: Sequence[object]) -> list[Row]:
        """See `Link.query`."""
        self._look_away()
        self.raw.prepare_threshold = None if self.pooled else 2
        cursor = psycopg.AsyncRawCursor(self.raw, row_factory=tuple_row)
        await cursor.execute(sql.encode(), parameters)
        rows = await cursor.fetchall() if cursor.description else []
        self._watch()
        return rows

    async def tell(self, message: str) -> None:
        """See `Link.tell`."""
        self._look_away()
        await psycopg.AsyncCursor(self.raw).execute(message.encode())
        self._watch()

    async def hear(self, channel: str, ring: Callable[[str], None]) -> None:
        """See `Link.hear`."""
        self._rings[channel] = ring
        await self.tell(f'LISTEN "{channel}"')

    def _notified(self, notify: psycopg.Notify) -> None:
        if (ring := self._rings.get(notify.channel)) is not None:
            ring(notify.channel)

    def _watch(self) -> None:
        if self._rings and self._watched < 0:
            self._watched = self.raw.fileno()
            asyncio.get_running_loop().add_reader(self._watched, self._readable)

    def _look_away(self) -> None:
        if self._watched >= 0:
            asyncio.get_running_loop().remove_reader(self._watched)
            self._watched = -1

    def _readable(self) -> None:
        """Something came though nothing was asked: a notification, or the end."""
        try:
            self.raw.pgconn.consume_input()
            while self.raw.pgconn.notifies() is not None:  # psycopg's own handler is not called here
                pass
        except psycopg.Error:
            self._look_away()  # the next exchange finds that it has ended
            self.heard.clear()
        for channel, ring in self._rings.items():
            ring(channel)

    def drop(self) -> None:
        """See `Link.drop`."""
        self._look_away()
        self.heard.clear()
        rings, self._rings = self._rings, {}
        for channel, ring in rings.items():
            ring(channel)
        drop(self.raw)

    async def close(self) -> None:
        """See `Link.close`."""
        self.drop()


async def send(raw: Any, message: str) -> None:
    """See `Talk.send`. A cursor of psycopg's plain kind, whatever the connection makes.

    Cancelled, psycopg would ask the server to cancel, and wait for it: a server that does not answer would hold up who
    has no more time. So the connection is closed; nobody knows what became of its transaction.
    """
    sending = asyncio.ensure_future(psycopg.AsyncCursor(raw).execute(message.encode()))
    try:
        await asyncio.wait([sending])
    except asyncio.CancelledError:
        sending.cancel()
        try:
            await asyncio.sleep(0)  # it waits for the socket no longer, which another connection may have next
        finally:
            drop(raw)
            sending.cancel()
            sending.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        await asyncio.wait([sending], timeout=1.0)
        raise
    sending.result()


def in_transaction(raw: Any) -> bool:
    """See `Talk.in_transaction`."""
    return bool(raw.pgconn.transaction_status in {pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR})


def will_begin(raw: Any) -> bool:
    """See `Talk.will_begin`."""
    return not raw.autocommit


async def is_primary(raw: Any) -> bool:
    """See `Talk.is_primary`."""
    cursor = psycopg.AsyncCursor(raw, row_factory=tuple_row)
    await cursor.execute("SELECT pg_is_in_recovery()")
    row = await cursor.fetchone()
    if not raw.autocommit:
        await raw.rollback()
    return row is not None and not row[0]


async def begin(raw: Any, first: str) -> None:
    """See `Talk.begin`. psycopg begins by itself, unless the connection is one that commits each statement."""
    await send(raw, f"BEGIN; {first}" if raw.autocommit else first)


def ended(raw: Any) -> None:
    """See `Talk.ended`. psycopg sees it."""


def drop(raw: Any) -> None:
    """See `Talk.drop`."""
    with suppress(Exception):
        raw.pgconn.finish()


async def close(raw: Any) -> None:
    """See `Talk.close`."""
    await raw.close()


def is_busy(error: BaseException) -> bool:
    """See `Talk.is_busy`. psycopg lets one wait for the other."""
    return False


async def connect(limit: float, kind: type[AsyncConnection[Any]], conninfo: str, **parameters: Any) -> Any:
    """Makes a connection; closes what is half made when it is cancelled."""
    async with asyncio.timeout(limit):
        return await kind.connect(conninfo, **parameters)
