"""The command line: ``aiolease schema``, ``aiolease status``, ``aiolease resign``.

The database and the lease come from the environment (`LeaseSettings`), or from the arguments. A command is a function
that takes the parsed arguments and returns its exit status, and a few lines in `_parser`.

Exit status: 0 it did what was asked, 1 it did not, 2 it was asked in a wrong way. Errors are one line on the standard
error; no password is shown.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import NoReturn, TypeVar

from aiolease._environment import LeaseSettings
from aiolease._lease import Lease, check_name
from aiolease._settle import bounded
from aiolease.errors import AioleaseError, ConfigurationError
from aiolease.stores import Store, open_store

T = TypeVar("T")

_LIMIT = 10.0
"""Seconds that the database may take for one answer."""


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
    from aiolease.stores.mysql import schema

    sys.stdout.write(schema())
    return 0


def _status(arguments: argparse.Namespace) -> int:
    async def look(lease: _Lease) -> int:
        row = await lease.ask(lambda store: store.status(lease.name))
        print(f"{lease.name!r} never had a leader" if row is None else _described(row))
        return 0

    return _on_lease(arguments, look)


def _resign(arguments: argparse.Namespace) -> int:
    async def request(lease: _Lease) -> int:
        token = await lease.ask(lambda store: store.resign(lease.name))
        if token is None:
            return _trouble(f"nobody leads {lease.name!r}, there is nothing to resign", 1)
        print(f"asked the leader of {lease.name!r} (term {token}) to resign; it does so at its next heartbeat")
        return 0

    return _on_lease(arguments, request)


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


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _span(start: datetime, end: datetime) -> str:
    """The time between two moments, as coarse as people need it."""
    seconds = max((end - start).total_seconds(), 0.0)
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


# -- what the commands on a lease share


class _Lease:
    """The lease that a command is about, and the store that has it."""

    def __init__(self, store: Store, name: str) -> None:
        self.name = name
        self._store = store

    async def ask(self, question: Callable[[Store], Awaitable[T]]) -> T:
        """Has one exchange with the store, bounded in time."""
        return await bounded(_LIMIT, self._store.description, question(self._store))


def _on_lease(arguments: argparse.Namespace, command: Callable[[_Lease], Awaitable[int]]) -> int:
    async def run() -> int:
        async with _opened(arguments) as lease:
            return await command(lease)

    return asyncio.run(run())


@asynccontextmanager
async def _opened(arguments: argparse.Namespace) -> AsyncIterator[_Lease]:
    settings = LeaseSettings()
    name = check_name(settings.name if arguments.name is None else arguments.name, "NAME")
    url = settings.url if arguments.url is None else arguments.url
    async with open_store(url, create_tables=False) as store:  # who only looks makes no tables
        yield _Lease(store, name)


# -- the arguments


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and repeats no URL: it may hold a password."""

    def error(self, message: str) -> NoReturn:
        self.exit(_trouble(f"{_without_urls(message)}; see {self.prog} --help", 2))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="aiolease",
        description="Looks at leases and their leaders.",
        epilog="AIOLEASE_URL and AIOLEASE_NAME say which database and which lease, where the arguments do not.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    schema = commands.add_parser("schema", help="print the statements that make the tables on MySQL or MariaDB")
    schema.set_defaults(run=_schema)
    status = commands.add_parser("status", help="print who leads")
    _add_lease(status)
    status.set_defaults(run=_status)
    resign = commands.add_parser("resign", help="ask the leader to resign: another leads after its next heartbeat")
    _add_lease(resign)
    resign.set_defaults(run=_resign)
    return parser


def _add_lease(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", nargs="?", metavar="NAME", type=_name, help="the lease, instead of AIOLEASE_NAME")
    command.add_argument("--url", metavar="URL", help="the database, instead of AIOLEASE_URL")


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
