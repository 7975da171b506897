"""What a registry has around every run: `JobRegistry(around=…)` and `JobRun.resource` (DESIGN rule 37)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from unittest.mock import patch

import pytest

from aiolease import ConfigurationError, GiveUp, JobRegistry, JobRun, current_leadership
from aiolease._jobs import execution
from aiolease.testing import MemoryStore, run_job
from tests.jobs.worlds import Observed, a_term, world
from tests.virtual import SHORT, until, virtual


class Around:
    """Notes how each run was entered and left."""

    def __init__(self, *, enter: BaseException | None = None, leave: BaseException | None = None) -> None:
        self.lines: list[str] = []
        self.tasks: set[Any] = set()
        self.enter, self.leave = enter, leave

    @asynccontextmanager
    async def __call__(self, run: JobRun) -> AsyncIterator[str]:
        self.tasks.add(asyncio.current_task())
        self.lines.append(f"enter {run.job} #{run.attempt}")
        if self.enter is not None:
            raise self.enter
        try:
            yield f"resource of {run.job}"
        except BaseException as error:
            self.lines.append(type(error).__name__)
            await asyncio.sleep(1)
            raise
        finally:
            self.lines.append("left")
            if self.leave is not None:
                raise self.leave


@virtual
async def test_around_is_entered_around_every_run() -> None:
    """In the run's own task, within its term; what it yields is `run.resource`."""
    around, seen = Around(), []
    jobs = JobRegistry(around=around)

    @jobs.every(100)
    async def job(run: JobRun) -> None:
        seen.append((run.resource, asyncio.current_task() in around.tasks, current_leadership() is run.leadership))

    async with world() as here:
        here.start(jobs)
        await here.until(201)
    assert seen == [("resource of job", True, True)] * 2
    assert around.lines == ["enter job #1", "left"] * 2


@pytest.mark.parametrize("where", ["enter", "leave"])
@virtual
async def test_what_around_raises_is_the_runs_failure(where: str) -> None:
    """Before the job, which is not called then, or after it; and it is tried again like any other."""
    called: list[int] = []
    around = Around(**{where: ValueError("no session")})
    jobs = JobRegistry(around=around)

    @jobs.every(400, retries=1, backoff=1)
    async def job(run: JobRun) -> None:
        called.append(run.attempt)

    async with world() as here:
        here.start(jobs)
        await here.until(450)
        assert here.rows() == ["400 failed #2"]
        assert here.records()[0].error == "ValueError: no session"
    assert called == ([] if where == "enter" else [1, 2])


@virtual
async def test_around_is_cancelled_and_awaited_like_the_job() -> None:
    """By the time-out of the job, for which it counts, and by the end of the term."""
    around = Around()
    jobs = JobRegistry(around=around)

    @jobs.every(100, timeout=5)
    async def job() -> None:
        await asyncio.sleep(1000)

    @jobs.every(130)
    async def other() -> None:
        await asyncio.sleep(1000)

    async with world() as here:
        process = here.start(jobs)
        await here.until(110)
        assert around.lines == ["enter job #1", "CancelledError", "left"]
        assert here.records()[0].error == "TimeoutError: it took longer than 5 s"
        await here.until(131)
        await process.end()
        assert around.lines[3:] == ["enter other #1", "CancelledError", "left"]
        assert here.records("other")[0].status == "lost"


@virtual
async def test_give_up_in_around() -> None:
    """It ends the run for good, as in a job."""
    jobs = JobRegistry(around=Around(enter=GiveUp("switched off")))

    @jobs.every(400, retries=5, backoff=1)
    async def job() -> None: ...

    async with world() as here:
        here.start(jobs)
        await here.until(450)
        assert here.rows() == ["400 failed"]


async def test_a_plain_function_has_it_too() -> None:
    """It is entered in the run's task, on the loop; the function has its resource in the thread."""
    around, seen = Around(), []
    jobs, observed = JobRegistry(around=around), Observed()

    @jobs.every(0.1)
    def job(run: JobRun) -> None:
        seen.append(run.resource)

    async with a_term(jobs, MemoryStore(), on_event=observed, **SHORT):
        await until(lambda: bool(observed.finished("job")))
    assert seen[0] == "resource of job"
    assert around.lines[:2] == ["enter job #1", "left"]


@virtual
async def test_a_run_without_a_thread_is_handed_back_whatever_around_makes_of_it() -> None:
    """One that swallows everything does not make a success of a run that has not begun."""

    @asynccontextmanager
    async def swallows(_: JobRun) -> AsyncIterator[None]:
        with suppress(Exception):
            yield

    jobs, started = JobRegistry(around=swallows), []

    @jobs.every(100)
    def job() -> None:
        started.append(1)

    async with world() as here:
        with patch.object(execution, "JobThread", side_effect=RuntimeError("can't start new thread")):
            process = here.start(jobs)
            await here.until(100.2)
            assert process.observed.finished("job") == []
            assert here.rows() == ["100 queued"]


def test_what_cannot_be_called_is_refused() -> None:
    """When the registry is made."""
    with pytest.raises(ConfigurationError, match="around"):
        JobRegistry(around=object())  # type: ignore[arg-type]


async def test_a_test_of_one_run_has_it_too() -> None:
    """`aiolease.testing.run_job` enters it."""
    around, seen = Around(), []
    jobs = JobRegistry(around=around)

    @jobs.every(10)
    async def job(run: JobRun) -> None:
        seen.append(run.resource)

    await run_job(jobs, "job")
    assert seen == ["resource of job"]
