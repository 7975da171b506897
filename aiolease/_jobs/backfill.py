"""One portion of a backfill: which ticks of a span are queued, and what becomes of the rows that are there.

Pure functions (DESIGN rule 34).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import islice

from aiolease._jobs.due import Skip
from aiolease._jobs.job import Job
from aiolease._jobs.plan import Plan
from aiolease._jobs.schedule import ticks_between
from aiolease.stores.batch import Again, Backfilled, Change, Trimmed
from aiolease.stores.records import RunKey, RunRecord, TermKey

_MOMENT = timedelta(microseconds=1)


def portion(
    job: Job,
    term: TermKey,
    rows: Sequence[RunRecord],
    span: tuple[datetime, datetime],
    now: datetime,
    *,
    most: int,
    complete: bool,
) -> tuple[Plan, set[datetime]]:
    """The first ticks of a span that have no row, or were skipped: to be queued; and where the rest begins.

    Args:
        job: The job.
        term: The term that writes.
        rows: The rows of the job from the beginning of the span on, in the order of their ticks.
        span: Its first and its last moment.
        now: The database's clock.
        most: How many ticks are looked at.
        complete: False if there are more rows: what comes behind the last one that is `of_schedule` is left for another
            portion. There is one then.

    Returns:
        The plan, and the ticks of the rows of skipped ticks that it changes.
    """
    since, until = span
    rest = None
    if not complete:
        last = [row.tick for row in rows if of_schedule(job, row)][-1]
        rest, until = last + _MOMENT, min(until, last)
    ticks = list(islice(ticks_between(job.schedule, since - _MOMENT, until), most + 1))
    if len(ticks) > most:
        rest = ticks.pop()
    if rest is not None and rest > span[1]:
        rest = None
    plan, exact = Plan(term), {row.tick: row for row in rows if not is_range(row)}
    changed, taken = set[datetime](), set[datetime]()
    for row in filter(is_range, rows):
        within = ticks[bisect_left(ticks, row.tick_from or row.tick) : bisect_right(ticks, row.tick)]
        inside = [tick for tick in within if tick not in exact]
        if not inside:
            continue
        if job.schedule.count_between((row.tick_from or row.tick) - _MOMENT, row.tick) != row.count:
            taken.add(row.tick)  # of another schedule: it stays as it is, beside the rows of the ticks
            continue
        changed.add(row.tick)
        taken |= set(inside)
        _split(plan, job, row, inside, now)
    for tick in ticks:
        there = exact.get(tick)
        if there is not None and there.status == "skipped":
            changed.add(tick)
            plan.batch.changes.append(_queued(there, now))
        elif there is None and tick not in taken:
            _claim(plan, job, tick, now)
    plan.batch.claims.sort(key=lambda run: run.tick)
    plan.batch.backfills[job.name] = Backfilled(seen=since, since=rest)
    return plan, changed


def of_schedule(job: Job, row: RunRecord) -> bool:
    """True if a row stands at a tick of a job's schedule: then no range that comes behind it covers what is before."""
    return job.schedule.latest_between(row.tick - _MOMENT, row.tick) is not None


def is_range(row: RunRecord) -> bool:
    return row.status == "skipped" and (row.count or 1) > 1


def _split(plan: Plan, job: Job, row: RunRecord, inside: Sequence[datetime], now: datetime) -> None:
    """Takes ticks out of a row of skipped ones: what is before them gets a row of its own, what is behind keeps it."""
    first, last = row.tick_from or row.tick, inside[-1]
    before = job.schedule.latest_between(first - _MOMENT, inside[0] - _MOMENT)
    if before is not None:
        number = job.schedule.count_between(first - _MOMENT, before)
        plan.claim_skip(job, Skip(first, before, number, row.error or ""))
    for tick in inside:
        if tick < row.tick:
            _claim(plan, job, tick, now)
    if last == row.tick:
        plan.batch.changes.append(_queued(row, now))
        return
    following = job.schedule.next_after(last) or row.tick
    left = job.schedule.count_between(last, row.tick)
    trimmed = Trimmed(tick_from=None if following == row.tick else following, count=max(left, 1))
    plan.batch.trims[job.name, row.tick] = trimmed


def _claim(plan: Plan, job: Job, tick: datetime, now: datetime) -> None:
    record = RunRecord(
        job=job.name, tick=tick, token=plan.term.token, holder=plan.term.holder, status="queued",
        not_before=now, request="backfill",
    )  # fmt: skip
    plan.claims.append((job, record))
    plan.batch.claims.append(record)


def _queued(row: RunRecord, now: datetime) -> Change:
    key = RunKey(row.job, row.tick, row.attempt, row.token)
    again = Again(not_before=now, request="backfill")
    return Change(key=key, was="skipped", status="queued", attempt=row.attempt, adopt=True, required=True, again=again)
