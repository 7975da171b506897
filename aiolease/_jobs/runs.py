"""The runs of one term: starts them, tells of them, and notes how they ended for the ledger.

A run is a task of its own. How it ended is a change for the next batch, except where a final transaction has recorded
it. A run that never began goes back to the queue.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any, final

from aiolease._clock import jitter
from aiolease._election.leadership import Leadership
from aiolease._jobs.due import CANCELLED, Skip, lost, overdue
from aiolease._jobs.ending import Ending
from aiolease._jobs.execution import Execution, Outcome
from aiolease._jobs.jitter import start_of
from aiolease._jobs.notices import Notices
from aiolease._jobs.plan import Waiting
from aiolease._jobs.planner import Planner
from aiolease._jobs.pruning import Pruning
from aiolease._jobs.retries import gives_up, next_start, pause_before, tried_again
from aiolease._jobs.run import Around, JobRun
from aiolease._jobs.skips import Skips
from aiolease._jobs.unwritten import Unwritten, handed_back
from aiolease.errors import GiveUp
from aiolease.events import RunFinished, RunStarted, describe
from aiolease.stores.batch import Change
from aiolease.stores.records import Place

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
"""Seconds before a run is begun again whose final transaction met trouble; doubled each time up to the second."""


@final
class Runs:
    """The runs of one term that go on.

    Args:
        lead: The term.
        planner: Hears of the runs that have ended, and that there is no thread.
        unwritten: Takes what is to be written of them.
        skips: Takes those that are too old to start.
        pruning: Counts their rows.
        notices: Tells of them.
        ending: Whether they are being ended.
        wake: Set when the runner has something to do.
        context: What jobs find as ``run.context``.
        around: See `JobRegistry`.
    """

    def __init__(
        self,
        lead: Leadership,
        *,
        planner: Planner,
        unwritten: Unwritten,
        skips: Skips,
        pruning: Pruning,
        notices: Notices,
        ending: Ending,
        wake: asyncio.Event,
        context: Any,
        around: Around | None = None,
    ) -> None:
        self._lead = lead
        self._planner = planner
        self._unwritten = unwritten
        self._skips = skips
        self._pruning = pruning
        self._notices = notices
        self._ending = ending
        self._wake = wake
        self._context = context
        self._around = around
        self._running: dict[asyncio.Task[Outcome], Execution] = {}
        self._threadless = 0  # how often in a row there was no thread

    def __len__(self) -> int:
        return len(self._running)

    def tasks(self) -> set[asyncio.Task[Any]]:
        """The tasks of the runs."""
        return {*self._running}

    def going_on(self) -> list[Waiting]:
        """Which runs go on, as the ledger knew them before they began."""
        return [execution.waiting for execution in self._running.values()]

    def start(self, waiting: Waiting) -> None:
        """Starts a run that the ledger calls running, or has it skipped if it is too old by now."""
        job, tick, attempt = waiting.job, waiting.tick, waiting.attempt
        run = JobRun(job=job.name, tick=tick, attempt=attempt, leadership=self._lead, context=self._context)
        if self._unwritten.unanswered:
            self._unwritten.unanswered.pop(run.fate.key, None)
        why = self._too_late(waiting)
        if why is not None:  # the answer to its claim was late, or lost and then found
            self._unwritten.add(Change(key=run.fate.key, was="running", status="skipped", attempt=1, error=why))
            self._planner.ended(waiting, self._lead.database_now())
            self._skips.written(job.name, Skip(tick, tick, 1, why))
            self._wake.set()
            return
        if self._notices.hears(RunStarted.level):
            late = (self._lead.database_now() - (waiting.not_before or self._due(waiting))).total_seconds()
            self._notices.emit(RunStarted(**self._notices.facts(), job=job.name, tick=tick, late=late))
        execution = Execution(waiting, run, self._planner.places.left, self._around)
        task = asyncio.create_task(execution.go(), name=f"aiolease job {job.name}")
        self._running[task] = execution
        task.add_done_callback(self._finished)

    def _due(self, waiting: Waiting) -> datetime:
        return start_of(waiting.job, self._lead.name, waiting.tick, waiting.request)

    def _too_late(self, waiting: Waiting) -> str | None:
        """Why a run is not started any more; ``None`` if it is."""
        max_age = waiting.job.max_age
        if max_age is None or waiting.attempt > 1 or waiting.by_hand:
            return None
        return overdue(self._due(waiting), max_age, self._lead.database_now())

    def give_up(self) -> None:
        """Tells the runs that they are cancelled because the term ends: they are lost, and did not fail."""
        for execution in self._running.values():
            execution.given_up = True

    def cancel(self, name: str) -> None:
        """Cancels the runs of a job that go on, because somebody asked for that: as a time-out does, once."""
        for task, execution in self._running.items():
            if execution.job.name == name and not execution.cancelled:
                execution.cancel()
                task.cancel()

    def has_cancelled(self, name: str) -> bool:
        """True while a run of a job goes on that was cancelled so."""
        return any(each.cancelled and each.job.name == name for each in self._running.values())

    def _finished(self, task: asyncio.Task[Outcome]) -> None:
        execution = self._running.pop(task)
        self._wake.set()
        self._note_end(task, execution)
        self._planner.ended(execution.waiting, self._lead.database_now())

    def _note_end(self, task: asyncio.Task[Outcome], execution: Execution) -> None:
        """Notes what is to be written of a run that has ended, and tells of it."""
        job, run, key = execution.job, execution.run, execution.run.fate.key
        if not execution.begun and not execution.cancelled:
            # The term was over before, and another leader is to run it; or there is no thread.
            self._hand_back(execution)
            if execution.no_thread is not None:
                self._wait_for_threads(execution.no_thread)
            return
        if job.threaded:
            self._threadless = 0
        ended_in_order = not task.cancelled() and task.exception() is None  # else a signal's handler raised in it
        outcome = task.result() if ended_in_order else Outcome("lost", 0.0)
        if execution.cancelled and not outcome.committed:  # it may have been cancelled before it began
            outcome = Outcome("failed", outcome.took, outcome.error or GiveUp(CANCELLED))
        self._pruning.grew(job.name)
        if outcome.committed:
            self._unwritten.was_committed(key)
            self.tell(execution, outcome)
        elif outcome.status == "lost":
            self._note_loss(execution, outcome)
        elif outcome.status == "failed":
            self._note_failure(execution, outcome)
        else:
            self._unwritten.add(Change(key=key, was="running", status="succeeded", attempt=run.attempt))
            self.tell(execution, outcome)

    def _hand_back(self, execution: Execution) -> None:
        change = handed_back(execution.run.fate.key, execution.waiting.again)
        self._planner.queued_anew(execution.waiting, change)
        self._unwritten.add(change)

    def _note_failure(self, execution: Execution, outcome: Outcome) -> None:
        """Notes a run that has failed. It is tried again if its job says so (DESIGN rule 33).

        Whether its final transaction took effect all the same, nobody may know: then the change has no effect.
        """
        waiting, fate, now = execution.waiting, execution.run.fate, self._lead.database_now()
        error = CANCELLED if execution.cancelled else describe(outcome.error)
        start = None
        if not execution.cancelled and not gives_up(outcome.error) and waiting.failures < waiting.job.retries:
            pause, wrong = pause_before(waiting.job, waiting.failures + 1)
            if wrong is not None:
                self._notices.tell("ERROR", f"{waiting.job.name!r} is tried again in {pause:g} s: {wrong}")
            start = next_start(waiting, pause, now, lease=self._lead.name)
        if start is None:
            change = Change(key=fate.key, was="running", status="failed", attempt=fate.key.attempt, error=error)
        else:
            change = tried_again(waiting, self._lead.token, error, start, now)
            self._planner.queued_anew(waiting, change)
            if fate.unknown:
                self._unwritten.doubt(waiting.place, execution)
        self._unwritten.add(change)
        self.tell(execution, outcome, retry_at=start)

    def _note_loss(self, execution: Execution, outcome: Outcome) -> None:
        """Notes a run that was lost. It is begun again if its job says so (DESIGN rules 26 and 47).

        1. It is known that its final transaction had no effect: it is queued anew after a pause, and does not count.
        2. Nobody knows whether its final commit worked: the ledger is read, and says so.
        3. Its term has ended: it is queued anew, or called lost.
        """
        job, waiting, fate = execution.job, execution.waiting, execution.run.fate
        harmless = fate.doubt is not None and not fate.unknown
        why = self._ending.reason or self._lead.term.ended or "its term seemed to be over"
        if fate.doubt is not None:
            why = describe(fate.doubt)
        change = lost(
            fate.key, rerun=job.rerun_lost, now=self._lead.database_now(), off=waiting.failures + waiting.uncounted,
            harmless=harmless, why=why, request=waiting.request,
        )  # fmt: skip
        again = change.status == "queued"
        if again:
            self._planner.queued_anew(waiting, change)
            if harmless and not self._ending.has_begun:
                self._postpone(waiting, change, f"its final transaction was not committed: {why}")
                return
        self._unwritten.add(change)
        if fate.doubt is not None and again and not self._ending.has_begun:
            self._unwritten.doubt(waiting.place, execution)
            text = f"{job.name!r} is begun again if its final transaction was not committed: {describe(fate.doubt)}"
            self._notices.tell("WARNING", text)
        else:
            self.tell(execution, outcome, why)

    def _postpone(self, waiting: Waiting, change: Change, why: str) -> None:
        """Has a run begun again after a pause: it is known that nothing of it took effect."""
        place, pause = waiting.place, _pause(waiting.uncounted)
        self._unwritten.postpone(place, change)
        asyncio.get_running_loop().call_later(pause, self._resume, place)
        self._notices.tell("WARNING", f"{place[0]!r} is begun again in {pause:.1f} s, {why}")

    def _resume(self, place: Place) -> None:
        if self._unwritten.resume(place):
            self._wake.set()

    def _wait_for_threads(self, error: BaseException) -> None:
        """Has no ``def`` job begun for a while: there is no thread for one."""
        if self._planner.places.threadless or self._ending.has_begun:
            return
        pause = _pause(self._threadless)
        self._threadless += 1
        self._planner.places.threadless = True
        asyncio.get_running_loop().call_later(pause, self._try_threads)
        text = f"there is no thread, jobs that are no coroutines wait for {pause:.1f} s: {describe(error)}"
        self._notices.tell("WARNING", text)

    def _try_threads(self) -> None:
        self._planner.places.threadless = False
        self._wake.set()

    def tell(
        self, execution: Execution, outcome: Outcome, reason: str | None = None, retry_at: datetime | None = None
    ) -> None:
        """Tells how a run ended; `reason` is why it was lost, `retry_at` when it is tried again."""
        if outcome.status == "succeeded" and outcome.error is None and not self._notices.hears(RunFinished.level):
            return
        run, error = execution.run, outcome.error if outcome.status == "failed" else None
        facts = self._notices.facts() | {"job": run.job, "tick": run.tick}
        facts |= {"status": outcome.status, "took": outcome.took, "error": error, "reason": reason}
        self._notices.emit(RunFinished(**facts, retry_at=retry_at))
        if outcome.status != "failed" and outcome.error is not None and run.fate.doubt is not outcome.error:
            when = "after its final transaction, which counts" if outcome.committed else "while it was cancelled"
            self._notices.tell("ERROR", f"{run.job!r} raised {when}: {describe(outcome.error)}")


def _pause(times: int) -> float:
    """Seconds until what has failed so many times before is tried again."""
    return jitter(0.5, 1.0) * min(_FIRST_PAUSE * 2.0 ** min(times, 10), _LONGEST_PAUSE)
