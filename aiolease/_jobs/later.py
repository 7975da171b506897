"""The runs that wait for their moment: retries, and what somebody asked for by hand. All of them are in the ledger.

1. A retry waits until `RunRecord.not_before`. Then it is in line like any run of its job (`waiting_line`). Until then
   it holds its job, if that has ``overlap="skip"``: newer ticks are skipped.
2. A run by hand waits for a moment as well, then until no ordinary run and no due tick wants the place. It never makes
   its job busy: what falls due while it runs follows it. One of them runs at a time of each job.

They are read in pages, the earliest first. A page is read again once its retries have had their turn.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import final

from aiolease._jobs.due import begun, is_by_hand
from aiolease._jobs.job import Job
from aiolease._jobs.job_state import JobState, JobStates
from aiolease._jobs.places import Places
from aiolease._jobs.plan import Plan, Waiting, waiting_for
from aiolease._jobs.waiting_line import WaitingLine
from aiolease.stores.batch import Again
from aiolease.stores.records import Place, RunRecord

PAGE = 1000
"""How many runs are read at once, beside those that are known to be among the first."""

_Heap = list[tuple[datetime, datetime, str, Waiting]]


def makes_busy(job: Job, again: Again | None) -> bool:
    """True if a run that is queued anew counts as one that goes on."""
    if again is None or again.not_before is None:
        return True
    return job.overlap == "skip" and not is_by_hand(again.request)


@final
class Later:
    """The runs of one registry that wait for their moment.

    Args:
        jobs: How the jobs stand.
        line: Takes the retries whose moment has come.
        places: The places.
        token: The term's.

    Attributes:
        sought: The jobs all of whose runs are to be read.
    """

    def __init__(self, jobs: JobStates, line: WaitingLine, places: Places, token: int) -> None:
        self._jobs = jobs
        self._line = line
        self._places = places
        self._token = token
        self.sought: set[str] = set()
        self._retries: _Heap = []
        self._by_hand: dict[str, _Heap] = {}
        self._here: set[Place] = set()  # what was read, and has not begun
        self._known: Collection[Place] = ()  # what is known better than the ledger says
        self._counted: Mapping[str, int] = {}
        self._unread = 0

    # -- what the ledger says

    def start_anew(self, counted: Mapping[str, int], known: Collection[Place]) -> None:
        """Forgets all: the ledger was read.

        Args:
            counted: How many runs of each job wait for their moment.
            known: The runs that go on here, or of which a change waits to be written.
        """
        self._retries.clear()
        self._by_hand.clear()
        self._here.clear()
        self._known, self._counted, self._unread = known, counted, sum(counted.values())
        for name, state in self._jobs.items():
            state.retrying = 0
            state.unseen = counted.get(name, 0)

    @property
    def wanted(self) -> int | None:
        """How many of the earliest runs are to be read now; ``None`` if none are."""
        if not self._unread or (self._retries and not any(self._jobs[name].unseen for name in self.sought)):
            return None
        return PAGE + len(self._here) + len(self._known)

    def feed(self, runs: Collection[RunRecord], limit: int) -> None:
        """Takes what was read: the earliest runs of all jobs of the lease, at most `limit`."""
        complete = len(runs) < limit
        found = Counter(run.job for run in runs)
        if complete:
            self._unread = 0
        else:  # those of jobs that another leader has are never begun here: they must not hide the others
            self._here |= {(run.job, run.tick) for run in runs if run.job not in self._jobs}
        for name in self._counted:
            if (state := self._jobs.get(name)) is not None:
                state.unseen = 0 if complete else max(self._counted[name] - found[name], 0)
        for run in runs:
            place = run.job, run.tick
            if run.job in self._jobs and place not in self._here and place not in self._known:
                self.add(self._jobs[run.job], run)

    def add(self, state: JobState, run: RunRecord) -> None:
        """Adds a run that waits."""
        waiting = waiting_for(state.job, run)
        moment = waiting.not_before or run.tick
        self._here.add(waiting.place)
        if waiting.by_hand:
            heapq.heappush(self._by_hand.setdefault(run.job, []), (moment, run.tick, run.job, waiting))
            return
        heapq.heappush(self._retries, (moment, run.tick, run.job, waiting))
        if state.job.overlap == "skip":
            state.going_on += 1
            state.retrying += 1

    def of(self, name: str) -> list[Waiting]:
        """The runs of a job that wait, and were read."""
        mine = [waiting for _, _, job, waiting in self._retries if job == name]
        return mine + [waiting for *_, waiting in self._by_hand.get(name, ())]

    def take_out(self, gone: Collection[Waiting]) -> list[JobState]:
        """Takes runs out that are not to begin; returns the jobs of those that made them busy."""
        out, busy = set(map(id, gone)), []
        self._retries = [entry for entry in self._retries if id(entry[3]) not in out]
        heapq.heapify(self._retries)
        for name in {waiting.job.name for waiting in gone}:
            left = [entry for entry in self._by_hand.get(name, ()) if id(entry[3]) not in out]
            heapq.heapify(left)
            self._by_hand[name] = left
        for waiting in gone:
            state = self._jobs[waiting.job.name]
            if not waiting.by_hand and state.job.overlap == "skip":
                state.retrying -= 1
                busy.append(state)
        return busy

    def number_by_hand(self, name: str) -> int:
        """How many runs of a job wait that somebody asked for, about."""
        return len(self._by_hand.get(name, ())) + self._jobs[name].unseen

    # -- whose moment has come

    def until_next(self, now: datetime) -> float | None:
        """Seconds until the moment of a run comes; ``None`` if none is in sight."""
        moments = [heap[0][0] for heap in self._by_hand.values() if heap and heap[0][0] > now]
        moments += [self._retries[0][0]] if self._retries else []
        return min(((moment - now).total_seconds() for moment in moments), default=None)

    def ripen(self, now: datetime) -> None:
        """Puts the retries in line whose moment has come."""
        while self._retries and self._retries[0][0] <= now:
            *_, waiting = heapq.heappop(self._retries)
            state = self._jobs[waiting.job.name]
            if state.job.overlap == "skip":
                state.retrying -= 1
            else:
                state.going_on += 1
            self._line.enqueue(state, waiting)

    def plan(self, plan: Plan, now: datetime, free: float, most: int) -> None:
        """Starts runs that somebody asked for, in places that nothing else wants.

        Args:
            plan: Takes them.
            now: The database's clock.
            free: How many places there are.
            most: Half of how many changes go into one batch.
        """
        busy = {waiting.job.name for waiting in plan.waiting} | {
            job.name for job, run in plan.claims if run.status != "skipped"
        }
        for name, heap in self._by_hand.items():
            if free < 1 or len(plan.batch.changes) >= 2 * most:
                break
            if not heap or heap[0][0] > now or name in self._jobs.aside:
                continue
            state, waiting = self._jobs[name], heap[0][3]
            if state.by_hand or not self._places.has_thread(plan, state.job):
                continue
            if state.job.one_by_one and (name in busy or not self._is_idle(state)):
                continue
            free -= 1
            plan.threads += state.job.threaded
            plan.waiting.append(waiting)
            if waiting.status == "queued":
                plan.batch.changes.append(begun(waiting.key, adopt=waiting.token != self._token))

    def _is_idle(self, state: JobState) -> bool:
        """True if no run of a job runs, or could run now."""
        waits = state.going_on > state.retrying or state.unread or state.running
        return not waits and not self._places.in_thread(state.job)

    def written(self, plan: Plan) -> None:
        """Forgets the runs of a plan that was written: they have begun, or are too old."""
        for waiting in _some(plan.waiting, plan.overdue):
            self._here.discard(waiting.place)
            if waiting.by_hand:
                heap = self._by_hand.pop(waiting.job.name)
                heapq.heappop(heap)
                self._by_hand[waiting.job.name] = heap  # behind the other jobs


def _some(waiting: Iterable[Waiting], overdue: Iterable[Waiting]) -> list[Waiting]:
    return [each for each in (*waiting, *overdue) if each.not_before is not None or each.by_hand]
