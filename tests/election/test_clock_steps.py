"""Steps of the server's clock make neither two leaders nor none."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from datetime import timedelta

import pytest

from aiolease._election.sighting import ClockHistory, Reading, Sighting
from aiolease.events import Following, Lost, Notice, Renewed, RenewFailed
from aiolease.testing import MemoryServer, virtual_time
from tests.election.terms import HEARTBEAT, JITTER, LEASE, LONG, Process, clock, elected, end, row, sent, until
from tests.virtual import HOUR, START

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.mark.parametrize("step", [HOUR, -HOUR], ids=["forward", "back"])
@pytest.mark.parametrize(("held", "wanted"), [(30.0, 30.0), (30.0, 3.0), (3.0, 30.0)])
@pytest.mark.parametrize("candidate", ["running", "cold"])
@pytest.mark.parametrize("fate", ["lives", "crashes before", "crashes with it", "crashes after"])
@pytest.mark.parametrize("phase", [0.05, 0.3, 0.65, 0.95])
@virtual_time
async def test_a_step_of_the_clock_makes_neither_two_leaders_nor_none(  # noqa: PLR0917 - its parameters
    step: timedelta, held: float, wanted: float, candidate: str, fate: str, phase: float
) -> None:
    """A living leader keeps its lease through a step of the clock; a dead one is followed within two leases."""
    server, fleet = MemoryServer(), list[Process]()
    first = Process(server, fleet, lease_duration=held)
    await first.leads()
    if candidate == "running":
        second = Process(server, fleet, lease_duration=wanted)
    await asyncio.sleep(4 * held + phase * held)
    if fate == "crashes before":
        await first.crash()
        await asyncio.sleep(held / 4)
    server.clock_offset += step
    crashed = clock()
    if fate == "crashes with it":
        await first.crash()
    if candidate == "cold":
        second = Process(server, fleet, lease_duration=wanted)
    if fate == "crashes after":
        await asyncio.sleep(held / 2)
        await first.crash()
        crashed = clock()
    if fate == "lives":
        for _ in range(100):
            await asyncio.sleep(held / 10)
            assert first.lead is not None
            assert second.lead is None
        server.clock_offset -= step
        for _ in range(100):
            await asyncio.sleep(held / 10)
            assert first.lead is not None
        assert len(first.terms) == 1
        await end(first.task)
        await second.leads(1)
    else:
        await second.leads(2 * held + 1)
        assert clock() - crashed <= 2 * held + 1
        assert second.terms[0][1] == 2
    await end(first.task, second.task)


@pytest.mark.parametrize("step", [HOUR, -HOUR], ids=["forward", "back"])
@pytest.mark.parametrize("candidate", ["running", "cold"])
@virtual_time
async def test_a_released_row_is_free_whatever_the_clock_did(candidate: str, step: timedelta) -> None:
    """A released lease is claimed at once, also after the server's clock was stepped."""
    server, fleet = MemoryServer(), list[Process]()
    first = Process(server, fleet)
    await first.leads()
    second = Process(server, fleet) if candidate == "running" else None
    await asyncio.sleep(3)
    server.clock_offset += step
    await end(first.task)
    await (second or Process(server, fleet)).leads(0.1)
    await end(*(process.task for process in fleet))


@virtual_time
async def test_a_cold_start_on_a_row_that_was_never_released_says_why_it_waits() -> None:
    """A process that starts on an expired row that was not released watches it for the holder's lease, and says so."""
    server = MemoryServer()
    first = Process(server, lease_duration=12.0)
    await first.leads()
    await first.crash()
    await asyncio.sleep(LONG)
    second = Process(server, lease_duration=30.0)
    started = clock()
    await second.leads()
    assert 12.0 <= clock() - started <= 12.0 + JITTER + 0.02
    (following,) = second.log.of(Following)
    assert following.note == (
        "its lease has run out by the database's clock, but was not released and may be alive: watching it for 12.0 s"
    )
    assert (
        following.phrase == f"another instance leads 'cron': {following.holder}, waiting, on memory ({following.note})"
    )
    await end(second.task)


def reading(now: float, received: float, took: float = 0.0) -> Reading:
    return Reading(now=START + timedelta(seconds=now), received=received, took=took)


@pytest.mark.parametrize(
    ("age", "before", "wait"),
    [
        pytest.param(4, None, 30, id="the first reading"),
        pytest.param(4, reading(90, 90), 26, id="a renewal since the reading before"),
        pytest.param(4, reading(89.95, 90), 26.05, id="what the clock gained is added"),
        pytest.param(4, reading(90.05, 90), 26, id="what it lost is not taken off"),
        pytest.param(4, reading(89, 90), 30, id="a step forward"),
        pytest.param(4, reading(91, 90), 30, id="a step back"),
        pytest.param(4, reading(89, 90, took=1.0), 27, id="the network was slow: it may have been no step"),
        pytest.param(24, reading(98, 98), 28, id="the renewal came after the reading before, whatever the row says"),
        pytest.param(24, reading(91, 91), 21, id="the same, long ago"),
        pytest.param(24, reading(86, 86), 20, id="the same, longer ago"),
        pytest.param(24, reading(84, 84), 30, id="too long ago to say anything"),
        pytest.param(31, reading(90, 90), 30, id="expired as it is first seen"),
        pytest.param(-1, reading(90, 90), 30, id="renewed in the future"),
    ],
)
def test_how_long_a_candidate_takes_the_holder_for_alive(age: float, before: Reading | None, wait: float) -> None:
    """A candidate believes the time left by the database's clock only as far as its own clock confirms it."""
    sighting = Sighting.of(row(age=age, now=100), reading(100, 100), before=before)
    assert sighting.wait == pytest.approx(wait)
    assert (sighting.duration, sighting.seen_at) == (30, 100)
    assert Sighting.of(row(age=age, now=100), reading(100, 100), before=before, new_term=True).wait == 30


@pytest.mark.parametrize(
    ("before", "back"),
    [
        ([], 0),
        ([reading(90, 90)], 0),
        ([reading(80, 90)], 0),
        ([reading(94, 90)], 4),
        ([reading(4000, 90)], 10),
        ([reading(90, 90, took=3.0)], 3),  # the clock may have been stepped after it was read
        ([reading(94, 86), *(reading(moment, moment) for moment in range(87, 100))], 8),
        ([reading(94, 70), *(reading(moment, moment) for moment in range(75, 100))], 0),
        ([reading(94, 50)], 10),  # the newest that there is, however old
    ],
)
def test_a_step_back_shortens_the_time_of_the_leader(before: list[Reading], back: float) -> None:
    """A leader stops earlier by what the clock went back in the last half lease, by a third of a lease at most."""
    clocks = ClockHistory()
    for earlier in before:
        clocks.note(earlier, 30.0)
    assert clocks.setback(START + timedelta(seconds=100), 100, 30.0) == pytest.approx(back)


@pytest.mark.parametrize(("renewed_at", "wait"), [(96, 26), (92.1, 22.1), (91.95, 22), (91.85, 30), (85, 30)])
def test_a_renewal_that_seems_older_than_the_reading_before_it(renewed_at: float, wait: float) -> None:
    """A renewal that seems older than the reading before it: the clock was stepped back and forth, so wait a lease."""
    before = Sighting.of(row(age=10, now=92), reading(92, 92))
    renewed = replace(row(age=100 - renewed_at, now=100), beat=7)
    assert (before.token, before.beat) != (renewed.token, renewed.beat)
    assert Sighting.of(renewed, reading(100, 100), before, reading(92, 92)).wait == pytest.approx(wait)
    # Without a sighting of an earlier state it may be the row as that reading showed it.
    first = Sighting.of(renewed, reading(100, 100), None, reading(92, 92)).wait
    assert first == pytest.approx(max(renewed_at + 30 - 100, 22))


@virtual_time
async def test_three_steps_around_a_lost_answer_do_not_make_two_leaders() -> None:
    """Found by the simulation, seed 82007760.

    The clock goes forward, and a process starts. The leader's renewal is not answered, the clock goes back, the leader
    renews, the clock goes forward as far, and no further renewal arrives.
    """
    server, fleet = MemoryServer(), list[Process]()
    first = Process(server, fleet, lease_duration=12.0, heartbeat_interval=2.5)
    await first.leads()
    await until(lambda: len(first.log.of(Renewed)) == 2, LONG)
    await asyncio.sleep(0.1)
    server.step_clock(8)
    second = Process(server, fleet, lease_duration=12.0)
    await asyncio.sleep(0.1)
    first.store.lose_reply("renew")
    await until(lambda: first.log.of(RenewFailed), LONG)
    server.step_clock(-8)
    await until(lambda: len(first.log.of(Renewed)) == 3, LONG)
    server.step_clock(8)
    first.store.down = True
    await second.leads()  # its body finds no other
    assert first.log.of(Lost)
    await end(first.task, second.task)


@pytest.mark.parametrize("tenths", range(5, 120, 5))
@virtual_time
async def test_a_process_that_starts_after_a_step_does_not_lead_beside_the_leader(tenths: int) -> None:
    """The clock is set forward by most of a lease, and a process starts: it leads after a lease of its own clock."""
    server, fleet = MemoryServer(), list[Process]()
    first = Process(server, fleet, lease_duration=12.0)
    await first.leads()
    await asyncio.sleep(24 + tenths / 10)
    server.clock_offset += timedelta(seconds=8.5)
    first.store.down = True  # nothing will show that it lives
    second = Process(server, fleet, lease_duration=12.0)
    started = clock()
    await second.leads()
    assert clock() - started >= 12.0
    told = [event for event in second.log.of(Following) if event.note]
    told_later = [event for event in second.log.of(Notice) if "cannot tell yet whether it is alive" in event.text]
    assert len(told) + len(told_later) == 1
    await end(first.task, second.task)


@pytest.mark.parametrize("waited", [0.5, 3.0, 6.0, 9.5])
@pytest.mark.parametrize("back", [3.0, 9.0, 20.0, 29.0])
@virtual_time
async def test_two_steps_that_cancel_out_make_no_two_leaders(back: float, waited: float) -> None:
    """The clock goes back before a renewal, forward after it, and the leader is cut off: it has ended in time."""
    for phase in range(10):
        server, fleet = MemoryServer(), list[Process]()
        first = Process(server, fleet, renew_deadline=27.0)
        await first.leads()
        await asyncio.sleep(phase)
        second = Process(server, fleet)
        await asyncio.sleep(4 * LEASE)
        renewal = sent(first.store, "renew")[-1] + HEARTBEAT
        await asyncio.sleep(renewal - waited / 2 - clock())
        server.clock_offset -= timedelta(seconds=back)
        await asyncio.sleep(waited)
        server.clock_offset += timedelta(seconds=back)
        first.store.down = True
        await second.leads()
        await end(first.task, second.task)


@pytest.mark.parametrize("heartbeat", [1.0, 2.5, 4.0])
@virtual_time
async def test_two_steps_that_cancel_out_are_remembered_over_renewals(heartbeat: float) -> None:
    """The clock goes back, several renewals follow, then it goes forward and the leader is cut off: it ends in time."""
    for phase in range(0, 100, 7):
        server, fleet = MemoryServer(), list[Process]()
        first = Process(server, fleet, renew_deadline=27.0, heartbeat_interval=heartbeat)
        await first.leads()
        await asyncio.sleep(phase / 10)
        second = Process(server, fleet)
        await asyncio.sleep(4 * LEASE)
        looked = sent(second.store, "read")[-1]
        await asyncio.sleep(looked + LEASE / 3 + 0.1 - clock())
        server.clock_offset -= timedelta(seconds=20)
        await asyncio.sleep(LEASE / 3 - 0.5)
        server.clock_offset += timedelta(seconds=20)
        first.store.down = True
        await second.leads()
        await end(first.task, second.task)


@virtual_time
async def test_a_leader_with_short_timings_survives_a_step_back() -> None:
    """A leader that stops earlier also renews sooner: a step of the clock costs no term, whatever the timings."""
    server, fleet = MemoryServer(), list[Process]()
    leader = Process(server, fleet, renew_deadline=15.0, heartbeat_interval=7.5)
    await leader.leads()
    for _ in range(5):
        server.clock_offset -= timedelta(seconds=20)
        await asyncio.sleep(LEASE)
    assert server.leases["cron"].token == 1
    await end(leader.task)


@virtual_time
async def test_a_step_forward_before_two_that_cancel_out_makes_no_two_leaders() -> None:
    """The leader sees neither of the first two steps: a candidate that saw the first trusts no clock for a lease."""
    server, fleet = MemoryServer(), list[Process]()
    first = Process(server, fleet)
    await first.leads()
    await asyncio.sleep(7)
    second = Process(server, fleet)
    await asyncio.sleep(4 * LEASE)
    renewal = sent(first.store, "renew")[-1] + HEARTBEAT
    looked = sent(second.store, "read")[-1] + LEASE / 3
    assert renewal - HEARTBEAT < looked < renewal
    await asyncio.sleep(renewal - HEARTBEAT + 0.1 - clock())
    server.clock_offset += timedelta(seconds=9.5)
    await asyncio.sleep(renewal - 0.1 - clock())
    server.clock_offset -= timedelta(seconds=9.5)
    await asyncio.sleep(0.2)
    server.clock_offset += timedelta(seconds=9.5)
    first.store.down = True
    await second.leads()
    await end(first.task, second.task)


@virtual_time
async def test_a_fresh_leader_that_claims_between_two_steps_that_cancel_out_is_let_end() -> None:
    """A leader may know of no step before its claim: a candidate that sees its term waits for a whole lease.

    The candidate hears of no release, as with a database that has no lock to wait for.
    """
    for phase in range(0, 90, 5):
        server, fleet = MemoryServer(), list[Process]()
        first = Process(server, fleet)
        await first.leads()
        second = Process(server, fleet, retry_interval=9.0)
        watch = second.store.watch
        second.store.watch = lambda *args, **how: watch(*args, **how | {"hint": False})  # type: ignore[method-assign]  # noqa: B023
        await asyncio.sleep(2 * LEASE)
        looked = sent(second.store, "read")[-1]
        await asyncio.sleep(looked + 9.0 + phase / 10 - clock())
        server.clock_offset -= timedelta(seconds=9)
        await end(first.task)
        third = Process(server, fleet, renew_deadline=27.0)
        await third.leads()
        server.clock_offset += timedelta(seconds=9)
        third.store.down = True
        await second.leads()
        await end(second.task, third.task)


@virtual_time
async def test_fleets_survive_a_clock_that_steps_at_random() -> None:
    """Whatever the server's clock does, there are never two leaders, and after every crash there is one again."""
    for seed in range(10):
        chance = random.Random(seed)
        server, fleet = MemoryServer(), list[Process]()
        leases = [3.0, 10.0, 30.0]
        for _ in range(3):
            Process(server, fleet, lease_duration=chance.choice(leases))
        for _ in range(15):
            leader = await elected(fleet, 2 * max(leases) + 1)
            await asyncio.sleep(chance.uniform(0, 20))
            server.clock_offset += timedelta(seconds=chance.uniform(-2 * LONG, 2 * LONG))
            await asyncio.sleep(chance.uniform(0, 40) if chance.random() < 0.5 else 0)
            if chance.random() < 0.6 and leader.lead:
                await leader.crash()
                fleet.remove(leader)
                Process(server, fleet, lease_duration=chance.choice(leases))
            elif chance.random() < 0.3 and leader.lead:
                leader.lead.resign()
        for process in fleet:
            if process.task.done():
                process.task.result()
        await end(*(process.task for process in fleet))
