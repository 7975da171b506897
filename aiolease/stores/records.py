"""The ledger's rows: which ticks of a job were claimed, by which term, and how they ended. No I/O here.

A store keeps them and decides nothing: see `aiolease.stores.batch`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
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

    def renewed(self, beat: int, now: datetime, duration: float, *, resigns: bool) -> Lease:
        """The row after a renewal of its term at that moment; `resigns` says whether the term is asked to resign."""
        return Lease(
            name=self.name,
            holder=self.holder,
            token=self.token,
            beat=beat,
            elected_at=self.elected_at,
            renewed_at=now,
            expires_at=now + timedelta(seconds=duration),
            resign_token=self.token if resigns else None,
            now=now,
        )


Place = tuple[str, datetime]
"""A job and a tick: what the ledger has one row of."""


RunStatus = Literal["queued", "running", "succeeded", "failed", "lost", "skipped"]


Request = Literal["trigger", "rerun", "backfill"]
"""How somebody asked for a run."""


MAX_ERROR = 1000
"""Characters of an error, or of the reason of a skip, that the ledger keeps."""


AHEAD = 5
"""Seconds by which a tick may be ahead of the database's clock when it is claimed (DESIGN rule 23)."""


def kept(error: str | None) -> str | None:
    """What the ledger keeps of an error. What cannot be encoded must not keep a failure from being recorded."""
    return error and error[:MAX_ERROR].encode(errors="replace").decode()


MAX_EARLIER = 4000
"""Characters of what the ledger keeps of the earlier attempts of a run: the last ones."""


def kept_line(line: str | None) -> str | None:
    """How an attempt ended, as one line of `RunRecord.earlier`."""
    return line and " | ".join(part for part in line.splitlines() if part).encode(errors="replace").decode()


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
        paused_until: When the pause ends by itself; ``None`` if it does not.
        pause_note: What was noted with the pause.
        asked_at: When somebody had runs of it queued by hand, until the leader has read them.
        cancel_at: When somebody asked for its runs to be cancelled, until the leader has done so.
        backfill_since: From which tick on a backfill is still to be queued; ``None`` if there is none.
        backfill_until: The last moment of that backfill.
        token: The latest term whose leader has this job; ``None`` if no leader has said so.
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
    paused_until: datetime | None = None
    pause_note: str | None = None
    asked_at: datetime | None = None
    cancel_at: datetime | None = None
    backfill_since: datetime | None = None
    backfill_until: datetime | None = None
    token: int | None = None

    @property
    def settled_until(self) -> datetime:
        """The moment up to which nothing is due any more (DESIGN rule 22).

        Of a job that is paused until a moment it is that moment, in the past or to come.
        """
        moments = (self.known_since, self.schedule_since, self.resumed_at, self.high_tick, self.paused_until)
        return max(moment for moment in moments if moment is not None)

    def is_paused(self, now: datetime) -> bool:
        """Whether it is paused by itself, at a moment of the database's clock."""
        return self.paused_at is not None and (self.paused_until is None or now < self.paused_until)


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
        not_before: When the run that waits may start, if it was failed and is tried again, or was queued by hand.
        failures: How many of its attempts have failed and were followed by another (DESIGN rule 33).
        uncounted: How many of its attempts do not count as lost ones: nothing of them took effect, or they were before
            a rerun by hand.
        request: How somebody asked for it; ``None`` for a tick of the schedule.
        earlier: How its earlier attempts ended: a line for each, the newest last.
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
    not_before: datetime | None = None
    failures: int = 0
    uncounted: int = 0
    request: Request | None = None
    earlier: str | None = None

    @property
    def errors(self) -> tuple[str, ...]:
        """How the earlier attempts ended, the newest last."""
        return tuple((self.earlier or "").splitlines())

    @property
    def had_succeeded(self) -> bool:
        """Whether it has succeeded before somebody had it run again, and nothing of that has begun."""
        if self.status != "queued" or self.request != "rerun" or not self.earlier:
            return False
        return re.fullmatch(r"attempt \d+ \(term [^)]*\): succeeded", self.errors[-1]) is not None


def attempt_line(run: RunRecord | RunKey, ended_at: datetime | None, how: str) -> str:
    """A line of `RunRecord.earlier`: which attempt it was, of which term, when it ended, and how."""
    when = f", {ended_at:%Y-%m-%d %H:%M:%S} UTC" if ended_at else ""
    return f"attempt {run.attempt} (term {run.token}{when}): {how}"


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
