"""How many more runs may start: places under `max_running`, and threads under `max_threads` (DESIGN rule 49)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from aiolease._jobs.job import Job
from aiolease._jobs.job_state import JobState
from aiolease._jobs.plan import Plan
from aiolease._jobs.threads import LeftThreads


@final
class Places:
    """The places and the threads of one term.

    Args:
        max_running: How many runs may go on at once.
        max_threads: How many of them may be in threads.
        left: The threads that earlier terms have left behind.

    Attributes:
        max_running: See above.
        left: See above.
        threadless: True while the process has no thread to give.
    """

    def __init__(self, *, max_running: float, max_threads: float, left: LeftThreads) -> None:
        self.max_running = max_running
        self.threadless = False
        self.left = left
        self._most_threads = max_threads
        self._threads = max_threads  # how many more may be had

    def start_anew(self, running: Iterable[Job]) -> None:
        """Counts the threads anew, from the jobs of the runs that go on."""
        self._threads = self._most_threads - sum(job.threaded for job in running)

    def take(self, plan: Plan) -> None:
        """Takes the threads of a plan that was written."""
        self._threads -= plan.threads

    def give_back(self, job: Job) -> None:
        """Gives back the thread of a run that has ended, if it had one."""
        self._threads += job.threaded

    def has_thread(self, plan: Plan, job: Job) -> bool:
        """True if one more run of a job could start: there is a thread for it, or it needs none."""
        return not job.threaded or self.thread_to_be_had(plan)

    def thread_to_be_had(self, plan: Plan) -> bool:
        """True if one more run that needs a thread could start beside those of a plan."""
        return not self.threadless and self._threads - self.left.count() > plan.threads

    def goes_on(self, state: JobState) -> bool:
        """True if a run of a job goes on or waits, or goes on in a thread that an earlier term left behind.

        Of what waits for its moment and was not read, nobody knows that it was asked for by hand: it counts.
        """
        return state.going_on > 0 or state.unseen > 0 or self.in_thread(state.job)

    def in_thread(self, job: Job) -> bool:
        """True if a run of a job goes on in a thread that an earlier term left behind."""
        return self.left.has(job.name)
