"""A server that takes no further connection: who has one leads on, the others wait, say why, and recover."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest

from aiolease import JobRegistry, leadership
from aiolease.events import Following, Lost, Renewed, RenewFailed, Waiting
from tests.campaigns import LIMIT, Journal, Recorder, campaign
from tests.servers import PostgreSQLServer
from tests.stores.postgresql.using import by

TIMES: dict[str, Any] = {"lease_duration": 1.5}
FULL = r"too many clients|connection slots"


@pytest.fixture(scope="module")
def small() -> Iterator[PostgreSQLServer]:
    """A server that takes few connections."""
    if reason := PostgreSQLServer.available():
        pytest.skip(reason)
    with PostgreSQLServer.start(options=["--max_connections=8", "--superuser_reserved_connections=2"]) as server:
        server.create_user("app", "", "")
        yield server


@contextlib.contextmanager
def filled(server: PostgreSQLServer, database: str) -> Iterator[None]:
    """All connections of the server are taken, but those that are an administrator's."""
    held = list[psycopg.Connection]()
    try:
        with contextlib.suppress(psycopg.OperationalError):
            while len(held) < 8:
                held.append(psycopg.connect(server.url(database, user="app"), sslmode="disable"))
        assert len(held) < 8, "the server takes more connections than it was told"
        yield
    finally:
        for connection in held:
            connection.close()


async def test_max_connections_reached(small: PostgreSQLServer) -> None:
    """The leader renews over the connection that it has. Candidates and the ledger wait, say why, and go on.

    The candidate is on psycopg, to which a server that refuses a login gives no code.
    """
    database = "crowded"
    small.sql(f"CREATE DATABASE {database} OWNER app")
    url, by_psycopg = (by(driver, small.url(database, user="app")) for driver in ("asyncpg", "psycopg"))
    heard, journal, ran = Recorder(), Journal(), asyncio.Event()
    jobs = JobRegistry()

    @jobs.every(0.5)
    async def tick() -> None:
        ran.set()

    async with AsyncExitStack() as term:
        lead = await term.enter_async_context(leadership(url, on_event=heard, **TIMES))
        await heard.next(Renewed)
        with filled(small, database):
            async with campaign(by_psycopg, journal=journal, **TIMES) as candidate:
                told = (await candidate.first(Waiting)).error
                assert any(part in told for part in FULL.split("|")), told
            working = asyncio.create_task(jobs.run(lead))
            await heard.next(Renewed, 2)
            lead.check()
            assert not ran.is_set()
        assert not heard.of(RenewFailed)
        # There are connections again: the ledger has one, and a candidate.
        await asyncio.wait_for(ran.wait(), LIMIT)
        async with campaign(by_psycopg, journal=journal, **TIMES) as candidate:
            await candidate.first(Following)
            with filled(small, database):
                await heard.next(Renewed, 2)
                working.cancel()
                await asyncio.wait([working])
                await term.aclose()
                await journal.leader()
    assert not heard.of(Lost)
