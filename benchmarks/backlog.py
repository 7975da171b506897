"""A new term's start: on what an earlier one has left waiting, on millions of old rows, and with all jobs due at once.

It is to be flat, or linear for a reason that can be told: a job that is due does not wait for what others have left.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from aiolease import JobRegistry, JobRun, open_store
from aiolease.stores.memory import MemoryStore
from benchmarks import former
from benchmarks.databases import Database
from benchmarks.report import Figure, Table, milliseconds
from benchmarks.samples import median
from benchmarks.watch import PROBE, Watch

JOBS: Final = 50
PLACES: Final = 10
INTERVAL: Final = 300
"""Seconds, of a job that has a backlog."""

OTHER: Final = "other"
"""The job that has none, and is due each second."""

WEEK: Final = 7 * 86_400
WAITING: Final = (100, 1_000, 10_000)
SLICE: Final = 100
"""Runs over which the processor's time is counted at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure."""

    waiting: Sequence[int]
    finished: int
    more: int
    window: float
    slices: int
    crowd: int


async def measure(databases: Sequence[Database], *, quick: bool) -> Table:
    plan = Plan(
        waiting=(0, 1_000, 10_000, 100_000), finished=5_000_000, more=10_000, window=10.0, slices=6, crowd=20_000
    )
    if quick:
        plan = Plan(waiting=(0, 10_000), finished=200_000, more=1_000, window=1.0, slices=3, crowd=2_000)
    table = Table(
        topic="backlog",
        title=f"backlog: a new term's first {plan.window:g} s, what it finds in the ledger, and {PLACES} places; "
        f"then one place; then {plan.crowd:,} jobs",
        notes=[
            f"queued, finished: rows that an earlier term has left of {JOBS} jobs; 'another job': from the election to",
            "the first start of one that has none and is due each second; before it each of the others gets a place",
            "once; 'other late' is the most that it was late from then on; 'ran' counts the runs of the backlog",
            "all due: jobs of which each has missed one tick; 'enrolled' is from the election of a term before, the",
            "first with these jobs, until they are written; the rest is from the election that finds them due",
            f"blocked: the most that a task which sleeps {PROBE * 1000:g} ms overslept, others' turns included;",
            "'of it CPU' is the most that the loop's own thread computed between two of its sleeps",
            "waiting: so many jobs in line for one place; CPU of the process for each run once all that waits has been",
            f"read, the median of {plan.slices} times {SLICE} runs; 'while read' is that of the runs until then",
            "the servers have 16 MB of memory for pages: of the finished rows next to nothing is in it",
        ],
    )
    for database in databases:
        for size in plan.waiting:
            table.rows[f"{database.kind}, {size:,} queued"] = await _queued(database, size, plan.window)
        for label, figures in (await _finished(database, plan)).items():
            table.rows[f"{database.kind}, {label}"] = figures
        table.rows[f"{database.kind}, {plan.crowd:,} all due"] = await _all_due(database, plan.crowd)
    file = next((database for database in databases if database.kind == "sqlite"), None)
    for kind in ("memory", *(["sqlite"] if file else [])):
        first: float | None = None
        for size in WAITING:
            target = MemoryStore() if file is None or kind == "memory" else file.fresh(f"backlog_line_{size}")
            while_read, cpu = await _in_line(target, size, plan.slices)
            first = first or cpu
            table.rows[f"{kind}, {size:,} waiting"] = {
                "CPU": milliseconds(cpu),
                "to 100": Figure(value=cpu / first, unit="x"),
                "while read": milliseconds(while_read),
            }
    return table


def _names(count: int) -> list[str]:
    return [f"job_{number:05}" for number in range(count)]


# -- what an earlier term has left


async def _queued(database: Database, size: int, window: float) -> dict[str, Figure]:
    name = f"backlog_queued_{size}"
    url, names = database.fresh(name), _names(JOBS)
    await former.enroll(url, names, INTERVAL)
    await former.queue(url, names, INTERVAL, size // JOBS)
    return await _start(url, names, INTERVAL, window)


async def _finished(database: Database, plan: Plan) -> dict[str, dict[str, Figure]]:
    name = "backlog_finished"
    url, names = database.fresh(name), _names(JOBS)
    await former.enroll(url, [], WEEK)  # makes the tables
    await former.finish(database, name, names, INTERVAL, plan.finished // JOBS)
    await former.enroll(url, names, WEEK)  # so that none is due
    found = {f"{plan.finished:,} finished": await _start(url, names, WEEK, plan.window)}
    await former.queue(url, names, INTERVAL, plan.more // JOBS)
    found[f"{plan.finished:,} finished, {plan.more:,} queued"] = await _start(url, names, WEEK, plan.window)
    return found


async def _start(url: str, names: Sequence[str], interval: int, window: float) -> dict[str, Figure]:
    """Has a new term begin a moment after the other job has missed one tick."""
    other: list[float] = []
    late: list[float] = []
    queued: list[float] = []
    alerted = asyncio.Event()
    jobs = JobRegistry(max_running=PLACES)

    async def work() -> None:
        queued.append(time.perf_counter())

    async def alert(run: JobRun) -> None:
        other.append(time.perf_counter())
        alerted.set()
        late.append(time.time() - run.tick.timestamp())

    for name in names:
        jobs.every(interval, name=name, missed="all")(work)
    jobs.every(1, name=OTHER)(alert)
    await former.enroll(url, [OTHER], 1)
    await asyncio.sleep(former.next_second())
    watch = Watch()

    async def while_it_goes() -> None:
        await asyncio.sleep(window)
        await alerted.wait()

    sought = time.perf_counter()
    await watch.during(jobs, url, while_it_goes)
    figures = {
        "elected": milliseconds(watch.elected - sought),
        "another job": milliseconds(other[0] - watch.elected),
        "blocked": milliseconds(watch.blocked),
        "of it CPU": milliseconds(watch.computed),
    }
    if len(late) > 1:
        figures["other late"] = milliseconds(max(late[1:]))
    if queued:
        figures["a queued run"] = milliseconds(queued[0] - watch.elected)
        figures["ran"] = Figure(value=len(queued) / (queued[-1] - watch.elected), unit="/s")
    return figures


# -- all at once


async def _all_due(database: Database, size: int) -> dict[str, Figure]:
    name = "backlog_all_due"
    url, names = database.fresh(name), _names(size)
    started: list[float] = []
    all_started = asyncio.Event()
    jobs = JobRegistry()

    async def work() -> None:
        started.append(time.perf_counter())
        if len(started) == size:
            all_started.set()

    for job in names:
        jobs.every(WEEK, name=job)(work)
    async with open_store(url) as store:
        enrolling = _Enrolling(store)
        before = Watch()
        await before.during(jobs, enrolling, enrolling.done.wait)
        await former.antedate(database, name, WEEK)
        watch = Watch()
        await watch.during(jobs, store, all_started.wait)
    return {
        "another job": milliseconds(started[0] - watch.elected),
        "blocked": milliseconds(max(before.blocked, watch.blocked)),
        "of it CPU": milliseconds(max(before.computed, watch.computed)),
        "enrolled": milliseconds(enrolling.at - before.elected),
        "all started": milliseconds(started[-1] - watch.elected),
    }


class _Enrolling:
    """A store that tells when jobs have been enrolled on it."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.at = 0.0
        self.done = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def enroll(self, *arguments: Any) -> None:
        await self._store.enroll(*arguments)
        self.at = time.perf_counter()
        self.done.set()


# -- one place


async def _in_line(target: Any, size: int, slices: int) -> tuple[float, float]:
    """CPU seconds for each run, while the queued runs of so many jobs are read, and afterwards."""
    reading = max(size // 40, SLICE)  # the runs that begin meanwhile: those of 50 jobs are read for each
    each = -(-(reading + slices * SLICE) // size) + 1  # so that none leaves the line
    names, marks = _names(size), dict[int, float]()
    enough = asyncio.Event()
    begun = 0
    jobs = JobRegistry(max_running=1, history=None)

    async def work() -> None:
        nonlocal begun
        begun += 1
        if begun == 1 or (begun >= reading and (begun - reading) % SLICE == 0):
            marks[begun] = time.process_time()
        if begun == reading + slices * SLICE:
            enough.set()

    for name in names:
        jobs.every(WEEK, name=name, missed="all")(work)
    async with open_store(target) as store:
        await former.enroll(store, names, WEEK)
        await former.queue(store, names, WEEK, each)

        await Watch().undisturbed(jobs, store, enough.wait)
    ends = [marks[reading + number * SLICE] for number in range(slices + 1)]
    used = [(after - before) / SLICE for before, after in pairwise(ends)]
    return (ends[0] - marks[1]) / (reading - 1), median(used)
