"""What a schedule means, in words; and moments and times for people. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim

from aiolease._jobs.cron import parse, plain, split
from aiolease._jobs.schedule import Every, Schedule

_DAYS = "Sunday Monday Tuesday Wednesday Thursday Friday Saturday".split()
_MONTHS = "January February March April May June July August September October November December".split()
_NTH = {1: "first", 2: "second", 3: "third", 4: "fourth", 5: "fifth", CronSim.LAST: "last"}
_UNITS = ((timedelta(days=1), "day"), (timedelta(hours=1), "hour"), (timedelta(minutes=1), "minute"))
_FEW = 6
"""So many times of a day are told one by one."""


def span(seconds: float) -> str:
    """A length of time, as coarse as people need it."""
    seconds = max(seconds, 0.0)
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


def tick_text(tick: datetime) -> str:
    """A tick in UTC; most fall on a full second, those that were triggered do not."""
    return f"{tick:%Y-%m-%d %H:%M:%S}" + (f".{tick.microsecond // 1000:03}" if tick.microsecond else "")


def moment_text(moment: datetime, timezone: str = "") -> str:
    """A moment in UTC, and beside it in another zone, if that is one."""
    text = f"{tick_text(moment)} UTC"
    beside = local_text(moment, timezone)
    return f"{text} ({beside} {timezone})" if beside else text


def local_text(moment: datetime, timezone: str) -> str:
    """The reading of a zone's clock; with the weekday if its date is another than in UTC. Empty if it shows UTC."""
    zone = zone_of(timezone)
    if zone is None or timezone == "UTC":
        return ""
    local = moment.astimezone(zone)
    day = "" if local.date() == moment.astimezone(UTC).date() else f"{local:%a} "
    return f"{day}{local:%H:%M}" + (f":{local:%S}" if local.second else "")


@lru_cache(maxsize=64)
def zone_of(timezone: str) -> ZoneInfo | None:
    """The zone of that name; ``None`` if there is none."""
    try:
        return ZoneInfo(timezone) if timezone else None
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def one_line(text: str, most: int = 120) -> str:
    """An error in one line, cut if it is long: it may be a whole statement, or have what a terminal obeys."""
    said = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return said if len(said) <= most else f"{said[:most]}…"


def in_words(schedule: Schedule) -> str:
    """What a schedule means: ``at 09:00, Monday to Friday, by the clock of America/New_York``."""
    if isinstance(schedule, Every):
        return _interval(schedule.interval)
    fields = split(schedule.expression.removeprefix("cron "))
    parsed = parse(plain(fields))
    seconds, minutes, hours = (sorted(values) for values in (parsed.seconds, parsed.minutes, parsed.hours))
    days, months = _days(parsed), _months(parsed.months)
    times = _times(seconds, minutes, hours)
    often = len(hours) == 24 and not months and days == "every day"
    parts = [times, *([] if often else [days]), *([months] if months else [])]
    zone = "UTC" if schedule.timezone == "UTC" else f"the clock of {schedule.timezone}"
    return f"{', '.join(parts)}, by {zone}"


def _interval(interval: timedelta) -> str:
    for size, unit in _UNITS:
        if not interval % size:
            count = interval // size
            at = ", at 00:00 UTC" if unit == "day" else ", on the hour" if interval == size and unit == "hour" else ""
            return f"every {unit}{at}" if count == 1 else f"every {count} {unit}s{at}"
    seconds = interval.total_seconds()
    return "every second" if seconds == 1 else f"every {seconds:g} seconds"


def _times(seconds: Sequence[int], minutes: Sequence[int], hours: Sequence[int]) -> str:
    """The times of a day."""
    if len(hours) < 24 and len(hours) * len(minutes) * len(seconds) <= _FEW:
        clock = [
            f"{hour:02}:{minute:02}" + (f":{second:02}" if list(seconds) != [0] else "")
            for hour in hours
            for minute in minutes
            for second in seconds
        ]
        return f"at {joined(clock)}"
    within = _of_the_hour(minutes)
    if list(seconds) != [0]:
        fine = _steps(seconds, 60, "second") or f"at second {joined(map(str, seconds))}"
        within = fine if len(minutes) == 60 else f"{fine}, {within}"
    if len(hours) == 24:
        return within if _steps(minutes, 60, "minute") else f"every hour {within}"
    if every := _steps(hours, 24, "hour"):
        return f"{every} {within}" if not _steps(minutes, 60, "minute") else f"{within} of {_listed(hours, 'hour')}"
    if _in_a_row(hours):
        if len(minutes) == 1 and list(seconds) == [0]:
            return f"every hour from {hours[0]:02}:{minutes[0]:02} to {hours[-1]:02}:{minutes[0]:02}"
        return f"{within} from {hours[0]:02}:00 to {hours[-1]:02}:59"
    return f"{within} of {_listed(hours, 'hour')}"


def _of_the_hour(minutes: Sequence[int]) -> str:
    if steps := _steps(minutes, 60, "minute"):
        return steps
    return "on the hour" if list(minutes) == [0] else f"at {_listed(minutes, 'minute')}"


def _steps(values: Sequence[int], size: int, unit: str) -> str:
    """Such as ``every 5 minutes``; empty if the values are no such steps."""
    step = size // len(values)
    if len(values) == 1 or list(values) != list(range(0, size, step)):
        return ""
    return f"every {unit}" if step == 1 else f"every {step} {unit}s"


def _listed(values: Sequence[int], unit: str) -> str:
    return f"{unit}{'s' if len(values) > 1 else ''} {_ranges(values, str)}"


def _days(parsed: CronSim) -> str:
    weekdays = {0 if day == 7 else day for day in parsed.weekdays if isinstance(day, int)}
    nth = sorted(day for day in parsed.weekdays if isinstance(day, tuple))
    any_day, any_weekday = set(parsed.days) >= set(range(1, 32)), weekdays >= set(range(7))
    if (any_day and any_weekday) or (not parsed.day_and and (any_day or any_weekday)):
        return "every day"
    dates = _dates(parsed.days)
    names = [_ranges([day or 7 for day in weekdays], lambda day: _DAYS[day % 7])] if weekdays else []
    names += [f"the {_NTH[count]} {_DAYS[day % 7]} of the month" for day, count in nth]
    on = joined(names)
    if any_day or any_weekday:
        return f"on {dates}" if any_weekday else (f"on {on}" if nth or " to " not in on else on)
    return f"on {dates} if it is {on}" if parsed.day_and else f"on {dates} and on {on}"


def _dates(days: Collection[int]) -> str:
    said = (
        [f"day{'s' if len(numbers) > 1 else ''} {_ranges(numbers, str)} of the month"]
        if (numbers := sorted(day for day in days if day > 0))
        else []
    )
    said += ["the last day of the month"] if CronSim.LAST in days else []
    said += ["the last weekday of the month"] if CronSim.LAST_WEEKDAY in days else []
    return joined(said)


def _months(months: Collection[int]) -> str:
    return "" if len(months) == 12 else f"in {_ranges(sorted(months), lambda month: _MONTHS[month - 1])}"


def _ranges(values: Iterable[int], told: Callable[[int], str]) -> str:
    """Values as people list them: three or more in a row are a range."""
    rows: list[list[int]] = []
    for value in sorted(values):
        if rows and value == rows[-1][-1] + 1:
            rows[-1].append(value)
        else:
            rows.append([value])
    said = []
    for row in rows:
        said += [f"{told(row[0])} to {told(row[-1])}"] if len(row) > 2 else [told(value) for value in row]
    return joined(said)


def _in_a_row(values: Sequence[int]) -> bool:
    return len(values) > 1 and values[-1] - values[0] == len(values) - 1


def joined(texts: Iterable[str]) -> str:
    """Texts as a list in a sentence."""
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last
