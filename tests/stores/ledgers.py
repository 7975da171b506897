"""Short ways to write and to read a ledger, on any store."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from aiolease.stores import Store
from aiolease.stores.batch import Batch, Change, JobDefinition
from aiolease.stores.records import JobRecord, RunKey, RunRecord, RunStatus, TermKey
from tests.stores.databases import claim

SECOND, MICROSECOND = timedelta(seconds=1), timedelta(microseconds=1)


async def lead(store: Store, name: str = "cron") -> TermKey:
    """Begins a new term, whoever leads."""
    lease = await claim(store, name, force=True)
    assert lease.holder is not None
    return TermKey(name, lease.holder, lease.token)


async def enrolled(store: Store, *jobs: str, name: str = "cron") -> TermKey:
    """A new term that knows some jobs."""
    term = await lead(store, name)
    await store.enroll(term, [enrolment(job) for job in jobs])
    return term


def enrolment(job: str, schedule: str = "every 30s", timezone: str = "") -> JobDefinition:
    return JobDefinition(job=job, schedule=schedule, timezone=timezone)


def run(term: TermKey, job: str, tick: datetime, status: RunStatus = "running", **more: Any) -> RunRecord:
    return RunRecord(job=job, tick=tick, token=term.token, holder=term.holder, status=status, **more)


def claiming(*runs: RunRecord) -> Batch:
    """As a leader claims ticks: their rows, and the new high tick of each job."""
    return Batch(claims=list(runs), high_ticks={row.job: row.tick for row in sorted(runs, key=lambda row: row.tick)})


def change(row: RunRecord, status: RunStatus, **more: Any) -> Change:
    """A change of a row as it is."""
    key = RunKey(row.job, row.tick, row.attempt, row.token)
    return Change(**({"key": key, "was": row.status, "status": status, "attempt": row.attempt} | more))


async def now_of(store: Store) -> datetime:
    return (await store.take_stock("cron")).now


async def job_of(store: Store, job: str, name: str = "cron") -> JobRecord:
    return (await store.take_stock(name)).jobs[job]


async def only_run(store: Store, job: str, name: str = "cron") -> RunRecord:
    rows = await store.history(name, job)
    assert len(rows) == 1
    return rows[0]


@dataclass
class Everything:
    """All that the ledger of a lease holds, but for the moment of the reading."""

    jobs: dict[str, JobRecord]
    unfinished: list[RunRecord]
    histories: dict[str, list[RunRecord]] = field(default_factory=dict)


async def everything(store: Store, name: str = "cron") -> Everything:
    stock = await store.take_stock(name)
    histories = {job: await store.history(name, job) for job in [*stock.jobs, "unknown"]}
    return Everything(stock.jobs, stock.unfinished, histories)


def in_order(*moments: datetime | None) -> bool:
    """Whether moments, all of them there and aware UTC, do not fall."""
    for moment in moments:
        assert moment is not None
        assert moment.utcoffset() == timedelta(0)
    known = [moment for moment in moments if moment is not None]
    return known == sorted(known)


def key_of(row: RunRecord) -> RunKey:
    return RunKey(row.job, row.tick, row.attempt, row.token)
