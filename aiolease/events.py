"""What happens, as small frozen records.

An event carries facts; its `phrase` is the line that people alert on, and its `level` says how loud it is. Logging
(`aiolease._logging`) is one observer, the `on_event` of a leadership another; an observer that raises harms nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from aiolease._event import Event, Level, named
from aiolease._looks import JobsSeen, Leaderless, Overdue, UnknownJobs
from aiolease.errors import LossReason

__all__ = [
    "BodyStuck",
    "Elected",
    "Event",
    "Following",
    "JobsSeen",
    "Joined",
    "Leaderless",
    "LedgerFailed",
    "Level",
    "LoopBlocked",
    "Lost",
    "Notice",
    "Observer",
    "Overdue",
    "ReleaseFailed",
    "Released",
    "RenewFailed",
    "Renewed",
    "Resigned",
    "RunFinished",
    "RunStarted",
    "TickSkipped",
    "TicksMissed",
    "UnknownJobs",
    "Waiting",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined(Event):
    """This process takes part in an election from now on, or begins to run jobs in its term: before anything happens.

    Once per `leadership`, `run_as_leader`, `serve`, `background` and `JobRegistry.run`; again if `background` failed.

    Attributes:
        jobs: The jobs that are registered, in the order of their names; none for a leadership without jobs.
    """

    level: ClassVar[Level] = "TRACE"

    jobs: tuple[str, ...] = ()

    @property
    def phrase(self) -> str:
        jobs = f", with jobs: {named(self.jobs)}" if self.jobs else ""
        return f"takes part in the election of {self.lease!r}{jobs}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Elected(Event):
    """This process leads.

    Attributes:
        elected_at: When the term began, by the database's clock.
        database: Where the lease is, without a password.
    """

    elected_at: datetime
    database: str

    @property
    def phrase(self) -> str:
        return f"acquired leadership of {self.lease!r} (term {self.token}) as {self.holder}, on {self.database}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Following(Event):
    """Another process leads (`holder`, `token`), this one waits. Once per term that it sees.

    Attributes:
        database: Where the lease is, without a password.
        note: Why it waits although the lease looks expired; empty otherwise.
    """

    database: str
    note: str = ""

    @property
    def phrase(self) -> str:
        note = self.note and f" ({self.note})"
        return f"another instance leads {self.lease!r}: {self.holder}, waiting, on {self.database}{note}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewed(Event):
    """The lease was extended.

    Attributes:
        beat: The number of the renewal.
        took: From the sending to the answer, in seconds.
        clock_offset: Seconds by which this machine's clock is ahead of the database's, accurate to half of `took`.
    """

    level: ClassVar[Level] = "TRACE"

    beat: int
    took: float
    clock_offset: float

    @property
    def phrase(self) -> str:
        return f"renewed {self.lease!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewFailed(Event):
    """A renewal failed, and will be tried again while there is time.

    Attributes:
        left: Seconds until the term ends if no renewal succeeds; 0 when it has ended and its body still unwinds.
        error: What went wrong.
    """

    level: ClassVar[Level] = "WARNING"

    left: float
    error: str

    @property
    def phrase(self) -> str:
        return f"could not renew {self.lease!r}, {self.left:.1f} s left: {self.error}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting(Event):
    """A candidate cannot reach its database, or is refused by it, and tries again.

    Attributes:
        error: What went wrong.
        attempts: How often in a row.
    """

    level: ClassVar[Level] = "WARNING"

    error: str
    attempts: int

    @property
    def phrase(self) -> str:
        return f"waiting for the database: {self.error}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost(Event):
    """The term ended before its body did, and the body is being cancelled.

    Attributes:
        reason: Why.
    """

    level: ClassVar[Level] = "ERROR"

    reason: LossReason

    @property
    def phrase(self) -> str:
        return f"lost leadership of {self.lease!r} (term {self.token}): {self.reason} (holder {self.holder})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resigned(Event):
    """The term was resigned, and the body is being cancelled.

    Attributes:
        requested: Whether another process asked for it, through the database.
    """

    requested: bool

    @property
    def phrase(self) -> str:
        asked = ", as was asked for" if self.requested else ""
        return f"resigned from {self.lease!r} (term {self.token}) as {self.holder}{asked}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyStuck(Event):
    """The term is over and its body still runs: it swallowed two cancellations, or its clean-up hangs.

    Attributes:
        since_lost: Seconds since the term ended.
        renewing: Whether the lease is still being kept from others.
    """

    level: ClassVar[Level] = "CRITICAL"

    since_lost: float
    renewing: bool

    @property
    def phrase(self) -> str:
        gone = "" if self.renewing else "; the lease is not renewed any more, another process may lead beside it"
        return (
            f"{self.lease!r} (term {self.token}): the body has not ended, "
            f"{self.since_lost:.1f} s after the lease was lost{gone} (holder {self.holder})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopBlocked(Event):
    """The event loop did not run at the deadline of its term: something blocks it.

    Emitted from a thread of its own, since the loop's is blocked. An observer's `sys.exit` would end that thread and
    not the process, so it is logged like any other error: what ends the process is ``on_stall="exit"``.

    Attributes:
        stack: The stack of the thread that blocks it.
    """

    level: ClassVar[Level] = "CRITICAL"

    stack: str

    @property
    def phrase(self) -> str:
        return f"the event loop is blocked: {self.stack}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Released(Event):
    """The body has ended, and the lease is free for others."""

    @property
    def phrase(self) -> str:
        return f"released {self.lease!r} (term {self.token}) as {self.holder}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseFailed(Event):
    """The body has ended, and the lease could not be released: it is free for others once it has expired.

    After each `Elected` there is one of `Lost`, `Resigned`, `Released` and this: this process does not lead any more.

    Attributes:
        error: Why.
    """

    level: ClassVar[Level] = "WARNING"

    error: str

    @property
    def phrase(self) -> str:
        return (
            f"could not release {self.lease!r} (term {self.token}) as {self.holder}, it expires by itself: {self.error}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerFailed(Event):
    """The leader could not write the ledger: nothing new is started, and it is tried again.

    Attributes:
        error: What went wrong.
        failures: How often in a row.
        quiet: Whether it is the first failure, or a line has told of it lately. Such one is for who looks closely.
    """

    level: ClassVar[Level] = "WARNING"

    error: str
    failures: int
    quiet: bool = False

    @property
    def phrase(self) -> str:
        return f"could not write the ledger of {self.lease!r}, nothing new is started: {self.error}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice(Event):
    """Something that a person should know and a program need not: its text is its only fact.

    Attributes:
        severity: The level.
        text: What happened.
    """

    severity: Level
    text: str

    @property
    def phrase(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """A job started for one tick.

    Attributes:
        job: The job's name.
        tick: The moment at which its schedule fell due, UTC.
        late: Seconds between the moment from which it was to start, and the start, by the database's clock. That is the
            tick, later by the job's jitter; of a retry and of a run by hand the moment for which it was queued.
    """

    level: ClassVar[Level] = "DEBUG"

    job: str
    tick: datetime
    late: float

    @property
    def phrase(self) -> str:
        return f"started {self.job!r}, {self.late:.2f} s late"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished(Event):
    """A run ended.

    Attributes:
        job: The job's name.
        tick: The moment at which its schedule fell due, UTC.
        status: ``"succeeded"``, ``"failed"``, or ``"lost"`` when the term ended under it.
        took: Its duration in seconds.
        error: What it raised, ``None`` if nothing. Its tracebacks, and those of its causes, begin with the job's frame
            and hold no variables: what logs them shows no password.
        reason: Why it was lost, if this process knows.
        retry_at: When it is tried again, if it has failed and is (see `JobOptions`); ``None`` if that was its last try.
    """

    job: str
    tick: datetime
    status: str
    took: float
    error: BaseException | None = None
    reason: str | None = None
    retry_at: datetime | None = None

    @property
    def phrase(self) -> str:
        if self.status == "succeeded":
            return f"ran {self.job!r} in {self.took:.2f} s"
        if self.status == "lost":
            why = f": {self.reason}" if self.reason else ""
            return f"{self.job!r} was lost with term {self.token} (holder {self.holder}){why}"
        again = f", is tried again at {self.retry_at:%Y-%m-%d %H:%M:%S} UTC" if self.retry_at else ""
        return f"{self.job!r} failed: {describe(self.error)} (tick {self.tick:%Y-%m-%d %H:%M:%S} UTC){again}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TickSkipped(Event):
    """Ticks of a job that were not run.

    Attributes:
        job: The job's name.
        since: The first of them.
        count: How many.
        reason: Why.
        quiet: Whether a line tells of them that says more: a `TicksMissed`, or the one of the ticks before them, whose
            row in the ledger has grown. This one is only for who looks closely.
    """

    level: ClassVar[Level] = "WARNING"

    job: str
    since: datetime
    count: int
    reason: str
    quiet: bool = False

    @property
    def phrase(self) -> str:
        ticks = "1 tick" if self.count == 1 else f"{self.count} ticks"
        return f"skipped {self.job!r}, {ticks} since {self.since:%Y-%m-%d %H:%M:%S}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TicksMissed(Event):
    """Ticks of several jobs that fell due before the term began, and are not run: once per term, as it begins.

    A `TickSkipped` for each job, with its reason, goes before it.

    Attributes:
        jobs: The jobs' names.
        since: The first of the ticks.
        count: How many.
    """

    level: ClassVar[Level] = "WARNING"

    jobs: tuple[str, ...]
    since: datetime
    count: int

    @property
    def phrase(self) -> str:
        jobs, since = named(self.jobs), f"{self.since:%Y-%m-%d %H:%M:%S}"
        return f"skipped {self.count} ticks of {len(self.jobs)} jobs since {since}, from before this term: {jobs}"


def describe(error: BaseException | None) -> str:
    """An error as people read it: its type, and its text if it has one."""
    if error is None:
        return "nothing was raised"
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an error that cannot be told is one all the same
        text = "its text cannot be had"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def level_of(event: Event) -> Level:
    """How loud an event is."""
    if isinstance(event, Notice):
        return event.severity
    if isinstance(event, RunFinished):
        failed: Level = "ERROR" if event.retry_at is None else "WARNING"
        return {"succeeded": "INFO", "lost": "WARNING"}.get(event.status, failed)
    if isinstance(event, TickSkipped | Overdue) and event.quiet:
        return "DEBUG"
    if isinstance(event, LedgerFailed) and event.quiet:
        return "TRACE"
    return event.level


Observer = Callable[[Event], object]
"""Takes every event, in the thread where it happens, mostly the loop's; must be quick.

What it raises is logged; but `KeyboardInterrupt` and `SystemExit` are for the program, and raised on, unless the
event is a `LoopBlocked`.
"""
