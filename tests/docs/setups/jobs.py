from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from aiolease import InvalidJob, JobRegistry
from aiolease.stores import open_store
from aiolease.testing import MemoryServer, MemoryStore, run_job
from tests.docs.setup import Setup, Stage


def four_jobs(stage: Stage) -> Iterator[None]:
    yield
    asyncio.run(stage.names["close_stale_sessions"]())


async def nobody_leads(stage: Stage) -> AsyncIterator[None]:
    called: list[str] = []
    stage.names.update(called=called, jobs=JobRegistry())
    yield
    assert called == []


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


class Span:
    def __init__(self, name: str) -> None:
        self.name = name
        self.attributes: dict[str, object] = {}

    def set_attribute(self, name: str, value: object) -> None:
        self.attributes[name] = value


class Tracer:
    """What of OpenTelemetry's tracer the page uses."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    @contextmanager
    def start_as_current_span(self, name: str) -> Iterator[Span]:
        self.spans.append(Span(name))
        yield self.spans[-1]


async def traced(stage: Stage) -> AsyncIterator[None]:
    tracer = Tracer()
    stage.names.update(tracer=tracer)
    yield
    await run_job(stage.names["jobs"], "close_stale_sessions")
    (span,) = tracer.spans
    assert (span.name, span.attributes["job.attempt"]) == ("job close_stale_sessions", 1)
    assert span.attributes["sessions.closed"] == 3


async def with_session(stage: Stage) -> AsyncIterator[None]:
    engine = create_async_engine(stage.environment["AIOLEASE_URL"].replace("mysql:", "mysql+asyncmy:"))
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE invoices (id INT PRIMARY KEY, reminded INT NOT NULL)"))
        await connection.execute(text("INSERT INTO invoices VALUES (1, 0)"))
    stage.names.update(engine=engine)
    yield
    asked = stage.names["jobs"].background(engine)
    async with asked, open_store(engine) as store, asyncio.timeout(20):
        while True:
            with suppress(InvalidJob):
                await store.trigger("default", "remind")
                break
            await asyncio.sleep(0.1)
        while "succeeded" not in [row.status for row in await store.history("default", "remind")]:
            await asyncio.sleep(0.1)
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT reminded FROM invoices"))).scalar() in {1, 2}
    await engine.dispose()


SETUPS = {
    "to-register-them": Setup(around=four_jobs),
    "to-try-a-failed-run-again": Setup(around=no_prices),
    "around-every-run": Setup(around=traced),
    "around-every-run-2": Setup(around=with_session, needs="mariadb"),
    "functions-that-others-call": Setup(around=nobody_leads),
}
