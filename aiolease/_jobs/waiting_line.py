"""The line of jobs that wait for a place: places go round the jobs (DESIGN rule 45).

The job that got a place longest ago comes first; within a job the oldest tick. There are two lines, so that a job that
waits for a thread does not hold up the others. The cost of a turn depends on what it starts, not on how much waits.
"""

from __future__ import annotations

import heapq
from collections import deque
from datetime import datetime
from typing import final

from aiolease._jobs.due import Skip, begun, overdue, too_late
from aiolease._jobs.jitter import start_of
from aiolease._jobs.job_state import JobState, JobStates
from aiolease._jobs.places import Places
from aiolease._jobs.plan import Plan, Waiting, waiting_for
from aiolease.stores.records import RunRecord

_Line = list[tuple[int, datetime, str]]


@final
class WaitingLine:
    """The waiting runs of one term that were read from the ledger, and the jobs in line for a place.

    Args:
        jobs: How the jobs stand.
        places: The places.
        token: The term's.
    """

    def __init__(self, jobs: JobStates, places: Places, token: int) -> None:
        self._jobs = jobs
        self._places = places
        self._token = token
        self._runs: dict[str, deque[Waiting]] = {}  # by job, in the order of their ticks
        self._line: _Line = []  # the jobs whose oldest waiting run may start
        self._thread_line: _Line = []  # those that need a thread for it
        self._behind_threads: set[str] = set()  # jobs that wait for a thread that an earlier term left
        self._served = 0

    def start_anew(self) -> None:
        """Forgets all that waits: the ledger was read."""
        self._runs.clear()
        self._line.clear()
        self._thread_line.clear()
        self._behind_threads.clear()

    def add(self, state: JobState, run: RunRecord) -> None:
        """Adds a run that waits its turn."""
        state.backlog = True
        waiting = waiting_for(state.job, run)
        if waiting.by_hand:  # a row by another hand: it is here, and so it is an ordinary one
            waiting.request = None
        self.enqueue(state, waiting)

    def enqueue(self, state: JobState, waiting: Waiting) -> None:
        """Adds a run whose turn it is not yet: behind those of its job with older ticks."""
        runs = self._runs.setdefault(state.job.name, deque())
        place = len(runs)
        while place and runs[place - 1].tick > waiting.tick:  # of a trigger that was seen late, or of a retry
            place -= 1
        runs.insert(place, waiting)
        self.put_in_line(state)

    def put_in_line(self, state: JobState) -> None:
        """Puts a job in line for a place, if its oldest waiting run may start."""
        name = state.job.name
        waits = name in self._runs and not state.in_line and name not in self._behind_threads
        if waits and not (state.job.one_by_one and state.running):
            state.in_line = True
            line = self._thread_line if state.job.threaded else self._line
            heapq.heappush(line, (state.served, self._runs[name][0].tick, name))

    def waits(self, plan: Plan, state: JobState) -> bool:
        """True if an older run of a job waits, and does not start by this plan."""
        name = state.job.name
        return state.unread > 0 or (name in self._runs and plan.taken.get(name, 0) < len(self._runs[name]))

    def serve(self, plan: Plan, state: JobState) -> None:
        """Gives a job a place: its next run comes behind those of all other jobs in line."""
        plan.threads += state.job.threaded
        plan.served.setdefault(state.job.name, state.served)
        self._served += 1
        state.served = self._served

    def plan(self, plan: Plan, now: datetime, free: float, most: int) -> int:
        """Starts runs that wait while there are places; returns how many.

        Args:
            plan: Takes them.
            now: The database's clock.
            free: How many places there are.
            most: Half of how many changes go into one batch.
        """
        for name in [name for name in self._behind_threads if not self._places.in_thread(self._jobs[name].job)]:
            self._behind_threads.discard(name)
            self.put_in_line(self._jobs[name])
        while (line := self._next_line(plan)) and len(plan.waiting) < free and len(plan.batch.changes) < 2 * most:
            _, _, name = heapq.heappop(line)
            state = self._jobs[name]
            state.in_line = False
            job = state.job
            if name in self._jobs.aside or name not in self._runs or (job.one_by_one and state.running):
                continue  # one of its runs ended while the start of the next was being written
            runs, number = self._runs[name], plan.taken.get(name, 0)
            waiting = runs[number]
            why = self._too_old(waiting, now)
            if why is None and job.one_by_one and self._places.in_thread(job):
                self._behind_threads.add(name)
                continue
            plan.taken[name] = number + 1
            self._take(plan, state, waiting, why)
            if number + 1 < len(runs) and (why is not None or not job.one_by_one):
                state.in_line = True
                heapq.heappush(line, (state.served, runs[number + 1].tick, name))
        return len(plan.waiting)

    def _next_line(self, plan: Plan) -> _Line:
        """The line whose first job has the next turn."""
        if not self._thread_line or not self._places.thread_to_be_had(plan):
            return self._line
        return min(self._line, self._thread_line) if self._line else self._thread_line

    def _too_old(self, waiting: Waiting, now: datetime) -> str | None:
        """Why a run that waits is not begun any more. What this term has lost is begun again, however late it is."""
        lost_here = waiting.token == self._token and waiting.attempt > 1 and waiting.not_before is None
        if waiting.status != "queued" or lost_here:
            return None
        job = waiting.job
        return overdue(start_of(job, self._jobs.lease, waiting.tick, waiting.request), job.max_age, now)

    def _take(self, plan: Plan, state: JobState, waiting: Waiting, why: str | None) -> None:
        """Starts a run that waits, or ends it for a reason."""
        key, is_retry = waiting.key, waiting.not_before is not None
        if why is None:
            self.serve(plan, state)
            plan.waiting.append(waiting)
            if waiting.status == "queued":
                plan.batch.changes.append(begun(key, adopt=waiting.token != self._token))
            return
        plan.overdue.append(waiting)
        plan.batch.changes.append(too_late(key, why, failed=is_retry))
        if waiting.attempt == 1 and not is_retry:
            plan.skips.append((waiting.job, Skip(waiting.tick, waiting.tick, 1, why)))

    def written(self, plan: Plan) -> list[JobState]:
        """Takes the runs of a plan that was written out of the line; returns the jobs that have none left in it."""
        emptied = []
        for name, number in plan.taken.items():
            runs = self._runs[name]
            for _ in range(number):
                runs.popleft()
            if not runs:
                del self._runs[name]
                emptied.append(self._jobs[name])
        return emptied

    def not_written(self, plan: Plan) -> None:
        """Gives the jobs of a plan their turns back: nothing has begun."""
        for name, before in plan.served.items():
            self._jobs[name].served = before
