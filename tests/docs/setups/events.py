from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiolease import JobRegistry
from tests.docs.setup import Setup, Stage


async def a_quick_job(stage: Stage) -> AsyncIterator[None]:
    finished: list[tuple[str, str, float]] = []
    stage.names["finished"] = finished
    yield
    jobs = JobRegistry()

    @jobs.every(0.2, name="quick")
    async def quick() -> None: ...

    async with jobs.background("sqlite:///jobs.db", on_event=stage.names["count"]), asyncio.timeout(10):
        while not finished:
            await asyncio.sleep(0.05)
    assert finished[0][:2] == ("quick", "succeeded")


SETUPS = {"counting": Setup(around=a_quick_job)}
