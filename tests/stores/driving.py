"""Calls every public method of a store, so that all its statements are sent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

from aiolease._election.claim import new_holder
from aiolease.stores import Store
from aiolease.stores.batch import Again, Batch, Change, JobDefinition, Trimmed
from aiolease.stores.contract import LeaseStore
from aiolease.stores.ledger import JobStore, LedgerStore
from aiolease.stores.records import Lease, RunKey, RunRecord, RunStatus, TermKey
from aiolease.stores.seen import TERMS
from tests.stores.plans import AT_ONCE, BUSY, EARLIER_TOKEN, FAILING, FEW, FIRST, JOBS, KEPT, LEASES, Recorder


class Called:
    """A store that remembers which of its methods were asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(self._store, name)


def methods() -> set[str]:
    """All that a store can do."""
    found = {name for protocol in (LeaseStore, LedgerStore, JobStore, Store) for name in vars(protocol)}
    return {name for name in found if not name.startswith("_")} - {"description", "aclose"}


async def lead(store: Store, name: str) -> TermKey:
    lease = await store.claim(name, new_holder(), 30.0, seen=await store.read(name), force=True)
    return term_of(lease)


def term_of(lease: Lease | None) -> TermKey:
    assert lease is not None
    assert lease.holder is not None
    return TermKey(lease.name, lease.holder, lease.token)


def change(job: str, tick: datetime, token: int, was: RunStatus, status: RunStatus, **more: Any) -> Change:
    return Change(**({"key": RunKey(job, tick, 1, token), "was": was, "status": status, "attempt": 1} | more))


async def drive(store: Store, recorder: Recorder, connect: Callable[[], Awaitable[Any]]) -> None:
    """Has a store send everything that it can, while the tables are large."""
    measure = recorder.measure
    await drive_leases(store, recorder)
    term = await measure("claim", lead(store, "big"))
    await drive_ledger(store, recorder, term)
    await drive_transactions(store, recorder, term, connect)


async def drive_leases(store: Store, recorder: Recorder) -> None:
    measure = recorder.measure
    # Rows that were deleted by hand: both, the lease's, the fence's; and of a lease that is new.
    for tables in (("lease", "fence"), ("lease",), ("fence",)):
        recorder.delete("big", *tables)
        made = await measure(f"claim without rows in {tables}", lead(store, "big"))
        assert made.token > EARLIER_TOKEN
    term = await measure("claim of a new lease", lead(store, "new"))
    await measure("renew", store.renew(term.name, term.holder, term.token, 20, 30.0))
    await measure("status", store.status("big"))
    await measure("resign", store.resign(term.name))
    seen = await measure("read", store.read(term.name))
    await measure("watch", store.watch(term.name, 0.2, lease=seen, poll=0.1, hint=False))
    await measure("release", store.release(term.name, term.holder, term.token))
    # Many at one moment, in one packet; and those that only look.
    names = [f"idle-{number:03}" for number in range(40)]
    terms = await measure("claims", asyncio.gather(*(lead(store, name) for name in names)))
    renewals = (store.renew(each.name, each.holder, each.token, 20, 30.0) for each in terms)
    await measure("renewals", asyncio.gather(*renewals))
    looks = (store.watch(name, 0.2, lease=None, poll=0.1, hint=True) for name in LEASES[-100:])
    await measure("watches", asyncio.gather(*looks))
    releases = (store.release(each.name, each.holder, each.token) for each in terms)
    await measure("releases", asyncio.gather(*releases))
    store.abandon("idle-000")
    seen = await store.read("idle-299")
    await measure("watch in the lock", store.watch("idle-299", 1.0, lease=seen, poll=0.5, hint=True))


async def drive_ledger(store: Store, recorder: Recorder, term: TermKey) -> None:
    measure = recorder.measure
    for how in ({}, {"counted": True}, {"attention": True}, {"runs": False}):
        await measure(f"take_stock({how})", store.take_stock("big", **how))
    await measure("queued", store.queued("big", JOBS, 3))
    ticks = [FIRST + timedelta(minutes=number) for number in (0, 100, 650, 10**6)]
    await measure("look_up", store.look_up("big", [(job, tick) for job in JOBS for tick in ticks]))
    await measure("history", store.history("big", BUSY, limit=100))
    await measure("history of one", store.history("big", FAILING, limit=1))

    await drive_again(store, recorder, term)

    more = [f"more{number:04}" for number in range(1000)]
    enrolments = [JobDefinition(job=job, schedule="every 60s", timezone="") for job in [*JOBS, *more]]
    enrolments[3] = JobDefinition(job=JOBS[3], schedule="cron 0 9 * * *", timezone="Europe/Vienna")
    await measure("enroll", store.enroll(term, enrolments), limit=8 * AT_ONCE)
    await measure("enroll none", store.enroll(term, []))

    # What an earlier term left: lost, to be run again, begun, too late.
    left = FIRST + timedelta(days=10)
    was_queued, too_late = left + timedelta(minutes=1), left + timedelta(minutes=2)
    changes = [change(job, left, EARLIER_TOKEN, "running", "lost", error="lost") for job in JOBS[:20]]
    changes += [change(job, left, EARLIER_TOKEN, "running", "queued", attempt=2, adopt=True) for job in JOBS[20:40]]
    changes += [
        change(job, was_queued, EARLIER_TOKEN, "queued", "running", adopt=True, required=True) for job in JOBS[:30]
    ]
    changes += [
        change(job, too_late, EARLIER_TOKEN, "queued", "skipped", error="late", required=True) for job in JOBS[:30]
    ]
    await measure("record what was left", store.record(term, Batch(changes=changes)))

    # Claims of many jobs at one moment, reckoned from nothing and from what was seen, and their ends.
    now = (await store.take_stock("big", attention=True)).now.replace(microsecond=0)
    for number, jobs in enumerate([JOBS[:10], [*JOBS, *more][10:1010]]):
        tick = now + timedelta(seconds=number)
        claims = [
            RunRecord(job=job, tick=tick, token=term.token, holder=term.holder, status="running") for job in jobs[2:]
        ]
        skipped: dict[str, Any] = {"status": "skipped", "error": "late", "tick_from": now, "count": 2}
        claims += [RunRecord(job=job, tick=tick, token=term.token, holder=term.holder, **skipped) for job in jobs[:2]]
        batch = Batch(claims=claims, high_ticks=dict.fromkeys(jobs, tick))
        if number:
            batch.seen = dict.fromkeys(jobs)
        await measure(f"record claims of {len(jobs)}", store.record(term, batch), limit=4 * AT_ONCE)
        ends = [change(job, tick, term.token, "running", "succeeded", required=True) for job in jobs[2:-1]]
        ends += [change(jobs[-1], tick, term.token, "running", "failed", error="it failed", required=True)]
        await measure(f"record ends of {len(jobs)}", store.record(term, Batch(changes=ends)), limit=4 * AT_ONCE)

    longer = [
        RunRecord(job=job, tick=now + timedelta(seconds=2), token=term.token, holder=term.holder, **skipped)
        for job in JOBS[:2]
    ]
    batch = Batch(claims=longer, extends={(run.job, run.tick): now for run in longer})
    await measure("record a row that grows", store.record(term, batch))

    requested = await measure("trigger", store.trigger("big", JOBS[5]))
    run = RunRecord(job=JOBS[5], tick=requested, token=term.token, holder=term.holder, status="queued")
    batch = Batch(claims=[run], requests={JOBS[5]: requested})
    await measure("record what was triggered", store.record(term, batch))
    await measure("pause", store.pause("big", JOBS[5]))
    await measure("resume", store.resume("big", JOBS[5]))
    await measure("settle", store.settle("big", BUSY))

    await drive_people(store, recorder)
    for job in (BUSY, FAILING):
        assert await measure(f"prune {job}", store.prune("big", [job], KEPT), limit=4 * AT_ONCE) == [job]
    assert await measure("prune nothing", store.prune("big", JOBS[10:11], FEW), limit=4 * FEW) == []
    await measure("prune those that are not full", store.prune("big", more[:50], KEPT))


async def drive_again(store: Store, recorder: Recorder, term: TermKey) -> None:
    """What a leader writes and reads of runs that are tried again, or were asked for."""
    measure = recorder.measure
    now = FIRST + timedelta(days=20)
    tick = now + timedelta(seconds=3)
    asked: dict[str, Any] = {"status": "queued", "not_before": tick, "request": "backfill"}
    claims = [RunRecord(job=job, tick=tick, token=term.token, holder=term.holder, **asked) for job in JOBS]
    await measure("record what is backfilled", store.record(term, Batch(claims=claims)))
    again = Again(not_before=tick, failed=True, request="rerun", line="why")
    for adopt in (True, False):
        attempt: dict[str, Any] = {"attempt": 2, "adopt": adopt, "again": again}
        changes = [change(job, tick, term.token, "queued", "queued", **attempt) for job in JOBS[adopt::2]]
        await measure("record what is tried again", store.record(term, Batch(changes=changes)))
    await measure("later", store.later("big", 100))
    await measure("count of what comes later", store.take_stock("big", counted=True))
    for job in (BUSY, FAILING, JOBS[7]):
        await measure("rows_from", store.rows_from("big", job, FIRST + timedelta(minutes=20), 100))
    ranged: dict[str, Any] = {"status": "skipped", "tick_from": now, "count": 9}
    place = (JOBS[4], now + timedelta(seconds=9))
    claims = [RunRecord(job=place[0], tick=place[1], token=term.token, holder=term.holder, **ranged)]
    await store.record(term, Batch(claims=claims))
    trims = {place: Trimmed(tick_from=None, count=1)}
    await measure("record what is left of a range", store.record(term, Batch(trims=trims)))
    await measure("have", store.have(term, JOBS))
    await measure("a term begins", store.record(term, Batch(claims=[term_began(term, now)])))
    # Each job has failed last: its failures are counted, from an index, up to its newest success.
    await measure("overview", store.overview("big"), limit=20 * AT_ONCE)
    await measure("overview of a job", store.overview("big", [FAILING]))


def term_began(term: TermKey, at: datetime) -> RunRecord:
    return RunRecord(job=TERMS, tick=at, token=term.token, holder=term.holder, status="running")


async def drive_people(store: Store, recorder: Recorder) -> None:
    measure = recorder.measure
    # There are a thousand jobs and more by now: a look at all of them takes a few rows of each.
    await measure("runs", store.runs("big", limit=100), limit=4 * AT_ONCE)
    await measure("runs that failed", store.runs("big", failed=True, limit=100), limit=50 * FEW)
    await measure("runs since", store.runs("big", since=FIRST + timedelta(minutes=700), limit=100), limit=4 * AT_ONCE)
    await measure("terms", store.terms("big"))
    failed = FIRST + timedelta(minutes=16)
    await measure("rerun", store.rerun("big", JOBS[8], failed))
    await measure("backfill", store.backfill("big", JOBS[8], FIRST, failed))
    await measure("cancel", store.cancel("big", JOBS[8]))
    await measure("pause all", store.pause("big", note="why"), limit=4 * AT_ONCE)
    await measure("resume all", store.resume("big"), limit=4 * AT_ONCE)
    await measure("forget", store.forget("other-a", JOBS[0]))


async def drive_transactions(
    store: Store, recorder: Recorder, term: TermKey, connect: Callable[[], Awaitable[Any]]
) -> None:
    measure = recorder.measure
    now = (await store.take_stock("big", attention=True)).now.replace(microsecond=0)
    finals = [RunKey(job, now - timedelta(seconds=30), 1, term.token) for job in JOBS[6:8]]
    claims = [
        RunRecord(job=key.job, tick=key.tick, token=term.token, holder=term.holder, status="running") for key in finals
    ]
    await store.record(term, Batch(claims=claims))
    await measure("commit", (await store.begin()).commit(term))
    await measure("commit of a run", (await store.begin()).commit(term, finals[0]))
    connection = await connect()
    try:
        await connection.begin() if hasattr(connection, "begin") else await connection.execute("BEGIN")
        await measure("fence of a run", store.fence(connection, term, finals[1], within=5.0))
        await connection.commit()
    finally:
        await connection.ensure_closed() if hasattr(connection, "ensure_closed") else await connection.close()
