"""Jobs run only within a term and end with it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, timedelta

import pytest

from aiolease import JobRegistry, JobRun, LeadershipLost, current_leadership, leadership
from aiolease.events import Event, Notice, Released
from aiolease.testing import MemoryServer, MemoryStore
from tests.jobs.worlds import Diary, Observed, a_term, memory
from tests.virtual import START, virtual

# -- what a run is given


@virtual
async def test_a_run_knows_what_it_is() -> None:
    """A job that takes an argument gets its name, tick, attempt, token, context and term."""
    jobs, context, runs = JobRegistry(), object(), []

    @jobs.every(30)
    async def job(run: JobRun) -> None:
        run.check()
        runs.append(run)

    async with a_term(jobs, memory(), context=context) as lead:
        await asyncio.sleep(31)
    (run,) = runs
    assert (run.job, run.tick, run.attempt, run.token) == ("job", START + timedelta(seconds=30), 1, 1)
    assert run.tick.tzinfo is UTC
    assert run.context is context
    assert run.leadership is lead
    assert repr(run) == "<JobRun 'job' 2026-01-01T00:00:30Z attempt 1>"
    with pytest.raises(LeadershipLost):
        run.check()


@virtual
async def test_a_job_that_is_registered_while_the_jobs_run_waits_for_the_next_term() -> None:
    """The log says so, and `on_event` hears it, with the facts of the term."""
    jobs, ran, heard = JobRegistry(), list[str](), list[Event]()
    jobs.every(1, name="first")(lambda: ran.append("first"))
    store = memory()
    for term in (1, 2):
        async with leadership(store, on_event=heard.append) as lead:
            running = asyncio.create_task(jobs.run(lead))
            await asyncio.sleep(3)
            if term == 1:
                jobs.every(1, name="second")(lambda: ran.append("second"))
                await asyncio.sleep(3)
                assert set(ran) == {"first"}
            running.cancel()
            await asyncio.wait([running])
    assert set(ran) == {"first", "second"}
    [told] = [event for event in heard if isinstance(event, Notice) and "'second' was registered" in event.text]
    assert (told.lease, told.token, told.severity) == ("default", 1, "WARNING")


@virtual
async def test_a_job_runs_within_its_term() -> None:
    """`current_leadership()` works in a job, also in one that waited for its turn."""
    jobs, leads = JobRegistry(max_running=1), []

    async def job() -> None:
        await asyncio.sleep(1)
        leads.append(current_leadership())

    for name in ("first", "second"):
        jobs.every(30, name=name)(job)
    async with a_term(jobs, memory()) as lead:
        await asyncio.sleep(35)
    assert leads == [lead, lead]


# -- only within a term


@virtual
async def test_jobs_run_only_in_the_leader() -> None:
    """While one process leads no job starts in another, and the next leader's first starts after its last has ended."""
    server, diary = MemoryServer(START), Diary()
    stores = [MemoryStore(server), MemoryStore(server)]

    def registry(who: str) -> JobRegistry:
        jobs = JobRegistry()

        @jobs.every(1)
        async def job() -> None:
            diary.note(f"{who} starts")
            try:
                await asyncio.sleep(0.5)
            except asyncio.CancelledError:
                await asyncio.sleep(3)
                raise
            finally:
                diary.note(f"{who} ends")

        return jobs

    tasks = []
    for who, store in zip("ab", stores, strict=True):
        tasks.append(asyncio.create_task(registry(who).serve(store)))
        await asyncio.sleep(1)
    await asyncio.sleep(60)
    assert not diary.when("b starts")
    assert len(diary.when("a starts")) >= 59
    stores[0].down = True
    await asyncio.sleep(100)
    assert max(diary.when("a ends")) <= min(diary.when("b starts"))
    assert len(diary.when("b starts")) >= 50
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@virtual
async def test_a_lost_lease_cancels_a_job_once() -> None:
    """When the lease is lost a running job is cancelled once, and its clean-up may await."""
    jobs, store = JobRegistry(), memory()
    observed, diary = Observed(), Diary()

    @jobs.every(10)
    async def job() -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            diary.note("cancelled")
            raise
        finally:
            for _ in range(20):
                await asyncio.sleep(0.1)
            diary.note("cleaned up")

    asyncio.get_running_loop().call_later(15, setattr, store, "down", True)
    with pytest.raises(LeadershipLost) as lost:
        async with leadership(store, on_event=observed) as lead:
            await jobs.run(lead)
    (cancelled,) = diary.when("cancelled")
    assert cancelled == pytest.approx(35, abs=0.01)  # the renewal at 10 s succeeded, and 25 s later it was over
    assert diary.when("cleaned up") == [pytest.approx(cancelled + 2)]
    assert lost.value.reason == "expired"
    assert [each.status for each in observed.finished("job")] == ["lost"]


@virtual
async def test_a_job_that_goes_on_is_cancelled_again_after_half_the_unwind() -> None:
    """A job that ignores its cancellation is cancelled once more, after half the time to unwind, not a third time."""
    jobs, store, diary = JobRegistry(), memory(), Diary()

    @jobs.every(10)
    async def job() -> None:
        until = diary.now + 60
        while diary.now < until:
            try:
                await asyncio.sleep(until - diary.now)
            except asyncio.CancelledError:
                diary.note("cancelled")

    asyncio.get_running_loop().call_later(15, setattr, store, "down", True)
    with pytest.raises(LeadershipLost):
        async with leadership(store) as lead:
            await jobs.run(lead)
    first, second = diary.when("cancelled")
    assert second - first == pytest.approx(2.5, abs=0.01)


@virtual
async def test_a_job_that_ignores_its_cancellation_keeps_the_lease() -> None:
    """The lease is not released, and nobody else elected, before the last job has ended."""
    server, jobs, diary, fit = MemoryServer(START), JobRegistry(), Diary(), True

    @jobs.every(10)
    async def job() -> None:
        until = diary.now + 25
        while diary.now < until:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(until - diary.now)
        diary.note("job ends")

    async def eligible() -> bool:
        return fit

    async def leads() -> None:
        with pytest.raises(LeadershipLost, match="ineligible"):
            async with leadership(MemoryStore(server), eligible=eligible) as lead:
                await jobs.run(lead)

    async def follows() -> None:
        await asyncio.sleep(1)
        async with leadership(MemoryStore(server)):
            diary.note("another leads")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(leads())
        tasks.create_task(follows())
        await asyncio.sleep(15)
        fit = False
    (ended,), (elected,) = diary.when("job ends"), diary.when("another leads")
    assert ended == pytest.approx(35, abs=0.1)
    assert ended <= elected < ended + 0.1


@virtual
async def test_run_refuses_a_term_that_has_ended() -> None:
    """`run` with a term that is over raises `LeadershipLost` and starts nothing."""
    jobs = JobRegistry()
    async with leadership(memory()) as lead:
        pass
    with pytest.raises(LeadershipLost):
        await jobs.run(lead)
    assert not jobs.is_leader


@virtual
async def test_run_that_is_cancelled_takes_its_jobs_along() -> None:
    """`run` that is cancelled from outside cancels the jobs, awaits them, and only then ends, as cancelled."""
    jobs, diary = JobRegistry(), Diary()

    @jobs.every(10)
    async def job() -> None:
        diary.note("starts")
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(1)
            diary.note("ends")

    async with leadership(memory()) as lead:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(15):
                await jobs.run(lead)
        diary.note("run ends")
        assert lead.is_leader
        assert not jobs.is_leader
        await asyncio.sleep(60)
    assert diary.lines == [(10.0, "starts"), (16.0, "ends"), (16.0, "run ends")]


@virtual
async def test_a_job_may_resign() -> None:
    """A job that resigns ends the term like any other: it is cancelled, the lease released, and there is no error."""
    jobs, observed, diary = JobRegistry(), Observed(), Diary()

    @jobs.every(10)
    async def job(run: JobRun) -> None:
        run.leadership.resign()
        try:
            await asyncio.sleep(1000)
        finally:
            diary.note("cancelled")

    async with leadership(memory(), on_event=observed) as lead:
        await jobs.run(lead)
    assert diary.when("cancelled") == [10.0]
    assert isinstance(observed.events[-1], Released)


@virtual
async def test_a_registry_knows_whether_it_leads() -> None:
    """`is_leader` is true while a term of the registry runs in this process."""
    jobs, store = JobRegistry(), memory()
    assert not jobs.is_leader
    async with a_term(jobs, store):
        await asyncio.sleep(1)
        assert jobs.is_leader
        store.down = True
        await asyncio.sleep(60)
        assert not jobs.is_leader


@virtual
async def test_a_leader_asks_nothing_as_people_do() -> None:
    """What people ask goes over a connection of its own: a process that nobody asks for anything has none."""
    jobs, store = JobRegistry(), memory()
    jobs.every(1, name="job")(lambda: None)
    for _ in range(2):
        async with a_term(jobs, store):
            await asyncio.sleep(10)
    sent = {method for method, _ in store.sent}
    assert {"claim", "record"} <= sent
    assert sent & {"history", "runs", "terms"} == set()
    assert [term.token for term in await store.terms("default")] == [1, 2]
