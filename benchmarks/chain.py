"""A hand-over on PostgreSQL with nothing but its driver: a commit that notifies, the notification, another commit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg

from benchmarks.databases import PostgreSQLDatabase

_CHANNEL: Final = "bare_hand_over"
_TABLE: Final = "bare_pair"
_TELL: Final = (
    f"WITH told AS (UPDATE {_TABLE} SET n = n + 1 WHERE id = 1 RETURNING 1) "
    f"SELECT pg_notify('{_CHANNEL}', '') FROM told"
)
_TAKE: Final = f"UPDATE {_TABLE} SET n = n + 1 WHERE id = 2"

Bare = Callable[[], Awaitable[float]]


@asynccontextmanager
async def bare_hand_over(database: PostgreSQLDatabase, name: str) -> AsyncIterator[Bare]:
    """Gives a function that makes one, and returns its seconds.

    Two connections of asyncpg in this process, whatever driver is measured beside it.
    """
    url = database.server.url(database.name(name))
    leader, candidate = await asyncpg.connect(url), await asyncpg.connect(url)
    try:
        await leader.execute(f"CREATE TABLE {_TABLE} (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)")
        await leader.execute(f"INSERT INTO {_TABLE} VALUES (1, 0), (2, 0)")
        heard = asyncio.Event()
        await candidate.add_listener(_CHANNEL, lambda *_: heard.set())
        tell, take = await leader.prepare(_TELL), await candidate.prepare(_TAKE)
        await tell.fetch()
        await take.fetch()  # asyncpg hears of nothing between a prepare and the next exchange

        async def hand_over() -> float:
            heard.clear()
            started = time.perf_counter()
            telling: asyncio.Task[Any] = asyncio.create_task(tell.fetch())
            await heard.wait()
            await take.fetch()
            took = time.perf_counter() - started
            await telling
            return took

        yield hand_over
    finally:
        await candidate.close()
        await leader.close()
