"""What it changes to have a leader: the same jobs in as many processes, first without aiolease, then with it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Final

from fleet_processes import WITH_LEASE, WITHOUT_LEASE, Copy, Fleet
from shop import Shop, open_shop
from shop_database import Database, open_database

VISITS: Final = 5.0
"""Seconds between two visitors of each process: few, so that their statements do not drown the others."""

SETTLE: Final = 4.0
"""Seconds between the start of the last process and the first measurement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one fleet did, and what it took.

    Attributes:
        runs_per_tick: How many processes ran a job that fell due once, on average.
        failed: How many runs ended with an error.
        sent_again: How many letters went out that had gone out before.
        statements: Per second, at the database; ``None`` if it does not count them.
        connections: Open at the database.
        memory: The leader's, and that of the others, which is everyone's where nobody leads.
    """

    runs_per_tick: float
    failed: int
    sent_again: int
    statements: float | None
    connections: int
    memory: tuple[Memory | None, Memory | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """In MB: all that is resident, and the process's share of it, if the system tells."""

    resident: float
    share: float | None

    def __str__(self) -> str:
        return f"{self.resident:.0f} MB" + ("" if self.share is None else f" ({self.share:.0f})")


Look = Callable[[], Awaitable[tuple[int | None, int | None]]]
"""Gives what `_at_server` says."""


async def compare(url: str | None, size: int, lease: float, seconds: float) -> None:
    """Runs both fleets undisturbed, measures each for so many seconds, and prints the difference.

    Args:
        url: The database; ``None`` for a new SQLite file for each fleet.
        size: How many processes.
        lease: The lease in seconds.
        seconds: How long each fleet is measured.
    """
    results = []
    for title, program in (("without aiolease", WITHOUT_LEASE), ("with aiolease", WITH_LEASE)):
        print(f"{title}: {size} processes, {seconds:g} s …", flush=True)
        with tempfile.TemporaryDirectory(prefix="aiolease-fleet-") as folder:
            target = url or f"sqlite:///{folder}/shop.db"
            environment = {"AIOLEASE_URL": target, "AIOLEASE_NAME": "fleet", "AIOLEASE_LEASE_DURATION": str(lease)}
            fleet = Fleet((*program, "--pause", str(VISITS)), environment, Path(folder), tell=lambda _: None)
            results.append(await _measure(fleet, target, size, seconds))
    without, leased = results
    rows = (
        ("", "without aiolease", "with aiolease"),
        ("runs per tick of a job", f"{without.runs_per_tick:.2f}", f"{leased.runs_per_tick:.2f}"),
        ("runs that failed", without.failed, leased.failed),
        ("letters sent again", without.sent_again, leased.sent_again),
        ("statements per second", _rounded(without.statements), _rounded(leased.statements)),
        ("connections", without.connections, leased.connections),
        ("memory of the leader", without.memory[0] or "no leader", leased.memory[0] or "unknown"),
        ("memory of each other process", without.memory[1] or "unknown", leased.memory[1] or "unknown"),
    )
    print()
    for name, before, after in rows:
        print(f"{name:30}{before!s:>18}{after!s:>18}")
    print(
        "\nStatements and connections at the database: of the jobs, of the lease, and of the shop's visitors, who come"
    )
    print(
        f"every {VISITS:g} s in each process. Memory: resident, and in brackets the process's proportional share (PSS)."
    )


def _rounded(number: float | None) -> str:
    return "unknown" if number is None else f"{number:.0f}"


async def _measure(fleet: Fleet, url: str, size: int, seconds: float) -> Measured:
    async with open_shop(url) as shop, open_database(url) as database:
        letters = await shop.letters_sent_again()
        _, idle = await _at_server(database, url)
        async with fleet.running(size):
            look = partial(_at_server, database, url)
            measured = asyncio.create_task(_watch(fleet, shop, look, seconds=seconds, letters=letters, idle=idle))
            failure = asyncio.create_task(fleet.wait_for_failure())
            await asyncio.wait([measured, failure], return_when=asyncio.FIRST_COMPLETED)
            for task in (measured, failure):
                task.cancel()
            if failure.done():
                failure.result()
            return await measured


async def _watch(fleet: Fleet, shop: Shop, look: Look, *, seconds: float, letters: int, idle: int | None) -> Measured:
    await fleet.wait_until_started()
    await asyncio.sleep(SETTLE)
    begin, costs, (asked, _) = datetime.now(UTC), [copy.cost for copy in fleet.copies], await look()
    failed = fleet.failed_runs
    await asyncio.sleep(seconds)
    end, (asked_then, connected) = datetime.now(UTC), await look()
    memory = _memories(fleet)
    await asyncio.sleep(1.5)  # until the last runs are told and done
    runs = [count for (_, tick), count in fleet.ran.items() if begin <= datetime.fromisoformat(tick) < end]
    statements: float | None = None
    if connected is None or idle is None:
        pairs = [(before, copy.cost) for before, copy in zip(costs, fleet.copies, strict=True)]
        statements = sum((now["statements"] - then["statements"]) / (now["at"] - then["at"]) for then, now in pairs)
        connections = int(sum(copy.cost["connections"] for copy in fleet.copies))
    else:
        connections = connected - idle
        if asked is not None and asked_then is not None:
            statements = (asked_then - asked) / (end - begin).total_seconds()
    return Measured(
        runs_per_tick=mean(runs) if runs else 0.0,
        failed=fleet.failed_runs - failed,
        sent_again=await shop.letters_sent_again() - letters,
        statements=statements,
        connections=connections,
        memory=memory,
    )


_STATUS: Final = {
    "mysql": "SHOW GLOBAL STATUS WHERE Variable_name IN ('Questions', 'Threads_connected')",
    # It counts statements with an extension only.
    "postgresql": "SELECT 'Threads_connected', count(*) FROM pg_stat_activity WHERE datname = current_database()",
}


async def _at_server(database: Database, url: str) -> tuple[int | None, int | None]:
    """How many statements the server was asked so far, and how many connections it has; SQLite is no server."""
    wanted = next((sql for scheme, sql in _STATUS.items() if url.startswith(scheme)), None)
    if wanted is None:
        return None, None
    async with database.transaction() as do:
        status = {name: int(value) for name, value in (await do.execute(wanted)).rows}
    return status.get("Questions"), status["Threads_connected"]


def _memories(fleet: Fleet) -> tuple[Memory | None, Memory | None]:
    leader = fleet.leader
    others = [memory for copy in fleet.copies if copy is not leader and (memory := _memory(copy))]
    return (_memory(leader) if leader else None), _average(others)


def _memory(copy: Copy) -> Memory | None:
    """What Linux says of a process; elsewhere, nothing."""
    process = Path("/proc") / str(copy.pid)
    try:
        resident = _megabytes(process / "status", "VmRSS:")
    except OSError:
        return None
    try:
        share = _megabytes(process / "smaps_rollup", "Pss:")
    except OSError:
        share = None
    return Memory(resident=resident, share=share)


def _megabytes(file: Path, name: str) -> float:
    [line] = [line for line in file.read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) / 1024


def _average(memories: Sequence[Memory]) -> Memory | None:
    if not memories:
        return None
    shares = [memory.share for memory in memories if memory.share is not None]
    return Memory(resident=mean(memory.resident for memory in memories), share=mean(shares) if shares else None)
