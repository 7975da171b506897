"""`why`, `runs` and `history` on a ledger in memory. What `why` says is tested in tests/jobs/test_why.py."""

from __future__ import annotations

import json

from aiolease import open_store
from tests.cli.commands import Aiolease, in_thread
from tests.cli.worlds import DAY, HOUR, LONG_AGO, MINUTE, NOW, TICK, World


def test_why_of_the_latest_tick(aiolease: Aiolease, world: World) -> None:
    """`why JOB` tells of the latest tick, the last error included, and what may be done."""
    world.job()
    world.run("failed", error="ValueError: no such customer")
    run = aiolease("why", "report")
    assert (run.status, run.err) == (0, "")
    fell_due, failed, command = run.out.splitlines()
    assert fell_due == "It fell due at 2026-11-30 14:00:00 UTC (09:00 America/New_York)."
    assert failed.endswith("in term 7 (web1-4711), and failed after 12.0 s: ValueError: no such customer.")
    assert command == "  aiolease rerun report '2026-11-30 14:00:00'  # runs it again"


def test_why_of_a_moment(aiolease: Aiolease, world: World) -> None:
    """A moment is typed as people type it, and its rows are found whatever else there is."""
    world.job("busy", "every 60s", high_tick=NOW)
    for minutes in range(300):
        world.run(job="busy", tick=NOW - minutes * MINUTE)
    for text in ("2026-11-30 16:00", "2026-11-30T16:00:00Z", "2026-11-30 11:00 America/New_York"):
        told = json.loads(aiolease("why", "busy", text, "--json").out)
        assert (told["verdict"], told["moment"]) == ("succeeded", "2026-11-30T16:00:00+00:00")
    told = json.loads(aiolease("why", "busy", "2026-11-30 02:00", "--json").out)
    assert told["verdict"] == "no row"
    assert "the oldest row is that of 2026-11-30 13:01:00 UTC" in told["sentences"][0]


def test_why_knows_who_led(aiolease: Aiolease, world: World) -> None:
    """Terms are read from the database."""
    world.job()
    world.term(6, LONG_AGO, TICK - MINUTE, "lost", "expired")
    world.term(7, TICK + 10 * MINUTE, None, "running")
    world.run(started_at=TICK + 11 * MINUTE, finished_at=TICK + 12 * MINUTE)
    out = aiolease("why", "report").out
    assert "Nobody led at that moment: term 6 ended at 2026-11-30 13:59:00 UTC" in out


def test_why_finds_the_run_that_holds_a_tick(aiolease: Aiolease, world: World) -> None:
    """A run that began long before, and goes on, is found, and so is one that waits."""
    world.job("sweep", "every 60s", high_tick=NOW - 3 * HOUR)
    world.run("running", job="sweep", tick=NOW - 3 * HOUR)
    out = aiolease("why", "sweep").out
    assert "Its run of 2026-11-30 15:00:00 UTC goes on still." in out
    world.server.ledgers["default"].runs.clear()
    world.run("queued", job="sweep", tick=NOW - 3 * HOUR)
    assert "Its run of 2026-11-30 15:00:00 UTC waits still." in aiolease("why", "sweep").out


def test_why_of_a_range_names_the_run_before_it(aiolease: Aiolease, world: World) -> None:
    """Of a tick within a range of skipped ones the run before the range is read, too."""
    world.job("sweep", "every 60s", high_tick=NOW)
    world.run(job="sweep", tick=NOW - 2 * HOUR, finished_at=NOW - MINUTE)
    first = NOW - 2 * HOUR + MINUTE
    world.run("skipped", NOW, job="sweep", tick_from=first, count=120, error="its last run has not ended")
    out = aiolease("why", "sweep", "2026-11-30 17:00").out
    assert "The run that had not ended was that of 2026-11-30 16:00:00 UTC" in out


def test_why_of_an_unknown_job(aiolease: Aiolease, world: World) -> None:
    """A job that nobody knows is trouble, as everywhere."""
    world.job()
    run = aiolease("why", "reprot")
    assert (run.status, run.out) == (1, "")
    assert run.err == "aiolease: job 'reprot': no leader of 'default' ever had such a job\n"


def test_runs_over_all_jobs(aiolease: Aiolease, world: World) -> None:
    """`runs` has the newest rows of all jobs, the newest last; `--failed`, `--since` and `-n` choose."""
    for job in ("a", "b"):
        world.job(job)
        world.run("failed", job=job, error="E")
        world.run("lost", job=job, tick=TICK - 2 * DAY, error="lost with term 6")
        world.run(job=job, tick=TICK - DAY)

    def said(*arguments: str) -> list[list[str]]:
        lines = aiolease("runs", *arguments).out.splitlines()[1:]
        assert all(line.split()[2] == "(09:00)" for line in lines)
        return [[line.split()[1], *line.split()[3:5]] for line in lines]

    assert said() == [
        [time, job, status]
        for time, status in (("14:00:00", "lost"), ("14:00:00", "succeeded"), ("14:00:00", "failed"))
        for job in ("a", "b")
    ]
    assert [status for _, _, status in said("--failed")] == ["lost", "lost", "failed", "failed"]
    assert [status for _, _, status in said("b", "--failed")] == ["lost", "failed"]
    assert [status for _, _, status in said("b", "--since", "2026-11-29")] == ["succeeded", "failed"]
    assert [job for _, job, _ in said("--since", "2026-11-30")] == ["a", "b"]
    assert len(said("-n", "3")) == 3
    assert said("b", "-n", "1") == [["14:00:00", "b", "failed"]]
    told = json.loads(aiolease("runs", "b", "--failed", "--json").out)
    assert [row["status"] for row in told] == ["lost", "failed"]
    assert aiolease("runs", "--lease", "other").out == "there are no runs: 'other'\n"
    assert aiolease("runs", "reprot").status == 1


def test_a_history_shows_retries_and_requests(aiolease: Aiolease, world: World) -> None:
    """A run that waits says until when, what its last attempt raised, and who asked for it."""
    world.job()
    earlier = "attempt 1 (term 7, 2026-11-30 14:00:13 UTC): ValueError: flaky"
    world.run("queued", attempt=2, failures=1, not_before=NOW + 5 * MINUTE, earlier=earlier)
    world.run("queued", tick=TICK - DAY, request="backfill", not_before=NOW - MINUTE)
    run = aiolease("history", "report")
    first, second = run.out.splitlines()[1:]
    assert first.endswith("by backfill")
    assert "not before 2026-11-30 18:05:00; attempt 1 (term 7" in second
    assert second.endswith("ValueError: flaky")


async def test_on_a_database(aiolease: Aiolease, any_url: str) -> None:
    """Each of the commands that look works on each kind of database, and on an empty lease."""
    async with open_store(any_url) as store:
        await store.claim("default", "somebody", 60, seen=None, force=False)
    for command in ("status", "check", "runs"):
        run = await in_thread(aiolease, command)
        assert (run.status, run.err) == (0, ""), command


def test_old_failures_of_one_job_are_found(aiolease: Aiolease, world: World) -> None:
    """`runs JOB --failed` finds failures behind any number of successes."""
    world.job("sweep", "every 60s", high_tick=NOW)
    for minutes in range(50):
        world.run(job="sweep", tick=NOW - minutes * MINUTE)
    world.run("failed", job="sweep", tick=NOW - HOUR, error="ValueError: long ago")
    lines = aiolease("runs", "sweep", "--failed", "-n", "5").out.splitlines()
    assert len(lines) == 2
    assert lines[1].endswith("ValueError: long ago")
