"""What `Campaign` and `run_as_leader` do from the first term to the last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from aiolease import JobRegistry, Leadership, LeadershipLost, leadership, run_as_leader
from aiolease.testing import MemoryServer, MemoryStore
from tests.election.campaigning import now, state
from tests.virtual import START, lines, until, virtual

if TYPE_CHECKING:
    from loguru import Message


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
    """A campaign that resigned, and is alone, leads again after twice `retry_interval`."""
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
