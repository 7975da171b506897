"""Claims and fences of two sessions that meet, at every isolation level of the user's transaction."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import asyncpg
import pytest

from aiolease import StoreUnavailable, TransactionEnded, leadership, open_store
from aiolease.stores import Store
from aiolease.stores.contract import FenceBroken, Transaction
from aiolease.stores.records import RunKey, TermKey
from tests.campaigns import LIMIT, apart, until
from tests.servers import PostgreSQLServer
from tests.stores.databases import claim
from tests.stores.ledgers import claiming, enrolled, key_of, now_of, run
from tests.stores.transactions.lending import Work, insert, lent

LEVELS = ["read committed", "repeatable read", "serializable"]
levels = pytest.mark.parametrize("level", LEVELS)
drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])


async def term_of(store: Store, name: str = "default") -> TermKey:
    lease = await claim(store, name, force=True)
    assert lease.holder is not None
    return TermKey(name, lease.holder, lease.token)


async def began(lend: Any, store: Store, level: str) -> Transaction:
    """A fenced transaction of some isolation level, whose snapshot is taken."""
    transaction = await store.begin()
    await lend.run(transaction.connection, f"SET TRANSACTION ISOLATION LEVEL {level}")
    await lend.run(transaction.connection, "SELECT 1")
    return transaction


@levels
@drivers
async def test_fenced_transactions_of_one_term_are_no_conflict(
    postgresql_url: str, work: Work, level: str, driver: str
) -> None:
    """One that saw its snapshot before others committed, and before the ledger was written, commits as well."""
    async with lent(driver, postgresql_url, size=3) as lend, open_store(lend.target) as store:
        term = await enrolled(store, "a", "b", name="default")
        now = (await store.take_stock("default")).now
        row = run(term, "a", now)
        await store.record(term, claiming(row))
        first, second = [await began(lend, store, level) for _ in range(2)]
        await lend.run(first.connection, insert("first"))
        await lend.run(second.connection, insert("second"))
        await store.record(term, claiming(run(term, "b", now)))
        await store.renew("default", term.holder, term.token, 9, 30.0)
        await second.commit(term)
        await first.commit(term, key_of(row))
        assert sorted(work.rows()) == ["first", "second"]
        await lend.whole()


@levels
@drivers
@pytest.mark.parametrize("statement", ["before the claim", "after the claim"])
async def test_what_an_older_term_fences_is_refused(
    postgresql_url: str, work: Work, level: str, driver: str, statement: str
) -> None:
    """Wherever its snapshot lies. With one from before the claim it is a conflict, which the next try explains."""
    async with (
        lent(driver, postgresql_url, size=3) as lend,
        open_store(lend.target) as store,
        open_store(apart(postgresql_url)) as other,
    ):
        term = await term_of(store)
        transaction = await began(lend, store, level) if statement == "before the claim" else None
        await term_of(other)
        if transaction is None:
            transaction = await began(lend, store, level)
        await lend.run(transaction.connection, insert("never"))
        expected = FenceBroken
        if statement == "before the claim" and level != "read committed":
            expected = StoreUnavailable  # type: ignore[assignment]
        with pytest.raises(expected):
            await transaction.commit(term)
        assert work.rows() == []
        await lend.whole()


@drivers
async def test_a_claim_waits_for_a_fence_that_is_locked_and_comes_behind_its_commit(
    postgresql_url: str, work: Work, driver: str
) -> None:
    """A user's own transaction that is fenced, and not committed yet: the claim comes after it, or not at all."""
    async with (
        lent(driver, postgresql_url, size=1) as lend,
        open_store(lend.target) as store,
        open_store(apart(postgresql_url)) as other,
    ):
        term = await term_of(store)
        connection = await lend.acquire()
        async with connection.transaction():
            await lend.run(connection, insert("fenced"))
            await store.fence(connection, term, within=30.0)
            claiming_next = asyncio.create_task(claim(other, "default", force=True))
            await asyncio.sleep(0.3)
            assert not claiming_next.done()
            assert work.rows() == []
        newer = await claiming_next
        assert newer.token == term.token + 1
        assert work.rows() == ["fenced"]
        await lend.release(connection)


@drivers
async def test_a_process_frozen_behind_its_own_fence_is_ended_by_the_server(
    postgresql_url: str, work: Work, driver: str
) -> None:
    """Who fences and never commits holds up a takeover for as long as was said, and no longer; nothing is committed."""
    async with (
        lent(driver, postgresql_url, size=1) as lend,
        open_store(lend.target) as store,
        open_store(apart(postgresql_url)) as other,
    ):
        term = await term_of(store)
        connection = await lend.acquire()
        ended = asyncio.Event()
        if driver == "asyncpg":
            connection.add_termination_listener(lambda _: ended.set())
        await lend.run(connection, "BEGIN" if driver == "asyncpg" else "SELECT 1")
        await lend.run(connection, insert("never"))
        [(own,)] = await lend.run(connection, "SELECT pg_backend_pid()")
        await store.fence(connection, term, within=0.5)
        newer = None
        async with asyncio.timeout(LIMIT):
            while newer is None:
                with contextlib.suppress(StoreUnavailable):
                    newer = await claim(other, "default", force=True)
        assert newer.token == term.token + 1
        left = f"SELECT 1 FROM pg_stat_activity WHERE pid = {own}"
        await until(lambda: work.server.sql(left) == [], "the session has ended")
        if driver == "asyncpg":  # between the server's last words and the end, it complains of its own state
            await asyncio.wait_for(ended.wait(), LIMIT)
        with pytest.raises(Exception, match=r"terminat|closed|lost|released"):
            await lend.run(connection, "COMMIT")
        await lend.release(connection)
        assert work.rows() == []


async def test_a_shorter_limit_of_the_users_stays(postgresql_url: str, work: Work) -> None:
    """`fence` shortens the time that a transaction may be idle, never lengthens it; and for this transaction only."""
    shown = "SHOW idle_in_transaction_session_timeout"
    async with lent("asyncpg", postgresql_url, size=1) as lend, open_store(lend.target) as store:
        term = await term_of(store)
        connection = await lend.acquire()
        for before, during in (("0", "7s"), ("5s", "5s"), ("1min", "7s"), ("1234ms", "1234ms")):
            await lend.run(connection, f"SET idle_in_transaction_session_timeout = '{before}'")
            async with connection.transaction():
                await store.fence(connection, term, within=7.0)
                assert await lend.run(connection, shown) == [(during,)]
            assert await lend.run(connection, shown) == [(before,)]
        await lend.release(connection)


@levels
async def test_claims_and_fences_that_meet_at_random_keep_the_order_of_terms(
    postgresql_url: str, work: Work, level: str
) -> None:
    """Terms follow each other as fast as they can, while all of them commit: no row is older than one before it."""
    dice = random.Random(7)
    database = work.database
    work.server.sql("CREATE TABLE written (id BIGSERIAL PRIMARY KEY, term BIGINT NOT NULL)", database)
    terms: list[TermKey] = []
    committed: list[int] = []
    async with contextlib.AsyncExitStack() as stack:
        lends = [await stack.enter_async_context(lent("asyncpg", postgresql_url, size=3)) for _ in range(2)]
        stores = [await stack.enter_async_context(open_store(lend.target)) for lend in lends]
        terms.append(await term_of(stores[0]))

        async def claim_on(store: Store) -> None:
            for _ in range(25):
                seen = await store.read("default")
                holder = f"holder-{dice.random()}"
                with contextlib.suppress(StoreUnavailable):
                    lease = await store.claim("default", holder, 30.0, seen=seen, force=True)
                    if lease is not None and lease.holder == holder:
                        terms.append(TermKey("default", holder, lease.token))
                await asyncio.sleep(dice.random() / 100)

        async def write_by(number: int) -> None:
            for _ in range(60):
                lend, store, term = lends[number], stores[number], terms[-1 - dice.randrange(min(len(terms), 2))]
                transaction = await store.begin()
                await lend.run(transaction.connection, f"SET TRANSACTION ISOLATION LEVEL {level}")
                await lend.run(transaction.connection, f"INSERT INTO written (term) VALUES ({term.token})")
                await asyncio.sleep(dice.random() / 200)
                with contextlib.suppress(FenceBroken, StoreUnavailable):
                    await transaction.commit(term)
                    committed.append(term.token)

        async with asyncio.timeout(2 * LIMIT), asyncio.TaskGroup() as tasks:
            for store in stores:
                tasks.create_task(claim_on(store))
            for number in (0, 1, 0, 1):
                tasks.create_task(write_by(number))
        for lend in lends:
            await lend.whole()
    tokens = [term.token for term in sorted(terms, key=lambda term: term.token)]
    assert tokens == list(range(1, len(tokens) + 1))
    rows = [term for (term,) in work.server.sql("SELECT term FROM written ORDER BY id", database)]
    assert sorted(rows) == sorted(committed)
    assert len(committed) > 20
    # By the order of their commits, which the transactions' ends tell: no older term's behind a newer one's.
    assert committed == sorted(committed), "an older term committed behind a newer one"


async def test_the_ledger_is_written_at_one_moment_by_one_of_two(postgresql_url: str) -> None:
    """Batches of one term that meet lock the fence one after the other: the second is refused, and no deadlock."""
    async with open_store(postgresql_url) as store, open_store(apart(postgresql_url)) as other:
        jobs = [f"job-{number}" for number in range(40)]
        term = await enrolled(store, *jobs)
        now = await now_of(store)
        batches = [claiming(*(run(term, job, now) for job in order)) for order in (jobs, jobs[::-1])]
        results = await asyncio.gather(
            store.record(term, batches[0]), other.record(term, batches[1]), return_exceptions=True
        )
        assert sorted(type(result).__name__ for result in results) == ["NoneType", "Refused"]
        assert len((await store.take_stock("cron")).unfinished) == 40


async def test_the_ledger_does_not_wait_for_what_users_have_fenced(postgresql_url: str, work: Work) -> None:
    """Transactions that are fenced and go on, one after the other without a pause, keep no batch of the leader back."""
    async with lent("asyncpg", postgresql_url) as lend, open_store(lend.target) as store:
        term = await enrolled(store, "a", name="default")
        async with lend.target.acquire() as fenced, fenced.transaction():
            await store.fence(fenced, term, within=LIMIT)
            await lend.run(fenced, insert("user"))
            now = (await store.take_stock("default")).now
            await store.record(term, claiming(run(term, "a", now)))
    assert work.rows() == ["user"]


async def test_a_final_of_a_run_that_is_over_is_refused(postgresql: PostgreSQLServer, postgresql_url: str) -> None:
    """Nothing of the transaction is committed, and its locks are gone."""
    async with open_store(postgresql_url) as store:
        term = await enrolled(store, "a")
        transaction = await store.begin()
        assert isinstance(transaction.connection, asyncpg.Connection)
        await transaction.connection.execute("CREATE TABLE never (id INT)")
        with pytest.raises(Exception) as refused:  # noqa: PT011 - of the contract, which is not an error of the user's
            await transaction.commit(term, RunKey("a", await now_of(store), 1, term.token))
        assert type(refused.value).__name__ == "Refused"
    database = postgresql_url.rpartition("/")[2]
    assert postgresql.sql("SELECT to_regclass('never')", database) == [(None,)]


async def test_a_locked_row_does_not_hold_up_the_other_leases_of_a_process(postgresql_url: str, work: Work) -> None:
    """A process that leads others waits only a moment for a row that a stranger has locked."""
    async with lent("asyncpg", postgresql_url, size=1) as lend, open_store(postgresql_url) as store:
        mine = await term_of(store, "mine")
        await term_of(store, "locked")
        seen = await store.read("locked")
        stranger = await lend.acquire()
        async with stranger.transaction():
            await lend.run(stranger, "SELECT * FROM aiolease_fence WHERE name = 'locked' FOR UPDATE")
            began = asyncio.get_running_loop().time()
            claiming_it = asyncio.create_task(store.claim("locked", "next", 30.0, seen=seen, force=True))
            await asyncio.sleep(0)
            assert await store.renew("mine", mine.holder, mine.token, 9, 30.0) is not None
            assert asyncio.get_running_loop().time() - began < 1.0
            with pytest.raises(StoreUnavailable, match="55P03"):
                await claiming_it
        await lend.release(stranger)
        assert (await store.claim("locked", "next", 30.0, seen=seen, force=True)).holder == "next"  # type: ignore[union-attr]


@drivers
async def test_a_swallowed_error_is_named_as_the_reason(postgresql_url: str, work: Work, driver: str) -> None:
    """The block did not end the transaction by a command: it is told of its failed statement, and of the savepoint."""
    async with lent(driver, postgresql_url) as lend, leadership(lend.target) as lead:

        async def swallows() -> None:
            async with lead.transaction() as connection:
                with contextlib.suppress(Exception):
                    await lend.run(connection, "SELECT nothing")

        with pytest.raises(TransactionEnded, match=r"its error was swallowed.*savepoint"):
            await swallows()
        assert work.rows() == []
