"""So many jobs under one scheduler, as a process of its own.

    python -m benchmarks.scheduler aiolease|apscheduler URL|memory JOBS second|spread WARM SECONDS [--profile FILE]

The jobs do nothing but note how late they start. ``second``: all are due each second. ``spread``: each is due every ten
seconds, a tenth of them each second. One line of standard output tells, as JSON, what happened within so many seconds.
Both schedulers run on what they are given by default, but that no tick is too old for APScheduler either.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import logging
import time
from array import array
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, Self

from benchmarks.samples import median, percentile

PERIOD: Final = {"second": 1, "spread": 10}
PHASE = 0.75
"""Where between two ticks the window begins and ends: what is less late than this belongs to it as a whole."""


class Journal:
    def __init__(self) -> None:
        self.late = array("d")
        self.began = asyncio.Event()

    def note(self, tick: float) -> None:
        self.late.append(time.time() - tick)
        if not self.began.is_set():
            self.began.set()


journal: Journal
of_tick: ContextVar[float] = ContextVar("of_tick")


async def note() -> None:
    """APScheduler's job: at the top of a module, since it is kept by its name."""
    journal.note(of_tick.get())


def seconds_of(number: int) -> str:
    return ",".join(str(second) for second in range(number % 10, 60, 10))


async def with_aiolease(url: str, size: int, plan: str, window: Callable[[], Awaitable[None]]) -> None:
    from loguru import logger

    from aiolease import JobRegistry, JobRun

    logger.remove()
    target: Any = url
    if url == "memory":
        from aiolease.stores.memory import MemoryStore

        target = MemoryStore()
    jobs = JobRegistry()

    async def job(run: JobRun) -> None:
        journal.note(run.tick.timestamp())

    for number in range(size):
        name = f"job_{number}"
        register = jobs.every(1, name=name)
        if plan == "spread":
            register = jobs.cron(f"{seconds_of(number)} * * * * *", name=name)
        register(job)
    async with jobs.background(target, drain_timeout=0):
        await window()


async def with_apscheduler(url: str, size: int, plan: str, window: Callable[[], Awaitable[None]]) -> None:
    from apscheduler.executors.asyncio import AsyncIOExecutor  # type: ignore[import-untyped]
    from apscheduler.jobstores.memory import MemoryJobStore  # type: ignore[import-untyped]
    from apscheduler.schedulers.asyncio import AsyncIOScheduler  # type: ignore[import-untyped]
    from apscheduler.triggers.cron import CronTrigger  # type: ignore[import-untyped]
    from apscheduler.triggers.interval import IntervalTrigger  # type: ignore[import-untyped]

    logging.getLogger("apscheduler").setLevel(logging.CRITICAL)
    executor = AsyncIOExecutor()
    submit = executor._do_submit_job

    def with_tick(job: Any, run_times: list[datetime]) -> None:
        of_tick.set(run_times[-1].timestamp())  # the job's task takes a copy of the context with it
        submit(job, run_times)

    executor._do_submit_job = with_tick
    scheduler = AsyncIOScheduler(
        timezone=UTC, executors={"default": executor}, job_defaults={"misfire_grace_time": None, "coalesce": True}
    )
    store: Any = MemoryJobStore()
    if url != "memory":
        from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore  # type: ignore[import-untyped]

        store = SQLAlchemyJobStore(url=url.replace("mysql:", "mysql+pymysql:").replace("+asyncpg:", "+psycopg:"))
    scheduler.add_jobstore(store)
    scheduler.start(paused=True)
    started = datetime.now(UTC).replace(microsecond=0)
    with _in_one_transaction(store):
        for number in range(size):
            trigger = IntervalTrigger(seconds=1, start_date=started, timezone=UTC)
            if plan == "spread":
                trigger = CronTrigger(second=seconds_of(number), timezone=UTC)
            scheduler.add_job(note, trigger, id=f"job_{number}")
    scheduler.resume()
    try:
        await window()
    finally:
        scheduler.shutdown(wait=False)


@contextmanager
def _in_one_transaction(store: Any) -> Iterator[None]:
    """Stores the jobs at once: by itself APScheduler commits each, which would take longer than the measurement."""
    engine = getattr(store, "engine", None)
    if engine is None:
        yield
        return
    with engine.begin() as connection:
        store.engine = SimpleNamespace(begin=partial(nullcontext, connection))
        yield
    store.engine = engine


def resident() -> int:
    """Bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


class Rubbish:
    """Adds up the seconds that the garbage collector takes, while it is entered."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0

    def _note(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._since = time.process_time()
        else:
            self.seconds += time.process_time() - self._since

    def __enter__(self) -> Self:
        gc.callbacks.append(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        gc.callbacks.remove(self._note)


async def measure(  # noqa: PLR0917
    contender: str, url: str, size: int, plan: str, warm: float, seconds: float, profile: str | None
) -> dict[str, Any]:
    global journal  # noqa: PLW0603 - APScheduler's jobs are found by name, not handed anything
    journal = Journal()
    found: dict[str, Any] = {}

    async def window() -> None:
        await journal.began.wait()
        first = time.time() + warm
        await asyncio.sleep(int(first) + PHASE - time.time())
        journal.late = array("d")
        since, cpu = time.time(), time.process_time()
        with Rubbish() as rubbish, cProfile.Profile(time.process_time) if profile else nullcontext() as profiler:
            await asyncio.sleep(seconds)
        # Of a loop that is blocked it may be late: what was due meanwhile counts as well.
        until = time.time()
        used, memory = time.process_time() - cpu, resident()
        late = sorted(journal.late)
        found["due"] = size * (int(until) - int(since)) // PERIOD[plan]
        found["done"] = len(late)
        found["seconds"] = until - since
        found["cpu"] = used / (until - since)
        found["rubbish"] = rubbish.seconds / (until - since)
        found["resident"] = memory
        if late:
            found["late"] = {"p50": median(late), "p99": percentile(late, 99), "max": late[-1]}
        if profiler is not None and profile:
            profiler.dump_stats(profile)

    await (with_aiolease if contender == "aiolease" else with_apscheduler)(url, size, plan, window)
    return found


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contender", choices=["aiolease", "apscheduler"])
    parser.add_argument("url")
    parser.add_argument("size", type=int)
    parser.add_argument("plan", choices=list(PERIOD))
    parser.add_argument("warm", type=float)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--profile", metavar="FILE", help="where to put what cProfile says of the window")
    print(json.dumps(asyncio.run(measure(**vars(parser.parse_args())))))


if __name__ == "__main__":
    main()
