"""The ledger's runs on every store: claims, changes, and what refuses a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from datetime import timezone as zone
from typing import Any

import pytest

from aiolease.stores import Store
from aiolease.stores.batch import Batch
from aiolease.stores.contract import FenceBroken, Refused
from aiolease.stores.records import MAX_ERROR, RunKey, TermKey
from tests.campaigns import LIMIT
from tests.stores.databases import Database, MakeStore
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
    lead,
    now_of,
    only_run,
    run,
)

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
