"""Once per lease each process looks at the ledger, whether it waits or leads, and tells what is wrong (DESIGN rule 43).

1. Nobody leads, and the lease has been free or expired for longer than a lease (`Leaderless`).
2. The leader does not run jobs of this process (`UnknownJobs`): two applications use one lease. The leader makes the
   rows of its jobs as its term begins, and notes its term in them. An older version of the leader notes no term: then a
   job is unknown if its ticks pass unclaimed, while those of other jobs are claimed.
3. A job is overdue (`Overdue`): see `standing`.

A tick that passed is taken for late only once it was seen at two looks. Between them the leader had a whole lease by
the clock of this process: a step of the database's clock, or a leader that has just begun, makes no job overdue.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from aiolease._clock import ahead_of, current_clock
from aiolease._election.health import STORE_ERRORS
from aiolease._election.status import Sight
from aiolease._election.timings import Timings
from aiolease._event import named
from aiolease._jobs.job import Job
from aiolease._jobs.schedule import means_the_same, read_schedule
from aiolease._jobs.standing import JobStanding, standing
from aiolease._logging import emit
from aiolease._waiting import time_limited
from aiolease.events import JobsSeen, Leaderless, Notice, Observer, Overdue, UnknownJobs, describe
from aiolease.stores import Store
from aiolease.stores.records import JobRecord
from aiolease.stores.seen import Overview

_AT_ONCE = 200
"""Of how many jobs it is reckoned or told in one step how they stand; others of the loop have their turn between."""

_LINES = 3
"""If more jobs become overdue at once, one line tells of them together."""

_LOOKS, _LOOKS_OF_YOUNG = 2, 4
"""At how many looks in a row a tick must have passed; and where the term has just begun, again and again."""


class Lookout:
    """Looks at the ledger for one registry and one lease.

    Attributes:
        trouble: What was wrong at the latest look; ``None`` if nothing was.
    """

    def __init__(self, jobs: Mapping[str, Job], lease: str, timings: Timings, observer: Observer | None) -> None:
        self.trouble: str | None = None
        self._jobs = jobs
        self._lease = lease
        self._limit = timings.attempt
        self._observer = observer
        self._looked = deque[datetime](maxlen=_LOOKS_OF_YOUNG)  # the database's clock at the latest looks
        self._leaderless: Leaderless | None = None
        self._unknown: UnknownJobs | None = None
        self._overdue: dict[str, JobStanding] = {}

    def _what_is_wrong(self) -> str | None:
        told = [event.phrase for event in (self._leaderless, self._unknown) if event is not None]
        if len(self._overdue) == 1:
            told += [_event(job, lease=self._lease).phrase for job in self._overdue.values()]
        elif self._overdue:
            told.append(self._several(self._overdue.values()))
        return "; ".join(told) or None

    @property
    def jobs(self) -> tuple[str, ...]:
        """The names of the jobs, in their order."""
        return tuple(sorted(self._jobs))

    async def look(self, store: Store, sight: Sight) -> None:
        """Looks once, in one statement, and tells what has changed; raises nothing."""
        if not self._jobs:
            return
        clock = current_clock()
        asked_at = clock()
        try:
            overview = await time_limited(self._limit, store.description, store.overview(self._lease))
        except STORE_ERRORS:  # the candidate, or the leader, tells of it
            self._looked.clear()  # the leader may be as badly off: it is to have a whole lease from the next look on
            return
        clock_offset = ahead_of(overview.now, clock() - asked_at)
        try:
            await self._judge(sight, overview, clock_offset)
        except Exception as error:  # noqa: BLE001 - of a row by another hand: the next look is to come all the same
            self.trouble = f"could not judge how the jobs of {self._lease!r} stand: {describe(error)}"
            emit(Notice(lease=self._lease, severity="ERROR", text=self.trouble), self._observer)

    async def _judge(self, sight: Sight, overview: Overview, clock_offset: float) -> None:
        self._looked.append(overview.now)
        jobs = await self._stand(sight, overview)
        facts: dict[str, Any] = {"lease": self._lease, "holder": sight.holder, "token": sight.token}
        how: dict[str, Any] = {"jobs": tuple(jobs.values()), "leading": sight.leads, "clock_offset": clock_offset}
        emit(JobsSeen(**facts, **how, now=overview.now), self._observer)
        self._tell_leaderless(sight, overview.now, facts)
        self._tell_unknown(sight, overview, jobs, facts)
        await self._tell_overdue(jobs, facts)
        self.trouble = self._what_is_wrong()

    def forget(self) -> None:
        """This process neither waits nor leads: what was seen does not count any more."""
        self._looked.clear()
        self.trouble = self._leaderless = self._unknown = None
        self._overdue = {}

    async def _stand(self, sight: Sight, overview: Overview) -> dict[str, JobStanding]:
        """How the jobs stand; overdue are only those whose leader had the time to do something about it."""
        found = {}
        for number, (name, job) in enumerate(sorted(self._jobs.items())):
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
            if (seen := overview.jobs.get(name)) is None:
                continue
            how = standing(
                seen, overview.pause, overview.now, lease_duration=sight.duration, job=job, lease=self._lease
            )
            if how.overdue and not (name in self._overdue or self._has_stayed(how, sight)):
                how = replace(how, overdue=0.0)
            found[name] = how
        return found

    def _has_stayed(self, job: JobStanding, sight: Sight) -> bool:
        """Whether a job's next tick had passed at the looks before this one, too.

        One look may be right behind a step of the clock, or right after the election of a leader. Leaders that are
        elected one after another, and none of which does anything, are no excuse for ever.
        """
        passed, due = 0, self._looked[-1] - timedelta(seconds=job.late)
        for now in reversed(self._looked):
            if now < due:
                break
            passed += 1
        return passed >= (_LOOKS_OF_YOUNG if self._is_led(sight) and self._is_young(sight) else _LOOKS)

    def _is_led(self, sight: Sight) -> bool:
        return sight.holder is not None and sight.vacant == 0

    def _is_young(self, sight: Sight) -> bool:
        """Whether the leader may still be making the rows of its jobs, and claiming what fell due before it."""
        return sight.age < sight.duration / 2

    def _tell_leaderless(self, sight: Sight, now: datetime, facts: dict[str, Any]) -> None:
        before, self._leaderless = self._leaderless, None
        if sight.vacant > sight.duration:
            since = now - timedelta(seconds=sight.vacant)
            self._leaderless = Leaderless(**facts, since=since, lasts=sight.vacant)
            if before is None:
                emit(self._leaderless, self._observer)

    def _tell_unknown(
        self, sight: Sight, overview: Overview, jobs: Mapping[str, JobStanding], facts: dict[str, Any]
    ) -> None:
        if sight.leads or not self._is_led(sight):
            self._unknown = None
            return
        if self._is_young(sight):
            return
        unknown = tuple(sorted(self._unknown_jobs(sight, overview, jobs)))
        before = () if self._unknown is None else self._unknown.jobs
        self._unknown = UnknownJobs(**facts, jobs=unknown) if unknown else None
        if self._unknown is not None and unknown != before:
            emit(self._unknown, self._observer)

    def _unknown_jobs(self, sight: Sight, overview: Overview, jobs: Mapping[str, JobStanding]) -> Iterator[str]:
        """The jobs that the leader does not run.

        1. A job has no row, though the leader has made those of its jobs.
        2. Its row shows an earlier term, or none, though the leader has noted its term in others.
        3. The leader is of a version that notes no term. It claims ticks of other jobs, and none of this one.
        """
        rows = [seen.record for seen in overview.jobs.values()]
        began = overview.now - timedelta(seconds=sight.age)
        notes = any(row.token == sight.token for row in rows)
        claims = any(_has_claimed_since(began, row) for row in rows)
        for name, job in self._jobs.items():
            if name in overview.unreadable:
                continue
            row = overview.jobs[name].record if name in overview.jobs else None
            if row is None:
                yield name
            elif notes:
                if row.token is None or row.token < (sight.token or 0):
                    yield name
            elif claims and not _has_claimed_since(began, row) and self._passes(job, row, jobs.get(name), sight):
                yield name

    def _passes(self, job: Job, row: JobRecord, how: JobStanding | None, sight: Sight) -> bool:
        """Whether the leader lets ticks of a job pass; not if another version leads, or if it works off a backlog."""
        longest = 2 * sight.duration
        if how is None or min(sight.age, how.late) <= longest or not self._has_stayed(how, sight):
            return False
        known = read_schedule(row.schedule, row.timezone)
        return job.missed != "all" and known is not None and means_the_same(known, job.schedule, self._looked[-1])

    async def _tell_overdue(self, jobs: Mapping[str, JobStanding], facts: dict[str, Any]) -> None:
        unknown = set[str]() if self._unknown is None else set(self._unknown.jobs)
        before = self._overdue
        self._overdue = {name: how for name, how in jobs.items() if how.overdue and name not in unknown}
        new = [how for name, how in self._overdue.items() if name not in before]
        for number, how in enumerate(new):
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
            emit(_event(how, quiet=len(new) > _LINES, **facts), self._observer)
        if len(new) > _LINES:
            emit(Notice(**facts, severity="WARNING", text=self._several(new)), self._observer)
        if ended := [name for name in before if name not in self._overdue and name not in unknown]:
            text = f"not overdue any more in {self._lease!r}: {named(ended)}"
            emit(Notice(**facts, severity="INFO", text=text), self._observer)

    def _several(self, jobs: Collection[JobStanding]) -> str:
        first = sorted(jobs, key=lambda how: (-how.late, how.job))
        since, names = first[0].next_tick, named([how.job for how in first])
        return (
            f"{len(jobs)} jobs of {self._lease!r} are overdue, the first since {since:%Y-%m-%d %H:%M:%S} UTC: {names}"
        )


def _has_claimed_since(moment: datetime, row: JobRecord) -> bool:
    return row.high_tick is not None and row.high_tick >= moment


def _event(how: JobStanding, *, quiet: bool = False, **facts: Any) -> Overdue:
    assert how.next_tick is not None  # or it would not be late
    return Overdue(**facts, job=how.job, tick=how.next_tick, late=how.late, quiet=quiet)
