"""What a store must do, shown once for every store; then what is SQLite's own.

Several handles on one database stand for several processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, cast
from uuid import uuid4

import asyncmy
import pymysql
import pytest

from aiolease._election.claim import new_holder
from aiolease.errors import ConfigurationError, SchemaMissing, StoreRejected, StoreUnavailable
from aiolease.stores import Store, check_target, open_store
from aiolease.stores.memory import MemoryServer, MemoryStore
from aiolease.stores.records import Lease
from aiolease.stores.sqlite import SQLiteStore
from aiolease.stores.sqlite import file as sqlite_file
from tests import awkward
from tests.servers import Server

ROOT = Path(__file__).parents[1]
LIMIT = 20.0
"""Seconds within which everything here has to happen."""


class Database:
    """One fresh database: handles on it, and what a person with a client program could do to it."""

    kind: str

    def open(self, prefix: str, create_tables: bool) -> AbstractAsyncContextManager[Store]:
        """A handle of its own, shared with nobody."""
        raise NotImplementedError

    def fence(self, name: str) -> tuple[str | None, int] | None:
        """Holder and token of a row of the fence table."""
        raise NotImplementedError

    def delete_lease(self, name: str) -> None:
        """Deletes a row of the lease table by hand."""
        raise NotImplementedError

    def delete_fence(self, name: str) -> None:
        """Deletes a row of the fence table by hand."""
        raise NotImplementedError

    def set_token(self, name: str, token: int) -> None:
        """Sets the token of a row of the lease table by hand, as from an older backup."""
        raise NotImplementedError


class InMemory(Database):
    kind = "memory"

    def __init__(self) -> None:
        self.server = MemoryServer()

    def open(self, prefix: str, create_tables: bool) -> AbstractAsyncContextManager[Store]:
        return aclosing(cast(Any, MemoryStore(self.server)))

    def fence(self, name: str) -> tuple[str | None, int] | None:
        row = self.server.fences.get(name)
        return None if row is None else (row.holder, row.token)

    def delete_lease(self, name: str) -> None:
        del self.server.leases[name]

    def delete_fence(self, name: str) -> None:
        del self.server.fences[name]

    def set_token(self, name: str, token: int) -> None:
        self.server.leases[name] = replace(self.server.leases[name], token=token)


class InSQLite(Database):
    kind = "sqlite"

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, prefix: str, create_tables: bool) -> AbstractAsyncContextManager[Store]:
        return aclosing(cast(Store, SQLiteStore(self.path, table_prefix=prefix, create_tables=create_tables)))

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            return connection.execute(statement, values).fetchall()

    def fence(self, name: str) -> tuple[str | None, int] | None:
        rows = self.sql("SELECT holder, token FROM aiolease_fence WHERE name = ?", name)
        return rows[0] if rows else None

    def delete_lease(self, name: str) -> None:
        self.sql("DELETE FROM aiolease_lease WHERE name = ?", name)

    def delete_fence(self, name: str) -> None:
        self.sql("DELETE FROM aiolease_fence WHERE name = ?", name)

    def set_token(self, name: str, token: int) -> None:
        self.sql("UPDATE aiolease_lease SET token = ? WHERE name = ?", token, name)


class OnServer(Database):
    def __init__(self, server: Server) -> None:
        self.kind = server.kind
        self.server = server
        self.schema = f"test_{uuid4().hex[:12]}"
        self._handles = 0
        server.create_database(self.schema)

    def open(self, prefix: str, create_tables: bool) -> AbstractAsyncContextManager[Store]:
        # Within a process, a URL that is the same to the letter gets the same store.
        self._handles += 1
        url = f"{self.server.url(self.schema)}?{'&'.join(['charset=utf8mb4'] * self._handles)}"
        return open_store(url, table_prefix=prefix, create_tables=create_tables)

    def fence(self, name: str) -> tuple[str | None, int] | None:
        where = f"name = X'{name.encode().hex()}'"
        rows = self.server.sql(f"SELECT holder, token FROM aiolease_fence WHERE {where}", self.schema)
        return (rows[0][0], rows[0][1]) if rows else None

    def delete_lease(self, name: str) -> None:
        self.server.sql(f"DELETE FROM aiolease_lease WHERE name = X'{name.encode().hex()}'", self.schema)

    def delete_fence(self, name: str) -> None:
        self.server.sql(f"DELETE FROM aiolease_fence WHERE name = X'{name.encode().hex()}'", self.schema)

    def set_token(self, name: str, token: int) -> None:
        where = f"name = X'{name.encode().hex()}'"
        self.server.sql(f"UPDATE aiolease_lease SET token = {token} WHERE {where}", self.schema)


class Awkward(OnServer):
    """Every session is awkward: by the server's doing, and again by the pool's, which leaves more behind."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        server.sql(
            f"GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, LOCK TABLES ON {self.schema}.* TO {awkward.USER}@'%'"
        )
        server.sql("CREATE TABLE IF NOT EXISTS stray (id INT PRIMARY KEY)", self.schema)

    @asynccontextmanager
    async def open(self, prefix: str, create_tables: bool) -> AsyncIterator[Store]:
        left_behind = "START TRANSACTION; SELECT 1; LOCK TABLES stray READ; SELECT 2"
        pool = asyncmy.create_pool(
            minsize=0, host=self.server.host, port=self.server.port, user=awkward.USER, database=self.schema,
            init_command=f"{awkward.settings(self.server)}; {left_behind}",
        )  # fmt: skip
        async with pool as made, open_store(made, table_prefix=prefix, create_tables=create_tables) as store:
            yield store


class MakeStore(Protocol):
    async def __call__(self, *, table_prefix: str = "aiolease_", create_tables: bool = True) -> Store: ...


@pytest.fixture(params=["memory", "sqlite", "mariadb", "mysql9", "mariadb_awkward", "mysql9_awkward"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A fresh, empty database of every kind."""
    if request.param == "memory":
        yield InMemory()
    elif request.param == "sqlite":
        yield InSQLite(tmp_path / "leases.db")
    else:
        server = request.getfixturevalue(request.param)
        server.recover()
        made = Awkward(server) if request.param.endswith("awkward") else OnServer(server)
        yield made
        server.drop_database(made.schema)


with_tables = pytest.mark.parametrize("database", ["sqlite", "mariadb", "mysql9"], indirect=True)
"""For the rules about tables, which memory has none of."""


@pytest.fixture
async def make_store(database: Database) -> AsyncIterator[MakeStore]:
    """Opens any number of handles on the database; closes them in the end."""
    async with AsyncExitStack() as stack:

        async def make(*, table_prefix: str = "aiolease_", create_tables: bool = True) -> Store:
            return await stack.enter_async_context(database.open(table_prefix, create_tables))

        yield make


async def claim(store: Store, name: str, duration: float = 30.0, *, force: bool = False) -> Lease:
    """Reads the row and claims on what it shows; the claim must be won."""
    holder = new_holder()
    lease = await store.claim(name, holder, duration, seen=await store.read(name), force=force)
    assert lease is not None
    assert lease.holder == holder
    return lease


async def free(store: Store, lease: Lease) -> None:
    assert lease.holder is not None
    assert await store.release(lease.name, lease.holder, lease.token)


async def renew(store: Store, lease: Lease, beat: int, duration: float = 30.0) -> Lease | None:
    assert lease.holder is not None
    return await store.renew(lease.name, lease.holder, lease.token, beat, duration)


async def row(store: Store, name: str) -> Lease:
    lease = await store.read(name)
    assert lease is not None
    return lease


async def expired(store: Store, name: str) -> Lease:
    """Waits until the row has run out by the database's clock."""
    async with asyncio.timeout(LIMIT):
        while not (lease := await row(store, name)).expired:
            await asyncio.sleep(0.01)
    return lease


def state(lease: Lease | None) -> tuple[object, ...] | None:
    """All of a row but the moment of its reading."""
    if lease is None:
        return None
    moments = (lease.elected_at, lease.renewed_at, lease.expires_at)
    return (lease.name, lease.holder, lease.token, lease.beat, *moments, lease.resign_token)


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
    """Whoever saw no row gets the holder's, unchanged, and by force as well."""
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
    """Who comes second with the same sighting gets the winner's row."""
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
    """A row that vanished comes back with a higher token, for who saw it as for who did not."""
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
    first.forget("cron")
    first.forget("never heard of")
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


# -- names

NAMES = [
    *("cron", "Cron", "CRON", "cro", "cron.", "cron_", "crons", "cr_n", "cr%n", "%", "_", "%s", "%%", "%(name)s"),
    *("'", "''", '"', '""', "`", "\\", "\\\\", "\\'", "x'--", "x';DROP", "?", ":name", "{}", "{0}", "@a", "#", "/*"),
    *("1", "01", "1.0", "1e0", "0x31", "-1", "NULL", "x" * 100, "x" * 99 + "y", "x" * 99, "~!"),
]


async def test_names_are_compared_byte_for_byte(database: Database, make_store: MakeStore) -> None:
    """Names that differ in one byte, in case alone, or mean something in SQL are leases of their own."""
    store, other = await make_store(), await make_store()
    won: dict[str, Lease] = {}
    for name in NAMES:
        assert await store.read(name) is None, name
        won[name] = await claim(store, name)
        assert (won[name].name, won[name].token) == (name, 1)
    for name, lease in won.items():
        assert state(await other.read(name)) == state(lease)
        assert database.fence(name) == (lease.holder, 1)
        assert await store.read(name + " ") is None
    for name, lease in won.items():
        assert await other.resign(name) == 1
        renewed = await renew(store, lease, lease.beat + 1)
        assert renewed is not None
        assert (renewed.name, renewed.resign_token) == (name, 1)
        await free(store, lease)
    for name in NAMES:
        lease = await row(other, name)
        assert (lease.name, lease.holder, lease.token) == (name, None, 1)


async def test_holders_are_compared_byte_for_byte(make_store: MakeStore) -> None:
    """A holder that differs in case alone, or in length, is a stranger."""
    store = await make_store()
    won = await store.claim("cron", "Host-1-abc", 30.0, seen=None, force=False)
    assert won is not None
    for stranger in ("host-1-abc", "Host-1-abcd", "Host-1-ab", "Host-1-abc\\", "%", ""):
        assert state(await store.renew("cron", stranger, won.token, won.beat + 1, 99.0)) == state(won)
        assert not await store.release("cron", stranger, won.token)
    assert await store.release("cron", "Host-1-abc", won.token)


@pytest.mark.parametrize("fate", ["released", "expired"])
async def test_a_token_that_was_set_back_lowers_no_fence(database: Database, make_store: MakeStore, fate: str) -> None:
    """A row from an older backup, or changed by hand: the next term is above every term that the fence knows."""
    store = await make_store()
    for _ in range(5):
        lease = await claim(store, "cron")
        await free(store, lease)
    if fate == "expired":
        held = await store.claim("cron", "dead", 0.2, seen=await store.read("cron"), force=False)
        assert held is not None
        assert held.token == 6
        while not (await row(store, "cron")).expired:
            await asyncio.sleep(0.05)
    database.set_token("cron", 2)
    won, tries = None, 0
    while won is None or won.holder != "next":
        tries += 1
        assert tries < 5
        won = await store.claim("cron", "next", 30.0, seen=await store.read("cron"), force=False)
    above = 6 if fate == "expired" else 5
    assert won.token == above + 1
    assert database.fence("cron") == ("next", above + 1)
    assert (await renew(store, won, won.beat + 1)) is not None
    await free(store, won)


@pytest.mark.parametrize("name", ["", "two words", "x" * 101, "naïve", "tab\t"])
async def test_what_cannot_name_a_lease_is_refused_by_every_question(make_store: MakeStore, name: str) -> None:
    """A question about a lease that there cannot be is an error of whoever asks, and not an empty answer."""
    store: Any = await make_store()
    for question in (store.status, store.resign):
        with pytest.raises(ConfigurationError):
            await question(name)
    for question in (store.history, store.trigger, store.pause, store.resume):
        with pytest.raises(ConfigurationError):
            await question(name, "job")


@pytest.mark.parametrize("column", ["elected_at", "renewed_at", "expires_at"])
async def test_a_moment_that_cannot_be_read_is_trouble_of_the_store(
    database: Database, make_store: MakeStore, column: str
) -> None:
    """A zero date that another hand wrote is told as the store's trouble, and gets well when it is mended."""
    if isinstance(database, InMemory):
        pytest.skip("memory has no other hands")
    store = await make_store()
    lease = await claim(store, "cron")
    kept = lease.expires_at
    if isinstance(database, InSQLite):
        database.sql(f"UPDATE aiolease_lease SET {column} = 'yesterday'")
    else:
        assert isinstance(database, OnServer)
        zero = f"aiolease_lease SET {column} = '0000-00-00 00:00:00'"
        server, lax = database.server, "SET sql_mode = ''"
        with (
            pymysql.connect(
                host=server.host, port=server.port, user="root", database=database.schema, init_command=lax,
                autocommit=True,
            ) as lenient,
            lenient.cursor() as cursor,
        ):  # fmt: skip
            cursor.execute(f"UPDATE {zero}")
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        await store.read("cron")
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        await cast(Any, store).status("cron")
    if isinstance(database, InSQLite):
        database.sql(f"UPDATE aiolease_lease SET {column} = ?", round(kept.timestamp() * 1e6))
    else:
        database.server.sql(f"UPDATE aiolease_lease SET {column} = '{kept:%Y-%m-%d %H:%M:%S}'", database.schema)
    assert (await row(store, "cron")).holder == lease.holder
    await free(store, await row(store, "cron"))


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


# -- tables


@with_tables
async def test_tables_are_not_made_unasked(database: Database, make_store: MakeStore) -> None:
    """Without `create_tables`, missing tables are an error that says so, again and again, until somebody makes them."""
    store = await make_store(create_tables=False)
    for _ in range(2):
        with pytest.raises(SchemaMissing, match=r"create_tables=False|no such file"):
            await store.read("cron")
    with pytest.raises(SchemaMissing):
        await store.claim("cron", "h", 30.0, seen=None, force=False)
    won = await claim(await make_store(), "cron")
    assert state(await store.read("cron")) == state(won)
    assert (await claim(store, "cron", force=True)).token == 2


@with_tables
async def test_tables_are_made_by_all_at_once(database: Database, make_store: MakeStore) -> None:
    """Processes that start together on an empty database all find, or make, the tables."""
    for attempt in range(5):
        stores = [await make_store(table_prefix=f"t{attempt}_") for _ in range(4)]
        async with asyncio.timeout(LIMIT):
            assert await asyncio.gather(*(store.read("cron") for store in stores)) == [None] * 4
        await claim(stores[0], "cron")
        assert (await row(stores[3], "cron")).token == 1


@with_tables
async def test_prefixes_separate(database: Database, make_store: MakeStore) -> None:
    """Leases of one name in tables of another prefix have nothing to do with each other."""
    first, second = await make_store(table_prefix="a_"), await make_store(table_prefix="b_")
    won = await claim(first, "cron")
    other = await claim(second, "cron")
    assert (won.token, other.token) == (1, 1)
    await free(first, won)
    assert state(await second.read("cron")) == state(other)


@with_tables
@pytest.mark.parametrize("prefix", ["a-b", "a b", "", 'a"', "x" * 41, "ä"])
async def test_a_prefix_must_name_tables(database: Database, make_store: MakeStore, prefix: str) -> None:
    """A prefix that cannot stand in a table's name is refused before anything is sent."""
    with pytest.raises(ConfigurationError, match="table_prefix"):
        await make_store(table_prefix=prefix)


# -- SQLite's own


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[Callable[..., SQLiteStore]]:
    """Opens handles on one file, with SQLiteStore's own arguments."""
    async with AsyncExitStack() as stack:

        def make(path: Path = tmp_path / "leases.db", **options: Any) -> SQLiteStore:
            store = SQLiteStore(path, **options)
            stack.push_async_callback(store.aclose)
            return store

        yield make


Make = Callable[..., SQLiteStore]


def execute(path: Path, statement: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(statement).fetchall()


async def test_sqlite_keeps_microseconds_by_the_clock_of_the_machine(sqlite: Make, tmp_path: Path) -> None:
    """Every moment comes from one clock, read in the transaction; a step of it shows at once."""
    store = sqlite()
    moment = 1_700_000_000_123_456
    store._now = lambda: moment
    won = await claim(cast(Store, store), "cron", 10.0)
    assert won.now == won.renewed_at == datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)
    assert execute(tmp_path / "leases.db", "SELECT expires_at FROM aiolease_lease WHERE name = 'cron'") == [
        (moment + 10_000_000,)
    ]
    moment += 9_999_999
    assert not (await row(cast(Store, store), "cron")).expired
    moment += 1
    assert (await row(cast(Store, store), "cron")).expired
    moment -= 3_600_000_000
    renewed = await renew(cast(Store, store), won, won.beat + 1, 5.0)
    assert renewed is not None
    assert (renewed.now, renewed.expires_at - renewed.renewed_at) == (
        won.now - timedelta(seconds=3590),
        timedelta(seconds=5),
    )


async def test_sqlite_says_what_waiting_cannot_mend(sqlite: Make, tmp_path: Path) -> None:
    """A missing folder, a folder, and a file that is no database are refused, for good."""
    (tmp_path / "text").write_text("not a database, but long enough to have been one\n" * 100)
    for path in (tmp_path / "none" / "leases.db", tmp_path, tmp_path / "text", tmp_path / "text" / "leases.db"):
        store = sqlite(path)
        for _ in range(2):
            with pytest.raises(StoreRejected, match=str(path)) as caught:
                await store.read("cron")
            assert isinstance(caught.value.__cause__, sqlite3.Error)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("path", ["", ":memory:", "a\0b"])
def test_sqlite_wants_a_file(path: str) -> None:
    """What no other process could open is refused when the store is made."""
    with pytest.raises(ConfigurationError, match="path"):
        SQLiteStore(path)


async def test_sqlite_takes_any_file_name(sqlite: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanks and the marks of a URL are part of the name; a relative path stays what it was."""
    monkeypatch.chdir(tmp_path)
    for name in ("a b.db", "50%.db", "a?mode=memory", "a#b", "ü.db", "%41.db", "a&b=c"):
        store = sqlite(Path(name))
        monkeypatch.chdir("/")
        await claim(cast(Store, store), "cron")
        assert (tmp_path / name).is_file()
        monkeypatch.chdir(tmp_path)


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder, and no right that a plain user would not have."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


async def test_sqlite_says_which_right_is_missing(unprivileged: Path) -> None:
    """Without rights on file or folder it is refused; tables that could only be missing are said to be missing."""
    path = unprivileged / "leases.db"

    async def attempt() -> object:
        async with aclosing(SQLiteStore(path)) as store:
            return await store.claim("cron", "h", 30.0, seen=await store.read("cron"), force=True)

    unprivileged.chmod(0o555)
    with pytest.raises(StoreRejected, match="permission"):
        await attempt()
    unprivileged.chmod(0o755)
    path.touch()
    path.chmod(0o444)
    with pytest.raises(SchemaMissing, match="may not be written"):
        await attempt()
    path.chmod(0)
    with pytest.raises(StoreRejected, match="permission"):
        await attempt()
    path.chmod(0o644)
    await attempt()
    path.chmod(0o444)
    with pytest.raises(StoreRejected, match="readonly"):
        await attempt()


async def test_sqlite_that_stays_locked_is_unavailable(
    sqlite: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that others keep locked is waited for a while, then reported; reading goes on, and so does all after."""
    monkeypatch.setattr(sqlite_file, "_PATIENCE", 0.3)
    store = sqlite()
    won = await claim(cast(Store, store), "cron")
    with contextlib.closing(sqlite3.connect(tmp_path / "leases.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        connection = store._file.connection
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match="database is locked") as caught:
            await renew(cast(Store, store), won, won.beat + 1)
        assert 0.2 < time.monotonic() - started < 5
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert state(await store.read("cron")) == state(won)
        # A write that is wanted no more is given up; one that is wanted is done as soon as the other ends.
        dropped = asyncio.create_task(store.release("cron", str(won.holder), won.token))
        await asyncio.sleep(0.05)
        dropped.cancel()
        renewing = asyncio.create_task(renew(cast(Store, store), won, won.beat + 2))
        await asyncio.sleep(0.05)
        other.execute("COMMIT")
    renewed = await renewing
    assert renewed is not None
    assert store._file.connection is connection
    with pytest.raises(asyncio.CancelledError):
        await dropped


async def test_sqlite_waits_for_a_lock_elsewhere(sqlite: Make, tmp_path: Path) -> None:
    """Waiting for another's write does not hold up the event loop, and the clock is read when the wait is over."""
    store = sqlite()
    won = await claim(cast(Store, store), "cron")
    readings: list[int] = []

    def now() -> int:
        readings.append(time.time_ns() // 1000)
        return readings[-1]

    store._now = now
    with contextlib.closing(sqlite3.connect(tmp_path / "leases.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        renewing = asyncio.create_task(renew(cast(Store, store), won, won.beat + 1))
        turns = 0
        started = time.monotonic()
        while time.monotonic() - started < 0.3:
            await asyncio.sleep(0.001)
            turns += 1
        assert not renewing.done()
        assert readings == []
        other.execute("COMMIT")
    await renewing
    assert len(readings) == 1
    assert turns > 50


async def test_sqlite_leaves_a_schema_alone_that_is_there(sqlite: Make, tmp_path: Path) -> None:
    """Where the tables exist, opening them changes neither schema nor journal mode."""
    path = tmp_path / "leases.db"
    await claim(cast(Store, sqlite()), "cron")
    assert execute(path, "PRAGMA journal_mode") == [("wal",)]
    before = execute(path, "PRAGMA schema_version")
    for create_tables in (True, False):
        assert (await row(cast(Store, sqlite(create_tables=create_tables)), "cron")).token == 1
    assert execute(path, "PRAGMA schema_version") == before


async def test_sqlite_in_rollback_mode_works_too(tmp_path: Path) -> None:
    """A file whose owner wants no write-ahead log is left as it is, and readers and writers still meet in order."""
    path = tmp_path / "leases.db"
    async with aclosing(SQLiteStore(path)) as store:
        await store.read("cron")
    assert execute(path, "PRAGMA journal_mode = DELETE") == [("delete",)]
    async with aclosing(SQLiteStore(path)) as one, aclosing(SQLiteStore(path)) as two:
        for term in range(1, 21):
            seen = await one.read("cron")
            leases = await asyncio.gather(
                *(store.claim("cron", new_holder(), 30.0, seen=seen, force=False) for store in (one, two))
            )
            assert leases[0] is not None
            assert leases[0].token == term
            assert await two.release("cron", str((await row(cast(Store, one), "cron")).holder), term)
    assert execute(path, "PRAGMA journal_mode") == [("delete",)]


@pytest.mark.parametrize("version", [0, 3])
async def test_sqlite_refuses_another_version(sqlite: Make, tmp_path: Path, version: int) -> None:
    """Tables of another version are not touched; the error names both versions."""
    path = tmp_path / "leases.db"
    await sqlite().read("cron")
    execute(path, f"UPDATE aiolease_lease SET token = {version} WHERE name = 'schema version'")
    execute(path, "DROP TABLE aiolease_fence")
    with pytest.raises(SchemaMissing, match=f"version {version}.* needs 2"):
        await sqlite().read("cron")
    assert execute(path, "SELECT COUNT(*) FROM sqlite_master WHERE name LIKE '%fence'") == [(0,)]


async def test_sqlite_without_a_file_makes_none_unasked(sqlite: Make, tmp_path: Path) -> None:
    """`create_tables=False` does not make the file either."""
    with pytest.raises(SchemaMissing):
        await sqlite(create_tables=False).read("cron")
    assert list(tmp_path.iterdir()) == []


async def test_sqlite_tables_that_vanish_are_missed(sqlite: Make, tmp_path: Path) -> None:
    """A table that was dropped under a store is an error, and made anew when it is next needed."""
    store = sqlite()
    won = await claim(cast(Store, store), "cron")
    execute(tmp_path / "leases.db", "DROP TABLE aiolease_lease")
    with pytest.raises(SchemaMissing, match="no such table"):
        await store.read("cron")
    assert (await claim(cast(Store, store), "cron")).token == won.token + 1


async def test_sqlite_notices_that_its_file_was_replaced(sqlite: Make, tmp_path: Path) -> None:
    """Who leads by a file that was deleted leads by nothing: it sees what all others see."""
    first, second = sqlite(), sqlite()
    old = await claim(cast(Store, first), "cron")
    for file in tmp_path.iterdir():
        file.unlink()
    won = await claim(cast(Store, second), "cron")
    assert won.holder != old.holder
    assert state(await renew(cast(Store, first), old, old.beat + 1)) == state(won)


async def test_sqlite_leaves_nothing_running(tmp_path: Path) -> None:
    """After `aclose` there is no thread, no open file and no log beside the database; a second one does nothing."""
    before = threading.enumerate()
    store = SQLiteStore(tmp_path / "leases.db")
    await claim(cast(Store, store), "cron")
    assert len(threading.enumerate()) == len(before) + 1
    await store.aclose()
    await store.aclose()
    assert threading.enumerate() == before
    assert [path.name for path in tmp_path.iterdir()] == ["leases.db"]
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.read("cron")
    await SQLiteStore(tmp_path / "unused.db").aclose()
    assert not (tmp_path / "unused.db").exists()


async def test_sqlite_is_closed_though_closing_is_cancelled(tmp_path: Path) -> None:
    """A cancellation comes out of `aclose`, after it has done its work; what was under way is done."""
    for turns in range(6):
        before = threading.enumerate()
        store = SQLiteStore(tmp_path / f"{turns}.db")
        claiming = asyncio.create_task(store.claim("cron", "h", 30.0, seen=None, force=False))
        await asyncio.sleep(0)
        closing = asyncio.create_task(store.aclose())
        for _ in range(turns):
            await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        if turns:  # else it was cancelled before it began
            assert threading.enumerate() == before
            lease = await claiming
            assert lease is not None
            assert lease.holder == "h"
        claiming.cancel()
        await asyncio.gather(claiming, return_exceptions=True)
        await store.aclose()
        assert threading.enumerate() == before


async def test_sqlite_survives_the_loss_of_its_connection(sqlite: Make) -> None:
    """An error other than a lock costs the connection, and only that."""
    store = sqlite()
    won = await claim(cast(Store, store), "cron")
    assert store._file.connection is not None
    store._file.connection.close()
    with pytest.raises(StoreUnavailable):
        await store.read("cron")
    assert state(await store.read("cron")) == state(won)


# -- SQLite among processes


def run_script(script: str, *arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> str:
    """What a script printed; it must end in time and in order."""
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return out


WORKER = """
import asyncio, os, sys, time
from aiolease._election.claim import new_holder
from aiolease.errors import StoreUnavailable
from aiolease.stores.sqlite import SQLiteStore

async def main(path, seconds):
    store, flag, until = SQLiteStore(path), path + ".led", time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            seen = await store.read("cron")
            if seen is not None and seen.holder is not None:
                seen = await store.watch("cron", 0.01, lease=seen, poll=0.002, hint=True)
            if seen is not None and not seen.free:
                continue
            holder = new_holder()
            lease = await store.claim("cron", holder, 5.0, seen=seen, force=False)
            if lease.holder != holder:
                continue
        except StoreUnavailable as error:
            print("unavailable", error, file=sys.stderr)
            continue
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))  # fails if another leads
        print(lease.token, flush=True)
        assert (await store.renew("cron", holder, lease.token, lease.beat + 1, 5.0)).held_by(holder, lease.token)
        os.unlink(flag)
        assert await store.release("cron", holder, lease.token)
    await store.aclose()

asyncio.run(main(sys.argv[1], float(sys.argv[2])))
"""


def test_sqlite_among_processes(tmp_path: Path) -> None:
    """Four processes that take turns never lead at once, and never get the same token, nor leave one out."""
    workers = [run_script(WORKER, tmp_path / "leases.db", "2") for _ in range(4)]
    tokens = [int(line) for worker in workers for line in finished(worker).split()]
    assert len(tokens) > 20
    assert sorted(tokens) == list(range(1, len(tokens) + 1))


def test_sqlite_outlives_its_processes(tmp_path: Path) -> None:
    """A process that is killed in the midst of its writes holds nobody else up, and no token comes twice."""
    path = tmp_path / "leases.db"
    tokens: list[int] = []
    for _ in range(3):
        victim = run_script(WORKER, path, "30")
        assert victim.stdout is not None
        assert victim.stdout.readline()
        time.sleep(0.1)
        victim.send_signal(signal.SIGKILL)
        out, _ = victim.communicate(timeout=10)
        tokens += [int(line) for line in out.split()]
        Path(f"{path}.led").unlink(missing_ok=True)
        # What it held is given back by hand, where a candidate would wait.
        execute(path, "UPDATE aiolease_lease SET holder = NULL, beat = beat + 1 WHERE name = 'cron'")
    tokens += [int(line) for line in finished(run_script(WORKER, path, "0.5")).split()]
    assert tokens == sorted(set(tokens))
    assert execute(path, "PRAGMA integrity_check") == [("ok",)]


FORKER = """
import asyncio, os, sys
from aiolease.stores.sqlite import SQLiteStore

store = SQLiteStore(sys.argv[1])

def claim(name):
    return asyncio.run(store.claim(name, "h", 30.0, seen=None, force=False)).token

claim("parent-1")
inherited = store._file.connection
go_on, closed = os.pipe()
child = os.fork()
if child == 0:
    claim("child-1")
    assert store._file.connection is not inherited
    os.read(go_on, 1)
    claim("child-2")
    asyncio.run(store.aclose())
    os._exit(0)
claim("parent-2")
asyncio.run(store.aclose())
os.write(closed, b"!")
assert os.waitpid(child, 0)[1] == 0
"""


def test_sqlite_after_a_fork(tmp_path: Path) -> None:
    """A child has a connection of its own, and what it commits is there for all, also when its parent is gone."""
    path = tmp_path / "leases.db"
    finished(run_script(FORKER, path))
    assert stat.S_ISREG(path.stat().st_mode)
    names = [name for (name,) in execute(path, "SELECT name FROM aiolease_lease WHERE holder = 'h' ORDER BY name")]
    assert names == ["child-1", "child-2", "parent-1", "parent-2"]


async def test_a_url_opens_sqlite(tmp_path: Path) -> None:
    """`sqlite:////absolute.db` names the file."""
    async with open_store(f"sqlite:///{tmp_path}/leases.db") as store:
        await claim(store, "cron")
    assert (tmp_path / "leases.db").is_file()


async def test_a_store_that_lacks_a_part_is_refused(tmp_path: Path) -> None:
    """An object that has a lease but no ledger is no target: it is refused when it is opened, not when a job runs."""

    class OnlyLease:
        def __init__(self) -> None:
            whole = MemoryStore()
            self.claim, self.renew, self.release, self.watch = whole.claim, whole.renew, whole.release, whole.watch

    with pytest.raises(ConfigurationError, match=r"<OnlyLease>.*lacks .*take_stock.*aclose"):
        async with open_store(OnlyLease()):
            pass
    with pytest.raises(ConfigurationError, match="lacks"):
        check_target(OnlyLease(), "cron")
    for whole in (MemoryStore(), SQLiteStore(tmp_path / "leases.db")):
        async with aclosing(whole), open_store(whole) as opened:
            assert opened is whole
