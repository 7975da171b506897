"""Hand-over: from the end of one body to the start of the next, after a clean exit."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from benchmarks.candidates import candidates
from benchmarks.chain import Bare, two_commits, with_a_lock, with_a_notification
from benchmarks.databases import Database, FileDatabase, PostgreSQLDatabase, ServerDatabase, by_each_driver
from benchmarks.report import Figure, Table, milliseconds
from benchmarks.samples import median, percentile

AIM, SQLITE_AIM = 1.5, 2.0
"""Times what the bare driver takes for two commits, on a server with a hint between them that wakes who waits."""

PARTS = (
    ("the body's end to the release's sending", "ended", "release called"),
    ("to the waking of the next", "release called", "watch returned"),
    ("to its claim's sending", "watch returned", "claim called"),
    ("to the claim's answer", "claim called", "claim returned"),
    ("to the start of its body", "claim returned", "started"),
)
"""What a hand-over consists of: what each part is called, and between which two moments it lies."""

SIZE = 3


async def measure(databases: Sequence[Database], *, quick: bool) -> Table:
    exits = 10 if quick else 100
    table = Table(
        topic="handover",
        title=f"hand-over: from the end of a body to the start of the next, {exits} exits, {SIZE} processes",
        notes=[
            "every second exit is a resign(); 'release' is the part until the old leader knows that it has released",
            "'commit' is an UPDATE of one row with the bare driver, between the hand-overs, each of which needs two",
            "'bare' is a hand-over with the bare driver alone, in one process, by turns with ours: in one packet an",
            "UPDATE and a hint (RELEASE_LOCK, NOTIFY), the hint's arrival on another connection, and there an UPDATE;",
            "SQLite has no hint of its own: there it is the two UPDATEs. 'to bare' is ours as its multiple",
            "below: where the time goes, medians of the parts; the second and the fourth have a commit each",
        ],
    )
    for database in by_each_driver(databases):
        table.rows |= await _of(database, exits)
    return table


async def _of(database: Database, exits: int) -> dict[str, Mapping[str, Figure]]:
    url = database.fresh("handover")
    took: list[float] = []
    releases: list[float] = []
    commits: list[float] = []
    chains: list[float] = []
    parts: dict[str, list[float]] = {part: [] for part, *_ in PARTS}
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
                await asyncio.sleep(random.uniform(0.03, 0.13))  # ours, too, comes after a rest
                chains.append(await hand_over())
                await asyncio.sleep(0.02)
                token: int = leader.told["started"]["token"]
                leader.send("resign" if number % 2 else "leave")
                _, start = await group.successor(token)
                await group.until(lambda: leader.heard("Released", token) is not None)  # noqa: B023 - awaited here
                released, ended = leader.told["Released"], leader.told["ended"]["at"]
                took.append(start["at"] - ended)
                releases.append(released["at"] - ended)
                at = {**start["calls"], "release called": released["calls"]["release called"]}
                at |= {"ended": ended, "started": start["at"]}
                for part, begins, ends in PARTS:
                    parts[part].append(at[ends] - at[begins])
    aim = SQLITE_AIM if isinstance(database, FileDatabase) else AIM
    figures = {
        "p50": milliseconds(median(took)),
        "p99": milliseconds(percentile(took, 99)),
        "worst": milliseconds(max(took)),
        "release p50": milliseconds(median(releases)),
        "commit p50": milliseconds(median(commits)),
        "p50 in commits": Figure(value=median(took) / median(commits), unit="x"),
        "bare p50": milliseconds(median(chains)),
        "to bare": Figure(value=median(took) / median(chains), unit="x", aim=aim),
    }
    budget = {f"{database.label}: {part}": {"p50": milliseconds(median(each))} for part, each in parts.items()}
    return {database.label: figures, **budget}


def _bare(database: Database) -> AbstractAsyncContextManager[Bare]:
    if isinstance(database, PostgreSQLDatabase):
        return with_a_notification(database, "handover")
    if isinstance(database, ServerDatabase):
        return with_a_lock(database, "handover")
    assert isinstance(database, FileDatabase)
    return two_commits(database, "handover")
