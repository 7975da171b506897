"""Why a job ran, or did not run, at a moment: what became of ticks that have a row."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from aiolease._jobs.schedule import read_schedule
from aiolease._jobs.why import reading_start
from tests.jobs.whys import (
    DAY,
    HOUR,
    LONG_AGO,
    MINUTE,
    NOW,
    SECOND,
    TICK,
    ask,
    every,
    job,
    lease,
    run,
    said,
    term,
)


def test_due_and_run() -> None:
    """A tick that was run: which term, when it began, how late, how long it took; in UTC and by the job's clock."""
    answer = ask(TICK, job(), run())
    assert (answer.verdict, answer.moment, answer.commands) == ("succeeded", TICK, [])
    fell_due, ran = answer.sentences
    assert fell_due == "It fell due at 2026-11-30 14:00:00 UTC (09:00 America/New_York)."
    assert ran.startswith("It began at 2026-11-30 14:00:00.400 UTC (09:00 America/New_York), 0.4 s late, in term 7 ")
    assert ran.endswith("(web7), and succeeded after 12.0 s.")


def test_the_latest_tick_is_meant_if_none_is_given() -> None:
    """Without a moment the newest tick is told of: the schedule's, or that of a later row."""
    assert ask(None, job(), run()).moment == TICK
    triggered = run(tick=TICK + HOUR + timedelta(microseconds=123_456), request="trigger")
    answer = ask(None, job(), run(), triggered)
    assert (answer.moment, answer.verdict) == (triggered.tick, "succeeded")
    assert "Somebody triggered it at 2026-11-30 15:00:00.123 UTC" in said(answer)


def test_a_moment_may_leave_out_seconds() -> None:
    """A moment to the minute, the second or the millisecond stands for a tick within it."""
    tick = TICK.replace(second=30, microsecond=123_456)
    for moment in (TICK, TICK.replace(second=30), TICK.replace(second=30, microsecond=123_000)):
        assert ask(moment, job(schedule="cron 0 4 * * *"), run(tick=tick, request="trigger")).moment == tick
    assert ask(TICK.replace(second=29), job(), run(tick=tick)).verdict == "not due"


def test_a_row_of_a_former_schedule_was_not_triggered() -> None:
    """A row that is no tick of the schedule was triggered; one from before the schedule changed was not."""
    row = run(tick=TICK - HOUR)
    assert "somebody triggered it" in said(ask(row.tick, job(), row))
    assert "It fell due at 2026-11-30 13:00:00 UTC" in said(ask(row.tick, job(schedule_since=TICK), row))


def test_run_late_since_the_leader_changed() -> None:
    """A tick that fell due between two terms says so, with when they ended and began."""
    terms = [
        term(6, NOW - DAY, TICK - MINUTE, "lost", "expired"),
        term(7, TICK + 10 * MINUTE, None, "running"),
    ]
    answer = ask(TICK, job(), run(late=600.5), terms=terms)
    assert answer.verdict == "succeeded"
    assert ", 10 min late, in term 7" in said(answer)
    assert "because the leader changed. Nobody led at that moment: term 6 ended at 2026-11-30 13:59:00 UTC" in said(
        answer
    )
    assert "(expired), and term 7 began at 2026-11-30 14:10:00 UTC" in said(answer)


def test_run_late_since_the_leader_had_died() -> None:
    """A term that was lost without a word may have been dead at the tick: the next one recorded its end."""
    found = TICK + MINUTE + SECOND
    terms = [term(6, NOW - DAY, found, "lost", "its end was not recorded"), term(7, TICK + MINUTE, None, "running")]
    answer = ask(TICK, job(), run(late=61), terms=terms)
    assert "Term 6 (web6) did not record its end, which the next leader found at 2026-11-30 14:01:01 UTC" in said(
        answer
    )
    assert "may have been dead" in said(answer)


def test_run_late_since_the_leader_was_lost() -> None:
    """A term that said itself how it ended led until then."""
    terms = [term(6, NOW - DAY, TICK + MINUTE, "lost", "expired"), term(7, TICK + 2 * MINUTE, None, "running")]
    answer = ask(TICK, job(), run(late=121), terms=terms)
    assert "Term 6 (web6) led then; it was lost at 2026-11-30 14:01:00 UTC (09:01 America/New_York): expired" in said(
        answer
    )
    assert "dead" not in said(answer)


def test_run_late_behind_the_run_before() -> None:
    """A run that waited for the one before it names that."""
    before = run(tick=TICK - DAY, late=0, took=DAY.total_seconds() + 300)
    answer = ask(TICK, job(), before, run(late=301))
    assert "It waited for the run before it: that of 2026-11-29 14:00:00 UTC (09:00 America/New_York) ended at" in said(
        answer
    )


def test_run_late_for_a_place() -> None:
    """A run that was late under a leader, with none before it, waited for its turn; one in time says nothing."""
    assert "max_running" in said(ask(TICK, job(), run(late=30)))
    assert "max_running" not in said(ask(TICK, job(), run(late=3)))


def test_failed() -> None:
    """A failed run says with what, and how to run it again."""
    answer = ask(TICK, job(), run("failed", error="ValueError: no such customer"))
    assert answer.verdict == "failed"
    assert "and failed after 12.0 s: ValueError: no such customer." in said(answer)
    assert answer.commands == ["aiolease rerun report '2026-11-30 14:00:00'  # runs it again"]


def test_failed_after_retries() -> None:
    """A run whose retries are used up tells of every attempt."""
    earlier = "attempt 1 (term 6, 2026-11-30 14:00:13 UTC): ValueError: one\nattempt 2 (term 7, …): ValueError: two\n"
    answer = ask(TICK, job(), run("failed", attempt=3, failures=2, earlier=earlier, error="ValueError: three"))
    assert answer.verdict == "failed"
    for text in (
        "ValueError: one",
        "ValueError: two",
        "Attempt 3 began",
        "three.",
        "It had failed 2 times before that",
    ):
        assert text in said(answer)


def test_cancelled_by_hand() -> None:
    """A run that somebody cancelled is failed, and not by itself."""
    answer = ask(TICK, job(), run("failed", error="cancelled on request"))
    assert "Somebody cancelled it" in said(answer)


@pytest.mark.parametrize("reason", ["cancelled on request", "more than 60 s late to be tried again"])
def test_failed_while_it_waited_to_be_tried_again(reason: str) -> None:
    """A retry that was cancelled, or came too late, never began: the run has failed as its attempt before."""
    earlier = "attempt 1 (term 7, …): ValueError: flaky"
    row = run("failed", failures=1, earlier=earlier, error=reason, started_at=None)
    answer = ask(TICK, job(), row)
    assert "flaky" in said(answer)
    assert f"It waited to be tried again, and has failed for good: {reason}." in said(answer)
    assert "began at" not in said(answer)


def test_a_retry_that_succeeded() -> None:
    """A run that succeeded at a further attempt shows what the first one raised."""
    earlier = "attempt 1 (term 7, …): ValueError: flaky"
    answer = ask(TICK, job(), run(attempt=2, failures=1, late=65, earlier=earlier))
    assert "flaky" in said(answer)
    assert "Attempt 2 began at" in said(answer)
    assert "late" not in said(answer)


def test_waiting_to_be_tried_again() -> None:
    """A failed run that waits says when its next attempt may begin, and what the one before raised."""
    earlier = "attempt 1 (term 7, …): ValueError: flaky"
    waits = run("queued", attempt=2, failures=1, not_before=NOW + 5 * MINUTE, earlier=earlier)
    answer = ask(TICK, job(), waits)
    assert answer.verdict == "queued"
    assert "It failed and is tried again: attempt 2 may begin at 2026-11-30 18:05:00 UTC" in said(answer)
    assert "in 5 min" in said(answer)
    assert "flaky" in said(answer)


def test_waiting_for_a_place() -> None:
    """A claimed run that waits under max_running says how many go on; one that has nothing before it, that."""
    assert "3 runs go on in this lease: it waits for a place under max_running" in said(
        ask(TICK, job(), run("queued"), busy=3)
    )
    assert "should begin within seconds" in said(ask(TICK, job(), run("queued")))


def test_a_retry_waits_for_its_turn() -> None:
    """A retry whose moment has come waits as every other run."""
    answer = ask(TICK, job(), run("queued", attempt=2, failures=1, not_before=NOW - MINUTE), busy=2)
    assert "Attempt 2 might have begun at 2026-11-30 17:59:00 UTC" in said(answer)
    assert "2 runs go on" in said(answer)
    early = ask(TICK, job(), run("queued", attempt=2, failures=1, not_before=NOW + MINUTE), busy=2)
    assert "go on" not in said(early)


def test_waiting_for_the_run_before() -> None:
    """A claimed run of a job that runs one at a time names the run that goes on."""
    answer = ask(TICK, job(), run("running", tick=TICK - DAY), run("queued"), busy=1)
    assert "Before it the run of 2026-11-29 14:00:00 UTC (09:00 America/New_York) goes on" in said(answer)


def test_waiting_for_a_leader() -> None:
    """A claimed run whose leader is gone waits for the next; one whose leader lacks the job, for one that has it."""
    answer = ask(TICK, job(), run("queued"), lease=lease(expired=NOW - HOUR))
    assert "web7 (term 7) did not renew its lease, which expired at 2026-11-30 17:00:00 UTC" in said(answer)
    assert "It runs when somebody leads" in said(answer)
    answer = ask(TICK, job(token=6), run("queued"))
    assert "has no such job" in said(answer)


@pytest.mark.parametrize("request_", ["rerun", "backfill"])
def test_waiting_by_hand(request_: str) -> None:
    """What was asked for by hand waits behind everything that is due."""
    answer = ask(TICK, job(), run("queued", attempt=2, not_before=NOW - MINUTE, request=request_), busy=1)
    assert "waits behind everything that is due" in said(answer)
    assert ("asked for this run again" in said(answer)) == (request_ == "rerun")
    assert ("with a backfill" in said(answer)) == (request_ == "backfill")


@pytest.mark.parametrize("request_", ["rerun", "backfill"])
def test_run_by_hand(request_: str) -> None:
    """A run that was asked for by hand succeeded; that it came hours later is no lateness."""
    answer = ask(TICK, job(), run(late=7200, request=request_))
    assert answer.verdict == "succeeded"
    assert "late" not in said(answer).replace("later", "")
    assert "somebody asked for" in said(answer)


def test_lost_and_waiting_to_run_again() -> None:
    """A run of a job with rerun_lost whose term ended waits as a further attempt."""
    answer = ask(TICK, job(), run("queued", attempt=2))
    assert "It was lost with its term, and waits to be run again as attempt 2" in said(answer)


def test_running() -> None:
    """A run that goes on says since when; of a job that somebody asked to cancel, that."""
    answer = ask(NOW - MINUTE, every(60, high_tick=NOW - MINUTE), run("running", tick=NOW - MINUTE))
    assert answer.verdict == "running"
    assert "and has not ended." in said(answer)
    assert answer.commands == ["aiolease cancel report  # ends it: it is failed then"]
    record = every(60, cancel_at=NOW - 5 * SECOND)
    assert "Somebody asked to cancel it at" in said(ask(NOW - MINUTE, record, run("running", tick=NOW - MINUTE)))


def test_running_with_a_dead_leader() -> None:
    """A run that the ledger calls running, whose term is over, is not: nobody has recorded its end yet."""
    answer = ask(TICK, job(), run("running"), lease=lease(expired=NOW - HOUR))
    assert "That term is over, so its process is dead" in said(answer)
    answer = ask(TICK, job(), run("running", token=6), lease=lease(7))
    assert "That term is over" in said(answer)
    assert answer.commands == []


def test_lost() -> None:
    """A lost run says with which term, and how that ended."""
    terms = [term(6, NOW - DAY, TICK + HOUR, "lost", "expired"), term(7, TICK + HOUR, None, "running")]
    row = run("lost", token=6, error="lost with term 6: it could not be renewed in time")
    answer = ask(TICK, job(), row, terms=terms)
    assert answer.verdict == "lost"
    assert "It was lost with term 6: it could not be renewed in time: how far it came nobody knows." in said(answer)
    assert "Term 6 was lost: expired, recorded at 2026-11-30 15:00:00 UTC" in said(answer)
    assert answer.commands[0].startswith("aiolease rerun report '2026-11-30 14:00:00'")


def test_settled_by_hand() -> None:
    """A run that somebody settled says so."""
    answer = ask(TICK, job(), run("lost", error="settled by hand"))
    assert answer.verdict == "settled by hand"
    assert "called `aiolease settle`" in said(answer)


@pytest.mark.parametrize(
    ("reason", "lies_behind"),
    [
        ("its last run has not ended", "overlap='allow'"),
        ("its last run waits to be tried again", "until then"),
        ("nobody led when they fell due", "missed='skip'"),
        ("a newer one was due as well", "missed='all'"),
        ("more than 1000 were missed", "the last 1000"),
        ("1000 of its runs wait", "faster than it can run"),
        ("more than 60 s late", "max_age"),
        ("cancelled on request", "Somebody cancelled it"),
    ],
)
def test_skipped(reason: str, lies_behind: str) -> None:
    """A skipped tick says why, and what of the job's options lies behind that."""
    answer = ask(TICK, job(), run("skipped", error=reason))
    assert answer.verdict == "skipped"
    assert f"and was skipped: {reason}." in said(answer)
    assert lies_behind in said(answer)
    assert answer.commands == ["aiolease rerun report '2026-11-30 14:00:00'  # runs it after all"]


def test_skipped_in_a_range() -> None:
    """A tick within a range of skipped ones is told of as itself, and a rerun is of itself."""
    row = run("skipped", tick=TICK, tick_from=TICK - HOUR, count=61, error="a newer one was due as well")
    newer = run("failed", tick=TICK + MINUTE)
    answer = ask(TICK - 30 * MINUTE, every(60), row, newer)
    assert (answer.verdict, answer.moment) == ("skipped", TICK - 30 * MINUTE)
    assert answer.sentences[0] == (
        "It fell due at 2026-11-30 13:30:00 UTC, one of 61 ticks from 2026-11-30 13:00:00 UTC to 2026-11-30 14:00:00 "
        "UTC that were skipped: a newer one was due as well."
    )
    assert "The newest was that of 2026-11-30 14:01:00 UTC: it has failed." in said(answer)
    assert "'2026-11-30 13:30:00'" in answer.commands[0]


def test_a_moment_between_two_skipped_ticks_is_not_due() -> None:
    """Within a range of skipped ticks only the ticks of the schedule fell due: no other can be run again."""
    row = run("skipped", tick=TICK, tick_from=TICK - HOUR, count=61, error="a newer one was due as well")
    answer = ask(TICK - 30 * MINUTE + 7 * SECOND, every(60), row)
    assert answer.verdict == "not due"
    assert "The one before is 2026-11-30 13:30:00 UTC, the next is 2026-11-30 13:31:00 UTC." in said(answer)
    assert answer.commands == ["aiolease why report '2026-11-30 13:30:00'  # asks about the one before"]


def test_skipped_in_a_range_of_a_former_schedule() -> None:
    """Which ticks a former schedule had is not known. They cannot be run again: ranges are split by that of now."""
    row = run("skipped", tick=TICK, tick_from=TICK - HOUR, count=7, error="were missed")
    answer = ask(TICK - 25 * MINUTE, every(600, schedule_since=TICK + MINUTE), row)
    assert answer.verdict == "skipped"
    assert "If it fell due at 2026-11-30 13:35:00 UTC, by the schedule that it had then, it was one of 7 ticks" in said(
        answer
    )
    assert "It was a tick of a former schedule, so it cannot be run again." in said(answer)
    assert answer.commands == ["aiolease trigger report  # runs the job once, now"]


def test_a_trigger_that_was_skipped() -> None:
    """It never fell due: when somebody triggered it, when the leader saw that, and which run went on then."""
    tick = TICK + timedelta(seconds=5, microseconds=123_456)
    skipped = run(
        "skipped", tick=tick, tick_from=tick, count=1, finished_at=TICK + MINUTE,
        error="triggered while its last run had not ended",
    )  # fmt: skip
    later = run(tick=TICK + MINUTE, late=0)
    answer = ask(tick, every(60), run(), skipped, later)
    assert "fell due" not in said(answer)
    assert answer.sentences[0] == (
        "Somebody triggered it at 2026-11-30 14:00:05.123 UTC. The leader saw that at 2026-11-30 14:01:00 UTC and "
        "skipped it: a run of the job had not ended."
    )
    assert "The run that had not ended was that of 2026-11-30 14:01:00 UTC" in said(answer)
    assert answer.commands == ["aiolease trigger report  # triggers it again"]


def test_the_latest_tick_was_run_and_the_job_is_paused_since() -> None:
    """Who asks why nothing runs is told of a pause, also if the latest tick was run."""
    answer = ask(None, job(paused_at=NOW - HOUR, pause_note="a test"), run())
    assert answer.verdict == "succeeded"
    assert "The job is paused, since 2026-11-30 17:00:00 UTC" in said(answer)
    assert answer.sentences[-1].endswith("(a test). Ticks after this one are not run.")
    assert answer.commands == ["aiolease resume report  # ends the pause"]
    before = run(tick=TICK - DAY)
    assert "paused" not in said(ask(TICK - DAY, job(paused_at=NOW - HOUR), before, run()))


def test_skipped_while_a_run_went_on() -> None:
    """A tick that was skipped for a run names that run, from when to when."""
    before = run(tick=TICK - MINUTE, late=0, took=150)
    long_ended = run(tick=TICK - 5 * MINUTE, took=10)
    answer = ask(TICK, every(60), long_ended, before, run("skipped", error="its last run has not ended"))
    assert "The run that had not ended was that of 2026-11-30 13:59:00 UTC" in said(answer)
    assert "ended at 2026-11-30 14:01:30 UTC" in said(answer)
    assert "13:55" not in said(answer)


def test_skipped_since_nobody_led() -> None:
    """Beside a skip for lateness it is said who led, or that nobody did."""
    terms = [term(6, NOW - DAY, TICK - MINUTE, "succeeded", "released"), term(7, TICK + HOUR, None, "running")]
    answer = ask(TICK, job(), run("skipped", error="more than 60 s late"), terms=terms)
    assert "Nobody led at that moment: term 6 ended at 2026-11-30 13:59:00 UTC" in said(answer)


def test_another_lease_is_in_the_commands() -> None:
    """Commands are for this lease, and to be copied: a triggered tick has its microseconds."""
    from aiolease._jobs.why import Facts, why

    row = run("failed", tick=datetime.fromisoformat("2026-11-30T14:00:00.123456+00:00"), request="trigger")
    [command] = why(Facts(name="cron", record=job(), rows=[row], now=NOW, lease=lease()), row.tick).commands
    assert command.startswith("aiolease rerun report '2026-11-30T14:00:00.123456+00:00' --lease cron ")


def test_an_unknown_schedule_has_rows() -> None:
    """Of a schedule that this version does not know rows are told of, and nothing is reckoned."""
    record = job(schedule="lunar 3", timezone="")
    assert ask(TICK, record, run()).verdict == "succeeded"
    assert ask(None, record, run()).moment == TICK
    answer = ask(TICK - HOUR, record, run())
    assert "this version does not know its schedule, `lunar 3`" in said(answer)


def test_where_rows_are_read_from() -> None:
    """Rows are read from the tick before the one that is asked about."""
    schedule = read_schedule("cron 0 9 * * *", "America/New_York")
    assert reading_start(schedule, TICK) == TICK - DAY
    assert reading_start(None, TICK) == TICK
    assert LONG_AGO < TICK
