from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

from aiolease import JobRegistry
from tests.docs.setup import Setup, Stage


def four_jobs(stage: Stage) -> Iterator[None]:
    yield
    asyncio.run(stage.names["close_stale_sessions"]())


async def nobody_leads(stage: Stage) -> AsyncIterator[None]:
    called: list[str] = []
    stage.names.update(called=called, jobs=JobRegistry())
    yield
    assert called == []


SETUPS = {
    "to-register-them": Setup(around=four_jobs),
    "functions-that-others-call": Setup(around=nobody_leads),
}
