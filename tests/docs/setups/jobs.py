from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from aiolease import InvalidJob, JobRegistry
from aiolease.stores import open_store
from tests.docs.setup import Setup, Stage


def four_jobs(stage: Stage) -> Iterator[None]:
    yield
    asyncio.run(stage.names["close_stale_sessions"]())


async def nobody_leads(stage: Stage) -> AsyncIterator[None]:
    called: list[str] = []
    stage.names.update(called=called, jobs=JobRegistry())
    yield
    assert called == []


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
    "around-every-run": Setup(around=with_session, needs="mariadb"),
    "functions-that-others-call": Setup(around=nobody_leads),
}
