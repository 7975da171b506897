"""Who holds a lease: holders, tokens and beats, and claims whose answers were lost."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

from aiolease import LeadershipLost, StoreUnavailable, leadership, run_as_leader
from aiolease.testing import MemoryServer, MemoryStore, virtual_time
from tests.election.terms import (
    ATTEMPT,
    DEADLINE,
    LEASE,
    LONG,
    RETRY,
    Process,
    T,
    clock,
    end,
    losing,
    run_script,
    sent,
    until,
    virtual_loop,
)

pytestmark = pytest.mark.usefixtures("quiet")


# -- rule 5: identity


@virtual_time
async def test_a_claim_whose_answer_was_lost_is_adopted() -> None:
    """If the row shows a claim's holder, the claim was won: the process leads, until the deadline of that claim."""
    store = MemoryStore()
    store.lose_reply("claim")
    async with leadership(store) as lead:
        (claimed,) = sent(store, "claim")
        row = store.server.leases["default"]
        assert (lead.token, lead.holder) == (1, row.holder)
        assert ATTEMPT <= clock() - claimed <= ATTEMPT + 1
        assert lead.remaining == pytest.approx(claimed + DEADLINE - clock())
        await asyncio.sleep(5 * LEASE)
        assert lead.is_leader
    assert store.server.leases["default"].holder is None


@virtual_time
async def test_a_claim_that_is_too_old_to_lead_by_is_given_back() -> None:
    """A claim that turns out to be won when little of its time is left is released, and claimed again."""
    store = MemoryStore()
    store.lose_reply("claim")
    loop = asyncio.get_running_loop()
    loop.call_later(1, setattr, store, "down", True)
    loop.call_later(20, setattr, store, "down", False)
    started = clock()
    async with leadership(store) as lead:
        assert clock() - started < 20 + RETRY + 1
        assert lead.token == 2
        assert lead.remaining == pytest.approx(DEADLINE)
    assert len(sent(store, "claim")) == 2


@virtual_time
async def test_a_process_that_led_before_knows_that_the_clock_was_stepped_since() -> None:
    """The database's clock goes forward, unseen by a process that had lost its term: it still outwaits the new leader.

    A process that starts only then cannot know, and waits what is left by the database's clock (rule 8).
    """
    fleet: list[Process] = []
    server = MemoryServer()
    first = Process(server, fleet)
    await first.leads()
    second = Process(server, fleet)
    await asyncio.sleep(5)
    first.store.down = True
    await second.leads()
    renewals = len(sent(second.store, "renew"))
    await until(lambda: len(sent(second.store, "renew")) > renewals)
    await asyncio.sleep(0.1)
    second.store.down = True  # it may act until its deadline
    server.step_clock(25)
    first.store.down = False
    since = clock()
    await first.leads()
    assert clock() - since > LEASE - 1
    await end(*(process.task for process in fleet))


@virtual_time
async def test_a_candidate_that_was_frozen_behind_its_claim_can_be_cancelled() -> None:
    """A process that stood still while it claimed gives the lease back, and ends if it is cancelled meanwhile."""

    class Freezing(MemoryStore):
        async def exchange(self, method: str, statement: Callable[[], T]) -> T:
            answer = await super().exchange(method, statement)
            if method == "claim":
                virtual_loop().advance(26)
            return answer

    store = Freezing()
    task = asyncio.create_task(run_as_leader(store, lambda _: asyncio.sleep(LONG), "cron"))
    store.latency = 2.0
    await until(lambda: sent(store, "release"))
    task.cancel()
    await asyncio.wait([task], timeout=20)
    assert task.cancelled()
    assert store.server.leases["cron"].holder is None


@virtual_time
async def test_a_claim_that_the_server_delayed_does_no_harm() -> None:
    """A claim that takes effect long after it was given up does not disturb the term of a later one."""
    store = MemoryStore()
    store.delay("claim", 20)
    async with leadership(store) as lead:
        await asyncio.sleep(3 * LEASE)
        assert lead.is_leader
        assert lead.token == 1
        assert store.server.leases["default"].holder == lead.holder


@virtual_time
async def test_a_claim_that_came_late_is_taken_up_or_given_back() -> None:
    """A claim that takes effect after its time-out keeps nobody out for a whole lease."""
    server = MemoryServer()
    store = MemoryStore(server)
    store.delay("claim", 8)
    store.fail("claim", StoreUnavailable("memory", "no"), 4)
    started = clock()
    async with leadership(store) as lead:
        assert clock() - started < LEASE / 2
        assert server.leases["default"].holder == lead.holder
        await asyncio.sleep(3 * LEASE)
        assert lead.is_leader


@virtual_time
async def test_every_attempt_has_a_holder_of_its_own() -> None:
    """The holder names host, process and attempt; no two claims share one."""
    store, holders = MemoryStore(), set()
    for _ in range(3):
        async with leadership(store) as lead:
            holders.add(lead.holder)
            assert re.fullmatch(r"[!-~]+-\d+-[0-9a-f]{32}", lead.holder)
    assert len(holders) == 3


@pytest.mark.parametrize("fence", [True, False])
@virtual_time
async def test_tokens_rise(fence: bool) -> None:
    """Every term has a higher token, also after its row was deleted by hand."""
    server, tokens = MemoryServer(), []
    store = MemoryStore(server)
    for _ in range(5):
        async with leadership(store) as lead:
            tokens.append(lead.token)
            assert server.fences["default"].token == lead.token
        if fence:
            del server.leases["default"]
    assert tokens == [1, 2, 3, 4, 5]


@virtual_time
async def test_a_deleted_row_is_not_claimed_by_who_saw_its_holder_alive() -> None:
    """When a row vanishes under a holder, one that saw it waits until that holder must have stopped."""
    server = MemoryServer()
    store = MemoryStore(server)

    async def first() -> None:
        async with leadership(store, "cron"):
            await asyncio.sleep(LONG)

    holding = asyncio.create_task(first())
    await until(lambda: server.leases)
    second = Process(server)
    await asyncio.sleep(1)
    seen = clock()
    store.lose_request("renew", 1000)
    del server.leases["cron"]
    for _ in range(5):
        await asyncio.sleep(2)
        server.wake()  # it looks, and sees no row
    lead = await second.leads()
    assert LEASE - 1.1 <= clock() - seen <= LEASE
    assert holding.done()
    assert lead.token == 2
    with pytest.raises(LeadershipLost):
        await holding
    await end(second.task)


def test_a_forked_child_does_not_lead() -> None:
    """After a fork only the parent leads; the child's `check` raises, and what it does there ends nothing."""
    done = run_script(
        """
        import asyncio, os, warnings
        from aiolease import LeadershipLost, NotLeader, current_leadership, leadership
        from aiolease.testing import MemoryStore

        async def main():
            store = MemoryStore()
            async with leadership(store) as lead:
                await asyncio.sleep(0.05)
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
                if child == 0:
                    try:
                        assert not lead.is_leader and lead.remaining == 0
                        try:
                            lead.check()
                        except LeadershipLost:
                            pass
                        else:
                            os._exit(2)
                        try:
                            current_leadership()
                        except NotLeader:
                            os._exit(0)
                        os._exit(3)
                    except BaseException:
                        os._exit(4)
                _, status = os.waitpid(child, 0)
                assert os.waitstatus_to_exitcode(status) == 0, status
                assert lead.is_leader
                lead.check()
            assert store.server.leases["default"].holder is None

        asyncio.run(main())
        """
    )
    assert done.returncode == 0, done.stderr


# -- rule 6: beats


@pytest.mark.parametrize("delays", [(12.0,), (6.0, 13.0), (30.0, 8.0)])
@virtual_time
async def test_a_delayed_renewal_undoes_nothing(delays: tuple[float, ...]) -> None:
    """Every attempt to renew has a higher beat: one that the server executes late changes nothing any more."""
    server = MemoryServer()
    store = MemoryStore(server)
    beats: list[int] = []

    async def renew(name: str, holder: str, token: int, beat: int, duration: float) -> Any:
        beats.append(beat)
        return await MemoryStore.renew(store, name, holder, token, beat, duration)

    store.renew = renew  # type: ignore[method-assign]
    async with leadership(store) as lead:
        for seconds in delays:
            store.delay("renew", seconds)
        rows = []
        for _ in range(int(3 * LEASE)):
            await asyncio.sleep(1)
            rows.append(server.leases["default"])
        assert lead.is_leader
    assert [row.beat for row in rows] == sorted(row.beat for row in rows)
    assert [row.expires_at for row in rows] == sorted(row.expires_at for row in rows)
    assert beats == sorted(set(beats))


@virtual_time
async def test_a_delayed_renewal_does_not_revive_a_term() -> None:
    """A renewal that the server executes after the release, or in another's term, changes nothing."""
    server = MemoryServer()
    store = MemoryStore(server)
    with losing():
        async with leadership(store):
            store.delay("renew", 60, 1000)
            await asyncio.sleep(LONG)
    assert server.leases["default"].holder is None
    async with leadership(MemoryStore(server)) as lead:
        await asyncio.sleep(100)
        assert server.leases["default"].holder == lead.holder
        assert lead.is_leader
