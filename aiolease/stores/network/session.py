"""One connection to a server: made when it is needed, discarded after an error, one exchange at a time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from aiolease._waiting import time_left
from aiolease.errors import AioleaseError, StoreUnavailable
from aiolease.stores.network.connecting import Connecting

T = TypeVar("T")

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


class Connector(Protocol):
    """How a driver's connections are made and closed, and what its errors mean."""

    @property
    def description(self) -> str:
        """Which database, without the password."""

    @property
    def connect(self) -> Callable[[], Awaitable[Any]]:
        """Makes one connection. If it is cancelled, it closes the unfinished connection."""

    def drop(self, connection: Any) -> None:
        """Closes a connection at once, without telling the server. May be called twice."""

    async def close(self, connection: Any) -> None:
        """Closes a connection, and tells the server."""

    def translate(self, error: BaseException) -> AioleaseError:
        """Turns a driver's error into one of aiolease's."""

    def is_deadlock(self, error: BaseException) -> bool:
        """Whether the server undid the statement to end a deadlock: it may be sent again."""

    def has_ended(self, error: BaseException) -> bool:
        """Whether the server, or the network, has ended the connection."""


class Session:
    """One connection, made when it is needed and discarded after an error; one exchange at a time.

    Who gives up waiting for its turn ends the exchange of another that takes longer than it should: longer than several
    round trips of the network as it was last seen, and `stuck` at least. Each that was ended so makes the session more
    patient for a while: a hung connection costs nobody much, a slow network or slow commits cost two exchanges.
    Connecting goes on beyond the attempt that began it: see `Connecting`. If that attempt has no time left for an
    answer, it leaves the connection to the next one: a question that is cancelled costs the connection.
    """

    def __init__(self, driver: Connector, prepare: Callable[[Any], Awaitable[None]], stuck: float) -> None:
        """Makes it.

        Args:
            driver: Makes the connections.
            prepare: Sends the settings of a new one before its first exchange, by `measured`.
            stuck: Seconds after which an exchange may be ended for the sake of another, at the earliest.
        """
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

    async def exchange(self, work: Callable[[Any], Awaitable[T]], *, repeat: bool = True) -> T:
        """Calls `work`, which sends something over the connection; returns what it returns.

        Args:
            work: Takes the driver's connection. It is called again after a deadlock, and where it is repeated.
            repeat: Whether to call it once more, with a new connection, if the server had closed the old one. What it
                sent may have been executed already.

        Raises:
            StoreUnavailable: And `StoreRejected`, `SchemaMissing`: see `Connector.translate`. The connection is
                discarded. If `work` raises an error of aiolease's own, that is raised as it is.
        """
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
                    return await self._exchange(work)
                except _TooLateToAsk as error:  # the next attempt has the connection
                    problem = "connected, and no time is left for an answer"
                    raise StoreUnavailable(self._driver.description, problem) from error
                except AioleaseError:
                    self.discard()
                    raise
                except Exception as error:
                    self.discard()
                    if tries and self._driver.is_deadlock(error):
                        continue  # the server undid the statement to end a deadlock: it may be sent again
                    if repeat and self._driver.has_ended(error):
                        # Only once, except after a long wait: what ended that may end the next one, too.
                        repeat = clock() - began > _LONG
                        continue
                    raise self._driver.translate(error) from error
                except BaseException:
                    self.discard()  # its answer is still to come, and the next exchange would read it
                    raise

        finally:
            self._lock.release()

    async def _exchange(self, work: Callable[[Any], Awaitable[T]]) -> T:
        while self._connection is None or asyncio.get_running_loop().time() - self._used_at > self.fresh_for:
            await self._close()
            self._check_open()
            self._connection = await self._connecting.get()
            if self._connection is not None and time_left() < self._round_trip < math.inf:
                raise _TooLateToAsk
        answer = await self._step_of(work)
        if asyncio.get_running_loop().time() - self._ended_at > _PATIENT_FOR:
            self._patience = max(self._stuck, _ROUND_TRIPS * self._round_trip)
        return answer

    async def _step_of(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """Calls `work`, which `gave_up` and `aclose` may end."""
        self._check_open()
        limit, self._step_since = asyncio.timeout(None), asyncio.get_running_loop().time()
        try:
            async with limit:
                self._step = limit
                return await self.measured(work(self._connection))
        except TimeoutError as error:
            if limit.expired():
                problem = "no answer, and others wait for the connection"
                raise StoreUnavailable(self._driver.description, problem) from error
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
            await self._prepare(connection)
        except BaseException:
            self._driver.drop(connection)
            raise
        return connection

    async def measured(self, answer: Awaitable[T]) -> T:
        """Awaits the answer to what is sent over the connection, and notes how long it took."""
        clock = asyncio.get_running_loop().time
        self._used_at = clock()
        result = await answer
        self._round_trip = min(self._round_trip, clock() - self._used_at)
        self._patience = max(self._patience, _ROUND_TRIPS * self._round_trip)
        return result

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
            self._driver.drop(connection)

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
                await self._driver.close(connection)
        except Exception:  # noqa: BLE001 - it is closed below
            pass
        finally:
            self._driver.drop(connection)


class _TooLateToAsk(Exception):
    """The connection was made, and took the time in which an answer could come: to ask would cost the connection."""
