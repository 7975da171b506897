"""One run of a job: what a job is, what its function is given, and how it is called and ends.

A coroutine function runs in a task of its own, a plain one in a thread of its own. How a run ended is told as an
`Outcome`; who schedules runs and writes the ledger is `aiolease._jobs.runner`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, final

from aiolease._election import fencing
from aiolease._election.leadership import Leadership
from aiolease._forks import end_child
from aiolease._functions import is_async
from aiolease._interrupts import is_for_the_program
from aiolease._jobs.due import Missed
from aiolease._jobs.schedule import Schedule
from aiolease._logging import emit, in_run
from aiolease._tracebacks import hide_values
from aiolease.errors import CommitUnknown, LeadershipLost, RunEnded, StoreUnavailable
from aiolease.events import Notice
from aiolease.stores.records import RunKey

Overlap = Literal["skip", "allow"]
Ending = Literal["succeeded", "failed", "lost"]
Threads = dict[str, set[threading.Thread]]
"""The threads of a registry's jobs that outlived their term, by job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A function and its schedule, as they were registered. For `argument` see `aiolease._functions.argument`."""

    name: str
    function: Callable[..., object]
    schedule: Schedule
    argument: str | None
    overlap: Overlap = "skip"
    timeout: float | None = None
    missed: Missed = "once"
    max_age: float | None = None
    rerun_lost: bool = False

    @property
    def one_by_one(self) -> bool:
        """Whether a run that waits is not begun beside another one."""
        return self.overlap == "skip" or self.missed == "all"

    @property
    def threaded(self) -> bool:
        """Whether its runs need a thread."""
        return not is_async(self.function)


@final
class JobRun:
    """One execution of a job, handed to a job that takes an argument.

    Attributes:
        job: The job's name.
        tick: The moment at which its schedule fell due, or at which it was triggered: aware UTC.
        attempt: 1, and more for each further attempt at the same tick.
        token: The fencing token of the term.
        context: What was given to `JobRegistry.run`, `serve` or `background` as ``context``.
        leadership: The term.
    """

    def __init__(
        self, *, job: str, tick: datetime, leadership: Leadership, context: Any = None, attempt: int = 1
    ) -> None:
        self.job = job
        self.tick = tick
        self.attempt = attempt
        self.token = leadership.token
        self.context = context
        self.leadership = leadership
        self._stopped: BaseException | None = None
        self._committed = False
        self._doubt: Exception | None = None  # of its latest final transaction that has failed
        self._unknown = False  # whether one of them may have been committed all the same

    @property
    def _key(self) -> RunKey:
        return RunKey(self.job, self.tick, self.attempt, self.token)

    def check(self) -> None:
        """Returns if the run may go on; no I/O, from any thread. A ``def`` job is to call it between two steps.

        Raises:
            LeadershipLost: The term has ended, or is about to.
            TimeoutError: The job's time-out is over.
        """
        if self._stopped is not None:
            raise self._stopped
        self.leadership.check()

    @asynccontextmanager
    async def transaction(self, final: bool = False) -> AsyncIterator[Any]:
        """A transaction that commits only if no newer term has begun: see `Leadership.transaction`.

        Args:
            final: Commits what the block wrote and that this run has succeeded together, if this attempt is still the
                running one: the last thing that a job does. With ``rerun_lost`` its effect is there exactly once. After
                that nothing changes the ledger's word on the run, whatever becomes of the job. If the commit fails or
                its answer is lost, the run is lost too, and with ``rerun_lost`` begun again if nothing was committed:
                five times if nobody knew, and as often as it takes, with a growing pause, if it met a conflict or had
                no connection.

        Raises:
            RunEnded: This attempt is not the running one any more: it was committed before. Nothing was committed now.
            LeadershipLost: And the other errors of `Leadership.transaction`.
        """
        if not final:
            async with self.leadership.transaction() as connection:
                yield connection
            return
        try:
            async with fencing.transaction(self.leadership.term, self._key, self._was_committed) as connection:
                yield connection
        except (CommitUnknown, StoreUnavailable) as error:
            self._doubt, self._unknown = error, self._unknown or isinstance(error, CommitUnknown)
            raise
        except RunEnded:
            if self._unknown:  # the one before, whose answer was lost
                self._committed = True
            raise

    def _was_committed(self) -> None:
        self._committed = True

    async def fence(self, connection: Any, final: bool = False) -> None:
        """Fences a transaction that the caller commits next: see `Leadership.fence`.

        Args:
            connection: See `Leadership.fence`.
            final: Records in the same transaction that this run has succeeded: see `transaction`.

        Raises:
            RunEnded: This attempt is not the running one any more; roll back.
            LeadershipLost: And the other errors of `Leadership.fence`.
        """
        await fencing.fence(self.leadership.term, connection, self._key if final else None)

    def __repr__(self) -> str:
        return f"<JobRun {self.job!r} {self.tick:%Y-%m-%dT%H:%M:%SZ} attempt {self.attempt}>"


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


_UNKEPT = {"expired", "taken", "error"}
"""Reasons for which a term ends, and with it its lease, before what runs in it has ended."""


def _start_thread(call: Callable[[], object], name: str) -> tuple[threading.Thread, asyncio.Future[object]]:
    """Runs a call in a thread of its own; the future is its end, and nobody's cancellation can say otherwise."""
    loop, pid = asyncio.get_running_loop(), os.getpid()
    ended: asyncio.Future[object] = loop.create_future()
    context = copy_context()

    def settle(result: object, error: BaseException | None) -> None:
        if error is None:
            ended.set_result(result)
        else:
            ended.set_exception(error)

    def work() -> None:
        result: object = None
        error: BaseException | None = None
        try:
            result = context.run(call)
        except StopIteration as raised:
            error = RuntimeError(f"the job raised {raised!r}")
        except BaseException as raised:  # noqa: BLE001 - it is the run's
            error = raised
        if os.getpid() != pid:
            end_child(error)
        with suppress(RuntimeError):  # the loop may have been closed meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    thread = threading.Thread(target=work, name=f"aiolease job {name}", daemon=True)
    thread.start()
    if (stand_still_for := getattr(loop, "stand_still_for", None)) is not None:  # virtual time, see `aiolease.testing`
        stand_still_for(ended, f"the job {name!r}")
    return thread, ended


class _NoThread(RuntimeError):
    """There was no thread to run the job in."""


class Execution:
    """A run under way.

    Attributes:
        job: The job.
        run: What its function is given.
        given_up: Set before it is cancelled because the term ends.
        begun: Whether the job's function has been called.
        no_thread: Why it could not be, if there was no thread for it.
    """

    def __init__(self, job: Job, run: JobRun, threads: Threads) -> None:
        self.job = job
        self.run = run
        self.given_up = False
        self.begun = False
        self.no_thread: BaseException | None = None
        self._completed = False  # in a thread, to its end
        self._threads = threads

    async def go(self) -> Outcome:
        """Runs the job to its end.

        Raises nothing of the job's, for asyncio hands a task's `SystemExit` on to the whole program. What a signal's
        handler raises meanwhile is the program's, and comes out.
        """
        job, run = self.job, self.run
        clock = asyncio.get_running_loop().time
        started = clock()
        if not run.leadership.is_leader:  # the process stood still since the run was claimed
            return Outcome("lost", 0.0)
        self.begun = True
        status: Ending = "succeeded"
        error: BaseException | None = None
        limit = asyncio.timeout(job.timeout)
        try:
            async with limit:
                with in_run(lease=run.leadership.name, job=run.job, tick=run.tick, attempt=run.attempt):
                    await self._call_here()
        except _NoThread as raised:
            self.begun, self.no_thread = False, raised.__cause__
            return Outcome("lost", 0.0)
        except asyncio.CancelledError as raised:
            # Cancelled by the end of the term, or by itself: by something it awaited that was cancelled elsewhere.
            status, error = ("lost", None) if self.given_up or _being_cancelled() else ("failed", raised)
        except BaseException as raised:  # a job that raises hurts no other job, and ends no program
            if is_for_the_program(raised):
                raise
            if limit.expired() and isinstance(raised, TimeoutError):
                status, error = "failed", TimeoutError(f"it took longer than {job.timeout:g} s")
            else:
                status, error = self._fate_of(raised)
        else:
            if limit.expired():  # it swallowed the cancellation
                status, error = "failed", TimeoutError(f"it took longer than {job.timeout:g} s")
            elif self.given_up and not self._completed:  # the same: how much of it was done, nobody knows
                status = "lost"
        if run._doubt is not None and not run._committed and status == "succeeded":
            status, error = "lost", run._doubt  # swallowed: its effect may not be there
        if error is not None:
            hide_values(error)
        return Outcome("succeeded" if run._committed else status, clock() - started, error, run._committed)

    def _fate_of(self, raised: BaseException) -> tuple[Ending, BaseException | None]:
        """What becomes of a run that raised something, and what is told of that."""
        if _is_loss(raised, self.run.leadership):
            return "lost", None
        if self.given_up or raised is self.run._doubt:  # in its clean-up, or of its final commit: the job did not fail
            return "lost", raised
        return "failed", raised

    async def _call_here(self) -> None:
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
            thread, ended = _start_thread(call, job.name)
        except RuntimeError as error:  # there are too many: nothing of the job has begun
            raise _NoThread(str(error)) from error
        try:
            await asyncio.wait([ended])
        except asyncio.CancelledError:
            run._stopped = (
                run.leadership.term.loss
                if self.given_up
                else TimeoutError(f"it took longer than {job.timeout or 0:g} s")
            )
            await self._outwait(thread, ended)
            self._completed = self._has_completed(ended)
            if self.given_up and self._completed:
                return  # while the lease was kept for it: it is not to be run again
            raise
        result = ended.result()
        self._completed = not inspect.isawaitable(result)
        if inspect.isgenerator(result) or inspect.isasyncgen(result):
            raise TypeError("it gave back a generator, which nobody runs: a job must not yield")
        if inspect.isawaitable(result):  # a callable that only looks like a plain function
            await result

    def _has_completed(self, ended: asyncio.Future[object]) -> bool:
        """Whether a thread has ended well while the lease was kept, and did not give back what is still to be run."""
        if not ended.done() or ended.exception() is not None or self.run.leadership.term.ended in _UNKEPT:
            return False
        result = ended.result()
        if inspect.iscoroutine(result):
            result.close()
        return not (inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result))

    async def _outwait(self, thread: threading.Thread, ended: asyncio.Future[object]) -> None:
        """A thread cannot be cancelled: waits for it as long as the lease is kept for it, then leaves it behind."""
        loop, lead, name = asyncio.get_running_loop(), self.run.leadership, self.job.name
        until = loop.time() + lead.term.timings.lease_duration
        while not ended.done() and (left := until - loop.time()) > 0:
            try:
                await asyncio.wait([ended], timeout=left)
            except asyncio.CancelledError:
                continue  # the second cancellation; the thread has been told already
        if ended.done():
            ended.exception()
            return
        self._threads.setdefault(name, set()).add(thread)
        ended.add_done_callback(lambda future: None if future.cancelled() else future.exception())
        text = f"the thread of {name!r} does not end, and is left behind; the job does not start again beside it"
        facts: Any = {"lease": lead.name, "holder": lead.holder, "token": lead.token}
        emit(Notice(**facts, severity="CRITICAL", text=text), lead.term.observer)


def _is_loss(error: BaseException, lead: Leadership) -> bool:
    """Whether an exception, or all of a group, says that the run's own term is over, and not another one."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_loss(part, lead) for part in error.exceptions)
    return isinstance(error, LeadershipLost) and (error.name, error.holder, error.token) == (
        lead.name,
        lead.holder,
        lead.token,
    )


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
