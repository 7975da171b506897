"""The jobs of one simulation: what the registries of its processes hold, what runs do, and the audit in the end."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from aiolease import JobRegistry, JobRun, RequestRefused, StoreUnavailable
from aiolease._jobs.job import Overlap
from aiolease._jobs.runner import Runner
from aiolease._jobs.schedule import Cron, Every
from tests.simulation.audit import Books, Rules, audit, said
from tests.simulation.checker import Checker, Run, Violation
from tests.simulation.network import ArchivedLedger
from tests.simulation.process import Oops, Process, SimLoop, unwind

if TYPE_CHECKING:
    from tests.simulation.world import World

LEASE = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Duty:
    """One job, as some version of the application registers it.

    Attributes:
        name: The job.
        rules: What the audit asks of it.
        overlap: As it is registered.
        timeout: As it is registered.
        takes: How long a run takes on average, in seconds.
        fails: How often one raises.
        commits: Whether it writes on the way.
        backoff: As it is registered.
    """

    name: str
    rules: Rules
    overlap: Overlap
    timeout: float | None
    takes: float
    fails: float
    commits: bool
    backoff: float = 60.0


class Application:
    """What all processes run: drawn from the seed, in one version or, while it is rolled out, in two.

    Args:
        chance: Draws it.
        lease: The length of a lease, about.
        mending: Whether jobs are tried again when they fail, and people run, cancel and pause them by hand; in one
            version then.
    """

    def __init__(self, chance: random.Random, lease: float, *, mending: bool = False) -> None:
        self._lease = lease
        self.max_running = chance.choice([None, None, 1, 2])
        self._history = chance.choice([None, 3])
        self._duties = [_duty(chance, f"job{number}", lease) for number in range(chance.randint(1, 5))]
        self._newer = self._duties
        if chance.random() < 0.2:
            self._newer = [_changed(chance, duty, lease) for duty in self._duties if chance.random() < 0.8]
        if mending:
            self._duties = self._newer = [_mended(chance, duty, lease) for duty in self._duties]
        self._moved_at = 0.0  # when a run last began, or ended
        self._begun: defaultdict[int, list[tuple[float, str]]] = defaultdict(list)  # by term: when, and of which job
        self._going_on = Counter[tuple[int, str]]()  # by term and job: how many of its runs
        self._ended: dict[tuple[int, str], float] = {}  # when one of these last did

    @property
    def overlapping(self) -> set[str]:
        """The jobs that may run beside themselves."""
        return {duty.name for duty in self._duties + self._newer if duty.overlap == "allow"}

    def registry(self, process: Process) -> JobRegistry:
        """What a process of one version or the other registers."""
        process.duties = process.world.random.choice([self._duties, self._newer])
        jobs = JobRegistry(max_running=self.max_running, history=self._history)
        for duty in process.duties:
            options: dict[str, Any] = {
                "name": duty.name, "missed": duty.rules.missed, "max_age": duty.rules.max_age,
                "overlap": duty.overlap, "timeout": duty.timeout, "rerun_lost": duty.rules.rerun_lost,
                "retries": duty.rules.retries, "backoff": duty.backoff, "jitter": duty.rules.jitter,
            }  # fmt: skip
            schedule = duty.rules.schedule
            if isinstance(schedule, Every):
                register = jobs.every(schedule.interval, **options)
            else:
                register = jobs.cron(schedule.expression.removeprefix("cron "), **options)
            register(self._function(process, duty))
        return jobs

    def _function(self, process: Process, duty: Duty) -> Callable[[JobRun], Awaitable[None]]:
        async def job(run: JobRun) -> None:
            this, ending = Run(run.job, run.tick, run.attempt), "raised"
            self._begin(process, run, this, duty)
            try:
                await self._work(process, duty, run, this)
                ending = "returned"
            except asyncio.CancelledError:
                ending = "cancelled"
                raise
            except StoreUnavailable:
                ending = "unavailable"
                raise
            finally:
                cancelled = await unwind(process) if ending == "cancelled" else None
                process.world.record("over", process, run.token, run=this, note=ending)
                self._going_on[run.token, run.job] -= 1
                self._ended[run.token, run.job] = process.world.now
                self._moved_at = process.world.now
                if cancelled is not None:
                    raise cancelled

        return job

    def _begin(self, process: Process, run: JobRun, this: Run, duty: Duty) -> None:
        world = process.world
        world.record("begun", process, run.token, run=this)
        self._moved_at = world.now
        row = world.server.ledgers[LEASE].runs.get((run.job, run.tick))
        if row is None or (row.attempt, row.token, row.status) != (run.attempt, run.token, "running"):
            world.fail(Violation(f"{this} runs, and the ledger says {said(row)}"))
        assert row is not None
        by_hand = row.request in {"rerun", "backfill"}
        if not by_hand:
            self._is_fair(process, run)
        ledger = world.server.ledgers[LEASE]
        assert isinstance(ledger, ArchivedLedger)
        if (run.job, run.tick) in ledger.stopped:
            world.fail(Violation(f"{this} was cancelled, and came back"))
        self._going_on[run.token, run.job] += 1
        # Too old is what is too old when its start is told: the process may stand still before the job's first step.
        age = (run.leadership.database_now() - run.tick).total_seconds()
        age, oldest = age - process.stood_still_since_told(run.job, run.tick), duty.rules.max_age
        moment = timedelta(microseconds=1)
        asked = duty.rules.schedule.latest_between(run.tick - moment, run.tick) is None  # by somebody, not the schedule
        aged = oldest is not None and age > oldest + duty.rules.jitter + 0.5 and not by_hand
        if ledger.early is not None:
            world.fail(Violation(ledger.early))
        if run.attempt == 1 and not asked and world.server.steady(process.timings) and aged:
            world.fail(Violation(f"{this} runs {age:.1f} s late, and was to be skipped after {oldest:.1f} s"))

    def _is_fair(self, process: Process, run: JobRun) -> None:
        """A backlog of one job delays another by one run at most, and of a job the oldest tick goes first (rule 45).

        Asked of what this term has queued for a while: what is queued has to be read, when an answer was lost.
        """
        world, begun = process.world, self._begun[run.token]
        ledger, patience = world.server.ledgers[LEASE], 3 * process.timings.attempt
        assert isinstance(ledger, ArchivedLedger)
        begun.append((world.now, run.job))
        mine = [at for at, job in begun if job == run.job]
        since = mine[-3] if len(mine) > 2 else -math.inf  # it has had two turns since
        for row in ledger.runs.values():
            queued_at = ledger.queued_at.get((row.job, row.tick), math.inf)
            if row.status != "queued" or row.token != run.token or row.attempt > 1 or queued_at > world.now - patience:
                continue
            if row.not_before is not None:
                continue  # it waits behind all else
            if row.job == run.job and row.tick < run.tick and run.attempt == 1:
                world.fail(Violation(f"{run.job} {run.tick:%H:%M:%S.%f} runs before {said(row)}"))
            has_begun = any(at >= since and job == row.job for at, job in begun)
            if (
                row.job != run.job
                and queued_at + patience < since
                and not has_begun
                and self._rested(row.token, row.job, since)
            ):
                world.fail(Violation(f"{run.job} had three turns, and {said(row)}"))

    def _rested(self, token: int, job: str, since: float) -> bool:
        """Whether no run of a job went on in a term since then: it may run one at a time."""
        return self._ended.get((token, job), -math.inf) < since and not self._going_on[token, job]

    async def _work(self, process: Process, duty: Duty, run: JobRun, this: Run) -> None:
        world, chance = process.world, process.world.random
        await asyncio.sleep(chance.expovariate(1 / duty.takes))
        if chance.random() < duty.fails:
            raise Oops
        if duty.commits:
            async with run.transaction() as calls:
                calls.append(lambda: world.record("committed", process, run.token))
        if duty.rules.final:
            async with run.transaction(final=True) as calls:
                await asyncio.sleep(chance.expovariate(4 / duty.takes))
                calls.append(lambda: world.record("paid", process, run.token, run=this))
            if chance.random() < 0.1:
                raise Oops  # too late: it counts

    # -- what people ask of it, from wherever

    def trigger(self, world: World) -> None:
        if (job := self._some_job(world)) is not None:
            world.server.ledgers[LEASE].trigger(LEASE, job, world.server.clock())

    def pause(self, world: World) -> None:
        if (job := self._some_job(world)) is not None:
            world.server.ledgers[LEASE].pause(LEASE, job, world.server.clock())

    def resume(self, world: World) -> None:
        """Resumes whatever is paused; none of its ticks until now is missed."""
        ledger = world.server.ledgers[LEASE]
        for name in ledger.jobs:
            ledger.resume(LEASE, name, world.server.clock())

    def rerun(self, world: World) -> None:
        ledger = world.server.ledgers[LEASE]
        assert isinstance(ledger, ArchivedLedger)
        if (job := self._some_job(world)) is not None:
            ledger.rerun_one(LEASE, job, world.server.clock(), world.random.choice)

    def backfill(self, world: World) -> None:
        """Somebody has the last ticks of a job run. What was pruned would rightly be run again: not then."""
        job, now = self._some_job(world), world.server.clock()
        if job is None or self._history is not None:
            return
        since = now - timedelta(seconds=world.random.uniform(1, 6) * self._lease)
        with suppress(RequestRefused):
            until = world.random.choice([now, since + (now - since) * world.random.random()])
            world.server.ledgers[LEASE].backfill(LEASE, job, since, until, now)

    def cancel(self, world: World) -> None:
        if (job := self._some_job(world)) is not None:
            ledger = world.server.ledgers[LEASE]
            assert isinstance(ledger, ArchivedLedger)
            ledger.cancel(LEASE, job, world.server.clock())
            for place in [*ledger.cancelled]:  # what was claimed, and has not begun, is a tick that waits
                row = ledger.runs.get(place)
                if row and row.status == "running" and row.attempt == 1 and Run(*place, 1) not in world.checker.begun:
                    ledger.cancelled.discard(place)

    def pause_until(self, world: World, lasts: float) -> None:
        ledger, now = world.server.ledgers[LEASE], world.server.clock()
        assert isinstance(ledger, ArchivedLedger)
        if (job := self._some_job(world)) is not None:
            ledger.pause_until(LEASE, job, now, now + timedelta(seconds=lasts))

    def meddle(self, world: World) -> None:
        """Somebody writes into the ledger by hand (DESIGN rule 44)."""
        ledger, chance = world.server.ledgers[LEASE], world.random
        assert isinstance(ledger, ArchivedLedger)
        if (job := self._some_job(world)) is not None:
            # Where rows are pruned, a tick that is set back behind them would rightly be run again.
            ledger.meddle(job, chance.randint(0, 4) if self._history is None else 0, chance.randint(0, 2))

    def _some_job(self, world: World) -> str | None:
        known = sorted(world.server.ledgers[LEASE].jobs)
        return world.random.choice(known) if known else None

    # -- the books

    def audit(self, world: World, checker: Checker) -> None:
        """Looks at the books in the midst of it: nothing is lost, nothing twice, nothing untrue.

        Raises:
            Violation: It is not so.
        """
        audit(self._books(world, checker, None), self._rules(world, []))

    def close(self, world: World, checker: Checker, settled: float) -> None:
        """Closes the books: if somebody leads, it has done so for `settled` seconds at least, and all else was done.

        Raises:
            Violation: It is not so.
        """
        leading = [process for process in world.processes if process.lead is not None and process.lead.is_leader]
        if not leading:
            self.audit(world, checker)
            return
        [leader] = leading
        rules = self._rules(world, leader.duties)
        for duty in leader.duties:
            if duty.name not in rules or not rules[duty.name].led:
                raise Violation(f"the ledger knows {duty.name} as {world.server.ledgers[LEASE].jobs.get(duty.name)}")
        books = self._books(world, checker, leader)
        ledger = world.server.ledgers[LEASE]
        assert isinstance(ledger, ArchivedLedger)
        audit(books, rules, now=world.server.clock(), behind=settled)
        for job, tick in ledger.asked:
            if job in ledger.jobs and ledger.jobs[job].requested_at is None:
                until = tick + timedelta(microseconds=10)  # a clock that was set back may show one moment twice
                if not any(
                    row.job == job and (row.tick_from or row.tick) <= until and row.tick >= tick for row in books.runs
                ):
                    raise Violation(f"{job} was triggered at {tick:%H:%M:%S.%f}, and nothing tells of that")
        moment = world.server.clock() - timedelta(seconds=settled)
        waiting = [row for row in books.runs if row.status == "queued" and rules[row.job].led]
        waiting = [row for row in waiting if row.not_before is None or row.not_before < moment]
        busy = {row.job for row in books.runs if row.status == "running"}
        left = [row for row in waiting if row.failures and row.not_before is not None and row.job not in busy]
        if left and self.max_running is None:
            raise Violation(f"nobody tries again what waits: {said(left[0])}")
        if waiting and not checker.going_on(leader.name) and world.now > self._moved_at + settled:
            raise Violation(f"nothing runs, and nobody begins what waits: {said(waiting[0])}")

    def _rules(self, world: World, here: list[Duty]) -> dict[str, Rules]:
        """Of each job in the version that the ledger knows; `here` are the jobs of the leader."""
        rules: dict[str, Rules] = {}
        ledger = world.server.ledgers[LEASE]
        assert isinstance(ledger, ArchivedLedger)
        for duty in self._duties + self._newer + here:
            if duty.name in ledger.jobs and ledger.jobs[duty.name].schedule == duty.rules.schedule.expression:
                excused, meddled = ledger.excused[duty.name], ledger.meddled[duty.name]
                rules[duty.name] = replace(duty.rules, excused=excused, meddled=meddled, led=duty in here)
        return rules

    def _books(self, world: World, checker: Checker, leader: Process | None) -> Books:
        ledger = world.server.ledgers[LEASE]
        assert isinstance(ledger, ArchivedLedger)
        return Books(
            jobs=ledger.jobs,
            runs=[*ledger.runs.values(), *ledger.pruned],
            begun=checker.begun,
            over=checker.over,
            paid=checker.paid,
            term=leader.lead.token if leader and leader.lead else None,
            by_hand=ledger.by_hand,
            former=ledger.former,
        )


@contextmanager
def journaled() -> Iterator[None]:
    """Has the bodies of registries write into the journal when they begin and end."""
    run = Runner.run

    async def body(term: Runner, *args: Any) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        process = loop.process
        process.began(term.lead)
        try:
            await run(term, *args)
        finally:
            process.ended(term.lead)

    with patch.object(Runner, "run", body):
        yield


def _duty(chance: random.Random, name: str, lease: float) -> Duty:
    missed = chance.choice(["once", "once", "all", "skip"])
    # An hour's step of the clock must not mean a thousand runs of every job of every seed.
    interval = lease * (chance.uniform(0.8, 4) if missed == "all" else 10 ** chance.uniform(-1, 0.5))
    schedule = Every(round(interval, 3)) if chance.random() < 0.85 else Cron("*/5 * * * * *")
    final = chance.random() < 0.5
    return Duty(
        name=name,
        rules=Rules(
            schedule=schedule,
            missed=missed,  # type: ignore[arg-type]
            max_age=lease * chance.uniform(0.5, 4) if chance.random() < 0.2 else None,
            rerun_lost=chance.random() < 0.6,
            final=final,
        ),
        overlap=chance.choice(["skip", "skip", "allow"]),
        timeout=interval * chance.uniform(0.5, 2) if chance.random() < 0.2 else None,
        takes=interval * 10 ** chance.uniform(-2, 0.2),
        fails=chance.choice([0.0, 0.0, 0.2]),
        commits=chance.random() < 0.3,
    )


def _mended(chance: random.Random, duty: Duty, lease: float) -> Duty:
    """The job with retries, and perhaps jitter."""
    interval = duty.rules.schedule.interval.total_seconds() if isinstance(duty.rules.schedule, Every) else 5.0
    jitter = interval * chance.uniform(0, 0.9) if chance.random() < 0.3 else 0.0
    rules = replace(duty.rules, retries=chance.choice([0, 1, 2, 5]), jitter=jitter)
    return replace(
        duty, rules=rules, backoff=lease * 10 ** chance.uniform(-1.5, 0.3), fails=chance.choice([0.1, 0.3, 0.6])
    )


def _changed(chance: random.Random, duty: Duty, lease: float) -> Duty:
    """The job in another version."""
    if chance.random() < 0.5:
        return duty
    schedule = Every(round(lease * chance.uniform(0.8, 4), 3))
    return replace(duty, rules=replace(duty.rules, schedule=schedule))
