"""A body is cancelled once and has time to unwind, and nobody leads meanwhile."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import pytest
import uvloop

from aiolease import CommitUnknown, JobRegistry, LeadershipLost, Lease, leadership
from aiolease.events import BodyStuck, Elected, Event, Lost, Released, Renewed, RenewFailed, Resigned
from aiolease.testing import MemoryStore, virtual_time
from tests.election.leaving import LEASE, UNWIND, Boom, Inside
from tests.election.terms import LONG, losing

pytestmark = pytest.mark.usefixtures("quiet")


# -- cancelled once, and what happens while a body unwinds


@pytest.mark.parametrize("how", ["resigned", "expired", "taken", "ineligible"])
@virtual_time
async def test_clean_up_may_await(how: str) -> None:
    """The body is cancelled once: its clean-up may await, several times, for nearly half the time to unwind."""
    scene = Inside()
    done: list[str] = []
    try:
        async with scene.lead() as lead:
            scene.end(how, lead)
            try:
                await asyncio.sleep(LONG)
            finally:
                for _ in range(10):
                    await asyncio.sleep(0)
                await scene.store.read("cron")
                async with asyncio.timeout(1), asyncio.TaskGroup() as tasks:
                    tasks.create_task(asyncio.sleep(0.5))
                await asyncio.sleep(UNWIND / 2 - 0.6)
                done.append("all")
    except LeadershipLost:
        pass
    assert done == ["all"]
    assert not scene.seen(BodyStuck)


@pytest.mark.parametrize("how", ["resigned", "expired", "ineligible"])
@virtual_time
async def test_a_body_that_does_not_end(how: str) -> None:
    """It is cancelled again after half the time to unwind, then reported; the lease is kept for a lease's time more."""
    scene, loop = Inside(), asyncio.get_running_loop()
    cancelled: list[float] = []
    stuck: list[tuple[float, BodyStuck]] = []
    renewed: list[float] = []
    released: list[float] = []
    rows: dict[float, Lease] = {}
    ended = 0.0

    def observe(event: Event) -> None:
        nonlocal ended
        scene.observe(event)
        now = loop.time()
        if isinstance(event, Lost | Resigned):
            ended = now
            scene.store._faults.clear()  # the database answers again, too late
        if isinstance(event, BodyStuck):
            stuck.append((now - ended, event))
        if isinstance(event, Renewed) and ended:
            renewed.append(now - ended)
        if isinstance(event, Released):
            released.append(now - ended)

    try:
        async with leadership(scene.store, "cron", eligible=scene.eligible, on_event=observe) as lead:
            scene.end(how, lead)
            while not ended or loop.time() < ended + 3 * LEASE:
                try:
                    await asyncio.sleep(0.5)
                    if ended:
                        rows[loop.time() - ended] = scene.row
                except asyncio.CancelledError:
                    cancelled.append(loop.time() - ended)
    except LeadershipLost as lost:
        assert how != "resigned"
        assert lost.__cause__ is None  # noqa: PT017 - the other way out has no error
    assert cancelled == pytest.approx([0, UNWIND / 2], abs=0.01)
    assert [at for at, _ in stuck] == pytest.approx([UNWIND, LEASE], abs=0.01)
    assert [event.renewing for _, event in stuck] == [True, False]
    assert [event.level for _, event in stuck] == ["CRITICAL"] * 2
    assert [event.since_lost for _, event in stuck] == pytest.approx([UNWIND, LEASE], abs=0.01)
    phrase = (
        f"'cron' (term {lead.token}): the body has not ended, 5.0 s after the lease was lost (holder {lead.holder})"
    )
    assert stuck[0][1].phrase == phrase
    # Renewed at every heartbeat, and no longer than one more lease.
    assert len(renewed) >= 2
    assert renewed[-1] <= LEASE
    assert LEASE - renewed[-1] <= LEASE / 3 + 0.1
    before = [row for at, row in sorted(rows.items()) if at <= renewed[-1]]
    beats = [row.beat for row in before]
    assert beats == sorted(beats)
    assert beats[-1] > beats[0]
    assert before[-1].expires_at > before[0].expires_at
    after = [row for at, row in rows.items() if at > LEASE + 0.1]
    assert {row.beat for row in after} == {after[0].beat}
    # And never released before its end.
    assert {row.holder for row in rows.values()} == {lead.holder}
    assert released == pytest.approx([3 * LEASE], abs=1)


@pytest.mark.parametrize("how", ["resigned", "expired", "ineligible", "returns", "raises"])
@virtual_time
async def test_nobody_leads_while_a_body_unwinds(how: str) -> None:
    """The lease is released when the body has ended, not before: a waiting process starts then, and at once."""
    scene, loop = Inside(), asyncio.get_running_loop()
    first_left, second_in = 0.0, 0.0

    async def second() -> None:
        nonlocal second_in
        async with leadership(MemoryStore(scene.server), "cron"):
            second_in = loop.time()

    try:
        async with scene.lead() as lead:
            other = asyncio.create_task(second())
            await asyncio.sleep(1)
            scene.end(how, lead)
            try:
                if how in ("returns", "raises"):
                    await asyncio.sleep(1)
                else:
                    await asyncio.sleep(LONG)
            finally:
                until = loop.time() + (UNWIND - 1 if how == "expired" else LEASE)
                while loop.time() < until:
                    with suppress(asyncio.CancelledError):
                        await asyncio.sleep(1)
                assert second_in == 0.0
                first_left = loop.time()
            if how == "raises":
                raise Boom
    except (LeadershipLost, Boom):
        pass
    async with asyncio.timeout(2 * LEASE):
        await other
    # A renewal that is being lost is waited for: half a heartbeat at most.
    assert first_left <= second_in <= first_left + (LEASE / 6 + 1.1 if how == "expired" else 0.05)
    kinds = [type(event) for event in scene.events if isinstance(event, Elected | Lost | Resigned | Released)]
    assert kinds[0] is Elected
    assert kinds[-1] is Released


@virtual_time
async def test_ending_the_term_never_waits_for_the_database() -> None:
    """The body is cancelled at the deadline while a renewal hangs, and what hangs does not hold up the block's end."""
    scene, loop = Inside(), asyncio.get_running_loop()
    scene.store.lose_request("renew", 100)
    scene.store.lose_request("release", 100)
    started = loop.time()
    with losing():
        async with scene.lead():
            try:
                await asyncio.sleep(LONG)
            finally:
                cancelled = loop.time() - started
    assert cancelled == pytest.approx(LEASE - UNWIND, abs=0.01)
    assert loop.time() - started <= LEASE - UNWIND + UNWIND / 5 + 0.01  # a last try to release
    assert scene.row.holder is not None  # left to expire


def test_release_follows_the_end_of_the_body_in_real_time() -> None:
    """On a real loop, too, a stuck body keeps its lease, and the block is left as soon as the body ends."""

    async def main() -> None:
        store, beats = MemoryStore(), set()
        started = time.monotonic()
        with losing():
            async with leadership(store, "cron", lease_duration=0.6) as lead:
                store.fail("renew", RuntimeError("a bug"), 1)
                while (store.server.leases["cron"].holder == lead.holder) and time.monotonic() - started < 0.8:
                    try:
                        await asyncio.sleep(0.02)
                        beats.add(store.server.leases["cron"].beat)
                    except asyncio.CancelledError:
                        pass
                assert store.server.leases["cron"].holder == lead.holder
        assert time.monotonic() - started < 2
        assert store.server.leases["cron"].holder is None
        assert asyncio.all_tasks() == {asyncio.current_task()}

    for loop_factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())


# -- a count of cancellations that somebody left behind


async def _fail() -> None:
    await asyncio.sleep(0.01)
    raise ValueError


async def _leave_a_cancellation_behind() -> None:
    """A task group whose child fails while it waits: before Python 3.13 its parent counts as cancelled for ever."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_fail())
    except* ValueError:
        pass


@virtual_time
async def test_a_resignation_after_a_failed_child_is_no_cancellation() -> None:
    """What a task group has left behind is not taken for a cancellation from outside: `resign` ends well."""
    async with leadership(MemoryStore()) as lead:
        await _leave_a_cancellation_behind()
        lead.resign()
        await asyncio.sleep(60)


@virtual_time
async def test_a_loss_after_a_failed_child_is_a_loss() -> None:
    """What a task group left behind does not hide a loss either: `run_as_leader` would leave the election for good."""
    store = MemoryStore()
    with losing():
        async with leadership(store):
            await _leave_a_cancellation_behind()
            store.down = True
            await asyncio.sleep(60)


@virtual_time
async def test_a_cancellation_that_is_under_way_goes_before_a_loss() -> None:
    """A cancellation from outside still counts, also if the term is lost while the body unwinds from it."""
    store = MemoryStore()

    async def lead() -> None:
        async with leadership(store):
            await _leave_a_cancellation_behind()
            try:
                await asyncio.sleep(3600)
            finally:
                store.down = True
                await asyncio.sleep(60)

    task = asyncio.create_task(lead())
    await asyncio.sleep(5)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


@pytest.mark.parametrize("clean_up", [0.0, LONG])
@pytest.mark.parametrize("late", [0.5, 40.0])
@virtual_time
async def test_a_cancellation_goes_before_a_commit_that_is_refused(late: float, clean_up: float) -> None:
    """A task that is cancelled while its commit is under way ends as cancelled, though the fence refuses the commit."""
    store, loop = MemoryStore(), asyncio.get_running_loop()

    async def commit() -> None:
        async with leadership(store) as lead:
            try:
                async with lead.transaction():
                    store.delay("commit", late)
                    store.server.take("default")
            finally:
                await asyncio.sleep(clean_up)  # a long one is cut short by the term

    task = asyncio.create_task(commit())
    while not any(method == "commit" for method, _ in store.sent):
        await asyncio.sleep(0.1)
    loop.call_soon(task.cancel)
    await asyncio.wait([task])
    assert task.cancelled(), f"the cancellation was swallowed by {task.exception()!r}"


@pytest.mark.parametrize("inner", [False, True])
@virtual_time
async def test_a_thawed_process_hears_the_cancellation_from_outside(inner: bool) -> None:
    """A process that was frozen finds a cancellation, an inner time-out and its end at once: it ends as cancelled."""
    loop = asyncio.get_running_loop()

    async def lead() -> None:
        async with leadership(MemoryStore()) as lead, asyncio.timeout(20 if inner else None):
            answer = loop.create_future()
            loop.call_later(18, answer.set_result, None)
            loop.call_later(21, lead.resign)
            await answer
            await asyncio.sleep(LONG)

    task = asyncio.create_task(lead())
    loop.call_later(19, task.cancel)
    await asyncio.sleep(15)
    loop.advance(10)  # type: ignore[attr-defined]
    await asyncio.wait([task])
    assert task.cancelled(), "the cancellation was swallowed"


@virtual_time
async def test_a_gathering_that_was_cancelled_from_outside_is_not_a_loss() -> None:
    """A body waits in `asyncio.gather` for children that end in order, and the lease is lost meanwhile: cancelled."""
    store = MemoryStore()

    async def child() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(LONG)
        await asyncio.sleep(11)

    async def lead() -> None:
        async with leadership(store):
            await asyncio.gather(child(), child())

    task = asyncio.create_task(lead())
    await asyncio.sleep(5)
    task.cancel()
    await asyncio.sleep(1)
    store.server.take("default")
    await asyncio.wait([task])
    assert task.cancelled(), f"the cancellation was swallowed by {task.exception()!r}"


# -- a long lease


@virtual_time
async def test_leaving_takes_no_longer_with_a_longer_lease() -> None:
    """With a lease of an hour and a network that swallows everything, the block is left within 45 s.

    Whatever was under way: a renewal, the release, and what a job's run has still to write.
    """
    store, jobs, loop, ran = MemoryStore(), JobRegistry(), asyncio.get_running_loop(), asyncio.Event()

    @jobs.every(60)
    async def tidy() -> None:
        ran.set()
        await asyncio.sleep(LONG)

    heard: list[Event] = []
    async with leadership(store, lease_duration=LONG, on_event=heard.append) as lead:
        running = asyncio.create_task(jobs.run(lead, drain_timeout=0.0))
        await ran.wait()
        for method in ("renew", "release", "record", "read"):
            store.lose_request(method, 1000)
        while not any(isinstance(event, RenewFailed) for event in heard):
            await asyncio.sleep(1.0)
        began = loop.time()
        running.cancel()
        await asyncio.wait([running])
    assert loop.time() - began < 45.0
    left = store.server.read("default")
    assert left is not None
    assert left.holder is not None  # it expires by itself


@virtual_time
async def test_a_commit_without_an_answer_does_not_take_as_long_as_the_lease() -> None:
    """With a lease of an hour, a COMMIT whose answer is lost is `CommitUnknown` within a minute or so."""
    store, loop = MemoryStore(), asyncio.get_running_loop()
    async with leadership(store, lease_duration=LONG) as lead:
        store.lose_reply("commit")
        began = loop.time()
        with pytest.raises(CommitUnknown):
            async with lead.transaction():
                pass
        assert loop.time() - began < 90.0


@virtual_time
async def test_a_candidate_asks_again_soon_whatever_the_lease() -> None:
    """With a lease of an hour, a candidate whose first answer is lost leads within a quarter of a minute."""
    store, loop = MemoryStore(), asyncio.get_running_loop()
    store.lose_reply("read")
    began = loop.time()
    async with leadership(store, lease_duration=LONG):
        assert loop.time() - began < 15.0
