"""The ledger, audited: no tick is lost, none is there twice, and it tells of every run what became of it.

For the simulation and for real processes alike: the rows are those of the database in the end, what was run is from the
journal. A tick is not lost if there is a row of it, or a row of skipped ticks whose range it lies in.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from aiolease._jobs.schedule import Schedule, ticks_between
from aiolease.stores.records import JobRecord, RunRecord
from tests.simulation.checker import Run, Violation

MAX_ATTEMPTS = 5
"""Of rule 26. Not the package's constant, which would be wrong along with it."""

_NEXT = 1.0
"""Seconds that a leader has, once a run has ended, to claim the ticks that waited for its end."""

MOST_MISSED = 1000
"""Of rule 22."""

Span = tuple[datetime, datetime]
"""From after a moment, up to and with another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is asked of a job.

    Attributes:
        schedule: When it falls due.
        missed: As it was registered.
        max_age: As it was registered.
        rerun_lost: As it was registered.
        retries: As it was registered.
        jitter: As it was registered.
        final: Whether its runs end with a final transaction, whose effects the journal knows.
        excused: Spans of which no tick needs a row: the job was paused.
        meddled: Spans that somebody has made due again by hand: their ticks may be in several rows.
        led: Whether the process that leads in the end has the job at all.
    """

    schedule: Schedule
    missed: Literal["once", "all", "skip"] = "once"
    max_age: float | None = None
    rerun_lost: bool = False
    retries: int = 0
    jitter: float = 0.0
    final: bool = False
    excused: Collection[Span] = field(default_factory=tuple)
    meddled: Collection[Span] = field(default_factory=tuple)
    led: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """The ledger of a lease, and what the journal says of the runs.

    Attributes:
        jobs: The rows of the jobs.
        runs: The rows of the runs, also those that were pruned.
        begun: Every attempt whose function was called, and its term.
        over: How those ended that have: ``"returned"``, ``"raised"``, ``"cancelled"``, or anything else.
        paid: The job and tick of every final transaction whose effect is there.
        term: The term that leads in the end, if one does.
        by_hand: The places of rows that somebody wrote by hand.
        former: The schedules that jobs had before, each from after a moment, up to and with the one of its change.
    """

    jobs: Mapping[str, JobRecord]
    runs: Iterable[RunRecord]
    begun: Mapping[Run, int]
    over: Mapping[Run, str]
    paid: Collection[tuple[str, datetime]]
    term: int | None = None
    by_hand: Collection[tuple[str, datetime]] = ()
    former: Mapping[str, Collection[tuple[Schedule, datetime, datetime]]] = field(default_factory=dict)


def audit(books: Books, rules: Mapping[str, Rules], *, now: datetime | None = None, behind: float = 0.0) -> None:
    """Proves that the ledger is complete and true.

    Args:
        books: The ledger and the journal.
        rules: Of every job.
        now: The database's clock, if the ticks up to `behind` seconds before it must have been claimed.
        behind: See `now`.

    Raises:
        Violation: It is not.
    """
    for found in _wrong(books, rules, now, behind):
        raise Violation(found)


def _wrong(books: Books, rules: Mapping[str, Rules], now: datetime | None, behind: float) -> Iterator[str]:
    rows: dict[tuple[str, datetime], RunRecord] = {}
    for row in books.runs:
        again = row.job in rules and _within(row.tick, rules[row.job].meddled)  # it was pruned, and is run once more
        if (row.job, row.tick) in rows and not again:
            yield f"two rows of {row.job} {row.tick:%H:%M:%S.%f}"
        rows[row.job, row.tick] = row
    for run, token in books.begun.items():
        row_of_run = rows.get((run.job, run.tick))
        if row_of_run is None or row_of_run.attempt < run.attempt or row_of_run.token < token:
            yield f"{run} ran in term {token}, and the ledger says {said(row_of_run)}"
    for job, record in books.jobs.items():
        if job in rules:
            of_job = sorted((row for row in rows.values() if row.job == job), key=lambda row: row.tick)
            # What falls due behind a run of an earlier term waits for its end, also when its final commit is there.
            going_on = books.begun.keys() - books.over.keys()
            waits = any(run.job == job and books.begun[run] == books.term for run in going_on)
            yield from _lost_ticks(record, of_job, rules[job], None if waits else now, behind)
            for schedule, since, until in books.former.get(job, ()):
                covered = _covered(list(ticks_between(schedule, since, until)), of_job)
                yield from _uncovered(job, covered, rules[job])
            for row in of_job:
                if (row.job, row.tick) not in books.by_hand and not _within(row.tick, rules[job].meddled):
                    yield from _untrue(row, rules[job], books)
    for job, tick in books.paid:
        of_effect = rows.get((job, tick))
        if of_effect is None or of_effect.status != "succeeded":
            yield f"{job} {tick:%H:%M:%S.%f} had its effect, and the ledger says {said(of_effect)}"


def _goes_on(rows: list[RunRecord], now: datetime) -> bool:
    """Whether a job has runs for whose end its other ticks may have to wait, or had one a moment ago."""
    just_now = now - timedelta(seconds=_NEXT)
    return any(
        row.status in {"queued", "running"} or (row.finished_at is not None and row.finished_at > just_now)
        for row in rows
    )


def _lost_ticks(
    record: JobRecord, rows: list[RunRecord], rules: Rules, now: datetime | None, behind: float
) -> Iterator[str]:
    """Every tick of the schedule up to the high tick is in one row."""
    name, since, until = record.job, max(record.known_since, record.schedule_since), record.high_tick
    if now is not None and record.paused_at is None and rules.led and not _goes_on(rows, now):
        due = rules.schedule.latest_between(
            max(since, record.resumed_at or since), now - timedelta(seconds=behind + rules.jitter)
        )
        if due is not None and (until is None or until < due):
            yield f"{name} fell due at {due:%H:%M:%S.%f}, and nobody had claimed it by {now:%H:%M:%S.%f}"
    if until is None:
        return
    ticks = list(ticks_between(rules.schedule, since, until))
    covered = _covered(ticks, rows)
    for row in rows:
        first, last = bisect_left(ticks, row.tick_from or row.tick), bisect_right(ticks, row.tick)
        by_hand = _within(row.tick, rules.meddled)
        # What somebody asked for is run of a job that is paused, too, and its ticks are not claimed otherwise.
        was_paused = record.paused_at is not None or record.resumed_at is not None
        above = last == first and row.tick > until and not (by_hand or (was_paused and row.request == "backfill"))
        if above and rules.schedule.latest_between(until, row.tick) == row.tick:
            yield f"{name} has a row of {row.tick:%H:%M:%S.%f}, above its high tick {until:%H:%M:%S.%f}"
        # A row of a tick that is none of the schedule is that of a trigger.
        another = _within(row.tick, rules.excused) or by_hand  # perhaps of another schedule
        if row.tick_from is not None and last > first and row.count != last - first and not another:
            yield f"{name} has a row of {row.count} skipped ticks that are {last - first}: {said(row)}"
    for tick, times in covered.items():
        if times > 1 and not _within(tick, rules.meddled):
            yield f"{name} {tick:%H:%M:%S.%f} is in {times} rows"
    yield from _uncovered(name, covered, rules)


def _covered(ticks: list[datetime], rows: Iterable[RunRecord]) -> dict[datetime, int]:
    """In how many rows each tick is."""
    covered = [0] * len(ticks)
    for row in rows:
        for number in range(bisect_left(ticks, row.tick_from or row.tick), bisect_right(ticks, row.tick)):
            covered[number] += 1
    return dict(zip(ticks, covered, strict=True))


def _uncovered(name: str, covered: Mapping[datetime, int], rules: Rules) -> Iterator[str]:
    for tick, times in covered.items():
        if times == 0 and not _within(tick, rules.excused):
            yield f"{name} {tick:%H:%M:%S.%f} was lost: no row tells of it"


def _within(tick: datetime, spans: Collection[Span]) -> bool:
    return any(start < tick <= end for start, end in spans)


def _untrue(row: RunRecord, rules: Rules, books: Books) -> Iterator[str]:
    """What the row says of its run is what happened."""
    run = Run(row.job, row.tick, row.attempt)
    apart = row.failures + row.uncounted  # they count as none that were lost
    if row.attempt - apart > 1 and not rules.rerun_lost:
        yield f"{run} is a further attempt of a job that is not to be run again"
    attempts = [Run(row.job, row.tick, attempt) for attempt in range(1, row.attempt + 1)]
    if row.failures > rules.retries:
        yield f"{run} was tried again {row.failures} times, and {rules.retries} were allowed"
    failed = sum(books.over.get(each, "returned") != "returned" for each in attempts)
    if row.failures > failed:
        yield f"{run}: {row.failures} of its attempts are said to have failed, and {failed} did not return"
    unavailable = sum(books.over.get(each) == "unavailable" for each in attempts)
    if row.attempt - max(unavailable, row.uncounted) - row.failures > MAX_ATTEMPTS:
        yield f"{run}: that is more than {MAX_ATTEMPTS}, but for those that are known to have had no effect"
    cancelled = _CANCELLED in (row.error or "")  # in quotes, if the ledger was in trouble
    if row.status == "failed" and not cancelled and row.failures < rules.retries and rules.max_age is None:
        yield f"the ledger says {said(row)}, but it was to be tried again"
    why = _ended_otherwise(row, run, rules, books) or _not_ended(row, run, rules, books)
    if why is not None:
        yield f"the ledger says {said(row)}, but {why}"


def _ended_otherwise(row: RunRecord, run: Run, rules: Rules, books: Books) -> str | None:
    ending = books.over.get(run, "it never ended" if run in books.begun else "it was never begun")
    match row.status:
        case "succeeded" if rules.final and (row.job, row.tick) not in books.paid:
            return "its effect is not there"
        case "succeeded" if not rules.final and ending != "returned":
            return ending
        case "failed" if _CANCELLED not in (row.error or "") and ending not in {
            "raised",
            "unavailable",
            "cancelled",
            "returned",
        }:  # the latter two: its time was over
            return ending
        case "lost" if (
            rules.rerun_lost and row.attempt - row.failures - row.uncounted < MAX_ATTEMPTS and rules.max_age is None
        ):
            return "it was to be run again"
        case "lost" if not rules.final and row.token == books.term and ending in {"returned", "raised", "unavailable"}:
            return ending  # and its term goes on
    return None


def _not_ended(row: RunRecord, run: Run, rules: Rules, books: Books) -> str | None:
    match row.status:
        case "skipped" if any(Run(row.job, row.tick, attempt) in books.begun for attempt in range(1, row.attempt + 1)):
            return "it has begun"
        case "queued" if run in books.begun:
            return f"it has begun in term {books.begun[run]}"
        case "running" if rules.led and books.term is not None and row.token != books.term:
            return f"term {books.term} leads"
        case "skipped" if rules.missed == "all" and rules.max_age is None:
            if not any(reason in (row.error or "") for reason in _TOO_MANY):
                return f"every tick is to be run: {row.error}"
    return None


_CANCELLED = "cancelled on request"

_TOO_MANY = (
    "has not ended",
    "had not ended",
    "waits to be tried again",
    _CANCELLED,
    "of its runs wait",
    f"more than {MOST_MISSED} were missed",
)
"""Reasons for which a tick of a job is skipped that is to run all that were missed."""


def said(row: RunRecord | None) -> str:
    if row is None:
        return "nothing of it"
    since = "" if row.tick_from is None else f" from {row.tick_from:%H:%M:%S.%f}"
    return f"that {row.job} {row.tick:%H:%M:%S.%f}{since} attempt {row.attempt} of term {row.token} is {row.status}"
