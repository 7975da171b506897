"""How a lease changes hands: takeover, resignation, staying out, and who is fit to lead."""

from __future__ import annotations

import asyncio
import random

import pytest

from aiolease import Leadership, LeadershipLost, run_as_leader
from aiolease.events import Following, Lost, Notice, Resigned
from aiolease.testing import MemoryServer, MemoryStore, virtual_time
from tests.election.terms import (
    ATTEMPT,
    HEARTBEAT,
    JITTER,
    LEASE,
    LONG,
    RETRY,
    Process,
    clock,
    elected,
    end,
    sent,
    until,
)

pytestmark = pytest.mark.usefixtures("quiet")


# -- rules 13 and 14: takeover, quiet candidates, staying out


@pytest.mark.parametrize("candidates", [1, 5])
@virtual_time
async def test_takeover_is_as_the_lease_expires(candidates: int) -> None:
    """After a crash the next leader is elected 0 to 50 ms after the expiry."""
    late = []
    for _ in range(20):
        server, fleet = MemoryServer(), list[Process]()
        first = Process(server, fleet)
        await first.leads()
        for _ in range(candidates):
            Process(server, fleet)
        await asyncio.sleep(random.uniform(0, 25))
        await first.crash()
        fleet.remove(first)
        expires_at = server.leases["cron"].expires_at
        leader = await elected(fleet, LEASE + 1)
        assert leader.lead is not None
        late.append((leader.lead.elected_at - expires_at).total_seconds())
        assert leader.lead.token == 2
        await end(*(process.task for process in fleet))
    assert all(-0.001 <= seconds <= JITTER + 0.001 for seconds in late)
    assert max(late) - min(late) > 0.001


@virtual_time
async def test_a_waiting_candidate_only_reads() -> None:
    """A candidate writes only when it may win, reads every third of a lease, and says once whom it waits for."""
    server, fleet = MemoryServer(), list[Process]()
    first = Process(server, fleet)
    await first.leads()
    second = Process(server, fleet)
    await asyncio.sleep(LONG)
    assert {method for method, _ in second.store.sent} == {"read"}
    assert 2.9 * LONG / LEASE <= len(second.store.sent) <= 3.1 * LONG / LEASE
    assert len(second.log.of(Following)) == 1
    (following,) = second.log.of(Following)
    assert following.phrase == f"another instance leads 'cron': {server.leases['cron'].holder}, waiting, on memory"
    await end(*(process.task for process in fleet))


@virtual_time
async def test_of_many_candidates_few_write() -> None:
    """When a lease is released, each waiting candidate claims at most once."""
    server, fleet = MemoryServer(), list[Process]()
    first = Process(server, fleet)
    await first.leads()
    others = [Process(server, fleet) for _ in range(20)]
    await asyncio.sleep(5)
    await end(first.task)
    fleet.remove(first)
    await elected(fleet, 1)
    await asyncio.sleep(2 * LEASE)
    assert all(len(sent(other.store, "claim")) <= 1 for other in others)
    assert sum(len(other.terms) for other in others) == 1
    await end(*(process.task for process in fleet))


@virtual_time
async def test_a_resigned_leader_leaves_the_field_to_others() -> None:
    """A leader that resigns is followed by a waiting process, and stays out until it has seen that term."""
    server, fleet = MemoryServer(), list[Process]()
    first = Process(server, fleet)
    lead = await first.leads()
    second = Process(server, fleet)
    await asyncio.sleep(3)
    lead.resign()
    resigned = clock()
    await second.leads()
    assert clock() - resigned < 0.1
    await asyncio.sleep(LEASE)
    await end(second.task)
    ended = clock()
    await first.leads()
    assert clock() - ended < 0.1
    assert first.terms[-1][1] == 3
    await end(first.task)


@pytest.mark.parametrize("how", ["resigns", "returns", "is asked to"])
@virtual_time
async def test_a_resigned_leader_stays_out_for_twice_the_retry_interval(how: str) -> None:
    """If nobody else is elected, the process that resigned leads again, but not at once."""
    process = Process(MemoryServer())
    if how == "returns":
        process.body_for = 1
    lead = await process.leads()
    match how:
        case "resigns":
            lead.resign()
        case "is asked to":
            assert await process.store.resign("cron") == 1
    await until(lambda: process.lead is None)
    left = clock()
    await process.leads()
    assert 2 * RETRY - 0.02 <= clock() - left <= 2 * RETRY + 0.1
    assert [resigned.requested for resigned in process.log.of(Resigned)] == {
        "resigns": [False],
        "returns": [],
        "is asked to": [True],
    }[how]
    await end(process.task)


@virtual_time
async def test_a_resigned_leader_is_back_when_another_term_is_over() -> None:
    """The time out ends early once another term was seen."""
    server, fleet = MemoryServer(), list[Process]()
    first = Process(server, fleet, retry_interval=5.0)
    lead = await first.leads()
    second = Process(server, fleet, retry_interval=5.0)
    second.body_for = 1
    await asyncio.sleep(1)
    lead.resign()
    resigned = clock()
    await until(lambda: len(first.terms) == 2)
    assert clock() - resigned < 2 * 5 - 1
    assert [token for _, token in first.terms] == [1, 3]
    await end(first.task, second.task)


@virtual_time
async def test_a_campaign_goes_on_after_a_loss() -> None:
    """`run_as_leader` is elected again after every loss of its own term, and lets through what the body raises."""
    process = Process(MemoryServer())
    for _ in range(3):
        await process.leads()
        process.store.down = True
        await until(lambda: process.lead is None)
        process.store.down = False
    await process.leads()
    assert [token for _, token in process.terms] == [1, 2, 3, 4]
    await end(process.task)

    class Boom(Exception):
        pass

    boom = Boom()

    async def body(lead: Leadership) -> None:
        raise boom

    with pytest.raises(Boom) as raised:
        await run_as_leader(MemoryStore(), body)
    assert raised.value is boom


@virtual_time
async def test_a_campaign_does_not_swallow_the_loss_of_another_lease() -> None:
    """A `LeadershipLost` of another holder is the body's exception like any other."""
    other = LeadershipLost("other", "somebody", 5, "taken")

    async def body(lead: Leadership) -> None:
        raise other

    with pytest.raises(LeadershipLost) as raised:
        async with asyncio.timeout(LONG):
            await run_as_leader(MemoryStore(), body)
    assert raised.value is other


# -- rule 15: eligibility


@pytest.mark.parametrize("how", ["says no", "raises", "hangs"])
@virtual_time
async def test_an_ineligible_candidate_does_not_claim(how: str) -> None:
    """A process that is not fit to lead only reads, says so once, and is elected soon after it is fit."""
    fit, asked = False, 0

    async def eligible() -> bool:
        nonlocal asked
        asked += 1
        if not fit and how == "raises":
            raise ValueError("unwell")
        if not fit and how == "hangs":
            await asyncio.sleep(LONG)
        return fit

    process = Process(MemoryServer(), eligible=eligible)
    await asyncio.sleep(LONG)
    assert {method for method, _ in process.store.sent} == {"read"}
    assert asked >= LONG / (RETRY + ATTEMPT + 1)
    (notice,) = process.log.of(Notice)
    assert notice.severity == "WARNING"
    assert "not eligible" in notice.text
    fit = True
    await process.leads(RETRY + ATTEMPT + 0.1)
    await end(process.task)


@pytest.mark.parametrize("how", ["says no", "raises", "hangs"])
@virtual_time
async def test_a_leader_that_becomes_ineligible_hands_over(how: str) -> None:
    """A leader whose check fails at a heartbeat loses its term, and a healthy process takes over at once."""
    server, fleet, fit = MemoryServer(), list[Process](), True

    async def eligible() -> bool:
        if not fit and how == "raises":
            raise ValueError("unwell")
        if not fit and how == "hangs":
            await asyncio.sleep(LONG)
        return fit

    first = Process(server, fleet, eligible=eligible)
    await first.leads()
    second = Process(server, fleet)
    await asyncio.sleep(1)
    fit = False
    changed = clock()
    await second.leads()
    assert clock() - changed <= HEARTBEAT + ATTEMPT + 0.1
    assert [lost.reason for lost in first.log.of(Lost)] == ["ineligible"]
    await asyncio.sleep(LEASE)
    await end(second.task)
    await asyncio.sleep(2 * LEASE)
    assert first.lead is None
    await end(first.task)
