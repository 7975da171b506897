"""Calls that are cancelled, answers that are lost, servers that freeze, restart, or are standbys."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import time
from typing import Any

import asyncpg
import pytest
from sqlalchemy import event

from aiolease import StoreUnavailable, leadership, open_store
from aiolease._waiting import time_limited
from aiolease.events import Renewed
from aiolease.stores.contract import FenceBroken, Refused
from aiolease.stores.postgresql import connectors
from aiolease.stores.postgresql.links import Link
from tests.campaigns import LIMIT, Recorder, apart, database_of, kill_sessions, once, through
from tests.servers import Action, PostgreSQLServer, TCPProxy
from tests.stores.databases import claim, free, renew, row
from tests.stores.ledgers import claiming, enrolled, now_of, run
from tests.stores.postgresql.using import by, drivers
from tests.stores.transactions.lending import lent


@drivers
async def test_whatever_is_cancelled_the_store_goes_on(postgresql_url: str, driver: str) -> None:
    """Each call, cancelled at any moment, ends at once, takes effect as a whole or not, and leaves nothing behind."""
    dice = random.Random(5)
    async with open_store(by(driver, postgresql_url)) as store, open_store(apart(postgresql_url)) as other:
        term = await enrolled(store, "a", "b")
        beat = 100

        async def record() -> None:
            now = await now_of(store)
            await store.record(term, claiming(run(term, "a", now), run(term, "b", now)))

        async def transaction() -> None:
            begun = await store.begin()
            try:
                await begun.connection.execute("SELECT 1")
            finally:
                await begun.roll_back()

        for number in range(120):
            beat += 1
            calls: list[Any] = [
                lambda: store.read("cron"),
                lambda beat=beat: store.renew("cron", term.holder, term.token, beat, 30.0),
                lambda: store.watch("cron", 5.0, lease=None, poll=5.0, hint=True),
                lambda: store.take_stock("cron"),
                record,
                lambda: store.trigger("cron", "a"),
                lambda: store.prune("cron", ["a", "b"], 2),
                transaction,
            ]
            task = asyncio.create_task(calls[number % len(calls)]())
            for _ in range(dice.randrange(10)):
                await asyncio.sleep(0)
            await asyncio.sleep(dice.choice([0, 0.0005, 0.001, 0.003, 0.01]))
            task.cancel()
            began = time.monotonic()
            with contextlib.suppress(asyncio.CancelledError, Refused, StoreUnavailable):
                await task
            assert time.monotonic() - began < 2.0
            async with asyncio.timeout(LIMIT):
                lease = await row(store, "cron")
            assert (lease.holder, lease.token) == (term.holder, term.token)
            stock = await other.take_stock("cron")
            ticks = [run.tick for run in stock.unfinished]
            assert all(ticks.count(tick) == 2 for tick in ticks), "half of a batch"


@drivers
@pytest.mark.parametrize("fate", ["swallow", "cut"])
async def test_a_lost_answer_costs_one_attempt(
    postgresql: PostgreSQLServer, postgresql_url: str, driver: str, fate: Any
) -> None:
    """A claim and a batch whose answers are lost took effect, and may be asked again over a new connection."""
    async with (
        TCPProxy(postgresql.host, postgresql.port, "postgresql") as proxy,
        open_store(by(driver, through(postgresql_url, proxy.port))) as store,
    ):
        term = await enrolled(store, "a")
        lease = await row(store, "cron")
        for beat in (20, 30, 40):  # by then psycopg has prepared it, too
            await renew(store, lease, beat)

        async def lost(statement: bytes, call: Any) -> None:
            proxy.on_query = once(statement, Action(answer=fate))
            with contextlib.suppress(StoreUnavailable):
                await time_limited(1.0, "store", call)
            proxy.on_query = None

        now = await now_of(store)
        await lost(b"aiolease fence", store.record(term, claiming(run(term, "a", now))))
        with pytest.raises(Refused):  # it had taken effect
            await store.record(term, claiming(run(term, "a", now)))
        await lost(b"GREATEST", store.claim("cron", "next", 30.0, seen=await row(store, "cron"), force=True))
        assert (await row(store, "cron")).holder == "next"
        with pytest.raises(FenceBroken):
            await store.record(term, claiming(run(term, "a", now)))


@drivers
async def test_a_frozen_server_is_given_up_by_each_attempt_and_found_again(
    postgresql: PostgreSQLServer, postgresql_url: str, driver: str
) -> None:
    """Attempts end by their own limits; thawed, the server answers; what it was sent before undoes nothing."""
    async with open_store(by(driver, postgresql_url)) as store:
        lease = await claim(store, "cron")
        postgresql.freeze()
        for beat in (20, 30):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await time_limited(0.3, "store", renew(store, lease, beat))
            assert time.monotonic() - began < 1.5
        postgresql.thaw()
        renewed = await renew(store, lease, 40)
        assert renewed is not None
        assert renewed.beat == 40
        await asyncio.sleep(0.3)
        assert (await row(store, "cron")).beat == 40


@drivers
async def test_a_server_that_restarts_is_found_again(
    postgresql: PostgreSQLServer, postgresql_url: str, driver: str
) -> None:
    """After a crash: what was committed is there, and the next attempt connects anew."""
    async with open_store(by(driver, postgresql_url)) as store:
        lease = await claim(store, "cron")
        await renew(store, lease, 20)
        await asyncio.to_thread(postgresql.kill)
        with pytest.raises(StoreUnavailable):
            await store.read("cron")
        await asyncio.to_thread(postgresql.recover)
        found = await row(store, "cron")
        assert (found.holder, found.token, found.beat) == (lease.holder, 1, 20)
        await free(store, found)


@drivers
async def test_a_database_that_is_read_only_by_default(
    postgresql: PostgreSQLServer, postgresql_url: str, driver: str
) -> None:
    """Our own sessions are settled to write all the same; the user's transactions obey it, and the term goes on.

    Also if it is switched on under the leader, whose connections end then.
    """
    database, heard = database_of(postgresql_url), Recorder()
    async with leadership(by(driver, postgresql_url), lease_duration=1.5, on_event=heard) as lead:
        postgresql.sql(f'ALTER DATABASE "{database}" SET default_transaction_read_only = on')
        assert kill_sessions(postgresql, postgresql_url)
        await heard.next(Renewed, 2)
        with pytest.raises(Exception, match=r"read-only|25006"):
            async with lead.transaction() as connection:
                await connection.execute("CREATE TABLE never (id INT)")
        lead.check()
    async with leadership(by(driver, postgresql_url), timeout=LIMIT) as lead:
        lead.check()


@drivers
async def test_a_pool_that_is_exhausted_costs_no_lease(postgresql_url: str, driver: str) -> None:
    """Our own connections are not the pool's."""
    async with lent(driver, postgresql_url, size=1) as lend:
        held = await lend.acquire()
        async with leadership(lend.target, lease_duration=1.0) as lead:
            await asyncio.sleep(1.5)
            lead.check()
        await lend.release(held)


async def test_a_connection_that_cannot_be_reset_is_thrown_away_in_silence(
    postgresql: PostgreSQLServer, postgresql_url: str
) -> None:
    """The pool of asyncpg resets what comes back to its pool: if the answer is lost, nothing is left, or logged."""
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    def lose_resets(query: bytes) -> Action | None:
        return Action(answer="swallow") if b"UNLISTEN" in query else None

    async with (
        TCPProxy(postgresql.host, postgresql.port, "postgresql") as proxy,
        lent("asyncpg", postgresql_url, port=proxy.port) as lend,
        open_store(lend.target) as store,
    ):
        transaction = await store.begin()
        proxy.on_query = lose_resets
        began = time.monotonic()
        await transaction.roll_back()
        assert 1.5 < time.monotonic() - began < LIMIT
        proxy.on_query = None
        await asyncio.sleep(0.1)
        gc.collect()
        await lend.whole()
    assert complaints == []


@pytest.mark.parametrize("driver", ["psycopg"])
async def test_a_process_that_stood_still_within_a_transaction_of_ours_goes_on(
    postgresql_url: str, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has ended the transaction, which held what others wait for; what was asked is done over another."""
    stood_still: list[Link] = []

    async def stands_still(link: Link, message: str) -> None:
        if message == "COMMIT" and not stood_still:
            stood_still.append(link)
            time.sleep(2.5)
        await tell(link, message)

    async with open_store(by(driver, postgresql_url)) as store, open_store(apart(postgresql_url)) as other:
        lease = await claim(store, "cron")
        await store.status("cron")
        kind = type(store._asking_session._connection)  # type: ignore[attr-defined]
        tell = kind.tell
        monkeypatch.setattr(kind, "tell", stands_still)
        assert await store.resign("cron") == lease.token
        assert len(stood_still) == 1
        assert (await row(other, "cron")).resign_token == lease.token


@drivers
async def test_a_host_that_answers_the_login_alone_is_passed_over(
    postgresql: PostgreSQLServer, postgresql_url: str, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several hosts one hangs as it is asked whether it is the primary: the next one is found."""
    monkeypatch.setattr(connectors, "CONNECT_LIMIT", 1.0)
    async with TCPProxy(postgresql.host, postgresql.port, "postgresql") as proxy:
        proxy.on_query = lambda query: Action(answer="swallow") if b"pg_is_in_recovery" in query else None
        hosts = f"127.0.0.1:{proxy.port},{postgresql.host}:{postgresql.port}"
        url = f"postgresql+{driver}://postgres@{hosts}/{database_of(postgresql_url)}?sslmode=disable"
        # The transaction has 5 s to begin, and psycopg alone would take them to ask the host to cancel.
        options: dict[str, Any] = {"lease_duration": 6.0, "timeout": LIMIT}
        async with leadership(url, **options) as lead, lead.transaction() as connection:
            await connection.execute("SELECT 1")
        assert proxy.connections >= 2, "of ours, and of the transaction"


@pytest.mark.parametrize("number", [1, 2])
async def test_an_engines_connection_that_hangs_as_it_is_made_is_not_left_open(
    postgresql: PostgreSQLServer, postgresql_url: str, number: int
) -> None:
    """Whichever rollback has no answer: SQLAlchemy's, or ours of what the event `connect` has begun."""
    seen = 0

    def swallow(query: bytes) -> Action | None:
        nonlocal seen
        seen += query.startswith(b"ROLLBACK")
        return Action(answer="swallow") if seen == number else None

    async with (
        TCPProxy(postgresql.host, postgresql.port, "postgresql") as proxy,
        lent("engine-psycopg", postgresql_url, port=proxy.port) as lend,
    ):

        @event.listens_for(lend.target.sync_engine, "connect")
        def connected(connection: Any, _: object) -> None:
            cursor = connection.cursor()
            cursor.execute("SELECT 1")
            cursor.close()

        async with open_store(lend.target) as store:
            proxy.on_query = swallow
            with pytest.raises(StoreUnavailable):
                await time_limited(0.7, "store", store.read("cron"))
            assert seen == number


async def test_a_lease_is_kept_by_exchanges_of_one_round_trip(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What asyncpg would prepare first is prepared as it connects: an attempt has time for one round trip."""
    async with open_store(by("asyncpg", postgresql_url)) as store, open_store(apart(postgresql_url)) as other:
        await free(other, await claim(other, "cron"))
        await store.read("cron")

        async def prepare(connection: Any, sql: str, **options: Any) -> None:
            pytest.fail(f"not prepared: {sql}")

        monkeypatch.setattr(asyncpg.Connection, "prepare", prepare)
        lease = await claim(store, "cron")
        assert await renew(store, lease, 20) is not None
        await free(store, lease)


@drivers
async def test_a_round_trip_is_measured_as_it_connects(
    postgresql: PostgreSQLServer, postgresql_url: str, driver: str
) -> None:
    """Connecting takes many: the time that all of them take says how long one does not."""
    async with (
        TCPProxy(postgresql.host, postgresql.port, "postgresql") as proxy,
        open_store(by(driver, through(postgresql_url, proxy.port))) as store,
    ):
        proxy.delay(0.05)
        session = store._lease_session  # type: ignore[attr-defined]
        began = time.monotonic()
        link = await session._connecting.get()
        assert 0.1 <= session._round_trip < (time.monotonic() - began) / 2
        link.drop()
