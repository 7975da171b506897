"""The jobs of one registry during one term: read the ledger, plan, write, start what was written.

One loop serves any number of jobs; no task waits for a job that is not due. The loop writes all that has come together
in one fenced transaction, and only what was written is run. If an answer is lost, or the rows are not as they should
be, it reads everything again and goes on from there: so a new term begins, and so an old one recovers.

When the term ends, its runs are cancelled once, as by ``Task.cancel()``, and awaited before the lease is released. What
has become of them is written before that, too.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Iterable
from typing import Any, final

from aiolease._election.health import STORE_ERRORS
from aiolease._election.leadership import Leadership
from aiolease._jobs.calls import Calls
from aiolease._jobs.ending import Ending, cancel_all
from aiolease._jobs.job import Job
from aiolease._jobs.job_state import JobStates
from aiolease._jobs.ledger import Ledger
from aiolease._jobs.notices import Notices
from aiolease._jobs.places import Places
from aiolease._jobs.planner import Planner
from aiolease._jobs.pruning import Pruning
from aiolease._jobs.quarantine import Quarantine
from aiolease._jobs.readings import Readings
from aiolease._jobs.run import Around
from aiolease._jobs.runs import Runs
from aiolease._jobs.skips import Skips
from aiolease._jobs.tenure import Tenure
from aiolease._jobs.threads import LeftThreads
from aiolease._jobs.unwritten import Unwritten
from aiolease._jobs.writing import Writing
from aiolease._waiting import wait_shielded
from aiolease.stores.contract import FenceBroken, Refused

_SLICE = 5.0
"""The longest sleep between two looks at the database's clock, in seconds: it may be found to have stepped."""


@final
class Runner:
    """The jobs of one registry during one term.

    Args:
        lead: The term.
        jobs: The jobs.
        left: The threads that earlier terms have left behind.
        max_running: See `JobRegistry`, as for the two that follow.
        max_threads: See `JobRegistry`.
        history: See `JobRegistry`.
        context: What jobs find as ``run.context``.
        around: See `JobRegistry`.
        told: What this process has told of the lease, and does not tell again.

    Attributes:
        lead: The term.
        calls: The calls that run within the term beside its jobs.
    """

    def __init__(
        self,
        lead: Leadership,
        jobs: Iterable[Job],
        left: LeftThreads,
        *,
        max_running: int | None,
        max_threads: int | None,
        history: int | None,
        context: Any,
        around: Around | None,
        told: set[str],
    ) -> None:
        term = lead.term
        self.lead = lead
        self._term = term
        self._wake = asyncio.Event()
        self._ending = Ending()
        self.calls = Calls(lead, self._ending, self._wake)
        # What is kept and told
        ledger, unwritten, notices = Ledger(term), Unwritten(), Notices(term, told)
        self._pruning = Pruning(ledger, history)
        skips = Skips(notices, self._pruning, term.elected_at)
        # What is planned
        places = Places(max_running=max_running or math.inf, max_threads=max_threads or math.inf, left=left)
        young, patience = 2 * term.timings.lease_duration, term.timings.heartbeat_interval
        self._planner = Planner(JobStates(jobs, term.key.name), term.key, places, young=young, patience=patience)
        self._quarantine = Quarantine(self._planner.jobs, notices)
        self._tenure = Tenure(term, ledger, self._planner.jobs)
        # What runs, is read and is written
        self._runs = Runs(
            lead,
            planner=self._planner,
            unwritten=unwritten,
            skips=skips,
            pruning=self._pruning,
            notices=notices,
            ending=self._ending,
            wake=self._wake,
            context=context,
            around=around,
        )
        self._readings = Readings(
            term,
            planner=self._planner,
            ledger=ledger,
            quarantine=self._quarantine,
            runs=self._runs,
            unwritten=unwritten,
            notices=notices,
            skips=skips,
        )
        self._writing = Writing(
            term,
            planner=self._planner,
            ledger=ledger,
            quarantine=self._quarantine,
            runs=self._runs,
            readings=self._readings,
            unwritten=unwritten,
            notices=notices,
            skips=skips,
            tenure=self._tenure,
        )

    async def run(self, stopping: asyncio.Event, drain_timeout: float) -> None:
        """Runs what falls due until told to stop, then drains; cancels what is left, and awaits it, however it ends."""
        loop, wakers = asyncio.get_running_loop(), [asyncio.create_task(self._wake_at(self._term.over))]
        try:
            async with asyncio.timeout(None) as drained:

                async def stop() -> None:
                    await self._wake_at(stopping)
                    drained.reschedule(loop.time() + drain_timeout)

                wakers.append(asyncio.create_task(stop()))
                while not stopping.is_set():
                    await self._turn(claim=True)
                self.calls.open = False
                while self._runs or self.calls.tasks:
                    await self._turn(claim=False)
        except TimeoutError:  # `_end` sees to what is under way
            if not drained.expired():
                raise
        finally:
            for waker in wakers:
                waker.cancel()
            cancelled = await self._end()
            if cancelled is not None:
                raise cancelled

    async def _wake_at(self, event: asyncio.Event) -> None:
        await event.wait()
        self._wake.set()

    # -- the loop

    async def _turn(self, *, claim: bool) -> None:
        """Reads what is to be read, or writes what is to be written; starts what was written; sleeps."""
        self._wake.clear()
        self._term.check()
        pause = min(_SLICE, await self._act(claim=claim)) if self._planner.jobs else _SLICE
        if pause > 0:
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _act(self, *, claim: bool) -> float:
        """Has one exchange with the ledger, if there is a reason; returns for how long to sleep then at most."""
        if (reading := self._next_reading(claim=claim)) is not None:
            return await self._attempt(reading)
        if plan := self._writing.next_plan(claim=claim):
            self._readings.fed = False
            pause = await self._attempt(self._writing.carry_out(plan))
            if self._pruning.is_behind:
                await self._pruning.step()
            if self._tenure.is_behind:
                await self._attempt(self._tenure.begin())
            return pause
        if self._readings.fed:
            self._readings.fed = False
            return 0.0
        self._writing.worked()  # not after a reading alone: what was to be written may fail each time
        if self._tenure.until_next <= 0:
            return await self._attempt(self._tenure.begin())
        pause = min(await self._pruning.step(), self._tenure.until_next)
        if claim:
            pause = min(pause, self._readings.until_look)
            if (left := self._planner.until_next(self._term.database_now())) is not None:
                pause = min(pause, left)
        return pause

    def _next_reading(self, *, claim: bool) -> Coroutine[Any, Any, None] | None:
        """What is to be read before more can be planned; ``None`` if nothing is."""
        if self._readings.wanted or self._quarantine.comes_back():
            return self._readings.take_stock()
        if self._quarantine.refused is not None:
            return self._writing.narrow_down(self._quarantine.refused)
        return self._readings.due() if claim else None

    async def _attempt(self, exchange: Coroutine[Any, Any, None]) -> float:
        """Has one exchange with the ledger; returns for how long to wait before the next: 0 if it went well."""
        try:
            await exchange
        except FenceBroken:
            self._term.end("taken", raised=True)
            self._term.check()
            raise
        except Refused as error:
            self._readings.wanted = True
            pause = self._writing.trouble.failed(
                f"its rows are not as they should be: {error.__cause__ or 'read again'}"
            )
            return 0.0 if self._quarantine.is_narrowing else pause
        except STORE_ERRORS as error:
            self._readings.wanted = True
            return self._writing.trouble.failed(str(error))
        return 0.0

    # -- the end

    async def _end(self) -> asyncio.CancelledError | None:
        """Cancels what still runs, and writes what has become of it; returns when all has ended."""
        self._ending.begin(self._term)
        self._runs.give_up()
        cancelled = await cancel_all(lambda: self._runs.tasks() | self.calls.tasks, self._term)
        another = await wait_shielded(asyncio.create_task(self._writing.close()))
        return cancelled or another
