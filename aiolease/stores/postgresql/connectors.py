"""How a database of PostgreSQL is reached: by what a pool, an engine or a URL says, with what is ours to decide."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from aiolease.errors import AioleaseError, ConfigurationError
from aiolease.stores.network.connecting import CONNECT_LIMIT
from aiolease.stores.network.unsupported import LIKE_POSTGRESQL, refuse_unsupported
from aiolease.stores.postgresql import errors
from aiolease.stores.postgresql.dsn import UNCLEAR, described, read_conninfo, read_url
from aiolease.stores.postgresql.links import Link
from aiolease.stores.postgresql.talks import Talk, talk_by
from aiolease.stores.postgresql.unofficial import pool_connects, pool_parameters


class Connector:
    """How to reach one database: see `aiolease.stores.network.session.Connector`.

    Attributes:
        description: Where it is, without the password.
        open: Makes one as a user would, for a transaction.
        talk: What is sent over such a connection.
    """

    def __init__(
        self,
        description: str,
        connect: Callable[[], Awaitable[Link]],
        *,
        talk: Talk,
        open: Callable[[], Awaitable[Any]] | None = None,
    ) -> None:
        self.description = description
        self.open = open
        self.talk = talk
        self._connect = connect

    async def connect(self) -> Link:
        """Makes one connection of our own; closes what is half made when it is cancelled.

        Raises:
            StoreRejected: The server says that it is a database that is not supported.
        """
        link = await self._connect()
        refuse_unsupported(self.description, link.says, LIKE_POSTGRESQL, drop=link.drop)
        return link

    def drop(self, connection: Link) -> None:
        """See `network.session.Connector.drop`."""
        connection.drop()

    async def close(self, connection: Link) -> None:
        """See `network.session.Connector.close`."""
        await connection.close()

    def translate(self, error: BaseException) -> AioleaseError:
        """See `network.session.Connector.translate`."""
        return errors.translate(self.description, error)

    def is_deadlock(self, error: BaseException) -> bool:
        """See `network.session.Connector.is_deadlock`."""
        return errors.code_of(error) == errors.DEADLOCK

    def has_ended(self, error: BaseException) -> bool:
        """See `network.session.Connector.has_ended`."""
        return errors.has_ended(error)


def of_asyncpg_pool(pool: Any) -> Connector:
    """Connections as a pool of asyncpg makes them; a callable that it has for the password is called for each."""
    from aiolease.stores.postgresql.by_asyncpg import OURS, AsyncpgLink, in_time

    async def connect() -> Link:
        function, arguments, given = pool_connects(pool)
        for dsn in _dsn(arguments, given):
            read_url(dsn)  # what cannot be read is refused before the driver quotes it
        hosts = _hosts_of(arguments, given)
        primary = {"target_session_attrs": "primary"} if hosts > 1 else {}
        return AsyncpgLink(await function(*arguments, **{**given, **OURS, **primary, **in_time(hosts)}))

    _, arguments, given = pool_connects(pool)
    return Connector(described(given, *_dsn(arguments, given)), connect, talk=talk_by("asyncpg"))


def _dsn(arguments: Sequence[Any], given: Mapping[str, Any]) -> list[str]:
    dsn = arguments[0] if arguments else given.get("dsn")
    return [dsn] if isinstance(dsn, str) else []


def _hosts_of(arguments: Sequence[Any], given: Mapping[str, Any]) -> int:
    """How many hosts are named, of which one is the primary."""
    host = given.get("host") or ""
    if not isinstance(host, str):
        return max(len(host), 1)
    return 1 + max(text.count(",") for text in (host, *_dsn(arguments, given)))


def of_psycopg_pool(pool: Any) -> Connector:
    """Connections as a pool of psycopg makes them; what it has functions for is asked for each."""
    from aiolease.stores.postgresql.by_psycopg import OURS, OwnConnection, PsycopgLink, connect

    async def make() -> Link:
        conninfo, given = await pool_parameters(pool)
        read_conninfo(conninfo)  # as above
        primary = {"target_session_attrs": "primary"} if "," in f"{conninfo}{given.get('host')}" else {}
        return PsycopgLink(await connect(CONNECT_LIMIT, OwnConnection, conninfo, **{**given, **OURS, **primary}))

    # What a function says is not known yet, and may hold a password.
    conninfo = pool.conninfo if isinstance(pool.conninfo, str) else ""
    given = pool.kwargs if isinstance(pool.kwargs, Mapping) else {}
    return Connector(_of_conninfo(conninfo, given), make, talk=talk_by("psycopg"))


def _of_conninfo(conninfo: str, given: Mapping[str, Any]) -> str:
    try:
        known = {**read_conninfo(conninfo), **given}
    except errors.Misconfigured:
        return UNCLEAR
    return described({**known, "database": known.get("dbname")})


_connecting_for_us = ContextVar("connecting_for_us", default=False)


def _as_ours(dialect: Any, record: Any, args: list[Any], parameters: dict[str, Any]) -> None:
    """On an engine's event `do_connect`: has our connections made as those of a pool; leaves the engine's alone."""
    if not _connecting_for_us.get():
        return
    if dialect.driver == "asyncpg":
        from aiolease.stores.postgresql.by_asyncpg import OURS, in_time

        own = "async_creator_fn" in parameters  # a function of the user's, which need not take a loop
        parameters.update(OURS, **{"timeout": CONNECT_LIMIT} if own else in_time(_hosts_of((), parameters)))
    else:
        from aiolease.stores.postgresql.by_psycopg import OURS as OF_PSYCOPG
        from aiolease.stores.postgresql.by_psycopg import OwnConnection

        # Not that it commits each statement: a function that hears the event `connect` expects what the engine makes.
        parameters.update({name: value for name, value in OF_PSYCOPG.items() if name != "autocommit"})
        parameters.setdefault("async_creator_fn", OwnConnection.connect)


def of_engine(engine: Any) -> Connector:
    """Connections as those of a SQLAlchemy `AsyncEngine`, its events and connect arguments included."""
    from sqlalchemy import event
    from sqlalchemy.ext.asyncio import create_async_engine

    url, driver = engine.url, engine.dialect.driver
    if driver not in {"asyncpg", "psycopg", "psycopg_async"}:
        problem = "use an engine on postgresql+asyncpg or postgresql+psycopg"
        raise ConfigurationError("target", f"{url.drivername}://…", problem)
    if not event.contains(engine.sync_engine, "do_connect", _as_ours):
        event.listen(engine.sync_engine, "do_connect", _as_ours)

    async def connect() -> Link:
        # A pool of its own with the engine's creator: the engine's may be exhausted by jobs.
        own = create_async_engine(url, pool=engine.sync_engine.pool.recreate())
        ours = _connecting_for_us.set(True)
        try:
            lent = await own.raw_connection()
            raw: Any = lent.driver_connection
            lent.detach()
        finally:
            _connecting_for_us.reset(ours)
            await own.dispose()
        try:
            if hasattr(raw, "set_autocommit"):
                await raw.rollback()
                await raw.set_autocommit(True)  # whatever isolation level the engine has
            return _link(driver, raw)
        except BaseException:
            talk.drop(raw)
            raise

    talk = talk_by(driver.removesuffix("_async"))
    given = {"host": url.host, "port": url.port, "user": url.username, "database": url.database}
    return Connector(described(given), connect, talk=talk)


def _link(driver: str, raw: Any) -> Link:
    if driver == "asyncpg":
        from aiolease.stores.postgresql.by_asyncpg import AsyncpgLink

        return AsyncpgLink(raw)
    from aiolease.stores.postgresql.by_psycopg import PsycopgLink

    return PsycopgLink(raw)


Parameters = Callable[[], Mapping[str, Any]]
"""Gives the parameters of a URL as they are now: a certificate may have been replaced."""


def of_url(driver: str, description: str, parameters: Parameters, hosts: Sequence[tuple[str, int]]) -> Connector:
    """Connections to the first host that answers as the primary.

    Args:
        driver: ``"asyncpg"`` or ``"psycopg"``.
        description: Where it is, without the password.
        parameters: What the driver gets beside host and port.
        hosts: Tried in their order.
    """
    if driver == "asyncpg":
        from aiolease.stores.postgresql import by_asyncpg

        async def make(ours: bool, limit: float, host: str, port: int) -> Any:
            more = by_asyncpg.OURS if ours else {}
            return await by_asyncpg.connect(limit, **{**parameters(), **more, "host": host, "port": port})
    else:
        from aiolease.stores.postgresql import by_psycopg

        async def make(ours: bool, limit: float, host: str, port: int) -> Any:
            more = by_psycopg.OURS if ours else {}
            kind = by_psycopg.OwnConnection if ours else by_psycopg.ByAddress
            given = {**parameters(), **more, "host": host, "port": port}
            return await by_psycopg.connect(limit, kind, "", **given)

    async def first(ours: bool) -> Any:
        limit, problem = CONNECT_LIMIT / len(hosts), None
        for host, port in hosts:
            try:
                async with asyncio.timeout(limit):
                    raw = await make(ours, limit, host, port)
                    if len(hosts) == 1 or await _is_primary(talk, raw):
                        return raw
            except Exception as error:
                if len(hosts) == 1 or (errors.is_final(error) and errors.code_of(error) is None):
                    raise
                problem = error
        raise problem or errors.NoPrimary(f"none of {len(hosts)} hosts is a primary that answers")

    async def connect() -> Link:
        return _link(driver, await first(ours=True))

    talk = talk_by(driver)
    return Connector(description, connect, talk=talk, open=lambda: first(ours=False))


async def _is_primary(talk: Talk, raw: Any) -> bool:
    """Whether a new connection leads to the primary; closes it if not, or if there is no answer."""
    primary = False
    try:
        primary = await talk.is_primary(raw)
    finally:
        if not primary:
            talk.drop(raw)
    return primary
