"""Schedules that mean the same in other words are no change."""

from __future__ import annotations

from datetime import timedelta
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiolease._jobs.schedule import Cron, Every, Schedule, means_the_same, read_schedule, ticks_between
from tests.jobs.clock_changes import DAY, EPOCH, utc

SAME = [
    ("0 9 * * 1-5", "0 9 * * MON-FRI"),
    ("0 9 * * SUN", "0 9 * * 7"),
    ("0 9 * * 0", "0 9 * * 7"),
    ("*/15 * * * *", "0,15,30,45 * * * *"),
    ("0 0 * * *", "@daily"),
    ("0 0 * 1-12 *", "0 0 ? JAN-DEC 0-6"),
    ("0 0 1-31 * MON", "0 0 * * *"),
    ("0 22-2 * * *", "0 22,23,0,1,2 * * *"),
    ("5 4 * * MON#2", "5 4 * * 1#2"),
    ("5 4 * * FRIL", "5 4 ? * 5L"),
    ("0 0 9 * * *", "0 9 * * *"),
]
DIFFERENT = [
    ("0 9 * * 1-5", "0 9 * * 1-6"),
    ("0 0 * * MON", "0 0 1-31 * MON"),  # the one asks for both, the other for either
    ("0 0 1 * MON", "0 0 1 * *"),
    ("0 0 L * *", "0 0 LW * *"),
    ("0 0 L * *", "0 0 31 * *"),
    ("0 0 * * MON#1", "0 0 * * MON"),
    ("0 9 * * *", "5 9 * * *"),
    ("0 9 * 1 *", "0 9 * 2 *"),
    ("1 0 9 * * *", "0 9 * * *"),
]


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Australia/Lord_Howe"])
@pytest.mark.parametrize(("one", "other"), SAME)
def test_other_words_mean_the_same(one: str, other: str, zone: str) -> None:
    first, second = Cron(one, zone), Cron(other, zone)
    assert means_the_same(first, second, EPOCH + 55 * 365 * DAY)
    assert list(islice(ticks_between(first, utc("2025-01-01"), utc("2030-01-01")), 3000)) == list(
        islice(ticks_between(second, utc("2025-01-01"), utc("2030-01-01")), 3000)
    )


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_other_words_mean_something_else(one: str, other: str) -> None:
    assert not means_the_same(Cron(one), Cron(other), utc("2025-06-01"))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (Cron("0 9 * * *", "US/Eastern"), Cron("0 9 * * *", "America/New_York"), True),
        (Cron("0 9 * * *", "UTC"), Cron("0 9 * * *", "Etc/UTC"), True),
        (Cron("0 9 * * *", "UTC"), Cron("0 9 * * *", "Europe/London"), False),
        # The one is of fixed time, the other follows elapsed time: it matters where clocks change.
        (Cron("0 * * * *", "UTC"), Cron("0 0-23 * * *", "UTC"), True),
        (Cron("0 * * * *", "Europe/Berlin"), Cron("0 0-23 * * *", "Europe/Berlin"), False),
        (Every(60), Every(timedelta(minutes=1)), True),
        (Every(60), Every(61), False),
        (Every(86400), Cron("0 0 * * *"), False),  # the same ticks, but nobody has asked for it
    ],
)
def test_what_zones_and_grids_mean(one: Schedule, other: Schedule, same: bool) -> None:
    assert means_the_same(one, other, utc("2025-06-01")) is same


FIELDS = [
    st.sampled_from(["*", "0", "*/15", "0,30", "5-10"]),
    st.sampled_from(["*", "9", "0-23", "*/6", "22-2"]),
    st.sampled_from(["*", "1", "L", "LW", "1-31", "1-7", "?"]),
    st.sampled_from(["*", "1", "JAN-DEC", "NOV-FEB", "2"]),
    st.sampled_from(["*", "MON", "1-5", "MON-FRI", "0-6", "MON#2", "FRIL", "7", "SUN", "?"]),
]
EXPRESSIONS = st.tuples(*FIELDS).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(EXPRESSIONS, EXPRESSIONS, st.sampled_from(["UTC", "Europe/Berlin"]))
def test_what_means_the_same_has_the_same_ticks(one: str, other: str, zone: str) -> None:
    """Compared by what they mean, or tick by tick for four years: a leap year holds what is rare."""
    first, second = Cron(one, zone), Cron(other, zone)
    since, until = utc("2025-01-01"), utc("2029-01-01")
    if means_the_same(first, second, utc("2026-06-01")):
        assert first.count_between(since, until) == second.count_between(since, until)
        assert list(islice(ticks_between(first, since, until), 500)) == list(
            islice(ticks_between(second, since, until), 500)
        )


@given(st.one_of(EXPRESSIONS.map(Cron), st.integers(1, 10**9).map(lambda ms: Every(timedelta(milliseconds=ms)))))
def test_a_schedule_is_read_from_its_text(schedule: Schedule) -> None:
    found = read_schedule(schedule.expression, schedule.timezone)
    assert found is not None
    assert (found.expression, found.timezone) == (schedule.expression, schedule.timezone)


@pytest.mark.parametrize(
    "text", ["", "whenever", "every s", "every -1s", "cron", "cron 0 9 * *", "cron 0 9 * * 9", "every 0s"]
)
def test_a_text_that_is_no_schedule_is_not_read(text: str) -> None:
    assert read_schedule(text, "UTC") is None
    assert read_schedule("cron 0 9 * * *", "Nowhere/Atlantis") is None
