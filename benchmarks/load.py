"""What leading and waiting cost the database: statements and connections, and the processes their own CPU."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from benchmarks import meters
from benchmarks.candidates import Candidates, candidates
from benchmarks.databases import Database, PostgreSQLDatabase, ServerDatabase
from benchmarks.report import Figure, Table
from tests.servers import PostgreSQLServer

LEASE = 30.0
"""The default, in seconds; a renewal falls due every third of it."""

WAITING = 4

SQLITE_AIM = 1.0
"""Statements per second of a candidate on SQLite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Running totals, but for the connections; the processor's time is that of the candidates."""

    at: float
    statements: float
    writes: float | None
    connections: float | None
    cpu: float


class Meter(Protocol):
    """Counts what reached the database."""

    async def read(self, group: Candidates) -> Count: ...


async def measure(databases: Sequence[Database], *, quick: bool) -> Table:
    lease, window = (3.0, 4.0) if quick else (LEASE, 30.0)
    table = Table(
        topic="load",
        title=f"load: a lease of {lease:g} s, first one leader alone, then {WAITING} candidates beside it",
        notes=[
            f"counted during {window:g} s each; 'candidate' is one share of the difference, which may fall below 0",
            "SQLite has no server: its statements are those that the processes send, its connections are files",
            "PostgreSQL is a server of its own, with pg_stat_statements, which counts",
        ],
    )
    if quick:
        table.notes.append(f"with the default lease of {LEASE:g} s the rates of statements are a tenth of these")
    # At the same time: each has a server of its own, and nothing here depends on how fast anything is.
    for rows in await asyncio.gather(*(_of(database, lease, window) for database in databases)):
        table.rows.update(rows)
    return table


async def _of(database: Database, lease: float, window: float) -> dict[str, dict[str, Figure]]:
    file = database.kind == "sqlite"
    with ExitStack() as stack:
        if isinstance(database, PostgreSQLDatabase):
            server = await asyncio.to_thread(PostgreSQLServer.start, options=meters.COUNTING)
            database = PostgreSQLDatabase(stack.enter_context(server))
        url = database.fresh("load")
        meter: Meter = FileMeter()
        if isinstance(database, ServerDatabase | PostgreSQLDatabase):
            meter = ServerMeter(stack.enter_context(meters.meter_of(database.server)))
        async with candidates(url, "bench", 1, lease_duration=lease, retry_interval=lease / 15, count=file) as group:
            await group.leader()
            alone = await _window(meter, group, window)
            leader = group.all[0]
            for _ in range(WAITING):
                await group.start()
            await group.leader()
            assert leader.state == "leads"
            await asyncio.sleep(1.0)
            together = await _window(meter, group, window)
    each = {key: (together[key] - alone[key]) / WAITING for key in alone if key in together}
    aim = SQLITE_AIM if file and lease == LEASE else None
    return {f"{database.kind} leader": _figures(alone), f"{database.kind} candidate": _figures(each, aim)}


async def _window(meter: Meter, group: Candidates, window: float) -> dict[str, float]:
    before = await meter.read(group)
    await asyncio.sleep(window)
    after = await meter.read(group)
    seconds = after.at - before.at
    rates = {
        "statements": (after.statements - before.statements) / seconds,
        "CPU": (after.cpu - before.cpu) / seconds,
    }
    if after.writes is not None and before.writes is not None:
        rates["writes"] = (after.writes - before.writes) / seconds
    if after.connections is not None:
        rates["connections"] = after.connections
    return rates


def _figures(rates: dict[str, float], aim: float | None = None) -> dict[str, Figure]:
    figures = {"statements": Figure(value=rates["statements"], unit="/s", aim=aim)}
    if "writes" in rates:
        figures["of these writes"] = Figure(value=rates["writes"], unit="/s")
    if "connections" in rates:
        figures["connections"] = Figure(value=rates["connections"], unit="")
    figures["CPU per s"] = Figure(value=rates["CPU"] * 1000, unit="ms")
    return figures


def _cpu(group: Candidates) -> float:
    """Seconds of CPU that the processes have used so far."""
    return sum(meters.cpu_of(candidate.pid) for candidate in group.all)


class ServerMeter:
    """Reads the server's own counters."""

    def __init__(self, meter: meters.Meter) -> None:
        self._meter = meter

    async def read(self, group: Candidates) -> Count:
        cpu = _cpu(group)
        count = await asyncio.to_thread(self._meter.read)
        return Count(
            at=count.at, statements=count.statements, writes=count.writes, connections=count.connections, cpu=cpu
        )


class FileMeter:
    """Asks the processes what they have sent."""

    async def read(self, group: Candidates) -> Count:
        at = time.monotonic()
        cpu = _cpu(group)
        for candidate in group.all:
            candidate.send("cost")
        await group.until(lambda: all(c.told.get("cost", {"at": 0})["at"] >= at for c in group.all))
        statements = sum(candidate.told["cost"]["statements"] for candidate in group.all)
        return Count(at=at, statements=statements, writes=None, connections=None, cpu=cpu)
