"""What is SQLite's own in a ledger."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any, cast

import pytest

from aiolease.errors import SchemaMissing, StoreUnavailable
from aiolease.stores import Store
from aiolease.stores.batch import Batch, LedgerReading
from aiolease.stores.contract import Refused
from aiolease.stores.sql.ledger import PruneStatements
from aiolease.stores.sql.schema import SCHEMA_VERSION
from aiolease.stores.sqlite import SQLiteStore
from aiolease.stores.sqlite.dialect import SQLiteDialect
from tests.campaigns import LIMIT
from tests.stores.ledgers import (
    MICROSECOND,
    SECOND,
    claiming,
    enrolled,
    enrolment,
    everything,
    key_of,
    lead,
    now_of,
    only_run,
    run,
)


def to_version_1(path: Path) -> None:
    """What a file was like before there was a ledger."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in (
            "DROP TABLE aiolease_run",
            "DROP TABLE aiolease_job",
            "UPDATE aiolease_lease SET token = 1 WHERE name = 'schema version'",
        ):
            connection.execute(statement)


def select(path: Path, statement: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
async def test_sqlite_upgrades_a_file_without_a_ledger(tmp_path: Path, journal_mode: str) -> None:
    """A file of version 1 gets the tables it lacks, keeps its leases and its journal mode, and is of version 2 then."""
    path = tmp_path / "leases.db"
    async with aclosing(SQLiteStore(path)) as store:
        old = await lead(cast(Store, store))
    to_version_1(path)
    assert select(path, f"PRAGMA journal_mode = {journal_mode}") == [(journal_mode,)]
    async with aclosing(SQLiteStore(path, create_tables=False)) as store:
        for _ in range(2):
            with pytest.raises(SchemaMissing, match=rf"version 1.* needs {SCHEMA_VERSION}.*create_tables=False"):
                await store.take_stock("cron")
    assert select(path, "SELECT COUNT(*) FROM sqlite_master WHERE name LIKE '%run%'") == [(0,)]
    async with aclosing(SQLiteStore(path)) as one, aclosing(SQLiteStore(path)) as two:
        await asyncio.gather(one.enroll(old, [enrolment("a")]), two.enroll(old, [enrolment("b")]))
        assert set((await one.take_stock("cron")).jobs) == {"a", "b"}
        lease = await two.read("cron")
        assert lease is not None
        assert (lease.holder, lease.token) == (old.holder, old.token)
    assert select(path, "SELECT token FROM aiolease_lease WHERE name = 'schema version'") == [(SCHEMA_VERSION,)]
    assert select(path, "PRAGMA journal_mode") == [(journal_mode,)]
    async with aclosing(SQLiteStore(path, create_tables=False)) as store:
        assert set((await store.take_stock("cron")).jobs) == {"a", "b"}


async def test_sqlite_makes_a_table_of_the_ledger_that_is_missing(tmp_path: Path) -> None:
    """A table that was dropped is an error once, and made anew when it is next needed."""
    path = tmp_path / "leases.db"
    async with aclosing(SQLiteStore(path)) as store:
        term = await enrolled(cast(Store, store), "a")
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("DROP TABLE aiolease_run")
        with pytest.raises(SchemaMissing, match="no such table"):
            await store.take_stock("cron")
        await store.record(term, claiming(run(term, "a", await now_of(cast(Store, store)))))
        assert len(await store.history("cron", "a")) == 1


async def test_sqlite_refuses_a_tick_to_the_microsecond(tmp_path: Path) -> None:
    """By the store's clock, as it is in the transaction: 5 s ahead is not too much, and a microsecond more is."""
    moment = 1_700_000_000_123_456
    async with aclosing(SQLiteStore(tmp_path / "leases.db")) as opened:
        store = cast(Store, opened)
        opened._now = lambda: moment
        term = await enrolled(store, "a")
        now = await now_of(store)
        with pytest.raises(Refused):
            await store.record(term, Batch(high_ticks={"a": now + 5 * SECOND + MICROSECOND}))
        await store.record(term, Batch(high_ticks={"a": now + 5 * SECOND}))
        moment += 1
        await store.record(term, claiming(run(term, "a", now + 5 * SECOND + MICROSECOND)))
        row = await only_run(store, "a")
        assert row.started_at == now + MICROSECOND
        moment += 1
        transaction = await store.begin()
        moment += 1
        await transaction.commit(term, key_of(row))
        assert (await only_run(store, "a")).finished_at == now + 3 * MICROSECOND


async def test_sqlite_keeps_moments_as_microseconds(tmp_path: Path) -> None:
    """A person with a client program finds the columns of the design, and UTC microseconds in them."""
    path = tmp_path / "leases.db"
    moment = 1_700_000_000_123_456
    async with aclosing(SQLiteStore(path)) as opened:
        store = cast(Store, opened)
        opened._now = lambda: moment
        term = await enrolled(store, "a")
        now = await now_of(store)
        await store.record(term, claiming(run(term, "a", now - MICROSECOND)))
        await store.trigger("cron", "a")
        await store.pause("cron", "a")
    columns = (
        "lease, job, schedule, timezone, known_since, schedule_since, resumed_at, paused_at, high_tick, requested_at"
    )
    assert select(path, f"SELECT {columns} FROM aiolease_job") == [
        ("cron", "a", "every 30s", "", moment, moment, None, moment, moment - 1, moment)
    ]
    columns = "lease, job, tick, attempt, token, holder, status, started_at, finished_at, error, tick_from, count"
    assert select(path, f"SELECT {columns} FROM aiolease_run") == [
        ("cron", "a", moment - 1, 1, term.token, term.holder, "running", moment, None, None, None, None)
    ]


async def test_sqlite_reads_one_moment_of_the_ledger(tmp_path: Path) -> None:
    """Jobs and runs of a stock belong together, while another process claims as fast as it can."""
    path = tmp_path / "leases.db"
    async with aclosing(SQLiteStore(path)) as opened, aclosing(SQLiteStore(path)) as watching:
        store = cast(Store, opened)
        term = await enrolled(store, "a")
        start, done = await now_of(store) - 3600 * SECOND, asyncio.Event()

        async def write() -> None:
            for number in range(200):
                await store.record(term, claiming(run(term, "a", start + number * SECOND)))
            done.set()

        def whole(stock: LedgerReading) -> bool:
            return not stock.unfinished or stock.jobs["a"].high_tick == stock.unfinished[-1].tick

        writing = asyncio.create_task(write())
        readings = 0
        async with asyncio.timeout(LIMIT):
            while not done.is_set():
                assert whole(await watching.take_stock("cron"))
                readings += 1
            await writing
        assert readings > 10


async def test_sqlite_enrolls_all_or_nothing(tmp_path: Path) -> None:
    """What fails at one of several jobs leaves none of them behind."""
    path = tmp_path / "leases.db"
    async with aclosing(SQLiteStore(path)) as opened:
        store = cast(Store, opened)
        term = await enrolled(store, "a")
        before = await everything(store)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            failing = "BEFORE INSERT ON aiolease_job WHEN new.job = 'c' BEGIN SELECT RAISE(ABORT, 'disk on fire'); END"
            connection.execute(f"CREATE TRIGGER failing {failing}")
        with pytest.raises(StoreUnavailable, match="disk on fire"):
            await store.enroll(term, [enrolment("a", "every 31s"), enrolment("b"), enrolment("c")])
        assert await everything(store) == before


@pytest.mark.parametrize("prefix", ["aiolease_", "second_"])
async def test_sqlite_finds_runs_by_an_index(tmp_path: Path, prefix: str) -> None:
    """The stock reads no runs but the unfinished, and pruning and history those of their job only."""
    path = tmp_path / "leases.db"
    async with aclosing(SQLiteStore(path, table_prefix="first_")) as store:
        await store.take_stock("cron")
    async with aclosing(SQLiteStore(path, table_prefix=prefix)) as store:
        await store.take_stock("cron")
        pruning = PruneStatements(SQLiteDialect(prefix)).each
        statements = {
            store._ledger.unfinished.text: f"SEARCH {prefix}run USING INDEX {prefix}run_unfinished (lease=?)",
            store._ledger.history.text: f"SEARCH {prefix}run USING PRIMARY KEY (lease=? AND job=?)",
            pruning[0].text: f"SEARCH {prefix}run USING PRIMARY KEY (lease=? AND job=? AND tick=?)",
            pruning[1].text: f"SEARCH {prefix}run USING PRIMARY KEY (lease=? AND job=? AND tick=?)",
        }
    for statement, step in statements.items():
        with closing(sqlite3.connect(path)) as connection:
            values = {"lease": "cron", "job": "a", "keep": 1, "limit": 9, "step": 9}
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
        assert plan[0] == step
        assert not [step for step in plan if "ORDER BY" in step]
