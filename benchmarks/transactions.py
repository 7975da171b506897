"""A fenced transaction, and one that ends its run, beside a plain one: BEGIN, one INSERT, COMMIT."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import aiosqlite
import asyncmy
import asyncpg
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from aiolease import JobRun, Leadership, leadership, open_store
from aiolease.stores.batch import Batch
from aiolease.stores.records import RunRecord, TermKey
from benchmarks.databases import Database, PostgreSQLDatabase, ServerDatabase, by_each_driver
from benchmarks.report import Figure, Table, milliseconds
from benchmarks.samples import median, percentile

AIMS = {"mariadb": 1.25, "postgresql": 1.25, "mysql": 1.5}
FINAL_AIM = 1.5

WARM = 20
Call = Callable[[], Awaitable[None]]
Connect = Callable[[], AbstractAsyncContextManager[Any]]


async def measure(databases: Sequence[Database], *, quick: bool) -> Table:
    times = 200 if quick else 600
    table = Table(
        topic="transactions",
        title=f"transactions: with one INSERT, fenced beside plain, by turns, {times} of each",
        notes=[
            "plain is BEGIN, INSERT and COMMIT on a connection of the same pool, asyncmy's (autocommit), asyncpg's or",
            "psycopg's (which sends BEGIN and COMMIT by itself); on SQLite one of aiosqlite, opened for each as",
            "aiolease does it, or kept open; 'final' also records the run's success",
            "all end in one commit: what the fence adds does not depend on the disk, but the ratio does;",
            "a fenced one is to take at most 1.25 times a plain one, on MySQL 1.5 times;",
            "'CPU' is that of this process for each",
        ],
    )
    for database in by_each_driver(databases):
        if isinstance(database, ServerDatabase):
            table.rows[database.label] = await _on_server(database, times)
        elif isinstance(database, PostgreSQLDatabase):
            table.rows[database.label] = await _on_postgresql(database, times)
        else:
            url = database.fresh("transactions")
            connect = partial(aiosqlite.connect, Path(url.removeprefix("sqlite:///")), isolation_level=None)
            table.rows["sqlite"] = await _of(url, connect, times)
            async with connect() as kept:
                table.rows["sqlite, kept open"] = await _of(url, partial(nullcontext, kept), times)
    return table


async def _on_server(database: ServerDatabase, times: int) -> dict[str, Figure]:
    database.fresh("transactions")
    server = database.server
    async with asyncmy.create_pool(
        host=server.host, port=server.port, user=server.user, db="transactions", autocommit=True
    ) as pool:
        return await _of(pool, pool.acquire, times, AIMS[database.kind])


async def _on_postgresql(database: PostgreSQLDatabase, times: int) -> dict[str, Figure]:
    database.fresh("transactions")
    url = database.server.url(database.name("transactions"))
    if database.driver == "asyncpg":
        async with asyncpg.create_pool(url, min_size=1) as pool:
            return await _of(pool, pool.acquire, times, AIMS[database.kind])
    async with AsyncConnectionPool(url, min_size=1, open=False) as lent:
        return await _of(lent, lent.connection, times, AIMS[database.kind])


async def _of(target: Any, connect: Connect, times: int, aim: float | None = None) -> dict[str, Figure]:
    async with open_store(target) as store, leadership(store) as lead:
        first = lead.elected_at - timedelta(days=1)
        ticks = [first + timedelta(seconds=number) for number in range(times + WARM)]
        runs = [
            RunRecord(job="bench", tick=tick, token=lead.token, holder=lead.holder, status="running") for tick in ticks
        ]
        for start in range(0, len(runs), 1000):
            await store.record(TermKey(lead.name, lead.holder, lead.token), Batch(claims=runs[start : start + 1000]))
        async with connect() as connection:
            await run(connection, "CREATE TABLE IF NOT EXISTS bench (id INTEGER NOT NULL, note VARCHAR(100))")
        calls = _calls(lead, connect, ticks)
        durations: dict[str, list[float]] = {name: [] for name in calls}
        order, cpu = list(calls), dict.fromkeys(calls, 0.0)
        for number in range(times + WARM):
            for name in (*order[number % 3 :], *order[: number % 3]):
                started, used = time.perf_counter(), time.process_time()
                await calls[name]()
                if number >= WARM:
                    durations[name].append(time.perf_counter() - started)
                    cpu[name] += time.process_time() - used
    p50 = {name: median(values) for name, values in durations.items()}
    return {
        "plain p50": milliseconds(p50["plain"]),
        "fenced p50": milliseconds(p50["fenced"]),
        "ratio of p50": Figure(value=p50["fenced"] / p50["plain"], unit="x", aim=aim),
        "final p50": milliseconds(p50["final"]),
        "its ratio": Figure(value=p50["final"] / p50["plain"], unit="x", aim=aim and FINAL_AIM),
        **{f"{name} p99": milliseconds(percentile(values, 99)) for name, values in durations.items()},
        **{f"{name} CPU": milliseconds(used / times) for name, used in cpu.items()},
    }


async def run(connection: Any, sql: str) -> None:
    """One statement: the drivers differ in their cursors."""
    if isinstance(connection, aiosqlite.Connection):
        await (await connection.execute(sql)).close()
    elif hasattr(connection, "is_in_transaction"):
        await connection.execute(sql)
    else:
        async with connection.cursor() as cursor:
            await cursor.execute(sql)


def _calls(lead: Leadership, connect: Connect, ticks: Sequence[datetime]) -> dict[str, Call]:
    insert = "INSERT INTO bench (id, note) VALUES (1, 'what a job writes')"
    left = iter(ticks)

    async def plain() -> None:
        async with connect() as connection:
            by_itself = isinstance(connection, AsyncConnection)
            if not by_itself:
                await run(connection, "BEGIN")
            await run(connection, insert)
            if not by_itself:
                await run(connection, "COMMIT")

    async def fenced() -> None:
        async with lead.transaction() as connection:
            await run(connection, insert)

    async def final() -> None:
        job = JobRun(job="bench", tick=next(left), leadership=lead)
        async with job.transaction(final=True) as connection:
            await run(connection, insert)

    return {"plain": plain, "fenced": fenced, "final": final}
