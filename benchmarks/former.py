"""What a former term leaves in the ledger: jobs that are known, runs that wait, runs that have ended long ago."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

from aiolease import leadership, open_store
from aiolease._jobs.schedule import Every
from aiolease.stores.batch import Batch, JobDefinition
from aiolease.stores.records import RunRecord, TermKey
from benchmarks.databases import Database

LEASE: Final = "bench"
CHUNK: Final = 100_000
"""Rows of one statement, and of its transaction."""

MONTH: Final = 30 * 86_400

_AT_ONCE: Final = 1_000
_COLUMNS: Final = "lease, job, tick, attempt, token, holder, status, started_at, finished_at"


@asynccontextmanager
async def term(target: Any) -> AsyncIterator[tuple[Any, TermKey, datetime]]:
    """A term without jobs: its store, itself, and when it began."""
    async with open_store(target) as store, leadership(store, LEASE) as lead:
        yield store, TermKey(lead.name, lead.holder, lead.token), lead.elected_at


async def enroll(target: Any, names: Sequence[str], interval: int) -> None:
    """Makes jobs known, as of now: what falls due from now on is missed if nobody leads."""
    async with term(target) as (store, of, _):
        jobs = [JobDefinition(job=name, schedule=Every(interval).expression, timezone="") for name in names]
        await store.enroll(of, jobs)


async def queue(target: Any, names: Sequence[str], interval: int, each: int) -> None:
    """Leaves so many runs of each job waiting, by the batches that a leader writes: a tick of all jobs, then the next.

    The newest tick is the last one before now, as of jobs that were known before they waited.
    """
    async with term(target) as (store, of, began):
        newest = began.timestamp() // interval * interval
        runs = [
            RunRecord(job=name, tick=tick, token=of.token, holder=of.holder, status="queued")
            for number in range(each)
            for tick in [datetime.fromtimestamp(newest - (each - 1 - number) * interval, UTC)]
            for name in names
        ]
        for first in range(0, len(runs), _AT_ONCE):
            await store.record(of, Batch(claims=runs[first : first + _AT_ONCE]))


async def finish(database: Database, name: str, names: Sequence[str], interval: int, each: int) -> None:
    """Leaves so many runs of each job that have succeeded, by the database's own means: millions of them.

    They ended a month ago: what is left waiting is newer.
    """
    newest = (time.time() - MONTH) // interval * interval
    sql, value = _SQL.get(database.kind, (_server_sql, _text))
    async with database.bare(name) as bare:
        if database.kind in {"mariadb", "mysql"}:
            digit = f"(SELECT 0 AS d {' '.join(f'UNION ALL SELECT {digit}' for digit in range(1, 10))})"
            await bare.run("CREATE TABLE numbers (n INT NOT NULL PRIMARY KEY)")
            await bare.run(
                "INSERT INTO numbers SELECT a.d + 10 * b.d + 100 * c.d + 1000 * d.d + 10000 * e.d AS n "
                f"FROM {digit} AS a, {digit} AS b, {digit} AS c, {digit} AS d, {digit} AS e ORDER BY n"
            )
        for job in sorted(names):  # in the order of the keys, as is quickest
            for first in range(0, each, CHUNK):
                rows = min(CHUNK, each - first)
                await bare.run(sql(job, value(newest - (each - 1 - first) * interval), interval, rows))


def _server_sql(job: str, oldest: str, interval: int, rows: int) -> str:
    tick = f"CAST('{oldest}' AS DATETIME(6)) + INTERVAL {interval} * n SECOND"
    return (
        f"INSERT INTO aiolease_run ({_COLUMNS}) SELECT '{LEASE}', '{job}', {tick}, 1, 1, 'former', 'succeeded', "
        f"{tick}, {tick} + INTERVAL 1 SECOND FROM numbers WHERE n < {rows} ORDER BY n"
    )


def _postgresql_sql(job: str, oldest: str, interval: int, rows: int) -> str:
    tick = f"TIMESTAMPTZ '{oldest}+00' + {interval} * n * INTERVAL '1 s'"
    return (
        f"INSERT INTO aiolease_run ({_COLUMNS}) SELECT '{LEASE}', '{job}', {tick}, 1, 1, 'former', 'succeeded', "
        f"{tick}, {tick} + INTERVAL '1 s' FROM generate_series(0, {rows - 1}) AS n"
    )


def _file_sql(job: str, oldest: str, interval: int, rows: int) -> str:
    tick = f"{oldest} + {interval} * 1000000 * n"
    return (
        f"WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < {rows - 1}) "
        f"INSERT INTO aiolease_run ({_COLUMNS}) SELECT '{LEASE}', '{job}', {tick}, 1, 1, 'former', 'succeeded', "
        f"{tick}, {tick} + 1000000 FROM numbers"
    )


def _text(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def _microseconds(seconds: float) -> str:
    return str(int(seconds) * 1_000_000)


_SQL: Final = {"sqlite": (_file_sql, _microseconds), "postgresql": (_postgresql_sql, _text)}


async def antedate(database: Database, name: str, interval: int) -> None:
    """Has all jobs known for one interval longer: each has missed one tick."""
    columns = ("known_since", "schedule_since")
    own = {"sqlite": f"- {interval} * 1000000", "postgresql": f"- INTERVAL '{interval} s'"}
    earlier = own.get(database.kind, f"- INTERVAL {interval} SECOND")
    async with database.bare(name) as bare:
        await bare.run(f"UPDATE aiolease_job SET {', '.join(f'{column} = {column} {earlier}' for column in columns)}")


def next_second() -> float:
    """Seconds until the next whole one has begun."""
    return 1.05 - time.time() % 1
