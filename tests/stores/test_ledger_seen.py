"""How jobs stand, at a glance, and the newest runs of all jobs, on every store."""

from __future__ import annotations

import random
from datetime import datetime, timedelta

import pytest

from aiolease.errors import ConfigurationError
from aiolease.stores import Store
from aiolease.stores.batch import Batch
from aiolease.stores.records import RunRecord, RunStatus, TermKey
from aiolease.stores.seen import MOST_FAILURES, TERMS, JobSeen
from tests.stores.databases import MakeStore
from tests.stores.ledgers import SECOND, change, enrolled, in_order, now_of, run

STATUSES: tuple[RunStatus, ...] = ("queued", "running", "succeeded", "failed", "lost", "skipped")
ENDED = {"succeeded", "failed", "lost"}


async def made(store: Store, term: TermKey, rows: dict[tuple[str, datetime], RunStatus]) -> None:
    """Makes rows that have a status, as a leader would."""
    running = [run(term, job, tick) for (job, tick), status in rows.items() if status in ENDED]
    others = [run(term, job, tick, status) for (job, tick), status in rows.items() if status not in ENDED]
    await store.record(term, Batch(claims=[*running, *others]))
    ends = [change(row, rows[row.job, row.tick], error="why", required=True) for row in running]
    await store.record(term, Batch(changes=ends))


async def of_job(store: Store, job: str) -> JobSeen:
    return (await store.overview("cron")).jobs[job]


async def test_a_job_without_runs_is_seen(make_store: MakeStore) -> None:
    """And a lease without jobs, which has a clock."""
    store = await make_store()
    before = await now_of(store)
    empty = await store.overview("cron")
    assert (empty.jobs, empty.pause, empty.unreadable) == ({}, None, {})
    assert in_order(before, empty.now, await now_of(store))
    await enrolled(store, "b", "a")
    seen = await store.overview("cron")
    record = (await store.take_stock("cron")).jobs["a"]
    assert list(seen.jobs) == ["a", "b"]
    assert seen.jobs["a"] == JobSeen(record=record)


async def test_only_the_jobs_that_are_asked_for_are_seen(make_store: MakeStore) -> None:
    """One, some, none, or one that is not known; the pause of the lease with them all."""
    store = await make_store()
    await enrolled(store, "a", "b", "c")
    await store.pause("cron", note="why")
    for asked in (["b"], ["c", "a", "unknown"], [], ["unknown"]):
        seen = await store.overview("cron", asked)
        assert list(seen.jobs) == sorted(set(asked) - {"unknown"})
        assert seen.pause is not None
        assert seen.pause.pause_note == "why"


async def test_the_latest_run_and_success_are_seen(make_store: MakeStore) -> None:
    """By their ticks; what was skipped, waits or goes on is no end. The row is as the history has it."""
    store = await make_store()
    term = await enrolled(store, "a", "b")
    now = await now_of(store)
    newest_first: list[RunStatus] = ["queued", "running", "skipped", "failed", "lost", "succeeded", "failed"]
    await made(store, term, {("a", now - n * SECOND): status for n, status in enumerate(newest_first)})
    seen = await of_job(store, "a")
    rows = {row.tick: row for row in await store.history("cron", "a")}
    assert seen.last == rows[now - 3 * SECOND]
    assert seen.last_success == rows[now - 5 * SECOND].finished_at
    assert (seen.failures, seen.running, seen.queued) == (2, 1, 1)
    await store.record(term, Batch(changes=[change(rows[now - SECOND], "succeeded", required=True)]))
    seen = await of_job(store, "a")
    assert seen.last is not None
    assert seen.last_success == seen.last.finished_at
    assert (seen.last.tick, seen.failures, seen.running) == (now - SECOND, 0, 0)
    assert await of_job(store, "b") == JobSeen(record=(await store.take_stock("cron")).jobs["b"])


async def test_failures_in_a_row_are_counted_up_to_a_limit(make_store: MakeStore) -> None:
    """Of a job that never succeeded as well; more than the limit are so many."""
    store = await make_store()
    term = await enrolled(store, "a", "b")
    now = await now_of(store)
    for count, total in ((3, 3), (MOST_FAILURES - 3, MOST_FAILURES), (9, MOST_FAILURES)):
        seen = await of_job(store, "a")
        start = now + (seen.failures + 1) * SECOND
        failed: dict[tuple[str, datetime], RunStatus] = {
            ("a", start + n * timedelta(milliseconds=1)): "lost" if n % 2 else "failed" for n in range(count)
        }
        await made(store, term, failed)
        now = start
        assert (await of_job(store, "a")).failures == total
    await made(store, term, {("a", now + 999 * SECOND): "succeeded"})
    await made(store, term, {("a", now + 1000 * SECOND): "failed"})
    assert (await of_job(store, "a")).failures == 1


async def test_whatever_waits_is_counted(make_store: MakeStore) -> None:
    """In the line, to be tried again, or by hand."""
    store = await make_store()
    term = await enrolled(store, "a")
    now = await now_of(store)
    rows = [
        run(term, "a", now, "queued"),
        run(term, "a", now - SECOND, "queued", not_before=now + SECOND),
        run(term, "a", now - 2 * SECOND, "queued", not_before=now, request="rerun"),
        run(term, TERMS, now),
    ]
    await store.record(term, Batch(claims=rows))
    assert (await of_job(store, "a")).queued == 3
    assert set((await store.overview("cron")).jobs) == {"a"}


# -- the newest runs of all jobs


async def test_the_newest_runs_of_all_jobs(make_store: MakeStore) -> None:
    """However they are spread over the jobs: the same as all histories together, cut."""
    store = await make_store()
    chance = random.Random(3)
    names = [f"job{number:02}" for number in range(15)]
    term = await enrolled(store, *names)
    await enrolled(store, "job00", name="other")
    start = await now_of(store) - timedelta(hours=9)
    rows: dict[tuple[str, datetime], RunStatus] = {}
    for number, name in enumerate(names):
        spread = chance.choice([1, 60, 3600])
        for _ in range(chance.choice([0, 1, 40])):
            rows[name, start + timedelta(seconds=chance.randrange(9 * spread), milliseconds=number)] = chance.choice(
                STATUSES
            )
    await made(store, term, rows)
    every: list[RunRecord] = [row for name in names for row in await store.history("cron", name, limit=1000)]
    every.sort(key=lambda row: (row.tick, row.job))
    assert len(every) == len(rows) > 100
    failed = [row for row in every if row.status in {"failed", "lost"}]
    for limit in (1, 7, 100, 1000):
        assert await store.runs("cron", limit=limit) == every[-limit:]
        assert await store.runs("cron", failed=True, limit=limit) == failed[-limit:]
        since = every[-20].tick
        assert await store.runs("cron", since=since, limit=limit) == every[-20:][-limit:]
        after = [row for row in failed if row.tick >= since]
        assert await store.runs("cron", failed=True, since=since, limit=limit) == after[-limit:]
    assert await store.runs("other") == []
    with pytest.raises(ConfigurationError):
        await store.runs("cron", limit=0)
    with pytest.raises(ConfigurationError):
        await store.runs("cron", since=start.replace(tzinfo=None))
    with pytest.raises(ConfigurationError):
        await store.terms("cron", limit=0)


async def test_runs_of_one_moment_are_all_found(make_store: MakeStore) -> None:
    """Jobs whose ticks fall due together, more than a page of them."""
    store = await make_store()
    names = [f"job{number:02}" for number in range(30)]
    term = await enrolled(store, *names)
    now = await now_of(store)
    await made(store, term, {(name, now - n * SECOND): "failed" for name in names for n in range(20)})
    for failed in (False, True):
        found = await store.runs("cron", failed=failed, limit=100)
        assert [(row.tick, row.job) for row in found[-30:]] == [(now, name) for name in names]
        assert len({(row.job, row.tick) for row in found}) == 100
