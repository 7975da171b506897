"""Processes that want one lease in virtual time, their timings, and what they tell."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import pytest

from aiolease import Leadership, LeadershipLost, run_as_leader
from aiolease.events import Event
from aiolease.stores.records import Lease
from aiolease.testing import MemoryServer, MemoryStore, VirtualLoop
from tests.virtual import START

LONG = 3600.0
LEASE, DEADLINE, HEARTBEAT, ATTEMPT, RETRY = 30.0, 25.0, 10.0, 5.0, 2.0
JITTER = 0.05

E = TypeVar("E", bound=Event)
T = TypeVar("T")


@contextmanager
def losing() -> Iterator[pytest.ExceptionInfo[LeadershipLost]]:
    """The block must be left with `LeadershipLost`. If that has a cause, as a failed assertion, the cause is raised."""
    with pytest.raises(LeadershipLost) as lost:
        yield lost
    if lost.value.__cause__ is not None:
        raise lost.value.__cause__


def clock() -> float:
    return asyncio.get_running_loop().time()


def virtual_loop() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


class Log:
    """An `on_event` that keeps what it was told, and when."""

    def __init__(self) -> None:
        self.entries: list[tuple[float, Event]] = []

    def __call__(self, event: Event) -> None:
        self.entries.append((clock(), event))

    def of(self, kind: type[E]) -> list[E]:
        return [event for _, event in self.entries if isinstance(event, kind)]

    def times(self, kind: type[Event]) -> list[float]:
        return [at for at, event in self.entries if isinstance(event, kind)]


def sent(store: MemoryStore, method: str) -> list[float]:
    return [at for name, at in store.sent if name == method]


async def until(condition: Callable[[], object], limit: float = LONG) -> None:
    """Waits until a condition is true; in virtual time this costs nothing."""
    async with asyncio.timeout(limit):
        while not condition():
            await asyncio.sleep(0.01)


async def end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Process:
    """One process of a fleet: its own network, its campaign, and a journal of when it led."""

    running: list[Process]

    def __init__(self, server: MemoryServer, fleet: list[Process] | None = None, **options: Any) -> None:
        self.store, self.log = MemoryStore(server), Log()
        self.fleet = [self] if fleet is None else fleet
        if fleet is not None:
            fleet.append(self)
        self.lead: Leadership | None = None
        self.terms: list[tuple[float, int]] = []
        self.body_for = LONG * 1000
        self.task = asyncio.create_task(run_as_leader(self.store, self.body, "cron", on_event=self.log, **options))

    async def body(self, lead: Leadership) -> None:
        assert not any(other.lead for other in self.fleet), "two leaders"
        self.lead = lead
        self.terms.append((clock(), lead.token))
        try:
            await asyncio.sleep(self.body_for)
        finally:
            self.lead = None

    async def crash(self) -> None:
        self.store.down = True
        await end(self.task)

    async def leads(self, limit: float = LONG) -> Leadership:
        await until(lambda: self.lead or self.task.done(), limit)
        if self.task.done():
            self.task.result()
        assert self.lead is not None
        return self.lead


async def elected(fleet: list[Process], limit: float) -> Process:
    await until(lambda: any(process.lead for process in fleet), limit)
    return next(process for process in fleet if process.lead)


def run_script(script: str, *, limit: float = 20) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=limit, check=False
    )


def row(*, age: float, now: float) -> Lease:
    """A lease of 30 s that was renewed `age` seconds ago by the database's clock, which shows `now`."""
    clock, renewed_at = START + timedelta(seconds=now), START + timedelta(seconds=now - age)
    times: Any = {"elected_at": renewed_at, "renewed_at": renewed_at, "expires_at": renewed_at + timedelta(seconds=30)}
    return Lease(name="cron", holder="a", token=1, beat=5, resign_token=None, now=clock, **times)
