"""How a job stands: pure functions from one reading of its rows to what people and metrics ask (DESIGN rule 43).

The ledger's row says by which schedule the job is run, and not the registry: another version of the application may
lead. So a process that has no registry, such as the command line, reckons the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from aiolease._jobs.jitter import delayed
from aiolease._jobs.job import Job
from aiolease._jobs.schedule import read_schedule
from aiolease.stores.records import JobRecord, Lease, RunRecord
from aiolease.stores.seen import JobSeen

_SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStanding:
    """How a job stands at one moment. Moments are aware UTC by the database's clock, durations are seconds.

    Attributes:
        job: The job's name.
        schedule: The canonical text of the schedule by which it is run, such as ``cron 0 9 * * *``.
        timezone: The zone whose wall clock the schedule follows; empty if it follows none.
        next_tick: The first tick that no leader has claimed or skipped yet. It has passed if the leader is late, or if
            nobody leads. Of a job that is paused until a moment, the first one after that. ``None`` if there is none:
            it is paused without an end, its schedule has no tick any more, or this version does not know such one.
        late: How long ago the next tick passed, or was to start if the job has a jitter; 0 if that is to come.
        overdue: The same if that is longer than it may be, else 0; see `may_be_late`.
        paused: Whether none of its ticks is run, by a pause of its own or of the whole lease.
        paused_since: When the pause began; ``None`` if it is not paused.
        paused_until: When the pause ends by itself; ``None`` if it does not.
        pause_note: What was noted with the pause.
        paused_with_all: Whether it is the whole lease that is paused.
        failures: How many runs have failed, or were lost, since the last that succeeded.
        running: How many of its runs go on.
        queued: How many wait: for a place, for the run before them, or to be tried again.
        last: Its newest run that has ended, by its tick: succeeded, failed or lost; ``None`` if there is none.
        last_success: When its newest run that has succeeded ended; ``None`` if there is none.
    """

    job: str
    schedule: str
    timezone: str
    next_tick: datetime | None = None
    late: float = 0.0
    overdue: float = 0.0
    paused: bool = False
    paused_since: datetime | None = None
    paused_until: datetime | None = None
    pause_note: str | None = None
    paused_with_all: bool = False
    failures: int = 0
    running: int = 0
    queued: int = 0
    last: RunRecord | None = None
    last_success: datetime | None = None


def standing(
    seen: JobSeen,
    pause: JobRecord | None,
    now: datetime,
    *,
    lease_duration: float,
    job: Job | None = None,
    lease: str = "",
) -> JobStanding:
    """Reckons how a job stands; raises nothing, whatever the rows hold.

    Args:
        seen: What the ledger has of it.
        pause: The pause of the whole lease: `Overview.pause`.
        now: The database's clock at that reading.
        lease_duration: Of the lease, in seconds.
        job: As it is registered; ``None`` where that is not known.
        lease: The lease's name, where the job is known: by it its jitter is reckoned.
    """
    record = seen.record
    paused = _pause_of(record, pause, now)
    tick = _next_tick(record, pause, paused)
    late = 0.0 if tick is None else max((now - (delayed(job, lease, tick) if job else tick)) / _SECOND, 0.0)
    return JobStanding(
        job=record.job,
        schedule=record.schedule,
        timezone=record.timezone,
        next_tick=tick,
        late=late,
        overdue=late if late > may_be_late(job, lease_duration) and not _waits(seen, job) else 0.0,
        paused=paused is not None,
        paused_since=None if paused is None else paused.paused_at,
        paused_until=None if paused is None else paused.paused_until,
        pause_note=None if paused is None else paused.pause_note,
        paused_with_all=_is_of_all(paused, pause),
        failures=seen.failures,
        running=seen.running,
        queued=seen.queued,
        last=seen.last,
        last_success=seen.last_success,
    )


def may_be_late(job: Job | None, lease_duration: float) -> float:
    """Seconds for which a tick may have passed before its job is overdue, if no leader has claimed or skipped it.

    Two leases: in the first a new leader is elected, and then it takes over. More if the job's ``max_age`` is longer.
    ``late_after`` stands above both.
    """
    if job is None:
        return 2 * lease_duration
    if job.late_after is not None:
        return job.late_after
    return max(2 * lease_duration, job.max_age or 0.0)


def is_silent(lease: Lease) -> bool:
    """True if the leader has missed a renewal: two of them are less than half a lease apart, whatever its settings."""
    return not lease.free and (lease.now - lease.renewed_at) / _SECOND > lease.duration / 2


def _waits(seen: JobSeen, job: Job | None) -> bool:
    """Whether its ticks are to be claimed one after another, as those before them have been run: a backlog."""
    return job is not None and job.missed == "all" and job.late_after is None and seen.running + seen.queued > 0


def _pause_of(record: JobRecord, pause: JobRecord | None, now: datetime) -> JobRecord | None:
    """The row whose pause stops a job now; ``None`` if nothing does."""
    if record.is_paused(now):
        return record
    return pause if pause is not None and pause.is_paused(now) and _reaches(pause, record) else None


def _reaches(pause: JobRecord, record: JobRecord) -> bool:
    """Whether a pause of the whole lease holds for a job whose own row says nothing of it: it became known since."""
    since = pause.paused_at
    if since is None or record.known_since < since:
        return False
    return record.resumed_at is None or record.resumed_at < since


def _is_of_all(paused: JobRecord | None, pause: JobRecord | None) -> bool:
    """Whether a job's pause is that of the whole lease: it has the same beginning."""
    return paused is not None and pause is not None and paused.paused_at == pause.paused_at


def _next_tick(record: JobRecord, pause: JobRecord | None, paused: JobRecord | None) -> datetime | None:
    if paused is not None and paused.paused_until is None:
        return None
    try:
        schedule = read_schedule(record.schedule, record.timezone)
        if schedule is None:
            return None
        settled = record.settled_until
        if pause is not None and pause.paused_until is not None and _reaches(pause, record):
            settled = max(settled, pause.paused_until)
        return schedule.next_after(settled)
    except Exception:  # noqa: BLE001 - of a row by another hand; it is its job's trouble
        return None
