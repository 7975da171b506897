"""How a job stands is reckoned from one reading of its rows: next tick, lateness, pauses. No I/O, no loop."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from aiolease._jobs.jitter import delayed
from aiolease._jobs.job import Job
from aiolease._jobs.schedule import Every
from aiolease._jobs.standing import JobStanding, may_be_late, standing
from aiolease.stores.records import JobRecord, RunRecord
from aiolease.stores.seen import WHOLE_LEASE, JobSeen
from tests.virtual import START

LEASE = 30.0


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def record(schedule: str = "every 100s", timezone: str = "", *, known_since: float = 0, **facts: Any) -> JobRecord:
    moments: dict[str, Any] = {
        name: at(fact) if isinstance(fact, int | float) else fact for name, fact in facts.items()
    }
    since: dict[str, Any] = {"known_since": at(known_since), "schedule_since": at(known_since)}
    return JobRecord(job="job", schedule=schedule, timezone=timezone, **since | moments)


def of_all(**facts: Any) -> JobRecord:
    moments: dict[str, Any] = {
        name: at(fact) if isinstance(fact, int | float) else fact for name, fact in facts.items()
    }
    return JobRecord(job=WHOLE_LEASE, schedule="", timezone="", known_since=START, schedule_since=START, **moments)


def job(**options: Any) -> Job:
    return Job(name="job", function=print, schedule=Every(100), argument=None, **options)


def stands(
    row: JobRecord, now: float, *, pause: JobRecord | None = None, job: Job | None = None, **seen: Any
) -> JobStanding:
    return standing(JobSeen(record=row, **seen), pause, at(now), lease_duration=LEASE, job=job)


def test_the_next_tick_is_the_first_that_is_not_settled() -> None:
    """It follows on the newest that was claimed or skipped; of a new job, on its beginning."""
    assert stands(record(), 50).next_tick == at(100)
    assert stands(record(high_tick=100), 150).next_tick == at(200)
    assert stands(record(high_tick=100, resumed_at=250), 260).next_tick == at(300)
    assert stands(record("cron 0 9 * * *", "Europe/Berlin"), 0).next_tick == at(8 * 3600)


def test_a_tick_that_passed_stays_the_next_one_until_it_is_settled() -> None:
    """It is late from its moment on, and overdue two leases later."""
    on_time, late, overdue = (stands(record(), now) for now in (100, 160, 161))
    assert (on_time.next_tick, on_time.late, on_time.overdue) == (at(100), 0, 0)
    assert (late.next_tick, late.late, late.overdue) == (at(100), 60, 0)
    assert (overdue.next_tick, overdue.late, overdue.overdue) == (at(100), 61, 61)


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({}, 60),
        ({"max_age": 20}, 60),
        ({"max_age": 300}, 300),
        ({"late_after": 5}, 5),
        ({"late_after": 5, "max_age": 300}, 5),
        ({"late_after": 900, "max_age": 300}, 900),
    ],
)
def test_how_late_a_tick_may_be(options: dict[str, Any], allowed: float) -> None:
    """Two leases, or the longer `max_age`; `late_after` stands above both."""
    assert may_be_late(job(**options), LEASE) == allowed
    assert stands(record(), 100 + allowed, job=job(**options)).overdue == 0
    assert stands(record(), 101 + allowed, job=job(**options)).overdue == allowed + 1
    assert may_be_late(None, LEASE) == 60


def test_a_tick_is_late_from_the_moment_at_which_it_was_to_start() -> None:
    """A job's jitter delays that by an amount which is fixed; the next tick is the tick itself."""
    delayed_job = job(jitter=50)
    starts = (delayed(delayed_job, "cron", at(100)) - START).total_seconds()
    assert 100 < starts < 150
    seen = JobSeen(record=record())
    for late in (-1.0, 60.0, 61.0):
        found = standing(seen, None, at(starts + late), lease_duration=LEASE, job=delayed_job, lease="cron")
        assert found.next_tick == at(100)
        assert found.late == pytest.approx(max(late, 0))
        assert (found.overdue > 0) == (late > 60.5)


def test_a_backlog_that_is_worked_off_is_not_overdue() -> None:
    """With `missed="all"` a tick waits for the run before it; not if nothing waits, nor if `late_after` says so."""
    assert stands(record(), 500, job=job(missed="all"), running=1).overdue == 0
    assert stands(record(), 500, job=job(missed="all"), queued=1).overdue == 0
    assert stands(record(), 500, job=job(missed="all"), running=1).late == 400
    assert stands(record(), 500, job=job(missed="all")).overdue == 400
    assert stands(record(), 500, job=job(missed="all", late_after=60), running=1).overdue == 400
    assert stands(record(), 500, job=job(), running=1).overdue == 400
    assert stands(record(), 500, running=1).overdue == 400


def test_a_paused_job_is_never_late() -> None:
    """Without an end it has no next tick; with one its next tick comes after the end."""
    for_good = stands(record(paused_at=50, pause_note="moving house"), 500)
    assert (for_good.next_tick, for_good.late, for_good.overdue) == (None, 0, 0)
    assert (for_good.paused, for_good.paused_since, for_good.pause_note) == (True, at(50), "moving house")
    assert (for_good.paused_until, for_good.paused_with_all) == (None, False)
    row = record(paused_at=50, paused_until=450)
    until = stands(row, 449)
    assert (until.paused, until.paused_until, until.next_tick, until.late) == (True, at(450), at(500), 0)
    over = stands(row, 450)
    assert (over.paused, over.paused_since, over.paused_until, over.next_tick) == (False, None, None, at(500))
    assert stands(row, 501).late == 1


def test_a_pause_of_the_whole_lease_reaches_jobs_that_came_later() -> None:
    """A job that was known has the pause in its own row; one that became known since is paused by that of the lease."""
    pause = of_all(paused_at=50, paused_until=450, pause_note="the move")
    new = stands(record(known_since=60), 400, pause=pause)
    assert (new.paused, new.paused_with_all, new.pause_note, new.next_tick) == (True, True, "the move", at(500))
    over = stands(record(known_since=60), 500.5, pause=pause)
    assert (over.paused, over.next_tick, over.late) == (False, at(500), 0.5)
    known = stands(record(paused_at=50, paused_until=450), 400, pause=pause)
    assert (known.paused, known.paused_with_all, known.next_tick) == (True, True, at(500))
    by_itself = stands(record(paused_at=40), 400, pause=pause)
    assert (by_itself.paused, by_itself.paused_with_all, by_itself.paused_until) == (True, False, None)


def test_a_job_that_was_resumed_by_itself_runs_in_a_paused_lease() -> None:
    """Its own row says so: it is not paused, or it was resumed after the pause began."""
    pause = of_all(paused_at=50)
    assert stands(record(known_since=60), 100, pause=pause).paused
    assert not stands(record(known_since=60, resumed_at=70), 100, pause=pause).paused
    assert not stands(record(known_since=10, resumed_at=70), 100, pause=pause).paused
    assert stands(record(known_since=60, resumed_at=70), 161, pause=pause).overdue == 61
    assert not stands(record(known_since=10), 100, pause=pause).paused
    assert not stands(record(known_since=60), 100, pause=of_all()).paused
    assert stands(record(known_since=60, paused_at=70, paused_until=80), 100, pause=pause).paused_with_all


def test_what_was_seen_is_handed_on() -> None:
    """Counts and runs are those of the reading."""
    last = RunRecord(job="job", tick=at(100), token=3, holder="a", status="failed", error="ValueError")
    seen: dict[str, Any] = {"last": last, "last_success": at(1), "failures": 4, "running": 2, "queued": 7}
    found = stands(record(), 50, **seen)
    assert {name: getattr(found, name) for name in seen} == seen
    assert (found.job, found.schedule, found.timezone) == ("job", "every 100s", "")


@pytest.mark.parametrize("text", ["sun 0 9", "", "cron 61 * * * *", "every -1s"])
def test_a_schedule_that_is_not_known_has_no_next_tick(text: str) -> None:
    """Another version's, or another hand's: nothing is said of it, and nothing fails."""
    found = stands(record(text), 5000)
    assert (found.next_tick, found.late, found.overdue) == (None, 0, 0)


def test_a_row_of_another_hand_has_no_next_tick() -> None:
    """A moment without a zone cannot be compared with others: nothing fails, nothing is said."""
    assert stands(record(high_tick=datetime(2026, 1, 1)), 50).next_tick is None  # noqa: DTZ001
