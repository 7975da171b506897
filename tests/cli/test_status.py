"""`status` and `check`: what is wrong stands first."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from aiolease.errors import StoreUnavailable
from tests.cli.commands import Aiolease, Run
from tests.cli.worlds import DAY, HOUR, MINUTE, NOW, SECOND, TICK, World


def cells(run: Run) -> dict[str, str]:
    """The lines of the jobs' table, by the job."""
    lines = run.out.rpartition("\n\n")[2].splitlines()
    return {line.split()[0]: line for line in lines[1:]}


def wrong(run: Run) -> list[str]:
    return [line.removeprefix("wrong     ") for line in run.out.splitlines() if line.startswith("wrong ")]


def test_a_job_that_fails_at_every_tick_is_the_first_line(aiolease: Aiolease, world: World) -> None:
    """A job that fails at every tick is what `status` begins with: how often, when last, with what, what to do."""
    world.job("a-job")
    world.run(job="a-job")
    world.job("report")
    world.run(tick=TICK - 9 * DAY)
    for days in range(3):
        world.run("failed", tick=TICK - days * DAY, error="ValueError: no such\ncustomer")
    run = aiolease("status")
    assert run.status == 0
    first = run.out.splitlines()[0]
    assert first == (
        "wrong     'report' has failed 3 times in a row: ValueError: no such customer, at the tick of "
        "2026-11-30 14:00:00 UTC (09:00 America/New_York)   (aiolease why report)"
    )
    assert len(wrong(run)) == 1
    told = json.loads(aiolease("status", "--json").out)
    assert [(each["job"], each["command"]) for each in told["wrong"]] == [("report", "why report")]


def test_the_worst_stands_first(aiolease: Aiolease, world: World) -> None:
    """Failing jobs, the most often first; then jobs that are overdue; then a clock."""
    world.job("once")
    world.run("failed", job="once", error="E: one")
    world.job("twice")
    world.run("failed", job="twice", error="E: two")
    world.run("lost", job="twice", tick=TICK - DAY, error="lost with term 6")
    world.job("late", "every 60s", high_tick=NOW - 30 * MINUTE)
    world.job("fine", "every 60s", high_tick=NOW - MINUTE)
    world.server.clock_offset = timedelta(seconds=-9)
    texts = wrong(aiolease("status"))
    assert [text.split(" ")[0] for text in texts] == ["'twice'", "'once'", "'late'", "the"]
    assert "'once' has failed: E: one, at the tick of 2026-11-30 14:00:00 UTC (09:00 America/New_York)" in texts[1]
    assert "'late' is overdue: its tick of 2026-11-30 17:31:00 UTC passed 29 min ago" in texts[2]
    assert texts[3] == "the clock of this machine is 9.0 s ahead of the database's"


def test_all_is_well(aiolease: Aiolease, world: World) -> None:
    """Where nothing is wrong `status` begins with the lease."""
    world.job()
    world.run()
    run = aiolease("status")
    assert run.out.startswith("lease     default\nleader    web1-4711\n")
    assert "runs      0 running, 0 waiting\n" in run.out
    assert "expires   2026-11-30 18:00:24 UTC, in 24.0 s unless renewed" in run.out


@pytest.mark.parametrize(
    ("lease", "text"),
    [
        (
            {"expires": NOW - HOUR},
            "nobody leads 'default' since 2026-11-30 17:00:00 UTC: web1-4711 did not renew it; 1 job is overdue",
        ),
        (
            {"holder": None, "expires": NOW - HOUR},
            "nobody leads 'default' since 2026-11-30 17:00:00 UTC: term 7 was released; 1 job is overdue",
        ),
    ],
)
def test_nobody_leads(aiolease: Aiolease, world: World, lease: dict[str, Any], text: str) -> None:
    """That nobody leads is the first that is wrong; that jobs are overdue for it is part of the same line."""
    world.lead(**lease)
    world.job("report")
    world.run("failed", error="E")
    world.job("late", "every 60s", high_tick=NOW - 30 * MINUTE)
    texts = wrong(aiolease("status"))
    assert texts[0] == text
    assert [each.split(" ")[0] for each in texts[1:]] == ["'report'"]


def test_a_release_makes_no_job_overdue(aiolease: Aiolease, world: World) -> None:
    """A job is overdue after two leases. How long a lease was its row does not say any more when it was released."""
    world.lead(holder=None, expires=NOW - 20 * SECOND)
    world.server.leases["default"] = replace(world.server.leases["default"], renewed_at=NOW - 25 * SECOND)
    world.job("late", "every 60s", high_tick=NOW - 80 * SECOND)
    run = aiolease("status")
    assert "overdue" not in run.out
    assert "released  2026-11-30 17:59:40 UTC, 20.0 s ago\n" in run.out
    world.job("late", "every 60s", high_tick=NOW - 130 * SECOND)
    assert "overdue by 2 min" in aiolease("status").out


def test_a_leader_that_has_missed_a_renewal(aiolease: Aiolease, world: World) -> None:
    """A leader that has not renewed for half its lease may be dead or frozen, although the lease is its own."""
    late = "ago: it is late, the leader may be dead, frozen or cut off\n"
    world.lead(expires=NOW + 16 * SECOND)
    assert late not in aiolease("status").out
    world.lead(expires=NOW + 14 * SECOND)
    assert f"renewed   2026-11-30 17:59:44 UTC, 16.0 s {late}" in aiolease("status").out
    world.lead(expires=NOW - SECOND)
    assert late not in aiolease("status").out  # that it expired stands there


def test_a_lost_run_has_not_failed(aiolease: Aiolease, world: World) -> None:
    """A run that was lost with its leader is no failure of the job, and is not called one."""
    world.job()
    world.run(tick=TICK - 9 * DAY)
    world.run("lost", error="lost with term 6: expired")
    assert wrong(aiolease("status"))[0].startswith(
        "'report' was lost with term 6: expired, at the tick of 2026-11-30 14:00:00 UTC"
    )
    world.run("lost", error="settled by hand")
    assert wrong(aiolease("status"))[0].startswith("'report' was lost: settled by hand, at the tick")
    world.run("failed", error="E", tick=TICK - DAY)
    assert wrong(aiolease("status"))[0].startswith(
        "'report' has failed, or was lost, 2 times in a row: settled by hand, at the tick"
    )


def test_the_leader_lacks_a_job(aiolease: Aiolease, world: World) -> None:
    """A leader that has said which jobs it has, and lacks one: deploy the job, or forget it."""
    world.job("old", token=3)
    world.job("unsaid", token=None)
    [text] = wrong(aiolease("status"))
    assert text.startswith("the leader (term 7) has no job 'old': deploy it, or forget it if it is gone")
    assert "the leader has it not" in cells(aiolease("status"))["old"]
    leases = world.server.leases
    leases["default"] = replace(leases["default"], elected_at=NOW - 5 * SECOND)
    assert wrong(aiolease("status")) == []  # it was elected a moment ago


def test_a_silent_job_is_wrong(aiolease: Aiolease, world: World) -> None:
    """A job whose ticks are settled far ahead says until when it is silent, and what mends it."""
    world.job("report", high_tick=NOW + DAY)
    [text] = wrong(aiolease("status"))
    assert text.startswith("'report' is silent until 2026-12-01 18:00:00 UTC")
    assert text.endswith("(aiolease settle report)")


def test_commands_name_the_lease_that_was_named(aiolease: Aiolease, world: World) -> None:
    """The command to go on with is for the same lease."""
    world.job()
    world.run("failed", error="E")
    for arguments in (("default",), ("--lease", "default")):
        assert aiolease("status", *arguments).out.splitlines()[0].endswith("(aiolease why report --lease default)")


def test_the_table_of_jobs(aiolease: Aiolease, world: World) -> None:
    """Each job: its last run and how it ended, its last success, its next tick by both clocks, and its state."""
    world.job("report")
    world.run()
    world.job("busy", "every 60s", high_tick=NOW, requested_at=NOW, cancel_at=NOW, backfill_since=TICK)
    world.run("running", job="busy", tick=NOW - 2 * MINUTE)
    for minutes in (0, 1):
        world.run("queued", job="busy", tick=NOW - minutes * MINUTE)
    world.job("still", paused_at=NOW - HOUR, paused_until=NOW + HOUR, pause_note="the bank is closed")
    table = cells(aiolease("status"))
    report = re.split("  +", table["report"])
    assert report[:2] == ["report", "cron 0 9 * * * America/New_York"]
    assert report[2:] == ["2026-11-30 14:00:00 (09:00)", "succeeded", "4 h ago", "2026-12-01 14:00:00 (09:00)"]
    assert "running, 2 queued, triggered, cancel asked for, backfill from 2026-11-30 14:00:00" in table["busy"]
    assert table["still"].endswith(
        "paused since 2026-11-30 17:00:00 UTC until 2026-11-30 19:00:00 UTC (the bank is closed)"
    )


def test_the_whole_lease_is_paused(aiolease: Aiolease, world: World) -> None:
    """A pause of the whole lease is a line of the lease, and not of each job."""
    world.job()
    world.pause_all(pause_note="moving")
    run = aiolease("status")
    assert "paused    the whole lease, since 2026-11-30 17:00:00 UTC (moving)\n" in run.out
    assert "paused" not in cells(run)["report"]
    assert json.loads(aiolease("status", "--json").out)["pause"]["pause_note"] == "moving"


def test_status_for_programs(aiolease: Aiolease, world: World) -> None:
    """`--json` has what the table has: how a job stands, its row, and its last run."""
    world.job()
    world.run("failed", error="E")
    told = json.loads(aiolease("status", "--json").out)
    [job] = told["jobs"]
    assert (job["job"], job["failures"], job["last"]["error"], job["last_success"]) == ("report", 1, "E", None)
    assert datetime.fromisoformat(job["next_tick"]) == TICK + DAY
    assert datetime.fromisoformat(job["high_tick"]) == TICK
    assert told["clock_offset"] == 0


# -- check


def test_check_is_one_line(aiolease: Aiolease, world: World) -> None:
    """All is well: one line, status 0."""
    world.job()
    world.run()
    run = aiolease("check")
    assert (run.status, run.err) == (0, "")
    assert run.out == "OK: web1-4711 leads 'default' for 24 h (term 7), 1 job in time\n"
    assert json.loads(aiolease("check", "--json").out) == {"ok": True, "wrong": []}


def test_check_says_what_is_wrong_in_one_line(aiolease: Aiolease, world: World) -> None:
    """Not all is well: one line with all of it, status 1."""
    world.lead(holder=None, expires=NOW - MINUTE)
    world.job()
    world.run("failed", error="E: one\ntwo")
    run = aiolease("check")
    assert (run.status, run.err) == (1, "")
    assert run.out.startswith(
        "NOT OK: nobody leads 'default' since 2026-11-30 17:59:00 UTC: term 7 was released; 'report' has failed: E: "
        "one two, at "
    )
    assert run.out.count("\n") == 1
    told = json.loads(aiolease("check", "--json").out)
    assert told["ok"] is False
    assert len(told["wrong"]) == 2


def test_check_may_forgive_a_failure(aiolease: Aiolease, world: World) -> None:
    """With `--failures 2` one failure is not wrong, two in a row are."""
    world.job()
    world.run("failed", error="E")
    assert aiolease("check", "--failures", "2").status == 0
    world.run("failed", tick=TICK - DAY, error="E")
    assert aiolease("check", "--failures", "2").status == 1


def test_check_the_age_of_the_last_success(aiolease: Aiolease, world: World) -> None:
    """`--max-age JOB=SECONDS`, once for each job: its last success may not be older."""
    world.job("report")
    world.run()
    world.job("never")
    assert aiolease("check", "--max-age", "report=5h").status == 0
    assert aiolease("check", "--max-age", "report=18000").status == 0
    run = aiolease("check", "--max-age", "report=3h", "--max-age", "never=1d", "--max-age", "reprot=1d")
    assert run.status == 1
    assert "'never' never succeeded" in run.out
    assert "the last success of 'report' is 4 h ago, more than 3 h" in run.out
    assert "no leader of 'default' ever had a job 'reprot'" in run.out


def test_check_where_nobody_ever_led(aiolease: Aiolease, world: World) -> None:
    """A lease that never was is not well: its name may be misspelt."""
    run = aiolease("check", "other")
    assert (run.status, run.out) == (1, "NOT OK: 'other' never had a leader\n")


def test_check_without_a_database(aiolease: Aiolease, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe reads the standard output: a database that cannot be reached is told there, with status 1."""

    async def fail(*_: object) -> None:
        raise StoreUnavailable("mysql://db", "connection refused")

    monkeypatch.setattr("aiolease.cli.looking.look", fail)
    run = aiolease("check")
    assert (run.status, run.out, run.err) == (1, "NOT OK: mysql://db: connection refused\n", "")


def test_check_asked_in_a_wrong_way(aiolease: Aiolease, world: World) -> None:
    """What cannot be meant is status 2."""
    for text in ("report", "report=", "=3", "report=soon", "report=0"):
        run = aiolease("check", "--max-age", text)
        assert (run.status, run.out, run.err.count("\n")) == (2, "", 1)
