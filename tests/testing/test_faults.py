"""The server in memory, its clock, and every fault that can be played."""

# ruff: noqa: PT012 - the blocks are terms and transactions

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import get_args
from zoneinfo import ZoneInfo

import pytest

from aiolease import ConfigurationError, InvalidJob, LeadershipLost, StoreUnavailable, TransactionEnded, leadership
from aiolease.stores.batch import Batch, JobDefinition
from aiolease.stores.records import TermKey
from aiolease.testing import MemoryServer, MemoryStore, Method, job_run, virtual_time
from tests.testing.virtual_loop import Boom, loop
from tests.virtual import START

# -- the server


@virtual_time
async def test_the_servers_clock_starts_at_a_fixed_moment() -> None:
    """In virtual time the server's clock starts at a fixed moment, or at that given, and goes as the loop's does."""
    berlin = datetime(2026, 3, 29, 1, 30, tzinfo=ZoneInfo("Europe/Berlin"))  # half an hour before it is summer
    server, local = MemoryServer(), MemoryServer(berlin)
    async with leadership(MemoryStore(local)) as lead:
        assert (server.now(), local.now()) == (START, datetime(2026, 3, 29, 0, 30, tzinfo=UTC))
        await asyncio.sleep(3600)
        assert (server.now(), local.now()) == (START + timedelta(hours=1), datetime(2026, 3, 29, 1, 30, tzinfo=UTC))
        assert (local.now().tzinfo, lead.elected_at.tzinfo) == (UTC, UTC)


async def test_in_real_time_the_servers_clock_is_true() -> None:
    """On an ordinary loop the server's clock shows the true time."""
    assert abs(MemoryServer().now() - datetime.now(UTC)) < timedelta(seconds=1)


def test_a_moment_needs_a_time_zone() -> None:
    """A start, or a tick, without a time zone is refused at once: it would be another moment on another machine."""
    with pytest.raises(ConfigurationError, match=r"start=.*time zone"):
        MemoryServer(datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(ConfigurationError, match=r"tick=.*time zone"):
        job_run(tick=datetime(2026, 1, 1))  # noqa: DTZ001


@pytest.mark.parametrize("step", [3600.0, -3600.0])
@virtual_time
async def test_a_step_of_the_clock_is_the_servers_alone(step: float) -> None:
    """`step_clock` moves the server's clock by so much, and no process's: the leader leads on, a candidate waits."""
    server = MemoryServer()
    async with leadership(MemoryStore(server)) as lead:
        candidate = asyncio.create_task(leadership(MemoryStore(server)).__aenter__())
        await asyncio.sleep(15)
        before, at, left = server.now(), loop().time(), lead.remaining
        server.step_clock(step)
        assert server.now() - before == timedelta(seconds=step)
        assert (loop().time(), lead.remaining) == (at, left)
        await asyncio.sleep(600)
        lead.check()
        candidate.cancel()


@virtual_time
async def test_another_holder_takes_the_row() -> None:
    """`take` begins a newer term: the leader fences nothing more, and learns of it as it renews; then it is free."""
    server = MemoryServer()
    with pytest.raises(LeadershipLost) as lost:
        async with leadership(MemoryStore(server)) as lead:
            taken = server.take("default", "somebody", duration=50)
            assert (taken.holder, taken.token, server.leases["default"].holder) == ("somebody", 2, "somebody")
            assert lead.is_leader
            with pytest.raises(LeadershipLost):
                async with lead.transaction() as calls:
                    calls.append(pytest.fail)
            await asyncio.sleep(3600)
    assert lost.value.reason == "taken"
    server.take("default", duration=50)
    at = loop().time()
    async with leadership(MemoryStore(server)) as lead:
        assert 50 <= loop().time() - at < 50.1
        assert lead.token == 4


@virtual_time
async def test_a_leader_is_told_by_its_next_renewal() -> None:
    """Whose row was taken goes on until its next heartbeat, and not for longer."""
    server, at = MemoryServer(), loop().time()
    with pytest.raises(LeadershipLost, match="taken"):
        async with leadership(MemoryStore(server)):
            server.take("default")
            await asyncio.sleep(3600)
    assert loop().time() == at + 10


@virtual_time
async def test_stores_on_one_server_are_processes_of_one_fleet() -> None:
    """Two stores on a server compete for its leases; a store made without one has a server of its own."""
    server = MemoryServer()
    async with leadership(MemoryStore(server)):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600), leadership(MemoryStore(server)):
                pytest.fail("two leaders")
        async with leadership(MemoryStore(), timeout=0) as alone:
            assert alone.token == 1


# -- faults


TERM = TermKey("default", "me", 1)
ENROLMENT = JobDefinition(job="job", schedule="30", timezone="UTC")

Call = Callable[[MemoryStore], Awaitable[object]]


async def commit(store: MemoryStore) -> None:
    await (await store.begin()).commit(TERM)


CALLS: dict[str, Call] = {
    "read": lambda store: store.status("default"),
    "claim": lambda store: store.claim("other", "me", 30, seen=None, force=False),
    "renew": lambda store: store.renew("default", "me", 1, 2, 30),
    "release": lambda store: store.release("default", "me", 1),
    "resign": lambda store: store.resign("default"),
    "begin": lambda store: store.begin(),
    "commit": commit,
    "fence": lambda store: store.fence(None, TERM, within=10),
    "take_stock": lambda store: store.take_stock("default"),
    "enroll": lambda store: store.enroll(TERM, [ENROLMENT]),
    "record": lambda store: store.record(TERM, Batch()),
    "prune": lambda store: store.prune("default", ["job"], 1),
    "history": lambda store: store.history("default", "job"),
    "settle": lambda store: store.settle("default", "job"),
    "trigger": lambda store: store.trigger("default", "job"),
    "pause": lambda store: store.pause("default", "job"),
    "resume": lambda store: store.resume("default", "job"),
}
"""What sends each of the exchanges that a fault can strike."""


async def a_store() -> MemoryStore:
    """One that holds a lease, in its first term, and has a job."""
    store = MemoryStore()
    await store.claim("default", "me", 30, seen=None, force=False)
    await store.enroll(TERM, [ENROLMENT])
    store.sent.clear()
    return store


def fences(store: MemoryStore) -> int:
    """How many fenced exchanges took effect, but for the making of `a_store`."""
    return store.server.fences["default"].fence - 1


@pytest.mark.parametrize("method", get_args(Method))
@virtual_time
async def test_each_method_can_be_struck(method: Method) -> None:
    """A fault strikes the exchange of its name, as often as was said, and no other; `sent` tells what was sent."""
    store = await a_store()
    store.fail(method, Boom(), times=2)
    for other in CALLS.keys() - {method, "commit"}:
        await CALLS[other](store)
    for _ in range(2):
        store.sent.clear()
        with pytest.raises(Boom):
            await CALLS[method](store)
        assert store.sent[-1] == (method, loop().time())
    store = await a_store()
    store.fail(method, Boom())
    with pytest.raises(Boom):
        await CALLS[method](store)
    await CALLS[method](store)


@pytest.mark.parametrize("fault", ["lose_request", "lose_reply", "delay", "fail"])
def test_a_misspelt_method_is_an_error(fault: str) -> None:
    """A fault of an exchange that is never sent would never strike: it is refused, and the names are told."""
    more: dict[str, tuple[object, ...]] = {"delay": (1,), "fail": (Boom(),)}
    with pytest.raises(ValueError, match=r"'comit' is never sent; use one of read, .*, commit, .*resume"):
        getattr(MemoryStore(), fault)("comit", *more.get(fault, ()))


@virtual_time
async def test_a_lost_request_has_no_effect() -> None:
    """`lose_request`: the server never hears of it, and no answer comes; the next is as ever."""
    store = await a_store()
    store.lose_request("commit")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3600):
            await commit(store)
    assert fences(store) == 0
    await commit(store)
    assert fences(store) == 1


@virtual_time
async def test_a_lost_reply_has_its_effect() -> None:
    """`lose_reply`: the server does it, and no answer comes; the next is as ever."""
    store = await a_store()
    store.lose_reply("commit")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3600):
            await commit(store)
    assert fences(store) == 1
    await commit(store)
    assert fences(store) == 2


@virtual_time
async def test_a_lost_reply_may_be_a_refusal() -> None:
    """A refusal is an answer too, and as lost as any."""
    store = MemoryStore()
    store.lose_reply("trigger")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3600):
            await store.trigger("default", "unknown")
    with pytest.raises(InvalidJob):
        await store.trigger("default", "unknown")


@pytest.mark.parametrize("patience", [3600.0, 2.0])
@virtual_time
async def test_a_delayed_statement_takes_effect_later(patience: float) -> None:
    """`delay`: it takes effect after so many seconds, and is answered then, whether or not anybody still waits."""
    store = await a_store()
    store.delay("commit", 5)
    before = loop().time()
    sent = asyncio.create_task(asyncio.wait_for(commit(store), patience))
    await asyncio.sleep(4.9)
    assert fences(store) == 0
    await asyncio.sleep(0.2)
    assert fences(store) == 1
    (ended,) = await asyncio.gather(sent, return_exceptions=True)
    assert isinstance(ended, TimeoutError) == (patience < 5)
    assert loop().time() < before + 6


@virtual_time
async def test_a_delayed_refusal_is_answered_later() -> None:
    """A delayed statement that the server refuses raises when it is answered."""
    store, before = MemoryStore(), loop().time()
    store.delay("trigger", 5)
    with pytest.raises(InvalidJob):
        await store.trigger("default", "unknown")
    assert loop().time() == before + 5


@virtual_time
async def test_a_failed_exchange_has_no_effect() -> None:
    """`fail`: it raises what was said, and has no effect."""
    store = await a_store()
    error = StoreUnavailable("memory", "deadlock")
    store.fail("commit", error)
    with pytest.raises(StoreUnavailable) as raised:
        await commit(store)
    assert raised.value is error
    assert fences(store) == 0


@virtual_time
async def test_faults_of_one_method_follow_each_other() -> None:
    """Faults strike in the order in which they were set, one an exchange."""
    store = await a_store()
    store.fail("commit", Boom())
    store.lose_reply("commit")
    store.lose_request("commit")
    store.delay("commit", 5)
    effects = []
    for _ in range(5):
        done = fences(store)
        try:
            async with asyncio.timeout(10):
                await commit(store)
        except (Boom, TimeoutError) as error:
            effects.append((type(error).__name__, fences(store) - done))
        else:
            effects.append(("", fences(store) - done))
    assert effects == [("Boom", 0), ("TimeoutError", 1), ("TimeoutError", 0), ("", 1), ("", 1)]


@virtual_time
async def test_a_store_that_is_down_fails_at_once() -> None:
    """`down`: every exchange of this store fails, at once and without effect, and uses up no fault; not another's."""
    store = await a_store()
    other, before = MemoryStore(store.server), loop().time()
    store.fail("read", Boom())
    store.down = True
    for call in CALLS.values():
        with pytest.raises(StoreUnavailable):
            await call(store)
    assert (loop().time(), fences(store)) == (before, 0)
    await commit(other)
    store.down = False
    with pytest.raises(Boom):
        await store.read("default")
    await commit(store)
    assert fences(store) == 2


@virtual_time
async def test_latency_is_half_before_the_effect() -> None:
    """`latency`: each exchange takes so long, half of it before the server acts."""
    store = await a_store()
    store.latency = 4.0
    before = loop().time()
    sent = asyncio.create_task(store.fence(None, TERM, within=10))
    await asyncio.sleep(1.9)
    assert fences(store) == 0
    await asyncio.sleep(0.2)
    assert fences(store) == 1
    assert not sent.done()
    await sent
    assert loop().time() == before + 4


@virtual_time
async def test_a_network_that_swallows_everything_ends_the_term() -> None:
    """So long a latency that nobody waits for it is an outage without refusals: the term ends by its deadline."""
    store, at = MemoryStore(), loop().time()
    with pytest.raises(LeadershipLost, match="expired"):
        async with leadership(store) as lead:
            store.latency = 86_400.0
            await asyncio.sleep(3600)
    assert loop().time() - at < 30
    assert store.server.leases["default"].beat == 1
    assert lead.token == 1


@virtual_time
async def test_a_transaction_that_the_block_ended_can_be_played() -> None:
    """What cannot happen in memory can be told: a block that ended its transaction itself."""
    store, made = MemoryStore(), []
    store.fail("commit", TransactionEnded("memory"))
    async with leadership(store) as lead:
        with pytest.raises(TransactionEnded):
            async with lead.transaction() as calls:
                calls.append(lambda: made.append("never"))
        lead.check()
    assert made == []
