"""How every store renews, releases and watches a lease, and what cancellation leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta

import pytest

from aiolease._election.claim import new_holder
from aiolease.stores import Store
from aiolease.stores.records import Lease
from tests.campaigns import LIMIT
from tests.stores.databases import Database, MakeStore, claim, expired, free, renew, row, state

# -- renewing


async def test_a_renewal_extends(database: Database, make_store: MakeStore) -> None:
    """A renewal sets beat and expiry, returns the row, and leaves the term as it was."""
    store, other = await make_store(), await make_store()
    won = await claim(store, "cron", 1.0)
    renewed = await renew(store, won, won.beat + 1, 40.0)
    assert renewed is not None
    assert (renewed.holder, renewed.token, renewed.elected_at) == (won.holder, won.token, won.elected_at)
    assert renewed.beat == won.beat + 1
    assert won.renewed_at < renewed.renewed_at <= renewed.now
    assert renewed.expires_at > won.expires_at
    assert state(await other.read("cron")) == state(renewed)
    assert database.fence("cron") == (won.holder, won.token)


async def test_an_expired_lease_that_nobody_took_is_renewed(make_store: MakeStore) -> None:
    """A holder that comes late, but before anybody else, keeps its term."""
    store = await make_store()
    won = await claim(store, "cron", 0.1)
    await expired(store, "cron")
    renewed = await renew(store, won, won.beat + 1)
    assert renewed is not None
    assert (renewed.token, renewed.expired) == (won.token, False)


async def test_renewals_that_come_late_change_nothing(make_store: MakeStore) -> None:
    """A renewal whose beat is not above the row's is as if it had never been: it neither shortens nor extends."""
    store, other = await make_store(), await make_store()
    won = await claim(store, "cron")
    latest = await renew(store, won, won.beat + 5)
    for late in (won.beat + 5, won.beat + 4, won.beat + 1, won.beat, 0):
        for duration in (0.1, 3_600.0):
            assert state(await renew(other, won, late, duration)) == state(latest)
    assert state(await other.read("cron")) == state(latest)


async def test_renewals_in_any_order_leave_the_highest_beat(make_store: MakeStore) -> None:
    """Of renewals that arrive at once, over two connections, the one with the highest number stands."""
    stores = [await make_store(), await make_store()]
    won = await claim(stores[0], "cron")
    for _ in range(10):
        base = (await row(stores[0], "cron")).beat
        await asyncio.gather(
            renew(stores[0], won, base + 2, 50.0),
            renew(stores[1], won, base + 1, 10.0),
            renew(stores[1], won, base + 3, 70.0),
            renew(stores[0], won, base + 2, 20.0),
        )
        lease = await row(stores[1], "cron")
        assert (lease.beat, lease.expires_at - lease.renewed_at) == (base + 3, timedelta(seconds=70))


async def test_only_the_term_itself_renews(make_store: MakeStore) -> None:
    """A renewal with another holder, token or name changes nothing and returns what there is."""
    store = await make_store()
    won = await claim(store, "cron")
    assert won.holder is not None
    beat = won.beat + 10
    assert state(await store.renew("cron", "stranger", won.token, beat, 99.0)) == state(won)
    assert state(await store.renew("cron", won.holder, won.token + 1, beat, 99.0)) == state(won)
    assert state(await store.renew("cron", won.holder, won.token - 1, beat, 99.0)) == state(won)
    assert await store.renew("other", won.holder, won.token, beat, 99.0) is None
    assert state(await store.read("cron")) == state(won)
    assert await store.read("other") is None


async def test_a_late_renewal_revives_nothing(make_store: MakeStore) -> None:
    """After a release, and after the next claim, a renewal of the old term has no effect."""
    first, second = await make_store(), await make_store()
    old = await claim(first, "cron")
    await free(first, old)
    released = await row(second, "cron")
    assert state(await renew(first, old, old.beat + 100)) == state(released)
    won = await claim(second, "cron")
    assert state(await renew(first, old, old.beat + 200)) == state(won)
    assert state(await second.read("cron")) == state(won)


# -- releasing and waiting


async def test_a_release_frees_the_row(database: Database, make_store: MakeStore) -> None:
    """Releasing clears the holder, keeps row, token and fence, and counts as a change of state."""
    first, second = await make_store(), await make_store()
    won = await claim(first, "cron")
    await free(first, won)
    lease = await row(second, "cron")
    assert (lease.holder, lease.token, lease.free) == (None, won.token, True)
    assert lease.beat > won.beat
    assert lease.expires_at <= lease.now
    assert database.fence("cron") == (won.holder, won.token)


async def test_only_the_term_itself_releases(make_store: MakeStore) -> None:
    """A release with another holder, token or name, and a second one, do nothing and say so."""
    store = await make_store()
    won = await claim(store, "cron")
    assert won.holder is not None
    assert await store.release("cron", "stranger", won.token) is False
    assert await store.release("cron", won.holder, won.token + 1) is False
    assert await store.release("other", won.holder, won.token) is False
    assert state(await store.read("cron")) == state(won)
    assert await store.release("cron", won.holder, won.token) is True
    after = await row(store, "cron")
    assert await store.release("cron", won.holder, won.token) is False
    assert state(await store.read("cron")) == state(after)


@pytest.mark.parametrize("same", [False, True], ids=["another process", "the same process"])
async def test_a_release_wakes_who_waits(make_store: MakeStore, same: bool) -> None:
    """A candidate that waits hears of a release long before its next poll, and can claim what it is given."""
    leader = await make_store()
    candidate = leader if same else await make_store()
    won = await claim(leader, "cron")
    seen = await candidate.read("cron")
    waiting = asyncio.create_task(candidate.watch("cron", LIMIT * 2, lease=seen, poll=LIMIT * 2, hint=True))
    await asyncio.sleep(0.3)  # so that it does wait; if it does not yet, it has to hear all the same
    assert not waiting.done()
    async with asyncio.timeout(5.0):
        await free(leader, won)
        lease = await waiting
    assert lease is not None
    assert (lease.holder, lease.token) == (None, won.token)
    next_one = await candidate.claim("cron", "holder-b", 30.0, seen=lease, force=False)
    assert next_one is not None
    assert next_one.holder == "holder-b"


@pytest.mark.parametrize("hint", [True, False])
async def test_waiting_ends_in_time(make_store: MakeStore, hint: bool) -> None:
    """Where nothing happens, a candidate waits as long as it asked, hint or not, and gets the row."""
    leader, candidate = await make_store(), await make_store()
    won = await claim(leader, "cron")
    seen = await candidate.read("cron")
    started = time.monotonic()
    async with asyncio.timeout(10.0):
        lease = await candidate.watch("cron", 1.2, lease=seen, poll=5.0, hint=hint)
    assert state(lease) == state(won)
    assert time.monotonic() - started >= 0.9


async def test_expiry_alone_ends_no_wait(make_store: MakeStore) -> None:
    """A row that ran out without a release is not news: its candidate knows when, and may have to wait longer."""
    leader, candidate = await make_store(), await make_store()
    await claim(leader, "cron", 0.1)
    seen = await expired(candidate, "cron")
    started = time.monotonic()
    async with asyncio.timeout(10.0):
        await candidate.watch("cron", 0.5, lease=seen, poll=5.0, hint=True)
    assert time.monotonic() - started >= 0.4


async def test_waiting_without_a_hint_polls(make_store: MakeStore) -> None:
    """A candidate that would not claim looks again after `poll` at most."""
    leader, candidate = await make_store(), await make_store()
    won = await claim(leader, "cron")
    seen = await candidate.read("cron")
    async with asyncio.timeout(5.0):
        lease = await candidate.watch("cron", LIMIT * 2, lease=seen, poll=0.2, hint=False)
    assert state(lease) == state(won)


async def test_a_term_that_is_over_may_be_forgotten(make_store: MakeStore) -> None:
    """`forget` leaves the row alone, and the store goes on working."""
    first, second = await make_store(), await make_store()
    await claim(first, "cron")
    won = await claim(second, "cron", force=True)
    first.abandon("cron")
    first.abandon("never heard of")
    assert state(await first.read("cron")) == state(won)
    await free(second, won)
    assert (await claim(first, "cron")).token == won.token + 1


# -- asking to resign


async def test_a_request_to_resign_shows_in_the_next_renewal(make_store: MakeStore) -> None:
    """Any process may ask; the leader's renewal shows it, for its term only, and the next claim clears it."""
    leader, other = await make_store(), await make_store()
    won = await claim(leader, "cron")
    assert await other.resign("cron") == won.token
    assert await other.resign("cron") == won.token
    for beat in (1, 2):
        renewed = await renew(leader, won, won.beat + beat)
        assert renewed is not None
        assert (renewed.resign_token, renewed.beat) == (won.token, won.beat + beat)
    await free(leader, won)
    assert await other.resign("cron") is None
    again = await claim(other, "cron")
    assert again.resign_token is None
    assert (await row(leader, "cron")).resign_token is None


async def test_a_free_lease_cannot_be_asked(make_store: MakeStore) -> None:
    """There is nobody to ask where nobody leads, and asking makes no row."""
    store = await make_store()
    assert await store.resign("cron") is None
    assert await store.read("cron") is None
    await free(store, await claim(store, "cron"))
    before = await row(store, "cron")
    assert await store.resign("cron") is None
    assert state(await store.read("cron")) == state(before)


# -- cancellation


Method = Callable[[Store, Lease], Awaitable[object]]

METHODS: dict[str, Method] = {
    "read": lambda store, lease: store.read("cron"),
    "claim": lambda store, lease: store.claim("cron", new_holder(), 30.0, seen=lease, force=True),
    "first claim": lambda store, lease: store.claim(new_holder()[-32:], "h", 30.0, seen=None, force=False),
    "renew": lambda store, lease: store.renew("cron", str(lease.holder), lease.token, lease.beat + 1, 30.0),
    "release": lambda store, lease: store.release("cron", str(lease.holder), lease.token),
    "resign": lambda store, lease: store.resign("cron"),
    "watch": lambda store, lease: store.watch("cron", 0.05, lease=lease, poll=0.01, hint=True),
    "watch without a hint": lambda store, lease: store.watch("cron", 0.05, lease=lease, poll=0.01, hint=False),
    "watch for long": lambda store, lease: store.watch("cron", 30.0, lease=lease, poll=30.0, hint=True),
}


async def claim_at_last(store: Store, name: str) -> Lease:
    """Claims until it is won: what was cancelled before may take effect between a reading and its claim."""
    while True:
        holder = new_holder()
        lease = await store.claim(name, holder, 30.0, seen=await store.read(name), force=True)
        if lease is not None and lease.holder == holder:
            return lease


@pytest.mark.parametrize("method", METHODS)
async def test_cancellation_leaves_a_usable_store(database: Database, make_store: MakeStore, method: str) -> None:
    """A call that is cancelled at any moment ends at once, leaves lease and fence in step, and no task behind."""
    store, other = await make_store(), await make_store()
    lease = await claim(store, "cron")
    started = time.monotonic()
    with suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            await METHODS[method](store, lease)
    longest = time.monotonic() - started
    for point in range(20):
        async with asyncio.timeout(LIMIT):
            lease = await claim_at_last(other, "cron")
            before = asyncio.all_tasks()
            call = asyncio.ensure_future(METHODS[method](store, lease))
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
            # The handle works, and what was cancelled has happened as a whole or not at all.
            found = await row(store, "cron")
            assert found.token in {lease.token, lease.token + 1}
            while database.fence("cron") != ((await row(store, "cron")).holder or lease.holder, found.token):
                await asyncio.sleep(0.01)  # a claim may still take effect
                found = await row(store, "cron")
            for _ in range(3):
                await asyncio.sleep(0)
            if call.cancelled():  # one that was won in time may ask for its lock, until it is released or closed
                left = asyncio.all_tasks() - before
                assert all("Connecting._run" in repr(task) for task in left), method  # it serves the next call
    async with asyncio.timeout(LIMIT):
        await free(store, await claim_at_last(store, "cron"))
