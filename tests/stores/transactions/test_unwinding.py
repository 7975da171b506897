"""What a transaction does while its term ends: no answer of the database keeps the block beyond the time to unwind."""

# ruff: noqa: PT012 - the blocks are what is tested: when they end, and that they raise

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from aiolease import CommitUnknown, Leadership, LeadershipLost, leadership
from aiolease._clock import boot_clock
from aiolease.events import Event, Lost
from aiolease.stores.memory import MemoryTransaction
from aiolease.testing import MemoryStore, virtual_time
from tests.campaigns import LIMIT, Recorder, proxy_of
from tests.servers import Server
from tests.stores.transactions.lending import Work, insert, lent, some_kinds

T = TypeVar("T")

LEASE = 3.0
UNWIND = 0.5
"""Seconds after the end of the term at which another may lead."""


class Silent(MemoryStore):
    """A store that answers no commit, and nothing at all from a moment on."""

    silent = False

    async def exchange(self, method: str, statement: Callable[[], T]) -> T:
        if self.silent or method == "commit":
            await asyncio.sleep(3600)
        return await super().exchange(method, statement)


async def lingers(store: Silent, body: Callable[[Leadership], Awaitable[object]]) -> float:
    """How long after its loss a block ends whose store says nothing any more."""
    clock, lost = asyncio.get_running_loop().time, []

    def observe(event: Event) -> None:
        if isinstance(event, Lost):
            lost.append(clock())

    with pytest.raises(LeadershipLost):
        async with leadership(store, lease_duration=LEASE, on_event=observe) as lead:
            try:
                await body(lead)
                await asyncio.sleep(3600)
            finally:
                ended = clock()
    return ended - lost[0]


@virtual_time
async def test_a_commit_without_an_answer_ends_before_another_may_lead() -> None:
    """However late a commit is begun, the block has ended before the lease has."""
    for left in (2.0, 0.3, 0.02):
        store = Silent()

        async def body(lead: Leadership, store: Silent = store, left: float = left) -> None:
            with contextlib.suppress(CommitUnknown):
                async with lead.transaction():
                    store.silent = True
                    await asyncio.sleep(lead.remaining - left)

        assert await lingers(store, body) < UNWIND


@virtual_time
async def test_a_rollback_without_an_answer_ends_before_another_may_lead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction whose term is lost is not waited for while it is rolled back, if nothing answers."""
    store = Silent()

    async def slow(_: MemoryTransaction) -> None:
        await asyncio.sleep(2.0)

    async def body(lead: Leadership) -> None:
        async with lead.transaction():
            store.silent = True
            await asyncio.sleep(3600)

    monkeypatch.setattr(MemoryTransaction, "roll_back", slow)
    assert await lingers(store, body) < UNWIND


@some_kinds
async def test_a_lost_connection_does_not_hold_up_the_end_of_a_term(
    mysql_server: Server, mysql_url: str, work: Work, kind: str
) -> None:
    """A leader whose answers are swallowed leaves its transaction before another may lead, and keeps no connection."""
    heard, ended = Recorder(), 0.0
    async with (
        proxy_of(mysql_server) as proxy,
        lent(kind, mysql_url, port=proxy.port) as lend,
    ):
        with pytest.raises(LeadershipLost):
            async with leadership(lend.target, lease_duration=LEASE, on_event=heard) as lead:
                try:
                    async with lead.transaction() as connection:
                        await lend.run(connection, insert("never"))
                        proxy.swallow("to_client")
                        await asyncio.sleep(LIMIT)
                finally:
                    ended = boot_clock()
        proxy.heal()
        await lend.whole()
    assert ended - heard.last(Lost)[0] < UNWIND
    assert work.rows() == []
