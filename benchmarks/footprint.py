"""What aiolease costs a process: the time of its import, and memory."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks.candidates import PATIENCE, ROOT, BenchmarkFailed
from benchmarks.databases import Database, by_each_driver
from benchmarks.report import Figure, Table, milliseconds
from benchmarks.samples import median

AIM = 1.1
"""Resident memory of the smallest leading worker, as a ratio to the bare imports of what it uses."""

AIM_IMPORT = 1.2
"""Processor time of ``import aiolease``, as a ratio to importing anyio and loguru."""

AIM_LEFT = 1.0
"""Resident memory after a hundred thousand runs, as a ratio to that after a thousand."""

FEW, MANY = 1_000, 100_000

USED: Final = "asyncio, anyio, anyio._backends._asyncio, anyio.lowlevel, loguru, cronsim, zoneinfo"
"""What a leading worker uses on every store. anyio imports its backend when it is first used."""

DRIVERS: Final[dict[str, str]] = {
    "memory": "",
    "mariadb": ", asyncmy",
    "mysql": ", asyncmy",
    "postgresql": ", asyncpg",
    "postgresql, psycopg": ", psycopg",
    "sqlite": ", sqlite3",
}

IMPORTS: Final = {
    "python alone": "pass",
    "anyio, loguru": "import anyio, loguru",
    "import aiolease": "import aiolease",
    "... and what a worker names": "from aiolease import JobRegistry, leadership",
    "asyncmy, anyio, loguru": "import asyncio, asyncmy, anyio, loguru",
}
BARE: Final = "anyio, loguru"
MEMORY: Final = "print(open('/proc/self/status').read(), open('/proc/self/smaps_rollup').read())"


async def measure(databases: Sequence[Database], *, quick: bool) -> Table:
    times, workers = (5, 1) if quick else (11, 3)
    table = Table(
        topic="footprint",
        title=f"footprint: processes of their own, the median of {times} imports by turns, of {workers} workers; "
        "MB of 2^20 bytes",
        notes=[
            "'import' is processor time, Python's own start included, from bytecode as an installation has it",
            "'resident' is VmRSS, pages of shared libraries included; 'own' is what the end of the process would free",
            "'leading' is the smallest program with a lease and four jobs, while it leads and after several runs;",
            f"'bare' imports {USED} and the driver, and does nothing",
            "'worker' is examples/worker.py --fast, with its shop, pydantic-settings and five jobs",
            "'runs' is one leader in virtual time, on the store in memory",
        ],
    )
    with TemporaryDirectory(prefix="aiolease-bench-") as bytecode:
        processes = _Processes(bytecode)
        await _imports(processes, table, times)
        for label, url in _targets(databases, quick=quick):
            bare = await processes.of_code(f"import {USED}{DRIVERS[label]}", workers)
            four = [await processes.of_worker(["-m", "benchmarks.four_jobs", url(f"four_jobs_{number}")], "", b"ran", 6)
                    for number in range(workers)]  # fmt: skip
            leading = _median(four)
            table.rows[f"bare, {label}"] = bare
            ratio = Figure(value=leading["resident"].value / bare["resident"].value, unit="x", aim=AIM)
            table.rows[f"leading, {label}"] = {"to bare": ratio, **leading}
        for database in databases:
            if database.kind == "mysql" and quick:
                continue  # the same driver as for MariaDB
            program = ["examples/worker.py", "--fast", "--journal", "-"]
            worker = await processes.of_worker(program, database.fresh("worker"), b'"RunFinished"', 6)
            table.rows[f"worker, {database.label}"] = worker
        program = ["-m", "benchmarks.left_behind", str(FEW), str(MANY)]
        few, many = (
            float(line.split()[0]) for line in (await asyncio.to_thread(processes.output, program)).splitlines()
        )
        table.rows[f"after {FEW:,} runs"] = {"resident": _mb(few)}
        ratio = Figure(value=many / few, unit="x", aim=AIM_LEFT)
        table.rows[f"after {MANY:,} runs"] = {f"to {FEW:,}": ratio, "resident": _mb(many)}
    return table


async def _imports(processes: _Processes, table: Table, times: int) -> None:
    seconds: dict[str, list[float]] = {label: [] for label in IMPORTS}
    for turn in range(times + 1):
        for label, code in IMPORTS.items():
            took = await asyncio.to_thread(processes.seconds, code)
            if turn:  # the first writes the bytecode
                seconds[label].append(took)
    bare = median(seconds[BARE])
    for label, code in IMPORTS.items():
        took = median(seconds[label])
        aim = AIM_IMPORT if label == "import aiolease" else None
        ratio = Figure(value=took / bare, unit="x", aim=aim)
        table.rows[label] = {"import": milliseconds(took), f"to {BARE}": ratio, **await processes.of_code(code, 1)}


def _targets(databases: Sequence[Database], *, quick: bool) -> Iterator[tuple[str, Callable[[str], str]]]:
    """The stores by their labels, each with what makes the URL of an empty one."""
    yield "memory", lambda name: "memory"
    for database in by_each_driver(databases):
        if not (database.kind == "mysql" and quick):
            yield database.label, database.fresh


class _Processes:
    """Programs, started as in an installation: from compiled bytecode, which is kept in a folder of the benchmark's."""

    def __init__(self, bytecode: str) -> None:
        # The example is a file in a folder of its own: it finds this checkout, installed or not.
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": bytecode}
        self._environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def output(self, program: Sequence[str]) -> str:
        """Runs a program to its end; returns what it printed."""
        done = subprocess.run(
            [sys.executable, *program], cwd=ROOT, env=self._environment, check=True, timeout=120, capture_output=True
        )
        return done.stdout.decode()

    def seconds(self, code: str) -> float:
        """The processor time of a program that runs `code`. No other child may end meanwhile."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.output(["-c", code])
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    async def of_code(self, code: str, times: int) -> dict[str, Figure]:
        """The memory of a program that runs `code`; the median of some."""
        program = ["-c", f"{code}\n{MEMORY}"]
        await asyncio.to_thread(self.output, program)  # writes the bytecode
        return _median([_memory(await asyncio.to_thread(self.output, program)) for _ in range(times)])

    async def of_worker(self, program: Sequence[str], url: str, sign: bytes, runs: int) -> dict[str, Figure]:
        """Starts a worker, waits until it has run some jobs; its memory then."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *program),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            cwd=ROOT,
            env={**self._environment, "AIOLEASE_URL": url},
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
            return _memory((folder / "status").read_text() + (folder / "smaps_rollup").read_text())
        except TimeoutError:
            raise BenchmarkFailed(f"{program[0]} ran no jobs within {PATIENCE:.0f} s") from None
        finally:
            process.kill()
            await process.communicate()


def _median(found: Sequence[dict[str, Figure]]) -> dict[str, Figure]:
    return {column: Figure(value=median([each[column].value for each in found]), unit="MB") for column in found[0]}


def _memory(text: str) -> dict[str, Figure]:
    """The figures of ``/proc/<pid>/status`` and ``smaps_rollup``."""
    kib: dict[str, int] = {}
    for line in text.splitlines():
        key, _, rest = line.strip().partition(":")
        amount = rest.split()
        if len(amount) == 2 and amount[1] == "kB":
            kib[key] = int(amount[0])
    return {
        "resident": _mb(kib["VmRSS"]),
        "peak": _mb(kib["VmHWM"]),
        "shared evenly": _mb(kib["Pss"]),
        "own": _mb(kib["Private_Clean"] + kib["Private_Dirty"]),
    }


def _mb(kib: float) -> Figure:
    return Figure(value=kib / 1024, unit="MB")
