"""psycopg: connections of our own, and what is sent over a user's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncConnection, pq, waiting
from psycopg.rows import tuple_row

from aiolease.stores.network.connecting import CONNECT_LIMIT
from aiolease.stores.network.resolve import resolve
from aiolease.stores.postgresql.links import Link, Row, listening

T = TypeVar("T")


class ByAddress(AsyncConnection[Any]):
    """One that is made by the addresses of its hosts.

    psycopg looks names up in the loop's default executor, where it would wait behind the application's threads.
    """

    @classmethod
    async def _get_connection_params(cls, conninfo: str, **given: Any) -> dict[str, Any]:
        """See `psycopg.AsyncConnection`, which has it for this."""
        return await _by_address(await super()._get_connection_params(conninfo, **given))


async def _by_address(given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with an address beside the name of each host, by which TLS still verifies it.

    Each address has an equal part of `CONNECT_LIMIT`.

    Raises:
        OSError: No name is known, or no server of names answers.
    """
    # What is not given is the environment's, as with every client of PostgreSQL.
    host, address, port = (
        str(given.get(name) or os.environ.get(f"PG{name.upper()}", "")) for name in ("host", "hostaddr", "port")
    )
    hosts, ports = host.split(","), port.split(",")
    if not host or address or len(ports) not in {1, len(hosts)}:
        return {**given}  # the host is known by its address, or psycopg says what is wrong
    looked_up = await asyncio.gather(*map(_addresses, hosts), return_exceptions=True)
    failed = [each for each in looked_up if isinstance(each, BaseException)]
    if len(failed) == len(hosts):
        raise failed[0]
    ports *= len(hosts) // len(ports)
    ways = [
        (*way, address)
        for way, addresses in zip(zip(hosts, ports, strict=True), looked_up, strict=True)
        if not isinstance(addresses, BaseException)
        for address in addresses
    ]
    limit = max(int(CONNECT_LIMIT / len(ways)), 2)  # psycopg takes no less
    if 0 < float(given.get("connect_timeout") or 0) < limit:
        limit = given["connect_timeout"]
    joined = map(",".join, zip(*ways, strict=True))
    return {**given, **dict(zip(("host", "port", "hostaddr"), joined, strict=True)), "connect_timeout": limit}


async def _addresses(host: str) -> list[str]:
    """Those of a host; an empty one for a socket of the file system."""
    return [""] if host.startswith(("/", "@")) else await resolve(host)


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

    async def get_ready(self, statements: Sequence[str]) -> None:
        """See `Link.get_ready`. It always takes one round trip."""

    async def tell(self, message: str) -> None:
        """See `Link.tell`."""
        self._look_away()
        await _execute(self.raw, message)
        self._watch()

    async def hear(self, channels: Sequence[str], ring: Callable[[str], None], *, instead: Collection[str]) -> None:
        """See `Link.hear`."""
        self._rings |= dict.fromkeys(channels, ring)
        await self.tell(listening(channels, instead))
        for channel in instead:
            self._rings.pop(channel, None)

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


class NothingSent(Exception):
    """Something else had the connection until there was no more time."""


async def _execute(raw: Any, message: str) -> None:
    """Sends statements by a cursor of psycopg's plain kind, whatever kind, and rows, the connection makes.

    Never prepared: several statements cannot be, and a connection may prepare all that it is given.
    """
    await psycopg.AsyncCursor(raw, row_factory=tuple_row).execute(message.encode(), prepare=False)


async def send(raw: Any, message: str) -> None:
    """See `Talk.send`.

    Raises:
        NothingSent: It was cancelled while it still waited for the connection.
    """
    waiting_for, turn = raw.lock.locked(), asyncio.Event()

    async def execute() -> None:
        async with raw.lock:
            turn.set()
        await _execute(raw, message)

    try:
        await _or_drop(raw, execute())
    except asyncio.CancelledError:
        if waiting_for and not turn.is_set():
            raise NothingSent("a stream, a COPY or a statement of the block is still under way") from None
        raise


async def _or_drop(raw: Any, exchange: Coroutine[Any, Any, T]) -> T:
    """Awaits an exchange over a connection; closes it if that is cancelled.

    psycopg would ask the server to cancel, and wait for it: a server that does not answer would hold up who has no more
    time. Nobody knows what becomes of the transaction.
    """
    sending = asyncio.ensure_future(exchange)
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
    return sending.result()


def in_transaction(raw: Any) -> bool:
    """See `Talk.in_transaction`."""
    return bool(raw.pgconn.transaction_status in {pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR})


def will_begin(raw: Any) -> bool:
    """See `Talk.will_begin`."""
    return not raw.autocommit


async def is_primary(raw: Any) -> bool:
    """See `Talk.is_primary`."""

    async def ask() -> bool:
        cursor = psycopg.AsyncCursor(raw, row_factory=tuple_row)
        await cursor.execute("SELECT pg_is_in_recovery()")
        row = await cursor.fetchone()
        if not raw.autocommit:
            await raw.rollback()
        return row is not None and not row[0]

    return await _or_drop(raw, ask())


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
