"""What a cron expression says, compared with a reading of its fields that is spelt out here."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolease import InvalidSchedule
from aiolease._jobs.schedule import Cron, Every, ticks_between

START = datetime(2026, 1, 1, tzinfo=UTC)  # a Thursday
MONTHS = "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC".split()
DAYS = "SUN MON TUE WED THU FRI SAT".split()


def times(expression: str, days: int = 1, start: datetime = START) -> list[str]:
    ticks = ticks_between(Cron(expression), start - timedelta(seconds=1), start + timedelta(days=days, seconds=-1))
    return [f"{tick:%H:%M}" for tick in ticks]


def dates(expression: str, days: int = 31, start: datetime = START) -> list[str]:
    ticks = ticks_between(Cron(expression), start - timedelta(seconds=1), start + timedelta(days=days, seconds=-1))
    return [f"{tick:%d.%m.}" for tick in ticks]


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("5-5/10 3 * * *", ["03:05"]),
        ("5/20 3 * * *", ["03:05", "03:25", "03:45"]),
        ("0 22-2 * * *", ["00:00", "01:00", "02:00", "22:00", "23:00"]),
        ("0 22-4/2 * * *", ["00:00", "02:00", "04:00", "22:00"]),
        ("58-1 0 * * *", ["00:00", "00:01", "00:58", "00:59"]),
        ("0 9 ? * *", ["09:00"]),
        ("0 9 * * ?", ["09:00"]),
    ],
)
def test_the_times_of_a_day(expression: str, wanted: list[str]) -> None:
    """Ranges may wrap; the step of a range of one value has no effect; `?` is every day."""
    assert times(expression) == wanted


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("0 0 * * FRI-MON", "02 03 04 05 09 10 11 12 16 17 18 19 23 24 25 26 30 31"),
        ("0 0 * * 5-1", "02 03 04 05 09 10 11 12 16 17 18 19 23 24 25 26 30 31"),
        ("0 0 * * sat-sun", "03 04 10 11 17 18 24 25 31"),
        ("0 0 * * 7-1", "04 05 11 12 18 19 25 26"),
        ("0 0 * * FRI-TUE/2", "02 04 06 09 11 13 16 18 20 23 25 27 30"),
        ("0 0 * * 3-3/2", "07 14 21 28"),
        ("0 0 30-2 * *", "01 02 30 31"),
        ("0 0 ? * MON", "05 12 19 26"),
        ("0 0 * * FRIL", "30"),
        ("0 0 * * 5L", "30"),
        ("0 0 * * MONL,3L", "26 28"),
        ("0 0 L * *", "31"),
        ("0 0 LW * *", "30"),
        ("0 0 * * MON#2", "12"),
        # The two fields of days: either of them, unless one begins with a star. So this is no first Monday of a month:
        ("0 0 1-7 * MON", "01 02 03 04 05 06 07 12 19 26"),
        ("0 0 */1 * MON", "05 12 19 26"),
        ("0 0 * * MON#1", "05"),
    ],
)
def test_the_days_of_a_month(expression: str, wanted: str) -> None:
    """January 2026 begins on a Thursday."""
    assert [day[:2] for day in dates(expression)] == wanted.split()


def test_months_wrap() -> None:
    """A range of months may go over the turn of the year."""
    assert dates("0 0 1 NOV-FEB *", 365) == ["01.01.", "01.02.", "01.11.", "01.12."]
    assert dates("0 0 1 11-2/2 *", 365) == ["01.01.", "01.11."]


@pytest.mark.parametrize(
    ("expression", "instead"),
    [
        ("@every 5m", r"every\(300\)"),
        ("@every 1h30m", r"every\(5400\)"),
        ("@every soon", "every"),
        ("0 9 * * * * 2027", "a year is not known"),
        ("TZ=Europe/London 0 9 * * *", "timezone='Europe/London'"),
        ("CRON_TZ=Asia/Tokyo 0 9 * * *", "timezone='Asia/Tokyo'"),
        ("0 9 15W * *", "LW is the last weekday"),
        ("H 9 * * *", "write a number"),
        ("H/15 * * * *", "write a number"),
        ("0~30 9 * * *", "write a number"),
        ("0 9 * * *%x", "command"),
        ("0 9 L/2 * *", "takes no step"),
        ("0 9 LW/3 * *", "takes no step"),
        ("0 9 1,L/2 * *", "takes no step"),
        ("? 9 * * *", "stands alone"),
        ("0 9 ?/2 * *", "stands alone"),
        ("0 9 * ? *", "stands alone"),
        ("0 9 L-3 * *", "1-31, L or LW"),
        ("0 9 * * XXXL", "1L"),
        ("0 9 * * MON#2/2", "MON#2"),
        ("0 25-3 * * *", "0-23"),
    ],
)
def test_what_is_not_known_is_refused_with_what_to_write(expression: str, instead: str) -> None:
    """Syntax of other programs is not guessed at, nor is a part of it ignored."""
    with pytest.raises(InvalidSchedule, match=instead):
        Cron(expression)


def named(value: int, names: list[str], low: int) -> st.SearchStrategy[str]:
    return st.sampled_from([str(value), names[value - low], names[value - low].lower()])


@st.composite
def fields(draw: st.DrawFn, low: int, high: int, names: list[str] | None = None) -> tuple[str, set[int]]:
    """A field of one to three terms, and the values that it names."""
    terms, values = [], set[int]()
    for _ in range(draw(st.integers(1, 3))):
        start, end = draw(st.integers(low, high)), draw(st.integers(low, high))
        step = draw(st.none() | st.integers(1, high - low + 1))
        first, last = (draw(named(value, names, low)) if names else str(value) for value in (start, end))
        kind = draw(st.sampled_from(["value", "range", "star", "from"]))
        if kind == "value":
            terms.append(first)
            values.add(start)
            continue
        if kind == "from" and step:
            sunday = names is DAYS  # which is 7, too
            term, named_values = first, [*range(start, high + 1 + sunday)]
        elif kind == "star" and not terms:
            term, named_values = "*", [*range(low, high + 1)]
        else:
            wrapped = [*range(start, high + 1), *range(low, end + 1)]
            term, named_values = f"{first}-{last}", [*range(start, end + 1)] if start <= end else wrapped
        terms.append(f"{term}/{step}" if step else term)
        values |= {value % 7 if names is DAYS else value for value in named_values[:: step or 1]}
    return ",".join(terms), values


@given(fields(0, 59), fields(0, 23))
def test_minutes_and_hours_are_those_named(minute: tuple[str, set[int]], hour: tuple[str, set[int]]) -> None:
    """Every reading of a day is a tick if, and only if, its minute and hour are named."""
    wanted = [f"{h:02}:{m:02}" for h in range(24) for m in range(60) if h in hour[1] and m in minute[1]]
    assert times(f"{minute[0]} {hour[0]} * * *") == wanted


@given(fields(1, 31), fields(1, 12, MONTHS), fields(0, 6, DAYS))
def test_days_are_those_named(
    day: tuple[str, set[int]], month: tuple[str, set[int]], weekday: tuple[str, set[int]]
) -> None:
    """Day of month and day of week are both asked for if one begins with a star, else either is enough."""
    both = day[0].startswith("*") or weekday[0].startswith("*")
    wanted = []
    for number in range(4 * 366):
        at = date(2026, 1, 1) + timedelta(days=number)
        asked = at.day in day[1], at.isoweekday() % 7 in weekday[1]
        if at.month in month[1] and (all(asked) if both else any(asked)):
            wanted.append(f"{at:%d.%m.}")
    expression = f"0 0 {day[0]} {month[0]} {weekday[0]}"
    try:
        found = dates(expression, 4 * 366)
    except InvalidSchedule:  # no such day, such as the 30th of February
        found = []
    assert found == wanted


def on(expression: str, day: str, zone: str = "Europe/Berlin") -> list[str]:
    """The ticks of a day of that zone's wall clock, as it shows them."""
    local = ZoneInfo(zone)
    start = datetime.fromisoformat(day).replace(tzinfo=local)
    end = (start + timedelta(days=1)).astimezone(UTC)
    after = start.astimezone(UTC) - timedelta(seconds=1)
    ticks = ticks_between(Cron(expression, zone), after, end - timedelta(seconds=1))
    return [f"{tick.astimezone(local):%H:%M}" for tick in ticks]


FORWARD, BACK = "2026-03-29", "2026-10-25"  # in Berlin 2:00 becomes 3:00, and 3:00 becomes 2:00


def test_what_the_documentation_says_of_the_days_on_which_the_clocks_change() -> None:
    """A field that begins with a star decides whether a job is of fixed time."""
    assert on("30 2 * * *", FORWARD) == ["03:00"]
    assert on("30 2 * * *", BACK) == ["02:30"]
    assert len(on("0 0-23 * * *", FORWARD)) == 23
    assert len(on("0 0-23 * * *", BACK)) == 24
    assert len(on("0 * * * *", BACK)) == 25
    assert on("*/15 2 * * *", FORWARD) == []
    assert on("*/15 2 * * *", BACK) == ["02:00", "02:15", "02:30", "02:45"] * 2
    assert on("0,15,30,45 2 * * *", FORWARD) == ["03:00"]
    assert on("0,15,30,45 2 * * *", BACK) == ["02:00", "02:15", "02:30", "02:45"]


def test_what_the_documentation_says_of_intervals() -> None:
    """A third of a second is rounded to whole microseconds, and a grid of weeks ticks on Thursdays."""
    assert Every(1 / 3).interval == timedelta(microseconds=333_333)
    tick = Every(timedelta(weeks=1)).next_after(START + timedelta(days=1))
    assert tick is not None
    assert f"{tick:%A %H:%M}" == "Thursday 00:00"
