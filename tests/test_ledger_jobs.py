"""The ledger as jobs show it: each tick is run once, or accounted for, whatever leaders, answers and clocks do.

In virtual time. The database's clock starts at `START`; moments are given in seconds since then. A process is a task
with its own way to the server (`Line`), and may be killed: nothing that it sends arrives any more.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from unittest.mock import patch

import pytest

from aiolease import CommitUnknown, ConfigurationError, JobRegistry, JobRun, StoreUnavailable, leadership
from aiolease._fence import Refused
from aiolease._records import RunRecord, Stock
from aiolease._schedule import Every, ticks_between
from aiolease._term import TermOfJobs
from aiolease.errors import RunEnded
from aiolease.events import BodyStuck, Event, Lost, Notice, RunStarted
from aiolease.stores import open_store
from aiolease.testing import MemoryServer, MemoryStore
from tests import test_jobs
from tests.test_jobs import START, Observed, lines, seconds, virtual

if TYPE_CHECKING:
    from loguru import Message

T = TypeVar("T")

log = test_jobs.log

MOST_SENT = 5000
"""More than any test here needs to send: who sends more asks without a pause."""


class Line(MemoryStore):
    """A process's way to the server. `refused` names the methods that fail for now."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server)
        self.refused: set[str] = set()

    async def exchange(self, method: str, statement: Callable[[], T]) -> T:
        assert len(self.sent) < MOST_SENT, "it asks without a pause"
        if method not in self.refused:
            return await super().exchange(method, statement)
        self.sent.append((method, asyncio.get_running_loop().time()))
        await asyncio.sleep(0)
        raise StoreUnavailable(self.description, f"{method} is refused")

    def count(self, method: str) -> int:
        return sum(sent == method for sent, _ in self.sent)


class Process:
    """A process that serves a registry."""

    def __init__(self, server: MemoryServer, jobs: JobRegistry, **options: Any) -> None:
        self.store, self.observed = Line(server), Observed()
        options = {"on_event": self.observed} | options
        self.task = asyncio.create_task(jobs.serve(self.store, **options))

    async def end(self) -> None:
        """It is stopped in order: its jobs are cancelled, and it releases."""
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    async def kill(self) -> None:
        """Nothing that it sends arrives any more, and nothing of it goes on."""
        self.store.down = True
        await self.end()


class World:
    """One server, and the processes of a test."""

    def __init__(self, start: datetime = START) -> None:
        self.server = MemoryServer(start)
        self.server.now()
        self._since = asyncio.get_running_loop().time()
        self.processes: list[Process] = []

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time() - self._since

    async def until(self, moment: float) -> None:
        """Waits until then; fails at once if a process has."""
        tasks = [process.task for process in self.processes if not process.task.done()]
        waiting = asyncio.create_task(asyncio.sleep(moment - self.now))
        await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            for task in tasks:
                if task.done():
                    task.result()
        assert waiting.done()

    def start(self, jobs: JobRegistry, **options: Any) -> Process:
        self.processes.append(Process(self.server, jobs, **options))
        return self.processes[-1]

    def someone(self) -> Line:
        """The way to the server of one who only asks."""
        return Line(self.server)

    def step(self, by: float) -> None:
        """Steps the server's clock."""
        self.server.clock_offset += timedelta(seconds=by)

    @property
    def jobs(self) -> dict[str, Any]:
        return self.server.ledgers["default"].jobs

    def records(self, job: str = "job") -> list[RunRecord]:
        return self.server.ledgers["default"].history(job)

    def rows(self, job: str = "job") -> list[str]:
        """The rows of a job: ``10 succeeded``, ``20 queued #2`` for a second attempt, ``60 skipped 3`` for a range."""
        found = []
        for row in self.records(job):
            attempt = f" #{row.attempt}" if row.attempt > 1 else ""
            count = f" {row.count}" if row.status == "skipped" and row.count is not None else ""
            found.append(f"{seconds(row.tick):g} {row.status}{attempt}{count}")
        return found

    def accounted(self, first: float, last: float, interval: float, job: str = "job") -> None:
        """Every tick of a job, and none else, is one finished run, or in one range of skipped ones."""
        ticks: list[float] = []
        for row in self.records(job):
            assert row.status in {"succeeded", "skipped"}, row
            since = row.tick_from or row.tick
            of_row = [seconds(since)]
            while of_row[-1] < seconds(row.tick):
                of_row.append(of_row[-1] + interval)
            assert len(of_row) == (row.count or 1)
            ticks += of_row
        assert ticks == [first + number * interval for number in range(round((last - first) / interval) + 1)]


@asynccontextmanager
async def world(start: datetime = START) -> AsyncIterator[World]:
    """Its processes are killed when the block ends."""
    new = World(start)
    try:
        yield new
    finally:
        for process in new.processes:
            await process.kill()


class Work:
    """What a job did, in all processes: a function that takes some time."""

    def __init__(self, takes: float = 0.0) -> None:
        self.takes = takes
        self.begun: list[tuple[float, int]] = []
        self.ended: list[float] = []
        self.at_once = 0
        self.most_at_once = 0

    async def __call__(self, run: JobRun) -> None:
        self.begun.append((seconds(run.tick), run.attempt))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.takes)
        finally:
            self.at_once -= 1
        self.ended.append(seconds(run.tick))

    @property
    def ticks(self) -> list[float]:
        return [tick for tick, _ in self.begun]

    def once_each(self) -> None:
        assert [tick for tick, times in Counter(self.ticks).items() if times > 1] == []


def registry(
    work: Callable[..., object],
    every: float = 10,
    *,
    history: int | None = 100,
    max_running: int | None = None,
    **options: Any,
) -> JobRegistry:
    """A process's own registry, of one job."""
    jobs = JobRegistry(history=history, max_running=max_running)
    jobs.every(every, name=options.pop("name", "job"), **options)(work)
    return jobs


# -- where a job begins


@pytest.mark.parametrize(("since", "ticks"), [(3, [10, 20]), (10, [20]), (9.5, [10, 20])])
@virtual
async def test_a_new_job_starts_with_its_next_tick(since: float, ticks: list[float]) -> None:
    """What the database has never seen has missed nothing: it starts with the first tick after that."""
    async with world() as here:
        await here.until(since)
        work = Work()
        process = here.start(registry(work, missed="all"))
        await here.until(25)
        assert work.ticks == ticks
        assert here.rows() == [f"{tick} succeeded" for tick in ticks]
        assert process.observed.skipped("job") == []


@virtual
async def test_a_tick_costs_two_writes() -> None:
    """A tick costs its claim and the record of its end; what people ask is read once per heartbeat."""
    async with world() as here:
        process = here.start(registry(Work(), 20))
        await here.until(105)
        assert process.store.count("record") == 2 * 5
        assert process.store.count("take_stock") == 2 + 10
        assert process.store.count("enroll") == 1


@pytest.mark.parametrize(
    ("missed", "ran", "rows", "told"),
    [
        ("once", [720], ["600 skipped 4", "720 succeeded"], [(240, 4, "a newer one was due as well")]),
        ("all", [240, 360, 480, 600, 720], [f"{tick} succeeded" for tick in (240, 360, 480, 600, 720)], []),
        ("skip", [], ["720 skipped 5"], [(240, 5, "nobody led when they fell due")]),
    ],
)
@virtual
async def test_after_an_outage_a_job_catches_up_as_it_was_told(
    missed: Any, ran: list[float], rows: list[str], told: list[tuple[float, int, str]], log: list[Message]
) -> None:
    """Ticks that nobody ran for ten minutes are run by the policy; those that are not are one row, with its reason."""
    async with world() as here:
        first, second = Work(), Work()
        process = here.start(registry(first, 120, missed=missed))
        await here.until(190)
        await process.end()
        await here.until(790)
        process = here.start(registry(second, 120, missed=missed))
        await here.until(800)
        assert second.ticks == ran
        assert here.rows() == ["120 succeeded", *rows]
        skipped = [(seconds(each.since), each.count, each.reason) for each in process.observed.skipped("job")]
        assert skipped == told
        warnings = [line for line in lines(log, "WARNING") if line.startswith("skipped")]
        assert warnings == [f"skipped 'job', {count} ticks since 2026-01-01 00:04:00: {why}" for _, count, why in told]
        await here.until(850)
        assert second.ticks == [*ran, 840]


@pytest.mark.parametrize(("age", "ran"), [(59, True), (61, False)])
@virtual
async def test_a_tick_is_missed_when_it_is_as_old_as_two_leases(age: float, ran: bool) -> None:
    """A leader that comes within two leases runs the tick that it finds, though it is to skip what was missed."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, 200, missed="skip"))
        await here.until(195)
        await process.end()
        await here.until(200 + age)
        here.start(registry(work, 200, missed="skip"))
        await here.until(290)
        assert here.rows() == ["200 succeeded" if ran else "200 skipped 1"]
        assert work.ticks == ([200] if ran else [])


@pytest.mark.parametrize("missed", ["once", "skip", "all"])
@virtual
async def test_a_failover_loses_no_tick(missed: Any) -> None:
    """Ticks of a failover are due and not missed: the newest is run whatever the policy, by ``"all"`` every one."""
    async with world() as here:
        work = Work(0.5)
        leader = here.start(registry(work, missed=missed))
        await here.until(5)
        here.start(registry(work, missed=missed))
        await here.until(101)
        await leader.kill()
        await here.until(145)
        ran = work.ticks
        assert ran[:10] == [*range(10, 101, 10)]
        took_over = ran[10:]
        if missed == "all":
            assert took_over == [110, 120, 130, 140]
        else:
            (row,) = [row for row in here.records() if row.status == "skipped"]
            assert row.error == "a newer one was due as well"
            assert took_over[0] == seconds(row.tick) + 10
            assert seconds(row.tick_from or START) == 110
            assert len(took_over) + (row.count or 0) == 4
        here.accounted(10, 140, 10)
        assert work.most_at_once == 1


@pytest.mark.parametrize("overlap", ["skip", "allow"])
@pytest.mark.parametrize("takes", [4, 6, 9], ids=str)
@virtual
async def test_what_was_missed_is_run_one_after_another(takes: float, overlap: Any) -> None:
    """With ``missed="all"`` a backlog is run oldest first, never two at a time; what falls due meanwhile follows it."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, missed="all", overlap=overlap))
        await here.until(11)
        await process.end()
        await here.until(79)
        work.takes = takes
        here.start(registry(work, missed="all", overlap=overlap))
        await here.until(300)
        work.takes = 0
        await here.until(401)
        assert work.ticks == [*range(10, 401, 10)]
        assert work.most_at_once == 1
        here.accounted(10, 400, 10)


@virtual
async def test_what_falls_due_in_the_last_run_of_a_backlog_follows_it() -> None:
    """A tick that falls due before a backlog has been run is not skipped as an overlap, in its last run neither."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, missed="all"))
        await here.until(11)
        await process.end()
        await here.until(35)
        work.takes = 4
        here.start(registry(work, missed="all"))  # 20 and 30, from 35 to 43: 40 falls due in the second
        await here.until(62)
        assert work.ticks == [10, 20, 30, 40, 50, 60]


@virtual
async def test_a_backlog_goes_on_when_the_ledger_is_read_again() -> None:
    """An answer that was lost in the middle of a backlog skips nothing of what follows it."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, missed="all"))
        await here.until(11)
        await process.end()
        await here.until(79)
        work.takes = 7
        process = here.start(registry(work, missed="all"))
        for moment in range(85, 130, 5):
            await here.until(moment)
            process.store.lose_reply("record")
        await here.until(300)
        work.takes = 0
        await here.until(401)
        assert work.ticks == [*range(10, 401, 10)]
        assert work.most_at_once == 1


@pytest.mark.parametrize("first_write", ["answered", "unanswered", "refused"])
@virtual
async def test_a_backlog_outlives_its_leader(first_write: str) -> None:
    """Killed in the middle of a backlog, a leader leaves the rest to the next, which goes on in the same order."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, missed="all", rerun_lost=True))
        await here.until(11)
        await process.end()
        await here.until(79)
        work.takes = 6
        process = here.start(registry(work, missed="all", rerun_lost=True))
        await here.until(88)  # 20 was run, 30 is being run, 40 to 70 wait
        await process.kill()
        work.takes = 2
        process = here.start(registry(work, missed="all", rerun_lost=True))
        await here.until(105)
        if first_write == "unanswered":
            process.store.lose_reply("record")
        elif first_write == "refused":
            process.store.fail("record", StoreUnavailable("memory", "refused"), times=2)
        await here.until(205)
        assert work.begun[:4] == [(10, 1), (20, 1), (30, 1), (30, 2)]
        assert work.ticks == [10, 20, 30, *range(30, 201, 10)]
        assert work.most_at_once == 1
        here.accounted(10, 200, 10)


@virtual
async def test_what_is_too_old_is_not_run() -> None:
    """`max_age` bounds what is run after an outage, for every policy alike."""
    async with world() as here:
        jobs, work = JobRegistry(), {missed: Work() for missed in ("once", "all", "skip")}
        for missed, job in work.items():
            jobs.every(100, name=missed, missed=missed, max_age=150)(job)  # type: ignore[arg-type]
        process = here.start(jobs)
        await here.until(110)
        await process.end()
        await here.until(620)
        process = here.start(jobs)
        await here.until(690)
        assert {missed: job.ticks for missed, job in work.items()} == {
            "once": [100, 600], "all": [100, 500, 600], "skip": [100, 600],
        }  # fmt: skip
        assert here.rows("all") == ["100 succeeded", "400 skipped 3", "500 succeeded", "600 succeeded"]
        (skipped,) = process.observed.skipped("all")
        assert (skipped.count, skipped.reason) == (3, "more than 150 s late")


@virtual
async def test_a_run_whose_turn_comes_too_late_is_not_begun() -> None:
    """`max_age` holds for a run that waits for its turn, too: older than that, it is skipped, and that is told."""
    async with world() as here:
        jobs, long, short = JobRegistry(max_running=1), Work(70), Work()
        jobs.every(100, name="a")(long)
        jobs.every(100, name="b", max_age=20)(short)
        process = here.start(jobs)
        await here.until(190)
        assert here.rows("a") == ["100 succeeded"]
        assert short.ticks == []
        (row,) = here.records("b")
        assert (row.status, row.error) == ("skipped", "more than 20 s late")
        assert [(each.count, each.reason) for each in process.observed.skipped("b")] == [(1, "more than 20 s late")]
        long.takes = 0
        await here.until(205)
        assert short.ticks == [200]


# -- overlap, and places


@virtual
async def test_a_tick_beside_a_running_one_is_a_row(log: list[Message]) -> None:
    """With ``overlap="skip"`` ticks beside a run are one row that grows, and why; the log has its start and end."""
    async with world() as here:
        work = Work(45)
        process = here.start(registry(work))
        await here.until(25)
        assert here.rows() == ["10 running", "20 skipped 1"]
        await here.until(65)
        assert work.ticks == [10, 60]
        assert here.rows() == ["10 succeeded", "50 skipped 4", "60 running"]
        (skipped,) = [row for row in here.records() if row.status == "skipped"]
        assert (skipped.error, seconds(skipped.tick_from or START)) == ("its last run has not ended", 20)
        assert sum(each.count for each in process.observed.skipped("job")) == 4
        assert [line.partition(": ")[0] for line in lines(log, "WARNING") if "has not ended" in line] == [
            "skipped 'job', 1 tick since 2026-01-01 00:00:20",
            "skipped 'job', 4 ticks since 2026-01-01 00:00:20",
        ]


@virtual
async def test_ticks_that_were_put_off_are_not_claimed_ahead_of_a_clock_that_went_back(log: list[Message]) -> None:
    """Found by the simulation, seed 81003551: the job was set aside, since its row is ahead of the clock each time."""
    async with world() as here:
        work = Work(200)
        process = here.start(registry(work, 2))
        await here.until(41)
        process.store.delay("record", 3)
        await here.until(52)
        here.step(-15)
        await here.until(60)
        process.store.delay("record", 3)
        await here.until(199)
        assert not any("set aside" in message for message in log)
        assert not any("could not write" in message for message in log)
        ticks = sum(row.count or 1 for row in here.records())
        assert ticks > 80


@virtual
async def test_skipped_ticks_that_only_lengthen_a_row_cost_no_writing_of_their_own() -> None:
    """A job each second that takes 99.5: beside its claim and its end it costs a first skip, and one per heartbeat."""
    async with world() as here:
        process = here.start(registry(Work(99.5), 1))
        await here.until(2.5)
        before = process.store.count("record")
        await here.until(101.5)
        assert process.store.count("record") - before <= 12  # one in each heartbeat of 10 s, and the end of the run
        assert here.rows() == ["1 succeeded", "100 skipped 99", "101 running"]


@virtual
@pytest.mark.parametrize("missed", ["once", "all", "skip"])
async def test_ticks_that_were_put_off_are_no_backlog(missed: Any) -> None:
    """A job's own slowness is overlap, whatever is done with missed ticks; in a drain they are recorded, too."""
    async with world() as here:
        work = Work(35)
        jobs = registry(work, 1, missed=missed)
        async with jobs.background(here.someone(), drain_timeout=5):
            await here.until(120)
        assert work.ticks == [1, 37, 73, 109]
        assert here.rows()[:6] == [
            *("1 succeeded", "36 skipped 35", "37 succeeded", "72 skipped 35", "73 succeeded", "108 skipped 35")
        ]
        assert here.rows()[6] == "109 lost"
        [last] = here.rows()[7:]
        assert last in {"119 skipped 10", "120 skipped 11"}


@virtual
async def test_a_row_of_skipped_ticks_goes_on_over_a_reading(log: list[Message]) -> None:
    """The ledger is read anew every ten seconds, since another job's final commits meet a conflict: it is one row."""
    async with world() as here:
        work = Work(300)
        jobs = registry(work, 1)

        @jobs.every(10, rerun_lost=True)
        async def unlucky(run: JobRun) -> None:
            process.store.fail("commit", StoreUnavailable("memory", "deadlock"))
            async with run.transaction(final=True):
                pass

        process = here.start(jobs)
        await here.until(280)
        assert len([row for row in here.rows() if "skipped" in row]) == 1
        assert not [line for line in lines(log, "WARNING") if "and now no more" in line]


@virtual
async def test_what_falls_due_when_the_run_has_ended_is_run_though_ticks_before_it_were_put_off() -> None:
    """The ledger cannot be written as the run ends: its ticks until then are skipped, the newest since then runs."""
    async with world() as here:
        work = Work(30)
        process = here.start(registry(work, 1))
        await here.until(30.5)
        process.store.refused = {"record"}
        await here.until(33.5)
        process.store.refused = set()
        await here.until(36)
        assert work.ticks[0] == 1
        assert work.ticks[1] >= 33
        rows = {row.tick: row for row in here.records()}
        assert sum(row.count or 1 for row in rows.values()) == seconds(max(rows))
        (skipped,) = [
            row for row in rows.values() if row.tick_from and seconds(row.tick_from) < 31 <= seconds(row.tick)
        ]
        assert skipped.error == "its last run has not ended"
        assert seconds(skipped.tick) == 31


@virtual
@pytest.mark.parametrize("between", ["a pause", "a trigger", "a deleted row", "nothing"])
async def test_a_row_of_skipped_ticks_ends_where_something_comes_between(between: str) -> None:
    """Only ticks that follow on one another, for one reason, are one row; one that is gone is made anew."""
    async with world() as here:
        process = here.start(registry(Work(1000)))
        await here.until(35)
        assert here.rows() == ["10 running", "30 skipped 2"]
        if between == "a pause":
            await process.store.pause("default", "job")
            await here.until(55)
            await process.store.resume("default", "job")
        elif between == "a trigger":
            await process.store.trigger("default", "job")
        elif between == "a deleted row":
            del here.server.ledgers["default"].runs["job", START + timedelta(seconds=30)]
        await here.until(95)
        rows = [row.split() for row in here.rows() if "skipped" in row]
        expected = {
            "a pause": [["30", "2"], ["90", "4"]],
            "a trigger": [["35", "1"], ["90", "8"]],
            "a deleted row": [["90", "6"]],
            "nothing": [["90", "8"]],
        }[between]
        assert [[tick, count] for tick, _, count in rows] == expected


@virtual
async def test_ticks_that_are_skipped_together_are_one_row() -> None:
    """Several ticks that are found at once beside a run are one row, from the first of them, with their number."""
    async with world() as here:
        process = here.start(registry(Work(60)))
        await here.until(15)
        process.store.refused = {"record"}
        await here.until(45)
        process.store.refused = set()
        await here.until(49)
        assert here.rows() == ["10 running", "40 skipped 3"]
        (skipped,) = process.observed.skipped("job")
        assert (seconds(skipped.since), skipped.count) == (20, 3)
        assert seconds(here.records()[1].tick_from or START) == 20


@virtual
async def test_overlapping_runs_are_rows_of_their_own() -> None:
    """With ``overlap="allow"`` runs go on beside each other, each with its row."""
    async with world() as here:
        work = Work(25)
        here.start(registry(work, overlap="allow"))
        await here.until(36)
        assert (work.ticks, work.most_at_once) == ([10, 20, 30], 3)
        assert here.rows() == ["10 succeeded", "20 running", "30 running"]


def four(work: Work, **options: Any) -> JobRegistry:
    """Four jobs that fall due together every 100 s, with two places."""
    jobs = JobRegistry(max_running=2)
    for name in "abcd":
        jobs.every(100, name=name, **options)(work)
    return jobs


def names(observed: Observed) -> str:
    return "".join(each.job for each in observed.events if isinstance(each, RunStarted))


@virtual
async def test_a_run_that_waits_for_a_place_is_queued() -> None:
    """Beyond `max_running` runs are queued in the ledger, and start in their order as places get free."""
    async with world() as here:
        work = Work(5)
        process = here.start(four(work))
        await here.until(102)
        assert [here.rows(name) for name in "abcd"] == [["100 running"]] * 2 + [["100 queued"]] * 2
        assert all(row.started_at is None for row in here.records("c"))
        await here.until(107)
        assert [here.rows(name) for name in "abcd"] == [["100 succeeded"]] * 2 + [["100 running"]] * 2
        await here.until(120)
        assert names(process.observed) == "abcd"
        assert work.most_at_once == 2
        started = here.records("d")[0].started_at
        assert started is not None
        assert seconds(started) == pytest.approx(105, abs=0.01)


@pytest.mark.parametrize("how", ["kill", "end", "drain", "cancelled drain"])
@virtual
async def test_a_queued_run_is_not_lost_with_its_leader(how: str) -> None:
    """However a term ends, what it had queued is adopted by the next, and run there once."""
    async with world() as here:
        work, first, second = Work(5), Line(here.server), Observed()
        jobs = four(work)

        async def behind_an_application() -> None:
            async with jobs.background(first, drain_timeout=60):
                await asyncio.sleep(102)

        application = asyncio.create_task(behind_an_application())
        await here.until(102)
        await asyncio.sleep(0)
        if how == "drain":
            await application
            assert here.now == pytest.approx(105, abs=0.01)
        else:
            if how == "cancelled drain":
                await asyncio.sleep(1)
            first.down = how == "kill"
            application.cancel()
            with suppress(asyncio.CancelledError):
                await application
        ended = "succeeded" if how == "drain" else "running" if how == "kill" else "lost"
        assert [here.rows(name) for name in "abcd"] == [[f"100 {ended}"]] * 2 + [["100 queued"]] * 2
        old = here.records("c")[0]
        other = here.start(four(work), on_event=second)
        await here.until(160)
        assert names(second) == "cd"
        assert sorted(work.ticks) == [100] * 4
        row = here.records("c")[0]
        assert (row.status, row.attempt) == ("succeeded", 1)
        assert (old.token, row.token) == (1, 2)
        assert row.holder != old.holder
        assert here.rows("a") == ["100 lost" if how != "drain" else "100 succeeded"]
        assert other.store.count("record") < 20


# -- lost, and run again


@virtual
async def test_a_lost_run_is_begun_five_times() -> None:
    """With ``rerun_lost=True`` a run whose leader was killed is a further attempt in the next term, five in all."""
    async with world() as here:
        work = Work(1000)
        for number in range(1, 7):
            process = here.start(registry(work, 1200, rerun_lost=True))
            await here.until(1160 + 50 * number)
            rows = [f"1200 running{f' #{number}' if number > 1 else ''}"] if number < 6 else ["1200 lost #5"]
            assert here.rows() == rows
            await process.kill()
        assert work.begun == [(1200, attempt) for attempt in range(1, 6)]
        (row,) = here.records()
        assert (row.error, row.token) == ("lost with term 5", 5)
        assert row.finished_at is not None
        assert [each.status for each in process.observed.finished("job")] == ["lost"]


@virtual
async def test_a_lost_run_is_not_run_again_unasked(log: list[Message]) -> None:
    """Without `rerun_lost` a run of a killed leader is lost in the ledger, and a WARNING says so once."""
    async with world() as here:
        work = Work(1000)
        first = here.start(registry(work, 100))
        await here.until(110)
        await first.kill()
        second = here.start(registry(work, 100))
        await here.until(170)
        assert here.rows() == ["100 lost"]
        assert here.records()[0].error == "lost with term 1"
        assert work.begun == [(100, 1)]
        (finished,) = second.observed.finished("job")
        assert (finished.status, finished.token, seconds(finished.tick)) == ("lost", 1, 100)
        await second.end()
        third = here.start(registry(work, 1200))
        await here.until(190)
        assert third.observed.finished("job") == []
        told = [line for line in lines(log, "WARNING") if line.startswith("'job' was lost with term 1 (holder ")]
        assert len(told) == 2  # by the first one itself, as its last words, and by its successor
        assert [each.status for each in first.observed.finished("job")] == ["lost"]


@pytest.mark.parametrize("rerun_lost", [True, False])
@virtual
async def test_a_run_that_an_orderly_end_cancels(rerun_lost: bool) -> None:
    """A run that is cancelled when its leader is stopped is queued as another attempt, or lost, before the release."""
    async with world() as here:
        work = Work(30)
        first = here.start(registry(work, 100, rerun_lost=rerun_lost))
        await here.until(110)
        await first.end()
        assert here.rows() == ["100 queued #2" if rerun_lost else "100 lost"]
        here.start(registry(work, 100, rerun_lost=rerun_lost))
        await here.until(160)
        assert work.begun == ([(100, 1), (100, 2)] if rerun_lost else [(100, 1)])
        assert here.rows() == ["100 succeeded #2" if rerun_lost else "100 lost"]


@virtual
async def test_a_run_that_was_claimed_and_not_begun_is_handed_back() -> None:
    """If the term ends between a claim and its start, the run waits for the next leader, and is not lost."""
    async with world() as here:
        work = Work()
        first = here.start(registry(work, 100))
        await here.until(99)
        first.store.latency = 1.0  # the claim, sent at 101, is written at 101.5
        await here.until(101.7)  # after a reading, at 100
        assert here.rows() == ["100 running"]
        await first.end()
        assert here.rows() == ["100 queued"]
        here.start(registry(work, 100))
        await here.until(110)
        assert work.begun == [(100, 1)]
        assert here.rows() == ["100 succeeded"]


@pytest.mark.parametrize("moment", [102, 106], ids=["unanswered", "unread"])
@virtual
async def test_a_claim_without_an_answer_is_handed_back(moment: float) -> None:
    """A term that ends before it knows whether its claim was written has begun nothing: the next runs the tick."""
    async with world() as here:
        work = Work()
        first = here.start(registry(work, 100))
        await here.until(99)
        first.store.lose_reply("record")
        await here.until(100.5)
        first.store.lose_request("take_stock", 5)
        await here.until(moment)
        assert here.rows() == ["100 running"]
        await first.end()
        here.start(registry(work, 100))
        await here.until(150)
        assert work.begun == [(100, 1)]
        assert here.rows() == ["100 succeeded"]


@virtual
async def test_a_claim_found_in_a_drain_is_handed_back() -> None:
    """A leader that drains, and finds that a claim whose answer was lost was written, leaves the run to the next."""
    async with world() as here:
        jobs, long, work, store = JobRegistry(), Work(70), Work(), Line(here.server)
        jobs.every(50, name="long")(long)
        jobs.every(100, name="job")(work)
        async with jobs.background(store, drain_timeout=60):
            await here.until(99)
            store.lose_reply("record")
            await here.until(102)
        assert long.ended == [50]
        assert here.rows() == ["100 queued"]
        here.start(jobs)
        await here.until(150)
        assert work.begun == [(100, 1)]


@virtual
async def test_a_process_that_was_frozen_starts_nothing() -> None:
    """A process that finds its term over when it learns that its claim was written does not begin the run."""
    async with world() as here:
        work, loop = Work(), asyncio.get_running_loop()
        first = here.start(registry(work, 100))
        await here.until(99)
        first.store.latency = 4
        await here.until(107)
        assert here.rows() == ["100 running"]
        loop.advance(40)  # type: ignore[attr-defined]
        first.store.latency = 0
        await here.until(190)  # elected again
        assert work.begun == [(100, 1)]
        assert [each.token for each in first.observed.events if isinstance(each, RunStarted)] == [2]
        assert here.rows() == ["100 succeeded"]


@virtual
async def test_a_run_is_not_begun_by_a_process_that_was_frozen_before_its_first_step() -> None:
    """A process that stands still between the start of a run and its first step does not call the job any more."""
    async with world() as here:
        work, loop = Work(), asyncio.get_running_loop()

        def freeze(event: Event) -> None:
            if isinstance(event, RunStarted) and event.token == 1:
                loop.call_soon(loop.advance, 40)  # type: ignore[attr-defined]

        here.start(registry(work, 100), on_event=freeze)
        await here.until(190)  # elected again
        assert work.begun == [(100, 1)]
        [row] = here.records()
        assert (row.attempt, row.token, row.status) == (1, 2, "succeeded")


@virtual
async def test_what_was_claimed_by_an_answer_that_is_read_too_late_is_handed_back() -> None:
    """The process stands still between the answer to a claim and the start of its run: not begun, it is not lost."""
    written = TermOfJobs._written
    loop = asyncio.get_running_loop()

    def frozen(term: TermOfJobs, plan: Any) -> Any:
        starting = written(term, plan)
        if starting and term.lead.token == 1:
            loop.advance(40)  # type: ignore[attr-defined]
        return starting

    with patch.object(TermOfJobs, "_written", frozen):
        async with world() as here:
            work = Work()
            here.start(registry(work, 100))
            await here.until(190)  # elected again
            assert work.begun == [(100, 1)]
            [row] = here.records()
            assert (row.attempt, row.token, row.status) == (1, 2, "succeeded")


@virtual
async def test_a_tick_behind_the_run_of_an_earlier_term_waits_for_it_and_later_ones_are_skipped_again() -> None:
    """What is due while an inherited run goes on follows it, and is no overlap; after that, overlap is overlap."""
    async with world() as here:
        work = Work(25)
        first = here.start(registry(work, 10, rerun_lost=True))
        await here.until(12)
        await first.kill()
        here.start(registry(work, 10, rerun_lost=True))
        await here.until(180)
        # The second attempt at 10 ends at some 67, when 60 is the newest that is due; what follows is skipped.
        began = work.begun[:4]
        assert began[:2] == [(10, 1), (10, 2)]
        assert began[2][0] % 10 == 0
        assert began[3][0] >= began[2][0] + 30
        assert [row.error for row in here.records() if row.tick == START + timedelta(seconds=began[3][0] - 10)] == [
            "its last run has not ended"
        ]
        assert not any(row.error == "its last run has not ended" for row in here.records()[:2])


@virtual
async def test_a_run_whose_claim_ends_the_time_is_handed_back() -> None:
    """A process that finds its time over when it is to start a run, starts none; what it claimed is not lost."""
    async with world() as here:
        jobs, work = JobRegistry(), Work()
        for name in ("a", "b"):
            jobs.every(100, name=name)(work)
        ended: list[float] = []

        def resign(event: Event) -> None:
            if isinstance(event, RunStarted) and not ended:
                ended.append(here.now)
                jobs._terms[-1].lead.resign()

        first = here.start(jobs, on_event=resign)
        await here.until(100.5)
        assert len(ended) == 1
        await first.end()
        await here.until(110)
        if work.begun == []:
            assert [here.rows(name) for name in "ab"] == [["100 queued"]] * 2
        jobs = JobRegistry()
        for name in ("a", "b"):
            jobs.every(100, name=name)(work)
        here.start(jobs)
        await here.until(150)
        assert [here.rows(name) for name in "ab"] == [["100 succeeded"]] * 2
        assert work.begun == [(100, 1)] * 2


# -- history


@pytest.mark.parametrize(("history", "least", "most"), [(3, 3, 3), (100, 100, 110), (None, 150, 150)])
@virtual
async def test_the_ledger_keeps_the_last_runs(history: int | None, least: int, most: int) -> None:
    """The newest `history` finished rows of a job are kept, and up to a tenth more for a while; with ``None`` all."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, history=history))
        sizes = []
        for number in range(1, 151):
            await here.until(10 * number + 5)
            sizes.append(len(here.records()))
        assert sizes[:least] == [*range(1, least + 1)]
        assert (min(sizes[least - 1 :]), max(sizes)) == (least, most)
        assert [seconds(row.tick) for row in here.records()][-1] == 1500
        assert work.ticks == [*range(10, 1501, 10)]
        assert process.store.count("prune") <= 150


@virtual
async def test_what_is_not_finished_is_not_pruned() -> None:
    """Pruning spares runs that are queued or running, however old; a late one ends in its row all the same."""
    async with world() as here:
        work = Work()

        async def job(run: JobRun) -> None:
            await work(run)
            if seconds(run.tick) == 10:
                await asyncio.sleep(195)

        here.start(registry(job, history=3, overlap="allow"))
        await here.until(201)
        assert here.rows() == ["10 running", *(f"{tick} succeeded" for tick in (180, 190, 200))]
        await here.until(208)
        assert "10 running" not in here.rows()


# -- what changes


@pytest.mark.parametrize("change", ["schedule", "zone"])
@virtual
async def test_a_changed_schedule_starts_anew(change: str) -> None:
    """What fell due by the old schedule, or in the old zone, is run; from the new leader on the new one counts."""
    async with world() as here:
        work, jobs = Work(), JobRegistry()
        jobs.cron("*/5 * * * *", name="job", missed="all")(work)
        process = here.start(jobs)
        await here.until(310)
        await process.end()
        await here.until(1000)
        jobs = JobRegistry()
        expression, zone = ("*/2 * * * *", "UTC") if change == "schedule" else ("*/5 * * * *", "Europe/Berlin")
        jobs.cron(expression, name="job", missed="all", timezone=zone)(work)
        here.start(jobs)
        await here.until(1210)
        assert work.ticks == ([300, 600, 900, 1080, 1200] if change == "schedule" else [300, 600, 900, 1200])
        assert (here.jobs["job"].timezone, seconds(here.jobs["job"].known_since)) == (zone, 0)


@virtual
@pytest.mark.parametrize(
    ("missed", "rows"),
    [
        ("once", ["300 succeeded", "900 skipped 2", "1200 succeeded"]),
        ("all", ["300 succeeded", "600 succeeded", "900 succeeded", "1200 succeeded"]),
        ("skip", ["300 succeeded", "1200 skipped 3"]),
    ],
)
async def test_what_fell_due_by_a_schedule_that_is_changed_is_run_or_recorded(missed: Any, rows: list[str]) -> None:
    """Nobody led when three ticks of the old schedule fell due; the new one's first comes later (DESIGN rule 50)."""
    async with world() as here:
        work = Work()
        for expression, until in ("*/5 * * * *", 310), ("0 1 * * *", 1600):
            jobs = JobRegistry()
            jobs.cron(expression, name="job", missed=missed)(work)
            await here.until(max(until - 300, here.now))
            process = here.start(jobs)
            await here.until(until)
            await process.end()
        assert here.rows() == rows
        assert here.jobs["job"].schedule == "cron 0 1 * * *"
        skipped = sum(each.count for each in process.observed.skipped("job"))
        assert skipped == sum(row.count or 0 for row in here.records())


@virtual
@pytest.mark.parametrize("missed", ["once", "all"])
async def test_two_versions_that_alternate_lose_no_tick(missed: Any) -> None:
    """Rolling deploys back and forth, ten seconds without a leader each time: each tick of who led is accounted for."""
    versions = {"old": 7, "new": 13}
    async with world() as here:
        work = Work()
        moments: list[tuple[str, float]] = []
        for number in range(20):
            name = "old" if number % 2 == 0 else "new"
            process = here.start(registry(work, versions[name], missed=missed))
            await here.until(here.now + 0.1)
            moments.append((name, seconds(here.jobs["job"].schedule_since)))
            await here.until(here.now + 5 + 17 * (number % 3))
            await process.end()
            await here.until(here.now + 10)
        work.once_each()
        due = set[float]()
        for (name, since), (_, until) in zip(moments, [*moments[1:], ("", 0.0)], strict=True):
            span = START + timedelta(seconds=since), START + timedelta(seconds=until)
            due |= set(map(seconds, ticks_between(Every(versions[name]), *span)))
        covered = set[float]()
        for row in here.records():
            assert row.status in {"succeeded", "skipped"}
            assert (row.status == "skipped") == (row.count is not None)
            first = seconds(row.tick_from or row.tick)
            covered |= {tick for tick in due if first <= tick <= seconds(row.tick)}
        last = moments[-1][1]
        assert len(due) > 50
        assert {tick for tick in due if tick <= last} <= covered


@virtual
async def test_a_change_of_schedule_whose_answers_are_lost_is_made_once() -> None:
    """Each exchange of the change is lost once, before or after it took effect: no tick is lost, none run twice."""
    methods: tuple[Literal["record", "enroll", "take_stock"], ...] = ("record", "enroll", "take_stock")
    for lost in methods:
        async with world() as here:
            work = Work()
            process = here.start(registry(work, 10, missed="all"))
            await here.until(25)
            await process.end()
            await here.until(65)
            process = here.start(registry(work, 7, missed="all"))
            process.store.lose_reply(lost)
            await here.until(90)
            work.once_each()
            assert work.ticks[:6] == [10, 20, 30, 40, 50, 60]
            # With the answer lost for 5 s the change is of a later moment, by which another tick of the old one is due.
            assert set(work.ticks[6:]) <= {70, 77, 84}
            assert {77, 84} <= set(work.ticks)


@virtual
async def test_the_same_schedule_in_other_words_is_no_change() -> None:
    """Ticks that nobody ran are missed, and run, as if nothing had been rewritten; the ledger is not written to."""
    async with world() as here:
        work = Work()
        for expression, until in ("*/5 * * * 4,5", 310), ("0,5,10,15,20,25,30,35,40,45,50,55 * * * THU-FRI", 1300):
            jobs = JobRegistry()
            jobs.cron(expression, name="job", missed="all")(work)
            await here.until(max(until - 300, here.now))
            process = here.start(jobs)
            await here.until(until)
            await process.end()
        assert work.ticks == [300, 600, 900, 1200]
        assert here.jobs["job"].schedule_since == here.jobs["job"].known_since
        assert process.store.count("enroll") == 0


@virtual
async def test_a_change_of_a_schedule_that_this_version_does_not_know_begins_with_its_next_tick() -> None:
    """A text of another version, or by hand, has no ticks that could be reckoned."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, 10))
        await here.until(15)
        await process.end()
        ledger = here.server.ledgers["default"]
        ledger.jobs["job"] = replace(ledger.jobs["job"], schedule="whenever it rains")
        await here.until(55)
        here.start(registry(work, 10))
        await here.until(75)
        assert work.ticks == [10, 60, 70]


@virtual
async def test_a_row_in_the_way_of_a_changed_schedule_is_its_jobs_trouble(log: list[Message]) -> None:
    """A tick of the old schedule has a row already, by another hand: it is settled, and the others are run."""
    async with world() as here:
        work, other = Work(), Work()
        process = here.start(registry(work, 10, missed="all"))
        await here.until(15)
        await process.end()
        ledger = here.server.ledgers["default"]
        ledger.runs["job", START + timedelta(seconds=30)] = replace(
            ledger.runs["job", START + timedelta(seconds=10)], tick=START + timedelta(seconds=30)
        )
        await here.until(55)
        jobs = registry(work, 7, missed="all")
        jobs.every(10, name="other")(other)
        here.start(jobs)
        await here.until(75)
        assert work.ticks == [10, 20, 40, 50, 56, 63, 70]
        assert other.ticks == [60, 70]


@virtual
async def test_a_job_that_comes_back_has_missed_what_fell_due() -> None:
    """A job that was away from the code for a while goes on from its newest tick when it is there again."""
    async with world() as here:
        work, other = Work(), Work()
        for number, jobs in enumerate([registry(work, 100), registry(other, 100, name="other"), registry(work, 100)]):
            process = here.start(jobs)
            await here.until(500 * (number + 1) + 50)
            await process.end()
        assert work.ticks == [100, 200, 300, 400, 500, 1000, 1100, 1200, 1300, 1400, 1500]
        assert here.rows()[4:7] == ["500 succeeded", "900 skipped 4", "1000 succeeded"]


@virtual
async def test_a_job_that_the_registry_lacks_is_told_of_once(log: list[Message]) -> None:
    """A leader says once, at WARNING, which jobs of the database it has not; what they have queued stays."""
    async with world() as here:
        work = Work(5)
        first = here.start(four(work))
        await here.until(102)
        await first.kill()
        jobs = JobRegistry()
        jobs.every(100, name="a")(Work())
        for moment in (150, 190, 230):
            process = here.start(jobs)
            await here.until(moment)
            await process.end()
        told = [line for line in lines(log, "WARNING") if "the database knows jobs" in line]
        assert len(told) == 1
        assert told[0].endswith(": b, c, d")
        assert [here.rows(name) for name in "cd"] == [["100 queued"]] * 2
        work.takes = 0
        here.start(four(work))
        await here.until(290)
        assert [here.rows(name)[0] for name in "cd"] == ["100 succeeded"] * 2


@virtual
async def test_paused_ticks_are_not_missed() -> None:
    """Paused from another process, a job runs no tick and records none; resumed, it starts with its next tick."""
    async with world() as here:
        work = Work()
        leader = here.start(registry(work, missed="all"))
        await here.until(25)
        await here.someone().pause("default", "job")
        await here.until(87)
        assert work.ticks == [10, 20]
        assert leader.store.count("record") == 4
        await here.someone().resume("default", "job")
        await here.until(101)  # a heartbeat later
        assert work.ticks == [10, 20, 90, 100]
        await here.until(125)
        await here.someone().pause("default", "job")
        await here.until(185)
        await leader.kill()
        here.start(registry(work, missed="all"))
        await here.until(245)
        assert max(work.ticks) == 120
        await here.someone().resume("default", "job")
        await here.until(271)
        assert work.ticks[-2:] == [260, 270]
        expected = [10, 20, *range(90, 121, 10), *range(250, 271, 10)]
        assert work.ticks == expected
        assert here.rows() == [f"{tick} succeeded" for tick in expected]


@virtual
async def test_a_pause_holds_from_its_own_moment() -> None:
    """A tick that falls due before the leader has seen the pause is not claimed either; nor is one that it knew of."""
    async with world() as here:
        jobs, work, other = JobRegistry(), Work(), Work()
        jobs.every(7, name="job")(work)
        jobs.every(7, name="other")(other)
        process = here.start(jobs)
        await here.until(27.9)  # the last heartbeat was at 20, the next is at 30; a tick at 28
        await here.someone().pause("default", "job")
        await here.until(40)
        await here.someone().resume("default", "job")
        await here.until(57)
        assert work.ticks[:4] == [7, 14, 21, 42]
        assert other.ticks == [7, 14, 21, 28, 35, 42, 49, 56]
        assert here.rows()[:4] == ["7 succeeded", "14 succeeded", "21 succeeded", "42 succeeded"]
        assert process.observed.skipped("job") == []


@virtual
async def test_a_resume_holds_from_its_own_moment() -> None:
    """The leader sees it at its next heartbeat; a tick that fell due between the two is run then, for its moment."""
    async with world() as here:
        jobs, work = JobRegistry(), Work()
        jobs.every(14, name="job")(work)
        here.start(jobs)
        await here.until(15)
        await here.someone().pause("default", "job")
        await here.until(31)  # the last heartbeat was at 30, the next is at 40
        await here.someone().resume("default", "job")
        await here.until(45)
        assert work.ticks == [14, 42]
        await here.someone().pause("default", "job")
        await here.until(81)
        await here.someone().resume("default", "job")
        await here.until(89)
        assert work.ticks == [14, 42]
        await here.until(91)
        assert work.ticks == [14, 42, 84]


@virtual
async def test_a_pause_that_no_leader_saw_counts() -> None:
    """Ticks of a pause that was over before the next leader came are not missed, those after it are."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, missed="all"))
        await here.until(15)
        await process.end()
        await here.until(25)
        await here.someone().pause("default", "job")
        await here.until(55)
        await here.someone().resume("default", "job")
        await here.until(75)
        here.start(registry(work, missed="all"))
        await here.until(85)
        assert work.ticks == [10, 60, 70, 80]


@virtual
async def test_a_resumption_after_a_tick_that_is_still_lined_up() -> None:
    """A tick that fell due in a pause, during a slow exchange behind which the pause is found over, is not missed."""
    async with world() as here:
        jobs, work, other = JobRegistry(), Work(), Work()
        jobs.every(10, name="job")(work)
        jobs.every(28, name="other")(other)
        await here.until(2)
        process = here.start(jobs)
        await here.until(21)
        await here.someone().pause("default", "job")
        await here.until(23)  # it was seen at 22
        process.store.latency = 4.8  # the claim of 28 is answered at 32.8, and a reading follows
        await here.until(31)
        await here.someone().resume("default", "job")
        await here.until(38)
        process.store.latency = 0
        await here.until(65)
        assert (work.ticks, other.ticks) == ([10, 20, 40, 50, 60], [28, 56])


@virtual
async def test_a_trigger_runs_at_the_next_heartbeat() -> None:
    """A trigger is a run of its own, whose tick is the moment of the request; several before it is seen are one."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, 1200))
        await here.until(31.5)
        asked = await here.someone().trigger("default", "job")
        await asyncio.sleep(2)
        assert await here.someone().trigger("default", "job") == asked
        await here.until(42)
        assert work.begun == [(31.5, 1)]
        assert here.rows() == ["31.5 succeeded"]
        assert here.jobs["job"].high_tick is None
        assert here.jobs["job"].requested_at is None
        assert process.store.count("record") == 2
        await here.until(50)
        await here.someone().trigger("default", "job")
        await here.until(61)
        assert work.ticks == [31.5, 50]
        await process.end()
        await here.someone().trigger("default", "job")
        here.start(registry(work, 1200))
        await here.until(62)
        assert work.ticks == [31.5, 50, 61]
        await here.until(1201)
        assert work.ticks[-1] == 1200


@pytest.mark.parametrize(("in_the_way", "microseconds"), [("another refusal", 0), ("a row", 1), ("two rows", 2)])
@virtual
async def test_a_trigger_has_the_tick_of_its_request_unless_a_row_is_there(in_the_way: str, microseconds: int) -> None:
    """A clock that was set back may show a moment twice: then the run is a microsecond later; but not without need."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, 1000))
        await here.until(5)
        tick = await process.store.trigger("default", "job")
        runs = here.server.ledgers["default"].runs
        for number in range(microseconds):
            there = tick + timedelta(microseconds=number)
            runs["job", there] = RunRecord(job="job", tick=there, token=1, holder="another", status="succeeded")
        if in_the_way == "another refusal":
            process.store.fail("record", Refused())
        await here.until(60)
        assert work.ticks == [seconds(tick + timedelta(microseconds=microseconds))]


@virtual
async def test_a_trigger_waits_for_a_place() -> None:
    """A triggered run, too, is queued while as many runs go on as may."""
    async with world() as here:
        jobs, long, work = JobRegistry(max_running=1), Work(50), Work()
        jobs.every(100, name="long")(long)
        jobs.every(1200, name="job")(work)
        here.start(jobs)
        await here.until(105)
        await here.someone().trigger("default", "job")
        await here.until(125)
        assert here.rows() == ["105 queued"]
        await here.until(155)
        assert here.rows() == ["105 succeeded"]
        assert work.begun == [(105, 1)]


@virtual
async def test_a_trigger_obeys_overlap_and_ignores_pause() -> None:
    """Beside a run that goes on a trigger is skipped, or allowed; a paused job is run when it is triggered."""
    async with world() as here:
        jobs, skip, allow, paused = JobRegistry(), Work(40), Work(40), Work()
        jobs.every(100, name="skip")(skip)
        jobs.every(100, name="allow", overlap="allow")(allow)
        jobs.every(100, name="paused")(paused)
        process = here.start(jobs)
        await here.until(99)
        await here.someone().pause("default", "paused")
        await here.until(105)
        for name in ("skip", "allow", "paused"):
            await here.someone().trigger("default", name)
        await here.until(116)
        assert (skip.ticks, allow.ticks, paused.ticks) == ([100], [100, 105], [105])
        assert here.rows("skip") == ["100 running", "105 skipped 1"]
        assert [seconds(each.since) for each in process.observed.skipped("skip")] == [105]
        assert here.records("skip")[1].error
        await here.until(210)
        assert paused.ticks == [105]
        assert here.jobs["paused"].high_tick is None


@pytest.mark.parametrize("moment", [20.0, 30.0, 37.0], ids=str)
@pytest.mark.parametrize("overlap", ["skip", "allow"])
@virtual
async def test_a_trigger_at_the_moment_of_a_tick(moment: float, overlap: Any) -> None:
    """Asked for at the very moment of a tick, a run is that tick's, or another's: nothing stands still over it."""
    async with world() as here:
        work, someone = Work(), here.someone()

        async def trigger() -> None:
            await asyncio.sleep(moment)
            await someone.trigger("default", "job")

        asking = asyncio.create_task(trigger())
        process = here.start(registry(work, overlap=overlap))
        await here.until(65)
        await asking
        work.once_each()
        skipped = [seconds(each.since) for each in process.observed.skipped("job")]
        assert {10, 20, 30, 40, 50, 60} <= {*work.ticks, *skipped}
        assert moment in work.ticks
        assert {40, 50, 60} <= set(work.ticks)
        assert here.jobs["job"].requested_at is None
        assert process.store.count("record") < 30


@virtual
async def test_a_long_term_remembers_nothing_of_its_final_transactions() -> None:
    """What a term keeps in memory does not grow with the runs that it has made."""
    async with world() as here:
        jobs = JobRegistry(history=3)

        @jobs.every(1)
        async def pay(run: JobRun) -> None:
            async with run.transaction(final=True):
                pass

        here.start(jobs)
        await here.until(30)
        [term] = jobs._terms
        sizes = []
        for moment in (100, 400):
            await here.until(moment)
            kept = [vars(each) for each in (term, term._agenda)]
            sizes.append({name: len(it) for held in kept for name, it in held.items() if hasattr(it, "__len__")})
        assert sizes[0] == sizes[1]


@virtual
async def test_a_run_that_began_and_is_too_late_to_be_run_again_is_lost() -> None:
    """`max_age` skips what has not begun: a run that was lost, and then waited for too long, is lost, not skipped."""
    async with world() as here:
        work = Work(1000)
        first = here.start(registry(work, 100, rerun_lost=True, max_age=60))
        await here.until(105)
        await first.kill()
        [row] = here.records()
        ledger = here.server.ledgers["default"]
        ledger.runs["job", row.tick] = replace(row, status="queued", attempt=2)  # by a term that did not come to it
        await here.until(170)
        here.start(registry(Work(), 1000, rerun_lost=True, max_age=60))
        await here.until(230)
        assert here.rows()[0] == "100 lost"
        assert work.begun == [(100, 1)]


# -- answers


FAULTS: dict[str, Callable[[Line], None]] = {
    "reply lost": lambda line: line.lose_reply("record"),
    "request lost": lambda line: line.lose_request("record"),
    "late": lambda line: line.delay("record", 8),
    "very late": lambda line: line.delay("record", 23),
    "slow": lambda line: line.delay("record", 3),
    "refused": lambda line: line.fail("record", StoreUnavailable("memory", "refused")),
}


@pytest.mark.parametrize(("missed", "takes"), [("once", 0), ("all", 2), ("once", 15)])
@pytest.mark.parametrize("faults", [(fault,) for fault in FAULTS] + [("reply lost", "late", "very late", "refused")])
@virtual
async def test_no_answer_costs_or_doubles_a_tick(faults: tuple[str, ...], missed: Any, takes: float) -> None:
    """Whatever becomes of the writes of the ledger and of their answers: no tick is run twice, and none is lost."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with world() as here:
        work = Work(takes)
        process = here.start(registry(work, missed=missed, overlap="allow"))
        for number in range(12):
            await here.until(9 + 11 * number)
            for fault in faults:
                FAULTS[fault](process.store)
        await here.until(200)
        work.takes = min(takes, 2)
        process.store._faults.clear()
        await here.until(269)
        work.once_each()
        here.accounted(10, 260, 10)
        assert len(work.ended) == len(work.begun)
        assert sum(row.status == "succeeded" for row in here.records()) == len(work.begun)
        if missed == "all":
            assert sorted(work.ticks) == [*range(10, 261, 10)]


@virtual
async def test_a_claim_whose_answer_was_lost_is_ones_own() -> None:
    """The answer of a claim is lost: the leader finds its own row, runs it once, and says nothing."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, 100))
        await here.until(99)
        process.store.lose_reply("record")
        await here.until(120)
        assert work.begun == [(100, 1)]
        assert here.rows() == ["100 succeeded"]
        assert [each.phrase for each in process.observed.events if isinstance(each, Notice)] == []


@virtual
async def test_a_write_that_comes_late_undoes_nothing() -> None:
    """A write that the server delayed and executes later, when all was read and written anew, changes nothing more."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with world() as here:
        work = Work(60)
        process = here.start(registry(work, 100, overlap="allow"))
        await here.until(99)
        process.store.lose_reply("record")
        for late in (12, 9, 6.5):  # each is given up after 5 s
            process.store.delay("record", late)
        await here.until(150)
        assert work.begun == [(100, 1)]
        assert here.rows() == ["100 running"]
        await here.until(195)
        assert here.rows() == ["100 succeeded"]
        await process.kill()
        here.start(registry(work, 1200))
        await here.until(250)
        assert [tick for tick, _ in work.begun if tick < 200] == [100]


@pytest.mark.parametrize(("first", "second"), [(7, 3), (9, 3)])
@virtual
async def test_a_claim_that_comes_late_is_not_one_beside_another(first: float, second: float) -> None:
    """A claim that the server delayed, and the one that was reckoned without it: only one of them takes effect."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, 2))
        await here.until(99)
        for late in (first, second):  # the first is given up after 5 s, when two more ticks are due
            process.store.delay("record", late)
        await here.until(151)
        work.once_each()
        here.accounted(2, 150, 2)


@pytest.mark.parametrize("method", ["take_stock", "enroll"])
@virtual
async def test_a_ledger_that_cannot_be_read_at_first(method: str) -> None:
    """A term whose first reading fails tries again, and then runs what is due."""
    async with world() as here:
        work, jobs = Work(), JobRegistry()
        process = here.start(registry(work))
        await here.until(25)
        await process.kill()
        jobs = registry(work)
        if method == "enroll":
            jobs.every(10, name="new")(Work())
        process = here.start(jobs)
        process.store.refused = {method}
        await here.until(90)
        assert work.ticks == [10, 20]
        process.store.refused = set()
        await here.until(105)
        assert work.ticks[:3] == [10, 20, 90]
        here.accounted(10, 100, 10)
        assert process.store.count(method) < 60


@pytest.mark.parametrize(
    "refused", [{"record"}, {"take_stock"}, {"record", "take_stock"}], ids=["record", "stock", "both"]
)
@pytest.mark.parametrize("missed", ["once", "all"])
@virtual
async def test_while_the_ledger_is_down_ticks_wait(missed: Any, refused: set[str], log: list[Message]) -> None:
    """While only the ledger fails the term goes on, nothing new is started, and then all that waited is due."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, missed=missed))
        await here.until(25)
        process.store.refused = refused
        await here.until(45)
        sent = len(process.store.sent)
        assert work.ticks == [10, 20]
        process.store.refused = set()
        await here.until(75)
        assert work.ticks[-2:] == [60, 70]
        here.accounted(10, 70, 10)
        work.once_each()
        if missed == "all":
            assert work.ticks == [*range(10, 71, 10)]
        assert not any(isinstance(each, Lost) for each in process.observed.events)
        assert sent < 100
        warnings = [line for line in lines(log, "WARNING") if "could not write the ledger" in line]
        assert len(warnings) <= 6
        if "record" in refused:
            assert warnings


@virtual
async def test_a_failure_now_and_then_is_not_told(log: list[Message]) -> None:
    """A reading that fails once, and works when it is tried again at once, is nobody's business."""
    async with world() as here:
        process = here.start(registry(Work(), 1200))
        for moment in range(5, 105, 10):
            await here.until(moment)
            process.store.fail("take_stock", StoreUnavailable("memory", "cut"))
        await here.until(110)
        assert process.store.count("take_stock") > 20
        assert lines(log, "WARNING") == []


@virtual
async def test_a_job_whose_row_is_not_there_yet_breaks_nothing() -> None:
    """A reading that does not show a row written before, as from another node of a cluster, is read again."""

    class Behind(Line):
        behind = 1

        async def take_stock(self, name: str, **what: bool) -> Stock:
            stock = await super().take_stock(name, **what)
            if stock.jobs and self.behind:
                self.behind -= 1
                return replace(stock, jobs={})
            return stock

    async with world() as here:
        work = Work()
        task = asyncio.create_task(registry(work).serve(Behind(here.server)))
        await here.until(35)
        assert not task.done() or task.result() is None
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert work.ticks == [10, 20, 30]


# -- clocks


@pytest.mark.parametrize("missed", ["once", "all"])
@pytest.mark.parametrize("by", [3600, -3600, 60, -60, 4, -4, -7], ids=str)
@virtual
async def test_a_step_of_the_servers_clock_repeats_no_tick(by: float, missed: Any) -> None:
    """The server's clock is stepped, just before a tick: none is run twice, and by its clock none is left out."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, missed=missed, history=None))
        await here.until(29.5)
        here.step(by)
        await here.until(29.5 + 100 + max(-by, 0))
        last = max(work.ticks)
        work.once_each()
        assert work.ticks == sorted(work.ticks)
        assert last == 10 * ((29.5 + 100 + max(by, 0)) // 10)
        here.accounted(10, last, 10)
        if missed == "all":
            assert len(work.ticks) == last / 10
        assert process.store.count("record") < 1000


@virtual
async def test_a_tick_ahead_of_the_server_is_refused() -> None:
    """A tick more than 5 s ahead of the server's clock is not claimed, but waits until the clock has reached it."""
    async with world() as here:
        work = Work()
        await here.until(3)
        process = here.start(registry(work, 100))
        await here.until(99.5)  # the next heartbeat is at 103
        here.step(-20)
        await here.until(119)
        assert work.ticks == []
        assert here.rows() == []
        assert process.store.count("record") == 1
        await here.until(121)
        assert work.ticks == [100]


class NoClock(datetime):
    """Nobody may ask it what time it is."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> NoClock:
        raise AssertionError("the wall clock of this machine was asked")

    utcnow = today = now


@pytest.mark.parametrize("days", [-1, 0, 1, 5000])
@virtual
async def test_the_wall_clock_of_a_machine_is_nobodys_business(days: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaders whose clocks are a day off from the server's, either way, claim the same ticks: by the server's clock."""
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(days=days)
    for module in ("_term", "_agenda", "_runs", "_ledger", "_jobs", "_leadership", "_tenure", "_schedule"):
        monkeypatch.setattr(f"aiolease.{module}.datetime", NoClock, raising=False)
    async with world(start) as here:
        work = Work()
        first = here.start(registry(work))
        await here.until(25)
        await first.kill()
        here.start(registry(work, missed="all"))
        await here.until(75)
        since = seconds(start)
        assert [tick - since for tick in work.ticks] == [10, 20, 30, 40, 50, 60, 70]


# -- final transactions


def effective(
    effects: list[float], *, after: Callable[[JobRun], Coroutine[Any, Any, None]] | None = None
) -> Callable[[JobRun], Coroutine[Any, Any, None]]:
    """A job with one effect, committed with its end."""

    async def job(run: JobRun) -> None:
        async with run.transaction(final=True) as connection:
            connection.append(lambda: effects.append(seconds(run.tick)))
        if after is not None:
            await after(run)

    return job


@virtual
async def test_the_effect_and_the_end_are_committed_together() -> None:
    """A final transaction shows its effect and ``succeeded`` at the same moment, while the job still goes on."""
    async with world() as here:
        effects: list[float] = []

        async def linger(run: JobRun) -> None:
            assert here.rows() == ["100 succeeded"]
            assert effects == [100]
            await asyncio.sleep(30)

        process = here.start(registry(effective(effects, after=linger), 100))
        await here.until(110)
        assert here.rows() == ["100 succeeded"]
        await process.end()
        assert here.rows() == ["100 succeeded"]
        assert [each.status for each in process.observed.finished("job")] == ["succeeded"]
        assert process.store.count("record") == 1  # the claim
        here.start(registry(effective(effects), 100))
        await here.until(150)
        assert effects == [100]


@virtual
async def test_what_is_rolled_back_has_not_succeeded() -> None:
    """A job that raises in its final transaction has failed, without an effect."""
    async with world() as here:
        effects: list[float] = []

        async def job(run: JobRun) -> None:
            async with run.transaction(final=True) as connection:
                connection.append(lambda: effects.append(1))
                raise ValueError("no")

        process = here.start(registry(job, 100, rerun_lost=True))
        await here.until(110)
        assert (here.rows(), effects) == (["100 failed"], [])
        assert here.records()[0].error == "ValueError: no"
        assert [each.status for each in process.observed.finished("job")] == ["failed"]


@virtual
async def test_nothing_changes_the_status_after_a_final_commit(log: list[Message]) -> None:
    """A job that raises after its final commit has succeeded, and an ERROR says what it raised."""
    async with world() as here:
        effects: list[float] = []

        async def fail(run: JobRun) -> None:
            raise ValueError("afterwards")

        process = here.start(registry(effective(effects, after=fail), 100, rerun_lost=True))
        await here.until(110)
        assert (here.rows(), effects) == (["100 succeeded"], [100])
        assert [each.status for each in process.observed.finished("job")] == ["succeeded"]
        (error,) = lines(log, "ERROR")
        assert "'job' raised after its final transaction" in error
        assert "ValueError: afterwards" in error


@virtual
async def test_a_run_has_one_final_transaction() -> None:
    """The second final transaction of a run raises `RunEnded`, and writes nothing; others go on working."""
    async with world() as here:
        effects: list[str] = []

        async def job(run: JobRun) -> None:
            for number in range(2):
                with suppress(RunEnded):
                    async with run.transaction(final=True) as connection:
                        connection.append(lambda number=number: effects.append(f"final {number}"))
                    effects.append(f"committed {number}")
            async with run.transaction() as connection:
                connection.append(lambda: effects.append("plain"))

        here.start(registry(job, 100))
        await here.until(110)
        assert effects == ["final 0", "committed 0", "plain"]
        assert here.rows() == ["100 succeeded"]


COMMITS: dict[str, Callable[[Line], None]] = {
    "reply lost": lambda line: line.lose_reply("commit"),
    "request lost": lambda line: line.lose_request("commit"),
    "conflict": lambda line: line.fail("commit", StoreUnavailable("memory", "deadlock")),
    "unknown": lambda line: line.fail("commit", CommitUnknown("memory", "cut")),
    "no connection": lambda line: line.fail("begin", StoreUnavailable("memory", "full")),
}


@pytest.mark.parametrize("rerun_lost", [True, False])
@pytest.mark.parametrize("fault", COMMITS)
@virtual
async def test_an_unanswered_final_commit_has_one_effect(fault: str, rerun_lost: bool) -> None:
    """With `rerun_lost` there is exactly one effect per tick, whatever became of the commit; without, at most one, and
    the ledger says truly whether there is.
    """  # noqa: D205
    async with world() as here:
        effects: list[float] = []
        process = here.start(registry(effective(effects), 100, rerun_lost=rerun_lost))
        await here.until(99)
        COMMITS[fault](process.store)
        await here.until(190)
        worked = fault in {"reply lost", "no connection"}
        assert effects == ([100] if worked or rerun_lost else [])
        again = " #2" if rerun_lost and not worked else ""
        assert here.rows() == [f"100 succeeded{again}" if effects else "100 lost"]
        await here.until(290)
        assert effects[-1] == 200
        assert here.rows()[1:] == ["200 succeeded"]
        finished = [(seconds(each.tick), each.status) for each in process.observed.finished("job")]
        assert finished[-1] == (200, "succeeded")
        if rerun_lost:
            assert finished.count((100, "succeeded")) == 1
            assert process.observed.started("job") == [100, 200] if worked else [100, 100, 200]
        else:
            assert finished[0][0] == 100


@pytest.mark.parametrize("fault", COMMITS)
@virtual
async def test_a_job_that_swallows_the_doubt_has_one_effect_too(fault: str) -> None:
    """A job that logs the trouble of its final commit, and returns, has not succeeded by that."""
    async with world() as here:
        effects: list[float] = []

        async def job(run: JobRun) -> None:
            with suppress(CommitUnknown, StoreUnavailable):
                await effective(effects)(run)

        process = here.start(registry(job, 100, rerun_lost=True))
        await here.until(99)
        COMMITS[fault](process.store)
        await here.until(190)
        assert effects == [100]
        assert here.rows()[0].startswith("100 succeeded")


@virtual
async def test_a_commit_that_is_unknown_for_ever_is_tried_five_times(log: list[Message]) -> None:
    """A final commit of which nobody knows, each time: it is tried in five attempts; then the run is lost, as is said.

    One that is known to have failed counts for nothing (DESIGN rule 47).
    """
    async with world() as here:
        effects: list[float] = []
        process = here.start(registry(effective(effects), 100, rerun_lost=True))
        process.store.fail("commit", CommitUnknown("memory", "cut"), times=7)
        await here.until(190)
        assert (here.rows(), effects) == (["100 lost #5"], [])
        assert process.observed.started("job") == [100] * 5
        assert any(line.startswith("'job' was lost with term 1 (holder ") for line in lines(log, "WARNING"))
        await here.until(290)
        assert (here.rows()[1:], effects) == (["200 succeeded #3"], [200])


@pytest.mark.parametrize("rerun_lost", [True, False])
@virtual
async def test_a_connection_that_cannot_be_had_is_asked_for_again_in_place(rerun_lost: bool) -> None:
    """Five stale connections of a pool, or none for some seconds, cost no attempt: nothing has taken effect."""
    async with world() as here:
        effects: list[float] = []
        process = here.start(registry(effective(effects), 100, rerun_lost=rerun_lost))
        process.store.fail("begin", StoreUnavailable("memory", "gone away"), times=9)
        await here.until(110)
        assert effects == [100]
        assert here.rows() == ["100 succeeded"]
        process.store.fail("begin", StoreUnavailable("memory", "gone away"), times=10**4)
        await here.until(205)
        assert process.observed.started("job") == [100, 200]


@virtual
async def test_conflicts_of_a_final_commit_use_up_no_attempt(log: list[Message]) -> None:
    """It is known that nothing was committed: the run is begun again after a pause that grows, as often as it takes."""
    async with world() as here:
        effects, begun = list[float](), list[float]()

        async def job(run: JobRun) -> None:
            begun.append(here.now)
            await effective(effects)(run)

        process = here.start(registry(job, 400, rerun_lost=True))
        process.store.fail("commit", StoreUnavailable("memory", "deadlock"), times=7)
        await here.until(640)
        assert effects == [400]
        assert len(begun) == 8
        pauses = [later - earlier for earlier, later in pairwise(begun)]
        assert all(0.49 * 2**number < pause < 1.02 * 2**number for number, pause in enumerate(pauses[:6]))
        assert 29 < pauses[6] < 61
        assert here.rows()[0].startswith("400 succeeded")
        assert (
            len(
                [
                    line
                    for line in lines(log, "WARNING")
                    if "was not committed: StoreUnavailable: memory: deadlock" in line
                ]
            )
            == 7
        )
        assert not any("was lost" in line for line in lines(log, "WARNING"))


@virtual
async def test_a_run_that_is_to_begin_after_a_pause_is_handed_to_the_next_leader() -> None:
    """It waits in the ledger, and the next leader begins it at once."""
    async with world() as here:
        effects: list[float] = []
        process = here.start(registry(effective(effects), 100, rerun_lost=True))
        process.store.fail("commit", StoreUnavailable("memory", "deadlock"), times=5)
        await here.until(109)  # after four attempts, in a pause of 4 to 8 s
        assert here.rows()[0].startswith("100 running")
        await process.end()
        assert here.rows()[0].startswith("100 queued")
        here.start(registry(effective(effects), 100, rerun_lost=True))
        await here.until(112)
        assert effects == [100]


@virtual
async def test_a_run_in_a_pause_before_it_begins_again_goes_on() -> None:
    """Ticks that fall due meanwhile are skipped beside it, and it takes no place of another job."""
    async with world() as here:
        effects: list[float] = []
        jobs, other = registry(effective(effects), 5, rerun_lost=True, max_running=1), Work()
        jobs.every(1, name="other")(other)
        process = here.start(jobs)
        process.store.fail("commit", StoreUnavailable("memory", "deadlock"), times=4)  # at 5, 5.5 to 6, to 8, to 12
        await here.until(21.5)
        assert effects[0] == 5
        assert [row.tick_from for row in here.records() if row.status == "skipped"]
        assert other.ticks == [float(tick) for tick in range(1, 22)]


@pytest.mark.parametrize("late", [6, 8, 12, 30], ids=str)
@virtual
async def test_a_final_commit_that_comes_late_has_one_effect(late: float) -> None:
    """A commit that takes effect after its answer was given up for lost is the run's, or is refused: one effect."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with world() as here:
        effects: list[float] = []
        process = here.start(registry(effective(effects), 100, rerun_lost=True))
        await here.until(99)
        process.store.delay("commit", late)
        await here.until(190)
        assert effects == [100]
        assert here.rows()[0].startswith("100 succeeded")


@virtual
async def test_a_killed_leaders_commit_and_its_successors_are_one_effect() -> None:
    """A commit in flight when its leader is killed is fenced once the next has begun: the run is made again, or not."""
    for arrives in (1.0, 80.0):
        async with world() as here:
            asyncio.get_running_loop().set_exception_handler(lambda *_: None)
            effects: list[float] = []
            process = here.start(registry(effective(effects), 100, rerun_lost=True))
            await here.until(99)
            process.store.delay("commit", arrives)
            await here.until(100.5)
            await process.kill()
            here.start(registry(effective(effects), 100, rerun_lost=True))
            await here.until(190)
            assert effects == [100]
            assert here.rows() == ["100 succeeded" if arrives == 1.0 else "100 succeeded #2"]


# -- many


def spread(jobs: JobRegistry, count: int, work: Callable[..., object]) -> None:
    """Jobs whose ticks are spread: each second of a minute, by the number of the job."""
    for number in range(count):
        jobs.cron(f"{number % 60} * * * * *", name=f"job-{number}")(work)


@pytest.mark.parametrize("together", [True, False])
@virtual
async def test_ten_thousand_jobs_cost_few_exchanges(together: bool) -> None:
    """Ticks that fall due together are claimed together, and their ends are written together."""
    async with world() as here:
        jobs, ran = JobRegistry(history=None), Counter[str]()

        async def work(run: JobRun) -> None:
            ran[run.job] += 1

        if together:
            for number in range(10_000):
                jobs.every(60, name=f"job-{number}")(work)
        else:
            spread(jobs, 10_000, work)
        began = time.process_time()
        process = here.start(jobs)
        await here.until(70)
        assert time.process_time() - began < 15
        assert len(ran) == 10_000
        assert set(ran.values()) <= ({1} if together else {1, 2})
        records = [run for run in here.server.ledgers["default"].runs.values() if run.status != "succeeded"]
        assert records == []
        assert process.store.count("record") <= (40 if together else 200)
        assert len(process.store.sent) < 700


@virtual
async def test_a_job_that_raises_among_many() -> None:
    """One job raises at each tick, among others that go on: its rows say why, theirs that they have succeeded."""
    async with world() as here:
        jobs, work = JobRegistry(), Work(3)

        async def bad() -> None:
            await asyncio.sleep(1)
            raise ValueError("x" * 5000)

        jobs.every(10, name="bad")(bad)
        for name in "abc":
            jobs.every(10, name=name)(work)
        here.start(jobs)
        await here.until(38)
        assert here.rows("bad") == ["10 failed", "20 failed", "30 failed"]
        error = here.records("bad")[0].error
        assert error is not None
        assert error.startswith("ValueError: xxx")
        assert len(error) == 1000
        for name in "abc":
            assert here.rows(name) == ["10 succeeded", "20 succeeded", "30 succeeded"]


@virtual
async def test_a_job_that_ignores_its_cancellation_is_recorded() -> None:
    """A run that goes on after its cancellation keeps the lease until it ends; then it is lost, and none ran beside."""
    async with world() as here:
        begun: list[float] = []

        async def stubborn(run: JobRun) -> None:
            begun.append(here.now)
            until = here.now + 20
            while here.now < until:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(until - here.now)

        first = here.start(registry(stubborn, 100))
        await here.until(50)
        here.start(registry(stubborn, 100))
        await here.until(105)
        await first.end()
        assert here.now == pytest.approx(120, abs=0.1)
        assert here.rows()[0] in {"100 lost", "100 succeeded"}
        await here.until(215)
        assert begun == [pytest.approx(100, abs=0.1), pytest.approx(200, abs=0.1)]
        assert here.rows()[1:] == ["200 running"]


# -- on a database


async def test_processes_on_one_file_run_each_tick_once(tmp_path: Path) -> None:
    """In real time, on SQLite: leaders that come and go, and one that breaks off, run no tick twice and lose none."""
    ticks: list[datetime] = []
    options: dict[str, Any] = {"lease_duration": 6.0}

    async def job(run: JobRun) -> None:
        ticks.append(run.tick)

    async with open_store(f"sqlite:///{tmp_path}/jobs.db") as store:
        for leader in range(3):
            serving = asyncio.create_task(registry(job, 0.1, missed="all").serve(store, **options))
            while len(ticks) < 5 * (leader + 1) and not serving.done():
                await asyncio.sleep(0.01)
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving
        rows = [row for row in await store.history("default", "job") if row.status != "queued"]
    assert len(ticks) == len(set(ticks)) > 10
    gaps = {later - earlier for earlier, later in zip(sorted(ticks), sorted(ticks)[1:], strict=False)}
    assert gaps == {timedelta(seconds=0.1)}
    assert {row.status for row in rows} == {"succeeded"}


@virtual
async def test_jobs_run_once_in_a_term() -> None:
    """Two loops over one ledger in one term would each take the other's runs for lost: the second is refused."""
    jobs, work = JobRegistry(), Work()
    jobs.every(10, name="job")(work)
    async with leadership(MemoryStore()) as lead:
        first = asyncio.create_task(jobs.run(lead))
        await asyncio.sleep(1)
        with pytest.raises(ConfigurationError, match="already"):
            await jobs.run(lead)
        first.cancel()
        await asyncio.wait([first])
        async with asyncio.timeout(30):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(25):
                    await jobs.run(lead)
    assert len(work.ticks) == len(set(work.ticks)) >= 2


# -- what a hostile reader found


@virtual
async def test_a_clean_up_that_raises_does_not_make_a_lost_run_a_failed_one() -> None:
    """A session that is closed under a query raises in the clean-up; the run is lost all the same, and begun again."""
    async with world() as here:
        begun: list[int] = []
        jobs = JobRegistry()

        @jobs.every(100, name="job", rerun_lost=True)
        async def job(run: JobRun) -> None:
            begun.append(run.attempt)
            try:
                await asyncio.sleep(60 if run.attempt == 1 else 0)
            finally:
                if run.attempt == 1:
                    raise OSError("lost connection")

        first = here.start(jobs)
        await here.until(110)
        await first.end()
        here.start(jobs)
        await here.until(180)
        assert begun == [1, 2]
        assert here.rows() == ["100 succeeded #2"]


@virtual
async def test_an_error_that_cannot_be_told_is_a_failure_all_the_same() -> None:
    """An exception whose text raises ends its run as failed, and hurts nobody."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    async with world() as here:
        jobs = JobRegistry()

        @jobs.every(100, name="job")
        async def job() -> None:
            raise Mute

        here.start(jobs)
        await here.until(210)
        assert here.rows() == ["100 failed", "200 failed"]


@virtual
async def test_a_trigger_in_an_outage_costs_no_tick_of_a_backlog() -> None:
    """With `missed="all"` every tick of an outage is run, although somebody triggered the job meanwhile."""
    async with world() as here:
        jobs, work = JobRegistry(), Work()
        jobs.every(100, name="job", missed="all")(work)
        first = here.start(jobs)
        await here.until(110)
        await first.end()
        await here.until(555)
        await here.someone().trigger("default", "job")
        here.start(jobs)
        await here.until(650)
        assert sorted(work.ticks) == pytest.approx([100, 200, 300, 400, 500, 555, 600], abs=0.1)


@virtual
async def test_what_another_registry_runs_is_left_to_it() -> None:
    """A leader without a job leaves its runs alone: the next one that has it begins them again, or calls them lost."""
    async with world() as here:
        jobs, other, work = JobRegistry(), JobRegistry(), Work(50)
        jobs.every(100, name="job", rerun_lost=True)(work)
        other.every(100, name="other")(Work())
        first = here.start(jobs)
        await here.until(110)
        await first.kill()
        second = here.start(other)
        await here.until(190)
        assert here.rows("job") == ["100 running"]
        await second.end()
        work.takes = 0
        here.start(jobs)
        await here.until(195)
        assert work.begun == [(100, 1), (100, 2)]


@virtual
async def test_a_drain_that_a_job_swallows_is_bounded() -> None:
    """A job that swallows its cancellations in a drain is told of, and the lease is not renewed for ever."""
    store, jobs, let_go, events = MemoryStore(), JobRegistry(), asyncio.Event(), list[Event]()

    @jobs.every(10)
    async def stubborn() -> None:
        while not let_go.is_set():
            with suppress(asyncio.CancelledError):
                await let_go.wait()

    async def application() -> None:
        async with jobs.background(store, drain_timeout=1.0, on_event=events.append):
            await asyncio.sleep(25)

    running = asyncio.create_task(application())
    try:
        await asyncio.sleep(100)
        assert [event for event in events if isinstance(event, BodyStuck)]
        renewals = [method for method, _ in store.sent].count("renew")
        await asyncio.sleep(300)
        assert [method for method, _ in store.sent].count("renew") == renewals
    finally:
        let_go.set()
        await running
