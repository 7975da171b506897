"""The ledger's rows: which ticks of a job were claimed, by which term, and how they ended. No I/O here.

A store keeps them and decides nothing: what is due, what is run again, what is skipped is reckoned by
`aiolease._ledger`, from one reading of the rows (`Stock`), and written as one fenced transaction (`Batch`). All of a
batch takes effect or nothing of it, and nothing once a newer term has begun.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol, TypeVar

from aiolease._fence import RunKey, Term
from aiolease._lease import UNREADABLE
from aiolease.errors import ConfigurationError

T = TypeVar("T")

Place = tuple[str, datetime]
"""A job and a tick: what the ledger has one row of."""

RunStatus = Literal["queued", "running", "succeeded", "failed", "lost", "skipped"]

MAX_ERROR = 1000
"""Characters of an error, or of the reason of a skip, that the ledger keeps."""

AHEAD = 5
"""Seconds by which a tick may be ahead of the database's clock when it is claimed (DESIGN rule 23)."""


def kept(error: str | None) -> str | None:
    """What the ledger keeps of an error. What cannot be encoded must not keep a failure from being recorded."""
    return error and error[:MAX_ERROR].encode(errors="replace").decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """What the database knows of a job. Every moment is aware UTC by the database's clock.

    Attributes:
        job: The job's name.
        schedule: The canonical text of its schedule.
        timezone: The zone whose wall clock the schedule follows; empty if it follows none.
        known_since: When the database first saw the job.
        schedule_since: When it first saw this schedule in this zone.
        resumed_at: When the job was last resumed.
        paused_at: Since when it is paused; ``None`` if it is not.
        high_tick: The newest tick that was claimed, or skipped.
        requested_at: When somebody triggered it, until the leader has seen that.
    """

    job: str
    schedule: str
    timezone: str
    known_since: datetime
    schedule_since: datetime
    resumed_at: datetime | None = None
    paused_at: datetime | None = None
    high_tick: datetime | None = None
    requested_at: datetime | None = None

    @property
    def settled_until(self) -> datetime:
        """The moment up to which nothing is due any more (DESIGN rule 22)."""
        moments = (self.known_since, self.schedule_since, self.resumed_at, self.high_tick)
        return max(moment for moment in moments if moment is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What became of one tick, or of a range of ticks that were skipped together. Moments are aware UTC.

    Attributes:
        job: The job's name.
        tick: The moment at which its schedule fell due, or at which it was triggered; the last one of a range.
        attempt: 1, and more for each further attempt at the same tick.
        token: The term that claimed it last.
        holder: The holder of that term.
        status: ``"queued"``, ``"running"``, ``"succeeded"``, ``"failed"``, ``"lost"`` or ``"skipped"``.
        started_at: When this attempt began, by the database's clock.
        finished_at: When it was recorded how it ended.
        error: What a failed run raised, or why ticks were skipped.
        tick_from: The first tick of a range that was skipped.
        count: How many ticks the row stands for, if they were skipped.
    """

    job: str
    tick: datetime
    attempt: int = 1
    token: int
    holder: str
    status: RunStatus
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error: str | None = None
    tick_from: datetime | None = None
    count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A conditional change of a run's row; without effect on a row that has moved on.

    Attributes:
        key: The attempt it is about.
        was: The status that the row must have.
        status: The status that it gets. ``"running"`` sets `RunRecord.started_at`; one that ends the run sets
            `RunRecord.finished_at`; ``"queued"`` clears both.
        attempt: The attempt that the row gets.
        adopt: Whether the row gets the token and holder of the term that writes.
        error: What the row's error becomes.
        required: Whether the whole batch is refused if the row has moved on.
    """

    key: RunKey
    was: RunStatus
    status: RunStatus
    attempt: int
    adopt: bool = False
    error: str | None = None
    required: bool = False


@dataclass(slots=True)
class Batch:
    """What a leader writes in one fenced transaction.

    Attributes:
        changes: Of rows that are there.
        claims: Rows to be made, in the order of their ticks. `RunRecord.token` and `RunRecord.holder` are the writing
            term's; a running row starts, and a skipped one finishes, at the moment of the transaction.
        high_ticks: The new `JobRecord.high_tick` of jobs. Refused if one does not rise, is more than `AHEAD` ahead of
            the database's clock, or if its job is paused or unknown.
        seen: The `JobRecord.high_tick` of those jobs from which they were reckoned. Refused if one is another by now: a
            batch that the server delayed must not be followed by one that does not know of it, nor come after it.
        requests: The `JobRecord.requested_at` of jobs that were seen, and are cleared. Refused if one is another.
        extends: Of claims that are skipped: the `RunRecord.tick` of the row of skipped ticks that becomes theirs, with
            their tick, and their count beside its own. Refused if there is no such row.
    """

    changes: list[Change] = field(default_factory=list)
    claims: list[RunRecord] = field(default_factory=list)
    high_ticks: dict[str, datetime] = field(default_factory=dict)
    seen: dict[str, datetime | None] = field(default_factory=dict)
    requests: dict[str, datetime] = field(default_factory=dict)
    extends: dict[Place, datetime] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.changes or self.claims or self.high_ticks or self.requests)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """One reading of the ledger of a lease.

    Attributes:
        jobs: The jobs that the database knows, by name.
        unfinished: The runs that are queued or running, in the order of their ticks.
        now: The database's clock at this reading.
        queued: How many runs of a job are queued, if they were counted and not read.
        unreadable: The jobs that have a row, of their own or of a run, that makes no record; and why not.
    """

    jobs: dict[str, JobRecord]
    unfinished: list[RunRecord]
    now: datetime
    queued: dict[str, int] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """A job as it is registered, for the database to know.

    Attributes:
        job: Its name.
        schedule: The canonical text of its schedule.
        timezone: The zone whose wall clock the schedule follows; empty if it follows none.
        since: The moment up to which the ticks of the schedule before it were seen to; from then on this one counts.
            ``None`` is the moment of the transaction.
    """

    job: str
    schedule: str
    timezone: str
    since: datetime | None = None


SETTLED_BY_HAND = "settled by hand"
"""Why `LedgerStore.settle` recorded a run as lost."""


def checked_limit(limit: int) -> int:
    """How many rows somebody asks for.

    Raises:
        ConfigurationError: It is not positive.
    """
    if limit < 1:
        raise ConfigurationError("limit", limit, "ask for one row at least")
    return limit


def step_of(rows: int, jobs: Sequence[str]) -> int:
    """How many old rows of each of some jobs are deleted at once, if it may be so many of all; of many jobs, a few."""
    return max(rows // max(len(jobs), 1), 20)


def read_each(
    rows: Iterable[tuple[Any, ...]], make: Callable[[tuple[Any, ...]], T], unreadable: dict[str, str]
) -> list[T]:
    """Makes records of rows, the first column of which is a job; notes the jobs of rows that make none, and why."""
    found = []
    for row in rows:
        try:
            found.append(make(row))
        except UNREADABLE as error:
            unreadable[str(row[0])] = f"a row has a value that cannot be read: {type(error).__name__}: {error}"
    return found


def there(place: Place, row: tuple[Any, ...], make: Callable[[tuple[Any, ...]], RunRecord]) -> RunRecord:
    """The record of a row that was looked up; of one that cannot be read, that it is there, and finished."""
    try:
        return make(row)
    except UNREADABLE:
        return RunRecord(job=place[0], tick=place[1], token=0, holder="", status="lost")


class LedgerStore(Protocol):
    """What the ledger needs of a database. Every method may raise as those of `LeaseStore` do."""

    async def take_stock(
        self, name: str, *, attention: bool = False, runs: bool = True, counted: bool = False
    ) -> Stock:
        """Reads the ledger of a lease.

        Args:
            name: The lease.
            attention: Reads only the jobs that are, or were, paused or triggered, and no runs.
            runs: Whether to read the runs.
            counted: Counts the queued runs instead of reading them: there may be any number.
        """

    async def queued(self, name: str, jobs: Sequence[str], limit: int) -> tuple[list[RunRecord], dict[str, str]]:
        """The queued runs of some jobs with the oldest ticks, at most `limit` of each, in the order of their ticks.

        Beside them the jobs that have one which cannot be read, and why: see `Stock.unreadable`.
        """

    async def look_up(self, name: str, places: Sequence[Place]) -> list[RunRecord]:
        """The rows of some ticks, of those that have one; one that cannot be read is there, and finished."""

    async def enroll(self, term: Term, jobs: Sequence[Enrolment]) -> None:
        """Makes the rows of jobs, known and with their schedule as of now; gives those that are there the new schedule.

        It counts from `Enrolment.since` on.

        Raises:
            FenceBroken: The term is over.
        """

    async def record(self, term: Term, batch: Batch) -> None:
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

    async def history(self, name: str, job: str, *, limit: int = 100) -> list[RunRecord]:
        """The newest rows of a job, at most `limit`, the newest last. Those that cannot be read are left out.

        Raises:
            ConfigurationError: `limit` is not positive.
        """

    async def settle(self, name: str, job: str) -> None:
        """Sets the rows of a job right that another hand, or a clock that was wrong, has left: for people (rule 50).

        The job's ticks up to this moment are settled: it goes on with the next. What waits, or runs, is recorded as
        lost. The leader learns of it at its next heartbeat, or when it tries a job that it has set aside again.

        Raises:
            InvalidJob: No leader of this lease ever had such a job.
        """

    async def trigger(self, name: str, job: str) -> datetime:
        """Asks the leader to run a job at its next heartbeat; returns the tick that the run will have.

        A request that the leader has not seen yet stands, and is returned.

        Raises:
            InvalidJob: No leader of this lease ever had such a job.
        """

    async def pause(self, name: str, job: str) -> None:
        """From now on no tick of a job is claimed; what is queued or running goes on.

        Raises:
            InvalidJob: No leader of this lease ever had such a job.
        """

    async def resume(self, name: str, job: str) -> None:
        """Ends a pause; the ticks that fell due meanwhile are not missed, and never run. Nothing if it is not paused.

        The leader learns of it at its next heartbeat, and then runs a tick that fell due since.

        Raises:
            InvalidJob: No leader of this lease ever had such a job.
        """
