"""What a term reads of the ledger, when it reads it, and what it makes of it.

1. Everything: as the term begins, and whenever it is not known what the ledger says. That is how a term recovers, too.
2. Who was paused, resumed or triggered: at each heartbeat.
3. The next queued runs of some jobs: as the runs before them start.
4. The next runs that wait for their moment: as those before them have had it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import datetime
from typing import Any, final

from aiolease._election.term import Term
from aiolease._jobs.backfills import Backfills
from aiolease._jobs.cancels import Cancels
from aiolease._jobs.definitions import Definitions
from aiolease._jobs.execution import Outcome
from aiolease._jobs.gone import GoneJobs
from aiolease._jobs.inventory import KnownRuns
from aiolease._jobs.ledger import Ledger
from aiolease._jobs.notices import Notices
from aiolease._jobs.planner import Planner
from aiolease._jobs.quarantine import Quarantine
from aiolease._jobs.runs import Runs
from aiolease._jobs.skips import Skips
from aiolease._jobs.unwritten import Unwritten
from aiolease.errors import GiveUp
from aiolease.events import RunFinished
from aiolease.stores.batch import LedgerReading
from aiolease.stores.contract import Refused
from aiolease.stores.records import RunKey, RunRecord

_JOBS_AT_ONCE = 50
"""Of how many jobs queued runs are read at once."""

_RUNS_AT_ONCE = 1000
"""How many queued runs are read at once."""


_PAGES = 5
"""How many pages of the runs that wait for their moment are read at once with all else."""


@final
class Readings:
    """The readings of one term.

    Args:
        term: The term.
        planner: Hears what was read.
        ledger: Is read.
        quarantine: Takes jobs whose rows cannot be read.
        runs: Tells of runs whose end a reading shows.
        unwritten: Takes what becomes of the runs of earlier terms.
        notices: Tells what is odd.
        skips: Takes the skipped ticks of former schedules.

    Attributes:
        cancels: What somebody asked to be cancelled.
        wanted: True while everything is to be read.
        fed: True after queued runs were read, until something was planned.
        silent: The jobs of which no tick is due since a clock was ahead, and until when.
    """

    def __init__(
        self,
        term: Term,
        *,
        planner: Planner,
        ledger: Ledger,
        quarantine: Quarantine,
        runs: Runs,
        unwritten: Unwritten,
        notices: Notices,
        skips: Skips,
    ) -> None:
        self.wanted = True
        self.fed = False
        self.silent: dict[str, datetime] = {}
        self._term = term
        self._planner = planner
        self._ledger = ledger
        self._quarantine = quarantine
        self._runs = runs
        self._unwritten = unwritten
        self._notices = notices
        self._definitions = Definitions(planner, ledger, quarantine, skips)
        self._gone = GoneJobs(
            term, planner=planner, ledger=ledger, quarantine=quarantine, unwritten=unwritten, notices=notices
        )
        self.cancels = Cancels(planner, runs, unwritten)
        self._backfills = Backfills(term, planner=planner, ledger=ledger, quarantine=quarantine, cancels=self.cancels)
        self._clock = asyncio.get_running_loop().time
        self._look_at = 0.0

    @property
    def until_look(self) -> float:
        """Seconds until it is looked who was paused, resumed or triggered."""
        return self._look_at - self._clock()

    def due(self) -> Coroutine[Any, Any, None] | None:
        """What is to be read before more ticks are claimed; ``None`` if nothing is."""
        if self._clock() >= self._look_at:
            # Of a job that is silent somebody may set the row right by hand, which only a whole reading shows.
            return self.take_stock() if self._ledger.may_be_late or self._gone.is_due or self.silent else self._look()
        if not self.fed and (hungry := self._planner.hungry(_JOBS_AT_ONCE)):
            self.fed = True  # and now what is due
            return self._feed(hungry)
        if not self.fed and (limit := self._planner.later.wanted) is not None:
            self.fed = True
            return self._feed_later(limit)
        if not self.fed and (name := self._backfills.next_job()) is not None:
            self.fed = True
            return self._backfill(name)
        return None

    async def take_stock(self) -> None:
        """Reads everything: at the start of the term, and when it is not known what the ledger says.

        Raises:
            Refused: Its rows are not as they should be; it is read again.
        """
        committed = self._unwritten.start_reading()
        try:
            await self._read_all(committed)
        finally:
            self._unwritten.end_reading()
        self.wanted = False
        self._look_later()

    async def _read_all(self, committed: set[RunKey]) -> None:
        stock = await self._ledger.take_stock()
        if await self._definitions.write(stock):
            stock = await self._ledger.take_stock()
        if not self._definitions.are_in(stock):
            raise Refused  # another node has not heard of them yet
        self._quarantine.set_aside(stock.unreadable)
        await asyncio.sleep(0)  # with 20,000 jobs each step takes a while: others of the loop have their turn between
        self.silent = self._planner.silent(stock)
        self._notices.of_silent(self.silent)
        self._notices.of_unknown(self._planner.jobs.unknown(stock))
        self._notices.of_triggers(stock, self._planner.jobs.unknown(stock) - self._term.jobs)
        doubted = self._unwritten.doubted()
        found = await self._ledger.look_up(doubted) if doubted else []
        self._take(stock, committed)
        for _ in range(_PAGES):  # before anything is planned: retries hold their jobs
            if (limit := self._planner.later.wanted) is None:
                break
            await self._feed_later(limit)
        queued: list[RunRecord] = []
        if cancelled := self.cancels.to_read(stock):
            queued, _ = await self._ledger.queued(cancelled, _RUNS_AT_ONCE)
        self.cancels.see(stock, queued)
        self._backfills.see(stock)
        for execution in self._unwritten.resolve(doubted, found):
            self._runs.tell(execution, Outcome("succeeded", 0.0))  # it is not to be run again
        if self._gone.is_due:
            await self._gone.close(stock)

    def _take(self, stock: LedgerReading, committed: set[RunKey]) -> None:
        """Takes over the runs of earlier terms, and finds those of this term whose answer was lost."""
        known = KnownRuns(
            running=self._runs.going_on(),
            pending=self._unwritten.changes,
            postponed=self._unwritten.postponed,
            ended=committed,
            unanswered=self._unwritten.unanswered,
        )
        left_behind = self._planner.take(stock, known)
        for run, change in left_behind:
            self._unwritten.add(change)
            if run.status == "running":
                took = (stock.now - run.started_at).total_seconds() if run.started_at else 0.0
                of_lost_term = {"lease": self._term.key.name, "holder": run.holder, "token": run.token}
                facts: Any = of_lost_term | {"job": run.job, "tick": run.tick, "took": took}
                if change.status == "failed":  # somebody has cancelled it
                    self._notices.emit(RunFinished(**facts, status="failed", error=GiveUp(change.error or "")))
                else:
                    self._notices.emit(RunFinished(**facts, status="lost"))

    async def _look(self) -> None:
        """Reads who was paused, resumed or triggered."""
        stock = await self._ledger.attention()
        self._notices.of_triggers(stock, self._planner.jobs.unknown(stock) - self._term.jobs)
        self._quarantine.set_aside(stock.unreadable)
        if self._planner.look(stock) or self.cancels.are_new(stock):
            self.wanted = True
        self._backfills.see(stock)
        self._look_later()

    def _look_later(self) -> None:
        self._look_at = self._clock() + self._term.timings.heartbeat_interval

    async def _feed(self, jobs: list[str]) -> None:
        """Reads the next queued runs of some jobs: a backlog is read as it is worked off (DESIGN rule 46)."""
        limit = _RUNS_AT_ONCE // len(jobs)
        found, unreadable = await self._ledger.queued(jobs, limit)
        self._planner.feed([job for job in jobs if job not in unreadable], found, limit)
        self._quarantine.set_aside(unreadable)

    async def _feed_later(self, limit: int) -> None:
        """Reads the earliest of the runs that wait for their moment."""
        found, unreadable = await self._ledger.later(limit)
        self._planner.later.feed(found, limit)
        self.cancels.see_more()
        self._quarantine.set_aside(unreadable)

    async def _backfill(self, name: str) -> None:
        """Queues a portion of a backfill."""
        if await self._backfills.queue(name):
            self.wanted = True
