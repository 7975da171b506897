"""What the commands print: for people as tables, for programs as JSON."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from datetime import datetime

from aiolease.stores.batch import LedgerReading
from aiolease.stores.records import JobRecord, Lease, RunRecord

_SHOWN = 120
"""Characters of an error that a table shows; it may be a whole statement."""


def described(lease: Lease) -> str:
    """A lease as a short table. Ages and rests are by the database's clock, like all that the row says."""
    if lease.holder is None:
        leader, expiry = "nobody, it was released", ""
    elif lease.expired:
        leader = f"nobody, {lease.holder} did not renew it"
        expiry = f"expired   {moment_text(lease.expires_at)}, {_span(lease.expires_at, lease.now)} ago"
    else:
        leader = lease.holder
        expiry = f"expires   {moment_text(lease.expires_at)}, in {_span(lease.now, lease.expires_at)} unless renewed"
    lines = [
        f"lease     {lease.name}",
        f"leader    {leader}",
        f"term      {lease.token}",
        f"elected   {moment_text(lease.elected_at)}, {_span(lease.elected_at, lease.now)} ago",
        f"renewed   {moment_text(lease.renewed_at)}, {_span(lease.renewed_at, lease.now)} ago",
        expiry,
    ]
    if lease.holder is not None and lease.resign_token == lease.token:
        lines.append("resign    was asked for")
    return "\n".join(line for line in lines if line)


def status_facts(name: str, row: Lease | None, stock: LedgerReading) -> dict[str, object]:
    """What `described` and the table of jobs say, for programs."""
    unfinished = Counter((run.job, run.status) for run in stock.unfinished)
    nothing = dict.fromkeys(field.name for field in fields(Lease)) | {"name": name, "now": stock.now}
    return {
        **(nothing if row is None else asdict(row)),
        "led": row is not None and not row.free,
        "jobs": [
            asdict(record) | {status: unfinished[record.job, status] for status in ("running", "queued")}
            for record in _sorted(stock)
        ],
    }


def job_rows(stock: LedgerReading) -> Iterator[tuple[str, ...]]:
    """The rows of the table of jobs."""
    unfinished = Counter((run.job, run.status) for run in stock.unfinished)
    for record in _sorted(stock):
        busy = [(unfinished[record.job, status], status) for status in ("running", "queued")]
        doing = [status if count == 1 else f"{count} {status}" for count, status in busy if count]
        if record.requested_at is not None:
            doing.append("triggered")
        if record.paused_at is not None:
            doing.append(f"paused since {moment_text(record.paused_at)}")
        last = "none yet" if record.high_tick is None else tick_text(record.high_tick)
        yield record.job, f"{record.schedule} {record.timezone}".strip(), last, ", ".join(doing)


def _sorted(stock: LedgerReading) -> list[JobRecord]:
    return [stock.jobs[name] for name in sorted(stock.jobs)]


def run_row(run: RunRecord, now: datetime) -> tuple[str, ...]:
    """The row of one run in the table of a history."""
    took = ""
    if run.started_at is not None and run.status == "running":
        took = f"{_length(run.started_at, now)} so far"
    elif run.started_at is not None and run.finished_at is not None and run.status != "lost":
        took = _length(run.started_at, run.finished_at)  # when a lost one ended nobody knows
    said = " ".join("".join(char if char.isprintable() else " " for char in run.error or "").split())
    if len(said) > _SHOWN:
        said = f"{said[:_SHOWN]}…"
    if run.tick_from is not None and run.count is not None and run.count > 1:
        said = f"{run.count} ticks since {tick_text(run.tick_from)}: {said}"
    return tick_text(run.tick), run.status, str(run.attempt), str(run.token), took, said


def tick_text(tick: datetime) -> str:
    """A tick in UTC; most fall on a full second, those that were triggered do not."""
    return f"{tick:%Y-%m-%d %H:%M:%S}" + (f".{tick.microsecond // 1000:03}" if tick.microsecond else "")


def moment_text(moment: datetime) -> str:
    """A moment in UTC."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _length(start: datetime, end: datetime) -> str:
    seconds = max((end - start).total_seconds(), 0.0)
    return f"{seconds:.2f} s" if seconds < 10 else _span(start, end)


def _span(start: datetime, end: datetime) -> str:
    """The time between two moments, as coarse as people need it."""
    seconds = max((end - start).total_seconds(), 0.0)
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table with a head."""
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    for row in table:
        print_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_json(value: object) -> None:
    """Prints a value for programs."""
    print_line(json.dumps(value, indent=2, default=datetime.isoformat))


def print_line(text: str) -> None:
    """Prints a line; what this terminal does not have, a job's error may."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))


def trouble(problem: object, status: int) -> int:
    """Tells of a problem in one line, and returns `status`."""
    print(f"aiolease: {' '.join(str(problem).split())}", file=sys.stderr)
    return status
