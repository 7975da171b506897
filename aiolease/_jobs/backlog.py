"""The queued runs that were not read yet: a backlog is read as it is worked off (DESIGN rule 46)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import final

from aiolease._jobs.job_state import JobState, JobStates
from aiolease._jobs.waiting_line import WaitingLine
from aiolease.stores.batch import Change
from aiolease.stores.records import Place, RunRecord


@final
class Backlog:
    """Whose queued runs are to be read next.

    Args:
        jobs: How the jobs stand; `JobState.unread` counts their runs.
        line: Takes what is read.
    """

    def __init__(self, jobs: JobStates, line: WaitingLine) -> None:
        self._jobs = jobs
        self._line = line
        self._hungry: set[str] = set()  # jobs whose next queued runs are to be read
        self._pending: set[Place] = set()  # what is to be queued anew, and perhaps has been
        self._behind_pending: set[str] = set()  # jobs whose other runs wait until that is written, and read

    def start_anew(self, pending: Sequence[Change]) -> set[Place]:
        """Forgets all: the ledger was read. Returns the runs that changes are about which are not written yet."""
        self._hungry.clear()
        self._pending = {(change.key.job, change.key.tick) for change in pending}
        self._behind_pending = {change.key.job for change in pending if change.status == "queued"}
        return self._pending

    def is_pending(self, name: str) -> None:
        """A run of a job is to be queued anew: the others of the job wait until that is written, and read."""
        self._behind_pending.add(name)

    def ran_out(self, state: JobState) -> None:
        """A job has no run in line any more: the next ones are read, if there are some."""
        if state.unread:
            self._hungry.add(state.job.name)

    def next_jobs(self, most: int) -> list[str]:
        """The jobs, at most so many, whose next queued runs are to be read."""
        if not self._hungry:  # a set that was large costs as much when it is empty
            return []
        return list(islice(self._hungry - self._behind_pending - self._jobs.aside, most))

    def feed(self, names: Collection[str], runs: Iterable[RunRecord], limit: int) -> list[str]:
        """Lines up what was read: of each of the jobs the queued runs with the oldest ticks, at most `limit`.

        Returns:
            The jobs with fewer rows than were counted, since somebody has deleted some: one of them still counts.
        """
        found = Counter[str]()
        for run in runs:
            found[run.job] += 1
            if (run.job, run.tick) not in self._pending:
                state = self._jobs[run.job]
                state.unread -= 1
                self._line.add(state, run)
        fewer = []
        for name in names:
            state = self._jobs[name]
            self._hungry.discard(name)
            if found[name] < limit and state.unread:
                state.going_on -= state.unread - 1
                state.unread = 0
                fewer.append(name)
        return fewer
