"""The ledger's jobs on every store: they are enrolled, read, paused and triggered."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import asyncmy
import pytest

from aiolease.errors import InvalidJob, StoreUnavailable
from aiolease.stores import open_store
from aiolease.stores.batch import Batch, JobDefinition
from aiolease.stores.contract import FenceBroken, Refused
from aiolease.stores.records import RunStatus
from aiolease.stores.sql.recording import AT_ONCE
from tests.campaigns import LIMIT, database_of
from tests.servers import Server
from tests.stores.databases import MakeStore, with_tables
from tests.stores.ledgers import (
    SECOND,
    change,
    claiming,
    enrolled,
    enrolment,
    everything,
    in_order,
    job_of,
    lead,
    now_of,
    only_run,
    run,
)

# -- jobs


async def test_a_ledger_that_nobody_wrote_is_empty(make_store: MakeStore) -> None:
    """A lease without jobs has no rows, and reading, pruning and asking make none."""
    store = await make_store()
    for attention in (False, True):
        stock = await store.take_stock("cron", attention=attention)
        assert (stock.jobs, stock.unfinished) == ({}, [])
        assert stock.now.utcoffset() == timedelta(0)
    assert await store.history("cron", "job") == []
    await store.prune("cron", ["job"], 1)
    await store.prune("cron", [], 1)
    assert (await store.take_stock("cron")).jobs == {}


async def test_a_new_job_is_known_from_now_on(make_store: MakeStore) -> None:
    """`enroll` makes the rows of jobs, known, and with their schedule, as of now; every process reads them."""
    store, other = await make_store(), await make_store()
    term, before = await lead(store), await now_of(store)
    await store.enroll(term, [enrolment("a"), enrolment("b", "cron 0 9 * * *", "Europe/Vienna")])
    after = await now_of(store)
    jobs = (await other.take_stock("cron")).jobs
    assert set(jobs) == {"a", "b"}
    for name, schedule, timezone in (("a", "every 30s", ""), ("b", "cron 0 9 * * *", "Europe/Vienna")):
        job = jobs[name]
        assert (job.job, job.schedule, job.timezone) == (name, schedule, timezone)
        assert (job.resumed_at, job.paused_at, job.high_tick, job.requested_at) == (None, None, None, None)
        assert job.known_since == job.schedule_since
        assert in_order(before, job.known_since, after)


async def test_a_job_that_is_enrolled_again_is_left_alone(make_store: MakeStore) -> None:
    """The same schedule in the same zone changes nothing, whoever enrolls it; jobs that are not-named stay."""
    store, other = await make_store(), await make_store()
    await enrolled(store, "a", "b", "not-named")
    await store.pause("cron", "a")
    await store.trigger("cron", "b")
    before = await everything(store)
    term = await enrolled(other, "a", "b")
    await other.enroll(term, [enrolment("b"), enrolment("b")])
    assert await everything(store) == before


@pytest.mark.parametrize("given", [enrolment("a", "every 31s"), enrolment("a", "every 30s", "UTC")])
async def test_a_new_schedule_begins_now(make_store: MakeStore, given: JobDefinition) -> None:
    """Another schedule, or another zone, moves `schedule_since`, and leaves all else as it is."""
    store = await make_store()
    term = await enrolled(store, "a", "b")
    tick = await now_of(store)
    await store.record(term, claiming(run(term, "a", tick)))
    await store.pause("cron", "a")
    await store.resume("cron", "a")
    await store.trigger("cron", "a")
    await store.pause("cron", "a")
    before = await store.take_stock("cron")
    await store.enroll(term, [given, enrolment("b"), enrolment("c")])
    after = await store.take_stock("cron")
    changed = after.jobs["a"]
    assert in_order(before.now, changed.schedule_since, after.now)
    assert changed == replace(
        before.jobs["a"], schedule=given.schedule, timezone=given.timezone, schedule_since=changed.schedule_since
    )
    assert changed.schedule_since > changed.known_since
    assert after.jobs["b"] == before.jobs["b"]
    assert set(after.jobs) == {"a", "b", "c"}
    assert after.unfinished == before.unfinished


async def test_a_changed_schedule_counts_from_the_moment_that_is_given(make_store: MakeStore) -> None:
    """Up to it the ticks of the old schedule were seen to; with a new job it has no meaning."""
    store = await make_store()
    term = await enrolled(store, "a", "b")
    before = await store.take_stock("cron")
    since = before.jobs["a"].known_since + timedelta(microseconds=7)
    changed = [replace(enrolment(name, "every 7s"), since=since) for name in ("a", "new")]
    await store.enroll(term, [*changed, enrolment("b", "every 8s")])
    jobs = (await store.take_stock("cron")).jobs
    assert jobs["a"] == replace(before.jobs["a"], schedule="every 7s", schedule_since=since)
    assert jobs["b"].schedule_since > before.now
    assert jobs["new"].schedule_since > before.now


async def test_a_schedule_that_differs_in_one_byte_is_another(make_store: MakeStore) -> None:
    """Schedules and zones are compared byte for byte; a change and its undoing are two changes."""
    store = await make_store()
    term = await enrolled(store, "a")
    for schedule, timezone in (("Every 30s", ""), ("Every 30S", ""), ("Every 30S", "utc"), ("Every 30S", "UTC")):
        before = await job_of(store, "a")
        await store.enroll(term, [enrolment("a", schedule, timezone)])
        job = await job_of(store, "a")
        assert (job.schedule, job.timezone) == (schedule, timezone)
        assert job.schedule_since > before.schedule_since


async def test_enrolling_is_fenced(make_store: MakeStore) -> None:
    """Once a newer term has begun, an older one makes no job and changes none."""
    store, other = await make_store(), await make_store()
    old = await enrolled(store, "a")
    await lead(other)
    before = await everything(store)
    for jobs in ([enrolment("new")], [enrolment("a", "every 31s")], [enrolment("a")]):
        with pytest.raises(FenceBroken):
            await store.enroll(old, jobs)
    assert await everything(store) == before


async def test_enrolling_nothing_is_fenced(make_store: MakeStore) -> None:
    """A term that is over hears of it, whether it has jobs or not."""
    store = await make_store()
    old = await lead(store)
    await store.enroll(old, [])
    await lead(store)
    with pytest.raises(FenceBroken):
        await store.enroll(old, [])


async def test_thousands_of_jobs(make_store: MakeStore) -> None:
    """More than one statement names are enrolled, again with other schedules, claimed at one tick, and finished."""
    store = await make_store()
    async with asyncio.timeout(LIMIT * 2):
        term = await lead(store)
        names = [f"job-{number}" for number in range(AT_ONCE + 100)]
        for schedule in ("every 30s", "every 31s"):
            await store.enroll(term, [enrolment(name, schedule) for name in names])
            stock = await store.take_stock("cron")
            assert set(stock.jobs) == set(names)
            assert {job.schedule for job in stock.jobs.values()} == {schedule}
        await store.record(term, claiming(*(run(term, name, stock.now) for name in names)))
        unfinished = (await store.take_stock("cron")).unfinished
        assert {row.job for row in unfinished} == set(names)
        await store.record(term, Batch(changes=[change(row, "failed", required=True) for row in unfinished]))
        assert (await store.take_stock("cron")).unfinished == []
        await store.prune("cron", names, 0)
        assert await store.history("cron", names[-1]) == []


# -- reading


async def test_unfinished_runs_come_in_the_order_of_their_ticks(make_store: MakeStore) -> None:
    """The stock has the runs that are queued or running, oldest tick first, and its own moment is the latest."""
    store, other = await make_store(), await make_store()
    term = await enrolled(store, "a", "b")
    now = await now_of(store)
    statuses: list[RunStatus] = ["running", "queued", "skipped", "running", "queued", "running", "running"]
    rows = [run(term, "ba"[n % 2], now - n * SECOND, status) for n, status in enumerate(statuses)]
    await store.record(term, Batch(claims=rows))
    ended = [change(rows[0], "succeeded"), change(rows[3], "failed"), change(rows[5], "lost")]
    await store.record(term, Batch(changes=ended))
    stock = await other.take_stock("cron")
    assert [(row.tick, row.job, row.status) for row in stock.unfinished] == [
        (now - n * SECOND, "ba"[n % 2], statuses[n]) for n in (6, 4, 1)
    ]
    assert in_order(stock.jobs["a"].known_since, stock.unfinished[0].started_at, stock.now)


async def test_attention_is_for_jobs_that_somebody_touched(make_store: MakeStore) -> None:
    """With `attention` the stock has the jobs that are, or were, paused or triggered, as they are, and no runs."""
    store, other = await make_store(), await make_store()
    term = await enrolled(store, "none", "paused", "resumed", "triggered", "seen")
    now = await now_of(store)
    await store.record(term, claiming(run(term, "none", now), run(term, "paused", now, "queued")))
    for job in ("paused", "resumed"):
        await other.pause("cron", job)
    await other.resume("cron", "resumed")
    await other.trigger("cron", "triggered")
    await store.record(term, Batch(requests={"seen": await other.trigger("cron", "seen")}))
    stock, whole = await store.take_stock("cron", attention=True), await store.take_stock("cron")
    assert set(stock.jobs) == {"paused", "resumed", "triggered"}
    assert stock.jobs == {job: whole.jobs[job] for job in stock.jobs}
    assert stock.unfinished == []
    assert in_order(stock.jobs["triggered"].requested_at, stock.now, whole.now)


# -- people


async def test_a_trigger_stands_until_it_is_seen(make_store: MakeStore) -> None:
    """`trigger` returns the moment of the request, the same one until the leader has cleared it; then it is anew."""
    store, other = await make_store(), await make_store()
    term = await enrolled(store, "a", "b")
    before = await now_of(store)
    first = await other.trigger("cron", "a")
    assert in_order(before, first, await now_of(store))
    assert await other.trigger("cron", "a") == await store.trigger("cron", "a") == first
    assert (await job_of(store, "a")).requested_at == first
    assert (await job_of(store, "b")).requested_at is None
    await store.record(term, Batch(claims=[run(term, "a", first)], requests={"a": first}))
    assert (await job_of(store, "a")).requested_at is None
    assert (await job_of(store, "a")).high_tick is None
    second = await other.trigger("cron", "a")
    assert second > first
    assert (await only_run(store, "a")).tick == first


async def test_a_paused_job_claims_no_tick(make_store: MakeStore) -> None:
    """While a job is paused its high tick is refused; what is queued goes on, a request is served, others claim."""
    store, other = await make_store(), await make_store()
    term = await enrolled(store, "a", "b")
    now = await now_of(store)
    queued = run(term, "a", now - 9 * SECOND, "queued")
    await store.record(term, claiming(queued))
    before = await now_of(store)
    await other.pause("cron", "a")
    job = await job_of(store, "a")
    assert in_order(before, job.paused_at, await now_of(store))
    await other.pause("cron", "a")
    assert await job_of(store, "a") == job
    for batch in (claiming(run(term, "a", now)), claiming(run(term, "b", now), run(term, "a", now))):
        with pytest.raises(Refused):
            await store.record(term, batch)
    requested_at = await other.trigger("cron", "a")
    await store.record(term, Batch(claims=[run(term, "a", requested_at)], requests={"a": requested_at}))
    await store.record(term, claiming(run(term, "b", now)))
    await store.record(term, Batch(changes=[change(queued, "running", required=True)]))
    await store.record(term, Batch(changes=[change(replace(queued, status="running"), "succeeded", required=True)]))
    assert [row.status for row in await store.history("cron", "a")] == ["succeeded", "running"]


async def test_a_resumed_job_goes_on_from_now(make_store: MakeStore) -> None:
    """`resume` ends the pause as of now and lets ticks be claimed; of a job that is not paused it changes nothing."""
    store, other = await make_store(), await make_store()
    term = await enrolled(store, "a")
    fresh = await job_of(store, "a")
    await other.resume("cron", "a")
    assert await job_of(store, "a") == fresh
    await other.pause("cron", "a")
    before = await now_of(store)
    await other.resume("cron", "a")
    resumed = await job_of(store, "a")
    assert resumed == replace(fresh, resumed_at=resumed.resumed_at)
    assert in_order(before, resumed.resumed_at, await now_of(store))
    assert resumed.settled_until == resumed.resumed_at
    await other.resume("cron", "a")
    assert await job_of(store, "a") == resumed
    await store.record(term, claiming(run(term, "a", await now_of(store))))
    await other.pause("cron", "a")
    await other.resume("cron", "a")
    again = (await job_of(store, "a")).resumed_at
    assert again != resumed.resumed_at
    assert in_order(resumed.resumed_at, again)


@pytest.mark.parametrize("job", ["unknown", "a ", "A", "", "ä", "😀", "a\0", "x" * 300, "a%", "'"])
async def test_a_job_that_nobody_had_cannot_be_asked_for(make_store: MakeStore, job: str) -> None:
    """A job that no leader of this lease ever had is `InvalidJob`, which names it; no row is made."""
    store = await make_store()
    await enrolled(store, "a")
    before = await everything(store)
    for call in (store.trigger, store.pause, store.resume):
        with pytest.raises(InvalidJob, match="no leader of") as caught:
            await call("cron", job)
        assert caught.value.job == job
    assert await store.history("cron", job) == []
    assert await everything(store) == before


# -- questions


async def test_a_question_that_waits_holds_up_nothing_that_the_leader_asks(
    mysql_server: Server, mysql_url: str
) -> None:
    """Somebody asks for the history while its table is locked: the leader's own reading has another connection."""
    async with open_store(mysql_url) as store, open_store(mysql_url) as shared:
        term = await enrolled(store, "a")
        await store.history("cron", "a")  # both connections are there
        async with asyncio.timeout(LIMIT):
            stranger = await asyncmy.connect(
                host=mysql_server.host, port=mysql_server.port, user=mysql_server.user, db=database_of(mysql_url)
            )
            try:
                async with stranger.cursor() as cursor:
                    await cursor.execute("LOCK TABLES aiolease_run WRITE")
                asking = asyncio.create_task(shared.history("cron", "a"))
                while "metadata lock" not in str(mysql_server.sql("SHOW PROCESSLIST")):
                    await asyncio.sleep(0.01)
                await store.take_stock("cron", attention=True)
                await store.enroll(term, [])
                assert not asking.done()
            finally:
                stranger.close()
            with suppress(StoreUnavailable):  # it may have waited for too long
                await asking


# -- tables


@with_tables
async def test_prefixes_separate_ledgers(make_store: MakeStore) -> None:
    """Ledgers of one lease in tables of another prefix have nothing to do with each other."""
    first, second = await make_store(table_prefix="a_"), await make_store(table_prefix="b_")
    term, other = await enrolled(first, "a", "b"), await enrolled(second, "a")
    now = await now_of(first)
    await first.record(term, claiming(run(term, "a", now)))
    assert await second.history("cron", "a") == []
    await second.record(other, claiming(run(other, "a", now, "queued")))
    assert (await only_run(first, "a")).status == "running"
    with pytest.raises(InvalidJob):
        await second.trigger("cron", "b")
