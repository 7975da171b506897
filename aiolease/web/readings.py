"""What all open pages of a process show: one reading of the database, shared, and made only while somebody looks."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, final

from aiolease import AioleaseError, Campaign, JobStanding, open_store
from aiolease._jobs.why import Why, why, with_last_end
from aiolease._views.lease import OpenLease
from aiolease._views.look import Seen, Wrong, facts_of, look, wrong_with
from aiolease._views.telling import worst_first
from aiolease.stores import Store
from aiolease.stores.records import MAX_EARLIER, MAX_ERROR, RunRecord, kept
from aiolease.stores.seen import TermRecord

_LIMIT = 5.0
"""Seconds that the database may take for one answer."""

_PATIENCE = 2.0
"""Seconds that a page waits for a reading, if there is an older one to show."""

_IDLE = 30.0
"""Seconds without a look after which the connection is given back."""

_TERMS = 20
"""So many terms are on the line of time."""

_RUNS = 50
"""So many runs are on the page of a job."""

_TRAIL = 16
"""So many ended runs are in a sparkline."""

_FILLED = 10
"""Of so many jobs the newest runs are read at once."""

_KEPT = 32
"""Of so many jobs what their pages show is kept."""

_AGED = 15.0
"""Seconds after which a job's page is read again although nothing of it has changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What one reading gave.

    Attributes:
        seen: The look at the lease and its jobs.
        wrong: What is wrong with it.
        jobs: Its jobs, those in trouble first.
        terms: The newest terms, the newest last.
        trails: The newest ended runs of each job, the newest last.
        database: Which database, for people.
    """

    seen: Seen
    wrong: Sequence[Wrong]
    jobs: Sequence[JobStanding]
    terms: Sequence[TermRecord]
    trails: dict[str, list[RunRecord]]
    database: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobShown:
    """What the page of a job shows beside that.

    Attributes:
        runs: Its newest rows, the newest last.
        why: Why it ran, or did not, at the moment that was asked about.
    """

    runs: Sequence[RunRecord]
    why: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class Latest:
    """The newest reading, and how it stands.

    Attributes:
        shown: What it gave; ``None`` if none has succeeded yet.
        age: Seconds since then.
        problem: Why there is no newer one; empty if there is.
        due: Seconds until the next one.
    """

    shown: Shown | None
    age: float
    problem: str
    due: float


@final
class Readings:
    """The readings of one lease.

    Args:
        source: A `Campaign`, a store, a URL, or what else `open_store` takes.
        name: The lease.
        refresh: No older is what a page shows, in seconds.
    """

    def __init__(self, source: Any, name: str, refresh: float) -> None:
        self.campaign = source if isinstance(source, Campaign) else None
        self.name = name
        self._source = source
        # A change has the rest of the time to be read, drawn and fetched.
        self._period = 0.75 * refresh
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reset()

    def _reset(self) -> None:
        self._opened: AsyncExitStack | None = None
        self._lease: OpenLease | None = None
        self._closing: asyncio.TimerHandle | None = None
        self._closer: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._shown: Shown | None = None
        self._read_at = self._due_at = 0.0
        self._problem = ""
        self._trails: dict[str, list[RunRecord]] = {}
        self._marks: dict[str, object] = {}
        self._hungry: dict[str, None] = {}
        self._details: OrderedDict[tuple[str, datetime | None], tuple[object, float, asyncio.Task[JobShown]]]
        self._details = OrderedDict()
        self._one_job = asyncio.Lock()

    async def latest(self) -> Latest:
        """The newest reading; makes one if it is time. Raises nothing that a store raises."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # a test client has one for each request
            self._reset()
            self._loop = loop
        if self._reading is None and (self._shown is None or loop.time() >= self._due_at):
            self._reading = loop.create_task(self._read())
        problem = ""
        if (reading := self._reading) is not None:
            await asyncio.wait([reading], timeout=None if self._shown is None else _PATIENCE)
            if reading.done():
                reading.result()
            else:
                problem = f"it is slow: it was asked {_PATIENCE:g} s ago, or longer"
        now = loop.time()
        return Latest(
            shown=self._shown,
            age=now - self._read_at,
            problem=problem or self._problem,
            due=max(self._due_at - now, 0.0),
        )

    async def job(self, shown: Shown, job: str, moment: datetime | None) -> JobShown:
        """What the page of a job shows, read again once the job has changed.

        Raises:
            AioleaseError: There is no such job, or the database does not answer.
        """
        clock, seen = asyncio.get_running_loop().time, shown.seen.overview.jobs.get(job)
        known = self._details.get((job, moment))
        if known is not None and known[0] == seen and clock() - known[1] < _AGED and not _has_failed(known[2]):
            return await asyncio.shield(known[2])
        task = asyncio.create_task(self._read_job(job, moment))
        task.add_done_callback(_has_failed)  # the page that waits for it may be closed
        self._details[job, moment] = (seen, clock(), task)
        self._details.move_to_end((job, moment))
        while len(self._details) > _KEPT:
            self._details.popitem(last=False)
        return await asyncio.shield(task)

    def expire(self) -> None:
        """The next look reads again: somebody has just asked for something."""
        self._due_at = 0.0
        self._details.clear()

    async def lease(self) -> OpenLease:
        """The lease, for a request of its own."""
        if self._lease is None:
            self._opened = AsyncExitStack()
            self._lease = OpenLease(await self._opened.enter_async_context(self._store()), self.name, _LIMIT)
        if self._closing is not None:
            self._closing.cancel()
        loop = asyncio.get_running_loop()
        self._closing = loop.call_later(_IDLE, self._close)
        return self._lease

    def _close(self) -> None:
        self._closer = asyncio.create_task(self.aclose())

    def _store(self) -> Any:
        if self.campaign is not None:  # as the campaign opens it: they share its few connections
            return open_store(self.campaign.target)
        return open_store(self._source, create_tables=False)

    async def aclose(self) -> None:
        """Gives the connection back. The next look opens another."""
        if self._reading is not None:
            await asyncio.wait([self._reading])
        if self._closing is not None:
            self._closing.cancel()
        opened, self._opened, self._lease, self._closing = self._opened, None, None, None
        if opened is not None:
            await opened.aclose()

    async def _read(self) -> None:
        """Reads once."""
        clock = asyncio.get_running_loop().time
        try:
            lease = await self.lease()
            seen = _shortened(await look(lease))
            terms = await lease.ask(lambda store: store.terms(lease.name, limit=_TERMS))
            await self._follow(lease, seen)
            self._shown = Shown(
                seen=seen,
                wrong=wrong_with(seen),
                jobs=worst_first(seen.jobs),
                terms=with_last_end(terms, seen.lease),
                trails=dict(self._trails),
                database=lease.database,
            )
            self._read_at, self._problem = clock(), ""
        except AioleaseError as error:
            self._problem = str(error)
        finally:
            self._due_at, self._reading = clock() + self._period, None

    async def _follow(self, lease: OpenLease, seen: Seen) -> None:
        """Follows the ended runs of each job: the newest comes with the look, those before it a few jobs at a time."""
        for job in seen.jobs:
            mark = job.last and (job.last.tick, job.last.attempt, job.last.status)
            if job.last is not None and self._marks.get(job.job) != mark:
                before = [run for run in self._trails.get(job.job, []) if run.tick != job.last.tick]
                self._trails[job.job] = sorted([*before, job.last], key=lambda run: run.tick)[-_TRAIL:]
                self._marks[job.job] = mark
                self._hungry[job.job] = None
        gone = self._trails.keys() - seen.overview.jobs.keys()
        for name in gone:
            del self._trails[name], self._marks[name]
            self._hungry.pop(name, None)
        for name in [*self._hungry][:_FILLED]:
            rows = await lease.ask(lambda store, name=name: _ended(store, lease.name, name))  # type: ignore[misc]
            self._trails[name] = rows or self._trails[name]
            del self._hungry[name]

    async def _read_job(self, job: str, moment: datetime | None) -> JobShown:
        async with self._one_job:  # however many pages are open, the election waits for one statement of theirs
            lease = await self.lease()
            facts, asked = await facts_of(lease, job, moment)
            rows = await lease.ask(lambda store: store.history(lease.name, job, limit=_RUNS))
        facts = replace(facts, rows=[_short(run) for run in facts.rows])
        return JobShown(runs=[_short(run) for run in rows], why=why(facts, asked))


async def _ended(store: Store, name: str, job: str) -> list[RunRecord]:
    """The newest runs of a job that have ended, as far as its newest rows have them."""
    rows = await store.history(name, job, limit=_TRAIL)
    return [_short(run) for run in rows if run.status in {"succeeded", "failed", "lost"}]


def _has_failed(task: asyncio.Task[JobShown]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _short(run: RunRecord) -> RunRecord:
    """A run with no more text than aiolease itself writes: another hand may have written any."""
    if len(run.error or "") <= MAX_ERROR and len(run.earlier or "") <= MAX_EARLIER:
        return run
    return replace(run, error=kept(run.error), earlier=run.earlier and run.earlier[-MAX_EARLIER:])


def _shortened(seen: Seen) -> Seen:
    """A look, its runs as `_short` has them."""
    jobs = {
        name: replace(each, last=short)
        for name, each in seen.overview.jobs.items()
        if each.last is not None and (short := _short(each.last)) is not each.last
    }
    if not jobs:
        return seen
    standings = [replace(job, last=jobs[job.job].last) if job.job in jobs else job for job in seen.jobs]
    return replace(seen, overview=replace(seen.overview, jobs=seen.overview.jobs | jobs), jobs=standings)
