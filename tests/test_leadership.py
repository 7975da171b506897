"""One lease, its candidates and its leader, rule by rule: in virtual time, but for threads, forks and log set-ups."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import anyio
import pytest
from loguru import logger

import aiolease._clock
import aiolease._tenure
from aiolease import (
    ConfigurationError,
    Leadership,
    LeadershipLost,
    LeaseHeld,
    NotLeader,
    SchemaMissing,
    StoreRejected,
    StoreUnavailable,
    current_leadership,
    leadership,
    run_as_leader,
)
from aiolease._lease import ClockHistory, Lease, Reading, Sighting
from aiolease._watchdog import watched
from aiolease.events import (
    Elected,
    Event,
    Following,
    LoopBlocked,
    Lost,
    Notice,
    Released,
    Renewed,
    RenewFailed,
    Resigned,
    Waiting,
)
from aiolease.testing import MemoryServer, MemoryStore, VirtualLoop, run_virtual, virtual_time

LONG = 3600.0
LEASE, DEADLINE, HEARTBEAT, ATTEMPT, RETRY = 30.0, 25.0, 10.0, 5.0, 2.0
JITTER = 0.05

E = TypeVar("E", bound=Event)
T = TypeVar("T")


@contextmanager
def losing() -> Iterator[pytest.ExceptionInfo[LeadershipLost]]:
    """The block inside is left by its loss alone: what the body asserts while it unwinds counts."""
    with pytest.raises(LeadershipLost) as lost:
        yield lost
    if lost.value.__cause__ is not None:
        raise lost.value.__cause__


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Keeps the log lines of some thousand virtual leases away; `lines` has them again."""
    logger.disable("aiolease")
    yield
    logger.enable("aiolease")


def clock() -> float:
    return asyncio.get_running_loop().time()


def virtual_loop() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


class Log:
    """An `on_event` that keeps what it was told, and when."""

    def __init__(self) -> None:
        self.entries: list[tuple[float, Event]] = []

    def __call__(self, event: Event) -> None:
        self.entries.append((clock(), event))

    def of(self, kind: type[E]) -> list[E]:
        return [event for _, event in self.entries if isinstance(event, kind)]

    def times(self, kind: type[Event]) -> list[float]:
        return [at for at, event in self.entries if isinstance(event, kind)]


def sent(store: MemoryStore, method: str) -> list[float]:
    return [at for name, at in store.sent if name == method]


async def until(condition: Callable[[], object], limit: float = LONG) -> None:
    """Waits until something is so; in virtual time this costs nothing."""
    async with asyncio.timeout(limit):
        while not condition():
            await asyncio.sleep(0.01)


async def end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Process:
    """One process of a fleet: its own network, its campaign, and a journal of when it led."""

    running: list[Process]

    def __init__(self, server: MemoryServer, fleet: list[Process] | None = None, **options: Any) -> None:
        self.store, self.log = MemoryStore(server), Log()
        self.fleet = [self] if fleet is None else fleet
        if fleet is not None:
            fleet.append(self)
        self.lead: Leadership | None = None
        self.terms: list[tuple[float, int]] = []
        self.body_for = LONG * 1000
        self.task = asyncio.create_task(run_as_leader(self.store, self.body, "cron", on_event=self.log, **options))

    async def body(self, lead: Leadership) -> None:
        assert not any(other.lead for other in self.fleet), "two leaders"
        self.lead = lead
        self.terms.append((clock(), lead.token))
        try:
            await asyncio.sleep(self.body_for)
        finally:
            self.lead = None

    async def crash(self) -> None:
        self.store.down = True
        await end(self.task)

    async def leads(self, limit: float = LONG) -> Leadership:
        await until(lambda: self.lead or self.task.done(), limit)
        if self.task.done():
            self.task.result()
        assert self.lead is not None
        return self.lead


async def elected(fleet: list[Process], limit: float) -> Process:
    await until(lambda: any(process.lead for process in fleet), limit)
    return next(process for process in fleet if process.lead)


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
    """Whenever it begins, an outage of the renew deadline less one and a half heartbeats is ridden out."""

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
    """If the heartbeat ends for a reason of its own, the body is cancelled with "error", and it is said why."""
    store, log = MemoryStore(), Log()
    with losing() as lost:
        async with leadership(store, on_event=log):
            store.fail("renew", ZeroDivisionError("a bug"))
            await asyncio.sleep(LONG)
    assert lost.value.reason == "error"
    assert any("ZeroDivisionError: a bug" in notice.text and notice.severity == "ERROR" for notice in log.of(Notice))
    assert store.server.leases["default"].holder is None


# -- rule 5: identity


@virtual_time
async def test_a_claim_whose_answer_was_lost_is_adopted() -> None:
    """If the row shows a claim's holder, the claim was won: it is led by, with the deadline of its own sending."""
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
    """A lost claim that shows up when little of its time is left is released, and claimed anew."""
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
    """A claim that takes effect after its time-out, on a row nobody else claims, keeps nobody out for a whole lease."""
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


def run_script(script: str, *, limit: float = 20) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=limit, check=False
    )


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


# -- rule 8: steps of the server's clock


HOUR = timedelta(hours=1)

START = datetime(2026, 1, 1, tzinfo=UTC)


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


def row(*, age: float, now: float) -> Lease:
    """A lease of 30 s that was renewed `age` seconds ago by the database's clock, which shows `now`."""
    clock, renewed_at = START + timedelta(seconds=now), START + timedelta(seconds=now - age)
    times: Any = {"elected_at": renewed_at, "renewed_at": renewed_at, "expires_at": renewed_at + timedelta(seconds=30)}
    return Lease(name="cron", holder="a", token=1, beat=5, resign_token=None, now=clock, **times)


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
    """What is left by the database's clock counts as far as the candidate's own clock confirms it."""
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
    """By as much as the clock went back in half a lease, but a third of one at most, a leader stops earlier."""
    clocks = ClockHistory()
    for earlier in before:
        clocks.note(earlier, 30.0)
    assert clocks.setback(START + timedelta(seconds=100), 100, 30.0) == pytest.approx(back)


@pytest.mark.parametrize(("renewed_at", "wait"), [(96, 26), (92.1, 22.1), (91.95, 22), (91.85, 30), (85, 30)])
def test_a_renewal_that_seems_older_than_the_reading_before_it(renewed_at: float, wait: float) -> None:
    """It came after that reading, so the clock had gone back before it, and has gone forward as far since."""
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
    """It renews sooner while it stops earlier: a step of the clock costs no term, whatever the timings are."""
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
    """It knows nothing of the clock before its claim, and is cut off after it: who sees its term waits for it whole.

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


# -- rule 9: a suspended machine


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
    """When that clock jumps and the loop's does not, `is_leader` is false at once, and every wake-up looks at it."""
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
    """What is left until a heartbeat is counted by the clock that counts suspension, not by a timer of the loop."""
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
    """A renewal that is answered once the deadline has passed makes no leader of who was none for a moment."""
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
    monkeypatch.setattr(aiolease._tenure, "boot_clock", boot_clock)
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


# -- rule 10: a blocked loop


async def test_the_watchdog_names_the_line_that_blocks_the_loop() -> None:
    """Past the deadline of a loop that does not run, the stack of its thread is reported once; the term is over."""
    events: list[Event] = []
    with losing() as lost:
        async with leadership(MemoryStore(), lease_duration=0.6, on_event=events.append) as lead:
            await asyncio.sleep(0.01)
            before = len(events)
            time.sleep(1.2)  # the culprit
            blocked = [event for event in events[before:] if isinstance(event, LoopBlocked)]
            assert not lead.is_leader
            await asyncio.sleep(5)
    assert lost.value.reason == "expired"
    (report,) = blocked
    assert report.level == "CRITICAL"
    assert report.phrase == f"the event loop is blocked: {report.stack}"
    assert "time.sleep(1.2)  # the culprit" in report.stack
    assert __file__ in report.stack
    assert report.token == lead.token


async def test_the_watchdog_is_silent_while_the_loop_runs() -> None:
    """Neither a loop that is blocked for less than the deadline nor a term that is lost in order is reported."""
    events: list[Event] = []
    store = MemoryStore()
    with losing():
        async with leadership(store, lease_duration=1.2, on_event=events.append):
            time.sleep(0.5)
            await asyncio.sleep(0.3)
            store.down = True
            try:
                await asyncio.sleep(5)
            finally:
                with anyio.CancelScope(shield=True), suppress(asyncio.CancelledError):
                    await asyncio.sleep(1)  # it does not end in time, but the loop runs
                await asyncio.sleep(0.5)
    assert not [event for event in events if isinstance(event, LoopBlocked)]


BLOCKED = """
    import asyncio, sys, time
    from aiolease import leadership
    from aiolease.testing import MemoryStore

    async def main():
        store = MemoryStore()
        async with leadership(store, lease_duration=0.6, on_stall="exit"):
            await asyncio.sleep(0.01)
            started = time.monotonic()
            {body}
            print("still alive", flush=True)

    asyncio.run(main())
"""


def test_a_blocked_loop_ends_the_process_if_it_is_told_to() -> None:
    """With on_stall="exit" a process whose loop is blocked past the deadline ends with status 70."""
    started = time.monotonic()
    done = run_script(BLOCKED.format(body="time.sleep(15)"))
    assert done.returncode == 70, done.stderr
    assert time.monotonic() - started < 10
    assert "still alive" not in done.stdout
    assert "CRITICAL" in done.stderr
    assert "the event loop is blocked" in done.stderr


def test_a_loop_that_is_blocked_by_the_clean_up_ends_the_process_too() -> None:
    """A body that blocks the loop while it unwinds is past the deadline as well: it must not run on beside another."""
    body = (
        "store.down = True\n"
        "            try:\n"
        "                await asyncio.sleep(60)\n"
        "            finally:\n"
        "                time.sleep(4)"
    )
    done = run_script(BLOCKED.format(body=body))
    assert done.returncode == 70, f"{done.returncode}\n{done.stderr}"
    assert "the event loop is blocked" in done.stderr


async def test_a_loop_blocked_by_the_clean_up_is_reported_before_another_may_lead() -> None:
    """While the body unwinds, a blocked loop is reported, and ended, before the lease has expired."""
    reported: list[float] = []

    def observe(event: Event) -> None:
        if isinstance(event, LoopBlocked):
            reported.append(time.monotonic())

    store = MemoryStore()
    started = time.monotonic()
    with losing():
        async with leadership(store, lease_duration=3.0, renew_deadline=2.0, on_event=observe):
            store.down = True
            try:
                await asyncio.sleep(10)
            finally:
                time.sleep(1.5)
    (at,) = reported
    assert 2.0 < at - started < 3.0


def test_a_report_that_hangs_does_not_keep_another_lease_from_ending_the_process() -> None:
    """The loop blocks inside the log, and so does the report of one lease; another one ends the process in time."""
    done = run_script(
        """
        import asyncio, time
        from loguru import logger
        from aiolease import leadership
        from aiolease.testing import MemoryStore

        def sink(message):
            if "the culprit" in message:
                time.sleep(15)  # a full pipe, a slow syslog; loguru holds the lock of the sink meanwhile

        async def main():
            logger.remove()
            logger.add(sink)
            async with leadership(MemoryStore(), "a", lease_duration=0.6, on_stall="log"):
                async with leadership(MemoryStore(), "b", lease_duration=1.2, on_stall="exit"):
                    await asyncio.sleep(0.01)
                    logger.info("the culprit")
                    print("still alive", flush=True)

        asyncio.run(main())
        """
    )
    assert done.returncode == 70, f"{done.returncode}\n{done.stderr}"
    assert "still alive" not in done.stdout


EXITING = """
    import asyncio, sys, threading, time
    from aiolease import LeadershipLost, LoopBlocked, leadership
    from aiolease.testing import MemoryStore

    def observe(event):
        if isinstance(event, LoopBlocked):
            {raising}

    async def blocked(name, on_stall, on_event=None):
        try:
            async with leadership(MemoryStore(), name, lease_duration=0.6, on_stall=on_stall, on_event=on_event):
                await asyncio.sleep(0.01)
                time.sleep({seconds})
                await asyncio.sleep(10)
        except LeadershipLost as error:
            print(name, error.reason, flush=True)

    async def main():
        {body}

    asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("raising", "told"),
    [
        ("sys.exit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise asyncio.CancelledError", "CancelledError"),
    ],
)
def test_an_observer_that_exits_on_a_blocked_loop_ends_nothing(raising: str, told: str) -> None:
    """What an observer of LoopBlocked raises is logged, even `sys.exit`; the next term of the process is watched."""
    done = run_script(
        EXITING.format(
            raising=raising,
            seconds=3,
            body="await blocked('a', 'log', observe)\n        await blocked('b', 'exit')",
        )
    )
    assert done.returncode == 70, f"{done.returncode}\n{done.stderr}"
    assert done.stdout == "a expired\n"
    assert f"an observer of LoopBlocked raised {told}" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_status_of_a_process_that_is_ended_is_not_an_observers() -> None:
    """With on_stall="exit" an observer's `sys.exit` changes neither that the process ends nor how, and is logged."""
    done = run_script(EXITING.format(raising="sys.exit(3)", seconds=15, body="await blocked('a', 'exit', observe)"))
    assert done.returncode == 70, f"{done.returncode}\n{done.stderr}"
    assert "the event loop is blocked" in done.stderr
    assert "an observer of LoopBlocked raised SystemExit: 3" in done.stderr


NO_THREADS = """
    import asyncio, threading, time
    from aiolease import leadership
    from aiolease.testing import MemoryStore

    start = threading.Thread.start

    def cannot_start(thread):
        raise RuntimeError("can't start new thread")

    async def lead(then):
        async with leadership(MemoryStore(), lease_duration=0.6, on_stall="exit"):
            await asyncio.sleep(0.01)
            threading.Thread.start = then
            time.sleep(15)

    async def main():
        {body}

    asyncio.run(main())
"""


def test_a_process_that_may_have_no_more_threads_is_ended_too() -> None:
    """Where no thread can be started for the report, on_stall="exit" ends the process without it."""
    done = run_script(NO_THREADS.format(body="await lead(cannot_start)"))
    assert done.returncode == 70, f"{done.returncode}\n{done.stderr}"


def test_a_watchdog_that_could_not_start_is_started_for_the_next_term() -> None:
    """A candidate that finds no thread for the watchdog fails; with the next one it is started, and watches."""
    body = """
        threading.Thread.start = cannot_start
        try:
            await lead(start)
        except RuntimeError:
            threading.Thread.start = start
            print("no thread", flush=True)
        await lead(start)
    """
    done = run_script(NO_THREADS.format(body=body.strip()))
    assert done.returncode == 70, f"{done.returncode}\n{done.stderr}"
    assert done.stdout == "no thread\n"


def test_a_forked_child_has_a_watchdog_of_its_own() -> None:
    """A child that is forked while its parent's watchdog reports has terms of its own, and they are watched."""
    done = run_script(
        """
        import asyncio, os, threading, time, warnings
        from aiolease import LoopBlocked, leadership
        from aiolease.testing import MemoryStore

        reporting = threading.Event()

        def observe(event):
            if isinstance(event, LoopBlocked):
                reporting.set()
                time.sleep(15)

        async def child():
            async with leadership(MemoryStore(), lease_duration=0.6, on_stall="exit"):
                time.sleep(5)

        async def parent():
            async with leadership(MemoryStore(), lease_duration=0.6, on_event=observe):
                assert reporting.wait(10)  # which blocks the loop
                warnings.simplefilter("ignore", DeprecationWarning)
                if (pid := os.fork()) == 0:
                    asyncio.run(child())
                    os._exit(1)
                print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
                os._exit(0)

        asyncio.run(parent())
        """
    )
    assert done.stdout == "70\n", f"{done.returncode} {done.stdout}\n{done.stderr}"


async def test_a_term_that_cannot_be_watched_does_not_hide_the_others() -> None:
    """Whatever the watchdog meets when it looks at one term, it looks at the next, and goes on looking."""
    reports = threading.Semaphore(0)

    def unknown() -> float:
        raise SystemExit

    def ignore(*_: object) -> None:
        pass

    for _ in range(2):
        with (
            watched(time.monotonic, unknown, grace=0.05, wake=ignore, blocked=ignore),
            watched(time.monotonic, lambda: 0.0, grace=0.05, wake=ignore, blocked=lambda _: reports.release()),
        ):
            assert reports.acquire(timeout=10)  # which blocks the loop


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
    """Who resigns is followed by another that waits, and stays out until that term was seen."""
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
    """Where nobody else is elected, the process that resigned leads again, but not at once."""
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


# -- rule 16: start-up


@pytest.mark.parametrize("what", ["everything fails", "claims fail"])
@virtual_time
async def test_a_database_that_is_down_is_waited_for(what: str) -> None:
    """While the database does not do what it is asked, warnings grow rarer; when it does, the process leads soon."""
    process = Process(MemoryServer())
    if what == "everything fails":
        process.store.down = True
    else:  # as on a server that became read-only
        process.store.fail("claim", StoreUnavailable("memory", "read-only"), 100_000)
    await asyncio.sleep(LONG)
    times = process.log.times(Waiting)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps[0] < 3
    assert 50 < gaps[-1] < 70
    assert len(times) < 80
    assert all(later >= earlier - RETRY for earlier, later in itertools.pairwise(gaps))
    attempts = [at for method, at in process.store.sent if method == "read"]
    assert all(later - earlier <= RETRY + 0.1 for earlier, later in itertools.pairwise(attempts))
    assert process.log.of(Waiting)[0].level == "WARNING"
    assert process.log.of(Waiting)[0].phrase.startswith("waiting for the database: memory: ")
    process.store.down = False
    process.store._faults.clear()
    await process.leads(RETRY + 0.1)
    await end(process.task)


@pytest.mark.parametrize("method", ["read", "claim"])
@pytest.mark.parametrize("error", [StoreRejected("memory", "denied"), SchemaMissing("memory", "no tables")], ids=repr)
@virtual_time
async def test_what_waiting_cannot_mend_is_raised_by_the_first_attempt(error: Exception, method: Any) -> None:
    """Access denied and missing tables come out of the first attempt, as they are."""
    store = MemoryStore()
    store.fail(method, error)
    with pytest.raises(type(error)) as raised:
        async with leadership(store):
            pytest.fail("it was elected")
    assert raised.value is error
    assert clock() < 1001

    store = MemoryStore()
    store.fail(method, error)
    with pytest.raises(type(error)) as raised:
        await run_as_leader(store, lambda lead: asyncio.sleep(1))
    assert raised.value is error


@pytest.mark.parametrize("error", [StoreRejected("memory", "denied"), SchemaMissing("memory", "no tables")], ids=repr)
@pytest.mark.parametrize("when", ["following", "after a term", "after an outage"])
@virtual_time
async def test_later_the_same_is_logged_and_tried_again(error: Exception, when: str) -> None:
    """Once the database has served, or was down first, what it refuses is a warning, and tried again."""
    server = MemoryServer()
    if when == "following":
        other = Process(server)
        await other.leads()
    process = Process(server)
    if when == "after an outage":
        process.store.fail("read", StoreUnavailable("memory", "down"), 2)
    if when == "after a term":
        lead = await process.leads()
        lead.resign()
        await until(lambda: process.lead is None)
    else:
        await asyncio.sleep(0.01)
    process.store.fail("read", error, 20)
    if when == "following":
        await end(other.task)
    await process.leads(60)
    assert any("denied" in waiting.error or "no tables" in waiting.error for waiting in process.log.of(Waiting))
    await end(process.task)


@pytest.mark.parametrize(("timeout", "longest"), [(0, 0.01), (5.0, 5.2), (0.5, 0.7)])
@virtual_time
async def test_a_wait_that_ends_while_another_leads(timeout: float, longest: float) -> None:
    """With `timeout` the wait ends with `LeaseHeld`, which tells the holder; 0 tries once."""
    server = MemoryServer()
    first = Process(server)
    lead = await first.leads()
    started = clock()
    with pytest.raises(LeaseHeld) as held:
        async with leadership(MemoryStore(server), "cron", timeout=timeout):
            pytest.fail("it was elected")
    assert timeout <= clock() - started <= longest
    assert (held.value.name, held.value.holder) == ("cron", lead.holder)
    assert held.value.waited == pytest.approx(clock() - started)
    assert str(held.value).startswith(f"lease 'cron' is held by {lead.holder}; gave up after {timeout:.1f} s")
    await end(first.task)


@pytest.mark.parametrize(("timeout", "longest"), [(0, ATTEMPT + 0.1), (5.0, 5.2), (20.0, 20.2)])
@pytest.mark.parametrize("fault", ["refuses", "hangs"])
@virtual_time
async def test_a_wait_that_ends_without_a_database(timeout: float, longest: float, fault: str) -> None:
    """If the database was never reached, the wait ends with `StoreUnavailable`, in time."""
    store = MemoryStore()
    if fault == "refuses":
        store.down = True
    else:
        store.lose_request("read", 1000)
    started = clock()
    with pytest.raises(StoreUnavailable) as raised:
        async with leadership(store, timeout=timeout):
            pytest.fail("it was elected")
    assert timeout <= clock() - started <= longest
    assert raised.value.store == "memory"


@pytest.mark.parametrize("timeout", [5.0, None])
@virtual_time
async def test_a_wait_that_is_long_enough(timeout: float | None) -> None:
    """A lease that becomes free in time is won; without a limit the wait goes on for as long as it takes."""
    server = MemoryServer()
    first = Process(server)
    await first.leads()
    asyncio.get_running_loop().call_later(4 if timeout else 3 * LONG, first.task.cancel)
    async with leadership(MemoryStore(server), "cron", timeout=timeout) as lead:
        assert lead.token == 2


@virtual_time
async def test_a_single_try_trusts_the_clock_of_the_database() -> None:
    """With a time-out of 0 a row that has expired by the database's clock is taken at once."""
    server = MemoryServer()
    first = Process(server)
    await first.leads()
    await first.crash()
    await asyncio.sleep(LEASE + 1)
    started = clock()
    async with leadership(MemoryStore(server), "cron", timeout=0) as lead:
        assert lead.token == 2
        assert clock() == started


# -- rule 17: settings


@pytest.mark.parametrize(
    ("options", "field", "said"),
    [
        ({"lease_duration": 0}, "lease_duration", "lease_duration=0: "),
        ({"lease_duration": -1.0}, "lease_duration", "lease_duration=-1.0: "),
        ({"lease_duration": float("nan")}, "lease_duration", "lease_duration=nan: "),
        ({"lease_duration": float("inf")}, "lease_duration", "lease_duration=inf: "),
        ({"lease_duration": 1e9}, "lease_duration", "lease_duration=1000000000.0: "),
        ({"lease_duration": "30"}, "lease_duration", "lease_duration='30': "),
        ({"lease_duration": True}, "lease_duration", "lease_duration=True: "),
        ({"lease_duration": None}, "lease_duration", "lease_duration=None: "),
        ({"heartbeat_interval": 0.0}, "heartbeat_interval", "heartbeat_interval=0.0: "),
        ({"heartbeat_interval": float("inf")}, "heartbeat_interval", "heartbeat_interval=inf: "),
        (
            {"heartbeat_interval": 13.0},
            "heartbeat_interval,renew_deadline",
            "heartbeat_interval=13 .*renew_deadline=25",
        ),
        ({"renew_deadline": 12.0}, "heartbeat_interval,renew_deadline", "heartbeat_interval=10 .*renew_deadline=12"),
        ({"renew_deadline": -3.0}, "renew_deadline", "renew_deadline=-3.0: "),
        ({"renew_deadline": 27.5}, "renew_deadline,lease_duration", "renew_deadline=27.5 .*lease_duration=30"),
        ({"retry_interval": 0}, "retry_interval", "retry_interval=0: "),
        ({"retry_interval": 31.0}, "retry_interval,lease_duration", "retry_interval=31 .*lease_duration=30"),
        ({"timeout": -1.0}, "timeout", "timeout=-1.0: "),
        ({"timeout": float("nan")}, "timeout", "timeout=nan: "),
        ({"timeout": float("inf")}, "timeout", "timeout=inf: "),
        ({"on_stall": "explode"}, "on_stall", "on_stall='explode': "),
        ({"name": ""}, "name", "name='': "),
        ({"name": "a b"}, "name", "name='a b': "),
        ({"name": "ä"}, "name", "name='ä': "),
        ({"name": "a\n"}, "name", r"name='a\\n': "),
        ({"name": "x" * 101}, "name", "name='x{101}': "),
    ],
    ids=repr,
)
def test_settings_are_checked_when_made(options: dict[str, Any], field: str, said: str) -> None:
    """A setting that cannot work is a `ConfigurationError` of the call itself, naming fields and values."""
    with pytest.raises(ConfigurationError, match=said) as raised:
        leadership(MemoryStore(), **options)
    assert raised.value.field == field
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize("options", [{"lease_duration": -1.0}, {"renew_deadline": 29.0}, {"on_stall": "no"}])
@virtual_time
async def test_settings_of_a_campaign_are_checked_too(options: Any) -> None:
    """`run_as_leader` checks its settings before it does anything."""
    store = MemoryStore()
    with pytest.raises(ConfigurationError):
        await run_as_leader(store, lambda lead: asyncio.sleep(1), **options)
    assert store.sent == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lease_duration": 0.1},
        {"lease_duration": 10, "renew_deadline": 9},
        {"lease_duration": 0.3, "renew_deadline": 0.3 * 0.9},
        {"renew_deadline": 20.0},
        {"heartbeat_interval": 12.5},
        {"timeout": 0},
        {"timeout": 0.0},
        {"name": "!~" * 50},
    ],
    ids=repr,
)
def test_settings_at_the_edge_are_fine(options: dict[str, Any]) -> None:
    """What is just allowed is allowed."""

    async def main() -> None:
        async with leadership(MemoryStore(), **options) as lead:
            assert lead.is_leader

    run_virtual(main())


# -- the leadership itself


@virtual_time
async def test_what_a_leadership_tells() -> None:
    """A leadership tells name, holder, token, when it began by the database's clock, and how long it may act."""
    server = MemoryServer(datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC))
    async with leadership(MemoryStore(server), "cron") as lead:
        row = server.leases["cron"]
        assert (lead.name, lead.holder, lead.token) == ("cron", row.holder, row.token)
        assert lead.elected_at == datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
        assert lead.is_leader
        assert lead.remaining == DEADLINE
        await asyncio.sleep(4)
        assert lead.remaining == DEADLINE - 4
        lead.check()
    assert not lead.is_leader
    assert lead.remaining == 0
    with pytest.raises(LeadershipLost):
        lead.check()


async def test_check_works_in_any_thread() -> None:
    """`check`, `is_leader` and `remaining` may be used in a thread, and know of the end at once."""
    async with leadership(MemoryStore()) as lead:
        await asyncio.to_thread(lead.check)
        assert await asyncio.to_thread(lambda: lead.remaining) > 20
        lead.resign()
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            with pytest.raises(LeadershipLost, match="resigned"):
                await asyncio.to_thread(lead.check)


@virtual_time
async def test_the_current_leadership() -> None:
    """`current_leadership` gives the innermost live one of the running task, its children included."""
    with pytest.raises(NotLeader):
        current_leadership()
    store = MemoryStore()
    go = asyncio.Event()

    async def later() -> Leadership:
        await go.wait()
        return current_leadership()

    async with leadership(store, "outer") as outer:
        assert current_leadership() is outer
        async with leadership(store, "inner") as inner:
            assert current_leadership() is inner
            assert await asyncio.create_task(asyncio.sleep(0, current_leadership())) is inner
            in_time, too_late = asyncio.create_task(later()), asyncio.create_task(later())
            inner.resign()
            assert current_leadership() is outer
        go.set()
        assert await in_time is outer
        too_late.cancel()
        go.clear()
        straggler = asyncio.create_task(later())
        assert current_leadership() is outer
    with pytest.raises(NotLeader):
        current_leadership()
    go.set()
    with pytest.raises(NotLeader):
        await straggler


# -- section 7: seeing it


@pytest.fixture
def lines(quiet: None) -> Iterator[list[tuple[str, str, dict[str, Any]]]]:
    """What loguru was told."""
    written: list[tuple[str, str, dict[str, Any]]] = []

    def sink(message: Any) -> None:
        record = message.record
        written.append((record["level"].name, record["message"], dict(record["extra"])))

    logger.enable("aiolease")
    number = logger.add(sink, level=0)
    yield written
    logger.remove(number)


def test_log_phrases_are_stable(lines: list[tuple[str, str, dict[str, Any]]]) -> None:
    """What people alert on is written in these words, at these levels, with the facts bound."""

    async def main() -> tuple[str, str]:
        server = MemoryServer()
        store = MemoryStore(server)
        store.down = True
        asyncio.get_running_loop().call_later(0.1, setattr, store, "down", False)
        with losing():
            async with leadership(store, "cron") as first:
                follower = asyncio.create_task(leadership(MemoryStore(server), "cron").__aenter__())
                await asyncio.sleep(1)
                await end(follower)
                await asyncio.sleep(HEARTBEAT)
                store.lose_request("renew", 1)
                store.fail("renew", StoreUnavailable("db {x}", "gone <b>away</b> %s"), 1000)
                try:
                    await asyncio.sleep(LONG)
                finally:
                    await asyncio.sleep(2.4)
                    try:
                        await asyncio.sleep(2.7)
                    except asyncio.CancelledError:
                        await asyncio.sleep(2.7)
        async with leadership(store, "cron") as second:
            second.resign()
        return first.holder, second.holder

    first, second = run_virtual(main())
    said = [(level, text) for level, text, _ in lines]
    for entry in [
        ("WARNING", "waiting for the database: memory: the network is down"),
        ("INFO", f"acquired leadership of 'cron' (term 1) as {first}, on memory"),
        ("INFO", f"another instance leads 'cron': {first}, waiting, on memory"),
        ("TRACE", "renewed 'cron'"),
        ("ERROR", f"lost leadership of 'cron' (term 1): expired (holder {first})"),
        ("CRITICAL", f"'cron' (term 1): the body has not ended, 5.0 s after the lease was lost (holder {first})"),
        ("INFO", f"released 'cron' (term 1) as {first}"),
        ("INFO", f"acquired leadership of 'cron' (term 2) as {second}, on memory"),
        ("INFO", f"resigned from 'cron' (term 2) as {second}"),
        ("INFO", f"released 'cron' (term 2) as {second}"),
    ]:
        assert said.count(entry) == 1, entry
    failures = [text for level, text in said if level == "WARNING" and text.startswith("could not renew")]
    assert failures[0] == "could not renew 'cron', 10.0 s left: memory: no answer within 5 s"
    assert all(
        re.fullmatch(r"could not renew 'cron', \d+\.\d s left: db \{x\}: gone <b>away</b> %s", text)
        for text in failures[1:]
    )
    for level, text, extra in lines:
        assert extra["lease"] == "cron"
        if level != "WARNING" or "renew" in text:
            assert extra["holder"] in (first, second)
            assert extra["token"] in (1, 2)


def test_log_phrases_through_the_standard_library() -> None:
    """`use_stdlib_logging` sends the same phrases to the logger "aiolease", facts in `extra`, and none to loguru."""
    done = run_script(
        """
        import asyncio, logging, sys
        from aiolease import LeadershipLost, leadership, use_stdlib_logging
        from aiolease.testing import MemoryStore, run_virtual

        class Handler(logging.Handler):
            def emit(self, record):
                print(record.levelname, record.getMessage(), record.lease, record.token, sep="|")
                right = record.module in ("_tenure", "_candidate")  # who told, not who wrote it down
                if record.levelname == "TRACE":
                    right = right and record.beat == 2 and record.took == 0
                if record.levelname == "ERROR":
                    right = right and record.reason == "expired"
                if not right:
                    print("wrong", record.__dict__, file=sys.stderr)

        use_stdlib_logging()
        log = logging.getLogger("aiolease")
        log.setLevel(1)
        log.addHandler(Handler())
        log.propagate = False

        async def main():
            store = MemoryStore()
            try:
                async with leadership(store, "cron"):
                    await asyncio.sleep(11)
                    store.down = True
                    await asyncio.sleep(3600)
            except LeadershipLost:
                pass
            store.down = False
            store.server.leases.clear()
            async with leadership(store, "cron"):
                pass

        run_virtual(main())
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    said = done.stdout.splitlines()
    holder = r"[^ |,]+-[0-9a-f]{32}"
    assert re.fullmatch(rf"INFO\|acquired leadership of 'cron' \(term 1\) as {holder}, on memory\|cron\|1", said[0])
    assert said[1] == "TRACE|renewed 'cron'|cron|1"
    assert re.fullmatch(
        r"WARNING\|could not renew 'cron', \d+\.\d s left: memory: the network is down\|cron\|1", said[2]
    )
    lost = rf"ERROR\|lost leadership of 'cron' \(term 1\): expired \(holder {holder}\)\|cron\|1"
    assert any(re.fullmatch(lost, line) for line in said)
    assert re.fullmatch(rf"INFO\|released 'cron' \(term 2\) as {holder}\|cron\|2", said[-1])


@virtual_time
async def test_an_observer_that_raises_harms_nothing() -> None:
    """Whatever `on_event` raises, the term goes on, is lost, and is released as without it."""
    told = []

    def observe(event: Event) -> None:
        told.append(type(event))
        raise RuntimeError("a broken observer")

    server = MemoryServer()
    store = MemoryStore(server)
    with losing() as lost:
        async with leadership(store, on_event=observe) as lead:
            await asyncio.sleep(5 * LEASE)
            assert lead.is_leader
            store.lose_reply("renew", 100)
            await asyncio.sleep(LONG)
    assert lost.value.reason == "expired"
    assert lost.value.__cause__ is None
    assert server.leases["default"].holder is None
    assert {Elected, Renewed, RenewFailed, Lost, Released} <= set(told)


# -- cancellation at every await of a campaign


class SlowStore(MemoryStore):
    """Every exchange yields to the loop several times, before and after the server acts."""

    async def exchange(self, method: str, statement: Callable[[], Any]) -> Any:
        for _ in range(6):
            await asyncio.sleep(0)
        answer = await super().exchange(method, statement)
        for _ in range(6):
            await asyncio.sleep(0)
        return answer


async def one_term(store: MemoryStore) -> None:
    async with leadership(store) as lead:
        await work(lead)


async def campaign(store: MemoryStore) -> None:
    await run_as_leader(store, work)


async def work(lead: Leadership) -> None:
    for _ in range(15):
        await asyncio.sleep(0)
    virtual_loop().advance(HEARTBEAT + 0.001)  # a renewal falls due
    for _ in range(30):
        await asyncio.sleep(0)


async def cancelled_after(steps: int, kind: str, play: Callable[[MemoryStore], Awaitable[None]], held: bool) -> bool:
    """Cancels after so many steps of the loop; says whether it was over before."""
    loop, server = asyncio.get_running_loop(), MemoryServer()
    holder: Leadership | None = None
    if held:
        holding = leadership(MemoryStore(server))
        holder = await holding.__aenter__()
        await asyncio.sleep(1)
    before = asyncio.all_tasks()
    scope: anyio.CancelScope | None = None
    over = True

    async def main() -> None:
        nonlocal scope
        if kind == "native":
            await play(SlowStore(server))
            return
        with anyio.CancelScope() as scope:
            await play(SlowStore(server))
        assert over or scope.cancelled_caught or play is one_term
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)

    task = asyncio.create_task(main())

    def step(left: int) -> None:
        nonlocal over
        if left > 0 and not task.done():
            loop.call_soon(step, left - 1)
        elif kind == "native":
            over = not task.cancel()
        elif scope is not None:
            over = task.done()
            scope.cancel()

    await asyncio.sleep(0)
    loop.call_soon(step, steps)
    async with asyncio.timeout(3 * LEASE):
        await asyncio.wait([task])
    if kind == "native" and not over:
        assert task.cancelled(), "the cancellation was swallowed"
    else:
        task.result()
    assert asyncio.all_tasks() == before
    if holder is not None:
        assert server.leases["default"].holder == holder.holder
        await holding.__aexit__(None, None, None)
        return over
    row = server.leases.get("default")
    assert row is None or row.holder is None
    started = clock()
    async with asyncio.timeout(3 * LEASE), leadership(SlowStore(server)) as lead:
        assert lead.is_leader
        assert clock() - started < 1
    return over


@pytest.mark.parametrize("kind", ["native", "anyio"])
@pytest.mark.parametrize("play", [one_term, campaign], ids=lambda play: play.__name__)
@pytest.mark.parametrize("held", [False, True], ids=["free", "held"])
def test_cancellation_at_every_await(kind: str, play: Callable[[MemoryStore], Awaitable[None]], held: bool) -> None:
    """Cancellation anywhere in a campaign leaves no task and no lease behind, and is not swallowed."""
    over = []
    for steps in range(40 if held else 200):
        try:
            over.append(run_virtual(cancelled_after(steps, kind, play, held)))
        except BaseException as error:
            error.add_note(f"cancelled after {steps} steps")
            raise
    if play is one_term and not held:
        assert over[-1], "the whole of the campaign was covered"
        assert not over[70]
