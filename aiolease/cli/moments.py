"""Moments and durations as people type them. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

HELP = "2026-11-30 02:00, 02:00 (today), '2 h ago', -2h; in UTC unless a zone follows"

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_UNITS = {
    "sec": "s", "second": "s", "seconds": "s",
    "min": "m", "minute": "m", "minutes": "m",
    "hour": "h", "hours": "h",
    "day": "d", "days": "d",
    "week": "w", "weeks": "w",
}  # fmt: skip
_PART = re.compile(r"(\d+(?:\.\d+)?) ?([a-z]+)")
_DAYS = {"today": 0, "yesterday": -1, "tomorrow": 1}


def moment_of(text: str, now: datetime) -> datetime:
    """The moment that somebody means, in UTC.

    ISO 8601, with or without a zone; a date; a time of today; ``yesterday 02:00``; ``now``; ``2h ago``, ``-2h``,
    ``in 90 min``. The name of a zone may follow. Without any it is UTC.

    Args:
        text: What was typed.
        now: This moment, in UTC.

    Raises:
        ValueError: It is not understood; the message says what is.
    """
    said = " ".join(text.split())
    if (relative := _relative(said.lower())) is not None:
        return _added(now, relative, text)
    said, zone = _without_zone(said)
    local = now.astimezone(zone)
    first, _, rest = said.partition(" ")
    day = local.date()
    if first.lower() in _DAYS:
        day, said = day + timedelta(days=_DAYS[first.lower()]), rest or "00:00"
    try:
        if re.fullmatch(r"\d{1,2}:\d\d(:\d\d(\.\d+)?)?", said):
            moment = datetime.combine(day, time.fromisoformat(said.rjust(len(said) + (said[1] == ":"), "0")))
        else:
            moment = datetime.fromisoformat(said)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is no moment that is understood: write {HELP}") from None


def seconds_of(text: str) -> float:
    """The seconds of a duration: ``90``, ``90s``, ``1h30m``, ``2 days``.

    Raises:
        ValueError: It is not understood.
    """
    said = text.strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", said):
        return float(said)
    parts = _PART.findall(said)
    if not parts or _PART.sub("", said).strip():
        raise ValueError(f"{text!r} is no duration that is understood: write seconds, or 90s, 15m, 2h, 1d")
    seconds = 0.0
    for number, word in parts:
        unit = _UNITS.get(word, word)
        if unit not in _SECONDS:
            raise ValueError(f"{word!r} is no unit of time: use s, m, h, d or w")
        seconds += float(number) * _SECONDS[unit]
    return seconds


def _relative(said: str) -> float | None:
    """The seconds from now that are meant; ``None`` if it is no such text."""
    if said == "now":
        return 0.0
    for pattern, sign in ((r"(.+) ago", -1), (r"-(\d.*)", -1), (r"\+(\d.*)", 1), (r"in (.+)", 1)):
        if (found := re.fullmatch(pattern, said)) is not None:
            return sign * seconds_of(found[1])
    return None


def _added(now: datetime, seconds: float, text: str) -> datetime:
    try:
        return (now + timedelta(seconds=seconds)).replace(microsecond=0)
    except OverflowError:
        raise ValueError(f"{text!r} is too far away") from None


def _without_zone(said: str) -> tuple[str, ZoneInfo]:
    """What is left before the name of a zone, and the zone: UTC if there is none."""
    rest, _, last = said.rpartition(" ")
    if rest and last[0].isalpha() and last.lower() not in _DAYS:
        try:
            return rest, ZoneInfo("UTC" if last.upper() in {"UTC", "Z", "GMT"} else last)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{last!r} is no time zone: names look like America/New_York") from None
    return said, ZoneInfo("UTC")
