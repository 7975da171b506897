"""Thousands of jobs under one scheduler, aiolease beside APScheduler: how late they start, and what they weigh."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Sequence
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, Final

from benchmarks.candidates import ROOT, BenchmarkFailed
from benchmarks.databases import Database
from benchmarks.report import Figure, Table, milliseconds

FEW, MANY = 1_000, 10_000
PLANS: Final = {"second": "all due each second", "spread": "a tenth due each second"}
CONTENDERS: Final = {"aiolease": "aiolease", "apscheduler": "APScheduler"}
LIMIT: Final = 60.0
"""Seconds that a contender may take beyond its window: who cannot keep up may block its own loop for long."""


async def measure(databases: Sequence[Database], *, quick: bool) -> Table:
    warm = 2.0
    windows = {"second": 5.0, "spread": 5.0} if quick else {"second": 6.0, "spread": 10.0}
    table = Table(
        topic="jobs",
        title=f"jobs: how late they start; aiolease beside APScheduler {version('apscheduler')}, in turns, after "
        f"{warm:g} s to warm up",
        notes=[
            "jobs are `async def` and only note the time; a tick and a start are told by the same machine's clock",
            "'done' is runs started of ticks due: below 100% it cannot keep up, and the lateness is of what it ran",
            f"'resident' is VmRSS of the whole process; 'per job' is a share of what {MANY - FEW:,} more jobs add",
            "both start jobs however late; APScheduler's memory keeps jobs only, aiolease's also a row of each run",
        ],
    )
    server = next((database for database in databases if database.kind != "sqlite"), None)
    for store, plan in product(["memory", *([server.kind] if server else [])], PLANS):
        few: dict[str, dict[str, Any]] = {}
        for size in (FEW, MANY):
            p99 = 0.0
            for contender, name in CONTENDERS.items():
                label = f"{store}, {size:,} jobs, {PLANS[plan]}: {name}"
                if size == MANY and store != "memory" and contender != "aiolease" and _overloaded(few.get(contender)):
                    table.notes.append(f"left out is '{label}': ten times the work of {FEW:,} takes more than the time")
                    continue
                url = store if server is None or store == "memory" else server.fresh(f"jobs_{size}_{plan}_{contender}")
                try:
                    found = await run(contender, url, size, plan, warm, windows[plan])
                except BenchmarkFailed as error:
                    table.notes.append(f"left out is '{label}': {error}")
                    continue
                table.rows[label] = figures = figures_of(found)
                if p99 and found["done"]:
                    figures["p99 to aiolease"] = Figure(value=found["late"]["p99"] / p99, unit="x")
                p99 = found["late"]["p99"] if found["done"] else 0.0
                if size == FEW:
                    few[contender] = found
                elif contender in few:
                    more = (found["resident"] - few[contender]["resident"]) / (MANY - FEW)
                    figures["per job"] = Figure(value=more / 1024, unit="KB")
    return table


def _overloaded(found: dict[str, Any] | None) -> bool:
    """Whether ten times as much cannot be done: a round of it, which its last start tells, takes more than a second."""
    return found is None or share_done(found) < 99 or 10 * found["late"]["p99"] > 1.0


def figures_of(found: dict[str, Any]) -> dict[str, Figure]:
    late = {key: milliseconds(seconds) for key, seconds in found.get("late", {}).items()}
    return {
        **late,
        "done": Figure(value=share_done(found), unit="%"),
        "CPU per s": milliseconds(found["cpu"]),
        "resident": Figure(value=found["resident"] / 2**20, unit="MB"),
    }


def share_done(found: dict[str, Any]) -> float:
    """Percent of the ticks that were due; the edges of the window may cut off one more start than tick."""
    done: int = found["done"]
    due: int = found["due"]
    return min(100 * done / due, 100.0)


async def run(  # noqa: PLR0917
    contender: str, url: str, size: int, plan: str, warm: float, seconds: float, profile: Path | None = None
) -> dict[str, Any]:
    """Runs one contender in a process of its own, and returns what it tells: see `benchmarks.scheduler`.

    Args:
        profile: Where to put what cProfile says of it.

    Raises:
        BenchmarkFailed: It ended by itself, or did not.
    """
    arguments = [contender, url, str(size), plan, str(warm), str(seconds)]
    if profile is not None:
        arguments += ["--profile", str(profile)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.scheduler", *arguments),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=DEVNULL,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(warm + seconds + LIMIT):
            told, _ = await process.communicate()
    except TimeoutError:
        raise BenchmarkFailed(f"{contender} with {size} jobs did not end") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise BenchmarkFailed(f"{contender} with {size} jobs ended with status {process.returncode}")
    found: dict[str, Any] = json.loads(told)
    return found
