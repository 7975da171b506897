"""How aiolease makes a new connection: with which password, in which thread, within which time. On every target."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiomysql
import asyncmy
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine

from aiolease import StoreUnavailable, leadership
from aiolease._waiting import time_limited
from aiolease.events import Renewed
from aiolease.stores.mysql.drivers import Driver
from aiolease.stores.mysql.session import MySQLSession
from aiolease.stores.network.connecting import Connecting
from aiolease.stores.network.resolve import resolve
from aiolease.testing import virtual_time
from tests.campaigns import LIMIT, Recorder, database_of
from tests.servers import MariaDBServer, Server
from tests.stores.mysql.connecting import user
from tests.stores.test_connecting import TIMES, renews_over_another_connection

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


# -- connecting that takes longer than an attempt


class Network:
    """Connects as slowly as it is told, and keeps what was made, and what was ended."""

    def __init__(self) -> None:
        self.begun = self.made = 0
        self.answers = asyncio.Event()
        self.error: Exception | None = None

    async def connect(self) -> int:
        self.begun += 1
        await self.answers.wait()
        if self.error is not None:
            raise self.error
        self.made += 1
        return self.made


async def attempt(connecting: Connecting[int], seconds: float) -> int | None:
    async with asyncio.timeout(seconds):
        return await connecting.get()


def virtually(test: Callable[[Network, Connecting[int]], Awaitable[None]]) -> Callable[[], None]:
    async def run() -> None:
        network = Network()
        await test(network, Connecting(network.connect))

    run.__doc__, run.__name__ = test.__doc__, test.__name__
    return virtual_time(run)


@virtually
async def test_the_next_attempt_takes_up_a_connecting(network: Network, connecting: Connecting[int]) -> None:
    """An attempt that has no more time leaves its connecting to the next, which waits for the rest of it."""
    with pytest.raises(TimeoutError):
        await attempt(connecting, 0.2)
    asyncio.get_running_loop().call_later(0.1, network.answers.set)
    assert await attempt(connecting, 0.2) == 1
    assert network.begun == 1
    assert await attempt(connecting, 0.2) == 2  # the first was taken


@virtually
async def test_a_connecting_that_hangs_is_begun_anew(network: Network, connecting: Connecting[int]) -> None:
    """One that takes longer than it should is ended by the attempt that gives up; the next has more time."""
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await attempt(connecting, 0.2)
    assert network.begun == 1
    network.answers.set()
    while (connection := await attempt(connecting, 0.2)) is None:
        pass
    assert (connection, network.begun) == (1, 2)


@virtually
async def test_a_slow_network_has_its_connection_in_the_end(network: Network, connecting: Connecting[int]) -> None:
    """However short the attempts: each connecting that was ended makes the next one more patient."""

    async def slowly() -> int:
        await asyncio.sleep(4.0)
        return 1

    connecting._make = slowly
    for _ in range(1000):
        with contextlib.suppress(TimeoutError):
            if await attempt(connecting, 0.1) is not None:
                return
    pytest.fail("no connection was made")


@virtually
async def test_connecting_ends_though_nobody_asks(network: Network, connecting: Connecting[int]) -> None:
    """A connecting that no attempt comes back for is ended by its own limit, and the next begins anew."""
    with pytest.raises(TimeoutError):
        await attempt(connecting, 0.2)
    await asyncio.sleep(60.0)
    assert not connecting.under_way
    network.answers.set()
    assert await attempt(connecting, 0.2) == 1


@virtually
async def test_a_failure_that_nobody_waited_for_is_told(network: Network, connecting: Connecting[int]) -> None:
    """The next attempt hears why connecting failed in between, unless that is long ago."""
    for later, told in ((1.0, True), (60.0, False)):
        network.error, network.answers = OSError("access denied"), asyncio.Event()
        with pytest.raises(TimeoutError):
            await attempt(connecting, 0.2)
        network.answers.set()
        await asyncio.sleep(later)
        if told:
            with pytest.raises(OSError, match="access denied"):
                await attempt(connecting, 0.2)
        else:
            network.error = None
            assert await attempt(connecting, 0.2) == 1


@virtually
async def test_ending_gives_what_was_made_and_not_taken(network: Network, connecting: Connecting[int]) -> None:
    """A session that closes ends the connecting, and gets the connection that was made meanwhile: none is leaked."""
    assert await connecting.end() is None
    with pytest.raises(TimeoutError):
        await attempt(connecting, 0.2)
    assert await connecting.end() is None
    assert (network.begun, network.made) == (1, 0)
    with pytest.raises(TimeoutError):
        await attempt(connecting, 0.2)
    network.answers.set()
    await asyncio.sleep(0.1)
    assert await connecting.end() == 1
    waiting = asyncio.create_task(connecting.get())
    network.answers.clear()
    await asyncio.sleep(0.1)
    assert await connecting.end() is None
    assert await waiting is None


class Slow:
    """A driver's connection, and its cursor, whose every answer takes 0.2 s."""

    description, rowcount, lastrowid = None, 0, 0

    async def cursor(self, _: type) -> Slow:
        return self

    async def execute(self, *_: object) -> None:
        await asyncio.sleep(0.2)

    async def nextset(self) -> bool:
        return False

    async def close(self) -> None:
        """Nothing to close."""

    def get_server_info(self) -> str:
        return "11.8.3-MariaDB"

    ensure_closed = close


@virtual_time
async def test_a_connection_that_is_made_too_late_to_ask_is_the_next_attempts() -> None:
    """To be cancelled in mid-query would cost it, and the next attempt might meet the same, for ever."""
    made = 0

    async def connect() -> Slow:
        nonlocal made
        made += 1
        await asyncio.sleep(0.2)
        return Slow()

    async def prepare(execute: Callable[[str], Awaitable[object]]) -> None:
        await execute("SET")

    session = MySQLSession(Driver("a database", connect, Slow), prepare, stuck=1.0)
    with pytest.raises(StoreUnavailable, match="no time is left for an answer"):
        await time_limited(0.5, "a database", session.run("SELECT 1"))
    assert await time_limited(0.5, "a database", session.run("SELECT 1")) == [[(0, 0)]]
    assert made == 1
