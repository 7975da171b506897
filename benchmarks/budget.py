"""Where the processor time of a run goes, in memory and on a server, beside APScheduler's.

A thousand runs are due each second. How long a run takes is measured without a profiler, by turns with APScheduler. A
turn with cProfile then says how that is shared out: the time of a function is its item's, and what it calls of Python
itself, or of a library without an item, is part of it.
"""

from __future__ import annotations

import marshal
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from benchmarks.databases import Database
from benchmarks.jobs import run
from benchmarks.report import Figure, Table

JOBS: Final = {"second": 1_000, "spread": 10_000}
"""How many jobs: a thousand of them are due each second, by `every` or by `cron`."""

WARM: Final = 14.0
"""Seconds: by then each job has so many rows that old ones are looked for."""

AIM, SERVER_AIM = 1.0, 1.5
"""A run's processor time beside APScheduler's in memory."""

ITEMS: Final = {
    "the job": ("benchmarks/scheduler.py",),
    "events and log": (
        "aiolease/events.py",
        "aiolease/_event.py",
        "aiolease/_logging.py",
        "_jobs/notices.py",
        "loguru/",
    ),
    "runs and their tasks": (
        *("_jobs/runs.py", "_jobs/execution.py", "_jobs/run.py", "_jobs/threads.py", "_jobs/retries.py"),
        "_jobs/calls.py",
    ),
    "writing": (
        *("_jobs/runner.py", "_jobs/writing.py", "_jobs/unwritten.py", "_jobs/ledger.py", "_jobs/readings.py"),
        *("_jobs/quarantine.py", "_jobs/skips.py", "_jobs/tenure.py", "_jobs/cancels.py", "_jobs/trouble.py"),
    ),
    "pruning": ("_jobs/pruning.py",),
    "planning and claims": ("aiolease/_jobs/",),
    "the term": ("aiolease/_election/", "aiolease/_clock.py"),
    "the store": ("aiolease/stores/", "aiolease/_waiting.py", "asyncmy/", "aiosqlite/", "sqlalchemy/"),
    "the event loop": ("/asyncio/", "/selectors.py"),
}
"""Parts of the paths of modules. The first item that fits a function has it."""

OTHER: Final = "other"

Function = tuple[str, int, str]
"""As cProfile has it: file, line, name."""


async def measure(databases: Sequence[Database], *, quick: bool) -> Table:
    turns, window = (1, 8.0) if quick else (3, 20.0)
    table = Table(
        topic="budget",
        title=f"budget: processor time of a run, a thousand each second, after {WARM:g} s to warm up; aiolease beside "
        f"APScheduler {version('apscheduler')}, by turns: {turns} of {window:g} s",
        notes=[
            f"{JOBS['second']:,} jobs due each second (`every`), or {JOBS['spread']:,}, a tenth of them each (`cron`)",
            "jobs are `async def` and only note the time; nobody listens to the events, and no log is set up",
            "the items are what cProfile says of one more turn, of the time without it: it makes small functions dear",
            "'garbage collector' is its part, which the items hold as well",
            "of the turns the quickest counts: whatever else the machine does can only add to it",
            f"the aim is {AIM:g} in memory and {SERVER_AIM:g} on a server, beside APScheduler in memory",
        ],
    )
    bare: dict[str, float] = {}
    cases = [Case(database, plan, window) for database in (None, *databases[:1]) for plan in JOBS]
    for case in cases:
        found = []
        for _ in range(turns):
            found.append(await case.turn("aiolease"))
            if case.database is None:
                apscheduler = _per_run(await case.turn("apscheduler"))
                bare[case.plan] = min(bare.get(case.plan, apscheduler), apscheduler)
        table.rows |= await _rows(case, found, bare[case.plan])
    return table


class Case:
    """One plan of runs on one store.

    Args:
        database: ``None`` for jobs in memory.
        plan: One of `JOBS`.
        window: Seconds for which is measured.
    """

    def __init__(self, database: Database | None, plan: str, window: float) -> None:
        self.database = database
        self.plan = plan
        self.label = f"{database.kind if database else 'memory'}, {'every' if plan == 'second' else 'cron'}"
        self._window = window
        self._turns = 0

    async def turn(self, contender: str, profile: Path | None = None) -> dict[str, Any]:
        """Runs one scheduler for the window: see `benchmarks.scheduler`."""
        self._turns += 1
        url = self.database.fresh(f"budget_{self.plan}_{self._turns}") if self.database else "memory"
        return await run(contender, url, JOBS[self.plan], self.plan, WARM, self._window, profile)


async def _rows(case: Case, found: Sequence[dict[str, Any]], bare: float) -> dict[str, Mapping[str, Figure]]:
    """The rows of one case, after one more turn of it under cProfile; `bare` is APScheduler's time in memory."""
    used = min(map(_per_run, found))
    with tempfile.TemporaryDirectory(prefix="aiolease-budget-") as folder:
        profile = Path(folder) / "profile"
        await case.turn("aiolease", profile)
        shares = shares_of(profile)
    rows: dict[str, Mapping[str, Figure]] = {
        f"{case.label}: {item}": {
            "CPU per run": Figure(value=share * used, unit="us"),
            "share": Figure(value=share * 100, unit="%"),
        }
        for item, share in shares.items()
    }
    rubbish = min(each["rubbish"] * each["seconds"] / each["done"] for each in found)
    rows[f"{case.label}: garbage collector"] = {"CPU per run": Figure(value=rubbish * 1e6, unit="us")}
    rows[f"{case.label}: aiolease"] = {
        "CPU per run": Figure(value=used, unit="us"),
        "to APScheduler": Figure(value=used / bare, unit="x", aim=SERVER_AIM if case.database else AIM),
    }
    if case.database is None:
        rows[f"{case.label}: APScheduler"] = {"CPU per run": Figure(value=bare, unit="us")}
    return rows


def _per_run(found: dict[str, Any]) -> float:
    """Microseconds of processor time for each run that was started."""
    per_run: float = found["cpu"] * found["seconds"] / found["done"]
    return per_run * 1e6


def shares_of(profile: Path) -> dict[str, float]:
    """How the time of a profile is shared out between the items: parts of 1, in the order of `ITEMS`."""
    with profile.open("rb") as file:
        stats: dict[Function, Any] = marshal.load(file)
    owners: dict[Function, dict[str, float]] = {}
    found: defaultdict[str, float] = defaultdict(float)
    for function, (_, _, own, _, _) in stats.items():
        for item, share in _owners(function, stats, owners).items():
            found[item] += own * share
    total = sum(found.values())
    return {item: found[item] / total for item in [*ITEMS, OTHER] if item in found}


def _owners(
    function: Function, stats: dict[Function, Any], known: dict[Function, dict[str, float]]
) -> dict[str, float]:
    """To which items the time of a function belongs, as parts of 1: to its own, or to those of its callers."""
    if function in known:
        return known[function]
    for item, parts in ITEMS.items():
        if any(part in function[0] for part in parts):
            known[function] = {item: 1.0}
            return known[function]
    known[function] = {OTHER: 1.0}  # as long as its callers are looked at: they may be called by it
    callers = stats[function][4] if function in stats else {}
    total = sum(own for _, _, own, _ in callers.values())
    if total <= 0:
        return known[function]
    found: defaultdict[str, float] = defaultdict(float)
    for caller, (_, _, own, _) in callers.items():
        for item, share in _owners(caller, stats, known).items():
            found[item] += share * own / total
    known[function] = dict(found)
    return known[function]
