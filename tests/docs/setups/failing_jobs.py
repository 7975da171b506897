from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any

from aiolease import JobRegistry
from aiolease.testing import MemoryServer, MemoryStore
from tests.docs.setup import Setup, Stage


async def no_prices(stage: Stage) -> AsyncIterator[None]:
    """The supplier answers the second time, and on another day never."""
    jobs, server = JobRegistry(), MemoryServer()
    answers: list[int | Exception | None] = [ConnectionError("no answer"), 17, None]

    async def fetch(_: datetime) -> int | None:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    class Hasty:
        """Registers the job of the page as one that is due at once, and does not wait for long."""

        def cron(self, _: str, **options: Any) -> Callable[..., Any]:
            assert options == {"retries": 5, "backoff": 60}
            return jobs.every(0.5, **options | {"backoff": 0.01})

    stage.names.update(jobs=Hasty(), fetch=fetch)
    yield
    store = MemoryStore(server)
    async with jobs.background(store), asyncio.timeout(20):
        while not any(row.status == "failed" for row in await store.history("default", "import_prices")):
            await asyncio.sleep(0.05)
            answers += [None] * (3 - len(answers))
    first, second = (await store.history("default", "import_prices"))[:2]
    assert (first.status, first.attempt) == ("succeeded", 2)
    assert (second.status, second.attempt, second.failures) == ("failed", 1, 0)


SETUPS = {"to-try-a-failed-run-again": Setup(around=no_prices)}
