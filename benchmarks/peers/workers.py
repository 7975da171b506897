"""Periodic jobs in several processes: aiolease beside procrastinate and APScheduler 4, on one PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import product
from typing import Any, Final

from benchmarks.candidates import ROOT, BenchmarkFailed
from benchmarks.databases import Database, PostgreSQLDatabase
from benchmarks.meters import cpu_of, cpu_of_all
from benchmarks.peers import measurable
from benchmarks.report import Figure, Table, milliseconds
from benchmarks.samples import median, percentile

WORKERS: Final = 3
SIZES: Final = (30, 1_000)
"""How many jobs, each due every second."""

WARM: Final = 4.0
GRACE: Final = 5.0
"""Seconds after the last tick in which a late run still counts."""

LIMIT: Final = 120.0


async def measure(databases: Sequence[Database], *, quick: bool) -> Table:
    seconds = 5 if quick else 20
    table = Table(
        topic="peers.workers",
        title=f"peers.workers: jobs that are due each second, in {WORKERS} processes, for {seconds} s, by turns",
        notes=[
            f"'done': ticks of that time that were run, at most {GRACE:g} s after the last of them; 'twice': runs of a",
            "tick beyond its first; 'ran': runs that began in that time, of whatever tick, and 'CPU' for each of them,",
            "of the workers and of the server; procrastinate waits half a second after a tick on purpose, and has 10",
            "places for each worker here, not 1 as by default; it and APScheduler spread the runs over the workers,",
            "aiolease's leader has them all",
        ],
    )
    for database in measurable(table, databases):
        for size, contender in product(SIZES, ("aiolease", "procrastinate", "apscheduler")):
            label = f"{size:,} jobs, {contender}"
            try:
                table.rows[label] = await _of(database, contender, size, seconds)
            except BenchmarkFailed as error:
                table.notes.append(f"left out is '{label}': {error}")
    return table


async def _of(database: PostgreSQLDatabase, contender: str, size: int, seconds: int) -> dict[str, Figure]:
    name = f"workers_{contender}_{size}"
    database.server.create_database(name)
    url = database.server.url(name)
    workers: list[Process] = []
    async with _ended(workers):
        for _ in range(WORKERS):
            await _start(workers, contender, url, size)
        await asyncio.sleep(WARM)
        first = int(time.time()) + 1  # the last tick before the window
        await asyncio.sleep(first + 0.5 - time.time())
        cpu, server = _cpu(workers), cpu_of_all(database.server)
        await asyncio.sleep(seconds)
        cpu, server = _cpu(workers) - cpu, cpu_of_all(database.server) - server
        await asyncio.sleep(GRACE - 0.5)
        runs = [run for found in await asyncio.gather(*map(_told, workers)) for run in found]
    late = [run[2] for run in runs if first < run[1] <= first + seconds]
    of_ticks = Counter((number, tick) for number, tick, _ in runs if first < tick <= first + seconds)
    began = sum(first + 0.5 < tick + after <= first + 0.5 + seconds for _, tick, after in runs)
    if not began:
        raise BenchmarkFailed("no job was run")
    lateness = {"p50": median(late), "p99": percentile(late, 99), "worst": max(late)} if late else {}
    return {
        **{name: milliseconds(value) for name, value in lateness.items()},
        "done": Figure(value=100 * len(of_ticks) / (size * seconds), unit="%"),
        "twice": Figure(value=len(late) - len(of_ticks), unit=""),
        "ran": Figure(value=began / seconds, unit="/s"),
        "CPU per run": milliseconds(cpu / began),
        "server CPU per run": milliseconds(server / began),
    }


async def _start(workers: list[Process], contender: str, url: str, size: int) -> None:
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.peers.worker", contender, url, str(size)),
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        cwd=ROOT,
        start_new_session=True,
        limit=2**26,
    )
    workers.append(worker)
    await _line(worker, "it did not begin")


async def _told(worker: Process) -> list[Any]:
    assert worker.stdin is not None
    worker.stdin.close()
    found: list[Any] = json.loads(await _line(worker, "it did not tell its runs"))
    return found


async def _line(worker: Process, problem: str) -> bytes:
    assert worker.stdout is not None
    try:
        async with asyncio.timeout(LIMIT):
            line = await worker.stdout.readline()
    except TimeoutError:
        line = b""
    if not line:
        raise BenchmarkFailed(problem)
    return line


@asynccontextmanager
async def _ended(workers: Sequence[Process]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for worker in workers:
            if worker.returncode is None:
                worker.kill()
            await worker.wait()


def _cpu(workers: Sequence[Process]) -> float:
    return sum(cpu_of(worker.pid) for worker in workers)
