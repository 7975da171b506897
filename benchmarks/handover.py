"""Hand-over: from the end of one body to the start of the next, after a clean exit."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext

from benchmarks.candidates import candidates
from benchmarks.chain import Bare, bare_hand_over
from benchmarks.databases import Database, PostgreSQLDatabase, by_each_driver
from benchmarks.report import Figure, Table, milliseconds
from benchmarks.samples import median, percentile

AIMS = {"mariadb": (3.0, 20.0)}
POSTGRESQL_AIM = 1.5
"""Times what the bare driver takes for two commits with a notification between them."""

SIZE = 3


async def measure(databases: Sequence[Database], *, quick: bool) -> Table:
    exits = 10 if quick else 100
    table = Table(
        topic="handover",
        title=f"hand-over: from the end of a body to the start of the next, {exits} exits, {SIZE} processes",
        notes=[
            "every second exit is a resign(); 'release' is the part until the old leader knows that it has released",
            "'commit' is an UPDATE of one row with the bare driver, between the hand-overs, each of which needs two",
            "'bare' is a hand-over with the bare driver alone, in one process, by turns with ours: an UPDATE that",
            "notifies, its notification on another connection, and there an UPDATE; 'to bare' is ours as its multiple",
        ],
    )
    for database in by_each_driver(databases):
        table.rows[database.label] = await _of(database, exits)
    return table


async def _of(database: Database, exits: int) -> dict[str, Figure]:
    url = database.fresh("handover")
    took: list[float] = []
    releases: list[float] = []
    commits: list[float] = []
    chains: list[float] = []
    # The shorter pause only makes a leader that left come back to the election sooner.
    async with candidates(url, "bench", SIZE, lease_duration=30, retry_interval=0.2) as group:
        await group.leader()
        async with database.bare("handover") as bare, _bare(database) as hand_over:
            await bare.run("CREATE TABLE bare (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)")
            await bare.run("INSERT INTO bare VALUES (1, 0)")
            for number in range(exits):
                leader = await group.leader()
                await asyncio.sleep(random.uniform(0.03, 0.13))  # at any moment of a candidate that polls
                started = time.monotonic()
                await bare.run("UPDATE bare SET n = n + 1 WHERE id = 1")
                commits.append(time.monotonic() - started)
                if hand_over is not None:
                    await asyncio.sleep(random.uniform(0.03, 0.13))  # ours, too, comes after a rest
                    chains.append(await hand_over())
                await asyncio.sleep(0.02)
                token: int = leader.told["started"]["token"]
                leader.send("resign" if number % 2 else "leave")
                _, start = await group.successor(token)
                await group.until(lambda: leader.heard("Released", token) is not None)  # noqa: B023 - awaited here
                ended: float = leader.told["ended"]["at"]
                took.append(start["at"] - ended)
                releases.append(leader.told["Released"]["at"] - ended)
    p50, p99 = AIMS.get(database.kind, (None, None))
    to_bare = {}
    if chains:
        ratio = median(took) / median(chains)
        to_bare = {
            "bare p50": milliseconds(median(chains)),
            "to bare": Figure(value=ratio, unit="x", aim=POSTGRESQL_AIM),
        }
    return {
        "p50": milliseconds(median(took), p50),
        "p99": milliseconds(percentile(took, 99), p99),
        "worst": milliseconds(max(took)),
        "release p50": milliseconds(median(releases)),
        "commit p50": milliseconds(median(commits)),
        "p50 in commits": Figure(value=median(took) / median(commits), unit="x"),
        **to_bare,
    }


def _bare(database: Database) -> AbstractAsyncContextManager[Bare | None]:
    return bare_hand_over(database, "handover") if isinstance(database, PostgreSQLDatabase) else nullcontext()
