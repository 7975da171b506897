"""Runs that are tried again, or that people asked for, and skipped ticks that are run after all, on every store."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from aiolease.stores import Store
from aiolease.stores.batch import Again, Backfilled, Batch, Trimmed
from aiolease.stores.contract import FenceBroken, Refused
from aiolease.stores.records import MAX_EARLIER, JobRecord, Request, RunRecord, RunStatus, TermKey
from aiolease.stores.seen import TERMS
from tests.stores.databases import Database, MakeStore
from tests.stores.ledgers import (
    MICROSECOND,
    SECOND,
    change,
    claiming,
    enrolled,
    everything,
    job_of,
    key_of,
    lead,
    now_of,
    only_run,
    run,
)

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


async def test_a_failed_attempt_is_queued_again(make_store: MakeStore) -> None:
    """It waits until its moment, knows how often it failed and with what, and is in no line; its error stays."""
    store = await make_store()
    term = await enrolled(store, "a")
    now = await now_of(store)
    await store.record(term, claiming(run(term, "a", now)))
    row = await only_run(store, "a")
    again = Again(not_before=now + 60 * SECOND, failed=True, line="attempt 1: ValueError: no")
    queued = change(row, "queued", attempt=2, error="ValueError: no", again=again, required=True)
    await store.record(term, Batch(changes=[queued]))
    waiting = await only_run(store, "a")
    assert waiting == replace(
        row,
        status="queued",
        attempt=2,
        error="ValueError: no",
        started_at=None,
        not_before=now + 60 * SECOND,
        failures=1,
        earlier="attempt 1: ValueError: no",
    )
    assert waiting.errors == ("attempt 1: ValueError: no",)
    assert await store.queued("cron", ["a"], 9) == ([], {})
    assert await store.later("cron", 9) == ([waiting], {})
    assert (await store.take_stock("cron")).unfinished == [waiting]
    counted = await store.take_stock("cron", counted=True)
    assert (counted.queued, counted.later, counted.unfinished) == ({}, {"a": 1}, [])


@pytest.mark.parametrize("status", ["running", "succeeded", "failed", "lost", "skipped"])
async def test_whatever_a_waiting_run_becomes_it_waits_no_longer(make_store: MakeStore, status: RunStatus) -> None:
    """Every status but queued clears the moment; what was counted and told stays."""
    store = await make_store()
    term = await enrolled(store, "a")
    now = await now_of(store)
    waiting = run(term, "a", now, "queued", request="backfill", not_before=now)
    await store.record(term, Batch(claims=[waiting]))
    again = Again(not_before=now, failed=True, uncounted=True, line="one")
    await store.record(term, Batch(changes=[change(waiting, "queued", attempt=2, again=again, required=True)]))
    row = await only_run(store, "a")
    await store.record(term, Batch(changes=[change(row, status, error="why", required=True)]))
    after = await only_run(store, "a")
    assert (after.status, after.not_before, after.failures, after.uncounted) == (status, None, 1, 1)
    assert (after.request, after.earlier, after.error) == ("backfill", "one", "why")
    assert await store.later("cron", 9) == ([], {})


async def test_a_run_that_is_handed_back_goes_to_the_line(make_store: MakeStore) -> None:
    """Queued with nothing more said it is an ordinary queued run again; what was counted stays."""
    store = await make_store()
    term = await enrolled(store, "a")
    now = await now_of(store)
    first = run(term, "a", now, "queued", not_before=now + SECOND)
    await store.record(term, Batch(claims=[first]))
    await store.record(term, Batch(changes=[change(first, "queued", again=Again(failed=True), required=True)]))
    assert (await only_run(store, "a")).not_before is None
    await store.record(term, Batch(changes=[change(first, "queued", again=Again(not_before=now), required=True)]))
    await store.record(term, Batch(changes=[change(first, "queued", required=True)]))
    row = await only_run(store, "a")
    assert (row.status, row.not_before, row.failures) == ("queued", None, 1)
    assert await store.queued("cron", ["a"], 9) == ([row], {})


async def queue_again(store: Store, term: TermKey, again: Again) -> None:
    """Queues the only run of job a for one attempt more."""
    row = await only_run(store, "a")
    queued = change(row, "queued", attempt=row.attempt + 1, again=again, required=True)
    await store.record(term, Batch(changes=[queued]))


async def test_the_request_of_a_run_stays_unless_another_is_given(make_store: MakeStore) -> None:
    """A retry of what was triggered is still a trigger's; a trigger waits in the line."""
    store = await make_store()
    term = await enrolled(store, "a")
    now = await now_of(store)
    row = run(term, "a", now, "queued", request="trigger")
    await store.record(term, Batch(claims=[row]))
    assert (await store.queued("cron", ["a"], 9))[0] == [row]
    given: list[Request | None] = [None, "rerun", None]
    for request, found in zip(given, ("trigger", "rerun", "rerun"), strict=True):
        await queue_again(store, term, Again(request=request))
        assert (await only_run(store, "a")).request == found


async def test_earlier_attempts_are_lines(make_store: MakeStore) -> None:
    """A line for each, the newest last, whatever is in an error; of very many the last characters are kept."""
    store = await make_store()
    term = await enrolled(store, "a")
    now = await now_of(store)
    row = run(term, "a", now, "queued")
    await store.record(term, Batch(claims=[row]))
    for line in ("first", 'no 😀\n  it\'s\r\n100 %, \\ and "%s" :line', None, "third"):
        await queue_again(store, term, Again(line=line))
    found = await only_run(store, "a")
    assert found.errors == ("first", 'no 😀 |   it\'s | 100 %, \\ and "%s" :line', "third")
    for number in range(5):
        await queue_again(store, term, Again(line=f"{number}" + "😀" * 999))
    kept = (await only_run(store, "a")).earlier
    assert kept is not None
    assert len(kept) == MAX_EARLIER
    assert kept.endswith("\n" + "4" + "😀" * 999)


async def test_what_comes_later_comes_by_its_moment(make_store: MakeStore) -> None:
    """`later` has the earliest first, of all jobs, at most so many, and no run of a line or of another lease."""
    store = await make_store()
    term = await enrolled(store, "a", "b")
    other = await enrolled(store, "a", name="other")
    now = await now_of(store)
    moments = {("a", 1): 1, ("b", 2): 3, ("a", 3): 3, ("b", 4): 5, ("a", 5): None}
    rows = [
        run(term, job, now - n * SECOND, "queued", not_before=None if at is None else now + at * SECOND)
        for (job, n), at in moments.items()
    ]
    await store.record(term, Batch(claims=rows))
    await store.record(other, Batch(claims=[run(other, "a", now, "queued", not_before=now)]))
    found, unreadable = await store.later("cron", 9)
    assert [(row.job, now - row.tick) for row in found] == [
        ("a", 1 * SECOND),
        ("a", 3 * SECOND),
        ("b", 2 * SECOND),
        ("b", 4 * SECOND),
    ]
    assert unreadable == {}
    assert (await store.later("cron", 2))[0] == found[:2]
    counted = await store.take_stock("cron", counted=True)
    assert (counted.queued, counted.later) == ({"a": 1}, {"a": 2, "b": 2})


async def test_changes_that_differ_in_what_becomes_of_them_are_kept_apart(make_store: MakeStore) -> None:
    """Runs of one tick in one batch, each with its own moment, count and line."""
    store = await make_store()
    term = await enrolled(store, "a", "b", "c", "d")
    now = await now_of(store)
    rows = [run(term, job, now) for job in "abcd"]
    await store.record(term, claiming(*rows))
    given = [Again(not_before=now, failed=True), Again(not_before=now, line="x"), Again(uncounted=True), None]
    changes = [
        change(row, "queued", attempt=2, again=again, required=True) for row, again in zip(rows, given, strict=True)
    ]
    await store.record(term, Batch(changes=changes))
    found = [await only_run(store, job) for job in "abcd"]
    assert [(row.not_before, row.failures, row.uncounted, row.earlier) for row in found] == [
        (now, 1, 0, None),
        (now, 0, 0, "x"),
        (None, 0, 1, None),
        (None, 0, 0, None),
    ]


async def test_a_skipped_row_becomes_a_run(make_store: MakeStore) -> None:
    """What it said of its range is gone, as are its moments."""
    store = await make_store()
    term = await enrolled(store, "a")
    now = await now_of(store)
    skipped = run(term, "a", now, "skipped", tick_from=now - 9 * SECOND, count=4, error="late")
    await store.record(term, Batch(claims=[skipped]))
    again = Again(not_before=now, request="backfill")
    await store.record(term, Batch(changes=[change(skipped, "queued", error=None, again=again, required=True)]))
    assert await only_run(store, "a") == replace(
        skipped, status="queued", tick_from=None, count=None, error=None, not_before=now, request="backfill"
    )


async def test_a_range_of_skipped_ticks_is_trimmed(make_store: MakeStore) -> None:
    """What is left of it stays as it was; the ticks that were in it can be claimed in the same batch."""
    store = await make_store()
    term = await enrolled(store, "a")
    now = await now_of(store)
    skipped = run(term, "a", now, "skipped", tick_from=now - 9 * SECOND, count=10, error="late")
    await store.record(term, Batch(claims=[skipped]))
    before = await only_run(store, "a")
    claims = [
        run(term, "a", now - 7 * SECOND, "skipped", tick_from=now - 9 * SECOND, count=3, error="late"),
        run(term, "a", now - 6 * SECOND, "queued", request="backfill", not_before=now),
    ]
    trims = {("a", now): Trimmed(tick_from=now - 5 * SECOND, count=6)}
    await store.record(term, Batch(claims=claims, trims=trims))
    rows = await store.history("cron", "a")
    assert [row.count for row in rows] == [3, None, 6]
    assert rows[2] == replace(before, tick_from=now - 5 * SECOND, count=6)
    assert rows[1].request == "backfill"
    one_left = {("a", now): Trimmed(tick_from=None, count=1)}
    await store.record(term, Batch(trims=one_left))
    assert (await store.history("cron", "a"))[2] == replace(before, tick_from=None, count=1)
    as_it_was = await everything(store)
    for place in (("a", now), ("a", now - SECOND), ("a", now - 6 * SECOND), ("b", now)):
        with pytest.raises(Refused):  # nothing to be taken away, no such row, not skipped
            await store.record(term, Batch(trims={place: one_left["a", now]}))
    assert await everything(store) == as_it_was


# -- what was asked of jobs


async def test_a_backfill_moves_on(make_store: MakeStore) -> None:
    """From one moment to the next, then it is done; refused if it is not where it was read."""
    store, other = await make_store(), await make_store()
    term = await enrolled(store, "a", "b")
    now = await now_of(store)
    await other.backfill("cron", "a", now - 60 * SECOND, now)
    job = await job_of(store, "a")
    assert (job.backfill_since, job.backfill_until) == (now - 60 * SECOND, now)
    moves = [(now - 60 * SECOND, now - 30 * SECOND, now), (now - 30 * SECOND, None, None)]
    for seen, since, until in moves:
        for wrong in (seen + MICROSECOND, seen - SECOND):
            with pytest.raises(Refused):
                await store.record(term, Batch(backfills={"a": Backfilled(seen=wrong, since=since)}))
        await store.record(term, Batch(backfills={"a": Backfilled(seen=seen, since=since)}))
        job = await job_of(store, "a")
        assert (job.backfill_since, job.backfill_until) == (since, until)
    for name in "ab":
        with pytest.raises(Refused):
            await store.record(term, Batch(backfills={name: Backfilled(seen=now - 30 * SECOND, since=None)}))


async def test_what_was_asked_is_cleared_if_it_still_stands(make_store: MakeStore) -> None:
    """A cancellation that was asked for again meanwhile stays; nothing is refused for that."""
    store, other = await make_store(), await make_store()
    term = await enrolled(store, "a")
    now = await now_of(store)
    ended = run(term, "a", now)
    await store.record(term, claiming(ended))
    await store.record(term, Batch(changes=[change(ended, "failed", required=True)]))
    seen = []
    for _ in range(2):
        await other.cancel("cron", "a")
        seen.append(await job_of(store, "a"))
        assert set((await store.take_stock("cron", attention=True)).jobs) == {"a"}
    old, new = (job.cancel_at for job in seen)
    assert old is not None
    assert new is not None
    assert new > old
    await other.rerun("cron", "a", now)
    asked = (await job_of(store, "a")).asked_at
    assert asked is not None
    await store.record(term, Batch(cancels={"a": old, "unknown": old}, asked={"a": old, "unknown": old}))
    job = await job_of(store, "a")
    assert (job.cancel_at, job.asked_at) == (new, asked)
    await store.record(term, Batch(cancels={"a": new}, asked={"a": asked}))
    job = await job_of(store, "a")
    assert (job.cancel_at, job.asked_at) == (None, None)
    assert (await store.take_stock("cron", attention=True)).jobs == {}


async def test_a_refused_batch_writes_nothing_of_the_new_things(make_store: MakeStore) -> None:
    """All of a batch takes effect, or nothing of it; and nothing of a term that is over."""
    store = await make_store()
    term = await enrolled(store, "a", "b")
    now = await now_of(store)
    running = run(term, "a", now)
    skipped = run(term, "b", now, "skipped", tick_from=now - SECOND, count=2)
    await store.record(term, claiming(running, skipped))
    await store.backfill("cron", "a", now, now)
    await store.cancel("cron", "a")
    job = await job_of(store, "a")
    assert job.cancel_at is not None

    def batch(**more: Any) -> Batch:
        assert job.cancel_at is not None
        return Batch(
            changes=[change(running, "queued", attempt=2, again=Again(not_before=now, failed=True, line="x"))],
            claims=[run(term, "b", now - SECOND, "queued", request="backfill", not_before=now)],
            trims={("b", now): Trimmed(tick_from=None, count=1)},
            cancels={"a": job.cancel_at},
            **more,
        )

    before = await everything(store)
    with pytest.raises(Refused):
        await store.record(term, batch(backfills={"a": Backfilled(seen=now - SECOND, since=None)}))
    assert await everything(store) == before
    await lead(store)
    with pytest.raises(FenceBroken):
        await store.record(term, batch(backfills={"a": Backfilled(seen=now, since=None)}))
    assert await everything(store) == before


@pytest.mark.parametrize("database", ["memory", "sqlite", "mariadb", "mysql9", "postgresql+asyncpg"], indirect=True)
async def test_a_final_commit_of_a_retry_leaves_what_is_told_of_it(make_store: MakeStore) -> None:
    """A run that failed before, and then commits its success with its writes: the row tells both."""
    store = await make_store()
    term = await enrolled(store, "a")
    now = await now_of(store)
    row = run(term, "a", now, "queued", not_before=now)
    await store.record(term, Batch(claims=[row]))
    again = Again(not_before=now, failed=True, line="attempt 1: no")
    await store.record(term, Batch(changes=[change(row, "queued", attempt=2, again=again, required=True)]))
    waiting = await only_run(store, "a")
    await store.record(term, Batch(changes=[change(waiting, "running", required=True)]))
    await (await store.begin()).commit(term, key_of(await only_run(store, "a")))
    done = await only_run(store, "a")
    assert (done.status, done.failures, done.earlier, done.not_before) == ("succeeded", 1, "attempt 1: no", None)


# -- the leader and its jobs


async def test_a_leader_has_its_jobs(make_store: MakeStore) -> None:
    """`have` notes the term at the jobs that are known; a term that is over notes nothing, and hears of it."""
    store, other = await make_store(), await make_store()
    term = await enrolled(store, "a", "b", "c")
    assert (await job_of(store, "a")).token is None
    await store.have(term, ["a", "b", "unknown"])
    jobs = (await other.take_stock("cron")).jobs
    assert {name: job.token for name, job in jobs.items()} == {"a": term.token, "b": term.token, "c": None}
    await store.enroll(term, [])
    new = await lead(other)
    await other.have(new, ["b"])
    for names in (["a"], []):
        with pytest.raises(FenceBroken):
            await store.have(term, names)
    assert (await job_of(store, "a")).token == term.token
    assert (await job_of(store, "b")).token == new.token


async def test_thousands_of_jobs_are_had(make_store: MakeStore) -> None:
    """More than one statement names."""
    store = await make_store()
    names = [f"job-{number}" for number in range(1500)]
    term = await enrolled(store, *names)
    await store.have(term, names)
    assert {job.token for job in (await store.take_stock("cron")).jobs.values()} == {term.token}


def term_row(term: TermKey, began: Any, status: RunStatus = "running") -> RunRecord:
    return run(term, TERMS, began, status)


async def test_terms_are_told_and_are_no_runs(make_store: MakeStore) -> None:
    """A term's row begins, ends, is closed by the next leader, is pruned; no reading of runs shows it."""
    store, other = await make_store(), await make_store()
    first = await enrolled(store, "a")
    began = await now_of(store)
    await store.record(first, Batch(claims=[term_row(first, began)]))
    assert await everything(other) == await everything(store)
    assert (await store.take_stock("cron")).unfinished == []
    assert (await store.take_stock("cron", counted=True)).unfinished == []
    assert await store.runs("cron") == []
    assert await store.history("cron", TERMS) == []
    [told] = await other.terms("cron")
    assert (told.token, told.holder, told.began_at) == (first.token, first.holder, began)
    assert (told.ended_at, told.status, told.error) == (None, "running", None)
    second = await lead(other)
    lost = change(term_row(first, began), "lost", error="expired", required=True)
    later = began + MICROSECOND
    await other.record(second, Batch(changes=[lost], claims=[term_row(second, later)]))
    await other.record(second, Batch(changes=[change(term_row(second, later), "succeeded", error="resigned")]))
    told, newest = await store.terms("cron")
    assert (told.status, told.error) == ("lost", "expired")
    assert told.ended_at is not None
    assert (newest.token, newest.status, newest.error) == (second.token, "succeeded", "resigned")
    assert await store.terms("cron", limit=1) == [newest]
    assert await store.terms("other") == []
    await store.prune("cron", [TERMS], 1)
    assert await store.terms("cron") == [newest]


async def test_a_token_is_above_that_of_every_term(make_store: MakeStore, database: Database) -> None:
    """Lease and fence are deleted by hand: what is told of terms still keeps a token from being used twice."""
    store = await make_store()
    term = await lead(store)
    moment = await now_of(store)
    await store.record(term, Batch(claims=[term_row(term, moment)]))
    await store.record(term, Batch(changes=[change(term_row(term, moment), "succeeded", required=True)]))
    database.delete_lease("cron")
    database.delete_fence("cron")
    assert (await lead(store)).token == term.token + 1


async def test_rows_from_a_tick_on(make_store: MakeStore) -> None:
    """In the order of the ticks, the tick itself included, at most so many; of one job of one lease."""
    store = await make_store()
    term = await enrolled(store, "a", "b")
    now = await now_of(store)
    rows = [run(term, "a", now - n * SECOND, "skipped", error=str(n)) for n in range(5)]
    await store.record(term, Batch(claims=[*rows, run(term, "b", now, "skipped")]))
    found = await store.rows_from("cron", "a", now - 3 * SECOND, 9)
    assert [row.error for row in found] == ["3", "2", "1", "0"]
    assert await store.rows_from("cron", "a", now - 3 * SECOND, 2) == found[:2]
    assert await store.rows_from("cron", "a", now - 3 * SECOND + MICROSECOND, 1) == found[1:2]
    assert await store.rows_from("cron", "a", now + SECOND, 9) == []
    assert await store.rows_from("other", "a", now - 3 * SECOND, 9) == []


def test_a_job_that_is_paused_until_a_moment_is_settled_until_then() -> None:
    """The end of a pause is among the moments up to which nothing is due."""
    record = JobRecord(job="a", schedule="", timezone="", known_since=MOMENT, schedule_since=MOMENT)
    assert record.settled_until == MOMENT
    assert replace(record, paused_at=MOMENT, paused_until=MOMENT + SECOND).settled_until == MOMENT + SECOND
