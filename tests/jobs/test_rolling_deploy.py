"""A deploy in which workers of version 0.1.0 and of this one run side by side, on true databases.

Whichever comes first makes the tables; the new one brings older ones to its revision while others lead. Leaders are
killed now and then, and told to stop. Then ledger, journal and effects are compared, as in `test_failover`.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from aiolease import open_store
from aiolease._clock import boot_clock
from aiolease.stores import migrate
from tests import first_release
from tests.campaigns import until
from tests.jobs.failover_fleet import LIMIT, NAME, SEED, Fleet, Place
from tests.project import ROOT

Release = Literal["old", "new"]

JOBS = ("quick", "steady", "again", "effect")
TROUBLE = 8.0
"""Seconds of trouble, at least, while both releases run."""
TERMS = 2
"""How often each release must have led by then."""
A_TERM = (
    "INSERT INTO aiolease_run (lease, job, tick, attempt, token, holder, status) "
    "SELECT lease, 'a term', MIN(known_since), 1, 0, 'somebody', 'running' FROM aiolease_job WHERE lease = 'default' "
    "GROUP BY lease"  # not when a term began: a newer release has a row of its own there
)
ALL_JOBS = (
    "INSERT INTO aiolease_job (lease, job, schedule, timezone, known_since, schedule_since, resumed_at) "
    "SELECT name, 'all jobs', '', '', elected_at, elected_at, elected_at FROM aiolease_lease WHERE name = 'default'"
)
"""Rows that version 0.1.0 knows nothing of: it goes on, and leaves them alone."""
MOST = 60.0
"""Seconds of trouble at most."""


@dataclass
class Mixed(Fleet):
    """Workers of two releases.

    Attributes:
        releases: Of which release each worker is, by its process id.
        release: Of which release the next one will be.
        led: How many terms of each release have run something.
    """

    releases: dict[int, Release] = field(default_factory=dict)
    release: Release = "new"
    led: Counter[str] = field(default_factory=Counter)

    def start(self, url: str | None = None) -> int:
        log = self.folder / f"log-{len(self.logs)}"
        package = first_release.folder() if self.release == "old" else ROOT
        environment = first_release.environment() if self.release == "old" else os.environ | {"PYTHONPATH": str(ROOT)}
        # The kernel kills a worker whose test was killed.
        leash = [setpriv, "--pdeathsig", "KILL"] if (setpriv := shutil.which("setpriv")) else []
        script = str(ROOT / "tests" / "jobs" / "rolling_worker.py")
        arguments = (url or self.url, str(self.folder), ",".join(self.jobs), str(package))
        with open(log, "wb") as errors:
            process = subprocess.Popen(
                [*leash, sys.executable, script, *arguments],
                env=environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
            )
        self.workers[process.pid], self.logs[process.pid] = process, log
        self.releases[process.pid] = self.release
        return process.pid

    def of(self, release: Release) -> list[int]:
        return [pid for pid in self.workers if self.releases[pid] == release]

    async def run_by(self, release: Release) -> None:
        """Waits until a worker of a release has run something."""

        def has() -> bool:
            return any(self.releases.get(line["pid"]) == release for line in self.read() if line["what"] == "end")

        await until(has, f"a worker of the {release} release runs jobs", LIMIT)


@asynccontextmanager
async def two_of(place: Place, folder: Path, release: Release) -> AsyncIterator[Mixed]:
    """Two workers of a release, who make the tables, and run jobs; all workers end with the block."""
    async with open_store(place.url, create_tables=False) as store:
        place.sql("CREATE TABLE effects (job VARCHAR(40), tick BIGINT, attempt INT, pid INT)")
        fleet = Mixed(place, store, folder, JOBS, place.url, release=release)
        try:
            for _ in range(2):
                fleet.start()
            await fleet.run_by(release)
            yield fleet
        except BaseException:
            for pid, log in fleet.logs.items():
                print(f"-- {pid}, {fleet.releases[pid]}", *log.read_text().splitlines()[-8:], sep="\n")
            raise
        finally:
            fleet.close()


async def trouble(fleet: Mixed) -> None:
    """Ends leaders, in order and not, one after the other; another of the same release comes for each."""
    dice, began, token = random.Random(SEED), boot_clock(), 0
    while boot_clock() - began < TROUBLE or min(fleet.led["old"], fleet.led["new"]) < TERMS:
        assert boot_clock() - began < MOST, f"led were only {fleet.led}"
        pid, token = await fleet.working(token)
        fleet.led[fleet.releases[pid]] += 1
        await fleet.store.history(NAME, "quick")
        fleet.release = fleet.releases[pid]
        if dice.random() < 0.5:
            fleet.send(pid, signal.SIGKILL)
            fleet.kills["killed"] += 1
            await fleet.replace(pid, -signal.SIGKILL)
        else:
            fleet.orderly[token] = pid
            await fleet.stop(pid)
            fleet.kills["stopped"] += 1
            fleet.start()


@pytest.mark.parametrize("first", ["old", "new"])
async def test_a_rolling_deploy_runs_every_tick_once(place: Place, tmp_path: Path, first: Release) -> None:
    """Two workers of one release, then two of the other beside them, then only these: no tick twice, none lost.

    No worker tells of an error, and the tables are of this revision from when the first new worker came.
    """
    second: Release = "new" if first == "old" else "old"
    async with two_of(place, tmp_path, first) as fleet:
        revision = "SELECT token FROM aiolease_lease WHERE name = 'schema revision'"
        assert place.sql(revision) == ([] if first == "old" else [(3,)])
        fleet.release = second
        beside = [fleet.start() for _ in range(2)]
        await until(lambda: all((tmp_path / f"up-{pid}").exists() for pid in beside), "the others are up", LIMIT)
        await until(lambda: place.sql(revision) == [(3,)], "the tables are of this revision", LIMIT)
        for row in (A_TERM, ALL_JOBS):
            place.sql(row)
        await trouble(fleet)
        term = "SELECT attempt, holder FROM aiolease_run WHERE job = 'a term' AND token = 0"
        assert place.sql(term) == [(1, "somebody")]
        assert place.sql("SELECT schedule FROM aiolease_job WHERE job = 'all jobs' AND high_tick IS NULL") == [("",)]
        assert await migrate(place.url, check=True) == []
        await fleet.stop(*fleet.of(first))
        fleet.release = second
        wrong = await fleet.finish()
        wrong += [
            f"{log}: {line}"
            for log in fleet.logs.values()
            for line in log.read_text().splitlines()
            if re.search(r"^\S+ (ERROR|CRITICAL) |Traceback", line)
        ]
        print(f"led: {dict(fleet.led)}")
        assert await fleet.check(wrong, ordered=False) > 100
