"""What a cron expression says: its fields, rewritten so that cronsim reads them as people mean them. Pure.

cronsim knows lists, rising ranges, steps, ``L``, ``LW``, ``MON#2`` and ``1L``. Beside them `plain` understands ranges
that wrap (``FRI-MON``, ``22-2``), ``?`` in the two fields of days, and ``FRIL``. What other programs write is refused
with what to write here.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from cronsim import CronSim, CronSimError

from aiolease.errors import InvalidSchedule

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# What the ledger's column holds, and more than anybody writes: all minutes of an hour, one by one, are 169.
_MAX_TEXT = 200

_NAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
# The fields, how many values each has, and what may stand in them.
_FIELDS = (
    ("second", 60, "0-59"),
    ("minute", 60, "0-59"),
    ("hour", 24, "0-23"),
    ("day of month", 31, "1-31, L or LW"),
    ("month", 12, "1-12 or JAN-DEC"),
    ("day of week", 7, "0-7 or SUN-SAT, MON#2 for the second Monday, MONL or 1L for the last"),
)
_FIRST = (0, 0, 0, 1, 1, 0)
_MONTHS = "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC".split()
_DAYS = "SUN MON TUE WED THU FRI SAT".split()
_SYMBOLS = {4: dict(zip(_MONTHS, range(1, 13), strict=True)), 5: dict(zip(_DAYS, range(7), strict=True))}
_DAY, _WEEKDAY = 3, 5

_ELSEWHERE = (
    (re.compile(r"(?<!L)W(?!ED)"), "the weekday nearest to a day is not known: LW is the last weekday of a month"),
    (re.compile(r"~"), "a random value is not known: write a number"),
    (re.compile(r"(?<![A-Z])H"), "H is not known: write a number"),
    (re.compile(r"%"), "a schedule ends before the first %, which is of a crontab's command"),
)
"""What other programs take, and what to write here."""


def split(expression: str) -> list[str]:
    """The six fields of an expression, in capitals."""
    if not isinstance(expression, str) or len(expression) > _MAX_TEXT:
        raise InvalidSchedule(
            "expression", expression, f"give a cron expression as text of at most {_MAX_TEXT} characters"
        )
    text = expression.strip()
    if zone := re.match(r"(?:CRON_)?TZ=(\S*)\s", text, re.IGNORECASE):
        raise InvalidSchedule("expression", expression, f"give the zone beside it: timezone={zone[1]!r}")
    if text.lower().startswith("@every"):
        raise InvalidSchedule("expression", expression, f"use every({_seconds(text[6:])})")
    if text.startswith("@") and text.lower() not in _NAMES:
        raise InvalidSchedule("expression", expression, f"the names are {', '.join(_NAMES)}")
    fields = _NAMES.get(text.lower(), text).upper().split()
    if len(fields) == 7:
        raise InvalidSchedule("expression", expression, "a year is not known: use six fields at most, the second first")
    if len(fields) not in (5, 6):
        names = ", ".join(name for name, _, _ in _FIELDS[1:])
        raise InvalidSchedule("expression", expression, f"use five fields, {names}, or six with the second first")
    return fields if len(fields) == 6 else ["0", *fields]


def _seconds(duration: str) -> str:
    """The seconds of a duration such as ``1h30m``, as text; dots if they are not understood."""
    units = {"h": 3600, "m": 60, "s": 1}
    parts = re.findall(r"(\d+)([hms])", duration.lower())
    whole = "".join(number + unit for number, unit in parts)
    return str(sum(int(number) * units[unit] for number, unit in parts)) if whole == duration.strip().lower() else "…"


def plain(fields: list[str]) -> list[str]:
    """The same fields as cronsim reads them.

    Raises:
        InvalidSchedule: A field has what another program would understand, or a step where there can be none.
    """
    return [_plain(place, text) for place, text in enumerate(fields)]


def _plain(place: int, text: str) -> str:
    name, size, _ = _FIELDS[place]
    for pattern, problem in _ELSEWHERE:
        if pattern.search(text):
            raise InvalidSchedule(name, text, problem)
    if "?" in text:
        if text != "?" or place not in {_DAY, _WEEKDAY}:
            raise InvalidSchedule(name, text, "? stands alone in one of the two fields of days; use * for every value")
        return "*"
    if any(int(step) > size for step in re.findall("/([0-9]+)", text)):
        problem = f"a step is at most {size} here: a longer one does not reach beyond the field, it starts anew"
        raise InvalidSchedule(name, text, problem)
    return ",".join(_plain_term(place, term, text) for term in text.split(","))


def _plain_term(place: int, term: str, text: str) -> str:
    name, size, _ = _FIELDS[place]
    if place == _DAY and re.match(r"LW?/", term):
        raise InvalidSchedule(name, text, "L and LW are one day, which takes no step")
    if place == _WEEKDAY and (last := re.fullmatch(r"([A-Z]{3})L", term)) and last[1] in _SYMBOLS[place]:
        return f"{_SYMBOLS[place][last[1]]}L"
    found = re.fullmatch(r"(\w+)-(\w+)(?:/([0-9]+))?", term)
    if found is None:
        return term
    low = _FIRST[place]
    start, end = (
        _SYMBOLS.get(place, {}).get(value, int(value) if value.isascii() and value.isdigit() else -1)
        for value in found.group(1, 2)
    )
    highest = low + size - 1
    if place == _WEEKDAY and start > end:  # Sunday is 0 and 7
        start = 0 if start == 7 else start
    step = int(found[3] or 1)
    if step == 0 or not (low <= start <= highest and low <= end <= highest):
        return term  # of a rising range cronsim knows all, and of others what is wrong
    if start == end:
        return str(start)
    if start < end:
        return f"{start}-{end}" + (f"/{found[3]}" if found[3] else "")
    values = [*range(start, highest + 1), *range(low, end + 1)][::step]
    return ",".join(map(str, values))


def parse(fields: list[str]) -> CronSim:
    """Has cronsim read plain fields.

    Raises:
        InvalidSchedule: It does not understand one of them, or no such day exists.
    """
    try:
        return CronSim(" ".join(fields), _EPOCH)
    except CronSimError as error:
        raise _at_fault(fields) from error


def _at_fault(fields: list[str]) -> InvalidSchedule:
    """The error for the first field that cronsim refuses on its own; else the day is one that its months lack."""
    for place, (name, _, allowed) in enumerate(_FIELDS):
        alone = ["*"] * len(fields)
        alone[place] = fields[place]
        try:
            CronSim(" ".join(alone), _EPOCH)
        except CronSimError:
            problem = f"use {allowed}; lists as in 1,2; ranges as in 1-5; steps as in */5"
            return InvalidSchedule(name, fields[place], problem)
    return no_such_day(fields)


def no_such_day(fields: list[str]) -> InvalidSchedule:
    """The error for a day that no month has."""
    problem = f"can never fire: no day is also in month {fields[4]} and on day of week {fields[5]}"
    return InvalidSchedule("day of month", fields[3], problem)
