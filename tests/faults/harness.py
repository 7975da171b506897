"""Carries a plan out: a private server, a proxy before each worker, the workers, and everything that befalls them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pymysql

from tests.campaigns import ROOT, through
from tests.faults.journal import HARNESS, Journal, Line, Verdict, judge
from tests.faults.plan import WORKERS, Fault, Plan, ServerKind
from tests.faults.worker import Breakage, Driver, Settings
from tests.servers import GaleraCluster, MariaDBServer, MySQLServer, Server, TCPProxy

DRIVERS: tuple[Driver, ...] = ("asyncmy", "url", "aiomysql", "sqlalchemy")

DATABASE = "faults"

EFFECTS = """CREATE TABLE effects (
    id INTEGER PRIMARY KEY {increment}, process VARCHAR(20) NOT NULL, token BIGINT NOT NULL, n BIGINT NOT NULL,
    UNIQUE (token, n)
)"""

TAKEOVER = 9.0
"""Seconds without a leader while some worker is well: a lease of a leader that was lost, and one of a claim whose
answer was lost, which a network may do to a candidate as well; then time to connect anew."""

LIMIT = 30.0
"""Seconds within which a worker ends, once it is asked to."""


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
        case _:
            with MariaDBServer.start(faketime=kind == "faketime") as mariadb:
                yield [mariadb]


@dataclass(slots=True)
class Worker:
    """One worker process; when it has ended, another takes its place."""

    process: str
    running: asyncio.subprocess.Process
    up: bool = False
    awaited: bool = False
    """Whether its end is ours, and no surprise."""


class Run:
    """One run of a plan."""

    def __init__(self, plan: Plan, nodes: Sequence[Server], folder: Path, breakage: Breakage = "") -> None:
        self.plan = plan
        self._nodes = nodes
        self._folder = folder
        self._breakage = breakage
        self._file = folder / "journal"
        self._read = 0
        self.lines: list[Line] = []
        self._journal = Journal(self._file, HARNESS)
        self._proxies: list[TCPProxy] = []
        self._workers: dict[int, Worker] = {}
        self._started = 0
        self._one_outage = asyncio.Lock()  # a restart may take longer than planned
        self._log = open(folder / "log", "ab")  # noqa: SIM115 - closed with the run
        self._database = f"{DATABASE}_{os.getpid()}_{time.monotonic_ns()}"

    async def run(self) -> Verdict:
        """From the first start to the verdict."""
        try:
            async with self._ground():
                for number in range(WORKERS):
                    await self._start(number)
                async with asyncio.timeout(LIMIT):
                    while not all(map(self._is_up, self._workers.values())):
                        await asyncio.sleep(0.05)
                began = time.monotonic()
                async with asyncio.TaskGroup() as tasks:
                    watch = tasks.create_task(self._watch())
                    async with asyncio.TaskGroup() as faults:
                        for number, fault in enumerate(self.plan.faults):
                            faults.create_task(self._befall(number, fault, began))
                    await asyncio.sleep(began + self.plan.seconds - time.monotonic())
                    await self._led_again()
                    watch.cancel()
                finished = time.monotonic()
                await asyncio.gather(*(self._stop(worker) for worker in self._workers.values()))
                rows = await asyncio.to_thread(self._effects)
        finally:
            for worker in self._workers.values():
                with contextlib.suppress(ProcessLookupError):
                    worker.running.kill()
            await asyncio.gather(*(worker.running.wait() for worker in self._workers.values()))
            self._journal.close()
            self._log.close()
        self._catch_up()
        lines = [line for line in self.lines if line.at <= finished or line.kind == "exited"]
        return judge(lines, rows, takeover=TAKEOVER, in_order=len(self._nodes) < 2)

    @asynccontextmanager
    async def _ground(self) -> AsyncIterator[None]:
        """The database, and a proxy for each worker."""
        if not self._nodes:
            with sqlite3.connect(self._folder / "file.db") as connection:
                connection.execute(EFFECTS.format(increment="AUTOINCREMENT"))
            connection.close()
            yield
            return
        first = self._nodes[0]
        await asyncio.to_thread(first.create_database, self._database)
        with contextlib.suppress(pymysql.Error):  # it is there from an earlier run
            await asyncio.to_thread(first.create_user, "worker", "", f"ALL ON `{self._database}`.*")
        first.sql(f"GRANT ALL ON `{self._database}`.* TO 'worker'@'%'")
        first.sql(EFFECTS.format(increment="AUTO_INCREMENT"), self._database)
        async with AsyncExitStack() as stack:
            for number in range(WORKERS):
                node = self._node(number)
                self._proxies.append(await stack.enter_async_context(TCPProxy(node.host, node.port)))
            yield

    def _node(self, number: int) -> Server:
        return self._nodes[number % len(self._nodes)]

    def _effects(self) -> list[tuple[int, int]]:
        sql = "SELECT token, n FROM effects ORDER BY id"
        if not self._nodes:
            with contextlib.closing(sqlite3.connect(self._folder / "file.db")) as connection:
                return list(connection.execute(sql))
        if len(self._nodes) > 1:
            sql = f"SET STATEMENT wsrep_sync_wait = 1 FOR {sql}"
        return [(int(token), int(n)) for token, n in self._nodes[0].sql(sql, self._database)]

    # -- the workers

    async def _start(self, number: int) -> None:
        self._started += 1
        process = f"w{number}.{self._started}"
        if self._nodes:
            node = self._node(number)
            url = through(node.url(self._database, user="worker"), self._proxies[number].port)
            driver = DRIVERS[number % len(DRIVERS)]
        else:
            url, driver = f"sqlite:///{self._folder / 'file.db'}", DRIVERS[1]
        settings = Settings(process=process, journal=str(self._file), url=url, driver=driver, breakage=self._breakage)
        running = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tests.faults.worker", settings.dumps()),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,  # which ends with us, and the worker with it
            stdout=self._log,
            stderr=self._log,
        )
        self._workers[number] = Worker(process, running)

    async def _stop(self, worker: Worker) -> None:
        """Has a worker end in an orderly way."""
        worker.awaited = True
        worker.running.terminate()
        try:
            async with asyncio.timeout(3.0 if self._breakage else LIMIT):
                status: int | None = await worker.running.wait()
        except TimeoutError:
            status = None  # it does not end
            worker.running.kill()
            await worker.running.wait()
        if status != 0 and not self._breakage:
            self._journal.write("exited", process=worker.process, status=status)

    async def _watch(self) -> None:
        """Notes workers that end by themselves, and starts others."""
        while True:
            for number, worker in [*self._workers.items()]:
                if worker.running.returncode is not None and not worker.awaited:
                    self._journal.write("exited", process=worker.process, status=worker.running.returncode)
                    await self._start(number)
            await asyncio.sleep(0.1)

    async def _led_again(self) -> None:
        """Waits until somebody leads, or should have."""
        async with asyncio.timeout(TAKEOVER + 1.0) as patience:
            while self._leader() is None:
                await asyncio.sleep(0.1)
            patience.reschedule(None)

    def _leader(self) -> int | None:
        """The worker whose body runs, as far as the journal tells."""
        self._catch_up()
        running: dict[str, int] = {}
        for line in self.lines:
            if line.kind == "began":
                running[line.process] = int(line.process[1 : line.process.index(".")])
            elif line.kind in ("ended", "killed", "exited"):
                running.pop(line.process, None)
        return [*running.values()][-1] if running else None

    def _is_up(self, worker: Worker) -> bool:
        """Whether it has come so far that it listens to signals."""
        if not worker.up:
            self._catch_up()
            worker.up = any(line.process == worker.process and line.kind == "started" for line in self.lines)
        return worker.up and worker.running.returncode is None

    def _catch_up(self) -> None:
        with open(self._file, "rb") as file:
            file.seek(self._read)
            for line in file:
                if line.endswith(b"\n"):
                    self.lines.append(Line.loads(line))
                    self._read += len(line)

    # -- what befalls them

    async def _befall(self, number: int, fault: Fault, began: float) -> None:
        await asyncio.sleep(max(began + fault.at - time.monotonic(), 0.0))
        method: Callable[[Fault], Coroutine[Any, Any, None]] = getattr(
            self, "_" + fault.kind.replace("-", " ").replace(" ", "_")
        )
        fault = replace(fault, worker=self._leader() or 0 if fault.worker == "leader" else fault.worker)
        if fault.outage or (not self._nodes and fault.kind == "freeze worker"):
            hits = [*range(WORKERS)]  # SQLite has one writer: one that is frozen while it writes holds up all
        else:
            hits = [] if fault.kind == "step clock" else [fault.worker]
        self._journal.write("fault", number=number, what=fault.kind, hits=hits, seconds=fault.seconds)
        try:
            async with self._one_outage if fault.outage else contextlib.nullcontext():
                await method(fault)
        finally:
            self._journal.write("healed", number=number, what=fault.kind, hits=hits)

    def _chosen(self, fault: Fault) -> Worker | None:
        """Whom it befalls; nobody if that one is ending already."""
        worker = self._workers[int(fault.worker)]
        return None if worker.awaited or not self._is_up(worker) else worker

    def _proxy(self, fault: Fault) -> TCPProxy:
        return self._proxies[int(fault.worker)]

    async def _replace(self, worker: Worker, seconds: float) -> None:
        await asyncio.sleep(seconds)
        number = next(number for number, other in self._workers.items() if other is worker)
        await self._start(number)

    async def _kill_worker(self, fault: Fault) -> None:
        if worker := self._chosen(fault):
            worker.awaited = True
            worker.running.kill()
            await worker.running.wait()
            self._journal.write("killed", process=worker.process)
            await self._replace(worker, fault.seconds)

    async def _stop_worker(self, fault: Fault) -> None:
        if worker := self._chosen(fault):
            await self._stop(worker)
            await self._replace(worker, fault.seconds)

    async def _resign(self, fault: Fault) -> None:
        if worker := self._chosen(fault):
            worker.running.send_signal(signal.SIGUSR1)

    async def _freeze_worker(self, fault: Fault) -> None:
        if worker := self._chosen(fault):
            self._journal.write("frozen", process=worker.process)
            worker.running.send_signal(signal.SIGSTOP)
            await asyncio.sleep(fault.seconds)
            if worker.running.returncode is None:
                worker.running.send_signal(signal.SIGCONT)
                self._journal.write("thawed", process=worker.process)

    async def _delay(self, fault: Fault) -> None:
        proxy = self._proxy(fault)
        proxy.delay(0.01 + 0.4 * fault.amount)
        await asyncio.sleep(fault.seconds)
        proxy.delay(0.0)

    async def _cut(self, fault: Fault) -> None:
        self._proxy(fault).cut()

    async def _swallow_answers(self, fault: Fault) -> None:
        await self._swallow(self._proxy(fault), "to_client", fault.seconds)

    async def _swallow_queries(self, fault: Fault) -> None:
        await self._swallow(self._proxy(fault), "to_server", fault.seconds)

    async def _swallow(self, proxy: TCPProxy, direction: Any, seconds: float) -> None:
        proxy.swallow(direction)
        await asyncio.sleep(seconds)
        proxy.heal()

    async def _refuse(self, fault: Fault) -> None:
        proxy = self._proxy(fault)
        proxy.refuse()
        proxy.cut()
        await asyncio.sleep(fault.seconds)
        proxy.heal()

    async def _kill_server(self, fault: Fault) -> None:
        await asyncio.to_thread(self._nodes[0].kill)
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(self._nodes[0].restart)

    async def _restart_server(self, fault: Fault) -> None:
        await asyncio.to_thread(self._nodes[0].stop)
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(self._nodes[0].restart)

    async def _freeze_server(self, fault: Fault) -> None:
        self._nodes[0].freeze()
        await asyncio.sleep(fault.seconds)
        self._nodes[0].thaw()

    async def _kill_connections(self, fault: Fault) -> None:
        node = self._nodes[int(fault.amount * len(self._nodes))]
        await asyncio.to_thread(self._end_sessions, node)

    def _end_sessions(self, node: Server) -> None:
        for session, user, *_ in node.sql("SHOW PROCESSLIST"):
            if user == "worker":
                with contextlib.suppress(pymysql.Error):  # gone by itself
                    node.sql(f"KILL {session}")

    async def _read_only(self, fault: Fault) -> None:
        await asyncio.to_thread(self._nodes[0].sql, "SET GLOBAL read_only = 1")
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(self._nodes[0].sql, "SET GLOBAL read_only = 0")

    async def _lock_lease(self, fault: Fault) -> None:
        """Another session holds the lease's row; on SQLite, the whole file."""
        if not self._nodes:
            connection = sqlite3.connect(self._folder / "file.db", isolation_level=None)
            try:
                connection.execute("BEGIN IMMEDIATE")
                await asyncio.sleep(fault.seconds)
            finally:
                connection.close()
            return
        with await asyncio.to_thread(self._connect, "root") as session, session.cursor() as cursor:
            with contextlib.suppress(pymysql.Error):  # the cluster refuses it, or it lost a deadlock
                await asyncio.to_thread(cursor.execute, "SELECT * FROM aiolease_lease FOR UPDATE")
            await asyncio.sleep(fault.seconds)

    async def _no_connections(self, fault: Fault) -> None:
        """Every connection that the server gives out is taken."""
        node, taken = self._nodes[0], []
        usual = node.sql("SELECT @@GLOBAL.max_connections")[0][0]
        node.sql("SET GLOBAL max_connections = 10")
        try:
            await asyncio.to_thread(self._end_sessions, node)
            for _ in range(10):
                with contextlib.suppress(pymysql.Error):  # the workers were faster
                    taken.append(await asyncio.to_thread(self._connect, "worker"))
            await asyncio.sleep(fault.seconds)
        finally:
            for session in taken:
                session.close()
            node.sql(f"SET GLOBAL max_connections = {usual}")

    def _connect(self, user: str) -> Any:
        node = self._nodes[0]
        return pymysql.connect(
            host=node.host, port=node.port, user=user, database=self._database, read_timeout=10, ssl_disabled=True
        )

    async def _step_clock(self, fault: Fault) -> None:
        """Steps it by up to an hour either way, or by about a lease; it stays there until the next step."""
        sign, size = (1.0, fault.amount * 2) if fault.amount < 0.5 else (-1.0, fault.amount * 2 - 1)
        seconds = sign * (3600.0 * size if size > 0.5 else 8.0 * size)
        self._nodes[0].step_clock(seconds)
        self._journal.write("stepped", seconds=seconds)
        await asyncio.sleep(fault.seconds)

    async def _kill_node(self, fault: Fault) -> None:
        node = self._nodes[int(fault.amount * len(self._nodes))]
        await asyncio.to_thread(node.kill)
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(node.restart)
        await self._synced()

    async def _freeze_node(self, fault: Fault) -> None:
        node = self._nodes[int(fault.amount * len(self._nodes))]
        node.freeze()
        await asyncio.sleep(fault.seconds)
        node.thaw()
        await self._synced()

    async def _synced(self) -> None:
        """Waits until all nodes are one cluster again."""
        nodes = [node for node in self._nodes if isinstance(node, MariaDBServer)]
        whole = ("Primary", len(nodes), "Synced")
        async with asyncio.timeout(60.0):
            for node in nodes:
                while True:
                    with contextlib.suppress(pymysql.Error):
                        if await asyncio.to_thread(GaleraCluster.status, node) == whole:
                            break
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
        zero = self.lines[0].at
        for at, what in self.verdict.violations[:5]:
            parts.append(f"\n{at - zero:.3f} s: {what}")
            near = [r for r in self.lines if at - 4.0 < r.at < at + 1.0 and r.kind not in ("alive", "renewed")]
            last: dict[tuple[str, str], float] = {}
            for line in sorted(near, key=lambda line: line.at):
                seen = last.get((line.process, line.kind), 0.0)
                if line.kind in ("step", "committing", "committed") and line.at < seen + 0.5:
                    continue  # one of many
                last[line.process, line.kind] = line.at
                parts.append(f"    {line.at - zero:8.3f} {line}")
        return "\n".join([*parts, "", str(self.plan), "", *self.log.splitlines()[-40:]])


async def carry_out(plan: Plan, nodes: Sequence[Server], breakage: Breakage = "") -> Outcome:
    """Runs a plan against servers that are there and whole, with a database of its own."""
    folder = Path(tempfile.mkdtemp(prefix="aiolease-faults-"))
    try:
        run = Run(plan, nodes, folder, breakage)
        verdict = await run.run()
        return Outcome(plan, verdict, run.lines, (folder / "log").read_text(errors="replace"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
