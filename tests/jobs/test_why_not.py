"""Why a job did not run at a moment that has no row in the ledger."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.jobs.whys import DAY, HOUR, LONG_AGO, MINUTE, NOW, SECOND, TICK, ask, every, job, lease, run, said, term


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# -- not due


def test_not_due() -> None:
    """A moment that is no tick says what the schedule means, and which ticks are before and after it."""
    answer = ask(TICK + HOUR, job(), run())
    assert answer.verdict == "not due"
    assert "at 09:00, every day, by the clock of America/New_York" in said(answer)
    assert (
        "The one before is 2026-11-30 14:00:00 UTC (09:00 America/New_York), the next is 2026-12-01 14:00:00"
        in said(answer)
    )


def test_not_due_since_the_job_has_its_own_clock() -> None:
    """Somebody who gives a reading of the job's own clock is told which moment that is."""
    answer = ask(at("2026-11-30 09:00"), job(), run())
    assert answer.verdict == "not due"
    assert "If 09:00 by the clock of America/New_York is meant, that is 2026-11-30 14:00:00 UTC" in said(answer)
    assert answer.commands == ["aiolease why report '2026-11-30 14:00:00'  # asks about that"]


def test_the_hour_that_was_skipped() -> None:
    """02:30 on the day on which the clock goes from 02:00 to 03:00: it was due as the clock jumped, once."""
    record = job(schedule="cron 30 2 * * *")
    jump = at("2026-03-08 07:00")
    answer = ask(jump, record, run(tick=jump))
    assert answer.verdict == "succeeded"
    assert "the clock of America/New_York was put forward from 02:00 to 03:00" in said(answer)
    answer = ask(at("2026-03-08 07:30"), record, run(tick=jump))
    assert answer.verdict == "not due"
    assert "put forward at 2026-03-08 07:00:00 UTC, from 02:00 to 03:00: it never showed 02:30" in said(answer)
    assert "was due once, at that moment" in said(answer)
    answer = ask(at("2026-03-08 02:30"), record, run(tick=jump))  # somebody means New York
    assert "If 02:30 by the clock of America/New_York is meant: it was put forward" in said(answer)
    other = ask(at("2026-03-08 07:30"), job(), run(tick=jump))
    assert "put forward" not in said(other)


def test_the_hour_that_was_skipped_of_a_job_that_follows_elapsed_time() -> None:
    """A job that is due each quarter of an hour within 02:00 to 02:59 is not due at all on that day."""
    answer = ask(at("2026-03-08 07:15"), job(schedule="cron */15 2 * * *"))
    assert answer.verdict == "not due"
    assert "it never showed 02:15 on this day." in said(answer)
    assert "due once" not in said(answer)


def test_the_hour_that_was_repeated() -> None:
    """01:30 is shown twice as the clock goes back from 02:00 to 01:00: it is due at the first, once."""
    record = job(schedule="cron 30 1 * * *")
    first, second = at("2026-11-01 05:30"), at("2026-11-01 06:30")
    answer = ask(first, record, run(tick=first))
    assert answer.verdict == "succeeded"
    assert "showed 01:30 twice on this day, and a fixed time is due once: this is the first" in said(answer)
    answer = ask(second, record, run(tick=first))
    assert answer.verdict == "not due"
    assert "showed 01:30 a second time. A fixed time is due once, at the first: 2026-11-01 05:30:00 UTC." in said(
        answer
    )
    assert "twice" not in said(ask(first, job(schedule="cron */30 * * * *"), run(tick=first)))


# -- before, after, another schedule


def test_not_due_since_the_schedule_was_changed() -> None:
    """Somebody who waits for a tick of the former schedule is told that there is another, and since when."""
    record = job(schedule_since=TICK - HOUR)
    assert (
        "It has had this schedule since 2026-11-30 13:00:00 UTC (08:00 America/New_York); before, it had another."
        in said(ask(TICK + HOUR, record, run()))
    )
    assert "before, it had another" not in said(ask(TICK + HOUR, job(), run()))


def test_before_the_job_was_known() -> None:
    """A tick before the database saw the job: a new job starts with its next tick."""
    record = job(known_since=TICK + MINUTE, schedule_since=TICK + MINUTE, high_tick=None)
    answer = ask(TICK, record)
    assert answer.verdict == "not known yet"
    assert "first saw this job at 2026-11-30 14:01:00 UTC" in said(answer)
    assert "at 09:00, every day, by the clock of America/New_York, is 2026-12-01 14:00:00 UTC" in said(answer)
    assert ask(TICK - HOUR, record).verdict == "not known yet"


def test_a_changed_schedule() -> None:
    """A moment before the schedule was changed: what it was before is not kept, unless there is a row."""
    record = job(schedule_since=TICK + MINUTE, high_tick=None)
    for moment in (TICK, TICK - HOUR):
        answer = ask(moment, record)
        assert answer.verdict == "another schedule"
        assert "Its schedule was changed at 2026-11-30 14:01:00 UTC" in said(answer)
    assert ask(TICK - HOUR, record, run(tick=TICK - HOUR)).verdict == "succeeded"


def test_settled_by_hand() -> None:
    """After `aiolease settle` all ticks up to then are settled."""
    record = job(known_since=NOW - HOUR, schedule_since=NOW - HOUR, resumed_at=NOW - HOUR, high_tick=NOW - HOUR)
    answer = ask(TICK, record)
    assert answer.verdict == "settled by hand"
    assert "Somebody called `aiolease settle` at 2026-11-30 17:00:00 UTC" in said(answer)


def test_in_the_future() -> None:
    """A tick to come says in how long; and what stands in its way: a pause, no leader, a leader without the job."""
    tick = TICK + DAY
    answer = ask(tick, job(), run())
    assert answer.verdict == "in the future"
    assert answer.sentences == ["It falls due at 2026-12-01 14:00:00 UTC (09:00 America/New_York), in 20 h."]
    assert "So it will not be run" in said(ask(tick, job(paused_at=NOW - HOUR), run()))
    assert "paused" not in said(ask(tick, job(paused_at=NOW - HOUR, paused_until=NOW + HOUR), run()))
    assert "Nobody leads 'default' now: term 7 was released" in said(ask(tick, job(), run(), lease=lease(free=True)))
    assert "no such job" in said(ask(tick, job(token=6), run()))
    assert ask(NOW + HOUR, job(), run()).verdict == "not due"


def test_a_tick_within_the_minute_is_meant() -> None:
    """A moment to the minute stands for a tick within it that has no row, too."""
    answer = ask(TICK, job(schedule="cron 30 0 9 * * *", high_tick=TICK - DAY))
    assert (answer.verdict, answer.moment) == ("not claimed", TICK + 30 * SECOND)


def test_the_clock_change_to_come() -> None:
    """A tick to come at which the clock jumps says so."""
    answer = ask(at("2027-03-14 07:00"), job(schedule="cron 30 2 * * *"))
    assert answer.verdict == "in the future"
    assert "was put forward from 02:00 to 03:00" in said(answer)


def test_a_job_that_was_never_due_tells_of_its_first_tick() -> None:
    """Without a moment, and without a tick so far, the first one to come is told of."""
    answer = ask(None, job(known_since=NOW - HOUR, schedule_since=NOW - HOUR, high_tick=None))
    assert (answer.verdict, answer.moment) == ("in the future", TICK + DAY)


# -- paused


def test_paused() -> None:
    """A tick in a pause says since when, until when, and the note; and how to end it."""
    record = job(high_tick=TICK - DAY, paused_at=TICK - HOUR, paused_until=NOW + HOUR, pause_note="the bank is closed")
    answer = ask(TICK, record, run(tick=TICK - DAY))
    assert answer.verdict == "paused"
    assert (
        "The job is paused, since 2026-11-30 13:00:00 UTC (08:00 America/New_York), until 2026-11-30 19:00:00"
        in said(answer)
    )
    assert "(the bank is closed)" in said(answer)
    assert answer.commands == ["aiolease resume report  # ends the pause"]
    forever = ask(TICK, job(high_tick=TICK - DAY, paused_at=TICK - HOUR), run(tick=TICK - DAY))
    assert "until somebody resumes it" in said(forever)


def test_the_whole_lease_is_paused() -> None:
    """A pause of the whole lease is told as that: in the job's own row, or of a job that became known since."""
    whole = job(job="all jobs", schedule="", timezone="", paused_at=TICK - HOUR, pause_note="moving")
    mine = job(high_tick=TICK - DAY, paused_at=TICK - HOUR, pause_note="moving")
    new = job(known_since=TICK - MINUTE, schedule_since=TICK - MINUTE, high_tick=None)
    for record in (mine, new):
        answer = ask(TICK, record, pause=whole)
        assert answer.verdict == "paused"
        assert "The whole lease is paused" in said(answer)
        assert "(moving)" in said(answer)
        assert answer.commands == [
            "aiolease resume  # ends the pause of all jobs",
            "aiolease resume report  # of this one only",
        ]
    resumed = job(high_tick=TICK - DAY, resumed_at=TICK - MINUTE, known_since=TICK - 30 * MINUTE)
    assert ask(TICK, resumed, pause=whole).verdict != "paused"


def test_was_paused() -> None:
    """A tick within a pause that is over: its ticks are not made up for; a backfill does that."""
    ended = TICK + HOUR
    for record in (
        job(high_tick=TICK - DAY, resumed_at=ended),
        job(high_tick=TICK - DAY, paused_at=TICK - HOUR, paused_until=ended),
    ):
        answer = ask(TICK, record, run(tick=TICK - DAY))
        assert answer.verdict == "paused"
        assert "was paused then: the pause ended at 2026-11-30 15:00:00 UTC" in said(answer)
        assert answer.commands[0].startswith("aiolease backfill report --since '2026-11-30 14:00:00' --until ")


def test_the_pause_came_later() -> None:
    """A tick before which a row follows, and then a pause: it was not within the pause."""
    record = every(60, resumed_at=NOW - HOUR, high_tick=NOW - MINUTE)
    rows = [run(tick=TICK - MINUTE), run(tick=TICK + MINUTE), run(tick=NOW - MINUTE)]
    answer = ask(TICK, record, *rows)
    assert answer.verdict == "no row"
    assert "deleted" in said(answer)
    assert answer.sentences[-1] == "Term 7 (web7) led at that moment."
    assert "" not in ask(TICK, record, *rows, terms=[]).sentences


# -- no row any more


def test_pruned() -> None:
    """A tick older than the oldest row: what became of it is not kept."""
    answer = ask(TICK - 20 * DAY, job(), run())
    assert answer.verdict == "no row"
    assert "not kept any more: the oldest row is that of 2026-11-30 14:00:00 UTC" in said(answer)
    paused = ask(TICK - 20 * DAY, job(resumed_at=TICK - 10 * DAY), run())
    assert paused.verdict == "no row"
    assert "Perhaps it was paused" in said(paused)


# -- unclaimed


LATE = job(high_tick=TICK - DAY)


def test_nobody_leads() -> None:
    """A tick that nobody claimed, and nobody leads: since when, and what happens when somebody does."""
    terms = [term(7, NOW - DAY, None, "running")]
    for row, text in (
        (
            lease(expired=TICK - MINUTE),
            "web7 (term 7) did not renew its lease, which expired at 2026-11-30 13:59:00 UTC",
        ),
        (lease(free=True), "term 7 was released at 2026-11-30 17:59:59 UTC"),
        (None, "Nobody ever led 'default'"),
    ):
        answer = ask(TICK, LATE, run(tick=TICK - DAY), lease=row, terms=terms)
        assert answer.verdict == "nobody leads"
        assert text in said(answer)
        assert "When somebody leads it is run, or skipped" in said(answer)


def test_who_led_is_seen_from_the_lease_until_a_leader_records_it() -> None:
    """The end of the last term is recorded by the next leader. Until then the lease shows when, and how it ended."""
    running = [term(7, NOW - DAY, None, "running")]
    last = (
        "Term 7 (web7) renewed its lease for the last time at 2026-11-30 13:59:59 UTC (08:59:59 America/New_York): it "
        "may have been dead when the tick fell due."
    )
    for row, text in (
        (replace(lease(free=True), expires_at=TICK + MINUTE), "Term 7 (web7) led at that moment."),
        (replace(lease(free=True), expires_at=TICK - MINUTE), ""),
        (replace(lease(expired=TICK + MINUTE), renewed_at=TICK + SECOND), "Term 7 (web7) led then; it was lost at"),
        (replace(lease(expired=TICK + MINUTE), renewed_at=TICK - SECOND), last),
    ):
        told = said(ask(TICK, LATE, run(tick=TICK - DAY), lease=row, terms=running))
        assert text in told
        assert ("may have been dead" in told) == ("may have been dead" in text)
        assert ("Term 7" in told) == bool(text)


@pytest.mark.parametrize("status", ["running", "queued", "claimed", "long due"])
def test_a_leader_that_is_silent(status: str) -> None:
    """A leader that has missed a renewal may be dead or frozen: what waits for it is not explained by anything else."""
    silent = replace(lease(), renewed_at=NOW - 17 * SECOND, expires_at=NOW + 13 * SECOND)
    rows = {"running": [run("running")], "queued": [run("queued", not_before=TICK)]}.get(status, [])
    tick = NOW - 5 * SECOND if status == "claimed" else TICK
    record = every(5, high_tick=tick - 5 * SECOND) if status == "claimed" else job() if rows else LATE
    answer = ask(tick, record, *rows, lease=silent, busy=1)
    assert (
        "The leader, web7 (term 7), has not renewed its lease for 17.0 s: it may be dead, frozen, or cut off from the "
        "database. If it stays so, another may lead from 2026-11-30 18:00:13 UTC"
    ) in said(answer)
    assert "max_running" not in said(answer)
    assert "about to" not in said(answer)
    assert "has not renewed" not in said(ask(tick, record, *rows, busy=1))


def test_a_trigger_that_waits() -> None:
    """A trigger that no leader has claimed yet is told as such, and what it waits for."""
    asked = NOW - SECOND + timedelta(microseconds=123)
    for facts, text in (
        ({}, "The leader sees it at its next heartbeat."),
        ({"lease": lease(free=True)}, "It runs when somebody leads."),
        ({"lease": lease(8)}, "That process has no such job: it runs when a leader has it."),
        (
            {"lease": replace(lease(), renewed_at=NOW - 17 * SECOND, expires_at=NOW + 13 * SECOND)},
            "has not renewed its lease for 17.0 s",
        ),
    ):
        for moment in (asked, asked.replace(microsecond=0), None):
            answer = ask(moment, job(requested_at=asked), run(), **facts)
            assert (answer.verdict, answer.moment) == ("triggered", asked)
            assert answer.sentences[0].startswith("Somebody triggered it at 2026-11-30 17:59:59")
            assert text in said(answer)


def test_the_leader_lacks_the_job() -> None:
    """A leader that has said which jobs it has, this one not among them: another application, or version."""
    answer = ask(TICK, job(high_tick=TICK - DAY, token=6), run(tick=TICK - DAY))
    assert answer.verdict == "the leader has no such job"
    assert "Term 7 (web7) leads 'default' now" in said(answer)
    assert "the last that had it was term 6" in said(answer)


def test_the_leader_is_about_to_claim_it() -> None:
    """A tick of seconds ago may be claimed any moment."""
    tick = NOW - 5 * SECOND
    record = every(5, high_tick=tick - 5 * SECOND)
    assert ask(tick, record, run(tick=tick - 5 * SECOND)).verdict == "due now"


@pytest.mark.parametrize(("status", "how"), [("running", "goes on"), ("queued", "waits")])
def test_held_behind_its_last_run(status: str, how: str) -> None:
    """A tick that fell due while the last run goes on is claimed, or recorded as skipped, when that has ended."""
    before = run(status, tick=TICK - DAY)
    answer = ask(TICK, LATE, before)
    assert answer.verdict == "held"
    assert f"Its run of 2026-11-29 14:00:00 UTC (09:00 America/New_York) {how} still" in said(answer)


def test_set_aside() -> None:
    """A job whose rows cannot be read says why, and what mends it."""
    answer = ask(TICK, LATE, unreadable="high_tick is no moment")
    assert answer.verdict == "set aside"
    assert "high_tick is no moment" in said(answer)
    assert answer.commands == ["aiolease settle report  # sets its rows right"]


def test_not_claimed() -> None:
    """A leader that has the job, and has not claimed a tick for hours, may be stuck."""
    answer = ask(TICK, LATE, run(tick=TICK - DAY))
    assert answer.verdict == "not claimed"
    assert "It may be stuck" in said(answer)
    assert "due for 4 h" in said(answer)
    assert "It renewed its lease 3.0 s ago; if it is dead, that ends at 2026-11-30 18:00:27 UTC" in said(answer)
    assert LONG_AGO + timedelta(0) < TICK
