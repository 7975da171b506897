"""Whatever a job raises ends its run and nothing else; what a signal's handler raises in it is the program's."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from loguru import logger

from aiolease import JobRegistry, LeadershipLost, leadership, run_as_leader
from aiolease.events import Lost
from aiolease.testing import MemoryServer, MemoryStore, virtual_time
from tests.test_jobs import START, Observed, a_term, memory, virtual

if TYPE_CHECKING:
    from loguru import Message

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 30.0
"""Seconds of real time within which everything here has to happen."""


class Odd(BaseException):
    """An error of the user's own."""


def raiser(error: BaseException) -> Callable[[], None]:
    """A function that raises, as click and argparse do: in a frame of its own."""

    def call() -> None:
        raise error

    return call


RAISED = [
    SystemExit(0),
    SystemExit(),
    SystemExit(3),
    SystemExit("wrong usage"),
    KeyboardInterrupt(),
    GeneratorExit(),
    asyncio.CancelledError(),
    StopIteration(1),
    StopAsyncIteration(),
    Odd("strange"),
    BaseExceptionGroup("several", [SystemExit(1), ValueError("x")]),
    ExceptionGroup("several", [ValueError("x")]),
]


@pytest.fixture
def log() -> Iterator[list[Message]]:
    """What was logged during the test."""
    records: list[Message] = []
    sink = logger.add(records.append, level="TRACE", format="{level} {message}")
    yield records
    logger.remove(sink)


@pytest.mark.parametrize("where", ["async", "thread", "unwinding from a time-out", "a final transaction"])
@pytest.mark.parametrize("error", RAISED, ids=repr)
def test_a_run_ends_alone(error: BaseException, where: str, log: list[Message]) -> None:
    """It is recorded as failed, its name and tick are in the log, and it and all others run at their next ticks."""
    jobs, observed, store = JobRegistry(), Observed(), memory()
    raises = raiser(error)
    limit = 1.0 if where == "unwinding from a time-out" else None

    async def in_the_loop() -> None:
        raises()

    async def unwinding() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            raises()

    function: Any = {"async": in_the_loop, "thread": raises, "unwinding from a time-out": unwinding}.get(where)

    if function is None:

        @jobs.every(10, name="bad")
        async def bad(run: Any) -> None:
            async with run.transaction(final=True):
                raises()
    else:
        jobs.every(10, name="bad", timeout=limit)(function)

    @jobs.every(10)
    async def good() -> None:
        await asyncio.sleep(2)

    @virtual
    async def test() -> None:
        async with a_term(jobs, store, on_event=observed) as lead:
            await asyncio.sleep(25)
            assert lead.is_leader
            history = await store.history("default", "bad")
        assert [run.status for run in history] == ["failed", "failed"]
        assert all(run.error for run in history)

    test()
    assert observed.started("bad") == observed.started("good") == [10, 20]
    assert [each.status for each in observed.finished("bad")] == ["failed", "failed"]
    assert [each.status for each in observed.finished("good")] == ["succeeded", "succeeded"]
    assert not [each for each in observed.events if isinstance(each, Lost)]
    told = [each.record["message"] for each in log if each.record["level"].name == "ERROR"]
    assert ["'bad' failed: " in line for line in told] == [True, True]
    assert [line[-30:] for line in told] == [f"(tick 2026-01-01 00:00:{tick} UTC)" for tick in (10, 20)]


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), Odd("strange")], ids=repr)
@pytest.mark.parametrize("threaded", [False, True], ids=["async", "thread"])
@virtual
async def test_a_run_that_unwinds_from_a_loss_ends_alone(error: BaseException, threaded: bool) -> None:
    """What a job raises while its lost term unwinds it is told, and the term ends as lost: the program goes on."""
    jobs, observed, store = JobRegistry(), Observed(), memory()
    raises, begun, go_on = raiser(error), asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def in_a_thread(run: Any) -> None:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(LIMIT)
        raises()

    async def in_the_loop() -> None:
        begun.set()
        try:
            await asyncio.sleep(1000)
        finally:
            raises()

    jobs.every(10, name="bad")(in_a_thread if threaded else in_the_loop)

    async def lose() -> None:
        async with leadership(store, on_event=observed) as lead:
            running = asyncio.create_task(jobs.run(lead))
            await begun.wait()
            store.server.take("default")
            go_on.set()
            await running

    with pytest.raises(LeadershipLost):
        await lose()
    assert [each.status for each in observed.finished("bad")] in (["lost"], ["failed"])


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), Odd("strange")], ids=repr)
@virtual_time
async def test_a_check_that_raises_anything_means_no(error: BaseException) -> None:
    """`eligible` may raise what it likes: the process does not lead, and goes on."""
    raises, wrong = raiser(error), False
    store = memory()

    async def eligible() -> bool:
        if wrong:
            raises()
        return True

    async def lead_until_unfit() -> None:
        nonlocal wrong
        async with leadership(store, eligible=eligible):
            wrong = True
            await asyncio.sleep(100)

    with pytest.raises(LeadershipLost) as lost:
        await lead_until_unfit()
    assert lost.value.reason == "ineligible"
    task = asyncio.create_task(run_as_leader(store, lambda lead: asyncio.sleep(1), eligible=eligible))
    await asyncio.sleep(100)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt()], ids=repr)
@virtual
async def test_what_ends_a_leader_only_call_is_its_callers(error: BaseException) -> None:
    """A call that `leader_only` lets in raises into its caller, as without it, and not into the loop."""
    jobs, raises = JobRegistry(), raiser(error)

    @jobs.leader_only
    async def call() -> None:
        raises()

    async with a_term(jobs, memory()) as lead:
        await asyncio.sleep(1)
        with pytest.raises(type(error)) as raised:
            await call()
        assert raised.value is error
        assert lead.is_leader


def test_another_threads_leader_only_call_gets_its_exit() -> None:
    """From a scheduler's thread with a loop of its own, the exit comes out there, and the leader's loop goes on."""
    jobs = JobRegistry()
    caught: list[BaseException] = []

    @jobs.leader_only
    async def call() -> None:
        raise SystemExit(4)

    async def elsewhere() -> None:
        try:
            await call()
        except SystemExit as raised:
            caught.append(raised)

    async def main() -> None:
        async with leadership(MemoryStore(MemoryServer(START))) as lead:
            running = asyncio.create_task(jobs.run(lead))
            async with asyncio.timeout(LIMIT):
                while not jobs.is_leader:
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(asyncio.run, elsewhere())
            assert lead.is_leader
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

    asyncio.run(main())
    assert [each.code for each in caught if isinstance(each, SystemExit)] == [4]


# -- real signals

PROGRAM = """
import asyncio, os, signal, sys, time
from loguru import logger
from aiolease import JobRegistry
from aiolease.testing import MemoryStore

logger.remove()
jobs, store = JobRegistry(), MemoryStore()
began = 0

@jobs.every(0.05)
async def job():
    global began
    began += 1
    if began == 1:
        {own}
    print("begins", flush=True)
    until = time.monotonic() + 20
    while time.monotonic() < until:
        time.sleep(0.01)

async def main():
    await jobs.serve(store)

def went_on():
    history = asyncio.run(store.history("default", "job"))
    first = next(run for run in history if run.status != "skipped")  # on a slow machine two ticks are due at once
    print("status", first.status, first.error, flush=True)

try:
    {start}
except KeyboardInterrupt:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is asked until it answers
    print("interrupted", flush=True)
    went_on()
except SystemExit as error:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("exit", error.code, flush=True)
    went_on()
else:
    print("returned", flush=True)
"""

WITH_RUNNER = "asyncio.run(main())"
WITHOUT_RUNNER = "asyncio.new_event_loop().run_until_complete(main())"
HANDLED = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); asyncio.run(main())"


@pytest.mark.parametrize("own", ["raise KeyboardInterrupt", "sys.exit(0)", "sys.exit('no')"])
@pytest.mark.parametrize(
    ("start", "number", "ends"),
    [
        (WITH_RUNNER, signal.SIGINT, "interrupted"),
        (WITHOUT_RUNNER, signal.SIGINT, "interrupted"),
        (HANDLED, signal.SIGTERM, "exit 7"),
    ],
    ids=["asyncio.run", "the default handler", "a handler that exits"],
)
def test_a_real_signal_reaches_the_program(own: str, start: str, number: signal.Signals, ends: str) -> None:
    """A job's own exit or interrupt ends its run only; then a signal that strikes in a job's frame ends the program."""
    program = textwrap.dedent(PROGRAM).replace("{own}", own).replace("{start}", start)
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        killer = threading.Timer(LIMIT, process.kill)
        killer.start()
        try:
            assert process.stdout.readline() == "begins\n", process.stderr.read()
            told = ""
            asked = threading.Event()

            def ask() -> None:  # the first Ctrl-C cancels asyncio.run's task, a second raises in the job's frame
                while not asked.wait(0.3) and process.poll() is None:
                    process.send_signal(number)

            asking = threading.Thread(target=ask)
            asking.start()
            told = process.stdout.readline()
            asked.set()
            asking.join()
            status = process.stdout.readline()
        finally:
            killer.cancel()
            process.kill()
        assert told.strip() == ends
        assert status.startswith("status failed "), status
