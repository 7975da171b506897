"""How a candidate starts and waits: a database that is down, and waits with a time limit."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from aiolease import LeaseHeld, SchemaMissing, StoreRejected, StoreUnavailable, leadership, run_as_leader
from aiolease._waiting import run_apart
from aiolease.events import Waiting
from aiolease.testing import MemoryServer, MemoryStore, virtual_time
from tests.election.terms import ATTEMPT, LEASE, LONG, RETRY, Process, clock, end, until

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.mark.parametrize("what", ["everything fails", "claims fail"])
@virtual_time
async def test_a_database_that_is_down_is_waited_for(what: str) -> None:
    """While the database fails, warnings grow rarer; once it works, the process leads soon."""
    process = Process(MemoryServer())
    if what == "everything fails":
        process.store.down = True
    else:  # as on a server that became read-only
        process.store.fail("claim", StoreUnavailable("memory", "read-only"), 100_000)
    await asyncio.sleep(LONG)
    times = process.log.times(Waiting)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps[0] < 3
    assert 50 < gaps[-1] < 70
    assert len(times) < 80
    assert all(later >= earlier - RETRY for earlier, later in itertools.pairwise(gaps))
    attempts = [at for method, at in process.store.sent if method == "read"]
    assert all(later - earlier <= RETRY + 0.1 for earlier, later in itertools.pairwise(attempts))
    assert process.log.of(Waiting)[0].level == "WARNING"
    assert process.log.of(Waiting)[0].phrase.startswith("waiting for the database: memory: ")
    process.store.down = False
    process.store._faults.clear()
    await process.leads(RETRY + 0.1)
    await end(process.task)


@pytest.mark.parametrize("method", ["read", "claim"])
@pytest.mark.parametrize("error", [StoreRejected("memory", "denied"), SchemaMissing("memory", "no tables")], ids=repr)
@virtual_time
async def test_what_waiting_cannot_mend_is_raised_by_the_first_attempt(error: Exception, method: Any) -> None:
    """Access denied and missing tables come out of the first attempt, as they are."""
    store = MemoryStore()
    store.fail(method, error)
    with pytest.raises(type(error)) as raised:
        async with leadership(store):
            pytest.fail("it was elected")
    assert raised.value is error
    assert clock() < 1001

    store = MemoryStore()
    store.fail(method, error)
    with pytest.raises(type(error)) as raised:
        await run_as_leader(store, lambda lead: asyncio.sleep(1))
    assert raised.value is error


@pytest.mark.parametrize("error", [StoreRejected("memory", "denied"), SchemaMissing("memory", "no tables")], ids=repr)
@pytest.mark.parametrize("when", ["following", "after a term", "after an outage"])
@virtual_time
async def test_later_the_same_is_logged_and_tried_again(error: Exception, when: str) -> None:
    """Once the database has served, or was down first, what it refuses is a warning, and tried again."""
    server = MemoryServer()
    if when == "following":
        other = Process(server)
        await other.leads()
    process = Process(server)
    if when == "after an outage":
        process.store.fail("read", StoreUnavailable("memory", "down"), 2)
    if when == "after a term":
        lead = await process.leads()
        lead.resign()
        await until(lambda: process.lead is None)
    else:
        await asyncio.sleep(0.01)
    process.store.fail("read", error, 20)
    if when == "following":
        await end(other.task)
    await process.leads(60)
    assert any("denied" in waiting.error or "no tables" in waiting.error for waiting in process.log.of(Waiting))
    await end(process.task)


@pytest.mark.parametrize(("timeout", "longest"), [(0, 0.01), (5.0, 5.2), (0.5, 0.7)])
@virtual_time
async def test_a_wait_that_ends_while_another_leads(timeout: float, longest: float) -> None:
    """With `timeout` the wait ends with `LeaseHeld`, which tells the holder; 0 tries once."""
    server = MemoryServer()
    first = Process(server)
    lead = await first.leads()
    started = clock()
    with pytest.raises(LeaseHeld) as held:
        async with leadership(MemoryStore(server), "cron", timeout=timeout):
            pytest.fail("it was elected")
    assert timeout <= clock() - started <= longest
    assert (held.value.name, held.value.holder) == ("cron", lead.holder)
    assert held.value.waited == pytest.approx(clock() - started)
    assert str(held.value).startswith(f"lease 'cron' is held by {lead.holder}; gave up after {timeout:.1f} s")
    await end(first.task)


@pytest.mark.parametrize(("timeout", "longest"), [(0, ATTEMPT + 0.1), (5.0, 5.2), (20.0, 20.2)])
@pytest.mark.parametrize("fault", ["refuses", "hangs"])
@virtual_time
async def test_a_wait_that_ends_without_a_database(timeout: float, longest: float, fault: str) -> None:
    """If the database was never reached, the wait ends with `StoreUnavailable`, in time."""
    store = MemoryStore()
    if fault == "refuses":
        store.down = True
    else:
        store.lose_request("read", 1000)
    started = clock()
    with pytest.raises(StoreUnavailable) as raised:
        async with leadership(store, timeout=timeout):
            pytest.fail("it was elected")
    assert timeout <= clock() - started <= longest
    assert raised.value.store == "memory"


@pytest.mark.parametrize("timeout", [5.0, None])
@virtual_time
async def test_a_wait_that_is_long_enough(timeout: float | None) -> None:
    """A lease that becomes free in time is won; without a limit the wait goes on for as long as it takes."""
    server = MemoryServer()
    first = Process(server)
    await first.leads()
    asyncio.get_running_loop().call_later(4 if timeout else 3 * LONG, first.task.cancel)
    async with leadership(MemoryStore(server), "cron", timeout=timeout) as lead:
        assert lead.token == 2


@virtual_time
async def test_a_single_try_trusts_the_clock_of_the_database() -> None:
    """With a time-out of 0 a row that has expired by the database's clock is taken at once."""
    server = MemoryServer()
    first = Process(server)
    await first.leads()
    await first.crash()
    await asyncio.sleep(LEASE + 1)
    started = clock()
    async with leadership(MemoryStore(server), "cron", timeout=0) as lead:
        assert lead.token == 2
        assert clock() == started


@pytest.mark.parametrize("cancelled", [False, True])
@virtual_time
async def test_an_exchange_outlives_the_wait_for_it(cancelled: bool) -> None:
    """When the time is up, or the caller is cancelled, `run_apart` returns at once, and the exchange goes on."""

    async def exchange() -> str:
        await asyncio.sleep(2.0)
        return "answer"

    waiting = asyncio.create_task(run_apart(exchange, 5.0 if cancelled else 1.0))
    if cancelled:
        await asyncio.sleep(1.0)
        waiting.cancel()
    task, error = await waiting
    assert (error is not None) is cancelled
    assert not task.done()
    assert await task == "answer"
    task, error = await run_apart(exchange, 5.0)
    assert (task.result(), error) == ("answer", None)


@virtual_time
async def test_an_exchange_that_is_cancelled_before_it_begins_is_not_waited_for() -> None:
    """Somebody who cancels every task but the caller ends the wait at once."""
    mine = asyncio.all_tasks()
    waiting = asyncio.create_task(run_apart(lambda: asyncio.sleep(2.0), 5.0))
    await asyncio.sleep(0)
    [exchange] = asyncio.all_tasks() - mine - {waiting}
    exchange.cancel()
    began = clock()
    task, error = await waiting
    assert (task.cancelled(), error, clock()) == (True, None, began)
