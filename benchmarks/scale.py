"""Scale: what many candidates of one lease, and many leases of three processes, cost one server and one another."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any, Final

import pymysql

from benchmarks.candidates import BenchmarkFailed
from benchmarks.crowd import resident
from benchmarks.crowds import PATIENCE, CrowdProcess, Crowds
from benchmarks.databases import Database
from benchmarks.report import Figure, Table, milliseconds
from benchmarks.samples import median, percentile
from tests.servers import MariaDBServer

SIZES: Final = (10, 100, 1000)
LEASE = 30.0
"""The default, in seconds."""

SHORT = 6.0
"""The lease of the leaders that are killed, where there is one lease."""

BEAT = 0.5
"""Seconds between two renewals of the one leader of many candidates: else there were too few for a p99."""

HOSTS = 8
"""The processes over which the candidates of one lease are spread."""

OPTIONS: Final = ("--max-connections=1200", "--back-log=1200", "--open-files-limit=8000", "--table-open-cache=3000")
"""Of the server: what else than its defaults a thousand connections need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long to measure."""

    sizes: Sequence[int]
    lease: float
    window: float
    short: float
    kills: int


async def measure(databases: Sequence[Database], *, quick: bool) -> Table:
    plan = Plan(sizes=SIZES, lease=LEASE, window=30.0, short=SHORT, kills=3)
    if quick:
        plan = Plan(sizes=SIZES[:2], lease=3.0, window=6.0, short=3.0, kills=2)
    table = Table(
        topic="scale",
        title=(
            f"scale: candidates on one MariaDB of its own, leases of {plan.lease:g} s, counted during {plan.window:g} s"
        ),
        notes=[
            f"1 lease: the leader is a process, the others are spread over {HOSTS}, each with a store and a connection",
            "of its own, which the server's count confirms; n leases: three processes, each with one connection and a",
            "candidate for every lease, and the first leads them all",
            "each: one candidate's share; failed: renewals that were tried again; lost: leases, one fails the run;",
            "client, server: the growth of resident memory for each candidate",
            f"1 lease: the leader renews every {BEAT:g} s, so that there is a p99; what that sends beyond a renewal",
            f"every {plan.lease / 3:g} s is not counted; {plan.kills} times a process is killed that has nothing but a",
            f"leader, of {plan.short:g} s; n leases: the process that leads them all is killed, once",
            "takeover: from the expiry of a lease to the start of the next body; claims: for each takeover, all but",
            "one in vain; sent: statements per candidate from the kill to a second after the last takeover",
        ],
    )
    if not any(database.kind == "mariadb" for database in databases):
        table.notes.append("left out: there is no MariaDB")
        return table
    for measured, label in ((_one_lease, "1 lease, {} candidates"), (_many_leases, "{} leases, 3 candidates each")):
        for size in plan.sizes:
            with await asyncio.to_thread(MariaDBServer.start, options=OPTIONS) as server:  # memory is not given back
                server.create_database("scale")
                with Meter(server) as meter:
                    table.rows[label.format(size)] = await measured(meter, plan, size)
    return table


async def _one_lease(meter: Meter, plan: Plan, size: int) -> dict[str, Figure]:
    async with Crowds(meter.server.url("scale")) as crowds:
        leader = await crowds.start(1, 1, plan.lease, BEAT)
        hosts = [
            await crowds.start(share, 1, plan.short, plan.short / 3, "--obliging")
            for number in range(HOSTS)
            if (share := len(range(number, size - 1, HOSTS)))
        ]
        empty, bare = meter.resident(), sum(host.baseline for host in hosts)
        leader.send("start")
        await crowds.until(lambda: leader.leads == 1, "a leader is elected")
        for host in hosts:
            host.send("start")
        await crowds.settled(size - 1, 1)
        await crowds.rest(2.0)
        await _expect_connections(meter, size)
        figures = await _window(crowds, meter, plan, size, extra=2 * (1 / BEAT - 3 / plan.lease))
        grown = (sum(host.report["rss"] for host in hosts) - bare) / (size - 1)
        memory = _memory(grown, (meter.resident() - empty) / size)
        takeovers = []
        for _ in range(plan.kills):
            leader = await _successor(crowds, plan, leader, hosts)
            await crowds.settled(size - 1, 1)
            await crowds.rest(1.0)
            takeovers.append(await _takeover(crowds, meter, leader))
    return {**figures, **memory, **_figures(takeovers, size)}


async def _successor(crowds: Crowds, plan: Plan, leader: CrowdProcess, hosts: Sequence[CrowdProcess]) -> CrowdProcess:
    """Has the lease handed over to a fresh process that has one candidate and nothing else: it can be killed."""
    successor = await crowds.start(1, 1, plan.short, BEAT)
    successor.send("start")
    for host in hosts:
        host.send("bar")
    await crowds.reports()  # all have heard it
    for crowd in (leader, *hosts):
        if crowd in crowds.all:
            crowd.send("leave")
    await crowds.until(lambda: successor.leads == 1, "the process that is to be killed leads")
    if leader in crowds.all:
        await crowds.kill(leader)  # the first of all, not needed any more
    for host in hosts:
        host.send("admit")
    return successor


async def _many_leases(meter: Meter, plan: Plan, size: int) -> dict[str, Figure]:
    async with Crowds(meter.server.url("scale")) as crowds:
        processes = [await crowds.start(1, size, plan.lease, plan.lease / 3) for _ in range(3)]
        empty, bare = meter.resident(), sum(process.baseline for process in processes)
        leader = processes[0]
        for process in processes:
            process.send("start")
            if process is leader:
                await crowds.until(lambda: leader.leads == size, "one process leads all")
        await crowds.settled(2 * size, size)
        await crowds.rest(2.0)
        await _expect_connections(meter, 3)
        figures = await _window(crowds, meter, plan, 3 * size)
        grown = (sum(process.report["rss"] for process in processes) - bare) / (3 * size)
        memory = _memory(grown, (meter.resident() - empty) / (3 * size))
        takeover = await _takeover(crowds, meter, leader)
    return {**figures, **memory, **_figures([takeover], 3 * size)}


async def _expect_connections(meter: Meter, expected: int) -> None:
    """Waits until each candidate, or each process with many leases, has one connection of its own, and no other."""
    found, deadline = 0, time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = meter.read().connections
        if found == expected:
            return
        await asyncio.sleep(1.0)  # one that was given up inside GET_LOCK ends with that
    raise BenchmarkFailed(f"there are {found} connections, and not {expected}")


async def _window(crowds: Crowds, meter: Meter, plan: Plan, candidates: int, extra: float = 0.0) -> dict[str, Figure]:
    """What all cost while all are healthy; `extra` statements per second are the measurement's own."""
    await crowds.reports()
    failed = sum(crowd.report["failed"] for crowd in crowds.all)
    before = meter.read()
    await crowds.rest(plan.window)
    after = meter.read()
    await crowds.reports()
    took = [seconds for crowd in crowds.all for seconds in crowd.report["took"]]
    failed = sum(crowd.report["failed"] for crowd in crowds.all) - failed
    seconds = after.at - before.at
    rate = (after.statements - before.statements) / seconds - extra
    return {
        "statements": Figure(value=rate, unit="/s"),
        "each": Figure(value=rate / candidates, unit="/s"),
        "server CPU": Figure(value=(after.cpu - before.cpu) / seconds * 100, unit="%"),
        "heartbeat p99": milliseconds(percentile(took, 99)),
        "failed": Figure(value=failed, unit=""),
        "lost": Figure(value=len(crowds.lost), unit=""),
    }


async def _takeover(crowds: Crowds, meter: Meter, leader: CrowdProcess) -> Takeover:
    """Kills a leader, and waits for the next of each of its leases."""
    before = meter.read()
    names = set(leader.started)
    await crowds.kill(leader)
    await asyncio.sleep(0.3)  # a renewal may have been under way
    rows = await asyncio.to_thread(
        meter.server.sql, "SELECT name, token, expires_at FROM aiolease_lease WHERE name LIKE 'bench%'", "scale"
    )
    expiries = {name: (token, at.replace(tzinfo=UTC).timestamp()) for name, token, at in rows}
    past: dict[str, float] = {}

    def taken() -> bool:
        for crowd in crowds.all:
            for name, entry in crowd.started.items():
                token, expires_at = expiries[name]
                if entry["token"] == token + 1:
                    past[name] = entry["wall"] - expires_at
        return len(past) == len(names)

    await crowds.until(taken, "every lease is led again")
    await crowds.rest(1.0)
    after = meter.read()
    return Takeover(
        past=list(past.values()),
        claims=after.claims - before.claims,
        statements=after.statements - before.statements - 1,  # the reading of the rows
    )


def _figures(takeovers: Sequence[Takeover], candidates: int) -> dict[str, Figure]:
    past = [seconds for takeover in takeovers for seconds in takeover.past]
    claims = sum(takeover.claims for takeover in takeovers)
    statements = sum(takeover.statements for takeover in takeovers)
    return {
        "takeover p50": milliseconds(median(past)),
        "p99": milliseconds(percentile(past, 99)),
        "worst": milliseconds(max(past)),
        "claims": Figure(value=round(claims / len(past), 2), unit=""),
        "sent": Figure(value=round(statements / len(takeovers) / candidates, 1), unit=""),
    }


def _memory(client: float, server: float) -> dict[str, Figure]:
    return {"client": Figure(value=client, unit="KB"), "server": Figure(value=server, unit="KB")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeover:
    """What followed a kill, until a second after all leases were led again.

    Attributes:
        past: Seconds past the expiry of each lease.
        claims: How many were made.
        statements: How many of all kinds.
    """

    past: list[float]
    claims: int
    statements: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Running totals, but for the connections."""

    at: float
    statements: int
    claims: int
    connections: int
    cpu: float


class Meter:
    """Reads the server's own counters, over one connection that it does not count, and its process."""

    def __init__(self, server: MariaDBServer) -> None:
        self.server = server
        self._readings = 0
        self._connection: Any = pymysql.connect(
            host=server.host, port=server.port, user=server.user, autocommit=True, read_timeout=30
        )

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._connection.close()

    def resident(self) -> int:
        """KiB of the server's resident memory."""
        return resident(self.server.pid)

    def read(self) -> Count:
        with self._connection.cursor() as cursor:
            cursor.execute("SHOW GLOBAL STATUS")
            status = dict(cursor.fetchall())
        fields = Path(f"/proc/{self.server.pid}/stat").read_text().rpartition(")")[2].split()
        self._readings += 1
        return Count(
            at=time.monotonic(),
            statements=int(status["Questions"]) - self._readings,
            claims=int(status["Com_update_multi"]),  # nothing else of aiolease's joins in an UPDATE
            connections=int(status["Threads_connected"]) - 1,
            cpu=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        )
