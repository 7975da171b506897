"""`watch`: the status, live: in place on a terminal, at 80 columns; plain lines of what changes elsewhere."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

from aiolease._jobs.in_words import moment_text, span
from aiolease._jobs.standing import JobStanding
from aiolease._views.lease import OpenLease
from aiolease._views.look import Seen, look, wrong_with
from aiolease._views.telling import ago, doing, status_facts, worst_first
from aiolease.cli.lease import on_lease
from aiolease.cli.printing import print_line, printable, red, table
from aiolease.errors import StoreUnavailable

_HOME, _REST_OF_LINE, _REST_OF_SCREEN, _CLEAR = "\x1b[H", "\x1b[K", "\x1b[J", "\x1b[2J"
_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
_JOB_WIDTH = 24
_NARROWEST = 40


def watch(arguments: argparse.Namespace) -> int:
    """Shows the status until Ctrl-C."""
    try:
        return _watch(arguments)
    except KeyboardInterrupt:
        return 0


@on_lease
async def _watch(lease: OpenLease, arguments: argparse.Namespace) -> int:
    if arguments.json:
        return await _facts_for_ever(lease, arguments.interval)
    if not sys.stdout.isatty():
        return await _lines_for_ever(lease, arguments.interval)
    sys.stdout.write(_HIDE_CURSOR + _CLEAR)
    try:
        return await _screen_for_ever(lease, arguments.interval)
    finally:
        sys.stdout.write(f"\n{_SHOW_CURSOR}")
        sys.stdout.flush()


async def _facts_for_ever(lease: OpenLease, interval: float) -> int:
    """Prints one JSON text a line, for programs."""
    while True:
        print_line(json.dumps(status_facts(await look(lease)), default=datetime.isoformat))
        await asyncio.sleep(interval)


async def _screen_for_ever(lease: OpenLease, interval: float) -> int:
    """Draws the status over itself."""
    seen: Seen | None = None
    while True:
        problem = ""
        try:
            seen = await look(lease)
        except StoreUnavailable as error:  # it may come back: what was seen last stays
            problem = str(error)
        columns, lines = shutil.get_terminal_size()
        frame = [*screen(seen, lease.name, problem, max(columns, _NARROWEST), max(lines, 10))]
        drawn = "".join(f"{line}{_REST_OF_LINE}\n" for line in frame[:-1]) + f"{frame[-1]}{_REST_OF_LINE}"
        sys.stdout.write(f"{_HOME}{drawn}{_REST_OF_SCREEN}")
        sys.stdout.flush()
        await asyncio.sleep(interval)


def screen(seen: Seen | None, name: str, problem: str, columns: int, lines: int) -> list[str]:
    """The lines of one screen, none wider than it, and no more than it has.

    Args:
        seen: The last look; ``None`` if there was none yet.
        name: The lease.
        problem: Why there is no newer one; empty if there is.
        columns: How wide the screen is.
        lines: How high it is.
    """
    at = moment_text((seen.now if seen is not None else datetime.now(UTC)).replace(microsecond=0))
    head = [_fit(f"aiolease watch {name}".ljust(max(columns - len(at) - 1, 0)) + f" {at}", columns), ""]
    if problem:
        head += [red(_fit(f"! {problem}", columns)), ""]
    if seen is None:
        return head
    wrong = [f"! {each.text}" for each in wrong_with(seen)]
    most = max((lines - 8) // 3, 2)
    if len(wrong) > most:
        wrong = [*wrong[: most - 1], f"! and {len(wrong) - most + 1} more: see `aiolease status`"]
    body = [red(line) for text in wrong for line in _wrapped(text, columns)]
    body += [""] if wrong else []
    body += [_fit(line, columns) for line in _leader(seen)]
    body += ["", *_jobs(seen, columns)] if seen.jobs else []
    room = lines - len(head)
    if len(body) > room:
        body = [*body[: room - 1], _fit(f"… and {len(body) - room + 1} more jobs", columns)]
    return head + body


def _leader(seen: Seen) -> Iterator[str]:
    row = seen.lease
    if row is None:
        yield f"{seen.name!r} never had a leader"
        return
    if row.free:
        yield f"nobody leads; term {row.token} was the last"
    else:
        since, rest = (row.now - row.elected_at).total_seconds(), (row.expires_at - row.now).total_seconds()
        yield f"term {row.token} leads for {span(since)}, {span(rest)} left: {row.holder}"
    if seen.pause is not None:
        yield f"all jobs are paused{_until(seen.pause.paused_until)}"
    yield f"{sum(job.running for job in seen.jobs)} running, {sum(job.queued for job in seen.jobs)} waiting"


def _until(until: datetime | None) -> str:
    return "" if until is None else f" until {moment_text(until.replace(microsecond=0))}"


def _jobs(seen: Seen, columns: int) -> list[str]:
    """The table of jobs, those in trouble first."""
    rows = [
        (_cut(job.job, _JOB_WIDTH), _last(seen, job), _next(seen, job), _state(seen, job))
        for job in worst_first(seen.jobs)
    ]
    return [_fit(line, columns) for line in table(("job", "last run", "next tick", "state"), rows)]


def _last(seen: Seen, job: JobStanding) -> str:
    if job.last is None:
        return "none yet"
    ended = job.last.finished_at or job.last.tick
    return f"{job.last.status} {ago(ended, seen.now)}"


def _next(seen: Seen, job: JobStanding) -> str:
    if job.next_tick is None:
        return ""
    left = (job.next_tick - seen.now).total_seconds()
    return f"in {span(left)}" if left >= 0 else f"{span(-left)} ago"


def _state(seen: Seen, job: JobStanding) -> str:
    if not job.paused:
        return ", ".join(doing(seen, job))
    until = job.paused_until
    end = (
        "" if until is None else f" until {until:%H:%M}" if until.date() == seen.now.date() else f" until {until:%d %b}"
    )
    return f"paused{end}{f' ({job.pause_note})' if job.pause_note else ''}"


async def _lines_for_ever(lease: OpenLease, interval: float) -> int:
    """Prints a line for what has changed since the last look."""
    before: dict[str, str] = {}
    problem = ""
    while True:
        try:
            seen = await look(lease)
        except StoreUnavailable as error:
            if str(error) != problem:
                problem = str(error)
                print_line(f"{moment_text(datetime.now(UTC).replace(microsecond=0))}  {problem}")
        else:
            problem = ""
            at, after = moment_text(seen.now.replace(microsecond=0)), lines_of(seen)
            for what, text in after.items():
                if before.get(what) != text:
                    print_line(f"{at}  {text}")
            before = after
        await asyncio.sleep(interval)


def lines_of(seen: Seen) -> dict[str, str]:
    """What may change, by what it is about. It names no ages: a line is printed when something has happened."""
    row = seen.lease
    if row is None:
        said = {"": f"{seen.name!r} never had a leader"}
    elif row.free:
        said = {"": f"nobody leads {seen.name!r}: term {row.token} is over"}
    else:
        said = {"": f"term {row.token} leads {seen.name!r}: {row.holder}"}
    for job in seen.jobs:
        last = "has not run yet"
        if job.last is not None:
            error = f" ({job.last.error})" if job.last.error else ""
            last = f"{moment_text(job.last.tick)} {job.last.status}{error}"
        doings = [f"{job.running} running"] if job.running else []
        doings += [f"{job.queued} waiting"] if job.queued else []
        doings += ["overdue"] if job.overdue else []
        doings += [f"paused{_until(job.paused_until)}"] if job.paused else []
        doings += [f"failed {job.failures} in a row"] if job.failures > 1 else []
        said[job.job] = "; ".join([f"{job.job}: {_one_line(last)}", *doings])
    return said


def _one_line(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _fit(text: str, columns: int) -> str:
    return _cut(printable(_one_line_kept(text)), columns)


def _one_line_kept(text: str) -> str:
    """A text without what a terminal obeys; the spaces of a table stay."""
    return "".join(char if char.isprintable() else " " for char in text)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _wrapped(text: str, columns: int) -> list[str]:
    """A text in at most two lines."""
    text = printable(_one_line(text))
    if len(text) <= columns:
        return [text]
    head = text[:columns].rpartition(" ")[0] or text[:columns]
    return [head, _cut(f"  {text[len(head) :].strip()}", columns)]
