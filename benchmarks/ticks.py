"""How many ticks a second the ledger claims and finishes: by itself, and with the scheduler and its jobs around it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta

from aiolease import leadership, open_store
from aiolease.stores.batch import Batch, Change, JobDefinition
from aiolease.stores.records import RunKey, RunRecord, TermKey
from benchmarks import jobs
from benchmarks.databases import Database, by_each_driver
from benchmarks.report import Figure, Table

JOBS = 10_000
ROWS = 3
"""What is written for one tick: its row made, the same row finished, and its job's row moved on."""


async def measure(databases: Sequence[Database], *, quick: bool) -> Table:
    seconds, warm, window = (1.0, 2.0, 5.0) if quick else (2.0, 2.0, 6.0)
    table = Table(
        topic="ticks",
        title=f"ticks: claimed and finished, {JOBS:,} jobs; the ledger alone as fast as it goes, "
        f"then all of them due each second for {window:g} s",
        notes=[
            "'ledger' is batches of 1,000 as the scheduler writes them, 'rows' its rows: three for each tick;",
            "'one by one' is a batch for each tick, as of jobs that fall due apart",
            "'ran' is with all there is to it: a task for each run, its events, rows of the ticks that are skipped",
            "because a newer one was due as well; 'not run' is how many of those due were not",
        ],
    )
    for database in by_each_driver(databases):
        url = database.fresh("ticks")
        batches, singly = await _ledger(url, 1_000, seconds), await _ledger(url, 1, seconds)
        found = await jobs.run("aiolease", database.fresh("ticks_jobs"), JOBS, "second", warm, window)
        table.rows[database.label] = {
            "ledger": Figure(value=batches, unit="/s"),
            "rows": Figure(value=batches * ROWS, unit="/s"),
            "one by one": Figure(value=singly, unit="/s"),
            "ran": Figure(value=found["done"] / found["seconds"], unit="/s"),
            "not run": Figure(
                value=100 - jobs.share_done(found), unit="%", aim=0.0 if database.kind == "mariadb" else None
            ),
        }
    return table


async def _ledger(url: str, size: int, seconds: float) -> float:
    """Writes batches of so many claims, with the ends of those before them, as fast as it goes; ticks a second."""
    names = [f"job_{number}" for number in range(JOBS)]
    async with open_store(url) as store, leadership(store, f"bench-{size}") as lead:
        term = TermKey(lead.name, lead.holder, lead.token)
        await store.enroll(term, [JobDefinition(job=name, schedule="every 1s", timezone="") for name in names])
        tick = lead.elected_at - timedelta(days=7)
        ended: list[Change] = []
        finished, started = 0, time.monotonic()
        while time.monotonic() < started + seconds:
            for first in range(0, JOBS if size > 1 else 100, size):
                batch = Batch(changes=ended)
                some = names[first : first + size]
                for name in some:
                    run = RunRecord(job=name, tick=tick, token=lead.token, holder=lead.holder, status="running")
                    batch.claims.append(run)
                    batch.high_ticks[name] = tick
                await store.record(term, batch)
                finished += len(ended)
                keys = [RunKey(name, tick, 1, lead.token) for name in some]
                ended = [Change(key=key, was="running", status="succeeded", attempt=1) for key in keys]
            tick += timedelta(seconds=1)
        return finished / (time.monotonic() - started)
