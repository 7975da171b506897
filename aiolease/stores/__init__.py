"""Where leases and jobs are kept: turns a pool, an engine or a URL into a store. This is the map of the wing.

* `contract`: what a store must do: the lease, the ledger, fenced transactions, and what people ask;
* `records`, `batch`, `seen`: its rows, what a leader writes at once, what is seen of jobs, as values;
* `asking`: how what people ask is judged;
* `sql`: every statement once, rendered by a dialect; row and record;
* `mysql`, `postgresql`, `sqlite`: a dialect each, the connection, the tables, fenced transactions, and how a candidate
  waits; `network`: what the first two share of connections;
* `memory`: the same rules in Python, for tests, without a statement.

A new database is a package beside those, and a case in `_make` or `_from_url` here. It needs a `Dialect`, its
tables (`sql.schema`), something that sends statements (`sql.sending.Sending`, and the seven methods of a lease),
and a `Transaction`. Then the tests of `tests/stores` run against it.

One store per target and event loop is shared by all that use it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from aiolease._names import check_name
from aiolease._waiting import wait_shielded
from aiolease.errors import ConfigurationError
from aiolease.stores.contract import Store, is_store, missing_from

__all__ = ["Store", "migrate", "open_store", "schema"]

Target = Any
"""A pool of asyncmy, aiomysql, asyncpg or psycopg, a SQLAlchemy `AsyncEngine` on one of them, a store, or a URL."""

_HELP = (
    "use a pool of asyncmy, aiomysql, asyncpg or psycopg, a SQLAlchemy AsyncEngine, "
    "mysql://user:password@host:3306/database, postgresql://user:password@host:5432/database, "
    "sqlite:///relative.db or sqlite:////absolute.db"
)
_DRIVERS_OF_URLS = {
    "postgresql": "postgresql+asyncpg:// or postgresql+psycopg://",
    "postgres": "postgresql+asyncpg:// or postgresql+psycopg://",
    "mysql": "mysql:// (it uses asyncmy)",
    "mariadb": "mariadb:// (it uses asyncmy)",
    "sqlite": "sqlite:///relative.db or sqlite:////absolute.db",
}


@dataclass(slots=True)
class _Shared:
    target: Target = field(repr=False)  # kept, so that no other can get its id meanwhile; a URL may hold a password
    store: Store
    users: int = 0


# All leases of a process on one target share a store, and so its few connections.
_open: dict[tuple[object, ...], _Shared] = {}


@asynccontextmanager
async def open_store(
    target: Target, *, table_prefix: str = "aiolease_", create_tables: bool = True
) -> AsyncIterator[Store]:
    """Opens a store on `target`, for many leases of this process, or to look at leases from outside.

    It connects when it is first used. If the target is a store, you get that store, and it is not closed. Any process
    may ask a store, whether or not anybody leads::

        await store.status(name)          # the `Lease`, or None
        await store.resign(name)          # the token of the term that is asked to resign, or None
        await store.history(name, job)    # the newest hundred `RunRecord`s, the newest last; or `limit=` of them
        await store.trigger(name, job)    # the tick that the run will have
        await store.pause(name, job)      # `until=`, `note=`; without a job, all of the lease
        await store.resume(name, job)
        await store.settle(name, job)
        await store.rerun(name, job, tick)
        await store.backfill(name, job, since, until)
        await store.cancel(name, job)
        await store.forget(name, job)     # these eight raise `InvalidJob` if no leader ever had such a job
        await store.runs(name)            # the newest rows of all jobs, the newest last
        await store.terms(name)           # the newest `TermRecord`s
        await store.overview(name)        # how all jobs stand

    Args:
        target: A pool of asyncmy, aiomysql, asyncpg or psycopg, a SQLAlchemy `AsyncEngine` on one of them, a URL, or a
            store.
        table_prefix: What the names of the tables start with.
        create_tables: Whether to create the tables if they are missing.

    Raises:
        ConfigurationError: The target is none of these, or a store that lacks a part.
    """
    if (given := _given_store(target)) is not None:
        yield given
        return
    identity = target if isinstance(target, str) else id(target)
    key = (id(asyncio.get_running_loop()), identity, table_prefix, create_tables)
    shared = _open.get(key)
    if shared is None:
        shared = _open[key] = _Shared(target, _make(target, table_prefix, create_tables))
    shared.users += 1
    try:
        yield shared.store
    finally:
        shared.users -= 1
        if shared.users == 0:
            del _open[key]
            closing = asyncio.create_task(shared.store.aclose())
            cancelled = await wait_shielded(closing)
            closing.result()
            if cancelled is not None:
                raise cancelled


def _given_store(target: Any) -> Store | None:
    """The target itself if it is a store.

    Raises:
        ConfigurationError: It is a store that lacks a part.
    """
    if not is_store(target):
        return None
    if missing := missing_from(target):
        problem = f"this store lacks {', '.join(missing)}; see aiolease.stores.contract.Store"
        raise ConfigurationError("target", f"<{type(target).__name__}>", problem)
    store: Store = target
    return store


def _make(target: Target, table_prefix: str, create_tables: bool) -> Store:
    if isinstance(target, str):
        return _from_url(target, table_prefix, create_tables)
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(target).__mro__}
    if ("sqlalchemy", "AsyncEngine") in kinds:
        if target.dialect.name == "postgresql":
            from aiolease.stores.postgresql import connectors
            from aiolease.stores.postgresql.lenders import EnginesLender

            connector = connectors.of_engine(target)
            engines = EnginesLender(target, connector.description, connector.talk)
            return _postgresql(connector, engines, table_prefix, create_tables)
        from aiolease.stores.mysql import drivers
        from aiolease.stores.network.lending import EngineLender

        driver = drivers.engine_driver(target)
        return _mysql(driver, EngineLender(target, driver.description), table_prefix, create_tables)
    for package in ("asyncmy", "aiomysql"):
        if (package, "Pool") in kinds:
            from aiolease.stores.mysql import drivers
            from aiolease.stores.mysql.lenders import PoolLender
            from aiolease.stores.mysql.unofficial import pool_parameters

            make = drivers.asyncmy_driver if package == "asyncmy" else drivers.aiomysql_driver
            return _mysql(make(lambda: pool_parameters(target)), PoolLender(target), table_prefix, create_tables)
    for package, name in (("asyncpg", "Pool"), ("psycopg_pool", "AsyncConnectionPool")):
        if (package, name) in kinds:
            from aiolease.stores.postgresql import connectors
            from aiolease.stores.postgresql.lenders import PoolLender as PoolsLender

            of_pool = connectors.of_asyncpg_pool if package == "asyncpg" else connectors.of_psycopg_pool
            connector = of_pool(target)
            return _postgresql(connector, PoolsLender(target, connector.talk), table_prefix, create_tables)
    problem = _HELP
    if inspect.isawaitable(target) or any("PoolContextManager" in name for _, name in kinds):
        problem = "await it first: `pool = await create_pool(…)`, or `async with create_pool(…) as pool:`"
    elif ("sqlalchemy", "Engine") in kinds:
        problem = "use create_async_engine: aiolease is asynchronous"
    elif ("psycopg_pool", "ConnectionPool") in kinds:
        problem = "use psycopg_pool.AsyncConnectionPool: aiolease is asynchronous"
    raise ConfigurationError("target", f"<{type(target).__name__}>", problem)


def _mysql(driver: Any, lender: Any, table_prefix: str, create_tables: bool) -> Store:
    from aiolease.stores.mysql import MySQLStore

    return MySQLStore(driver, lender, table_prefix=table_prefix, create_tables=create_tables)


def _postgresql(connector: Any, lender: Any, table_prefix: str, create_tables: bool) -> Store:
    from aiolease.stores.postgresql import PostgreSQLStore

    return PostgreSQLStore(connector, lender, table_prefix=table_prefix, create_tables=create_tables)


def _from_url(url: str, table_prefix: str, create_tables: bool) -> Store:
    scheme, separator, rest = url.partition("://")
    if separator and scheme in {"mysql", "mysql+asyncmy", "mariadb", "mariadb+asyncmy"}:
        from aiolease.stores.mysql import drivers
        from aiolease.stores.mysql.url import parse_url

        return _mysql(drivers.asyncmy_driver(parse_url(url)), None, table_prefix, create_tables)
    if separator and scheme in {"postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg"}:
        from aiolease.stores.postgresql.url import connector

        return _postgresql(connector(url), None, table_prefix, create_tables)
    if separator and scheme in {"sqlite", "sqlite+aiosqlite"}:
        path = unquote(rest.removeprefix("/"))
        if not rest.startswith("/") or not path or path == ":memory:" or "?" in rest:
            raise ConfigurationError(
                "target",
                "sqlite://…",
                "name a file that the processes share: sqlite:///relative.db or sqlite:////absolute.db",
            )
        from aiolease.stores.sqlite import SQLiteStore

        return SQLiteStore(path, table_prefix=table_prefix, create_tables=create_tables)
    problem = f"not a URL that is known: {_HELP}"
    if separator and (known := _DRIVERS_OF_URLS.get(scheme.partition("+")[0])):
        problem = f"it names a driver that aiolease does not use: take {known}"
    raise ConfigurationError("target", f"{scheme}://…" if separator else "…", problem)


async def migrate(target: Target, *, table_prefix: str = "aiolease_", check: bool = False) -> list[str]:
    """Brings the tables to the revision that this aiolease needs; makes them if they are missing.

    Workers of the release before go on meanwhile. A user who may change tables is needed; whoever comes first at a
    deploy does the same by itself if it may.

    Args:
        target: As in `open_store`.
        table_prefix: What the names of the tables start with.
        check: Whether to change nothing.

    Returns:
        The statements that were missing; none if the tables were of this revision, or of a higher one.

    Raises:
        ConfigurationError: As `open_store`.
        SchemaMissing: The tables are of a version from which there is no way, or this user may not change them.
        StoreUnavailable: And `StoreRejected`, as any other method of a store.
    """
    store: Any = _given_store(target) or _make(target, table_prefix, create_tables=False)
    if not hasattr(store, "migrate"):  # it has no tables
        return []
    try:
        statements: list[str] = await store.migrate(check=check)
        return statements
    finally:
        if store is not target:
            await store.aclose()


def schema(dialect: str) -> str:
    """The statements that make the tables.

    Args:
        dialect: ``"mysql"``, for MariaDB, too; ``"postgresql"``, or ``"sqlite"``.

    Raises:
        ConfigurationError: There is no such dialect.
    """
    if dialect == "mysql":
        from aiolease.stores.mysql.schema import schema as of_mysql

        return of_mysql()
    if dialect == "sqlite":
        from aiolease.stores.sqlite.schema import schema as of_sqlite

        return of_sqlite()
    if dialect == "postgresql":
        from aiolease.stores.postgresql.schema import schema as of_postgresql

        return of_postgresql()
    raise ConfigurationError("dialect", dialect, "use mysql, postgresql or sqlite")


def check_target(target: Target, name: str) -> None:
    """Checks a target and a lease's name without connecting.

    Raises:
        ConfigurationError: One of them cannot work.
    """
    check_name(name)
    if _given_store(target) is None:
        _make(target, "aiolease_", create_tables=True)
