"""A fleet of workers in one terminal: who leads, and how long it takes until another one does.

    python examples/fleet.py                        # five workers on a temporary SQLite file, until Ctrl-C
    python examples/fleet.py --url mysql://user:password@host/shop --workers 8 --seconds 60
    python examples/fleet.py --compare              # the same jobs without aiolease, then with it

Every few seconds the leader is killed, with SIGKILL and SIGTERM in turn, and started again a moment later. Only
processes that were started here are killed, and none of them outlives this program.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from loguru import logger

from fleet_compare import compare
from fleet_processes import WITH_LEASE, Fleet, FleetFailed, describe
from shop import ShopError, many

RECENT: Final = 8
"""How many takeovers the screen shows."""


async def watch(url: str, size: int, *, lease: float, every: float, seed: int, seconds: float | None) -> None:
    """Runs the fleet and kills its leaders until Ctrl-C, or for so many seconds."""
    started = time.monotonic()
    live = sys.stdout.isatty()

    def tell(line: str) -> None:
        if not live:
            print(f"{time.monotonic() - started:7.2f} s  {line}", flush=True)

    title = f"{size} workers on {without_password(url)}, lease {lease:g} s"
    tell(title)
    with tempfile.TemporaryDirectory(prefix="aiolease-fleet-") as folder:
        environment = {"AIOLEASE_URL": url, "AIOLEASE_NAME": "fleet", "AIOLEASE_LEASE_DURATION": str(lease)}
        fleet = Fleet(WITH_LEASE, environment, Path(folder), tell)
        async with fleet.running(size):
            tasks = [
                asyncio.create_task(fleet.wait_for_failure()),
                asyncio.create_task(kill_leaders(fleet, every, random.Random(seed))),
                asyncio.create_task(interrupted()),
            ]
            with drawing(live) as draw:
                end = None if seconds is None else started + seconds
                done: set[asyncio.Task[None]] = set()
                while not done and (end is None or time.monotonic() < end):
                    if live:
                        draw(picture(title, fleet, time.monotonic() - started))
                    done, _ = await asyncio.wait(tasks, timeout=0.2, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            if all(copy.term is None for copy in fleet.copies) and not fleet.takeovers and not done:
                raise FleetFailed(fleet.copies[0].last_word())
            tell("ending the workers")
        for task in done:
            task.result()
    for line in summary(fleet, lease):
        print(line)


async def kill_leaders(fleet: Fleet, every: float, dice: random.Random) -> None:
    """Kills whoever leads, about every so many seconds."""
    for how in itertools.cycle((signal.SIGKILL, signal.SIGTERM)):
        await fleet.wait_for_leader()
        await asyncio.sleep(every * dice.uniform(0.5, 1.5))
        if fleet.leader is not None:
            fleet.kill(fleet.leader, how)


async def interrupted() -> None:
    """Returns at Ctrl-C or SIGTERM."""
    signalled = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, signalled.set)
    await signalled.wait()


def picture(title: str, fleet: Fleet, elapsed: float) -> Iterator[str]:
    """The lines of the live table."""
    yield f"\x1b[1m{title}\x1b[0m  {elapsed:.0f} s, Ctrl-C ends it"
    yield ""
    yield "      pid  state    term   jobs run"
    for copy in fleet.copies:
        colour = {"leads": "\x1b[32;1m", "gone": "\x1b[31m"}.get(copy.state, "")
        term = "" if copy.term is None or copy.state == "gone" else str(copy.term)
        yield f"{colour}{copy.pid:9}  {copy.state:7}{term:>6}{copy.runs:11}\x1b[0m"
    yield ""
    recent = [describe(takeover) for takeover in reversed(fleet.takeovers)][:RECENT]
    yield from recent or ["No takeover yet."]
    yield ""


@contextmanager
def drawing(live: bool) -> Iterator[Callable[[Iterable[str]], None]]:
    """Gives a function that draws lines over the ones that it drew before."""
    height = 0

    def draw(lines: Iterable[str]) -> None:
        nonlocal height
        drawn = [f"\x1b[2K{line}\n" for line in lines]
        print(f"\x1b[{height}F" if height else "", *drawn, "\x1b[J", sep="", end="", flush=True)
        height = len(drawn)

    if live:
        print("\x1b[?25l\x1b[?7l", end="")  # no cursor, and a long line is cut rather than wrapped
    try:
        yield draw
    finally:
        if live:
            print("\x1b[?25h\x1b[?7h", end="", flush=True)


def summary(fleet: Fleet, lease: float) -> Iterator[str]:
    """What all takeovers and all runs come to."""
    for name, told in (("SIGKILL", f"the lease is {lease:g} s"), ("SIGTERM", "running jobs finish first")):
        took = [takeover.took for takeover in fleet.takeovers if takeover.after.startswith(name)]
        if took:
            times = f"median {statistics.median(took):.3f} s, worst {max(took):.3f} s"
            yield f"after {name}: {many(len(took), 'takeover')}, {times} ({told})"
    handovers = [takeover.handover for takeover in fleet.takeovers if takeover.handover is not None]
    if handovers:
        times = f"median {statistics.median(handovers) * 1000:.1f} ms, worst {max(handovers) * 1000:.1f} ms"
        yield f"from a release to the next term: {times}"
    ran, again = (sum(1 for runs in fleet.ran.values() if runs >= count) for count in (1, 2))
    failed = f", {many(fleet.failed_runs, 'run')} failed" if fleet.failed_runs else ""
    yield f"jobs: {many(ran, 'tick')} run, {again or 'none'} of them more than once{failed}"
    lost, skipped = many(fleet.lost_runs, "run"), many(fleet.skipped_ticks, "tick")
    yield f"in the ledger as well: {lost} lost with a killed leader, {skipped} skipped for newer ones"


def without_password(url: str) -> str:
    parts = urlsplit(url)
    return url if parts.password is None else url.replace(f":{parts.password}@", ":…@", 1)


def start() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="the database (default: a temporary SQLite file)")
    parser.add_argument("--workers", type=int, default=5, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--lease", type=float, default=3.0, metavar="S", help="its seconds (default: %(default)s)")
    parser.add_argument("--every", type=float, default=5.0, metavar="S", help="kill a leader about every S seconds")
    parser.add_argument("--seed", type=int, default=1, help="decides when the leader is killed")
    parser.add_argument("--seconds", type=float, metavar="S", help="end after S seconds; with --compare, of each fleet")
    parser.add_argument("--compare", action="store_true", help="show what it changes to have a leader")
    options = parser.parse_args()
    if options.workers < 1 or options.every <= 0 or options.lease <= 0:
        parser.error("--workers, --every and --lease must be positive")
    logger.remove()  # the workers write their logs to files, and here is a table
    with tempfile.TemporaryDirectory(prefix="aiolease-fleet-") as folder:
        url = options.url or f"sqlite:///{folder}/shop.db"
        try:
            if options.compare:
                asyncio.run(compare(options.url, options.workers, options.lease, options.seconds or 20.0))
            else:
                asyncio.run(
                    watch(
                        url,
                        options.workers,
                        lease=options.lease,
                        every=options.every,
                        seed=options.seed,
                        seconds=options.seconds,
                    )
                )
        except (FleetFailed, ShopError) as error:
            print(f"fleet: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(start())
