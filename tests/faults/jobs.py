"""The jobs of the workers: of every policy one, with short intervals, so that each fault meets some of them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from aiolease import CommitUnknown, JobRegistry, JobRun, LeadershipLost, RunAlreadyEnded, StoreUnavailable
from tests.faults.database import execute
from tests.faults.journal import Journal
from tests.simulation.audit import Rules

MAX_RUNNING = 4
"""How many runs may go on at once in a worker: fewer than there are jobs."""

OVERLAPPING = frozenset({"beside", "payagain"})
FINAL = frozenset({"pay", "paynew", "payagain"})

UNWIND = 0.1
"""Seconds that a cancelled run takes to end, of the 0.5 that a lease of 3 s leaves it."""


def run_facts(run: JobRun) -> dict[str, Any]:
    """What the journal says of a run."""
    return {"job": run.job, "tick": run.tick.isoformat(), "attempt": run.attempt}


class Jobs:
    """The jobs, and what they do."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def registry(self, *, steps: bool = False) -> JobRegistry:
        """The registry of every worker.

        Args:
            steps: Whether the database's clock steps by up to an hour: then what runs all that it has missed has a
                coarser grid, or it would be busy with it for longer than the test lasts.
        """
        jobs = JobRegistry(max_running=MAX_RUNNING, history=None)
        jobs.every(0.25)(self.quick)
        jobs.every(10 if steps else 0.4, missed="all", rerun_lost=True)(self.pay)
        jobs.every(0.5, rerun_lost=True, overlap="skip")(self.paynew)
        jobs.every(0.9, overlap="allow", rerun_lost=True, retries=4, backoff=0.1)(self.payagain)
        jobs.every(0.5)(self.shaky)
        jobs.every(0.7)(self.slow)
        jobs.every(0.3, overlap="allow", rerun_lost=True)(self.beside)
        jobs.every(0.6, missed="skip")(self.thread)
        jobs.every(1, timeout=0.2)(self.limited)
        jobs.cron("* * * * * *", max_age=4.0)(self.second)
        return jobs

    async def quick(self) -> None:
        await asyncio.sleep(random.uniform(0.0, 0.03))

    async def second(self) -> None:
        await asyncio.sleep(0.0)

    async def shaky(self) -> None:
        await asyncio.sleep(0.01)
        if random.random() < 0.3:
            raise ValueError("it is shaky")

    async def slow(self) -> None:
        await asyncio.sleep(1.1)

    async def limited(self) -> None:
        await asyncio.sleep(random.uniform(0.0, 0.4))

    async def beside(self) -> None:
        try:
            await asyncio.sleep(random.uniform(0.0, 0.8))
        finally:
            await asyncio.sleep(UNWIND)

    def thread(self, run: JobRun) -> None:
        for _ in range(10):
            run.check()
            time.sleep(0.01)

    async def pay(self, run: JobRun) -> None:
        """Has its effect exactly once."""
        await self._pay(run)

    async def paynew(self, run: JobRun) -> None:
        """The same, but not for ticks that were missed."""
        await self._pay(run)

    async def payagain(self, run: JobRun) -> None:
        """The same, and it fails now and then: before its effect, or after it, when that has no effect any more."""
        await self.shaky()
        await self._pay(run)
        await self.shaky()

    async def _pay(self, run: JobRun) -> None:
        facts = run_facts(run)
        note, doubt = self._journal.write, False
        while True:
            try:
                async with run.transaction(final=True) as connection:
                    await self._insert(connection, run)
                    await asyncio.sleep(random.uniform(0.0, 0.02))
                    note("paying", run.token, **facts)
            except CommitUnknown as error:
                doubt = True
                note("doubt", run.token, **facts, why=str(error))
                if random.random() < 0.5:
                    raise
            except RunAlreadyEnded:
                note("paid" if doubt else "unpaid", run.token, **facts)
                return
            except (LeadershipLost, StoreUnavailable) as error:
                note("doubt" if doubt else "unpaid", run.token, **facts, why=str(error))
                raise
            else:
                note("paid", run.token, **facts)
                break
        if random.random() < 0.1:  # a second one has no effect
            with suppress(RunAlreadyEnded):
                async with run.transaction(final=True) as connection:
                    await self._insert(connection, run)

    async def _insert(self, connection: Any, run: JobRun) -> None:
        values = f"'{self._journal.process}', {run.token:d}, '{run.job}', '{run.tick.isoformat()}', {run.attempt:d}"
        await execute(connection, f"INSERT INTO payments (process, token, job, tick, attempt) VALUES ({values})")


def rules(*, steps: bool) -> Mapping[str, Rules]:
    """What the audit asks of each."""
    jobs = Jobs.__new__(Jobs).registry(steps=steps)
    return {
        job.name: Rules(
            schedule=job.schedule,
            missed=job.missed,
            max_age=job.max_age,
            rerun_lost=job.rerun_lost,
            retries=job.retries,
            final=job.name in FINAL,
        )
        for job in jobs.registered.values()
    }
