"""To elect and to notify: aiolease beside asyncpg-lock and beside the event broker of APScheduler 4."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from benchmarks.candidates import Candidates, candidates
from benchmarks.databases import Database, PostgreSQLDatabase
from benchmarks.peers import lock_key, measurable
from benchmarks.peers.notifying import notifications
from benchmarks.report import Figure, Table, milliseconds
from benchmarks.samples import median, percentile

SIZE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """Who elects, and how patiently.

    Attributes:
        name: For people.
        program: The module of its candidates.
        lease_duration: Of asyncpg-lock the pause between the lock and the body.
        retry_interval: How often a candidate asks for the lock.
        exits: How many hand-overs are enough, of a hundred: those that poll take long.
    """

    name: str
    program: str
    lease_duration: float
    retry_interval: float
    exits: int


OURS, GUARD = "benchmarks.candidate", "benchmarks.peers.guard"
AIOLEASE = Contender(name="aiolease", program=OURS, lease_duration=30, retry_interval=2, exits=100)
ASYNCPG_LOCK = Contender(name="asyncpg-lock", program=GUARD, lease_duration=5, retry_interval=5, exits=10)
CONTENDERS = (
    AIOLEASE,
    ASYNCPG_LOCK,
    Contender(name="asyncpg-lock, pauses of 0.5 s", program=GUARD, lease_duration=0.5, retry_interval=0.5, exits=30),
)


async def measure(databases: Sequence[Database], *, quick: bool) -> Table:
    table = Table(
        topic="peers.leading",
        title="peers.leading: to elect and to notify, on one PostgreSQL, by turns",
        notes=[
            f"hand-over: {SIZE} processes; from the end of a body to the start of the next. asyncpg-lock polls for an",
            "advisory lock, and waits after it got it, 5 s each by default; its second line is with pauses of 0.5 s,",
            "which protect less from a body that has not ended",
            "after kill -9: two processes, with the defaults of each; the server ends an advisory lock as it hears of",
            "the end of a process. Nobody measured here what a host does that is gone without a word, or a frozen one:",
            "an advisory lock lasts until its connection ends, a lease until it expires",
            "a notification: within one process, over two connections; that of aiolease comes with the release's own",
            "commit, which is on disk, and a reading of the row; the others commit nothing that has to be on disk",
        ],
    )
    for database in measurable(table, databases):
        table.rows.update(await _hand_overs(database, quick=quick))
        table.rows.update(await _outages(database, 3 if quick else 10))
        table.rows.update(await _notifications(database, 50 if quick else 500))
    return table


@asynccontextmanager
async def _group(database: PostgreSQLDatabase, name: str, contender: Contender, size: int) -> AsyncIterator[Candidates]:
    url = database.server.url(name)
    database.server.sql(f"CREATE SEQUENCE IF NOT EXISTS terms_{lock_key(contender.name)}", name)
    async with candidates(
        url,
        contender.name,
        size,
        lease_duration=contender.lease_duration,
        retry_interval=contender.retry_interval,
        program=contender.program,
    ) as group:
        yield group


async def _hand_overs(database: PostgreSQLDatabase, *, quick: bool) -> dict[str, dict[str, Figure]]:
    database.server.create_database("peers_handover")
    took: dict[str, list[float]] = {contender.name: [] for contender in CONTENDERS}
    async with AsyncExitStack() as stack:
        groups = [
            (contender, await stack.enter_async_context(_group(database, "peers_handover", contender, SIZE)))
            for contender in CONTENDERS
        ]
        turns = 10 if quick else 100
        for turn in range(turns):
            for contender, group in groups:
                if turn * contender.exits % 100 < contender.exits:
                    took[contender.name].append(await _hand_over(group))
    return {f"hand-over, {name}": _times(durations) for name, durations in took.items()}


async def _hand_over(group: Candidates) -> float:
    leader = await group.leader()
    await asyncio.sleep(random.uniform(0.03, 0.13))
    token: int = leader.told["started"]["token"]
    leader.send("leave")
    _, start = await group.successor(token)
    await group.until(lambda: leader.heard("ended", token) is not None)
    ended: float = leader.told["ended"]["at"]
    at: float = start["at"]
    return at - ended


async def _outages(database: PostgreSQLDatabase, kills: int) -> dict[str, dict[str, Figure]]:
    database.server.create_database("peers_takeover")
    rows = {}
    for contender in (AIOLEASE, ASYNCPG_LOCK):
        async with AsyncExitStack() as stack:
            groups = []
            for number in range(kills):
                one = replace(contender, name=f"{contender.name}-{number}")
                groups.append(await stack.enter_async_context(_group(database, "peers_takeover", one, 2)))
                await groups[-1].leader()
            durations = await asyncio.gather(*map(_outage, groups))
        rows[f"after kill -9, {contender.name}"] = _times(durations)
    return rows


async def _outage(group: Candidates) -> float:
    await asyncio.sleep(random.uniform(0, 10))  # at any moment between two renewals
    leader = await group.leader()
    killed_at = asyncio.get_running_loop().time()
    await group.kill(leader)
    _, start = await group.successor(leader.told["started"]["token"])
    at: float = start["at"]
    return at - killed_at


async def _notifications(database: PostgreSQLDatabase, times: int) -> dict[str, dict[str, Figure]]:
    database.server.create_database("peers_notified")
    found = await notifications(database.server.url("peers_notified"), times)
    return {f"a notification, {name}": _times(durations) for name, durations in found.items()}


def _times(durations: Sequence[float]) -> dict[str, Figure]:
    return {
        "p50": milliseconds(median(durations)),
        "p99": milliseconds(percentile(durations, 99)),
        "worst": milliseconds(max(durations)),
        "times": Figure(value=len(durations), unit=""),
    }
