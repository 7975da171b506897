"""The database, and each process's way to it: what is sent may be lost, late, or take effect long after.

A statement travels for a while, arrives, may wait at the server (a lock, a queue), takes effect, and is answered. The
server's clock is read as it arrives, as UTC_TIMESTAMP() is that of a statement's start: a renewal that waited brings
an expiry of old.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from aiolease._election.timings import Timings
from aiolease._jobs.schedule import Schedule, read_schedule
from aiolease.errors import StoreUnavailable
from aiolease.stores.batch import Batch, JobDefinition
from aiolease.stores.contract import FenceBroken, Refused
from aiolease.stores.memory import Ledger, MemoryServer, MemoryStore
from aiolease.stores.records import Lease, RunRecord, TermKey
from tests.simulation.audit import Span

if TYPE_CHECKING:
    from tests.simulation.process import Process
    from tests.simulation.world import World

T = TypeVar("T")

_QUICK = (0.0, 0.0)

_START = datetime(2026, 3, 1, tzinfo=UTC)


class ArchivedLedger(Ledger):
    """A ledger that keeps for the audit what the tables do not.

    Attributes:
        pruned: The rows that were deleted.
        excused: Spans of each job of which no tick has to be in a row: it was paused, or its schedule was changed while
            the clock had been set back.
        asked: The jobs that were triggered, and for when.
        former: The schedules that jobs had before, each from after a moment, up to and with the one of its change.
        queued_at: When rows were made that wait their turn, by the world's clock.
        by_hand: The places of rows that somebody wrote by hand.
        meddled: Spans of each job that somebody has made due again by hand.
        cancelled: The runs that somebody has cancelled, and the leader has not seen to all of it.
        stopped: Those of which it has: nothing of them begins any more.
        early: What began before its moment, if something did.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pruned: list[RunRecord] = []
        self.excused: defaultdict[str, list[Span]] = defaultdict(list)
        self.asked: list[tuple[str, datetime]] = []
        self.former: defaultdict[str, list[tuple[Schedule, datetime, datetime]]] = defaultdict(list)
        self.queued_at: dict[tuple[str, datetime], float] = {}
        self.by_hand: set[tuple[str, datetime]] = set()
        self.meddled: defaultdict[str, list[Span]] = defaultdict(list)
        self.cancelled: set[tuple[str, datetime]] = set()
        self.stopped: set[tuple[str, datetime]] = set()
        self.early: str | None = None

    def trigger(self, lease: str, job: str, now: datetime) -> datetime:
        tick = super().trigger(lease, job, now)
        self.asked.append((job, tick))
        return tick

    def prune(self, jobs: Sequence[str], keep: int) -> list[str]:
        before = dict(self.runs)
        more = super().prune(jobs, keep)
        self.pruned += [before[key] for key in before.keys() - self.runs.keys()]
        return more

    def enroll(self, jobs: Sequence[JobDefinition], now: datetime) -> None:
        before = dict(self.jobs)
        super().enroll(jobs, now)
        for name, job in self.jobs.items():
            known = before.get(name)
            if known is None or known.schedule == job.schedule:
                continue
            schedule = read_schedule(known.schedule, known.timezone)
            assert schedule is not None
            self.former[name].append((schedule, max(known.known_since, known.schedule_since), job.schedule_since))
            if known.paused_at is not None:
                self.excused[name].append((known.high_tick or known.known_since, job.schedule_since))
            if job.high_tick is not None:  # behind which the clock had been set back
                self.excused[name].append((job.schedule_since, job.high_tick))

    def meddle(self, job: str, back: int, rows: int) -> None:
        """Somebody sets a job's high tick back by hand, by some ticks, and makes rows of some that are to come."""
        known = self.jobs[job]
        schedule = read_schedule(known.schedule, known.timezone)
        assert schedule is not None
        tick = newest = known.high_tick or known.schedule_since
        for _ in range(back):
            if (job, tick) not in self.runs:  # skipped with others: it would rightly be run
                break
            tick = schedule.latest_between(known.schedule_since, tick - timedelta(microseconds=1)) or tick
        if tick != newest:
            self.jobs[job] = replace(known, high_tick=tick)
            self.meddled[job].append((tick, newest))
        for _ in range(rows):
            following = schedule.next_after(newest)
            assert following is not None
            self.meddled[job].append((newest, following))
            newest = following
            if (job, newest) not in self.runs:
                self.by_hand.add((job, newest))
                self.runs[job, newest] = RunRecord(job=job, tick=newest, token=0, holder="a hand", status="lost")

    def pause_until(self, lease: str, job: str, now: datetime, until: datetime) -> None:
        known = self.jobs[job]
        self.excused[job].append((known.high_tick or known.known_since, until))
        self.pause(lease, job, now, until=until)

    def rerun_one(self, lease: str, job: str, now: datetime, pick: Callable[[Sequence[RunRecord]], RunRecord]) -> None:
        """Somebody runs a tick again that has not succeeded."""
        ended = [run for run in self.history(job) if run.status in {"failed", "lost", "skipped"}]
        ended = [run for run in ended if (run.count or 1) == 1]  # of a range it would be a backfill
        if ended:
            run = pick(ended)
            self.rerun(lease, job, run.tick, now, force=False)
            self.cancelled.discard((job, run.tick))
            self.stopped.discard((job, run.tick))

    def cancel(self, lease: str, job: str, now: datetime) -> None:
        super().cancel(lease, job, now)
        for place, run in self.runs.items():
            goes_on = run.status == "running" and run.started_at is not None and run.started_at <= now
            waits = run.status == "queued" and (run.failures > 0 and run.not_before is not None)
            if place[0] == job and (goes_on or waits):
                self.cancelled.add(place)

    def record(self, term: TermKey, batch: Batch, now: datetime) -> None:
        early = None
        for change in batch.changes:
            row = self.of(change.key.job).get((change.key.job, change.key.tick))
            if row is None or row.not_before is None or (row.status, change.was) != ("queued", "queued"):
                continue
            if change.status == "running" and row.not_before > now + timedelta(seconds=0.5):
                early = f"{row.job} {row.tick:%H:%M:%S.%f} began before {row.not_before:%H:%M:%S.%f}"
        super().record(term, batch, now)
        self.early = early or self.early
        for job in batch.cancels:
            if self.jobs[job].cancel_at is None:
                done = {place for place in self.cancelled if place[0] == job}
                self.stopped |= done
                self.cancelled -= done

    def resume(self, lease: str, job: str | None, now: datetime) -> None:
        known = self.jobs.get(job or "")
        if job is not None and known is not None and known.paused_at is not None:
            self.excused[job].append((known.high_tick or known.known_since, now))
        super().resume(lease, job, now)


class Server(MemoryServer):
    """The database: writes its part of the journal."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.ledgers = defaultdict(ArchivedLedger)
        self._world = world
        self.stepped_at = -1000.0
        self.sender: Process
        """Whose statement is being executed."""
        self._clock = _START
        self._arrived_at = 0.0

    def clock(self) -> datetime:
        """The server's clock at this moment."""
        return _START + timedelta(seconds=self._world.now) + self.clock_offset

    def steady(self, timings: Timings) -> bool:
        """Whether a leader has learnt the time since the last step of the clock, even over a poor network."""
        return self._world.now > self.stepped_at + timings.heartbeat_interval + 4 * timings.attempt

    def now(self) -> datetime:
        """The clock of the statement that is being executed."""
        return self._clock

    def execute(self, sender: Process, clock: datetime, arrived_at: float, statement: Callable[[], T]) -> T:
        """Has a statement take effect, that arrived at some moment."""
        self.sender, self._clock, self._arrived_at = sender, clock, arrived_at
        return statement()

    def claim(self, name: str, holder: str, duration: float, seen: Lease | None, force: bool) -> Lease | None:
        lease = super().claim(name, holder, duration, seen, force)
        if lease is not None and lease.holder == holder:
            note = "by force" if force else ""
            since = self._arrived_at
            self._world.record("claimed", self.sender, lease.token, since=since, lasts=duration, note=note)
        return lease

    def record(self, term: TermKey, batch: Batch) -> None:
        ledger = self.ledgers[term.name]
        assert isinstance(ledger, ArchivedLedger)
        early = ledger.early
        super().record(term, batch)
        if not self.steady(self.sender.timings):  # the leader may not know yet what time it is
            ledger.early = early
        for run in batch.claims:
            if run.status == "queued":
                ledger.queued_at[run.job, run.tick] = self._world.now

    def give_away(self, name: str, duration: float) -> None:
        """A person changes the row: a term begins whose holder never runs a body, renews or releases."""
        self._clock, self._arrived_at = self.clock(), self._world.now
        row = super().claim(name, "somebody", duration, self.read(name), force=True)
        assert row is not None
        self._world.record("claimed", None, row.token, since=self._world.now, lasts=duration, note="by hand")

    def renew(self, name: str, holder: str, token: int, beat: int, duration: float) -> Lease | None:
        before = self.leases.get(name)
        lease = super().renew(name, holder, token, beat, duration)
        if lease is not None and self.leases[name] is not before:
            self._world.record(
                "renewed", self.sender, token, since=self._arrived_at, lasts=duration, note=f"beat {beat}"
            )
        return lease

    def release(self, name: str, holder: str, token: int) -> bool:
        released = super().release(name, holder, token)
        if released:
            self._world.record("released", self.sender, token)
        return released

    def wake(self) -> None:
        for process in self._world.processes:
            process.link.wake()


class Link:
    """One process's way to the server, and what is wrong with it.

    Attributes:
        up: Whether anything can be sent at all; what is sent is refused at once otherwise.
        no_requests: Whether requests are lost.
        no_replies: Whether replies are lost.
        slow: Seconds by which a request, and a reply, may be slowed down.
        late: For each of the next statements, how long it waits at the server, or in the network before it.
        late_batches: The same for the next batches of the ledger.
        unanswered: How many of the next statements are not answered.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world
        self.up = True
        self.no_requests = False
        self.no_replies = False
        self.slow = _QUICK
        self.late: list[float] = []
        self.late_batches: list[float] = []
        self.unanswered = 0
        self._outstanding = 0  # statements that are late, and the process may have given up
        self._released = asyncio.Event()

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        trouble = (
            self.no_requests
            or self.no_replies
            or self.slow != _QUICK
            or self.late
            or self.late_batches
            or self.unanswered
            or self._outstanding
        )
        return self.up and not trouble

    def heal(self) -> None:
        """From now on nothing is wrong, but for what is under way."""
        self.up, self.no_requests, self.no_replies = True, False, False
        self.slow, self.late, self.late_batches, self.unanswered = _QUICK, [], [], 0
        self._process.look_well()

    def _travel(self, slow: float = 0.0) -> float:
        chance = self._world.random
        return chance.expovariate(1 / self._world.latency) + (chance.uniform(0, slow) if slow else 0.0)

    async def send(self, method: str, statement: Callable[[], T]) -> T:
        """One exchange. Cancelled or not, what was sent goes its way."""
        world, process = self._world, self._process
        if not self.up or world.over:
            await asyncio.sleep(0.001)
            raise StoreUnavailable("simulation", "connection refused")
        reply: asyncio.Future[T] = process.loop.create_future()
        odd = self.slow != _QUICK
        delay, answered = 0.0, True
        if self.late_batches and method == "record":
            delay, odd = self.late_batches.pop(), True
        elif self.late:
            delay, odd = self.late.pop(), True
        if self.unanswered:
            self.unanswered -= 1
            answered, odd = False, True
        in_network = world.random.random() < 0.3
        self._outstanding += odd
        if odd:
            world.say(f"{process.name} sends {method}: {delay:.3f} s late{'' if answered else ', not to be answered'}")

        def arrive() -> None:
            if self.no_requests:
                finish()
            elif delay and not in_network:
                clock, now = world.server.clock(), world.now
                world.after(delay, lambda: act(clock, now))
            else:
                act(world.server.clock(), world.now)

        def act(clock: datetime, arrived_at: float) -> None:
            result: T | FenceBroken | Refused
            try:
                result = world.server.execute(process, clock, arrived_at, statement)
            except (FenceBroken, Refused) as error:
                result = error
            if odd:
                world.say(f"{process.name}'s {method} takes effect")
            if answered and not self.no_replies:
                world.after(self._travel(self.slow[1]), lambda: process.deliver(lambda: deliver(result)))
            finish()

        def finish() -> None:
            if odd:
                self._outstanding -= 1
                process.look_well()

        def deliver(result: T | FenceBroken | Refused) -> None:
            if self.no_replies or reply.done():
                return
            if isinstance(result, FenceBroken | Refused):
                reply.set_exception(result)
            else:
                reply.set_result(result)

        world.after(self._travel(self.slow[0]) + (delay if in_network else 0.0), arrive)
        return await reply

    async def released(self, seconds: float) -> None:
        """Waits until the server says that a lease was released, at most `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._released.wait()
        except TimeoutError:
            pass
        self._released.clear()

    def wake(self) -> None:
        """The server says so."""
        if self.clean:
            self._world.after(self._travel(), lambda: self._process.deliver(self._released.set))


class SimStore(MemoryStore):
    """The store of one process."""

    description = "simulation"

    def __init__(self, process: Process) -> None:
        super().__init__(process.world.server)
        self._process = process

    async def exchange(self, method: str, statement: Callable[[], T]) -> T:
        return await self._process.link.send(method, statement)

    async def watch(self, name: str, seconds: float, *, lease: Lease | None, poll: float, hint: bool) -> Lease | None:
        # Where the database has no hint to give, as on Galera, the process polls.
        if hint and self._process.world.hinted:
            await self._process.link.released(seconds)
        else:
            await asyncio.sleep(min(seconds, poll))
        return await self.read(name)
