"""The ledger's rows: which ticks of a job were claimed, by which term, and how they ended. No I/O here.

A store keeps the rows and decides nothing. `aiolease._jobs.due` decides what is due, run again or skipped, from one
reading of the rows (`LedgerReading`). The decision is written as one fenced transaction (`Batch`): all of it takes
effect or nothing, and nothing once a newer term has begun.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from aiolease.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class TermKey:
    """One term, as the fence table knows it."""

    name: str
    holder: str
    token: int


@dataclass(frozen=True, slots=True)
class RunKey:
    """One attempt at one tick by one term. A change of a run's row takes effect only if the row shows this attempt."""

    job: str
    tick: datetime
    attempt: int
    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One reading of a lease's row. Every moment is aware UTC by the database's clock.

    Attributes:
        name: The lease.
        holder: Who holds it, ``None`` when it was released.
        token: The number of the latest term.
        beat: The number of the latest renewal of that term; with the token it tells one state of the row from another.
        elected_at: When the term began.
        renewed_at: When the row was claimed or last renewed.
        expires_at: When another may claim it.
        resign_token: The term that somebody asked to resign, or ``None``.
        now: The database's clock at this reading.
    """

    name: str
    holder: str | None
    token: int
    beat: int
    elected_at: datetime
    renewed_at: datetime
    expires_at: datetime
    resign_token: int | None
    now: datetime

    @property
    def expired(self) -> bool:
        """Whether it has run out by the database's clock."""
        return self.expires_at <= self.now

    @property
    def free(self) -> bool:
        """Whether it was released, or has run out by the database's clock."""
        return self.holder is None or self.expired

    @property
    def duration(self) -> float:
        """Seconds for which its holder claimed or renewed it."""
        return max((self.expires_at - self.renewed_at) / timedelta(seconds=1), 0.0)

    def held_by(self, holder: str, token: int) -> bool:
        """Whether the row still belongs to this term."""
        return self.holder == holder and self.token == token


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
        seen: The `JobRecord.high_tick` of those jobs when the batch was planned. Refused if one has changed since: the
            server may have delayed an earlier batch, and two batches that do not know of each other must not both
            take effect.
        requests: The `JobRecord.requested_at` of jobs, which is cleared. Refused if one has changed since.
        extends: For claims of skipped ticks that extend an existing row: the `RunRecord.tick` of that row. The row gets
            the claim's tick, and the sum of both counts. Refused if there is no such row.
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
class LedgerReading:
    """One reading of the ledger of a lease.

    Attributes:
        jobs: The jobs that the database knows, by name.
        unfinished: The runs that are queued or running, in the order of their ticks.
        now: The database's clock at this reading.
        queued: How many runs of a job are queued, if they were counted and not read.
        unreadable: The jobs with a row, their own or a run's, that cannot be read; and why.
    """

    jobs: dict[str, JobRecord]
    unfinished: list[RunRecord]
    now: datetime
    queued: dict[str, int] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDefinition:
    """A job as it is registered, for the database to know.

    Attributes:
        job: Its name.
        schedule: The canonical text of its schedule.
        timezone: The zone whose wall clock the schedule follows; empty if it follows none.
        since: The moment from which on this schedule counts: up to then the ticks of the former one were written.
            ``None`` means the moment of the transaction.
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
