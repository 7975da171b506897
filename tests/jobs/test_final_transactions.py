"""A final transaction commits a run's effect together with its success."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from aiolease import CommitUnknown, JobRun, StoreUnavailable
from aiolease.errors import RunAlreadyEnded
from tests.jobs.worlds import Line, Work, registry, seconds, world
from tests.virtual import lines, virtual

if TYPE_CHECKING:
    from loguru import Message


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
        assert process.store.count("record") == 1 + 1  # the claim, and the row of the term; its end is not worth one
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
    """The second final transaction of a run raises `RunAlreadyEnded`, and writes nothing; others go on working."""
    async with world() as here:
        effects: list[str] = []

        async def job(run: JobRun) -> None:
            for number in range(2):
                with suppress(RunAlreadyEnded):
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
    """If nobody knows the outcome of the final commit each time, there are five attempts; then the run is lost.

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
    """If it is known that nothing was committed, the run is begun again, without limit, after a growing pause."""
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
    """A postponed run waits in the ledger, and the next leader begins it at once."""
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
