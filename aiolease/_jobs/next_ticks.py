"""When each job is looked at next: its next tick is on a heap, or its skipped ticks are put off.

A tick that only extends a series of skipped ticks is put off while more of them come soon. It is written with the next
batch, or after `patience` seconds (DESIGN rule 48).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from datetime import datetime
from itertools import islice
from typing import final

from aiolease._jobs.jitter import delayed
from aiolease._jobs.job_state import JobState, JobStates


@final
class NextTicks:
    """The next ticks of one registry's jobs.

    Args:
        jobs: How the jobs stand.
        patience: Seconds for which ticks are put off.
    """

    def __init__(self, jobs: JobStates, patience: float) -> None:
        self._jobs = jobs
        self.patience = patience
        self._heap: list[tuple[datetime, str]] = []
        self._put_off: dict[str, datetime] = {}  # by job, since when; the oldest first

    def until_next(self, now: datetime) -> float | None:
        """Seconds until a tick is due, or is to be written; ``None`` if none is in sight."""
        left = [(self._heap[0][0] - now).total_seconds()] if self._heap else []
        left += [(since - now).total_seconds() + self.patience for since in islice(self._put_off.values(), 1)]
        return min(left, default=None)

    def start_anew(self, last: datetime) -> None:
        """Forgets all: the ledger was read.

        Args:
            last: When the jobs were last looked at. A job whose ticks were put off had a run until then: these ticks
                are no backlog.
        """
        for name in self._put_off:
            self._jobs[name].busy_until = last
        self._heap.clear()
        self._put_off.clear()

    def line_up(self, names: Iterable[str]) -> None:
        """Puts the next tick of some jobs on the heap, except of those that are on it or wait for something."""
        for name in names:
            state = self._jobs[name]
            if not (state.lined_up or state.held or state.paused or name in self._jobs.aside):
                try:
                    tick = state.job.schedule.next_after(state.settled_until)
                except Exception as error:  # noqa: BLE001 - somebody changed the row; only its own job is set aside
                    self._jobs.cannot_be_planned(name, error)
                    continue
                if tick is not None:
                    state.lined_up = True
                    heapq.heappush(self._heap, (delayed(state.job, self._jobs.lease, tick), name))

    def is_due(self, now: datetime) -> bool:
        """True if a tick is due."""
        return bool(self._heap) and self._heap[0][0] <= now

    def pop_due(self, now: datetime) -> str | None:
        """Takes the job whose next tick fell due first off the heap; ``None`` if no tick is due."""
        if not self.is_due(now):
            return None
        _, name = heapq.heappop(self._heap)
        self._jobs[name].lined_up = False
        return name

    def put_off(self, state: JobState, now: datetime, why: str) -> None:
        """Puts the due ticks of a job off, which are skipped for a reason."""
        name = state.job.name
        state.busy_until, state.busy_why = None, why
        self._put_off.pop(name, None)  # a dict keeps the place of a key that is set again
        self._put_off[name] = now

    def recall(self, now: datetime, patience: float) -> set[str]:
        """Lines up again the jobs whose ticks were put off for `patience` seconds; returns these jobs."""
        recalled = set[str]()
        for name, since in self._put_off.items():
            if (now - since).total_seconds() < patience and since <= now:
                break
            recalled.add(name)
        for name in recalled:
            del self._put_off[name]
            if self._jobs[name].going_on:  # a run went on until now: the ticks before are no backlog
                self._jobs[name].busy_until = now
        self.line_up(recalled)
        return recalled

    def recall_all(self, now: datetime, most: int) -> list[JobState]:
        """Takes at most so many jobs whose ticks are put off, without lining them up."""
        recalled = [self._jobs[name] for name in islice(self._put_off, most)]
        for state in recalled:
            del self._put_off[state.job.name]
            state.busy_until = now
        return recalled

    def no_run_left(self, state: JobState, now: datetime) -> None:
        """Lines up a job whose ticks were put off, now that its last run has ended."""
        if self._put_off.pop(state.job.name, None) is not None:
            state.busy_until = now
            self.line_up([state.job.name])
