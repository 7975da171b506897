"""Signals of programs that handle them, and forked children that have nothing to do with them: real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aiolease import Leadership, run_as_leader
from aiolease._election.signals import handled
from aiolease.testing import MemoryStore
from tests.printing import Printed
from tests.project import ROOT

LIMIT = 30.0
"""Seconds of real time within which everything here has to happen."""

PROGRAM = """
import asyncio, multiprocessing, os, signal, sys, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads: that is what is tried
from loguru import logger
from aiolease import JobRegistry, run_as_leader

logger.remove()
logger.add(lambda line: print("log", line.rstrip(), flush=True), level="INFO", format="{message}")
jobs = JobRegistry()
fork = multiprocessing.get_context("fork")

def say(*words):
    print(*words, flush=True)

BODY

async def main():
    MAIN

if sys.argv[2] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
say("returned")
"""

SERVE = "await jobs.serve(sys.argv[1], handle_signals=True, drain_timeout=100)"


class Program:
    """A process; what it prints is read as it comes."""

    def __init__(self, folder: Path, body: str, main: str = SERVE, loop: str = "asyncio") -> None:
        text = PROGRAM.replace("BODY", textwrap.dedent(body)).replace("MAIN", main)
        self.process = subprocess.Popen(
            [sys.executable, "-c", text, f"sqlite:///{folder}/jobs.db", loop],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.printed = Printed(self.process)

    @property
    def lines(self) -> list[str]:
        return self.printed.lines

    def prints(self, text: str) -> str:
        return self.printed.wait_for(text)

    def ends(self) -> int:
        status = self.process.wait(LIMIT)
        self.printed.until_the_end()
        return status

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # a session of its own: its children, too
        self.process.wait(LIMIT)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Starts programs on one file; they and their children are gone after the test."""
    programs: list[Program] = []

    def start(*arguments: Any, **options: Any) -> Program:
        programs.append(Program(tmp_path, *arguments, **options))
        return programs[-1]

    yield start
    for each in programs:
        each.close()
        each.printed.close()


TERMINATES = """
@jobs.every(0.1)
{kind}def job():
    child = fork.Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join(10)
    say("child ended with", child.exitcode)
    child.kill()
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("kind", ["", "async "], ids=["thread", "async"])
def test_a_child_is_terminated_alone(program: Callable[..., Program], kind: str, loop: str) -> None:
    """SIGTERM ends a forked child at once, even as it starts, and reaches no handler of its parent, which works on."""
    parent = program(TERMINATES.format(kind=kind), loop=loop)
    for _ in range(5):
        assert parent.prints("child ended with") == "child ended with -15"
    parent.process.send_signal(signal.SIGTERM)
    parent.prints("stops; running jobs have")
    assert parent.ends() == 0
    assert parent.lines[-1] == "returned"
    assert sum("stops" in line for line in parent.lines) == 1


FORKS = """
@jobs.every(0.1)
{kind}def job():
    if (pid := os.fork()) == 0:
        {child}
    say("child ended with", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.parametrize(
    ("child", "status"),
    [("sys.exit(0)", 0), ("sys.exit(5)", 5), ("sys.exit('no')", 1), ("raise ValueError", 1), ("return", 0)],
)
@pytest.mark.parametrize("kind", ["", "async "], ids=["thread", "async"])
def test_a_child_does_not_go_on_as_its_parent(
    program: Callable[..., Program], kind: str, child: str, status: int
) -> None:
    """A child that a job forks ends where the job ends: it runs nothing of its parent's loop."""
    parent = program(FORKS.format(kind=kind, child=child))
    for _ in range(3):
        assert parent.prints("child ended with") == f"child ended with {status}"
    parent.process.send_signal(signal.SIGTERM)
    assert parent.ends() == 0
    assert parent.lines.count("returned") == 1
    assert sum("released" in line for line in parent.lines) == 1


LONG = """
@jobs.every(0.1)
async def job():
    say("job begins")
    try:
        await asyncio.sleep(2)
        say("job ends")
    except asyncio.CancelledError:
        say("job was cancelled")
        raise
"""


def test_two_signals_of_a_process_group_are_one(program: Callable[..., Program]) -> None:
    """Signals within a second of the first, of one kind or two, cancel nothing: the running job finishes."""
    leader = program(LONG)
    leader.prints("job begins")
    leader.process.send_signal(signal.SIGTERM)
    leader.process.send_signal(signal.SIGINT)
    leader.prints("stops; running jobs have")
    leader.process.send_signal(signal.SIGTERM)
    assert leader.ends() == 0
    assert "job was cancelled" not in leader.lines
    assert leader.lines.count("job begins") == leader.lines.count("job ends") == 1


LEADS = """
async def body(lead):
    say("leads")
    try:
        await asyncio.sleep(1000)
    finally:
        lead.check()
        await asyncio.sleep(0.1)
        say("cleaned up")
        STAYS
"""
RUN_AS_LEADER = "await run_as_leader(sys.argv[1], body, handle_signals=True)"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_run_as_leader(program: Callable[..., Program], number: signal.Signals, loop: str) -> None:
    """The body is cancelled once and leads while it unwinds, the lease is released, and the call returns."""
    leader = program(LEADS.replace("STAYS", ""), main=RUN_AS_LEADER, loop=loop)
    leader.prints("leads")
    leader.process.send_signal(number)
    assert leader.ends() == 0
    ends = [
        next(i for i, line in enumerate(leader.lines) if text in line) for text in ("cleaned", "released", "return")
    ]
    assert ends == sorted(ends)


def test_a_second_signal_cancels_a_body_again(program: Callable[..., Program]) -> None:
    """A body whose clean-up takes long is cancelled again by a signal that comes a second later or more."""
    leader = program(LEADS.replace("STAYS", "await asyncio.sleep(1000)"), main=RUN_AS_LEADER)
    leader.prints("leads")
    leader.process.send_signal(signal.SIGTERM)
    leader.prints("cleaned up")
    enough = threading.Event()

    def insist() -> None:
        while not enough.wait(0.3) and leader.process.poll() is None:
            leader.process.send_signal(signal.SIGTERM)

    insisting = threading.Thread(target=insist)
    insisting.start()
    leader.prints("cancels its body again")
    enough.set()
    insisting.join()
    assert leader.ends() == 0
    assert leader.lines[-1] == "returned"


def test_a_follower_of_run_as_leader_ends_at_once(program: Callable[..., Program]) -> None:
    """A signal to a process that waits for its election ends the wait, and the log says that nothing ran."""
    leader = program(LEADS.replace("STAYS", ""), main=RUN_AS_LEADER)
    leader.prints("leads")
    follower = program(LEADS.replace("STAYS", ""), main=RUN_AS_LEADER)
    follower.prints("another instance leads")
    follower.process.send_signal(signal.SIGTERM)
    assert follower.ends() == 0
    assert "log SIGTERM: 'default' stops; this process does not lead, no job of it runs" in follower.lines
    assert "cleaned up" not in follower.lines


async def test_run_as_leader_touches_no_signal_unless_asked() -> None:
    """By default the handlers of the program stay; with ``handle_signals=True`` they are back when it returns."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    meanwhile = []

    async def body(lead: Leadership) -> None:
        meanwhile.append([signal.getsignal(number) for number in numbers])
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(LIMIT)

    async with asyncio.timeout(LIMIT / 2):
        await run_as_leader(MemoryStore(), body, handle_signals=True)
    assert meanwhile[0] != before
    assert [signal.getsignal(number) for number in numbers] == before


async def test_a_child_has_the_handlers_from_before() -> None:
    """A child of `os.fork` has the program's handlers, no descriptor that wakes a loop, and no blocked signal."""
    numbers = {signal.SIGTERM, signal.SIGINT}
    before = [signal.getsignal(number) for number in numbers]
    reading, writing = os.pipe()
    with handled([]):
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        pid = os.fork()
        if pid == 0:
            try:
                same = [signal.getsignal(number) for number in numbers] == before
                blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ()) & numbers
                os.write(writing, f"{same} {signal.set_wakeup_fd(-1)} {len(blocked)}".encode())
            finally:
                os._exit(0)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    os.waitpid(pid, 0)
    assert os.read(reading, 100) == b"True -1 0"
    os.close(reading)
    os.close(writing)
