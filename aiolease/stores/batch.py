"""What a leader reads of the ledger at once, and what it writes at once. No I/O here.

What is due, what is run again, what is skipped is reckoned by `aiolease._jobs.due`, from one reading of the rows
(`LedgerReading`), and written as one fenced transaction (`Batch`). All of a batch takes effect or nothing of it, and
nothing once a newer term has begun.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from aiolease.stores.records import JobRecord, Place, Request, RunKey, RunRecord, RunStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """What becomes of a run that is queued for a further attempt.

    Attributes:
        not_before: When it may start; ``None`` for at once, in the line of its job.
        failed: Whether the attempt that ended has failed: `RunRecord.failures` rises.
        uncounted: Whether that attempt does not count as a lost one: `RunRecord.uncounted` rises.
        request: How somebody asked for it; ``None`` leaves what the row has.
        line: How the attempt ended, for `RunRecord.earlier`.
    """

    not_before: datetime | None = None
    failed: bool = False
    uncounted: bool = False
    request: Request | None = None
    line: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Backfilled:
    """How far a backfill was queued.

    Attributes:
        seen: The `JobRecord.backfill_since` that was read. Refused if it is another by now.
        since: From which tick on the rest is still to be queued; ``None`` if there is no rest.
    """

    seen: datetime
    since: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trimmed:
    """What is left of a row of skipped ticks when those at its beginning are taken out of it, to be run after all.

    Attributes:
        tick_from: The first tick that is left; ``None`` if it is the row's own.
        count: How many ticks are left. Refused unless there were more.
    """

    tick_from: datetime | None
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A conditional change of a run's row; without effect on a row that has moved on.

    Attributes:
        key: The attempt it is about.
        was: The status that the row must have.
        status: The status that it gets. ``"running"`` sets `RunRecord.started_at`; one that ends the run sets
            `RunRecord.finished_at`; ``"queued"`` clears both, and what a row of skipped ticks says of its range. Each
            but ``"queued"`` clears `RunRecord.not_before`.
        attempt: The attempt that the row gets.
        adopt: Whether the row gets the token and holder of the term that writes.
        error: What the row's error becomes.
        required: Whether the whole batch is refused if the row has moved on.
        again: Of one that is queued: what else becomes of it. Without it the run goes back to the line of its job:
            its `RunRecord.not_before` is cleared.
    """

    key: RunKey
    was: RunStatus
    status: RunStatus
    attempt: int
    adopt: bool = False
    error: str | None = None
    required: bool = False
    again: Again | None = None


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
        trims: Of rows of skipped ticks, by their places: what is left of them. Refused if there is no such row.
        backfills: How far the backfills of jobs were queued.
        cancels: The `JobRecord.cancel_at` of jobs whose runs have been cancelled, and are cleared if they still are.
        asked: The `JobRecord.asked_at` of jobs whose runs have been read, and are cleared if they still are.
    """

    changes: list[Change] = field(default_factory=list)
    claims: list[RunRecord] = field(default_factory=list)
    high_ticks: dict[str, datetime] = field(default_factory=dict)
    seen: dict[str, datetime | None] = field(default_factory=dict)
    requests: dict[str, datetime] = field(default_factory=dict)
    extends: dict[Place, datetime] = field(default_factory=dict)
    trims: dict[Place, Trimmed] = field(default_factory=dict)
    backfills: dict[str, Backfilled] = field(default_factory=dict)
    cancels: dict[str, datetime] = field(default_factory=dict)
    asked: dict[str, datetime] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(
            self.changes
            or self.claims
            or self.high_ticks
            or self.requests
            or self.trims
            or self.backfills
            or self.cancels
            or self.asked
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerReading:
    """One reading of the ledger of a lease.

    Attributes:
        jobs: The jobs that the database knows, by name.
        unfinished: The runs that are queued or running, in the order of their ticks.
        now: The database's clock at this reading.
        queued: How many runs of a job are queued, if they were counted and not read; but for those with a
            `RunRecord.not_before`.
        later: How many queued runs of a job have a `RunRecord.not_before`, if they were counted.
        pause: The pause of the whole lease, as the record of a job; ``None`` if there never was one.
        unreadable: The jobs that have a row, of their own or of a run, that makes no record; and why not.
    """

    jobs: dict[str, JobRecord]
    unfinished: list[RunRecord]
    now: datetime
    queued: dict[str, int] = field(default_factory=dict)
    later: dict[str, int] = field(default_factory=dict)
    pause: JobRecord | None = None
    unreadable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDefinition:
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
