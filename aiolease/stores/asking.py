"""What people may ask of jobs, and how a request is judged: the same for all stores. No I/O here."""

from __future__ import annotations

from datetime import UTC, datetime

from aiolease.errors import ConfigurationError
from aiolease.stores.records import RunRecord, attempt_line

MAX_NOTE = 255
"""Characters of the note of a pause."""


def checked_moment(setting: str, moment: datetime) -> datetime:
    """A moment that somebody gives, in UTC.

    Raises:
        ConfigurationError: It has no time zone.
    """
    if moment.tzinfo is None:
        raise ConfigurationError(setting, moment, "give it a time zone, tzinfo=UTC for example")
    return moment.astimezone(UTC)


def checked_span(since: datetime, until: datetime) -> tuple[datetime, datetime]:
    """The span of a backfill, in UTC.

    Raises:
        ConfigurationError: A moment has no time zone, or they are in the wrong order.
    """
    first, last = checked_moment("since", since), checked_moment("until", until)
    if last < first:
        raise ConfigurationError("until", until, f"it is before since, {since}")
    return first, last


def checked_note(note: str | None) -> str | None:
    """The note of a pause, as the ledger keeps it.

    Raises:
        ConfigurationError: It is too long.
    """
    if note is not None and len(note) > MAX_NOTE:
        raise ConfigurationError("note", note, f"use at most {MAX_NOTE} characters")
    return note and note.encode(errors="replace").decode()


def checked_end(until: datetime | None, now: datetime) -> datetime | None:
    """The end of a pause, in UTC.

    Raises:
        ConfigurationError: It has no time zone, or has passed by the database's clock.
    """
    if until is None:
        return None
    end = checked_moment("until", until)
    if end <= now:
        raise ConfigurationError("until", until, f"it has passed: the database's clock shows {now}")
    return end


def is_of_range(run: RunRecord, tick: datetime) -> bool:
    """Whether a row stands for a range of skipped ticks, in which this one is."""
    first = run.tick if run.tick_from is None else run.tick_from
    return run.status == "skipped" and first <= tick <= run.tick and (first < run.tick or (run.count or 1) > 1)


def why_not_again(run: RunRecord | None, *, force: bool) -> str | None:
    """Why a run cannot be run again by hand; ``None`` if it can."""
    if run is None:
        return "there is no run of this tick; `backfill` runs ticks that have none"
    if run.status == "running":
        return "this run goes on; `cancel` ends it"
    if run.status == "queued":
        return "this run waits already"
    if run.status == "succeeded" and not force:
        return "this run has succeeded; with force it is run again"
    return None


def line_of(run: RunRecord) -> str | None:
    """How the attempt ended that is run again by hand; ``None`` if there was none, since it was skipped."""
    if run.status == "skipped":
        return None
    known = [run.status] if run.status != "failed" or not run.error else []
    return attempt_line(run, run.finished_at, ": ".join([*known, *([run.error] if run.error else [])]))


_LEADER_HAS_IT = "the leader has this job; deploy without it first, or let the lease run out"
_LEADER_IS_NEW = (
    "the leader has not said yet which jobs it has, since it is new, or of an older version; ask again in a minute, "
    "or let the lease run out"
)


def why_not_forgotten(token: int | None, leader: int | None, *, has_said: bool) -> str | None:
    """Why a job cannot be forgotten; ``None`` if it can.

    Args:
        token: The latest term whose leader had this job.
        leader: The term that leads; ``None`` if none does.
        has_said: Whether the leader has said which jobs it has: it writes the row of its term after those.
    """
    if leader is None:
        return None
    if token is None or token == leader:
        return _LEADER_HAS_IT
    return None if has_said else _LEADER_IS_NEW


def another_backfill(since: datetime, until: datetime | None) -> str:
    """Why a backfill is refused."""
    return f"another backfill, from {since} to {until}, has not been queued to its end; `cancel` ends it"
