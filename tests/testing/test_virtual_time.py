"""Virtual time: hours take milliseconds, and nothing waits for real time."""

# ruff: noqa: PT012 - the blocks are terms and transactions

from __future__ import annotations

import asyncio
import random
import threading
import time
import unittest
from datetime import timedelta
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loguru import logger

from aiolease import JobRegistry, JobRun, LeadershipLost, leadership
from aiolease import testing as module
from aiolease.events import Event
from aiolease.testing import MemoryServer, MemoryStore, VirtualLoop, run_virtual, virtual_time
from tests.testing.virtual_loop import SOON, Boom, loop
from tests.virtual import START


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
    """A task that sleeps until a moment wakes at it, not before, by however little."""
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
