from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from aiolease import current_leadership, leadership
from tests.docs.databases import lead_pools_there
from tests.docs.setup import Setup, Stage


async def three_invoices(stage: Stage) -> AsyncIterator[None]:
    sent: list[int] = []

    async def send(pool: Any, invoice: int) -> None:
        async with pool.acquire() as conn, conn.cursor() as cursor:
            await cursor.execute("SELECT %s", (invoice,))
            sent.append((await cursor.fetchone())[0])
        assert current_leadership().token == 1

    lead_pools_there(stage)
    stage.names.update(invoices=[1, 2, 3], send=send)
    yield
    assert sent == [1, 2, 3]
    assert not stage.names["lead"].is_leader


async def nobody_waits(stage: Stage) -> AsyncIterator[None]:
    stage.names.update(asyncio=asyncio, leadership=leadership)
    yield
    assert stage.names["waited"]


SETUPS = {
    "the-block": Setup(around=three_invoices, needs="mariadb"),
    "what-the-block-can-ask": Setup(around=nobody_waits),
    "to-lead-again-and-again": Setup(run=15.0, expect=("leading, term 1",)),
}
