"""Users, pools and engines as an application would hand them over."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncmy
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tests.campaigns import database_of
from tests.servers import Server

PLAIN = "s3cr3tpassword"


@contextlib.contextmanager
def user(server: Server, url: str, password: str, rights: str) -> Iterator[str]:
    """A user with some rights on the database; gives its name."""
    name = f"u_{database_of(url)[-10:]}"
    server.create_user(name, password, f"{rights} ON {database_of(url)}.*")
    try:
        yield name
    finally:
        server.sql(f"DROP USER '{name}'@'%'")


def login(server: Server, url: str) -> dict[str, Any]:
    return {"host": server.host, "port": server.port, "user": "root", "db": database_of(url)}


@asynccontextmanager
async def own_pool(module: Any, server: Server, url: str, **options: Any) -> AsyncIterator[Any]:
    async with module.create_pool(**{"minsize": 0, "maxsize": 1, **login(server, url), **options}) as pool:
        yield pool


@asynccontextmanager
async def own_engine(driver: str, server: Server, url: str, **options: Any) -> AsyncIterator[AsyncEngine]:
    where = f"{server.host}:{server.port}/{database_of(url)}"
    engine = create_async_engine(f"mysql+{driver}://root@{where}", **options)
    try:
        yield engine
    finally:
        await engine.dispose()


SLACK = 0.6
"""Seconds that a busy machine may be late."""


async def connect(server: Server, database: str = "mysql") -> Any:
    return await asyncmy.connect(host=server.host, port=server.port, user="root", database=database)
