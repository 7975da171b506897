"""What runs leave behind in a process: nothing."""

from __future__ import annotations

import asyncio
import gc
import sys

from aiolease import JobRegistry, JobRun
from aiolease.stores.memory import MemoryServer, MemoryStore
from tests.virtual import virtual


@virtual
async def test_many_runs_leave_no_more_behind_than_some() -> None:
    """Runs succeed, fail, are tried again or are skipped. After thousands more of them, no more is allocated.

    The store is the plain one: that of `aiolease.testing` keeps a list of what it was sent.
    """
    jobs, runs, blocks = JobRegistry(history=10), 0, list[int]()

    @jobs.every(1, retries=1, backoff=0.5)
    async def fails_at_times(run: JobRun) -> None:
        if run.attempt == 1 and run.tick.second % 10 == 0:
            raise ValueError

    @jobs.every(1)
    async def overlaps() -> None:
        await asyncio.sleep(2.5)

    @jobs.every(0.2)
    async def succeeds() -> None:
        nonlocal runs
        runs += 1

    async with jobs.background(MemoryStore(MemoryServer())):
        for seconds in (30, 200):
            await asyncio.sleep(seconds)
            gc.collect()
            blocks.append(sys.getallocatedblocks())
    assert runs > 1000
    assert blocks[1] - blocks[0] < 400  # a block that is kept for each run would be more than 1,000
