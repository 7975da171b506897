"""A process whose machine was suspended stops leading at once."""

from __future__ import annotations

import asyncio
import time

import pytest

import aiolease._clock
from aiolease import LeadershipLost, NotLeader, current_leadership, leadership
from aiolease.testing import MemoryServer, MemoryStore, virtual_time
from tests.election.terms import (
    DEADLINE,
    HEARTBEAT,
    LEASE,
    LONG,
    Process,
    clock,
    end,
    losing,
    sent,
    until,
    virtual_loop,
)

pytestmark = pytest.mark.usefixtures("quiet")


@virtual_time
async def test_a_process_that_stood_still_stops_at_once() -> None:
    """After a suspension that outlasted the deadline the process does not lead, and its body is cancelled at once."""
    store = MemoryStore()
    with losing() as lost:
        async with leadership(store) as lead:
            await asyncio.sleep(1)
            virtual_loop().advance(LONG)
            assert not lead.is_leader
            assert lead.remaining == 0
            with pytest.raises(LeadershipLost, match="expired"):
                lead.check()
            with pytest.raises(NotLeader):
                current_leadership()
            woken = clock()
            try:
                await asyncio.sleep(LONG)
            finally:
                assert clock() == woken
    assert lost.value.reason == "expired"


@virtual_time
async def test_deadlines_use_the_clock_that_counts_suspension() -> None:
    """When the boot clock jumps and the loop's does not, `is_leader` is false at once; each wake-up checks it."""
    jump = 0.0
    token = aiolease._clock.replaced.set(lambda: clock() + jump)
    try:
        store = MemoryStore()
        with losing() as lost:
            async with leadership(store) as lead:
                await asyncio.sleep(1)
                assert lead.is_leader
                jump = DEADLINE
                assert not lead.is_leader
                with pytest.raises(LeadershipLost, match="expired"):
                    lead.check()
                woken = clock()
                try:
                    await asyncio.sleep(LONG)
                finally:
                    assert clock() - woken <= HEARTBEAT
        assert lost.value.reason == "expired"
        # A candidate, too, reckons with it: what it has watched is the time that really passed.
        server = MemoryServer()
        first = Process(server)
        await first.leads()
        await first.crash()
        second = Process(server)
        await asyncio.sleep(LEASE / 2)
        assert second.lead is None
        await second.leads(LEASE)
        await end(second.task)
    finally:
        aiolease._clock.replaced.reset(token)


@virtual_time
async def test_a_renewal_is_not_late_by_the_time_of_a_suspension() -> None:
    """The time until a heartbeat is measured by the clock that counts suspension, not by a timer of the loop."""
    jump = 0.0
    token = aiolease._clock.replaced.set(lambda: clock() + jump)
    try:
        store = MemoryStore()
        async with leadership(store) as lead:
            await until(lambda: sent(store, "renew"))
            await asyncio.sleep(0.5)
            renewals, jump, woken = len(sent(store, "renew")), HEARTBEAT, clock()
            await until(lambda: len(sent(store, "renew")) > renewals)
            assert clock() - woken <= HEARTBEAT / 4 + 0.1
            lead.check()
    finally:
        aiolease._clock.replaced.reset(token)


@virtual_time
async def test_who_was_no_leader_is_none_again() -> None:
    """A renewal that is answered after the deadline does not make the process the leader again."""
    jump, seen = 0.0, list[bool]()
    token = aiolease._clock.replaced.set(lambda: clock() + jump)
    try:
        store = MemoryStore()
        with losing() as lost:
            async with leadership(store) as lead:
                await until(lambda: sent(store, "renew"))
                store.down = True
                await until(lambda: lead.remaining < 3)
                before, store.latency, store.down = len(sent(store, "renew")), 0.5, False
                await until(lambda: len(sent(store, "renew")) > before)
                jump = lead.remaining + 0.1  # it stood still: the answer finds the deadline passed
                try:
                    for _ in range(1000):
                        seen.append(lead.is_leader)
                        await asyncio.sleep(0.01)
                finally:
                    seen += [lead.is_leader, lead.remaining > 0]
        assert lost.value.reason == "expired"
        assert len(seen) > 2
        assert not any(seen)
    finally:
        aiolease._clock.replaced.reset(token)


async def test_the_watchdog_wakes_a_term_after_a_suspension(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suspension is noticed within two seconds, long before the loop's own timers are due."""
    real, jump = aiolease._clock.boot_clock, 0.0

    def boot_clock() -> float:
        return real() + jump

    monkeypatch.setattr(aiolease._clock, "boot_clock", boot_clock)
    monkeypatch.setattr(aiolease._election.leader, "boot_clock", boot_clock)
    with losing() as lost:
        async with asyncio.timeout(8), leadership(MemoryStore()) as lead:
            await asyncio.sleep(0.01)
            jump = LONG
            woken = time.monotonic()
            assert not lead.is_leader
            try:
                await asyncio.sleep(60)
            finally:
                assert time.monotonic() - woken < 2
    assert lost.value.reason == "expired"
