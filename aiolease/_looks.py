"""The events of those who look at the ledger: the leader, and each process that waits (DESIGN rule 43).

`aiolease.events` is where they are imported from.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar

from aiolease._event import Event, Level

if TYPE_CHECKING:
    from aiolease._jobs.standing import JobStanding


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsSeen(Event):
    """How the jobs of this process stand: once per lease, from the leader and from each process that waits.

    One reading of the ledger, made by one statement: what metrics and a status page need is in it. `holder` and `token`
    are those of the term that was last seen; `holder` is ``None`` if the lease was free.

    Attributes:
        jobs: In the order of their names. A job that the ledger does not know, or whose rows cannot be read, is left
            out.
        now: The database's clock at the reading: aware UTC.
        leading: Whether this process led.
        clock_offset: See `Renewed`: of this process, which may be one that waits.
    """

    level: ClassVar[Level] = "TRACE"

    jobs: tuple[JobStanding, ...]
    now: datetime
    leading: bool
    clock_offset: float

    @property
    def phrase(self) -> str:
        facts = {
            "overdue": sum(job.overdue > 0 for job in self.jobs),
            "paused": sum(job.paused for job in self.jobs),
            "failing": sum(job.failures > 0 for job in self.jobs),
        }
        told = ", ".join(f"{count} {what}" for what, count in facts.items())
        return f"looked at the jobs of {self.lease!r}: {len(self.jobs)}, {told}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overdue(Event):
    """A job's next tick passed longer ago than it may: no leader has claimed or skipped it. Once until that changes.

    `holder` and `token` are those of the term that should have.

    Attributes:
        job: The job's name.
        tick: The tick, UTC.
        late: How long ago it passed, in seconds.
        quiet: Whether one line tells of several jobs together. This one is only for who looks closely.
    """

    level: ClassVar[Level] = "WARNING"

    job: str
    tick: datetime
    late: float
    quiet: bool = False

    @property
    def phrase(self) -> str:
        return (
            f"{self.job!r} is overdue: its tick of {self.tick:%Y-%m-%d %H:%M:%S} UTC passed {self.late:.0f} s ago, "
            "and was neither begun nor skipped"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaderless(Event):
    """Nobody leads, though the lease has been free or expired for longer than a lease. Once until that changes.

    `holder` is who has it by its row although it has run out; ``None`` if it was released. `token` is the latest term.

    Attributes:
        since: When the lease became free or ran out, as this process saw it, by the database's clock: aware UTC.
        lasts: For how long that has been so, in seconds, by the clock of this process.
    """

    level: ClassVar[Level] = "WARNING"

    since: datetime
    lasts: float

    @property
    def phrase(self) -> str:
        why = "is free" if self.holder is None else f"of {self.holder} has run out"
        return (
            f"nobody leads {self.lease!r} since {self.since:%Y-%m-%d %H:%M:%S} UTC, {self.lasts:.0f} s ago: "
            f"the lease {why}, and no process takes it; no job runs"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownJobs(Event):
    """Another process leads (`holder`, `token`), and does not run jobs that this process has. Once until that changes.

    Attributes:
        jobs: Their names, sorted.
    """

    level: ClassVar[Level] = "WARNING"

    jobs: tuple[str, ...]

    @property
    def phrase(self) -> str:
        named = ", ".join(self.jobs[:20]) + (f" and {len(self.jobs) - 20} more" if len(self.jobs) > 20 else "")
        return (
            f"the leader of {self.lease!r} (term {self.token}, {self.holder}) does not run jobs of this process: "
            f"{named}; give two applications two leases"
        )
