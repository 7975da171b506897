"""A store in memory, for tests: the same rules as a database, without one.

One `MemoryServer` is the database; each `MemoryStore` on it stands for one process and its network.
"""

from __future__ import annotations

import asyncio
from collections import ChainMap, Counter, defaultdict
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from aiolease._names import check_name
from aiolease._waiting import time_limited
from aiolease.errors import ConfigurationError, InvalidJob
from aiolease.stores.contract import FenceBroken, Refused, look_limit
from aiolease.stores.records import (
    AHEAD,
    SETTLED_BY_HAND,
    Batch,
    Change,
    JobDefinition,
    JobRecord,
    Lease,
    LedgerReading,
    Place,
    RunKey,
    RunRecord,
    TermKey,
    checked_limit,
    kept,
)

T = TypeVar("T")

_VIRTUAL_START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Fence:
    """A row of the fence table."""

    holder: str | None
    token: int
    fence: int = 0


class Ledger:
    """The rows of one lease in the tables of jobs and of runs.

    Attributes:
        jobs: By their names.
        runs: By their job and tick.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, JobRecord] = {}
        self.runs: dict[tuple[str, datetime], RunRecord] = {}

    def stock(self, now: datetime, *, attention: bool, runs: bool = True, counted: bool = False) -> LedgerReading:
        """See `LedgerStore.take_stock`."""
        if attention:
            jobs = [job for job in self.jobs.values() if job.requested_at or job.paused_at or job.resumed_at]
            return LedgerReading(jobs={job.job: job for job in jobs}, unfinished=[], now=now)
        read = {"running"} if counted else {"queued", "running"}
        unfinished = [run for run in self.runs.values() if runs and run.status in read]
        unfinished.sort(key=lambda run: (run.tick, run.job))
        queued = Counter(run.job for run in self.runs.values() if run.status == "queued") if counted else {}
        return LedgerReading(jobs=dict(self.jobs), unfinished=unfinished, now=now, queued=dict(queued))

    def queued(self, jobs: Sequence[str], limit: int) -> tuple[list[RunRecord], dict[str, str]]:
        """See `LedgerStore.queued`."""
        found: dict[str, list[RunRecord]] = {job: [] for job in jobs}
        queued = [run for run in self.runs.values() if run.status == "queued" and run.job in found]
        for run in sorted(queued, key=lambda run: run.tick):
            if len(found[run.job]) < limit:
                found[run.job].append(run)
        return sorted((run for runs in found.values() for run in runs), key=lambda run: (run.tick, run.job)), {}

    def enroll(self, jobs: Sequence[JobDefinition], now: datetime) -> None:
        """See `LedgerStore.enroll`."""
        for job in jobs:
            known = self.jobs.get(job.job)
            if known is None or (known.schedule, known.timezone) != (job.schedule, job.timezone):
                new = JobRecord(
                    job=job.job, schedule=job.schedule, timezone=job.timezone, known_since=now, schedule_since=now
                )
                self.jobs[job.job] = (
                    new
                    if known is None
                    else replace(known, schedule=job.schedule, timezone=job.timezone, schedule_since=job.since or now)
                )

    def record(self, term: TermKey, batch: Batch, now: datetime) -> None:
        """See `LedgerStore.record`: writes beside the rows first, so that a batch which is refused leaves nothing."""
        jobs, runs = ChainMap({}, self.jobs), ChainMap({}, self.runs)
        for change in batch.changes:
            _change(runs, term, change, now)
        gone = set[Place]()
        for run in batch.claims:
            if (run.job, run.tick) in runs:
                raise Refused
            if (before := batch.extends.get((run.job, run.tick))) is not None:
                row = runs.get((run.job, before))
                if row is None or row.status != "skipped":
                    raise Refused
                gone.add((run.job, before))
                run = replace(run, tick_from=row.tick_from, count=(row.count or 1) + (run.count or 1))  # noqa: PLW2901
            runs[run.job, run.tick] = replace(
                run,
                token=term.token,
                holder=term.holder,
                error=kept(run.error),
                started_at=now if run.status == "running" else None,
                finished_at=now if run.status == "skipped" else None,
            )
        for name, tick in batch.high_ticks.items():
            job = jobs.get(name)
            if job is None or job.paused_at or (job.high_tick and job.high_tick >= tick):
                raise Refused
            if tick > now + timedelta(seconds=AHEAD) or job.high_tick != batch.seen.get(name, job.high_tick):
                raise Refused
            jobs[name] = replace(job, high_tick=tick)
        for name, requested_at in batch.requests.items():
            job = jobs.get(name)
            if job is None or job.requested_at != requested_at:
                raise Refused
            jobs[name] = replace(job, requested_at=None)
        self.jobs.update(jobs.maps[0])
        self.runs.update(runs.maps[0])
        for place in gone:
            del self.runs[place]

    def prune(self, jobs: Sequence[str], keep: int) -> list[str]:
        """See `LedgerStore.prune`."""
        finished = defaultdict(list)
        succeeded: dict[str, datetime] = {}
        for run in self.runs.values():
            if run.status not in {"queued", "running"}:
                finished[run.job, run.status == "skipped"].append(run.tick)
            if run.status == "succeeded":
                succeeded[run.job] = max(run.tick, succeeded.get(run.job, run.tick))
        for job in jobs:
            for ticks in sorted(finished[job, False]), sorted(finished[job, True]):
                for tick in ticks[: max(len(ticks) - keep, 0)]:
                    if tick != succeeded.get(job):
                        del self.runs[job, tick]
        return []

    def history(self, job: str, limit: int | None = None) -> list[RunRecord]:
        """See `LedgerStore.history`; all rows by default."""
        found = sorted((run for run in self.runs.values() if run.job == job), key=lambda run: run.tick)
        return found if limit is None else found[-limit:]

    def settle(self, lease: str, job: str, now: datetime) -> None:
        """See `LedgerStore.settle`."""
        known = self._known(lease, job)
        self.jobs[job] = replace(
            known, known_since=now, schedule_since=now, resumed_at=now, high_tick=now, requested_at=None
        )
        for place, run in self.runs.items():
            if run.job == job and run.status in {"queued", "running"}:
                self.runs[place] = replace(run, status="lost", finished_at=now, error=SETTLED_BY_HAND)

    def trigger(self, lease: str, job: str, now: datetime) -> datetime:
        """See `LedgerStore.trigger`."""
        requested_at = self._known(lease, job).requested_at or now
        self.jobs[job] = replace(self.jobs[job], requested_at=requested_at)
        return requested_at

    def pause(self, lease: str, job: str, now: datetime) -> None:
        """See `LedgerStore.pause`."""
        known = self._known(lease, job)
        self.jobs[job] = replace(known, paused_at=known.paused_at or now)

    def resume(self, lease: str, job: str, now: datetime) -> None:
        """See `LedgerStore.resume`."""
        if (known := self._known(lease, job)).paused_at:
            self.jobs[job] = replace(known, paused_at=None, resumed_at=now)

    def _known(self, lease: str, job: str) -> JobRecord:
        if job not in self.jobs:
            raise InvalidJob(job, f"no leader of {lease!r} ever had such a job")
        return self.jobs[job]


def _change(
    runs: MutableMapping[tuple[str, datetime], RunRecord], term: TermKey, change: Change, now: datetime
) -> None:
    key = change.key
    run = runs.get((key.job, key.tick))
    if run is None or (run.status, run.token, run.attempt) != (change.was, key.token, key.attempt):
        if change.required:
            raise Refused
        return
    ended = change.status not in {"queued", "running"}
    runs[key.job, key.tick] = replace(
        run,
        status=change.status,
        attempt=change.attempt,
        token=term.token if change.adopt else run.token,
        holder=term.holder if change.adopt else run.holder,
        error=kept(change.error),
        started_at=now if change.status == "running" else None if change.status == "queued" else run.started_at,
        finished_at=now if ended else None if change.status == "queued" else run.finished_at,
    )


class MemoryServer:
    """The tables, and the clock, of a database that lives in this process.

    Args:
        start: What its clock shows when it is first looked at, aware; by default the true time, and in virtual time
            midnight of 1 January 2026 in UTC. From there on it goes as the loop's clock does.

    Attributes:
        leases: The lease table; a test may change or delete its rows by hand.
        fences: The fence table.
        ledgers: The jobs and runs of each lease.
        clock_offset: How far the server's clock has been stepped away from the true time.

    Raises:
        ConfigurationError: `start` has no time zone.
    """

    def __init__(self, start: datetime | None = None) -> None:
        if start is not None and start.tzinfo is None:
            raise ConfigurationError("start", start, "give it a time zone, tzinfo=UTC for example")
        self.leases: dict[str, Lease] = {}
        self.fences: dict[str, Fence] = {}
        self.ledgers: defaultdict[str, Ledger] = defaultdict(Ledger)
        self.clock_offset = timedelta()
        self._start = start and start.astimezone(UTC)
        self._started_at: float | None = None
        self._released = asyncio.Event()

    def now(self) -> datetime:
        """The server's clock: aware UTC."""
        loop = asyncio.get_running_loop()
        at = loop.time()
        if self._started_at is None:
            default = _VIRTUAL_START if hasattr(loop, "boot_clock") else datetime.now(UTC)
            self._start, self._started_at = self._start or default, at
        assert self._start is not None
        return self._start + timedelta(seconds=at - self._started_at) + self.clock_offset

    def read(self, name: str) -> Lease | None:
        """One row as a query would see it now."""
        lease = self.leases.get(name)
        return None if lease is None else replace(lease, now=self.now())

    def claim(self, name: str, holder: str, duration: float, seen: Lease | None, force: bool) -> Lease | None:
        """See `LeaseStore.claim`."""
        now, lease = self.now(), self.read(name)
        if lease is None:
            if seen is not None:
                return None
            # A row that vanished is made anew above the highest token that is known of it.
            fence, runs = self.fences.get(name), self.ledgers[name].runs.values()
            known = max([fence.token if fence else 0, *(run.token for run in runs)])
            lease = _released(name, known, now)
            won = True
        elif seen is None:
            won = lease.holder is None
        else:
            won = (lease.token, lease.beat) == (seen.token, seen.beat) and (lease.free or force)
        if won:
            earlier = self.fences.get(name)
            lease = replace(
                lease,
                holder=holder,
                token=max(lease.token, earlier.token if earlier else 0) + 1,
                beat=lease.beat + 1,
                elected_at=now,
                renewed_at=now,
                expires_at=now + timedelta(seconds=duration),
                resign_token=None,
            )
            self.leases[name] = lease
            self.fences[name] = Fence(holder, lease.token, earlier.fence if earlier else 0)
        return lease

    def renew(self, name: str, holder: str, token: int, beat: int, duration: float) -> Lease | None:
        """See `LeaseStore.renew`."""
        lease = self.read(name)
        if lease is not None and lease.held_by(holder, token) and lease.beat < beat:
            expires_at = lease.now + timedelta(seconds=duration)
            lease = self.leases[name] = replace(lease, beat=beat, renewed_at=lease.now, expires_at=expires_at)
        return lease

    def release(self, name: str, holder: str, token: int) -> bool:
        """See `LeaseStore.release`."""
        lease = self.read(name)
        if lease is None or not lease.held_by(holder, token):
            return False
        self.leases[name] = replace(lease, holder=None, beat=lease.beat + 1, expires_at=lease.now)
        self.wake()
        return True

    def resign(self, name: str) -> int | None:
        """See `LeaseStore.resign`."""
        lease = self.leases.get(name)
        if lease is None or lease.holder is None:
            return None
        self.leases[name] = replace(lease, resign_token=lease.token)
        return lease.token

    def fence(self, term: TermKey, final: RunKey | None = None) -> None:
        """Counts a fenced commit, and records a run as succeeded.

        Raises:
            FenceBroken: The term is not the latest.
            Refused: The run is not the running one.
        """
        batch = Batch()
        if final is not None:
            change = Change(key=final, was="running", status="succeeded", attempt=final.attempt, required=True)
            batch.changes.append(change)
        self.record(term, batch)

    def enroll(self, term: TermKey, jobs: Sequence[JobDefinition]) -> None:
        """See `LedgerStore.enroll`."""
        self.fence(term)
        self.ledgers[term.name].enroll(jobs, self.now())

    def record(self, term: TermKey, batch: Batch) -> None:
        """See `LedgerStore.record`."""
        row = self.fences.get(term.name)
        if row is None or (row.holder, row.token) != (term.holder, term.token):
            raise FenceBroken
        self.ledgers[term.name].record(term, batch, self.now())
        row.fence += 1

    def take(self, name: str, holder: str = "another", duration: float = 30.0) -> Lease:
        """Gives a lease to another holder, whoever has it now: a newer term begins at once, and nobody is told.

        That holder does not renew it: after `duration`, in seconds, it is free again. Call it in the loop.
        """
        lease = self.claim(name, holder, duration, self.read(name), force=True)
        assert lease is not None
        return lease

    def step_clock(self, seconds: float) -> None:
        """Sets the server's clock forward, or back, by some seconds; every process's own goes on as before."""
        self.clock_offset += timedelta(seconds=seconds)

    def wake(self) -> None:
        """Wakes every watching candidate."""
        self._released.set()
        self._released = asyncio.Event()

    async def released(self, seconds: float) -> None:
        """Waits until a lease is released, at most `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._released.wait()
        except TimeoutError:
            pass


def _released(name: str, token: int, now: datetime) -> Lease:
    return Lease(
        name=name,
        holder=None,
        token=token,
        beat=0,
        elected_at=now,
        renewed_at=now,
        expires_at=now,
        resign_token=None,
        now=now,
    )


class MemoryTransaction:
    """A fenced transaction in memory: its connection is a list of calls, made when it commits."""

    def __init__(self, store: MemoryStore) -> None:
        self.connection: list[Callable[[], object]] = []
        self._store = store

    async def commit(self, term: TermKey, final: RunKey | None = None) -> None:
        """See `Transaction.commit`."""

        def work() -> None:
            self._store.server.fence(term, final)
            for call in self.connection:
                call()

        await self._store.exchange("commit", work)

    async def roll_back(self) -> None:
        """See `Transaction.roll_back`."""


class MemoryStore:
    """A `LeaseStore` on a `MemoryServer`: one process, and its way to the database."""

    description = "memory"

    def __init__(self, server: MemoryServer | None = None) -> None:
        self.server = server or MemoryServer()

    async def exchange(self, method: str, statement: Callable[[], T]) -> T:
        """Sends one statement to the server and awaits its answer; where a subclass puts its faults."""
        await asyncio.sleep(0)
        answer = statement()
        await asyncio.sleep(0)
        return answer

    async def read(self, name: str) -> Lease | None:
        """See `LeaseStore.read`."""
        return await self.exchange("read", lambda: self.server.read(name))

    async def status(self, name: str) -> Lease | None:
        """Reads the row of a lease, for people."""
        return await self.read(check_name(name))

    async def watch(self, name: str, seconds: float, *, lease: Lease | None, poll: float, hint: bool) -> Lease | None:
        """See `LeaseStore.watch`."""
        await (self.server.released(seconds) if hint else asyncio.sleep(min(seconds, poll)))
        return await time_limited(look_limit(lease), self.description, self.read(name))

    async def claim(self, name: str, holder: str, duration: float, *, seen: Lease | None, force: bool) -> Lease | None:
        """See `LeaseStore.claim`."""
        return await self.exchange("claim", lambda: self.server.claim(name, holder, duration, seen, force))

    async def renew(self, name: str, holder: str, token: int, beat: int, duration: float) -> Lease | None:
        """See `LeaseStore.renew`."""
        return await self.exchange("renew", lambda: self.server.renew(name, holder, token, beat, duration))

    async def release(self, name: str, holder: str, token: int) -> bool:
        """See `LeaseStore.release`."""
        return await self.exchange("release", lambda: self.server.release(name, holder, token))

    async def begin(self) -> MemoryTransaction:
        """See `LeaseStore.begin`."""
        return await self.exchange("begin", lambda: MemoryTransaction(self))

    async def fence(self, connection: object, term: TermKey, final: RunKey | None = None, *, within: float) -> None:
        """See `LeaseStore.fence`."""
        await self.exchange("fence", lambda: self.server.fence(term, final))

    async def take_stock(
        self, name: str, *, attention: bool = False, runs: bool = True, counted: bool = False
    ) -> LedgerReading:
        """See `LedgerStore.take_stock`."""
        ledger, now = self.server.ledgers[name], self.server.now
        return await self.exchange(
            "take_stock", lambda: ledger.stock(now(), attention=attention, runs=runs, counted=counted)
        )

    async def queued(self, name: str, jobs: Sequence[str], limit: int) -> tuple[list[RunRecord], dict[str, str]]:
        """See `LedgerStore.queued`."""
        return await self.exchange("take_stock", lambda: self.server.ledgers[name].queued(jobs, limit))

    async def look_up(self, name: str, places: Sequence[Place]) -> list[RunRecord]:
        """See `LedgerStore.look_up`."""
        runs = self.server.ledgers[name].runs
        return await self.exchange("take_stock", lambda: [runs[place] for place in places if place in runs])

    async def enroll(self, term: TermKey, jobs: Sequence[JobDefinition]) -> None:
        """See `LedgerStore.enroll`."""
        await self.exchange("enroll", lambda: self.server.enroll(term, jobs))

    async def record(self, term: TermKey, batch: Batch) -> None:
        """See `LedgerStore.record`."""
        await self.exchange("record", lambda: self.server.record(term, batch))

    async def prune(self, name: str, jobs: Sequence[str], keep: int) -> list[str]:
        """See `LedgerStore.prune`."""
        return await self.exchange("prune", lambda: self.server.ledgers[name].prune(jobs, keep))

    async def history(self, name: str, job: str, *, limit: int = 100) -> list[RunRecord]:
        """See `LedgerStore.history`."""
        check_name(name)
        checked_limit(limit)
        return await self.exchange("history", lambda: self.server.ledgers[name].history(job, limit))

    async def settle(self, name: str, job: str) -> None:
        """See `LedgerStore.settle`."""
        check_name(name)
        server = self.server
        await self.exchange("settle", lambda: server.ledgers[name].settle(name, job, server.now()))

    async def trigger(self, name: str, job: str) -> datetime:
        """See `LedgerStore.trigger`."""
        check_name(name)
        server = self.server
        return await self.exchange("trigger", lambda: server.ledgers[name].trigger(name, job, server.now()))

    async def pause(self, name: str, job: str) -> None:
        """See `LedgerStore.pause`."""
        check_name(name)
        server = self.server
        await self.exchange("pause", lambda: server.ledgers[name].pause(name, job, server.now()))

    async def resume(self, name: str, job: str) -> None:
        """See `LedgerStore.resume`."""
        check_name(name)
        server = self.server
        await self.exchange("resume", lambda: server.ledgers[name].resume(name, job, server.now()))

    def forget(self, name: str) -> None:
        """See `LeaseStore.forget`."""

    async def resign(self, name: str) -> int | None:
        """See `LeaseStore.resign`."""
        check_name(name)
        return await self.exchange("resign", lambda: self.server.resign(name))

    async def aclose(self) -> None:
        """Nothing to close."""
