"""A hand-over with nothing but the driver: two commits, and on a server a hint between them that wakes who waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncmy
import asyncpg

from benchmarks.databases import FileDatabase, PostgreSQLDatabase, ServerDatabase

_CHANNEL: Final = "bare_hand_over"
_TABLE: Final = "bare_pair"
_TELL: Final = (
    f"WITH told AS (UPDATE {_TABLE} SET n = n + 1 WHERE id = 1 RETURNING 1) "
    f"SELECT pg_notify('{_CHANNEL}', '') FROM told"
)
_TAKE: Final = f"UPDATE {_TABLE} SET n = n + 1 WHERE id = 2"
_UPDATE: Final = f"UPDATE {_TABLE} SET n = n + 1 WHERE id = 1"
_SETTLED: Final = 0.05
"""Seconds after which a candidate waits in the lock."""

Bare = Callable[[], Awaitable[float]]


@asynccontextmanager
async def two_commits(database: FileDatabase, name: str) -> AsyncIterator[Bare]:
    """Gives a function that makes two commits, one after the other over two connections, and returns their seconds.

    Each connection has a thread of its own in this process, as aiolease's has.
    """
    async with database.bare(name) as leader, database.bare(name) as candidate:
        await leader.run(f"CREATE TABLE {_TABLE} (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)")
        await leader.run(f"INSERT INTO {_TABLE} VALUES (1, 0)")

        async def hand_over() -> float:
            started = time.perf_counter()
            for connection in (leader, candidate):
                await connection.run(_UPDATE)
            return time.perf_counter() - started

        yield hand_over


@asynccontextmanager
async def with_a_lock(database: ServerDatabase, name: str) -> AsyncIterator[Bare]:
    """Gives a function that makes one on MariaDB or MySQL, and returns its seconds.

    Two connections of asyncmy in this process. One commits and frees the lock in which the other waits, in one packet,
    as aiolease does; the other then commits.
    """
    server = database.server
    login: Any = {"host": server.host, "port": server.port, "user": server.user, "database": name, "autocommit": True}
    leader, candidate = await asyncmy.connect(**login), await asyncmy.connect(**login)
    try:
        await _run(leader, f"CREATE TABLE {_TABLE} (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)")
        await _run(leader, f"INSERT INTO {_TABLE} VALUES (1, 0)")

        async def hand_over() -> float:
            await _run(leader, f"DO GET_LOCK('{_CHANNEL}', 5)")
            waiting = asyncio.create_task(_run(candidate, f"DO GET_LOCK('{_CHANNEL}', 5)"))
            await asyncio.sleep(_SETTLED)
            started = time.perf_counter()
            told = asyncio.create_task(_run(leader, f"{_UPDATE}; DO RELEASE_LOCK('{_CHANNEL}')"))
            await waiting
            await _run(candidate, _UPDATE)
            took = time.perf_counter() - started
            await told
            await _run(candidate, f"DO RELEASE_LOCK('{_CHANNEL}')")
            return took

        yield hand_over
    finally:
        await candidate.ensure_closed()
        await leader.ensure_closed()


async def _run(connection: Any, sql: str) -> None:
    async with connection.cursor() as cursor:
        await cursor.execute(sql)
        while await cursor.nextset():
            pass


@asynccontextmanager
async def with_a_notification(database: PostgreSQLDatabase, name: str) -> AsyncIterator[Bare]:
    """Gives a function that makes one on PostgreSQL, and returns its seconds.

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
