"""The world: true time, and in it the processes, each with an event loop and clocks of its own.

One heap holds what the world does (a statement arrives, a fault strikes); beside it stand the loops. Whatever is due
first is done next.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from aiolease import _logging
from aiolease._election import leader
from tests.simulation.checker import Checker, Record, Violation
from tests.simulation.jobs import journaled
from tests.simulation.network import Server
from tests.simulation.process import Machine, Process, SimLoop

Main = Callable[[Process], Coroutine[Any, Any, None]]


class World:
    """True time, and everything in it; the same for the same seed.

    Args:
        seed: What everything is drawn from.
        checker: What takes the journal.
        main: What a process runs; it calls the `body` of its process.
        latency: Seconds that a message takes on average.
        hinted: Whether the database can tell candidates of a release; else they poll.
        tracing: Whether to keep a trace.
    """

    def __init__(
        self, seed: int, checker: Checker, main: Main, *, latency: float, hinted: bool, tracing: bool = False
    ) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = 0.0
        self.over = False
        self.latency = latency
        self.hinted = hinted
        self.failure: Violation | None = None
        self.main = main
        self.tracing = tracing
        self.trace: list[str] = []
        self.journal: list[Record] = []
        self.checker = checker
        self.server = Server(self)
        self.processes: list[Process] = []
        self._buried: list[Process] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._started: Counter[str] = Counter()

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Has the world do something later."""
        self._number += 1
        heapq.heappush(self._events, (self.now + seconds, self._number, call))

    def record(self, kind: Any, process: Process | None, token: int | None = None, **facts: Any) -> None:
        """Writes into the journal, and has it checked."""
        if self.over:
            return
        name = process.name if process else "server"
        record = Record(at=self.now, process=name, kind=kind, token=token, **facts)
        self.journal.append(record)
        if self.tracing:
            self.trace.append(str(record))
        try:
            self.checker.feed(record)
        except Violation as violation:  # raised by `run`: a process must not catch it
            self.fail(violation)

    def say(self, text: str) -> None:
        """A line of the trace that is no record."""
        if self.tracing and not self.over:
            self.trace.append(f"{self.now:9.3f}         . {text}")

    def fail(self, violation: Violation, cause: BaseException | None = None) -> None:
        """Ends the world with what must not be."""
        if not self.over:
            violation.__cause__ = cause
            self.failure = self.failure or violation

    def start(self, machine: Machine) -> None:
        """Starts a process on a machine."""
        self._started[machine.name] += 1
        self.processes.append(Process(self, f"{machine.name}.{self._started[machine.name]}", machine))

    def run(self, until: float, audit: Callable[[], None]) -> None:
        """Lets the world go on until that moment, and ends it with an audit.

        Raises:
            Violation: An invariant does not hold.
        """
        with ExitStack() as patches:
            state = random.getstate()
            patches.callback(random.setstate, state)
            random.seed(self.seed)
            patches.enter_context(patch.object(_logging, "_log", None))
            patches.enter_context(patch.object(leader.Leader, "watching", _watching))
            patches.enter_context(journaled())
            try:
                self._run(until)
                if self.failure is None:
                    audit()
            finally:
                self.over = True
                for process in self.processes + self._buried:
                    try:
                        process.bury()
                    except Violation as violation:  # the others have to be buried all the same
                        self.failure = self.failure or violation
        if self.failure is not None:
            raise self.failure

    def _run(self, until: float) -> None:
        self.after(until - self.now, lambda: None)
        while self.now < until and self.failure is None:
            process = min(self.processes, key=_due, default=None)
            if process is not None and process.due <= self._events[0][0]:
                self.now = process.due
                process.step()
                while process.due <= self.now < self._events[0][0] and self.failure is None:
                    process.step()  # what it does at once
                if process.state == "gone":
                    self.processes.remove(process)
                    self._buried.append(process)
            else:
                self.now, _, call = heapq.heappop(self._events)
                call()
        if self.failure is None:
            self.checker.finish(self.now)


def _due(process: Process) -> float:
    return process.due


@contextmanager
def _watching(keeper: leader.Leader) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimLoop)
    with loop.process.watched(keeper._next_deadline, keeper._wake.set):
        yield
