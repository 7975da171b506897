"""What people ask of jobs: pauses with an end and of a whole lease, reruns, backfills, cancelling, forgetting."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from aiolease.errors import ConfigurationError, InvalidJob, RequestRefused
from aiolease.stores import Store
from aiolease.stores.batch import Batch
from aiolease.stores.contract import Refused
from aiolease.stores.records import JobRecord, RunRecord
from aiolease.stores.seen import TERMS, WHOLE_LEASE
from tests.stores.databases import MakeStore, claim, free
from tests.stores.ledgers import (
    MICROSECOND,
    SECOND,
    change,
    claiming,
    enrolled,
    enrolment,
    everything,
    in_order,
    job_of,
    now_of,
    only_run,
    run,
)

HOUR = timedelta(hours=1)


async def jobs_of(store: Store) -> dict[str, JobRecord]:
    return (await store.take_stock("cron")).jobs


async def pause_of(store: Store) -> JobRecord:
    reading = await store.take_stock("cron", attention=True)
    assert WHOLE_LEASE not in reading.jobs
    assert reading.pause is not None
    assert (await store.take_stock("cron")).pause == reading.pause
    seen = await store.overview("cron")
    assert seen.pause == reading.pause
    assert WHOLE_LEASE not in seen.jobs
    return reading.pause


# -- pauses


async def test_a_pause_has_an_end_and_a_note(make_store: MakeStore) -> None:
    """Both are kept; of a job that is paused already they become the new ones, and its beginning stays."""
    store, other = await make_store(), await make_store()
    await enrolled(store, "a")
    until = await now_of(store) + HOUR
    await other.pause("cron", "a", until=until, note="no 😀, it's 100 %")
    first = await job_of(store, "a")
    assert (first.paused_until, first.pause_note) == (until, "no 😀, it's 100 %")
    assert first.is_paused(until - MICROSECOND)
    assert not first.is_paused(until)
    await other.pause("cron", "a", note="x" * 255)
    again = await job_of(store, "a")
    assert again == replace(first, paused_until=None, pause_note="x" * 255)
    await other.resume("cron", "a")
    resumed = await job_of(store, "a")
    assert (resumed.paused_at, resumed.paused_until, resumed.pause_note) == (None, None, None)
    assert in_order(first.paused_at, resumed.resumed_at, await now_of(store))


async def end_pause(make: Callable[[str], Awaitable[None]], store: Store, job: str) -> JobRecord:
    """Waits until a pause of a moment has ended by itself; gives the job."""
    await make(job)
    paused = await job_of(store, job)
    assert paused.paused_until is not None
    while await now_of(store) <= paused.paused_until:
        pass
    return paused


async def short_pause(store: Store, job: str | None, length: float = 0.05) -> None:
    """Pauses for a moment, however slowly this machine gets there."""
    while True:
        try:
            await store.pause("cron", job, until=await now_of(store) + timedelta(seconds=length))
        except ConfigurationError:
            length *= 2
        else:
            return


async def test_a_pause_ends_by_itself(make_store: MakeStore) -> None:
    """Until then a tick is refused; from then on claimed. A resumption afterwards counts from its end."""
    store = await make_store()
    term = await enrolled(store, "a")
    await store.pause("cron", "a", until=await now_of(store) + HOUR)
    with pytest.raises(Refused):
        await store.record(term, claiming(run(term, "a", await now_of(store))))
    paused = await end_pause(lambda job: short_pause(store, job), store, "a")
    assert paused.settled_until == paused.paused_until
    await store.record(term, claiming(run(term, "a", await now_of(store))))
    await store.resume("cron", "a")
    job = await job_of(store, "a")
    assert (job.resumed_at, job.paused_at, job.paused_until) == (paused.paused_until, None, None)


async def test_the_end_of_a_pause_stays_known_when_another_begins(make_store: MakeStore) -> None:
    """What fell due during the first was not missed, however the second ends."""
    store = await make_store()
    await enrolled(store, "a")
    first = await end_pause(lambda job: short_pause(store, job), store, "a")
    await store.pause("cron", "a", note="again")
    second = await job_of(store, "a")
    assert (second.resumed_at, second.paused_until, second.pause_note) == (first.paused_until, None, "again")
    assert in_order(first.paused_until, second.paused_at)
    assert second.paused_at != first.paused_at


async def test_a_pause_that_makes_no_sense_is_refused(make_store: MakeStore) -> None:
    """An end without a zone, or in the past, and a note that is too long; nothing is changed."""
    store = await make_store()
    await enrolled(store, "a")
    before = await everything(store)
    now = await now_of(store)
    wrong: list[dict[str, Any]] = [
        {"until": now},
        {"until": now - HOUR},
        {"until": (now + HOUR).replace(tzinfo=None)},
        {"note": "x" * 256},
    ]
    for job in ("a", None):
        for given in wrong:
            with pytest.raises(ConfigurationError):
                await store.pause("cron", job, **given)
    assert await everything(store) == before
    assert (await store.take_stock("cron")).pause is None


async def test_a_whole_lease_is_paused_and_resumed(make_store: MakeStore) -> None:
    """All jobs get the moment, the end and the note of the pause; no other lease is touched."""
    store, other = await make_store(), await make_store()
    term = await enrolled(store, "a", "b")
    await enrolled(store, "a", name="other")
    assert (await store.take_stock("cron")).pause is None
    until = await now_of(store) + HOUR
    await other.pause("cron", until=until, note="deploy")
    whole = await pause_of(store)
    assert (whole.paused_until, whole.pause_note) == (until, "deploy")
    for job in (await jobs_of(store)).values():
        assert (job.paused_at, job.paused_until, job.pause_note) == (whole.paused_at, until, "deploy")
    with pytest.raises(Refused):
        await store.record(term, claiming(run(term, "a", await now_of(store))))
    await other.pause("cron", note="still")
    again = await pause_of(store)
    assert again == replace(whole, paused_until=None, pause_note="still")
    assert {job.pause_note for job in (await jobs_of(store)).values()} == {"still"}
    await other.resume("cron")
    ended = await pause_of(store)
    assert (ended.paused_at, ended.paused_until, ended.pause_note) == (None, None, None)
    for job in (await jobs_of(store)).values():
        assert (job.paused_at, job.paused_until, job.pause_note) == (None, None, None)
        assert in_order(whole.paused_at, job.resumed_at, await now_of(store))
    await store.record(term, claiming(run(term, "a", await now_of(store))))
    assert (await job_of(store, "a", "other")).resumed_at is None
    as_it_is = await everything(store)
    await other.resume("cron")
    assert await everything(store) == as_it_is


async def test_a_job_that_is_paused_by_itself_stays_so(make_store: MakeStore) -> None:
    """Before, or during the pause of the whole lease: it is resumed by itself only."""
    store = await make_store()
    await enrolled(store, "before", "during", "not")
    await store.pause("cron", "before", note="mine")
    before = await job_of(store, "before")
    await store.pause("cron")
    assert await job_of(store, "before") == before
    await store.pause("cron", "during", note="mine")
    whole = await pause_of(store)
    assert whole.paused_at != (await job_of(store, "during")).paused_at
    await store.resume("cron")
    jobs = await jobs_of(store)
    assert {name for name, job in jobs.items() if job.paused_at} == {"before", "during"}
    assert {jobs[name].pause_note for name in ("before", "during")} == {"mine"}


async def test_jobs_that_come_during_a_pause(make_store: MakeStore) -> None:
    """Their own rows are not paused; the resumption of the lease, or of the job by itself, is noted at them."""
    store = await make_store()
    term = await enrolled(store, "old")
    await store.pause("cron")
    await store.enroll(term, [enrolment("one"), enrolment("two"), enrolment("three")])
    whole = await pause_of(store)
    jobs = await jobs_of(store)
    assert {job.paused_at for name, job in jobs.items() if name != "old"} == {None}
    assert all(in_order(whole.paused_at, job.known_since) for name, job in jobs.items() if name != "old")
    await store.resume("cron", "one")
    one = await job_of(store, "one")
    assert in_order(one.known_since, one.resumed_at)
    await store.resume("cron", "one")
    assert await job_of(store, "one") == one
    await store.pause("cron", "two", note="mine")
    await store.resume("cron")
    after = await jobs_of(store)
    assert after["one"] == one
    assert (after["two"].resumed_at, after["two"].pause_note) == (None, "mine")
    assert in_order(one.resumed_at, after["three"].resumed_at, await now_of(store))
    await store.resume("cron", "three")
    assert await jobs_of(store) == after


async def test_a_second_pause_of_a_lease_catches_what_is_not_paused(make_store: MakeStore) -> None:
    """A job that was resumed by itself, or came meanwhile, gets the moment of the pause that stands."""
    store = await make_store()
    term = await enrolled(store, "a", "b")
    await store.pause("cron")
    whole = await pause_of(store)
    await store.resume("cron", "a")
    await store.enroll(term, [enrolment("new")])
    await store.pause("cron", note="all")
    assert (await pause_of(store)).paused_at == whole.paused_at
    found = {(job.paused_at, job.pause_note) for job in (await jobs_of(store)).values()}
    assert found == {(whole.paused_at, "all")}
    await store.resume("cron")
    assert {job.paused_at for job in (await jobs_of(store)).values()} == {None}


async def test_the_pause_of_a_lease_ends_by_itself(make_store: MakeStore) -> None:
    """The next pause has another moment, and each job knows when the first ended."""
    store = await make_store()
    term = await enrolled(store, "a")
    first = await end_pause(lambda _: short_pause(store, None), store, "a")
    whole = await pause_of(store)
    assert whole.paused_until == first.paused_until
    await store.record(term, claiming(run(term, "a", await now_of(store))))
    await store.pause("cron")
    second, job = await pause_of(store), await job_of(store, "a")
    assert second.paused_at not in {None, whole.paused_at}
    assert (job.paused_at, job.resumed_at, job.paused_until) == (second.paused_at, first.paused_until, None)
    await store.resume("cron")
    assert (await job_of(store, "a")).paused_at is None


async def test_a_lease_that_never_led_is_paused(make_store: MakeStore) -> None:
    """Before the first deploy, too: who comes then knows of it."""
    store = await make_store()
    await store.resume("cron")
    assert (await store.take_stock("cron")).pause is None
    await store.pause("cron", note="not yet")
    await enrolled(store, "a")
    assert (await pause_of(store)).pause_note == "not yet"
    assert set(await jobs_of(store)) == {"a"}


# -- reruns


async def ended(store: Store, status: Any = "failed", **more: Any) -> RunRecord:
    """A run of job a that has ended."""
    term = await enrolled(store, "a", "b")
    row = run(term, "a", await now_of(store))
    await store.record(term, claiming(row))
    await store.record(term, Batch(changes=[change(row, status, required=True, **more)]))
    return await only_run(store, "a")


@pytest.mark.parametrize("status", ["failed", "lost", "succeeded"])
async def test_a_run_is_queued_again_by_hand(make_store: MakeStore, status: Any) -> None:
    """A further attempt under its tick, with all retries and chances again; the leader is told."""
    store, other = await make_store(), await make_store()
    row = await ended(store, status, error=None if status == "succeeded" else "why")
    assert row.finished_at is not None
    before = await now_of(store)
    await other.rerun("cron", "a", row.tick, force=status == "succeeded")
    queued, job = await only_run(store, "a"), await job_of(store, "a")
    how = {"failed": "why", "lost": "lost: why", "succeeded": "succeeded"}[status]
    line = f"attempt 1 (term {row.token}, {row.finished_at:%Y-%m-%d %H:%M:%S} UTC): {how}"
    assert queued == replace(
        row,
        status="queued",
        attempt=2,
        uncounted=1,
        not_before=queued.not_before,
        request="rerun",
        earlier=line,
        started_at=None,
        finished_at=None,
    )
    assert queued.had_succeeded == (status == "succeeded")
    assert in_order(before, queued.not_before, await now_of(store))
    assert in_order(before, job.asked_at, await now_of(store))
    assert set((await store.take_stock("cron", attention=True)).jobs) == {"a"}


async def test_a_skipped_run_that_is_run_by_hand_begins_with_its_first_attempt(make_store: MakeStore) -> None:
    """It never began: nothing is told of an attempt, and why it was skipped stays until it begins."""
    store = await make_store()
    term = await enrolled(store, "a")
    tick = await now_of(store)
    await store.record(term, Batch(claims=[run(term, "a", tick, "skipped", error="late", count=1)]))
    await store.rerun("cron", "a", tick)
    row = await only_run(store, "a")
    assert (row.status, row.attempt, row.uncounted, row.earlier, row.error) == ("queued", 1, 0, None, "late")
    assert (row.tick_from, row.count, row.finished_at, row.request) == (None, None, None, "rerun")


async def test_a_tick_within_a_range_is_a_backfill(make_store: MakeStore) -> None:
    """A person names one tick of many that were skipped together, the last one as well: the leader reckons it."""
    store = await make_store()
    term = await enrolled(store, "a", "b")
    last = await now_of(store)
    for job, tick in (("a", last), ("b", last - 4 * SECOND)):
        skipped = run(term, job, last, "skipped", tick_from=last - 9 * SECOND, count=10)
        await store.record(term, Batch(claims=[skipped]))
        before = await only_run(store, job)
        await store.rerun("cron", job, tick)
        asked = await job_of(store, job)
        assert (asked.backfill_since, asked.backfill_until) == (tick, tick)
        assert await only_run(store, job) == before
    for outside in (last - 10 * SECOND, last + SECOND):
        with pytest.raises(RequestRefused, match="no run of this tick"):
            await store.rerun("cron", "a", outside)


async def test_what_cannot_be_run_again(make_store: MakeStore) -> None:
    """A run that waits, goes on, or has succeeded, and one that there is not: each with its reason, and no change."""
    store = await make_store()
    term = await enrolled(store, "a")
    now = await now_of(store)
    rows = {
        "waits": run(term, "a", now, "queued"),
        "goes on": run(term, "a", now - SECOND),
        "succeeded": run(term, "a", now - 2 * SECOND),
    }
    await store.record(term, Batch(claims=list(rows.values())))
    await store.record(term, Batch(changes=[change(rows["succeeded"], "succeeded", required=True)]))
    before = await everything(store)
    for reason, row in rows.items():
        for force in {False, reason != "succeeded"}:
            with pytest.raises(RequestRefused, match=reason) as refused:
                await store.rerun("cron", "a", row.tick, force=force)
            assert (refused.value.lease, refused.value.job) == ("cron", "a")
    with pytest.raises(RequestRefused, match="no run of this tick"):
        await store.rerun("cron", "a", now - HOUR)
    with pytest.raises(ConfigurationError):
        await store.rerun("cron", "a", now.replace(tzinfo=None))
    assert await everything(store) == before


# -- backfills, and cancelling


async def test_a_backfill_is_one_at_a_time(make_store: MakeStore) -> None:
    """Another is refused until the first was queued; the same again, whose answer was lost, is not."""
    store, other = await make_store(), await make_store()
    await enrolled(store, "a", "b")
    now = await now_of(store)
    await store.backfill("cron", "a", now - HOUR, now)
    await other.backfill("cron", "a", now - HOUR, now)
    before = await everything(store)
    for since, until in ((now - HOUR, now - SECOND), (now - SECOND, now), (now, now + HOUR)):
        with pytest.raises(RequestRefused, match="another backfill"):
            await other.backfill("cron", "a", since, until)
    assert await everything(store) == before
    await other.backfill("cron", "b", now, now)
    await other.cancel("cron", "a")  # it ends at once: the next one is another, and is not cancelled
    await store.backfill("cron", "a", now - SECOND, now)
    assert (await job_of(store, "a")).backfill_since == now - SECOND
    for since, until in ((now, now - SECOND), (now.replace(tzinfo=None), now), (now, now.replace(tzinfo=None))):
        with pytest.raises(ConfigurationError):
            await store.backfill("cron", "a", since, until)


ASKING: list[Callable[[Store, str, datetime], Awaitable[None]]] = [
    lambda store, job, tick: store.rerun("cron", job, tick),
    lambda store, job, tick: store.backfill("cron", job, tick, tick),
    lambda store, job, tick: store.cancel("cron", job),
    lambda store, job, tick: store.forget("cron", job),
]


@pytest.mark.parametrize("job", ["unknown", "A", "", "ä", WHOLE_LEASE, "a term", "a ", "x" * 300])
async def test_what_nobody_had_cannot_be_asked_for(make_store: MakeStore, job: str) -> None:
    """A job that no leader ever had is `InvalidJob`, the rows that are no jobs included; nothing is changed."""
    store = await make_store()
    await enrolled(store, "a")
    await store.pause("cron")
    before = await everything(store)
    tick = await now_of(store)
    for ask in ASKING:
        with pytest.raises(InvalidJob, match="no leader of"):
            await ask(store, job, tick)
    for call in (store.trigger, store.pause, store.resume, store.settle):
        with pytest.raises(InvalidJob, match="no leader of"):
            await call("cron", job)
    assert await everything(store) == before


async def test_settling_ends_what_was_asked(make_store: MakeStore) -> None:
    """What waits is lost and waits no longer; a backfill and a cancellation are over, a pause goes on."""
    store = await make_store()
    term = await enrolled(store, "a")
    now = await now_of(store)
    await store.record(term, Batch(claims=[run(term, "a", now, "queued", not_before=now, request="rerun")]))
    await store.backfill("cron", "a", now, now)
    await store.cancel("cron", "a")
    await store.pause("cron", "a", until=now + HOUR, note="why")
    await store.settle("cron", "a")
    job, row = await job_of(store, "a"), await only_run(store, "a")
    assert (job.backfill_since, job.backfill_until, job.cancel_at, job.asked_at) == (None, None, None, None)
    assert (job.paused_until, job.pause_note) == (now + HOUR, "why")
    assert (row.status, row.not_before) == ("lost", None)


# -- forgetting


async def test_a_job_that_the_leader_has_is_not_forgotten(make_store: MakeStore) -> None:
    """Nor one of which it is not known, since an older version leads; when nobody leads it can be."""
    store, other = await make_store(), await make_store()
    lease = await claim(store, "cron")
    term = await enrolled(store, "a", "b", "c")
    now = await now_of(store)
    rows = [run(term, job, now - n * SECOND, "skipped") for job in "abc" for n in range(3)]
    await store.record(term, Batch(claims=rows))
    await store.have(term, ["a", "b"])
    before = await everything(store)
    for job in "abc":
        with pytest.raises(RequestRefused, match="the leader has this job"):
            await other.forget("cron", job)
    assert await everything(store) == before
    newer = await enrolled(other, "b")
    for job in "ab":
        with pytest.raises(RequestRefused, match="has not said yet which jobs it has"):
            await other.forget("cron", job)
    assert len(await store.history("cron", "a")) == 3
    await other.have(newer, ["b"])
    with pytest.raises(RequestRefused, match="has not said yet which jobs it has"):
        await other.forget("cron", "a")  # there may be more of them
    led = await store.status("cron")
    assert led is not None
    await other.record(newer, Batch(claims=[run(newer, TERMS, led.elected_at)]))
    await store.forget("cron", "a")
    assert await store.history("cron", "a") == []
    assert set(await jobs_of(store)) == {"b", "c"}
    with pytest.raises(RequestRefused):
        await store.forget("cron", "b")
    await free(store, replace(lease, holder=newer.holder, token=newer.token))
    await store.forget("cron", "b")
    await store.forget("cron", "c")
    assert await jobs_of(store) == {}
    with pytest.raises(InvalidJob):
        await store.forget("cron", "c")


async def test_a_job_with_many_runs_is_forgotten(make_store: MakeStore) -> None:
    """In steps; another job, and another lease, keep theirs."""
    store = await make_store()
    term, other = await enrolled(store, "a", "b"), await enrolled(store, "a", name="other")
    now = await now_of(store)
    await store.record(term, Batch(claims=[run(term, "a", now - n * SECOND, "skipped") for n in range(2100)]))
    await store.record(term, Batch(claims=[run(term, "b", now, "skipped")]))
    await store.record(other, Batch(claims=[run(other, "a", now, "skipped")]))
    newer = await enrolled(store, "b")
    await store.have(newer, ["b"])
    with pytest.raises(RequestRefused):
        await store.forget("cron", "a")  # its row knows no term
    await free(store, replace(await claim(store, "cron", force=True)))
    await store.forget("cron", "a")
    assert await store.history("cron", "a") == []
    assert len(await store.history("cron", "b")) == len(await store.history("other", "a")) == 1
