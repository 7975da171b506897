"""What changes while jobs run: schedules and sets of jobs."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import pytest

from aiolease import JobRegistry, JobRun
from aiolease._jobs.schedule import Every, ticks_between
from tests.jobs.worlds import Work, four, registry, seconds, world
from tests.virtual import START, lines, virtual

if TYPE_CHECKING:
    from loguru import Message


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


@pytest.mark.parametrize("whole", [False, True])
@virtual
async def test_what_fell_due_since_a_pause_that_has_ended_is_run_before_a_change(whole: bool) -> None:
    """The pause ended by itself at 700; the ticks of the old schedule since then are run, those before are not."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, 300, missed="all"))
        await here.until(310)
        await here.someone().pause("default", None if whole else "job", until=START + timedelta(seconds=700))
        await process.end()
        await here.until(1300)
        here.start(registry(work, 3600, missed="all"))
        await here.until(1310)
        assert work.ticks == [300, 900, 1200]


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
        assert process.store.count("enroll") == 1  # that this term has it


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


def _sizes(part: Any, path: str = "term") -> dict[str, int]:
    """The lengths of all containers in the parts of a term, by their paths."""
    sizes = {path: len(part)} if hasattr(part, "__len__") else {}
    if type(part).__module__.startswith("aiolease._jobs."):
        for name, it in getattr(part, "__dict__", {}).items():
            sizes |= _sizes(it, f"{path}.{name}")
    return sizes


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
        [term] = jobs._terms.running
        sizes = []
        for moment in (100, 400):
            await here.until(moment)
            sizes.append(_sizes(term))
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
