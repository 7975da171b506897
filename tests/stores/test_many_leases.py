"""Many leases of one process, on every server."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any, cast

import pytest

from aiolease import leadership
from aiolease._election.claim import new_holder
from aiolease.events import Following, Lost, Renewed, RenewFailed
from aiolease.stores.postgresql.links import Link
from tests.campaigns import LIMIT, Recorder, campaign, proxied
from tests.stores.databases import Database, MakeStore, OnServer

on_servers = pytest.mark.parametrize(
    "database", ["mariadb", "mysql9", "postgresql+asyncpg", "postgresql+psycopg"], indirect=True
)
on_postgresql = pytest.mark.parametrize("database", ["postgresql+asyncpg", "postgresql+psycopg"], indirect=True)


@on_servers
async def test_a_locked_row_costs_no_other_lease_a_beat(database: Database, make_store: MakeStore) -> None:
    """A stranger locks the row of one of 40 leases for longer than it lasts: the others never miss a renewal."""
    server, store = cast(OnServer, database), await make_store()
    heard = [Recorder() for _ in range(40)]
    times: dict[str, Any] = {"timeout": LIMIT, "lease_duration": 6.0}
    async with AsyncExitStack() as stack:
        for number, recorder in enumerate(heard[1:], 1):
            lead = leadership(store, f"lease-{number}", **times, on_event=recorder)
            await stack.enter_async_context(lead)

        async def locked_out() -> None:
            async with leadership(store, "lease-0", **times, on_event=heard[0]):
                with server.locked("lease-0"):
                    await asyncio.sleep(LIMIT)

        with pytest.raises(Exception, match="expired"):
            await locked_out()
        assert heard[0].of(RenewFailed)
        for recorder in heard[1:]:
            assert len(recorder.of(Renewed)) >= 2
            assert not recorder.of(RenewFailed)
            assert not recorder.of(Lost)


@on_servers
async def test_candidates_for_many_leases_over_a_slow_network(database: Database, make_store: MakeStore) -> None:
    """What they ask at one moment costs the round trips of one question: all learn who leads, and wait."""
    server, store = cast(OnServer, database), await make_store()
    names = [f"lease-{number}" for number in range(32)]
    assert all(await asyncio.gather(*[store.claim(name, "me", 60.0, seen=None, force=False) for name in names]))
    async with proxied(server.server, server.url) as (proxy, slow), AsyncExitStack() as stack:
        proxy.delay(0.05)
        heard = [
            await stack.enter_async_context(campaign(f"{slow}?{server.harmless}", name, lease_duration=6.0))
            for name in names
        ]
        await asyncio.gather(*(recorder.first(Following) for recorder in heard))
        connections = proxy.connections
        await asyncio.sleep(3.0)
        assert proxy.connections == connections


@on_postgresql
async def test_renewals_of_many_leases_are_few_statements(
    database: Database, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gets the answer that is its own: renewed, taken by another, without a row, renewed meanwhile, or locked."""
    server, store = cast(OnServer, database), await make_store()
    holders = {f"lease-{number}": new_holder() for number in range(50)}
    claims = [store.claim(name, holder, 30.0, seen=None, force=False) for name, holder in holders.items()]
    assert all(await asyncio.gather(*claims))
    database.delete_lease("lease-7")
    database.set_token("lease-8", 2)
    await store.renew("lease-9", holders["lease-9"], 1, 77, 30.0)
    asked: list[str] = []
    fetch = Link.fetch

    async def counted(self: Link, sql: str, parameters: Any = ()) -> Any:
        asked.append(sql)
        return await fetch(self, sql, parameters)

    monkeypatch.setattr(Link, "fetch", counted)
    with server.locked("lease-6"):
        renewals = [store.renew(name, holder, 1, 5, 30.0) for name, holder in holders.items()]
        answers = dict(zip(holders, await asyncio.gather(*renewals, return_exceptions=True), strict=True))
    assert len(asked) <= 4
    assert "locked" in str(answers.pop("lease-6"))
    assert answers.pop("lease-7") is None
    assert cast(Any, answers.pop("lease-8")).token == 2
    assert cast(Any, answers.pop("lease-9")).beat == 77
    for name, lease in answers.items():
        shown = cast(Any, lease)
        assert (shown.name, shown.holder, shown.token, shown.beat) == (name, holders[name], 1, 5)
    again = await store.renew("lease-6", holders["lease-6"], 1, 6, 30.0)
    assert again is not None
    assert again.beat == 6
