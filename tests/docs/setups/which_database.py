from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import psycopg_pool

from aiolease import leadership
from tests.docs.setup import Setup, Stage

SHOWN = "postgresql://app:secret@db/shop"


def led_there(url: str, kind: Any) -> Any:
    """A pool's class or function that takes the page's URL for that of the fresh database."""

    def made(conninfo: str, **arguments: Any) -> Any:
        assert conninfo == SHOWN
        return kind(url, **arguments)

    return made


async def one_invoice(stage: Stage) -> AsyncIterator[None]:
    url = f"{stage.environment['AIOLEASE_URL']}?sslmode=disable"
    admin = await asyncpg.connect(url)
    await admin.execute("CREATE TABLE invoices (id INT PRIMARY KEY, reminded INT NOT NULL DEFAULT 0)")
    await admin.execute("INSERT INTO invoices (id) VALUES (1)")
    vars(asyncpg)["create_pool"] = led_there(url, asyncpg.create_pool)
    pool = led_there(url, psycopg_pool.AsyncConnectionPool)
    stage.names.update(AsyncConnectionPool=pool, asyncpg=asyncpg, leadership=leadership)
    yield
    assert await admin.fetchval("SELECT reminded FROM invoices") == 2
    assert await admin.fetchval("SELECT token FROM aiolease_lease WHERE name = 'billing'") == 2
    await admin.close()


SETUPS = {"the-same-code-on-postgresql": Setup(around=one_invoice, needs="postgresql")}
