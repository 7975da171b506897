"""`JobRun`: what a job's function gets, and its fenced transactions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, final

from aiolease._election import fencing
from aiolease._election.leadership import Leadership
from aiolease.errors import CommitUnknown, RunAlreadyEnded, StoreUnavailable
from aiolease.stores.records import RunKey


@final
class JobRun:
    """One execution of a job, handed to a job that takes an argument.

    Attributes:
        job: The job's name.
        tick: The moment at which its schedule fell due, or at which it was triggered: aware UTC.
        attempt: 1, and more for each further attempt at the same tick.
        token: The fencing token of the term.
        context: What was given to `JobRegistry.run`, `serve` or `background` as ``context``.
        resource: What the registry's ``around`` gave for this run; ``None`` if there is none.
        leadership: The term.
        fate: For aiolease itself.
    """

    def __init__(
        self, *, job: str, tick: datetime, leadership: Leadership, context: Any = None, attempt: int = 1
    ) -> None:
        self.job = job
        self.tick = tick
        self.attempt = attempt
        self.token = leadership.token
        self.context = context
        self.resource: Any = None
        self.leadership = leadership
        self.fate = Fate(RunKey(job, tick, attempt, leadership.token))

    def check(self) -> None:
        """Returns if the run may go on; no I/O, from any thread. Call it in a ``def`` job between two steps.

        Raises:
            LeadershipLost: The term has ended, or is about to.
            TimeoutError: The job's time-out is over.
            GiveUp: Somebody has cancelled it.
        """
        if self.fate.stopped is not None:
            raise self.fate.stopped
        self.leadership.check()

    @asynccontextmanager
    async def transaction(self, final: bool = False) -> AsyncIterator[Any]:
        """A transaction that commits only if no newer term has begun: see `Leadership.transaction`.

        Args:
            final: Commits two things together, if this attempt is still the running one: what the block wrote, and
                that this run has succeeded. Make it the last thing that the job does: from then on the run counts as
                succeeded, whatever the job does. With ``rerun_lost`` the effect is there exactly once. If the commit
                fails, or its answer is lost, the run is lost; with ``rerun_lost`` it is begun again if nothing was
                committed: five times in all if nobody knew, and without limit, with a growing pause, if there was a
                conflict or no connection.

        Raises:
            RunAlreadyEnded: This attempt is not the running one any more, because it was committed before, or settled
                by hand. Nothing was committed now.
            LeadershipLost: And the other errors of `Leadership.transaction`.
        """
        if not final:
            async with self.leadership.transaction() as connection:
                yield connection
            return
        fate = self.fate
        try:
            async with fencing.transaction(self.leadership.term, fate.key, fate.was_committed) as connection:
                yield connection
        except (CommitUnknown, StoreUnavailable) as error:
            fate.doubt, fate.unknown = error, fate.unknown or isinstance(error, CommitUnknown)
            raise
        except RunAlreadyEnded:
            if fate.unknown:  # the commit before, whose answer was lost, took effect
                fate.was_committed()
            raise

    async def fence(self, connection: Any, final: bool = False) -> None:
        """Fences a transaction that the caller commits next: see `Leadership.fence`.

        Args:
            connection: See `Leadership.fence`.
            final: Records in the same transaction that this run has succeeded: see `transaction`.

        Raises:
            RunAlreadyEnded: This attempt is not the running one any more; roll back.
            LeadershipLost: And the other errors of `Leadership.fence`.
        """
        await fencing.fence(self.leadership.term, connection, self.fate.key if final else None)

    def __repr__(self) -> str:
        return f"<JobRun {self.job!r} {self.tick:%Y-%m-%dT%H:%M:%SZ} attempt {self.attempt}>"


Around = Callable[[JobRun], AbstractAsyncContextManager[Any]]
"""What is entered around every run: see `JobRegistry`."""


@dataclass(slots=True, eq=False)
class Fate:
    """What is known of a run's end before its function has ended.

    Attributes:
        key: The run in the ledger.
        stopped: What `JobRun.check` raises, if the run must stop.
        committed: True once a final transaction has recorded it as succeeded.
        doubt: The error of its latest final transaction that has failed.
        unknown: True if one of the final transactions that failed may have been committed all the same.
    """

    key: RunKey
    stopped: BaseException | None = None
    committed: bool = False
    doubt: Exception | None = None
    unknown: bool = False

    def was_committed(self) -> None:
        """Notes that a final transaction has recorded it as succeeded."""
        self.committed = True
