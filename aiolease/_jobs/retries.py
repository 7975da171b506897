"""Retries: whether a run that has failed is tried again, and when (DESIGN rule 33). Pure functions."""

from __future__ import annotations

from datetime import datetime, timedelta

from aiolease._clock import jitter
from aiolease._interrupts import is_for_the_program
from aiolease._jobs.due import overdue
from aiolease._jobs.jitter import start_of
from aiolease._jobs.job import Job, is_duration
from aiolease._jobs.plan import Waiting
from aiolease.errors import GiveUp
from aiolease.events import describe
from aiolease.stores.batch import Again, Change
from aiolease.stores.records import MAX_ERROR, attempt_line

LONGEST = 3600.0
"""Seconds until a retry, at most, if the pauses are doubled."""

INSTEAD = 60.0
"""Seconds until a retry if `Job.backoff` gives no number of seconds."""

_SPREAD = 0.1
"""By which part of itself a pause is longer or shorter by chance: what has failed together is not retried together."""


def gives_up(error: BaseException | None) -> bool:
    """True if an error, or one of a group, says that the run is not to be tried again."""
    if isinstance(error, BaseExceptionGroup):
        return any(map(gives_up, error.exceptions))
    return isinstance(error, GiveUp)


def pause_before(job: Job, failures: int) -> tuple[float, str | None]:
    """Seconds until a run is tried again that has failed so many times; and what is wrong with `Job.backoff`."""
    if not callable(job.backoff):
        doubled = job.backoff * 2.0 ** min(failures - 1, 100)
        return min(doubled * jitter(1 - _SPREAD, 1 + _SPREAD), LONGEST), None
    try:
        seconds: object = job.backoff(failures)
    except BaseException as error:
        if is_for_the_program(error):
            raise
        return INSTEAD, f"its backoff raised {describe(error)}"
    if not is_duration(seconds):
        return INSTEAD, f"its backoff gave {seconds!r}, which is no number of seconds from 0"
    assert isinstance(seconds, int | float)
    return float(seconds), None


def next_start(waiting: Waiting, pause: float, now: datetime, *, lease: str) -> datetime | None:
    """When a run that has failed is tried again; ``None`` if it is too old then (`Job.max_age`)."""
    job = waiting.job
    try:
        start = now + timedelta(seconds=pause)
    except OverflowError:
        return None
    if waiting.by_hand:
        return start
    return None if overdue(start_of(job, lease, waiting.tick, waiting.request), job.max_age, start) else start


def tried_again(waiting: Waiting, token: int, error: str, start: datetime, now: datetime) -> Change:
    """The change of a run that has failed, and waits for its next attempt."""
    key = waiting.begun_by(token)
    again = Again(
        not_before=start,
        failed=True,
        request=waiting.request if waiting.by_hand else None,
        line=attempt_line(key, now, error[:MAX_ERROR]),
    )
    return Change(key=key, was="running", status="queued", attempt=key.attempt + 1, error=error, again=again)
