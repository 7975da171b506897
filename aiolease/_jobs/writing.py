"""What a term writes to the ledger: the next plan, its batch, and what follows once it is written."""

from __future__ import annotations

import asyncio
from typing import final

from aiolease._election.term import Term
from aiolease._jobs.last_writes import LastWrites
from aiolease._jobs.ledger import Ledger
from aiolease._jobs.notices import Notices
from aiolease._jobs.plan import Plan, Waiting
from aiolease._jobs.planner import Planner
from aiolease._jobs.quarantine import Quarantine
from aiolease._jobs.readings import Readings
from aiolease._jobs.runs import Runs
from aiolease._jobs.skips import Skips
from aiolease._jobs.tenure import Tenure
from aiolease._jobs.trouble import Trouble
from aiolease._jobs.unwritten import Unwritten, plain
from aiolease._waiting import ended
from aiolease.errors import GiveUp
from aiolease.events import RunFinished
from aiolease.stores.batch import Batch
from aiolease.stores.contract import Refused

_AT_ONCE = 1000
"""How many ticks are looked up at once."""

_PLAIN_AFTER = 3
"""After how many failures in a row errors are written in ASCII."""


@final
class Writing:
    """The batches of one term.

    Args:
        term: The term.
        planner: Makes the plans.
        ledger: Is written.
        quarantine: Says of which jobs nothing is planned.
        runs: Starts the runs of what was written.
        readings: Asked to read again if it is not known what the ledger says.
        unwritten: Says what is to be written.
        notices: Tells of trouble.
        skips: Takes the skipped ticks.
        tenure: Has the end of the term written.

    Attributes:
        trouble: What is wrong with the ledger.
    """

    def __init__(
        self,
        term: Term,
        *,
        planner: Planner,
        ledger: Ledger,
        quarantine: Quarantine,
        runs: Runs,
        readings: Readings,
        unwritten: Unwritten,
        notices: Notices,
        skips: Skips,
        tenure: Tenure,
    ) -> None:
        self.trouble = Trouble(term, notices)
        self._term = term
        self._planner = planner
        self._ledger = ledger
        self._quarantine = quarantine
        self._runs = runs
        self._readings = readings
        self._unwritten = unwritten
        self._notices = notices
        self._skips = skips
        self._tenure = tenure
        self._under_way: tuple[asyncio.Task[None], Plan] | None = None

    def next_plan(self, *, claim: bool) -> Plan | None:
        """The next plan: of all jobs, or of one that could not be written a while ago."""
        while self._quarantine.has_probation:
            self._quarantine.try_alone()
            plan = self._plan(claim=claim)
            self._quarantine.try_others()
            self._readings.wanted = True  # what is due of the others was passed over
            if plan is not None or not self._quarantine.has_probation:
                return plan
        self._quarantine.try_all()
        return self._plan(claim=claim)

    def _plan(self, *, claim: bool) -> Plan | None:
        most = self._ledger.most
        changes = self._unwritten.next_changes(self._planner.jobs.aside, most)
        pending = plain(changes) if self.trouble.failures > _PLAIN_AFTER else changes
        plan = self._planner.plan(self._term.database_now(), pending, len(self._runs), claim=claim, most=most)
        if plan is not None:
            plan.pending = changes
        if self._readings.cancels.are_open:
            plan = plan or Plan(self._term.key, Batch(changes=pending.copy()), changes)
            self._readings.cancels.plan(plan, self._unwritten.changes)
            plan = plan if plan.batch or plan.waiting else None
        if faults := self._planner.jobs.take_faults():
            self._quarantine.set_aside(faults)
        return plan

    async def carry_out(self, plan: Plan) -> None:
        """Writes a plan, in a task of its own, and starts its runs. If this is cancelled, `close` awaits the task."""
        if plan.batch:
            batch = asyncio.create_task(self._ledger.record(plan.batch))
            self._under_way = (batch, plan)
            await ended(batch)
            self._under_way = None
            try:
                batch.result()
            except BaseException as error:
                self._not_written(plan, error)
                raise
        starting = self._written(plan)
        if self._term.is_led:
            for run in starting:
                self._runs.start(run)
        else:  # the answer was read too late: the process stood still
            self._unwritten.may_be_claimed(plan)

    def _written(self, plan: Plan) -> list[Waiting]:
        """Notes that a plan was written; returns what is to be started."""
        self.worked()
        if self._quarantine.written(plan):
            self._readings.wanted = True
        self._ledger.larger_batches()
        if any(change.status == "queued" for change in plan.pending):
            self._readings.wanted = True  # to see whether they had an effect: if so, the runs wait their turn
        self._unwritten.written(plan.pending)
        if self._readings.cancels.written(plan):
            self._readings.wanted = True
        starting = self._planner.written(plan)
        self._tell_too_late(plan)
        for job, skip in plan.skips:
            self._skips.written(job.name, skip, grows=(job.name, skip.last) in plan.batch.extends)
        self._skips.tell_series(self._planner.series.take_over())
        left = self._planner.until_tick(self._term.elected_at)
        if left is None or left > 0:  # no tick from before this term is still to be seen to
            self._skips.tell_missed()
        return starting

    def _tell_too_late(self, plan: Plan) -> None:
        """Tells of the retries of a plan that are too old to begin: it was said that they would."""
        for waiting in plan.overdue:
            if waiting.not_before is not None:
                facts = self._notices.facts() | {"job": waiting.job.name, "tick": waiting.tick, "took": 0.0}
                error = GiveUp(f"more than {waiting.job.max_age or 0:g} s late to be tried again")
                self._notices.emit(RunFinished(**facts, status="failed", error=error))

    def worked(self) -> None:
        """Notes that the ledger can be written."""
        self.trouble.worked(aside=self._quarantine.set_aside_jobs, silent=self._readings.silent)

    def _not_written(self, plan: Plan, error: BaseException) -> None:
        """Notes that a plan was refused, or perhaps not written."""
        refused = isinstance(error, Refused)
        self._planner.not_written(plan, refused=refused)
        if refused:
            self._quarantine.was_refused(plan, error.__cause__ or "refused")
        else:
            self._quarantine.went_unanswered()
            self._ledger.went_unanswered()
        self._unwritten.may_be_claimed(plan)
        self._ledger.smaller_batches()

    async def narrow_down(self, plan: Plan) -> None:
        """Finds out why a plan is refused, time after time (DESIGN rule 44).

        1. The ticks that it was to claim have rows already: these ticks are settled.
        2. Nothing can be written at all: that is no job's fault.
        3. It is the fault of a job: see `Quarantine.narrow_down`.
        """
        self._quarantine.refused = None
        there = await self._ledger.look_up([(run.job, run.tick) for run in plan.batch.claims])
        if there:
            others = self._planner.conflicts(plan, there, self._term.database_now())
            for start in range(0, len(others), _AT_ONCE):
                more = await self._ledger.look_up(others[start : start + _AT_ONCE])
                self._planner.conflicts(plan, more, self._term.database_now())
            return
        if not self._quarantine.is_suspicious or self._ledger.may_be_late:
            return  # perhaps a batch that the server had delayed was written in between
        await self._ledger.record(Batch())
        if (gone := self._quarantine.narrow_down(plan, self.trouble.why)) is not None:
            self._unwritten.forget_job(gone)
        self._readings.wanted = True

    async def close(self) -> None:
        """Writes how the last runs have ended, within a time limit; raises nothing."""
        last = LastWrites(self._term, self._ledger, self._notices)
        if self._under_way is not None:
            batch, plan = self._under_way
            if await last.outwait(batch):
                self._written(plan)
            self._unwritten.may_be_claimed(plan)
        self._skips.tell_missed()
        self._planner.series.end_all()
        self._skips.tell_series(self._planner.series.take_over())
        self._unwritten.hand_back()
        changes = self._unwritten.changes
        await last.write(changes, self._tenure.end(beside=bool(changes)))
