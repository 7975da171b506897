"""What can be a job, when jobs run, and that they run only within a term and end with it.

Most of it in virtual time, where every moment is exact: the database's clock starts at `START` with the first claim.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ParamSpec

import pytest
from loguru import logger

from aiolease import (
    ConfigurationError,
    DuplicateJob,
    InvalidJob,
    InvalidSchedule,
    JobRegistry,
    JobRun,
    Leadership,
    LeadershipLost,
    current_leadership,
    leadership,
)
from aiolease.events import Event, Released, RunFinished, RunStarted, TickSkipped
from aiolease.testing import MemoryServer, MemoryStore, virtual_time

if TYPE_CHECKING:
    from loguru import Message

P = ParamSpec("P")

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
LIMIT = 10.0
"""Seconds of real time within which everything here has to happen."""


def virtual(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A test in virtual time that ends within a virtual day, and leaves no task behind."""

    @functools.wraps(test)
    async def bounded(*args: P.args, **kwargs: P.kwargs) -> None:
        async with asyncio.timeout(86_400):
            await test(*args, **kwargs)
        for _ in range(3):  # what was cancelled, or has its result, may end
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    return virtual_time(bounded)


class Observed:
    """The events of one test, in their order; an observer."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def started(self, job: str) -> list[float]:
        """For which ticks a job started, in seconds since `START`."""
        return [seconds(each.tick) for each in self.events if isinstance(each, RunStarted) and each.job == job]

    def finished(self, job: str) -> list[RunFinished]:
        return [each for each in self.events if isinstance(each, RunFinished) and each.job == job]

    def skipped(self, job: str) -> list[TickSkipped]:
        return [each for each in self.events if isinstance(each, TickSkipped) and each.job == job]


class Diary:
    """What jobs did and when, in seconds of the loop's clock since the diary was made."""

    def __init__(self) -> None:
        self._since = asyncio.get_running_loop().time()
        self.lines: list[tuple[float, str]] = []

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time() - self._since

    def note(self, what: str) -> None:
        self.lines.append((self.now, what))

    def when(self, what: str) -> list[float]:
        return [moment for moment, noted in self.lines if noted == what]


def seconds(moment: datetime) -> float:
    return (moment - START).total_seconds()


def memory(start: datetime = START) -> MemoryStore:
    return MemoryStore(MemoryServer(start))


@asynccontextmanager
async def a_term(jobs: JobRegistry, store: MemoryStore, **options: Any) -> AsyncIterator[Leadership]:
    """The registry runs within one term while the block does; then it is cancelled from outside."""
    led: asyncio.Future[Leadership] = asyncio.get_running_loop().create_future()
    context = options.pop("context", None)

    async def term() -> None:
        async with leadership(store, **options) as lead:
            led.set_result(lead)
            await jobs.run(lead, context=context)

    task = asyncio.create_task(term())
    try:
        yield await led
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, LeadershipLost):
            await task


@pytest.fixture
def log() -> Iterator[list[Message]]:
    """What was logged during the test."""
    records: list[Message] = []
    sink = logger.add(records.append, level="TRACE", format="{level} {message}")
    yield records
    logger.remove(sink)


def lines(log: list[Message], level: str) -> list[str]:
    return [each.record["message"] for each in log if each.record["level"].name == level]


def failures(log: list[Message]) -> list[str]:
    """What was logged at ERROR, without the ticks."""
    return [line.partition(" (tick ")[0] for line in lines(log, "ERROR")]


# -- what can be a job


async def nothing() -> None: ...


def nothing_in_a_thread() -> None: ...


def test_a_decorator_returns_the_function_unchanged() -> None:
    """Registering leaves a function what it was: it can be called, tested and registered elsewhere."""
    jobs = JobRegistry()
    assert jobs.every(30)(nothing) is nothing
    assert jobs.every(timedelta(minutes=5), name="again")(nothing) is nothing
    assert jobs.cron("0 9 * * *")(nothing_in_a_thread) is nothing_in_a_thread


async def two(run: JobRun, more: int) -> None: ...
async def any_number(*runs: JobRun) -> None: ...
async def any_name(**facts: object) -> None: ...
async def keyword_needed(*, shop: str) -> None: ...
async def größe() -> None: ...  # noqa: PLC2401 - that is what is refused


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    "function",
    [two, any_number, any_name, keyword_needed, generator, async_generator, größe, lambda: None, "text", min],
)
def test_what_cannot_be_a_job_is_refused(function: Any) -> None:
    """A job takes nothing or one `JobRun`, yields nothing, and has a plain name; else `InvalidJob` says so at once."""
    jobs = JobRegistry()
    with pytest.raises(InvalidJob) as refused:
        jobs.every(30)(function)
    assert isinstance(refused.value, ValueError)
    assert refused.value.job


@pytest.mark.parametrize("name", ["", "two words", "größe", "x" * 101, "line\nfeed"])
def test_a_name_is_plain(name: str) -> None:
    """A job's name is 1 to 100 printable ASCII characters without spaces: it is the ledger's key for years."""
    with pytest.raises(InvalidJob):
        JobRegistry().every(30, name=name)(nothing)


@pytest.mark.parametrize("function", [lambda: None, lambda run: None, functools.partial(two, more=1), größe])
def test_a_name_given_makes_a_job_of_what_has_none(function: Any) -> None:
    """With ``name=…`` a lambda, a partial or a function with a foreign name can be a job."""
    assert JobRegistry().every(30, name="x" * 100)(function) is function


@pytest.mark.parametrize(
    "options",
    [{"overlap": "queue"}, *({"timeout": value} for value in (0, -1, float("inf"), float("nan"), "5"))],
    ids=str,
)
def test_an_option_that_cannot_work_is_refused(options: dict[str, Any]) -> None:
    """`overlap` and `timeout` are checked at registration, and the error names the job."""
    with pytest.raises(InvalidJob, match="'nothing'"):
        JobRegistry().every(30, **options)(nothing)


def test_a_name_is_taken_once() -> None:
    """Two jobs of one registry cannot have the same name; what was refused does not take a name."""
    jobs = JobRegistry()
    with pytest.raises(InvalidJob):
        jobs.every(30, name="job")(two)
    jobs.every(30, name="job")(nothing)
    with pytest.raises(DuplicateJob) as refused:
        jobs.cron("@daily", name="job")(nothing_in_a_thread)
    assert refused.value.job == "job"
    JobRegistry().every(30, name="job")(nothing)


@pytest.mark.parametrize("interval", [0, -30, 0.0001, float("nan"), float("inf"), "30", None, True, timedelta(0)])
def test_an_interval_that_cannot_work_is_refused(interval: Any) -> None:
    """An interval is a number of seconds or a timedelta, from a millisecond."""
    with pytest.raises(InvalidSchedule):
        JobRegistry().every(interval)


@pytest.mark.parametrize("expression", ["", "* * * *", "61 * * * *", "0 0 30 2 *", "@sometimes", 5])
def test_an_expression_that_cannot_fire_is_refused(expression: Any) -> None:
    """A cron expression that is not understood or can never fire is refused when the job is registered."""
    with pytest.raises(InvalidSchedule):
        JobRegistry().cron(expression)


def test_an_unknown_zone_is_refused() -> None:
    """A time zone is checked where it is named: by the registry, or by the job."""
    with pytest.raises(InvalidSchedule, match="Mars"):
        JobRegistry(timezone="Mars/Olympus")
    with pytest.raises(InvalidSchedule, match="Mars"):
        JobRegistry().cron("@daily", timezone="Mars/Olympus")


@pytest.mark.parametrize("number", [0, -1, 1.5, "2"])
def test_a_cap_that_cannot_work_is_refused(number: Any) -> None:
    """`max_running` is a number from 1, or ``None``."""
    with pytest.raises(ConfigurationError) as refused:
        JobRegistry(max_running=number)
    assert refused.value.field == "max_running"


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


# -- jobs among each other


@virtual
async def test_a_job_that_raises_hurts_no_other(log: list[Message]) -> None:
    """A job that raises is logged with its traceback, and it and all others run at their next ticks."""
    jobs, observed = JobRegistry(), Observed()

    @jobs.every(10)
    async def bad() -> None:
        raise ValueError("no such {customer}")

    @jobs.every(10)
    async def good() -> None:
        await asyncio.sleep(1)

    async with a_term(jobs, memory(), on_event=observed):
        await asyncio.sleep(35)
    assert observed.started("bad") == observed.started("good") == [10, 20, 30]
    assert [each.status for each in observed.finished("good")] == ["succeeded"] * 3
    said = [
        f"'bad' failed: ValueError: no such {{customer}} (tick 2026-01-01 00:00:{tick} UTC)" for tick in (10, 20, 30)
    ]
    assert lines(log, "ERROR") == said
    for failure in [each.record for each in log if each.record["level"].name == "ERROR"]:
        assert failure["exception"] is not None
        assert failure["exception"].traceback is not None
        assert failure["extra"]["lease"] == "default"
        assert failure["extra"]["token"] == 1


@virtual
async def test_what_is_no_exception_is_not_lost_either(log: list[Message]) -> None:
    """A job that ends with another kind of error, a framework's own say, is reported like one that raises."""
    jobs, observed = JobRegistry(), Observed()
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    class Odd(BaseException):
        pass

    @jobs.every(10)
    async def bad() -> None:
        raise Odd("strange")

    async with a_term(jobs, memory(), on_event=observed):
        await asyncio.sleep(25)
    assert [each.status for each in observed.finished("bad")] == ["failed", "failed"]
    assert failures(log) == ["'bad' failed: Odd: strange"] * 2
    gc.collect()
    assert complaints == []


@virtual
async def test_a_run_is_logged_with_its_duration(log: list[Message]) -> None:
    """A run that succeeded is one line at INFO, in words that people alert on."""
    jobs = JobRegistry()

    @jobs.every(10)
    async def debt_aging() -> None:
        await asyncio.sleep(0.42)

    async with a_term(jobs, memory()):
        await asyncio.sleep(15)
    assert [line for line in lines(log, "INFO") if "debt_aging" in line] == ["ran 'debt_aging' in 0.42 s"]


@virtual
async def test_a_cancellation_of_its_own_making_is_a_failure() -> None:
    """A job that awaits a task which somebody cancels has failed; it was not cancelled, and runs at the next tick."""
    jobs, observed = JobRegistry(), Observed()

    @jobs.every(10)
    async def job() -> None:
        task = asyncio.create_task(asyncio.sleep(5))
        asyncio.get_running_loop().call_later(1, task.cancel)
        await task

    async with a_term(jobs, memory(), on_event=observed):
        await asyncio.sleep(25)
    assert observed.started("job") == [10, 20]
    assert [each.status for each in observed.finished("job")] == ["failed", "failed"]
    assert isinstance(observed.finished("job")[0].error, asyncio.CancelledError)


@virtual
async def test_a_run_that_takes_too_long_has_failed(log: list[Message]) -> None:
    """After its `timeout` a run is cancelled, has failed, and the job runs at its next tick."""
    jobs, observed, diary = JobRegistry(), Observed(), Diary()

    @jobs.every(10, timeout=5)
    async def job() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            diary.note("cancelled")

    async with a_term(jobs, memory(), on_event=observed):
        await asyncio.sleep(29)
    assert diary.when("cancelled") == [15, 25]
    assert [each.status for each in observed.finished("job")] == ["failed", "failed"]
    assert failures(log) == ["'job' failed: TimeoutError: it took longer than 5 s"] * 2


@virtual
async def test_a_run_that_swallows_its_timeout_has_failed_too() -> None:
    """A run that was cancelled by its `timeout` did not succeed, even if it returns as though nothing had happened."""
    jobs, observed = JobRegistry(), Observed()

    @jobs.every(10, timeout=5)
    async def job() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(100)

    async with a_term(jobs, memory(), on_event=observed):
        await asyncio.sleep(19)
    assert [each.status for each in observed.finished("job")] == ["failed"]


@virtual
async def test_a_timeout_inside_a_job_is_the_jobs_own(log: list[Message]) -> None:
    """A `TimeoutError` that the job raises itself is reported as it is, not as the job's `timeout`."""
    jobs = JobRegistry()

    @jobs.every(10, timeout=5)
    async def job() -> None:
        async with asyncio.timeout(1):
            await asyncio.sleep(100)

    async with a_term(jobs, memory()):
        await asyncio.sleep(15)
    assert failures(log) == ["'job' failed: TimeoutError"]


@virtual
async def test_a_tick_beside_a_running_job_is_skipped(log: list[Message]) -> None:
    """By default a job does not run beside itself: a tick that meets its last run is skipped, with two WARNINGs."""
    jobs, observed = JobRegistry(), Observed()

    @jobs.every(10)
    async def slow() -> None:
        await asyncio.sleep(25)

    async with a_term(jobs, memory(), on_event=observed):
        await asyncio.sleep(45)
    assert observed.started("slow") == [10, 40]
    assert lines(log, "WARNING")[:2] == [
        "skipped 'slow', 1 tick since 2026-01-01 00:00:20: its last run has not ended",
        (
            "skipped 'slow', 2 ticks since 2026-01-01 00:00:20: its last run has not ended "
            "(until 2026-01-01 00:00:30, and now no more)"
        ),
    ]


@virtual
async def test_a_job_may_run_beside_itself() -> None:
    """With ``overlap="allow"`` every tick starts a run."""
    jobs, observed = JobRegistry(), Observed()

    @jobs.every(10, overlap="allow")
    async def slow() -> None:
        await asyncio.sleep(25)

    async with a_term(jobs, memory(), on_event=observed):
        await asyncio.sleep(45)
    assert observed.started("slow") == [10, 20, 30, 40]
    assert not observed.skipped("slow")


@virtual
async def test_no_more_runs_at_once_than_allowed() -> None:
    """`max_running` runs go on at once; the others wait for their turn, and start in order."""
    jobs, observed, diary = JobRegistry(max_running=2), Observed(), Diary()
    running = most = 0

    async def job(run: JobRun) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        diary.note(run.job)
        await asyncio.sleep(9)
        running -= 1

    for name in "abcde":
        jobs.every(20, name=name)(job)
    async with a_term(jobs, memory(), on_event=observed):
        await asyncio.sleep(59)
    assert most == 2
    assert [(round(moment), name) for moment, name in diary.lines] == [
        *((20, "a"), (20, "b"), (29, "c"), (29, "d"), (38, "e")),
        *((40, "a"), (47, "b"), (49, "c"), (56, "d")),
    ]
    assert [seconds(each.since) for each in observed.skipped("e")] == [40]
    assert not observed.skipped("d")


@virtual
async def test_a_run_that_waits_counts_as_running() -> None:
    """A tick of a job that waits for its turn is skipped like one of a job that runs."""
    jobs, observed = JobRegistry(max_running=1), Observed()

    @jobs.every(10)
    async def long() -> None:
        await asyncio.sleep(35)

    @jobs.every(10)
    async def short() -> None: ...

    async with a_term(jobs, memory(), on_event=observed):
        await asyncio.sleep(46)
    assert observed.started("short") == [10]
    assert [seconds(each.since) for each in observed.skipped("short")] == [20, 30, 40]


# -- when they fall due


@virtual
async def test_ticks_follow_the_clock_of_the_database() -> None:
    """What is due is told by the database's clock, whatever the machine's own clock shows."""
    jobs, store, observed = JobRegistry(), memory(), Observed()
    store.server.clock_offset = HOUR

    @jobs.cron("30 1 * * *")
    async def job() -> None: ...

    async with a_term(jobs, store, on_event=observed) as lead:
        assert abs((lead.database_now() - store.server.now()).total_seconds()) < 0.001
        await asyncio.sleep(1800 - 1)
        assert observed.started("job") == []
        await asyncio.sleep(1.1)
        assert observed.started("job") == [5400]
        await asyncio.sleep(7200)
        assert observed.started("job") == [5400]


@virtual
async def test_a_zone_is_the_jobs_or_else_the_registrys() -> None:
    """A cron expression is read in its job's zone, or in the registry's."""
    jobs, observed = JobRegistry(timezone="America/New_York"), Observed()

    async def job() -> None: ...

    jobs.cron("0 9 * * *", name="new_york")(job)
    jobs.cron("0 9 * * *", name="berlin", timezone="Europe/Berlin")(job)
    async with a_term(jobs, memory(), on_event=observed):
        await asyncio.sleep(86_000)
    assert observed.started("new_york") == [14 * 3600]
    assert observed.started("berlin") == [8 * 3600]


@virtual
async def test_a_clock_that_steps_forward_is_noticed_in_seconds() -> None:
    """When the database's clock jumps ahead, the newest tick runs within a heartbeat and a few seconds; none twice."""
    jobs, store, observed, diary = JobRegistry(), memory(), Observed(), Diary()

    @jobs.every(1800)
    async def job() -> None:
        diary.note("job")

    async with a_term(jobs, store, on_event=observed):
        await asyncio.sleep(35)
        store.server.clock_offset = HOUR
        await asyncio.sleep(1800)
    assert observed.started("job") == [3600, 5400]
    stepped, following = diary.when("job")
    assert 35 < stepped <= 35 + 10 + 5
    assert following == pytest.approx(1800, abs=0.01)
    (skipped,) = observed.skipped("job")
    assert (seconds(skipped.since), skipped.count) == (1800, 1)


@virtual
async def test_a_clock_that_steps_back_repeats_no_tick() -> None:
    """When the database's clock is put back, no tick runs twice, and the ticks go on when it gets there again."""
    jobs, store, observed = JobRegistry(), memory(), Observed()

    @jobs.every(60)
    async def job() -> None: ...

    async with a_term(jobs, store, on_event=observed):
        await asyncio.sleep(305)
        store.server.clock_offset = -timedelta(seconds=240)
        await asyncio.sleep(600)
    assert observed.started("job") == list(range(60, 661, 60))


@virtual
async def test_the_next_leader_keeps_the_rhythm() -> None:
    """Intervals lie on a grid from the Unix epoch: a new leader ticks where the last would have, none twice."""
    server = MemoryServer(START + timedelta(seconds=3.3))
    jobs, observed, number = JobRegistry(), Observed(), 0

    @jobs.every(7)
    async def job() -> None: ...

    for number in range(1, 6):
        async with a_term(jobs, MemoryStore(server), on_event=observed) as lead:
            assert lead.token == number
            await asyncio.sleep(30)
    ticks = [START.timestamp() + tick for tick in observed.started("job")]
    assert len(ticks) >= 19
    assert all(tick % 7 == 0 for tick in ticks)
    assert ticks == sorted(set(ticks))


@virtual
async def test_ticks_that_a_blocked_loop_missed_are_one_run(log: list[Message]) -> None:
    """A loop that stood still for a while runs the newest of the missed ticks, and says how many it skipped."""
    jobs, observed = JobRegistry(), Observed()

    @jobs.every(1)
    async def job() -> None: ...

    async with a_term(jobs, memory(), on_event=observed):
        await asyncio.sleep(5.5)
        asyncio.get_running_loop().advance(6)  # type: ignore[attr-defined]
        await asyncio.sleep(1)
    assert observed.started("job") == [1, 2, 3, 4, 5, 11, 12]
    assert lines(log, "WARNING") == ["skipped 'job', 5 ticks since 2026-01-01 00:00:06: a newer one was due as well"]


@virtual
async def test_ten_thousand_jobs_wait_without_a_task() -> None:
    """Jobs that are not due cost no task and no timer: ten thousand of them wait like one."""
    loop, counts = asyncio.get_running_loop(), []
    for number in (1, 10_000):
        jobs, observed = JobRegistry(), Observed()
        for index in range(number):
            jobs.cron(f"{index % 60} {index // 60 % 24} * * *", name=f"job-{index}")(nothing)
        async with a_term(jobs, memory(), on_event=observed):
            await asyncio.sleep(30)
            timers = [timer for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
            counts.append((len(asyncio.all_tasks()), len(timers)))
            await asyncio.sleep(600)
            assert len([each for each in observed.events if isinstance(each, RunFinished)]) == (70 if number > 1 else 0)
    assert counts[0][0] == counts[1][0]
    assert max(timers for _, timers in counts) < 10


@virtual
async def test_many_jobs_that_fall_due_at_once_cost_each_the_same() -> None:
    """What a job costs at the moment it falls due does not grow with the number of those that fall due beside it."""
    costs = []
    for number in (500, 2_000):
        jobs, observed, calls = JobRegistry(), Observed(), Calls()
        for index in range(number):
            jobs.every(60, name=f"job-{index}")(nothing)
        async with a_term(jobs, memory(), on_event=observed):
            await asyncio.sleep(59)
            with calls:
                await asyncio.sleep(2)
        assert len([each for each in observed.events if isinstance(each, RunFinished)]) == number
        costs.append(calls.count / number)
    assert costs[1] < 1.2 * costs[0]


class Calls:
    """Counts what this thread calls while the block runs: a measure that no other process disturbs."""

    def __init__(self) -> None:
        self.count = 0

    def _note(self, _: object, event: str, __: object) -> None:
        self.count += event == "call"

    def __enter__(self) -> None:
        self._earlier = sys.getprofile()
        sys.setprofile(self._note)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._earlier)


# -- jobs in threads: in real time, with a lease of half a second


SHORT: dict[str, Any] = {"lease_duration": 0.6}
variable: ContextVar[str] = ContextVar("variable", default="unset")


async def until(condition: Callable[[], object]) -> None:
    """Waits for what other tasks or threads do, and fails after `LIMIT`."""
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_plain_function_runs_in_a_thread(log: list[Message]) -> None:
    """A ``def`` job runs beside the loop, with the term's context: context variables and `current_leadership()`."""
    jobs, seen, observed = JobRegistry(), [], Observed()

    @jobs.every(0.1)
    def job(run: JobRun) -> str:
        seen.append((threading.get_ident(), variable.get(), current_leadership(), run.leadership, run.job))
        run.check()
        return "ignored"

    @jobs.every(0.1)
    def bad() -> None:
        raise ValueError("in a thread")

    variable.set("set by the caller")
    async with a_term(jobs, MemoryStore(), on_event=observed, **SHORT) as lead:
        await until(lambda: len(observed.finished("job")) >= 2 and observed.finished("bad"))
    thread, *rest = seen[0]
    assert thread != threading.get_ident()
    assert rest == ["set by the caller", lead, lead, "job"]
    assert observed.finished("job")[0].status == "succeeded"
    assert "'bad' failed: ValueError: in a thread" in failures(log)


async def test_a_thread_does_not_hold_up_the_loop() -> None:
    """While ``def`` jobs block in their threads, the loop and the other jobs go on, however many threads there are."""
    jobs, observed, go_on = JobRegistry(max_threads=50), Observed(), threading.Event()
    blocked = [f"blocked-{number}" for number in range(50)]
    for name in blocked:
        jobs.every(0.1, name=name)(lambda: go_on.wait(LIMIT))

    @jobs.every(0.05)
    async def job() -> None: ...

    try:
        async with a_term(jobs, MemoryStore(), on_event=observed, lease_duration=10):
            await until(lambda: all(observed.started(name) for name in blocked))
            ran = len(observed.finished("job"))
            await until(lambda: len(observed.finished("job")) > ran + 2)
            assert not any(observed.finished(name) for name in blocked)
            go_on.set()
            await until(lambda: all(observed.finished(name) for name in blocked))
    finally:
        go_on.set()


async def test_a_thread_learns_that_the_lease_is_lost() -> None:
    """`run.check()` in a ``def`` job raises `LeadershipLost` from the loss on, with the true reason."""
    jobs, store, raised = JobRegistry(), MemoryStore(), []
    started = threading.Event()

    @jobs.every(0.1)
    def job(run: JobRun) -> None:
        started.set()
        for _ in range(int(LIMIT / 0.01)):
            time.sleep(0.01)
            try:
                run.check()
            except LeadershipLost as error:
                raised.append(error)
                if len(raised) == 10:  # long after the job was cancelled
                    raise

    async with a_term(jobs, store, **SHORT) as lead:
        await until(started.is_set)
        store.down = True
        await until(lambda: len(raised) == 10)
    assert {(error.reason, error.holder, error.token) for error in raised} == {("expired", lead.holder, 1)}


async def test_a_thread_learns_of_its_timeout(log: list[Message]) -> None:
    """`run.check()` in a ``def`` job raises `TimeoutError` after the job's `timeout`, and the run has failed."""
    jobs, observed, raised = JobRegistry(), Observed(), []

    @jobs.every(0.1, timeout=0.1)
    def job(run: JobRun) -> None:
        for _ in range(int(LIMIT / 0.01)):
            time.sleep(0.01)
            try:
                run.check()
            except TimeoutError:
                raised.append("told")
                raise

    async with a_term(jobs, MemoryStore(), on_event=observed, lease_duration=10):
        await until(lambda: observed.finished("job"))
    assert raised
    assert observed.finished("job")[0].status == "failed"
    assert "'job' failed: TimeoutError: it took longer than 0.1 s" in failures(log)


async def test_a_thread_that_does_not_end_is_left_behind(log: list[Message]) -> None:
    """A thread that outlives its term by one more lease is left behind; beside it the job does not start again."""
    jobs, store, observed = JobRegistry(), MemoryStore(), Observed()
    go_on, started = threading.Event(), threading.Event()
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    @jobs.every(0.1)
    def stuck(run: JobRun) -> None:
        started.set()
        go_on.wait(LIMIT)
        run.check()

    @jobs.every(0.1)
    async def other() -> None: ...

    try:
        async with a_term(jobs, store, on_event=observed, **SHORT) as lead:
            await until(started.is_set)
            store.down = True
            await until(lambda: not lead.is_leader)
            lost_at = time.monotonic()
            await until(lambda: observed.finished("stuck"))
            assert 0.5 < time.monotonic() - lost_at < 1.5
        assert any("thread of 'stuck'" in line for line in lines(log, "CRITICAL"))
        store.down = False
        async with a_term(jobs, store, on_event=observed, **SHORT):
            before = len(observed.finished("other"))
            await until(lambda: len(observed.finished("other")) >= before + 4)
            assert len(observed.started("stuck")) == 1
            assert observed.skipped("stuck")
            go_on.set()
            await until(lambda: len(observed.started("stuck")) > 1)
    finally:
        go_on.set()
    gc.collect()
    assert complaints == []


# -- leader_only


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


# -- draining


@virtual
async def test_a_drain_lets_running_jobs_finish() -> None:
    """Leaving `background` starts no new run, lets running ones finish while heartbeats go on, and then releases."""
    jobs, store, observed, diary = JobRegistry(), memory(), Observed(), Diary()

    @jobs.every(10)
    async def job() -> None:
        await asyncio.sleep(0.1)

    @jobs.every(30)
    async def slow() -> None:
        await asyncio.sleep(45)
        diary.note("slow ends")

    async with jobs.background(store, drain_timeout=60, on_event=observed) as campaign:
        await asyncio.sleep(35)
        left_at = diary.now
    assert diary.when("slow ends") == [pytest.approx(75)]
    assert diary.now == pytest.approx(75, abs=0.01)
    assert observed.started("job") == [10, 20, 30]
    assert [each.status for each in observed.finished("slow")] == ["succeeded"]
    renewals = [moment - 1000 for what, moment in store.sent if what == "renew" and moment - 1000 > left_at]
    assert len(renewals) == 4
    assert isinstance(observed.events[-1], Released)
    assert isinstance(observed.events[-2], RunFinished)
    assert campaign.status().state == "stopped"


@virtual
async def test_a_drain_ends() -> None:
    """After `drain_timeout` the jobs that still run are cancelled and awaited; only then is the lease released."""
    jobs, observed, diary = JobRegistry(), Observed(), Diary()

    @jobs.every(10)
    async def job() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            diary.note("cancelled")
            await asyncio.sleep(2)
            diary.note("ends")

    async with jobs.background(memory(), drain_timeout=7, on_event=observed):
        await asyncio.sleep(15)
    assert [(round(moment, 2), what) for moment, what in diary.lines] == [(22, "cancelled"), (24, "ends")]
    assert diary.now == pytest.approx(24, abs=0.01)
    assert isinstance(observed.events[-1], Released)
    assert isinstance(observed.events[-2], RunFinished)


@virtual
async def test_a_drain_without_time_cancels_at_once() -> None:
    """With ``drain_timeout=0`` leaving cancels the running jobs."""
    jobs, diary = JobRegistry(), Diary()

    @jobs.every(10)
    async def job() -> None:
        await asyncio.sleep(1000)

    async with jobs.background(memory(), drain_timeout=0):
        await asyncio.sleep(15)
    assert diary.now == pytest.approx(15, abs=0.01)


@virtual
async def test_a_loss_during_a_drain_cancels_at_once() -> None:
    """A lease that is lost while jobs finish leaves them no more time: they are cancelled as by any other loss."""
    jobs, store, diary = JobRegistry(), memory(), Diary()

    @jobs.every(10)
    async def job() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            diary.note("cancelled")

    async with jobs.background(store, drain_timeout=800):
        await asyncio.sleep(15)
        store.down = True
    (cancelled,) = diary.when("cancelled")
    assert cancelled == pytest.approx(35, abs=0.01)
    assert diary.now == pytest.approx(36, abs=1)


@virtual
async def test_what_waits_for_its_turn_does_not_start_in_a_drain() -> None:
    """A run that waits for `max_running` is not started any more once the drain has begun."""
    jobs, observed = JobRegistry(max_running=1), Observed()

    async def job() -> None:
        await asyncio.sleep(10)

    for name in ("first", "second"):
        jobs.every(30, name=name)(job)
    async with jobs.background(memory(), drain_timeout=60, on_event=observed):
        await asyncio.sleep(35)
    assert [each.status for each in observed.finished("first")] == ["succeeded"]
    assert observed.started("second") == []


@pytest.mark.parametrize("drain_timeout", [-1, float("inf"), float("nan"), "5"])
async def test_a_drain_that_cannot_work_is_refused(drain_timeout: Any) -> None:
    """`drain_timeout` is a finite number of seconds, from 0."""
    jobs = JobRegistry()
    with pytest.raises(ConfigurationError) as refused:
        await jobs.serve(MemoryStore(), drain_timeout=drain_timeout)
    assert refused.value.field == "drain_timeout"
