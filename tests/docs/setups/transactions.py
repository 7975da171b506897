from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncmy
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from aiolease import LeadershipLost, leadership
from tests.docs.databases import login
from tests.docs.setup import Setup, Stage


async def one_invoice(stage: Stage) -> AsyncIterator[None]:
    admin = await asyncmy.connect(autocommit=True, **login(stage))

    async def sql(statement: str) -> Any:
        async with admin.cursor() as cursor:
            await cursor.execute(statement)
            return await cursor.fetchall() if cursor.description else None

    await sql("CREATE TABLE invoices (id INT PRIMARY KEY, reminded INT NOT NULL DEFAULT 0)")
    await sql("INSERT INTO invoices (id) VALUES (1)")
    engine = create_async_engine(stage.environment["AIOLEASE_URL"].replace("mysql:", "mysql+asyncmy:"))
    pool = await asyncmy.create_pool(**login(stage))
    update = text("UPDATE invoices SET reminded = reminded + 1 WHERE id = 1")
    stage.names.update(AsyncSession=AsyncSession, UPDATE=update, engine=engine, leadership=leadership, pool=pool)
    yield
    assert await sql("SELECT reminded FROM invoices") == ((3,),)
    reason = None
    try:
        async with leadership(pool, "billing") as lead, lead.transaction() as conn, conn.cursor() as cursor:
            await cursor.execute("UPDATE invoices SET reminded = 1000")
            await sql("UPDATE aiolease_fence SET holder = 'another', token = token + 1")
    except LeadershipLost as error:
        reason = error.reason
    assert reason == "taken"
    assert await sql("SELECT reminded FROM invoices") == ((3,),)
    await engine.dispose()
    pool.close()
    await pool.wait_closed()
    await admin.ensure_closed()


SETUPS = {"three-ways-to-fence": Setup(around=one_invoice, needs="mariadb")}
