"""A candidate of asyncpg-lock as a process of its own, in the manner of `benchmarks.candidate`.

    python -m benchmarks.peers.guard URL NAME AFTER_ACQUIRE_DELAY REACQUIRE_DELAY

It holds an advisory lock while its function runs, and gives it up by closing its connection. Its terms have no number,
so here they get one from a sequence.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

import asyncpg
import asyncpg_lock

from benchmarks.candidate import Journal
from benchmarks.peers import lock_key


async def campaign(url: str, name: str, after_acquire_delay: float, reacquire_delay: float) -> None:
    """Campaigns for ever; a line of standard input ends a term, and its end the process."""
    journal, terms = Journal(), await asyncpg.connect(url)
    guard = asyncpg_lock.AdvisoryLockGuard(
        connect=asyncpg_lock.connect_func(url),
        after_acquire_delay=after_acquire_delay,
        reacquire_delay=reacquire_delay,
    )

    async def lead() -> None:
        at, token = time.monotonic(), 0
        try:
            token = await terms.fetchval(f"SELECT nextval('terms_{lock_key(name)}')")
            journal.note("started", token=token, at=at)
            await asyncio.Event().wait()
        finally:
            journal.note("ended", token=token)
            journal.note("Released", token=token)
            journal.note("Following", token=token)  # unless it was told to leave, it tries again by itself

    def begin() -> asyncio.Task[None]:
        journal.note("Following", token=0)
        return asyncio.create_task(guard.run(lock_key(name), lead))

    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    running = begin()
    async for _ in lines:
        await _end(running)
        await asyncio.sleep(0.2)  # so that another is elected
        running = begin()
    await _end(running)
    await terms.close()


async def _end(running: asyncio.Task[None]) -> None:
    """Cancels it until it has ended: one that comes while it looks after its connection asyncpg-lock may swallow."""
    while not running.done():
        running.cancel()
        await asyncio.wait([running], timeout=0.2)


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("name")
    parser.add_argument("after_acquire_delay", type=float)
    parser.add_argument("reacquire_delay", type=float)
    asyncio.run(campaign(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
