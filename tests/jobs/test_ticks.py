"""Each tick is run once or accounted for: where a job begins, outages, backlogs, history."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from aiolease import JobRegistry, JobRun, StoreUnavailable
from tests.jobs.worlds import Work, registry, seconds, world
from tests.virtual import START, lines, virtual

if TYPE_CHECKING:
    from loguru import Message


# -- where a job begins


@pytest.mark.parametrize(("since", "ticks"), [(3, [10, 20]), (10, [20]), (9.5, [10, 20])])
@virtual
async def test_a_new_job_starts_with_its_next_tick(since: float, ticks: list[float]) -> None:
    """A job that the database has never seen has missed nothing: it starts with its next tick."""
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
        assert process.store.count("record") == 2 * 5 + 1  # and the row of the term
        assert process.store.count("take_stock") == 2 + 10 + 1  # and the rows of earlier terms
        assert process.store.count("enroll") == 1 + 1  # and that this term has it


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
