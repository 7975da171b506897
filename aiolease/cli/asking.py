"""The commands that ask for something: `trigger`, `rerun`, `backfill`, `cancel`, `pause`, `resume`, and their kin."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from aiolease._jobs.in_words import moment_text, one_line, tick_text
from aiolease._jobs.schedule import read_schedule
from aiolease._jobs.why import can_be_rerun, is_tick, run_meant
from aiolease._views.lease import OpenLease
from aiolease._views.look import facts_of
from aiolease.cli.lease import on_lease
from aiolease.cli.printing import print_json, print_line, trouble
from aiolease.errors import ConfigurationError, RequestRefused
from aiolease.stores.records import RunRecord

_MOMENT = timedelta(microseconds=1)

_LOOK = 0.5
"""Seconds between two looks at a run that is waited for."""


def _said(arguments: argparse.Namespace, lease: OpenLease, text: str, **facts: object) -> int:
    """Says what was done: in a line, or for programs."""
    if arguments.json:
        job = {"job": arguments.job} if hasattr(arguments, "job") else {}
        print_json({"done": arguments.command, "lease": lease.name, **job, **facts})
    else:
        print_line(text)
    return 0


def _of(lease: OpenLease, job: str) -> str:
    return f"{job!r} of {lease.name!r}"


async def _is_led(lease: OpenLease) -> bool:
    row = await lease.ask(lambda store: store.status(lease.name))
    return row is not None and not row.free


async def _when(lease: OpenLease) -> str:
    return "at the next heartbeat of a leader that has it" if await _is_led(lease) else "when somebody leads"


@on_lease
async def trigger(lease: OpenLease, arguments: argparse.Namespace) -> int:
    """Has a job run once, at the leader's next heartbeat."""
    job = arguments.job
    tick = await lease.ask(lambda store: store.trigger(lease.name, job))
    text = f"triggered {_of(lease, job)}: it runs {await _when(lease)}, as the tick {tick_text(tick)} UTC"
    return await _waited(lease, arguments, tick, text)


@on_lease
async def rerun(lease: OpenLease, arguments: argparse.Namespace) -> int:
    """Has one run of a job run again."""
    job = arguments.job
    tick = await _tick_meant(lease, job, arguments.tick)
    try:
        await lease.ask(lambda store: store.rerun(lease.name, job, tick, force=arguments.force))
    except RequestRefused as error:
        raise RequestRefused(lease.name, job, error.reason.replace("with force", "with `--force`")) from error
    text = f"asked for the tick {tick_text(tick)} UTC of {_of(lease, job)} again: it runs {await _when(lease)}"
    return await _waited(lease, arguments, tick, f"{text}, behind what is due")


async def _tick_meant(lease: OpenLease, job: str, moment: datetime) -> datetime:
    """The tick that somebody means, who may have left out seconds, or parts of one.

    Raises:
        RequestRefused: There is no such run, or it cannot be run again.
    """
    facts, _ = await facts_of(lease, job, moment)
    tick, row = run_meant(facts, moment, only_runs=True)
    if row is None:
        problem = f"there is no run of {moment_text(tick)}; `aiolease history {job}` shows those that there are"
        if facts.schedule is not None and is_tick(facts.schedule, tick) and tick <= facts.now:
            problem = f"there is no run of the tick {moment_text(tick)}; `aiolease backfill` runs ticks that have none"
        raise RequestRefused(lease.name, job, problem)
    if not can_be_rerun(facts, row, tick):
        raise RequestRefused(lease.name, job, f"{moment_text(tick)} is no tick of the schedule that it has now")
    return tick if row.tick_from is not None else row.tick


async def _waited(lease: OpenLease, arguments: argparse.Namespace, tick: datetime, text: str) -> int:
    """Says what was asked for, and waits for its end if that is wanted."""
    if not arguments.wait:
        return _said(arguments, lease, text, tick=tick)
    if not arguments.json:
        print_line(text)
    try:
        async with asyncio.timeout(arguments.timeout):
            run = await _end_of(lease, arguments.job, tick)
    except TimeoutError:
        return trouble(await _not_yet(lease, arguments, tick), 1)
    if run is None:
        return trouble(f"the row of {_of(lease, arguments.job)} is gone: it has ended, and the log says how", 1)
    if arguments.json:
        print_json(asdict(run))
    else:
        error = f": {one_line(run.error)}" if run.error else ""
        print_line(f"{run.status}, attempt {run.attempt} in term {run.token}{error}")
    return 0 if run.status == "succeeded" else 1


async def _not_yet(lease: OpenLease, arguments: argparse.Namespace, tick: datetime) -> str:
    """What has become of a run that was not waited for any longer."""
    what, limit = _of(lease, arguments.job), f"within {arguments.timeout:g} s"
    rows = await lease.ask(lambda store: store.look_up(lease.name, [(arguments.job, tick)]))
    if rows and rows[0].status == "running":
        return f"{what} has not ended {limit}; it goes on"
    why = f"aiolease why {arguments.job} '{tick.isoformat()}'"
    return f"{what} has not begun {limit}; the request stays, and `{why}` tells what it waits for"


async def _end_of(lease: OpenLease, job: str, tick: datetime) -> RunRecord | None:
    """The run once it has ended; ``None`` if its row was there and is not: a run of an old tick is pruned at once."""
    was_there = False
    while True:
        rows = await lease.ask(lambda store: store.look_up(lease.name, [(job, tick)]))
        if rows and rows[0].status not in {"queued", "running"}:
            return rows[0]
        if was_there and not rows:
            return None
        was_there = bool(rows)
        await asyncio.sleep(_LOOK)


@on_lease
async def backfill(lease: OpenLease, arguments: argparse.Namespace) -> int:
    """Has the ticks of a range run that have no run, or were skipped."""
    job, since, until = arguments.job, arguments.since, arguments.until or datetime.now(UTC)
    if until < since:
        raise ConfigurationError("--until", moment_text(until), f"it is before --since, {moment_text(since)}")
    await lease.ask(lambda store: store.backfill(lease.name, job, since, until))
    without = await _without_row(lease, job, since, until)
    text = (
        f"asked for a backfill of {_of(lease, job)} from {_shown(since)} to {_shown(until)}: its ticks run "
        f"{await _when(lease)}, behind what is due; `aiolease runs {job}` shows them, `aiolease cancel {job}` ends it"
    )
    if without is not None:
        text += f". NOTE: no row is left of its tick {tick_text(without)} UTC: if that has run, it runs again"
    return _said(arguments, lease, text, since=since, until=until, without_row=without)


async def _without_row(lease: OpenLease, job: str, since: datetime, until: datetime) -> datetime | None:
    """The first tick of a span that has no row, although the job was known by then: the row may have been pruned."""
    seen = (await lease.ask(lambda store: store.overview(lease.name, [job]))).jobs.get(job)
    if seen is None or (schedule := read_schedule(seen.record.schedule, seen.record.timezone)) is None:
        return None
    first = schedule.next_after(max(since - _MOMENT, seen.record.known_since))
    rows = await lease.ask(lambda store: store.rows_from(lease.name, job, since, 1))
    kept_since = rows[0].tick_from or rows[0].tick if rows else seen.record.settled_until + _MOMENT
    return first if first is not None and first < kept_since and first <= until else None


@on_lease
async def cancel(lease: OpenLease, arguments: argparse.Namespace) -> int:
    """Has the leader cancel the runs of a job that go on."""
    await lease.ask(lambda store: store.cancel(lease.name, arguments.job))
    when = await _when(lease)
    text = f"asked to cancel the runs of {_of(lease, arguments.job)}: they are failed {when}, and not tried again"
    return _said(arguments, lease, text)


@on_lease
async def pause(lease: OpenLease, arguments: argparse.Namespace) -> int:
    """Has none of a job's ticks run from now on, or of all jobs."""
    job, until, note = arguments.job, arguments.until, arguments.note
    since = await _paused_since(lease, job)
    await lease.ask(lambda store: store.pause(lease.name, job, until=until, note=note))
    what = f"all jobs of {lease.name!r}" if job is None else _of(lease, job)
    end = "" if until is None else f" until {_shown(until)}"
    verb = "were" if job is None else "was"
    if since is None:
        ticks = "no tick is run" if job is None else "its ticks are not run"
        text = f"paused {what}{end}: {ticks}; what is running or queued goes on"
    else:
        new = f"; the pause lasts{end} now" if end else "; it has the new note" if note else ""
        text = f"{what} {verb} paused already, since {_shown(since)}{new}"
    if job is None and await lease.ask(lambda store: store.status(lease.name)) is None:
        text += f"; {lease.name!r} never had a leader: is that its name?"
    return _said(arguments, lease, text, paused_at=since, until=until, note=note)


@on_lease
async def resume(lease: OpenLease, arguments: argparse.Namespace) -> int:
    """Ends a pause."""
    job = arguments.job
    since = await _paused_since(lease, job)
    await lease.ask(lambda store: store.resume(lease.name, job))
    what = f"all jobs of {lease.name!r}" if job is None else _of(lease, job)
    if since is None:
        text = f"{what} {'were' if job is None else 'was'} not paused"
    else:
        runs = (
            "those that are not paused by themselves run from their next ticks on"
            if job is None
            else ("it runs from its next tick on")
        )
        seen = "seen at the next heartbeat" if await _is_led(lease) else "when somebody leads"
        text = f"resumed {what}: {runs}, {seen}; those since {_shown(since)} are not made up for"
    return _said(arguments, lease, text, paused_at=since)


def _shown(moment: datetime) -> str:
    return moment_text(moment.replace(microsecond=0))


async def _paused_since(lease: OpenLease, job: str | None) -> datetime | None:
    """Since when a job, or all of a lease, is paused. Only for telling: another may pause it at the same time."""
    stock = await lease.ask(lambda store: store.take_stock(lease.name, attention=True))
    record = stock.pause if job is None else stock.jobs.get(job)
    return record.paused_at if record is not None and record.is_paused(stock.now) else None


@on_lease
async def settle(lease: OpenLease, arguments: argparse.Namespace) -> int:
    """Sets a job's rows right."""
    await lease.ask(lambda store: store.settle(lease.name, arguments.job))
    of = _of(lease, arguments.job)
    text = f"settled {of}: it goes on with its next tick; the leader learns of it within a minute"
    return _said(arguments, lease, text)


@on_lease
async def forget(lease: OpenLease, arguments: argparse.Namespace) -> int:
    """Takes a job that is gone, and its runs, out of the database."""
    # Through the rows of a long history, in steps: it may take longer than one answer.
    await lease.ask_long(lambda store: store.forget(lease.name, arguments.job))
    return _said(arguments, lease, f"forgot {_of(lease, arguments.job)}: its rows are gone")


@on_lease
async def resign(lease: OpenLease, arguments: argparse.Namespace) -> int:
    """Asks the leader to resign."""
    token = await lease.ask(lambda store: store.resign(lease.name))
    if token is None:
        return trouble(f"nobody leads {lease.name!r}, there is nothing to resign", 1)
    text = f"asked the leader of {lease.name!r} (term {token}) to resign; it does so at its next heartbeat"
    return _said(arguments, lease, text, token=token)
