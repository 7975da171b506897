"""The ledger while leaders die, freeze, and lose answers: true processes on true databases.

Several workers (`failover_worker.py`) serve the same jobs; leaders are killed, frozen, cut off and told to stop, again
and again. Then the ledger is read, and compared with the grid of each job, reckoned here by arithmetic, with the
journal that the runs have kept, and with the rows that they wrote. ``AIOLEASE_SEED`` varies what happens.
"""

from __future__ import annotations

import asyncio
import random
import re
import signal
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pymysql
import pytest
from pymysql.constants import CLIENT

from aiolease import InvalidJob
from aiolease._clock import boot_clock
from aiolease.stores.records import RunRecord
from tests.campaigns import database_of, until
from tests.jobs.failover_fleet import HEARTBEAT, LEASE, LIMIT, NAME, SEED, Fleet, Place, a_fleet, a_proxy, eventually
from tests.jobs.failover_worker import ASKED, EFFECTS, FLEET, GRIDS, micros
from tests.servers import Action

KILLING, TROUBLING = 10.0, 9.0
"""Seconds of trouble per database."""


MAX_RUNNING = 2


FINAL_RUN = re.compile(rb"job = '\w+' AND tick = '[^']+'(?= AND attempt = )")


# -- leaders that die


async def test_every_tick_is_in_the_ledger_once_though_leaders_die(place: Place, tmp_path: Path) -> None:
    """Through kills and orderly ends of leaders, every tick of every job is run once, or skipped for a reason.

    A final commit has its effect once; no tick begins twice whose job is not to be run again; and what an orderly
    leader leaves is written down. Only runs that wait their turn are left for the next one.
    """
    dice, began, token = random.Random(SEED), boot_clock(), 0
    async with a_fleet(place, tmp_path, FLEET, max_running=MAX_RUNNING) as fleet:
        while boot_clock() - began < KILLING or fleet.kills["killed"] < 3:
            how = dice.choice(["elected", "working", "working", "working", "point", "point", "point", "stop", "twice"])
            pid, token = await (fleet.leader if how == "elected" else fleet.working)(token)
            if how == "working":
                await asyncio.sleep(dice.uniform(0.0, 1.2))
            if how == "point":
                points = ["begun", "written", "written", "fenced", "committed", "claiming", "claimed"]
                await fleet.kill_at(dice.choice(points))
            elif how in {"stop", "twice"}:
                fleet.send(pid, signal.SIGTERM)
                if how == "stop":
                    fleet.orderly[token] = pid
                if how == "twice":
                    await asyncio.sleep(dice.uniform(0.0, 0.1))
                    fleet.send(pid, signal.SIGTERM)
                fleet.kills[how] += 1
                await fleet.replace(pid, 0, *[-signal.SIGTERM] * (how == "twice"))  # it may have been ending already
            else:
                fleet.send(pid, signal.SIGKILL)
            await fleet.refill()
            if await fleet.leads_on(pid, token):
                token -= 1  # nobody came to that point in time: the same term is struck again
        ticks = await fleet.check(await fleet.finish(), ordered=True)
        assert ticks > 100


# -- answers that are lost, leaders that freeze


@dataclass
class Trouble:
    """What a proxy does to the transactions of workers, at random."""

    fleet: Fleet
    dice: random.Random
    on: bool = True
    finals: int = 0

    def __call__(self, query: bytes) -> Action | None:
        if b"; COMMIT" not in query or not (holder := re.search(rb"-(\d+)-[0-9a-f]{32}", query)):
            return None
        pid, final = int(holder[1]), FINAL_RUN.search(query) is not None
        if not self.on or not self.fleet.lives(pid) or self.dice.random() > (0.3 if final else 0.05):
            return None
        how = ["answer swallow", "answer cut", "query swallow", "query cut"]
        how += ["kill", "freeze"] * final
        what, _, fate = self.dice.choice(how).partition(" ")
        self.finals += final
        self.fleet.kills[f"{'final' if final else 'ledger'} {what} {fate}".rstrip()] += 1
        if fate:
            return Action(**{what: fate})  # type: ignore[arg-type]
        self.fleet.send(pid, signal.SIGKILL if what == "kill" else signal.SIGSTOP)
        return None


async def test_a_final_commit_takes_effect_once_whatever_is_lost(place: Place, tmp_path: Path) -> None:
    """With ``rerun_lost`` and a final commit, the effect of each tick is there once; none is lost, none has failed.

    Though workers are killed and frozen before, in and behind their transactions, other terms begin meanwhile, and, on
    a server, COMMITs and their answers are lost.
    """
    dice, began = random.Random(SEED + 100), boot_clock()
    points = ["begun", "written", "written", "fenced", "committed", "claiming", "claimed"]
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(a_proxy(place))
        port = proxy and proxy.port
        fleet = await stack.enter_async_context(a_fleet(place, tmp_path, EFFECTS, port=port))
        trouble = Trouble(fleet, random.Random(SEED + 200))
        if proxy:
            proxy.on_query = trouble
        while (spent := boot_clock() - began) < TROUBLING or (spent < LIMIT and trouble.finals < 3 * bool(proxy)):
            pid, token = await fleet.working()
            how = dice.choice(["wait", "wait", "wait", "wait", "freeze", "point", "point", "kill"])
            fault = None
            if how == "freeze":
                await asyncio.sleep(dice.uniform(0.0, 0.5))
                fleet.send(pid, signal.SIGSTOP)
            elif how == "point":
                fault = fleet.fault(dice.choice(points), signal.SIGSTOP)
            elif how == "kill":
                await fleet.kill_at(dice.choice(points))
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    while not fleet.frozen():
                        await asyncio.sleep(0.01)
            if fault is not None:
                await fleet.disarm(fault)
            if fleet.frozen():
                fleet.kills["frozen"] += 1
                with suppress(TimeoutError):  # in the middle of its writing it may hold up all others
                    async with asyncio.timeout(2.5 * LEASE):
                        while not fleet.begun(token):
                            await asyncio.sleep(0.01)
            trouble.on = False
            for frozen in fleet.frozen():
                fleet.send(frozen, signal.SIGCONT)
            await fleet.refill()
            trouble.on = True
        trouble.on = False
        for frozen in fleet.frozen():
            fleet.send(frozen, signal.SIGCONT)
        ticks = await fleet.check(await fleet.finish(), ordered=False)
        assert ticks > 50
        assert not proxy or trouble.finals


@pytest.mark.parametrize("place", ["mariadb", "mysql9"], indirect=True)
async def test_a_commit_that_comes_too_late_takes_no_effect(place: Place, tmp_path: Path) -> None:
    """A final commit that was given up, and reaches the server when the next attempt runs, is refused there."""
    late: list[tuple[bytes, bytes]] = []
    outcomes: list[str] = []

    def choose(query: bytes) -> Action | None:
        if outcomes or not (final := FINAL_RUN.search(query)):
            return None
        if not late:
            late.append((final[0], query))
            return Action(query="swallow")
        if final[0] == late[0][0]:  # the next attempt has written, and is about to commit
            outcomes.append(sent_late(place, late[0][1]))
        return None

    async with a_proxy(place) as proxy:
        assert proxy is not None
        proxy.on_query = choose
        async with a_fleet(place, tmp_path, ("one", "beside"), size=1, port=proxy.port) as fleet:
            await until(lambda: outcomes, "the next attempt commits", LIMIT)
            assert outcomes != ["committed"]
            await fleet.check(await fleet.finish(), ordered=False)


def sent_late(place: Place, packet: bytes) -> str:
    """What becomes of a transaction whose last packet comes only now: begun and written anew, on another connection."""
    assert place.server is not None
    address = {"host": place.server.host, "port": place.server.port, "user": place.server.user}
    connection = pymysql.connect(
        **address, database=database_of(place.url), client_flag=CLIENT.MULTI_STATEMENTS, ssl_disabled=True
    )
    savepoint = re.search(rb"RELEASE SAVEPOINT (\w+)", packet)
    job, tick, attempt = re.findall(rb"(?:job|tick|attempt) = ('[^']+'|\d+)", packet)
    assert savepoint is not None
    with connection, connection.cursor() as cursor:
        try:
            cursor.execute(f"START TRANSACTION; SAVEPOINT {savepoint[1].decode()}")
            while cursor.nextset():
                pass
            since = f"TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {tick.decode()})"
            cursor.execute(f"INSERT INTO effects VALUES ({job.decode()}, {since}, {attempt.decode()}, 0)")
            cursor.execute(packet.decode())
            while cursor.nextset():
                pass
        except pymysql.Error as error:
            return repr(error)
    return "committed"


@pytest.mark.parametrize(
    ("place", "point"),
    [
        ("mariadb", "held"),
        ("mariadb", "claimed"),
        ("mariadb", "refused"),
        ("mysql9", "held"),
        ("mysql9", "claiming"),
        ("mysql9", "refused"),
        ("sqlite", "claiming"),
        ("sqlite", "claimed"),
    ],
    indirect=["place"],
)
async def test_a_thawed_leader_begins_nothing(place: Place, point: str, tmp_path: Path) -> None:
    """If two processes believe that they lead, only the newer one begins runs, and each tick is claimed once.

    The older one is frozen just before it claims ticks, just behind, while its claim is on the way, or when a commit of
    its was refused; it is thawed when the newer one has read the ledger, and is about to claim the same ticks.
    """
    hold, held = asyncio.Event(), asyncio.Event()
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(a_proxy(place))
        port = proxy and proxy.port
        jobs = ("quick", "second", "steady", "again", "effect")
        fleet = await stack.enter_async_context(a_fleet(place, tmp_path, jobs, size=1, port=port))
        old, token = await fleet.working()

        def freeze(query: bytes) -> Action | None:
            if held.is_set() or b"INTO aiolease_run" not in query:
                return None
            fleet.send(old, signal.SIGSTOP)
            held.set()
            return Action(hold=hold)

        new = fleet.start(place.url)
        fleet.fault("claiming", signal.SIGSTOP, new)
        await until((tmp_path / f"up-{new}").exists, "the other one is up", LIMIT)
        if point != "held":
            fleet.fault(point, signal.SIGSTOP, old)
        elif proxy:
            proxy.on_query = freeze
        await until(lambda: old in fleet.frozen(), "the older one is frozen", LIMIT)
        while place.locked():  # a run of it stands in the midst of a transaction: nobody could become the newer one
            fleet.fault(point, signal.SIGSTOP, old)
            fleet.send(old, signal.SIGCONT)
            await until(lambda: old in fleet.frozen(), "the older one is frozen again", LIMIT)
        before = len(fleet.read())
        assert await fleet.leader(token) == (new, token + 1)
        await until(lambda: new in fleet.frozen(), "the newer one has read the ledger", LIMIT)
        left = await fleet.rows_of(token)
        hold.set()
        fleet.send(old, signal.SIGCONT)
        with suppress(TimeoutError):
            async with asyncio.timeout(LEASE):
                while "lost leadership" not in fleet.says(old):
                    await asyncio.sleep(0.01)
        assert await fleet.rows_of(token) == left, "the older one has written the ledger"
        fleet.send(new, signal.SIGCONT)
        await until(lambda: "lost leadership" in fleet.says(old), "the older one knows", LIMIT)
        await fleet.working(token)
        await asyncio.sleep(2 * HEARTBEAT)  # what it should not begin, it might begin by now
        late = [line for line in fleet.read()[before:] if line["what"] == "begin" and line["token"] == token]
        assert not late, f"begun after the next term began: {late}"
        await fleet.check(await fleet.finish(), ordered=True)


# -- asked from elsewhere


async def test_the_leader_does_what_another_process_asks(place: Place, tmp_path: Path) -> None:
    """Triggers, pauses and resignations of another process reach the leader within a heartbeat, and hold for the next.

    A triggered run has the tick that was told, paused or not; a paused job claims no tick, and those that fell due in
    the pause never run.
    """
    async with a_fleet(place, tmp_path, ASKED, size=2) as fleet:
        store, step = fleet.store, round(GRIDS["often"] * 1_000_000)

        ticks = defaultdict(list)

        async def triggered(job: str) -> RunRecord:
            asked = boot_clock()
            tick = await store.trigger(NAME, job)
            ticks[job].append(micros(tick))

            async def ended() -> RunRecord | None:
                rows = [row for row in await store.history(NAME, job, limit=10**6) if row.tick == tick]
                return rows[0] if rows and rows[0].finished_at else None

            row = await eventually(ended, f"{job} runs when it is triggered")
            assert boot_clock() - asked < HEARTBEAT + 5.0
            return row

        async def ticks_of_often() -> list[int]:
            return [
                tick
                for row in await store.history(NAME, "often", limit=10**6)
                if (tick := micros(row.tick)) % step == 0
            ]

        pid, token = await fleet.working()
        row = await triggered("rare")
        assert (row.status, row.attempt, row.token) == ("succeeded", 1, token)
        with pytest.raises(InvalidJob):
            await store.trigger(NAME, "nobody's")

        await store.pause(NAME, "often")
        paused = await ticks_of_often()
        assert (await triggered("often")).status in {"succeeded", "skipped"}  # its last run may go on
        await asyncio.sleep(2 * HEARTBEAT)
        assert await ticks_of_often() == paused

        assert await store.resign(NAME) == token
        other, newer = await fleet.leader(token, but=pid)
        assert (await triggered("rare")).token == newer
        assert (await triggered("often")).status == "succeeded"
        assert await ticks_of_often() == paused

        await store.resume(NAME, "often")
        await eventually(lambda: more_than(ticks_of_often, len(paused)), "the job goes on")
        record = (await store.take_stock(NAME)).jobs["often"]
        assert record.resumed_at is not None
        rows = await store.history(NAME, "often", limit=10**6)
        next_row = next(row for row in rows if micros(row.tick) % step == 0 and micros(row.tick) > paused[-1])
        assert micros(next_row.tick_from or next_row.tick) == (micros(record.resumed_at) // step + 1) * step
        begun = Counter((line["job"], line["tick"]) for line in fleet.read() if line["what"] == "begin")
        assert set(begun.values()) == {1}
        assert sorted(tick for job, tick in begun if job == "rare") == ticks["rare"]
        assert [micros(row.tick) for row in await store.history(NAME, "rare", limit=10**6)] == ticks["rare"]
        await fleet.stop(pid, other)


async def more_than(look: Callable[[], Awaitable[list[int]]], count: int) -> bool:
    return len(await look()) > count
