"""The commands: each is a function that takes the parsed arguments, and returns its exit status."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Any, TypeVar

from aiolease._names import check_name
from aiolease._settings import LeaseSettings
from aiolease._waiting import time_limited
from aiolease.cli.printing import (
    described,
    job_rows,
    moment_text,
    print_json,
    print_line,
    print_table,
    run_row,
    status_facts,
    tick_text,
    trouble,
)
from aiolease.errors import InvalidJob
from aiolease.stores import Store, open_store

T = TypeVar("T")

_LIMIT = 10.0
"""Seconds that the database may take for one answer."""


def schema(_: argparse.Namespace) -> int:
    """Prints the statements that make the tables on MySQL or MariaDB."""
    from aiolease.stores.mysql.schema import schema

    sys.stdout.write(schema())
    return 0


def status(arguments: argparse.Namespace) -> int:
    """Prints who leads, and the jobs."""

    async def look(lease: _Lease) -> int:
        row = await lease.ask(lambda store: store.status(lease.name))
        stock = await lease.ask(lambda store: store.take_stock(lease.name))
        if arguments.json:
            print_json(status_facts(lease.name, row, stock))
            return 0
        print_line(f"{lease.name!r} never had a leader" if row is None else described(row))
        if stock.jobs:
            print_line("")
            print_table(("job", "schedule", "last tick (UTC)", "state"), job_rows(stock))
        return 0

    return _on_lease(arguments, look)


def resign(arguments: argparse.Namespace) -> int:
    """Asks the leader to resign."""

    async def request(lease: _Lease) -> int:
        token = await lease.ask(lambda store: store.resign(lease.name))
        if token is None:
            return trouble(f"nobody leads {lease.name!r}, there is nothing to resign", 1)
        print_line(f"asked the leader of {lease.name!r} (term {token}) to resign; it does so at its next heartbeat")
        return 0

    return _on_lease(arguments, request)


def history(arguments: argparse.Namespace) -> int:
    """Prints what became of a job's ticks, the newest last."""

    async def look(lease: _Lease, job: str) -> int:
        runs = await lease.ask(lambda store: store.history(lease.name, job, limit=arguments.number))
        stock = await lease.ask(lambda store: store.take_stock(lease.name))
        if not runs and job not in stock.jobs:
            raise InvalidJob(job, f"no leader of {lease.name!r} ever had such a job")
        if arguments.json:
            print_json([asdict(run) for run in runs])
        elif runs:
            print_table(
                ("tick (UTC)", "status", "attempt", "term", "took", ""), (run_row(run, stock.now) for run in runs)
            )
        else:
            print_line(f"{job!r} of {lease.name!r} has not run yet")
        return 0

    return _on_job(arguments, look)


def trigger(arguments: argparse.Namespace) -> int:
    """Has a job run once, at the leader's next heartbeat."""

    async def request(lease: _Lease, job: str) -> int:
        tick = await lease.ask(lambda store: store.trigger(lease.name, job))
        row = await lease.ask(lambda store: store.status(lease.name))
        when = "when somebody leads" if row is None or row.free else "at the next heartbeat of a leader that has it"
        print_line(f"triggered {job!r} of {lease.name!r}: it runs {when}, as the tick {tick_text(tick)} UTC")
        return 0

    return _on_job(arguments, request)


def pause(arguments: argparse.Namespace) -> int:
    """Has none of a job's ticks run from now on."""

    async def request(lease: _Lease, job: str) -> int:
        since = await _paused_since(lease, job)
        await lease.ask(lambda store: store.pause(lease.name, job))
        if since is None:
            print_line(f"paused {job!r} of {lease.name!r}: its ticks are not run; what is running or queued goes on")
        else:
            print_line(f"{job!r} of {lease.name!r} was paused already, since {moment_text(since)}")
        return 0

    return _on_job(arguments, request)


def settle(arguments: argparse.Namespace) -> int:
    """Sets a job's rows right."""

    async def request(lease: _Lease, job: str) -> int:
        await lease.ask(lambda store: store.settle(lease.name, job))
        print_line(
            f"settled {job!r} of {lease.name!r}: it goes on with its next tick; the leader learns of it within a minute"
        )
        return 0

    return _on_job(arguments, request)


def resume(arguments: argparse.Namespace) -> int:
    """Ends a pause."""

    async def request(lease: _Lease, job: str) -> int:
        since = await _paused_since(lease, job)
        await lease.ask(lambda store: store.resume(lease.name, job))
        if since is None:
            print_line(f"{job!r} of {lease.name!r} was not paused")
        else:
            print_line(
                f"resumed {job!r} of {lease.name!r}: it runs from its next tick on, seen at the next heartbeat; "
                f"those since {moment_text(since)} are not made up for"
            )
        return 0

    return _on_job(arguments, request)


async def _paused_since(lease: _Lease, job: str) -> datetime | None:
    """Since when a job is paused. Only for telling: another may pause or resume it at the same time."""
    stock = await lease.ask(lambda store: store.take_stock(lease.name, attention=True))
    return stock.jobs[job].paused_at if job in stock.jobs else None


class _Lease:
    """The lease that a command is about, and the store that has it."""

    def __init__(self, store: Store, name: str) -> None:
        self.name = name
        self._store = store

    async def ask(self, question: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
        """Has one exchange with the store, within a time limit."""
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
