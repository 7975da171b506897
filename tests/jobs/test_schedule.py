"""When jobs fall due, compared with a walk through real time that knows nothing of how the schedules are made."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from io import BytesIO
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from aiolease._jobs import schedule as schedule_module
from aiolease._jobs.schedule import Cron, Every, Schedule, ticks_between
from aiolease._jobs.walls import Walls
from aiolease.errors import ConfigurationError, InvalidSchedule
from tests.jobs.clock_changes import CHANGES, DAY, EPOCH, HOUR, MICROSECOND, MINUTE, ZONES, utc


def wall_clock(instant: datetime, zone: str) -> datetime:
    return instant.astimezone(ZoneInfo(zone)).replace(tzinfo=None)


def names(field: str, value: int) -> bool:
    """Whether a field of a cron expression (a star, a star with a step, or a list) names a value."""
    if field.startswith("*"):
        return value % int(field[2:] or 1) == 0
    return str(value) in field.split(",")


def walk(expression: str, zone: str, after: datetime, until: datetime, step: timedelta = MINUTE) -> Iterator[datetime]:
    """The ticks by brute force: every instant is looked at, and every reading that the clock went past.

    Only the time of day may be other than stars; no change of the clock may lie just before `after`.
    """
    fields = expression.split()
    second, minute, hour, *_ = ["0", *fields] if len(fields) == 5 else fields

    def due(wall: datetime) -> bool:
        return names(second, wall.second) and names(minute, wall.minute) and names(hour, wall.hour)

    instant = after
    furthest = wall_clock(after, zone)
    while (instant := instant + step) <= until:
        wall = wall_clock(instant, zone)
        if minute.startswith("*") or hour.startswith("*"):
            if due(wall):
                yield instant
            continue
        passed = []
        while furthest < wall:
            furthest += step
            passed.append(due(furthest))
        if any(passed):
            yield instant


@pytest.mark.parametrize("expression", ["30 2 * * *", "0 0 * * *", "0,45 1,2,3 * * *", "*/15 * * * *", "20 */2 * * *"])
@pytest.mark.parametrize(("zone", "change"), CHANGES)
def test_ticks_around_a_change_of_the_clock(expression: str, zone: str, change: datetime) -> None:
    """Around a change of the clock the ticks are those that a walk through every real minute finds."""
    after, until = change - 26 * HOUR, change + 26 * HOUR
    cron, expected = Cron(expression, zone), list(walk(expression, zone, after, until))
    assert list(ticks_between(cron, after, until)) == expected
    assert cron.count_between(after, until) == len(expected)
    assert cron.latest_between(after, until) == expected[-1]


@pytest.mark.parametrize("before", [5400, 1800, 60, 0, -60])
@pytest.mark.parametrize("change", [-7200, -3600, -1800, 1800, 3600, 7200])
def test_a_change_at_the_turn_of_the_year(before: int, change: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that begins in one UTC year and ends in the next makes the same ticks as any other."""
    turn = utc("2020-01-01")
    at = struct.pack(">q", int(turn.timestamp()) - before)
    header = b"TZif2" + bytes(15)
    blocks = header + struct.pack(">6l", 0, 0, 0, 0, 1, 4) + struct.pack(">lBB", 0, 0, 0) + b"ONE\0"
    blocks += header + struct.pack(">6l", 0, 0, 0, 1, 2, 4) + at + b"\1"
    blocks += struct.pack(">lBBlBB", 0, 0, 0, change, 0, 0) + b"ONE\0\n\n"
    made_up = ZoneInfo.from_file(BytesIO(blocks), "made up")
    monkeypatch.setattr(schedule_module, "ZoneInfo", lambda _: made_up)
    monkeypatch.setitem(globals(), "ZoneInfo", lambda _: made_up)
    for expression in ("0,45 0,1,2,21,22,23 * * *", "20 * * * *"):
        after, until = turn - 12 * HOUR, turn + 12 * HOUR
        expected = list(walk(expression, "made up", after, until))
        assert list(ticks_between(Cron(expression, "made up"), after, until)) == expected
        assert Cron(expression, "made up").count_between(turn, until) == sum(tick > turn for tick in expected)


SPRING, AUTUMN = utc("2025-03-09T00:00"), utc("2025-11-02T00:00")  # the days in New York


@pytest.mark.parametrize(
    ("expression", "day", "ticks"),
    [
        # Fixed times: once. 02:30 is skipped, so the jump to 03:00 EDT stands for it; 01:30 is shown twice.
        ("30 2 * * *", SPRING, ["07:00"]),
        ("0 30 2 * * *", SPRING, ["07:00"]),
        ("15 30 2 * * *", SPRING, ["07:00"]),
        ("*/20 30 2 * * *", SPRING, ["07:00"]),
        ("0,30 2 * * *", SPRING, ["07:00"]),
        ("0 2,3 * * *", SPRING, ["07:00"]),
        ("30 2,3 * * *", SPRING, ["07:00", "07:30"]),
        ("0 3 * * *", SPRING, ["07:00"]),
        ("30 1 * * *", AUTUMN, ["05:30"]),
        ("0 30 1 * * *", AUTUMN, ["05:30"]),
        ("59 1 * * *", AUTUMN, ["05:59"]),
        ("0 1,2 * * *", AUTUMN, ["05:00", "07:00"]),
        # A star in the minute or the hour: elapsed time.
        ("*/30 2 * * *", SPRING, []),
        ("30 1-3/1 * * *", SPRING, ["06:30", "07:00", "07:30"]),
        ("30 */1 * * *", SPRING, [f"{hour:02}:30" for hour in range(5, 24)]),
        ("*/30 1 * * *", AUTUMN, ["05:00", "05:30", "06:00", "06:30"]),
        ("0 * * * *", AUTUMN, [f"{hour:02}:00" for hour in range(4, 24)]),
        ("0 0 * * * *", AUTUMN, [f"{hour:02}:00" for hour in range(4, 24)]),
    ],
)
def test_fixed_times_run_once_and_others_follow_elapsed_time(expression: str, day: datetime, ticks: list[str]) -> None:
    """On both changes a fixed time is due once, five fields or six; any other schedule follows elapsed time."""
    midnight = 5 if day == SPRING else 4
    found = ticks_between(Cron(expression, "America/New_York"), day + midnight * HOUR - MICROSECOND, day + 24 * HOUR)
    assert [tick.strftime("%H:%M") for tick in found if tick < day + DAY] == ticks


def test_a_skipped_day_is_made_up_for_at_once() -> None:
    """In Apia, which had no 30th of December 2011, the run of that day is due as the 31st begins, and once."""
    ticks = ticks_between(Cron("0 9 30 12 *", "Pacific/Apia"), utc("2011-01-01"), utc("2012-01-01"))
    assert [wall_clock(tick, "Pacific/Apia").isoformat() for tick in ticks] == ["2011-12-31T00:00:00"]


@pytest.mark.parametrize("expression", ["30 1 * * *", "0 30 1 * * *", "*/30 1 * * *"])
@pytest.mark.parametrize(("zone", "change"), CHANGES)
def test_a_start_inside_a_repeated_hour(expression: str, zone: str, change: datetime) -> None:
    """From every ten minutes around a change, inside a repeated hour too, the next tick is that of the one sequence."""
    cron, ticks = Cron(expression, zone), list(walk(expression, zone, change - 26 * HOUR, change + 52 * HOUR))
    for start in (change + 10 * MINUTE * number for number in range(-12, 25)):
        assert cron.next_after(start) == min(tick for tick in ticks if tick > start)


star = st.sampled_from(["*", "*/5", "*/7", "*/15"])
minutes = st.lists(st.integers(0, 59), min_size=1, max_size=3, unique=True).map(lambda them: ",".join(map(str, them)))
hours = st.lists(st.integers(0, 4) | st.integers(0, 23), min_size=1, max_size=3, unique=True).map(
    lambda them: ",".join(map(str, them))
)


@given(change=st.sampled_from(CHANGES), minute=star | minutes, hour=star | hours, start=st.integers(-180, 240))
@settings(max_examples=60, deadline=None)
def test_any_time_of_day_around_any_change(change: tuple[str, datetime], minute: str, hour: str, start: int) -> None:
    """Whatever the time of day, the ticks around a change are those that a walk through every real minute finds."""
    zone, moment = change
    expression = f"{minute} {hour} * * *"
    begin, after, until = moment - 6 * HOUR, moment + start * MINUTE, moment + 8 * HOUR
    expected = [tick for tick in walk(expression, zone, begin, until) if tick > after]
    cron = Cron(expression, zone)
    assert list(ticks_between(cron, after, until)) == expected
    assert cron.count_between(after, until) == len(expected)
    assert cron.latest_between(after, until) == (expected[-1] if expected else None)


@given(
    change=st.sampled_from(CHANGES),
    second=st.sampled_from(["15", "0,45", "*/30"]),
    minute=star | minutes,
    hour=star | hours,
)
@settings(max_examples=25, deadline=None)
def test_seconds_around_any_change(change: tuple[str, datetime], second: str, minute: str, hour: str) -> None:
    """With six fields, too, the ticks around a change are those that a walk through real time finds."""
    zone, moment = change
    expression = f"{second} {minute} {hour} * * *"
    after, until = moment - 2 * HOUR, moment + 4 * HOUR
    expected = list(walk(expression, zone, after, until, step=timedelta(seconds=15)))
    assert list(ticks_between(Cron(expression, zone), after, until)) == expected


days = st.sampled_from(
    ["* * *", "* * *", "1 * *", "L * *", "LW * *", "29 2 *", "13 * FRI", "* * MON-FRI", "* 3,10 7#1", "* * 5L"]
)
near_a_change = st.builds(
    lambda change, offset: change[1] + offset,
    st.sampled_from(CHANGES),
    st.timedeltas(timedelta(hours=-30), timedelta(hours=30)) | st.timedeltas(timedelta(hours=-2), timedelta(hours=2)),
)
anywhen = st.datetimes(datetime(1971, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 Hypothesis wants these naive
moments = near_a_change | anywhen
times = st.builds(
    " ".join, st.tuples(minutes, hours) | st.tuples(star, hours) | st.tuples(minutes, star) | st.tuples(star, star)
)
expressions = st.builds(
    lambda second, time, day: f"{second} {time} {day}".strip(), st.sampled_from(["", "0", "30", "*/20"]), times, days
)
crons = st.builds(Cron, expressions, st.sampled_from(ZONES))
intervals = (
    st.floats(0.001, 1e7) | st.integers(1, 10**9) | st.timedeltas(timedelta(milliseconds=1), timedelta(days=36_525))
)
schedules: st.SearchStrategy[Schedule] = crons | st.builds(Every, intervals)


@given(schedule=schedules, moment=moments)
@settings(max_examples=150, deadline=None)
def test_ticks_rise_and_are_never_past(schedule: Schedule, moment: datetime) -> None:
    """A tick is strictly after the moment that was asked about, in UTC, and ticks rise strictly."""
    ticks = [moment, *islice(ticks_between(schedule, moment, utc("9000-01-01")), 5)]
    assert len(ticks) > 1
    assert all(earlier < later for earlier, later in pairwise(ticks))
    assert all(tick.tzinfo is UTC for tick in ticks)


@given(schedule=schedules, moment=moments, data=st.data())
@settings(max_examples=150, deadline=None)
def test_the_same_ticks_from_wherever_one_starts(schedule: Schedule, moment: datetime, data: st.DataObject) -> None:
    """Between two neighbouring ticks every moment has the same next tick and the same latest one."""
    first = schedule.next_after(moment)
    assert first is not None
    second = schedule.next_after(first)
    assert second is not None
    between = first + data.draw(st.integers(0, (second - first) // MICROSECOND - 1)) * MICROSECOND
    for start in (between, second - MICROSECOND):
        assert schedule.next_after(start) == second
        assert schedule.latest_between(first - MICROSECOND, start) == first
        assert schedule.latest_between(first, start) is None
        assert schedule.count_between(first, start) == 0
        assert schedule.count_between(moment, start) == 1
    assert schedule.count_between(moment, second) == 2
    assert schedule.latest_between(moment, second) == second
    assert schedule.next_after(between.astimezone(timezone(5 * HOUR))) == second


@given(schedule=crons, after=moments, span=st.timedeltas(timedelta(0), timedelta(days=400)))
@settings(max_examples=60, deadline=None)
def test_ranges_agree_with_the_ticks_one_by_one(schedule: Schedule, after: datetime, span: timedelta) -> None:
    """What a range counts, and calls its latest, is what walking from tick to tick finds."""
    ticks = list(islice(ticks_between(schedule, after, after + span), 500))
    until = ticks[-1] if len(ticks) == 500 else after + span
    assert schedule.count_between(after, until) == len(ticks)
    assert schedule.latest_between(after, until) == (ticks[-1] if ticks else None)


def test_the_same_question_in_a_row_is_reckoned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader asks three times for the tick after one moment. Another moment gets an answer of its own."""
    cron, asked = Cron("*/5 * * * *"), 0
    first = Walls.first

    def counted(walls: Walls, low: datetime, high: datetime) -> datetime | None:
        nonlocal asked
        asked += 1
        return first(walls, low, high)

    monkeypatch.setattr(Walls, "first", counted)
    noon = utc("2026-01-01 12:00:00")
    for moment in noon, noon, noon, noon + 5 * MINUTE, noon:
        assert cron.next_after(moment) == moment + 5 * MINUTE
    assert asked == 3


@pytest.mark.parametrize("schedule", [Every(1), Cron("* * * * * *", "Europe/London")])
def test_months_of_seconds_are_counted_without_a_walk(schedule: Schedule) -> None:
    """An empty or reversed range has no tick, and years of ticks every second are counted, not walked."""
    after, until = utc("2020-01-01"), utc("2026-01-01")
    assert schedule.count_between(after, until) == (until - after).total_seconds()
    assert schedule.latest_between(after, until) == until
    assert list(islice(ticks_between(schedule, after, until), 2)) == [
        after + 1000 * timedelta(milliseconds=n) for n in (1, 2)
    ]
    for start, end in ((after, after), (until, after)):
        assert schedule.count_between(start, end) == 0
        assert schedule.latest_between(start, end) is None
        assert list(ticks_between(schedule, start, end)) == []


@given(minute=star | minutes, hour=star | hours, day=days, zone=st.sampled_from(ZONES), moment=moments)
@settings(max_examples=60, deadline=None)
def test_a_second_of_zero_changes_nothing(minute: str, hour: str, day: str, zone: str, moment: datetime) -> None:
    """``0 m h …`` is ``m h …``: the same canonical text, the same ticks."""
    five, six = Cron(f"{minute} {hour} {day}", zone), Cron(f"0 {minute} {hour} {day}", zone)
    assert five.expression == six.expression
    far = moment + 3650 * DAY
    assert list(islice(ticks_between(five, moment, far), 4)) == list(islice(ticks_between(six, moment, far), 4))


lists = st.sampled_from(["*", "*/7", "3", "1,4", "2-6", "2-6/3", "5/2", "1,3-5"])


@given(
    fields=st.tuples(
        st.sampled_from(["", "0", "*/25", "7"]), lists, lists, lists | st.just("31"), lists, lists | st.just("SUN")
    ),
    moment=moments,
)
@settings(max_examples=100, deadline=None)
def test_cronsim_says_what_an_expression_means(fields: tuple[str, ...], moment: datetime) -> None:
    """In UTC, where no clock changes, the ticks are cronsim's own."""
    expression = " ".join(fields).strip()
    try:
        cron = Cron(expression, "UTC")
    except InvalidSchedule as error:
        assert error.field == "day of month"  # noqa: PT017 some drawn days do not exist
        return
    ticks = ticks_between(cron, moment, moment + 3650 * DAY)
    assert all(tick == expected for tick, expected in zip(islice(ticks, 5), CronSim(expression, moment), strict=False))


@pytest.mark.parametrize(
    ("name", "expression"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        (" @Annually ", "0 0 1 1 *"),
    ],
)
def test_names(name: str, expression: str) -> None:
    """A name stands for its expression, in the ledger too."""
    assert Cron(name, "Europe/London").expression == f"cron {expression}" == Cron(expression).expression


@pytest.mark.parametrize(
    ("schedule", "expression", "zone"),
    [
        (Every(30), "every 30s", ""),
        (Every(0.1), "every 0.1s", ""),
        (Every(1 / 3), "every 0.333333s", ""),
        (Every(timedelta(hours=1)), "every 3600s", ""),
        (Every(timedelta(minutes=1, microseconds=20)), "every 60.00002s", ""),
        (Cron("0  9 *\t* mon-fri"), "cron 0 9 * * MON-FRI", "UTC"),
        (Cron("00 0 9 * * *", "Asia/Kathmandu"), "cron 0 9 * * *", "Asia/Kathmandu"),
        (Cron("30 0 9 * * *", "Asia/Kathmandu"), "cron 30 0 9 * * *", "Asia/Kathmandu"),
    ],
)
def test_canonical_text(schedule: Schedule, expression: str, zone: str) -> None:
    """Schedules written differently that have the same ticks have one text, which the ledger compares."""
    assert (schedule.expression, schedule.timezone) == (expression, zone)


@given(interval=intervals, moment=moments)
def test_every_ticks_on_a_grid_from_the_epoch(interval: float | timedelta, moment: datetime) -> None:
    """The ticks of an interval are whole multiples of it since the epoch, however long ago that is."""
    every = Every(interval)
    tick = every.next_after(moment)
    assert tick is not None
    assert (tick - EPOCH) % every.interval == timedelta(0)
    assert moment < tick <= moment + every.interval
    assert (
        abs(
            every.interval.total_seconds()
            - (interval / timedelta(seconds=1) if isinstance(interval, timedelta) else interval)
        )
        < 1e-6
    )


def test_a_tenth_of_a_second_does_not_drift() -> None:
    """Ten ticks of a tenth of a second are a second, fifty years after the epoch too."""
    start = utc("2025-06-01")
    ticks = list(ticks_between(Every(0.1), start, start + HOUR))
    assert len(ticks) == 36_000
    assert ticks[9::10] == [start + timedelta(seconds=second) for second in range(1, 3601)]


def test_ends_of_time() -> None:
    """Where dates end, schedules end: there is no next tick, and no error."""
    last = datetime.max.replace(tzinfo=UTC)
    assert Every(30).next_after(last) is None
    assert Cron("0 9 * * *").next_after(last) is None
    assert Cron("0 9 * * *", "America/New_York").next_after(datetime.min.replace(tzinfo=UTC)) == utc("1970-01-01T14:00")
    assert Cron("@yearly").latest_between(last - 3 * 366 * DAY, last) == utc("9997-01-01")


@pytest.mark.parametrize("schedule", [Every(30), Cron("0 9 * * *")])
def test_a_moment_without_a_zone_is_refused(schedule: Schedule) -> None:
    """A naive moment is an error, not a guess."""
    with pytest.raises(TypeError):
        schedule.next_after(utc("2025-01-01").replace(tzinfo=None))


@pytest.mark.parametrize(
    "interval",
    [
        0,
        -1,
        0.0009,
        timedelta(0),
        timedelta(days=-1),
        timedelta(days=36_526),
        1e300,
        math.nan,
        math.inf,
        -math.inf,
        True,
        "30",
        None,
    ],
)
def test_refused_intervals(interval: object) -> None:
    """An interval that is no positive, finite time of sensible length is refused by name and value."""
    with pytest.raises(InvalidSchedule) as caught:
        Every(interval)  # type: ignore[arg-type]
    assert caught.value.field == "interval"
    assert caught.value.value is interval
    assert repr(interval) in str(caught.value)


@pytest.mark.parametrize(
    ("expression", "field", "text"),
    [
        ("", "expression", ""),
        ("every day", "expression", "every day"),
        ("* * * *", "expression", "* * * *"),
        ("* * * * * * *", "expression", "* * * * * * *"),
        ("@reboot", "expression", "@reboot"),
        ("@daily @daily", "expression", "@daily @daily"),
        ("0," * 96 + "0 * * * *", "expression", "0," * 96 + "0 * * * *"),
        ("60 * * * * *", "second", "60"),
        ("60 * * * *", "minute", "60"),
        ("*/0 * * * *", "minute", "*/0"),
        ("*/90 * * * *", "minute", "*/90"),
        ("1,,2 * * * *", "minute", "1,,2"),
        ("-5 * * * *", "minute", "-5"),
        ("\u0663 * * * *", "minute", "\u0663"),
        ("9" * 150 + " * * * *", "minute", "9" * 150),
        ("0 24 * * *", "hour", "24"),
        ("0 0 */25 * * *", "hour", "*/25"),
        ("0 0 0 * *", "day of month", "0"),
        ("0 0 32 * *", "day of month", "32"),
        ("0 0 1 13 *", "month", "13"),
        ("0 0 1 foo *", "month", "FOO"),
        ("0 0 * * 8", "day of week", "8"),
        ("0 0 * * MON#6", "day of week", "MON#6"),
        ("0 0 * * noday", "day of week", "NODAY"),
        # Each field is fine, together they never fire.
        ("0 0 30 2 *", "day of month", "30"),
        ("0 0 31 4,6,9,11 *", "day of month", "31"),
        ("0 0 LW * */6", "day of month", "LW"),
    ],
)
def test_refused_expressions(expression: str, field: str, text: str) -> None:
    """An expression that means nothing, or can never fire, is refused by the field at fault and its text."""
    with pytest.raises(InvalidSchedule) as caught:
        Cron(expression)
    assert (caught.value.field, caught.value.value) == (field, text)
    assert isinstance(caught.value, ConfigurationError)


def test_what_the_clock_always_skips_can_never_fire() -> None:
    """An expression that names only readings that its zone skips every year is refused, there and only there."""
    expression = "*/15 2 * 3 SUN#2"
    with pytest.raises(InvalidSchedule, match="America/New_York skip") as caught:
        Cron(expression, "America/New_York")
    assert (caught.value.field, caught.value.value) == ("hour", "2")
    assert Cron(expression, "Europe/London").next_after(utc("2025-01-01")) == utc("2025-03-09T02:00")


@pytest.mark.parametrize(
    ("expression", "tick"),
    [
        ("0 0 29 2 *", "2096-02-29"),
        ("0 0 29 2 */7", "2032-02-29"),
        ("0 0 */28 2 MON", "2044-02-29"),
        ("0 0 * 2 SUN#5", "2032-02-29"),
        ("0 0 30 2 MON", "2026-02-02"),  # a day of month or a day of week: the second comes
    ],
)
def test_what_is_rare_is_not_never(expression: str, tick: str) -> None:
    """An expression that fires, however seldom, is taken; across the year 2100, which has no leap day, too."""
    cron = Cron(expression)
    assert utc(tick) in set(ticks_between(cron, utc("2026-01-01"), utc("2097-01-01")))
    assert cron.next_after(utc("2096-03-01")) is not None


@pytest.mark.parametrize(
    "zone", ["", "Mars/Base", "America", "../UTC", "/etc/localtime", "a\0b", "x" * 300, "localtime", None]
)
def test_refused_zones(zone: str) -> None:
    """A zone that the database does not know, or that is another on every machine, is refused by name."""
    with pytest.raises(InvalidSchedule) as caught:
        Cron("0 9 * * *", zone)
    assert (caught.value.field, caught.value.value) == ("timezone", zone)


def test_a_machine_without_zones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a time zone database UTC works, and the error for another zone says which package to install."""
    monkeypatch.setattr(schedule_module, "available_timezones", set)
    monkeypatch.setattr(schedule_module, "ZoneInfo", ZoneInfo("UTC").no_cache)
    assert Cron("0 9 * * *", "UTC").next_after(EPOCH) == utc("1970-01-01T09:00")
    with pytest.raises(InvalidSchedule, match="tzdata"):
        Cron("0 9 * * *", "Mars/Base")


@given(expression=st.text(max_size=30) | st.text("0123456789*/,-#LWMON ", max_size=30).map("* ".__add__))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_schedule_or_refused(expression: str) -> None:
    """Whatever is written, it is a schedule or an `InvalidSchedule`, never another error."""
    try:
        cron = Cron(expression)
    except InvalidSchedule:
        return
    assert cron.next_after(EPOCH) is not None
