"""What aiolease costs a process: the time of its import, and memory."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.candidates import PATIENCE, ROOT, BenchmarkFailed
from benchmarks.databases import Database
from benchmarks.report import Figure, Table, milliseconds
from benchmarks.samples import median

AIM = 45.0
"""MB of resident memory of a leading worker with four jobs."""

IMPORTS: Final = {
    "python alone": "pass",
    "import asyncio": "import asyncio",
    "asyncmy, anyio, loguru": "import asyncio, asyncmy, anyio, loguru",
    "import aiolease": "import aiolease",
    "... with its MySQL store": "import aiolease, aiolease.stores.mysql, asyncmy",
    "... with its PostgreSQL store": "import aiolease, aiolease.stores.postgresql, asyncpg",
}
BARE: Final = "asyncmy, anyio, loguru"
MEMORY: Final = "print(open('/proc/self/status').read(), open('/proc/self/smaps_rollup').read())"


async def measure(databases: Sequence[Database], *, quick: bool) -> Table:
    times = 3 if quick else 11
    table = Table(
        topic="footprint",
        title=f"footprint: processes of their own, the median of {times} imports by turns; MB of 2^20 bytes",
        notes=[
            "'resident' is VmRSS, pages of shared libraries included; 'own' is what the end of the process would free",
            "'four jobs' is the smallest program with a lease and four jobs, while it leads and after several runs;",
            "'worker' is examples/worker.py --fast, with its shop, pydantic-settings and five jobs",
        ],
    )
    walls: dict[str, list[float]] = {label: [] for label in IMPORTS}
    for _ in range(times):
        for label, code in IMPORTS.items():
            walls[label].append(await asyncio.to_thread(_wall, code))
    bare = median(walls[BARE])
    for label, code in IMPORTS.items():
        text = await asyncio.to_thread(_output, f"{code}; {MEMORY}")
        wall = median(walls[label])
        ratio = Figure(value=wall / bare, unit="x")
        table.rows[label] = {"import": milliseconds(wall), f"to {BARE}": ratio, **_memory(text)}
    for database in databases:
        if database.kind == "mysql" and quick:
            continue  # the same driver as for MariaDB
        url = database.fresh("four_jobs")
        program = ["-m", "benchmarks.four_jobs", url]
        table.rows[f"four jobs, {database.kind}"] = _memory(await _of_worker(program, url, b"ran", 6), AIM)
        url = database.fresh("worker")
        program = ["examples/worker.py", "--fast", "--journal", "-"]
        table.rows[f"worker, {database.kind}"] = _memory(await _of_worker(program, url, b'"RunFinished"', 6), AIM)
    return table


def _wall(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
    return time.perf_counter() - started


def _output(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60, capture_output=True, text=True
    )
    return done.stdout


def _memory(text: str, aim: float | None = None) -> dict[str, Figure]:
    """The figures of ``/proc/<pid>/status`` and ``smaps_rollup``."""
    kib: dict[str, int] = {}
    for line in text.splitlines():
        key, _, rest = line.strip().partition(":")
        amount = rest.split()
        if len(amount) == 2 and amount[1] == "kB":
            kib[key] = int(amount[0])
    return {
        "resident": _mb(kib["VmRSS"], aim),
        "peak": _mb(kib["VmHWM"]),
        "shared evenly": _mb(kib["Pss"]),
        "own": _mb(kib["Private_Clean"] + kib["Private_Dirty"]),
    }


def _mb(kib: int, aim: float | None = None) -> Figure:
    return Figure(value=kib / 1024, unit="MB", aim=aim)


async def _of_worker(program: Sequence[str], url: str, sign: bytes, runs: int) -> str:
    """Starts a worker, waits until it has run some jobs, and returns what the kernel says of its memory."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *program),
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        cwd=ROOT,
        # The example is a file in a folder of its own: it finds this checkout, installed or not.
        env={**os.environ, "AIOLEASE_URL": url, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE):
            while runs:
                line = await process.stdout.readline()
                if not line:
                    raise BenchmarkFailed(f"{program[0]} ended by itself")
                runs -= sign in line
        folder = Path(f"/proc/{process.pid}")
        return (folder / "status").read_text() + (folder / "smaps_rollup").read_text()
    except TimeoutError:
        raise BenchmarkFailed(f"{program[0]} ran no jobs within {PATIENCE:.0f} s") from None
    finally:
        process.kill()
        await process.communicate()
