"""The last writes are sent again over a second connection: no hand-over and no success is lost."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, closing, suppress
from pathlib import Path
from typing import Any, TypeVar

import aiomysql
import asyncmy
import pytest

from aiolease import JobRegistry, JobRun, leadership, open_store
from aiolease.errors import InvalidJob, SchemaMissing, StoreUnavailable
from aiolease.events import (
    Elected,
    Lost,
    Notice,
    Released,
    ReleaseFailed,
    Renewed,
    RenewFailed,
    Resigned,
    RunFinished,
    Waiting,
)
from aiolease.stores.sqlite import SQLiteStore
from aiolease.stores.sqlite import file as sqlite_file
from aiolease.testing import MemoryServer, MemoryStore, virtual_time
from tests.campaigns import LIMIT, Recorder, apart, campaign, kill_sessions, once, proxied, row, sessions, until
from tests.servers import Action, Server, TCPProxy
from tests.stores.mysql.connecting import own_engine, own_pool

T = TypeVar("T")

TARGETS: dict[str, Callable[[Server, str], AbstractAsyncContextManager[Any]]] = {
    "asyncmy": lambda server, url: own_pool(asyncmy, server, url),
    "aiomysql": lambda server, url: own_pool(aiomysql, server, url),
    "engine-asyncmy": lambda server, url: own_engine("asyncmy", server, url),
    "engine-aiomysql": lambda server, url: own_engine("aiomysql", server, url),
}


@pytest.fixture(params=TARGETS)
async def target(request: pytest.FixtureRequest, mysql_server: Server, mysql_url: str) -> AsyncIterator[Any]:
    """A pool or an engine of each driver."""
    async with TARGETS[request.param](mysql_server, mysql_url) as made:
        yield made


def quiet(heard: Recorder) -> bool:
    """Whether nothing went wrong that anybody need hear of."""
    trouble = RenewFailed | ReleaseFailed | Lost | Notice | Waiting
    return not [event for _, event in heard.events if isinstance(event, trouble)]


def jobs_that(job: Callable[[JobRun], Any]) -> JobRegistry:
    registry = JobRegistry()
    registry.every(5003, name="job", rerun_lost=True)(job)
    return registry


async def drained(target: Any, registry: JobRegistry, heard: Recorder, begun: asyncio.Event) -> None:
    """Serves until the job has begun, then stops in an orderly way."""
    async with registry.background(target, on_event=heard, drain_timeout=LIMIT, heartbeat_interval=1.0):
        async with asyncio.timeout(LIMIT):
            async with open_store(target) as store:
                while True:
                    try:
                        await store.trigger("default", "job")
                        break
                    except (InvalidJob, SchemaMissing):  # it is not enrolled yet
                        await asyncio.sleep(0.01)
            await begun.wait()


# -- real servers


async def test_a_renewal_over_a_closed_connection_is_no_warning(
    mysql_server: Server, mysql_url: str, target: Any
) -> None:
    """A renewal that finds its connection ended by the server is sent over a new one, and nobody is told of trouble."""
    heard = Recorder()
    async with leadership(target, lease_duration=9.0, heartbeat_interval=1.0, on_event=heard) as lead:
        for _ in range(3):
            assert kill_sessions(mysql_server, mysql_url)
            await heard.next(Renewed)
        lead.check()
        assert row(mysql_server, mysql_url)["token"] == lead.token
    assert quiet(heard), heard.events


async def test_a_waiting_candidate_bears_a_closed_connection(mysql_server: Server, mysql_url: str) -> None:
    """A candidate whose connection is ended in the middle of its wait goes on over a new one without a warning."""

    def waits() -> set[int]:
        return {number for number, doing in sessions(mysql_server, mysql_url).items() if "GET_LOCK" in doing}

    leading = leadership(mysql_url, lease_duration=60.0)
    async with leading, campaign(apart(mysql_url), lease_duration=60.0) as waiting:
        await until(waits, "it waits in the lock")
        killed = waits()
        for number in killed:
            mysql_server.sql(f"KILL {number}")
        await until(lambda: waits() - killed, "it waits again")
        assert quiet(waiting), waiting.events


async def test_a_release_over_a_closed_connection_frees_the_row(
    mysql_server: Server, mysql_url: str, target: Any
) -> None:
    """A server that ends the connections just before the release does not keep the row held."""
    heard = Recorder()
    async with leadership(target, on_event=heard):
        assert kill_sessions(mysql_server, mysql_url)
    assert row(mysql_server, mysql_url)["holder"] is None
    assert len(heard.of(Released)) == 1
    assert quiet(heard), heard.events


@pytest.mark.parametrize("fate", [Action(query="cut"), Action(answer="cut")], ids=["query", "answer"])
async def test_a_release_that_is_torn_is_sent_again(mysql_server: Server, mysql_url: str, fate: Action) -> None:
    """Whether the server executed the first release or not: the row is free, and it is told once that it is."""
    heard = Recorder()
    async with proxied(mysql_server, mysql_url) as (proxy, url):
        async with leadership(url, on_event=heard):
            proxy.on_query = once(b"SET holder = NULL", fate)
        assert row(mysql_server, mysql_url)["holder"] is None
    assert len(heard.of(Released)) == 1
    assert quiet(heard), heard.events


async def test_a_release_finds_the_server_that_restarts(mysql_server: Server, mysql_url: str) -> None:
    """A server that restarts during the release has its row freed, if it is back in time."""
    heard = Recorder()
    async with leadership(mysql_url, lease_duration=120.0, on_event=heard):
        await asyncio.to_thread(mysql_server.kill)
        back = asyncio.create_task(asyncio.to_thread(mysql_server.recover))
    await back
    assert row(mysql_server, mysql_url)["holder"] is None
    assert heard.of(Released)


async def test_a_run_that_succeeds_in_the_drain_has_succeeded(
    mysql_server: Server, mysql_url: str, target: Any
) -> None:
    """A server that ends the connections while the last job drains costs neither its success nor the hand-over."""
    heard, begun = Recorder(), asyncio.Event()

    async def job(run: JobRun) -> None:
        begun.set()
        lead = run.leadership
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):  # by then it drains
                await asyncio.Event().wait()
        lead.check()
        assert kill_sessions(mysql_server, mysql_url)

    await drained(target, jobs_that(job), heard, begun)
    async with open_store(mysql_url) as store:
        assert [(run.status, run.attempt) for run in await store.history("default", "job")] == [("succeeded", 1)]
    assert row(mysql_server, mysql_url)["holder"] is None
    assert [event.status for event in heard.of(RunFinished)] == ["succeeded"]
    assert not heard.of(Lost)
    assert not heard.of(Notice), heard.of(Notice)


@pytest.mark.parametrize("fate", [Action(query="cut"), Action(answer="cut")], ids=["query", "answer"])
async def test_the_end_of_a_run_that_is_torn_is_written_again(
    mysql_server: Server, mysql_url: str, fate: Action
) -> None:
    """Whether the server executed the first writing or not: the run has succeeded, once."""
    heard, begun, ending = Recorder(), asyncio.Event(), asyncio.Event()
    async with proxied(mysql_server, mysql_url) as (proxy, url):

        async def job() -> None:
            begun.set()
            await ending.wait()
            tear(proxy, fate)

        asyncio.get_running_loop().call_later(0.3, ending.set)
        await drained(url, jobs_that(lambda _: job()), heard, begun)
    async with open_store(mysql_url) as store:
        assert [(run.status, run.attempt) for run in await store.history("default", "job")] == [("succeeded", 1)]
    assert not heard.of(Notice), heard.of(Notice)


def tear(proxy: TCPProxy, fate: Action) -> None:
    proxy.on_query = once(b"finished_at", fate)


# -- every store


class Torn(MemoryStore):
    """The answers of some exchanges are lost, though the server has done as it was asked."""

    def __init__(self, server: MemoryServer, **times: int) -> None:
        super().__init__(server)
        self.times = times

    async def exchange(self, method: str, statement: Callable[[], T]) -> T:
        answer = await super().exchange(method, statement)
        if self.times.get(method):
            self.times[method] -= 1
            raise StoreUnavailable(self.description, "the answer was lost")
        return answer


@virtual_time
async def test_a_release_whose_answers_are_lost_has_released() -> None:
    """A second release that finds the row freed by the first one is told as a release."""
    server, heard = MemoryServer(), Recorder()
    async with leadership(Torn(server, release=3), on_event=heard):
        pass
    assert server.leases["default"].holder is None
    assert len(heard.of(Released)) == 1
    assert not heard.of(Notice)


@virtual_time
async def test_a_release_that_is_never_answered_is_given_up_in_time() -> None:
    """All tries together take no longer than one exchange may."""
    heard, clock = Recorder(), asyncio.get_running_loop().time
    async with leadership(Torn(MemoryServer(), release=10**6), on_event=heard):
        began = clock()
    assert clock() - began <= 5.0
    assert len(heard.of(ReleaseFailed)) == 1
    assert not heard.of(Released)


@pytest.mark.parametrize("way", ["works", "is refused", "is not answered", "is a bug", "finds another's row"])
@pytest.mark.parametrize("body", ["returns", "raises", "resigns"])
@virtual_time
async def test_a_clean_end_has_one_event_whatever_becomes_of_the_release(way: str, body: str) -> None:
    """A gauge that is 1 after `Elected`, and 0 after the events of an end, does not stick."""
    server, heard = MemoryServer(), Recorder()
    store = MemoryStore(server)
    with suppress(ValueError):
        async with leadership(store, on_event=heard) as lead:
            if way == "is refused":
                store.fail("release", StoreUnavailable("memory", "it is read-only"), times=100)
            elif way == "is not answered":
                store.lose_request("release", times=100)
            elif way == "is a bug":
                store.fail("release", RuntimeError("a bug"))
            elif way == "finds another's row":
                server.take("default")
            if body == "resigns":
                lead.resign()
            elif body == "raises":
                raise ValueError
    assert len(heard.of(Elected)) == 1
    assert len(heard.of(Released)) == (way == "works")
    assert len(heard.of(ReleaseFailed)) == (way != "works")
    assert len(heard.of(Resigned)) == (body == "resigns")
    assert not heard.of(Lost)


@virtual_time
async def test_a_lease_that_another_took_meanwhile_was_not_released() -> None:
    """A second release that comes after the term's end and finds another's row tells of no release."""
    server, heard = MemoryServer(), Recorder()

    class Slow(Torn):
        async def exchange(self, method: str, statement: Callable[[], T]) -> T:
            if method == "release" and self.times["release"]:
                self.times["release"] -= 1
                server.take("default")
                lead.term.deadline = 0.0
                raise StoreUnavailable(self.description, "it did not arrive")
            return await super().exchange(method, statement)

    async with leadership(Slow(server, release=1), on_event=heard) as lead:
        pass
    assert server.leases["default"].holder == "another"
    assert not heard.of(Released)


@virtual_time
async def test_the_ends_of_runs_whose_answers_are_lost_are_written() -> None:
    """What a drain has to write is written again, and what the first writing has done is left as it is."""
    server, begun, ending, heard = MemoryServer(), asyncio.Event(), asyncio.Event(), Recorder()
    store = Torn(server)

    async def job(_: JobRun) -> None:
        begun.set()
        await ending.wait()
        store.times["record"] = 3

    asyncio.get_running_loop().call_later(1.0, ending.set)
    await drained(store, jobs_that(job), heard, begun)
    (run,) = server.ledgers["default"].history("job")
    assert (run.status, run.attempt) == ("succeeded", 1)
    assert not heard.of(Notice)
    assert server.leases["default"].holder is None


async def test_a_file_that_is_locked_for_a_while_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SQLite file that others keep locked for longer than one try lasts is written as they let it go."""
    monkeypatch.setattr(sqlite_file, "_PATIENCE", 0.1)
    path, heard = tmp_path / "leases.db", Recorder()
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as stranger:

        class Counting(SQLiteStore):
            tries = 0

            async def release(self, name: str, holder: str, token: int) -> bool:
                self.tries += 1
                if self.tries == 3:
                    stranger.execute("COMMIT")
                return await super().release(name, holder, token)

        store = Counting(path)
        try:
            async with leadership(store, lease_duration=120.0, on_event=heard):
                stranger.execute("BEGIN IMMEDIATE")
            assert store.tries >= 3
            lease = await store.read("default")
        finally:
            await store.aclose()
    assert lease is not None
    assert lease.holder is None
    assert len(heard.of(Released)) == 1
    assert not heard.of(Notice)
