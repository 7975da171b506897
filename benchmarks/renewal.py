"""A renewal, beside the bare driver's UPDATE of the same row."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

from aiolease import open_store
from aiolease._election.claim import new_holder
from aiolease._waiting import time_limited
from benchmarks.databases import Database, Kind, by_each_driver
from benchmarks.report import Figure, Table, milliseconds
from benchmarks.samples import median, percentile

AIM = 1.15
LEASE = 30.0

_TERM = "WHERE name = %s AND holder = %s AND token = %s AND beat < %s"
_MYSQL_UPDATE = (
    "UPDATE aiolease_lease SET beat = %s, renewed_at = UTC_TIMESTAMP(6), "
    f"expires_at = UTC_TIMESTAMP(6) + INTERVAL 30000000 MICROSECOND {_TERM}"
)
SERVER_UPDATES: dict[Kind, str] = {
    "mariadb": _MYSQL_UPDATE,
    "mysql": _MYSQL_UPDATE,
    "postgresql": (
        "UPDATE aiolease_lease SET beat = %s, renewed_at = clock_timestamp(), "
        f"expires_at = clock_timestamp() + INTERVAL '30 s' {_TERM}"
    ),
}
FILE_UPDATE = (
    "UPDATE aiolease_lease SET beat = ?1, renewed_at = ?6, expires_at = ?6 + 30000000 "
    "WHERE name = ?2 AND holder = ?3 AND token = ?4 AND beat < ?5"
)


async def measure(databases: Sequence[Database], *, quick: bool) -> Table:
    times = 200 if quick else 1000
    table = Table(
        topic="renewal",
        title=f"renewal: a leader's whole exchange beside a bare UPDATE of the same row, by turns, {times} of each",
        notes=[
            "the renewal is an UPDATE, too, whose answer has the database's clock and says whether to resign; beside",
            "it there is the time limit, a task of its own; what that adds does not depend on the disk, but the ratio",
            "does: a busy or slow one hides it;",
            "'CPU' is that of this process for each",
        ],
    )
    for database in by_each_driver(databases):
        table.rows[database.label] = await _of(database, times)
    return table


async def _of(database: Database, times: int) -> dict[str, Figure]:
    url = database.fresh("renewal")
    holder, beat, seen = new_holder(), 0, None
    renewals: list[float] = []
    updates: list[float] = []
    async with open_store(url) as store, database.bare("renewal") as bare:
        while seen is None or seen.holder != holder:
            seen = await store.claim("bench", holder, LEASE, seen=seen, force=False)
        token, beat = seen.token, seen.beat

        async def renew() -> None:
            # As the leader does it: with its limit of time, which is not reached here.
            lease = await time_limited(5.0, store.description, store.renew("bench", holder, token, beat, LEASE))
            assert lease is not None
            assert lease.beat == beat

        async def update() -> None:
            if database.kind == "sqlite":
                await bare.run(FILE_UPDATE, (beat, "bench", holder, token, beat, time.time_ns() // 1000))
            else:
                await bare.run(SERVER_UPDATES[database.kind], (beat, "bench", holder, token, beat))

        pair: list[tuple[Callable[[], Awaitable[None]], list[float]]] = [(renew, renewals), (update, updates)]
        cpu: dict[Callable[[], Awaitable[None]], float] = {renew: 0.0, update: 0.0}
        for number in range(times + 20):
            if number == 20:  # warm
                renewals.clear()
                updates.clear()
                cpu = dict.fromkeys(cpu, 0.0)
            for call, durations in pair if number % 2 else reversed(pair):
                beat += 1
                started, used = time.perf_counter(), time.process_time()
                await call()
                durations.append(time.perf_counter() - started)
                cpu[call] += time.process_time() - used
        await store.release("bench", holder, token)
    return {
        "renewal p50": milliseconds(median(renewals)),
        "UPDATE p50": milliseconds(median(updates)),
        "ratio of p50": Figure(value=median(renewals) / median(updates), unit="x", aim=AIM),
        "added": milliseconds(median(renewals) - median(updates)),
        "renewal p99": milliseconds(percentile(renewals, 99)),
        "UPDATE p99": milliseconds(percentile(updates, 99)),
        "renewal CPU": milliseconds(cpu[renew] / times),
        "UPDATE CPU": milliseconds(cpu[update] / times),
    }
