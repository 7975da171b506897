"""One of several processes that run the same jobs, each due every second, on one PostgreSQL.

    python -m benchmarks.peers.worker aiolease|procrastinate|apscheduler URL JOBS

The first line of standard output says that it works. When standard input ends, a second one tells all runs, as JSON:
the job's number, its tick, and the seconds that it began late.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final

from loguru import logger

from aiolease import JobRegistry, JobRun

PLACES: Final = 10
"""Jobs that a worker of procrastinate runs at once. By default it is one."""

runs: list[tuple[int, int, float]] = []

Wait = Callable[[], Awaitable[None]]


def note(number: int, tick: float) -> None:
    """Notes that a job runs now."""
    runs.append((number, round(tick), round(time.time() - tick, 6)))


async def by_aiolease(url: str, size: int, wait: Wait) -> None:
    jobs = JobRegistry()
    for number in range(size):

        async def job(run: JobRun, number: int = number) -> None:
            note(number, run.tick.timestamp())

        jobs.every(1, name=f"job_{number}")(job)
    async with jobs.background(url, drain_timeout=0):
        await wait()


async def by_procrastinate(url: str, size: int, wait: Wait) -> None:
    import procrastinate

    app: Any = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))
    for number in range(size):

        async def job(timestamp: int, number: int = number) -> None:
            note(number, timestamp)

        app.periodic(cron="* * * * * *")(app.task(name=f"job_{number}")(job))  # the last star is the second
    async with app.open_async():
        if not await app.check_connection_async():  # there are no tables
            await app.schema_manager.apply_schema_async()
        working = asyncio.create_task(app.run_worker_async(concurrency=PLACES, install_signal_handlers=False))
        await wait()
        working.cancel()
        await asyncio.wait([working])


async def noted(number: int) -> None:
    """APScheduler's job: at the top of a module, since it is kept by its name."""
    note(number, importlib.import_module("apscheduler").current_job.get().scheduled_fire_time.timestamp())


async def by_apscheduler(url: str, size: int, wait: Wait) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine

    named: Callable[[str], Any] = importlib.import_module  # of version 4; in the developers' environment there is 3
    apscheduler, interval = named("apscheduler"), named("apscheduler.triggers.interval")
    engine = create_async_engine(url.replace("postgresql:", "postgresql+asyncpg:"))
    store = named("apscheduler.datastores.sqlalchemy").SQLAlchemyDataStore(engine)
    broker = named("apscheduler.eventbrokers.asyncpg").AsyncpgEventBroker.from_async_sqla_engine(engine)
    trigger = interval.IntervalTrigger(seconds=1, start_time=datetime.now(UTC).replace(microsecond=0))
    async with apscheduler.AsyncScheduler(store, broker) as scheduler:
        if not await scheduler.get_schedules():
            for number in range(size):
                await scheduler.add_schedule(noted, trigger, id=f"job_{number}", args=[number])
        await scheduler.start_in_background()
        await wait()
        await scheduler.stop()


CONTENDERS: Final = {"aiolease": by_aiolease, "procrastinate": by_procrastinate, "apscheduler": by_apscheduler}


async def work(contender: str, url: str, size: int) -> None:
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)

    async def wait() -> None:
        print("works", flush=True)
        await lines.read()
        print(json.dumps(runs), flush=True)

    await CONTENDERS[contender](url, size, wait)


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contender", choices=list(CONTENDERS))
    parser.add_argument("url")
    parser.add_argument("size", type=int)
    logger.remove()
    logging.disable(logging.CRITICAL)
    asyncio.run(work(**vars(parser.parse_args())))


if __name__ == "__main__":
    # By its own name, under which APScheduler finds its job again.
    from benchmarks.peers.worker import main as named_main

    named_main()
