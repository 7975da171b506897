"""A worker of any release, which `test_rolling_deploy.py` starts: ``rolling_worker.py URL FOLDER JOBS PACKAGE``.

It uses only what version 0.1.0 had. In the folder it leaves ``journal``, to which every run appends a line as it begins
and as it ends, and ``up-PID``, there from when signals end it in order. PACKAGE is where aiolease must come from.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from loguru import logger

import aiolease
from aiolease import JobRegistry, JobRun

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
INSERT = "INSERT INTO effects (job, tick, attempt, pid) VALUES ({0}, {0}, {0}, {0})"
TIMINGS = {"lease_duration": 1.2, "heartbeat_interval": 0.4, "renew_deadline": 0.9, "retry_interval": 0.1}


class Worker:
    """What the jobs share."""

    def __init__(self, url: str, folder: Path) -> None:
        self.mark = "?" if url.startswith("sqlite") else "%s"
        self._journal = os.open(folder / "journal", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def note(self, what: str, run: JobRun, **more: object) -> None:
        line = {"what": what, "pid": os.getpid(), "job": run.job, "tick": micros(run.tick), "attempt": run.attempt}
        os.write(self._journal, json.dumps(line | {"token": run.token, "at": time.monotonic()} | more).encode() + b"\n")

    @contextmanager
    def noted(self, run: JobRun) -> Iterator[None]:
        self.note("begin", run)
        how = "done"
        try:
            yield
        except BaseException as error:
            how = type(error).__name__
            raise
        finally:
            self.note("end", run, how=how)

    async def short(self, run: JobRun) -> None:
        with self.noted(run):
            await asyncio.sleep(random.uniform(0, 0.05))

    async def effect(self, run: JobRun) -> None:
        """Writes its row and its end in one transaction."""
        with self.noted(run):
            async with run.transaction(final=True) as connection:
                values = (run.job, micros(run.tick), run.attempt, os.getpid())
                if self.mark == "?":
                    await connection.execute(INSERT.format("?"), values)
                else:
                    async with connection.cursor() as cursor:
                        await cursor.execute(INSERT.format("%s"), values)
                await asyncio.sleep(random.uniform(0, 0.02))

    def jobs(self, names: list[str]) -> JobRegistry:
        jobs = JobRegistry(history=None)
        every: dict[str, tuple[float, Callable[..., Any], dict[str, Any]]] = {
            "quick": (0.2, self.short, {}),
            "steady": (0.5, self.short, {"missed": "all"}),
            "again": (0.4, self.short, {"rerun_lost": True, "overlap": "allow"}),
            "effect": (0.2, self.effect, {"rerun_lost": True, "missed": "all"}),
        }
        for name in names:
            interval, function, options = every[name]
            jobs.every(timedelta(seconds=interval), name=name, **options)(function)
        return jobs


def micros(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


async def main() -> None:
    url, folder, names, package = sys.argv[1:]
    assert str(aiolease.__file__).startswith(package), f"{aiolease.__file__} is not in {package}"
    logger.remove()
    logger.add(sys.stderr, level="INFO", format="{time:HH:mm:ss.SSS} {level} {message}", diagnose=False)
    jobs = Worker(url, Path(folder)).jobs(names.split(","))
    serving = asyncio.create_task(jobs.serve(url, handle_signals=True, drain_timeout=10.0, **TIMINGS))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    (Path(folder) / f"up-{os.getpid()}").touch()  # from here on a signal ends it in order
    await serving


if __name__ == "__main__":
    asyncio.run(main())
