"""What `aiolease.testing` promises to those who test an application with it: virtual time, each fault, `job_run`."""

# ruff: noqa: PT012 - the blocks are terms and transactions

from __future__ import annotations

import asyncio
import random
import threading
import time
import unittest
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from zoneinfo import ZoneInfo

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loguru import logger

from aiolease import (
    CommitUnknown,
    ConfigurationError,
    InvalidJob,
    JobRegistry,
    JobRun,
    LeadershipLost,
    StoreUnavailable,
    TransactionEnded,
    current_leadership,
    leadership,
)
from aiolease import testing as module
from aiolease.errors import RunEnded
from aiolease.events import Event
from aiolease.stores.records import Batch, JobDefinition, TermKey
from aiolease.testing import MemoryServer, MemoryStore, Method, VirtualLoop, job_run, run_job, run_virtual, virtual_time

START = datetime(2026, 1, 1, tzinfo=UTC)
SOON = 5.0
"""Seconds of real time within which everything here has to happen."""


class Boom(Exception):
    pass


def loop() -> VirtualLoop:
    running = asyncio.get_running_loop()
    assert isinstance(running, VirtualLoop)
    return running


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has time that stands still noticed sooner."""
    monkeypatch.setattr(module, "_SAYS_AFTER", 0.1)
    monkeypatch.setattr(module, "_PATIENCE", 0.2)


# -- virtual time


def test_hours_take_milliseconds() -> None:
    """A lease is held and renewed for six hours, and every sleep and time-out ends at its moment, in no real time."""
    began = time.monotonic()

    async def main() -> None:
        started = loop().time()
        async with leadership(MemoryStore()) as lead:
            await asyncio.sleep(5 * 3600)
            assert loop().time() == started + 5 * 3600
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1800):
                    await asyncio.sleep(3600)
            with anyio.move_on_after(1800) as scope:
                await anyio.sleep_forever()
            assert scope.cancelled_caught
            assert loop().time() == started + 6 * 3600
            lead.check()

    run_virtual(main())
    assert time.monotonic() - began < SOON


async def journal_of_a_failover() -> list[tuple[object, ...]]:
    """All that happens in two processes, one of which loses the database and comes back."""
    journal: list[tuple[object, ...]] = []
    server = MemoryServer()

    def process(name: str, store: MemoryStore) -> Any:
        jobs = JobRegistry()

        @jobs.every(7)
        async def job(run: JobRun) -> None:
            journal.append((loop().time(), name, run.tick))

        def observe(event: Event) -> None:
            journal.append((loop().time(), name, type(event).__name__, getattr(event, "token", None)))

        return jobs.background(store, on_event=observe)

    first, second = MemoryStore(server), MemoryStore(server)
    async with process("first", first), process("second", second):
        await asyncio.sleep(25)
        first.down = True
        await asyncio.sleep(120)
        first.down = False
        second.lose_reply("renew", 3)
        await asyncio.sleep(60)
    return journal


def test_every_run_is_the_same() -> None:
    """Two runs have the same events and runs at the same moments, whatever the state of `random`, which they leave."""
    random.seed(1)
    first = run_virtual(journal_of_a_failover())
    random.seed(2)
    state = random.getstate()
    second = run_virtual(journal_of_a_failover())
    assert random.getstate() == state
    assert len(first) > 60
    assert {name for _, name, *_ in first} == {"first", "second"}
    assert first == second


@virtual_time
async def test_no_timer_fires_before_its_moment() -> None:
    """Who sleeps for the rest of a time has slept it out: moments a fraction of a nanosecond apart are kept apart."""
    moment, turns = loop().time() + 1, 0

    async def sleep_until(moment: float) -> None:
        nonlocal turns
        while (left := moment - loop().time()) > 0:
            turns += 1
            assert turns < 1000, "it spins"
            await asyncio.sleep(left)

    async def wait_until(moment: float) -> None:
        for _ in range(2):  # out of step with the others
            await asyncio.sleep(0)
        await sleep_until(moment)

    async with asyncio.TaskGroup() as tasks:
        for after in (0, 4e-11, 4e-11, 9e-11):
            tasks.create_task(sleep_until(moment + after))
            tasks.create_task(wait_until(moment + after))
    assert turns <= 16
    assert loop().time() == moment + 9e-11


@pytest.mark.usefixtures("impatient")
def test_time_that_stands_still_is_an_error() -> None:
    """Where every task waits for what nothing will do, the run ends with an error that says so, and tasks clean up."""
    cleaned = []

    async def main() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(3600)
            cleaned.append(loop().time())

    with pytest.raises(RuntimeError, match="virtual time stands still: every task waits"):
        run_virtual(main())
    assert cleaned == [1000 + 3600]


def test_a_thread_takes_no_virtual_time() -> None:
    """While the loop waits for a thread no timer fires; `asyncio.to_thread` and an executor of one's own are the same.

    The loop then closes without a warning.
    """

    async def main() -> None:
        async with leadership(MemoryStore()) as lead, asyncio.timeout(0.01):
            before = loop().time()
            await asyncio.to_thread(time.sleep, 0.05)
            await loop().run_in_executor(None, time.sleep, 0.05)
            assert loop().time() == before
            await asyncio.to_thread(lead.check)

    run_virtual(main())


@virtual_time
async def test_a_def_job_takes_no_virtual_time() -> None:
    """A `def` job runs at each of its ticks, not hours later because it takes a moment; nothing is skipped."""
    jobs, ran = JobRegistry(), []

    @jobs.every(20)
    def job(run: JobRun) -> None:
        time.sleep(0.01)
        ran.append((loop_of_test.time() - 1000, run.tick))

    loop_of_test = loop()
    async with jobs.background(MemoryStore()):
        await asyncio.sleep(99)
    assert ran == [(after, START + timedelta(seconds=after)) for after in (20, 40, 60, 80)]


@pytest.mark.usefixtures("impatient")
def test_a_thread_that_does_not_end_is_an_error() -> None:
    """A `def` job that waits for what cannot come while time stands still ends the run with an error.

    For the clean-up time goes on, and does not wait for that thread again.
    """
    let_go, cleaned = threading.Event(), []

    async def main() -> None:
        jobs = JobRegistry()

        @jobs.every(10)
        def job() -> None:
            let_go.wait(SOON)

        async with jobs.background(MemoryStore()):
            try:
                await asyncio.sleep(100)
            finally:
                await asyncio.sleep(100)
                cleaned.append(loop().time())

    with pytest.raises(RuntimeError, match=r"virtual time stands still: a thread has worked for 0\.2 s: the job 'job'"):
        run_virtual(main())
    let_go.set()
    assert cleaned == [1000 + 10 + 100]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("how", ["to_thread", "executor", "job"])
def test_a_thread_that_takes_long_is_named(how: str) -> None:
    """Time that waits for a thread for longer than a moment says which, and goes on when the thread has ended."""
    told: list[str] = []
    sink = logger.add(lambda line: told.append(str(line)), level="WARNING", format="{message}")
    said = threading.Event()

    def slow_work(number: int = 0) -> None:
        until = time.monotonic() + SOON
        while not said.is_set() and time.monotonic() < until:
            said.wait(0.01)
            if told:
                said.set()

    async def main() -> None:
        if how == "to_thread":
            await asyncio.to_thread(slow_work, number=1)
        elif how == "executor":
            await loop().run_in_executor(None, slow_work, 1)
        else:
            jobs = JobRegistry()
            jobs.every(10)(slow_work)
            async with jobs.background(MemoryStore()):
                await asyncio.sleep(15)

    try:
        run_virtual(main())
    finally:
        logger.remove(sink)
    assert len(told) == 1
    assert told[0].startswith("virtual time stands still for 0.1 s already")
    assert "slow_work" in told[0]


@virtual_time
async def test_a_process_that_stood_still_has_lost_its_lease() -> None:
    """`advance` is a process that stood still: its timers fire late, it does not lead past its deadline."""
    server = MemoryServer()
    with pytest.raises(LeadershipLost) as lost:
        async with leadership(MemoryStore(server)) as lead:
            before, timer = server.now(), asyncio.create_task(asyncio.sleep(5))
            await asyncio.sleep(0)
            loop().advance(60)
            assert not timer.done()
            assert not lead.is_leader
            assert server.now() - before == timedelta(seconds=60)
            await asyncio.sleep(1)
    assert lost.value.reason == "expired"
    assert timer.done()


def test_virtual_time_suits_every_runner() -> None:
    """A test stays what it was for its runner: name, docstring, arguments, a method, below `@given`, its exception."""
    held: list[int] = []

    @virtual_time
    async def hold(seconds: int, *, more: int = 0) -> int:
        """Holds a lease."""
        async with leadership(MemoryStore()):
            await asyncio.sleep(seconds + more)
        held.append(seconds + more)
        return seconds + more

    assert (hold.__name__, hold.__doc__, hold(3, more=4)) == ("hold", "Holds a lease.", 7)

    class Case(unittest.TestCase):
        @virtual_time
        async def test_hold(self) -> None:
            await asyncio.sleep(3600)
            assert loop().time() == 4600

    outcome = unittest.TestResult()
    Case("test_hold").run(outcome)
    assert (outcome.testsRun, outcome.wasSuccessful()) == (1, True)

    @settings(max_examples=5, database=None)
    @given(st.integers(1, 100))
    @virtual_time
    async def drawn(seconds: int) -> None:
        held.append(seconds)
        await asyncio.sleep(seconds)

    drawn()
    assert len(held) > 1

    @virtual_time
    async def fail() -> None:
        raise Boom

    with pytest.raises(Boom):
        fail()


def test_anyio_runs_in_virtual_time() -> None:
    """The loop is an option of anyio's, and with it of its plugin for pytest."""

    async def main() -> float:
        await anyio.sleep(3600)
        return loop().time()

    assert anyio.run(main, backend_options={"loop_factory": VirtualLoop}) == 4600


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


# -- a run to call a job with


async def pay(run: JobRun) -> None:
    async with run.transaction(final=True) as calls:
        calls.append(lambda: run.context.append(run.tick))


def test_a_run_is_what_was_asked_for() -> None:
    """`job_run` gives the job, tick, attempt and context that were given, the tick in UTC; by default it is now."""
    tick = datetime(2026, 7, 1, 9, tzinfo=ZoneInfo("Europe/Berlin"))
    context = object()
    run = job_run("pay", tick=tick, attempt=3, context=context)
    assert (run.job, run.tick, run.attempt, run.context) == ("pay", tick, 3, context)
    assert run.tick.tzinfo is UTC
    run = job_run()
    assert (run.job, run.attempt, run.context) == ("job", 1, None)
    assert abs(run.tick - datetime.now(UTC)) < timedelta(seconds=SOON)
    assert run.leadership.is_leader
    assert run.leadership.remaining > 3600


def test_a_run_ends_when_its_term_is_resigned() -> None:
    """`check` returns until ``leadership.resign()``, then raises, in a thread and without a loop too."""
    run, seen = job_run(), list[str]()

    def look() -> None:
        try:
            run.check()
        except LeadershipLost as lost:
            seen.append(lost.reason)
        else:
            seen.append("leads")

    for _ in range(2):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join(SOON)
        look()
        run.leadership.resign()
    assert seen == ["leads", "leads", "resigned", "resigned"]
    assert not run.leadership.is_leader


@virtual_time
async def test_a_run_stands_through_virtual_hours() -> None:
    """In virtual time a run's term is that of the loop's clock: it lasts for hours of it."""
    run = job_run()
    left = run.leadership.remaining
    await asyncio.sleep(10 * 3600)
    run.check()
    assert run.leadership.remaining == left - 10 * 3600


@virtual_time
async def test_a_run_has_transactions() -> None:
    """A run's transaction makes its calls when it commits: not if the block raises, nor after the term."""
    run, made = job_run(), []
    async with run.transaction() as calls:
        calls.append(lambda: made.append("once"))
        assert made == []
    assert made == ["once"]
    with pytest.raises(Boom):
        async with run.transaction() as calls:
            calls.append(lambda: made.append("never"))
            raise Boom
    run.leadership.resign()
    with pytest.raises(LeadershipLost):
        async with run.transaction() as calls:
            calls.append(lambda: made.append("never"))
    assert made == ["once"]


@pytest.mark.parametrize("run_in", [run_virtual, asyncio.run])
def test_a_final_transaction_succeeds_once(run_in: Callable[[Any], Any]) -> None:
    """A final transaction records the run's success, which the store's history shows; a second one is refused."""
    store, paid = MemoryStore(), list[datetime]()
    run = job_run("pay", store=store, context=paid)
    run_in(pay(run))
    with pytest.raises(RunEnded):
        run_in(pay(run))
    assert paid == [run.tick]
    (record,) = run_in(store.history("default", "pay"))
    assert (record.tick, record.status) == (run.tick, "succeeded")


@virtual_time
async def test_a_final_fence_succeeds_once() -> None:
    """`fence(final=True)` records the success as well."""
    store = MemoryStore()
    run = job_run("pay", store=store)
    await run.fence(None, final=True)
    assert [record.status for record in await store.history("default", "pay")] == ["succeeded"]
    with pytest.raises(RunEnded):
        await run.fence(None, final=True)


@pytest.mark.parametrize(("fault", "paid"), [("lose_reply", 1), ("lose_request", 0)])
@virtual_time
async def test_a_runs_store_has_faults(fault: str, paid: int) -> None:
    """The faults of the store that it was given strike a run: its commit is unknown, whether or not it took effect."""
    store, made = MemoryStore(), list[datetime]()
    getattr(store, fault)("commit")
    with pytest.raises(CommitUnknown):
        await pay(job_run("pay", store=store, context=made))
    assert len(made) == paid


@virtual_time
async def test_runs_are_independent() -> None:
    """Each run has a term and a store of its own, unless it is given one."""
    first, second = (job_run("pay", context=[]) for _ in range(2))
    first.leadership.resign()
    second.check()
    await pay(second)
    assert len(second.context) == 1
    with pytest.raises(LeadershipLost):
        await pay(first)


# -- one job of a registry

till = JobRegistry()
seen: list[Any] = []


@till.every(3600)
async def count(run: JobRun) -> None:
    run.context.append((run.job, run.attempt, run.tick, current_leadership() is run.leadership))


@till.every(3600, name="in-a-thread")
def count_in_a_thread(run: JobRun) -> None:
    run.context.append(threading.current_thread() is threading.main_thread())


@till.every(3600)
async def takes_nothing(days: int = 30) -> None:
    seen.append(days)


@till.every(3600, timeout=60)
async def takes_too_long() -> None:
    await asyncio.sleep(3600)


@till.every(3600, timeout=60)
async def swallows() -> None:
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(3600)


@till.every(3600)
async def pays(run: JobRun) -> None:
    async with run.transaction(final=True) as calls:
        calls.append(lambda: run.context.append("paid"))
    raise Boom


@till.every(3600)
async def fails() -> None:
    raise Boom


@till.every(3600)
async def exits() -> None:
    raise SystemExit(0)


@virtual_time
async def test_one_job_of_a_registry_runs_alone() -> None:
    """It is called as the leader would call it, once, with the run that was asked for; no other job runs."""
    context: list[Any] = []
    before = loop().time()
    await run_job(till, "count", context=context, tick=START, attempt=2)
    await run_job(till, "in-a-thread", context=context)
    await run_job(till, "takes_nothing")
    assert context == [("count", 2, START, True), False]
    assert seen == [30]
    assert loop().time() == before


@pytest.mark.parametrize(
    ("job", "raises", "status"),
    [
        ("takes_nothing", None, "succeeded"),
        ("takes_too_long", TimeoutError, "failed"),
        ("swallows", TimeoutError, "failed"),
        ("fails", Boom, "failed"),
        ("exits", SystemExit, "failed"),
        ("pays", Boom, "succeeded"),
    ],
)
@virtual_time
async def test_a_job_that_runs_alone_ends_as_in_the_ledger(
    job: str, raises: type[BaseException] | None, status: str
) -> None:
    """What it raises comes out as it is, its time-out holds, and the history says how the run ended."""
    store, context = MemoryStore(), list[Any]()
    with pytest.raises(raises) if raises else nullcontext():
        await run_job(till, job, store=store, context=context)
    (record,) = await store.history("default", job)
    assert record.status == status
    assert context == (["paid"] if job == "pays" else [])


@virtual_time
async def test_a_job_that_runs_alone_can_be_cancelled() -> None:
    """A time-out of the test's own reaches the job, and the run is lost."""
    store = MemoryStore()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10):
            await run_job(till, "takes_too_long", store=store)
    assert [record.status for record in await store.history("default", "takes_too_long")] == ["lost"]


async def test_a_job_that_is_not_there_does_not_run() -> None:
    """The error names the jobs that there are."""
    with pytest.raises(InvalidJob, match="count, exits, fails, in-a-thread"):
        await run_job(till, "cuont")
