"""What becomes of runs whose leader is gone: they are handed back, run again, or lost."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

from aiolease import JobRegistry
from aiolease._jobs.writing import Writing
from aiolease.events import Event, RunStarted
from tests.jobs.worlds import Line, Work, registry, seconds, world
from tests.virtual import START, lines, virtual

if TYPE_CHECKING:
    from loguru import Message


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
    written = Writing._written
    loop = asyncio.get_running_loop()

    def frozen(writing: Writing, plan: Any) -> Any:
        starting = written(writing, plan)
        if starting and writing._term.key.token == 1:
            loop.advance(40)  # type: ignore[attr-defined]
        return starting

    with patch.object(Writing, "_written", frozen):
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
                jobs._terms.running[-1].lead.resign()

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
