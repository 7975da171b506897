"""When a term ends: the deadline counts from before the send, and retries fit into it."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import pytest

from aiolease import SchemaMissing, StoreRejected, StoreUnavailable, leadership
from aiolease.events import Lost, Notice, Released, Renewed, RenewFailed
from aiolease.testing import MemoryServer, MemoryStore, virtual_time
from tests.election.terms import (
    ATTEMPT,
    DEADLINE,
    HEARTBEAT,
    JITTER,
    LEASE,
    LONG,
    Log,
    Process,
    clock,
    end,
    losing,
    sent,
    until,
)

pytestmark = pytest.mark.usefixtures("quiet")


# -- rule 1: the deadline counts from before the send


@pytest.mark.parametrize("latency", [0.0, 1.0, 4.0])
@virtual_time
async def test_the_deadline_counts_from_the_sending_of_the_claim(latency: float) -> None:
    """A leader may act until the deadline after its claim was sent: the time of the answer counts against it."""
    store = MemoryStore()
    store.latency = latency
    with losing() as lost:
        async with leadership(store) as lead:
            (claimed,) = sent(store, "claim")
            assert clock() == claimed + latency
            assert lead.remaining == pytest.approx(DEADLINE - latency)
            store.down = True
            try:
                await asyncio.sleep(LONG)
            finally:
                assert clock() == pytest.approx(claimed + DEADLINE)
                assert lead.remaining == 0
    assert lost.value.reason == "expired"


@pytest.mark.parametrize("latency", [0.0, 1.0, 4.0])
@virtual_time
async def test_the_deadline_counts_from_the_sending_of_the_renewal(latency: float) -> None:
    """A renewal moves the deadline to the time after it was sent, not after it was answered."""
    store, log = MemoryStore(), Log()
    with losing():
        async with leadership(store, on_event=log) as lead:
            store.latency = latency
            await until(lambda: len(log.of(Renewed)) == 3)
            renewed = sent(store, "renew")[-1]
            assert lead.remaining == pytest.approx(DEADLINE - latency, abs=0.02)
            store.down = True
            try:
                await asyncio.sleep(LONG)
            finally:
                assert clock() == pytest.approx(renewed + DEADLINE)


@pytest.mark.parametrize("fault", ["lost request", "lost reply", "refused", "late"])
@virtual_time
async def test_the_deadline_ends_the_term_while_a_renewal_hangs(fault: str) -> None:
    """The deadline is a timer of its own, whatever a renewal does at that time, and only an answer moves it."""
    store = MemoryStore()
    with losing():
        async with leadership(store) as lead:
            (claimed,) = sent(store, "claim")
            match fault:
                case "lost request":
                    store.lose_request("renew", 1000)
                case "lost reply":
                    store.lose_reply("renew", 1000)
                case "refused":
                    store.fail("renew", StoreUnavailable("memory", "no"), 1000)
                case "late":
                    store.delay("renew", 7, 1000)
            try:
                await asyncio.sleep(LONG)
            finally:
                assert clock() == pytest.approx(claimed + DEADLINE)
                assert not lead.is_leader


@virtual_time
async def test_nobody_is_let_in_before_the_leader_has_had_time_to_unwind() -> None:
    """Between the end of a term by its deadline and the next leader lies the time to unwind."""
    server, fleet = MemoryServer(), list[Process]()
    first = Process(server, fleet)
    await first.leads()
    second = Process(server, fleet)
    await asyncio.sleep(17)
    first.store.down = True
    await until(lambda: first.lead is None)
    lost = clock()
    assert lost == pytest.approx(sent(first.store, "claim")[0] + HEARTBEAT + DEADLINE, abs=0.1)
    await second.leads()
    assert LEASE - DEADLINE - 0.1 <= clock() - lost <= LEASE - DEADLINE + JITTER + 0.1
    await end(first.task, second.task)


# -- rule 4: what is tried again, and what ends a term at once


@pytest.mark.parametrize(
    "error",
    [StoreUnavailable("memory", "no"), StoreRejected("memory", "no"), SchemaMissing("memory", "no")],
    ids=lambda error: type(error).__name__,
)
@virtual_time
async def test_failed_renewals_are_tried_again(error: Exception) -> None:
    """Whatever trouble the store has, a renewal is tried again until the deadline, and one success is enough."""
    store, log = MemoryStore(), Log()
    async with leadership(store, on_event=log) as lead:
        for _ in range(5):
            store.fail("renew", error, 6)
            before = len(log.of(Renewed))
            await until(lambda before=before: len(log.of(Renewed)) > before)  # type: ignore[misc]
            assert lead.remaining > DEADLINE - 1
        assert len(log.of(RenewFailed)) == 30
        assert all(failure.error == str(error) and 0 < failure.left < DEADLINE for failure in log.of(RenewFailed))
    assert not log.of(Lost)


@pytest.mark.parametrize("how", ["refuses", "swallows"])
@virtual_time
async def test_an_outage_of_ten_seconds_never_costs_the_term(how: str) -> None:
    """A term survives an outage of the renew deadline less one and a half heartbeats, whenever it begins."""

    async def rides_out(begins: float) -> None:
        store = MemoryStore()
        async with leadership(store):
            await asyncio.sleep(begins)
            if how == "refuses":
                store.down = True
            else:
                store.latency = 2 * LEASE
            await asyncio.sleep(DEADLINE - 1.5 * HEARTBEAT)
            store.down, store.latency = False, 0.0
            await asyncio.sleep(2 * LEASE)

    await asyncio.gather(*(rides_out(tenths / 10) for tenths in range(1, 210)))


@virtual_time
async def test_retries_are_spread_and_grow() -> None:
    """Failed renewals are tried again after 0.25 s, then after longer, with jitter, up to the retry interval."""
    gaps: list[list[float]] = []
    for _ in range(20):
        store = MemoryStore()
        with losing():
            async with leadership(store):
                store.down = True
                await asyncio.sleep(LONG)
        at = sent(store, "renew")
        gaps.append([later - earlier for earlier, later in itertools.pairwise(at)])
    for position, longest in enumerate([0.25, 0.5, 1.0, 2.0, 2.0, 2.0]):
        column = [row[position] for row in gaps]
        assert all(longest / 2 - 0.001 <= gap <= longest + 0.001 for gap in column)
        assert max(column) - min(column) > longest / 10
    assert all(len(row) >= 8 for row in gaps)


@virtual_time
async def test_each_attempt_is_bounded() -> None:
    """A renewal that is not answered is given up after half a heartbeat, so that another can be tried."""
    store, log = MemoryStore(), Log()
    async with leadership(store, on_event=log) as lead:
        store.lose_reply("renew", 2)
        await until(lambda: log.of(Renewed))
        first, second, third = sent(store, "renew")[:3]
        assert ATTEMPT <= second - first <= ATTEMPT + 0.26
        assert ATTEMPT <= third - second <= ATTEMPT + 0.51
        assert [failure.error for failure in log.of(RenewFailed)] == ["memory: no answer within 5 s"] * 2
        assert lead.is_leader


@pytest.mark.parametrize("how", ["another holder", "another token", "no holder", "no row"])
@virtual_time
async def test_a_row_that_shows_the_end_ends_the_term_at_once(how: str) -> None:
    """A renewal that meets another's row, a cleared one or none ends the term, and leaves the row as it is."""
    server, log = MemoryServer(), Log()
    store = MemoryStore(server)
    with losing() as lost:
        async with leadership(store, on_event=log) as lead:
            await asyncio.sleep(1)
            row = server.leases["default"]
            match how:
                case "another holder":
                    server.leases["default"] = replace(row, holder="other")
                case "another token":
                    server.leases["default"] = replace(row, token=row.token + 1)
                case "no holder":
                    server.leases["default"] = replace(row, holder=None)
                case "no row":
                    del server.leases["default"]
            changed = server.leases.get("default")
            started = sent(store, "claim")[0]
            try:
                await asyncio.sleep(LONG)
            finally:
                assert clock() - started == pytest.approx(HEARTBEAT, abs=0.01)
                await asyncio.sleep(2)
    assert lost.value.reason == "taken"
    assert lost.value.token == lead.token
    assert server.leases.get("default") == changed
    assert not sent(store, "release")
    assert len(sent(store, "renew")) == 1
    assert not log.of(Released)


@virtual_time
async def test_a_heartbeat_that_breaks_ends_the_term() -> None:
    """If the heartbeat fails by itself, the body is cancelled with "error", and the log says why."""
    store, log = MemoryStore(), Log()
    with losing() as lost:
        async with leadership(store, on_event=log):
            store.fail("renew", ZeroDivisionError("a bug"))
            await asyncio.sleep(LONG)
    assert lost.value.reason == "error"
    assert any("ZeroDivisionError: a bug" in notice.text and notice.severity == "ERROR" for notice in log.of(Notice))
    assert store.server.leases["default"].holder is None
