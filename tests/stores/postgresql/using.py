"""Uses all that a store on PostgreSQL does, by either driver."""

from __future__ import annotations

from typing import Any

import pytest

from aiolease import open_store
from tests.campaigns import apart
from tests.stores.databases import free, renew, row
from tests.stores.ledgers import claiming, enrolled, now_of, run

drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])


def by(driver: str, url: str) -> str:
    return apart(url.replace("postgresql:", f"postgresql+{driver}:"))


async def uses_all(url: str, **options: Any) -> None:
    """The lease, the ledger, people."""
    async with open_store(url, **options) as store:
        term = await enrolled(store, "a", "b")
        now = await now_of(store)
        await store.record(term, claiming(run(term, "a", now, error="'\\ \0 ü €")))
        unfinished = (await store.take_stock("cron")).unfinished
        assert [(each.job, each.error) for each in unfinished] == [("a", "'\\ \ufffd ü €")]
        await store.pause("cron", "a")
        await store.trigger("cron", "b")
        await store.prune("cron", ["a"], 1)
        assert len((await store.overview("cron")).jobs) == 2
        lease = await row(store, "cron")
        assert (await renew(store, lease, 20)) is not None
        assert await store.resign("cron") == term.token
        await free(store, lease)
