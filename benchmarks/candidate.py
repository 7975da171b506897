"""One candidate as a process of its own: waits to be elected, leads until it is told to stop, and again.

    python -m benchmarks.candidate URL LEASE_NAME LEASE_DURATION RETRY_INTERVAL [--count]

Every line of standard output is a JSON object: ``event``, ``at`` on the monotonic clock, which all processes of a
machine share, ``wall``, and the term's ``token``. Lines of standard input are commands, ``leave`` the block, ``resign``
or tell the ``cost``; its end is the end of the process, so that none outlives the benchmark.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from loguru import logger

from aiolease import Leadership, open_store, run_as_leader
from aiolease.events import Event
from aiolease.stores import Store

DELAY = 0.02
"""Seconds after which an event is told: whoever reads it must not compete with the hand-over for a core."""


class Journal:
    """What happens in this process, as lines.

    Attributes:
        calls: When this process last called ``watch``, ``claim`` and ``release`` of its store, and when each returned.
    """

    def __init__(self) -> None:
        self.calls: dict[str, float] = {}
        self._lines: list[str] = []

    def note(self, event: str, **facts: object) -> None:
        at, wall = time.monotonic(), time.time()
        self._lines.append(json.dumps({"event": event, "at": at, "wall": wall, **facts}))
        asyncio.get_running_loop().call_later(DELAY, self._tell)

    def observe(self, event: Event) -> None:
        self.note(type(event).__name__, token=event.token, calls=self.calls)

    def follow(self, store: Store) -> None:
        """Notes when the exchanges of an election and of a release begin and end."""
        for name in ("watch", "claim", "release"):
            setattr(store, name, self._followed(name, getattr(store, name)))

    def _followed(self, name: str, exchange: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def noted(*arguments: Any, **options: Any) -> Any:
            self.calls[f"{name} called"] = time.monotonic()
            try:
                return await exchange(*arguments, **options)
            finally:
                self.calls[f"{name} returned"] = time.monotonic()

        return noted

    def _tell(self) -> None:
        if self._lines:
            sys.stdout.write("".join(f"{line}\n" for line in self._lines))
            sys.stdout.flush()
            self._lines.clear()


class Cost:
    """Counts what this process sends to SQLite, from before its first connection on."""

    def __init__(self) -> None:
        self.statements = 0
        connect: Callable[..., sqlite3.Connection] = sqlite3.connect

        def counted(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection = connect(*arguments, **options)
            connection.set_trace_callback(self._count)
            return connection

        sqlite3.connect = counted  # type: ignore[assignment]  # a measuring device

    def _count(self, _: str) -> None:
        self.statements += 1


async def campaign(url: str, name: str, lease_duration: float, retry_interval: float, *, count: bool) -> None:
    cost = Cost() if count else None
    journal = Journal()
    endings: asyncio.Queue[str] = asyncio.Queue()

    async def body(lead: Leadership) -> None:
        journal.note("started", token=lead.token, calls=journal.calls)
        try:
            if await endings.get() == "resign":
                lead.resign()
                await asyncio.Event().wait()  # cancelled by the resignation
        finally:
            journal.note("ended", token=lead.token)

    async def obey() -> None:
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        async for line in lines:
            command = line.decode().strip()
            if command == "cost":
                journal.note("cost", statements=cost.statements if cost else 0)
            else:
                endings.put_nowait(command)

    async with open_store(url) as store:
        journal.follow(store)
        leading = asyncio.create_task(
            run_as_leader(
                store,
                body,
                name,
                lease_duration=lease_duration,
                retry_interval=retry_interval,
                on_event=journal.observe,
            )
        )
        obeying = asyncio.create_task(obey())
        await asyncio.wait([leading, obeying], return_when=asyncio.FIRST_COMPLETED)
        leading.cancel()
        obeying.cancel()
        results = await asyncio.gather(leading, obeying, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("name")
    parser.add_argument("lease_duration", type=float)
    parser.add_argument("retry_interval", type=float)
    parser.add_argument("--count", action="store_true", help="count the statements that are sent to SQLite")
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    asyncio.run(campaign(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
