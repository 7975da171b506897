"""The drivers of MySQL: how each makes a connection of aiolease's own, and what its errors mean.

asyncmy (also from a URL), aiomysql, and a SQLAlchemy engine on either of them. Both drivers speak one DB-API dialect.
All differences between them are in this file.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from aiolease._tracebacks import hide_values
from aiolease.errors import AioleaseError, ConfigurationError, SchemaMissing, StoreRejected, StoreUnavailable
from aiolease.events import describe
from aiolease.stores.mysql.opening import Misconfigured, open_aiomysql, open_asyncmy
from aiolease.stores.mysql.unofficial import send_utf8, tls_context, wait_for_ever
from aiolease.stores.network.tls import Contexts, TLSRefused, final_failure
from aiolease.stores.network.unsupported import LIKE_MYSQL, refuse_unsupported

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
_DENIED = frozenset({1044, 1142, 1227})
_DEADLOCK = 1213
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
        self.cursor = cursor
        """The driver's plain cursor class: the pool may be set to another one."""
        self._connect = connect

    async def connect(self) -> Any:
        """Makes one connection. If it is cancelled, it closes the unfinished connection.

        Raises:
            StoreRejected: The server says that it is a database that is not supported.
        """
        connection = await self._connect()
        refuse_unsupported(self.description, connection.get_server_info(), LIKE_MYSQL, drop=connection.close)
        return connection

    def drop(self, connection: Any) -> None:
        """See `Connector.drop`."""
        connection.close()

    async def close(self, connection: Any) -> None:
        """See `Connector.close`."""
        await connection.ensure_closed()

    def translate(self, error: BaseException) -> AioleaseError:
        """See `Connector.translate`."""
        return translate(self.description, error)

    def is_deadlock(self, error: BaseException) -> bool:
        """See `Connector.is_deadlock`."""
        return error_number(error) == _DEADLOCK

    def has_ended(self, error: BaseException) -> bool:
        """See `Connector.has_ended`."""
        return error_number(error) in _ENDED or isinstance(error, OSError | EOFError)


Parameters = Callable[[], Mapping[str, Any]]
"""Returns the current parameters of a pool or a URL: the password may have changed."""


def asyncmy_driver(parameters: Parameters) -> Driver:
    """Connections made by asyncmy, with the parameters of a pool or a URL, except those that aiolease sets itself."""
    from asyncmy.cursors import Cursor

    ours = {
        "autocommit": True,
        "cursor_cls": Cursor,
        "echo": False,
        "charset": "utf8mb4",  # the pool's may be smaller, and an error's text may have any character
        "stmt_cache_size": 0,
    }
    left_out = {"conv", "read_timeout", "query_callback"}
    tls: dict[str, Any] = {}

    async def connect() -> Any:
        given = {key: value for key, value in parameters().items() if key not in left_out}
        if isinstance(given.get("ssl"), dict) or given.get("ssl") is True:
            given["ssl"] = _asyncmy_context(given["ssl"], tls)
        return await open_asyncmy(**{**given, **ours})

    return Driver(_description(parameters()), connect, Cursor)


def _asyncmy_context(given: Any, made: dict[str, Any]) -> Any:
    """The TLS context that asyncmy makes of a pool's ``ssl``. It is made once, and kept in `made`."""
    from asyncmy.connection import Connection

    if made.get("for") != given:
        made["for"] = given.copy() if isinstance(given, dict) else given
        files = [given[key] for key in ("ca", "cert", "key") if given.get(key)] if isinstance(given, dict) else []
        made["contexts"] = Contexts(lambda: tls_context(Connection(ssl=given)), files)  # type: ignore[no-untyped-call]
    try:
        return made["contexts"].get()
    except (TypeError, ValueError, OSError) as error:
        raise Misconfigured(describe(error)) from error


def aiomysql_driver(parameters: Parameters) -> Driver:
    """Connections made by aiomysql, with the parameters of a pool, except those that aiolease sets itself."""
    from aiomysql import Cursor

    ours = {"autocommit": True, "cursorclass": Cursor, "echo": False, "charset": "utf8mb4"}

    async def connect() -> Any:
        given = {key: value for key, value in parameters().items() if key not in {"conv", "loop"}}
        return await open_aiomysql(**{**given, **ours})

    return Driver(_description(parameters()), connect, Cursor)


_connecting_for_us = ContextVar("connecting_for_us", default=False)
_OPENERS = {"asyncmy": open_asyncmy, "aiomysql": open_aiomysql}


def _open_by_address(dialect: Any, record: Any, args: list[Any], parameters: dict[str, Any]) -> None:
    """On an engine's event `do_connect`: opens aiolease's connections as for a pool, and leaves the engine's alone."""
    if _connecting_for_us.get():
        parameters.setdefault("async_creator_fn", _OPENERS[dialect.driver])


def engine_driver(engine: Any) -> Driver:
    """Connections as a SQLAlchemy `AsyncEngine` makes them, with its events and its connect arguments."""
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
        # A new pool with the engine's creator: jobs may have used up the engine's own pool.
        own = create_async_engine(url, pool=engine.sync_engine.pool.recreate())
        ours = _connecting_for_us.set(True)
        try:
            lent = await own.raw_connection()
            connection: Any = lent.driver_connection
            lent.detach()
            wait_for_ever(connection)
            await execute(connection, cursor, "SET NAMES utf8mb4")  # set_charset of asyncmy 0.2.18 raises
            send_utf8(connection)
        finally:
            _connecting_for_us.reset(ours)
            await own.dispose()
        return connection

    description = f"mysql://{url.username or ''}@{url.host or 'localhost'}:{url.port or 3306}/{url.database or ''}"
    return Driver(description, connect, cursor)


def _description(parameters: Mapping[str, Any]) -> str:
    where = parameters.get("unix_socket") or f"{parameters.get('host') or 'localhost'}:{parameters.get('port') or 3306}"
    return f"mysql://{parameters.get('user') or ''}@{where}/{parameters.get('database') or parameters.get('db') or ''}"


def error_number(error: BaseException) -> int | None:
    """The server's number of an error, ``None`` if it has none."""
    number = error.args[0] if error.args and not isinstance(error, OSError) else None
    return number if isinstance(number, int) else None


def translate(store: str, error: BaseException) -> AioleaseError:
    """Turns a driver's error into one of aiolease's. An error that is not known to be final is `StoreUnavailable`.

    The caller raises the result from the driver's error. The frames of that one hold the password, so their values are
    hidden here: a log that shows variables must not show it.
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
        # Not an answer of the server: a package is missing, the driver refuses a parameter, or a file is not there.
        return StoreRejected(store, f"the driver cannot connect: {text}")
    return StoreUnavailable(store, text)


def denied(error: BaseException) -> bool:
    """Whether the user lacks a right."""
    return error_number(error) in _DENIED


def plain_cursor(connection: Any) -> type | None:
    """The plain cursor class of the driver that made a connection; ``None`` if neither driver made it."""
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
    """Sends statements in one packet; returns the rows of each, or a row with what a change of rows was answered with.

    That is the number of changed rows, and what the statement gave to ``LAST_INSERT_ID``.

    Args:
        connection: The driver's connection.
        cursor_class: The driver's plain cursor class.
        sql: The statements, with ``%s`` for the parameters.
        parameters: Bound by the driver.
        results: Takes each result as it comes in, so that after an error the caller sees how many statements ran.
    """
    results = [] if results is None else results
    # The cursor is not used as a context manager: after a cancellation its exit would read from the closed connection,
    # and raise an error in place of the cancellation. aiomysql needs the `await`; asyncmy's cursor awaited is itself.
    cursor = await connection.cursor(cursor_class)
    await cursor.execute(sql, parameters or None)
    while True:
        if cursor.description is None:
            results.append([(cursor.rowcount, cursor.lastrowid)])
        else:
            results.append([tuple(row) for row in await cursor.fetchall()])
        if not await cursor.nextset():
            await cursor.close()
            return results
