"""What `why` says of what leaders really did, in virtual time: read as the command line reads it."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from aiolease import JobRegistry
from aiolease._jobs.why import Why, why
from aiolease._views.lease import OpenLease
from aiolease._views.look import facts_of
from tests.jobs.worlds import Work, World, nothing, registry, seconds, world
from tests.virtual import START, virtual

LEASE = {"lease_duration": 30.0}


async def ask(new: World, moment: float | None, job: str = "job") -> Why:
    """Asks of a moment in seconds since `START`."""
    at = None if moment is None else START + timedelta(seconds=moment)
    facts, meant = await facts_of(OpenLease(new.someone(), "default"), job, at)
    return why(facts, meant)


async def verdicts(new: World, first: int, last: int, step: int = 10, job: str = "job") -> list[str]:
    return [(await ask(new, moment, job)).verdict for moment in range(first, last + 1, step)]


@virtual
async def test_ticks_that_were_run() -> None:
    """Each tick that a leader ran has succeeded; a moment between two is not due; one to come is in the future."""
    async with world() as new:
        new.start(registry(Work(), history=None), **LEASE)
        await new.until(65)
        assert await verdicts(new, 10, 60) == ["succeeded"] * 6
        assert (await ask(new, 62)).verdict == "not due"
        assert (await ask(new, 70)).verdict == "in the future"
        assert (await ask(new, -10)).verdict == "not known yet"
        latest = await ask(new, None)
        assert (seconds(latest.moment), latest.verdict) == (60, "succeeded")


@virtual
async def test_ticks_while_a_run_goes_on() -> None:
    """Of a run that takes longer than its interval each tick is running, held or skipped, and then skipped."""
    async with world() as new:
        new.start(registry(Work(takes=45)), **LEASE)
        await new.until(34)
        assert await verdicts(new, 10, 30) == ["running", "skipped", "skipped"]
        await new.until(64)
        assert await verdicts(new, 10, 60) == ["succeeded", *["skipped"] * 4, "running"]
        skipped = " ".join((await ask(new, 40)).sentences)
        assert "The run that had not ended was that of 2026-01-01 00:00:10 UTC" in skipped


@virtual
async def test_ticks_that_are_recorded_later() -> None:
    """Skipped ticks in quick succession are recorded together, a while later: until then they are held."""
    async with world() as new:
        new.start(registry(Work(takes=45), every=1), **LEASE)
        await new.until(10.5)
        latest = await ask(new, None)
        assert latest.verdict == "held"
        assert "Its run of 2026-01-01 00:00:01 UTC goes on still." in " ".join(latest.sentences)
        await new.until(60)
        assert (await ask(new, 10)).verdict == "skipped"


@virtual
async def test_a_leader_that_was_killed() -> None:
    """After a crash: the dead leader seems to lead until its lease expires, then nobody does, then all is accounted."""
    async with world() as new:
        first = new.start(registry(Work(takes=3), history=None), **LEASE)
        await new.until(61)
        await first.kill()
        await new.until(85)
        assert await verdicts(new, 50, 80) == ["succeeded", "running", "held", "held"]
        await new.until(99)
        nobody = await ask(new, 60)
        assert nobody.verdict == "running"
        assert "That term is over, so its process is dead" in " ".join(nobody.sentences)
        assert await verdicts(new, 70, 90) == ["nobody leads"] * 3
        new.start(registry(Work(), history=None), **LEASE)
        await new.until(165)
        told = await verdicts(new, 50, 160)
        assert told[:2] == ["succeeded", "lost"]
        assert set(told[2:]) == {"succeeded", "skipped"}
        assert told[-1] == "succeeded"
        lost = " ".join((await ask(new, 60)).sentences)
        assert "It was lost with term 1" in lost
        skipped = " ".join((await ask(new, 70)).sentences)
        assert "a newer one was due as well" in skipped
        assert "Term 1 (" in skipped
        assert "did not record its end" in skipped


@virtual
async def test_a_leader_that_lacks_the_job() -> None:
    """Ticks that fall due under a leader without the job: it has no such job."""
    async with world() as new:
        first = new.start(registry(Work()), **LEASE)
        await new.until(35)
        await first.end()
        new.start(registry(nothing, name="other"), **LEASE)
        await new.until(95)
        assert await verdicts(new, 20, 30) == ["succeeded", "succeeded"]
        assert await verdicts(new, 50, 90) == ["the leader has no such job"] * 5
        assert "the last that had it was term 1" in " ".join((await ask(new, 60)).sentences)


@virtual
async def test_pauses() -> None:
    """Ticks of a pause: paused, while it goes on and when it is over; those before and after it are as they are."""
    async with world() as new:
        new.start(registry(Work(), history=None), **LEASE)
        await new.until(35)
        await new.someone().pause("default", "job", note="a test")
        await new.until(65)
        assert await verdicts(new, 10, 60) == [*["succeeded"] * 3, *["paused"] * 3]
        await new.someone().resume("default", "job")
        await new.until(95)
        assert await verdicts(new, 10, 90) == [*["succeeded"] * 3, *["paused"] * 3, *["succeeded"] * 3]
        await new.someone().pause("default", until=START + timedelta(seconds=125))
        await new.until(145)
        assert await verdicts(new, 90, 140) == ["succeeded", *["paused"] * 3, "succeeded", "succeeded"]


@virtual
async def test_retries() -> None:
    """A run that fails and is tried again: queued with its errors, and failed for good at the end, with all of them."""

    async def fail() -> None:
        raise ValueError("no such customer")

    async with world() as new:
        new.start(registry(fail, every=1000, retries=2, backoff=60.0), **LEASE)
        await new.until(410)  # its tick is at 400: the grid is anchored elsewhere
        first = await ask(new, None)
        assert first.verdict == "queued"
        assert "It failed and is tried again: attempt 2 may begin at" in " ".join(first.sentences)
        await new.until(1300)
        last = await ask(new, 400)
        text = " ".join(last.sentences)
        assert last.verdict == "failed"
        assert (text.count("no such customer"), "It had failed 2 times before that" in text) == (3, True)


@virtual
async def test_waiting_for_a_place() -> None:
    """Under max_running the run that waits says so, and names how many go on."""
    jobs = JobRegistry(max_running=1)
    for name in "ab":
        jobs.every(100, name=name)(Work(takes=50))
    async with world() as new:
        new.start(jobs, **LEASE)
        await new.until(120)
        told = {name: await ask(new, 100, name) for name in "ab"}
        assert sorted(answer.verdict for answer in told.values()) == ["queued", "running"]
        [waiting] = [answer for answer in told.values() if answer.verdict == "queued"]
        assert "1 run goes on in this lease: it waits for a place under max_running" in " ".join(waiting.sentences)
        await new.until(205)
        assert [(await ask(new, 100, name)).verdict for name in "ab"] == ["succeeded", "succeeded"]
        late = " ".join((await ask(new, 100, "b")).sentences)
        assert "50.0 s late" in late
        assert "max_running" in late


@virtual
async def test_what_was_asked_for_by_hand() -> None:
    """Reruns, backfills and cancels are told as such; so is what was settled."""
    async with world() as new:
        hold = asyncio.Event()

        async def wait() -> None:
            await hold.wait()

        new.start(registry(wait, every=100), **LEASE)
        await new.until(120)
        await new.someone().cancel("default", "job")
        await new.until(150)
        cancelled = await ask(new, 100)
        assert cancelled.verdict == "failed"
        assert "Somebody cancelled it" in " ".join(cancelled.sentences)
        hold.set()
        await new.someone().rerun("default", "job", START + timedelta(seconds=100))
        await new.until(180)
        again = await ask(new, 100)
        assert again.verdict == "succeeded"
        assert "somebody asked for this run again" in " ".join(again.sentences)
        await new.someone().pause("default", "job")
        await new.until(320)
        await new.someone().resume("default", "job")
        await new.someone().backfill("default", "job", START + timedelta(seconds=200), START + timedelta(seconds=300))
        await new.until(390)
        assert await verdicts(new, 200, 300, 100) == ["succeeded", "succeeded"]
        assert "with a backfill" in " ".join((await ask(new, 200)).sentences)
        await new.until(450)
        await new.someone().settle("default", "job")
        assert (await ask(new, 100)).verdict == "succeeded"
        await new.until(460)
        assert (await ask(new, 430)).verdict == "settled by hand"


@virtual
async def test_a_changed_schedule() -> None:
    """A moment before the schedule was changed is told from its rows, or as of another schedule."""
    async with world() as new:
        first = new.start(registry(Work(), every=10), **LEASE)
        await new.until(35)
        await first.end()
        new.start(registry(Work(), every=7), **LEASE)
        await new.until(80)
        assert (await ask(new, 20)).verdict == "succeeded"
        assert (await ask(new, 21)).verdict == "another schedule"
        assert (await ask(new, 77)).verdict == "succeeded"
        assert (await ask(new, 75)).verdict == "not due"
