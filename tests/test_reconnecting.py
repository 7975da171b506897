"""How a connection of ours is made anew: by which password, by whose threads, and in whose time. On every target."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiomysql
import asyncmy
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine

from aiolease import leadership
from aiolease.events import Renewed, RenewFailed
from aiolease.stores._resolve import resolve
from tests.campaigns import LIMIT, Recorder, database_of, sessions
from tests.servers import MariaDBServer, Server
from tests.test_mysql import user

TIMES = {"lease_duration": LIMIT, "heartbeat_interval": 0.2}
KINDS = ["url", "asyncmy", "aiomysql", "engine-asyncmy", "engine-aiomysql"]


@asynccontextmanager
async def target_of(kind: str, host: str, server: Server, url: str) -> AsyncIterator[Any]:
    """A target of a kind, as the administrator."""
    login: dict[str, Any] = {"host": host, "port": server.port, "user": "root", "db": database_of(url)}
    if kind == "url":
        yield f"mysql://root@{host}:{server.port}/{database_of(url)}"
    elif kind in {"asyncmy", "aiomysql"}:
        module: Any = asyncmy if kind == "asyncmy" else aiomysql
        async with module.create_pool(minsize=0, **login) as pool:
            yield pool
    else:
        engine = create_async_engine(f"mysql+{kind.removeprefix('engine-')}://", connect_args=login)
        yield engine
        await engine.dispose()


def kill(server: Server, url: str) -> None:
    for number in sessions(server, url):
        server.sql(f"KILL {number}")


async def renews_over_another_connection(heard: Recorder, server: Server, url: str) -> None:
    """Ends the connections of the lease, and waits until it is renewed over a new one."""
    await heard.next(Renewed)
    kill(server, url)
    await heard.next(RenewFailed)
    await heard.next(Renewed)


# -- a password that changes


@asynccontextmanager
async def rotating(
    kind: str, server: Server, url: str, name: str, password: str
) -> AsyncIterator[tuple[Any, Callable[[str], None]]]:
    """A target of a kind, and what tells it another password."""
    now = {"password": password}
    login: dict[str, Any] = {"host": server.host, "port": server.port, "user": name}
    login["db"] = database_of(url)
    if kind == "asyncmy, by a callable":
        creator = lambda: now["password"]  # noqa: E731
        async with asyncmy.create_pool(minsize=0, password_creator=creator, **login) as pool:
            yield pool, lambda fresh: now.update(password=fresh)
    elif kind.startswith("engine"):
        engine = create_async_engine(f"mysql+{kind.removeprefix('engine-')}://", connect_args=login)

        @event.listens_for(engine.sync_engine, "do_connect")
        def give(dialect: Any, record: Any, args: Any, parameters: dict[str, Any]) -> None:
            parameters.update(now)

        yield engine, lambda fresh: now.update(password=fresh)
        await engine.dispose()
    else:
        module: Any = asyncmy if kind == "asyncmy" else aiomysql
        async with module.create_pool(minsize=0, password=password, **login) as pool:
            yield pool, lambda fresh: pool._conn_kwargs.update(password=fresh)


@pytest.mark.parametrize("kind", ["asyncmy", "asyncmy, by a callable", "aiomysql", "engine-asyncmy", "engine-aiomysql"])
async def test_a_password_that_was_changed_is_used_for_the_next_connection(
    mariadb: MariaDBServer, kind: str, own_database: str
) -> None:
    """A password that is changed in a pool's arguments, or that a callable or an event gives, is read anew."""
    url, heard = mariadb.url(own_database), Recorder()
    with user(mariadb, url, "first", "ALL") as name:
        async with rotating(kind, mariadb, url, name, "first") as (target, tell):  # noqa: SIM117
            async with leadership(target, on_event=heard, timeout=LIMIT, **TIMES):  # type: ignore[arg-type]
                await heard.next(Renewed)
                mariadb.sql(f"ALTER USER '{name}'@'%' IDENTIFIED BY 'second'")
                tell("second")
                await renews_over_another_connection(heard, mariadb, url)


# -- names of hosts


@contextmanager
def full_executor() -> Iterator[None]:
    """The loop's default executor is busy with an application's threads, and stays so."""
    loop, over = asyncio.get_running_loop(), threading.Event()
    executor = ThreadPoolExecutor(1)
    loop.set_default_executor(executor)
    busy = [loop.run_in_executor(None, over.wait) for _ in range(3)]
    try:
        yield
    finally:
        over.set()
        executor.shutdown()
        for future in busy:
            future.cancel()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_full_default_executor_costs_no_lease(mariadb: MariaDBServer, kind: str, own_database: str) -> None:
    """No connection of ours waits behind an application's threads: it is made, and made anew, while they sleep."""
    url, heard = mariadb.url(own_database), Recorder()
    async with target_of(kind, "localhost", mariadb, url) as target:
        with full_executor():
            async with leadership(target, on_event=heard, timeout=LIMIT, **TIMES):  # type: ignore[arg-type]
                await renews_over_another_connection(heard, mariadb, url)


@pytest.mark.parametrize("kind", KINDS)
async def test_every_address_of_a_host_is_tried(
    mariadb: MariaDBServer, kind: str, own_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host with an address where nobody listens is reached by another."""
    url = mariadb.url(own_database)

    def look_up(host: str, *args: Any, **options: Any) -> list[Any]:
        assert host == "db.example"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found, 0)) for found in ("127.0.0.2", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    async with target_of(kind, "db.example", mariadb, url) as target, leadership(target, timeout=LIMIT) as lead:
        assert lead.is_leader


async def test_lookups_of_one_name_share_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of names that does not answer costs one thread, and no more, however often a name is asked for.

    A caller that was cancelled does not spoil the answer of another; the next one after the answer asks anew.
    """
    asked, answer = [], threading.Event()

    def look_up(host: str, *args: Any, **options: Any) -> list[Any]:
        asked.append(host)
        answer.wait(LIMIT)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))] * 2

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    callers = [asyncio.create_task(resolve("db.example")) for _ in range(20)]
    await asyncio.sleep(0)
    callers[0].cancel()
    await asyncio.wait(callers[:1])
    answer.set()
    async with asyncio.timeout(LIMIT):
        assert await asyncio.gather(*callers[1:]) == [["127.0.0.1"]] * 19
        assert asked == ["db.example"]
        assert await resolve("db.example") == ["127.0.0.1"]
    assert asked == ["db.example"] * 2
    assert await resolve("::1") == ["::1"]
    assert await resolve("10.0.0.1") == ["10.0.0.1"]
