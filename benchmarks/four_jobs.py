"""The smallest worker with four jobs, to be weighed: ``python -m benchmarks.four_jobs URL``.

The URL ``memory`` stands for a store in this process. Says on standard output when a job has run, and ends when its
standard input does.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from loguru import logger

from aiolease import JobRegistry

jobs = JobRegistry()


@jobs.every(0.25)
async def close_stale_sessions() -> None:
    print("ran", flush=True)


@jobs.cron("* * * * *")
async def send_notifications() -> None: ...


@jobs.cron("0 9 * * *", timezone="America/New_York")
async def debt_aging() -> None: ...


@jobs.cron("0 * * * *")
async def price_alerts() -> None: ...


async def main(url: str) -> None:
    target: Any = url
    if url == "memory":
        from aiolease.stores.memory import MemoryServer, MemoryStore

        target = MemoryStore(MemoryServer())
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with jobs.background(target):
        await lines.read()


if __name__ == "__main__":
    logger.remove()
    asyncio.run(main(sys.argv[1]))
