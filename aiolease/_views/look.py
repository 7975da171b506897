"""What `status`, `watch`, `check` and the page look at, and what is wrong with it; and what `why` reckons from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from aiolease._jobs.in_words import moment_text, one_line, span
from aiolease._jobs.standing import JobStanding, standing
from aiolease._jobs.why import Facts, latest, reading_start
from aiolease._views.lease import OpenLease
from aiolease.errors import InvalidJob
from aiolease.stores.records import AHEAD, JobRecord, Lease, RunRecord
from aiolease.stores.seen import JobSeen, Overview

_LEASE = 30.0
"""Seconds that a lease is taken to last if nobody ever led, or if it was released: its row does not say it then."""

_AROUND = 50
"""So many rows are read from the tick before a moment on, to tell why."""

_EVER, _NEVER = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
"""Before the first of them and after the other no tick is looked for: there would be no room to reckon."""

_SETTLED_IN = timedelta(seconds=15)
"""So long after its election a leader may not have said yet which jobs it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One look at a lease and its jobs.

    Attributes:
        name: The lease.
        lease: Its row; ``None`` if nobody ever led.
        overview: What the ledger has of its jobs.
        jobs: How they stand, in the order of their names.
        offset: Seconds by which this machine's clock is ahead of the database's.
    """

    name: str
    lease: Lease | None
    overview: Overview
    jobs: list[JobStanding]
    offset: float

    @property
    def now(self) -> datetime:
        """The database's clock at the look."""
        return self.overview.now

    @property
    def led(self) -> bool:
        """Whether somebody leads."""
        return self.lease is not None and not self.lease.free

    @property
    def pause(self) -> JobRecord | None:
        """The pause of the whole lease, if it goes on."""
        pause = self.overview.pause
        return pause if pause is not None and pause.is_paused(self.now) else None

    def job_seen(self, job: str) -> JobSeen:
        """What the ledger has of a job."""
        return self.overview.jobs[job]


@dataclass(frozen=True, slots=True)
class Wrong:
    """Something that is wrong.

    Attributes:
        text: What, in one line.
        command: What tells more of it, or mends it; empty if nothing does.
        job: Of which job; ``None`` of the lease.
    """

    text: str
    command: str = ""
    job: str | None = None


def local_clock() -> datetime:
    """The clock of this machine."""
    return datetime.now(UTC)


async def look(lease: OpenLease) -> Seen:
    """Looks at a lease and its jobs: two statements."""
    row = await lease.ask(lambda store: store.status(lease.name))
    before = local_clock()
    overview = await lease.ask(lambda store: store.overview(lease.name))
    between = before + (local_clock() - before) / 2
    duration = row.duration if row is not None and row.holder is not None else _LEASE
    jobs = [
        standing(seen, overview.pause, overview.now, lease_duration=duration)
        for _, seen in sorted(overview.jobs.items())
    ]
    offset = (between - overview.now).total_seconds()
    return Seen(name=lease.name, lease=row, overview=overview, jobs=jobs, offset=offset)


def wrong_with(seen: Seen, *, failures: int = 1) -> list[Wrong]:
    """What is wrong, the worst first: no leader, jobs that fail, jobs that do not run, clocks.

    Args:
        seen: The look.
        failures: A job that failed fewer times in a row is not wrong.
    """
    found = [*_of_the_leader(seen)]
    failing = [job for job in seen.jobs if job.failures >= failures]
    found += [_failing(seen, job) for job in sorted(failing, key=lambda job: (-job.failures, job.job))]
    for job, problem in sorted(seen.overview.unreadable.items()):
        found.append(Wrong(f"{job!r} is set aside, its rows cannot be read: {problem}", f"settle {job}", job))
    if seen.led:
        found += [*_of_those_that_do_not_run(seen)]
    if abs(seen.offset) > AHEAD:
        way = "ahead of" if seen.offset > 0 else "behind"
        found.append(Wrong(f"the clock of this machine is {span(abs(seen.offset))} {way} the database's"))
    return found


def _of_the_leader(seen: Seen) -> Iterator[Wrong]:
    row = seen.lease
    if row is None or seen.led:
        return
    overdue = sum(job.overdue > 0 for job in seen.jobs)
    late = f"; {overdue} jobs are overdue" if overdue > 1 else "; 1 job is overdue" if overdue else ""
    since = f"since {moment_text(row.expires_at.replace(microsecond=0))}"
    why = f"term {row.token} was released" if row.holder is None else f"{row.holder} did not renew it"
    yield Wrong(f"nobody leads {seen.name!r} {since}: {why}{late}")


def _failing(seen: Seen, job: JobStanding) -> Wrong:
    last = job.last if job.last is not None and job.last.status in {"failed", "lost"} else None
    lost = last is not None and last.status == "lost"
    how = "has failed"
    if job.failures > 1:
        how = f"has failed{', or was lost,' if lost else ''} {job.failures} times in a row"
    elif lost:
        how = "was lost"
    if last is not None:
        error = one_line(last.error or last.status)
        said = error.removeprefix("lost ") if how == "was lost" else error
        how += f"{' ' if said != error else ': '}{said}, at the tick of {moment_text(last.tick, job.timezone)}"
    return Wrong(f"{job.job!r} {how}", f"why {job.job}", job.job)


def _of_those_that_do_not_run(seen: Seen) -> Iterator[Wrong]:
    for job in sorted(seen.jobs, key=lambda job: -job.overdue):
        record = seen.job_seen(job.job).record
        if is_without(seen, record):
            text = f"the leader (term {seen.lease.token if seen.lease else 0}) has no job {job.job!r}: deploy it"
            yield Wrong(f"{text}, or forget it if it is gone", f"forget {job.job}", job.job)
        elif job.overdue and job.next_tick is not None:
            text = f"{job.job!r} is overdue: its tick of {moment_text(job.next_tick, job.timezone)} passed"
            yield Wrong(f"{text} {span(job.overdue)} ago", f"why {job.job}", job.job)
        elif record.high_tick is not None and record.high_tick > seen.now + timedelta(seconds=AHEAD):
            text = f"{job.job!r} is silent until {moment_text(record.high_tick)}, by a clock that was ahead"
            yield Wrong(text, f"settle {job.job}", job.job)


def is_without(seen: Seen, record: JobRecord) -> bool:
    """Whether the leader has said which jobs it has, and this one is not among them."""
    row = seen.lease
    if row is None or row.free or seen.now - row.elected_at < _SETTLED_IN:
        return False
    return record.token is not None and record.token != row.token


async def facts_of(lease: OpenLease, job: str, moment: datetime | None) -> tuple[Facts, datetime]:
    """Reads what `why` reckons from."""
    stock = await lease.ask(lambda store: store.take_stock(lease.name, counted=True))
    if job not in stock.jobs:
        if job in stock.unreadable:
            problem = f"its row cannot be read: {stock.unreadable[job]}; `aiolease settle {job}` mends it"
            raise InvalidJob(job, problem)
        raise InvalidJob(job, f"no leader of {lease.name!r} ever had such a job")
    row = await lease.ask(lambda store: store.status(lease.name))
    terms = await lease.ask(lambda store: store.terms(lease.name))
    oldest = await lease.ask(lambda store: store.rows_from(lease.name, job, _EVER, 1))
    waiting, _ = await lease.ask(lambda store: store.queued(lease.name, [job], 1))
    facts = Facts(
        name=lease.name,
        record=stock.jobs[job],
        now=stock.now,
        lease=row,
        pause=stock.pause,
        rows=await lease.ask(lambda store: store.history(lease.name, job, limit=1)),
        oldest=oldest[0].tick if oldest else None,
        terms=terms,
        unreadable=stock.unreadable.get(job),
        busy=len(stock.unfinished),
    )
    asked = min(max(moment, _EVER), _NEVER) if moment is not None else latest(facts)
    around = await _rows_around(lease, facts, asked)
    rows = {run.tick: run for run in (*waiting, *(run for run in stock.unfinished if run.job == job), *around)}
    return replace(facts, rows=[rows[tick] for tick in sorted(rows)]), asked


async def _rows_around(lease: OpenLease, facts: Facts, moment: datetime) -> list[RunRecord]:
    """The rows from the tick before a moment on; of one in a range of skipped ticks, that before the range, too."""
    job = facts.record.job
    start = reading_start(facts.schedule, moment)
    rows = await lease.ask(lambda store: store.rows_from(lease.name, job, start, _AROUND))
    first = next((run.tick_from for run in rows if run.tick >= moment), None)
    if first is not None and first <= moment:
        earlier = reading_start(facts.schedule, first)
        rows += await lease.ask(lambda store: store.rows_from(lease.name, job, earlier, 1))
    return rows
