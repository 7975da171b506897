"""Takeover: from the expiry of a killed leader's lease to the start of the next body."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack

from benchmarks.candidates import Candidates, candidates
from benchmarks.databases import Database
from benchmarks.report import Figure, Table, milliseconds
from benchmarks.samples import median, percentile

AIMS = (30.0, 80.0)
LEASE = 3.0


async def measure(databases: Sequence[Database], *, quick: bool) -> Table:
    leases, rounds = (5, 1) if quick else (10, 3)
    table = Table(
        topic="takeover",
        title=f"takeover after kill -9: time past the expiry of a lease of {LEASE:g} s, {leases * rounds} kills",
        notes=[
            f"{leases} leases side by side, two processes each; a candidate adds 0 to 50 ms of jitter on purpose",
            "each candidate has waited for a lease by then, and so has seen renewals: one that has not waits for a",
            "whole lease from its first reading on, since it cannot know whether the database's clock was stepped",
            "p99 of so few is the worst; 'after the kill' is what the outage lasts, the rest of the lease included",
        ],
    )
    for database in databases:
        table.rows[database.kind] = await _of(database, leases, rounds)
    return table


async def _of(database: Database, leases: int, rounds: int) -> dict[str, Figure]:
    url = database.fresh("takeover")
    past: list[float] = []
    outages: list[float] = []
    async with AsyncExitStack() as stack:
        groups: dict[str, Candidates] = {}
        for number in range(leases):
            name = f"bench-{number}"
            groups[name] = await stack.enter_async_context(
                candidates(url, name, 2, lease_duration=LEASE, retry_interval=LEASE / 15)
            )
            if number == 0:
                await groups[name].leader()  # the tables are made
        for round_number in range(rounds):
            if round_number:  # not before all have been taken over: a process that starts takes a core from the others
                for group in groups.values():
                    await group.start()
            for group in groups.values():
                await group.leader()
            await asyncio.sleep(LEASE)  # a candidate that has seen no renewal yet waits for a whole lease (rule 8)
            results = await asyncio.gather(*(_kill(database, name, group) for name, group in groups.items()))
            past += [result[0] for result in results]
            outages += [result[1] for result in results]
    p50, p99 = AIMS
    return {
        "p50": milliseconds(median(past), p50),
        "p99": milliseconds(percentile(past, 99), p99),
        "p90": milliseconds(percentile(past, 90)),
        "earliest": milliseconds(min(past)),
        "after the kill p50": milliseconds(median(outages)),
    }


async def _kill(database: Database, name: str, group: Candidates) -> tuple[float, float]:
    """Kills the leader; returns the time past the expiry, and past the kill, at which another body started."""
    await asyncio.sleep(random.uniform(0, LEASE / 3))  # at any moment between two renewals
    leader = await group.leader()
    killed_at = asyncio.get_running_loop().time()  # the monotonic clock, as that of the candidates
    await group.kill(leader)
    await asyncio.sleep(0.3)  # a renewal may have been under way
    expires_at = await asyncio.to_thread(database.expiry, "takeover", name)
    _, start = await group.successor(leader.told["started"]["token"])
    return start["wall"] - expires_at, start["at"] - killed_at
