"""Lost and late answers cost no tick, nor does a step of the server's clock."""

from __future__ import annotations

import asyncio
import pkgutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any

import pytest

import aiolease._election
import aiolease._jobs
from aiolease import JobRegistry, StoreUnavailable
from aiolease.events import Lost, Notice
from aiolease.stores.batch import LedgerReading
from tests.jobs.worlds import Line, Work, registry, seconds, world
from tests.virtual import lines, virtual

if TYPE_CHECKING:
    from loguru import Message


# -- answers


FAULTS: dict[str, Callable[[Line], None]] = {
    "reply lost": lambda line: line.lose_reply("record"),
    "request lost": lambda line: line.lose_request("record"),
    "late": lambda line: line.delay("record", 8),
    "very late": lambda line: line.delay("record", 23),
    "slow": lambda line: line.delay("record", 3),
    "refused": lambda line: line.fail("record", StoreUnavailable("memory", "refused")),
}


@pytest.mark.parametrize(("missed", "takes"), [("once", 0), ("all", 2), ("once", 15)])
@pytest.mark.parametrize("faults", [(fault,) for fault in FAULTS] + [("reply lost", "late", "very late", "refused")])
@virtual
async def test_no_answer_costs_or_doubles_a_tick(faults: tuple[str, ...], missed: Any, takes: float) -> None:
    """Whatever becomes of the writes of the ledger and of their answers: no tick is run twice, and none is lost."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with world() as here:
        work = Work(takes)
        process = here.start(registry(work, missed=missed, overlap="allow"))
        for number in range(12):
            await here.until(9 + 11 * number)
            for fault in faults:
                FAULTS[fault](process.store)
        await here.until(200)
        work.takes = min(takes, 2)
        process.store._faults.clear()
        await here.until(269)
        work.once_each()
        here.accounted(10, 260, 10)
        assert len(work.ended) == len(work.begun)
        assert sum(row.status == "succeeded" for row in here.records()) == len(work.begun)
        if missed == "all":
            assert sorted(work.ticks) == [*range(10, 261, 10)]


@virtual
async def test_a_claim_whose_answer_was_lost_is_ones_own() -> None:
    """The answer of a claim is lost: the leader finds its own row, runs it once, and says nothing."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, 100))
        await here.until(99)
        process.store.lose_reply("record")
        await here.until(120)
        assert work.begun == [(100, 1)]
        assert here.rows() == ["100 succeeded"]
        assert [each.phrase for each in process.observed.events if isinstance(each, Notice)] == []


@virtual
async def test_a_write_that_comes_late_undoes_nothing() -> None:
    """A write that the server delayed and executes later, when all was read and written anew, changes nothing more."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with world() as here:
        work = Work(60)
        process = here.start(registry(work, 100, overlap="allow"))
        await here.until(99)
        process.store.lose_reply("record")
        for late in (12, 9, 6.5):  # each is given up after 5 s
            process.store.delay("record", late)
        await here.until(150)
        assert work.begun == [(100, 1)]
        assert here.rows() == ["100 running"]
        await here.until(195)
        assert here.rows() == ["100 succeeded"]
        await process.kill()
        here.start(registry(work, 1200))
        await here.until(250)
        assert [tick for tick, _ in work.begun if tick < 200] == [100]


@pytest.mark.parametrize(("first", "second"), [(7, 3), (9, 3)])
@virtual
async def test_a_claim_that_comes_late_is_not_one_beside_another(first: float, second: float) -> None:
    """A claim that the server delayed, and the one that was reckoned without it: only one of them takes effect."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, 2))
        await here.until(99)
        for late in (first, second):  # the first is given up after 5 s, when two more ticks are due
            process.store.delay("record", late)
        await here.until(151)
        work.once_each()
        here.accounted(2, 150, 2)


@pytest.mark.parametrize("method", ["take_stock", "enroll"])
@virtual
async def test_a_ledger_that_cannot_be_read_at_first(method: str) -> None:
    """A term whose first reading fails tries again, and then runs what is due."""
    async with world() as here:
        work, jobs = Work(), JobRegistry()
        process = here.start(registry(work))
        await here.until(25)
        await process.kill()
        jobs = registry(work)
        if method == "enroll":
            jobs.every(10, name="new")(Work())
        process = here.start(jobs)
        process.store.refused = {method}
        await here.until(90)
        assert work.ticks == [10, 20]
        process.store.refused = set()
        await here.until(105)
        assert work.ticks[:3] == [10, 20, 90]
        here.accounted(10, 100, 10)
        assert process.store.count(method) < 60


@pytest.mark.parametrize(
    "refused", [{"record"}, {"take_stock"}, {"record", "take_stock"}], ids=["record", "stock", "both"]
)
@pytest.mark.parametrize("missed", ["once", "all"])
@virtual
async def test_while_the_ledger_is_down_ticks_wait(missed: Any, refused: set[str], log: list[Message]) -> None:
    """While only the ledger fails the term goes on, nothing new is started, and then all that waited is due."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, missed=missed))
        await here.until(25)
        process.store.refused = refused
        await here.until(45)
        sent = len(process.store.sent)
        assert work.ticks == [10, 20]
        process.store.refused = set()
        await here.until(75)
        assert work.ticks[-2:] == [60, 70]
        here.accounted(10, 70, 10)
        work.once_each()
        if missed == "all":
            assert work.ticks == [*range(10, 71, 10)]
        assert not any(isinstance(each, Lost) for each in process.observed.events)
        assert sent < 100
        warnings = [line for line in lines(log, "WARNING") if "could not write the ledger" in line]
        assert len(warnings) <= 6
        if "record" in refused:
            assert warnings


@virtual
async def test_a_failure_now_and_then_is_not_told(log: list[Message]) -> None:
    """A reading that fails once, and works when it is tried again at once, is nobody's business."""
    async with world() as here:
        process = here.start(registry(Work(), 1200))
        for moment in range(5, 105, 10):
            await here.until(moment)
            process.store.fail("take_stock", StoreUnavailable("memory", "cut"))
        await here.until(110)
        assert process.store.count("take_stock") > 20
        assert lines(log, "WARNING") == []


@virtual
async def test_a_job_whose_row_is_not_there_yet_breaks_nothing() -> None:
    """A reading that does not show a row written before, as from another node of a cluster, is read again."""

    class Behind(Line):
        behind = 1

        async def take_stock(self, name: str, **what: bool) -> LedgerReading:
            stock = await super().take_stock(name, **what)
            if stock.jobs and self.behind:
                self.behind -= 1
                return replace(stock, jobs={})
            return stock

    async with world() as here:
        work = Work()
        task = asyncio.create_task(registry(work).serve(Behind(here.server)))
        await here.until(35)
        assert not task.done() or task.result() is None
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert work.ticks == [10, 20, 30]


# -- clocks


@pytest.mark.parametrize("missed", ["once", "all"])
@pytest.mark.parametrize("by", [3600, -3600, 60, -60, 4, -4, -7], ids=str)
@virtual
async def test_a_step_of_the_servers_clock_repeats_no_tick(by: float, missed: Any) -> None:
    """The server's clock is stepped, just before a tick: none is run twice, and by its clock none is left out."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, missed=missed, history=None))
        await here.until(29.5)
        here.step(by)
        await here.until(29.5 + 100 + max(-by, 0))
        last = max(work.ticks)
        work.once_each()
        assert work.ticks == sorted(work.ticks)
        assert last == 10 * ((29.5 + 100 + max(by, 0)) // 10)
        here.accounted(10, last, 10)
        if missed == "all":
            assert len(work.ticks) == last / 10
        assert process.store.count("record") < 1000


@virtual
async def test_a_tick_ahead_of_the_server_is_refused() -> None:
    """A tick more than 5 s ahead of the server's clock is not claimed, but waits until the clock has reached it."""
    async with world() as here:
        work = Work()
        await here.until(3)
        process = here.start(registry(work, 100))
        await here.until(99.5)  # the next heartbeat is at 103
        here.step(-20)
        await here.until(119)
        assert work.ticks == []
        assert here.rows() == []
        assert process.store.count("record") == 1
        await here.until(121)
        assert work.ticks == [100]


class NoClock(datetime):
    """Nobody may ask it what time it is."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> NoClock:
        raise AssertionError("the wall clock of this machine was asked")

    utcnow = today = now


@pytest.mark.parametrize("days", [-1, 0, 1, 5000])
@virtual
async def test_the_wall_clock_of_a_machine_is_nobodys_business(days: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaders whose clocks are a day off from the server's, either way, claim the same ticks: by the server's clock."""
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(days=days)
    for wing in (aiolease._election, aiolease._jobs):
        for module in pkgutil.iter_modules(wing.__path__, f"{wing.__name__}."):
            if not module.name.endswith(".health"):  # it notes, for people, when the database last answered
                monkeypatch.setattr(f"{module.name}.datetime", NoClock, raising=False)
    async with world(start) as here:
        work = Work()
        first = here.start(registry(work))
        await here.until(25)
        await first.kill()
        here.start(registry(work, missed="all"))
        await here.until(75)
        since = seconds(start)
        assert [tick - since for tick in work.ticks] == [10, 20, 30, 40, 50, 60, 70]
