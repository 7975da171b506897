"""How every store reads and claims a lease."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest

from aiolease._election.claim import new_holder
from aiolease.errors import StoreUnavailable
from aiolease.stores.records import Lease
from tests.stores.databases import Database, MakeStore, claim, expired, free, renew, row, state

# -- reading


async def test_reading_of_nothing(make_store: MakeStore) -> None:
    """A lease that nobody ever claimed has no row, and reading makes none."""
    store, other = await make_store(), await make_store()
    assert await store.read("cron") is None
    assert await store.status("cron") is None
    assert await other.read("cron") is None
    assert await store.read("schema") is None


async def test_a_reading_is_what_was_claimed(make_store: MakeStore) -> None:
    """Every process reads the row that the claim returned."""
    store, other = await make_store(), await make_store()
    won = await claim(store, "cron")
    for reading in (await store.read("cron"), await other.read("cron"), await other.status("cron")):
        assert state(reading) == state(won)


async def test_moments_are_aware_utc(make_store: MakeStore) -> None:
    """Every moment is aware, in UTC, and by a clock that is right; a term begins with its claim."""
    won = await claim(await make_store(), "cron")
    for moment in (won.now, won.elected_at, won.renewed_at, won.expires_at):
        assert moment.utcoffset() == timedelta(0)
    assert abs(won.now - datetime.now(UTC)) < timedelta(seconds=60)
    assert won.elected_at == won.renewed_at <= won.now < won.expires_at


async def test_the_clock_goes_on(make_store: MakeStore) -> None:
    """`now` is the moment of the reading, not of the row; every claim and renewal looks at the clock anew."""
    store = await make_store()
    won = await claim(store, "cron")
    await asyncio.sleep(0.05)
    later = won.now + timedelta(seconds=0.04)
    assert (await row(store, "cron")).now >= later
    renewed = await renew(store, won, won.beat + 1)
    assert renewed is not None
    assert renewed.renewed_at >= later
    assert (await claim(store, "cron", force=True)).elected_at >= renewed.renewed_at
    await free(store, await row(store, "cron"))
    assert (await row(store, "cron")).expires_at >= later


@pytest.mark.parametrize("duration", [0.1, 1 / 3, 0.123457, 2.5, 30.0, 86_400.0])
async def test_durations_are_exact(make_store: MakeStore, duration: float) -> None:
    """`expires_at - renewed_at` is the lease's duration to the microsecond: a sighting rests on it."""
    store = await make_store()
    won = await claim(store, "cron", duration)
    assert won.expires_at - won.renewed_at == timedelta(seconds=duration)
    renewed = await renew(store, won, won.beat + 1, duration / 2)
    assert renewed is not None
    assert renewed.expires_at - renewed.renewed_at == timedelta(seconds=duration / 2)


# -- claiming


async def test_a_claim_of_nothing_makes_the_row(database: Database, make_store: MakeStore) -> None:
    """The first claim makes lease and fence, and is term 1."""
    store = await make_store()
    lease = await store.claim("cron", "holder-a", 30.0, seen=None, force=False)
    assert lease is not None
    assert (lease.name, lease.holder, lease.token, lease.resign_token) == ("cron", "holder-a", 1, None)
    assert database.fence("cron") == ("holder-a", 1)


async def test_a_claim_that_saw_nothing_fails_where_there_is_a_holder(
    database: Database, make_store: MakeStore
) -> None:
    """A claim by a candidate that saw no row returns the holder's row, unchanged, also with `force`."""
    first, second = await make_store(), await make_store()
    won = await claim(first, "cron")
    for force in (False, True):
        lease = await second.claim("cron", "holder-b", 30.0, seen=None, force=force)
        assert state(lease) == state(won)
    assert database.fence("cron") == (won.holder, won.token)


async def test_a_claim_that_saw_nothing_takes_a_released_row(make_store: MakeStore) -> None:
    """A row that was made and released since it was looked for may be claimed."""
    first, second = await make_store(), await make_store()
    await free(first, await claim(first, "cron"))
    lease = await second.claim("cron", "holder-b", 30.0, seen=None, force=False)
    assert lease is not None
    assert (lease.holder, lease.token) == ("holder-b", 2)


async def test_a_lease_that_runs_is_not_taken(database: Database, make_store: MakeStore) -> None:
    """A row that is held, has not run out and is not to be forced stays as it is."""
    first, second = await make_store(), await make_store()
    won = await claim(first, "cron")
    lease = await second.claim("cron", "holder-b", 30.0, seen=await second.read("cron"), force=False)
    assert state(lease) == state(won)
    assert state(await second.read("cron")) == state(won)
    assert database.fence("cron") == (won.holder, won.token)


async def test_a_lease_that_runs_is_taken_by_force(database: Database, make_store: MakeStore) -> None:
    """`force` takes a row whose expiry is still to come: its candidate has outlasted it."""
    first, second = await make_store(), await make_store()
    old = await claim(first, "cron")
    won = await claim(second, "cron", force=True)
    assert (won.token, won.beat > old.beat) == (old.token + 1, True)
    assert database.fence("cron") == (won.holder, won.token)


async def test_force_does_not_excuse_a_stale_sighting(make_store: MakeStore) -> None:
    """A holder that renewed since it was seen is not taken from, by force either."""
    first, second = await make_store(), await make_store()
    won = await claim(first, "cron")
    seen = await second.read("cron")
    renewed = await renew(first, won, won.beat + 1)
    lease = await second.claim("cron", "holder-b", 30.0, seen=seen, force=True)
    assert state(lease) == state(renewed)


async def test_an_expired_lease_is_taken(database: Database, make_store: MakeStore) -> None:
    """A row that has run out by the database's clock is taken, and the new term has its own duration."""
    first, second = await make_store(), await make_store()
    old = await claim(first, "cron", 0.1)
    seen = await expired(second, "cron")
    won = await second.claim("cron", "holder-b", 7.0, seen=seen, force=False)
    assert won is not None
    assert (won.holder, won.token) == ("holder-b", old.token + 1)
    assert won.elected_at == won.renewed_at >= old.expires_at
    assert won.expires_at - won.renewed_at == timedelta(seconds=7)
    assert database.fence("cron") == ("holder-b", won.token)


async def test_expiry_does_not_excuse_a_stale_sighting(make_store: MakeStore) -> None:
    """A row that changed since it was seen is not claimed, though it has run out."""
    first, second = await make_store(), await make_store()
    won = await claim(first, "cron")
    seen = await second.read("cron")
    await renew(first, won, won.beat + 1, 0.1)
    now = await expired(second, "cron")
    lease = await second.claim("cron", "holder-b", 30.0, seen=seen, force=False)
    assert state(lease) == state(now)


async def test_a_stale_sighting_of_a_released_row_loses(database: Database, make_store: MakeStore) -> None:
    """A released row is compared and swapped too: one that was claimed and released meanwhile is another state."""
    first, second = await make_store(), await make_store()
    await free(first, await claim(first, "cron"))
    stale = await second.read("cron")
    between = await claim(first, "cron")
    await free(first, between)
    lease = await second.claim("cron", "holder-b", 30.0, seen=stale, force=False)
    assert lease is not None
    assert (lease.holder, lease.token) == (None, between.token)
    assert state(await first.read("cron")) == state(lease)
    assert database.fence("cron") == (between.holder, between.token)
    assert (await claim(second, "cron")).token == between.token + 1


@pytest.mark.parametrize(("token", "beat"), [(0, 1), (1, 0)])
async def test_both_token_and_beat_are_compared(make_store: MakeStore, token: int, beat: int) -> None:
    """A sighting with the right token and another beat loses, and the other way round."""
    store = await make_store()
    await free(store, await claim(store, "cron"))
    seen = await row(store, "cron")
    for sign in (1, -1):
        wrong = replace(seen, token=seen.token + sign * token, beat=seen.beat + sign * beat)
        lease = await store.claim("cron", "holder-b", 30.0, seen=wrong, force=True)
        assert state(lease) == state(seen)


async def test_a_second_claim_on_one_sighting_loses(make_store: MakeStore) -> None:
    """A second claim with the same sighting returns the winner's row."""
    first, second = await make_store(), await make_store()
    await free(first, await claim(first, "cron"))
    seen = await second.read("cron")
    won = await claim(first, "cron")
    lease = await second.claim("cron", "holder-b", 30.0, seen=seen, force=False)
    assert state(lease) == state(won)


async def test_of_claims_at_once_one_wins(database: Database, make_store: MakeStore) -> None:
    """Of two claims sent at the same moment exactly one wins, the other sees it; tokens rise by one, fences follow."""
    stores = [await make_store(), await make_store()]
    for term in range(1, 51):
        seen = [await store.read("cron") for store in stores]
        holders = [new_holder() for _ in stores]
        leases = await asyncio.gather(
            *(
                store.claim("cron", holder, 30.0, seen=saw, force=False)
                for store, holder, saw in zip(stores, holders, seen, strict=True)
            )
        )
        winners = [holder for holder, lease in zip(holders, leases, strict=True) if lease and lease.holder == holder]
        assert len(winners) == 1, leases
        assert {(lease.holder, lease.token) for lease in leases if lease} == {(winners[0], term)}
        assert database.fence("cron") == (winners[0], term)
        assert await stores[term % 2].release("cron", winners[0], term)


async def test_of_first_claims_at_once_one_wins(make_store: MakeStore) -> None:
    """The same where there is no row yet. A database may turn some of them away, but never all."""
    stores = [await make_store() for _ in range(4)]
    for store in stores:
        await store.read("other")
    for name in (f"lease-{number}" for number in range(15)):
        holders = [new_holder() for _ in stores]
        claims = (
            store.claim(name, holder, 30.0, seen=None, force=False)
            for store, holder in zip(stores, holders, strict=True)
        )
        answers = await asyncio.gather(*claims, return_exceptions=True)
        owner = await row(stores[0], name)
        assert (owner.holder in holders, owner.token) == (True, 1)
        for holder, answer in zip(holders, answers, strict=True):
            if holder == owner.holder:
                assert state(cast(Lease, answer)) == state(owner)
            elif not isinstance(answer, StoreUnavailable):  # a deadlock, in MySQL
                assert answer is None or state(cast(Lease, answer)) == state(owner)


async def test_tokens_and_beats_rise_for_ever(make_store: MakeStore) -> None:
    """Whatever ends a term, the next token is one more, and the beat of the row never falls or repeats."""
    stores = [await make_store(), await make_store()]
    tokens, beats = [], []
    for number in range(12):
        store = stores[number % 2]
        won = await claim(store, "cron", force=True)
        tokens.append(won.token)
        beats.append(won.beat)
        for step in (3, 7):
            renewed = await renew(store, won, won.beat + step)
            assert renewed is not None
            beats.append(renewed.beat)
        if number % 3:
            await free(store, won)
            beats.append((await row(store, "cron")).beat)
    assert tokens == list(range(1, 13))
    assert beats == sorted(set(beats))


async def test_a_row_deleted_by_hand_is_made_above_the_old_one(database: Database, make_store: MakeStore) -> None:
    """A row that was deleted comes back with a higher token, whether or not the claimant had seen it."""
    first, second = await make_store(), await make_store()
    for _ in range(3):
        await free(first, await claim(first, "cron"))
    old = await claim(first, "cron")
    seen = await second.read("cron")
    database.delete_lease("cron")
    assert await second.read("cron") is None
    assert await renew(first, old, old.beat + 1) is None
    lease = await second.claim("cron", "holder-b", 30.0, seen=seen, force=False)
    assert lease is None or (lease.holder == "holder-b" and lease.token > old.token)
    if lease is None:  # what it saw is not there: it has to look first
        lease = await second.claim("cron", "holder-b", 30.0, seen=None, force=False)
    assert lease is not None
    assert (lease.holder, lease.token) == ("holder-b", old.token + 1)
    assert database.fence("cron") == ("holder-b", old.token + 1)
    late = await renew(first, old, old.beat + 2)
    assert state(late) == state(lease)


async def test_one_handle_serves_many_leases_at_once(make_store: MakeStore) -> None:
    """Calls for several leases on one handle do not get in each other's way."""
    store = await make_store()
    names = [f"lease-{number}" for number in range(15)]
    won = await asyncio.gather(*(claim(store, name) for name in names))
    assert [(lease.name, lease.token) for lease in won] == [(name, 1) for name in names]
    renewed = await asyncio.gather(*(renew(store, lease, lease.beat + 1) for lease in won))
    assert [lease and lease.name for lease in renewed] == names
    await asyncio.gather(*(free(store, lease) for lease in won))
