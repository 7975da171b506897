"""Schedules that have changed: the ticks of the former one are run or recorded first (DESIGN rule 50)."""

from __future__ import annotations

from datetime import datetime

from aiolease._jobs.due import due, without
from aiolease._jobs.job_state import JobStates
from aiolease._jobs.pauses import is_paused, settled_until
from aiolease._jobs.plan import Plan
from aiolease._jobs.schedule import Schedule, means_the_same, read_schedule
from aiolease.stores.batch import JobDefinition, LedgerReading
from aiolease.stores.records import JobRecord, TermKey


def unknown_to(stock: LedgerReading, jobs: JobStates) -> list[JobDefinition]:
    """The jobs that the ledger does not know, or knows with another schedule: they are to be written."""
    found = []
    for name, state in jobs.items():
        schedule, known = state.job.schedule, stock.jobs.get(name)
        if name not in stock.unreadable and (known is None or _is_changed(known, schedule, stock.now)):
            since = stock.now if known else None
            found.append(JobDefinition(job=name, schedule=schedule.expression, timezone=schedule.timezone, since=since))
    return found


def plan_former(stock: LedgerReading, jobs: JobStates, name: str, term: TermKey, *, young: float) -> Plan | None:
    """What is to be written before a job gets another schedule: the ticks of its former one, up to the reading.

    They are queued, or skipped, as the job's `missed` and `max_age` say.

    Returns:
        ``None`` if there are none.
    """
    job, record, there = jobs[name].job, stock.jobs[name], jobs[name].there
    former = read_schedule(record.schedule, record.timezone)  # none: written by a version with other schedules
    if former is None or is_paused(record, stock.pause):
        return None
    after, now = settled_until(record, stock.pause), stock.now
    try:
        found = due(former, after, now, missed=job.missed, max_age=job.max_age, young=young)
        if not found.run and not found.skipped:
            return None
        last = (found.run or [found.skipped[-1].last])[-1]
        if there:
            found = without(found, there, former)
    except Exception as error:  # noqa: BLE001 - somebody changed the row; only its own job is set aside
        jobs.cannot_be_planned(name, error)
        return None
    plan = Plan(term)
    for skip in found.skipped:
        plan.claim_skip(job, skip)
    for tick in found.run:
        plan.claim_run(job, tick, start=False)
    plan.settle(name, last, record.high_tick)
    return plan


def _is_changed(known: JobRecord, schedule: Schedule, now: datetime) -> bool:
    """True if the ledger knows a job with a schedule that means something else."""
    if (known.schedule, known.timezone) == (schedule.expression, schedule.timezone):
        return False
    former = read_schedule(known.schedule, known.timezone)
    return former is None or not means_the_same(former, schedule, now)
