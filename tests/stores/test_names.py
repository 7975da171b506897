"""Names of leases, holders and tables are kept apart byte by byte."""

from __future__ import annotations

import asyncio
from typing import Any, cast
from urllib.parse import quote
from uuid import uuid4

import pytest

from aiolease import leadership, open_store
from aiolease.errors import ConfigurationError, SchemaMissing, StoreUnavailable
from aiolease.stores.mysql import MySQLStore
from aiolease.stores.records import Lease
from tests.campaigns import LIMIT
from tests.stores.databases import (
    NAMES,
    Database,
    InMemory,
    InSQLite,
    MakeStore,
    OnServer,
    claim,
    free,
    renew,
    row,
    state,
    with_tables,
)

# -- names


async def test_names_are_compared_byte_for_byte(database: Database, make_store: MakeStore) -> None:
    """Names that differ in one byte, in case alone, or mean something in SQL are leases of their own."""
    store, other = await make_store(), await make_store()
    won: dict[str, Lease] = {}
    for name in NAMES:
        assert await store.read(name) is None, name
        won[name] = await claim(store, name)
        assert (won[name].name, won[name].token) == (name, 1)
    for name, lease in won.items():
        assert state(await other.read(name)) == state(lease)
        assert database.fence(name) == (lease.holder, 1)
        assert await store.read(name + " ") is None
    for name, lease in won.items():
        assert await other.resign(name) == 1
        renewed = await renew(store, lease, lease.beat + 1)
        assert renewed is not None
        assert (renewed.name, renewed.resign_token) == (name, 1)
        await free(store, lease)
    for name in NAMES:
        lease = await row(other, name)
        assert (lease.name, lease.holder, lease.token) == (name, None, 1)


async def test_holders_are_compared_byte_for_byte(make_store: MakeStore) -> None:
    """A holder that differs in case alone, or in length, is a stranger."""
    store = await make_store()
    won = await store.claim("cron", "Host-1-abc", 30.0, seen=None, force=False)
    assert won is not None
    for stranger in ("host-1-abc", "Host-1-abcd", "Host-1-ab", "Host-1-abc\\", "%", ""):
        assert state(await store.renew("cron", stranger, won.token, won.beat + 1, 99.0)) == state(won)
        assert not await store.release("cron", stranger, won.token)
    assert await store.release("cron", "Host-1-abc", won.token)


@pytest.mark.parametrize("fate", ["released", "expired"])
async def test_a_token_that_was_set_back_lowers_no_fence(database: Database, make_store: MakeStore, fate: str) -> None:
    """A row from an older backup, or changed by hand: the next term is above every term that the fence knows."""
    store = await make_store()
    for _ in range(5):
        lease = await claim(store, "cron")
        await free(store, lease)
    if fate == "expired":
        held = await store.claim("cron", "dead", 0.2, seen=await store.read("cron"), force=False)
        assert held is not None
        assert held.token == 6
        while not (await row(store, "cron")).expired:
            await asyncio.sleep(0.05)
    database.set_token("cron", 2)
    won, tries = None, 0
    while won is None or won.holder != "next":
        tries += 1
        assert tries < 5
        won = await store.claim("cron", "next", 30.0, seen=await store.read("cron"), force=False)
    above = 6 if fate == "expired" else 5
    assert won.token == above + 1
    assert database.fence("cron") == ("next", above + 1)
    assert (await renew(store, won, won.beat + 1)) is not None
    await free(store, won)


@pytest.mark.parametrize("name", ["", "two words", "x" * 101, "naïve", "tab\t"])
async def test_what_cannot_name_a_lease_is_refused_by_every_question(make_store: MakeStore, name: str) -> None:
    """A question about an impossible lease name is an error, not an empty answer."""
    store: Any = await make_store()
    for question in (store.status, store.resign):
        with pytest.raises(ConfigurationError):
            await question(name)
    for question in (store.history, store.trigger, store.pause, store.resume):
        with pytest.raises(ConfigurationError):
            await question(name, "job")


@pytest.mark.parametrize("column", ["elected_at", "renewed_at", "expires_at"])
async def test_a_moment_that_cannot_be_read_is_trouble_of_the_store(
    database: Database, make_store: MakeStore, column: str
) -> None:
    """A date that somebody wrote by hand, and Python has none for, is `StoreUnavailable`, until somebody mends it."""
    if isinstance(database, InMemory):
        pytest.skip("memory has no other hands")
    store = await make_store()
    lease = await claim(store, "cron")
    kept = lease.expires_at
    if isinstance(database, InSQLite):
        database.sql(f"UPDATE aiolease_lease SET {column} = 'yesterday'")
    else:
        assert isinstance(database, OnServer)
        database.damage(column, "cron")
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        await store.read("cron")
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        await cast(Any, store).status("cron")
    if isinstance(database, InSQLite):
        database.sql(f"UPDATE aiolease_lease SET {column} = ?", round(kept.timestamp() * 1e6))
    else:
        database.server.sql(
            f"UPDATE aiolease_lease SET {column} = '{kept:%Y-%m-%d %H:%M:%S}{database.utc}'", database.schema
        )
    assert (await row(store, "cron")).holder == lease.holder
    await free(store, await row(store, "cron"))


# -- tables


@with_tables
async def test_tables_are_not_made_unasked(database: Database, make_store: MakeStore) -> None:
    """Without `create_tables`, missing tables are an error that says so, again and again, until somebody makes them."""
    store = await make_store(create_tables=False)
    for _ in range(2):
        with pytest.raises(SchemaMissing, match=r"a worker makes them at its start|create_tables=False|no such file"):
            await store.read("cron")
    with pytest.raises(SchemaMissing):
        await store.claim("cron", "h", 30.0, seen=None, force=False)
    won = await claim(await make_store(), "cron")
    assert state(await store.read("cron")) == state(won)
    assert (await claim(store, "cron", force=True)).token == 2


@with_tables
async def test_tables_are_made_by_all_at_once(database: Database, make_store: MakeStore) -> None:
    """Processes that start together on an empty database all find, or make, the tables."""
    for attempt in range(5):
        stores = [await make_store(table_prefix=f"t{attempt}_") for _ in range(4)]
        async with asyncio.timeout(LIMIT):
            assert await asyncio.gather(*(store.read("cron") for store in stores)) == [None] * 4
        await claim(stores[0], "cron")
        assert (await row(stores[3], "cron")).token == 1


@with_tables
async def test_prefixes_separate(database: Database, make_store: MakeStore) -> None:
    """Leases of one name in tables of another prefix have nothing to do with each other."""
    first, second = await make_store(table_prefix="a_"), await make_store(table_prefix="b_")
    won = await claim(first, "cron")
    other = await claim(second, "cron")
    assert (won.token, other.token) == (1, 1)
    await free(first, won)
    assert state(await second.read("cron")) == state(other)


@with_tables
@pytest.mark.parametrize("prefix", ["a-b", "a b", "", 'a"', "x" * 41, "ä"])
async def test_a_prefix_must_name_tables(database: Database, make_store: MakeStore, prefix: str) -> None:
    """A prefix that cannot stand in a table's name is refused before anything is sent."""
    with pytest.raises(ConfigurationError, match="table_prefix"):
        await make_store(table_prefix=prefix)


@pytest.mark.parametrize("database", ["mariadb", "mysql9", "postgresql+asyncpg", "postgresql+psycopg"], indirect=True)
async def test_a_database_may_have_any_name(database: OnServer) -> None:
    """A lease is claimed, renewed and fenced there, and on MySQL and MariaDB its leader holds the lock."""
    server, schema = database.server, f"größe 日本 100%s it's {uuid4().hex[:8]}"
    server.create_database(schema)
    try:
        url = f"{database.url.rpartition('/')[0]}/{quote(schema)}"
        async with open_store(url) as store, leadership(store, timeout=LIMIT) as lead:
            async with lead.transaction():
                pass
            if isinstance(store, MySQLStore):
                assert server.sql(f"SELECT IS_USED_LOCK('{store._sql.lock_name('default')}')") != [(None,)]
            lease = await claim(store, "other")
            for beat in range(lease.beat + 1, lease.beat + 4):
                assert cast(Any, await renew(store, lease, beat)).beat == beat
    finally:
        server.drop_database(schema)
