"""How `background` is entered, and what becomes of failures after that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from aiolease import (
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
from aiolease.testing import MemoryServer, MemoryStore
from tests.election.campaigning import now, state
from tests.virtual import lines, virtual

if TYPE_CHECKING:
    from loguru import Message


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
    """An application stops at once, also while the database does not answer."""
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
    """If the host has entered after 5 s, a first attempt that is refused later is only logged as CRITICAL."""
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
