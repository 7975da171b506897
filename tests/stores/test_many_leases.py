"""Many leases of one process, on every server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from aiolease import leadership
from aiolease._election.claim import new_holder
from aiolease.errors import StoreUnavailable
from aiolease.events import Following, Lost, Renewed, RenewFailed
from aiolease.stores.postgresql.batches import Batches, Renewal
from aiolease.stores.postgresql.links import Link
from aiolease.stores.records import Lease
from tests.campaigns import LIMIT, Recorder, campaign, proxied
from tests.stores.databases import Database, MakeStore, OnServer, claim, free, renew, row, state

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


def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Those that the store on PostgreSQL sends from now on."""
    asked: list[str] = []
    fetch = Link.fetch

    async def counted(self: Link, sql: str, parameters: Any = ()) -> Any:
        asked.append(sql)
        return await fetch(self, sql, parameters)

    monkeypatch.setattr(Link, "fetch", counted)
    return asked


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
    asked = statements(monkeypatch)
    with server.locked("lease-6"):
        later = [asyncio.create_task(store.renew("lease-3", holders["lease-3"], 1, beat, 30.0)) for beat in (6, 7, 8)]
        renewals = [store.renew(name, holder, 1, 5, 30.0) for name, holder in holders.items()]
        answers = dict(zip(holders, await asyncio.gather(*renewals, return_exceptions=True), strict=True))
    assert len(asked) <= 8
    assert [cast(Any, await task).beat for task in later] == [6, 7, 8], "each waits for its own turn"
    assert cast(Any, answers.pop("lease-3")).beat in {5, 6, 7, 8}
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


@on_postgresql
async def test_claims_of_many_leases_are_few_statements(
    database: Database, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gets the answer that is its own: won, by force, above a higher fence, lost, without a row, or locked."""
    server, store = cast(OnServer, database), await make_store()
    names = [f"lease-{number}" for number in range(50)]
    made = await asyncio.gather(*(claim(store, name) for name in names))
    await asyncio.gather(*(free(store, lease) for lease in made if lease.name not in {"lease-8", "lease-9"}))
    seen = {name: await row(store, name) for name in names}
    database.delete_lease("lease-5")
    other = await claim(store, "lease-7")
    server.server.sql("UPDATE aiolease_fence SET token = 70 WHERE name = 'lease-10'", server.schema)
    database.delete_fence("lease-11")
    asked, holders = statements(monkeypatch), {name: new_holder() for name in [*names, "the other"]}
    with server.locked("lease-6"), server.locked("lease-12", "fence"):
        answers: dict[str, Any] = {
            key: asyncio.create_task(store.claim(name, holders[key], 30.0, seen=seen[name], force=name == "lease-9"))
            for key, name in [*zip(names, names, strict=True), ("the other", "lease-13")]
        }
        await asyncio.wait(answers.values())
    claims = [sql for sql in asked if "claimed" in sql]
    alone = [sql for sql in claims if "unnest" not in sql]
    assert len(alone) == 3, "the first, and the two that were passed over"
    assert len(claims) <= 8
    assert len(asked) <= 14
    for name in ("lease-6", "lease-12"):
        assert isinstance(answers.pop(name).exception(), StoreUnavailable)
        assert database.fence(name) == (made[int(name[6:])].holder, 1)
    rows = {key: task.result() for key, task in answers.items()}
    assert rows.pop("lease-5") is None
    assert state(rows.pop("lease-7")) == state(other)
    assert state(rows.pop("lease-8")) == state(seen["lease-8"])
    assert rows["lease-10"].token == 71
    assert rows.pop("lease-13").holder == rows.pop("the other").holder in {holders["lease-13"], holders["the other"]}
    for name, lease in rows.items():
        assert (lease.name, lease.holder) == (name, holders[name])
        assert lease.token == (71 if name == "lease-10" else 2)
        assert database.fence(name) == (lease.holder, lease.token)
        assert state(lease) == state(await row(store, name))


@on_postgresql
async def test_a_lease_that_cannot_be_claimed_costs_no_other(database: Database, make_store: MakeStore) -> None:
    """Its fence has the highest token that there is: the claims that it was sent with are sent again, one by one."""
    server, store = cast(OnServer, database), await make_store()
    names = [f"lease-{number}" for number in range(6)]
    for name in names:
        await free(store, await claim(store, name))
    server.server.sql(f"UPDATE aiolease_fence SET token = {2**63 - 1} WHERE name = 'lease-3'", server.schema)
    answers = await asyncio.gather(*(claim(store, name) for name in names), return_exceptions=True)
    assert isinstance(answers.pop(3), StoreUnavailable)
    assert [cast(Any, lease).name for lease in answers] == [name for name in names if name != "lease-3"]


@pytest.mark.parametrize("database", ["mariadb", "mysql9", "postgresql+asyncpg", "postgresql+psycopg"], indirect=True)
async def test_a_row_that_cannot_be_read_costs_no_other_lease(database: Database, make_store: MakeStore) -> None:
    """Somebody wrote a moment into it for which Python has none: the others are read, and all are renewed."""
    server, store = cast(OnServer, database), await make_store()
    leases = await asyncio.gather(*(claim(store, f"lease-{number}") for number in range(5)))
    server.damage("elected_at", "lease-2")
    renewed = await asyncio.gather(*(renew(store, lease, 7) for lease in leases))  # reads nothing of it back
    assert [cast(Any, lease).beat for lease in renewed] == [7] * 5
    for call in (
        lambda lease: store.watch(lease.name, 0.0, lease=lease, poll=1.0, hint=False),
        lambda lease: store.read(lease.name),
    ):
        answers = await asyncio.gather(*map(call, leases), return_exceptions=True)
        assert isinstance(answers.pop(2), StoreUnavailable)
        assert [cast(Any, lease).beat for lease in answers] == [7] * 4


async def test_what_was_written_is_known_though_the_rest_cannot_be_read() -> None:
    """The reading of those that a statement has not changed failed: those that it has changed are answered."""
    moment = datetime.now(UTC)
    times = dict.fromkeys(("elected_at", "renewed_at", "expires_at", "now"), moment)

    async def send(writes: Sequence[Renewal]) -> dict[str, Lease | Exception]:
        return {"a": Lease(name="a", holder="me", token=1, beat=2, resign_token=None, **times)}

    async def read(names: list[str]) -> dict[str, Lease | Exception]:
        raise StoreUnavailable("it", f"not {names}")

    batches = Batches[Renewal]("it", send, read, lambda: None)
    renewals = [Renewal(name=name, holder="me", token=1, beat=2, duration=30.0) for name in ("a", "b")]
    one, other = await asyncio.gather(*map(batches.ask, renewals), return_exceptions=True)
    assert cast(Any, one).beat == 2
    assert str(other) == str(StoreUnavailable("it", "not ['b']"))
