"""What `leader_only` calls, and that it ends with the term."""

from __future__ import annotations

import asyncio
import functools
import gc
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from aiolease import InvalidJob, JobRegistry, Leadership, LeadershipLost, current_leadership, leadership
from tests.jobs.worlds import Diary, a_term, memory, nothing_in_a_thread
from tests.virtual import lines, virtual

if TYPE_CHECKING:
    from loguru import Message


@virtual
async def test_leader_only_calls_nothing_in_a_follower(log: list[Message]) -> None:
    """Where this registry does not lead, a `leader_only` call returns ``None`` at once, with a DEBUG line."""
    jobs, called = JobRegistry(), []

    @jobs.leader_only
    async def report() -> str:
        called.append(1)
        return "done"

    assert await report() is None
    async with leadership(memory()):  # a term, but none of this registry
        assert await report() is None
    assert not called
    assert [line for line in lines(log, "DEBUG") if "report" in line] == [
        "'report' was not called: this process does not lead"
    ] * 2


@virtual
async def test_leader_only_takes_all_that_is_a_coroutine_function() -> None:
    """A partial or an object with an async ``__call__`` can be `leader_only`; a plain function cannot."""
    jobs = JobRegistry()

    class Report:
        async def __call__(self) -> str:
            return "report"

    async def add(one: int, more: int) -> int:
        return one + more

    calls: list[Any] = [jobs.leader_only(Report()), jobs.leader_only(functools.partial(add, 1, 2))]
    assert [await call() for call in calls] == [None, None]
    async with a_term(jobs, memory()):
        assert [await call() for call in calls] == ["report", 3]
    with pytest.raises(InvalidJob):
        jobs.leader_only(nothing_in_a_thread)  # type: ignore[arg-type]


@virtual
async def test_leader_only_hands_on_what_comes_out() -> None:
    """While the registry leads, a call gets its arguments, and its caller what it returns or raises."""
    jobs = JobRegistry()

    @jobs.leader_only
    async def divide(number: int, *, by: int) -> float:
        """Divides."""
        return number / by

    assert (divide.__name__, divide.__doc__) == ("divide", "Divides.")
    async with a_term(jobs, memory()):
        assert await divide(3, by=2) == 1.5
        with pytest.raises(ZeroDivisionError):
            await divide(3, by=0)


@virtual
async def test_leader_only_runs_within_the_term() -> None:
    """In a call `current_leadership()` is the registry's term, although its caller, another task, is outside."""
    jobs = JobRegistry()

    @jobs.leader_only
    async def report() -> Leadership:
        return current_leadership()

    async with a_term(jobs, memory()) as lead:
        assert await report() is lead


@virtual
async def test_leader_only_is_cancelled_with_the_term() -> None:
    """When the lease is lost a call is cancelled once, awaited, and its caller gets `LeadershipLost`."""
    jobs, store, diary = JobRegistry(), memory(), Diary()

    @jobs.leader_only
    async def report() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            diary.note("cancelled")
            await asyncio.sleep(1)
            diary.note("cleaned up")

    async with a_term(jobs, store) as lead:
        store.down = True
        with pytest.raises(LeadershipLost) as lost:
            await report()
        diary.note("raised")
    assert [what for _, what in diary.lines] == ["cancelled", "cleaned up", "raised"]
    assert (lost.value.holder, lost.value.reason) == (lead.holder, "expired")


@virtual
async def test_leader_only_ends_with_its_caller() -> None:
    """When its caller is cancelled the call is cancelled and awaited, and the caller's cancellation goes on."""
    jobs, diary = JobRegistry(), Diary()
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    @jobs.leader_only
    async def report() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(1)
            diary.note("cleaned up")
            raise ValueError("while it was cleaning up")

    async with a_term(jobs, memory()) as lead:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await report()
        diary.note("caller goes on")
        assert lead.is_leader
    assert [what for _, what in diary.lines] == ["cleaned up", "caller goes on"]
    gc.collect()
    assert complaints == []


@virtual
async def test_leader_only_that_ends_with_its_registry_has_not_lost_an_expired_lease() -> None:
    """Where `run` is ended and the term goes on, a call that is cancelled says "resigned": the lease is still kept."""
    jobs = JobRegistry()

    @jobs.every(10)
    async def job() -> None: ...

    @jobs.leader_only
    async def report() -> None:
        await asyncio.sleep(1000)

    async with leadership(memory()) as lead:
        running = asyncio.create_task(jobs.run(lead))
        await asyncio.sleep(1)
        call = asyncio.create_task(report())
        await asyncio.sleep(1)
        running.cancel()
        with pytest.raises(LeadershipLost) as lost:
            await call
        assert (lost.value.reason, lead.is_leader) == ("resigned", True)
        with suppress(asyncio.CancelledError):
            await running


@virtual
async def test_leader_only_starts_nothing_in_a_term_that_ends() -> None:
    """While the jobs of a term are being cancelled, a new call is not let in: it would hold up the end."""
    jobs, diary = JobRegistry(), Diary()

    @jobs.every(10)
    async def job() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(2)

    @jobs.leader_only
    async def report() -> str:
        await asyncio.sleep(100)
        return "done"

    async with leadership(memory()) as lead:
        running = asyncio.create_task(jobs.run(lead))
        await asyncio.sleep(15)
        running.cancel()
        await asyncio.sleep(1)
        assert await report() is None
        with suppress(asyncio.CancelledError):
            await running
        diary.note("ended")
    assert diary.when("ended") == [17]
