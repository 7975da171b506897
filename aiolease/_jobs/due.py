"""What is due, what is skipped, what becomes of the runs of earlier terms: pure functions (DESIGN rules 21, 22, 26).

A job's ticks are settled up to one moment, `JobRecord.settled_until`. Whatever its schedule holds between that and now
is due: run, or skipped and counted, each tick once. A new leader after an outage and a leader in the middle of its term
reckon alike; they differ in how much has come together.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from aiolease._jobs.schedule import Schedule, ticks_between
from aiolease.stores.batch import Change
from aiolease.stores.records import RunKey, RunRecord

Missed = Literal["once", "all", "skip"]

MAX_ATTEMPTS = 5
"""How often a run that was lost is begun in all, but for attempts whose end is known (DESIGN rule 47)."""

MOST_MISSED = 1000
"""How many ticks of one job are run one after another; those before them are skipped."""

_MOMENT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Skip:
    """Ticks that are not run: the first, the last, how many, and why."""

    first: datetime
    last: datetime
    count: int
    reason: str


@dataclass(slots=True)
class Due:
    """What becomes of the ticks of a job that are due. Both lists are in the order of the ticks.

    Attributes:
        run: Those to be run.
        skipped: Ranges of those that are not.
    """

    run: list[datetime] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)


def due(
    schedule: Schedule,
    after: datetime,
    now: datetime,
    *,
    missed: Missed,
    max_age: float | None,
    young: float,
) -> Due:
    """Decides on the ticks with ``after < tick <= now``: each of them is to be run, or in one of the ranges.

    Args:
        schedule: The job's.
        after: The moment up to which its ticks are settled.
        now: The database's clock.
        missed: What to do with those that nobody ran in time: run the newest, all (at most `MOST_MISSED`), or none.
        max_age: Seconds after which a tick is not run any more.
        young: Seconds for which a tick is due and not yet missed, whatever `missed` says.
    """
    found = Due()

    def skip(until: datetime, reason: str) -> None:
        nonlocal after
        last = schedule.latest_between(after, until)
        first = schedule.next_after(after)
        if last is not None and first is not None:
            found.skipped.append(Skip(first, last, schedule.count_between(after, until), reason))
            after = last

    first = schedule.next_after(after)
    if first is None or first > now:
        return found
    following = schedule.next_after(first)
    if following is None or following > now:  # the one tick of a leader that is in time: no need to count
        age = (now - first).total_seconds()
        if (max_age is None or age <= max_age) and (missed != "skip" or age < young):
            found.run = [first]
            return found
    newest = schedule.latest_between(after, now)
    if newest is None:
        return found
    if max_age is not None:
        skip(_before(now, max_age) - _MOMENT, f"more than {max_age:g} s late")
    if missed == "all":
        skip(start_of_last(schedule, after, now), f"more than {MOST_MISSED} were missed")
        found.run = list(ticks_between(schedule, after, now))
        return found
    if missed == "skip":
        skip(_before(now, young), "nobody led when they fell due")
    skip(newest - _MOMENT, "a newer one was due as well")
    if after < newest:
        found.run = [newest]
    return found


def _before(now: datetime, seconds: float) -> datetime:
    try:
        return now - timedelta(seconds=seconds)
    except OverflowError:
        return datetime.min.replace(tzinfo=now.tzinfo) + timedelta(days=2)


def start_of_last(schedule: Schedule, after: datetime, now: datetime) -> datetime:
    """The latest moment after which at least `MOST_MISSED` ticks come, or `after`."""
    if schedule.count_between(after, now) <= MOST_MISSED:
        return after
    low, high = after, now
    while high - low > _MOMENT:
        middle = low + (high - low) / 2
        low, high = (middle, high) if schedule.count_between(middle, now) >= MOST_MISSED else (low, middle)
    return low


def without(found: Due, there: Collection[datetime], schedule: Schedule) -> Due:
    """What is left of the ticks that are due if some have a row already: those are settled."""
    left = Due([tick for tick in found.run if tick not in there])
    for skip in found.skipped:
        before = skip.first - _MOMENT
        last: datetime | None = skip.last
        while last is not None and last in there:
            last = schedule.latest_between(before, last - _MOMENT)
        if last is not None:
            count = skip.count if last == skip.last else schedule.count_between(before, last)
            left.skipped.append(Skip(skip.first, last, count, skip.reason))
    return left


def overdue(tick: datetime, max_age: float | None, now: datetime) -> str | None:
    """Why a tick is too old to be begun; ``None`` if it is not."""
    late = max_age is not None and (now - tick).total_seconds() > max_age
    return f"more than {max_age:g} s late" if late else None


def inherited(run: RunRecord, *, rerun_lost: bool, max_age: float | None, now: datetime) -> Change:
    """What a new term makes of a run that was running when an earlier one ended.

    It is lost, since nobody knows how far it came; if it may be run again it waits its turn as a further attempt.
    """
    key = RunKey(run.job, run.tick, run.attempt, run.token)
    late = overdue(run.tick, max_age, now)
    return lost(key, rerun=rerun_lost and not late, adopt=True)


def begun(key: RunKey, *, adopt: bool) -> Change:
    """The start of a run that waited its turn; of an earlier term's it is the taking over, too."""
    return Change(key=key, was="queued", status="running", attempt=key.attempt, adopt=adopt, required=True)


def too_late(key: RunKey, why: str) -> Change:
    """The end of a run whose turn came too late. What has once begun is lost, and not skipped."""
    if key.attempt > 1:
        error = f"{why} to be run again"
        return Change(key=key, was="queued", status="lost", attempt=key.attempt - 1, error=error, required=True)
    return Change(key=key, was="queued", status="skipped", attempt=1, error=why, required=True)


def lost(key: RunKey, *, rerun: bool, adopt: bool = False, uncounted: int = 0, why: str = "") -> Change:
    """The end of a run whose term, or whose final transaction, ended without it: lost, or to be run again.

    Args:
        key: The run.
        rerun: Whether it may be run again, `MAX_ATTEMPTS` times in all.
        adopt: See `Change`.
        uncounted: How many of its attempts do not count: it is known that they had no effect.
        why: The reason, if it is known.
    """
    if rerun and key.attempt - uncounted < MAX_ATTEMPTS:
        return Change(key=key, was="running", status="queued", attempt=key.attempt + 1, adopt=adopt)
    error = f"lost with term {key.token}{': ' if why else ''}{why}"
    return Change(key=key, was="running", status="lost", attempt=key.attempt, error=error)
