"""Writes the jobs that the ledger does not know, or not with their schedules (DESIGN rule 50).

The ticks of a former schedule are written first, up to the reading: what is due is queued, or skipped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import final

from aiolease._jobs.changed import unknown_to
from aiolease._jobs.ledger import Ledger
from aiolease._jobs.plan import Plan
from aiolease._jobs.planner import Planner
from aiolease._jobs.quarantine import Quarantine
from aiolease._jobs.skips import Skips
from aiolease.stores.batch import Batch, JobDefinition, LedgerReading
from aiolease.stores.contract import Refused

_STEP = 50
"""How many jobs are planned between two turns of the loop's other tasks."""


@final
class Definitions:
    """Keeps the ledger's definitions of one registry's jobs up to date.

    Args:
        planner: Knows the jobs, and plans the ticks of former schedules.
        ledger: The ledger.
        quarantine: Takes jobs that cannot be planned or written. They keep the schedule whose ticks are to be written.
        skips: Takes the skipped ticks.
    """

    def __init__(self, planner: Planner, ledger: Ledger, quarantine: Quarantine, skips: Skips) -> None:
        self._planner = planner
        self._ledger = ledger
        self._quarantine = quarantine
        self._skips = skips
        self._refused_once: set[str] = set()  # jobs whose change of schedule was refused

    async def write(self, stock: LedgerReading) -> bool:
        """Writes what a reading does not know; returns True if there was something.

        Raises:
            Refused: A reading anew shows why.
        """
        new = unknown_to(stock, self._planner.jobs)
        if not new:
            return False
        await self._write_changed(stock, [each for each in new if each.job in stock.jobs])
        if unknown := [each for each in new if each.job not in stock.jobs]:
            await self._ledger.enroll(unknown)
        return True

    def are_in(self, stock: LedgerReading) -> bool:
        """True if a reading knows all jobs."""
        return all(each.job in stock.jobs for each in unknown_to(stock, self._planner.jobs))

    async def _write_changed(self, stock: LedgerReading, changed: Sequence[JobDefinition]) -> None:
        """Writes the ticks of former schedules, then the new schedules: some jobs at a time."""
        plans: list[Plan] = []
        ready: list[JobDefinition] = []
        most = self._ledger.largest
        for number, definition in enumerate(changed, 1):
            is_aside = definition.job in self._quarantine.set_aside_jobs
            plan = None if is_aside else self._planner.plan_changed(stock, definition.job)
            if plan is not None:
                plans.append(plan)
            ready.append(definition)
            if number == len(changed) or len(ready) == most or sum(len(each.claims) for each in plans) >= most:
                await self._write_some(plans, ready)
                plans, ready = [], []
            elif number % _STEP == 0:
                await asyncio.sleep(0)

    async def _write_some(self, plans: list[Plan], changed: list[JobDefinition]) -> None:
        self._quarantine.set_aside(self._planner.jobs.take_faults())
        if plans:
            await self._write_former(plans)
        aside = self._quarantine.set_aside_jobs
        if ready := [definition for definition in changed if definition.job not in aside]:
            await self._ledger.enroll(ready)

    async def _write_former(self, plans: list[Plan]) -> None:
        batch = Batch()
        for plan in plans:
            batch.claims += plan.batch.claims
            batch.high_ticks |= plan.batch.high_ticks
            batch.seen |= plan.batch.seen
        if there := await self._ledger.look_up([(run.job, run.tick) for run in batch.claims]):
            self._planner.are_there(there)
            raise Refused  # and planned anew
        try:
            await self._ledger.record(batch)
        except Refused as error:
            if len(plans) > 1:
                for plan in plans:
                    await self._write_former([plan])
                return
            [name] = plans[0].jobs()
            if name not in self._refused_once:  # somebody may just have paused it
                self._refused_once.add(name)
                raise
            self._refused_once.discard(name)
            self._quarantine.set_aside({name: f"its rows cannot be written: {error.__cause__ or 'refused'}"})
            return
        for plan in plans:
            for job, skip in plan.skips:
                self._skips.written(job.name, skip)
