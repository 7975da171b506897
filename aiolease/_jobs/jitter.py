"""Jitter: a start that is delayed by an amount which is fixed for lease, job and tick (DESIGN rule 37). Pure functions.

Every leader reckons the same delay, so that a tick neither starts twice as early nor twice as late after a failover.
Ticks of one job keep their order: none starts before an older one.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from aiolease._jobs.job import Job
from aiolease._jobs.schedule import ticks_between
from aiolease.stores.records import Request

_MOMENT = timedelta(microseconds=1)


def delayed(job: Job, lease: str, tick: datetime) -> datetime:
    """When a tick of a job starts: up to `Job.jitter` seconds after it falls due."""
    if not job.jitter:
        return tick
    import hashlib  # when it is used: it costs a process 0.6 MB

    text = f"{lease}\n{job.name}\n{tick.isoformat()}".encode()
    share = int.from_bytes(hashlib.blake2b(text, digest_size=7).digest()) / 2.0**56
    try:
        return tick + timedelta(seconds=job.jitter * share)
    except OverflowError:  # at the end of all time
        return tick


def start_of(job: Job, lease: str, tick: datetime, request: Request | None) -> datetime:
    """When a run is to start for the first time: what somebody asked for is not delayed."""
    return delayed(job, lease, tick) if request is None else tick


def reached(job: Job, lease: str, after: datetime, now: datetime) -> datetime:
    """The moment up to which the ticks of a job may start by now: `now` itself if there is no jitter.

    Args:
        job: The job.
        lease: The lease.
        after: The moment up to which its ticks are settled.
        now: The database's clock.
    """
    if not job.jitter or now <= after:
        return now
    try:
        since = max(now - timedelta(seconds=job.jitter), after)
    except OverflowError:
        since = after
    for tick in ticks_between(job.schedule, since, now):
        if delayed(job, lease, tick) > now:
            return tick - _MOMENT
    return now
