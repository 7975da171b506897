from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager

from aiolease import open_store
from tests.docs.setup import Setup, Stage
from tests.docs.workers import program_of, worker_of

KNOWS_ITS_JOBS = "ran 'close_stale_sessions'"


@contextmanager
def a_leader(stage: Stage, until: str = "acquired leadership", *, killed: bool = False) -> Iterator[list[str]]:
    with worker_of(stage, "docs/tutorial.md", "a-worker", until=until, killed=killed) as printed:
        yield printed


def the_program(stage: Stage) -> Iterator[None]:
    program_of(stage, "docs/tutorial.md", "a-worker")
    yield


def beside_a_leader(stage: Stage) -> Iterator[None]:
    with a_leader(stage):
        yield


def after_a_tick(stage: Stage) -> Iterator[None]:
    with a_leader(stage, KNOWS_ITS_JOBS):
        yield


def which_hears_the_request(stage: Stage) -> Iterator[None]:
    """The leader prints what the page says below the command."""
    with a_leader(stage, KNOWS_ITS_JOBS) as printed:
        yield
        wait_for("attempt 1: page 2\n", printed)


def after_a_crash(stage: Stage) -> Iterator[None]:
    """The leader is killed while it prints the report."""
    with a_leader(stage, KNOWS_ITS_JOBS, killed=True) as printed:
        trigger(stage)
        wait_for("attempt 1: page 2\n", printed)
    yield


def a_report_of_two_terms(stage: Stage) -> Iterator[None]:
    for _ in after_a_crash(stage):
        with a_leader(stage, "ran 'report'"):
            yield


def beside_the_visitors(stage: Stage) -> Iterator[None]:
    with worker_of(stage, "docs/tutorial.md", "write-exactly-once", until="ran 'count_visitors'"):
        yield


def trigger(stage: Stage) -> None:
    async def ask() -> None:
        async with open_store(f"sqlite:///{stage.folder}/jobs.db") as store:
            await store.trigger("default", "report")

    asyncio.run(ask())


def wait_for(line: str, printed: list[str]) -> None:
    deadline = time.monotonic() + 20
    while line not in printed:
        assert time.monotonic() < deadline, "".join(printed)
        time.sleep(0.05)


def visitors(stage: Stage) -> Iterator[None]:
    yield
    with sqlite3.connect(stage.folder / "jobs.db") as connection:
        ((rows, ticks),) = connection.execute("SELECT COUNT(*), COUNT(DISTINCT tick) FROM visitors")
    assert rows == ticks >= 1


SETUPS = {
    "a-worker": Setup(run=15.0, expect=("acquired leadership",)),
    "a-worker-2": Setup(around=the_program, run=15.0),
    "a-second-copy": Setup(around=beside_a_leader, run=15.0),
    "look": Setup(around=after_a_tick),
    "run-a-job-now": Setup(around=which_hears_the_request),
    "kill-the-leader-2": Setup(around=after_a_crash, run=30.0),
    "kill-the-leader-3": Setup(around=a_report_of_two_terms),
    "write-exactly-once": Setup(around=visitors, run=20.0),
    "write-exactly-once-3": Setup(around=beside_the_visitors),
}
