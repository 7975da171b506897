"""A primary that dies, and a standby that is promoted: our own connections find it."""

from __future__ import annotations

import asyncio

import pytest

from aiolease import StoreUnavailable, leadership, open_store
from tests.campaigns import LIMIT, database_of, until
from tests.servers import PostgreSQLServer
from tests.servers.postgresql import QUICK
from tests.stores.databases import claim, renew


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_standby_that_is_promoted_is_found(driver: str) -> None:
    """A standby is passed over, wherever it stands in the URL; promoted, the term goes on there."""
    if reason := PostgreSQLServer.available():
        pytest.skip(reason)
    primary = await asyncio.to_thread(PostgreSQLServer.start, options=QUICK)
    with primary:
        primary.create_database("shop")
        with await asyncio.to_thread(PostgreSQLServer.standby_of, primary) as standby:
            hosts = ",".join(f"{server.host}:{server.port}" for server in (standby, primary))
            url = f"postgresql+{driver}://postgres@{hosts}/shop?sslmode=disable"
            alone = f"postgresql+{driver}://postgres@{standby.host}:{standby.port}/shop?sslmode=disable"
            async with open_store(url) as store, open_store(alone) as on_standby:
                lease = await claim(store, "cron")
                with pytest.raises(StoreUnavailable, match="standby"):
                    await on_standby.read("cron")
                held = "SELECT 1 FROM aiolease_lease WHERE holder IS NOT NULL"
                await until(lambda: standby.sql("SELECT to_regclass('aiolease_lease')::text", "shop") != [(None,)], "")
                await until(lambda: standby.sql(held, "shop") == [(1,)], "the standby has the claim")
                await asyncio.to_thread(primary.kill)
                with pytest.raises(StoreUnavailable):
                    await renew(store, lease, 20)
                await asyncio.to_thread(standby.promote)
                renewed = await renew(store, lease, 30)
                assert renewed is not None
                assert (renewed.holder, renewed.token, renewed.beat) == (lease.holder, lease.token, 30)
            async with leadership(url, "another", timeout=LIMIT) as lead, lead.transaction() as connection:
                await connection.execute("CREATE TABLE work (id INT)")
            assert database_of(url) == "shop"
            assert standby.sql("SELECT count(*) FROM work", "shop") == [(0,)]
