"""What a store must do for the ledger of jobs and runs, shown once for every store; then what is SQLite's own.

Several handles on one database stand for several processes.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from datetime import timezone as zone
from pathlib import Path
from typing import Any, cast

import aiosqlite
import asyncmy
import pytest

from aiolease.errors import InvalidJob, SchemaMissing, StoreUnavailable
from aiolease.stores import Store, open_store
from aiolease.stores.contract import FenceBroken, Refused
from aiolease.stores.records import (
    MAX_ERROR,
    Batch,
    Change,
    JobDefinition,
    JobRecord,
    LedgerReading,
    RunKey,
    RunRecord,
    RunStatus,
    TermKey,
)
from aiolease.stores.sql.ledger import PruneStatements
from aiolease.stores.sql.schema import SCHEMA_VERSION
from aiolease.stores.sqlite import SQLiteStore
from aiolease.stores.sqlite.dialect import SQLiteDialect
from tests import test_stores as stores
from tests.campaigns import database_of
from tests.servers import Server
from tests.test_stores import LIMIT, Awkward, Database, InMemory, InSQLite, MakeStore, OnServer, claim

database, make_store = stores.database, stores.make_store
with_tables = stores.with_tables

SECOND, MICROSECOND = timedelta(seconds=1), timedelta(microseconds=1)


async def lead(store: Store, name: str = "cron") -> TermKey:
    """Begins a new term, whoever leads."""
    lease = await claim(store, name, force=True)
    assert lease.holder is not None
    return TermKey(name, lease.holder, lease.token)


async def enrolled(store: Store, *jobs: str, name: str = "cron") -> TermKey:
    """A new term that knows some jobs."""
    term = await lead(store, name)
    await store.enroll(term, [enrolment(job) for job in jobs])
    return term


def enrolment(job: str, schedule: str = "every 30s", timezone: str = "") -> JobDefinition:
    return JobDefinition(job=job, schedule=schedule, timezone=timezone)


def run(term: TermKey, job: str, tick: datetime, status: RunStatus = "running", **more: Any) -> RunRecord:
    return RunRecord(job=job, tick=tick, token=term.token, holder=term.holder, status=status, **more)


def claiming(*runs: RunRecord) -> Batch:
    """As a leader claims ticks: their rows, and the new high tick of each job."""
    return Batch(claims=list(runs), high_ticks={row.job: row.tick for row in sorted(runs, key=lambda row: row.tick)})


def change(row: RunRecord, status: RunStatus, **more: Any) -> Change:
    """A change of a row as it is."""
    key = RunKey(row.job, row.tick, row.attempt, row.token)
    return Change(**({"key": key, "was": row.status, "status": status, "attempt": row.attempt} | more))


async def now_of(store: Store) -> datetime:
    return (await store.take_stock("cron")).now


async def job_of(store: Store, job: str, name: str = "cron") -> JobRecord:
    return (await store.take_stock(name)).jobs[job]


async def only_run(store: Store, job: str, name: str = "cron") -> RunRecord:
    rows = await store.history(name, job)
    assert len(rows) == 1
    return rows[0]


@dataclass
class Everything:
    """All that the ledger of a lease holds, but for the moment of the reading."""

    jobs: dict[str, JobRecord]
    unfinished: list[RunRecord]
    histories: dict[str, list[RunRecord]] = field(default_factory=dict)


async def everything(store: Store, name: str = "cron") -> Everything:
    stock = await store.take_stock(name)
    histories = {job: await store.history(name, job) for job in [*stock.jobs, "unknown"]}
    return Everything(stock.jobs, stock.unfinished, histories)


def in_order(*moments: datetime | None) -> bool:
    """Whether moments, all of them there and aware UTC, do not fall."""
    for moment in moments:
        assert moment is not None
        assert moment.utcoffset() == timedelta(0)
    known = [moment for moment in moments if moment is not None]
    return known == sorted(known)


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
    """2,500 jobs are enrolled, again with other schedules, claimed at one tick, and finished."""
    store = await make_store()
    async with asyncio.timeout(LIMIT * 2):
        term = await lead(store)
        names = [f"job-{number}" for number in range(2500)]
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


# -- claims


async def test_a_claim_makes_a_row(make_store: MakeStore) -> None:
    """Every process reads the row that was claimed; a running one starts, and a skipped one finishes, as of now."""
    store, other = await make_store(), await make_store()
    term = await enrolled(store, "a")
    before = await now_of(store)
    ticks = [before + offset * MICROSECOND for offset in (-3_000_001, -2_000_001, -1)]
    queued = run(term, "a", ticks[0], "queued", attempt=3)
    skipped = run(
        term, "a", ticks[1], "skipped", error="missed", tick_from=ticks[0] - 31 * SECOND / 7, count=2_500_000_000_000
    )
    running = run(term, "a", ticks[2])
    await store.record(term, claiming(queued, skipped, running))
    after = await now_of(store)
    rows = await other.history("cron", "a")
    assert rows == [
        queued,
        replace(skipped, finished_at=rows[1].finished_at),
        replace(running, started_at=rows[2].started_at),
    ]
    assert in_order(before, rows[1].finished_at, after)
    assert in_order(before, rows[2].started_at, after)
    assert in_order(*(row.tick for row in rows))
    assert in_order(rows[1].tick_from)
    assert (await job_of(other, "a")).high_tick == ticks[2]


async def test_ticks_are_exact_to_the_microsecond(make_store: MakeStore) -> None:
    """Ticks that differ by one microsecond are two, and a change finds its own; the zone of a moment plays no part."""
    store = await make_store()
    term = await enrolled(store, "a")
    second = (await now_of(store)).replace(microsecond=0) - 10 * SECOND
    ticks = [second + offset * MICROSECOND for offset in (-1, 0, 1, 499_999, 500_000, 999_999)]
    rows = [run(term, "a", tick) for tick in ticks]
    for row in rows:
        await store.record(term, claiming(row))
        assert (await job_of(store, "a")).high_tick == row.tick
    assert [row.tick for row in await store.history("cron", "a")] == ticks
    abroad = replace(rows[3], tick=rows[3].tick.astimezone(zone(timedelta(hours=9))))
    with pytest.raises(Refused):
        await store.record(term, Batch(claims=[abroad]))
    for row in (rows[0], abroad, rows[5]):
        await store.record(term, Batch(changes=[change(row, "succeeded", required=True)]))
    assert [row.status == "succeeded" for row in await store.history("cron", "a")] == [
        True,
        False,
        False,
        True,
        False,
        True,
    ]


async def test_a_lease_that_vanished_is_made_above_its_ledger(database: Database, make_store: MakeStore) -> None:
    """Where both rows of a lease are gone, its next term is above every one that the lease's own runs know."""
    store, other = await make_store(), await make_store()
    for name, terms in (("cron", 3), ("another", 5)):
        for _ in range(terms):
            term = await enrolled(store, "job", name=name)
        await store.record(term, claiming(run(term, "job", await now_of(store))))
    await lead(store)  # a term of which the ledger knows nothing
    for through in (store, other):
        database.delete_lease("cron")
        database.delete_fence("cron")
        assert (await lead(through)).token == 4
        assert database.fence("cron") == ((await through.status("cron")).holder, 4)  # type: ignore[union-attr]


async def test_history_is_in_the_order_of_ticks(make_store: MakeStore) -> None:
    """However rows were claimed, a job's history is in the order of its ticks, and of no other job."""
    store = await make_store()
    term = await enrolled(store, "a", "b")
    now = await now_of(store)
    for number in (3, 1, 4, 0, 2):
        await store.record(term, Batch(claims=[run(term, job, now - number * SECOND) for job in "ba"]))
    rows = await store.history("cron", "a")
    assert [(row.job, row.tick) for row in rows] == [("a", now - number * SECOND) for number in (4, 3, 2, 1, 0)]


@pytest.mark.parametrize("of_one_job", [False, True])
async def test_a_thousand_claims_in_a_batch(make_store: MakeStore, of_one_job: bool) -> None:
    """A thousand jobs that fall due at once, or a thousand ticks that one job missed, are claimed by one batch."""
    store = await make_store()
    names = ["a"] * 1000 if of_one_job else [f"job-{number}" for number in range(1000)]
    async with asyncio.timeout(LIMIT):
        term = await enrolled(store, *dict.fromkeys(names))
        now = await now_of(store)
        ticks = [now - (1000 - number if of_one_job else 1) * SECOND for number in range(1000)]
        rows = [run(term, name, tick, "queued", error="é" * MAX_ERROR) for name, tick in zip(names, ticks, strict=True)]
        await store.record(term, claiming(*rows))
        stock = await store.take_stock("cron")
        by_key = sorted(stock.unfinished, key=lambda row: (row.tick, row.job))
        assert by_key == sorted(rows, key=lambda row: (row.tick, row.job))
        assert {job.high_tick for job in stock.jobs.values()} == {max(ticks)}
        with pytest.raises(Refused):
            await store.record(term, Batch(claims=[run(term, "a", now), *rows[-1:]]))
        assert len((await store.take_stock("cron")).unfinished) == 1000


async def test_a_late_duplicate_is_refused(make_store: MakeStore) -> None:
    """A batch that arrives twice takes effect once, whatever it is made of, from whatever process it comes."""
    store, other = await make_store(), await make_store()
    term = await enrolled(store, "a")
    now = await now_of(store)
    row = run(term, "a", now)
    batches = [
        claiming(row),
        Batch(claims=[run(term, "a", now - SECOND)]),
        Batch(changes=[change(row, "succeeded", required=True)]),
        Batch(high_ticks={"a": now + SECOND}),
        Batch(requests={"a": await other.trigger("cron", "a")}),
    ]
    for batch in batches:
        await store.record(term, batch)
        before = await everything(store)
        for late in (store, other):
            with pytest.raises(Refused):
                await late.record(term, batch)
        assert await everything(store) == before


# -- what refuses a batch


@dataclass
class Scene:
    """A lease whose jobs are in every state."""

    store: Store
    term: TermKey
    tick: datetime
    requested_at: datetime

    def batch(self) -> Batch:
        """One of everything, and all of it right."""
        other = run(self.term, "other", self.tick)
        made = claiming(run(self.term, "other", self.tick + SECOND))
        made.changes.append(change(other, "succeeded", required=True))
        made.requests["asked"] = self.requested_at
        made.high_ticks["fresh"] = self.tick
        made.seen |= {"other": self.tick, "fresh": None}
        return made


async def scene(store: Store) -> Scene:
    term = await enrolled(store, "job", "other", "paused", "asked", "fresh")
    far = await enrolled(store, "far", name="elsewhere")
    tick = await now_of(store) - 60 * SECOND
    await store.record(term, claiming(*(run(term, job, tick) for job in ("job", "other", "paused", "asked"))))
    await store.record(far, claiming(run(far, "far", tick)))
    await store.pause("cron", "paused")
    return Scene(store, term, tick, await store.trigger("cron", "asked"))


def required(scene: Scene, job: str = "job", **more: Any) -> Batch:
    row = run(scene.term, job, scene.tick)
    return Batch(changes=[change(row, "failed", **({"required": True} | more))])


def required_of(scene: Scene, **key: Any) -> Batch:
    return required(scene, key=replace(RunKey("job", scene.tick, 1, scene.term.token), **key))


REFUSED: dict[str, Callable[[Scene], Batch]] = {
    "a change of a row of another status": lambda scene: required(scene, was="queued"),
    "a change of another attempt": lambda scene: required_of(scene, attempt=2),
    "a change of another token": lambda scene: required_of(scene, token=scene.term.token + 1),
    "a change of another tick": lambda scene: required_of(scene, tick=scene.tick + MICROSECOND),
    "a change of a job without a row": lambda scene: required(scene, "fresh"),
    "a change of a row of another lease": lambda scene: required(scene, "far"),
    "a change twice": lambda scene: Batch(changes=required(scene).changes * 2),
    "a claim of a tick that is there": lambda scene: Batch(claims=[run(scene.term, "job", scene.tick)]),
    "a claim as another attempt": lambda scene: Batch(claims=[run(scene.term, "job", scene.tick, attempt=2)]),
    "a claim twice": lambda scene: Batch(claims=[run(scene.term, "job", scene.tick + SECOND)] * 2),
    "a high tick that stays": lambda scene: Batch(high_ticks={"job": scene.tick}),
    "a high tick that falls": lambda scene: Batch(high_ticks={"job": scene.tick - MICROSECOND}),
    "a high tick ahead of the clock": lambda scene: Batch(high_ticks={"job": scene.tick + 75 * SECOND}),
    "a first high tick ahead of the clock": lambda scene: Batch(high_ticks={"fresh": scene.tick + 75 * SECOND}),
    "a high tick reckoned from an older one": lambda scene: Batch(
        high_ticks={"job": scene.tick + SECOND}, seen={"job": scene.tick - SECOND}
    ),
    "a high tick reckoned from none": lambda scene: Batch(high_ticks={"job": scene.tick + SECOND}, seen={"job": None}),
    "a first high tick reckoned from another": lambda scene: Batch(
        high_ticks={"fresh": scene.tick}, seen={"fresh": scene.tick - SECOND}
    ),
    "a high tick of a paused job": lambda scene: Batch(high_ticks={"paused": scene.tick + SECOND}),
    "a high tick of an unknown job": lambda scene: Batch(high_ticks={"unknown": scene.tick}),
    "a high tick of a job of another lease": lambda scene: Batch(high_ticks={"far": scene.tick + SECOND}),
    "one high tick of two": lambda scene: Batch(high_ticks={"job": scene.tick + SECOND, "paused": scene.tick + SECOND}),
    "another request": lambda scene: Batch(requests={"asked": scene.requested_at + MICROSECOND}),
    "a request that nobody made": lambda scene: Batch(requests={"job": scene.requested_at}),
    "a request of an unknown job": lambda scene: Batch(requests={"unknown": scene.requested_at}),
}


@pytest.mark.parametrize("reason", REFUSED)
async def test_what_refuses_a_batch(make_store: MakeStore, reason: str) -> None:
    """A batch of which one part does not fit is refused as a whole, and without that part it is written as a whole."""
    store = await make_store()
    made = await scene(store)
    wrong, right = REFUSED[reason](made), made.batch()
    both = Batch(
        changes=right.changes + wrong.changes,
        claims=right.claims + wrong.claims,
        high_ticks=right.high_ticks | wrong.high_ticks,
        seen=right.seen | wrong.seen,
        requests=wrong.requests or right.requests,
    )
    before, elsewhere = await everything(store), await everything(store, "elsewhere")
    for batch in (wrong, both):
        with pytest.raises(Refused):
            await store.record(made.term, batch)
        assert await everything(store) == before
    await store.record(made.term, right)
    after = await everything(store)
    assert [row.status for row in after.histories["other"]] == ["succeeded", "running"]
    assert after.jobs["other"].high_tick == made.tick + SECOND
    assert after.jobs["asked"].requested_at is None
    assert await everything(store, "elsewhere") == elsewhere


async def test_a_tick_may_be_a_little_ahead(make_store: MakeStore) -> None:
    """A tick up to 5 s ahead of the database's clock may be claimed; one that is further ahead may not."""
    store = await make_store()
    term = await enrolled(store, "a")
    now = await now_of(store)
    await store.record(term, claiming(run(term, "a", now + 4 * SECOND)))
    with pytest.raises(Refused):
        await store.record(term, claiming(run(term, "a", now + 20 * SECOND)))
    assert (await only_run(store, "a")).tick == (await job_of(store, "a")).high_tick == now + 4 * SECOND


async def test_recording_is_fenced(make_store: MakeStore) -> None:
    """Once a newer term has begun, nothing of an older one is recorded, whatever it is; the newer one records."""
    store, other = await make_store(), await make_store()
    made = await scene(store)
    old, right = made.term, made.batch()
    new = await lead(other)
    strangers = [
        old,
        replace(old, token=new.token),
        replace(new, token=old.token),
        replace(new, holder=new.holder.upper()),
        replace(new, name="nothing"),
        replace(new, name="elsewhere"),
    ]
    before = await everything(store)
    parts = [
        Batch(changes=right.changes),
        Batch(claims=right.claims),
        Batch(high_ticks=right.high_ticks),
        Batch(requests=right.requests),
        REFUSED["a claim twice"](made),
        REFUSED["another request"](made),
        Batch(),
    ]
    for term in strangers:
        for batch in [right, *parts]:
            with pytest.raises(FenceBroken):
                await store.record(term, batch)
    assert await everything(other) == before
    await other.record(new, right)
    assert (await other.history("cron", "other"))[-1].token == new.token


# -- changes


async def test_changes_move_a_run_through_its_life(make_store: MakeStore) -> None:
    """A change sets status and attempt; running starts the run, an end finishes it, and what it does not name stays."""
    store, other = await make_store(), await make_store()
    term = await enrolled(store, "a")
    tick = await now_of(store)
    await store.record(term, claiming(run(term, "a", tick, "queued")))
    queued = await only_run(store, "a")
    before = await now_of(store)
    await store.record(term, Batch(changes=[change(queued, "running")]))
    running = await only_run(other, "a")
    assert running == replace(queued, status="running", started_at=running.started_at)
    assert in_order(before, running.started_at, await now_of(store))
    for status in ("succeeded", "failed", "lost", "skipped"):
        before = await now_of(store)
        await store.record(term, Batch(changes=[change(running, status, error=f"it {status}")]))
        ended = await only_run(other, "a")
        assert ended == replace(running, status=status, error=f"it {status}", finished_at=ended.finished_at)
        assert in_order(before, ended.finished_at, await now_of(store))
        # Back to where it was, as a further attempt; what has started and ended has not yet.
        await store.record(term, Batch(changes=[change(ended, "queued", attempt=ended.attempt + 1)]))
        queued = await only_run(other, "a")
        assert queued == replace(
            ended, status="queued", attempt=ended.attempt + 1, error=None, started_at=None, finished_at=None
        )
        await store.record(term, Batch(changes=[change(queued, "running")]))
        running = await only_run(store, "a")
    assert running.attempt == 5


async def test_a_running_run_may_start_again(make_store: MakeStore) -> None:
    """From running to running is a change too: a further attempt starts anew."""
    store = await make_store()
    term = await enrolled(store, "a")
    await store.record(term, claiming(run(term, "a", await now_of(store))))
    first = await only_run(store, "a")
    await store.record(term, Batch(changes=[change(first, "running", attempt=2, required=True)]))
    second = await only_run(store, "a")
    assert second == replace(first, attempt=2, started_at=second.started_at)
    assert first.started_at != second.started_at
    assert in_order(first.started_at, second.started_at)


@pytest.mark.parametrize("required", [False, True])
async def test_a_change_may_adopt_a_run(make_store: MakeStore, required: bool) -> None:
    """A row of an older term keeps its token and holder, unless the newer term that changes it adopts it."""
    store, other = await make_store(), await make_store()
    old = await enrolled(store, "kept", "adopted")
    now = await now_of(store)
    rows = [run(old, job, now, "queued") for job in ("kept", "adopted")]
    await store.record(old, claiming(*rows))
    new = await lead(other)
    changes = [
        change(row, "running", attempt=2, adopt=row.job == "adopted", required=required, error="again") for row in rows
    ]
    await other.record(new, Batch(changes=changes))
    for job, term in (("kept", old), ("adopted", new)):
        row = await only_run(store, job)
        assert (row.token, row.holder, row.attempt, row.status, row.error) == (
            (term.token, term.holder, 2, "running", "again")
        )
    # The old key is nobody's any more.
    stale = [change(replace(row, status="running", attempt=2), "lost") for row in rows]
    await other.record(new, Batch(changes=stale))
    assert [(await only_run(store, job)).status for job in ("kept", "adopted")] == ["lost", "running"]


@pytest.mark.parametrize("reason", [reason for reason in REFUSED if reason.startswith("a change")])
async def test_a_change_that_is_not_required_has_no_effect_on_others(make_store: MakeStore, reason: str) -> None:
    """A change that is not required does nothing to a row that has moved on, and the rest of its batch is written."""
    store = await make_store()
    made = await scene(store)
    batch = made.batch()
    stale = [replace(change, required=False) for change in REFUSED[reason](made).changes]
    batch.changes = stale[-1:] + batch.changes
    if reason == "a change twice":
        batch.changes = stale + batch.changes
    before = await everything(store)
    elsewhere = await everything(store, "elsewhere")
    await store.record(made.term, batch)
    after = await everything(store)
    assert [row.status for row in after.histories["other"]] == ["succeeded", "running"]
    for job in ("job", "paused", "asked", "fresh"):
        if (job, reason) == ("job", "a change twice"):
            assert [row.status for row in after.histories[job]] == ["failed"]
        else:
            assert after.histories[job] == before.histories[job]
    assert await everything(store, "elsewhere") == elsewhere


async def test_a_batch_of_every_kind(make_store: MakeStore) -> None:
    """One batch ends runs, starts queued ones, gives others up, skips ranges, claims, and answers a request."""
    store = await make_store()
    old = await enrolled(store, *"abcdef")
    now = await now_of(store)
    earlier = [run(old, job, now - 30 * SECOND, "running" if job < "c" else "queued") for job in "abcd"]
    await store.record(old, claiming(*earlier))
    requested_at = await store.trigger("cron", "e")
    term = await lead(store)
    batch = Batch(
        changes=[
            change(earlier[0], "lost", error="its term ended"),
            change(earlier[1], "queued", attempt=2, adopt=True, required=True),
            change(earlier[2], "running", adopt=True, required=True),
            change(earlier[3], "skipped", error="too old"),
            change(replace(earlier[3], tick=now), "lost"),
        ],
        claims=[
            run(term, "a", now - 10 * SECOND, "skipped", error="missed", tick_from=now - 20 * SECOND, count=11),
            run(term, "a", now, "queued"),
            run(term, "f", now),
            run(term, "e", requested_at),
        ],
        high_ticks={"a": now, "f": now},
        requests={"e": requested_at},
    )
    await store.record(term, batch)
    found = {
        job: [(row.status, row.attempt, row.token) for row in await store.history("cron", job)] for job in "abcdef"
    }
    assert found == {
        "a": [("lost", 1, old.token), ("skipped", 1, term.token), ("queued", 1, term.token)],
        "b": [("queued", 2, term.token)],
        "c": [("running", 1, term.token)],
        "d": [("skipped", 1, old.token)],
        "e": [("running", 1, term.token)],
        "f": [("running", 1, term.token)],
    }
    stock = await store.take_stock("cron")
    assert [row.job for row in stock.unfinished] == ["b", "c", "a", "f", "e"]
    assert {job: record.high_tick for job, record in stock.jobs.items()} == {
        **dict.fromkeys("af", now), **dict.fromkeys("bcd", now - 30 * SECOND), "e": None
    }  # fmt: skip
    assert stock.jobs["e"].requested_at is None


async def test_queued_runs_are_counted_and_read_in_pages(make_store: MakeStore) -> None:
    """A leader need not read a backlog to begin: it counts it, and reads the oldest runs of the jobs it asks for."""
    store, other = await make_store(), await make_store()
    term, another = await lead(store), await lead(store, "another")
    await store.enroll(term, [enrolment(job) for job in "abc"])
    await store.enroll(another, [enrolment("a")])
    now = await now_of(store)
    ticks = [now - number * SECOND for number in range(50, 40, -1)]
    rows = [run(term, "a", tick, "queued") for tick in ticks] + [run(term, "b", tick, "queued") for tick in ticks[8:]]
    batch = claiming(*rows)
    batch.claims.append(run(term, "c", now))
    await store.record(term, batch)
    await store.record(another, claiming(run(another, "a", now, "queued")))
    stock = await other.take_stock("cron", counted=True)
    assert set(stock.jobs) == {"a", "b", "c"}
    assert [(row.job, row.tick, row.status) for row in stock.unfinished] == [("c", now, "running")]
    assert stock.queued == {"a": 10, "b": 2}
    page, _ = await other.queued("cron", ["a", "b", "c", "unknown"], 4)
    expected = sorted([(tick, "a") for tick in ticks[:4]] + [(tick, "b") for tick in ticks[8:]])
    assert [(row.tick, row.job) for row in page] == expected
    assert {(row.status, row.token, row.attempt) for row in page} == {("queued", term.token, 1)}
    assert await other.queued("cron", [], 4) == ([], {})
    places = [("a", ticks[3]), ("b", ticks[3]), ("c", now), ("a", now)]
    assert {(row.job, row.tick) for row in await other.look_up("cron", places)} == {("a", ticks[3]), ("c", now)}
    assert await other.look_up("cron", []) == []
    assert (await other.take_stock("nobody's", counted=True)).queued == {}


# -- texts

ERRORS = [
    "ValueError: no",
    "",
    "x" * MAX_ERROR,
    "x" * (MAX_ERROR + 1),
    "Grüße aus Köln " * 500,
    "日本語" * 2000,
    "😀👩‍👩‍👧" * 3000,
    "'; DROP TABLE aiolease_run; -- \" ` \\ \\' %s %(a)s %% ? :now {} {0}\r\n\t",
    "a\0b",
    " padded \n\n ",
    "\\",
    "%",
]


@pytest.mark.parametrize("error", ERRORS, ids=range(len(ERRORS)))
async def test_an_error_is_kept_as_it_is(make_store: MakeStore, error: str) -> None:
    """Whatever an exception says is kept to the letter, up to its first 1,000 characters, in a change and a claim."""
    store = await make_store()
    term = await enrolled(store, "a")
    now = await now_of(store)
    rows = [run(term, "a", now - SECOND, "skipped", error=error), run(term, "a", now)]
    await store.record(term, claiming(*rows))
    await store.record(term, Batch(changes=[change(rows[1], "failed", error=error, required=True)]))
    assert [row.error for row in await store.history("cron", "a")] == [error[:1000]] * 2


async def test_an_error_that_cannot_be_encoded_is_recorded(make_store: MakeStore) -> None:
    """A lone surrogate, as in the name of a file that is no UTF-8, does not keep a failure from being recorded."""
    store = await make_store()
    term = await enrolled(store, "a")
    now = await now_of(store)
    rows = [run(term, "a", now - SECOND, "skipped", error="no \udcff"), run(term, "a", now)]
    await store.record(term, claiming(*rows))
    await store.record(term, Batch(changes=[change(rows[1], "failed", error="no \udcff, no", required=True)]))
    kept = [row.error for row in await store.history("cron", "a")]
    assert [error is not None and error.startswith("no ") for error in kept] == [True, True]


JOBS = [*stores.NAMES, "a%b'\"\\", "Job", "job", "JOB", "jo_", "job%", "job\\"]


async def test_jobs_are_compared_byte_for_byte(make_store: MakeStore) -> None:
    """Names that differ in one byte, in case alone, or mean something in SQL are jobs of their own."""
    store, other = await make_store(), await make_store()
    term = await enrolled(store, *JOBS)
    assert set((await other.take_stock("cron")).jobs) == set(JOBS)
    now = await now_of(store)
    rows = {job: run(term, job, now - number * SECOND) for number, job in enumerate(JOBS)}
    await store.record(term, claiming(*rows.values()))
    for job, row in rows.items():
        assert [(found.job, found.tick) for found in await other.history("cron", job)] == [(job, row.tick)]
    for number, job in enumerate(JOBS):
        requested_at = await other.trigger("cron", job)
        stock = await store.take_stock("cron", attention=True)
        assert {name for name, found in stock.jobs.items() if found.requested_at} == {job}
        assert {name for name, found in stock.jobs.items() if found.resumed_at} == set(JOBS[:number])
        await other.pause("cron", job)
        stock = await store.take_stock("cron", attention=True)
        assert {name for name, found in stock.jobs.items() if found.paused_at} == {job}
        await other.resume("cron", job)
        ended = Batch(changes=[change(rows[job], "failed", required=True)], requests={job: requested_at})
        await store.record(term, ended)
        assert {row.job for row in (await store.take_stock("cron")).unfinished} == set(JOBS[number + 1 :])
        await store.prune("cron", [job], 0)
        assert await store.history("cron", job) == []


async def test_two_leases_do_not_see_each_other(make_store: MakeStore) -> None:
    """Jobs, runs and requests of one name in two leases, be it in case alone, have nothing to do with each other."""
    store = await make_store()
    one, two = await enrolled(store, "a", "only"), await enrolled(store, "a", name="Cron")
    now = await now_of(store)
    await store.record(one, claiming(run(one, "a", now)))
    await store.record(two, claiming(run(two, "a", now, "queued")))
    await store.enroll(two, [enrolment("a", "every 31s")])
    await store.trigger("Cron", "a")
    await store.pause("Cron", "a")
    before = await everything(store)
    assert before.jobs["a"].requested_at is before.jobs["a"].paused_at is None
    assert (await store.take_stock("cron", attention=True)).jobs == {}
    assert before.jobs["a"].schedule == "every 30s"
    assert [(row.token, row.holder, row.status) for row in before.unfinished] == [(one.token, one.holder, "running")]
    for call in (store.trigger, store.pause, store.resume):
        with pytest.raises(InvalidJob):
            await call("Cron", "only")
    row = (await everything(store, "Cron")).unfinished[0]
    await store.record(two, Batch(changes=[change(row, "skipped", required=True)]))
    await store.resume("Cron", "a")
    await store.prune("Cron", ["a"], 0)
    assert await store.history("Cron", "a") == []
    assert await everything(store) == before
    with pytest.raises(FenceBroken):
        await store.record(replace(one, name="Cron"), Batch(high_ticks={"a": now + SECOND}))


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


# -- pruning


async def test_pruning_keeps_the_newest_and_the_unfinished(make_store: MakeStore) -> None:
    """Of each job named, the newest finished rows by their ticks stay, and all that are not finished; others whole."""
    store = await make_store()
    term, elsewhere = await enrolled(store, "a", "b", "not-named"), await enrolled(store, "a", name="elsewhere")
    now = await now_of(store)
    ticks = [now - number * SECOND for number in range(10, 0, -1)]
    statuses: list[RunStatus] = [
        *("queued", "succeeded", "failed", "running", "lost"),
        *("skipped", "succeeded", "running", "failed", "queued"),
    ]
    for writer in (term, elsewhere):
        for job in ("a", "b", "not-named") if writer is term else ("a",):
            # The newest tick is written first: what counts is the tick.
            rows = [run(writer, job, tick, "queued") for tick in reversed(ticks)]
            await store.record(writer, Batch(claims=rows))
            changes = [
                change(row, status) for row, status in zip(reversed(rows), statuses, strict=True) if status != "queued"
            ]
            await store.record(writer, Batch(changes=changes))

    async def left(job: str, name: str = "cron") -> list[RunStatus]:
        return [row.status for row in await store.history(name, job)]

    await store.prune("cron", ["a"], 6)
    assert await left("a") == statuses
    await store.prune("cron", [], 0)
    await store.prune("cron", ["a", "b", "unknown"], 3)
    assert (
        await left("a")
        == await left("b")
        == [*("queued", "running", "lost", "skipped", "succeeded", "running", "failed", "queued")]
    )
    await store.prune("cron", ["b"], 1)
    assert await left("a") == ["queued", "running", "lost", "skipped", "succeeded", "running", "failed", "queued"]
    assert await left("b") == ["queued", "running", "skipped", "succeeded", "running", "failed", "queued"]
    await store.prune("cron", ["b"], 0)
    assert await left("b") == ["queued", "running", "succeeded", "running", "queued"]
    assert await left("not-named") == await left("a", "elsewhere") == statuses


async def test_a_row_of_skipped_ticks_grows(make_store: MakeStore) -> None:
    """Its tick moves on, its count adds up, its first tick and its reason stay; a batch without its row is refused."""
    store = await make_store()
    term = await enrolled(store, "a", "b")
    now = await now_of(store)
    first, second, third = (now - number * SECOND for number in (9, 6, 3))

    def skipped(job: str, tick: datetime, since: datetime, count: int) -> RunRecord:
        made = run(term, job, tick, "skipped")
        return replace(made, tick_from=since, count=count, error="its last run has not ended")

    both = ("a", "b")
    await store.record(term, Batch(claims=[skipped(job, first, first - SECOND, 2) for job in both]))
    grown = Batch(claims=[skipped(job, second, second - SECOND, 2) for job in both])
    grown.claims.append(run(term, "a", third, "running"))
    grown.extends = {(job, second): first for job in both}
    await store.record(term, grown)
    for job in both:
        row = (await store.history("cron", job))[0]
        assert (row.tick, row.tick_from, row.count) == (second, first - SECOND, 4)
        assert (row.status, row.error, row.token) == ("skipped", "its last run has not ended", term.token)
        assert row.finished_at is not None
    for before in (first, third):  # gone, and one that is not skipped
        wrong = Batch(claims=[skipped("a", now, now, 1)], extends={("a", now): before})
        with pytest.raises(Refused):
            await store.record(term, wrong)
    taken = Batch(claims=[skipped("a", third, third, 1)], extends={("a", third): second})
    with pytest.raises(Refused):  # there is a row already
        await store.record(term, taken)
    assert [(row.tick, row.status) for row in await store.history("cron", "a")] == [
        *((second, "skipped"), (third, "running")),
    ]


@pytest.mark.parametrize("newest", ["skipped", "failed"])
async def test_rows_of_skipped_ticks_are_pruned_apart_from_runs(make_store: MakeStore, newest: RunStatus) -> None:
    """However many skips follow, the runs that are to be kept stay, and the other way round."""
    store = await make_store()
    term = await enrolled(store, "a")
    now = await now_of(store)
    older: RunStatus = "failed" if newest == "skipped" else "skipped"
    statuses = [older] * 5 + [newest] * 15
    rows = [
        run(term, "a", now - (20 - number) * SECOND, "running" if status == "failed" else status)
        for number, status in enumerate(statuses)
    ]
    await store.record(term, Batch(claims=rows))
    await store.record(term, Batch(changes=[change(row, "failed") for row in rows if row.status == "running"]))
    await store.prune("cron", ["a"], 3)
    left = await store.history("cron", "a")
    assert [row.status for row in left] == [older] * 3 + [newest] * 3
    assert left[-1].tick == now - SECOND


async def test_the_newest_success_stays(make_store: MakeStore) -> None:
    """However many failures and skips have followed, the newest success of a job is there, and no older one."""
    store = await make_store()
    term = await enrolled(store, "a", "b")
    now = await now_of(store)
    ticks = [now - number * SECOND for number in range(30, 0, -1)]
    for job, succeeded in (("a", {3, 7}), ("b", set[int]())):
        rows = [run(term, job, tick, "queued") for tick in ticks]
        await store.record(term, Batch(claims=rows))
        ends: list[RunStatus] = ["succeeded" if number in succeeded else "failed" for number in range(30)]
        await store.record(term, Batch(changes=[change(row, end) for row, end in zip(rows, ends, strict=True)]))
    for keep in (20, 5, 5, 1):
        await store.prune("cron", ["a", "b"], keep)
        statuses = [(row.tick, row.status) for row in await store.history("cron", "a")]
        assert statuses == [(ticks[7], "succeeded"), *((tick, "failed") for tick in ticks[-keep:])]
        assert [row.tick for row in await store.history("cron", "b")] == ticks[-keep:]


# -- cancellation


async def test_a_record_that_is_cancelled_is_whole_or_nothing(database: Database, make_store: MakeStore) -> None:
    """A batch that is cancelled at any moment is written as a whole or not at all, and its store can be used."""
    store = await make_store()
    jobs = [f"job-{number}" for number in range(50)]
    term = await enrolled(store, *jobs)
    start = await now_of(store) - 3600 * SECOND

    def batch(tick: datetime) -> Batch:
        return claiming(*(run(term, job, tick) for job in jobs))

    started = time.monotonic()
    await store.record(term, batch(start))
    longest = time.monotonic() - started
    for point in range(20):
        tick = start + (point + 1) * SECOND
        async with asyncio.timeout(LIMIT):
            before = asyncio.all_tasks()
            call = asyncio.ensure_future(store.record(term, batch(tick)))
            if database.kind == "memory":
                for _ in range(point):
                    await asyncio.sleep(0)
            else:
                await asyncio.sleep(longest * point / 19)
            cancelled_at = time.monotonic()
            call.cancel()
            with suppress(asyncio.CancelledError):
                await call
            assert time.monotonic() - cancelled_at < 1.0
            for _ in range(3):
                stock = await store.take_stock("cron")
                assert len([row for row in stock.unfinished if row.tick == tick]) in {0, len(jobs)}
                assert {job.high_tick for job in stock.jobs.values()} in ({tick}, {tick - SECOND})
            with suppress(Refused):  # it took effect, late perhaps
                await store.record(term, batch(tick))
            stock = await store.take_stock("cron")
            assert len([row for row in stock.unfinished if row.tick == tick]) == len(jobs)
            assert {job.high_tick for job in stock.jobs.values()} == {tick}
            assert asyncio.all_tasks() <= before


# -- the last write of a run


class Work:
    """The user's own table, beside the ledger's."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._in_memory: list[str] = []
        self._sql("CREATE TABLE work (who VARCHAR(40) NOT NULL)")

    def _sql(self, statement: str) -> Iterable[tuple[Any, ...]]:
        if isinstance(self._database, InSQLite):
            return self._database.sql(statement)
        if isinstance(self._database, OnServer):
            return self._database.server.sql(statement, self._database.schema)
        return [(who,) for who in self._in_memory]

    def rows(self) -> list[str]:
        return sorted(who for (who,) in self._sql("SELECT who FROM work"))

    async def insert(self, connection: Any, who: str) -> None:
        """Writes a row as a user of this database would."""
        statement = f"INSERT INTO work (who) VALUES ('{who}')"
        if isinstance(self._database, InMemory):
            connection.append(lambda: self._in_memory.append(who))
        elif isinstance(self._database, InSQLite):
            await connection.execute(statement)
        else:
            async with connection.cursor() as cursor:
                await cursor.execute(statement)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """A connection of the user's own, in a transaction."""
        if isinstance(self._database, InSQLite):
            async with aiosqlite.connect(self._database.path) as connection:
                yield connection
        elif isinstance(self._database, OnServer):
            port = int(self._database.server.url().rpartition(":")[2].rstrip("/"))
            own = await asyncmy.connect(host="127.0.0.1", port=port, user="root", db=self._database.schema)
            try:
                yield own
            finally:
                await own.ensure_closed()
        else:
            yield []

    async def commit(self, connection: Any) -> None:
        if isinstance(self._database, InMemory):
            for call in connection:
                call()
        else:
            await connection.commit()


@pytest.fixture
def work(database: Database) -> Work:
    if isinstance(database, Awkward):
        pytest.skip("the session of a user's transaction is the user's: this one may not write")
    return Work(database)


@pytest.fixture(params=["transaction", "own connection"])
def commit(request: pytest.FixtureRequest, work: Work) -> Callable[..., Any]:
    """Writes one row of the user's and commits, fenced, in either way."""

    async def commit(store: Store, term: TermKey, who: str, final: RunKey | None) -> None:
        if request.param == "transaction":
            transaction = await store.begin()
            await work.insert(transaction.connection, who)
            await transaction.commit(term, final)
            return
        async with work.connection() as connection:
            await work.insert(connection, who)
            await store.fence(connection, term, final, within=30.0)
            await work.commit(connection)

    return commit


def key_of(row: RunRecord) -> RunKey:
    return RunKey(row.job, row.tick, row.attempt, row.token)


async def test_a_final_commit_is_the_runs_success(
    make_store: MakeStore, work: Work, commit: Callable[..., Any]
) -> None:
    """The user's rows and the run's success are committed together, and nothing changes the run afterwards."""
    store, other = await make_store(), await make_store()
    term = await enrolled(store, "a", "b")
    now = await now_of(store)
    second = now.replace(microsecond=0)
    ticks = [second - 2 * SECOND, second - SECOND + MICROSECOND]
    rows = [run(term, "a", tick, error="of an earlier attempt") for tick in ticks]
    await store.record(term, Batch(claims=[*rows, run(term, "b", ticks[1])]))
    started = await store.history("cron", "a")
    await commit(store, term, "one", key_of(rows[1]))
    assert work.rows() == ["one"]
    found = await other.history("cron", "a")
    assert found == [
        started[0],
        replace(started[1], status="succeeded", error=None, finished_at=found[1].finished_at),
    ]
    assert in_order(now, found[1].started_at, found[1].finished_at, await now_of(store))
    late = [change(rows[1], status, error="late") for status in ("failed", "lost", "queued")]
    await store.record(term, Batch(changes=late))
    with pytest.raises(Refused):
        await store.record(term, Batch(changes=[replace(late[0], required=True)]))
    newer = await lead(other)
    await other.record(newer, Batch(changes=[replace(change, adopt=True) for change in late]))
    assert await store.history("cron", "a") == found
    assert [row.job for row in (await store.take_stock("cron")).unfinished] == ["a", "b"]


async def test_a_commit_that_is_not_final_leaves_the_run_alone(
    make_store: MakeStore, work: Work, commit: Callable[..., Any]
) -> None:
    """A run may commit as often as it likes before its last commit."""
    store = await make_store()
    term = await enrolled(store, "a")
    row = run(term, "a", await now_of(store))
    await store.record(term, claiming(row))
    before = await everything(store)
    for who in ("one", "two"):
        await commit(store, term, who, None)
    assert await everything(store) == before
    await commit(store, term, "three", key_of(row))
    assert work.rows() == ["one", "three", "two"]
    assert (await only_run(store, "a")).status == "succeeded"


FINAL: dict[str, Callable[[RunKey], RunKey]] = {
    "of another attempt": lambda key: replace(key, attempt=2),
    "of an older token": lambda key: replace(key, token=key.token - 1),
    "of another token": lambda key: replace(key, token=key.token + 1),
    "of another tick": lambda key: replace(key, tick=key.tick + MICROSECOND),
    "of another job": lambda key: replace(key, job="A"),
    "queued": lambda key: replace(key, job="queued"),
    "failed": lambda key: replace(key, job="failed"),
    "lost": lambda key: replace(key, job="lost"),
    "succeeded": lambda key: replace(key, job="succeeded"),
    "skipped": lambda key: replace(key, job="skipped"),
}


@pytest.mark.parametrize("reason", FINAL)
async def test_a_final_commit_of_what_is_not_running_is_refused(
    make_store: MakeStore, work: Work, commit: Callable[..., Any], reason: str
) -> None:
    """If the run is not the running one, the commit is refused, nothing of it is there, and the term goes on."""
    store = await make_store()
    await lead(store)
    term = await enrolled(store, "a", "queued", "failed", "lost", "succeeded", "skipped")
    now = await now_of(store)
    rows = {job: run(term, job, now) for job in ("a", "queued", "failed", "lost", "succeeded", "skipped")}
    await store.record(term, claiming(*rows.values()))
    ended = [change(row, cast(RunStatus, job), error="kept") for job, row in rows.items() if job != "a"]
    await store.record(term, Batch(changes=ended))
    before = await everything(store)
    with pytest.raises(Refused):
        await commit(store, term, "never", FINAL[reason](key_of(rows["a"])))
    assert work.rows() == []
    assert await everything(store) == before
    await commit(store, term, "after", key_of(rows["a"]))
    assert work.rows() == ["after"]
    assert (await only_run(store, "a")).status == "succeeded"


async def test_a_final_commit_of_an_older_term_is_refused(
    make_store: MakeStore, work: Work, commit: Callable[..., Any]
) -> None:
    """Once a newer term has begun, a final commit is broken by the fence, also of a run that is running as it was."""
    store, other = await make_store(), await make_store()
    old = await enrolled(store, "a")
    row = run(old, "a", await now_of(store))
    await store.record(old, claiming(row))
    new = await lead(other)
    before = await everything(store)
    for final in (key_of(row), replace(key_of(row), token=new.token), replace(key_of(row), job="unknown")):
        with pytest.raises(FenceBroken):
            await commit(store, old, "never", final)
    assert work.rows() == []
    assert await everything(store) == before
    await other.record(new, Batch(changes=[change(row, "running", attempt=2, adopt=True, required=True)]))
    with pytest.raises(Refused):
        await commit(other, new, "never", key_of(row))
    await commit(other, new, "new", RunKey("a", row.tick, 2, new.token))
    assert work.rows() == ["new"]


async def test_a_final_commit_that_is_rolled_back_is_no_success(
    database: Database, make_store: MakeStore, work: Work
) -> None:
    """A transaction that is rolled back, or a fence that is not committed, leaves the run running."""
    store = await make_store()
    term = await enrolled(store, "a")
    row = run(term, "a", await now_of(store))
    await store.record(term, claiming(row))
    transaction = await store.begin()
    await work.insert(transaction.connection, "never")
    await transaction.roll_back()
    if database.kind != "memory":  # which has no transaction around a fence
        async with work.connection() as connection:
            await work.insert(connection, "never")
            await store.fence(connection, term, key_of(row), within=30.0)
            await connection.rollback()
    assert work.rows() == []
    assert (await only_run(store, "a")).status == "running"


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


# -- SQLite's own


def to_version_1(path: Path) -> None:
    """What a file was like before there was a ledger."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in (
            "DROP TABLE aiolease_run",
            "DROP TABLE aiolease_job",
            "UPDATE aiolease_lease SET token = 1 WHERE name = 'schema version'",
        ):
            connection.execute(statement)


def select(path: Path, statement: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
async def test_sqlite_upgrades_a_file_without_a_ledger(tmp_path: Path, journal_mode: str) -> None:
    """A file of version 1 gets the tables it lacks, keeps its leases and its journal mode, and is of version 2 then."""
    path = tmp_path / "leases.db"
    async with aclosing(SQLiteStore(path)) as store:
        old = await lead(cast(Store, store))
    to_version_1(path)
    assert select(path, f"PRAGMA journal_mode = {journal_mode}") == [(journal_mode,)]
    async with aclosing(SQLiteStore(path, create_tables=False)) as store:
        for _ in range(2):
            with pytest.raises(SchemaMissing, match=rf"version 1.* needs {SCHEMA_VERSION}.*create_tables=False"):
                await store.take_stock("cron")
    assert select(path, "SELECT COUNT(*) FROM sqlite_master WHERE name LIKE '%run%'") == [(0,)]
    async with aclosing(SQLiteStore(path)) as one, aclosing(SQLiteStore(path)) as two:
        await asyncio.gather(one.enroll(old, [enrolment("a")]), two.enroll(old, [enrolment("b")]))
        assert set((await one.take_stock("cron")).jobs) == {"a", "b"}
        lease = await two.read("cron")
        assert lease is not None
        assert (lease.holder, lease.token) == (old.holder, old.token)
    assert select(path, "SELECT token FROM aiolease_lease WHERE name = 'schema version'") == [(SCHEMA_VERSION,)]
    assert select(path, "PRAGMA journal_mode") == [(journal_mode,)]
    async with aclosing(SQLiteStore(path, create_tables=False)) as store:
        assert set((await store.take_stock("cron")).jobs) == {"a", "b"}


async def test_sqlite_makes_a_table_of_the_ledger_that_is_missing(tmp_path: Path) -> None:
    """A table that was dropped is an error once, and made anew when it is next needed."""
    path = tmp_path / "leases.db"
    async with aclosing(SQLiteStore(path)) as store:
        term = await enrolled(cast(Store, store), "a")
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("DROP TABLE aiolease_run")
        with pytest.raises(SchemaMissing, match="no such table"):
            await store.take_stock("cron")
        await store.record(term, claiming(run(term, "a", await now_of(cast(Store, store)))))
        assert len(await store.history("cron", "a")) == 1


async def test_sqlite_refuses_a_tick_to_the_microsecond(tmp_path: Path) -> None:
    """By the store's clock, as it is in the transaction: 5 s ahead is not too much, and a microsecond more is."""
    moment = 1_700_000_000_123_456
    async with aclosing(SQLiteStore(tmp_path / "leases.db")) as opened:
        store = cast(Store, opened)
        opened._now = lambda: moment
        term = await enrolled(store, "a")
        now = await now_of(store)
        with pytest.raises(Refused):
            await store.record(term, Batch(high_ticks={"a": now + 5 * SECOND + MICROSECOND}))
        await store.record(term, Batch(high_ticks={"a": now + 5 * SECOND}))
        moment += 1
        await store.record(term, claiming(run(term, "a", now + 5 * SECOND + MICROSECOND)))
        row = await only_run(store, "a")
        assert row.started_at == now + MICROSECOND
        moment += 1
        transaction = await store.begin()
        moment += 1
        await transaction.commit(term, key_of(row))
        assert (await only_run(store, "a")).finished_at == now + 3 * MICROSECOND


async def test_sqlite_keeps_moments_as_microseconds(tmp_path: Path) -> None:
    """A person with a client program finds the columns of the design, and UTC microseconds in them."""
    path = tmp_path / "leases.db"
    moment = 1_700_000_000_123_456
    async with aclosing(SQLiteStore(path)) as opened:
        store = cast(Store, opened)
        opened._now = lambda: moment
        term = await enrolled(store, "a")
        now = await now_of(store)
        await store.record(term, claiming(run(term, "a", now - MICROSECOND)))
        await store.trigger("cron", "a")
        await store.pause("cron", "a")
    columns = (
        "lease, job, schedule, timezone, known_since, schedule_since, resumed_at, paused_at, high_tick, requested_at"
    )
    assert select(path, f"SELECT {columns} FROM aiolease_job") == [
        ("cron", "a", "every 30s", "", moment, moment, None, moment, moment - 1, moment)
    ]
    columns = "lease, job, tick, attempt, token, holder, status, started_at, finished_at, error, tick_from, count"
    assert select(path, f"SELECT {columns} FROM aiolease_run") == [
        ("cron", "a", moment - 1, 1, term.token, term.holder, "running", moment, None, None, None, None)
    ]


async def test_sqlite_reads_one_moment_of_the_ledger(tmp_path: Path) -> None:
    """Jobs and runs of a stock belong together, while another process claims as fast as it can."""
    path = tmp_path / "leases.db"
    async with aclosing(SQLiteStore(path)) as opened, aclosing(SQLiteStore(path)) as watching:
        store = cast(Store, opened)
        term = await enrolled(store, "a")
        start, done = await now_of(store) - 3600 * SECOND, asyncio.Event()

        async def write() -> None:
            for number in range(200):
                await store.record(term, claiming(run(term, "a", start + number * SECOND)))
            done.set()

        def whole(stock: LedgerReading) -> bool:
            return not stock.unfinished or stock.jobs["a"].high_tick == stock.unfinished[-1].tick

        writing = asyncio.create_task(write())
        readings = 0
        async with asyncio.timeout(LIMIT):
            while not done.is_set():
                assert whole(await watching.take_stock("cron"))
                readings += 1
            await writing
        assert readings > 10


async def test_sqlite_enrolls_all_or_nothing(tmp_path: Path) -> None:
    """What fails at one of several jobs leaves none of them behind."""
    path = tmp_path / "leases.db"
    async with aclosing(SQLiteStore(path)) as opened:
        store = cast(Store, opened)
        term = await enrolled(store, "a")
        before = await everything(store)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            failing = "BEFORE INSERT ON aiolease_job WHEN new.job = 'c' BEGIN SELECT RAISE(ABORT, 'disk on fire'); END"
            connection.execute(f"CREATE TRIGGER failing {failing}")
        with pytest.raises(StoreUnavailable, match="disk on fire"):
            await store.enroll(term, [enrolment("a", "every 31s"), enrolment("b"), enrolment("c")])
        assert await everything(store) == before


@pytest.mark.parametrize("prefix", ["aiolease_", "second_"])
async def test_sqlite_finds_runs_by_an_index(tmp_path: Path, prefix: str) -> None:
    """The stock reads no runs but the unfinished, and pruning and history those of their job only."""
    path = tmp_path / "leases.db"
    async with aclosing(SQLiteStore(path, table_prefix="first_")) as store:
        await store.take_stock("cron")
    async with aclosing(SQLiteStore(path, table_prefix=prefix)) as store:
        await store.take_stock("cron")
        pruning = PruneStatements(SQLiteDialect(prefix)).each
        statements = {
            store._ledger.unfinished.text: f"SEARCH {prefix}run USING INDEX {prefix}run_unfinished (lease=?)",
            store._ledger.history.text: f"SEARCH {prefix}run USING PRIMARY KEY (lease=? AND job=?)",
            pruning[0].text: f"SEARCH {prefix}run USING PRIMARY KEY (lease=? AND job=? AND tick=?)",
            pruning[1].text: f"SEARCH {prefix}run USING PRIMARY KEY (lease=? AND job=? AND tick=?)",
        }
    for statement, step in statements.items():
        with closing(sqlite3.connect(path)) as connection:
            values = {"lease": "cron", "job": "a", "keep": 1, "limit": 9, "step": 9}
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
        assert plan[0] == step
        assert not [step for step in plan if "ORDER BY" in step]
