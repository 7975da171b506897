"""Logins by password, and the newest PostgreSQL that can be had: what a new version may have changed under us.

The store's other tests run there, too: those of awkward sessions, and some of fenced transactions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest

from aiolease import StoreRejected, leadership, open_store
from aiolease.events import Elected
from tests.campaigns import LIMIT, Recorder, database_of
from tests.servers import NewPostgreSQLServer, PostgreSQLServer
from tests.servers.postgresql import BY_PASSWORD, QUICK
from tests.stores.databases import claim, free
from tests.stores.postgresql.using import by, drivers, uses_all


@pytest.fixture(params=["postgresql", "postgresql_new"])
def server(request: pytest.FixtureRequest) -> PostgreSQLServer:
    """This machine's, and the newest."""
    made: PostgreSQLServer = request.getfixturevalue(request.param)
    made.recover()
    return made


@pytest.fixture
def by_password(server: PostgreSQLServer) -> Iterator[str]:
    """The URL of a fresh database, with a user who needs a password."""
    name = f"test_{uuid4().hex[:12]}"
    server.create_user(name, "pa:ss w%rd", "")
    if not server.sql(f"SELECT 1 FROM pg_roles WHERE rolname = '{BY_PASSWORD}'"):
        server.sql(f"CREATE ROLE {BY_PASSWORD}")
    server.sql(f"GRANT {BY_PASSWORD} TO {name}")
    server.sql(f'CREATE DATABASE "{name}" OWNER {name}')
    yield server.url(name, user=name, password="pa%3Ass%20w%25rd")
    server.drop_database(name)
    server.sql(f"DROP ROLE {name}")


@drivers
async def test_a_user_with_a_password_uses_all(by_password: str, driver: str) -> None:
    """The lease, the ledger, people, a hand-over by the bell, and fenced transactions, over SCRAM."""
    url = by(driver, by_password)
    await uses_all(url)
    heard = Recorder()
    async with open_store(url) as first, open_store(by(driver, by_password)) as second:
        lease = await claim(first, "bell")
        watching = asyncio.create_task(second.watch("bell", 30.0, lease=lease, poll=30.0, hint=True))
        await asyncio.sleep(0.1)
        await free(first, lease)
        async with asyncio.timeout(LIMIT):
            assert (found := await watching) is not None
        assert found.holder is None
    async with leadership(url, timeout=LIMIT, on_event=heard) as lead, lead.transaction() as connection:
        await connection.execute("CREATE TABLE work (id INT)")
    async with leadership(url, timeout=LIMIT) as lead, lead.transaction() as connection:
        await connection.execute("INSERT INTO work VALUES (1)")
    assert database_of(by_password) in heard.of(Elected)[0].database
    assert "pass" not in heard.of(Elected)[0].database


@drivers
async def test_a_wrong_password_is_no_passing_trouble(by_password: str, driver: str) -> None:
    """It is refused for good, and no message shows it; so is one that is not given."""
    for wrong in (":wr0ng-secret@", "@"):
        async with open_store(by(driver, by_password.replace(":pa%3Ass%20w%25rd@", wrong))) as store:
            with pytest.raises(StoreRejected, match="password") as refused:
                await store.read("cron")
            assert "wr0ng-secret" not in str(refused.value)


async def test_a_queue_of_notifications_that_is_full_holds_up_no_release() -> None:
    """A stranger listens within a transaction that never ends, and the server takes no more: the lease is released."""
    if reason := NewPostgreSQLServer.available():
        pytest.skip(reason)
    with NewPostgreSQLServer.start(options=[*QUICK, "--max_notify_queue_pages=64"]) as server:
        server.create_database("shop")
        stranger, loud = server.session("shop"), server.session("shop")
        try:
            loud.autocommit = True
            stranger.execute("LISTEN noise")
            stranger.commit()
            stranger.execute("SELECT 1")
            with pytest.raises(psycopg.errors.ProgramLimitExceeded):
                loud.execute("SELECT pg_notify('noise', repeat('x', 7990) || n) FROM generate_series(1, 200) AS n")
            async with open_store(server.url("shop")) as store:
                lease = await claim(store, "cron")
                await free(store, lease)
                assert (await claim(store, "cron")).token == lease.token + 1
        finally:
            stranger.close()
            loud.close()


async def test_it_is_newer(postgresql_new: PostgreSQLServer, postgresql: PostgreSQLServer) -> None:
    """Else it would show nothing."""
    newer, older = (int(server.sql("SHOW server_version_num")[0][0]) for server in (postgresql_new, postgresql))
    assert newer // 10_000 > older // 10_000
