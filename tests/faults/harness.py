"""Carries out a plan: a private server, a proxy before each worker, the workers, and the faults that strike them.

In the end, when nothing befalls anybody any more, one more worker runs what the others have left, so that the ledger
can be audited: all that had fallen due was claimed, and all that was claimed has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pymysql

from aiolease import StoreUnavailable, open_store
from aiolease.stores import Store
from aiolease.stores.records import RunRecord
from tests.campaigns import through
from tests.faults import postgresql
from tests.faults.breakage import Breakage
from tests.faults.database import DRIVERS, ON_POSTGRESQL, TABLES
from tests.faults.havoc import HOG, Havoc, Worker
from tests.faults.jobs import rules
from tests.faults.journal import HARNESS, Journal, Line
from tests.faults.ledger import Found, Payment
from tests.faults.plan import WORKERS, Fault, Plan, Program, ServerKind
from tests.faults.verdict import Verdict, judge
from tests.faults.worker import Settings
from tests.project import ROOT
from tests.servers import GaleraCluster, MariaDBServer, MySQLServer, PostgreSQLServer, Server, TCPProxy

T = TypeVar("T")

DATABASE = "faults"
LEASE_NAME = "default"

TAKEOVER = 9.0
"""Seconds without a leader while some worker is well: a lease of a leader that was lost, and one of a claim whose
answer was lost, which a network may do to a candidate as well; then time to connect anew."""

LIMIT = 30.0
"""Seconds within which a worker ends, once it is asked to, and what the others have left is run."""

COMPLAINTS = re.compile(
    "never retrieved|never awaited|was destroyed|Exception in|Exception ignored|ResourceWarning|Traceback"
)


@contextmanager
def servers(kind: ServerKind) -> Iterator[Sequence[Server]]:
    """Private servers of a kind, the nodes of a cluster; none for SQLite."""
    match kind:
        case "sqlite":
            yield []
        case "galera":
            with GaleraCluster.start() as cluster:
                yield cluster.nodes
        case "mysql":
            with MySQLServer.start() as mysql:
                yield [mysql]
        case "postgresql":
            with PostgreSQLServer.start() as server:
                yield [server]
        case _:
            with MariaDBServer.start(faketime=kind == "faketime") as mariadb:
                yield [mariadb]


class Run:
    """One run of a plan."""

    def __init__(self, plan: Plan, nodes: Sequence[Server], folder: Path, breakage: Breakage = "") -> None:
        self.plan = plan
        self._nodes = nodes
        self._breakage = breakage
        self._file = folder / "journal"
        self._read = 0
        self.lines: list[Line] = []
        self._journal = Journal(self._file, HARNESS)
        self._proxies: list[TCPProxy] = []
        self._workers: dict[int, Worker] = {}
        self._all: list[Worker] = []
        self._log = open(folder / "log", "ab")  # noqa: SIM115 - closed with the run
        self._database = f"{DATABASE}_{os.getpid()}_{time.monotonic_ns()}"
        self._sqlite = folder / "file.db"
        self._havoc = Havoc(
            self,
            nodes,
            self._proxies,
            database=self._database,
            file=self._sqlite,
            journal=self._journal,
            lines=self._catch_up,
        )

    @property
    def _on_postgresql(self) -> bool:
        return self.plan.server == "postgresql"

    @property
    def _steps(self) -> bool:
        return self.plan.server == "faketime"

    async def run(self) -> Verdict:
        """From the first start to the verdict."""
        try:
            async with self._ground():
                for number in range(WORKERS):
                    await self._start(number)
                    if self._breakage:  # the first one, of whom the plan speaks, is to lead
                        await self._until(lambda: self._leader() is not None, "nobody leads")
                await self._until(lambda: all(map(self._is_up, self._workers.values())), "a worker does not start")
                began = time.monotonic()
                async with asyncio.TaskGroup() as tasks:
                    watch = tasks.create_task(self._watch())
                    async with asyncio.TaskGroup() as faults:
                        for number, fault in enumerate(self.plan.faults):
                            faults.create_task(self._befall(number, fault, began))
                    await asyncio.sleep(began + self.plan.seconds - time.monotonic())
                    await self._led_again()
                    watch.cancel()
                self._journal.write("finishing")
                await asyncio.gather(*(self.stop(worker) for worker in self._workers.values()))
                found = await self._settled()
        finally:
            for worker in self._all:
                with contextlib.suppress(ProcessLookupError):
                    worker.running.kill()
            await asyncio.gather(*(worker.running.wait() for worker in self._all))
            self._journal.close()
            self._log.close()
        lines = self._catch_up()
        return judge(lines, found, steps=self._steps, takeover=TAKEOVER, in_order=len(self._nodes) < 2)

    @asynccontextmanager
    async def _ground(self) -> AsyncIterator[None]:
        """The database, and a proxy for each worker."""
        if not self._nodes:
            with sqlite3.connect(self._sqlite) as connection:
                for table in TABLES:
                    connection.execute(table.format(increment="AUTOINCREMENT"))
            connection.close()
            yield
            return
        first = self._nodes[0]
        first.step_clock(0.0)
        await asyncio.to_thread(first.create_database, self._database)
        if self._on_postgresql:
            tables = [table.format(increment="GENERATED ALWAYS AS IDENTITY") for table in TABLES]
            await asyncio.to_thread(postgresql.prepare, first, self._database, ("worker", HOG), tables)
        else:
            await asyncio.to_thread(self._prepare, first)
        async with AsyncExitStack() as stack:
            for number in range(WORKERS):
                node = self._node(number)
                self._proxies.append(await stack.enter_async_context(TCPProxy(node.host, node.port, node.kind)))
            yield
        await asyncio.to_thread(first.drop_database, self._database)

    def _prepare(self, first: Server) -> None:
        for user in ("worker", HOG):
            with contextlib.suppress(pymysql.Error):  # it is there from an earlier run
                first.create_user(user, "", f"ALL ON `{self._database}`.*")
            first.sql(f"GRANT ALL ON `{self._database}`.* TO '{user}'@'%'")
        for table in TABLES:
            first.sql(table.format(increment="AUTO_INCREMENT"), self._database)

    def _node(self, number: int) -> Server:
        return self._nodes[number % len(self._nodes)]

    async def _until(self, condition: Any, otherwise: str) -> None:
        deadline = time.monotonic() + LIMIT
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{otherwise} within {LIMIT:g} s:\n{Path(self._log.name).read_text()[-2000:]}")
            await asyncio.sleep(0.05)

    # -- the workers

    async def _start(self, number: int, program: Program | None = None) -> Worker:
        process = f"w{number}.{len(self._all) + 1}"
        drivers = ON_POSTGRESQL if self._on_postgresql else DRIVERS if self._nodes else ("url",)
        url, driver = self._url(number), drivers[number % len(drivers)]
        settings = Settings(
            process=process,
            journal=str(self._file),
            url=url,
            driver=driver,
            program=program or self.plan.programs[number],
            steps=self._steps,
            breakage=self._breakage,
        )
        running = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-W", "error", "-m", "tests.faults.worker", settings.dumps()),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,  # which ends with us, and the worker with it
            stdout=self._log,
            stderr=self._log,
        )
        worker = self._workers[number] = Worker(number, process, running)
        self._all.append(worker)
        return worker

    def _url(self, number: int) -> str:
        if not self._nodes:
            return f"sqlite:///{self._sqlite}"
        url = self._node(number).url(self._database, user="worker")
        return through(url, self._proxies[number].port) if number < len(self._proxies) else url

    def chosen(self, number: int) -> Worker | None:
        """A worker, unless it is ending, or not up yet."""
        worker = self._workers[number]
        return None if worker.awaited or not self._is_up(worker) else worker

    async def stop(self, worker: Worker) -> None:
        """Has a worker end in an orderly way, once it listens: one may just have been started in another's place."""
        worker.awaited = True
        await self._until(
            lambda: self._is_up(worker) or worker.running.returncode is not None, "a worker does not start"
        )
        with contextlib.suppress(ProcessLookupError):
            worker.running.terminate()
        try:
            async with asyncio.timeout(3.0 if self._breakage else LIMIT):
                status: int | None = await worker.running.wait()
        except TimeoutError:
            status = None  # it does not end
            worker.running.kill()
            await worker.running.wait()
        if status != 0:
            self._journal.write("killed" if self._breakage else "exited", process=worker.process, status=status)

    async def replace(self, worker: Worker, seconds: float) -> None:
        """Starts another in its place."""
        await asyncio.sleep(seconds)
        await self._start(worker.number)

    async def _watch(self) -> None:
        """Notes workers that end by themselves, and starts others."""
        while True:
            for number, worker in [*self._workers.items()]:
                if worker.running.returncode is not None and not worker.awaited:
                    worker.awaited = True
                    self._journal.write("exited", process=worker.process, status=worker.running.returncode)
                    await self._start(number)
            await asyncio.sleep(0.1)

    async def _led_again(self) -> None:
        """Waits until somebody leads, or should have."""
        deadline = time.monotonic() + TAKEOVER + 1.0
        while self._leader() is None and time.monotonic() < deadline:
            await asyncio.sleep(0.1)

    def _leader(self) -> int | None:
        """The worker whose body runs, as far as the journal tells."""
        running: dict[str, int] = {}
        for line in self._catch_up():
            if line.kind == "began":
                running[line.process] = int(line.process[1 : line.process.index(".")])
            elif line.kind in ("ended", "killed", "exited"):
                running.pop(line.process, None)
        return [*running.values()][-1] if running else None

    def _is_up(self, worker: Worker) -> bool:
        """Whether it has come so far that it listens to signals."""
        if not worker.up:
            worker.up = any(line.process == worker.process and line.kind == "started" for line in self._catch_up())
        return worker.up and worker.running.returncode is None

    def _catch_up(self) -> Sequence[Line]:
        """The journal up to now."""
        with open(self._file, "rb") as file:
            file.seek(self._read)
            for line in file:
                if line.endswith(b"\n"):
                    self.lines.append(Line.loads(line))
                    self._read += len(line)
        return self.lines

    # -- what befalls them

    async def _befall(self, number: int, fault: Fault, began: float) -> None:
        await asyncio.sleep(max(began + fault.at - time.monotonic(), 0.0))
        # Now, as it was planned, though it may have to wait for its turn.
        fault = replace(fault, worker=self._leader() or 0 if fault.worker == "leader" else fault.worker)
        async with self._havoc.alone(fault):
            hits = self._havoc.hits(fault, WORKERS)
            self._journal.write("fault", number=number, what=fault.kind, hits=hits, seconds=fault.seconds)
            bit = ""
            try:
                bit = await self._havoc.do(fault)
            finally:
                self._journal.write("healed", number=number, what=fault.kind, hits=hits, bit=bit)

    # -- the end

    async def _settled(self) -> Found:
        """Has one more worker claim what has fallen due by now, and run what was claimed; reads what is there then."""
        url = f"sqlite:///{self._sqlite}" if not self._nodes else self._nodes[0].url(self._database)
        async with open_store(url) as store:
            last = await self._start(WORKERS, "serve")
            due_by = None
            try:
                async with asyncio.timeout(4.0 if self._breakage else 3 * LIMIT):
                    while not self._has_led(last):
                        await asyncio.sleep(0.05)
                    due_by = await self._all_claimed(store)
                    for job in rules(steps=self._steps):
                        await _patiently(store.pause, LEASE_NAME, job)
                    while (await _patiently(store.take_stock, LEASE_NAME)).unfinished:
                        await asyncio.sleep(0.05)
            except TimeoutError:
                pass  # the audit says what is missing
            await self.stop(last)
            stock = await _patiently(store.take_stock, LEASE_NAME)
            runs: list[RunRecord] = []
            for job in stock.jobs:
                runs += await _patiently(partial(store.history, limit=10**6), LEASE_NAME, job)
        jobs = {name: replace(job, paused_at=None) for name, job in stock.jobs.items()}
        effects, payments = await _patiently(asyncio.to_thread, self._effects)
        return Found(effects=effects, payments=payments, jobs=jobs, runs=runs, due_by=due_by or stock.now)

    def _has_led(self, worker: Worker) -> bool:
        return any(line.process == worker.process and line.kind == "began" for line in self._catch_up())

    async def _all_claimed(self, store: Store) -> datetime:
        """Waits until nothing that was due when it was asked is unclaimed; returns that moment."""
        schedules = {name: job.schedule for name, job in rules(steps=self._steps).items()}
        now = None
        while True:
            stock = await _patiently(store.take_stock, LEASE_NAME)
            if schedules.keys() <= stock.jobs.keys():
                now = now or stock.now
                settled = {name: stock.jobs[name].settled_until for name in schedules}
                if not any(schedules[name].latest_between(at, now) for name, at in settled.items() if at < now):
                    return now
            await asyncio.sleep(0.05)

    def _effects(self) -> tuple[list[tuple[int, int]], list[Payment]]:
        effects = self._rows("SELECT token, n FROM effects ORDER BY id")
        payments = self._rows("SELECT token, job, tick, attempt FROM payments ORDER BY id")
        return (
            [(int(token), int(n)) for token, n in effects],
            [Payment(token=int(row[0]), job=row[1], tick=row[2], attempt=int(row[3])) for row in payments],
        )

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        if not self._nodes:
            with contextlib.closing(sqlite3.connect(self._sqlite)) as connection:
                return list(connection.execute(sql))
        if len(self._nodes) > 1:
            sql = f"SET STATEMENT wsrep_sync_wait = 1 FOR {sql}"
        return self._nodes[0].sql(sql, self._database)


async def _patiently(ask: Callable[..., Awaitable[T]], *of: Any) -> T:
    """Asks until there is an answer: a node that seems to be back may still find that the cluster lost it."""
    deadline = time.monotonic() + LIMIT
    while True:
        try:
            return await ask(*of)
        except (StoreUnavailable, pymysql.Error, psycopg.Error):
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run."""

    plan: Plan
    verdict: Verdict
    lines: Sequence[Line]
    log: str

    def explain(self) -> str:
        """For a person: the violations, what was going on then, the plan, and how to run it again."""
        parts = [str(self.verdict)]
        for at, what in self.verdict.violations[:5]:
            parts += [f"\n{at - self.lines[0].at:.3f} s: {what}", *self._around(at), *self._of_run(what)]
        return "\n".join([*parts, "", str(self.plan), "", *self.log.splitlines()[-40:]])

    def _around(self, at: float) -> Iterator[str]:
        """The journal around a moment, without what repeats."""
        quiet = {"alive", "renewed", "recording", "recorded", "begun", "over", "paying", "runfinished", "tickskipped"}
        last: dict[tuple[str, str], float] = {}
        for line in sorted(self.lines, key=lambda line: line.at):
            if not at - 4.0 < line.at < at + 1.0 or line.kind in quiet:
                continue
            seen = last.get((line.process, line.kind), 0.0)
            if line.kind in ("step", "committing", "committed", "paid") and line.at < seen + 0.5:
                continue  # one of many
            last[line.process, line.kind] = line.at
            yield f"    {line.at - self.lines[0].at:8.3f} {line}"

    def _of_run(self, what: str) -> Iterator[str]:
        """All that the journal says of a tick that a violation is about."""
        found = re.search(r"(\w+) (\d\d:\d\d:\d\d\.\d{6})", what)
        if found is None:
            return
        job, tick = found.groups()
        tick = tick.removesuffix(".000000")
        yield "  of this tick:"
        for line in sorted(self.lines, key=lambda line: line.at):
            claims = [claim for claim in line.facts.get("claims", ()) if claim[0] == job and tick in claim[1]]
            if claims or (line.facts.get("job") == job and tick in line.facts["tick"]):
                shown = replace(line, facts=line.facts | ({"claims": claims} if claims else {}))
                yield f"    {line.at - self.lines[0].at:8.3f} {shown}"


def complaints(log: str) -> Iterator[str]:
    """What the interpreter complains of in a log, each with what it says of it."""
    lines = log.splitlines()
    number = 0
    while number < len(lines):
        if COMPLAINTS.search(lines[number]):
            yield "\n".join(lines[number : number + 60])
            number += 60
        number += 1


async def carry_out(plan: Plan, nodes: Sequence[Server], breakage: Breakage = "") -> Outcome:
    """Runs a plan against servers that are there and whole, with a database of its own."""
    folder = Path(tempfile.mkdtemp(prefix="aiolease-faults-"))
    try:
        run = Run(plan, nodes, folder, breakage)
        verdict = await run.run()
        log = (folder / "log").read_text(errors="replace")
        if not breakage:
            end = run.lines[-1].at
            verdict.violations += [(end, f"in the log: {what}") for what in complaints(log)]
        return Outcome(plan, verdict, run.lines, log)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
