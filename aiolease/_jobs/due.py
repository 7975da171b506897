"""What is due, what is skipped, what becomes of the runs of earlier terms: pure functions (DESIGN rules 21, 22, 26).

A job's ticks are settled up to one moment, `JobRecord.settled_until`. All ticks of its schedule between that moment and
now are due: each is run, or skipped and counted, once. The rule is the same for a new leader after an outage, where
many ticks are due, and for a leader in the middle of its term.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from aiolease._jobs.schedule import Schedule, ticks_between
from aiolease.stores.batch import Again, Change
from aiolease.stores.records import Request, RunKey, RunRecord, attempt_line

Missed = Literal["once", "all", "skip"]

MAX_ATTEMPTS = 5
"""How many attempts a lost run gets in all. Attempts known to have had no effect do not count (DESIGN rule 47)."""

CANCELLED = "cancelled on request"
"""Why a run has failed that somebody cancelled (DESIGN rule 35)."""

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
    reached: Callable[[datetime], datetime] = lambda moment: moment,
) -> Due:
    """Decides on the ticks with ``after < tick <= now``: each is to be run, or is in one of the skipped ranges.

    Args:
        schedule: The job's.
        after: The moment up to which its ticks are settled.
        now: The database's clock.
        missed: What to do with those that nobody ran in time: run the newest, all (at most `MOST_MISSED`), or none.
        max_age: Seconds after which a tick is not run any more.
        young: Seconds for which a tick is due and not yet missed, whatever `missed` says.
        reached: The moment up to which the ticks may start by a moment. Of a job whose starts are delayed it is an
            earlier one: they grow old from their start on, and not from when they fell due.
    """
    found, until = Due(), reached(now)

    def skip(until: datetime, reason: str) -> None:
        nonlocal after
        last = schedule.latest_between(after, until)
        first = schedule.next_after(after)
        if last is not None and first is not None:
            found.skipped.append(Skip(first, last, schedule.count_between(after, until), reason))
            after = last

    first = schedule.next_after(after)
    if first is None or first > until:
        return found
    following = schedule.next_after(first)
    if following is None or following > until:  # the one tick of a leader that is in time: no need to count
        age = (now - first).total_seconds()
        if (max_age is None or age <= max_age) and (missed != "skip" or age < young):
            found.run = [first]
            return found
    newest = schedule.latest_between(after, until)
    if newest is None:
        return found
    if max_age is not None:
        skip(reached(_before(now, max_age) - _MOMENT), f"more than {max_age:g} s late")
    if missed == "all":
        skip(start_of_last(schedule, after, until), f"more than {MOST_MISSED} were missed")
        found.run = list(ticks_between(schedule, after, until))
        return found
    if missed == "skip":
        skip(reached(_before(now, young)), "nobody led when they fell due")
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
    """The due ticks without those that have a row already: these are settled."""
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


def is_by_hand(request: Request | None) -> bool:
    """True if somebody asked for a run of a tick that was over: it waits behind all else, however old it is."""
    return request in {"rerun", "backfill"}


def inherited(
    run: RunRecord,
    *,
    rerun_lost: bool,
    max_age: float | None,
    now: datetime,
    cancel_at: datetime | None = None,
    start: datetime | None = None,
) -> Change:
    """What a new term makes of a run that was running when an earlier one ended.

    It is lost, since nobody knows how far it came; if it may be run again it waits its turn as a further attempt. If
    somebody cancelled it, it has failed, and does not come back. `start` is when it was to begin, if not at its tick.
    """
    key = RunKey(run.job, run.tick, run.attempt, run.token)
    if is_cancelled(run, cancel_at):
        return Change(key=key, was="running", status="failed", attempt=run.attempt, error=CANCELLED)
    late = not is_by_hand(run.request) and overdue(start or run.tick, max_age, now)
    return lost(
        key, rerun=rerun_lost and not late, now=now, adopt=True, off=run.failures + run.uncounted, request=run.request
    )


def is_cancelled(run: RunRecord, cancel_at: datetime | None) -> bool:
    """True if somebody has cancelled a run that the ledger calls running, and nobody here runs."""
    return cancel_at is not None and (run.started_at is None or run.started_at <= cancel_at)


def begun(key: RunKey, *, adopt: bool) -> Change:
    """The start of a queued run. With `adopt`, a run of an earlier term becomes one of this term."""
    return Change(key=key, was="queued", status="running", attempt=key.attempt, adopt=adopt, required=True)


def too_late(key: RunKey, why: str, *, failed: bool = False) -> Change:
    """The end of a run whose turn came too late. What has once begun is lost, or `failed`, and not skipped."""
    if failed:
        return withdrawn(key, f"{why} to be tried again")
    if key.attempt > 1:
        error = f"{why} to be run again"
        return Change(key=key, was="queued", status="lost", attempt=key.attempt - 1, error=error, required=True)
    return Change(key=key, was="queued", status="skipped", attempt=1, error=why, required=True)


def withdrawn(key: RunKey, why: str, *, required: bool = True, had_succeeded: bool = False) -> Change:
    """The end of a run that waits for a further attempt, or was asked for by hand: that attempt has not begun.

    It has failed as the attempt before it, or succeeded as that had; if there was none, it is skipped.
    """
    if had_succeeded:
        return Change(key=key, was="queued", status="succeeded", attempt=key.attempt - 1, required=required)
    if key.attempt > 1:
        return Change(key=key, was="queued", status="failed", attempt=key.attempt - 1, error=why, required=required)
    return Change(key=key, was="queued", status="skipped", attempt=1, error=why, required=required)


def lost(
    key: RunKey,
    *,
    rerun: bool,
    now: datetime | None = None,
    adopt: bool = False,
    off: int = 0,
    harmless: bool = False,
    why: str = "",
    request: Request | None = None,
) -> Change:
    """The end of a run whose term, or whose final transaction, ended without it: lost, or to be run again.

    Args:
        key: The run.
        rerun: Whether it may be run again, `MAX_ATTEMPTS` times in all.
        now: The database's clock, for a run that may be run again.
        adopt: See `Change`.
        off: How many of its earlier attempts do not count: they failed, or it is known that they had no effect.
        harmless: Whether this attempt does not count: it is known that it had no effect.
        why: The reason, if it is known.
        request: How somebody asked for the run.
    """
    error = f"lost with term {key.token}{': ' if why else ''}{why}"
    if rerun and key.attempt - off - harmless < MAX_ATTEMPTS:
        again = Again(
            not_before=now if is_by_hand(request) else None,
            uncounted=harmless,
            request=request if is_by_hand(request) else None,
            line=None if now is None else attempt_line(key, now, error),
        )
        return Change(key=key, was="running", status="queued", attempt=key.attempt + 1, adopt=adopt, again=again)
    return Change(key=key, was="running", status="lost", attempt=key.attempt, error=error)
