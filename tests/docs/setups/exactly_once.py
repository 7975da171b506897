from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncmy

from aiolease import JobRegistry, JobRun
from tests.docs.databases import login
from tests.docs.setup import Setup, Stage


class HasteRegistry:
    """Registers a `cron` job of a page as one that is due twice a second."""

    def __init__(self, jobs: JobRegistry) -> None:
        self._jobs = jobs

    def cron(self, _: str, **options: Any) -> Callable[..., Any]:
        return self._jobs.every(0.5, **options)


async def interest(stage: Stage) -> AsyncIterator[None]:
    jobs = JobRegistry()
    pool = await asyncmy.create_pool(autocommit=True, **login(stage))

    async def sql(statement: str) -> Any:
        async with pool.acquire() as conn, conn.cursor() as cursor:
            await cursor.execute(statement)
            return await cursor.fetchall() if cursor.description else None

    await sql("CREATE TABLE interest (day DATETIME(6), cents INT)")
    stage.names.update(JobRun=JobRun, jobs=HasteRegistry(jobs))
    yield
    async with jobs.background(pool), asyncio.timeout(20):
        while len(await sql("SELECT COUNT(*), COUNT(DISTINCT day) FROM interest GROUP BY day")) < 3:
            await asyncio.sleep(0.1)
    ((count, days),) = await sql("SELECT COUNT(*), COUNT(DISTINCT day) FROM interest")
    ((succeeded,),) = await sql("SELECT COUNT(*) FROM aiolease_run WHERE status = 'succeeded' AND job <> 'a term'")
    assert count == days == succeeded >= 3
    pool.close()
    await pool.wait_closed()


SETUPS = {"the-two-lines": Setup(around=interest, needs="mariadb")}
