from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta

from aiolease import open_store
from aiolease._jobs.schedule import Cron
from aiolease.stores.batch import Batch, Change, JobDefinition
from aiolease.stores.records import RunKey, RunRecord, TermKey
from tests.docs.setup import Setup, Stage

HOLDER = "web1-4711-5e88998128a3446c9bb25be0daaa0ec7"


async def write(url: str) -> None:
    """A job that failed in the last three nights."""
    schedule = Cron("0 2 * * *")
    async with open_store(url) as store:
        row = await store.claim("default", HOLDER, 600.0, seen=None, force=False)
        assert row is not None
        term = TermKey("default", HOLDER, row.token)
        await store.enroll(term, [JobDefinition(job="nightly", schedule=schedule.expression, timezone="UTC")])
        await store.have(term, ["nightly"])
        tick = schedule.latest_between(row.now - timedelta(days=4), row.now - timedelta(days=2))
        while tick is not None and tick <= row.now:
            run = RunRecord(job="nightly", tick=tick, token=row.token, holder=HOLDER, status="running")
            await store.record(term, Batch(claims=[run], high_ticks={"nightly": tick}))
            change = Change(
                key=RunKey("nightly", tick, 1, row.token),
                was="running",
                status="failed",
                attempt=1,
                error="ValueError: no such customer",
            )
            await store.record(term, Batch(changes=[change]))
            tick = schedule.next_after(tick)


def a_bad_night(stage: Stage) -> Iterator[None]:
    url = f"sqlite:///{stage.folder}/jobs.db"
    asyncio.run(write(url))
    stage.environment["AIOLEASE_URL"] = url
    yield


SETUPS = {"three-in-the-morning-2": Setup(around=a_bad_night)}
