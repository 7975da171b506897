"""Scale: what many candidates of one lease, and many leases of three processes, cost one server and one another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from typing import Final

from benchmarks.candidates import BenchmarkFailed
from benchmarks.crowds import PATIENCE, CrowdProcess, Crowds
from benchmarks.databases import Database
from benchmarks.meters import COUNTING, Meter, cpu_of, meter_of
from benchmarks.report import Figure, Table, milliseconds
from benchmarks.samples import median, percentile
from tests.servers import MariaDBServer, PostgreSQLServer, Server

SIZES: Final = (10, 100, 1000)
LEASE = 30.0
"""The default, in seconds."""

SHORT = 6.0
"""The lease of the leaders that are killed, where there is one lease."""

BEAT = 0.5
"""Seconds between two renewals of the one leader of many candidates: else there were too few for a p99."""

LEADER_AIM, WORST_AIM = 2.0, 300.0
"""Of a thousand leases: percent of a core for who leads them, and milliseconds until all are taken over."""

HOSTS = 8
"""The processes over which the candidates of one lease are spread."""

SERVERS: Final[dict[str, tuple[type[Server], Sequence[str]]]] = {
    "mariadb": (
        MariaDBServer,
        ("--max-connections=1200", "--back-log=1200", "--open-files-limit=8000", "--table-open-cache=3000"),
    ),
    "postgresql": (PostgreSQLServer, ("--max_connections=1200", *COUNTING)),
}
"""With what else than their defaults a thousand connections need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long to measure."""

    sizes: Sequence[int]
    lease: float
    window: float
    short: float
    kills: int
    handovers: int


async def measure(databases: Sequence[Database], *, quick: bool) -> Table:
    plan = Plan(sizes=SIZES, lease=LEASE, window=30.0, short=SHORT, kills=3, handovers=7)
    if quick:
        plan = Plan(sizes=SIZES[:2], lease=3.0, window=6.0, short=3.0, kills=2, handovers=3)
    table = Table(
        topic="scale",
        title=(
            f"scale: candidates on a server of their own, leases of {plan.lease:g} s, counted during {plan.window:g} s"
        ),
        notes=[
            f"1 lease: the leader is a process, the others are spread over {HOSTS}, each with a store and a connection",
            "of its own, which the server's count confirms; n leases: three processes, each with one connection and a",
            "candidate for every lease, and the first leads them all",
            "each: one candidate's share; failed: renewals that were tried again; lost: leases, one fails the run;",
            "client, server: the growth of resident memory for each candidate",
            "leader CPU: the processor time of the process that leads n leases, of one core",
            f"1 lease: the leader renews every {BEAT:g} s, so that there is a p99; what that sends beyond a renewal",
            f"every {plan.lease / 3:g} s is not counted; {plan.kills} times a process is killed that has nothing but a",
            f"leader, of {plan.short:g} s; n leases: the process that leads them all is killed, once",
            "takeover: from the expiry of a lease to the start of the next body; claims: for each takeover, all but",
            "one in vain; on PostgreSQL those that share a statement are one; sent: statements per candidate from the",
            "kill to a second after the last takeover",
            "hand-over: from the end of a body that was told to leave to the start of the next, with all candidates",
        ],
    )
    kinds = [database.kind for database in databases if database.kind in SERVERS]
    if not kinds:
        table.notes.append(f"left out: there is none of {', '.join(SERVERS)}")
    rows = ((_one_lease, "1 lease, {} candidates"), (_many_leases, "{} leases, 3 candidates each"))
    for kind, (measured, label), size in product(kinds, rows, plan.sizes):
        program, options = SERVERS[kind]
        with await asyncio.to_thread(program.start, options=options) as server:  # memory is not given back
            server.create_database("scale")
            with meter_of(server) as meter:
                table.rows[f"{kind}, {label.format(size)}"] = await measured(meter, plan, size)
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
        figures = await _window(crowds, meter, plan, size, extra=meter.renewal * (1 / BEAT - 3 / plan.lease))
        grown = (sum(host.report["rss"] for host in hosts) - bare) / (size - 1)
        memory = _memory(grown, (meter.resident() - empty) / size)
        takeovers = []
        for _ in range(plan.kills):
            leader = await _successor(crowds, plan, leader, hosts)
            await crowds.settled(size - 1, 1)
            await crowds.rest(1.0)
            takeovers.append(await _takeover(crowds, meter, leader))
        await crowds.settled(size - 2, 1)  # the last leader was killed
        handovers = [await _handover(crowds, meter, size - 1) for _ in range(plan.handovers)]
    return {**figures, **memory, **_figures(takeovers, size), **_handover_figures(handovers)}


async def _handover(crowds: Crowds, meter: Meter, size: int) -> tuple[float, int]:
    """Has the leader of the one lease leave; seconds until the next body, and the claims until all have settled."""

    def token(crowd: CrowdProcess) -> int:
        return max((entry["token"] for entry in crowd.started.values()), default=0)

    before, leader = meter.read(), max(crowds.all, key=token)
    term = token(leader)
    leader.send("leave")

    def over() -> bool:
        told = any(entry["token"] == term for entry in leader.ended.values())
        return told and any(token(crowd) > term for crowd in crowds.all)

    await crowds.until(over, "the lease is handed over")
    (ended,) = leader.ended.values()
    starts = [entry for crowd in crowds.all for entry in crowd.started.values() if entry["token"] == term + 1]
    await crowds.settled(size - 1, 1)
    await crowds.rest(1.0)
    return starts[0]["at"] - ended["at"], meter.read().claims - before.claims


def _handover_figures(handovers: Sequence[tuple[float, int]]) -> dict[str, Figure]:
    seconds, claims = [took for took, _ in handovers], [made for _, made in handovers]
    return {
        "hand-over p50": milliseconds(median(seconds)),
        "worst of them": milliseconds(max(seconds)),
        "claims for one": Figure(value=median(claims), unit=""),
    }


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
        spent = cpu_of(leader.process.pid)
        figures = await _window(crowds, meter, plan, 3 * size)
        spent = (cpu_of(leader.process.pid) - spent) / plan.window * 100
        figures["leader CPU"] = Figure(value=spent, unit="%", aim=LEADER_AIM if size == SIZES[-1] else None)
        grown = (sum(process.report["rss"] for process in processes) - bare) / (3 * size)
        memory = _memory(grown, (meter.resident() - empty) / (3 * size))
        takeover = await _takeover(crowds, meter, leader)
    return {**figures, **memory, **_figures([takeover], 3 * size, aim=WORST_AIM if size == SIZES[-1] else None)}


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
    expiries = {name: (token, _aware(at).timestamp()) for name, token, at in rows}
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


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _figures(takeovers: Sequence[Takeover], candidates: int, aim: float | None = None) -> dict[str, Figure]:
    past = [seconds for takeover in takeovers for seconds in takeover.past]
    claims = sum(takeover.claims for takeover in takeovers)
    statements = sum(takeover.statements for takeover in takeovers)
    return {
        "takeover p50": milliseconds(median(past)),
        "p99": milliseconds(percentile(past, 99)),
        "worst": milliseconds(max(past), aim),
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
