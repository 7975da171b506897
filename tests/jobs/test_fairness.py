"""Places go round the jobs, a backlog holds up nobody, and nothing begins when it is too old. In virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest

from aiolease import ConfigurationError, JobRegistry, JobRun, leadership
from aiolease.stores.batch import Batch
from aiolease.stores.records import RunRecord, RunStatus, TermKey
from aiolease.testing import MemoryServer, MemoryStore, run_virtual
from tests.jobs.worlds import Line, Work, registry, seconds, world
from tests.virtual import START, virtual

if TYPE_CHECKING:
    from loguru import Message


@virtual
async def test_a_backlog_of_one_job_delays_another_by_one_run() -> None:
    """Two places, and a job that falls due each second and takes three: alerts each minute are in time all the same."""
    late: list[float] = []
    async with world() as here:
        jobs = JobRegistry(max_running=2)
        jobs.every(1, name="busy", overlap="allow")(Work(3))

        @jobs.every(60)
        async def alert(run: JobRun) -> None:
            late.append(here.now - seconds(run.tick))

        here.start(jobs)
        await here.until(30 * 60 + 10)
    assert len(late) == 30
    assert max(late) < 3.5


@virtual
async def test_places_go_round_and_each_jobs_oldest_tick_goes_first() -> None:
    """Three jobs with many runs that wait, and one place: each has its turn, and takes its ticks in their order."""
    order: list[tuple[str, float]] = []
    async with world() as here:
        jobs = JobRegistry(max_running=1)

        async def work(run: JobRun) -> None:
            order.append((run.job, seconds(run.tick)))
            await asyncio.sleep(3)

        for name in "abc":
            jobs.every(1, name=name, overlap="allow")(work)
        here.start(jobs)
        await here.until(200)
    for name in "abc":
        ticks = [tick for job, tick in order if job == name]
        assert ticks == sorted(ticks)
        assert len(ticks) > 20
    turns = [job for job, _ in order]
    assert all(set(turns[number : number + 3]) == set("abc") for number in range(0, 60, 3))


@virtual
async def test_a_start_that_could_not_be_written_is_no_turn() -> None:
    """Found by the simulation, seed 80001326: a job whose start was lost on its way waited for a turn of each other."""
    order: list[str] = []
    async with world() as here:
        jobs = JobRegistry(max_running=1)

        async def work(run: JobRun) -> None:
            order.append(run.job)
            await asyncio.sleep(3)

        for name in "abc":
            jobs.every(1, name=name, overlap="allow")(work)
        process = here.start(jobs)
        record, lost = process.store.record, Counter[str]()

        async def losing(term: TermKey, batch: Batch) -> None:
            starting = {change.key.job for change in batch.changes if change.status == "running"}
            if "b" in starting and lost["b"] <= lost["begun"]:
                lost["b"] += 1
                process.store.lose_request("record")
            else:
                lost["begun"] += "b" in starting
            await record(term, batch)

        process.store.record = losing  # type: ignore[method-assign]
        await here.until(400)
    assert len(order) > 40
    assert lost["b"] > 10
    assert all(set(order[number : number + 3]) == set("abc") for number in range(0, 39, 3)), order


@pytest.mark.parametrize("moment", [38, 41, 43.3, 45, 48, 49.9])
def test_a_trigger_that_is_seen_late_goes_before_newer_ticks(moment: float) -> None:
    """A request is older than the tick that was queued before the leader had seen it."""

    async def go() -> None:
        async with world() as here:
            work = Work(9)
            process = here.start(registry(work, 2, overlap="allow", max_running=1))
            await here.until(moment)
            requested = seconds(await process.store.trigger("default", "job"))
            await here.until(400)
            assert requested in work.ticks
            assert work.ticks == sorted(work.ticks)

    run_virtual(go())


@virtual
async def test_a_trigger_goes_behind_a_backlog_of_its_job() -> None:
    """Found by the simulation: the oldest tick of a job goes first, also where runs may go on beside each other."""
    async with world() as here:
        work = Work(3)
        options: dict[str, Any] = {"missed": "all", "overlap": "allow"}
        process = here.start(registry(work, 10, **options))
        await here.until(15)
        await process.end()
        await here.until(155)
        process = here.start(registry(work, 10, **options))
        await here.until(157)  # a backlog of fourteen is run one after another, for 42 s
        requested = seconds(await process.store.trigger("default", "job"))
        await here.until(300)
        assert work.ticks == sorted(work.ticks)
        assert requested in work.ticks


@virtual
async def test_what_grew_too_old_while_its_claim_was_under_way_is_not_begun(log: list[Message]) -> None:
    """The answer to a claim was late: how old the tick is, is asked again before the job is called."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, 100, max_age=2))
        await here.until(99.5)
        process.store.delay("record", 3)
        await here.until(120)
        assert work.begun == []
        assert here.rows() == ["100 skipped"]
        assert here.records()[0].error == "more than 2 s late"
        assert [message.record["message"] for message in log if "skipped" in message] == [
            "skipped 'job', 1 tick since 2026-01-01 00:01:40: more than 2 s late"
        ]
        await here.until(201)
        assert work.begun == [(200, 1)]


@virtual
async def test_what_grew_too_old_while_the_answer_to_its_claim_was_lost_is_not_begun() -> None:
    """The ledger says that it runs; it never began, and is skipped, not lost."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, 100, max_age=2))
        await here.until(99.5)
        process.store.lose_reply("record")  # no answer within 5 s
        await here.until(120)
        assert work.begun == []
        assert here.rows() == ["100 skipped"]


@virtual
async def test_a_run_that_ends_while_the_start_of_the_next_is_written_puts_nobody_in_line_twice() -> None:
    """The job is in line no more: its last waiting run is the one that is about to start."""
    begun: list[float] = []

    async def work(run: JobRun) -> None:
        begun.append(seconds(run.tick))
        await asyncio.sleep(
            {10.0: 21.3, 20.0: 11.0}.get(seconds(run.tick), 1.0)
        )  # the one ends at 31.7, the other at 32

    async with world() as here:
        process = here.start(registry(work, 10, overlap="allow", max_running=2))
        await here.until(1)
        process.store.latency = 0.7
        await here.until(65)
        assert begun == [10, 20, 30, 40, 50, 60]
        assert here.rows()[:5] == [f"{tick} succeeded" for tick in range(10, 60, 10)]


# -- a backlog


class Counting(Line):
    """A way to the server that notes how many queued runs each reading asks for."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server)
        self.pages: list[int] = []

    async def queued(self, name: str, jobs: Sequence[str], limit: int) -> tuple[list[RunRecord], dict[str, str]]:
        found = await super().queued(name, jobs, limit)
        self.pages.append(len(found[0]))
        return found


@virtual
async def test_a_backlog_is_read_as_it_is_worked_off_and_holds_up_nobody() -> None:
    """Runs that an earlier term queued are not read whole: what is due runs meanwhile, and theirs in their order."""
    ran: dict[str, list[float]] = defaultdict(list)
    late: list[float] = []
    names = [f"job{number}" for number in range(30)]
    async with world() as here:
        jobs = JobRegistry(max_running=5, history=None)

        async def work(run: JobRun) -> None:
            assert not ran[run.job] or ran[run.job][-1] < seconds(run.tick)
            ran[run.job].append(seconds(run.tick))

        for name in names:
            jobs.every(3600, name=name, missed="all")(work)

        @jobs.every(5)
        async def alert(run: JobRun) -> None:
            late.append(here.now - seconds(run.tick))

        first = here.start(jobs)
        await here.until(1)
        await first.end()
        runs = here.server.ledgers["default"].runs
        for name in names:
            for number in range(200):
                tick = START - timedelta(hours=number)
                runs[name, tick] = RunRecord(job=name, tick=tick, token=1, holder="old", status="queued")
        store = Counting(here.server)
        store.latency = 0.02
        task = asyncio.create_task(jobs.serve(store))
        await here.until(1000)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert {len(ran[name]) for name in names} == {200}
        assert Counter(run.status for run in runs.values())["queued"] == 0
        assert max(store.pages) <= 1000
        assert late[0] < 0.2
        assert max(late) < 0.2


@virtual
async def test_a_run_that_is_begun_anew_comes_before_the_queued_ones_of_its_job() -> None:
    """It has the older tick: until the ledger says that it waits, too, none of the others begins."""
    async with world() as here:
        work = Work()
        first = here.start(registry(work, 3600, missed="all", rerun_lost=True))
        await here.until(1)
        await first.end()
        runs = here.server.ledgers["default"].runs
        for number in range(5):
            tick = START - timedelta(hours=5 - number)
            status: RunStatus = "running" if number == 0 else "queued"
            runs["job", tick] = RunRecord(job="job", tick=tick, token=1, holder="old", status=status)
        process = here.start(registry(work, 3600, missed="all", rerun_lost=True))
        process.store.delay("record", 2)
        await here.until(60)
        assert [attempt for _, attempt in work.begun] == [2, 1, 1, 1, 1]
        assert work.ticks == sorted(work.ticks)
        assert {run.token for run in runs.values()} == {2}  # each taken over as it began


@virtual
async def test_newer_ticks_do_not_overtake_queued_runs_that_are_not_read_yet() -> None:
    """Jobs whose runs may overlap, of which more wait than one reading shows after an answer was lost."""
    order: dict[str, list[float]] = defaultdict(list)
    names = [f"job{number}" for number in range(80)]
    async with world() as here:
        jobs = JobRegistry(max_running=30 * len(names), history=None)

        async def work(run: JobRun) -> None:
            order[run.job].append(seconds(run.tick))
            await asyncio.sleep(max(80.5 - here.now, 0))  # all places are free again at once

        for name in names:
            jobs.every(1, name=name, overlap="allow")(work)
        process = here.start(jobs)
        await here.until(69.5)
        process.store.lose_reply("record")
        await here.until(79.6)
        process.store.latency = 0.7  # ticks fall due while the next runs that wait are being read
        await here.until(90)
        process.store.latency = 0.0
        await here.until(110)
        assert all(order[name] == sorted(order[name]) for name in names)
        assert all(order[name][-1] > 105 for name in names)


@virtual
async def test_deleting_old_rows_holds_up_no_job_for_long() -> None:
    """There is more to delete for ever, and each step takes 0.3 s: it takes a fifth of the time, and no tick waits."""
    late: list[float] = []
    taken = 0.0

    async with world() as here:
        jobs = JobRegistry(history=10)

        @jobs.every(1)
        async def job(run: JobRun) -> None:
            late.append(here.now - seconds(run.tick))

        process = here.start(jobs)
        slow = process.store.exchange

        async def exchange(method: str, statement: Callable[[], Any]) -> Any:
            nonlocal taken
            if method != "prune":
                return await slow(method, statement)
            await asyncio.sleep(0.3)
            taken += 0.3
            statement()
            return ["job"]

        process.store.exchange = exchange  # type: ignore[method-assign]
        await here.until(200)
    assert len(late) >= 198
    assert max(late) < 0.4
    assert 20 < taken <= 200 / 5 + 1


@virtual
async def test_many_jobs_are_pruned_by_turns() -> None:
    """Two hundred jobs that are full are seen to fifty at a time, and none is left out."""
    async with world() as here:
        jobs = JobRegistry(history=5)
        for number in range(200):
            jobs.every(10, name=f"job{number}")(Work())
        here.start(jobs)
        await here.until(305)
        assert {len(here.records(f"job{number}")) for number in range(200)} <= {5, 6}


@pytest.mark.parametrize("lease", [3.0, 30.0, 300.0])
def test_a_drain_in_a_network_that_swallows_keeps_to_its_time(lease: float) -> None:
    """Whenever the network fell silent: `drain_timeout`, what a job takes to unwind, and two last exchanges."""

    async def stop(at: float, silent: float, takes: float, unwinding: float) -> float:
        store, jobs = MemoryStore(MemoryServer()), JobRegistry()

        @jobs.every(1, overlap="allow")
        async def job() -> None:
            try:
                await asyncio.sleep(takes)
            finally:
                await asyncio.sleep(unwinding)

        async with jobs.background(store, lease_duration=lease, drain_timeout=10.0):
            await asyncio.sleep(at)
            store.latency = 1e9
            await asyncio.sleep(silent)
            stopped = asyncio.get_running_loop().time()
        return asyncio.get_running_loop().time() - stopped

    exchanges = min(lease / 3, 20.0)  # as docs/deployment.md says
    for tenths, silent, takes, unwinding in product((0, 3, 7), (0.0, 0.4, 2.0, 5.0, 9.0), (0.01, 8, 1000), (0, 1)):
        took = run_virtual(stop(50 + tenths / 10, silent, takes, unwinding))
        assert took <= 10.0 + unwinding + exchanges + 0.01, (tenths, silent, takes, unwinding)


@virtual
async def test_two_registries_with_other_jobs_on_one_lease_are_refused() -> None:
    """Of two that campaign in one process only one would run: the second is told at once; two copies are no harm."""
    store, other = MemoryStore(MemoryServer()), MemoryStore(MemoryServer())

    def with_jobs(*names: str) -> JobRegistry:
        jobs = JobRegistry()
        for name in names:
            jobs.every(10, name=name)(Work())
        return jobs

    async with with_jobs("a", "b").background(store):
        with pytest.raises(ConfigurationError, match=r"a registry with other jobs.* only one has b, c"):
            await with_jobs("a", "c").serve(store)
        with pytest.raises(ConfigurationError, match="a registry with other jobs"):
            async with with_jobs("c").background(store):
                pass
        async with (
            with_jobs("a", "b").background(store),  # a copy, as in tests
            with_jobs("c").background(store, "another"),
            with_jobs("c").background(other),
        ):
            pass
    async with with_jobs("c").background(store):
        pass  # the others have left
    async with leadership(store) as lead:  # both in one term
        running = [asyncio.create_task(with_jobs(name).run(lead)) for name in "ab"]
        await asyncio.sleep(25)
        for task in running:
            task.cancel()
        await asyncio.wait(running)
    assert {row.job for name in "ab" for row in store.server.ledgers["default"].history(name)} == {"a", "b"}
