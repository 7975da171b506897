"""What runs leave behind in a process: ``python -m benchmarks.left_behind FEW MANY``.

One leader in virtual time, on a store in memory. Prints its resident memory in KiB and the blocks that Python has
allocated: after FEW runs, and after MANY in the same term.
"""

from __future__ import annotations

import asyncio
import gc
import sys

from loguru import logger

from aiolease import JobRegistry, JobRun
from aiolease.stores.memory import MemoryServer, MemoryStore  # testing's store keeps what it was sent
from aiolease.testing import run_virtual


async def after(*numbers: int, jobs: int = 10) -> list[tuple[int, int]]:
    """Resident KiB and allocated blocks after each of these numbers of runs, while the term goes on."""
    registry = JobRegistry(history=20)
    reached = asyncio.Event()
    goals, done = list(numbers), 0

    async def job(run: JobRun) -> None:
        nonlocal done
        done += 1
        if goals and done >= goals[0]:
            reached.set()

    for number in range(jobs):
        registry.every(1, name=f"job-{number}")(job)
    found: list[tuple[int, int]] = []
    async with registry.background(MemoryStore(MemoryServer())):
        while goals:
            await reached.wait()
            reached.clear()
            del goals[0]
            await asyncio.sleep(0.5)  # the ends of these runs are written, the next tick is not due
            gc.collect()
            found.append((_resident(), sys.getallocatedblocks()))
    return found


def _resident() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


if __name__ == "__main__":
    logger.remove()
    for resident, blocks in run_virtual(after(*map(int, sys.argv[1:]))):
        print(resident, blocks)
