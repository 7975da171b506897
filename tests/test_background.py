"""A campaign behind an application: `background` in lifespans and fixtures, `Campaign`, and `run_as_leader`.

In virtual time where that is possible; where a host's own loop is the point, with a short lease in real time.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import anyio
import httpx
import pytest
import pytest_asyncio
import uvloop
from fastapi import FastAPI
from loguru import logger
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from aiolease import (
    Campaign,
    ConfigurationError,
    JobRegistry,
    Leadership,
    LeadershipLost,
    SchemaMissing,
    StoreRejected,
    StoreUnavailable,
    leadership,
    run_as_leader,
)
from aiolease.testing import MemoryServer, MemoryStore, virtual_time

if TYPE_CHECKING:
    from loguru import Message

P = ParamSpec("P")

START = datetime(2026, 1, 1, tzinfo=UTC)
LIMIT = 10.0
"""Seconds of real time within which everything here has to happen."""

SHORT: dict[str, Any] = {"lease_duration": 0.6}


def virtual(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A test in virtual time that ends within a virtual day, and leaves no task behind."""

    @functools.wraps(test)
    async def bounded(*args: P.args, **kwargs: P.kwargs) -> None:
        async with asyncio.timeout(86_400):
            await test(*args, **kwargs)
        for _ in range(3):  # what was cancelled, or has its result, may end
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    return virtual_time(bounded)


async def until(condition: Callable[[], object]) -> None:
    """Waits for what other tasks do, and fails after `LIMIT`."""
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.005)


def now() -> float:
    return asyncio.get_running_loop().time()


def state(campaign: Campaign) -> str:
    return campaign.status().state


@pytest.fixture
def log() -> Iterator[list[Message]]:
    """What was logged during the test."""
    records: list[Message] = []
    sink = logger.add(records.append, level="TRACE", format="{level} {message}")
    yield records
    logger.remove(sink)


def lines(log: list[Message], level: str) -> list[str]:
    return [each.record["message"] for each in log if each.record["level"].name == level]


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


# -- entering


@virtual
async def test_background_enters_after_the_first_attempt() -> None:
    """`background` enters once the database has answered, also when another process leads."""
    server, jobs = MemoryServer(), JobRegistry()
    store = MemoryStore(server)
    store.latency = 0.5
    async with leadership(MemoryStore(server)):
        started = now()
        async with jobs.background(store) as campaign:
            assert now() - started == pytest.approx(0.5)
            assert state(campaign) == "following"
            assert campaign.leadership is None


@virtual
async def test_background_enters_without_a_database(log: list[Message]) -> None:
    """A database that is down does not keep an application from starting: it is waited for, with a WARNING."""
    jobs, store = JobRegistry(), MemoryStore()
    store.down = True
    started = now()
    async with jobs.background(store) as campaign:
        assert now() - started < 1
        status = campaign.status()
        assert (status.state, status.leader, status.last_contact) == ("starting", None, None)
        assert status.error is not None
        assert "the network is down" in status.error
        assert lines(log, "WARNING") == ["waiting for the database: memory: the network is down"]
        store.down = False
        await asyncio.sleep(10)
        assert campaign.is_leader
        assert campaign.status().error is None
        assert campaign.status().last_contact is not None
    assert lines(log, "CRITICAL") == []


@virtual
async def test_background_enters_after_five_seconds_at_most() -> None:
    """A database that does not answer holds up a start for 5 s; until it answers the state is starting."""
    jobs, store = JobRegistry(), MemoryStore()
    store.lose_request("read")
    started = now()
    async with jobs.background(store, lease_duration=60) as campaign:
        assert now() - started == pytest.approx(5)
        assert state(campaign) == "starting"
        await asyncio.sleep(20)
        assert state(campaign) == "leading"


@virtual
async def test_leaving_does_not_wait_for_a_database_that_hangs() -> None:
    """An application that stops while the database does not answer is not held up by it."""
    jobs, store = JobRegistry(), MemoryStore()
    store.lose_request("read", times=100)
    async with jobs.background(store, lease_duration=3600) as campaign:
        left_at = now()
    assert now() - left_at < 1
    assert state(campaign) == "stopped"


@pytest.mark.parametrize(
    "error",
    [StoreRejected("memory", "access denied"), SchemaMissing("memory", "no tables")],
    ids=["rejected", "schema"],
)
def test_what_waiting_cannot_mend_is_raised_at_the_start(error: Exception) -> None:
    """What the database refuses at the first attempt comes out of `background`, `serve` and `run_as_leader`."""

    @virtual
    async def test() -> None:
        async def body(lead: Leadership) -> None:
            pytest.fail("it was elected")

        for start in (
            lambda store: JobRegistry().background(store).__aenter__(),
            lambda store: JobRegistry().serve(store),
            lambda store: run_as_leader(store, body),
        ):
            store = MemoryStore()
            store.fail("read", error)
            with pytest.raises(type(error)) as raised:
                await start(store)
            assert raised.value is error

    test()


@pytest.mark.parametrize(
    "options",
    [{"lease_duration": -1}, {"name": "two words"}, {"drain_timeout": -1}, {"on_stall": "explode"}],
    ids=str,
)
async def test_settings_that_cannot_work_are_refused_at_the_start(options: dict[str, Any]) -> None:
    """`background` raises `ConfigurationError` when it is entered, before anything is sent."""
    store = MemoryStore()
    with pytest.raises(ConfigurationError):
        async with JobRegistry().background(store, **options):
            pytest.fail("it was entered")
    assert store.sent == []


async def test_an_unknown_option_is_a_mistake_in_the_program() -> None:
    """A keyword that no option has is a `TypeError`, as for any function."""
    with pytest.raises(TypeError):
        await JobRegistry().serve(MemoryStore(), lease_time=30)  # type: ignore[call-arg]


# -- afterwards


@virtual
async def test_a_ledger_that_cannot_be_written_is_an_error_of_the_status() -> None:
    """The lease is kept and renewed, but no run can be claimed: the status says so, until it can be written again."""
    jobs, store = JobRegistry(), MemoryStore()

    @jobs.every(10)
    async def job() -> None: ...

    async with jobs.background(store) as campaign:
        await asyncio.sleep(25)
        assert campaign.status().error is None
        store.fail("record", StoreUnavailable("memory", "the table is locked"), times=10_000)
        await asyncio.sleep(60)
        status = campaign.status()
        assert campaign.is_leader
        assert status.error is not None
        assert "could not write the ledger of 'default'" in status.error
        assert "the table is locked" in status.error
        store._faults.clear()
        await asyncio.sleep(15)
        assert campaign.status().error is None
        store.lose_request("record", times=10_000)
        await until_virtual(lambda: campaign.status().error)
        assert campaign.is_leader
        store._faults.clear()
        await until_virtual(lambda: campaign.status().error is None)


@virtual
async def test_a_failure_does_not_harm_the_host(log: list[Message]) -> None:
    """After the start no failure gets out: it is CRITICAL, the state is failed, and the campaign goes on trying."""
    server, jobs = MemoryServer(), JobRegistry()
    store = MemoryStore(server)
    async with jobs.background(store) as campaign:
        await asyncio.sleep(1)
        campaign.resign()
        store.fail("read", RuntimeError("a bug"), times=3)
        await asyncio.sleep(0.1)
        await until_virtual(lambda: state(campaign) == "failed")
        status = campaign.status()
        assert status.error is not None
        assert "a bug" in status.error
        assert not campaign.is_leader
        await asyncio.sleep(120)
        assert campaign.is_leader
        assert campaign.status().error is None
    assert len(lines(log, "CRITICAL")) == 3
    assert all("a bug" in line for line in lines(log, "CRITICAL"))


async def until_virtual(condition: Callable[[], object]) -> None:
    """Waits for at most two virtual minutes."""
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.1)


@virtual
async def test_a_failure_is_forgotten_when_it_has_passed() -> None:
    """A campaign that follows again after a failure is healthy: its status has no error any more."""
    server, jobs = MemoryServer(), JobRegistry()
    store = MemoryStore(server)
    async with leadership(MemoryStore(server)), jobs.background(store) as campaign:
        store.fail("read", RuntimeError("a bug"))
        await until_virtual(lambda: state(campaign) == "failed")
        await asyncio.sleep(60)
        assert (campaign.status().state, campaign.status().error) == ("following", None)


@virtual
async def test_a_refusal_after_the_start_is_waited_out(log: list[Message]) -> None:
    """What a database refuses later, a password that was changed say, is logged and tried again."""
    jobs, store = JobRegistry(), MemoryStore()
    refusal = StoreRejected("memory", "access denied")
    async with jobs.background(store) as campaign:
        await asyncio.sleep(1)
        for method in ("read", "renew", "claim", "release"):
            store.fail(method, refusal, times=200)
        await asyncio.sleep(60)
        assert not campaign.is_leader
        assert campaign.status().error is not None
        store._faults.clear()
        await asyncio.sleep(120)
        assert campaign.is_leader
    assert any("access denied" in line for line in lines(log, "WARNING"))
    assert lines(log, "CRITICAL") == []


@virtual
async def test_a_refusal_after_the_first_election_ends_nothing() -> None:
    """`run_as_leader`, too, waits out what the database refuses once it had been elected."""
    store, led = MemoryStore(), []

    async def body(lead: Leadership) -> None:
        led.append(lead.token)
        store.fail("read", StoreRejected("memory", "access denied"), times=3)

    task = asyncio.create_task(run_as_leader(store, body))
    await asyncio.sleep(60)
    assert len(led) > 3
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@virtual
async def test_a_refusal_after_a_hanging_start_does_not_harm_the_host(log: list[Message]) -> None:
    """When the host has entered after 5 s, even a refused first attempt only is CRITICAL."""
    jobs, store = JobRegistry(), MemoryStore()
    store.delay("read", 7)
    store.fail("read", StoreRejected("memory", "access denied"))
    store.fail("claim", StoreRejected("memory", "access denied"))
    async with jobs.background(store, lease_duration=60) as campaign:
        assert state(campaign) == "starting"
        await asyncio.sleep(60)
        assert campaign.is_leader
    assert any("access denied" in line for line in lines(log, "CRITICAL") + lines(log, "WARNING"))


@virtual
async def test_a_broken_renewal_ends_the_term_not_the_campaign() -> None:
    """A bug under the heartbeat ends the term with the reason error; the process may be elected again."""
    jobs, store = JobRegistry(), MemoryStore()
    async with jobs.background(store) as campaign:
        await asyncio.sleep(1)
        first = campaign.leadership
        assert first is not None
        store.fail("renew", RuntimeError("a bug"))
        await asyncio.sleep(60)
        assert not first.is_leader
        with pytest.raises(LeadershipLost, match="error"):
            first.check()
        assert campaign.leadership is not None
        assert campaign.leadership.token == 2


# -- the campaign


@virtual
async def test_a_campaign_says_what_it_does() -> None:
    """The state goes from starting over following, leading and draining to stopped; asking costs no I/O."""
    server, jobs = MemoryServer(), JobRegistry()
    store = MemoryStore(server)
    seen: list[str] = []
    store.lose_request("read")

    @jobs.every(10)
    async def slow() -> None:
        await asyncio.sleep(15)

    def look() -> None:
        before = len(store.sent)
        status = campaign.status()
        assert len(store.sent) == before
        if not seen or seen[-1] != status.state:
            seen.append(status.state)

    async def watch() -> None:
        while True:
            look()
            await asyncio.sleep(0.05)

    async with leadership(MemoryStore(server)) as other:
        background = jobs.background(store, lease_duration=60)
        campaign = await background.__aenter__()
        watching = asyncio.create_task(watch())
        await asyncio.sleep(15)
        assert (campaign.status().leader, campaign.status().token) == (other.holder, 1)
    await asyncio.sleep(30)
    lead = campaign.leadership
    assert lead is not None
    assert (campaign.status().leader, campaign.status().token) == (lead.holder, 2)
    assert jobs.is_leader
    assert repr(campaign) == "<Campaign 'default': leading>"
    await background.__aexit__(None, None, None)
    look()
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    assert seen == ["starting", "following", "leading", "draining", "stopped"]
    assert campaign.leadership is None
    assert not campaign.is_leader


@virtual
async def test_a_campaign_that_is_cancelled_has_stopped() -> None:
    """When its host is cancelled a campaign ends as stopped: nothing failed."""
    jobs, store, campaigns = JobRegistry(), MemoryStore(), []

    async def host() -> None:
        async with jobs.background(store) as campaign:
            campaigns.append(campaign)
            await asyncio.sleep(1000)

    task = asyncio.create_task(host())
    await asyncio.sleep(5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [state(campaign) for campaign in campaigns] == ["stopped"]


@virtual
async def test_one_of_two_leads_and_hands_over() -> None:
    """Of two campaigns for one lease on one store one leads; when it resigns, the other does, and goes on."""
    store, one, two = MemoryStore(), JobRegistry(), JobRegistry()
    async with one.background(store) as first, two.background(store) as second:
        await asyncio.sleep(100)
        assert (first.is_leader, second.is_leader) == (True, False)
        assert (one.is_leader, two.is_leader) == (True, False)
        first.resign()
        first.resign()
        assert not first.is_leader
        await asyncio.sleep(1)
        assert (state(first), state(second)) == ("following", "leading")
        await asyncio.sleep(1000)
        assert first.status().leader == second.leadership.holder  # type: ignore[union-attr]
        assert (state(first), state(second)) == ("following", "leading")
        first.resign()  # of a follower: nothing
        await asyncio.sleep(10)
        assert second.is_leader


@virtual
async def test_a_resigned_leader_that_is_alone_leads_again() -> None:
    """Where nobody else is there to lead, a campaign that resigned stays out for twice `retry_interval` only."""
    jobs, store = JobRegistry(), MemoryStore()
    async with jobs.background(store, retry_interval=2) as campaign:
        await asyncio.sleep(1)
        campaign.resign()
        await asyncio.sleep(3.9)
        assert not campaign.is_leader
        await asyncio.sleep(0.5)
        assert campaign.is_leader


async def test_two_campaigns_of_a_process_share_a_file(tmp_path: Path) -> None:
    """Of two campaigns on one URL, which share their connection, one leads, and the other when the first has left."""
    url, one, two = f"sqlite:///{tmp_path}/jobs.db", JobRegistry(), JobRegistry()
    async with two.background(url, lease_duration=5) as second:
        await until(lambda: second.is_leader)
        async with one.background(url, lease_duration=5) as first:
            await until(lambda: first.status().leader is not None)
            second.resign()
            await until(lambda: first.is_leader)
            await until(lambda: second.status().leader == first.leadership.holder)  # type: ignore[union-attr]
        await until(lambda: second.is_leader)


# -- leaving


@pytest.mark.parametrize("how", ["leaves", "raises", "is cancelled", "is cancelled by anyio"])
def test_leaving_drains_and_being_cancelled_does_not(how: str) -> None:
    """A host that leaves or raises lets running jobs finish; a host that is cancelled has them cancelled at once."""

    @virtual
    async def test() -> None:
        jobs, store, ended = JobRegistry(), MemoryStore(MemoryServer(START)), []
        end = asyncio.Event()
        scope = anyio.CancelScope()

        @jobs.every(10)
        async def job() -> None:
            try:
                await asyncio.sleep(25)
                ended.append("finished")
            except asyncio.CancelledError:
                await asyncio.sleep(1)
                ended.append("cancelled")
                raise

        async def host() -> None:
            with scope:
                async with jobs.background(store, drain_timeout=60):
                    await end.wait()
                    if how == "raises":
                        raise ZeroDivisionError

        task = asyncio.create_task(host())
        await asyncio.sleep(15)
        left_at = now()
        if how == "is cancelled":
            task.cancel()
        elif how == "is cancelled by anyio":
            scope.cancel()
        else:
            end.set()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        drained = how in ("leaves", "raises")
        assert now() - left_at == pytest.approx(20 if drained else 1, abs=0.1)
        assert ended == ["finished" if drained else "cancelled"]
        expected = {"raises": ZeroDivisionError, "is cancelled": asyncio.CancelledError}.get(how, type(None))
        assert isinstance(outcome, expected)
        assert store.server.leases["default"].holder is None

    test()


@virtual
async def test_a_drain_may_be_cut_short() -> None:
    """A host that is cancelled while it drains has the jobs cancelled, and is cancelled when they have ended."""
    jobs, store, ended = JobRegistry(), MemoryStore(MemoryServer(START)), []

    @jobs.every(10)
    async def job() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(1)
            ended.append(now())

    async def host() -> None:
        async with jobs.background(store, drain_timeout=600):
            await asyncio.sleep(15)

    task = asyncio.create_task(host())
    await asyncio.sleep(20)
    assert not ended
    cut_at = now()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [pytest.approx(cut_at + 1)]
    assert store.server.leases["default"].holder is None


@virtual
async def test_being_cancelled_while_entering_leaves_nothing() -> None:
    """An application that is cancelled while it starts waits for the answer it asked for, and holds no lease."""
    jobs, store = JobRegistry(), MemoryStore()
    store.delay("claim", 3)
    task = asyncio.create_task(jobs.background(store).__aenter__())
    await asyncio.sleep(1)
    task.cancel()
    started = now()
    with suppress(asyncio.CancelledError):
        await task
    assert now() - started == pytest.approx(2, abs=0.1)
    assert store.server.leases["default"].holder is None


# -- run_as_leader


@virtual
async def test_a_body_that_returns_ends_its_term_and_stays_out() -> None:
    """`run_as_leader` awaits the body in every term; when it returns the lease is released, and another may lead."""
    server, led = MemoryServer(), []

    def body(name: str) -> Callable[[Leadership], Coroutine[Any, Any, None]]:
        async def run(lead: Leadership) -> None:
            lead.check()
            led.append((name, lead.token))
            await asyncio.sleep(10)

        return run

    tasks = [asyncio.create_task(run_as_leader(MemoryStore(server), body(name))) for name in ("a", "b")]
    await asyncio.sleep(65)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [token for _, token in led] == [1, 2, 3, 4, 5, 6, 7]
    names = [name for name, _ in led]
    assert all(one != other for one, other in pairwise(names))
    assert server.leases["default"].holder is None


@virtual
async def test_a_lost_term_is_followed_by_another() -> None:
    """`run_as_leader` catches the loss of its own term, and runs the body again when it is elected again."""
    store, led = MemoryStore(), []

    async def body(lead: Leadership) -> None:
        led.append(lead.token)
        await asyncio.sleep(1_000)
        raise AssertionError("the loss did not cancel it")

    task = asyncio.create_task(run_as_leader(store, body))
    await asyncio.sleep(5)
    store.down = True
    await asyncio.sleep(100)
    store.down = False
    await asyncio.sleep(40)  # the row was never released: it has to be watched for a whole lease
    assert led == [1, 2]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@virtual
async def test_only_the_loss_of_its_own_term_is_caught() -> None:
    """A `LeadershipLost` of another term, a nested one say, comes out of `run_as_leader`."""

    async def body(lead: Leadership) -> None:
        async with leadership(MemoryStore()) as other:
            pass
        other.check()

    store = MemoryStore()
    with pytest.raises(LeadershipLost) as lost:
        await run_as_leader(store, body)
    assert lost.value.holder != store.server.leases["default"].holder
    assert lost.value.reason == "resigned"
    assert store.server.leases["default"].holder is None


@virtual
async def test_what_a_body_raises_comes_out() -> None:
    """The body's own exception comes out of `run_as_leader` as itself, after the lease was released."""
    store, error = MemoryStore(), ValueError("the body's own")

    async def body(lead: Leadership) -> None:
        raise error

    with pytest.raises(ValueError, match="own") as raised:
        await run_as_leader(store, body)
    assert raised.value is error
    assert store.server.leases["default"].holder is None


@virtual
async def test_what_a_body_raises_when_it_has_lost_is_logged(log: list[Message]) -> None:
    """A body that raises while it unwinds from a loss does not end the campaign; what it raised is logged."""
    store, led = MemoryStore(), []

    async def body(lead: Leadership) -> None:
        led.append(lead.token)
        try:
            await asyncio.sleep(1000)
        finally:
            raise ValueError("while unwinding")

    task = asyncio.create_task(run_as_leader(store, body))
    await asyncio.sleep(5)
    store.down = True
    await asyncio.sleep(100)
    store.down = False
    await asyncio.sleep(40)  # the row was never released: it has to be watched for a whole lease
    assert led == [1, 2]
    assert any("ValueError: while unwinding" in line for line in lines(log, "ERROR"))
    task.cancel()
    with suppress(asyncio.CancelledError, ValueError):
        await task


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
