"""A run to call a job with, and one job of a registry that runs alone."""

# ruff: noqa: PT012 - the blocks are terms and transactions

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from aiolease import CommitUnknown, InvalidJob, JobRegistry, JobRun, LeadershipLost, current_leadership
from aiolease.errors import RunEnded
from aiolease.testing import MemoryStore, job_run, run_job, run_virtual, virtual_time
from tests.testing.virtual_loop import SOON, Boom, loop
from tests.virtual import START

# -- a run to call a job with


async def pay(run: JobRun) -> None:
    async with run.transaction(final=True) as calls:
        calls.append(lambda: run.context.append(run.tick))


def test_a_run_is_what_was_asked_for() -> None:
    """`job_run` gives the job, tick, attempt and context that were given, the tick in UTC; by default it is now."""
    tick = datetime(2026, 7, 1, 9, tzinfo=ZoneInfo("Europe/Berlin"))
    context = object()
    run = job_run("pay", tick=tick, attempt=3, context=context)
    assert (run.job, run.tick, run.attempt, run.context) == ("pay", tick, 3, context)
    assert run.tick.tzinfo is UTC
    run = job_run()
    assert (run.job, run.attempt, run.context) == ("job", 1, None)
    assert abs(run.tick - datetime.now(UTC)) < timedelta(seconds=SOON)
    assert run.leadership.is_leader
    assert run.leadership.remaining > 3600


def test_a_run_ends_when_its_term_is_resigned() -> None:
    """`check` returns until ``leadership.resign()``, then raises, in a thread and without a loop too."""
    run, seen = job_run(), list[str]()

    def look() -> None:
        try:
            run.check()
        except LeadershipLost as lost:
            seen.append(lost.reason)
        else:
            seen.append("leads")

    for _ in range(2):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join(SOON)
        look()
        run.leadership.resign()
    assert seen == ["leads", "leads", "resigned", "resigned"]
    assert not run.leadership.is_leader


@virtual_time
async def test_a_run_stands_through_virtual_hours() -> None:
    """In virtual time a run's term is that of the loop's clock: it lasts for hours of it."""
    run = job_run()
    left = run.leadership.remaining
    await asyncio.sleep(10 * 3600)
    run.check()
    assert run.leadership.remaining == left - 10 * 3600


@virtual_time
async def test_a_run_has_transactions() -> None:
    """A run's transaction makes its calls when it commits: not if the block raises, nor after the term."""
    run, made = job_run(), []
    async with run.transaction() as calls:
        calls.append(lambda: made.append("once"))
        assert made == []
    assert made == ["once"]
    with pytest.raises(Boom):
        async with run.transaction() as calls:
            calls.append(lambda: made.append("never"))
            raise Boom
    run.leadership.resign()
    with pytest.raises(LeadershipLost):
        async with run.transaction() as calls:
            calls.append(lambda: made.append("never"))
    assert made == ["once"]


@pytest.mark.parametrize("run_in", [run_virtual, asyncio.run])
def test_a_final_transaction_succeeds_once(run_in: Callable[[Any], Any]) -> None:
    """A final transaction records the run's success, which the store's history shows; a second one is refused."""
    store, paid = MemoryStore(), list[datetime]()
    run = job_run("pay", store=store, context=paid)
    run_in(pay(run))
    with pytest.raises(RunEnded):
        run_in(pay(run))
    assert paid == [run.tick]
    (record,) = run_in(store.history("default", "pay"))
    assert (record.tick, record.status) == (run.tick, "succeeded")


@virtual_time
async def test_a_final_fence_succeeds_once() -> None:
    """`fence(final=True)` records the success as well."""
    store = MemoryStore()
    run = job_run("pay", store=store)
    await run.fence(None, final=True)
    assert [record.status for record in await store.history("default", "pay")] == ["succeeded"]
    with pytest.raises(RunEnded):
        await run.fence(None, final=True)


@pytest.mark.parametrize(("fault", "paid"), [("lose_reply", 1), ("lose_request", 0)])
@virtual_time
async def test_a_runs_store_has_faults(fault: str, paid: int) -> None:
    """The faults of the store that it was given strike a run: its commit is unknown, whether or not it took effect."""
    store, made = MemoryStore(), list[datetime]()
    getattr(store, fault)("commit")
    with pytest.raises(CommitUnknown):
        await pay(job_run("pay", store=store, context=made))
    assert len(made) == paid


@virtual_time
async def test_runs_are_independent() -> None:
    """Each run has a term and a store of its own, unless it is given one."""
    first, second = (job_run("pay", context=[]) for _ in range(2))
    first.leadership.resign()
    second.check()
    await pay(second)
    assert len(second.context) == 1
    with pytest.raises(LeadershipLost):
        await pay(first)


# -- one job of a registry


till = JobRegistry()
seen: list[Any] = []


@till.every(3600)
async def count(run: JobRun) -> None:
    run.context.append((run.job, run.attempt, run.tick, current_leadership() is run.leadership))


@till.every(3600, name="in-a-thread")
def count_in_a_thread(run: JobRun) -> None:
    run.context.append(threading.current_thread() is threading.main_thread())


@till.every(3600)
async def takes_nothing(days: int = 30) -> None:
    seen.append(days)


@till.every(3600, timeout=60)
async def takes_too_long() -> None:
    await asyncio.sleep(3600)


@till.every(3600, timeout=60)
async def swallows() -> None:
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(3600)


@till.every(3600)
async def pays(run: JobRun) -> None:
    async with run.transaction(final=True) as calls:
        calls.append(lambda: run.context.append("paid"))
    raise Boom


@till.every(3600)
async def fails() -> None:
    raise Boom


@till.every(3600)
async def exits() -> None:
    raise SystemExit(0)


@virtual_time
async def test_one_job_of_a_registry_runs_alone() -> None:
    """It is called as the leader would call it, once, with the run that was asked for; no other job runs."""
    context: list[Any] = []
    before = loop().time()
    await run_job(till, "count", context=context, tick=START, attempt=2)
    await run_job(till, "in-a-thread", context=context)
    await run_job(till, "takes_nothing")
    assert context == [("count", 2, START, True), False]
    assert seen == [30]
    assert loop().time() == before


@pytest.mark.parametrize(
    ("job", "raises", "status"),
    [
        ("takes_nothing", None, "succeeded"),
        ("takes_too_long", TimeoutError, "failed"),
        ("swallows", TimeoutError, "failed"),
        ("fails", Boom, "failed"),
        ("exits", SystemExit, "failed"),
        ("pays", Boom, "succeeded"),
    ],
)
@virtual_time
async def test_a_job_that_runs_alone_ends_as_in_the_ledger(
    job: str, raises: type[BaseException] | None, status: str
) -> None:
    """What it raises comes out as it is, its time-out holds, and the history says how the run ended."""
    store, context = MemoryStore(), list[Any]()
    with pytest.raises(raises) if raises else nullcontext():
        await run_job(till, job, store=store, context=context)
    (record,) = await store.history("default", job)
    assert record.status == status
    assert context == (["paid"] if job == "pays" else [])


@virtual_time
async def test_a_job_that_runs_alone_can_be_cancelled() -> None:
    """A time-out of the test's own reaches the job, and the run is lost."""
    store = MemoryStore()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10):
            await run_job(till, "takes_too_long", store=store)
    assert [record.status for record in await store.history("default", "takes_too_long")] == ["lost"]


async def test_a_job_that_is_not_there_does_not_run() -> None:
    """The error names the jobs that there are."""
    with pytest.raises(InvalidJob, match="count, exits, fails, in-a-thread"):
        await run_job(till, "cuont")
