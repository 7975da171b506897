"""A fleet of true processes on a true database, and what may befall its leader."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from aiolease import open_store
from aiolease._clock import boot_clock
from aiolease.stores import Store
from aiolease.stores.records import RunRecord
from tests.campaigns import database_of, through, until
from tests.jobs.failover_verdict import FINAL, RERUN, wrong_effects, wrong_grid, wrong_order, wrong_runs
from tests.jobs.failover_worker import TIMINGS, micros
from tests.project import ROOT
from tests.servers import Server, TCPProxy

T = TypeVar("T")

LIMIT = 30.0
"""Seconds within which everything here has to happen."""

SEED = int(os.environ.get("AIOLEASE_SEED", "1"))


LEASE, HEARTBEAT = TIMINGS["lease_duration"], TIMINGS["heartbeat_interval"]
NAME = "default"


COMPLAINTS = re.compile("never retrieved|never awaited|was destroyed|Exception in|ResourceWarning")


@dataclass
class Place:
    """A database that is fresh, with the table that jobs write to."""

    url: str
    server: Server | None

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        if self.server is not None:
            return self.server.sql(statement, database_of(self.url))
        with closing(sqlite3.connect(self.url.removeprefix("sqlite:///"), timeout=LIMIT)) as connection, connection:
            return list(connection.execute(statement))

    def locked(self) -> bool:
        """Whether nobody can write: the file is locked by somebody's transaction."""
        if self.server is not None:
            return False
        with closing(sqlite3.connect(self.url.removeprefix("sqlite:///"), timeout=0.0)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
            return False

    def effects(self) -> dict[tuple[str, int], list[int]]:
        """The attempts that each tick's rows were written by."""
        found = defaultdict(list)
        for job, tick, attempt in self.sql("SELECT job, tick, attempt FROM effects"):
            found[job, int(tick)].append(int(attempt))
        return found


@dataclass
class Fleet:
    """Worker processes, and what is known of them.

    Attributes:
        url: How they reach the database.
        orderly: The terms whose leaders were told to stop once, and their process ids.
    """

    place: Place
    store: Store
    folder: Path
    jobs: Iterable[str]
    url: str
    max_running: int = 0
    workers: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict, repr=False)
    logs: dict[int, Path] = field(default_factory=dict, repr=False)
    journal: list[dict[str, Any]] = field(default_factory=list, repr=False)
    kills: Counter[str] = field(default_factory=Counter)
    orderly: dict[int, int] = field(default_factory=dict)
    _read: int = 0

    def start(self, url: str | None = None) -> int:
        log = self.folder / f"log-{len(self.logs)}"
        arguments = (url or self.url, str(self.folder), ",".join(self.jobs), str(self.max_running))
        # The kernel kills a worker, frozen or not, whose test was killed.
        leash = [setpriv, "--pdeathsig", "KILL"] if (setpriv := shutil.which("setpriv")) else []
        with open(log, "wb") as errors:
            process = subprocess.Popen(
                [
                    *leash,
                    sys.executable,
                    "-W",
                    "error",
                    str(ROOT / "tests" / "jobs" / "failover_worker.py"),
                    *arguments,
                ],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
            )
        self.workers[process.pid], self.logs[process.pid] = process, log
        return process.pid

    def close(self) -> None:
        for process in self.workers.values():
            process.kill()
        for process in self.workers.values():
            process.wait(LIMIT)

    # -- what they do

    def read(self) -> list[dict[str, Any]]:
        """The journal so far."""
        with suppress(FileNotFoundError), open(self.folder / "journal", "rb") as file:
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
            self._read += len(whole + newline)
            self.journal += [json.loads(line) for line in whole.splitlines()]
        return self.journal

    def begun(self, above: int = 0) -> int | None:
        """The newest term that has begun a run, if it is newer."""
        newest = max((line["token"] for line in self.read() if line["what"] == "begin"), default=0)
        return newest if newest > above else None

    async def leader(self, above: int = 0, but: int = 0) -> tuple[int, int]:
        """Waits until a living worker leads with a token above that; returns its process id and token."""

        async def look() -> tuple[int, int] | None:
            assert any(map(self.lives, self.workers)), "no worker lives"
            lease = await self.store.status(NAME)
            if lease is None or lease.holder is None or lease.token <= above or lease.expires_at <= lease.now:
                return None
            pid = int(lease.holder.split("-")[-2])
            return (pid, lease.token) if pid != but and self.lives(pid) else None

        return await eventually(look, f"a leader above term {above}")

    async def leads_on(self, pid: int, token: int) -> bool:
        """Whether a term that was to be ended goes on."""
        lease = await self.store.status(NAME)
        return lease is not None and lease.token == token and lease.holder is not None and self.lives(pid)

    async def working(self, above: int = 0) -> tuple[int, int]:
        """Waits until a term above that has begun a run, and still leads."""

        async def look() -> tuple[int, int] | None:
            pid, token = await self.leader(above)
            deadline = boot_clock() + 3 * LEASE  # it may die before
            while (self.begun(token - 1) or 0) < token and boot_clock() < deadline:
                await asyncio.sleep(0.01)
            return (pid, token) if self.begun(token - 1) and await self.leader(above) == (pid, token) else None

        return await eventually(look, f"a run of a term above {above}")

    async def rows_of(self, token: int) -> list[RunRecord]:
        return [
            row for job in self.jobs for row in await self.store.history(NAME, job, limit=10**6) if row.token == token
        ]

    def lives(self, pid: int) -> bool:
        return pid in self.workers and self.workers[pid].poll() is None

    def says(self, pid: int) -> str:
        return self.logs[pid].read_text()

    # -- what is done to them

    def send(self, pid: int, number: signal.Signals) -> None:
        """Sends a signal, if it has not ended; returns when it is dead if it is killed, and stands if it is stopped."""
        self.workers[pid].send_signal(number)
        if number is signal.SIGKILL:
            self.workers[pid].wait(LIMIT)
        deadline = boot_clock() + LIMIT
        while number is signal.SIGSTOP and self.lives(pid) and _state(pid) != "T":
            assert boot_clock() < deadline, f"worker {pid} does not stop"
            time.sleep(0.001)

    async def replace(self, pid: int, *status: int) -> None:
        """Waits for the end of a worker, and starts another."""
        await until(lambda: not self.lives(pid), f"worker {pid} ends", LIMIT)
        assert self.workers.pop(pid).returncode in status, self.says(pid)
        self.start()

    def fault(self, point: str, number: signal.Signals, pid: int | None = None) -> Path:
        folder = self.folder / "faults"
        fault = folder / (point if pid is None else f"{point}@{pid}")
        (folder / "new").write_text(str(int(number)))
        (folder / "new").rename(fault)
        return fault

    async def disarm(self, fault: Path) -> None:
        """Takes a fault back, or waits until it has struck if a worker has taken it."""
        try:
            fault.unlink()
        except FileNotFoundError:
            await until(lambda: self.frozen() or not all(map(self.lives, self.workers)), f"{fault} strikes", LIMIT)

    async def kill_at(self, point: str) -> None:
        """The first worker that comes to a point is killed there, if one does."""
        fault = self.fault(point, signal.SIGKILL)
        with suppress(TimeoutError):
            async with asyncio.timeout(2 * LEASE):
                while all(map(self.lives, self.workers)):
                    await asyncio.sleep(0.01)
        await self.disarm(fault)

    def frozen(self) -> list[int]:
        return [pid for pid in self.workers if self.lives(pid) and _state(pid) == "T"]

    async def refill(self) -> None:
        """Replaces the dead."""
        for pid in [pid for pid in self.workers if not self.lives(pid)]:
            self.kills["killed"] += 1
            await self.replace(pid, -signal.SIGKILL)

    async def stop(self, *pids: int) -> None:
        """Ends workers in order."""
        for pid in pids:
            await until((self.folder / f"up-{pid}").exists, f"worker {pid} is up", LIMIT)
            self.send(pid, signal.SIGTERM)
        for pid in pids:
            await until(lambda pid=pid: not self.lives(pid), f"worker {pid} stops", LIMIT)  # type: ignore[misc]
            assert self.workers.pop(pid).returncode == 0, self.says(pid)

    async def finish(self) -> list[str]:
        """Ends all in order, and has what is queued run; returns what is wrong with the rows left by the first."""
        await self.refill()
        pid, token = await self.working()
        await self.stop(*(other for other in self.workers if other != pid))
        pid, token = await self.working(token - 1)
        self.orderly[token] = pid
        await self.stop(pid)
        wrong = [
            f"left by a leader that drained: {run}"
            for run in (await self.store.take_stock(NAME)).unfinished
            # A queued run waits for the next leader. Who could not write the last changes has said so.
            if run.status == "running" and "could not write how the last runs" not in self.says(pid)
        ]
        for job in self.jobs:
            await self.store.pause(NAME, job)
        pid = self.start(self.place.url)

        async def settled() -> bool:
            return not (await self.store.take_stock(NAME)).unfinished

        await self.leader(token)
        await eventually(settled, "what was queued has been run")
        await self.stop(pid)
        return wrong

    # -- what it must all come to

    async def check(self, wrong: Iterable[str], *, ordered: bool) -> int:
        """Fails unless the ledger, the journal and the effects agree with the rules; returns how many ticks there were.

        Args:
            wrong: What is known to be wrong already.
            ordered: Whether no term may begin a run once a newer one has.
        """
        known = (await self.store.take_stock(NAME)).jobs
        ledger = {job: await self.store.history(NAME, job, limit=10**6) for job in self.jobs}
        journal, effects = self.read(), self.place.effects()
        drained = {token for token, pid in self.orderly.items() if "lost leadership" not in self.says(pid)}
        written = {token for token in drained if "could not write" not in self.says(self.orderly[token])}
        found = [*wrong, *wrong_order(journal, self.max_running, ordered)]
        found += [
            f"cancelled though its leader drained: {line}"
            for line in journal
            if line["token"] in drained and line.get("how") in {"CancelledError", "LeadershipLost"}
        ]
        for job, rows in ledger.items():
            if job not in RERUN:
                lost = [row for row in rows if row.status == "lost" and row.token in written]
                found += [f"lost by a leader that drained: {row}" for row in lost]
            found += wrong_grid(job, rows, known[job])
            found += wrong_runs(job, rows, [line for line in journal if line["job"] == job])
            if job in FINAL:
                found += wrong_effects(rows, effects)
        ticks = {(job, micros(row.tick)) for job, rows in ledger.items() for row in rows}
        found += [f"an effect of no tick: {effect}" for effect in effects if effect not in ticks]
        for log in self.logs.values():
            text = log.read_text()
            found += [f"{log}: {line}" for line in text.splitlines() if COMPLAINTS.search(line)]
        statuses = Counter(row.status for rows in ledger.values() for row in rows)
        covered = sum(row.count or 1 for rows in ledger.values() for row in rows)
        print(f"seed {SEED}: {covered} ticks, {dict(statuses)}, {dict(self.kills)}")
        if found:
            pytest.fail(f"AIOLEASE_SEED={SEED}, {self.folder}, {len(found)} offences:\n" + "\n".join(found[:30]))
        return covered


async def eventually(look: Callable[[], Awaitable[T | None]], what: str) -> T:
    """Waits until something comes of looking."""
    deadline = boot_clock() + LIMIT
    while not (found := await look()):
        assert boot_clock() < deadline, f"not so within {LIMIT:g} s: {what} (AIOLEASE_SEED={SEED})"
        await asyncio.sleep(0.02)
    return found


def _state(pid: int) -> str:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


@asynccontextmanager
async def a_proxy(place: Place) -> AsyncIterator[TCPProxy | None]:
    """A proxy before the server, if there is one."""
    if place.server is None:
        yield None
        return
    async with TCPProxy(place.server.host, place.server.port) as proxy:
        yield proxy


@asynccontextmanager
async def a_fleet(
    place: Place, folder: Path, jobs: Iterable[str], *, size: int = 3, port: int | None = None, max_running: int = 0
) -> AsyncIterator[Fleet]:
    """Workers that serve some jobs, one of them leading, perhaps behind a proxy; all end with the block."""
    (folder / "faults").mkdir()
    async with open_store(place.url) as store:
        await store.status(NAME)  # makes the tables
        place.sql("CREATE TABLE effects (job VARCHAR(40), tick BIGINT, attempt INT, pid INT)")
        url = place.url if port is None else through(place.url, port)
        fleet = Fleet(place, store, folder, jobs, url, max_running)
        try:
            for _ in range(size):
                fleet.start()
            await fleet.leader()
            yield fleet
        except BaseException:
            for pid, log in fleet.logs.items():
                print(
                    f"-- {pid} {'lives' if fleet.lives(pid) else 'ended'}", *log.read_text().splitlines()[-8:], sep="\n"
                )
            raise
        finally:
            fleet.close()
