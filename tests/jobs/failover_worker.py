"""A worker that `test_failover.py` starts, kills and freezes: ``failover_worker.py URL FOLDER JOBS MAX_RUNNING``.

In the folder it finds and leaves: ``journal``, to which every run appends a line as it begins and as it ends,
``up-PID``, there from when signals end it in order, and ``faults``. A fault is a file named for a point of the program,
perhaps with ``@PID`` behind it, that holds the number of a signal: the worker that comes to that point first takes the
file and sends itself the signal.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiosqlite
import asyncmy
from loguru import logger

from aiolease import JobRegistry, JobRun, RunAlreadyEnded, StoreUnavailable
from aiolease.stores.batch import Batch
from aiolease.stores.mysql import MySQLStore
from aiolease.stores.mysql import transactions as mysql_transactions
from aiolease.stores.records import TermKey
from aiolease.stores.sqlite import SQLiteStore

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
INSERT = "INSERT INTO effects (job, tick, attempt, pid) VALUES ({0}, {0}, {0}, {0})"

TIMINGS = {"lease_duration": 1.2, "heartbeat_interval": 0.4, "renew_deadline": 0.9, "retry_interval": 0.1}
DRAIN = 10.0

# Seconds between two ticks; for a cron job, what its expression says.
GRIDS = {
    "quick": 0.2, "steady": 0.5, "second": 1.0, "slow": 1.0, "shaky": 0.2, "again": 0.4, "thread": 0.9,
    "effect": 0.2, "fenced": 0.3,
    "one": 0.1, "beside": 0.15, "newest": 0.1, "own": 0.2,
    "rare": 1e9, "often": 0.2,
}  # fmt: skip
FLEET = ("quick", "steady", "second", "slow", "shaky", "again", "thread", "effect", "fenced")
EFFECTS = ("one", "beside", "newest", "own")
ASKED = ("rare", "often")


class Worker:
    """What the jobs share."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.sqlite = url.startswith("sqlite")
        self.dice = random.Random(f"{folder.name} {os.getpid()}")
        self._journal = os.open(folder / "journal", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def note(self, what: str, run: JobRun, **more: object) -> None:
        line = {"what": what, "pid": os.getpid(), "job": run.job, "tick": micros(run.tick), "attempt": run.attempt}
        os.write(self._journal, json.dumps(line | {"token": run.token, "at": time.monotonic()} | more).encode() + b"\n")

    @contextmanager
    def noted(self, run: JobRun) -> Iterator[None]:
        self.note("begin", run)
        how = "done"
        try:
            self.point("begun")
            yield
        except BaseException as error:
            how = type(error).__name__
            raise
        finally:
            self.note("end", run, how=how)

    def point(self, name: str) -> None:
        for file in (f"{name}@{os.getpid()}", name):
            taken = self.folder / "faults" / f"taken-{file}-{os.getpid()}"
            with suppress(FileNotFoundError):
                (self.folder / "faults" / file).rename(taken)
                os.kill(os.getpid(), int(taken.read_text()))
                time.sleep(0.02)  # all threads stop, but this one may get a little further

    # -- what jobs do

    async def effect(self, run: JobRun) -> None:
        """Writes its row and its end in one transaction of aiolease; now and then it tries to do so once more."""
        with self.noted(run):
            await self.commit(run)
            self.point("committed")
            while self.dice.random() < 0.2:
                with suppress(RunAlreadyEnded):
                    await self.commit(run)

    async def commit(self, run: JobRun) -> None:
        async with run.transaction(final=True) as connection:
            await self.write(connection, run)
            await asyncio.sleep(self.dice.uniform(0, 0.02))
            self.point("written")

    async def effect_of_its_own(self, run: JobRun) -> None:
        """The same on a connection of its own, which it commits itself."""
        with self.noted(run):
            await self.commit_its_own(run)
            self.point("committed")
            while self.dice.random() < 0.2:
                with suppress(RunAlreadyEnded):
                    await self.commit_its_own(run)

    async def commit_its_own(self, run: JobRun) -> None:
        for _ in range(50):
            connection = await self.connect()
            try:
                await self.write(connection, run)
                self.point("written")
                await run.fence(connection, final=True)
                self.point("fenced")
                await connection.commit()
                return
            except StoreUnavailable:  # a conflict at the fence, or no answer in time: closing rolls back
                pass
            finally:
                closed = connection.close()
                if closed is not None:
                    await closed
            await asyncio.sleep(0.02)
        raise RuntimeError("the fence is never free")

    async def write(self, connection: Any, run: JobRun) -> None:
        values = (run.job, micros(run.tick), run.attempt, os.getpid())
        if self.sqlite:
            await connection.execute(INSERT.format("?"), values)
            return
        async with connection.cursor() as cursor:
            await cursor.execute(INSERT.format("%s"), values)

    async def connect(self) -> Any:
        """A connection in a transaction."""
        parts = urlsplit(self.url)
        if not self.sqlite:
            address = {"host": parts.hostname, "port": parts.port, "user": parts.username, "db": parts.path[1:]}
            connection = await asyncmy.connect(**address)
            await connection.begin()
            return connection
        file = await aiosqlite.connect(parts.path[1:], isolation_level=None, timeout=0.1)
        try:
            while True:
                try:
                    await file.execute("BEGIN IMMEDIATE")
                    return file
                except aiosqlite.OperationalError:  # locked
                    await asyncio.sleep(0.01)
        except BaseException:
            await file.close()
            raise

    # -- the jobs

    def jobs(self, names: list[str], max_running: int | None) -> JobRegistry:
        jobs = JobRegistry(max_running=max_running, history=None)
        final: dict[str, Any] = {"rerun_lost": True, "missed": "all"}

        def add(name: str, function: Callable[..., object], **options: Any) -> None:
            if name not in names:
                return
            if name == "second":
                jobs.cron("* * * * * *", name=name, **options)(function)
            elif name == "rare":
                jobs.cron("0 0 29 2 *", name=name, **options)(function)
            else:
                jobs.every(timedelta(seconds=GRIDS[name]), name=name, **options)(function)

        async def short(run: JobRun) -> None:
            with self.noted(run):
                await asyncio.sleep(self.dice.uniform(0, 0.03))

        async def slow(run: JobRun) -> None:
            with self.noted(run):
                await asyncio.sleep(1.3)

        async def shaky(run: JobRun) -> None:
            with self.noted(run):
                await asyncio.sleep(0.01)
                if self.dice.random() < 0.3:
                    raise ValueError("it is shaky")

        def thread(run: JobRun) -> None:
            with self.noted(run):
                for _ in range(10):
                    run.check()
                    time.sleep(0.01)

        for name in ("quick", "second", "rare", "often"):
            add(name, short)
        add("steady", short, missed="all")
        add("slow", slow)
        add("shaky", shaky)
        add("again", short, rerun_lost=True, overlap="allow")
        add("thread", thread, missed="skip")
        add("effect", self.effect, **final)
        add("fenced", self.effect_of_its_own, **final)
        add("one", self.effect, **final)
        add("beside", self.effect, overlap="allow", **final)
        add("newest", self.effect, rerun_lost=True)
        add("own", self.effect_of_its_own, overlap="allow", **final)
        return jobs

    def watch(self, store: Any) -> None:
        """Makes more points: before a claim of ticks is sent, when its answer is there, when a COMMIT was refused."""
        transactions: Any = mysql_transactions
        record, execute = store.record, transactions.execute

        async def watched(ledger: Any, term: TermKey, batch: Batch) -> None:
            if batch.claims:
                self.point("claiming")
            await record(ledger, term, batch)
            if any(claim.status == "running" for claim in batch.claims):
                self.point("claimed")

        async def refused(connection: Any, cursor: Any, sql: str, *more: Any) -> Any:
            try:
                return await execute(connection, cursor, sql, *more)
            except Exception:
                if "COMMIT" in sql:
                    self.point("refused")
                raise

        store.record = watched
        transactions.execute = refused


def micros(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


async def main() -> None:
    url, folder, names, most = sys.argv[1:]
    logger.remove()
    logger.add(sys.stderr, level="INFO", format="{time:HH:mm:ss.SSS} {level} {message}", diagnose=False)
    worker = Worker(url, Path(folder))
    worker.watch(SQLiteStore if worker.sqlite else MySQLStore)
    jobs = worker.jobs(names.split(","), int(most) or None)
    serving = asyncio.create_task(jobs.serve(url, handle_signals=True, drain_timeout=DRAIN, **TIMINGS))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    (worker.folder / f"up-{os.getpid()}").touch()  # from here on a signal ends it in order
    await serving


if __name__ == "__main__":
    asyncio.run(main())
