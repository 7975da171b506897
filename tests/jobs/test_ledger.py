"""What is due, what is skipped, what becomes of inherited runs: the pure functions, compared with the plain rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiolease._jobs.due import MAX_ATTEMPTS, MOST_MISSED, Due, Missed, due, inherited, lost, too_late
from aiolease._jobs.schedule import Cron, Every, Schedule, ticks_between
from aiolease.stores.batch import Change
from aiolease.stores.records import RunKey, RunRecord

MOMENT = timedelta(microseconds=1)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
YOUNG = 60.0

ZONES = ("UTC", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe")
# The two days of 2025 on which the clocks of a zone change; for UTC, any two.
CHANGES = {
    "UTC": ("2025-03-30", "2025-10-26"),
    "America/New_York": ("2025-03-09", "2025-11-02"),
    "Europe/Berlin": ("2025-03-30", "2025-10-26"),
    "Australia/Lord_Howe": ("2025-04-06", "2025-10-05"),
}
# Fixed times that a change skips or repeats, and such as follow elapsed time; with five fields, and with six.
EXPRESSIONS = (
    "30 2 * * *",
    "15 1 * * *",
    "*/7 * * * *",
    "0 * * * *",
    "30 15 2 * * *",
    "*/20 59 1 * * *",
    "7 */13 * * * *",
)
INTERVALS = (0.001, 0.3, 1, 2.5, 7.000001, 30, 59.999, 3600, 86_400.5)

Case = tuple[Schedule, datetime, datetime]


@st.composite
def crons(draw: st.DrawFn) -> Case:
    """A schedule by a wall clock, and a stretch of time around a change of that clock."""
    zone = draw(st.sampled_from(ZONES))
    change = datetime.fromisoformat(draw(st.sampled_from(CHANGES[zone]))).replace(tzinfo=UTC)
    after = change + timedelta(seconds=draw(st.integers(-86_400, 86_400)), microseconds=draw(st.integers(0, 999_999)))
    length = draw(st.one_of(st.integers(0, 7200), st.integers(0, 3 * 86_400)))
    return Cron(draw(st.sampled_from(EXPRESSIONS)), zone), after, after + timedelta(seconds=length)


@st.composite
def intervals(draw: st.DrawFn) -> Case:
    """A grid of ticks, and a stretch of up to 1,500 intervals, its ends on ticks as often as between them."""
    every = Every(draw(st.sampled_from(INTERVALS)))
    tick = every.next_after(NOON)
    assert tick is not None
    length = draw(st.one_of(st.integers(0, 5), st.integers(0, 1500)))
    shifts = st.sampled_from([timedelta(), -MOMENT, MOMENT, every.interval / 2])
    return every, tick + draw(shifts), tick + length * every.interval + draw(shifts)


CASES = st.one_of(crons(), intervals())
POLICIES = st.sampled_from(["once", "all", "skip"])
MAX_AGES = st.one_of(st.none(), st.sampled_from([0.0005, 0.3, 5.0, 60.0, 600.0, 7200.0, 1e9, 1e300]))
YOUTHS = st.sampled_from([0.2, 30.0, 60.0, 7200.0])


def skipped_ticks(schedule: Schedule, found: Due) -> list[datetime]:
    """The ticks in the ranges, which must be what they say of themselves."""
    ticks: list[datetime] = []
    for skip in found.skipped:
        of_range = list(ticks_between(schedule, skip.first - MOMENT, skip.last))
        assert (of_range[0], of_range[-1], len(of_range)) == (skip.first, skip.last, skip.count)
        assert skip.reason
        ticks += of_range
    return ticks


def to_be_run(
    ticks: list[datetime], now: datetime, missed: Missed, max_age: float | None, young: float
) -> list[datetime]:
    """The rule, in the plainest words."""

    def age(tick: datetime) -> float:
        return (now - tick).total_seconds()

    fresh = [tick for tick in ticks if max_age is None or age(tick) <= max_age]
    if missed == "all":
        return fresh[-MOST_MISSED:]
    if missed == "skip":
        fresh = [tick for tick in fresh if age(tick) < young]
    return fresh[-1:]


@settings(max_examples=400, deadline=None)
@given(case=CASES, missed=POLICIES, max_age=MAX_AGES, young=YOUTHS)
@example(case=(Every(1), NOON, NOON + timedelta(seconds=1001)), missed="all", max_age=None, young=YOUNG)
@example(case=(Every(1), NOON, NOON + timedelta(seconds=1000)), missed="all", max_age=None, young=YOUNG)
@example(case=(Every(0.001), NOON, NOON + timedelta(seconds=1.5)), missed="all", max_age=1.2, young=YOUNG)
def test_every_tick_is_run_or_skipped_once(case: Case, missed: Missed, max_age: float | None, young: float) -> None:
    """What is run and what is skipped are together the schedule's ticks in ``after < tick <= now``, each once.

    Which of them are run is what the policy, the age and the youth of a tick say; skips come first, all in order.
    """
    schedule, after, now = case
    ticks = list(ticks_between(schedule, after, now))
    found = due(schedule, after, now, missed=missed, max_age=max_age, young=young)
    skipped = skipped_ticks(schedule, found)
    assert [*skipped, *found.run] == ticks
    assert all(earlier < later for earlier, later in pairwise([*skipped, *found.run]))
    assert all(after < tick <= now for tick in found.run)
    assert found.run == to_be_run(ticks, now, missed, max_age, young)


@settings(max_examples=200, deadline=None)
@given(case=CASES, missed=POLICIES, max_age=MAX_AGES, looks=st.lists(st.floats(0, 1), max_size=6))
def test_however_often_one_looks_no_tick_is_decided_twice(
    case: Case, missed: Missed, max_age: float | None, looks: list[float]
) -> None:
    """Looked at step by step, each from where the last has settled, no tick is left out and none decided on twice."""
    schedule, after, now = case
    decided, settled, ran = [], after, 0
    for moment in [*(after + (now - after) * look for look in sorted(looks)), now]:
        found = due(schedule, settled, moment, missed=missed, max_age=max_age, young=YOUNG)
        step = [*skipped_ticks(schedule, found), *found.run]
        assert all(settled < tick <= moment for tick in step)
        decided += step
        ran += len(found.run)
        settled = max([settled, *step])
    assert decided == list(ticks_between(schedule, after, now))
    if missed == "all" and max_age is None and len(decided) <= MOST_MISSED:
        assert ran == len(decided)


@pytest.mark.parametrize("missed", ["once", "all", "skip"])
@pytest.mark.parametrize(
    ("age", "run_by_skip"), [(0.0, True), (59.999999, True), (60.0, False), (60.000001, False)], ids=str
)
def test_a_young_tick_is_due_whatever_the_policy(missed: Missed, age: float, run_by_skip: bool) -> None:
    """A tick younger than twice the lease is due and not missed, to the microsecond."""
    found = due(Every(86_400), NOON, NOON + timedelta(hours=12, seconds=age), missed=missed, max_age=None, young=60.0)
    assert bool(found.run) is (run_by_skip or missed != "skip")
    assert bool(found.skipped) is not bool(found.run)


@pytest.mark.parametrize("missed", ["once", "all", "skip"])
@pytest.mark.parametrize(("age", "is_run"), [(0.0, True), (5.0, True), (5.000001, False)], ids=str)
def test_a_tick_that_is_too_old_is_not_run(missed: Missed, age: float, is_run: bool) -> None:
    """`max_age` is the age up to which a tick is run, whatever the policy, and the reason says it."""
    found = due(Every(86_400), NOON, NOON + timedelta(hours=12, seconds=age), missed=missed, max_age=5, young=60.0)
    assert bool(found.run) is is_run
    assert [skip.reason for skip in found.skipped] == ([] if is_run else ["more than 5 s late"])


def test_each_range_has_its_own_reason() -> None:
    """What was too old, what nobody led for, and what a newer tick made needless are told apart."""
    found = due(Every(10), NOON, NOON + timedelta(seconds=125), missed="skip", max_age=100, young=60.0)
    assert [(skip.count, skip.reason) for skip in found.skipped] == [
        (2, "more than 100 s late"),
        (4, "nobody led when they fell due"),
        (5, "a newer one was due as well"),
    ]
    assert found.run == [NOON + timedelta(seconds=120)]


@pytest.mark.parametrize("missed", ["once", "all", "skip"])
def test_nothing_is_due_before_the_first_tick(missed: Missed) -> None:
    """Up to a moment before the next tick nothing is run or skipped; nor if the clock has been put back."""
    for now in (NOON, NOON + timedelta(seconds=30) - MOMENT, NOON - timedelta(days=3)):
        assert due(Every(30), NOON, now, missed=missed, max_age=1, young=60.0) == Due()


@pytest.mark.parametrize("missed", ["once", "all", "skip"])
def test_years_of_ticks_are_decided_on_at_once(missed: Missed) -> None:
    """A job that was away for years costs no walk through its ticks: counted, not enumerated."""
    for schedule in (Every(0.001), Cron("* * * * * *", "Europe/Berlin")):
        after = NOON - timedelta(days=3650)
        found = due(schedule, after, NOON, missed=missed, max_age=None, young=YOUNG)
        assert len(found.run) == (MOST_MISSED if missed == "all" else 1)
        assert found.run[-1] == NOON
        assert sum(skip.count for skip in found.skipped) + len(found.run) == schedule.count_between(after, NOON)


# -- the runs of earlier terms


@given(
    attempt=st.integers(1, 8),
    age=st.sampled_from([0.0, 59.0, 60.0, 60.000001, 1e6]),
    max_age=st.sampled_from([None, 60.0]),
    rerun_lost=st.booleans(),
)
def test_what_a_term_makes_of_an_inherited_run(
    attempt: int, age: float, max_age: float | None, rerun_lost: bool
) -> None:
    """One that ran is run again as a further attempt, five in all, if it may be and is not too old; else it is lost."""
    run = RunRecord(job="job", tick=NOON, attempt=attempt, token=6, holder="old", status="running")
    change = inherited(run, rerun_lost=rerun_lost, max_age=max_age, now=NOON + timedelta(seconds=age))
    late = max_age is not None and age > max_age
    assert (change.key, change.was) == (RunKey("job", NOON, attempt, 6), "running")
    if rerun_lost and not late and attempt < 5:
        assert (change.status, change.attempt, change.adopt, change.error) == ("queued", attempt + 1, True, None)
    else:
        assert (change.status, change.attempt, change.adopt) == ("lost", attempt, False)
        assert change.error == "lost with term 6"


def test_a_run_whose_turn_comes_too_late_is_skipped_or_lost_if_it_had_begun() -> None:
    """What was begun once is lost, as the attempt that it was."""
    change = too_late(RunKey("job", NOON, 1, 6), "more than 60 s late")
    assert (change.was, change.status, change.attempt, change.error) == ("queued", "skipped", 1, "more than 60 s late")
    change = too_late(RunKey("job", NOON, 3, 6), "more than 60 s late")
    assert (change.was, change.status, change.attempt) == ("queued", "lost", 2)
    assert change.error == "more than 60 s late to be run again"


def test_a_run_is_begun_five_times_at_most() -> None:
    """However often it is lost, a run is begun five times in all, and is lost then."""
    key, attempts = RunKey("job", NOON, 1, 6), [1]
    while (change := lost(key, rerun=True)).status == "queued":
        attempts.append(change.attempt)
        key = replace(key, attempt=change.attempt)
    assert attempts == [1, 2, 3, 4, 5]
    assert MAX_ATTEMPTS == 5
    assert change == Change(key=key, was="running", status="lost", attempt=5, error="lost with term 6")


@pytest.mark.parametrize("call", [lambda key: lost(key, rerun=True), lambda key: lost(key, rerun=False)])
def test_what_a_term_says_of_its_own_runs_is_conditional(call: Callable[[RunKey], Change]) -> None:
    """The end of a run has no effect on a row that has moved on, and refuses nobody else's: it is not required."""
    change = call(RunKey("job", NOON, 1, 6))
    assert (change.was, change.required, change.adopt) == ("running", False, False)
