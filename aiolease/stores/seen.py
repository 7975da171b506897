"""What was seen of the jobs and terms of a lease: for followers, for people, for metrics. No I/O here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from aiolease.stores.records import JobRecord, RunRecord

TERMS = "a term"
"""The job under which the ledger keeps terms as runs: no job can have this name, since it has a space in it.

A term's row has its beginning as its tick. It is running, then succeeded if the term ended in order, or lost."""

WHOLE_LEASE = "all jobs"
"""The job whose row keeps the pause of a whole lease; see `TERMS`."""

MOST_FAILURES = 100
"""How many failures in a row are counted; of more, so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSeen:
    """How a job stands, from one reading of its rows. Every moment is aware UTC by the database's clock.

    Attributes:
        record: The job.
        last: Its newest run that has ended: succeeded, failed or lost; ``None`` if there is none.
        last_success: When its newest run that has succeeded ended; ``None`` if there is none.
        failures: How many runs have failed, or were lost, since that one; at most `MOST_FAILURES`.
        running: How many of its runs go on.
        queued: How many wait, of whatever kind.
    """

    record: JobRecord
    last: RunRecord | None = None
    last_success: datetime | None = None
    failures: int = 0
    running: int = 0
    queued: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """How the jobs of a lease stand.

    Attributes:
        jobs: By name, in the order of the names.
        now: The database's clock at this reading.
        pause: See `LedgerReading.pause`.
        unreadable: See `LedgerReading.unreadable`.
    """

    jobs: dict[str, JobSeen]
    now: datetime
    pause: JobRecord | None
    unreadable: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TermRecord:
    """A term in which jobs were run.

    Attributes:
        token: Its number.
        holder: Who led.
        began_at: When it was elected.
        ended_at: When its end was recorded; by the next leader, if it could not do so itself. ``None`` if it goes on.
        status: ``"running"``, ``"succeeded"`` if it ended in order, ``"lost"`` if not.
        error: Why it ended, if that is known.
    """

    token: int
    holder: str
    began_at: datetime
    ended_at: datetime | None
    status: str
    error: str | None

    @classmethod
    def of(cls, run: RunRecord) -> TermRecord:
        """The term of its row in the ledger: see `TERMS`."""
        return cls(
            token=run.token,
            holder=run.holder,
            began_at=run.tick,
            ended_at=run.finished_at,
            status=run.status,
            error=run.error,
        )
