"""Many candidates in one process, each what a process of its own would be: with a store and a connection of its own.

    python -m benchmarks.crowd URL COPIES LEASES LEASE_DURATION HEARTBEAT_INTERVAL [--obliging]

Each of the copies is a candidate for each of the leases. Every line of standard output is a JSON object: ``ready`` when
the process has made itself warm, ``started`` and ``ended`` for a body, ``lost`` for a term that was lost, ``report`` on
demand. Lines of standard input are commands: ``start`` the campaigns, ``report``, ``leave`` the terms that run; to
obliging ones also ``bar`` from claiming, and ``admit`` again. Its end is the end of the process.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

from loguru import logger

from aiolease import Leadership, leadership, open_store, run_as_leader
from aiolease.events import Event, Following, Lost, Renewed, RenewFailed
from benchmarks.candidate import DELAY

RETRY = 2.0
"""The default of the default lease, in seconds."""


class Crowd:
    """The candidates of this process, and what they tell."""

    def __init__(
        self, url: str, copies: int, leases: int, lease_duration: float, heartbeat_interval: float, *, obliging: bool
    ) -> None:
        self._urls = [apart(url, number) for number in range(copies)]
        self._names = [f"bench-{number}" for number in range(leases)]
        self._lease_duration = lease_duration
        self._heartbeat_interval = heartbeat_interval
        self._lines: list[str] = []
        self._following: dict[tuple[int, str], int] = {}
        self._leading: dict[str, int] = {}
        self._took: list[float] = []
        self._failed = 0
        self._leave = asyncio.Event()
        self._obliging = obliging
        self._admitted = True

    async def warm_up(self) -> None:
        """Imports, starts and allocates once what the first term of a process needs."""
        async with leadership(self._urls[0], f"warm-{time.monotonic_ns()}"):
            pass
        self.note("ready", rss=resident())

    async def campaign(self) -> None:
        """Campaigns for ever."""
        async with AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(open_store(url)) for url in self._urls]
            async with asyncio.TaskGroup() as campaigns:
                for copy, store in enumerate(stores):
                    await asyncio.sleep(0.02 if copy else 0.0)  # processes do not all start at one moment
                    for name in self._names:
                        campaigns.create_task(self._one(copy, store, name))

    async def _one(self, copy: int, store: object, name: str) -> None:
        async def body(lead: Leadership) -> None:
            self._leading[name] = lead.token
            self.note("started", lease=name, token=lead.token)
            try:
                await self._leave.wait()
            finally:
                del self._leading[name]
                self.note("ended", lease=name, token=lead.token)

        def observe(event: Event) -> None:
            match event:
                case Renewed(took=took):
                    self._took.append(took)
                case RenewFailed():
                    self._failed += 1
                case Following(token=token):
                    self._following[copy, name] = token or 0
                case Lost(reason=reason) if reason != "ineligible":  # that it was told
                    self.note("lost", lease=name, token=event.token, reason=reason)

        async def eligible() -> bool:
            return self._admitted

        await run_as_leader(
            store,
            body,
            name,
            lease_duration=self._lease_duration,
            heartbeat_interval=self._heartbeat_interval,
            retry_interval=RETRY,
            eligible=eligible if self._obliging else None,
            on_event=observe,
        )

    async def obey(self) -> None:
        """Carries out commands until there are no more."""
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        async with asyncio.TaskGroup() as tasks:
            campaigns: asyncio.Task[None] | None = None
            async for line in lines:
                match line.decode().strip():
                    case "start":
                        campaigns = tasks.create_task(self.campaign())
                    case "report":
                        self._report()
                    case "bar":
                        self._admitted = False
                    case "admit":
                        self._admitted = True
                    case "leave":
                        self._leave.set()
                        self._leave = asyncio.Event()
            if campaigns is not None:
                campaigns.cancel()

    def _report(self) -> None:
        gc.collect()
        self.note(
            "report",
            leading=self._leading,
            following=[[name, token] for (_, name), token in self._following.items()],
            took=self._took,
            failed=self._failed,
            rss=resident(),
        )
        self._took = []

    def note(self, event: str, **facts: object) -> None:
        """Tells the benchmark of something, but not at once: it must not compete with the elections for a core."""
        at, wall = time.monotonic(), time.time()
        self._lines.append(json.dumps({"event": event, "at": at, "wall": wall, **facts}))
        asyncio.get_running_loop().call_later(DELAY, self._tell)

    def _tell(self) -> None:
        if self._lines:
            sys.stdout.write("".join(f"{line}\n" for line in self._lines))
            sys.stdout.flush()
            self._lines.clear()


def apart(url: str, number: int) -> str:
    """Another spelling of a URL, zeros before its port: within a process, one URL is one store and one connection."""
    head, _, port = url.rpartition(":")
    return f"{head}:{'0' * number}{port}"


def resident(pid: int | None = None) -> int:
    """KiB of resident memory of a process."""
    status = Path(f"/proc/{pid or 'self'}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


async def run(arguments: argparse.Namespace) -> None:
    crowd = Crowd(**vars(arguments))
    await crowd.warm_up()
    await crowd.obey()


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("copies", type=int)
    parser.add_argument("leases", type=int)
    parser.add_argument("lease_duration", type=float)
    parser.add_argument("heartbeat_interval", type=float)
    parser.add_argument("--obliging", action="store_true", help="let the benchmark say who may claim")
    logger.remove()
    logger.add(sys.stderr, level="WARNING", filter=lambda record: "not eligible" not in record["message"])
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
