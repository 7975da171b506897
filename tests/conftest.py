"""Fixtures for every test: private servers, fresh databases, and the check that nothing is left over.

They count on ``asyncio_mode = "auto"`` and ``filterwarnings = ["error"]``.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
import socket
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import pytest
from loguru import logger

from tests.quick import is_quick
from tests.servers import (
    GaleraCluster,
    MariaDBServer,
    MySQLServer,
    NewPostgreSQLServer,
    PgBouncer,
    PostgreSQLServer,
    Server,
)
from tests.servers.awkward import make_awkward
from tests.servers.postgresql import QUICK

if TYPE_CHECKING:
    from loguru import Message


LONG = ("/simulation/", "/faults/", "/test_failover.py", "/test_frozen_")
"""Where the tests are that take minutes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the quick tests. Puts tests that take minutes first, so that no worker is left with one at the end."""
    for item in items:
        if is_quick(item):
            item.add_marker("quick")
    items.sort(key=lambda item: not any(part in item.nodeid for part in LONG))


def pytest_collection_finish() -> None:
    """Freezes the objects that the imports made, so that `nothing_left` looks only at what a test made."""
    gc.collect()
    gc.freeze()


S = TypeVar("S", bound=Server)


def started(kind: type[S], **options: Any) -> Iterator[S]:
    """A server of a kind, or the reason why it cannot be had; for `Server.start`'s options."""
    if reason := kind.available():
        pytest.skip(reason)
    with kind.start(**options) as server:
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDBServer]:
    """A MariaDB server."""
    if reason := MariaDBServer.available():
        pytest.skip(reason)
    with MariaDBServer.start() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_snapshot() -> Iterator[MariaDBServer]:
    """A MariaDB server whose transactions fail on rows that changed since their snapshot (error 1020)."""
    if reason := MariaDBServer.available():
        pytest.skip(reason)
    with MariaDBServer.start(options=["--innodb-snapshot-isolation=ON"]) as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_awkward() -> Iterator[MariaDBServer]:
    """A MariaDB server on which sessions are as awkward as ordinary users may have them."""
    if reason := MariaDBServer.available():
        pytest.skip(reason)
    with MariaDBServer.start() as server:
        make_awkward(server)
        yield server


@pytest.fixture(scope="session")
def mysql9_awkward() -> Iterator[MySQLServer]:
    """A MySQL 9 server on which sessions are as awkward as ordinary users may have them."""
    if reason := MySQLServer.available():
        pytest.skip(reason)
    with MySQLServer.start() as server:
        make_awkward(server)
        yield server


@pytest.fixture(scope="session")
def mysql9() -> Iterator[MySQLServer]:
    """A MySQL 9 server."""
    if reason := MySQLServer.available():
        pytest.skip(reason)
    with MySQLServer.start() as server:
        yield server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQLServer]:
    """A PostgreSQL server."""
    yield from started(PostgreSQLServer, options=QUICK)


@pytest.fixture(scope="session")
def postgresql_new() -> Iterator[NewPostgreSQLServer]:
    """The newest PostgreSQL that can be had."""
    yield from started(NewPostgreSQLServer, options=QUICK)


@pytest.fixture(scope="session")
def postgresql_awkward() -> Iterator[PostgreSQLServer]:
    """A PostgreSQL server, the newest if it can be had, on which sessions are as awkward as they may be."""
    kind = PostgreSQLServer if NewPostgreSQLServer.available() else NewPostgreSQLServer
    for server in started(kind, options=QUICK):
        make_awkward(server)
        yield server


@pytest.fixture(scope="session", params=["transaction", "session"])
def pgbouncer(request: pytest.FixtureRequest, postgresql: PostgreSQLServer) -> Iterator[PgBouncer]:
    """PgBouncer before that server, in each mode."""
    if reason := PgBouncer.available():
        pytest.skip(reason)
    with PgBouncer.start(postgresql, request.param) as bouncer:
        yield bouncer


def at_real_time(server: S) -> Iterator[S]:
    """Before a test and behind it."""
    server.recover()
    yield server
    server.recover()


@pytest.fixture(scope="session")
def _mariadb_on_faked_time() -> Iterator[MariaDBServer]:
    yield from started(MariaDBServer, faketime=True)


@pytest.fixture
def mariadb_faketime(_mariadb_on_faked_time: MariaDBServer) -> Iterator[MariaDBServer]:
    """A MariaDB server whose clock ``step_clock`` moves; every test finds it at real time."""
    yield from at_real_time(_mariadb_on_faked_time)


@pytest.fixture(scope="session")
def _postgresql_on_faked_time() -> Iterator[PostgreSQLServer]:
    yield from started(PostgreSQLServer, faketime=True)


@pytest.fixture
def postgresql_faketime(_postgresql_on_faked_time: PostgreSQLServer) -> Iterator[PostgreSQLServer]:
    """A PostgreSQL server whose clock ``step_clock`` moves; every test finds it at real time."""
    yield from at_real_time(_postgresql_on_faked_time)


@pytest.fixture(scope="session")
def _galera_cluster() -> Iterator[GaleraCluster]:
    if reason := GaleraCluster.available():
        pytest.skip(reason)
    with GaleraCluster.start() as cluster:
        yield cluster


@pytest.fixture
def galera(_galera_cluster: GaleraCluster) -> GaleraCluster:
    """A synced cluster of three nodes, started by the first test that asks; every test finds it whole."""
    _galera_cluster.recover()
    return _galera_cluster


@pytest.fixture
def own_database(mariadb: MariaDBServer) -> Iterator[str]:
    """The name of a fresh, empty database on the MariaDB server."""
    mariadb.recover()
    name = f"test_{uuid4().hex[:12]}"
    mariadb.create_database(name)
    yield name
    mariadb.drop_database(name)


@pytest.fixture(params=["mariadb", "mysql9"])
def mysql_server(request: pytest.FixtureRequest) -> Server:
    """Each kind of server in turn, serving, whatever the test before did to it.

    For others: ``@pytest.mark.parametrize("mysql_server", ["postgresql+psycopg"], indirect=True)``.
    """
    server = request.getfixturevalue(request.param.partition("+")[0])
    assert isinstance(server, Server)
    server.recover()
    return server


@pytest.fixture
def mysql_url(request: pytest.FixtureRequest, mysql_server: Server) -> Iterator[str]:
    """The URL of a fresh, empty database; with the driver that the server's parameter names, if it does."""
    name = f"test_{uuid4().hex[:12]}"
    mysql_server.create_database(name)
    _, plus, driver = request.node.callspec.params["mysql_server"].partition("+")
    yield mysql_server.url(name).replace("://", f"{plus}{driver}://")
    mysql_server.recover()
    mysql_server.drop_database(name)


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> None:
    """Fail an async test that leaves a task or a connection behind."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("_nothing_left_in_the_loop")


@pytest.fixture
async def _nothing_left_in_the_loop() -> AsyncIterator[None]:
    tasks, sockets = asyncio.all_tasks(), open_sockets()
    yield
    for _ in range(3):  # what was cancelled, closed, or has its result, may end
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - tasks - {asyncio.current_task()}
    described = [repr(task) for task in left]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    with warnings.catch_warnings(record=True) as unclosed:
        warnings.simplefilter("always", ResourceWarning)
        gc.collect()
    described += [str(w.message) for w in unclosed if issubclass(w.category, ResourceWarning)]
    described += [f"an open connection to {peer}" for name, peer in open_sockets().items() if name not in sockets]
    if described:
        pytest.fail("left over by the test:\n" + "\n".join(described))


def open_sockets() -> dict[str, str]:
    """The sockets of this process and their peers. asyncmy gives no warning of a connection left open."""
    found = {}
    for entry in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or not connected
            name = os.readlink(entry)
            if name.startswith("socket:"):
                with socket.socket(fileno=os.dup(int(entry.name))) as copy:
                    found[name] = str(copy.getpeername())
    return found


@pytest.fixture
def log() -> Iterator[list[Message]]:
    """What was logged during the test."""
    records: list[Message] = []
    sink = logger.add(records.append, level="TRACE", format="{level} {message}")
    yield records
    logger.remove(sink)
