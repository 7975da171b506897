"""A run that has failed is tried again: when, how often, by whom, and what becomes of it meanwhile (DESIGN rule 33)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from aiolease import CommitUnknown, GiveUp, InvalidJob, JobRegistry, JobRun
from aiolease.events import level_of
from tests.jobs.worlds import Work, World, registry, seconds, world
from tests.virtual import lines, virtual

if TYPE_CHECKING:
    from loguru import Message


class Failing(Work):
    """Fails the first so many times, then works."""

    def __init__(self, times: float, error: Callable[[], BaseException] = lambda: ValueError("no")) -> None:
        super().__init__()
        self.times = times
        self.error = error
        self.at: list[float] = []

    async def __call__(self, run: JobRun) -> None:
        await super().__call__(run)
        self.at.append(asyncio.get_running_loop().time())
        if len(self.begun) <= self.times:
            raise self.error()


def row(here: World) -> Any:
    (found,) = here.records()
    return found


@virtual
async def test_a_failed_run_is_tried_again_after_a_pause_that_doubles(log: list[Message]) -> None:
    """It is queued in the ledger with its moment and its error; each attempt can be read; in the end it has worked."""
    async with world() as here:
        work = Failing(2)
        process = here.start(registry(work, 1200, retries=3, backoff=20))
        await here.until(1201)
        first = row(here)
        assert (first.status, first.attempt, first.failures, first.error) == ("queued", 2, 1, "ValueError: no")
        assert 18 <= seconds(first.not_before) - 1200 <= 22
        assert first.errors == ("attempt 1 (term 1, 2026-01-01 00:20:00 UTC): ValueError: no",)
        await here.until(1300)
        assert work.begun == [(1200, 1), (1200, 2), (1200, 3)]
        pauses = [later - earlier for earlier, later in zip(work.at, work.at[1:], strict=False)]
        assert 18 <= pauses[0] <= 22
        assert 36 <= pauses[1] <= 44
        last = row(here)
        assert (last.status, last.attempt, last.failures, last.error, last.not_before) == (
            "succeeded",
            3,
            2,
            None,
            None,
        )
        assert len(last.errors) == 2
        told = process.observed.finished("job")
        assert [(each.status, each.retry_at is not None) for each in told] == [
            ("failed", True), ("failed", True), ("succeeded", False),
        ]  # fmt: skip
        assert [level_of(each) for each in told] == ["WARNING", "WARNING", "INFO"]
        assert any("is tried again at 2026-01-01 00:20" in line for line in lines(log, "WARNING"))


@virtual
async def test_a_run_fails_for_good_when_no_retry_is_left() -> None:
    """It is failed after its retries, and not before; the last error is told as an ERROR."""
    async with world() as here:
        work = Failing(math.inf)
        process = here.start(registry(work, 1200, retries=2, backoff=1))
        await here.until(1300)
        assert work.begun == [(1200, 1), (1200, 2), (1200, 3)]
        assert (row(here).status, row(here).attempt, row(here).failures) == ("failed", 3, 2)
        assert [each.retry_at is None for each in process.observed.finished("job")] == [False, False, True]


@pytest.mark.parametrize(
    "error", [lambda: GiveUp("no such customer"), lambda: ExceptionGroup("both", [ValueError(), GiveUp("never")])]
)
@virtual
async def test_give_up_fails_at_once(error: Callable[[], BaseException]) -> None:
    """`GiveUp`, also in a group, is the end of a run, whatever retries are left."""
    async with world() as here:
        work = Failing(math.inf, error)
        here.start(registry(work, 1200, retries=5, backoff=1))
        await here.until(1300)
        assert work.begun == [(1200, 1)]
        assert (row(here).status, row(here).failures) == ("failed", 0)


@virtual
async def test_a_timeout_is_a_failure() -> None:
    """A run that took longer than its `timeout` is tried again."""
    async with world() as here:
        work = Work(30)
        here.start(registry(work, 1200, retries=1, backoff=1, timeout=5))
        await here.until(1300)
        assert work.begun == [(1200, 1), (1200, 2)]
        assert (row(here).status, row(here).error) == ("failed", "TimeoutError: it took longer than 5 s")


@virtual
async def test_a_retry_outlives_its_leader() -> None:
    """A leader that is killed, or ends, leaves the retry in the ledger: the next one makes it in its time."""
    async with world() as here:
        work = Failing(2)
        first = here.start(registry(work, 1200, retries=2, backoff=100))
        await here.until(1210)
        await first.kill()
        second = here.start(registry(work, 1200, retries=2, backoff=100))
        await here.until(1285)
        assert work.begun == [(1200, 1)]
        await here.until(1320)
        assert work.begun == [(1200, 1), (1200, 2)]
        await second.end()
        here.start(registry(work, 1200, retries=2, backoff=100))
        await here.until(1600)
        assert work.begun == [(1200, 1), (1200, 2), (1200, 3)]
        assert (row(here).status, row(here).failures, row(here).token) == ("succeeded", 2, 3)


@virtual
async def test_lost_and_failed_attempts_are_counted_apart() -> None:
    """Leaders that die under a run use up no retries, and retries none of the five attempts of a run that was lost."""
    async with world() as here:
        work = Failing(0)
        fails = True

        async def job(run: JobRun) -> None:
            work.begun.append((seconds(run.tick), run.attempt))
            if fails:
                raise ValueError
            await asyncio.sleep(500)

        def jobs() -> JobRegistry:
            return registry(job, 1200, retries=3, backoff=1, rerun_lost=True)

        process = here.start(jobs())
        await here.until(1202.5)  # two have failed
        fails = False
        for number in range(4):
            await here.until(1250 + 50 * number)
            assert row(here).status == "running"
            await process.kill()
            process = here.start(jobs())
        await here.until(1460)
        found = row(here)
        failures = found.failures
        assert 2 <= failures <= 3
        assert (found.status, found.attempt) == ("running", failures + 5)  # five of those that count
        await process.kill()
        here.start(jobs())
        await here.until(1510)
        assert (row(here).status, row(here).attempt) == ("lost", failures + 5)
        assert sum("ValueError" in line for line in row(here).errors) == failures
        assert sum("lost with term" in line for line in row(here).errors) == 4


@pytest.mark.parametrize("overlap", ["skip", "allow"])
@virtual
async def test_what_a_waiting_retry_makes_of_newer_ticks(overlap: Any) -> None:
    """With ``overlap="skip"`` they are skipped, and it is said why; with ``"allow"`` they are run."""
    async with world() as here:
        work = Failing(1)
        process = here.start(registry(work, 10, retries=1, backoff=25, overlap=overlap, missed="once"))
        await here.until(60.5)
        if overlap == "skip":
            assert work.begun[:2] == [(10, 1), (10, 2)]
            (skipped,) = {each.reason for each in process.observed.skipped("job")}
            assert skipped == "its last run waits to be tried again"
            assert "30 skipped 2" in here.rows()
        else:
            assert [tick for tick, attempt in work.begun if attempt == 1] == [10, 20, 30, 40, 50, 60]
            assert (10, 2) in work.begun


@virtual
async def test_a_waiting_retry_holds_up_no_backlog() -> None:
    """With ``overlap="allow", missed="all"`` newer ticks are run while one waits to be tried again."""
    async with world() as here:
        work = Failing(1)
        here.start(registry(work, 10, retries=1, backoff=35, overlap="allow", missed="all"))
        await here.until(61)
        assert [tick for tick, attempt in work.begun if attempt == 1] == [10, 20, 30, 40, 50, 60]
        assert (10, 2) in work.begun


@virtual
async def test_skipped_ticks_behind_a_retry_cost_few_writes() -> None:
    """A retry that is far off does not mean a write for each tick that is skipped until then."""
    async with world() as here:
        process = here.start(registry(Failing(1), 1, retries=1, backoff=300))
        await here.until(250)
        assert here.rows() == ["1 queued #2", "240 skipped 239"] or here.rows()[0] == "1 queued #2"
        assert len(here.rows()) == 2
        assert process.store.count("record") < 40


@virtual
async def test_max_age_bounds_retries() -> None:
    """A run that would be too old at its next start has failed; one whose turn comes too late has failed, too."""
    async with world() as here:
        work = Failing(math.inf)
        here.start(registry(work, 1200, retries=5, backoff=30, max_age=60))
        await here.until(1300)
        assert work.begun == [(1200, 1), (1200, 2)]  # the next start would be 90 s late
        assert (row(here).status, row(here).failures) == ("failed", 1)


@virtual
async def test_a_retry_whose_turn_comes_too_late_has_failed(log: list[Message]) -> None:
    """Nobody led when its moment came: it is failed as the attempt that it was, and that is told."""
    async with world() as here:
        work = Failing(math.inf)
        first = here.start(registry(work, 1200, retries=5, backoff=30, max_age=60))
        await here.until(1210)
        await first.end()
        await here.until(1300)
        here.start(registry(work, 1200, retries=5, backoff=30, max_age=60))
        await here.until(1310)
        assert work.begun == [(1200, 1)]
        assert (row(here).status, row(here).attempt) == ("failed", 1)
        assert row(here).error == "more than 60 s late to be tried again"
        assert any("more than 60 s late to be tried again" in line for line in lines(log, "ERROR"))


@pytest.mark.parametrize("result", [math.nan, math.inf, -1, None, "soon", True])
@virtual
async def test_a_backoff_that_cannot_work_is_a_minute(result: Any, log: list[Message]) -> None:
    """Whatever the function gives or raises, the run is tried again, after a minute; an ERROR says so."""
    async with world() as here:
        work = Failing(1)

        def backoff(failures: int) -> float:
            assert failures == 1
            if result is None:
                raise RuntimeError("oops")
            return result  # type: ignore[no-any-return]

        here.start(registry(work, 1200, retries=1, backoff=backoff))
        await here.until(1259)
        assert work.begun == [(1200, 1)]
        await here.until(1261)
        assert work.begun == [(1200, 1), (1200, 2)]
        assert any("'job' is tried again in 60 s: its backoff" in line for line in lines(log, "ERROR"))


@virtual
async def test_a_backoff_is_a_function_of_the_failures() -> None:
    """It is given how often the run has failed, from 1, and is taken at its word."""
    async with world() as here:
        asked: list[int] = []

        def backoff(failures: int) -> float:
            asked.append(failures)
            return 5.0 * failures

        work = Failing(2)
        here.start(registry(work, 1200, retries=2, backoff=backoff))
        await here.until(1300)
        assert asked == [1, 2]
        assert [round(at - work.at[0]) for at in work.at] == [0, 5, 15]


@virtual
async def test_a_pause_is_an_hour_at_most() -> None:
    """However often it was doubled."""
    async with world() as here:
        here.start(registry(Failing(math.inf), 7200, retries=3, backoff=3000))
        await here.until(7200 + 3400)
        assert (row(here).failures, row(here).status) == (2, "queued")
        assert seconds(row(here).not_before) <= 7200 + 3300 + 3600


@virtual
async def test_a_final_effect_is_there_once_though_it_raised_after_a_lost_answer() -> None:
    """A job that swallows `CommitUnknown` and raises is not tried again if its final transaction was committed."""
    async with world() as here:
        effects: list[int] = []
        begun: list[int] = []

        async def job(run: JobRun) -> None:
            begun.append(run.attempt)
            async with run.transaction(final=True) as calls:
                calls.append(lambda: effects.append(run.attempt))
            raise ValueError("after it")

        here.start(registry(job, 1200, retries=3, backoff=1))
        await here.until(1300)
        assert effects == [1]
        assert begun == [1]
        assert row(here).status == "succeeded"


@virtual
async def test_an_unknown_commit_and_a_failure_mix() -> None:
    """The answer of the final commit is lost, and then the job raises: the ledger knows whether it is tried again."""
    async with world() as here:
        effects: list[int] = []
        begun: list[int] = []

        async def job(run: JobRun) -> None:
            begun.append(run.attempt)
            try:
                async with run.transaction(final=True) as calls:
                    calls.append(lambda: effects.append(run.attempt))
                    if run.attempt == 1:
                        raise CommitUnknown("memory", "the answer was lost")
            except CommitUnknown as error:
                run.fate.doubt, run.fate.unknown = error, True
                raise ValueError("in its clean-up") from None

        process = here.start(registry(job, 1200, retries=3, backoff=1))
        await here.until(1300)
        assert effects == [2]
        assert begun == [1, 2]
        assert [each.status for each in process.observed.finished("job")] == ["failed", "succeeded"]


@pytest.mark.parametrize(
    "options",
    [
        {"retries": -1}, {"retries": 1.5}, {"retries": True}, {"backoff": -1}, {"backoff": math.inf}, {"backoff": "1"},
        {"jitter": -1}, {"jitter": 30}, {"jitter": math.nan}, {"late_after": 0}, {"late_after": math.inf},
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    """When the job is registered, by their names."""
    with pytest.raises(InvalidJob, match=next(iter(options))):
        JobRegistry().every(30, name="job", **options)(Work())
