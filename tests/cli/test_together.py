"""The command line and a leader together: what is asked for is done, and can be seen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiolease import JobRegistry, JobRun, open_store
from tests.campaigns import LIMIT
from tests.cli.commands import Aiolease, in_thread


class Shop:
    """Jobs that do what a test says."""

    def __init__(self) -> None:
        self.jobs = JobRegistry()
        self.works = False
        self.holds = asyncio.Event()
        self.jobs.cron("0 0 1 1 *", name="report")(self.report)
        self.jobs.cron("0 0 1 1 *", name="slow")(self.slow)
        self.jobs.every(1, name="sweep")(self.sweep)

    async def report(self, run: JobRun) -> None:
        if not self.works:
            raise ValueError(f"attempt {run.attempt}: no such customer")

    async def slow(self) -> None:
        self.holds.set()
        await asyncio.Event().wait()

    async def sweep(self) -> None: ...


async def until(answer: Callable[[], Awaitable[Any]]) -> Any:
    """Asks until the answer is true."""
    async with asyncio.timeout(LIMIT):
        while not (found := await answer()):
            await asyncio.sleep(0.1)
    return found


async def test_a_day_with_a_leader(aiolease: Aiolease, any_url: str) -> None:
    """Trigger, see why it failed, rerun, cancel, pause, backfill: all through the leader, on each kind of database."""

    async def told(*arguments: str) -> Any:
        return json.loads((await in_thread(aiolease, *arguments, "--json")).out)

    shop = Shop()
    async with shop.jobs.background(any_url, lease_duration=3, drain_timeout=0), open_store(any_url) as store:
        await until(lambda: _known(store))
        run = await in_thread(aiolease, "trigger", "report", "--wait")
        assert (run.status, run.err) == (1, "")
        assert "failed, attempt 1 in term 1: ValueError: attempt 1: no such customer" in run.out
        why = await told("why", "report")
        assert why["verdict"] == "failed"
        assert (await in_thread(aiolease, "status")).out.startswith(
            "wrong     'report' has failed: ValueError: attempt 1"
        )
        assert (await in_thread(aiolease, "check")).status == 1
        shop.works = True
        run = await in_thread(aiolease, "rerun", "report", why["moment"], "--wait")
        assert run.out.splitlines()[-1] == "succeeded, attempt 2 in term 1"
        why = (await in_thread(aiolease, "why", "report")).out
        assert "somebody asked for this run again" in why
        assert "attempt 1: no such customer" in why
        assert (await in_thread(aiolease, "check")).status == 0
        # What goes on is cancelled.
        slow = asyncio.create_task(in_thread(aiolease, "trigger", "slow", "--wait"))
        await asyncio.wait_for(shop.holds.wait(), LIMIT)
        assert (await in_thread(aiolease, "cancel", "slow")).status == 0
        assert (await slow).out.splitlines()[-1] == "failed, attempt 1 in term 1: cancelled on request"
        assert "Somebody cancelled it" in (await in_thread(aiolease, "why", "slow")).out
        # Ticks of a pause are backfilled.
        await in_thread(aiolease, "pause", "sweep", "--note", "a test")
        since = (await store.status("default")).now  # type: ignore[union-attr]
        await asyncio.sleep(2)
        assert "(a test)" in (await in_thread(aiolease, "status")).out
        assert (await told("why", "sweep"))["verdict"] == "paused"
        await in_thread(aiolease, "resume", "sweep")
        await until(lambda: _ran_since(store, 2))
        assert (await in_thread(aiolease, "backfill", "sweep", "--since", since.isoformat())).status == 0

        async def backfilled() -> bool:
            return any(
                row["request"] == "backfill" and row["status"] == "succeeded" for row in await told("runs", "sweep")
            )

        await until(backfilled)
        # A job that the leader has is not forgotten.
        assert (await in_thread(aiolease, "forget", "sweep")).status == 1
    assert (await in_thread(aiolease, "forget", "sweep")).status == 0
    assert "sweep" not in (await in_thread(aiolease, "status")).out


async def _known(store: Any) -> bool:
    return len((await store.take_stock("default")).jobs) == 3


async def _ran_since(store: Any, count: int) -> bool:
    rows = await store.history("default", "sweep", limit=count)
    stock = await store.take_stock("default")
    resumed_at = stock.jobs["sweep"].resumed_at
    return len(rows) == count and all(resumed_at is not None and row.tick > resumed_at for row in rows)
