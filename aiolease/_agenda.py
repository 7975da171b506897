"""What the jobs of one term have to do next: which ticks are due, which runs wait, what is to be written. No I/O here.

`aiolease._term` asks for a plan, has it written, and starts the runs of what was written. It tells what it has read,
and which runs have ended; nothing else changes an agenda. One heap holds the next tick of each job, another one the
jobs of which a run waits for a place: the one that was served longest ago comes first (DESIGN rule 45). What a plan
costs depends on what it changes, and not on how much waits.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Literal

from aiolease._fence import RunKey, Term
from aiolease._ledger import MOST_MISSED, Due, Skip, begun, due, inherited, overdue, start_of_last, too_late, without
from aiolease._records import Batch, Change, Enrolment, JobRecord, Place, RunRecord, RunStatus, Stock
from aiolease._runs import Job
from aiolease._schedule import Schedule, means_the_same, read_schedule, ticks_between
from aiolease.events import describe

_MOMENT = timedelta(microseconds=1)

_AHEAD = 60.0
"""Seconds by which a job may be settled ahead of the database's clock before it is told."""

_NEVER = datetime.min.replace(tzinfo=UTC)

_NOT_ENDED = "its last run has not ended"

_SOON = 0.1
"""The part of the patience after which ticks that were put off are written with what is written anyhow."""


@dataclass(slots=True, eq=False)
class Waiting:
    """A run that is claimed and waits its turn: queued in the ledger, or running there if its answer was lost.

    `token` is that of the term that claimed it: a run that an earlier term queued is taken over as it begins.
    """

    job: Job
    tick: datetime
    attempt: int
    token: int
    status: RunStatus = "queued"


@dataclass(frozen=True, slots=True)
class _Series:
    """Ticks of a job that were skipped one after another for one reason: a row that grows (DESIGN rule 48)."""

    first: datetime
    last: datetime
    count: int
    reason: str
    grown: bool = False


@dataclass(slots=True)
class Plan:
    """A batch, and what follows once it is written."""

    batch: Batch
    pending: list[Change]  # those of its changes that were to be written anyhow
    waiting: list[Waiting] = field(default_factory=list)  # that start
    overdue: list[Waiting] = field(default_factory=list)  # that are too old to start
    claims: list[tuple[Job, RunRecord]] = field(default_factory=list)
    skips: list[tuple[Job, Skip]] = field(default_factory=list)  # in the order of their claims
    threads: int = 0  # that it needs
    series: dict[str, list[_Series | None]] = field(default_factory=dict)  # of ticks; None: one of them is run
    taken: dict[str, int] = field(default_factory=dict)  # how many of a job's waiting runs are among them
    served: dict[str, int] = field(default_factory=dict)  # when the jobs that get a place had the one before

    def jobs(self) -> set[str]:
        """The jobs that it writes of."""
        batch = self.batch
        return {change.key.job for change in batch.changes} | {job.name for job, _ in self.claims} | {*batch.high_ticks}

    def starting(self, token: int) -> list[RunKey]:
        """The runs that start once it is written."""
        waiting = [RunKey(run.job.name, run.tick, run.attempt, token) for run in self.waiting]
        return waiting + [RunKey(run.job, run.tick, 1, token) for _, run in self.claims if run.status == "running"]


@dataclass(slots=True, eq=False)
class _Standing:
    """How a job stands.

    Attributes:
        job: The job.
        settled_until: The moment up to which its ticks are claimed, skipped, or not to be run.
        high_tick: As the ledger has it.
        lined_up: Whether its next tick is on the heap.
        held: Whether its ticks wait until the earlier ones have been run.
        paused: Whether somebody has paused it.
        refused: How often a batch with its request was refused.
        going_on: How many of its runs go on, running or waiting.
        running: How many of these run.
        served: When one of its runs last got a place, in no unit.
        in_line: Whether it is in line for one.
        unread: How many of its runs are queued in the ledger and have not been read: those with the newest ticks.
        inherited: Whether one of an earlier term has been among them since there was none.
        backlog: Whether one that had to wait has been.
        series: The ticks that were skipped last, if none has been run since.
        busy_until: When its last run ended, if ticks that fell due before that were put off.
    """

    job: Job
    settled_until: datetime = _NEVER
    high_tick: datetime | None = None
    lined_up: bool = False
    held: bool = False
    paused: bool = False
    refused: int = 0
    going_on: int = 0
    running: int = 0
    served: int = 0
    in_line: bool = False
    unread: int = 0
    inherited: bool = False
    backlog: bool = False
    series: _Series | None = None
    busy_until: datetime | None = None


class Agenda:
    """What is due, and what waits, of the jobs of one registry in one term.

    Args:
        jobs: The registry's.
        term: The term.
        young: Seconds for which a tick is due and not yet missed.
        max_running: How many runs may go on at once.
        max_threads: How many of them may be in threads.
        patience: Seconds for which skipped ticks that follow on others sooner than that wait for other writing.
        in_thread: Says whether a run of a job still goes on in a thread that an earlier term left behind.
        left_behind: Says how many such threads there are.
    """

    def __init__(
        self,
        jobs: Iterable[Job],
        term: Term,
        *,
        young: float,
        max_running: float,
        max_threads: float = math.inf,
        patience: float = 0.0,
        in_thread: Callable[[Job], bool],
        left_behind: Callable[[], int] = lambda: 0,
    ) -> None:
        self._jobs = {job.name: _Standing(job) for job in jobs}
        self._term = term
        self._young = young
        self._max_running = max_running
        self._in_thread = in_thread
        self._left_behind = left_behind
        self.threadless = False
        """Whether the process has no thread to give for now."""
        self._threads = max_threads  # how many more may be had
        self._most_threads = max_threads
        self._heap: list[tuple[datetime, str]] = []
        self._waiting: dict[str, deque[Waiting]] = {}  # by job, in the order of their ticks
        self._line: list[tuple[int, datetime, str]] = []  # the jobs whose oldest waiting run may start
        self._thread_line: list[tuple[int, datetime, str]] = []  # those that need a thread for it
        self._served = 0
        self._behind_threads: set[str] = set()  # jobs that wait for a thread that an earlier term left
        self._hungry: set[str] = set()  # jobs whose next queued runs are to be read
        self._pending: set[Place] = set()  # what was to be queued anew, and perhaps has been
        self._behind_pending: set[str] = set()  # jobs whose other runs wait until that is written, and read
        self._first = True
        self._there: dict[str, set[datetime]] = {}  # ticks above the high tick that have a row all the same
        self.aside: set[str] = set()
        """The jobs of which nothing is planned for now."""
        self.at_fault: dict[str, str] = {}
        """The jobs that could not be planned, and why: to be set aside."""
        self._requests: dict[str, datetime] = {}  # when jobs were triggered, if that was not seen to
        self._patience = patience
        self._put_off: dict[str, datetime] = {}  # jobs whose skipped ticks wait to be written, and since when, in order
        self._now = _NEVER  # when it was last told
        self.over: list[tuple[str, Skip]] = []
        """Series of skipped ticks that are over, and were longer than was told: to be told."""

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def __iter__(self) -> Iterator[str]:
        return iter(self._jobs)

    def until_next(self, now: datetime) -> float | None:
        """Seconds until a tick is due, or is to be written; ``None`` if none is in sight."""
        left = [(self._heap[0][0] - now).total_seconds()] if self._heap else []
        left += [(since - now).total_seconds() + self._patience for since in islice(self._put_off.values(), 1)]
        return min(left, default=None)

    # -- what the ledger says

    def unknown_to(self, stock: Stock) -> list[Enrolment]:
        """The jobs that the ledger does not know, or not with their schedules."""
        found = []
        for name, each in self._jobs.items():
            schedule, known = each.job.schedule, stock.jobs.get(name)
            if name not in stock.unreadable and (known is None or _is_changed(known, schedule, stock.now)):
                since = stock.now if known else None
                found.append(Enrolment(job=name, schedule=schedule.expression, timezone=schedule.timezone, since=since))
        return found

    def plan_changed(self, stock: Stock, name: str) -> Plan | None:
        """What is to be written before a job gets another schedule: the ticks of its own one, up to the reading.

        They are queued, or skipped, as the job's `missed` and `max_age` say (DESIGN rule 50).
        """
        job, record = self._jobs[name].job, stock.jobs[name]
        former = read_schedule(record.schedule, record.timezone)  # none: of a version that this one does not know
        if former is None or record.paused_at is not None:
            return None
        after, now = record.settled_until, stock.now
        try:
            found = due(former, after, now, missed=job.missed, max_age=job.max_age, young=self._young)
            if not found.run and not found.skipped:
                return None
            last = (found.run or [found.skipped[-1].last])[-1]
            if name in self._there:
                found = without(found, self._there[name], former)
        except Exception as error:  # noqa: BLE001 - of a row by another hand; it is its job's trouble
            self.at_fault[name] = describe(error)
            return None
        plan = Plan(Batch(), [])
        for skip in found.skipped:
            self._plan_skip(plan, job, skip)
        for tick in found.run:
            self._plan_run(plan, job, tick, start=False)
        plan.batch.high_ticks[name] = last
        plan.batch.seen[name] = record.high_tick
        return plan

    def are_there(self, rows: Iterable[RunRecord]) -> None:
        """Takes the ticks of some rows for settled, since they are there."""
        for run in rows:
            self._there.setdefault(run.job, set()).add(run.tick)

    def unknown_here(self, stock: Stock) -> set[str]:
        """The jobs that the ledger knows, and this registry does not."""
        return stock.jobs.keys() - self._jobs.keys()

    def known_here(self, names: Iterable[str]) -> set[str]:
        """Those of some jobs that are of this registry."""
        return self._jobs.keys() & set(names)

    def take(
        self,
        stock: Stock,
        *,
        running: Collection[Place],
        pending: Sequence[Change],
        postponed: Collection[Place],
        ended: Collection[RunKey],
        unanswered: Collection[RunKey],
    ) -> list[tuple[RunRecord, Change]]:
        """Starts anew from a whole reading of the ledger, which knows all jobs.

        Args:
            stock: The reading.
            running: The runs of this term that go on.
            pending: Changes that are not written yet.
            postponed: Runs of this term that are to be queued anew, but not yet.
            ended: Runs of this term that have ended although the reading may not show it.
            unanswered: Runs of this term that were to start: the ledger may call them running, and they are not.

        Returns:
            The runs that earlier terms have left behind, and what becomes of each: to be written and told.
        """
        self._keep_busy()
        for collection in (
            self._heap,
            self._waiting,
            self._line,
            self._thread_line,
            self._behind_threads,
            self._hungry,
            self._put_off,
        ):
            collection.clear()
        self._threads = self._most_threads - sum(self._jobs[name].job.threaded for name, _ in running)
        for name, each in self._jobs.items():
            if name not in self.aside:
                record = stock.jobs[name]
                each.settled_until, each.high_tick = record.settled_until, record.high_tick
            self._keep_series(each)
            each.lined_up = each.held = each.in_line = False
            each.going_on = each.unread = stock.queued.get(name, 0)
            each.running = 0
            if each.unread:
                self._hungry.add(name)
                each.backlog = True
                each.inherited |= self._first
        self._first = False
        self._see_requests(stock)
        self._line_up_ticks(self._jobs)
        for name, _ in running:
            self._jobs[name].going_on += 1
            self._jobs[name].running += 1
        for change in pending:
            if change.status == "queued":  # it counts at once; the reading that follows the writing lines it up
                each = self._jobs[change.key.job]
                each.going_on += 1
                each.backlog = True
        left_behind = []
        for name, _ in postponed:
            self._jobs[name].going_on += 1
        self._pending = {(change.key.job, change.key.tick) for change in pending}
        self._behind_pending = {change.key.job for change in pending if change.status == "queued"}
        known = {*running, *self._pending, *postponed}
        for run in stock.unfinished:
            key = RunKey(run.job, run.tick, run.attempt, run.token)
            standing = self._jobs.get(run.job)
            if standing is None or run.job in self.aside or (run.job, run.tick) in known or key in ended:
                continue  # of a job that another leader has, or known better here
            if key in unanswered:
                # It was to be started, and has not been. It is not written back: the server may execute such a change
                # later than it should, when it is true again.
                standing.going_on += 1
                self._line_up(standing, run)
                continue
            job = standing.job
            change = inherited(run, rerun_lost=job.rerun_lost, max_age=job.max_age, now=stock.now)
            left_behind.append((run, change))
            if change.status == "queued":
                standing.going_on += 1
                standing.backlog = standing.inherited = True
                self._behind_pending.add(run.job)
        return left_behind

    def hungry(self, most: int) -> list[str]:
        """The jobs, at most so many, whose next queued runs are to be read."""
        if not self._hungry:  # a set that was large costs as much when it is empty
            return []
        return list(islice(self._hungry - self._behind_pending - self.aside, most))

    def feed(self, names: Collection[str], runs: Iterable[RunRecord], limit: int) -> None:
        """Lines up what was read: of each of the jobs the queued runs with the oldest ticks, at most `limit`."""
        found = Counter[str]()
        for run in runs:
            found[run.job] += 1
            if (run.job, run.tick) not in self._pending:
                self._jobs[run.job].unread -= 1
                self._line_up(self._jobs[run.job], run)
        for name in names:
            each = self._jobs[name]
            self._hungry.discard(name)
            if found[name] < limit and each.unread:  # there are no more; somebody has deleted some
                each.going_on -= each.unread - 1
                each.unread = 0
                self._gone(name)

    def look(self, stock: Stock) -> bool:
        """Sees who was paused, resumed or triggered since the last reading.

        Returns:
            Whether somebody has set the rows of a job right: then all is to be read anew.
        """
        before = {name for name, each in self._jobs.items() if each.paused}
        self._see_requests(stock)
        resumed = {name for name in before if not self._jobs[name].paused}
        for name in resumed & stock.jobs.keys():
            each = self._jobs[name]
            each.settled_until = max(each.settled_until, stock.jobs[name].settled_until)
        self._line_up_ticks(resumed)
        known = self.known_here(stock.jobs) - self.aside
        return any(stock.jobs[name].high_tick != self._jobs[name].high_tick for name in known)

    def silent(self, stock: Stock) -> dict[str, datetime]:
        """The jobs of which no tick is due for a while since a clock was ahead, and until when."""
        ahead = stock.now + timedelta(seconds=_AHEAD)
        settled = {name: stock.jobs[name].settled_until for name in self.known_here(stock.jobs)}
        return {name: until for name, until in settled.items() if until > ahead}

    def _see_requests(self, stock: Stock) -> None:
        for name, each in self._jobs.items():
            record = stock.jobs.get(name)  # none, if there is nothing to see
            each.paused = record is not None and record.paused_at is not None
        self._requests = {
            name: record.requested_at
            for name, record in stock.jobs.items()
            if name in self._jobs and name not in self.aside and record.requested_at is not None
        }

    def _line_up_ticks(self, names: Iterable[str]) -> None:
        """Puts the next tick of jobs on the heap, but for those that are there or wait for something."""
        for name in names:
            each = self._jobs[name]
            if not (each.lined_up or each.held or each.paused or name in self.aside):
                try:
                    tick = each.job.schedule.next_after(each.settled_until)
                except Exception as error:  # noqa: BLE001 - of a row by another hand; it is its job's trouble
                    self.at_fault[name] = describe(error)
                    continue
                if tick is not None:
                    each.lined_up = True
                    heapq.heappush(self._heap, (tick, name))

    def _line_up(self, standing: _Standing, run: RunRecord) -> None:
        standing.backlog = True
        waiting = Waiting(standing.job, run.tick, run.attempt, run.token, run.status)
        queue = self._waiting.setdefault(standing.job.name, deque())
        place = len(queue)
        while place and queue[place - 1].tick > run.tick:  # that of a trigger, which was seen later than it was made
            place -= 1
        queue.insert(place, waiting)
        self._put_in_line(standing)

    def _put_in_line(self, standing: _Standing) -> None:
        """Puts a job in line for a place, if its oldest waiting run may start."""
        name = standing.job.name
        waits = name in self._waiting and not standing.in_line and name not in self._behind_threads
        if waits and not (standing.job.one_by_one and standing.running):
            standing.in_line = True
            line = self._thread_line if standing.job.threaded else self._line
            heapq.heappush(line, (standing.served, self._waiting[name][0].tick, name))

    def _serve(self, plan: Plan, standing: _Standing) -> None:
        plan.served.setdefault(standing.job.name, standing.served)
        self._served += 1
        standing.served = self._served

    # -- what is to be done

    def plan(self, now: datetime, pending: list[Change], running: int, *, claim: bool, most: int) -> Plan | None:
        """What is to be written, and done once it is; ``None`` if there is nothing.

        Args:
            now: The database's clock.
            pending: Changes that are to be written anyhow.
            running: How many runs go on.
            claim: Whether runs may start.
            most: How many changes, and how many claims, go into one batch.
        """
        self._now = now
        plan = Plan(Batch(changes=pending.copy()), pending)
        if claim and len(pending) < most:
            free = self._max_running - running
            free -= self._plan_waiting(plan, now, free, most)
            free -= self._plan_requests(plan, free, most)
            self._plan_due(plan, now, free, most)
        elif not claim:
            self._plan_put_off(plan, now, most)
        return plan if plan.batch or plan.waiting else None

    def _plan_waiting(self, plan: Plan, now: datetime, free: float, most: int) -> int:
        """Starts runs that wait their turn while there are places, which go round the jobs."""
        for name in [name for name in self._behind_threads if not self._in_thread(self._jobs[name].job)]:
            self._behind_threads.discard(name)
            self._put_in_line(self._jobs[name])
        taken = plan.taken
        while (line := self._next_line(plan)) and len(plan.waiting) < free and len(plan.batch.changes) < 2 * most:
            _, _, name = heapq.heappop(line)
            standing = self._jobs[name]
            standing.in_line = False
            job = standing.job
            if name in self.aside or name not in self._waiting or (job.one_by_one and standing.running):
                continue  # one of its runs ended while the start of the next was being written
            queue, number = self._waiting[name], taken.get(name, 0)
            waiting = queue[number]
            old = waiting.token != self._term.token
            why = overdue(waiting.tick, job.max_age, now) if old or waiting.attempt == 1 else None
            if waiting.status != "queued":
                why = None
            if why is None and job.one_by_one and self._in_thread(job):
                self._behind_threads.add(name)
                continue
            taken[name] = number + 1
            key = RunKey(name, waiting.tick, waiting.attempt, waiting.token)
            if why is not None:
                plan.overdue.append(waiting)
                plan.batch.changes.append(too_late(key, why))
                if waiting.attempt == 1:
                    plan.skips.append((job, Skip(waiting.tick, waiting.tick, 1, why)))
            else:
                self._serve(plan, standing)
                plan.threads += job.threaded
                plan.waiting.append(waiting)
                if waiting.status == "queued":
                    plan.batch.changes.append(begun(key, adopt=old))
            if number + 1 < len(queue) and (why is not None or not job.one_by_one):
                standing.in_line = True
                heapq.heappush(line, (standing.served, queue[number + 1].tick, name))
        return len(plan.waiting)

    def _plan_requests(self, plan: Plan, free: float, most: int) -> int:
        started = 0
        for name, requested_at in self._requests.items():
            if len(plan.claims) >= most:
                break
            each = self._jobs[name]
            job = each.job
            if name in self.aside:
                continue
            try:
                of_schedule = job.schedule.latest_between(requested_at - _MOMENT, requested_at) is not None
                # A clock that was set back may show one moment twice; but a refusal may have had another cause.
                tick = requested_at + max(each.refused - 1, 0) * _MOMENT
            except Exception as error:  # noqa: BLE001 - as above
                self.at_fault[name] = describe(error)
                continue
            plan.batch.requests[name] = requested_at
            if of_schedule and (not each.paused or each.settled_until >= requested_at):
                continue  # it is run, or was, as a tick of the schedule
            if job.overlap == "skip" and self._goes_on(each):
                self._plan_skip(plan, job, Skip(tick, tick, 1, "triggered while its last run had not ended"))
            else:
                start = started < free and not self._waits(plan, name) and self._has_thread(plan, job)
                self._plan_run(plan, job, tick, start=start)
                started += start
        return started

    def _plan_due(self, plan: Plan, now: datetime, free: float, most: int) -> None:
        """Claims all that is due now; what is popped from the heap is put back when it is known what was written."""
        triggered = {job.name for job, run in plan.claims if run.status != "skipped"}
        recalled = self._recall(now, self._patience * (_SOON if plan.batch else 1.0))
        while self._heap and self._heap[0][0] <= now and len(plan.claims) < 2 * most:
            if len(plan.claims) - len(plan.skips) >= most:
                break
            _, name = heapq.heappop(self._heap)
            each = self._jobs[name]
            each.lined_up = False
            job = each.job
            if each.paused or name in self.aside:
                continue
            late = (job.missed == "all" and each.backlog) or each.inherited
            if (late and each.going_on) or (job.overlap == "skip" and name in triggered):
                each.held = True  # it follows, and is no overlap
                continue
            try:
                found = self._due(each, now)
            except Exception as error:  # noqa: BLE001 - as above
                self.at_fault[name] = describe(error)
                continue
            if not found.run and not found.skipped:  # settled since it was lined up: paused, and resumed
                self._line_up_ticks([name])
                continue
            if name not in recalled and self._may_wait(each, found):
                each.busy_until = None
                self._put_off.pop(name, None)  # they are in the order of their moments
                self._put_off[name] = now
                continue
            busy, backlog = self._goes_on(each), job.missed == "all" and len(found.run) > 1
            last = (found.run or [found.skipped[-1].last])[-1]
            if name in self._there:
                found = without(found, self._there[name], job.schedule)
            self._plan_series(plan, each, found)
            for skip in found.skipped:
                self._plan_skip(plan, job, skip)
            for number, tick in enumerate(found.run):
                behind = number > 0 or (busy and backlog) or self._waits(plan, name)
                start = free > 0 and not behind and self._has_thread(plan, job)
                self._plan_run(plan, job, tick, start=start)
                free -= start
            plan.batch.high_ticks[name] = last
            plan.batch.seen[name] = each.high_tick

    def _due(self, each: _Standing, now: datetime) -> Due:
        """What becomes of the ticks of a job that are due, considering what else of it goes on."""
        job, after = each.job, each.settled_until
        while_busy = self._due_while_busy(each, now)
        if while_busy is not None:
            after = while_busy.last
        found = due(job.schedule, after, now, missed=job.missed, max_age=job.max_age, young=self._young)
        why, backlog = None, job.missed == "all" and len(found.run) > 1
        if each.going_on >= MOST_MISSED:
            why = f"{MOST_MISSED} of its runs wait"
        elif job.overlap == "skip" and not backlog and self._goes_on(each):
            why = _NOT_ENDED
        if found.run and why is not None:
            count = job.schedule.count_between(after, found.run[-1])
            first = found.skipped[0].first if found.skipped else found.run[0]
            found = Due(skipped=[Skip(first, found.run[-1], count, why)])
        if while_busy is not None:
            found.skipped.insert(0, while_busy)
        return found

    def _may_wait(self, each: _Standing, found: Due) -> bool:
        """Whether ticks only lengthen a row of skipped ones, since a run goes on, and more are to come soon."""
        if found.run or len(found.skipped) != 1 or not each.going_on:
            return False
        [skip] = found.skipped
        following = each.job.schedule.next_after(skip.last)
        soon = following is not None and (following - skip.last).total_seconds() < self._patience
        return soon and skip.reason == _NOT_ENDED and self._continues(each, skip)

    def _plan_series(self, plan: Plan, each: _Standing, found: Due) -> None:
        """Has skipped ticks that go on from those before them lengthen their row."""
        series: list[_Series | None] = []
        for number, skip in enumerate(found.skipped):
            before = each.series
            if number == 0 and before is not None and self._continues(each, skip):
                plan.batch.extends[each.job.name, skip.last] = before.last
                series.append(_Series(before.first, skip.last, before.count + skip.count, skip.reason, grown=True))
            else:
                series.append(_Series(skip.first, skip.last, skip.count, skip.reason))
        plan.series[each.job.name] = [*series, None] if found.run else series

    def _recall(self, now: datetime, patience: float) -> set[str]:
        """Lines up again the jobs whose skipped ticks have waited long enough."""
        recalled = set[str]()
        for name, since in self._put_off.items():
            if (now - since).total_seconds() < patience and since <= now:
                break
            recalled.add(name)
        for name in recalled:
            del self._put_off[name]
            if self._jobs[name].going_on:  # until now, and so they are no backlog
                self._jobs[name].busy_until = now
        self._line_up_ticks(recalled)
        return recalled

    def _plan_put_off(self, plan: Plan, now: datetime, most: int) -> None:
        """Has the ticks that were put off written, before a term ends in which no more are claimed."""
        for name in [*islice(self._put_off, most)]:
            del self._put_off[name]
            each = self._jobs[name]
            each.busy_until = now
            if each.paused or name in self.aside or (skip := self._due_while_busy(each, now)) is None:
                continue
            self._plan_series(plan, each, Due(skipped=[skip]))
            self._plan_skip(plan, each.job, skip)
            plan.batch.high_ticks[name] = skip.last
            plan.batch.seen[name] = each.high_tick

    @staticmethod
    def _due_while_busy(each: _Standing, now: datetime) -> Skip | None:
        """The ticks of a job that were put off, and fell due before its last run ended."""
        after, schedule = each.settled_until, each.job.schedule
        if each.busy_until is None:
            return None
        until = min(each.busy_until, now)  # the clock may have gone back meanwhile
        if until <= after:
            return None
        first, last = schedule.next_after(after), schedule.latest_between(after, until)
        if first is None or last is None:
            return None
        return Skip(first, last, schedule.count_between(after, until), _NOT_ENDED)

    @staticmethod
    def _continues(each: _Standing, skip: Skip) -> bool:
        """Whether skipped ticks go on from those before them."""
        return each.series is not None and each.series.last == each.settled_until and each.series.reason == skip.reason

    def _note_series(self, plan: Plan) -> None:
        for name, steps in plan.series.items():
            for series in steps:
                if series is None or not series.grown:
                    self._end_series(self._jobs[name])
                self._jobs[name].series = series

    def _keep_busy(self) -> None:
        """The runs of jobs whose ticks were put off went on when it was last looked: those ticks are no backlog."""
        for name in self._put_off:
            self._jobs[name].busy_until = self._now

    def _keep_series(self, each: _Standing) -> None:
        """After a reading it goes on if its last tick is the newest that is settled: its row may have been lost."""
        if each.series is not None and (each.job.name in self.aside or each.settled_until != each.series.last):
            self._end_series(each)

    def _end_series(self, each: _Standing) -> None:
        series, each.series = each.series, None
        if series is not None and series.grown:
            self.over.append((each.job.name, Skip(series.first, series.last, series.count, series.reason)))

    def end_all_series(self) -> None:
        """No tick is skipped any more: see `over`."""
        for each in self._jobs.values():
            self._end_series(each)

    def conflicts(self, plan: Plan, rows: Iterable[RunRecord], now: datetime) -> list[Place]:
        """Takes the ticks of rows that are there for settled (DESIGN rule 44): of those that a plan was to claim.

        Returns:
            Other ticks of those jobs that may have a row, too: to be looked up as well.
        """
        claimed = {(run.job, run.tick) for run in plan.batch.claims}
        others = set[Place]()
        rows = list(rows)
        self.are_there(rows)
        for run in rows:
            if (run.job, run.tick) in claimed:
                each = self._jobs[run.job]
                since = start_of_last(each.job.schedule, each.settled_until, now)
                others |= {(run.job, tick) for tick in ticks_between(each.job.schedule, since, now)}
        return sorted(others - claimed)

    def _next_line(self, plan: Plan) -> list[tuple[int, datetime, str]]:
        """The line whose first has the next turn: of two, since who waits for a thread holds up no one else."""
        if not self._thread_line or not self._thread_to_be_had(plan):
            return self._line
        return min(self._line, self._thread_line) if self._line else self._thread_line

    def _has_thread(self, plan: Plan, job: Job) -> bool:
        """Whether one more run of a job could start: a thread is to be had for it, or it needs none."""
        return not job.threaded or self._thread_to_be_had(plan)

    def _thread_to_be_had(self, plan: Plan) -> bool:
        return not self.threadless and self._threads - self._left_behind() > plan.threads

    def _waits(self, plan: Plan, name: str) -> bool:
        """Whether an older run of a job waits, and does not start by this plan."""
        read = len(self._waiting.get(name, ()))
        return self._jobs[name].unread > 0 or plan.taken.get(name, 0) < read

    def _plan_run(self, plan: Plan, job: Job, tick: datetime, *, start: bool) -> None:
        if start:
            self._serve(plan, self._jobs[job.name])
            plan.threads += job.threaded
        status: Literal["running", "queued"] = "running" if start else "queued"
        record = RunRecord(job=job.name, tick=tick, token=self._term.token, holder=self._term.holder, status=status)
        plan.claims.append((job, record))
        plan.batch.claims.append(record)

    def _plan_skip(self, plan: Plan, job: Job, skip: Skip) -> None:
        record = RunRecord(
            job=job.name, tick=skip.last, token=self._term.token, holder=self._term.holder, status="skipped",
            error=skip.reason, tick_from=skip.first, count=skip.count,
        )  # fmt: skip
        plan.claims.append((job, record))
        plan.batch.claims.append(record)
        plan.skips.append((job, skip))

    def _goes_on(self, standing: _Standing) -> bool:
        return standing.going_on > 0 or self._in_thread(standing.job)

    # -- what became of it

    def written(self, plan: Plan) -> list[Waiting]:
        """Notes that a plan was written; returns the runs that start."""
        self._threads -= plan.threads
        for name, number in plan.taken.items():
            queue = self._waiting[name]
            for _ in range(number):
                queue.popleft()
            if not queue:
                del self._waiting[name]
                if self._jobs[name].unread:
                    self._hungry.add(name)
        for waiting in plan.waiting:
            self._jobs[waiting.job.name].running += 1
        for waiting in plan.overdue:
            self._gone(waiting.job.name)
        starting = plan.waiting.copy()
        for job, record in plan.claims:
            if record.status != "skipped":
                self._claimed(self._jobs[job.name], record)
            if record.status == "running":
                starting.append(Waiting(job, record.tick, 1, self._term.token, "running"))
        self._note_series(plan)
        for name in plan.batch.requests:
            self._requests.pop(name, None)
            self._jobs[name].refused = 0
        for name, tick in plan.batch.high_ticks.items():
            each = self._jobs[name]
            each.settled_until = each.high_tick = tick
            each.busy_until = None
            self._there.pop(name, None)
        self._line_up_ticks(plan.batch.high_ticks)
        return starting

    def _claimed(self, standing: _Standing, run: RunRecord) -> None:
        standing.going_on += 1
        if run.status == "running":
            standing.running += 1
        elif standing.unread:  # it is read in its turn
            standing.unread += 1
        else:
            self._line_up(standing, run)

    def not_written(self, plan: Plan, *, refused: bool) -> None:
        """Notes that a plan was perhaps not written, or was refused."""
        self._line_up_ticks(plan.batch.high_ticks)
        for name, before in plan.served.items():  # nothing has begun: their turns are still to come
            self._jobs[name].served = before
        if refused:
            for name in plan.batch.requests:
                self._jobs[name].refused += 1
            for name, _ in plan.batch.extends:  # perhaps its row is gone
                self._end_series(self._jobs[name])

    def ended(self, name: str, now: datetime) -> None:
        """A run of a job is over, by the database's clock at `now`."""
        self._now = now
        self._jobs[name].running -= 1
        self._threads += self._jobs[name].job.threaded
        self._gone(name)

    def postponed(self, name: str) -> None:
        """A run of a job that is over is to be queued anew after a while: until then it goes on, in no place."""
        self._jobs[name].going_on += 1

    def _gone(self, name: str) -> None:
        """A run of a job does not go on, nor wait, any more."""
        each = self._jobs[name]
        each.going_on -= 1
        if each.going_on:
            self._put_in_line(each)
            return
        each.inherited = False
        if self._put_off.pop(name, None) is not None:
            each.busy_until = self._now
            self._line_up_ticks([name])
        if each.held:
            each.held = False
            self._line_up_ticks([name])
        else:
            each.backlog = False


def _is_changed(known: JobRecord, schedule: Schedule, now: datetime) -> bool:
    """Whether the ledger knows a job with a schedule that means something else."""
    if (known.schedule, known.timezone) == (schedule.expression, schedule.timezone):
        return False
    former = read_schedule(known.schedule, known.timezone)
    return former is None or not means_the_same(former, schedule, now)
