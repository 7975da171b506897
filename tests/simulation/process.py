"""One process of the simulation: a loop that is stepped from outside, the clocks of its machine, its life and death.

A loop runs one iteration at a time, so a process that is stopped is one that is not stepped, one that crashed is never
stepped again, and one whose clocks drift has a `time` that is scaled.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, cast

from aiolease import BodyStuck, Event, Leadership, Lost, Resigned, _clock
from aiolease._election.timings import Timings
from aiolease.events import Notice, RunStarted
from tests.simulation.checker import POLITE, Violation
from tests.simulation.network import Link, SimStore

if TYPE_CHECKING:
    from tests.simulation.jobs import Duty
    from tests.simulation.world import World

_DAWN = 1000.0
"""What every loop's clock shows as its process starts."""

_FOREVER = float("inf")

_SLICE = 1.0
"""The longest sleep of the watchdog's thread in `aiolease._election.watchdog`."""


class _NoSelector:
    """There are no files to wait for."""

    def select(self, timeout: float | None) -> list[Any]:
        return []


class SimLoop(asyncio.BaseEventLoop):
    """The event loop of one process."""

    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    _run_once: Callable[[], None]
    _timer_cancelled_count: int

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process
        self._selector = _NoSelector()
        self._clock_resolution = 1e-6  # rounding between the clocks must not make a timer wait for nothing

    def time(self) -> float:
        return self.process.monotonic()

    def _process_events(self, _: list[Any]) -> None:
        """No files, no events."""

    def step(self) -> None:
        """Runs one iteration: all that is ready now."""
        events._set_running_loop(self)
        try:
            self._run_once()
        finally:
            events._set_running_loop(None)

    def due(self) -> float:
        """When there is something to run, by this loop's clock."""
        if self._ready:
            return 0.0
        while self._scheduled and self._scheduled[0].cancelled():
            heapq.heappop(self._scheduled)._scheduled = False  # type: ignore[attr-defined]
            self._timer_cancelled_count -= 1
        return self._scheduled[0].when() if self._scheduled else _FOREVER


@dataclass(frozen=True, slots=True)
class Machine:
    """What a process has before it starts.

    Attributes:
        name: Of the machine; each process on it adds a number.
        timings: Of the lease; processes may differ.
        rate: How fast its clocks go.
        skew: How far its wall clock is off, in seconds.
    """

    name: str
    timings: Timings
    rate: float
    skew: float


class Process:
    """A candidate: one operating system process on a machine of its own.

    Attributes:
        name: Its name in the journal; a restarted one has a new name.
        state: What the operating system lets it do.
        fit: What its `eligible` says.
        lead: The term whose body runs here.
        duties: The jobs that it has registered.
        drained: What ends it in order, if it has anything but a cancellation for that.
    """

    def __init__(self, world: World, name: str, machine: Machine) -> None:
        self.world = world
        self.name = name
        self.machine = machine
        self.timings = machine.timings
        self.state: Literal["running", "stopped", "gone"] = "running"
        self.fit = True
        self._unfit_since = 0.0
        self.leaving = False
        self.lead: Leadership | None = None
        self.duties: list[Duty] = []
        self.drained: asyncio.Event | None = None
        self.link = Link(self)
        self.store = SimStore(self)
        self.due = _FOREVER
        self._well = False
        self._troubles = 0  # moments at which it was found to be in trouble
        self._started_at = world.now
        self._slept = 0.0
        self._stood_still = 0.0
        self._told: dict[tuple[str, datetime], float] = {}  # starts of runs: how long it had stood still by then
        self._inbox: list[Callable[[], None]] = []
        self._countdown: tuple[int, Callable[[], None]] | None = None
        self._watch: tuple[Callable[[], float], Callable[[], None]] | None = None
        self._asleep = False
        self.loop = SimLoop(self)
        self.loop.set_exception_handler(self._unhandled)
        context = copy_context()
        context.run(_clock.replaced.set, self.boot_clock)
        self.main = self.loop.create_task(world.main(self), context=context)
        self.main.add_done_callback(self._left)
        self.reckon()
        self.look_well()

    # -- its clocks

    def monotonic(self) -> float:
        """The loop's clock: goes on while the process is stopped, but not while the machine sleeps."""
        return self._shown(self.world.now)

    def _shown(self, now: float) -> float:
        return _DAWN + (now - self._started_at - self._slept) * self.machine.rate

    def boot_clock(self) -> float:
        """The clock of the deadlines: counts the machine's sleep."""
        return 5 * _DAWN + (self.world.now - self._started_at) * self.machine.rate

    def reckon(self) -> None:
        """Reckons the true time at which its loop is to be stepped next."""
        if self.state != "running":
            self.due = _FOREVER
        else:
            local = self.loop.due()
            due = max(self._started_at + self._slept + (local - _DAWN) / self.machine.rate, self.world.now)
            # A clock that shows a rounding less than a timer waits for would have it wait for nothing, for ever.
            while self._shown(due) < local < _FOREVER:
                due = math.nextafter(due, _FOREVER)
            self.due = due

    # -- its life

    def step(self) -> None:
        self.loop.step()
        if self._countdown is not None:
            steps, strike = self._countdown
            self._countdown = (steps - 1, strike) if steps > 1 else None
            if steps <= 1:
                strike()
        self.reckon()

    def after_steps(self, steps: int, strike: Callable[[], None]) -> None:
        """Does `strike` after so many further iterations of its loop: in the midst of something, not between."""
        if steps:
            self._countdown = (steps, strike)
        else:
            strike()

    def spare(self) -> None:
        """What was to be done after some steps is not done."""
        self._countdown = None

    def deliver(self, call: Callable[[], None]) -> None:
        """Something arrives from outside; read once the process runs."""
        if self.state == "running":
            self.loop.call_soon(call)
            self.reckon()
        elif self.state == "stopped":
            self._inbox.append(call)

    def stop(self, *, asleep: bool) -> None:
        """SIGSTOP, or its machine is suspended."""
        if self.state == "running":
            self.state, self._asleep, self._stopped_at = "stopped", asleep, self.world.now
            self.world.record("stopped", self, note="suspended" if asleep else "frozen")
            self.reckon()
            self.look_well()

    def resume(self) -> None:
        if self.state != "stopped":
            return
        self.state = "running"
        self._stood_still += self.world.now - self._stopped_at
        # A sleeping machine's timers are late by all of it; the watchdog's thread notices within a slice.
        self._slept += self.world.now - self._stopped_at if self._asleep else 0.0
        self.world.record("resumed", self, lasts=(_SLICE * 1.02 if self._slept else 0.0) + 0.005)
        inbox, self._inbox = self._inbox, []
        for call in inbox:
            self.loop.call_soon(call)
        if self._slept:
            self.world.after(self.world.random.uniform(0, _SLICE), self._look)
        self.reckon()
        self.look_well()

    def crash(self) -> None:
        """It is gone, with all its tasks; what it has sent is still under way."""
        if self.state != "gone":
            self.state = "gone"
            self.reckon()
            self.look_well()
            self.world.record("gone", self, note="crashed")

    def leave(self) -> None:
        """SIGTERM, which it takes as `asyncio.run` does, the main task is cancelled, or drains by; the second kills."""
        self.leaving = True
        self.look_well()
        self.deliver(self._end)
        self.world.after(4 * self.timings.lease_duration + 2.0, self._has_ended)

    def _end(self) -> None:
        if self.drained is not None and not self.drained.is_set():
            self.drained.set()
        elif not self.main.done():
            self.main.cancel()

    def _has_ended(self) -> None:
        """Whether or not the database can be reached, it has ended by now, but for a body that takes its time."""
        if self.state == "running" and self.lead is None and not self._slept:
            self.world.fail(Violation(f"{self.name} was told to end, and goes on"))

    def _left(self, main: asyncio.Task[None]) -> None:
        if self.state == "gone":
            return
        self.state = "gone"
        self.look_well()
        error = None if main.cancelled() else main.exception()
        self.world.record("gone", self, note="exited" if error is None else f"exited: {error!r}")
        if error is not None and not isinstance(error, Oops):
            self.world.fail(Violation(f"{self.name} ended with {error!r}"), error)

    def bury(self) -> None:
        """Ends whatever of it is left, crashed or not, so that nothing outlives the simulation."""
        self.link.up = False
        self.main.cancel()
        for _ in range(100_000):
            if self.loop.due() == _FOREVER:
                break
            self.state = "running"  # also once its program has ended: what that left behind has its own time limit
            self.reckon()
            self.world.now = max(self.world.now, self.due)
            self.loop.step()
        left = asyncio.all_tasks(self.loop)
        for task in left:  # what they still do when they are collected would disturb somebody else
            with suppress(RuntimeError):
                cast(Coroutine[Any, Any, Any], task.get_coro()).close()
        self.loop.close()
        if left:
            raise Violation(f"{self.name} left tasks behind: {left}")

    def unfit(self) -> None:
        """It is not fit to lead any more; if it leads, and nothing is in the way, it has stopped before long."""
        self.fit, self._unfit_since = False, self.world.now
        lead, troubles, timings, since = self.lead, self._troubles, self.timings, self.world.now

        def stopped() -> None:
            undisturbed = self._troubles == troubles and not self._slept and not self.fit
            undisturbed = undisturbed and self._unfit_since == since  # and was not fit meanwhile
            if undisturbed and lead is not None and lead is self.lead and lead.is_leader:
                self.world.fail(Violation(f"{self.name} leads on though it is not fit to"))

        self.world.after((timings.heartbeat_interval + timings.attempt) * 1.02 + 0.5, stopped)

    # -- what it does

    def began(self, lead: Leadership) -> None:
        """The body of a term begins here."""
        if not self.fit and self.world.now > self._unfit_since + 3 * self.timings.attempt + 0.5:
            self.world.fail(Violation(f"{self.name} leads though it has long not been fit to"))
        self.lead = lead
        self.world.record("began", self, lead.token)

    def ended(self, lead: Leadership) -> None:
        """It has ended; if nothing is in the way, the lease is to be released before long."""
        self.lead = None
        self.world.record("ended", self, lead.token)
        troubles = self._troubles

        def released() -> None:
            row = self.world.server.leases[lead.name]
            if row.held_by(lead.holder, lead.token) and self._troubles == troubles:
                self.world.fail(Violation(f"term {lead.token} of {self.name} ended in order, and was not released"))

        if lead.term.ended not in {"expired", "taken"} and self.state == "running" and self.link.clean:
            self.world.after(self.timings.attempt + 40 * self.world.latency + 0.5, released)

    # -- what it tells

    def observe(self, event: Event) -> None:
        """The `on_event` of its leadership."""
        if isinstance(event, Lost | Resigned):
            note = getattr(event, "reason", "resigned")
            self.world.record("told", self, event.token, lasts=self.timings.unwind, note=note)
        elif isinstance(event, Notice) and event.severity == "CRITICAL":
            self.world.fail(Violation(f"{self.name}: {event.text}"))
        elif isinstance(event, BodyStuck):
            self.world.record("stuck", self, event.token, note="" if event.renewing else "not renewing any more")
        elif isinstance(event, RunStarted):
            self._told[event.job, event.tick] = self._stood_still
        if self.world.tracing and not isinstance(event, Lost | Resigned | BodyStuck):
            self.world.say(f"{self.name}: {event.phrase}")

    def stood_still_since_told(self, job: str, tick: datetime) -> float:
        """Seconds for which it was stopped since it told that a run starts, which then has not begun yet."""
        return self._stood_still - self._told.pop((job, tick))

    def look_well(self) -> None:
        """Notes whether it could lead, if that has changed."""
        able = self.state == "running" and self.link.clean
        self._troubles += not able
        well = able and self.fit and not self.leaving
        if well != self._well:
            self._well = well
            self.world.record("well" if well else "unwell", self)

    def _unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not self.world.over:
            self.world.fail(Violation(f"{self.name}: {context}"), context.get("exception"))

    # -- its watchdog: a thread in life, here what that thread does

    @contextmanager
    def watched(self, deadline: Callable[[], float], wake: Callable[[], None]) -> Iterator[None]:
        self._watch = (deadline, wake)
        try:
            yield
        finally:
            self._watch = None

    def _look(self) -> None:
        """After a suspension: wakes the guard of a term at its deadline, however late the loop's timers are."""
        if self.state != "running" or self._watch is None:
            return
        deadline, wake = self._watch
        left = deadline() - self.boot_clock()
        if left <= 0:
            self.deliver(wake)
        else:
            self.world.after(min(left, _SLICE), self._look)


class Oops(Exception):
    """A body of the simulation fails."""


async def unwind(process: Process) -> asyncio.CancelledError | None:
    """The clean-up of a body: mostly quick, sometimes as slow as it may be, sometimes slower, whatever is cancelled."""
    chance, loop, timings = process.world.random, asyncio.get_running_loop(), process.timings
    takes = chance.choices(
        [
            0.0,
            timings.unwind * chance.uniform(0, POLITE),
            timings.unwind * POLITE,
            timings.unwind * chance.uniform(1, 4),
            timings.lease_duration * chance.uniform(0.5, 2),
        ],
        [8, 4, 4, 1, 1],
    )[0]
    until, cancelled = loop.time() + takes, None
    while loop.time() < until and not process.world.over:
        try:
            await asyncio.sleep(until - loop.time())
        except asyncio.CancelledError as error:
            cancelled = cancelled or error  # the first: it may be from outside
    return cancelled
