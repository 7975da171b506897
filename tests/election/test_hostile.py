"""What careless or hostile surroundings must not do to a lease."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aiolease import (
    ConfigurationError,
    Event,
    JobRegistry,
    LeadershipLost,
    Lost,
    Released,
    leadership,
    open_store,
    run_as_leader,
)
from aiolease.stores.records import Lease
from aiolease.testing import MemoryServer, MemoryStore, virtual_time
from tests.servers import Action, Server, TCPProxy

LIMIT = 30.0


class Odd(BaseException):
    """As raised by pytest.fail(), and by frameworks."""


@pytest.mark.parametrize("error", [asyncio.CancelledError(), Odd()])
@virtual_time
async def test_an_observer_cannot_keep_a_body_alive(error: BaseException) -> None:
    """Whatever an observer raises when the lease is lost, the body is cancelled before another leads."""
    server, ended = MemoryServer(), []

    def observe(event: Event) -> None:
        if isinstance(event, Lost):
            raise error

    mine = MemoryStore(server)

    async def body() -> None:
        try:
            async with leadership(mine, on_event=observe):
                await asyncio.sleep(3600)
        except LeadershipLost:
            ended.append(asyncio.get_running_loop().time())

    task = asyncio.create_task(body())
    await asyncio.sleep(1)
    mine.down = True
    async with leadership(MemoryStore(server)):
        assert len(ended) == 1
    await task


@virtual_time
async def test_cancelling_every_task_cancels_a_body_once_and_keeps_its_lease() -> None:
    """Cancelling all tasks, as a program's end does, cancels the body once; nobody else leads until it has ended."""
    server, seen = MemoryServer(), []

    async def body(_: object) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(2)
            await asyncio.sleep(15)
            seen.append("cleaned up")

    store = MemoryStore(server)
    store.latency = 0.01
    task = asyncio.create_task(
        run_as_leader(store, body, renew_deadline=2.0, heartbeat_interval=1.0, lease_duration=40)
    )
    await asyncio.sleep(5)
    me = asyncio.current_task()
    for each in asyncio.all_tasks():
        if each is not me:
            each.cancel()
    async with leadership(MemoryStore(server)) as lead:
        seen.append(f"term {lead.token}")
    assert seen == ["cleaned up", "term 2"]
    with pytest.raises((asyncio.CancelledError, LeadershipLost)):
        await task


async def test_cancelling_every_task_does_not_abandon_a_thread() -> None:
    """The lease is not released while a job's thread still runs, even if every task is cancelled."""
    running, released_beside = threading.Event(), []
    jobs = JobRegistry()

    @jobs.every(0.05)
    def slow() -> None:
        running.set()
        time.sleep(0.6)
        running.clear()

    def observe(event: Event) -> None:
        if type(event).__name__ == "Released":
            released_beside.append(running.is_set())

    task = asyncio.create_task(jobs.serve(MemoryStore(), lease_duration=3, on_event=observe))
    async with asyncio.timeout(LIMIT):
        while not running.is_set():
            await asyncio.sleep(0.01)
    me = asyncio.current_task()
    for each in asyncio.all_tasks():
        if each is not me:
            each.cancel()
    await asyncio.wait([task], timeout=LIMIT)
    assert released_beside == [False]


async def test_leader_only_may_be_called_from_another_loop() -> None:
    """A scheduler that runs in a thread with a loop of its own may call, and the term ends in time all the same."""
    jobs, outcomes, called = JobRegistry(), [], threading.Event()

    @jobs.leader_only
    async def report() -> None:
        called.set()
        await asyncio.sleep(3600)

    def elsewhere() -> None:
        try:
            asyncio.run(report())
        except LeadershipLost as lost:
            outcomes.append(lost.reason)

    thread = threading.Thread(target=elsewhere)
    async with asyncio.timeout(LIMIT), leadership(MemoryStore()) as lead, asyncio.TaskGroup() as tasks:
        tasks.create_task(jobs.run(lead))
        while not jobs.is_leader:
            await asyncio.sleep(0.01)
        thread.start()
        while not called.is_set():
            await asyncio.sleep(0.01)
        lead.resign()
    await asyncio.to_thread(thread.join, LIMIT)
    assert outcomes == ["resigned"]


@virtual_time
async def test_eligible_is_cancelled_once() -> None:
    """When the block ends while `eligible` is being asked, its clean-up may await; the lease is released meanwhile."""
    seen = []

    def observe(event: Event) -> None:
        if isinstance(event, Released):
            seen.append("released")

    async def eligible() -> bool:
        try:
            await asyncio.sleep(2)
        finally:
            seen.append("cancelled")
            await asyncio.sleep(1)
            seen.append("cleaned up")
        return True

    async with leadership(MemoryStore(), eligible=eligible, on_event=observe):
        seen.clear()
        await asyncio.sleep(11)
    assert seen == ["cancelled", "released", "cleaned up"]


@virtual_time
async def test_a_release_follows_the_renewal_that_is_under_way() -> None:
    """When the block ends while a renewal waits for its answer, the release is sent once that has come."""
    seen, renewing = [], asyncio.Event()

    class Slow(MemoryStore):
        async def renew(self, *arguments: Any) -> Lease | None:
            renewing.set()
            await asyncio.sleep(1)
            seen.append("renewed")
            return await super().renew(*arguments)

        async def release(self, *arguments: Any) -> bool:
            seen.append("released")
            return await super().release(*arguments)

    async with leadership(Slow()):
        await renewing.wait()
    assert seen == ["renewed", "released"]


@pytest.mark.parametrize("effect", ["first", "second"])
@virtual_time
async def test_who_cancels_every_task_does_not_tear_a_release(effect: str) -> None:
    """As `asyncio.run` does in the end: it is sent again, whether or not the first one took effect."""
    seen, releasing = list[Event](), asyncio.Event()

    class Slow(MemoryStore):
        async def release(self, *arguments: Any) -> bool:
            if releasing.is_set():
                return await super().release(*arguments)
            if effect == "first":
                await super().release(*arguments)
            releasing.set()
            await asyncio.sleep(1)
            return True

    async def lead() -> None:
        async with leadership(store, on_event=seen.append):
            pass

    store = Slow()
    leading = asyncio.create_task(lead())
    await releasing.wait()
    for each in asyncio.all_tasks() - {asyncio.current_task()}:
        each.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leading
    assert store.server.leases["default"].holder is None
    assert isinstance(seen[-1], Released)


def test_a_log_that_blocks_does_not_keep_a_stalled_process_alive() -> None:
    """With ``on_stall="exit"`` the process ends even if what blocks its loop is the log."""
    program = """
import asyncio
from loguru import logger
from aiolease import leadership
from aiolease.testing import MemoryStore

async def main():
    async with leadership(MemoryStore(), lease_duration=1.5, on_stall="exit"):
        while True:
            logger.info("x" * 10_000)

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) as process:  # which nobody reads
        try:
            assert process.wait(LIMIT) == 70
        finally:
            process.kill()
            assert process.stderr is not None
            process.stderr.close()


def once(matches: Callable[[bytes], bool], lost: asyncio.Event) -> Callable[[bytes], Action | None]:
    """Loses the answer to the first such query, and leaves its connection open and silent."""

    def on_query(query: bytes) -> Action | None:
        if lost.is_set() or not matches(query):
            return None
        lost.set()
        return Action(answer="swallow")

    return on_query


async def test_a_lost_answer_of_one_lease_does_not_cost_another(mariadb: Server, own_database: str) -> None:
    """A process that leads one lease keeps it when the answer to its poll of another is lost for good."""
    url = mariadb.url(own_database)
    options: dict[str, Any] = {"lease_duration": 4.0, "retry_interval": 0.2}
    async with TCPProxy(mariadb.host, mariadb.port) as proxy:
        mine = url.replace(f":{mariadb.port}", f":{proxy.port}")
        async with leadership(url, "two", **options), leadership(mine, "one", **options) as lead:
            lost = asyncio.Event()
            following = asyncio.create_task(run_as_leader(mine, _nothing, "two", **options))
            await asyncio.sleep(0.5)
            proxy.on_query = once(lambda query: b"SELECT name" in query and b"UPDATE" not in query, lost)
            await asyncio.wait_for(lost.wait(), LIMIT)
            await asyncio.sleep(2 * 4.0)
            lead.check()
            following.cancel()
            await asyncio.wait([following])


async def _nothing(_: object) -> None:
    return


async def test_leaving_a_store_does_not_wait_for_an_answer_that_never_comes(mariadb: Server, own_database: str) -> None:
    """The end of `open_store` is bounded, whatever is still under way on its connections."""
    async with TCPProxy(mariadb.host, mariadb.port) as proxy:
        url = mariadb.url(own_database).replace(f":{mariadb.port}", f":{proxy.port}")
        async with asyncio.timeout(LIMIT):
            async with open_store(url) as store:
                await store.status("cron")
                proxy.swallow()
                asking: Awaitable[object] = asyncio.ensure_future(store.status("cron"))
                await asyncio.sleep(0.1)
            await asyncio.wait([asyncio.ensure_future(asking)])


@pytest.mark.parametrize("url", ["mysql://app:2024/hunter?x@db/shop", "mysql://app:77/hunter?@db/shop"])
def test_a_password_that_reads_like_a_url_is_not_shown(url: str) -> None:
    """The error shows no piece of a password that was not encoded, nor of a URL given as a lease's name."""
    for target, name in ((url, "default"), ("sqlite:///x.db", url + "x" * 100)):
        with pytest.raises(ConfigurationError) as refused:
            leadership(target, name)
        assert "hunter" not in str(refused.value)
