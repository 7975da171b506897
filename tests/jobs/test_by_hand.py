"""What people ask for by hand: rerun, backfill, cancel, pauses with an end and of all jobs (DESIGN rules 34 to 36)."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any

import pytest

from aiolease import GiveUp, JobRegistry, JobRun, RequestRefused
from aiolease.stores.seen import TERMS
from aiolease.testing import MemoryStore
from tests.jobs.worlds import Observed, Work, World, a_term, registry, seconds, world
from tests.virtual import SHORT, START, until, virtual


def at(moment: float) -> datetime:
    return START + timedelta(seconds=moment)


class Fails(Work):
    """A job that fails while `failing` is set."""

    failing = True

    async def __call__(self, run: JobRun) -> None:
        await super().__call__(run)
        if self.failing:
            raise ValueError("no")


# -- rerun


@virtual
async def test_a_failed_run_is_run_again_by_hand() -> None:
    """Within a heartbeat, as a further attempt, whatever `max_age` says; what the first one raised can be read."""
    async with world() as here:
        work = Fails()
        here.start(registry(work, 100, max_age=30))
        await here.until(150)
        assert here.rows() == ["100 failed"]
        work.failing = False
        await here.someone().rerun("default", "job", at(100))
        await here.until(161)
        assert work.begun == [(100, 1), (100, 2)]
        assert here.rows() == ["100 succeeded #2"]
        assert "ValueError: no" in here.records()[0].errors[0]
        assert here.jobs["job"].asked_at is None
        with pytest.raises(RequestRefused, match="succeeded"):
            await here.someone().rerun("default", "job", at(100))


@virtual
async def test_a_rerun_outlives_its_leader_and_ignores_a_pause() -> None:
    """Asked while nobody leads and the job is paused, it is run by whoever leads next."""
    async with world() as here:
        work = Fails()
        first = here.start(registry(work, 100))
        await here.until(110)
        await first.end()
        await here.someone().pause("default", "job")
        await here.someone().rerun("default", "job", at(100))
        work.failing = False
        here.start(registry(work, 100))
        await here.until(320)
        assert work.begun == [(100, 1), (100, 2)]


@virtual
async def test_a_tick_that_falls_due_while_a_rerun_goes_on_follows_it() -> None:
    """A run by hand does not make its job busy: the newest tick is run after it, and is not skipped for it."""
    async with world() as here:
        work = Fails()
        here.start(registry(work, 100, missed="skip"))
        await here.until(110)
        work.failing, work.takes = False, 85 + 70
        await here.someone().rerun("default", "job", at(100))
        await here.until(250)
        work.takes = 1
        await here.until(420)
        assert work.begun[:3] == [(100, 1), (100, 2), (200, 1)]
        assert work.most_at_once == 1
        assert all("skipped" not in line for line in here.rows())


@virtual
async def test_a_rerun_has_all_its_retries_and_lost_attempts_again() -> None:
    """What it failed before counts no more."""
    async with world() as here:
        work = Fails()
        here.start(registry(work, 400, retries=2, backoff=1))
        await here.until(450)
        assert here.rows() == ["400 failed #3"]
        await here.someone().rerun("default", "job", at(400))
        await here.until(500)
        assert here.rows() == ["400 failed #6"]


# -- backfill


@virtual
async def test_a_backfill_runs_what_has_no_row_or_was_skipped() -> None:
    """Each tick of the span once: those from before the job was known, and those in the midst of a skipped range."""
    async with world() as here:
        work = Work()
        first = here.start(registry(work, 10))
        await here.until(35)
        await first.end()
        await here.until(95)
        here.start(registry(work, 10))
        await here.until(101)
        assert here.rows() == [
            "10 succeeded",
            "20 succeeded",
            "30 succeeded",
            "80 skipped 5",
            "90 succeeded",
            "100 succeeded",
        ]
        await here.someone().backfill("default", "job", at(-20), at(65))
        await here.until(119)
        work.once_each()
        assert {-20, -10, 0, 40, 50, 60} <= set(work.ticks)
        assert 70 not in work.ticks
        assert "80 skipped 2" in here.rows()
        assert (here.jobs["job"].backfill_since, here.jobs["job"].backfill_until) == (None, None)
        asked = [row for row in here.records() if row.request == "backfill"]
        assert {seconds(row.tick) for row in asked} == {-20, -10, 0, 40, 50, 60}


@pytest.mark.parametrize(
    ("since", "until", "left"),
    [(40, 80, []), (50, 80, ["40 skipped 1"]), (60, 60, ["50 skipped 2", "80 skipped 2"]),
     (40, 70, ["80 skipped 1"]), (80, 80, ["70 skipped 4"])],
)  # fmt: skip
@virtual
async def test_what_is_left_of_a_skipped_range_stays_recorded(since: float, until: float, left: list[str]) -> None:
    """With its right counts, wherever the backfill begins and ends in it."""
    async with world() as here:
        work = Work()
        first = here.start(registry(work, 10))
        await here.until(35)
        await first.end()
        await here.until(95)
        here.start(registry(work, 10))
        await here.until(96)
        await here.someone().backfill("default", "job", at(since), at(until))
        await here.until(109)
        assert [line for line in here.rows() if "skipped" in line] == left
        assert sum("succeeded" in line for line in here.rows()) + sum(
            row.count or 0 for row in here.records() if row.status == "skipped"
        ) == len(range(10, 101, 10))


@virtual
async def test_a_backfill_of_many_ticks_does_not_flood() -> None:
    """At most 1,100 wait; what is due is run in time; one of its runs goes on at a time; it ends."""
    async with world() as here:
        work = Work(0.05)
        here.start(registry(work, 100, overlap="allow", history=None))
        await here.until(10)
        await here.someone().backfill("default", "job", at(-250_000), at(0))
        most = 0
        for moment in range(30, 400, 5):
            await here.until(moment)
            waiting = sum(row.status == "queued" for row in here.records())
            most = max(most, waiting)
        assert 900 < most <= 1100
        assert work.most_at_once <= 2
        assert len([tick for tick in work.ticks if tick <= 0]) == 2501
        assert [tick for tick in work.ticks if tick > 0] == [100, 200, 300]
        work.once_each()


@virtual
async def test_a_backfill_queues_behind_what_is_due() -> None:
    """With one place, another job's ticks are run in time while a backfill goes on."""
    async with world() as here:
        jobs, slow, quick = JobRegistry(max_running=1), Work(3), Work()
        jobs.every(1000, name="slow")(slow)
        jobs.every(10, name="quick")(quick)
        process = here.start(jobs)
        await here.until(5)
        await here.someone().backfill("default", "slow", at(-100_000), at(0))
        await here.until(200)
        assert len(slow.ticks) > 20
        assert quick.ticks == list(range(10, 201, 10))[: len(quick.ticks)]
        assert len(quick.ticks) >= 19
        assert process.observed.skipped("quick") == []


@virtual
async def test_a_backfill_goes_on_with_the_next_leader() -> None:
    """A leader that is killed in the midst of it loses none of it, and doubles none."""
    async with world() as here:
        work = Work(2)
        first = here.start(registry(work, 100, rerun_lost=True))
        await here.until(10)
        await here.someone().backfill("default", "job", at(-2000), at(0))
        await here.until(35)
        await first.kill()
        here.start(registry(work, 100, rerun_lost=True))
        await here.until(200)
        ended = [tick for tick in work.ended if tick <= 0]
        assert sorted(ended) == [float(tick) for tick in range(-2000, 1, 100)]


# -- cancel


@virtual
async def test_cancel_ends_what_runs_and_does_not_come_back() -> None:
    """An `async def` job is cancelled, and has failed; retries and `rerun_lost` do not bring it back."""
    async with world() as here:
        work = Work(10_000)
        process = here.start(registry(work, 100, retries=5, backoff=1, rerun_lost=True))
        await here.until(110)
        await here.someone().cancel("default", "job")
        await here.until(150)
        (row,) = here.records()
        assert (row.status, row.error, row.attempt) == ("failed", "cancelled on request", 1)
        assert here.jobs["job"].cancel_at is None
        (told,) = process.observed.finished("job")
        assert isinstance(told.error, GiveUp)
        await here.until(205)
        assert work.begun == [(100, 1), (200, 1)]


async def test_cancel_stops_a_thread_at_its_next_check() -> None:
    """A `def` job that calls `run.check()` gets `GiveUp`; in real time."""
    raised: list[BaseException] = []
    jobs, store, observed = JobRegistry(), MemoryStore(), Observed()

    @jobs.every(1, retries=3, backoff=0.01)
    def job(run: JobRun) -> None:
        try:
            while True:
                run.check()
                time.sleep(0.01)
        except GiveUp as error:
            raised.append(error)
            raise

    async with a_term(jobs, store, on_event=observed, **SHORT):
        await until(lambda: observed.started("job"))
        await store.cancel("default", "job")
        await until(lambda: observed.finished("job"))
    assert [str(error) for error in raised[:1]] == ["cancelled on request"]
    assert (await store.history("default", "job"))[0].status == "failed"


@virtual
async def test_a_run_whose_claim_went_unanswered_is_cancelled_too() -> None:
    """Its row says that it runs, and it was to start once the ledger was read again: it has failed, and never began."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, 100, rerun_lost=True))
        await here.until(99)
        process.store.lose_reply("record")
        await here.until(101)
        assert here.rows() == ["100 running"]
        await here.someone().cancel("default", "job")
        await here.until(150)
        assert work.begun == []
        (row,) = here.records()
        assert (row.status, row.error, row.attempt) == ("failed", "cancelled on request", 1)
        assert here.jobs["job"].cancel_at is None


@virtual
async def test_cancel_fails_a_waiting_retry_and_withdraws_what_was_asked_for() -> None:
    """A retry has failed; a rerun that has not begun is failed again; a backfill is skipped, and its rest forgotten."""
    async with world() as here:
        jobs, work, other = JobRegistry(max_running=1), Fails(), Work(10_000)
        jobs.every(100, name="job", retries=1, backoff=5000, overlap="allow")(work)
        jobs.every(1000, name="other", overlap="allow")(other)
        here.start(jobs)
        await here.until(150)
        assert here.rows() == ["100 queued #2"]
        await here.someone().trigger("default", "other")  # it takes the one place
        await here.until(165)
        await here.someone().backfill("default", "job", at(-300), at(0))
        await here.until(185)
        assert here.rows()[:4] == [f"{tick} queued" for tick in (-300, -200, -100, 0)]
        await here.someone().cancel("default", "job")
        await here.until(199)
        assert here.rows() == ["-300 skipped", "-200 skipped", "-100 skipped", "0 skipped", "100 failed"]
        assert {row.error for row in here.records()} == {"cancelled on request"}
        assert here.jobs["job"].cancel_at is None


@virtual
async def test_a_leader_that_dies_before_it_has_cancelled() -> None:
    """The next one finds the request, and the run that went on when it was made: failed, and not run again."""
    async with world() as here:
        work = Work(10_000)
        first = here.start(registry(work, 100, rerun_lost=True, retries=3))
        await here.until(110)
        first.store.down = True
        await here.someone().cancel("default", "job")
        await first.kill()
        here.start(registry(work, 100, rerun_lost=True, retries=3))
        await here.until(190)
        (row,) = here.records()
        assert (row.status, row.error) == ("failed", "cancelled on request")
        assert work.begun == [(100, 1)]
        assert here.jobs["job"].cancel_at is None


@virtual
async def test_a_cancelled_run_that_its_leader_queued_anew_does_not_come_back() -> None:
    """The leader ends in order before it has seen the request, and queues the run for the next one: it is failed."""
    async with world() as here:
        work = Work(10_000)
        first = here.start(registry(work, 100, rerun_lost=True))
        await here.until(110.5)
        await here.someone().cancel("default", "job")
        await first.end()
        assert here.rows() == ["100 queued #2"]
        here.start(registry(work, 100, rerun_lost=True))
        await here.until(190)
        assert here.rows() == ["100 failed"]
        assert work.begun == [(100, 1)]
        assert here.jobs["job"].cancel_at is None
        await here.until(201)
        assert work.begun == [(100, 1), (200, 1)]


@virtual
async def test_cancel_ends_a_long_backfill() -> None:
    """What waits of it is skipped, the rest is not queued, and the job goes on with its next tick."""
    async with world() as here:
        work = Work(1)
        here.start(registry(work, 100))
        await here.until(10)
        await here.someone().backfill("default", "job", at(-900_000), at(0))
        await here.until(45)
        await here.someone().cancel("default", "job")
        await here.until(60)
        count = len(work.ticks)
        await here.until(90)
        assert len(work.ticks) == count
        assert here.jobs["job"].backfill_since is None
        assert all(row.status != "queued" for row in here.records())
        await here.until(105)
        assert work.ticks[-1] == 100


# -- pauses


@virtual
async def test_a_pause_ends_by_itself() -> None:
    """No tick until then is run or missed; the next one is run in time, with no look in between."""
    async with world() as here:
        work = Work()
        here.start(registry(work, 10, missed="all"))
        await here.until(25)
        await here.someone().pause("default", "job", until=at(65))
        await here.until(91)
        assert work.ticks == [10, 20, 70, 80, 90]
        assert all("skipped" not in line for line in here.rows())


@virtual
async def test_a_pause_with_an_end_is_resumed_before_it() -> None:
    """`resume` makes the ticks from then on due."""
    async with world() as here:
        work = Work()
        here.start(registry(work, 10, missed="all"))
        await here.until(25)
        await here.someone().pause("default", "job", until=at(3600))
        await here.until(55)
        await here.someone().resume("default", "job")
        await here.until(91)
        assert work.ticks == [10, 20, 60, 70, 80, 90]


@pytest.mark.parametrize("end", [None, 150.0])
@virtual
async def test_a_pause_of_the_whole_lease(end: float | None) -> None:
    """It holds for all jobs, also for one that comes while it does, and does not end a pause of a job by itself."""
    async with world() as here:
        works = {name: Work() for name in ("a", "b", "new")}

        def jobs(*names: str) -> JobRegistry:
            found = JobRegistry()
            for name in names:
                found.every(10, name=name)(works[name])
            return found

        first = here.start(jobs("a", "b"))
        await here.until(15)
        await here.someone().pause("default", "b")
        await here.until(16)
        await here.someone().pause("default", until=None if end is None else at(end))
        await here.until(40)
        await first.end()
        here.start(jobs("a", "b", "new"))
        await here.until(101)
        assert [works[name].ticks for name in works] == [[10], [10], []]
        if end is None:
            await here.someone().resume("default")
        await here.until(181)
        ticks = list(range(110, 181, 10)) if end is None else [150, 160, 170, 180]
        assert works["a"].ticks[1:] in (ticks, ticks[1:])
        assert works["new"].ticks in (ticks, ticks[1:])
        assert works["b"].ticks == [10]


# -- terms


def _terms(here: World) -> list[Any]:
    return sorted(here.server.ledgers["default"].terms.values(), key=lambda row: row.tick)


@virtual
async def test_the_ledger_tells_of_terms() -> None:
    """Each has a row: the next leader says whether the one before ended in order, by how it found the lease."""
    async with world() as here:
        first = here.start(registry(Work(), 100))
        await here.until(20)
        assert [(row.status, row.token, row.job) for row in _terms(here)] == [("running", 1, TERMS)]
        assert here.jobs["job"].token == 1
        written = dict(here.server.ledgers["default"].terms)
        await first.end()
        assert here.server.ledgers["default"].terms == written  # no exchange of its own before the release
        second = here.start(registry(Work(), 100))
        await here.until(30)
        assert [(row.status, row.error) for row in _terms(here)] == [("succeeded", "released"), ("running", None)]
        await second.kill()
        here.start(registry(Work(), 100))
        await here.until(100)
        assert [(row.status, row.token) for row in _terms(here)] == [("succeeded", 1), ("lost", 2), ("running", 3)]
        assert here.jobs["job"].token == 3
