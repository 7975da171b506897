"""Cancellation of a campaign on MySQL and MariaDB leaves nothing behind."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from aiolease import Leadership, LeadershipLost, leadership
from aiolease._clock import boot_clock
from aiolease.events import Event, Lost, Renewed, RenewFailed
from tests.campaigns import LIMIT, Recorder, apart, database_of, sessions, until
from tests.conftest import open_sockets
from tests.servers import Server
from tests.stores.mysql.connecting import SLACK


@pytest.mark.parametrize("kind", ["native", "native twice", "anyio"])
async def test_cancellation_leaves_nothing_behind(mysql_server: Server, mysql_url: str, kind: str) -> None:
    """A campaign that is cancelled.

    At any turn of the loop, while it connects, reads, waits, claims, leads or releases, ends, leaves no task and no
    connection, here or at the server, and the row at most until it expires.
    """

    async def leads(name: str) -> None:
        async with leadership(mysql_url, name, lease_duration=1.5):
            await asyncio.sleep(0.002)

    async def work(name: str, scope: anyio.CancelScope) -> None:
        with scope:
            await leads(name)

    async def cancelled(names: tuple[str, ...], turns: int) -> bool:
        """Whether the campaigns ended, cancelled after so many turns of the loop."""
        scopes = [anyio.CancelScope() for _ in names]
        tasks = [asyncio.create_task(work(name, scope)) for name, scope in zip(names, scopes, strict=True)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for _ in range(2 if kind == "native twice" else 1):
            for task, scope in zip(tasks, scopes, strict=True):
                scope.cancel() if kind == "anyio" else task.cancel()
            await asyncio.sleep(0)
        _, pending = await asyncio.wait(tasks, timeout=2.0)
        for task in pending:
            task.cancel()  # it went on as if nothing had been
            await asyncio.wait([task], timeout=LIMIT)
        return not pending

    left: dict[tuple[str, int], list[str]] = {}

    async def check(phase: str, names: tuple[str, ...], turns: int) -> None:
        tasks, sockets = asyncio.all_tasks(), open_sockets()
        ended = await cancelled(names, turns)
        await asyncio.sleep(0)
        found = [peer for name, peer in open_sockets().items() if name not in sockets]
        found += [repr(task) for task in asyncio.all_tasks() - tasks]
        if found or not ended:
            left[phase, turns] = found if ended else ["the cancellation was swallowed"]

    points = [*range(30), *range(30, 90, 4), *range(90, 500, 20)]
    await leads("tables")
    for turns in points:
        await check("alone", (f"alone-{turns}",), turns)
    holders = [apart(mysql_url), apart(mysql_url)]
    async with leadership(holders[0], "one", lease_duration=60), leadership(holders[1], "two", lease_duration=60):
        await asyncio.sleep(0.1)  # their keepers have begun
        for turns in points:
            await check("waits in the lock", ("one",), turns)
            await check("polls", ("one", "two"), turns)
    assert not left
    await until(lambda: not sessions(mysql_server, mysql_url), "the server has no connection left")
    taken = mysql_server.sql("SELECT name FROM aiolease_lease WHERE holder IS NOT NULL", database_of(mysql_url))
    assert len(taken) < len(points) / 2, "most claims are given back"
    for name in [name for (name,) in taken][:1]:
        began = boot_clock()
        async with leadership(mysql_url, name, timeout=LIMIT, lease_duration=1.5):
            assert boot_clock() < began + 1.5 + SLACK


def outcome(event: Event) -> str:
    return type(event).__name__


async def test_a_body_may_hold_two_leases_and_lose_one(mysql_server: Server, mysql_url: str) -> None:
    """Two leases of one process share a connection, not a fate: one that is taken by hand leaves the other alone."""
    outer, inner = Recorder(), Recorder()

    async def nested(lead: Leadership) -> None:
        async with leadership(mysql_url, "inner", lease_duration=3.0, heartbeat_interval=0.5, on_event=inner):
            await inner.next(Renewed)
            mysql_server.sql("UPDATE aiolease_lease SET holder = 'x' WHERE name = 'inner'", database_of(mysql_url))
            await asyncio.sleep(LIMIT)

    async with leadership(mysql_url, "outer", lease_duration=3.0, on_event=outer) as lead:
        with pytest.raises(LeadershipLost) as lost:
            await nested(lead)
        assert lost.value.name == "inner"
        await outer.next(Renewed, 2)
        lead.check()
    assert [outcome(event) for _, event in outer.events if isinstance(event, RenewFailed | Lost)] == []
