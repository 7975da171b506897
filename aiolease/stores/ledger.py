"""What a store must do for the ledger: what a leader reads and writes, and what people ask. No I/O here."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from aiolease.stores.batch import Batch, JobDefinition, LedgerReading
from aiolease.stores.records import Place, RunRecord, TermKey
from aiolease.stores.seen import Overview, TermRecord


class LedgerStore(Protocol):
    """What a leader reads and writes. Every method may raise as those of `LeaseStore` do."""

    async def take_stock(
        self, name: str, *, attention: bool = False, runs: bool = True, counted: bool = False
    ) -> LedgerReading:
        """Reads the ledger of a lease.

        Args:
            name: The lease.
            attention: Reads only the jobs that are, or were, paused, or of which somebody asked something, and no runs.
            runs: Whether to read the runs.
            counted: Counts the queued runs instead of reading them: there may be any number.
        """

    async def queued(self, name: str, jobs: Sequence[str], limit: int) -> tuple[list[RunRecord], dict[str, str]]:
        """The queued runs of some jobs with the oldest ticks, at most `limit` of each, in the order of their ticks.

        Those with a `RunRecord.not_before` are left out: see `later`.

        Beside them the jobs that have one which cannot be read, and why: see `LedgerReading.unreadable`.
        """

    async def look_up(self, name: str, places: Sequence[Place]) -> list[RunRecord]:
        """The rows of some ticks, of those that have one; one that cannot be read is there, and finished."""

    async def enroll(self, term: TermKey, jobs: Sequence[JobDefinition]) -> None:
        """Makes the rows of jobs, known and with their schedule as of now; gives those that are there the new schedule.

        It counts from `JobDefinition.since` on.

        Raises:
            FenceBroken: The term is over.
        """

    async def record(self, term: TermKey, batch: Batch) -> None:
        """Writes a batch as a whole.

        Raises:
            FenceBroken: The term is over; nothing was written.
            Refused: The rows are not as it takes them to be; nothing was written.
            StoreUnavailable: It was written, or it was not, or it is still to be.
        """

    async def prune(self, name: str, jobs: Sequence[str], keep: int) -> list[str]:
        """Deletes the oldest finished rows of jobs; keeps the newest by their ticks.

        `keep` of the runs are kept, beside them the newest success, and as many rows of ticks that were skipped.

        Returns:
            The jobs of which there may be more to delete: a call deletes no more than a step of them.
        """

    async def later(self, name: str, limit: int) -> tuple[list[RunRecord], dict[str, str]]:
        """The queued runs of a lease that have a `RunRecord.not_before`, the earliest first, at most `limit`.

        Beside them the jobs that have one which cannot be read, and why: see `LedgerReading.unreadable`.
        """

    async def rows_from(self, name: str, job: str, since: datetime, limit: int) -> list[RunRecord]:
        """The rows of a job with a tick from `since` on, in the order of their ticks, at most `limit`.

        A range of skipped ticks stands at its last tick: of a moment inside of it, it is the first row.
        """

    async def have(self, term: TermKey, jobs: Sequence[str]) -> None:
        """Notes that the leader of a term has these jobs: `JobRecord.token`.

        Raises:
            FenceBroken: The term is over.
        """

    async def overview(self, name: str, jobs: Sequence[str] | None = None) -> Overview:
        """How jobs stand, in one statement: see `JobSeen`.

        Args:
            name: The lease.
            jobs: Which; ``None`` for all.
        """


class JobStore(Protocol):
    """What people ask of the jobs of a lease, from any process. Every method may raise as those of `LeaseStore` do.

    The leader learns of what they ask at its next heartbeat, at the latest. If it dies before, the next one does.

    Each of them that takes a job raises `InvalidJob` if no leader of this lease ever had such a job.
    """

    async def history(self, name: str, job: str, *, limit: int = 100) -> list[RunRecord]:
        """The newest rows of a job, at most `limit`, the newest last. Those that cannot be read are left out.

        Raises:
            ConfigurationError: `limit` is not positive.
        """

    async def settle(self, name: str, job: str) -> None:
        """Sets the rows of a job right that another hand, or a clock that was wrong, has left: for people (rule 50).

        The job's ticks up to this moment are settled: it goes on with the next. What waits, or runs, is recorded as
        lost. The leader learns of it at its next heartbeat, or when it tries a job that it has set aside again.
        """

    async def trigger(self, name: str, job: str) -> datetime:
        """Asks the leader to run a job at its next heartbeat; returns the tick that the run will have.

        A request that the leader has not seen yet stands, and is returned.
        """

    async def pause(
        self, name: str, job: str | None = None, *, until: datetime | None = None, note: str | None = None
    ) -> None:
        """From now on no tick of a job is claimed; what is queued or running goes on, and what people ask for is run.

        Of a job that is paused already the end and the note become the new ones.

        Args:
            name: The lease.
            job: The job; ``None`` for all of the lease, those that are yet to come included. One that is paused by
                itself stays so when the lease is resumed.
            until: When it ends by itself: the ticks from then on are run. ``None`` for not at all.
            note: Why, for people: at most 255 characters.

        Raises:
            ConfigurationError: `until` is not aware, or has passed; `note` is too long.
        """

    async def resume(self, name: str, job: str | None = None) -> None:
        """Ends a pause; the ticks that fell due meanwhile are not missed, and never run. Nothing if it is not paused.

        The leader learns of it at its next heartbeat, and then runs a tick that fell due since.

        Args:
            name: The lease.
            job: The job; ``None`` ends the pause of the whole lease, but not that of a job by itself.
        """

    async def rerun(self, name: str, job: str, tick: datetime, *, force: bool = False) -> None:
        """Queues a further attempt of one run that is failed, lost or skipped, under its tick (DESIGN rule 34).

        It waits behind what is due, whatever `max_age` says, and has all its retries again. A tick within a range of
        skipped ones is a backfill of that tick.

        Args:
            name: The lease.
            job: The job.
            tick: The run's.
            force: Takes a run that has succeeded, too.

        Raises:
            RequestRefused: The run waits or goes on, or has succeeded; or there is none.
            ConfigurationError: `tick` is not aware.
        """

    async def backfill(self, name: str, job: str, since: datetime, until: datetime) -> None:
        """Queues the ticks of a job from `since` to `until`, both included, that have no row or were skipped.

        The leader reckons them from the schedule that it has, up to the newest tick that it has seen to; of a job that
        is paused without an end, up to now. They wait behind what is due, at most 1,000 at once; `cancel` ends it.

        Only rows say what has run, and old ones are pruned (`JobRegistry` keeps ``history`` of them): a tick whose row
        is gone is run again. Name the span that is missing, and no more.

        Raises:
            RequestRefused: Another backfill of the job has not been queued to its end.
            ConfigurationError: A moment is not aware, or `until` is before `since`.
        """

    async def cancel(self, name: str, job: str) -> None:
        """Has the leader cancel the runs of a job that go on: they are failed, ``cancelled on request``, for good.

        A run that waits to be tried again is failed so, too. A rerun or a backfill that has not begun is skipped so;
        one of a run that had succeeded leaves that a success. The rest of a backfill is forgotten at once: what is
        asked for from then on is not cancelled. Ticks of the schedule that wait for a place are not touched.
        """

    async def forget(self, name: str, job: str) -> None:
        """Takes a job that is gone, and all its rows, out of the ledger (DESIGN rule 36).

        Raises:
            RequestRefused: The leader has it, or has not said yet which jobs it has.
        """

    async def runs(
        self, name: str, *, failed: bool = False, since: datetime | None = None, limit: int = 100
    ) -> list[RunRecord]:
        """The newest rows of all jobs of a lease by their ticks, at most `limit`, the newest last.

        Args:
            name: The lease.
            failed: Only runs that are failed or lost.
            since: Only ticks from this moment on.
            limit: How many.

        Raises:
            ConfigurationError: `limit` is not positive, or `since` is not aware.
        """

    async def terms(self, name: str, *, limit: int = 100) -> list[TermRecord]:
        """The newest terms with jobs of a lease, at most `limit`, the newest last.

        Raises:
            ConfigurationError: `limit` is not positive.
        """
