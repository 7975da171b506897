"""The ledger while leaders die, freeze, and lose answers: true processes on true databases.

Several workers (`tests/failover_worker.py`) serve the same jobs; leaders are killed, frozen, cut off and told to stop,
again and again. Then the ledger is read, and compared with the grid of each job, reckoned here by arithmetic, with the
journal that the runs have kept, and with the rows that they wrote. ``AIOLEASE_SEED`` varies what happens.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pymysql
import pytest
from pymysql.constants import CLIENT

from aiolease import InvalidJob, open_store
from aiolease._clock import boot_clock
from aiolease.stores import Store
from aiolease.stores.records import JobRecord, RunRecord
from tests.campaigns import ROOT, database_of, through, until
from tests.failover_worker import ASKED, EFFECTS, FLEET, GRIDS, TIMINGS, micros
from tests.servers import Action, Server, TCPProxy

T = TypeVar("T")

LIMIT = 30.0
"""Seconds within which everything here has to happen."""

SEED = int(os.environ.get("AIOLEASE_SEED", "1"))
KILLING, TROUBLING = 10.0, 9.0
"""Seconds of trouble per database."""

LEASE, HEARTBEAT = TIMINGS["lease_duration"], TIMINGS["heartbeat_interval"]
NAME = "default"
RERUN = {"again", "effect", "fenced", "one", "beside", "newest", "own"}
FINAL = RERUN - {"again"}
ALLOW = {"again", "beside", "own"}
MAX_RUNNING = 2

NEWER, NOT_ENDED, NOBODY = "a newer one was due as well", "its last run has not ended", "nobody led when they fell due"
# Why ticks of a job may be skipped, by its policies.
REASONS = {
    **dict.fromkeys(("quick", "second", "slow", "shaky", "newest", "often"), (NEWER, NOT_ENDED)),
    **dict.fromkeys(("steady", "effect", "fenced", "one"), (NOT_ENDED,)),
    **dict.fromkeys(("beside", "own"), ()),
    "again": (NEWER,),
    "thread": (NEWER, NOT_ENDED, NOBODY),
}
FINAL_RUN = re.compile(rb"job = '\w+' AND tick = '[^']+'(?= AND attempt = )")
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

    def effects(self) -> dict[tuple[str, int], list[int]]:
        """The attempts that each tick's rows were written by."""
        found = defaultdict(list)
        for job, tick, attempt in self.sql("SELECT job, tick, attempt FROM effects"):
            found[job, int(tick)].append(int(attempt))
        return found


@pytest.fixture(params=["mariadb", "mysql9", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "sqlite":
        yield Place(f"sqlite:///{tmp_path}/jobs.db", None)
        return
    server = request.getfixturevalue(request.param)
    assert isinstance(server, Server)
    server.recover()
    name = f"test_{uuid4().hex[:12]}"
    server.create_database(name)
    yield Place(server.url(name), server)
    server.drop_database(name)


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
                [*leash, sys.executable, "-W", "error", str(ROOT / "tests" / "failover_worker.py"), *arguments],
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


def wrong_grid(job: str, rows: list[RunRecord], known: JobRecord) -> Iterator[str]:
    """Every tick of the grid is there exactly once: of its own, or in one range that was skipped."""
    step = round(GRIDS[job] * 1_000_000)
    end = micros(known.known_since) // step * step
    for number, row in enumerate(rows):
        last = micros(row.tick)
        first = last if row.tick_from is None else micros(row.tick_from)
        if first % step or last % step or first > last:
            yield f"not on the grid: {row}"
        if first != end + step:
            yield f"ticks are {'missing' if first > end + step else 'there twice'} behind {moment(end)}: {row}"
        end = last
        if row.status == "skipped":
            if row.count != (last - first) // step + 1 or row.tick_from is None:
                yield f"the count is wrong: {row}"
            if row.error not in REASONS[job]:
                yield f"no reason to skip: {row}"
            if row.error == NEWER and (number + 1 == len(rows) or rows[number + 1].status == "skipped"):
                yield f"the newer one has not been run: {row}"
        elif row.tick_from is not None or row.count is not None:
            yield f"a run of one tick is a range: {row}"
        if row.status in {"queued", "running"} or row.finished_at is None:
            yield f"unfinished: {row}"
        if row.status != "skipped" and row.started_at is None:
            yield f"never started: {row}"
    if not rows or known.high_tick != rows[-1].tick:
        yield f"the highest tick of {job} is {known.high_tick}, not that of {rows[-1:]}"


def wrong_runs(job: str, rows: list[RunRecord], lines: list[dict[str, Any]]) -> Iterator[str]:
    """No attempt begins twice, no tick does whose job is not to be run again, and the ledger tells how they ended."""
    begun = Counter((line["tick"], line["attempt"]) for line in lines if line["what"] == "begin")
    ends = {(line["tick"], line["attempt"]): line["how"] for line in lines if line["what"] == "end"}
    ticks = Counter(tick for tick, _ in begun.elements())
    yield from (f"{job} began {count} times: {attempt}" for attempt, count in begun.items() if count > 1)
    if job not in RERUN:
        yield from (f"{job} began {count} times: {moment(tick)}" for tick, count in ticks.items() if count > 1)
    by_tick = {micros(row.tick): row for row in rows if row.status != "skipped"}
    yield from (f"{job} ran, but was not to: {moment(tick)}" for tick in ticks if tick not in by_tick)
    for tick, row in by_tick.items():
        if (late := [attempt for at, attempt in begun if at == tick and attempt > row.attempt]) or row.attempt > 5:
            yield f"attempts {late} of {row}"
        how = ends.get((tick, row.attempt))
        if row.status in {"succeeded", "failed"} and not begun[tick, row.attempt]:
            yield f"never begun: {row}"
        if row.status == "succeeded" and job not in FINAL and how != "done":
            yield f"not succeeded, but {how}: {row}"
        if row.status == "failed" and (job != "shaky" or how != "ValueError"):
            yield f"not failed, but {how}: {row}"
        if row.status == "lost" and job in RERUN and row.attempt < 5:
            yield f"not run again: {row}"
        if row.attempt > 1 and job not in RERUN:
            yield f"run again: {row}"


def wrong_effects(rows: list[RunRecord], effects: dict[tuple[str, int], list[int]]) -> Iterator[str]:
    """What a run wrote with its final commit is there once, by the attempt that succeeded, if one did; else not."""
    for row in rows:
        there = effects.get((row.job, micros(row.tick)), [])
        if there != ([row.attempt] if row.status == "succeeded" else []):
            yield f"effects of attempts {there}: {row}"


def wrong_order(journal: list[dict[str, Any]], max_running: int, ordered: bool) -> Iterator[str]:
    """A process runs as many at once as it may, and one run of a job; a term begins nothing behind a newer one."""
    going_on: defaultdict[int, list[str]] = defaultdict(list)
    newest = 0
    for line in journal:
        jobs = going_on[line["pid"]]
        if line["what"] == "end":
            jobs.remove(line["job"])
            continue
        if max_running and len(jobs) >= max_running:
            yield f"beside {jobs}: {line}"
        if line["job"] in jobs and line["job"] not in ALLOW:
            yield f"beside itself: {line}"
        jobs.append(line["job"])
        if ordered and line["token"] < newest:
            yield f"behind term {newest}: {line}"
        newest = max(newest, line["token"])


def moment(tick: int) -> str:
    return f"{tick / 1_000_000:.3f}"


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


# -- leaders that die


async def test_every_tick_is_in_the_ledger_once_though_leaders_die(place: Place, tmp_path: Path) -> None:
    """Through kills and orderly ends of leaders, every tick of every job is run once, or skipped for a reason.

    A final commit has its effect once; no tick begins twice whose job is not to be run again; and what an orderly
    leader leaves is written down. Only runs that wait their turn are left for the next one.
    """
    dice, began, token = random.Random(SEED), boot_clock(), 0
    async with a_fleet(place, tmp_path, FLEET, max_running=MAX_RUNNING) as fleet:
        while boot_clock() - began < KILLING or fleet.kills["killed"] < 3:
            how = dice.choice(["elected", "working", "working", "working", "point", "point", "point", "stop", "twice"])
            pid, token = await (fleet.leader if how == "elected" else fleet.working)(token)
            if how == "working":
                await asyncio.sleep(dice.uniform(0.0, 1.2))
            if how == "point":
                points = ["begun", "written", "written", "fenced", "committed", "claiming", "claimed"]
                await fleet.kill_at(dice.choice(points))
            elif how in {"stop", "twice"}:
                fleet.send(pid, signal.SIGTERM)
                if how == "stop":
                    fleet.orderly[token] = pid
                if how == "twice":
                    await asyncio.sleep(dice.uniform(0.0, 0.1))
                    fleet.send(pid, signal.SIGTERM)
                fleet.kills[how] += 1
                await fleet.replace(pid, 0, *[-signal.SIGTERM] * (how == "twice"))  # it may have been ending already
            else:
                fleet.send(pid, signal.SIGKILL)
            await fleet.refill()
            if await fleet.leads_on(pid, token):
                token -= 1  # nobody came to that point in time: the same term is struck again
        ticks = await fleet.check(await fleet.finish(), ordered=True)
        assert ticks > 100


# -- answers that are lost, leaders that freeze


@dataclass
class Trouble:
    """What a proxy does to the transactions of workers, at random."""

    fleet: Fleet
    dice: random.Random
    on: bool = True
    finals: int = 0

    def __call__(self, query: bytes) -> Action | None:
        if b"; COMMIT" not in query or not (holder := re.search(rb"-(\d+)-[0-9a-f]{32}", query)):
            return None
        pid, final = int(holder[1]), FINAL_RUN.search(query) is not None
        if not self.on or not self.fleet.lives(pid) or self.dice.random() > (0.3 if final else 0.05):
            return None
        how = ["answer swallow", "answer cut", "query swallow", "query cut"]
        how += ["kill", "freeze"] * final
        what, _, fate = self.dice.choice(how).partition(" ")
        self.finals += final
        self.fleet.kills[f"{'final' if final else 'ledger'} {what} {fate}".rstrip()] += 1
        if fate:
            return Action(**{what: fate})  # type: ignore[arg-type]
        self.fleet.send(pid, signal.SIGKILL if what == "kill" else signal.SIGSTOP)
        return None


async def test_a_final_commit_takes_effect_once_whatever_is_lost(place: Place, tmp_path: Path) -> None:
    """With ``rerun_lost`` and a final commit, the effect of each tick is there once; none is lost, none has failed.

    Though workers are killed and frozen before, in and behind their transactions, other terms begin meanwhile, and, on
    a server, COMMITs and their answers are lost.
    """
    dice, began = random.Random(SEED + 100), boot_clock()
    points = ["begun", "written", "written", "fenced", "committed", "claiming", "claimed"]
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(a_proxy(place))
        port = proxy and proxy.port
        fleet = await stack.enter_async_context(a_fleet(place, tmp_path, EFFECTS, port=port))
        trouble = Trouble(fleet, random.Random(SEED + 200))
        if proxy:
            proxy.on_query = trouble
        while (spent := boot_clock() - began) < TROUBLING or (spent < LIMIT and trouble.finals < 3 * bool(proxy)):
            pid, token = await fleet.working()
            how = dice.choice(["wait", "wait", "wait", "wait", "freeze", "point", "point", "kill"])
            fault = None
            if how == "freeze":
                await asyncio.sleep(dice.uniform(0.0, 0.5))
                fleet.send(pid, signal.SIGSTOP)
            elif how == "point":
                fault = fleet.fault(dice.choice(points), signal.SIGSTOP)
            elif how == "kill":
                await fleet.kill_at(dice.choice(points))
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    while not fleet.frozen():
                        await asyncio.sleep(0.01)
            if fault is not None:
                await fleet.disarm(fault)
            if fleet.frozen():
                fleet.kills["frozen"] += 1
                with suppress(TimeoutError):  # in the middle of its writing it may hold up all others
                    async with asyncio.timeout(2.5 * LEASE):
                        while not fleet.begun(token):
                            await asyncio.sleep(0.01)
            trouble.on = False
            for frozen in fleet.frozen():
                fleet.send(frozen, signal.SIGCONT)
            await fleet.refill()
            trouble.on = True
        trouble.on = False
        for frozen in fleet.frozen():
            fleet.send(frozen, signal.SIGCONT)
        ticks = await fleet.check(await fleet.finish(), ordered=False)
        assert ticks > 50
        assert not proxy or trouble.finals


@pytest.mark.parametrize("place", ["mariadb", "mysql9"], indirect=True)
async def test_a_commit_that_comes_too_late_takes_no_effect(place: Place, tmp_path: Path) -> None:
    """A final commit that was given up, and reaches the server when the next attempt runs, is refused there."""
    late: list[tuple[bytes, bytes]] = []
    outcomes: list[str] = []

    def choose(query: bytes) -> Action | None:
        if outcomes or not (final := FINAL_RUN.search(query)):
            return None
        if not late:
            late.append((final[0], query))
            return Action(query="swallow")
        if final[0] == late[0][0]:  # the next attempt has written, and is about to commit
            outcomes.append(sent_late(place, late[0][1]))
        return None

    async with a_proxy(place) as proxy:
        assert proxy is not None
        proxy.on_query = choose
        async with a_fleet(place, tmp_path, ("one", "beside"), size=1, port=proxy.port) as fleet:
            await until(lambda: outcomes, "the next attempt commits", LIMIT)
            assert outcomes != ["committed"]
            await fleet.check(await fleet.finish(), ordered=False)


def sent_late(place: Place, packet: bytes) -> str:
    """What becomes of a transaction whose last packet comes only now: begun and written anew, on another connection."""
    assert place.server is not None
    address = {"host": place.server.host, "port": place.server.port, "user": place.server.user}
    connection = pymysql.connect(
        **address, database=database_of(place.url), client_flag=CLIENT.MULTI_STATEMENTS, ssl_disabled=True
    )
    savepoint = re.search(rb"RELEASE SAVEPOINT (\w+)", packet)
    job, tick, attempt = re.findall(rb"(?:job|tick|attempt) = ('[^']+'|\d+)", packet)
    assert savepoint is not None
    with connection, connection.cursor() as cursor:
        try:
            cursor.execute(f"START TRANSACTION; SAVEPOINT {savepoint[1].decode()}")
            while cursor.nextset():
                pass
            since = f"TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {tick.decode()})"
            cursor.execute(f"INSERT INTO effects VALUES ({job.decode()}, {since}, {attempt.decode()}, 0)")
            cursor.execute(packet.decode())
            while cursor.nextset():
                pass
        except pymysql.Error as error:
            return repr(error)
    return "committed"


@pytest.mark.parametrize(
    ("place", "point"),
    [
        ("mariadb", "held"),
        ("mariadb", "claimed"),
        ("mariadb", "refused"),
        ("mysql9", "held"),
        ("mysql9", "claiming"),
        ("mysql9", "refused"),
        ("sqlite", "claiming"),
        ("sqlite", "claimed"),
    ],
    indirect=["place"],
)
async def test_a_thawed_leader_begins_nothing(place: Place, point: str, tmp_path: Path) -> None:
    """Of two processes that both believe to lead only the newer one begins runs, and each tick is claimed once.

    The older one is frozen just before it claims ticks, just behind, while its claim is on the way, or when a commit of
    its was refused; it is thawed when the newer one has read the ledger, and is about to claim the same ticks.
    """
    hold, held = asyncio.Event(), asyncio.Event()
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(a_proxy(place))
        port = proxy and proxy.port
        jobs = ("quick", "second", "steady", "again", "effect")
        fleet = await stack.enter_async_context(a_fleet(place, tmp_path, jobs, size=1, port=port))
        old, token = await fleet.working()

        def freeze(query: bytes) -> Action | None:
            if held.is_set() or b"INTO aiolease_run" not in query:
                return None
            fleet.send(old, signal.SIGSTOP)
            held.set()
            return Action(hold=hold)

        new = fleet.start(place.url)
        fleet.fault("claiming", signal.SIGSTOP, new)
        await until((tmp_path / f"up-{new}").exists, "the other one is up", LIMIT)
        if point != "held":
            fleet.fault(point, signal.SIGSTOP, old)
        elif proxy:
            proxy.on_query = freeze
        await until(lambda: old in fleet.frozen(), "the older one is frozen", LIMIT)
        before = len(fleet.read())
        assert await fleet.leader(token) == (new, token + 1)
        await until(lambda: new in fleet.frozen(), "the newer one has read the ledger", LIMIT)
        left = await fleet.rows_of(token)
        hold.set()
        fleet.send(old, signal.SIGCONT)
        with suppress(TimeoutError):
            async with asyncio.timeout(LEASE):
                while "lost leadership" not in fleet.says(old):
                    await asyncio.sleep(0.01)
        assert await fleet.rows_of(token) == left, "the older one has written the ledger"
        fleet.send(new, signal.SIGCONT)
        await until(lambda: "lost leadership" in fleet.says(old), "the older one knows", LIMIT)
        await fleet.working(token)
        await asyncio.sleep(2 * HEARTBEAT)  # what it should not begin, it might begin by now
        late = [line for line in fleet.read()[before:] if line["what"] == "begin" and line["token"] == token]
        assert not late, f"begun after the next term began: {late}"
        await fleet.check(await fleet.finish(), ordered=True)


# -- asked from elsewhere


async def test_the_leader_does_what_another_process_asks(place: Place, tmp_path: Path) -> None:
    """Triggers, pauses and resignations of another process reach the leader within a heartbeat, and hold for the next.

    A triggered run has the tick that was told, paused or not; a paused job claims no tick, and those that fell due in
    the pause never run.
    """
    async with a_fleet(place, tmp_path, ASKED, size=2) as fleet:
        store, step = fleet.store, round(GRIDS["often"] * 1_000_000)

        ticks = defaultdict(list)

        async def triggered(job: str) -> RunRecord:
            asked = boot_clock()
            tick = await store.trigger(NAME, job)
            ticks[job].append(micros(tick))

            async def ended() -> RunRecord | None:
                rows = [row for row in await store.history(NAME, job, limit=10**6) if row.tick == tick]
                return rows[0] if rows and rows[0].finished_at else None

            row = await eventually(ended, f"{job} runs when it is triggered")
            assert boot_clock() - asked < HEARTBEAT + 5.0
            return row

        async def ticks_of_often() -> list[int]:
            return [
                tick
                for row in await store.history(NAME, "often", limit=10**6)
                if (tick := micros(row.tick)) % step == 0
            ]

        pid, token = await fleet.working()
        row = await triggered("rare")
        assert (row.status, row.attempt, row.token) == ("succeeded", 1, token)
        with pytest.raises(InvalidJob):
            await store.trigger(NAME, "nobody's")

        await store.pause(NAME, "often")
        paused = await ticks_of_often()
        assert (await triggered("often")).status in {"succeeded", "skipped"}  # its last run may go on
        await asyncio.sleep(2 * HEARTBEAT)
        assert await ticks_of_often() == paused

        assert await store.resign(NAME) == token
        other, newer = await fleet.leader(token, but=pid)
        assert (await triggered("rare")).token == newer
        assert (await triggered("often")).status == "succeeded"
        assert await ticks_of_often() == paused

        await store.resume(NAME, "often")
        await eventually(lambda: more_than(ticks_of_often, len(paused)), "the job goes on")
        record = (await store.take_stock(NAME)).jobs["often"]
        assert record.resumed_at is not None
        rows = await store.history(NAME, "often", limit=10**6)
        next_row = next(row for row in rows if micros(row.tick) % step == 0 and micros(row.tick) > paused[-1])
        assert micros(next_row.tick_from or next_row.tick) == (micros(record.resumed_at) // step + 1) * step
        begun = Counter((line["job"], line["tick"]) for line in fleet.read() if line["what"] == "begin")
        assert set(begun.values()) == {1}
        assert sorted(tick for job, tick in begun if job == "rare") == ticks["rare"]
        assert [micros(row.tick) for row in await store.history(NAME, "rare", limit=10**6)] == ticks["rare"]
        await fleet.stop(pid, other)


async def more_than(look: Callable[[], Awaitable[list[int]]], count: int) -> bool:
    return len(await look()) > count
