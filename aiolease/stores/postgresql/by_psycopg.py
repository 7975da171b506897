"""psycopg: connections of our own, and what is sent over a user's."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import AsyncConnection, generators, pq, waiting
from psycopg.rows import tuple_row

from aiolease import _waiting
from aiolease.stores.postgresql.addresses import by_address
from aiolease.stores.postgresql.links import Link, Ring, Row, listening
from aiolease.stores.postgresql.unofficial import beginning


class ByAddress(AsyncConnection[Any]):
    """One that is made by the addresses of its hosts.

    psycopg looks names up in the loop's default executor, where it would wait behind the application's threads.
    """

    @classmethod
    async def _get_connection_params(cls, conninfo: str, **given: Any) -> dict[str, Any]:
        """See `psycopg.AsyncConnection`, which has it for this."""
        return await by_address(await super()._get_connection_params(conninfo, **given))


class OwnConnection(ByAddress):
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
    "client_encoding": "UTF8",  # whatever the role's, or the database's: SQL_ASCII would give bytes for texts
}
"""What a connection of our own is made with, whatever the pool's."""


class PsycopgLink(Link):
    """See `Link`.

    psycopg reads notifications when it reads an answer. So while nothing is asked, the event loop watches the socket.
    """

    def __init__(self, raw: AsyncConnection[Any]) -> None:
        super().__init__(raw)
        self._rings: dict[str, Ring] = {}
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

    async def get_ready(self, statements: Sequence[str]) -> None:
        """See `Link.get_ready`. It always takes one round trip."""

    async def tell(self, message: str) -> None:
        """See `Link.tell`."""
        self._look_away()
        await _send_as_one(self.raw, message)
        self._watch()

    async def hear(self, channels: Sequence[str], ring: Ring, *, instead: Collection[str]) -> None:
        """See `Link.hear`."""
        self._rings |= dict.fromkeys(channels, ring)
        await self.tell(listening(channels, instead))
        for channel in instead:
            self._rings.pop(channel, None)

    def _notified(self, notify: psycopg.Notify) -> None:
        self._ring(notify.channel, notify.payload)

    def _ring(self, channel: str, told: str) -> None:
        if (ring := self._rings.get(channel)) is not None:
            ring(channel, told)

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
        told: dict[str, str] = {}
        try:
            self.raw.pgconn.consume_input()
            while (notify := self.raw.pgconn.notifies()) is not None:  # psycopg's own handler is not called here
                told[notify.relname.decode()] = notify.extra.decode(errors="replace")
        except psycopg.Error:
            self._look_away()  # the next exchange finds that it has ended
            self.heard.clear()
            told = dict.fromkeys(self._rings, "")
        for channel, payload in told.items():
            self._ring(channel, payload)

    def drop(self) -> None:
        """See `Link.drop`."""
        self._look_away()
        self.heard.clear()
        rings, self._rings = self._rings, {}
        for channel, ring in rings.items():
            ring(channel, "")
        drop(self.raw)

    async def close(self) -> None:
        """See `Link.close`."""
        self.drop()


class NothingSent(Exception):
    """Something else had the connection until there was no more time."""


async def _send_as_one(raw: Any, message: str) -> list[Any]:
    """Sends statements in one message, with psycopg's BEGIN if one is due; not where another has the connection.

    Cancelled, it closes the connection. psycopg would ask the server to cancel, and wait for it: a server that does not
    answer would hold up who has no more time. Nobody knows what becomes of the transaction.
    """
    if raw.closed:
        raise psycopg.OperationalError("the connection is closed")
    if not raw.autocommit and raw.pgconn.transaction_status == pq.TransactionStatus.IDLE:
        message = f"{beginning(raw)}; {message}"
    raw.pgconn.send_query(message.encode())
    try:
        answer = waiting.wait_async(generators.execute(raw.pgconn), raw.pgconn.socket, interval=_INTERVAL)
        results: list[Any] = await answer
    except asyncio.CancelledError:
        drop(raw)
        raise
    for result in results:
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result, encoding=raw.info.encoding)
    return results


async def send(raw: Any, message: str) -> None:
    """See `Talk.send`.

    Raises:
        NothingSent: It was cancelled while it still waited for the connection.
    """
    if message == "ROLLBACK":
        await _roll_back(raw)
        return
    try:
        await raw.lock.acquire()
    except asyncio.CancelledError:
        raise NothingSent("a stream, a COPY or a statement of the block is still under way") from None
    try:
        await _send_as_one(raw, message)
    finally:
        raw.lock.release()


async def _roll_back(raw: Any) -> None:
    """Has psycopg roll back: it forgets what it has prepared, which may be of a type that is gone now.

    Cancelled, it closes the connection; see `_send_as_one`.
    """
    sending = asyncio.ensure_future(raw.rollback())
    try:
        await _waiting.ended(sending)
    except asyncio.CancelledError:
        sending.cancel()
        try:
            await asyncio.sleep(0)  # it waits for the socket no longer, which another connection may have next
        finally:
            drop(raw)
            sending.cancel()
            sending.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        await _waiting.ended(sending, 1.0)
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
    results = await _send_as_one(raw, "SELECT pg_is_in_recovery()")
    if not raw.autocommit:
        await _roll_back(raw)
    return bool(results[-1].get_value(0, 0) == b"f")


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
    """See `Talk.is_busy`. psycopg lets one wait for the other, as long as there is time."""
    return isinstance(error, NothingSent)


async def connect(limit: float, kind: type[AsyncConnection[Any]], conninfo: str, **parameters: Any) -> Any:
    """Makes a connection; closes what is half made when it is cancelled."""
    async with asyncio.timeout(limit):
        return await kind.connect(conninfo, **parameters)
