"""Once per lease each process looks how the jobs stand, and says what is wrong (DESIGN rule 43)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from loguru import logger

from aiolease import JobRegistry, StoreUnavailable, open_store
from aiolease.events import JobsSeen, Leaderless, Notice, Overdue, UnknownJobs
from aiolease.stores.records import TermKey
from aiolease.testing import MemoryServer, MemoryStore
from tests.jobs.watchers import LEASE, Process, in_every_state, pair, registry
from tests.jobs.worlds import Observed, seconds
from tests.virtual import SHORT, START, until, virtual

if TYPE_CHECKING:
    from loguru import Message


@pytest.fixture
def log() -> Iterator[list[Message]]:
    """What was logged during the test."""
    records: list[Message] = []
    sink = logger.add(records.append, level="DEBUG", format="{message}")
    yield records
    logger.remove(sink)


@virtual
async def test_the_lease_of_another_may_be_longer() -> None:
    """A process with a short lease waits as long as the others for a takeover, before it calls a job overdue."""
    server = MemoryServer(START)
    leader, follower = Process(server), Process(server, lease_duration=3.0)
    async with leader.runs():
        await asyncio.sleep(1)
        async with follower.runs():
            await asyncio.sleep(3 * LEASE)
            leader.cannot_write()
            await asyncio.sleep(70)
            assert follower.of(Overdue) == []
            await asyncio.sleep(20)
            assert len(follower.of(Overdue)) == 1
            leader.can_write()


async def unfit() -> bool:
    return False


def warnings(log: list[Message], *beginnings: str) -> list[str]:
    lines = [each.record["message"] for each in log if each.record["level"].name == "WARNING"]
    return [line for line in lines if line.startswith(beginnings)]


@virtual
async def test_leader_and_follower_see_the_same() -> None:
    """Once per lease, in one statement; of each job all that metrics need."""
    server = MemoryServer(START)
    async with pair(server, registry("b", "a"), registry("b", "a")) as (leader, follower, campaign):
        await asyncio.sleep(10 * LEASE + 1)
        for process in (leader, follower):
            assert 9 <= len(process.of(JobsSeen)) <= 10
            assert process.sent("overview") == len(process.of(JobsSeen))
            (seen,) = process.of(JobsSeen)[-1:]
            assert [job.job for job in seen.jobs] == ["a", "b"]
            assert seen.now == START + timedelta(seconds=10 * LEASE)
            assert (seen.token, seen.holder, seen.leading) == (1, campaign.status().leader, process is leader)
            job = process.latest["a"]
            assert job.next_tick is not None
            assert job.last_success is not None
            assert seconds(job.next_tick) in {300, 320}
            assert seconds(job.last_success) in {280, 300}
            assert (job.late, job.overdue, job.paused, job.failures, job.running, job.queued) == (0, 0, False, 0, 0, 0)
            assert process.wrong == []
        assert follower.sent("take_stock") == 0


@virtual
async def test_the_look_shows_what_fails_goes_on_waits_and_is_paused() -> None:
    """The facts of an event are those of the ledger at that moment."""
    server = MemoryServer(START)
    async with pair(server, in_every_state(), registry("fails", "hangs", "waits", "paused")) as (leader, follower, _):
        await asyncio.sleep(5)
        async with open_store(MemoryStore(server)) as store:
            await store.pause("default", "paused", note="the move")
        await asyncio.sleep(121)
        for process in (leader, follower):
            seen = process.latest
            assert (seen["fails"].failures, seen["fails"].last and seen["fails"].last.status) == (10, "failed")
            assert seen["fails"].last_success is None
            assert (seen["hangs"].running, seen["hangs"].queued) == (1, 0)
            assert seen["waits"].queued >= 1
            assert (seen["paused"].paused, seen["paused"].pause_note) == (True, "the move")
            assert seen["paused"].next_tick is None
            assert process.wrong == []


@virtual
async def test_a_leader_that_hangs_is_told_of_once(log: list[Message]) -> None:
    """Its followers, and it itself, say which job is overdue: event, log, status; and that it is not any more."""
    server = MemoryServer(START)
    async with pair(server) as (leader, follower, campaign):
        await asyncio.sleep(LEASE + 5)
        leader.cannot_write()
        await asyncio.sleep(4 * LEASE)
        for process in (leader, follower):
            (overdue,) = process.of(Overdue)
            assert (overdue.job, seconds(overdue.tick), overdue.token) == ("job", 40, 1)
            assert 60 < overdue.late <= 60 + LEASE
            assert process.latest["job"].overdue > 60
        line = f"'job' is overdue: its tick of 2026-01-01 00:00:40 UTC passed {overdue.late:.0f} s ago, and was neither"
        assert [each[: len(line)] for each in warnings(log, "'job' is overdue")] == [line, line]
        error = campaign.status().error
        assert error is not None
        assert error.startswith("'job' is overdue: its tick of 2026-01-01 00:00:40 UTC passed ")
        await asyncio.sleep(10 * LEASE)
        assert (len(leader.of(Overdue)), len(follower.of(Overdue))) == (1, 1)
        leader.can_write()
        await asyncio.sleep(3 * LEASE)
        assert campaign.status().error is None
        assert "not overdue any more in 'default': job" in [each.text for each in follower.of(Notice)]
        leader.cannot_write()
        await asyncio.sleep(5 * LEASE)
        assert len(follower.of(Overdue)) == 2
        leader.can_write()
    assert len(follower.wrong) == 2


@virtual
async def test_many_jobs_that_are_overdue_are_one_line(log: list[Message]) -> None:
    """Each is an event; the log names ten of them."""
    names = [f"job{number:02}" for number in range(40)]
    server = MemoryServer(START)
    async with pair(server, registry(*names), registry(*names)) as (leader, follower, campaign):
        leader.cannot_write()
        await asyncio.sleep(5 * LEASE)
        assert sorted(event.job for event in follower.of(Overdue)) == names
        assert {event.quiet for event in follower.of(Overdue)} == {True}
        told = warnings(log, "40 jobs", "'job")
        assert told == ["40 jobs of 'default' are overdue, the first since 2026-01-01 00:00:20 UTC: "
                        + ", ".join(names[:10]) + ", …"] * 2  # fmt: skip
        assert campaign.status().error == told[0]
        leader.can_write()


@virtual
async def test_late_after_says_when_a_job_is_overdue() -> None:
    """It stands above the two leases, in both directions."""
    server = MemoryServer(START)
    jobs = registry("soon", late_after=5)
    jobs.registered |= registry("late", late_after=400).registered | registry("usual").registered
    async with pair(server, jobs, jobs) as (leader, follower, _):
        leader.cannot_write()
        await asyncio.sleep(1)
        told = []
        for _ in range(20):
            await asyncio.sleep(LEASE)
            told.append({event.job for event in follower.of(Overdue)})
        leader.can_write()
    assert [told.index(each) for each in ({"soon"}, {"soon", "usual"}, {"soon", "usual", "late"})] == [1, 2, 14]


@pytest.mark.parametrize("step", [40, 3600, 86_400, -40, -3600])
@virtual
async def test_a_step_of_the_servers_clock_is_no_news(step: float) -> None:
    """However far, in whichever direction, at whichever moment between two looks: the leader is given its time."""
    for after in (0.01, 1, 9, 11, 19.9, 20.1, 29, 29.99):
        server = MemoryServer(START)
        async with pair(server) as (leader, follower, campaign):
            await asyncio.sleep(3 * LEASE + after)
            server.step_clock(step)
            await asyncio.sleep(5 * LEASE)
            server.step_clock(-step)
            await asyncio.sleep(5 * LEASE)
            assert (leader.wrong, follower.wrong, campaign.status().error) == ([], [], None)


@pytest.mark.parametrize("step", [0, 3600, -3600])
@virtual
async def test_a_jitter_is_no_lateness(step: float) -> None:
    """However long: the tick is late from the moment at which it was to start."""
    server = MemoryServer(START)
    jobs = registry("job", every=1200, jitter=1100)
    jobs.registered |= registry("other", every=700, jitter=300).registered
    async with pair(server, jobs, jobs) as (leader, follower, _):
        for _ in range(20):
            await asyncio.sleep(211)
            server.step_clock(step)
        assert (leader.wrong, follower.wrong) == ([], [])


@virtual
async def test_a_clock_that_was_stepped_hides_no_leader_that_hangs() -> None:
    """A leader that does nothing after the step, either, is told of."""
    server = MemoryServer(START)
    async with pair(server) as (leader, follower, _):
        await asyncio.sleep(LEASE + 5)
        leader.cannot_write()
        server.step_clock(3600)
        await asyncio.sleep(2 * LEASE)
        assert [event.job for event in follower.of(Overdue)] == ["job"]
        leader.can_write()


@pytest.mark.parametrize("all_of_it", [False, True])
@virtual
async def test_a_paused_job_is_not_overdue(all_of_it: bool) -> None:
    """By itself or with the whole lease; nor is one that was resumed, whose ticks of the pause are not missed."""
    server = MemoryServer(START)
    async with pair(server) as (leader, follower, campaign), open_store(MemoryStore(server)) as store:
        await asyncio.sleep(5)
        await store.pause("default", None if all_of_it else "job", until=START + timedelta(hours=2), note="the move")
        await asyncio.sleep(10 * LEASE)
        seen = follower.latest["job"]
        assert (seen.paused, seen.paused_with_all, seen.pause_note) == (True, all_of_it, "the move")
        assert seen.paused_until == START + timedelta(hours=2)
        assert seen.next_tick == START + timedelta(hours=2, seconds=20)
        await store.resume("default", None if all_of_it else "job")
        await asyncio.sleep(5 * LEASE)
        assert not follower.latest["job"].paused
        assert (leader.wrong, follower.wrong, campaign.status().error) == ([], [], None)


@pytest.mark.parametrize("all_of_it", [False, True])
@virtual
async def test_a_pause_that_has_ended_by_itself_is_no_lateness(all_of_it: bool) -> None:
    """The ticks from its end on are due, and run; and if they are not, that is told."""
    server = MemoryServer(START)
    async with pair(server) as (leader, follower, _), open_store(MemoryStore(server)) as store:
        await asyncio.sleep(5)
        await store.pause("default", None if all_of_it else "job", until=START + timedelta(seconds=605))
        await asyncio.sleep(900)
        assert (follower.latest["job"].paused, follower.latest["job"].late) == (False, 0)
        assert (leader.wrong, follower.wrong) == ([], [])
        await store.pause("default", None if all_of_it else "job", until=START + timedelta(seconds=1205))
        await asyncio.sleep(200)
        leader.cannot_write()
        await asyncio.sleep(250)
        assert [seconds(event.tick) for event in follower.of(Overdue)] == [1220]
        leader.can_write()


@virtual
async def test_a_backlog_that_is_worked_off_is_not_overdue() -> None:
    """With `missed="all"` ticks wait for the runs before them, for as long as these take."""

    def slow() -> JobRegistry:
        jobs = JobRegistry()

        async def job() -> None:
            await asyncio.sleep(110)

        jobs.every(60, name="job", missed="all")(job)
        return jobs

    server = MemoryServer(START)
    async with Process(server, slow()).runs():
        await asyncio.sleep(1)
    await asyncio.sleep(1000)
    async with pair(server, slow(), slow()) as (leader, follower, campaign):
        await asyncio.sleep(3600)
        assert follower.latest["job"].late > 600
        assert (leader.wrong, follower.wrong, campaign.status().error) == ([], [], None)


@pytest.mark.parametrize("after", [0.5, 5, 19, 29.5])
@virtual
async def test_a_leader_that_has_just_begun_is_given_its_time(after: float) -> None:
    """The database was away for ten minutes: all is late at once, and nobody says so before it was to be mended."""
    server = MemoryServer(START)
    async with pair(server) as (leader, follower, _):
        await asyncio.sleep(3 * LEASE + after)
        leader.store.down = follower.store.down = True
        await asyncio.sleep(600)
        leader.store.down = follower.store.down = False
        await asyncio.sleep(5 * LEASE)
        assert (leader.wrong, follower.wrong) == ([], [])


@pytest.mark.parametrize("after", [0.5, 9.5, 19, 29.5])
@virtual
async def test_a_takeover_is_no_news(after: float) -> None:
    """A leader that crashes is followed by another in time: neither overdue nor leaderless."""
    server = MemoryServer(START)
    third = Process(server)
    async with pair(server) as (leader, follower, _), third.runs():
        await asyncio.sleep(3 * LEASE + after)
        leader.store.down = True
        await asyncio.sleep(5 * LEASE)
        assert {each.leading for each in (*follower.of(JobsSeen)[-1:], *third.of(JobsSeen)[-1:])} == {True, False}
        assert (follower.wrong, third.wrong) == ([], [])


@virtual
async def test_a_fleet_in_which_nobody_may_lead_says_so(log: list[Message]) -> None:
    """From the start, or after the leader has released or has crashed: once, until somebody leads."""
    server = MemoryServer(START)
    fleet = [Process(server, eligible=unfit) for _ in range(2)]
    async with fleet[0].runs() as campaign, fleet[1].runs():
        await asyncio.sleep(3 * LEASE)
        (event,) = fleet[0].of(Leaderless)
        assert (event.holder, event.token) == (None, None)
        assert abs(seconds(event.since)) <= 10
        assert LEASE < event.lasts <= 2 * LEASE
        start = "nobody leads 'default' since 2026-01-01 00:00:0"
        assert len(warnings(log, start)) == 2
        error = campaign.status().error
        assert error is not None
        assert error.startswith(start)
        fit = Process(server)
        async with fit.runs():
            await asyncio.sleep(2 * LEASE)
            assert campaign.status().error is None
        await asyncio.sleep(5 * LEASE)
        assert [event.token for event in fleet[0].of(Leaderless)] == [None, 1]
        async with Process(server).runs() as crashed:
            await asyncio.sleep(2 * LEASE)
            holder = crashed.status().leader
            fit.store.down = True
            server.leases["default"] = replace(server.leases["default"], holder=holder)
        server.leases["default"] = replace(
            server.leases["default"], holder="dead", token=9, renewed_at=server.now(),
            expires_at=server.now() + timedelta(seconds=LEASE),
        )  # fmt: skip
        await asyncio.sleep(LEASE + 25)
        assert len(fleet[0].of(Leaderless)) == 2
        await asyncio.sleep(2 * LEASE)
        event = fleet[0].of(Leaderless)[-1]
        assert (event.holder, event.token) == ("dead", 9)
        assert "the lease of dead has run out, and no process takes it; no job runs" in event.phrase
        assert len(fleet[0].of(Leaderless)) == 3


@virtual
async def test_a_database_that_takes_no_claim_is_told_of() -> None:
    """It can be read, and not written: nobody leads for hours, and each process says so."""
    server = MemoryServer(START)
    async with Process(server).runs():
        await asyncio.sleep(1)
    process = Process(server)
    process.store.fail("claim", StoreUnavailable("memory", "read-only"), times=10_000)
    async with process.runs():
        await asyncio.sleep(5 * LEASE)
        assert len(process.of(Leaderless)) == 1
        assert [event.job for event in process.of(Overdue)] == ["job"]


@virtual
async def test_a_step_of_the_clock_hides_no_fleet_without_a_leader() -> None:
    """Who leads is judged by the clock of the process that waits."""
    server = MemoryServer(START)
    process = Process(server, eligible=unfit)
    async with process.runs():
        for _ in range(10):
            await asyncio.sleep(LEASE)
            server.step_clock(-3600)
        assert len(process.of(Leaderless)) == 1


@virtual
async def test_jobs_of_an_earlier_term_are_unknown_to_a_leader_that_notes_its_own() -> None:
    """The first look tells: no tick has to pass."""
    server = MemoryServer(START)
    async with Process(server, registry("yours", every=86_400)).runs():
        await asyncio.sleep(1)
    mine, yours = registry("mine", every=86_400), registry("yours", every=86_400)
    async with pair(server, mine, yours) as (leader, follower, campaign):
        holder = campaign.status().leader
        assert holder is not None
        await leader.store.have(TermKey("default", holder, 2), ["mine"])
        await asyncio.sleep(LEASE + 1)
        assert [event.jobs for event in follower.of(UnknownJobs)] == [("yours",)]
        await leader.store.have(TermKey("default", holder, 2), ["yours"])
        await asyncio.sleep(LEASE)
        assert campaign.status().error is None


@virtual
async def test_a_leader_that_has_the_jobs_and_hangs_is_not_called_another_application() -> None:
    """It has noted its term in their rows: they are overdue, and known."""
    server = MemoryServer(START)
    async with pair(server) as (leader, follower, campaign):
        holder = campaign.status().leader
        assert holder is not None
        await leader.store.have(TermKey("default", holder, 1), ["job"])
        leader.cannot_write()
        await asyncio.sleep(5 * LEASE)
        assert [type(event) for event in follower.wrong] == [Overdue]
        leader.can_write()


@virtual
async def test_a_leader_of_another_version_is_judged_by_its_own_schedule() -> None:
    """During a roll-out the ledger says when a job is due, and not the process that looks."""
    server = MemoryServer(START)
    old, new = registry("job", every=500), registry("job", every=5)
    async with pair(server, old, new) as (_, follower, campaign):
        await asyncio.sleep(20 * LEASE)
        assert (follower.latest["job"].schedule, follower.latest["job"].next_tick) == (
            "every 500s",
            START + timedelta(seconds=900),
        )
        assert (follower.wrong, campaign.status().error) == ([], None)


@virtual
async def test_a_look_that_fails_gives_the_leader_its_time_anew() -> None:
    """What could not be read says nothing; the tick has to have passed at two looks in a row."""
    server = MemoryServer(START)
    async with pair(server) as (leader, follower, _):
        await asyncio.sleep(5)
        leader.cannot_write()
        await asyncio.sleep(LEASE)
        follower.store.fail("overview", StoreUnavailable("memory", "cut"), times=2)
        await asyncio.sleep(3 * LEASE)
        assert (len(follower.of(JobsSeen)), follower.of(Overdue)) == (2, [])
        await asyncio.sleep(LEASE)
        assert len(follower.of(Overdue)) == 1
        leader.can_write()


@virtual
async def test_leaders_that_come_and_go_are_no_excuse() -> None:
    """No term is old enough to be judged, and still no tick is run: that is told, a little later."""
    server = MemoryServer(START)
    leader, follower = Process(server), Process(server, eligible=unfit)
    async with leader.runs() as campaign, follower.runs():
        await asyncio.sleep(5)
        leader.cannot_write()
        for moment in range(200):
            await asyncio.sleep(1)
            if moment % 10 == 0:
                campaign.resign()
        assert [event.job for event in follower.of(Overdue)] == ["job"]
        leader.can_write()


@virtual
async def test_a_row_that_cannot_be_read_is_the_leaders_affair() -> None:
    """A process that waits does not call such a job unknown, nor overdue."""

    class Odd(MemoryStore):
        async def overview(self, name: str, jobs: Any = None) -> Any:
            found = await super().overview(name, jobs)
            return replace(found, jobs={}, unreadable={"job": "its schedule is no text"})

    server = MemoryServer(START)
    leader, follower = Process(server), Process(server)
    follower.store = Odd(server)
    async with leader.runs(), follower.runs() as campaign:
        await asyncio.sleep(5 * LEASE)
        assert (follower.wrong, campaign.status().error, follower.latest) == ([], None, {})


async def test_processes_on_one_file_look(tmp_path: Path) -> None:
    """On a true database, in true time: both see what was run, and find nothing wrong."""
    observed = [Observed(), Observed()]
    url = f"sqlite:///{tmp_path}/jobs.db"
    async with (
        registry("job", every=0.2).background(url, on_event=observed[0], **SHORT),
        registry("job", every=0.2).background(url, on_event=observed[1], **SHORT),
    ):
        await until(lambda: all(len(looks(each)) >= 3 for each in observed))
    for each in observed:
        (job,) = looks(each)[-1].jobs
        assert (job.schedule, job.last and job.last.status) == ("every 0.2s", "succeeded")
        assert job.last_success is not None
        assert [event for event in each.events if isinstance(event, Overdue | Leaderless | UnknownJobs)] == []
    assert {looks(each)[-1].leading for each in observed} == {True, False}


def looks(observed: Observed) -> list[JobsSeen]:
    return [event for event in observed.events if isinstance(event, JobsSeen)]
