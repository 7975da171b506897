"""What happens in one simulation, drawn from its seed: who takes part, what their bodies do, and what goes wrong."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from aiolease import (
    CommitUnknown,
    JobRegistry,
    Leadership,
    LeadershipLost,
    LeaseHeld,
    StoreUnavailable,
    TransactionEnded,
    leadership,
    run_as_leader,
)
from aiolease._election.timings import Timings
from tests.simulation.checker import Checker, Kind, Violation
from tests.simulation.jobs import Application
from tests.simulation.process import Machine, Oops, Process, unwind
from tests.simulation.world import World

Body = Callable[[Process, Leadership], Awaitable[None]]


def simulate(seed: int, *, tracing: bool = False, body: Body | None = None, mending: bool = False) -> World:
    """Runs one simulation; with a body of one's own, which has to write what `work` writes into the journal.

    With `mending` its processes run jobs that are tried again, and that people mend by hand.

    Raises:
        Violation: An invariant does not hold.
    """
    scenario = Scenario(seed, body, tracing=tracing, mending=mending)
    try:
        scenario.world.run(scenario.until, scenario.audit)
    except Violation as found:
        found.trace = scenario.world.trace
        raise
    return scenario.world


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a seed.

    Attributes:
        seed: The seed.
        found: What is wrong with it; empty if nothing is.
        happened: How often each kind of record came, if nothing is.
        mending: See `simulate`.
    """

    seed: int
    found: str
    happened: Counter[Kind]
    mending: bool = False

    @property
    def replay(self) -> str:
        """The command that shows it."""
        return f"python -m tests.simulation --seed {self.seed} --trace{' --mending' if self.mending else ''}"


def outcome_of(seed: int, *, mending: bool = False) -> Outcome:
    """Runs one simulation."""
    try:
        world = simulate(seed, mending=mending)
    except Violation as found:
        return Outcome(seed, str(found), Counter(), mending)
    return Outcome(seed, "", Counter(record.kind for record in world.journal), mending)


class Scenario:
    """One seed: machines, and a list of faults that ends early enough for somebody to lead in the end."""

    def __init__(self, seed: int, body: Body | None, *, tracing: bool, mending: bool) -> None:
        self._body = body or work
        self._calmed = False
        chance = random.Random(seed)
        lease = 3 * 10 ** chance.random()  # 3 to 30 s
        alike = chance.random() < 0.4
        self._machines = [
            Machine(
                name=f"p{number}",
                timings=_timings(chance, lease if alike else min(max(lease * 4 ** chance.uniform(-1, 1), 3.0), 30.0)),
                rate=1 + chance.uniform(-0.01, 0.01),
                skew=chance.uniform(-lease, lease),
            )
            for number in range(chance.randint(3, 7))
        ]
        timings = [machine.timings for machine in self._machines]
        longest = max(each.lease_duration for each in timings)
        attempt, retry = max(each.attempt for each in timings), max(each.retry_interval for each in timings)
        latency = 10 ** chance.uniform(-3.5, -1.7)
        # Asleep until the lease that it saw would have run out, and the answer is lost; then, on a row that was
        # written meanwhile, one whole lease by rule 8; then the pauses between attempts.
        takeover = 2 * longest * 1.02 + attempt + 3 * retry + 1.0
        # Two processes of three seeds run jobs, the others a body of their own.
        has_jobs = body is None and chance.random() < 0.67
        self._application = Application(chance, lease, mending=mending) if mending or has_jobs else None
        self._faults = _FAULTS | _MENDING if mending else _FAULTS
        self._checker = checker = Checker(
            takeover=takeover,
            handover=1.1 * retry + 40 * latency + 0.5,
            settled=1.1 * longest + attempt + 3 * retry + 1.0,
            overlapping=self._application.overlapping if self._application else (),
            max_running=self._application.max_running if self._application else None,
        )
        self.world = World(seed, checker, self._main, latency=latency, hinted=chance.random() < 0.75, tracing=tracing)
        self._chance = self.world.random
        for machine in self._machines:
            self.world.after(chance.choice([0.0, chance.uniform(0, lease)]), partial(self.world.start, machine))
        calm = chance.uniform(3, 6) * longest + 10
        self._settled = 3 * attempt + 2 * retry + 1.0
        self.until = calm + takeover + self._settled
        at = chance.uniform(0, lease)
        while at < calm:
            self.world.after(at, self._fault)
            at += chance.expovariate(1 / (longest * 0.7))
        self.world.after(calm, self._calm)

    # -- what a process runs

    async def _main(self, process: Process) -> None:
        timings, chance = process.timings, self._chance

        async def eligible() -> bool:
            return process.fit

        async def body(lead: Leadership) -> None:
            await self._body(process, lead)

        options = {name: getattr(timings, name) for name in timings.__slots__}
        options |= {"eligible": eligible, "on_event": process.observe}
        if self._application is not None:
            await self._run_jobs(process, self._application.registry(process), options)
            return
        if chance.random() < 0.7:
            await run_as_leader(process.store, body, **options)
        while not self.world.over:
            timeout = chance.choice([None, chance.uniform(0.5, 3) * timings.lease_duration])
            row = self.world.server.leases.get("default")
            lasts = 0.0 if row is None else (row.expires_at - row.renewed_at).total_seconds()
            if self._calmed or (timeout is not None and timings.lease_duration < lasts > timeout):
                timeout = None  # who gives up and begins anew never sees a longer lease run out (rule 8)
            try:
                async with leadership(process.store, timeout=timeout, **options) as lead:
                    await body(lead)
            except (LeaseHeld, LeadershipLost, StoreUnavailable):
                await asyncio.sleep(0.01)

    async def _run_jobs(self, process: Process, jobs: JobRegistry, options: dict[str, Any]) -> None:
        timings, chance = process.timings, self._chance
        how = chance.choice(["serve", "background", "by hand"])
        if how == "serve":
            await jobs.serve(process.store, **options)
        elif how == "background":
            process.drained = asyncio.Event()
            drain = timings.lease_duration * chance.uniform(0, 1)
            async with jobs.background(process.store, drain_timeout=drain, **options):
                await process.drained.wait()
            return
        while not self.world.over:
            try:
                async with leadership(process.store, **options) as lead:
                    await jobs.run(lead)
            except (LeadershipLost, StoreUnavailable):
                await asyncio.sleep(0.01)

    def audit(self) -> None:
        """The end: what is in the ledger."""
        if self._application is not None:
            self._application.close(self.world, self._checker, self._settled)

    # -- what goes wrong

    def _fault(self, victim: Process | None = None) -> None:
        chance, processes = self._chance, self.world.processes
        if self._calmed or not processes:
            return
        if self._application is not None:
            self._application.audit(self.world, self._checker)
        if victim is None or victim.state == "gone":
            leaders = [process for process in processes if process.lead is not None]
            victim = chance.choice(leaders if leaders and chance.random() < 0.6 else processes)
        fault = chance.choices(list(self._faults), list(self._faults.values()))[0]
        lasts = chance.uniform(0.02, 2.0) * victim.timings.lease_duration
        self.world.say(f"{fault} strikes {victim.name}")
        getattr(self, f"_{fault}")(victim, lasts)
        victim.look_well()
        if chance.random() < 0.4:  # they rarely come alone
            again = chance.uniform(0, 0.8) * victim.timings.lease_duration
            self.world.after(again, lambda: self._fault(victim))

    def _crash(self, process: Process, lasts: float) -> None:
        process.after_steps(self._chance.choice([0, self._chance.randint(1, 30)]), process.crash)
        self.world.after(lasts, lambda: self._restart(process.machine))

    def _restart(self, machine: Machine) -> None:
        if all(process.machine is not machine for process in self.world.processes):
            self.world.start(machine)

    def _freeze(self, process: Process, lasts: float, *, asleep: bool = False) -> None:
        steps = self._chance.choice([0, self._chance.randint(1, 30)])
        process.after_steps(steps, lambda: process.stop(asleep=asleep))
        self.world.after(lasts, process.resume)

    def _suspend(self, process: Process, lasts: float) -> None:
        self._freeze(process, lasts, asleep=True)

    def _cut(self, process: Process, lasts: float) -> None:
        link = process.link
        link.no_requests, link.no_replies = self._chance.choice([(True, True), (True, False), (False, True)])
        process.look_well()
        self.world.after(lasts, link.heal)

    def _refuse(self, process: Process, lasts: float) -> None:
        process.link.up = False
        self.world.after(lasts, process.link.heal)

    def _slow(self, process: Process, lasts: float) -> None:
        most = process.timings.attempt * self._chance.uniform(0.1, 1.2)
        process.link.slow = self._chance.choice([(most, most), (most, 0.0), (0.0, most)])
        self.world.after(lasts, process.link.heal)

    def _fade(self, process: Process, lasts: float) -> None:
        """The replies take ever longer, then nothing gets through."""
        process.link.slow = (0.0, process.timings.attempt)
        soon = process.timings.heartbeat_interval * self._chance.uniform(0.3, 1.3)
        self.world.after(soon, lambda: self._cut(process, lasts))

    def _late(self, process: Process, lasts: float) -> None:
        process.link.late = [lasts * self._chance.random() for _ in range(self._chance.randint(1, 3))]

    def _lag(self, process: Process, lasts: float) -> None:
        """The next batches of the ledger are given up, and take effect one beside the other."""
        attempt, chance = process.timings.attempt, self._chance
        process.link.late_batches = [attempt * chance.uniform(0.3, 2) for _ in range(chance.randint(2, 4))]
        self.world.after(lasts, process.link.heal)

    def _unanswered(self, process: Process, _: float) -> None:
        process.link.unanswered = self._chance.randint(1, 3)

    def _step(self, _: Process, __: float) -> None:
        chance = self._chance
        # By anything up to an hour, and by what is nearly a lease: there an error would show.
        lease = chance.choice(self._machines).timings.lease_duration * chance.uniform(0.3, 1.2)
        self._step_by(chance.choice([-1, 1]) * chance.choice([lease, 10 ** chance.uniform(-1, 3.556)]))

    def _steps(self, process: Process, lasts: float) -> None:
        """The clock goes back, and forward again soon: what the one hides of the other would show behind a renewal."""
        chance, timings = self._chance, process.timings
        forth = timings.lease_duration * chance.uniform(0.1, 1.2)
        if chance.random() < 0.7:
            self._step_by(-forth * chance.choice([1.0, chance.uniform(0.8, 1.2)]))
        lost = chance.random() < 0.7

        def forward() -> None:
            if self._calmed:
                return
            self._step_by(forth)
            if lost and process.state != "gone":  # nothing will show that the leader lives
                self._cut(process, lasts)

        self.world.after(timings.heartbeat_interval * chance.uniform(0.05, 1.2), forward)

    def _step_by(self, seconds: float) -> None:
        self.world.server.clock_offset += timedelta(seconds=seconds)
        self.world.server.stepped_at = self.world.now
        self.world.record("stepped", None, lasts=seconds)

    def _leave(self, process: Process, lasts: float) -> None:
        process.leave()
        self.world.after(lasts, lambda: self._restart(process.machine))

    def _resign(self, process: Process, _: float) -> None:
        process.deliver(lambda: process.lead.resign() if process.lead else None)

    def _ask(self, process: Process, _: float) -> None:
        self.world.server.resign("default")

    def _rob(self, _: Process, __: float) -> None:
        """Somebody gives the lease away by hand, for as long as its leader may act without having heard of it."""
        longest = max(machine.timings.lease_duration for machine in self._machines)
        self.world.server.give_away("default", longest)

    def _unfit(self, process: Process, lasts: float) -> None:
        process.unfit()
        self.world.after(lasts, lambda: self._fit(process))

    def _fit(self, process: Process) -> None:
        process.fit = True
        process.look_well()

    def _trigger(self, _: Process, __: float) -> None:
        if self._application is not None:
            self._application.trigger(self.world)

    def _meddle(self, _: Process, __: float) -> None:
        if self._application is not None:
            self._application.meddle(self.world)

    def _pause(self, _: Process, lasts: float) -> None:
        if self._application is not None:
            self._application.pause(self.world)
            self.world.after(lasts, partial(self._application.resume, self.world))

    def _rerun(self, _: Process, __: float) -> None:
        if self._application is not None:
            self._application.rerun(self.world)

    def _backfill(self, _: Process, __: float) -> None:
        if self._application is not None:
            self._application.backfill(self.world)

    def _cancel(self, _: Process, __: float) -> None:
        if self._application is not None:
            self._application.cancel(self.world)

    def _pause_until(self, _: Process, lasts: float) -> None:
        if self._application is not None:
            self._application.pause_until(self.world, lasts)

    def _calm(self) -> None:
        """No fault any more: in the end somebody has to lead."""
        self.world.say("calm")
        self._calmed = True
        for process in self.world.processes:
            process.spare()
            process.link.heal()
            process.resume()
            self._fit(process)
        for machine in self._machines:
            self._restart(machine)
        if self._application is not None:
            self._application.resume(self.world)


_FAULTS = {
    "crash": 3,
    "freeze": 4,
    "suspend": 3,
    "cut": 5,
    "refuse": 2,
    "slow": 3,
    "fade": 3,
    "late": 5,
    "lag": 3,
    "unanswered": 2,
    "step": 3,
    "meddle": 1,
    "steps": 5,
    "leave": 2,
    "resign": 1,
    "ask": 1,
    "rob": 1,
    "unfit": 1,
    "trigger": 2,
    "pause": 1,
}
"""The faults, and how often each is drawn."""


_MENDING = {"rerun": 3, "backfill": 3, "cancel": 3, "pause_until": 1, "meddle": 0}
"""What people do beside that, if they mend."""


def _timings(chance: random.Random, lease: float) -> Timings:
    if chance.random() < 0.3:
        return Timings.make(lease_duration=lease)
    deadline = lease * chance.choice([0.9, chance.uniform(0.6, 0.9)])
    return Timings.make(
        lease_duration=lease,
        renew_deadline=deadline,
        heartbeat_interval=deadline * chance.choice([0.5, chance.uniform(0.25, 0.5)]),
        retry_interval=lease * chance.uniform(0.06, 0.25),
    )


async def work(process: Process, lead: Leadership) -> None:
    """A body: commits now and then, works or resigns or fails for a while, and may take its time to end."""
    world, chance, timings = process.world, process.world.random, process.timings
    process.began(lead)
    ends = chance.choices(["never", "returns", "resigns", "fails"], [8, 2, 1, 1])[0]
    loop = asyncio.get_running_loop()
    until = loop.time() + timings.lease_duration * chance.uniform(0.1, 6)
    pace = timings.lease_duration * chance.uniform(0.05, 0.5)
    try:
        while ends == "never" or loop.time() < until:
            try:
                async with lead.transaction() as calls:
                    await asyncio.sleep(chance.expovariate(4 / pace))
                    calls.append(lambda: world.record("committed", process, lead.token))
            except (StoreUnavailable, CommitUnknown, TransactionEnded):
                pass
            await asyncio.sleep(chance.expovariate(1 / pace))
        if ends == "resigns":
            lead.resign()
            await asyncio.sleep(timings.lease_duration)
        elif ends == "fails":
            raise Oops
    finally:
        cancelled = await unwind(process)
        process.ended(lead)
        if cancelled is not None:
            raise cancelled
