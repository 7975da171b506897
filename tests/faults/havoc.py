"""The faults of workers, network and server. Each method is one fault, from its start to its end.

It returns what shows that it bit, nothing if it did not: a leader may have ended just before it was to be frozen, and
nobody may have wanted the row that was locked.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import psycopg
import pymysql

from aiolease.stores.sqlite.dialect import microseconds, moment
from tests.faults import postgresql
from tests.faults.jobs import rules
from tests.faults.journal import Journal, Line
from tests.faults.plan import NETWORK, Fault
from tests.servers import GaleraCluster, MariaDBServer, Server, TCPProxy

HOG = "hog"
"""The user who takes all connections."""

_REFUSED = {"read-only": {1290, 1836}, "no connections": {1040}}


@dataclass(slots=True)
class Worker:
    """One worker process; when it has ended, another takes its place."""

    number: int
    process: str
    running: asyncio.subprocess.Process
    up: bool = False
    awaited: bool = False
    """Whether its end is ours, and no surprise."""


class Havoc:
    """All that can befall one run."""

    def __init__(
        self,
        run: Any,
        nodes: Sequence[Server],
        proxies: Sequence[TCPProxy],
        *,
        database: str,
        file: Path,
        journal: Journal,
        lines: Callable[[], Sequence[Line]],
    ) -> None:
        self._run = run
        self._nodes = nodes
        self._proxies = proxies
        self._database = database
        self._file = file
        self._journal = journal
        self._lines = lines
        self._ahead_by = 0.0  # the server's clock
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def do(self, fault: Fault) -> str:
        """Does it, and returns when it is over."""
        method = getattr(self, "_" + fault.kind.replace("-", "_").replace(" ", "_"))
        return str(await method(fault))

    def hits(self, fault: Fault, workers: int) -> list[int]:
        """The workers that may not be able to lead while it lasts."""
        if fault.kind in {"step clock", "long reader", "meddle"}:
            return []
        if len(self._nodes) > 1 and fault.kind in {"read-only", "no connections"}:
            struck = self._nodes.index(self._node(fault))
            return [number for number in range(workers) if number % len(self._nodes) == struck]
        # SQLite has one writer: one that is frozen while it writes holds up all.
        if fault.outage or (not self._nodes and fault.kind == "freeze worker"):
            return [*range(workers)]
        return [int(fault.worker)]

    def alone(self, fault: Fault) -> asyncio.Lock:
        """What a fault holds: two that would end each other early do not overlap."""
        if fault.outage:
            return self._locks[""]
        group = "network" if fault.kind in NETWORK else fault.kind
        return self._locks[f"{group} {fault.worker}"]

    # -- a worker

    def _chosen(self, fault: Fault) -> Worker | None:
        """The worker that is struck; ``None`` if it is ending already."""
        chosen: Worker | None = self._run.chosen(int(fault.worker))
        return chosen

    async def _kill_worker(self, fault: Fault) -> str:
        worker = self._chosen(fault)
        if worker is None:
            return ""
        worker.awaited = True
        worker.running.kill()
        status = await worker.running.wait()
        self._journal.write("killed", process=worker.process)
        await self._run.replace(worker, fault.seconds)
        return f"{worker.process} ended with {status}" if status == -signal.SIGKILL else ""

    async def _stop_worker(self, fault: Fault) -> str:
        worker = self._chosen(fault)
        if worker is None:
            return ""
        began = time.monotonic()
        await self._run.stop(worker)
        took = time.monotonic() - began
        await self._run.replace(worker, fault.seconds)
        return f"{worker.process} took {took:.2f} s to stop"

    async def _resign(self, fault: Fault) -> str:
        worker = self._chosen(fault)
        if worker is None:
            return ""
        worker.running.send_signal(signal.SIGUSR1)
        await asyncio.sleep(fault.seconds)
        resigned = [line for line in self._lines() if line.process == worker.process and line.kind == "resigned"]
        return f"{worker.process} has resigned" if resigned else ""

    async def _freeze_worker(self, fault: Fault) -> str:
        worker = self._chosen(fault)
        if worker is None:
            return ""
        self._journal.write("frozen", process=worker.process)
        worker.running.send_signal(signal.SIGSTOP)
        await asyncio.sleep(fault.seconds)
        state = _state(worker.running.pid)
        if worker.running.returncode is None:
            worker.running.send_signal(signal.SIGCONT)
            self._journal.write("thawed", process=worker.process)
        return f"{worker.process} was in state {state}" if state == "T" else ""

    # -- its network

    def _proxy(self, fault: Fault) -> TCPProxy:
        return self._proxies[int(fault.worker)]

    async def _delay(self, fault: Fault) -> str:
        proxy, passed = self._proxy(fault), self._proxy(fault).bytes_to_server
        seconds = 0.01 + 0.4 * fault.amount
        proxy.delay(seconds)
        await asyncio.sleep(fault.seconds)
        proxy.delay(0.0)
        passed = proxy.bytes_to_server - passed
        return f"{passed} bytes were {seconds:.2f} s late" if passed else ""

    async def _cut(self, fault: Fault) -> str:
        live = self._proxy(fault).live
        self._proxy(fault).cut()
        return f"{live} connections were cut" if live else ""

    async def _swallow_answers(self, fault: Fault) -> str:
        return await self._swallow(self._proxy(fault), "to_client", "to_server", fault.seconds)

    async def _swallow_queries(self, fault: Fault) -> str:
        return await self._swallow(self._proxy(fault), "to_server", "to_client", fault.seconds)

    async def _swallow(
        self, proxy: TCPProxy, side: Literal["to_server", "to_client"], other: Literal["to_server", "to_client"],
        seconds: float,
    ) -> str:  # fmt: skip
        before = dict(proxy.swallowed)  # by nothing else meanwhile: see `alone`
        proxy.swallow(side)
        await asyncio.sleep(seconds)
        proxy.heal()
        vanished = proxy.swallowed[side] - before[side]
        assert proxy.swallowed[other] == before[other]
        return f"{vanished} bytes {side} have vanished" if vanished else ""

    async def _refuse(self, fault: Fault) -> str:
        proxy = self._proxy(fault)
        proxy.refuse()
        proxy.cut()
        refused = ""
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.close()
        except ConnectionRefusedError as error:
            refused = str(error)
        await asyncio.sleep(fault.seconds)
        proxy.heal()
        return refused

    # -- the server, or one node

    def _node(self, fault: Fault) -> Server:
        return self._nodes[int(fault.amount * len(self._nodes))]

    async def _kill_server(self, fault: Fault) -> str:
        return await self._restarted(self._node(fault), self._node(fault).kill, fault.seconds)

    async def _restart_server(self, fault: Fault) -> str:
        return await self._restarted(self._node(fault), self._node(fault).stop, fault.seconds)

    async def _restarted(self, node: Server, end: Callable[[], None], seconds: float) -> str:
        pid = node.pid
        await asyncio.to_thread(end)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(node.restart)
        return f"process {pid} became {node.pid}" if node.pid != pid else ""

    async def _freeze_server(self, fault: Fault) -> str:
        node = self._node(fault)
        node.freeze()
        await asyncio.sleep(fault.seconds)
        state = _state(node.pid)
        node.thaw()
        return f"it was in state {state}" if state == "T" else ""

    async def _kill_connections(self, fault: Fault) -> str:
        killed = await asyncio.to_thread(self._end_sessions, self._node(fault))
        return f"{killed} connections were killed" if killed else ""

    def _end_sessions(self, node: Server) -> int:
        if node.kind == "postgresql":
            return postgresql.end_sessions(node, self._database)
        with self._connect(node, "root") as session, session.cursor() as cursor:
            return self._kill_sessions(cursor)

    def _kill_sessions(self, cursor: Any) -> int:
        killed = 0
        cursor.execute("SHOW PROCESSLIST")
        for session, user, _, database, *_ in cursor.fetchall():
            if user == "worker" and database in {self._database, None}:
                with contextlib.suppress(pymysql.Error):  # gone by itself
                    cursor.execute(f"KILL {session}")
                    killed += 1
        return killed

    async def _read_only(self, fault: Fault) -> str:
        node = self._node(fault)
        await asyncio.to_thread(node.sql, "SET GLOBAL read_only = 1")
        try:
            await asyncio.sleep(fault.seconds)
            return await asyncio.to_thread(self._refused, node, fault.kind)
        finally:
            await asyncio.to_thread(node.sql, "SET GLOBAL read_only = 0")

    def _refused(self, node: Server, kind: str) -> str:
        """What the server says to a worker that wants to write."""
        try:
            with self._connect(node, "worker") as session, session.cursor() as cursor:
                cursor.execute("DELETE FROM effects WHERE 1 = 0")
        except pymysql.Error as error:
            return str(error.args[1]) if error.args[0] in _REFUSED[kind] else ""
        return ""

    async def _no_connections(self, fault: Fault) -> str:
        """Every connection that the server gives out is taken, and no worker has one."""
        node, taken = self._node(fault), list[Any]()
        if node.kind == "postgresql":
            return await self._no_more_for_workers(node, fault.seconds)
        until, refused, left = time.monotonic() + fault.seconds, "", 1
        with await asyncio.to_thread(self._connect, node, "root") as session, session.cursor() as cursor:
            cursor.execute("SELECT @@GLOBAL.max_connections")
            usual = cursor.fetchone()[0]
            cursor.execute("SET GLOBAL max_connections = 10")
            try:
                while left and time.monotonic() < until:
                    left = await asyncio.to_thread(self._kill_sessions, cursor)
                    refused = ""
                    while not refused:  # the workers may have been faster than we
                        refused = await asyncio.to_thread(self._take, node, taken)
                await asyncio.sleep(until - time.monotonic())
            finally:
                for other in taken:
                    other.close()
                cursor.execute(f"SET GLOBAL max_connections = {usual}")
        return "" if left else f"{len(taken)} connections were taken: {refused}"

    async def _no_more_for_workers(self, node: Server, seconds: float) -> str:
        refused = await asyncio.to_thread(postgresql.let_in, node, self._database, nobody=True)
        try:
            ended = await asyncio.to_thread(postgresql.end_sessions, node, self._database)
            await asyncio.sleep(seconds)
        finally:
            await asyncio.to_thread(postgresql.let_in, node, self._database, nobody=False)
        return f"{ended} connections were ended: {refused}" if refused and ended else ""

    def _take(self, node: Server, taken: list[Any]) -> str:
        try:
            taken.append(self._connect(node, HOG))
        except pymysql.Error as error:
            if error.args[0] not in _REFUSED["no connections"]:
                raise
            return str(error.args[1])
        return ""

    def _connect(self, node: Server, user: str) -> Any:
        if node.kind == "postgresql":
            return postgresql.connect(node, node.user if user == "root" else user, self._database)
        return pymysql.connect(
            host=node.host, port=node.port, user=user, database=self._database, read_timeout=10, ssl_disabled=True
        )

    async def _lock_lease(self, fault: Fault) -> str:
        return await self._lock(fault, "aiolease_lease")

    async def _lock_fence(self, fault: Fault) -> str:
        return await self._lock(fault, "aiolease_fence")

    async def _lock_ledger(self, fault: Fault) -> str:
        return await self._lock(fault, "aiolease_job", "aiolease_run")

    async def _lock(self, fault: Fault, *tables: str) -> str:
        """Another session holds the rows; on a cluster until a node that knows nothing of it commits a change."""
        node, until = self._node(fault), time.monotonic() + fault.seconds
        waited = set[str]()
        with await asyncio.to_thread(self._connect, node, "root") as session, session.cursor() as cursor:
            with contextlib.suppress(pymysql.Error, psycopg.Error):  # the cluster refuses it, or it lost a deadlock
                for table in tables:
                    await asyncio.to_thread(cursor.execute, f"SELECT * FROM {table} FOR UPDATE")
            while (left := until - time.monotonic()) > 0:
                waited |= await asyncio.to_thread(_waited_for, node)
                await asyncio.sleep(min(left, 0.2))
            with contextlib.suppress(pymysql.Error, psycopg.Error):
                session.rollback()
        bit = sorted(table for table in tables if any(table in lock for lock in waited))
        return f"others waited for {', '.join(bit)}" if bit else ""

    async def _meddle(self, fault: Fault) -> str:
        """A person sets a job's high tick back by some seconds: its ticks seem due again, and have rows."""
        names = sorted(rules(steps=False))
        job = names[int(fault.amount * len(names))]
        with contextlib.suppress(pymysql.Error, psycopg.Error, sqlite3.Error):
            before = await asyncio.to_thread(self._set_back, job, fault)
            if before is None:
                return ""
            await asyncio.sleep(fault.seconds)
            after = await asyncio.to_thread(self._high_tick, job, fault)
            return f"{job} went on from {before} to {after}" if after and after > before else ""
        return ""

    def _set_back(self, job: str, fault: Fault) -> datetime | None:
        """Returns from where it was set back; nothing if it was not: a leader has claimed a tick meanwhile."""
        high_tick = self._high_tick(job, fault)
        if high_tick is None:
            return None
        since = high_tick - timedelta(seconds=fault.seconds)
        self._journal.write("meddled", job=job, since=since.isoformat(), until=high_tick.isoformat())
        sql = "UPDATE aiolease_job SET high_tick = ? WHERE job = ? AND high_tick = ?"
        _, changed = self._ask(sql, fault, since, job, high_tick)
        return high_tick if changed else None

    def _high_tick(self, job: str, fault: Fault) -> datetime | None:
        rows, _ = self._ask("SELECT high_tick FROM aiolease_job WHERE job = ?", fault, job)
        return rows[0][0] if rows else None

    def _ask(self, sql: str, fault: Fault, *values: str | datetime) -> tuple[list[Any], int]:
        """Has a server, or the file, execute a statement: its rows, and how many it changed. Moments are aware."""
        if self._nodes:
            aware = self._node(fault).kind == "postgresql"
            naive = [v.replace(tzinfo=None) if isinstance(v, datetime) and not aware else v for v in values]
            with self._connect(self._node(fault), "root") as session, session.cursor() as cursor:
                cursor.execute(sql.replace("?", "%s"), naive)
                rows = cursor.fetchall() if cursor.description else []
                found = [[v and (v.astimezone(UTC) if aware else v.replace(tzinfo=UTC)) for v in row] for row in rows]
                session.commit()
                return found, cursor.rowcount
        numbers = [microseconds(value) if isinstance(value, datetime) else value for value in values]
        with contextlib.closing(sqlite3.connect(self._file, timeout=2.0)) as connection, connection:
            done = connection.execute(sql, numbers)
            return [[value and moment(value) for value in row] for row in done], done.rowcount

    async def _step_clock(self, fault: Fault) -> str:
        """Steps it by about a lease or by up to an hour; more often forward, since nothing is due until it is back."""
        by = fault.amount
        far = 3600.0 * ((by - 0.6) / 0.25 if by < 0.85 else by - 1.0)
        seconds = far if by > 0.6 else 8.0 * (by - 0.3) / 0.3
        self._ahead_by += seconds
        self._nodes[0].step_clock(self._ahead_by)
        self._journal.write("stepped", seconds=seconds)
        shown = await asyncio.to_thread(self._ahead)
        await asyncio.sleep(fault.seconds)
        if shown is None:
            return ""
        return f"it is {shown:+.3f} s ahead, as asked" if abs(shown - self._ahead_by) < 1.0 else ""

    def _ahead(self) -> float | None:
        """By how much the server's clock is ahead; ``None`` if it does not say."""
        try:
            now = self._nodes[0].sql("SELECT UTC_TIMESTAMP(6)")[0][0]
        except pymysql.Error:
            return None
        return float((now.replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds())

    # -- a cluster

    async def _kill_node(self, fault: Fault) -> str:
        return await self._lost_and_back(fault, self._node(fault).kill)

    async def _restart_node(self, fault: Fault) -> str:
        return await self._lost_and_back(fault, self._node(fault).stop)

    async def _lost_and_back(self, fault: Fault, end: Callable[[], None]) -> str:
        node = self._node(fault)
        other = next(other for other in self._nodes if other is not node)
        watch = asyncio.create_task(self._smallest(other))
        bit = await self._restarted(node, end, fault.seconds)
        await self._synced()
        watch.cancel()
        smallest = await watch
        return f"{bit}, the cluster had {smallest} nodes" if bit and smallest < len(self._nodes) else ""

    async def _smallest(self, node: Server) -> int:
        """The smallest cluster that a node has seen until this is cancelled."""
        smallest = len(self._nodes)
        try:
            while True:
                with contextlib.suppress(pymysql.Error):
                    rows = await asyncio.to_thread(node.sql, "SHOW STATUS LIKE 'wsrep_cluster_size'")
                    smallest = min(smallest, int(rows[0][1]))
                await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            return smallest

    async def _freeze_node(self, fault: Fault) -> str:
        bit = await self._freeze_server(fault)
        await self._synced()
        return bit

    async def _synced(self) -> None:
        """Waits until all nodes are one cluster again: until all say so, and each has committed something.

        What they say is not enough: one that was frozen, and those that have not missed it yet, may be wrong.
        """
        nodes = [node for node in self._nodes if isinstance(node, MariaDBServer)]
        whole = ("Primary", len(nodes), "Synced")
        async with asyncio.timeout(60.0):
            for node in nodes:
                while True:
                    with contextlib.suppress(pymysql.Error):
                        await asyncio.to_thread(node.sql, "INSERT INTO probes () VALUES ()", self._database)
                        if await asyncio.to_thread(GaleraCluster.status, node) == whole:
                            break
                    await asyncio.sleep(0.1)

    # -- a file

    async def _lock_file(self, fault: Fault) -> str:
        """Another process writes for long."""
        until = time.monotonic() + fault.seconds
        connection = sqlite3.connect(self._file, isolation_level=None, timeout=0.0)
        try:
            while True:
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    break
                except sqlite3.OperationalError:  # a worker writes, and may be frozen
                    if time.monotonic() > until:
                        return ""
                await asyncio.sleep(0.01)
            since = time.monotonic()
            await asyncio.sleep(until - since)
        finally:
            connection.close()
        late = [line for line in self._lines() if line.kind == "recorded" and since + 0.05 < line.at < until]
        return "" if late else "nobody wrote"

    async def _long_reader(self, fault: Fault) -> str:
        """Another process reads for long: the log of changes cannot be folded into the file meanwhile."""
        connection = sqlite3.connect(self._file, isolation_level=None, timeout=5.0)
        try:
            connection.execute("BEGIN")
            count = "SELECT COUNT(*) FROM aiolease_run"
            before = connection.execute(count).fetchone()
            await asyncio.sleep(fault.seconds)
            assert connection.execute(count).fetchone() == before
            with contextlib.closing(sqlite3.connect(self._file)) as other:
                after = other.execute(count).fetchone()
        finally:
            connection.close()
        return f"{after[0] - before[0]} rows were written beside it" if after != before else ""


def _waited_for(node: Server) -> set[str]:
    """The tables some row of which is waited for."""
    if node.kind == "postgresql":
        return postgresql.waited_for(node)
    if node.kind == "mysql":
        sql = "SELECT DISTINCT object_name FROM performance_schema.data_locks WHERE lock_status = 'WAITING'"
    else:
        sql = "SELECT DISTINCT lock_table FROM information_schema.innodb_locks"
    try:
        return {str(row[0]) for row in node.sql(sql)}
    except pymysql.Error:
        return set()


def _state(pid: int) -> str:
    """What the kernel calls the state of a process: ``T`` if it is stopped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
