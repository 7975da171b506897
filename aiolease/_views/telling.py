"""Rows as text: a lease, jobs, runs, and the same for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from datetime import datetime

from aiolease._jobs.in_words import local_text, moment_text, one_line, span, tick_text
from aiolease._jobs.standing import JobStanding, is_silent
from aiolease._views.look import Seen, is_without, wrong_with
from aiolease.stores.records import Lease, RunRecord

JOBS = ("job", "schedule", "last run (UTC)", "ended", "last success", "next tick (UTC)", "state")
"""The head of the table of jobs."""

RUNS = ("tick (UTC)", "status", "attempt", "term", "took", "")
"""The head of the table of runs."""


def described(seen: Seen) -> Iterator[tuple[str, str]]:
    """A lease as labels and texts. Ages and rests are by the database's clock, like all that the row says."""
    lease = seen.lease
    if lease is None:
        yield "", f"{seen.name!r} never had a leader"
        return
    yield "lease", lease.name
    leader = lease.holder or "nobody, it was released"
    yield "leader", leader if lease.holder is None or not lease.expired else f"nobody, {leader} did not renew it"
    yield "term", str(lease.token)
    yield "elected", _and_age(lease.elected_at, lease)
    silent = ": it is late, the leader may be dead, frozen or cut off" if is_silent(lease) else ""
    yield "renewed", f"{_and_age(lease.renewed_at, lease)}{silent}"
    if lease.free:
        yield "released" if lease.holder is None else "expired", _and_age(lease.expires_at, lease)
    else:
        rest = (lease.expires_at - lease.now).total_seconds()
        yield "expires", f"{_moment(lease.expires_at)}, in {span(rest)} unless renewed"
    if lease.holder is not None and lease.resign_token == lease.token:
        yield "resign", "was asked for"
    if seen.pause is not None:
        pause = seen.pause
        yield "paused", f"the whole lease, {_pause(pause.paused_at, pause.paused_until, pause.pause_note)}"
    if seen.jobs:
        running, waiting = sum(job.running for job in seen.jobs), sum(job.queued for job in seen.jobs)
        yield "runs", f"{running} running, {waiting} waiting"


def _and_age(moment: datetime, lease: Lease) -> str:
    return f"{_moment(moment)}, {ago(moment, lease.now)}"


def status_facts(seen: Seen) -> dict[str, object]:
    """What `status` says, for programs."""
    nothing = dict.fromkeys(field.name for field in fields(Lease)) | {"name": seen.name, "now": seen.now}
    return {
        **(nothing if seen.lease is None else asdict(seen.lease)),
        "led": seen.led,
        "wrong": [asdict(wrong) for wrong in wrong_with(seen)],
        "pause": None if seen.pause is None else _pause_facts(seen),
        "clock_offset": seen.offset,
        "jobs": [asdict(seen.job_seen(job.job).record) | asdict(job) for job in seen.jobs],
    }


def _pause_facts(seen: Seen) -> dict[str, object]:
    assert seen.pause is not None
    return {field: getattr(seen.pause, field) for field in ("paused_at", "paused_until", "pause_note")}


def job_row(seen: Seen, job: JobStanding) -> tuple[str, ...]:
    """A row of the table of jobs."""
    last = "none yet" if job.last is None else _both(job.last.tick, job.timezone)
    ended = "" if job.last is None else job.last.status
    success = "never" if job.last_success is None else ago(job.last_success, seen.now)
    schedule = f"{job.schedule} {job.timezone}".strip()
    coming = "" if job.next_tick is None else _both(job.next_tick, job.timezone)
    return job.job, schedule, last, ended, success, coming, ", ".join(doing(seen, job))


def worst_first(jobs: Iterable[JobStanding]) -> list[JobStanding]:
    """Jobs, those in trouble first."""
    return sorted(jobs, key=lambda job: (-job.failures, -job.overdue, job.paused, job.job))


def _both(tick: datetime, timezone: str) -> str:
    """A tick in UTC, and by the clock of a zone."""
    beside = local_text(tick, timezone)
    return f"{tick_text(tick)} ({beside})" if beside else tick_text(tick)


def doing(seen: Seen, job: JobStanding) -> list[str]:
    """What a job is doing, and what stands in its way."""
    record = seen.job_seen(job.job).record
    said = [f"failed {job.failures} in a row"] if job.failures > 1 else []
    said += [f"overdue by {span(job.overdue)}"] if job.overdue else []
    said += [status if count == 1 else f"{count} {status}" for count, status in _busy(job) if count]
    said += ["triggered"] if record.requested_at is not None else []
    said += ["cancel asked for"] if record.cancel_at is not None else []
    said += [f"backfill from {tick_text(record.backfill_since)}"] if record.backfill_since is not None else []
    said += ["the leader has it not"] if is_without(seen, record) else []
    if job.paused and not (job.paused_with_all and seen.pause is not None):
        said.append(f"paused {_pause(job.paused_since, job.paused_until, job.pause_note)}")
    return said


def _busy(job: JobStanding) -> tuple[tuple[int, str], ...]:
    return (job.running, "running"), (job.queued, "queued")


def _pause(since: datetime | None, until: datetime | None, note: str | None) -> str:
    said = "" if since is None else f"since {_moment(since)}"
    said += "" if until is None else f" until {_moment(until)}"
    return said + (f" ({one_line(note)})" if note else "")


def run_row(run: RunRecord, now: datetime, timezone: str) -> tuple[str, ...]:
    """The row of one run in the table of a history; beside its tick stands the clock of a zone."""
    took = ""
    if run.started_at is not None and run.status == "running":
        took = f"{_length(run.started_at, now)} so far"
    elif run.started_at is not None and run.finished_at is not None and run.status != "lost":
        took = _length(run.started_at, run.finished_at)  # when a lost one ended nobody knows
    return _both(run.tick, timezone), run.status, str(run.attempt), str(run.token), took, _of_a_run(run, now)


def _of_a_run(run: RunRecord, now: datetime) -> str:
    """The error or the reason of a run, what it waits for, and who asked for it."""
    before_that = run.errors[-1] if run.errors and run.status in {"queued", "running"} else ""
    said = one_line(run.error or before_that)
    if run.tick_from is not None and run.count is not None and run.count > 1:
        said = f"{run.count} ticks since {tick_text(run.tick_from)}: {said}"
    before = [f"by {run.request}"] if run.request is not None else []
    if run.status == "queued" and run.not_before is not None and run.not_before > now:
        before.append(f"not before {tick_text(run.not_before.replace(microsecond=0))}")
    return "; ".join([*before, *([said] if said else [])])


def run_facts(run: RunRecord) -> dict[str, object]:
    """A run for programs."""
    return asdict(run)


def ago(moment: datetime, now: datetime) -> str:
    """How long ago a moment was."""
    return f"{span((now - moment).total_seconds())} ago"


def _moment(moment: datetime) -> str:
    return moment_text(moment.replace(microsecond=0))


def _length(start: datetime, end: datetime) -> str:
    seconds = max((end - start).total_seconds(), 0.0)
    return f"{seconds:.2f} s" if seconds < 10 else span(seconds)
