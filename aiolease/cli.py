"""The command line: who leads, what the jobs did, and how to ask a leader for something.

The database and the lease come from the environment (`LeaseSettings`), or from the arguments. Commands about the lease
take its name as their argument (``aiolease status NAME``), those about a job take the job's (``aiolease history JOB
--lease NAME``). A command is a function that takes the parsed arguments and returns its exit status, and a few lines
in `_parser`.

Exit status: 0 it did what was asked, 1 it did not, 2 it was asked in a wrong way. Errors are one line on the standard
error; no password is shown.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any, NoReturn, TypeVar

from aiolease._names import check_name
from aiolease._settings import LeaseSettings
from aiolease._waiting import time_limited
from aiolease.errors import AioleaseError, ConfigurationError, InvalidJob
from aiolease.stores import Store, open_store
from aiolease.stores.records import JobRecord, Lease, LedgerReading, RunRecord

T = TypeVar("T")

_LIMIT = 10.0
"""Seconds that the database may take for one answer."""

_SHOWN = 120
"""Characters of an error that a table shows; it may be a whole statement."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status.

    Args:
        arguments: Those of the process by default.
    """
    parsed = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = parsed.run
    try:
        status = run(parsed)
        sys.stdout.flush()
        return status
    except ConfigurationError as error:
        return _trouble(error, 2)
    except AioleaseError as error:
        return _trouble(error, 1)
    except BrokenPipeError:  # the reader, `head` say, has seen enough; nor may the interpreter write at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


# -- the commands


def _schema(_: argparse.Namespace) -> int:
    from aiolease.stores.mysql.store import schema

    sys.stdout.write(schema())
    return 0


def _status(arguments: argparse.Namespace) -> int:
    async def look(lease: _Lease) -> int:
        row = await lease.ask(lambda store: store.status(lease.name))
        stock = await lease.ask(lambda store: store.take_stock(lease.name))
        if arguments.json:
            _print_json(_status_facts(lease.name, row, stock))
            return 0
        _print(f"{lease.name!r} never had a leader" if row is None else _described(row))
        if stock.jobs:
            _print("")
            _print_table(("job", "schedule", "last tick (UTC)", "state"), _job_rows(stock))
        return 0

    return _on_lease(arguments, look)


def _resign(arguments: argparse.Namespace) -> int:
    async def request(lease: _Lease) -> int:
        token = await lease.ask(lambda store: store.resign(lease.name))
        if token is None:
            return _trouble(f"nobody leads {lease.name!r}, there is nothing to resign", 1)
        _print(f"asked the leader of {lease.name!r} (term {token}) to resign; it does so at its next heartbeat")
        return 0

    return _on_lease(arguments, request)


def _history(arguments: argparse.Namespace) -> int:
    async def look(lease: _Lease, job: str) -> int:
        runs = await lease.ask(lambda store: store.history(lease.name, job, limit=arguments.number))
        stock = await lease.ask(lambda store: store.take_stock(lease.name))
        if not runs and job not in stock.jobs:
            raise InvalidJob(job, f"no leader of {lease.name!r} ever had such a job")
        if arguments.json:
            _print_json([asdict(run) for run in runs])
        elif runs:
            _print_table(
                ("tick (UTC)", "status", "attempt", "term", "took", ""), (_run_row(run, stock.now) for run in runs)
            )
        else:
            _print(f"{job!r} of {lease.name!r} has not run yet")
        return 0

    return _on_job(arguments, look)


def _trigger(arguments: argparse.Namespace) -> int:
    async def request(lease: _Lease, job: str) -> int:
        tick = await lease.ask(lambda store: store.trigger(lease.name, job))
        row = await lease.ask(lambda store: store.status(lease.name))
        when = "when somebody leads" if row is None or row.free else "at the next heartbeat of a leader that has it"
        _print(f"triggered {job!r} of {lease.name!r}: it runs {when}, as the tick {_tick(tick)} UTC")
        return 0

    return _on_job(arguments, request)


def _pause(arguments: argparse.Namespace) -> int:
    async def request(lease: _Lease, job: str) -> int:
        since = await _paused_since(lease, job)
        await lease.ask(lambda store: store.pause(lease.name, job))
        if since is None:
            _print(f"paused {job!r} of {lease.name!r}: its ticks are not run; what is running or queued goes on")
        else:
            _print(f"{job!r} of {lease.name!r} was paused already, since {_moment(since)}")
        return 0

    return _on_job(arguments, request)


def _settle(arguments: argparse.Namespace) -> int:
    async def request(lease: _Lease, job: str) -> int:
        await lease.ask(lambda store: store.settle(lease.name, job))
        _print(
            f"settled {job!r} of {lease.name!r}: it goes on with its next tick; the leader learns of it within a minute"
        )
        return 0

    return _on_job(arguments, request)


def _resume(arguments: argparse.Namespace) -> int:
    async def request(lease: _Lease, job: str) -> int:
        since = await _paused_since(lease, job)
        await lease.ask(lambda store: store.resume(lease.name, job))
        if since is None:
            _print(f"{job!r} of {lease.name!r} was not paused")
        else:
            _print(
                f"resumed {job!r} of {lease.name!r}: it runs from its next tick on, seen at the next heartbeat; "
                f"those since {_moment(since)} are not made up for"
            )
        return 0

    return _on_job(arguments, request)


async def _paused_since(lease: _Lease, job: str) -> datetime | None:
    """Since when a job is paused. Only for telling: another may pause or resume it at the same time."""
    stock = await lease.ask(lambda store: store.take_stock(lease.name, attention=True))
    return stock.jobs[job].paused_at if job in stock.jobs else None


# -- what they print


def _described(lease: Lease) -> str:
    """A lease as a short table. Ages and rests are by the database's clock, like all that the row says."""
    if lease.holder is None:
        leader, expiry = "nobody, it was released", ""
    elif lease.expired:
        leader = f"nobody, {lease.holder} did not renew it"
        expiry = f"expired   {_moment(lease.expires_at)}, {_span(lease.expires_at, lease.now)} ago"
    else:
        leader = lease.holder
        expiry = f"expires   {_moment(lease.expires_at)}, in {_span(lease.now, lease.expires_at)} unless renewed"
    lines = [
        f"lease     {lease.name}",
        f"leader    {leader}",
        f"term      {lease.token}",
        f"elected   {_moment(lease.elected_at)}, {_span(lease.elected_at, lease.now)} ago",
        f"renewed   {_moment(lease.renewed_at)}, {_span(lease.renewed_at, lease.now)} ago",
        expiry,
    ]
    if lease.holder is not None and lease.resign_token == lease.token:
        lines.append("resign    was asked for")
    return "\n".join(line for line in lines if line)


def _status_facts(name: str, row: Lease | None, stock: LedgerReading) -> dict[str, object]:
    """What `_described` and the table of jobs say, for programs."""
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


def _job_rows(stock: LedgerReading) -> Iterator[tuple[str, ...]]:
    unfinished = Counter((run.job, run.status) for run in stock.unfinished)
    for record in _sorted(stock):
        busy = [(unfinished[record.job, status], status) for status in ("running", "queued")]
        doing = [status if count == 1 else f"{count} {status}" for count, status in busy if count]
        if record.requested_at is not None:
            doing.append("triggered")
        if record.paused_at is not None:
            doing.append(f"paused since {_moment(record.paused_at)}")
        last = "none yet" if record.high_tick is None else _tick(record.high_tick)
        yield record.job, f"{record.schedule} {record.timezone}".strip(), last, ", ".join(doing)


def _sorted(stock: LedgerReading) -> list[JobRecord]:
    return [stock.jobs[name] for name in sorted(stock.jobs)]


def _run_row(run: RunRecord, now: datetime) -> tuple[str, ...]:
    took = ""
    if run.started_at is not None and run.status == "running":
        took = f"{_length(run.started_at, now)} so far"
    elif run.started_at is not None and run.finished_at is not None and run.status != "lost":
        took = _length(run.started_at, run.finished_at)  # when a lost one ended nobody knows
    said = " ".join("".join(char if char.isprintable() else " " for char in run.error or "").split())
    if len(said) > _SHOWN:
        said = f"{said[:_SHOWN]}…"
    if run.tick_from is not None and run.count is not None and run.count > 1:
        said = f"{run.count} ticks since {_tick(run.tick_from)}: {said}"
    return _tick(run.tick), run.status, str(run.attempt), str(run.token), took, said


def _tick(tick: datetime) -> str:
    """A tick in UTC; most fall on a full second, those that were triggered do not."""
    return f"{tick:%Y-%m-%d %H:%M:%S}" + (f".{tick.microsecond // 1000:03}" if tick.microsecond else "")


def _moment(moment: datetime) -> str:
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


def _print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    for row in table:
        _print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_json(value: object) -> None:
    _print(json.dumps(value, indent=2, default=datetime.isoformat))


def _print(text: str) -> None:
    # A job's error may have what this terminal has not.
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))


# -- what the commands on a lease share


class _Lease:
    """The lease that a command is about, and the store that has it."""

    def __init__(self, store: Store, name: str) -> None:
        self.name = name
        self._store = store

    async def ask(self, question: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
        """Has one exchange with the store, bounded in time."""
        return await time_limited(_LIMIT, self._store.description, question(self._store))


def _on_lease(arguments: argparse.Namespace, command: Callable[[_Lease], Awaitable[int]]) -> int:
    async def run() -> int:
        async with _opened(arguments) as lease:
            return await command(lease)

    return asyncio.run(run())


def _on_job(arguments: argparse.Namespace, command: Callable[[_Lease, str], Awaitable[int]]) -> int:
    job = check_name(arguments.job, "JOB")
    return _on_lease(arguments, lambda lease: command(lease, job))


@asynccontextmanager
async def _opened(arguments: argparse.Namespace) -> AsyncIterator[_Lease]:
    settings = LeaseSettings() if arguments.url is None else LeaseSettings(url=arguments.url)
    name = check_name(settings.name if arguments.name is None else arguments.name, "NAME")
    async with open_store(settings.url, create_tables=False) as store:  # who only looks makes no tables
        yield _Lease(store, name)


# -- the arguments


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and repeats no URL: it may hold a password."""

    def error(self, message: str) -> NoReturn:
        self.exit(_trouble(f"{_without_urls(message)}; see {self.prog} --help", 2))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="aiolease",
        description="Looks at leases, their leaders and their jobs, and asks leaders for something.",
        epilog="AIOLEASE_URL and AIOLEASE_NAME say which database and which lease, where the arguments do not. "
        "Exit status: 0 done, 1 not done, 2 asked in a wrong way.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str, more: str = "") -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}"
        )
        command.set_defaults(run=run)
        return command

    status = add(
        "status", _status, "print who leads, and the jobs", "All that it says is by the database's clock, in UTC."
    )
    _add_lease(status)
    _add_json(status)
    history = add(
        "history",
        _history,
        "print what became of a job's ticks, the newest last",
        "One line for each tick, or for each range of ticks that were skipped together: the tick, what became of it, "
        "the attempt, the term that ran it, how long it took, and the error or the reason.",
    )
    _add_job(history)
    history.add_argument(
        "-n", dest="number", metavar="N", type=_number, default=20, help="at most so many lines (default: %(default)s)"
    )
    _add_json(history)
    _add_job(
        add(
            "trigger",
            _trigger,
            "have a job run once, at the leader's next heartbeat",
            "It runs even if it is paused, but not beside a run that has not ended, unless the job allows that. "
            "Prints the tick that its run has in the history.",
        )
    )
    _add_job(
        add(
            "pause",
            _pause,
            "run none of a job's ticks from now on",
            "What is running or queued goes on, and `trigger` still works.",
        )
    )
    _add_job(
        add(
            "resume",
            _resume,
            "end a pause: run the job from its next tick on",
            "The leader learns of it at its next heartbeat, and then runs a tick that fell due since. The ticks of the "
            "pause are not made up for.",
        )
    )
    _add_job(
        add(
            "settle",
            _settle,
            "set a job's rows right that another hand, or a clock that was wrong, has left",
            "Its ticks up to now are settled, it goes on with the next. What waits or runs of it is recorded as lost.",
        )
    )
    _add_lease(add("resign", _resign, "ask the leader to resign: another leads after its next heartbeat"))
    add("schema", _schema, "print the statements that make the tables on MySQL or MariaDB")
    return parser


def _add_lease(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", nargs="?", metavar="NAME", type=_name, help="the lease, instead of AIOLEASE_NAME")
    _add_url(command)


def _add_job(command: argparse.ArgumentParser) -> None:
    command.add_argument("job", metavar="JOB", type=_name, help="the job, as `aiolease status` names it")
    command.add_argument(
        "--lease", dest="name", metavar="NAME", type=_name, help="the job's lease, instead of AIOLEASE_NAME"
    )
    _add_url(command)


def _add_url(command: argparse.ArgumentParser) -> None:
    command.add_argument("--url", metavar="URL", help="the database, instead of AIOLEASE_URL")


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print it as JSON, for programs: whole, times in ISO 8601")


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError("use a whole number from 1")
    return int(text)


def _name(text: str) -> str:
    if "://" in text:
        raise argparse.ArgumentTypeError("this is a URL, give it with --url")
    return text


def _without_urls(text: str) -> str:
    return re.sub(r"\b([\w+]+)://[^\s'\"]*", r"\1://…", text)


def _trouble(problem: object, status: int) -> int:
    """Tells of a problem in one line, and returns `status`."""
    print(f"aiolease: {' '.join(str(problem).split())}", file=sys.stderr)
    return status
