"""One connection to MySQL or MariaDB: made when it is needed, discarded after an error, one exchange at a time."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiolease._waiting import time_left
from aiolease.errors import AioleaseError, StoreUnavailable
from aiolease.stores.mysql.connecting import Connecting
from aiolease.stores.mysql.drivers import Driver, Execute, Rows, error_number, execute, translate

_DEADLOCK = 1213
_DEADLOCKS = 5
"""How often a statement is sent in all if the server ends it as the victim of a deadlock, as while a row is made."""
_ROUND_TRIPS = 8
"""An exchange should take one round trip. After this many it is too long. Connecting takes about as many."""

_MOST_PATIENT = 5.0
"""The longest `_patience` that ended exchanges lead to, in seconds."""

_PATIENT_FOR = 60.0
"""Seconds for which it is borne with as long after an exchange was ended, though others are answered quickly."""

_LONG = 1.0
"""An exchange of more seconds was a wait for a lock, and a proxy may have closed the connection as idle."""

_ENDED = frozenset({
    0,  # the driver has closed it
    1053,  # the server shuts down
    1927,  # killed (MariaDB)
    2006,  # gone away
    2013,  # lost during the query
    2055,  # lost while reading
    3169,  # killed
    4031,  # it was idle for too long
})  # fmt: skip


class Session:
    """One connection, made when it is needed and discarded after an error; one exchange at a time.

    Who gives up waiting for its turn ends the exchange of another that takes longer than it should: longer than several
    round trips of the network as it was last seen, and `stuck` at least. Each that was ended so makes the session more
    patient for a while: a hung connection costs nobody much, a slow network or slow commits cost two exchanges.
    Connecting goes on beyond the attempt that began it: see `Connecting`. If that attempt has no time left for an
    answer, it leaves the connection to the next one: a question that is cancelled costs the connection.
    """

    def __init__(self, driver: Driver, prepare: Callable[[Execute], Awaitable[None]], stuck: float) -> None:
        self._stuck = self._patience = stuck
        self._step: asyncio.Timeout | None = None  # the exchange that is under way
        self._step_since = 0.0
        self._ended_at = -math.inf  # when an exchange was last ended for the sake of others
        self._round_trip = 0.0  # the quickest over this connection
        self._driver = driver
        self._prepare = prepare
        self._lock = asyncio.Lock()
        self._connecting: Connecting[Any] = Connecting(self._connect)
        self._connection: Any = None
        self._used_at = 0.0
        self._closed = False
        self.fresh_for = 30.0
        """Seconds after which an idle connection is replaced: the server may have closed it."""
        self.opened = 0
        """Counts the connections made."""

    async def run(
        self,
        sql: str,
        parameters: Sequence[object] = (),
        results: list[Rows] | None = None,
        *,
        repeat: bool = True,
    ) -> list[Rows]:
        """Sends statements in one packet; returns the rows of each, or a row with the number of changed rows.

        Args:
            sql: The statements, with ``%s`` for the parameters.
            parameters: Bound by the driver.
            results: Takes each result as it comes in, so that after an error the caller sees how many statements ran.
            repeat: Whether to send the packet once more, over a new connection, if the server had closed the old one.
                The statements may have been executed already.

        Raises:
            StoreUnavailable: And `StoreRejected`, `SchemaMissing`: see `translate`. The connection is discarded.
        """
        results = [] if results is None else results
        try:
            await self._lock.acquire()
        except BaseException:
            # The exchange before this one does not end: perhaps its answer was lost, and its caller waits for longer.
            self.gave_up()
            raise
        try:
            tries, repeat = _DEADLOCKS, repeat and self._connection is not None
            clock = asyncio.get_running_loop().time
            while True:
                tries, began = tries - 1, clock()
                try:
                    return await self._exchange(sql, parameters, results)
                except _TooLateToAsk as error:  # the next attempt has the connection
                    problem = "connected, and no time is left for an answer"
                    raise StoreUnavailable(self._driver.description, problem) from error
                except AioleaseError:
                    self.discard()
                    raise
                except Exception as error:
                    self.discard()
                    if error_number(error) == _DEADLOCK and tries:
                        results.clear()
                        continue  # the server undid the statement to end a deadlock: it may be sent again
                    if repeat and _ended(error):
                        # Only once, except after a long wait: what ended that may end the next one, too.
                        repeat = clock() - began > _LONG
                        results.clear()
                        continue
                    raise translate(self._driver.description, error) from error
                except BaseException:
                    self.discard()  # its answer is still to come, and the next exchange would read it
                    raise

        finally:
            self._lock.release()

    async def _exchange(self, sql: str, parameters: Sequence[object], results: list[Rows]) -> list[Rows]:
        while self._connection is None or asyncio.get_running_loop().time() - self._used_at > self.fresh_for:
            await self._close()
            self._check_open()
            self._connection = await self._connecting.get()
            if self._connection is not None and time_left() < self._round_trip < math.inf:
                raise _TooLateToAsk
        try:
            async with self._take_step():
                answer = await self._execute(self._connection, sql, parameters, results)
        except _TakesTooLong as error:
            raise StoreUnavailable(self._driver.description, "no answer, and others wait for the connection") from error
        if asyncio.get_running_loop().time() - self._ended_at > _PATIENT_FOR:
            self._patience = max(self._stuck, _ROUND_TRIPS * self._round_trip)
        return answer

    @asynccontextmanager
    async def _take_step(self) -> AsyncIterator[None]:
        """Wraps an exchange that `gave_up` and `aclose` may end. It then raises `_TakesTooLong`."""
        self._check_open()
        limit, self._step_since = asyncio.timeout(None), asyncio.get_running_loop().time()
        try:
            async with limit:
                self._step = limit
                yield
        except TimeoutError as error:
            if limit.expired():
                raise _TakesTooLong from error
            raise
        finally:
            self._step = None

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable(self._driver.description, "this store was closed")

    async def _connect(self) -> Any:
        connection, self._round_trip = await self._driver.connect(), math.inf
        try:
            self.opened += 1
            await self._prepare(functools.partial(self._execute, connection))
        except BaseException:
            connection.close()
            raise
        return connection

    async def _execute(
        self, connection: Any, sql: str, parameters: Sequence[object] = (), results: list[Rows] | None = None
    ) -> list[Rows]:
        clock = asyncio.get_running_loop().time
        self._used_at = clock()
        answer = await execute(connection, self._driver.cursor, sql, parameters, results)
        self._round_trip = min(self._round_trip, clock() - self._used_at)
        self._patience = max(self._patience, _ROUND_TRIPS * self._round_trip)
        return answer

    @property
    def busy(self) -> bool:
        """Whether an exchange is under way."""
        return self._lock.locked()

    def gave_up(self) -> None:
        """A caller stopped waiting for its turn: ends the connecting or the exchange if it takes too long."""
        self._connecting.gave_up()
        now = asyncio.get_running_loop().time()
        if now - self._step_since > self._patience and self._end_step():
            self._ended_at = now
            self._patience = max(self._patience, min(self._patience * 4, _MOST_PATIENT))

    def _end_step(self) -> bool:
        if self._step is None or self._step.when() is not None or self._step.expired():
            return False
        self._step.reschedule(asyncio.get_running_loop().time())
        return True

    def discard(self) -> None:
        """Drops the connection at once. The server still executes what it was sent, and then ends the session."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def aclose(self) -> None:
        """Closes the connection for good. An exchange under way fails. Waits for the server for a second at most."""
        self._closed = True
        self._end_step()
        left = await self._connecting.end()
        async with self._lock:
            self._connection = self._connection or left
            await self._close()

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            async with asyncio.timeout(1.0):
                await connection.ensure_closed()
        except Exception:  # noqa: BLE001 - it is closed below
            pass
        finally:
            connection.close()


class _TooLateToAsk(Exception):
    """The connection was made, and took the time in which an answer could come: to ask would cost the connection."""


class _TakesTooLong(Exception):
    """A caller that waits for the connection ended the exchange under way, or the session was closed."""


def _ended(error: BaseException) -> bool:
    """Whether the server, or the network, has ended the connection."""
    return error_number(error) in _ENDED or isinstance(error, OSError | EOFError)
