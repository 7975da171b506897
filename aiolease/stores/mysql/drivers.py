"""The drivers of MySQL: how each makes a connection of aiolease's own, and what its errors mean.

Split from `aiolease.stores.mysql`, which holds the statements. Both drivers speak one DB-API dialect, so that all
differences are here: asyncmy (also from a URL), aiomysql, and a SQLAlchemy engine on either.
"""

from __future__ import annotations

import asyncio
import functools
import math
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

from aiolease._tracebacks import hide_values
from aiolease.errors import AioleaseError, ConfigurationError, SchemaMissing, StoreRejected, StoreUnavailable
from aiolease.events import describe
from aiolease.stores.mysql.connecting import CONNECT_LIMIT, Connecting
from aiolease.stores.mysql.resolve import resolve
from aiolease.stores.mysql.tls import Contexts, TLSRefused, final_failure

Rows = list[tuple[Any, ...]]
Execute = Callable[..., Awaitable[list[Rows]]]

_REJECTED = frozenset({
    1044,  # access denied to the database
    1045,  # access denied
    1046,  # no database selected
    1049,  # unknown database
    1130,  # this host is not allowed to connect
    1142,  # command denied on a table
    1143,  # command denied on a column
    1227,  # a privilege is missing
    1251,  # the client does not support the authentication
    1698,  # access denied, no password given
    1820,  # the password has to be changed first
    1862,  # the password has expired
    3118,  # the account is locked
    3159,  # the server demands TLS
    4151,  # the account is locked (MariaDB)
})  # fmt: skip
NO_SUCH_TABLE, UNKNOWN_COLUMN, TABLE_EXISTS = 1146, 1054, 1050
_DEADLOCK = 1213
_DEADLOCKS = 5
"""How often in a row a statement may be chosen to end a deadlock: claims of a row that is being made meet."""
_ROUND_TRIPS = 8
"""How many round trips it may take to connect, with TLS and all that is settled then; an exchange takes one."""

_MOST_PATIENT = 5.0
"""Seconds that a network which does not answer at all is borne with, when others wait."""

_TLS = 1 << 11
"""The capability of a server that offers TLS."""

_LONG = 1.0
"""Seconds after which an exchange was a wait, and a proxy may have taken it for idle."""

_DENIED = frozenset({1044, 1142, 1227})
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


class Driver:
    """How to reach one database.

    Attributes:
        description: Where it is, without the password.
    """

    def __init__(self, description: str, connect: Callable[[], Awaitable[Any]], cursor: type) -> None:
        self.description = description
        self.connect = connect
        """Makes one connection; closes what is half made when it is cancelled."""
        self.cursor = cursor
        """The driver's plain cursor class: the pool's own may be any."""


class Misconfigured(Exception):
    """The driver refuses its parameters, before anything is sent."""


Parameters = Callable[[], Mapping[str, Any]]
"""Gives the parameters of a pool or a URL as they are now: a password may have been changed."""


def asyncmy_driver(parameters: Parameters) -> Driver:
    """Connections made by asyncmy, with the parameters of a pool or a URL, but for what is aiolease's to decide."""
    from asyncmy.cursors import Cursor

    ours = {
        "autocommit": True,
        "cursor_cls": Cursor,
        "echo": False,
        "charset": "utf8mb4",  # whatever the pool's: an error may have any character
        "stmt_cache_size": 0,
    }
    left_out = {"conv", "read_timeout", "query_callback"}
    tls: dict[str, Any] = {}

    async def connect() -> Any:
        given = {key: value for key, value in parameters().items() if key not in left_out}
        if isinstance(given.get("ssl"), dict) or given.get("ssl") is True:
            given["ssl"] = _asyncmy_context(given["ssl"], tls)
        return await _open_asyncmy(**{**given, **ours})

    return Driver(_description(parameters()), connect, Cursor)


def _asyncmy_context(given: Any, made: dict[str, Any]) -> Any:
    """The context that asyncmy makes of a pool's ``ssl``, made once, and kept in `made`."""
    from asyncmy.connection import Connection

    if made.get("for") != given:
        made["for"] = given.copy() if isinstance(given, dict) else given
        files = [given[key] for key in ("ca", "cert", "key") if given.get(key)] if isinstance(given, dict) else []
        made["contexts"] = Contexts(lambda: Connection(ssl=given)._ssl_context, files)  # type: ignore[no-untyped-call, attr-defined]
    try:
        return made["contexts"].get()
    except (TypeError, ValueError, OSError) as error:
        raise Misconfigured(describe(error)) from error


def aiomysql_driver(parameters: Parameters) -> Driver:
    """Connections made by aiomysql, with the parameters of a pool, but for what is aiolease's to decide."""
    from aiomysql import Cursor

    ours = {"autocommit": True, "cursorclass": Cursor, "echo": False, "charset": "utf8mb4"}

    async def connect() -> Any:
        given = {key: value for key, value in parameters().items() if key not in {"conv", "loop"}}
        return await _open_aiomysql(**{**given, **ours})

    return Driver(_description(parameters()), connect, Cursor)


class _ByAddress:
    """A connection that looks up the host's name on its own, and knows what TLS is for. Goes before a driver's class.

    Both drivers would have the event loop look the name up, in its default executor, behind all that an application
    does there; and aiomysql would send all in the clear to a server that offers no TLS.
    """

    _greeted = False
    _name: str
    _host: str
    _ssl_context: Any
    server_capabilities: int

    async def open(self, start: Callable[[], Awaitable[object]], limit: str) -> None:
        """Connects by `start` to one address of the host after the other; closing is the caller's.

        Args:
            start: The driver's method.
            limit: The name of the attribute that limits it.
        """
        self._name = self._host
        over_tcp = not getattr(self, "_unix_socket", None) and getattr(self, "_sock", None) is None
        addresses = await resolve(self._host) if over_tcp else [self._host]
        setattr(self, limit, getattr(self, limit) / len(addresses))
        for left in reversed(range(len(addresses))):
            self._host = addresses[-1 - left]
            try:
                await start()
            except Exception:
                if self._greeted or not left:
                    raise
            else:
                break

    async def _get_server_information(self) -> None:
        self._greeted = True
        self._host = self._name  # what TLS verifies
        await super()._get_server_information()  # type: ignore[misc]  # the driver's
        if self._ssl_context and not self.server_capabilities & _TLS:
            raise ssl.SSLError("TLS is asked for, and the server offers none")


async def _open_asyncmy(**parameters: Any) -> Any:
    from asyncmy.connection import Connection

    return await _open(Connection, "connect", "_connect_timeout", parameters)


async def _open_aiomysql(**parameters: Any) -> Any:
    from aiomysql import Connection

    return await _open(Connection, "_connect", "connect_timeout", parameters)  # its connect() leaks when cancelled


async def _open(kind: type, start: str, limit: str, parameters: dict[str, Any]) -> Any:
    seconds = min(parameters.get("connect_timeout") or CONNECT_LIMIT, CONNECT_LIMIT)
    try:
        connection = _by_address(kind)(**{**parameters, "connect_timeout": seconds})
    except (TypeError, ValueError, OSError) as error:
        raise Misconfigured(describe(error)) from error
    try:
        await connection.open(getattr(connection, start), limit)
    except BaseException:
        connection.close()
        raise
    return connection


@functools.cache
def _by_address(kind: type) -> Any:
    return type("Connection", (_ByAddress, kind), {"__module__": kind.__module__})


_connecting_for_us = ContextVar("connecting_for_us", default=False)
_OPENERS = {"asyncmy": _open_asyncmy, "aiomysql": _open_aiomysql}


def _open_by_address(dialect: Any, record: Any, args: list[Any], parameters: dict[str, Any]) -> None:
    """On an engine's event `do_connect`: has our connections opened as those of a pool; leaves the engine's alone."""
    if _connecting_for_us.get():
        parameters.setdefault("async_creator_fn", _OPENERS[dialect.driver])


def engine_driver(engine: Any) -> Driver:
    """Connections made as those of a SQLAlchemy `AsyncEngine`, its events and connect arguments included."""
    from sqlalchemy import event
    from sqlalchemy.ext.asyncio import create_async_engine

    url = engine.url
    cursor: type
    if engine.dialect.driver == "asyncmy":
        from asyncmy import cursors

        cursor = cursors.Cursor
    elif engine.dialect.driver == "aiomysql":
        import aiomysql

        cursor = aiomysql.Cursor
    else:
        raise ConfigurationError("target", f"{url.drivername}://…", "use an engine on mysql+asyncmy or mysql+aiomysql")

    if not event.contains(engine.sync_engine, "do_connect", _open_by_address):
        event.listen(engine.sync_engine, "do_connect", _open_by_address)

    async def connect() -> Any:
        # A pool of its own with the engine's creator: the engine's may be exhausted by jobs.
        own = create_async_engine(url, pool=engine.sync_engine.pool.recreate())
        ours = _connecting_for_us.set(True)
        try:
            lent = await own.raw_connection()
            connection: Any = lent.driver_connection
            lent.detach()
            if hasattr(connection, "_read_timeout"):  # asyncmy's, from connect_args: a wait for a lock may be longer
                connection._read_timeout = None
            await execute(connection, cursor, "SET NAMES utf8mb4")  # set_charset of asyncmy 0.2.18 raises
            connection._charset, connection._encoding = "utf8mb4", "utf8"
        finally:
            _connecting_for_us.reset(ours)
            await own.dispose()
        return connection

    description = f"mysql://{url.username or ''}@{url.host or 'localhost'}:{url.port or 3306}/{url.database or ''}"
    return Driver(description, connect, cursor)


def _description(parameters: Mapping[str, Any]) -> str:
    where = parameters.get("unix_socket") or f"{parameters.get('host') or 'localhost'}:{parameters.get('port') or 3306}"
    return f"mysql://{parameters.get('user') or ''}@{where}/{parameters.get('database') or parameters.get('db') or ''}"


def listen(connection: Any, events: Mapping[str, Callable[..., None]]) -> None:
    """Has SQLAlchemy call functions at events of an `AsyncConnection`, until it is closed."""
    from sqlalchemy import event

    for name, function in events.items():
        event.listen(connection.sync_connection, name, function)


def error_number(error: BaseException) -> int | None:
    """The server's number of an error, ``None`` if it has none."""
    number = error.args[0] if error.args and not isinstance(error, OSError) else None
    return number if isinstance(number, int) else None


def translate(store: str, error: BaseException) -> AioleaseError:
    """What a driver's error means to the caller. Whatever is not known to be final may pass.

    The driver's error will be the cause of this one, and its frames hold the password: nobody who logs them sees it.
    """
    if isinstance(error, AioleaseError):
        return error
    hide_values(error)
    number = error_number(error)
    text = f"{error.args[1]} ({number})" if number is not None and len(error.args) > 1 else describe(error)
    for each in (error, error.__cause__, error.__context__):
        if isinstance(each, UnicodeError) and str(each) in text:
            text = "a text has a character that the driver cannot send"  # not which: it may be the password's
    if number in _REJECTED:
        return StoreRejected(store, text)
    if number in {NO_SUCH_TABLE, UNKNOWN_COLUMN}:
        return SchemaMissing(store, text)
    if (failure := final_failure(error)) is not None:
        return StoreRejected(store, failure)
    missing = isinstance(error, RuntimeError) and "cryptography" in str(error)
    if missing or (number is None and isinstance(error, Misconfigured | TypeError | FileNotFoundError | TLSRefused)):
        # Not from the server: a missing package, a parameter that the driver does not take, a certificate's path.
        return StoreRejected(store, f"the driver cannot connect: {text}")
    return StoreUnavailable(store, text)


def _ended(error: BaseException) -> bool:
    """Whether the server, or the network, has ended the connection."""
    return error_number(error) in _ENDED or isinstance(error, OSError | EOFError)


def denied(error: BaseException) -> bool:
    """Whether the user lacks a right."""
    return error_number(error) in _DENIED


def plain_cursor(connection: Any) -> type | None:
    """The plain cursor class of a connection's own driver; ``None`` if it is of neither."""
    packages = {kind.__module__.partition(".")[0] for kind in type(connection).__mro__}
    if "asyncmy" in packages:
        import asyncmy.cursors

        return asyncmy.cursors.Cursor
    if "aiomysql" in packages:
        import aiomysql.cursors

        return aiomysql.cursors.Cursor  # type: ignore[no-any-return]
    return None


async def execute(
    connection: Any, cursor_class: type, sql: str, parameters: Sequence[object] = (), results: list[Rows] | None = None
) -> list[Rows]:
    """Sends statements in one packet; returns the rows of each, or a row with the number of changed rows.

    Args:
        connection: The driver's.
        cursor_class: The driver's plain one.
        sql: The statements, with ``%s`` for the parameters.
        parameters: Bound by the driver.
        results: Where to put the results as they come in, so that a caller sees how far an error let it get.
    """
    results = [] if results is None else results
    # Not as a context manager: its exit asks a connection that a cancellation closed for more, and the error would
    # take the cancellation's place. Awaiting serves aiomysql; asyncmy's cursor gives itself.
    cursor = await connection.cursor(cursor_class)
    await cursor.execute(sql, parameters or None)
    while True:
        if cursor.description is None:
            results.append([(cursor.rowcount,)])
        else:
            results.append([tuple(row) for row in await cursor.fetchall()])
        if not await cursor.nextset():
            await cursor.close()
            return results


class _TakesTooLong(Exception):
    """Somebody who waits for the connection ended what it was busy with."""


class Session:
    """One connection, made when it is needed and discarded at the first trouble; one exchange at a time.

    Who gives up waiting for its turn ends the exchange of another that takes longer than it should: longer than several
    round trips of the network as it was last seen, and `stuck` at least. Each that was ended so makes the session more
    patient, until an answer comes: a hung connection costs nobody much, a slow one nothing. Connecting goes on beyond
    the attempt that began it: see `Connecting`.
    """

    def __init__(self, driver: Driver, prepare: Callable[[Execute], Awaitable[None]], stuck: float) -> None:
        self._stuck = self._patience = stuck
        self._step: asyncio.Timeout | None = None  # the exchange that is under way
        self._step_since = 0.0
        self._round_trip = 0.0  # the quickest over this connection
        self._driver = driver
        self._prepare = prepare
        self._lock = asyncio.Lock()
        self._connecting: Connecting[Any] = Connecting(self._connect)
        self._connection: Any = None
        self._used_at = 0.0
        self._closed = False
        self.fresh_for = 30.0
        """Seconds after which an idle connection is not trusted any more: the server may have closed it."""
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
            results: Where to put the results as they come in, so that a caller sees how far an error let it get.
            repeat: Whether to send them once more, over a new connection, if the server has ended the one that was
                there. They may have been executed already.

        Raises:
            StoreUnavailable: And `StoreRejected`, `SchemaMissing`: see `translate`. The connection is gone then.
        """
        results = [] if results is None else results
        try:
            await self._lock.acquire()
        except BaseException:
            # Another exchange does not end, and its caller may have more time than this one: its answer was lost.
            self.gave_up()
            raise
        try:
            tries, repeat = _DEADLOCKS, repeat and self._connection is not None
            clock = asyncio.get_running_loop().time
            while True:
                tries, began = tries - 1, clock()
                try:
                    return await self._exchange(sql, parameters, results)
                except AioleaseError:
                    self.discard()
                    raise
                except Exception as error:
                    self.discard()
                    if error_number(error) == _DEADLOCK and tries:
                        results.clear()
                        continue  # the server undid the statement, for another's sake: it may be sent again
                    if repeat and _ended(error):
                        # Once, unless it was a long wait: who ended that may end the next one, too.
                        repeat = clock() - began > _LONG
                        results.clear()
                        continue
                    raise translate(self._driver.description, error) from error
                except BaseException:
                    self.discard()  # the answer is still to come: what is asked next would get it
                    raise

        finally:
            self._lock.release()

    async def _exchange(self, sql: str, parameters: Sequence[object], results: list[Rows]) -> list[Rows]:
        while self._connection is None or asyncio.get_running_loop().time() - self._used_at > self.fresh_for:
            await self._close()
            self._check_open()
            self._connection = await self._connecting.get()
        try:
            async with self._take_step():
                answer = await self._execute(self._connection, sql, parameters, results)
        except _TakesTooLong as error:
            raise StoreUnavailable(self._driver.description, "no answer, and others wait for the connection") from error
        self._patience = max(self._stuck, _ROUND_TRIPS * self._round_trip)
        return answer

    @asynccontextmanager
    async def _take_step(self) -> AsyncIterator[None]:
        """Around what `gave_up` and `aclose` may end; raises `_TakesTooLong` then."""
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
        """Somebody does not wait any longer for its turn."""
        self._connecting.gave_up()
        if asyncio.get_running_loop().time() - self._step_since > self._patience and self._end_step():
            self._patience = max(self._patience, min(self._patience * 4, _MOST_PATIENT))

    def _end_step(self) -> bool:
        if self._step is None or self._step.when() is not None or self._step.expired():
            return False
        self._step.reschedule(asyncio.get_running_loop().time())
        return True

    def discard(self) -> None:
        """Drops the connection without a word. The server goes on with what it was sent, and ends the session after."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def aclose(self) -> None:
        """Closes the connection for good, with a good-bye if the server listens; what is under way fails. Bounded."""
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
        except Exception:  # noqa: BLE001 - it is being thrown away, whatever it says
            pass
        finally:
            connection.close()
