"""How aiolease reaches a server: in which thread names are looked up, by which addresses. On every target."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import aiomysql
import asyncmy
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from aiolease import Leadership, leadership, run_as_leader
from aiolease.events import Renewed
from tests.campaigns import LIMIT, Recorder, database_of, full_executor, kill_sessions, proxy_of, sessions
from tests.servers import Server
from tests.stores.transactions.lending import lent, pairs

TIMES = {"lease_duration": LIMIT, "heartbeat_interval": 0.2}

ON_MYSQL = [("mariadb", kind) for kind in ("url", "asyncmy", "aiomysql", "engine-asyncmy", "engine-aiomysql")]
ON_POSTGRESQL = [
    ("postgresql", kind)
    for kind in ("url-asyncpg", "url-psycopg", "asyncpg", "psycopg", "engine-asyncpg", "engine-psycopg")
]
every_target = pairs(*ON_MYSQL, *ON_POSTGRESQL)


@asynccontextmanager
async def target_of(kind: str, host: str, server: Server, url: str, *, port: int = 0) -> AsyncIterator[Any]:
    """A target of a kind, as the administrator."""
    if server.kind == "postgresql":
        async with lent(kind, url.replace(server.host, host), port=port or server.port) as lend:
            yield lend.target
        return
    login: dict[str, Any] = {"host": host, "port": port or server.port, "user": "root", "db": database_of(url)}
    if kind == "url":
        yield f"mysql://root@{host}:{port or server.port}/{database_of(url)}"
    elif kind in {"asyncmy", "aiomysql"}:
        module: Any = asyncmy if kind == "asyncmy" else aiomysql
        async with module.create_pool(minsize=0, **login) as pool:
            yield pool
    else:
        engine = create_async_engine(f"mysql+{kind.removeprefix('engine-')}://", connect_args=login)
        yield engine
        await engine.dispose()


async def renews_over_another_connection(heard: Recorder, server: Server, url: str) -> None:
    """Ends the connections of the lease, and waits until it is renewed over a new one."""
    await heard.next(Renewed)
    ended = kill_sessions(server, url)
    await heard.next(Renewed, 2)  # the first may have been on its way
    assert not ended & set(sessions(server, url))


@every_target
async def test_a_full_default_executor_costs_no_lease(mysql_server: Server, mysql_url: str, kind: str) -> None:
    """No connection of ours waits behind an application's threads: it is made, and made anew, while they sleep."""
    heard = Recorder()
    async with target_of(kind, "localhost", mysql_server, mysql_url) as target:
        with full_executor():
            async with leadership(target, on_event=heard, timeout=LIMIT, **TIMES) as lead:  # type: ignore[arg-type]
                await renews_over_another_connection(heard, mysql_server, mysql_url)
                if kind.startswith("url"):  # one is made for each transaction
                    async with lead.transaction():
                        pass


@every_target
async def test_every_address_of_a_host_is_tried(
    mysql_server: Server, mysql_url: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host with an address where nobody listens is reached by another."""

    def look_up(host: str, *args: Any, **options: Any) -> list[Any]:
        assert host == "db.example"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found, 0)) for found in ("127.0.0.2", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    async with (
        target_of(kind, "db.example", mysql_server, mysql_url) as target,
        leadership(target, timeout=LIMIT) as lead,
    ):
        assert lead.is_leader


@pairs(*ON_MYSQL, ("postgresql", "url-asyncpg"))
async def test_a_short_lease_connects_over_a_slow_network(mysql_server: Server, mysql_url: str, kind: str) -> None:
    """With attempts that end after a sixth of the lease, and a round trip of a third of that, a leader is elected."""
    async with leadership(mysql_url, timeout=LIMIT):
        pass  # the tables are there
    async with proxy_of(mysql_server) as proxy:
        proxy.delay(0.09)
        async with (
            target_of(kind, "localhost", mysql_server, mysql_url, port=proxy.port) as target,
            leadership(target, lease_duration=3.0, timeout=LIMIT) as lead,
        ):
            assert lead.token == 2


@pairs(("mariadb", "url"), ("postgresql", "url-asyncpg"), ("postgresql", "url-psycopg"))
async def test_a_store_that_closes_leaves_no_connecting(mysql_server: Server, mysql_url: str, kind: str) -> None:
    """A campaign that is cancelled while its connection is being made leaves neither a task nor a connection."""
    async with (
        proxy_of(mysql_server) as proxy,
        target_of(kind, "localhost", mysql_server, mysql_url, port=proxy.port) as target,
    ):
        proxy.swallow("to_client")
        campaign = asyncio.create_task(run_as_leader(target, never, lease_duration=1.0))
        async with asyncio.timeout(LIMIT):
            while proxy.connections < 2:
                await asyncio.sleep(0.01)
        campaign.cancel()
        await asyncio.wait([campaign])
        assert campaign.cancelled()


async def never(lead: Leadership) -> None:
    pytest.fail("nobody can lead here")


@pairs(*(("postgresql", kind) for kind in ("url-asyncpg", "url-psycopg", "asyncpg", "psycopg")))
async def test_several_hosts_of_which_one_is_unknown(
    mysql_server: Server, mysql_url: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that nobody knows is passed over, and so is an address where nobody listens; each is looked up by us."""
    asked = set()

    def look_up(host: str, *args: Any, **options: Any) -> list[Any]:
        asked.add((host, threading.current_thread().name))
        if host == "gone.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        found = "127.0.0.2" if host == "old.example" else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    names = ["gone.example", "old.example", "new.example"]
    hosts = ",".join(f"{name}:{mysql_server.port}" for name in names)
    url = f"postgresql://postgres@{hosts}/{database_of(mysql_url)}"
    async with lent(kind, url) as lend, leadership(lend.target, timeout=LIMIT) as lead:
        lead.check()
    assert asked == {(name, "aiolease-resolver") for name in names}


@pairs(*(("postgresql", kind) for kind in ("url-asyncpg", "url-psycopg", "asyncpg", "psycopg")))
async def test_a_socket_of_the_file_system(mysql_server: Server, mysql_url: str, kind: str) -> None:
    """A host that is a folder is a socket in it: no name is looked up."""
    url = mysql_url.replace(mysql_server.host, quote(str(mysql_server.folder), safe=""))
    async with lent(kind, url) as lend:
        with full_executor():
            async with leadership(lend.target, timeout=LIMIT) as lead:
                lead.check()
