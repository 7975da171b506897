"""A campaign in its hosts: lifespans of web applications, fixtures, uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import pytest
import pytest_asyncio
import uvloop
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from aiolease import Campaign, JobRegistry, Leadership, StoreRejected, StoreUnavailable, run_as_leader
from aiolease.testing import MemoryServer, MemoryStore
from tests.election.campaigning import state
from tests.virtual import LIMIT, SHORT, until, virtual

# -- in the lifespan of a web application


class Served:
    """An ASGI application served as servers do: its lifespan in a task of its own, requests in others."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._received: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self.sent: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> dict[str, str]:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
        self._task = asyncio.create_task(self._app(scope, self._received.get, self.sent.put))
        return await self._tell("lifespan.startup")

    async def stop(self) -> dict[str, str]:
        answer = await self._tell("lifespan.shutdown")
        assert self._task is not None
        await self._task
        return answer

    async def _tell(self, message: str) -> dict[str, str]:
        await self._received.put({"type": message})
        return await asyncio.wait_for(self.sent.get(), LIMIT)

    async def get(self, path: str) -> httpx.Response:
        transport = httpx.ASGITransport(app=self._app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path)


Background = Callable[[], AbstractAsyncContextManager[Campaign]]


def fastapi_app(background: Background) -> Any:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with background() as campaign:
            yield {"campaign": campaign}
            app.state.left = campaign.status()

    app = FastAPI(lifespan=lifespan)

    @app.get("/ready")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    return app


def starlette_app(background: Background) -> Any:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with background():
            yield

    async def ready(_: Request) -> JSONResponse:
        return JSONResponse({"ready": True})

    return Starlette(routes=[Route("/ready", ready)], lifespan=lifespan)


@pytest.mark.parametrize("make_app", [fastapi_app, starlette_app])
async def test_a_lifespan_holds_background(make_app: Callable[[Background], Any]) -> None:
    """Two copies of an application both start and are ready, one of them leads, and when it stops the other does."""
    server, ran = MemoryServer(), []

    def copy(name: str) -> tuple[Served, JobRegistry]:
        jobs = JobRegistry()

        @jobs.every(0.05)
        async def job() -> None:
            ran.append(name)

        return Served(make_app(lambda: jobs.background(MemoryStore(server), lease_duration=10))), jobs

    (first, first_jobs), (second, second_jobs) = copy("first"), copy("second")
    for app in (first, second):
        assert (await app.start())["type"] == "lifespan.startup.complete"
        assert (await app.get("/ready")).json() == {"ready": True}
    await until(lambda: len(ran) > 2)
    assert first_jobs.is_leader
    assert not second_jobs.is_leader
    assert set(ran) == {"first"}
    assert (await first.stop())["type"] == "lifespan.shutdown.complete"
    await until(lambda: "second" in ran)
    assert second_jobs.is_leader
    assert (await second.get("/ready")).json() == {"ready": True}
    assert (await second.stop())["type"] == "lifespan.shutdown.complete"


async def test_a_lifespan_whose_database_refuses_fails_to_start() -> None:
    """An application whose database refuses the first attempt does not start, and the server learns why."""
    jobs, store = JobRegistry(), MemoryStore()
    store.fail("read", StoreRejected("memory", "access denied"))
    app = Served(starlette_app(lambda: jobs.background(store)))
    answer = await app.start()
    assert answer["type"] == "lifespan.startup.failed"
    assert "access denied" in answer["message"]
    with pytest.raises(StoreRejected):
        await app._task  # type: ignore[misc]


async def test_a_cleanup_context_holds_background() -> None:
    """A generator that is advanced once at the start and once at the end, as aiohttp does, holds `background`."""
    jobs, server = JobRegistry(), MemoryServer()

    async def cleanup_context(app: dict[str, Campaign]) -> AsyncIterator[None]:
        async with jobs.background(MemoryStore(server), **SHORT) as campaign:
            app["campaign"] = campaign
            yield

    app: dict[str, Campaign] = {}
    context = aiter(cleanup_context(app))

    async def start() -> None:
        await anext(context)

    await asyncio.create_task(start())
    await until(lambda: app["campaign"].is_leader)
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(anext(context), LIMIT)  # in a task of its own
    assert state(app["campaign"]) == "stopped"
    assert server.leases["default"].holder is None


# -- as a fixture


@pytest.fixture
async def in_a_fixture() -> AsyncIterator[Campaign]:
    jobs, store = JobRegistry(), MemoryStore()
    async with jobs.background(store, **SHORT) as campaign:
        yield campaign
    assert state(campaign) == "stopped"
    assert store.server.leases["default"].holder is None


async def test_a_fixture_holds_background(in_a_fixture: Campaign) -> None:
    """A fixture that holds `background` is entered and left in other tasks than its test, and leaves nothing behind."""
    await until(lambda: in_a_fixture.is_leader)
    assert state(in_a_fixture) == "leading"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def for_the_module() -> AsyncIterator[Campaign]:
    jobs, store = JobRegistry(), MemoryStore()
    async with jobs.background(store, lease_duration=10) as campaign:
        yield campaign
    assert state(campaign) == "stopped"
    assert store.server.leases["default"].holder is None


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("number", [1, 2])
async def test_a_fixture_of_a_module_holds_background(for_the_module: Campaign, number: int) -> None:
    """The campaign of a fixture with a module's scope goes on from test to test: one term, in the module's loop."""
    await until(lambda: for_the_module.is_leader)
    status = for_the_module.status()
    assert (status.state, status.token) == ("leading", 1)


@virtual
async def test_background_is_entered_and_left_in_different_tasks() -> None:
    """The campaign belongs to no task of its host: the one that entered may end, and another one leaves."""
    jobs, store = JobRegistry(), MemoryStore()
    background = jobs.background(store)
    campaign = await asyncio.create_task(background.__aenter__())
    await asyncio.sleep(1000)
    assert campaign.is_leader
    await asyncio.create_task(background.__aexit__(None, None, None))
    assert state(campaign) == "stopped"
    assert store.server.leases["default"].holder is None


# -- under uvloop


def test_under_uvloop() -> None:
    """`background`, `run_as_leader`, jobs, threads and hand-over work on uvloop as they do on asyncio's own loop."""
    server = MemoryServer()
    ran: list[object] = []

    async def main() -> None:
        one, two = JobRegistry(), JobRegistry()

        @one.every(0.05)
        async def first() -> None:
            ran.append("first")

        @two.every(0.05)
        def second() -> None:
            ran.append("second")

        store = MemoryStore(server)
        async with two.background(MemoryStore(server), **SHORT):
            await until(lambda: two.is_leader)
            async with one.background(store, **SHORT) as campaign:
                await until(lambda: "second" in ran)
                assert not campaign.is_leader
            await until(lambda: ran.count("second") > 2)
        assert "first" not in ran

        async def body(lead: Leadership) -> None:
            store.down = True
            ran.append(lead.token)
            if lead.token == 2:
                await asyncio.sleep(LIMIT)
            raise StoreUnavailable("memory", "enough")

        task = asyncio.create_task(run_as_leader(store, body, **SHORT))
        await until(lambda: 2 in ran)
        await asyncio.sleep(0.8)
        store.down = False
        with pytest.raises(StoreUnavailable, match="enough"):
            await asyncio.wait_for(task, LIMIT)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(main(), LIMIT))
