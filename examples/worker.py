"""A shop's worker. Start as many copies as you like: one leads and runs the jobs, the others stand by.

    python examples/worker.py                                                # on a SQLite file, shop.db
    AIOLEASE_URL=mysql://user:password@host/shop python examples/worker.py   # on MySQL or MariaDB
    AIOLEASE_URL=postgresql://user:password@host/shop python examples/worker.py

On SQLite it needs aiosqlite, ``pip install 'aiolease[aiosqlite]'``; on PostgreSQL asyncpg.
Ctrl-C lets the running jobs finish and hands over at once; after a ``kill -9`` another copy leads when the lease has
expired. ``--fast`` runs every job every few seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from datetime import timedelta
from zoneinfo import ZoneInfo

from pydantic import Field

from aiolease import AioleaseError, ConfigurationError, JobRegistry, JobRun, LeaseSettings
from journal import log_to_stderr, open_journal
from shop import Shop, ShopError, open_shop

HOME = ZoneInfo("America/New_York")
jobs = JobRegistry()


@jobs.every(30)
async def close_stale_sessions(run: JobRun) -> None:
    await shop_of(run).close_stale_sessions()


@jobs.cron("* * * * *")
async def purge_sessions(run: JobRun) -> None:
    await shop_of(run).purge_sessions()


# Exactly once. One commit has the letters in the outbox, their notifications marked, and this run succeeded; if this
# process dies, or freezes, before it, nothing of that is there, and the next leader runs the same tick again.
@jobs.cron("* * * * *", rerun_lost=True)
async def send_notifications(run: JobRun) -> None:
    shop = shop_of(run)
    letters = await shop.write_letters()  # what takes long comes first: a transaction holds locks
    async with run.transaction(final=True) as connection:
        await shop.post(letters, connection)


# At least once, which is enough: the day is that of the tick, however late it runs, and a second run changes nothing.
# missed="once" is the default: if nobody led at nine, the next leader runs it; of several missed days, only the last.
@jobs.cron("0 9 * * *", timezone=HOME.key, missed="once", rerun_lost=True)
async def debt_aging(run: JobRun) -> None:
    await shop_of(run).debt_aging(run.tick.astimezone(HOME).date())


# Nobody wants to hear at 10:59 of the prices of ten o'clock: what is half an hour late is left to the next hour.
@jobs.cron("0 * * * *", max_age=1800)
async def price_alerts(run: JobRun) -> None:
    await shop_of(run).price_alerts()


def shop_of(run: JobRun) -> Shop:
    """The object that `serve` was given as its context."""
    assert isinstance(run.context, Shop)
    return run.context


def in_a_hurry() -> JobRegistry:
    """The same jobs every few seconds: who tries this out does not wait for nine o'clock."""
    fast = JobRegistry()
    fast.every(2)(close_stale_sessions)
    fast.every(5)(purge_sessions)
    fast.every(3, rerun_lost=True)(send_notifications)
    fast.every(5, rerun_lost=True)(debt_aging)
    fast.every(4, max_age=30)(price_alerts)
    return fast


class Settings(LeaseSettings):
    """The environment's ``AIOLEASE_…``, with a default of our own for the database."""

    url: str = Field(default="sqlite:///shop.db", repr=False)


async def main(*, fast: bool, journal: str | None, pause: float) -> None:
    settings = Settings()
    registry, idle = (in_a_hurry(), timedelta(seconds=10)) if fast else (jobs, timedelta(minutes=15))
    async with (
        open_shop(settings.url, session_timeout=idle) as shop,
        shop.visitors(pause=pause),
        open_journal(journal) as events,
    ):
        await registry.serve(
            settings.url, context=shop, handle_signals=True, on_event=events.record, **settings.options()
        )


def start() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="run every job every few seconds")
    parser.add_argument("--journal", metavar="FILE", help="write events to FILE as lines of JSON; - is standard output")
    parser.add_argument(
        "--pause", type=float, default=1.0, metavar="S", help="seconds between two visitors of the shop"
    )
    log_to_stderr()
    try:
        asyncio.run(main(**vars(parser.parse_args())))
    except ConfigurationError as error:
        print(f"worker: {error}", file=sys.stderr)
        return 2
    except (AioleaseError, ShopError) as error:
        print(f"worker: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(start())
