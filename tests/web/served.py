"""The page of a lease in memory, asked as a browser asks it, without one."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from typing import Any, TypeVar

import httpx
from starlette.types import ASGIApp

from aiolease.errors import StoreUnavailable
from aiolease.stores.memory import MemoryStore
from aiolease.web import status_app
from tests.campaigns import LIMIT
from tests.cli.worlds import World

T = TypeVar("T")

ORIGIN = "http://page.test"


class CountedStore(MemoryStore):
    """Counts what the database is asked, and can be gone."""

    def __init__(self, world: World) -> None:
        super().__init__(world.server)
        self.asked = Counter[str]()
        self.gone = False

    async def exchange(self, method: str, statement: Callable[[], T]) -> T:
        self.asked[method] += 1
        if self.gone:
            raise StoreUnavailable("mysql://db", "the connection was refused")
        return await super().exchange(method, statement)


@asynccontextmanager
async def browsing(app: ASGIApp, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Asks an application; keeps its cookies."""
    transport = httpx.ASGITransport(app, client=("192.0.2.7", 4711), **options)
    async with httpx.AsyncClient(transport=transport, base_url=ORIGIN) as client:
        yield client


@asynccontextmanager
async def page_of(world: World, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Asks the page of a world."""
    async with browsing(status_app(MemoryStore(world.server), **({"refresh": 0.1} | options))) as client:
        yield client


def answer_of(url: str) -> httpx.Response:
    """Asks a server; waits until it is there."""
    deadline = time.monotonic() + LIMIT
    while True:
        try:
            return httpx.get(url, timeout=LIMIT)
        except httpx.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


class Links(HTMLParser):
    """Every address in a page, and what a content security policy would forbid in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.forbidden: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.found += [str(given[name]) for name in ("href", "src", "action", "hx-get") if given.get(name) is not None]
        if tag == "style" or "style" in given or (tag == "script" and "src" not in given):
            self.forbidden.append(f"<{tag}>")
        self.forbidden += [name for name in given if name.startswith("on")]


def token_in(page: str) -> str:
    """The token in the forms of a page."""
    found = re.search(r'name="token" value="([\w-]+)"', page)
    assert found is not None, page
    return found[1]


def names_in(page: str) -> list[str]:
    """The jobs in the table of a page, in its order."""
    return re.findall(r'id="job-([^"]+)"', page)


def texts_in(page: str) -> Iterator[str]:
    """What is wrong, by a page."""
    return iter(re.findall(r"<li>(.*?)</li>", page))
