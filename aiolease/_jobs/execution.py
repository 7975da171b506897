"""How a run's function is called, and how it ends: an `Outcome`.

A coroutine function runs in the task of its run, a plain one in a thread of its own. `aiolease._jobs.runs` starts runs
and has their ends written.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
from dataclasses import dataclass
from typing import Literal, final

from aiolease._election.term import Term
from aiolease._forks import end_child
from aiolease._interrupts import is_for_the_program
from aiolease._jobs.due import CANCELLED
from aiolease._jobs.job import Job
from aiolease._jobs.plan import Waiting
from aiolease._jobs.run import Around, JobRun
from aiolease._jobs.threads import JobThread, LeftThreads
from aiolease._logging import emit, in_run
from aiolease._tracebacks import hide_values
from aiolease._waiting import ended
from aiolease.errors import GiveUp
from aiolease.events import Notice

Ending = Literal["succeeded", "failed", "lost"]

_UNKEPT = {"expired", "taken", "error"}
"""The reasons of a term's end for which the lease is not kept while its runs end."""


@final
class Execution:
    """A run that goes on.

    Args:
        waiting: What the ledger says of it.
        run: What its function is given.
        left: The threads that earlier terms have left behind.
        around: See `JobRegistry`.

    Attributes:
        waiting: See above.
        job: The job.
        run: See above.
        given_up: Set before it is cancelled because the term ends.
        cancelled: True once somebody's request has cancelled it.
        begun: True once the job's function has been called.
        no_thread: The error, if there was no thread to call it in.
    """

    def __init__(self, waiting: Waiting, run: JobRun, left: LeftThreads, around: Around | None = None) -> None:
        self.waiting = waiting
        self.job: Job = waiting.job
        self.run = run
        self.given_up = False
        self.cancelled = False
        self.begun = False
        self.no_thread: BaseException | None = None
        self._completed = False  # True if the function ran to its end in a thread
        self._left = left
        self._around = around

    def cancel(self) -> None:
        """Has it fail because somebody asked for that; whoever calls this cancels its task, too."""
        self.cancelled = True
        self.run.fate.stopped = GiveUp(CANCELLED)

    async def go(self) -> Outcome:
        """Runs the job to its end.

        Raises nothing that the job raises: asyncio would hand a task's `SystemExit` on to the whole program. What a
        signal handler raises meanwhile is meant for the program, and is raised.
        """
        job, run = self.job, self.run
        clock = asyncio.get_running_loop().time
        started = clock()
        if not run.leadership.is_leader:  # the process stood still since the run was claimed
            return Outcome("lost", 0.0)
        self.begun = True
        status: Ending = "succeeded"
        error: BaseException | None = None
        limit = None if job.timeout is None else asyncio.timeout(job.timeout)
        try:
            with in_run(lease=run.leadership.name, job=run.job, tick=run.tick, attempt=run.attempt):
                if limit is None:
                    await self.call()
                else:
                    async with limit:
                        await self.call()
        except asyncio.CancelledError as raised:
            # Cancelled by the end of the term; or something that it awaited was cancelled elsewhere.
            status, error = ("lost", None) if self.given_up or _being_cancelled() else ("failed", raised)
        except BaseException as raised:  # a job that raises hurts no other job, and ends no program
            if is_for_the_program(raised):
                raise
            if _is_over(limit) and isinstance(raised, TimeoutError):
                status, error = "failed", TimeoutError(f"it took longer than {job.timeout:g} s")
            else:
                status, error = self._fate_of(raised)
        else:
            if _is_over(limit):  # it swallowed the cancellation
                status, error = "failed", TimeoutError(f"it took longer than {job.timeout:g} s")
            elif self.given_up and not self._completed:  # the same: nobody knows how much of it was done
                status = "lost"
        return self._outcome(status, error, clock() - started)

    def _outcome(self, status: Ending, error: BaseException | None, took: float) -> Outcome:
        """How it ended, considering what else is known: the first of these that is so.

        1. Nothing of the job has begun, whatever `around` made of that.
        2. Its final transaction was committed: it has succeeded.
        3. Somebody has cancelled it: it has failed, whatever it made of that.
        4. Its final transaction failed, and it has swallowed that: its effect may not be there.
        """
        fate = self.run.fate
        if self.no_thread is not None:
            self.begun = False
            return Outcome("lost", 0.0)
        if fate.committed:
            status = "succeeded"
        elif self.cancelled:
            status, error = "failed", GiveUp(CANCELLED) if error is None else _because_of(error)
        elif fate.doubt is not None and status == "succeeded":
            status, error = "lost", fate.doubt
        if error is not None:
            hide_values(error)
        return Outcome(status, took, error, fate.committed)

    def _fate_of(self, raised: BaseException) -> tuple[Ending, BaseException | None]:
        """The status of a run that raised `raised`, and the error that is reported."""
        if _is_loss(raised, self.run.leadership.term):
            return "lost", None
        if self.given_up or raised is self.run.fate.doubt:  # raised in its clean-up, or by its final commit
            return "lost", raised
        return "failed", raised

    async def call(self) -> None:
        """Calls the job's function, within what the registry has around it."""
        if self._around is None:
            await self._call_guarded()
            return
        async with self._around(self.run) as self.run.resource:
            await self._call_guarded()

    async def _call_guarded(self) -> None:
        """Calls the job's function; a child that it forks ends with it, and goes no further."""
        pid, error = os.getpid(), None
        try:
            await self._call()
        except BaseException as raised:
            error = raised
            raise
        finally:
            if os.getpid() != pid:
                end_child(error)

    async def _call(self) -> None:
        job, run = self.job, self.run
        call = job.function
        if job.argument is not None:
            call = functools.partial(call, **{job.argument: run}) if job.argument else functools.partial(call, run)
        if not job.threaded:
            await call()  # type: ignore[misc]
            return
        try:
            thread = JobThread(call, job.name)
        except RuntimeError as error:  # there are too many: nothing of the job has begun
            self.no_thread = error
            raise _NoThread(str(error)) from error
        try:
            await ended(thread.ended)
        except asyncio.CancelledError:
            if not self.cancelled:
                late = TimeoutError(f"it took longer than {job.timeout or 0:g} s")
                run.fate.stopped = run.leadership.term.loss if self.given_up else late
            await self._outwait(thread)
            self._completed = self._has_completed(thread)
            if self.given_up and self._completed and not self.cancelled:
                return  # while the lease was kept for it: it is not to be run again
            raise
        result = thread.ended.result()
        self._completed = not inspect.isawaitable(result)
        if inspect.isgenerator(result) or inspect.isasyncgen(result):
            raise TypeError("it gave back a generator, which nobody runs: a job must not yield")
        if inspect.isawaitable(result):  # a callable that only looks like a plain function
            await result

    async def _outwait(self, thread: JobThread) -> None:
        """Waits for a thread as long as the lease is kept for it, then leaves it behind."""
        term, name = self.run.leadership.term, self.job.name
        if not await thread.outwait(term.timings.lease_duration):
            self._left.add(name, thread)
            text = f"the thread of {name!r} does not end, and is left behind; the job does not start again beside it"
            emit(Notice(**term.facts(), severity="CRITICAL", text=text), term.observer)

    def _has_completed(self, thread: JobThread) -> bool:
        """True if a thread succeeded while the lease was kept, and did not return a coroutine or a generator."""
        call = thread.ended
        if not call.done() or call.exception() is not None or self.run.leadership.term.ended in _UNKEPT:
            return False
        result = call.result()
        if inspect.iscoroutine(result):
            result.close()
        return not (inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: As the ledger has it.
        took: Seconds.
        error: What it raised, if it failed.
        committed: Whether a final transaction has recorded it already.
    """

    status: Ending
    took: float
    error: BaseException | None = None
    committed: bool = False


def _is_over(limit: asyncio.Timeout | None) -> bool:
    """True if a run has a time limit, and took longer."""
    return limit is not None and limit.expired()


class _NoThread(RuntimeError):
    """There was no thread to run the job in."""


def _is_loss(error: BaseException, term: Term) -> bool:
    """True if an exception, or each one of a group, says that the run's own term is over."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_loss(part, term) for part in error.exceptions)
    return term.is_own(error)


def _because_of(error: BaseException) -> GiveUp:
    """What a cancelled run has failed of, with what it raised in its clean-up."""
    cancelled = GiveUp(CANCELLED)
    if not isinstance(error, asyncio.CancelledError | GiveUp):
        cancelled.__cause__ = error
    return cancelled


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
