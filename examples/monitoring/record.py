"""Records what a fleet in trouble exports, as a test of the alert rules for promtool.

In this folder's parent::

python -m monitoring.record alerts_test.json
promtool test rules alerts_test.json
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import timedelta
from pathlib import Path

from loguru import logger

from aiolease import StoreUnavailable, open_store
from aiolease.events import LoopBlocked
from aiolease.testing import MemoryStore
from monitoring.recording import HOUR, LEASE, MINUTE, PROCESSES, Firing, Fleet, Scene, record

RULES = Path(__file__).with_name("alerts.yml")
SYNC = {**LEASE, "job": "sync"}


def critical(alert: str, labels: dict[str, str]) -> Firing:
    return alert, {**labels, "severity": "critical"}


def warning(alert: str, labels: dict[str, str]) -> Firing:
    return alert, {**labels, "severity": "warning"}


async def one_crash(fleet: Fleet) -> None:
    leader = fleet.leader
    await leader.kill()
    await asyncio.sleep(5 * MINUTE)
    leader.start()


async def an_outage(fleet: Fleet) -> None:
    for process in fleet.processes:
        process.store.down = True
    await asyncio.sleep(10 * MINUTE)
    for process in fleet.processes:
        process.store.down = False


async def a_stop(fleet: Fleet) -> None:
    for process in fleet.processes:
        await process.kill()


async def crash_after_crash(fleet: Fleet) -> None:
    for _ in range(8):
        leader = fleet.leader
        await leader.kill()
        leader.start()
        await asyncio.sleep(2 * MINUTE)


async def a_locked_ledger(fleet: Fleet) -> None:
    leader = fleet.leader
    leader.store.fail("record", StoreUnavailable("memory", "a lock"), times=10_000)
    await asyncio.sleep(15 * MINUTE)
    await leader.kill()
    leader.start()


async def a_failing_job(fleet: Fleet) -> None:
    fleet.fails = True
    await asyncio.sleep(10 * MINUTE)
    fleet.fails = False


async def a_pause_that_was_forgotten(fleet: Fleet) -> None:
    async with open_store(MemoryStore(fleet.server)) as store:
        await store.pause("default", "sync")


async def a_slow_job(fleet: Fleet) -> None:
    fleet.slow = 150.0
    await asyncio.sleep(30 * MINUTE)
    fleet.slow = 1.0


async def a_blocked_loop(fleet: Fleet) -> None:
    leader = fleet.leader  # virtual time has no watchdog: here its event comes by hand
    leader.metrics(LoopBlocked(lease="default", token=1, stack="…"))
    leader.store.down = True
    await asyncio.sleep(30)
    leader.store.down = False


async def clocks_apart(fleet: Fleet) -> None:
    fleet.server.clock_offset -= timedelta(seconds=8)
    await asyncio.sleep(20 * MINUTE)
    fleet.server.clock_offset += timedelta(seconds=8)


SCENES = [
    Scene(
        name="an hour with a crash: nothing to wake anybody for",
        play=one_crash,
        lasts=HOUR,
        firing={8 * MINUTE: [], 11 * MINUTE: [], 15 * MINUTE: [], 30 * MINUTE: [], HOUR: []},
    ),
    Scene(
        name="the database is down: nobody leads",
        play=an_outage,
        lasts=40 * MINUTE,
        firing={
            11 * MINUTE: [],
            15 * MINUTE: [critical("AioleaseNobodyLeads", LEASE)],
            40 * MINUTE: [warning("AioleaseTicksSkipped", SYNC)],  # those of ten minutes
        },
    ),
    Scene(
        name="the whole fleet is stopped",
        play=a_stop,
        lasts=30 * MINUTE,
        firing={9 * MINUTE: [], 15 * MINUTE: [critical("AioleaseNoProcess", {})]},
    ),
    Scene(
        name="each leader crashes",
        play=crash_after_crash,
        lasts=HOUR,
        firing={
            14 * MINUTE: [],
            28 * MINUTE: [warning("AioleaseTermsChangeOften", LEASE)],
            HOUR: [],
        },
    ),
    Scene(
        name="the ledger cannot be written",
        play=a_locked_ledger,
        lasts=45 * MINUTE,
        firing={
            9 * MINUTE: [],
            20 * MINUTE: [critical("AioleaseJobOverdue", SYNC), critical("AioleaseLedgerFails", LEASE)],
            45 * MINUTE: [warning("AioleaseTicksSkipped", SYNC)],  # those of a quarter of an hour
        },
    ),
    Scene(
        name="a job fails",
        play=a_failing_job,
        lasts=40 * MINUTE,
        firing={
            11 * MINUTE: [],
            18 * MINUTE: [warning("AioleaseJobFails", SYNC)],
            40 * MINUTE: [],
        },
    ),
    Scene(
        name="a job is paused, and forgotten",
        play=a_pause_that_was_forgotten,
        lasts=28 * HOUR,
        firing={24 * HOUR: [], 27 * HOUR: [critical("AioleaseJobHasNotSucceeded", SYNC)]},
        interval=4 * MINUTE,
        lease=10 * MINUTE,  # so that more than a day takes a second
    ),
    Scene(
        name="a job takes longer than its interval",
        play=a_slow_job,
        lasts=35 * MINUTE,
        firing={9 * MINUTE: [], 35 * MINUTE: [warning("AioleaseTicksSkipped", SYNC)]},
    ),
    Scene(
        name="a loop is blocked",
        play=a_blocked_loop,
        lasts=40 * MINUTE,
        firing={
            9 * MINUTE: [],
            12 * MINUTE: [critical("AioleaseLoopBlocked", {**LEASE, "instance": "web1"})],
            40 * MINUTE: [],
        },
    ),
    Scene(
        name="the clocks of the machines are not the database's",
        play=clocks_apart,
        lasts=60 * MINUTE,
        firing={
            12 * MINUTE: [],
            20 * MINUTE: [
                warning("AioleaseClocksApart", {**LEASE, "instance": f"web{number + 1}"}) for number in range(PROCESSES)
            ],
            60 * MINUTE: [],
        },
    ),
]


def main(target: Path) -> None:
    """Records all scenes into a file."""
    logger.remove()
    target.write_text(json.dumps(record(SCENES, RULES), indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
