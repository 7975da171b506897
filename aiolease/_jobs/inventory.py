"""What a whole reading of the ledger makes of the jobs of a term: where each stands, what earlier terms left behind."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import final

from aiolease._jobs.backlog import Backlog
from aiolease._jobs.due import inherited, is_cancelled
from aiolease._jobs.jitter import start_of
from aiolease._jobs.job_state import JobStates
from aiolease._jobs.later import Later, makes_busy
from aiolease._jobs.next_ticks import NextTicks
from aiolease._jobs.pauses import settled_until
from aiolease._jobs.places import Places
from aiolease._jobs.plan import Waiting, waiting_for
from aiolease._jobs.requests import Requests
from aiolease._jobs.series import SkippedSeries
from aiolease._jobs.waiting_line import WaitingLine
from aiolease.stores.batch import Again, Change, LedgerReading
from aiolease.stores.records import Place, RunKey, RunRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRuns:
    """What a term knows of its runs better than a reading of the ledger.

    Attributes:
        running: Those that go on.
        pending: Changes that are not written yet.
        postponed: Those that are to be queued anew, but not yet, each with its change.
        ended: Those that have ended although the reading may not show it.
        unanswered: Those that were to start, each with what it is queued again with: the ledger may call them running,
            and they are not.
    """

    running: Collection[Waiting]
    pending: Sequence[Change]
    postponed: Mapping[Place, Change]
    ended: Collection[RunKey]
    unanswered: Mapping[RunKey, Again | None]


@final
class Inventory:
    """Takes whole readings; the parts of the planner start anew from them."""

    def __init__(
        self,
        jobs: JobStates,
        *,
        ticks: NextTicks,
        line: WaitingLine,
        backlog: Backlog,
        later: Later,
        requests: Requests,
        series: SkippedSeries,
        places: Places,
    ) -> None:
        self._jobs = jobs
        self._ticks = ticks
        self._line = line
        self._backlog = backlog
        self._later = later
        self._requests = requests
        self._series = series
        self._places = places
        self._first = True

    def take(self, stock: LedgerReading, known: KnownRuns, last: datetime) -> list[tuple[RunRecord, Change]]:
        """Starts anew from a whole reading of the ledger, which knows all jobs.

        Args:
            stock: The reading.
            known: What is known better.
            last: When the jobs were last looked at.

        Returns:
            The runs that earlier terms have left behind, and what becomes of each: to be written and told.
        """
        places = {run.place for run in known.running}
        places |= {*self._backlog.start_anew(known.pending), *known.postponed}
        self._ticks.start_anew(last)
        self._line.start_anew()
        self._later.start_anew(stock.later, places)
        self._places.start_anew(run.job for run in known.running)
        self._take_jobs(stock)
        self._requests.see_all(stock)
        self._ticks.line_up(self._jobs)
        for run in known.running:
            state = self._jobs[run.job.name]
            state.running += 1
            state.by_hand += run.by_hand
            state.going_on += not run.by_hand
        for change in (*known.pending, *known.postponed.values()):
            if change.status == "queued" and makes_busy(self._jobs[change.key.job].job, change.again):
                state = self._jobs[change.key.job]
                state.going_on += 1  # at once; the reading that follows the writing lines it up
                if change.again is not None and change.again.failed:
                    state.retrying += 1
                elif (change.key.job, change.key.tick) not in known.postponed:
                    state.backlog = True
        return self._sort_out(stock, places, known)

    def _take_jobs(self, stock: LedgerReading) -> None:
        """Takes from a reading how far each job is settled, and how many of its runs are queued."""
        for name, state in self._jobs.items():
            if name not in self._jobs.aside:
                record = stock.jobs[name]
                state.settled_until, state.high_tick = settled_until(record, stock.pause), record.high_tick
            self._series.read(state)
            state.lined_up = state.held = state.in_line = False
            state.going_on = state.unread = stock.queued.get(name, 0)
            state.running = state.by_hand = 0
            if state.unread:
                self._backlog.ran_out(state)
                state.backlog = True
                state.inherited |= self._first
        self._first = False

    def _sort_out(self, stock: LedgerReading, places: set[Place], known: KnownRuns) -> list[tuple[RunRecord, Change]]:
        """Decides on the runs that the ledger calls unfinished; see `take`."""
        left_behind = []
        for run in stock.unfinished:
            key = RunKey(run.job, run.tick, run.attempt, run.token)
            state = self._jobs.get(run.job)
            if state is None or run.job in self._jobs.aside or (run.job, run.tick) in places or key in known.ended:
                continue  # of a job that another leader has, or known better here
            cancel_at = stock.jobs[run.job].cancel_at
            if key in known.unanswered and not is_cancelled(run, cancel_at):
                # It was to be started, and has not been. It is not written back: the server may execute such a change
                # later than it should, when it is true again.
                again = known.unanswered[key]
                self._line_up(run if again is None else replace(run, not_before=again.not_before))
                continue
            job = state.job
            change = inherited(
                run, rerun_lost=job.rerun_lost, max_age=job.max_age, now=stock.now, cancel_at=cancel_at,
                start=start_of(job, self._jobs.lease, run.tick, run.request),
            )  # fmt: skip
            left_behind.append((run, change))
            if change.status == "queued" and makes_busy(job, change.again):
                state.going_on += 1
                state.backlog = state.inherited = True
                self._backlog.is_pending(run.job)
        return left_behind

    def _line_up(self, run: RunRecord) -> None:
        state = self._jobs[run.job]
        waiting = waiting_for(state.job, run)
        if waiting.by_hand:
            self._later.add(state, run)
        else:
            state.going_on += 1
            self._line.add(state, run)
