"""Fenced transactions on a cluster: old and new leader write through different nodes."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from uuid import uuid4

import asyncmy
import pytest

from aiolease import CommitUnknown, LeadershipLost, StoreUnavailable, leadership, open_store
from aiolease._clock import boot_clock
from aiolease._election.claim import new_holder
from aiolease.events import Lost
from tests.campaigns import LIMIT, Recorder, apart, until
from tests.servers import GaleraCluster, MariaDBServer


@pytest.fixture
def database(galera: GaleraCluster) -> str:
    name = f"test_{uuid4().hex[:12]}"
    galera.nodes[0].create_database(name)
    galera.nodes[0].sql("CREATE TABLE work (id BIGINT AUTO_INCREMENT PRIMARY KEY, who VARCHAR(40))", name)
    return name


def rows(node: MariaDBServer, database: str) -> list[str]:
    """Who has written, as this node sees it once it has applied all that the cluster has ordered."""
    sql = "SET STATEMENT wsrep_sync_wait = 1 FOR SELECT who FROM work"
    return sorted(row[0] for row in node.sql(sql, database))


@pytest.mark.parametrize(("way", "node"), [("transaction", 0), ("fence", 1), ("transaction", 2)])
async def test_an_older_term_never_commits_after_a_newer_began(
    galera: GaleraCluster, database: str, way: str, node: int
) -> None:
    """While the old leader commits through one node without a pause, another claims through a second.

    No commit of the old one that was sent after the claim succeeded is anywhere, on any node.
    """
    first, second = galera.nodes[node], galera.nodes[(node + 1) % 3]
    began: dict[str, float] = {}
    committed: set[str] = set()
    unknown: set[str] = set()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(
            asyncmy.create_pool(host=first.host, port=first.port, user="root", db=database, maxsize=10)
        )
        store = await stack.enter_async_context(open_store(apart(second.url(database))))

        async def newer() -> float:
            await asyncio.sleep(0.5)
            async with asyncio.timeout(LIMIT):
                while True:
                    seen = await store.read("default")
                    assert seen is not None
                    holder = new_holder()
                    try:
                        lease = await store.claim("default", holder, 30.0, seen=seen, force=True)
                    except StoreUnavailable:
                        continue
                    if lease is not None and lease.holder == holder:
                        return boot_clock()

        async def older() -> None:
            async with leadership(pool, lease_duration=60.0) as lead:
                claiming.set()

                async def commits(who: str) -> None:
                    number = 0
                    while True:
                        number += 1
                        row = f"old {who} {number}"
                        began[row] = boot_clock()
                        try:
                            if way == "transaction":
                                async with lead.transaction() as connection, connection.cursor() as cursor:
                                    await cursor.execute("INSERT INTO work (who) VALUES (%s)", (row,))
                            else:
                                async with pool.acquire() as connection:
                                    await connection.begin()
                                    try:
                                        async with connection.cursor() as cursor:
                                            await cursor.execute("INSERT INTO work (who) VALUES (%s)", (row,))
                                        await lead.fence(connection)
                                        await connection.commit()
                                    except asyncmy.errors.OperationalError as error:
                                        await connection.rollback()
                                        if error.args[0] != 1213:
                                            raise
                                        continue
                                    except BaseException:
                                        await connection.rollback()
                                        raise
                            committed.add(row)
                        except StoreUnavailable:
                            pass
                        except CommitUnknown:
                            unknown.add(row)
                        except asyncio.CancelledError:  # by the loss that another met; perhaps behind the COMMIT
                            unknown.add(row)
                            raise

                async with asyncio.TaskGroup() as tasks:
                    for who in "abcdefgh":
                        tasks.create_task(commits(who))

        claiming = asyncio.Event()
        old = asyncio.create_task(older())
        async with asyncio.timeout(LIMIT):
            await claiming.wait()
        claimed_at = await newer()
        at_claim = await asyncio.to_thread(rows, second, database)
        async with asyncio.timeout(LIMIT):
            await asyncio.wait([old])
        error = old.exception()
        assert isinstance(error, LeadershipLost | BaseExceptionGroup), repr(error)
        assert not isinstance(error, BaseExceptionGroup) or error.subgroup(LeadershipLost)
        if isinstance(error, BaseExceptionGroup):
            assert error.split(LeadershipLost)[1] is None, repr(error)
    everywhere = [await asyncio.to_thread(rows, node, database) for node in galera.nodes]
    assert everywhere[0] == everywhere[1] == everywhere[2] == at_claim
    assert committed <= set(at_claim) <= committed | unknown
    assert len(committed) > 5
    late = [row for row in at_claim if began[row] > claimed_at]
    assert not late, "an older term committed after a newer one began"


async def test_fences_abort_no_heartbeat(galera: GaleraCluster, database: str) -> None:
    """Two hundred fenced commits through two nodes abort no renewal, though renewals come ten times a second.

    They are sent by hand: a heartbeat this quick would leave each of them a twentieth of a second.
    """
    heard, renewed, committed, conflicts = Recorder(), 0, 0, 0
    nodes = galera.nodes[:2]
    async with AsyncExitStack() as stack:
        pools = [
            await stack.enter_async_context(
                asyncmy.create_pool(host=node.host, port=node.port, user="root", db=database, maxsize=5)
            )
            for node in nodes
        ]
        store = await stack.enter_async_context(open_store(pools[0]))
        lead = await stack.enter_async_context(leadership(pools[0], lease_duration=900.0, on_event=heard))

        # A node that has not applied the claim yet would refuse the fence.
        await asyncio.to_thread(rows, nodes[1], database)

        async def through_the_pool() -> None:
            nonlocal committed, conflicts
            for number in range(100):
                try:
                    async with lead.transaction() as connection, connection.cursor() as cursor:
                        await cursor.execute("INSERT INTO work (who) VALUES (%s)", (f"pool {number}",))
                    committed += 1
                except StoreUnavailable:
                    conflicts += 1

        async def through_another_node() -> None:
            nonlocal committed, conflicts
            for number in range(100):
                async with pools[1].acquire() as connection:
                    try:
                        await connection.begin()
                        async with connection.cursor() as cursor:
                            await cursor.execute("INSERT INTO work (who) VALUES (%s)", (f"other {number}",))
                        await lead.fence(connection)
                        await connection.commit()
                        committed += 1
                    except (StoreUnavailable, asyncmy.errors.OperationalError):
                        conflicts += 1
                        await connection.rollback()

        async def renewals() -> None:
            nonlocal renewed
            lease = await store.read("default")
            while True:
                assert lease is not None
                lease = await store.renew("default", lead.holder, lead.token, lease.beat + 1, 900.0)
                assert lease is not None
                assert lease.held_by(lead.holder, lead.token)
                renewed += 1
                await asyncio.sleep(0.1)

        async with asyncio.timeout(4 * LIMIT):
            renewing = asyncio.create_task(renewals())
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(through_the_pool())
                tasks.create_task(through_another_node())
            await until(lambda: renewing.done() or renewed >= 5, "five renewals, or one that failed")
            assert not renewing.done(), renewing.exception()
            renewing.cancel()
            await asyncio.wait([renewing])
        lead.check()
    assert not heard.of(Lost)
    assert len(await asyncio.to_thread(rows, nodes[1], database)) == committed
    assert committed + conflicts == 200
    assert committed > 100
