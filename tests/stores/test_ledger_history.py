"""What a ledger keeps of runs on every store: texts, and what pruning leaves."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest

from aiolease.errors import InvalidJob
from aiolease.stores.batch import Batch
from aiolease.stores.contract import FenceBroken, Refused
from aiolease.stores.records import MAX_ERROR, RunRecord, RunStatus
from tests.stores.databases import NAMES, Database, MakeStore
from tests.stores.ledgers import SECOND, change, claiming, enrolled, enrolment, everything, now_of, run

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
async def test_an_error_is_kept_as_it_is(database: Database, make_store: MakeStore, error: str) -> None:
    """Whatever an exception says is kept to the letter, up to its first 1,000 characters, in a change and a claim."""
    store = await make_store()
    term = await enrolled(store, "a")
    now = await now_of(store)
    rows = [run(term, "a", now - SECOND, "skipped", error=error), run(term, "a", now)]
    await store.record(term, claiming(*rows))
    await store.record(term, Batch(changes=[change(rows[1], "failed", error=error, required=True)]))
    kept = error[:1000]
    if database.kind == "postgresql":  # whose texts can have all characters but this one
        kept = kept.replace("\0", "\ufffd")
    assert [row.error for row in await store.history("cron", "a")] == [kept] * 2


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


JOBS = [*NAMES, "a%b'\"\\", "Job", "job", "JOB", "jo_", "job%", "job\\"]


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
