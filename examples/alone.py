"""The worker's jobs as they run where nobody leads: a timer loop for each of them, in every copy of the process.

Only here to compare with: `fleet.py --compare` runs a fleet of these first. It does not import aiolease.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from loguru import logger

from journal import Journal, log_to_stderr, open_journal
from shop import Shop, ShopError, open_shop


async def timer(seconds: int, job: Callable[[], Awaitable[object]], name: str, journal: Journal) -> None:
    """Runs `job` at every full multiple of `seconds`, as cron would, until it is cancelled."""
    this = asyncio.current_task()
    while this is not None and not this.cancelling():  # a driver may swallow the cancellation, on Python 3.11
        tick = (time.time() // seconds + 1) * seconds
        await asyncio.sleep(tick - time.time())
        facts = {"job": name, "tick": datetime.fromtimestamp(tick, UTC)}
        journal.write("RunStarted", **facts)
        status = "succeeded"
        try:
            await job()
        except ShopError as error:
            status = "failed"
            logger.error("{!r} failed: {}", name, error)
        journal.write("RunFinished", **facts, status=status)


async def send_notifications(shop: Shop) -> None:
    await shop.post(await shop.write_letters())


async def main(url: str, *, journal: str | None, pause: float) -> None:
    this = asyncio.current_task()
    assert this is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, this.cancel)
    with suppress(asyncio.CancelledError):
        async with (
            open_shop(url, session_timeout=timedelta(seconds=10)) as shop,
            shop.visitors(pause=pause),
            open_journal(journal) as events,
            asyncio.TaskGroup() as timers,
        ):
            timers.create_task(timer(2, shop.close_stale_sessions, "close_stale_sessions", events))
            timers.create_task(timer(5, shop.purge_sessions, "purge_sessions", events))
            timers.create_task(timer(3, lambda: send_notifications(shop), "send_notifications", events))
            timers.create_task(timer(5, lambda: shop.debt_aging(datetime.now(UTC).date()), "debt_aging", events))
            timers.create_task(timer(4, shop.price_alerts, "price_alerts", events))


def start() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--journal", metavar="FILE", help="write events to FILE as lines of JSON; - is standard output")
    parser.add_argument(
        "--pause", type=float, default=1.0, metavar="S", help="seconds between two visitors of the shop"
    )
    log_to_stderr()
    try:
        asyncio.run(main(os.environ.get("AIOLEASE_URL", "sqlite:///shop.db"), **vars(parser.parse_args())))
    except ShopError as error:
        sys.exit(f"alone: {error}")


if __name__ == "__main__":
    start()
