"""What a bell tells of the row stands for a reading, if it rings at once; in all other cases the row is read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from aiolease import open_store
from aiolease.stores.postgresql.lease import LeaseSQL
from aiolease.stores.postgresql.waiting import Waiting
from aiolease.stores.records import Lease
from tests.campaigns import LIMIT
from tests.stores.databases import claim, expired, free, row, state
from tests.stores.postgresql.using import by, drivers

AGO = timedelta(seconds=5)


class Rows:
    """The row of a lease, and how often it was read. The database's clock is this machine's, set ahead."""

    def __init__(self) -> None:
        self.ahead = timedelta()
        self.read_count = 0
        now = self.now()
        times: dict[str, Any] = {"elected_at": now - AGO, "renewed_at": now, "expires_at": now + timedelta(seconds=30)}
        self.lease = Lease(name="cron", holder="other", token=7, beat=3, resign_token=None, now=now, **times)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    async def read(self, *_: object) -> Lease:
        self.read_count += 1
        return replace(self.lease, now=self.now())

    def told(self, *, token: int = 7, beat: int = 4) -> str:
        return f"{token} {beat} {int(self.now().timestamp() * 1e6)}"


class Link:
    """A connection that listens."""

    pooled = False
    heard = frozenset({"cron"})


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def waiting(rows: Rows) -> Waiting:
    made = Waiting(cast(Any, type("Polls", (), {"read": staticmethod(rows.read)})), str, LeaseSQL.released)
    made.listening(cast(Any, Link()))
    return made


async def heard(waiting: Waiting, rows: Rows, told: str) -> Lease:
    """What a candidate gets that has read the row before, and hears a bell."""

    async def watch_twice() -> Lease | None:
        """The first has the connection listen."""
        for _ in range(2):
            found = await waiting.watch("cron", 10.0, lease=rows.lease, poll=10.0, hint=True)
        return found

    watching = asyncio.create_task(watch_twice())
    await asyncio.sleep(0)
    assert waiting.wanted == ["cron"]
    waiting.ring("cron", "")
    while rows.read_count < 2:
        await asyncio.sleep(0)
    rows.read_count = 0
    waiting.ring("cron", told)
    async with asyncio.timeout(LIMIT):
        found = await watching
    assert found is not None
    return found


async def test_what_a_bell_tells_at_once_is_not_read(waiting: Waiting, rows: Rows) -> None:
    """The row as the release left it: its claim needs no more."""
    found = await heard(waiting, rows, rows.told())
    assert rows.read_count == 0
    assert (found.name, found.holder, found.token, found.beat) == ("cron", None, 7, 4)
    assert found.now == found.expires_at
    assert found.elected_at == rows.lease.elected_at


@pytest.mark.parametrize("ahead", [-60.0, -0.1, 0.1, 60.0])
async def test_a_bell_that_was_late_has_the_row_read(waiting: Waiting, rows: Rows, ahead: float) -> None:
    """So does one behind a step of the database's clock: a reading tells of both, and nothing else does."""
    rows.ahead = timedelta(seconds=ahead)
    told = rows.told()
    rows.ahead = timedelta()
    found = await heard(waiting, rows, told)
    assert rows.read_count == 1
    assert found.holder == "other"


@pytest.mark.parametrize(
    "told",
    ["", "7 4", "7 4 x", "7 4 5 6", "7 4 {at}0", f"7 4 {10**30}", f"7 {10**30} {{at}}", f"7 4 {'9' * 5000}", "\0"],
)
async def test_what_a_bell_may_tell_else_has_the_row_read(waiting: Waiting, rows: Rows, told: str) -> None:
    """An older release of aiolease tells nothing, and anybody may notify."""
    await heard(waiting, rows, told.replace("{at}", rows.told().split()[-1]))
    assert rows.read_count == 1


@pytest.mark.parametrize("other", [{"token": 6}, {"token": 8}, {"beat": 3}, {"beat": 2}])
async def test_a_release_of_another_state_has_the_row_read(waiting: Waiting, rows: Rows, other: dict[str, int]) -> None:
    """The candidate knows too little of that term, or knows more than the bell."""
    await heard(waiting, rows, rows.told(**other))
    assert rows.read_count == 1


@drivers
async def test_a_forged_bell_wins_no_row_that_has_a_holder(postgresql_url: str, driver: str) -> None:
    """Though its state is guessed right, and the row expired: a candidate has to watch such a row for its time."""
    async with open_store(by(driver, postgresql_url)) as store:
        for names in (["one"], ["two", "three"]):  # alone, and in one statement
            held = {name: await claim(store, name, 0.001) for name in names}
            for name, lease in held.items():
                await expired(store, name)
                held[name] = replace(lease, holder=None)
            calls = (store.claim(name, "thief", 30.0, seen=seen, force=False) for name, seen in held.items())
            for found in await asyncio.gather(*calls):
                assert found is not None
                assert found.holder not in {None, "thief"}


@contextmanager
def counted(store: Any) -> Iterator[list[list[str]]]:
    """Which rows a store reads from now on."""
    asked: list[list[str]] = []
    read = store._polls._read_many

    async def counting(names: list[str]) -> Any:
        asked.append(names)
        return await read(names)

    store._polls._read_many = counting
    yield asked
    store._polls._read_many = read


@drivers
async def test_a_release_tells_of_the_row(postgresql_url: str, driver: str) -> None:
    """What a candidate is told is what it would read, and its claim wins."""
    async with open_store(by(driver, postgresql_url)) as first, open_store(by(driver, postgresql_url)) as second:
        for _ in range(5):
            lease = await claim(first, "cron")
            known = await row(second, "cron")
            with counted(second) as asked:
                watching = asyncio.create_task(second.watch("cron", 30.0, lease=known, poll=30.0, hint=True))
                async with asyncio.timeout(LIMIT):
                    while not asked:
                        await asyncio.sleep(0.01)
                    await asyncio.sleep(0.1)  # it listens, and waits
                    asked.clear()
                    await free(first, lease)
                    found = await watching
            assert state(found) == state(await row(first, "cron"))
            if not asked:  # the machine was quick enough
                break
        assert not asked, "it never was"
        assert found is not None
        won = await second.claim("cron", "me", 30.0, seen=found, force=False)
        assert won is not None
        assert (won.holder, won.token) == ("me", lease.token + 1)
