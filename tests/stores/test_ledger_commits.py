"""The last write of a run on every store, and records that are cancelled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime
from typing import Any, cast

import aiosqlite
import pytest

from aiolease.stores import Store
from aiolease.stores.batch import Batch
from aiolease.stores.contract import FenceBroken, Refused
from aiolease.stores.records import RunKey, RunStatus, TermKey
from tests.campaigns import LIMIT
from tests.stores.databases import Awkward, Database, InMemory, InPostgreSQL, InSQLite, MakeStore, OnServer
from tests.stores.ledgers import (
    MICROSECOND,
    SECOND,
    change,
    claiming,
    enrolled,
    everything,
    in_order,
    key_of,
    lead,
    now_of,
    only_run,
    run,
)

# -- cancellation


async def test_a_record_that_is_cancelled_is_whole_or_nothing(database: Database, make_store: MakeStore) -> None:
    """A batch that is cancelled at any moment is written as a whole or not at all, and its store can be used."""
    store = await make_store()
    jobs = [f"job-{number}" for number in range(50)]
    term = await enrolled(store, *jobs)
    start = await now_of(store) - 3600 * SECOND

    def batch(tick: datetime) -> Batch:
        return claiming(*(run(term, job, tick) for job in jobs))

    started = time.monotonic()
    await store.record(term, batch(start))
    longest = time.monotonic() - started
    for point in range(20):
        tick = start + (point + 1) * SECOND
        async with asyncio.timeout(LIMIT):
            before = asyncio.all_tasks()
            call = asyncio.ensure_future(store.record(term, batch(tick)))
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
            for _ in range(3):
                stock = await store.take_stock("cron")
                assert len([row for row in stock.unfinished if row.tick == tick]) in {0, len(jobs)}
                assert {job.high_tick for job in stock.jobs.values()} in ({tick}, {tick - SECOND})
            with suppress(Refused):  # it took effect, late perhaps
                await store.record(term, batch(tick))
            stock = await store.take_stock("cron")
            assert len([row for row in stock.unfinished if row.tick == tick]) == len(jobs)
            assert {job.high_tick for job in stock.jobs.values()} == {tick}
            assert asyncio.all_tasks() <= before


# -- the last write of a run


class Work:
    """The user's own table, beside the ledger's."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._in_memory: list[str] = []
        self._sql("CREATE TABLE work (who VARCHAR(40) NOT NULL)")

    def _sql(self, statement: str) -> Iterable[tuple[Any, ...]]:
        if isinstance(self._database, InSQLite):
            return self._database.sql(statement)
        if isinstance(self._database, OnServer):
            return self._database.server.sql(statement, self._database.schema)
        return [(who,) for who in self._in_memory]

    def rows(self) -> list[str]:
        return sorted(who for (who,) in self._sql("SELECT who FROM work"))

    async def insert(self, connection: Any, who: str) -> None:
        """Writes a row as a user of this database would."""
        statement = f"INSERT INTO work (who) VALUES ('{who}')"
        if isinstance(self._database, InMemory):
            connection.append(lambda: self._in_memory.append(who))
        elif isinstance(self._database, InSQLite | InPostgreSQL):
            await connection.execute(statement)
        else:
            async with connection.cursor() as cursor:
                await cursor.execute(statement)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """A connection of the user's own, in a transaction."""
        if isinstance(self._database, InSQLite):
            async with aiosqlite.connect(self._database.path) as connection:
                yield connection
        elif isinstance(self._database, OnServer):
            async with self._database.connection() as own:
                yield own
        else:
            yield []

    async def commit(self, connection: Any) -> None:
        if isinstance(self._database, InMemory):
            for call in connection:
                call()
        elif hasattr(connection, "commit"):
            await connection.commit()
        else:
            await connection.execute("COMMIT")

    async def roll_back(self, connection: Any) -> None:
        await (connection.rollback() if hasattr(connection, "rollback") else connection.execute("ROLLBACK"))


@pytest.fixture
def work(database: Database) -> Work:
    if isinstance(database, Awkward):
        pytest.skip("the session of a user's transaction is the user's: this one may not write")
    return Work(database)


@pytest.fixture(params=["transaction", "own connection"])
def commit(request: pytest.FixtureRequest, work: Work) -> Callable[..., Any]:
    """Writes one row of the user's and commits, fenced, in either way."""

    async def commit(store: Store, term: TermKey, who: str, final: RunKey | None) -> None:
        if request.param == "transaction":
            transaction = await store.begin()
            await work.insert(transaction.connection, who)
            await transaction.commit(term, final)
            return
        async with work.connection() as connection:
            await work.insert(connection, who)
            await store.fence(connection, term, final, within=30.0)
            await work.commit(connection)

    return commit


async def test_a_final_commit_is_the_runs_success(
    make_store: MakeStore, work: Work, commit: Callable[..., Any]
) -> None:
    """The user's rows and the run's success are committed together, and nothing changes the run afterwards."""
    store, other = await make_store(), await make_store()
    term = await enrolled(store, "a", "b")
    now = await now_of(store)
    second = now.replace(microsecond=0)
    ticks = [second - 2 * SECOND, second - SECOND + MICROSECOND]
    rows = [run(term, "a", tick, error="of an earlier attempt") for tick in ticks]
    await store.record(term, Batch(claims=[*rows, run(term, "b", ticks[1])]))
    started = await store.history("cron", "a")
    await commit(store, term, "one", key_of(rows[1]))
    assert work.rows() == ["one"]
    found = await other.history("cron", "a")
    assert found == [
        started[0],
        replace(started[1], status="succeeded", error=None, finished_at=found[1].finished_at),
    ]
    assert in_order(now, found[1].started_at, found[1].finished_at, await now_of(store))
    late = [change(rows[1], status, error="late") for status in ("failed", "lost", "queued")]
    await store.record(term, Batch(changes=late))
    with pytest.raises(Refused):
        await store.record(term, Batch(changes=[replace(late[0], required=True)]))
    newer = await lead(other)
    await other.record(newer, Batch(changes=[replace(change, adopt=True) for change in late]))
    assert await store.history("cron", "a") == found
    assert [row.job for row in (await store.take_stock("cron")).unfinished] == ["a", "b"]


async def test_a_commit_that_is_not_final_leaves_the_run_alone(
    make_store: MakeStore, work: Work, commit: Callable[..., Any]
) -> None:
    """A run may commit as often as it likes before its last commit."""
    store = await make_store()
    term = await enrolled(store, "a")
    row = run(term, "a", await now_of(store))
    await store.record(term, claiming(row))
    before = await everything(store)
    for who in ("one", "two"):
        await commit(store, term, who, None)
    assert await everything(store) == before
    await commit(store, term, "three", key_of(row))
    assert work.rows() == ["one", "three", "two"]
    assert (await only_run(store, "a")).status == "succeeded"


FINAL: dict[str, Callable[[RunKey], RunKey]] = {
    "of another attempt": lambda key: replace(key, attempt=2),
    "of an older token": lambda key: replace(key, token=key.token - 1),
    "of another token": lambda key: replace(key, token=key.token + 1),
    "of another tick": lambda key: replace(key, tick=key.tick + MICROSECOND),
    "of another job": lambda key: replace(key, job="A"),
    "queued": lambda key: replace(key, job="queued"),
    "failed": lambda key: replace(key, job="failed"),
    "lost": lambda key: replace(key, job="lost"),
    "succeeded": lambda key: replace(key, job="succeeded"),
    "skipped": lambda key: replace(key, job="skipped"),
}


@pytest.mark.parametrize("reason", FINAL)
async def test_a_final_commit_of_what_is_not_running_is_refused(
    make_store: MakeStore, work: Work, commit: Callable[..., Any], reason: str
) -> None:
    """If the run is not the running one, the commit is refused, nothing of it is there, and the term goes on."""
    store = await make_store()
    await lead(store)
    term = await enrolled(store, "a", "queued", "failed", "lost", "succeeded", "skipped")
    now = await now_of(store)
    rows = {job: run(term, job, now) for job in ("a", "queued", "failed", "lost", "succeeded", "skipped")}
    await store.record(term, claiming(*rows.values()))
    ended = [change(row, cast(RunStatus, job), error="kept") for job, row in rows.items() if job != "a"]
    await store.record(term, Batch(changes=ended))
    before = await everything(store)
    with pytest.raises(Refused):
        await commit(store, term, "never", FINAL[reason](key_of(rows["a"])))
    assert work.rows() == []
    assert await everything(store) == before
    await commit(store, term, "after", key_of(rows["a"]))
    assert work.rows() == ["after"]
    assert (await only_run(store, "a")).status == "succeeded"


async def test_a_final_commit_of_an_older_term_is_refused(
    make_store: MakeStore, work: Work, commit: Callable[..., Any]
) -> None:
    """Once a newer term has begun, a final commit is broken by the fence, also of a run that is running as it was."""
    store, other = await make_store(), await make_store()
    old = await enrolled(store, "a")
    row = run(old, "a", await now_of(store))
    await store.record(old, claiming(row))
    new = await lead(other)
    before = await everything(store)
    for final in (key_of(row), replace(key_of(row), token=new.token), replace(key_of(row), job="unknown")):
        with pytest.raises(FenceBroken):
            await commit(store, old, "never", final)
    assert work.rows() == []
    assert await everything(store) == before
    await other.record(new, Batch(changes=[change(row, "running", attempt=2, adopt=True, required=True)]))
    with pytest.raises(Refused):
        await commit(other, new, "never", key_of(row))
    await commit(other, new, "new", RunKey("a", row.tick, 2, new.token))
    assert work.rows() == ["new"]


async def test_a_final_commit_that_is_rolled_back_is_no_success(
    database: Database, make_store: MakeStore, work: Work
) -> None:
    """A transaction that is rolled back, or a fence that is not committed, leaves the run running."""
    store = await make_store()
    term = await enrolled(store, "a")
    row = run(term, "a", await now_of(store))
    await store.record(term, claiming(row))
    transaction = await store.begin()
    await work.insert(transaction.connection, "never")
    await transaction.roll_back()
    if database.kind != "memory":  # which has no transaction around a fence
        async with work.connection() as connection:
            await work.insert(connection, "never")
            await store.fence(connection, term, key_of(row), within=30.0)
            await work.roll_back(connection)
    assert work.rows() == []
    assert (await only_run(store, "a")).status == "running"
