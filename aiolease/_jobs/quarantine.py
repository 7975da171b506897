"""Sets jobs aside whose rows keep those of other jobs from being written (DESIGN rule 44).

1. A row cannot be read, or a job cannot be planned: the job is set aside.
2. Batches are refused again and again: half of their jobs are held back, then half of the rest, until one is left. It
   is set aside. Jobs that could be written meanwhile are cleared.
3. A job is set aside for a minute. One whose rows could not be written is then tried alone.
4. A job that this process has not is left alone: its rows are not changed any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import final

from aiolease._jobs.job_state import JobStates
from aiolease._jobs.notices import Notices
from aiolease._jobs.plan import Plan

_ASIDE = 60.0
"""Seconds after which a job that was set aside is tried again."""

_NARROWED = 40
"""How many refusals in a row it takes at most to find the job at fault."""

_SUSPICIOUS = 4
"""How often in a row a batch is refused before it is the fault of a job."""


@final
class Quarantine:
    """The jobs of one term of which nothing is planned; `JobStates.aside` has them all.

    Attributes:
        refused: The latest plan, if it was refused, and the one before it as well.
        left_alone: Jobs that this process has not, and whose rows cannot be written.
    """

    def __init__(self, jobs: JobStates, notices: Notices) -> None:
        self.refused: Plan | None = None
        self.left_alone: set[str] = set()
        self._jobs = jobs
        self._notices = notices
        self._clock = asyncio.get_running_loop().time
        self._until: dict[str, float] = {}  # the jobs that are set aside, and until when
        self._refusals = 0  # in a row
        self._held_back: set[str] = set()  # while it is found out which job is at fault
        self._cleared: set[str] = set()  # jobs that are not at fault
        self._unwritable: set[str] = set()  # jobs that were at fault
        self._probation: list[str] = []  # jobs that were at fault, and are to be tried again, each alone
        self._alone: str | None = None  # the one that is tried now

    @property
    def set_aside_jobs(self) -> Iterable[str]:
        """The jobs that are set aside."""
        return self._until.keys()

    @property
    def is_narrowing(self) -> bool:
        """True while batches are refused, and the next try brings the job at fault nearer."""
        return _SUSPICIOUS <= self._refusals < _NARROWED

    @property
    def is_suspicious(self) -> bool:
        """True once batches were refused so often that it is the fault of a job."""
        return self._refusals >= _SUSPICIOUS

    def set_aside(self, jobs: Mapping[str, str]) -> None:
        """Has nothing planned of some jobs for a minute, each for a reason that is told once."""
        for job in sorted(self._jobs.known(jobs)):
            self._until[job] = self._clock() + _ASIDE
            text = (
                f"{job!r} is set aside, the other jobs go on: {jobs[job]}; it is tried again each minute, and "
                f"`aiolease settle {job}` sets its rows right"
            )
            self._notices.tell_once(_told(job), "CRITICAL", text)
        self._exclude()

    def set_unwritable_aside(self, job: str, why: object) -> None:
        """Sets the one job aside whose rows cannot be written."""
        self._unwritable.add(job)
        self.set_aside({job: f"its rows cannot be written: {why}"})

    def _exclude(self) -> None:
        self._jobs.aside = {*self._until, *self._held_back}

    def comes_back(self) -> bool:
        """True if a job was set aside long enough: it is tried again from now on."""
        now = self._clock()
        back = [job for job, until in self._until.items() if until <= now]
        for job in back:
            del self._until[job]
            if job in self._unwritable:
                self._unwritable.discard(job)
                self._probation.append(job)
        self._exclude()
        return bool(back)

    # -- a job that is tried by itself

    @property
    def has_probation(self) -> bool:
        """True if a job is to be tried by itself."""
        return bool(self._probation)

    def try_alone(self) -> None:
        """Has only one job planned, until `try_all`."""
        self._alone = self._probation.pop()
        self._jobs.aside |= self._jobs.keys() - {self._alone}

    def try_others(self) -> None:
        """Has the other jobs planned, too, after the one that is tried by itself."""
        self._exclude()

    def try_all(self) -> None:
        """No job is tried by itself."""
        self._alone = None

    # -- what became of a plan

    def written(self, plan: Plan) -> bool:
        """Notes that a plan was written; returns True if some jobs were held back, and are not any more."""
        self._refusals, self.refused = 0, None
        self._notices.tell_again(_told(job) for job in plan.jobs())
        if not self._held_back:
            return False
        self._cleared |= plan.jobs()  # these are not at fault; now the others are tried
        self._held_back.clear()
        self._exclude()
        return True

    def was_refused(self, plan: Plan, why: object) -> None:
        """Notes that a plan was refused."""
        self._refusals += 1
        if self._alone is not None:
            self._refusals = 0
            self.set_unwritable_aside(self._alone, why)
        self.refused = plan if self._refusals > 1 else None

    def went_unanswered(self) -> None:
        """Notes that nobody knows whether a plan was written."""
        self._refusals, self.refused = 0, None

    def narrow_down(self, plan: Plan, why: str) -> str | None:
        """Holds half of the jobs back that may be at fault for a refusal; of the last one, sets it aside.

        Returns:
            A job that this process has not, and that is left alone from now on.
        """
        suspects = sorted(plan.jobs() - self._cleared) or sorted(plan.jobs())
        if len(suspects) > 1:
            self._held_back |= set(suspects[len(suspects) // 2 :])
            self._exclude()
            return None
        if not suspects:
            return None
        self._held_back.clear()
        self._cleared.clear()
        [job] = suspects
        if self._jobs.known([job]):
            self.set_unwritable_aside(job, why)
            return None
        self.left_alone.add(job)
        text = f"{job!r}, which this process has not, is left alone: its rows cannot be written: {why}"
        self._notices.tell("CRITICAL", text)
        self._exclude()
        return job


def _told(job: str) -> str:
    return f"{job} set aside"
