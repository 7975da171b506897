"""What asks for something: `rerun`, `backfill`, `cancel`, `pause`, `forget`, and waiting for a run's end."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.cli.commands import Aiolease, in_thread
from tests.cli.worlds import DAY, HOUR, NOW, SECOND, TICK, World


def job_of(world: World, job: str = "report"):  # type: ignore[no-untyped-def]
    return world.server.ledgers["default"].jobs[job]


def row_of(world: World, tick=TICK, job: str = "report"):  # type: ignore[no-untyped-def]
    return world.server.ledgers["default"].runs[job, tick]


def test_rerun(aiolease: Aiolease, world: World) -> None:
    """`rerun JOB TICK` queues a further attempt; what is refused is one line, with the reason."""
    world.job()
    world.run("failed", error="E")
    run = aiolease("rerun", "report", "2026-11-30 14:00")
    assert (run.status, run.err) == (0, "")
    assert run.out.startswith(
        "asked for the tick 2026-11-30 14:00:00 UTC of 'report' of 'default' again: it runs at the"
    )
    assert (row_of(world).status, row_of(world).attempt, row_of(world).request) == ("queued", 2, "rerun")
    run = aiolease("rerun", "report", "2026-11-30 14:00")
    assert (run.status, run.out, run.err.count("\n")) == (1, "", 1)
    assert run.err.startswith("aiolease: job 'report' of 'default': ")


def test_rerun_of_a_success_needs_force(aiolease: Aiolease, world: World) -> None:
    """What has succeeded is run again with `--force` only."""
    world.job()
    world.run()
    assert aiolease("rerun", "report", "2026-11-30 14:00").err == (
        "aiolease: job 'report' of 'default': this run has succeeded; with `--force` it is run again\n"
    )
    assert aiolease("rerun", "report", "2026-11-30 14:00", "--force").status == 0
    assert row_of(world).status == "queued"


def test_rerun_of_a_triggered_run(aiolease: Aiolease, world: World) -> None:
    """A tick may be typed as a history shows it, without its microseconds."""
    world.job()
    tick = TICK + timedelta(microseconds=123_456)
    world.run("failed", tick=tick, request="trigger")
    for text in ("2026-11-30 14:00:00.123", "2026-11-30 14:00:00", "2026-11-30 14:00"):
        world.run("failed", tick=tick, request="trigger")
        assert json.loads(aiolease("rerun", "report", text, "--json").out)["tick"] == tick.isoformat()
    assert aiolease("rerun", "report", "2026-11-30 13:59").err == (
        "aiolease: job 'report' of 'default': there is no run of 2026-11-30 13:59:00 UTC; `aiolease history report` "
        "shows those that there are\n"
    )
    assert aiolease("rerun", "report", "2026-11-29 14:00").err == (
        "aiolease: job 'report' of 'default': there is no run of the tick 2026-11-29 14:00:00 UTC; `aiolease backfill` "
        "runs ticks that have none\n"
    )


def test_rerun_within_a_range_is_of_that_tick(aiolease: Aiolease, world: World) -> None:
    """A tick within a range of skipped ones is meant, and not the range's last."""
    world.job("sweep", "every 60s", high_tick=NOW)
    world.run("skipped", tick=TICK, job="sweep", tick_from=TICK - HOUR, count=61, error="E")
    told = json.loads(aiolease("rerun", "sweep", "2026-11-30 13:30", "--json").out)
    assert told["tick"] == "2026-11-30T13:30:00+00:00"
    world.job("sweep", "every 60s", high_tick=NOW)
    run = aiolease("rerun", "sweep", "2026-11-30 13:40:30", "--wait")  # the leader would never have begun it
    assert (run.status, run.out) == (1, "")
    assert "there is no run of 2026-11-30 13:40:30 UTC" in run.err
    world.job("sweep", "every 3600s", high_tick=NOW, schedule_since=TICK + SECOND)
    run = aiolease("rerun", "sweep", "2026-11-30 13:40", "--wait")
    assert (run.status, run.out) == (1, "")
    assert "2026-11-30 13:40:00 UTC is no tick of the schedule that it has now" in run.err


def test_backfill(aiolease: Aiolease, world: World) -> None:
    """`backfill --since --until` writes the request; without `--until` it is up to now; two are refused."""
    world.job()
    run = aiolease("backfill", "report", "--since", "2026-11-01", "--until", "2026-11-29 14:00")
    assert (run.status, run.err) == (0, "")
    assert "from 2026-11-01 00:00:00 UTC to 2026-11-29 14:00:00 UTC" in run.out
    assert job_of(world).backfill_until == TICK - DAY
    assert "another backfill, from 2026-11-01 00:00:00 UTC to 2026-11-29 14:00:00 UTC, has not" in (
        aiolease("backfill", "report", "--since", "-3d").err
    )
    assert aiolease("backfill", "report").status == 2
    run = aiolease("backfill", "report", "--since", "2026-11-02", "--until", "2026-11-01")
    assert (run.status, run.err) == (
        2,
        "aiolease: --until='2026-11-01 00:00:00 UTC': it is before --since, 2026-11-02 00:00:00 UTC\n",
    )


def test_a_backfill_says_of_which_ticks_no_row_is_left(aiolease: Aiolease, world: World) -> None:
    """They may have run, and their rows are pruned; ticks from before the job was known have never run."""
    known = TICK - 9 * DAY
    for rows, since, told in (
        ([1, 0], "2026-11-29", None),
        ([1, 0], "2026-11-28", "2026-11-28 14:00:00"),
        ([6, 7, 8, 0], "2026-11-22", None),
        ([8, 0], "2026-11-01", None),
        ([7, 0], "2026-11-01", "2026-11-22 14:00:00"),
        ([], "2026-11-29", "2026-11-29 14:00:00"),
    ):
        world.job(known_since=known, schedule_since=known)
        world.server.ledgers["default"].runs.clear()
        for days in rows:
            world.run(tick=TICK - days * DAY)
        run = aiolease("backfill", "report", "--since", since)
        assert run.status == 0
        note = f"NOTE: no row is left of its tick {told} UTC: if that has run, it runs again"
        assert (note in run.out) if told else ("NOTE" not in run.out), run.out


def test_cancel(aiolease: Aiolease, world: World) -> None:
    """`cancel` writes the request, and says when the leader sees it."""
    world.job()
    run = aiolease("cancel", "report")
    assert run.out == (
        "asked to cancel the runs of 'report' of 'default': they are failed at the next heartbeat of a leader that has "
        "it, and not tried again\n"
    )
    assert job_of(world).cancel_at == NOW


def test_pause_until_with_a_note(aiolease: Aiolease, world: World) -> None:
    """`--until` and `--note` are in the database, and told; a second pause changes them."""
    world.job()
    run = aiolease("pause", "report", "--until", "2026-11-30 20:00", "--note", "the bank is closed")
    assert run.out == (
        "paused 'report' of 'default' until 2026-11-30 20:00:00 UTC: its ticks are not run; what is running or queued "
        "goes on\n"
    )
    assert (job_of(world).paused_until, job_of(world).pause_note) == (NOW + 2 * HOUR, "the bank is closed")
    run = aiolease("pause", "report", "--until", "2026-11-30 21:00")
    assert (
        "was paused already, since 2026-11-30 18:00:00 UTC; the pause lasts until 2026-11-30 21:00:00 UTC now"
        in run.out
    )
    run = aiolease("pause", "report", "--until", "2026-11-30 17:00")
    assert run.status == 2
    assert run.err == (
        "aiolease: --until='2026-11-30 17:00:00 UTC': it has passed: the database's clock shows "
        "2026-11-30 18:00:00 UTC\n"
    )
    run = aiolease("pause", "report", "--note", "x" * 256)
    assert run.status == 2
    assert run.err.startswith(f"aiolease: --note='{'x' * 40}…': use at most 255 characters")


def test_pause_and_resume_of_all_jobs(aiolease: Aiolease, world: World) -> None:
    """Without a job all of the lease is paused, and resumed."""
    world.job("a")
    world.job("b")
    run = aiolease("pause")
    assert run.out == "paused all jobs of 'default': no tick is run; what is running or queued goes on\n"
    assert [job_of(world, job).paused_at for job in "ab"] == [NOW, NOW]
    assert "all jobs of 'default' were paused already, since 2026-11-30 18:00:00 UTC" in aiolease("pause").out
    run = aiolease("resume")
    assert run.out.startswith(
        "resumed all jobs of 'default': those that are not paused by themselves run from their next"
    )
    assert [job_of(world, job).paused_at for job in "ab"] == [None, None]
    assert aiolease("resume").out == "all jobs of 'default' were not paused\n"


def test_a_pause_of_a_lease_that_never_was(aiolease: Aiolease, world: World) -> None:
    """A misspelt lease can be paused, since its leader may come; it is told that it had none."""
    run = aiolease("pause", "--lease", "defualt")
    assert run.out.endswith("goes on; 'defualt' never had a leader: is that its name?\n")
    assert "next heartbeat" not in aiolease("resume", "--lease", "defualt").out  # there is none


def test_forget(aiolease: Aiolease, world: World) -> None:
    """A job that is gone is forgotten; one that the leader has is refused, and all while it has not said which."""
    world.job("old", token=3)
    world.job("report")
    run = aiolease("forget", "old")
    assert (run.status, "ask again in a minute" in run.err) == (1, True)
    world.term(7, NOW - DAY, None, "running")
    run = aiolease("forget", "old")
    assert (run.status, run.out) == (0, "forgot 'old' of 'default': its rows are gone\n")
    assert set(world.server.ledgers["default"].jobs) == {"report"}
    run = aiolease("forget", "report")
    assert (run.status, run.out, run.err.count("\n")) == (1, "", 1)


@pytest.mark.parametrize(
    ("command", "done"),
    [
        ("trigger report", "trigger"),
        ("pause report", "pause"),
        ("pause", "pause"),
        ("resume report", "resume"),
        ("cancel report", "cancel"),
        ("settle report", "settle"),
        ("backfill report --since -1d", "backfill"),
        ("resign", "resign"),
    ],
)
def test_what_was_asked_for_programs(aiolease: Aiolease, world: World, command: str, done: str) -> None:
    """`--json` says what was asked, of which lease and job."""
    world.job()
    run = aiolease(*command.split(), "--json")
    told = json.loads(run.out)
    assert (run.status, told["done"], told["lease"]) == (0, done, "default")
    assert told.get("job") == (None if command in {"pause", "resign"} else "report")


# -- waiting


@pytest.mark.parametrize(("status", "exit_status"), [("succeeded", 0), ("failed", 1), ("skipped", 1), ("lost", 1)])
async def test_trigger_and_wait(aiolease: Aiolease, world: World, status: str, exit_status: int) -> None:
    """`--wait` waits for the run's end, whatever comes between, and its exit status says whether it has succeeded."""
    world.job()
    waiting = asyncio.create_task(in_thread(aiolease, "trigger", "report", "--wait"))
    while job_of(world).requested_at is None:
        await asyncio.sleep(0.01)
    world.run("queued", tick=NOW)
    await asyncio.sleep(0.7)
    assert not waiting.done()
    world.run(status, tick=NOW, error=None if status == "succeeded" else "ValueError: no")
    run = await waiting
    assert run.status == exit_status
    lines = run.out.splitlines()
    assert lines[0].startswith("triggered 'report' of 'default'")
    assert lines[1] == f"{status}, attempt 1 in term 7{'' if status == 'succeeded' else ': ValueError: no'}"


async def test_rerun_and_wait_for_programs(aiolease: Aiolease, world: World) -> None:
    """With `--json` what is printed is the run as it ended, and nothing else."""
    world.job()
    row = world.run("failed", error="E")
    waiting = asyncio.create_task(in_thread(aiolease, "rerun", "report", "2026-11-30 14:00", "--wait", "--json"))
    while row_of(world).status != "queued":
        await asyncio.sleep(0.01)
    world.server.ledgers["default"].runs["report", TICK] = replace(row, status="succeeded", attempt=2, error=None)
    told = json.loads((await waiting).out)
    assert (told["status"], told["attempt"]) == ("succeeded", 2)


async def test_a_row_that_was_pruned_is_not_waited_for(aiolease: Aiolease, world: World) -> None:
    """The run of an old tick has ended, and its row was the oldest of those that are kept: the command ends, too."""
    world.job()
    world.run("failed", error="E")
    waiting = asyncio.create_task(
        in_thread(aiolease, "rerun", "report", "2026-11-30 14:00", "--wait", "--timeout", "9")
    )
    while row_of(world).status != "queued":
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.6)
    del world.server.ledgers["default"].runs["report", TICK]
    run = await waiting
    assert run.status == 1
    assert run.err == "aiolease: the row of 'report' of 'default' is gone: it has ended, and the log says how\n"


def test_a_wait_may_have_an_end(aiolease: Aiolease, world: World) -> None:
    """With `--timeout` the command stops waiting, and says whether the run has begun."""
    world.job()
    run = aiolease("trigger", "report", "--wait", "--timeout", "0.2")
    assert run.status == 1
    assert run.err == (
        "aiolease: 'report' of 'default' has not begun within 0.2 s; the request stays, and "
        "`aiolease why report '2026-11-30T18:00:00+00:00'` tells what it waits for\n"
    )
    assert "Somebody triggered it" in aiolease("why", "report", "2026-11-30T18:00:00+00:00").out
    world.run("running", tick=NOW)
    run = aiolease("trigger", "report", "--wait", "--timeout", "0.2")
    assert run.err == "aiolease: 'report' of 'default' has not ended within 0.2 s; it goes on\n"
