"""What people ask for by hand, with a leader on SQLite, in real time: what the memory store shows holds for SQL."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

from aiolease import JobRegistry, JobRun
from aiolease.stores import open_store
from tests.virtual import SHORT


async def test_a_backfill_a_rerun_and_a_cancel_on_sqlite(tmp_path: Path) -> None:
    """Each tick of a backfill is run once; a failed one is run again; a run that goes on is cancelled."""
    url = f"sqlite:///{tmp_path}/jobs.db"
    jobs, failing, begun = JobRegistry(history=None), True, list[tuple[datetime, int]]()

    @jobs.every(3600, retries=1, backoff=0.05)
    async def job(run: JobRun) -> None:
        begun.append((run.tick, run.attempt))
        if failing:
            raise ValueError("not yet")

    @jobs.every(3600)
    async def long() -> None:
        await asyncio.sleep(60)

    now = datetime.now(UTC)
    last = now.replace(minute=0, second=0, microsecond=0)
    first = last - timedelta(hours=5)
    async with open_store(url) as store, jobs.background(url, **SHORT), asyncio.timeout(20):
        while not (await store.overview("default")).jobs.keys() >= {"job", "long"}:
            await asyncio.sleep(0.05)

        async def rows(name: str, status: str) -> int:
            return sum(row.status == status for row in await store.history("default", name))

        await store.backfill("default", "job", first, last)
        while await rows("job", "failed") < 6:
            await asyncio.sleep(0.05)
        assert sorted(begun) == [(first + timedelta(hours=n), k) for n in range(6) for k in (1, 2)]
        failing = False
        await store.rerun("default", "job", first)
        while not await rows("job", "succeeded"):
            await asyncio.sleep(0.05)
        assert begun[-1] == (first, 3)
        row = (await store.history("default", "job"))[0]
        assert [line.count("ValueError: not yet") for line in row.errors] == [1, 1]

        await store.trigger("default", "long")
        while not await rows("long", "running"):
            await asyncio.sleep(0.05)
        await store.cancel("default", "long")
        while not await rows("long", "failed"):
            await asyncio.sleep(0.05)
        while (await store.overview("default")).jobs["long"].record.cancel_at is not None:
            await asyncio.sleep(0.05)
