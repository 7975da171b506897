"""One process that wants to lead, does work while it does, and writes down all of it.

Started by the harness with its settings as JSON. Its work is jobs, or fenced commits with plain steps at short
intervals, or both. SIGTERM ends it in an orderly way, SIGUSR1 has it resign.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

from loguru import logger

from aiolease import CommitUnknown, Leadership, LeadershipLost, run_as_leader
from aiolease._jobs.execution import Execution
from aiolease._jobs.runner import Runner
from aiolease.stores.batch import Batch
from aiolease.stores.records import TermKey
from tests.faults.breakage import Breakage, break_it
from tests.faults.database import Driver, execute, target
from tests.faults.jobs import Jobs, run_facts
from tests.faults.journal import Journal
from tests.faults.plan import Program

LEASE = 3.0
STEP = 0.02
DRAIN = 3.0
UNWIND = 0.15
"""Seconds that a body goes on with its steps once it is cancelled, of the 0.5 that a lease of 3 s leaves it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the harness tells a worker.

    Attributes:
        process: Its name; a worker that is started again has a new one.
        journal: The file that all processes append to.
        url: The database.
        driver: What it hands to aiolease: the URL, or a pool of that kind.
        program: What it does.
        steps: Whether the database's clock is stepped.
        breakage: A rule that it breaks, to show that the checker sees it.
    """

    process: str
    journal: str
    url: str
    driver: Driver = "url"
    program: Program = "commits"
    steps: bool = False
    breakage: Breakage = ""

    def dumps(self) -> str:
        return json.dumps(asdict(self))


class Worker:
    """What the programs share."""

    def __init__(self, settings: Settings, journal: Journal) -> None:
        self.settings = settings
        self.journal = journal
        self.jobs = Jobs(journal).registry(steps=settings.steps)
        self.lead: Leadership | None = None
        self.terminated = asyncio.Event()

    def resign(self) -> None:
        if self.lead is not None:
            self.lead.resign()

    def ready(self) -> None:
        """From now on a signal ends it in order."""
        self.journal.write("started")

    # -- programs

    async def run(self, database: Any) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self.resign)
        options: dict[str, Any] = {"lease_duration": LEASE, "on_event": self.journal.observe}
        if self.settings.program == "serve":
            serving = asyncio.create_task(
                self.jobs.serve(database, handle_signals=True, drain_timeout=DRAIN, **options)
            )
            await asyncio.sleep(0)
            self.ready()
            await serving
            return
        loop.add_signal_handler(signal.SIGTERM, self.terminated.set)
        if self.settings.program == "background":
            async with self.jobs.background(database, drain_timeout=DRAIN, **options):
                self.ready()
                await self.terminated.wait()
            return
        body: Callable[[Leadership], Awaitable[None]] = self.deaf if self.settings.breakage == "goes on" else self.body
        leading = asyncio.create_task(run_as_leader(database, body, **options))
        told = asyncio.create_task(self.terminated.wait())
        self.ready()
        await asyncio.wait([leading, told], return_when=asyncio.FIRST_COMPLETED)
        leading.cancel()
        told.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leading

    # -- bodies

    async def body(self, lead: Leadership) -> None:
        self.lead = lead
        self.journal.write("began", lead.token)
        # No task group: before Python 3.13 one whose child fails leaves its parent looking cancelled from outside.
        commits = asyncio.create_task(self._commits(lead))
        jobs = self.settings.program == "both"
        # Beside jobs there are none: while their runs end, the body has not been given the cancellation.
        steps = asyncio.create_task(self._steps(lead.token, "step", 0.0 if jobs else None))
        try:
            await (self.jobs.run(lead) if jobs else asyncio.wait([commits]))
        finally:
            commits.cancel()
            steps.cancel()
            unwinding = asyncio.create_task(self._steps(lead.token, "unwinding", UNWIND))
            while not (commits.done() and unwinding.done()):  # not torn, should it be cancelled again
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([commits, unwinding])
            self.journal.write("ended", lead.token)
            error = None if commits.cancelled() else commits.exception()
        if error is not None:
            raise error

    async def deaf(self, lead: Leadership) -> None:
        """A body that goes on after its loss."""
        self.journal.write("began", lead.token)
        steps = asyncio.create_task(self._steps(lead.token, "step", 10 * LEASE))
        while not steps.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([steps])
        self.journal.write("ended", lead.token)

    async def _steps(self, token: int, kind: str, seconds: float | None) -> None:
        until = None if seconds is None else time.monotonic() + seconds
        while until is None or time.monotonic() < until:
            self.journal.write(kind, token)
            await asyncio.sleep(STEP)

    async def _commits(self, lead: Leadership) -> None:
        inherited = False
        for n in range(1, 1_000_000):
            facts: dict[str, Any] = {"n": n}
            try:
                async with lead.transaction() as connection:
                    if not inherited:
                        facts["inherited"] = await self._inherited(connection, lead.token)
                    await self._insert(connection, lead.token, n)
                    await asyncio.sleep(0.5 if self.settings.breakage == "unfenced" else random.uniform(0.0, 0.02))
                    self.journal.write("committing", lead.token, n=n)
            except LeadershipLost:
                self.journal.write("refused", lead.token, n=n)
                raise
            except CommitUnknown as error:
                self.journal.write("unknown", lead.token, n=n, why=str(error))
            except asyncio.CancelledError:
                self.journal.write("cancelled", lead.token, n=n)  # its outcome may be any
                raise
            except Exception as error:  # noqa: BLE001 - a driver's, or the store's: the next one may succeed
                self.journal.write("refused", lead.token, n=n, why=f"{type(error).__name__}: {error}")
                await asyncio.sleep(0.1)
            else:
                inherited = True
                self.journal.write("committed", lead.token, **facts)
            await asyncio.sleep(random.uniform(0.0, 0.03))

    async def _inherited(self, connection: Any, token: int) -> int:
        """How many rows of older terms there are, once this one has begun: there must never be more."""
        return int((await execute(connection, f"SELECT COUNT(*) FROM effects WHERE token < {token:d}"))[0])

    async def _insert(self, connection: Any, token: int, n: int) -> None:
        values = f"'{self.settings.process}', {token:d}, {n:d}"
        await execute(connection, f"INSERT INTO effects (process, token, n) VALUES ({values})")

    # -- what is written down of the jobs

    def watch(self) -> None:
        """Has every term of jobs, every run and every batch of the ledger written down."""
        journal, worker = self.journal, self
        run, call = Runner.run, Execution._call

        async def term(jobs: Runner, *how: Any) -> None:
            worker.lead = jobs.lead
            journal.write("began", jobs.lead.token)
            try:
                await run(jobs, *how)
            finally:
                journal.write("ended", jobs.lead.token)

        async def called(execution: Execution) -> None:
            token, facts = execution.run.token, run_facts(execution.run)
            journal.write("begun", token, **facts)
            how = "raised"
            try:
                await call(execution)
                how = "returned"
            except asyncio.CancelledError:
                how = "cancelled"
                raise
            finally:
                journal.write("over", token, how=how, **facts)

        if self.settings.program != "both":  # there the body is more than its jobs
            Runner.run = term  # type: ignore[assignment, method-assign]
        Execution._call = called  # type: ignore[assignment, method-assign]
        from aiolease.stores.mysql import MySQLStore
        from aiolease.stores.postgresql import PostgreSQLStore
        from aiolease.stores.sqlite import SQLiteStore

        for store in (MySQLStore, PostgreSQLStore, SQLiteStore):
            cast(Any, store).record = self._recording(cast(Any, store).record)

    def _recording(self, record: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def recording(store: Any, term: TermKey, batch: Batch) -> None:
            if self.settings.breakage == "unfenced claims":
                time.sleep(0.2)
            claims = [[claim.job, claim.tick.isoformat()] for claim in batch.claims]
            self.journal.write("recording", term.token, claims=claims)
            await record(store, term, batch)
            self.journal.write("recorded", term.token)

        return recording


def end_with_the_harness() -> None:
    """Ends this process when the harness is gone, and its end of the pipe with it."""
    sys.stdin.read()
    os._exit(3)


def log_to_stderr(process: str) -> None:
    """Logs what is out of the ordinary: runs fail and ticks are skipped all the time here."""
    usual = ("' failed: ", "skipped '", "' was lost with term")
    logger.remove()
    # SQLAlchemy's pool logs a traceback for each connection that is lost before it is given back: no news here.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    logger.add(
        sys.stderr,
        level="WARNING",
        format=lambda _: f"{{time:HH:mm:ss.SSS}} {process} {{level}} {{message}}\n",
        filter=lambda record: not any(words in record["message"] for words in usual),
    )


async def live(journal: Journal) -> None:
    """Signs of life: where they fail, the machine did not let this process run."""
    while True:
        journal.write("alive")
        await asyncio.sleep(0.05)


async def main(settings: Settings) -> None:
    journal = Journal(settings.journal, settings.process)
    living = asyncio.ensure_future(live(journal))
    worker = Worker(settings, journal)
    worker.watch()
    try:
        async with target(settings.url, settings.driver) as database:
            await worker.run(database)
    finally:
        living.cancel()
        journal.write("stopped")
        journal.close()


if __name__ == "__main__":
    threading.Thread(target=end_with_the_harness, daemon=True).start()
    given = Settings(**json.loads(sys.argv[1]))
    log_to_stderr(given.process)
    break_it(given.breakage)
    asyncio.run(main(given))
