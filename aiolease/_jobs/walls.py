"""The wall-clock readings that a cron expression names: which days, and which times of a day.

cronsim says what matches days. A reading is kept as if it were UTC; ranges include their first and exclude their last.
"""

from __future__ import annotations

from bisect import bisect_left
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import final

from cronsim import CronSim

from aiolease._jobs.cron import parse, plain

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY = timedelta(days=1)
_ALL_DAYS, _ALL_WEEKDAYS = frozenset(range(1, 32)), frozenset(range(7))


@final
class Walls:
    """The readings that an expression names. Ranges include their first and exclude their last."""

    __slots__ = ("_days", "_hours", "_minutes", "seconds")

    def __init__(self, fields: list[str]) -> None:
        parsed = parse(plain(fields))
        self._hours = tuple(sorted(parsed.hours))
        self._minutes = tuple(sorted(parsed.minutes))
        self.seconds = tuple(sorted(parsed.seconds))
        self._days = _days(*plain(fields)[3:])

    @property
    def meaning(self) -> object:
        """What is equal for expressions that name the same readings."""
        days, weekdays = frozenset(self._days.days), frozenset(0 if day == 7 else day for day in self._days.weekdays)
        both, any_day, any_weekday = self._days.day_and, days >= _ALL_DAYS, weekdays >= _ALL_WEEKDAYS
        on: object = both, days, weekdays
        if (any_day and any_weekday) or (not both and (any_day or any_weekday)):
            on = "every day"
        elif any_day or any_weekday:
            on = ("weekdays", weekdays) if any_day else ("days", days)
        return self.seconds, self._minutes, self._hours, frozenset(self._days.months), on

    def first(self, low: datetime, high: datetime) -> datetime | None:
        """The earliest one in ``low <= reading < high``."""
        if low >= high:
            return None
        day, last, rank = low.date(), high.date(), self._rank(low)
        while day <= last:
            if day.month not in self._days.months:
                day, rank = (day.replace(day=1) + 31 * _DAY).replace(day=1), 0
            elif rank < self._per_day and self._days.match_day(day):
                wall = self._reading(day, rank)
                return wall if wall < high else None
            else:
                day, rank = day + _DAY, 0
        return None

    def last(self, low: datetime, high: datetime) -> datetime | None:
        """The latest one in ``low <= reading < high``."""
        if low >= high:
            return None
        day, last, rank = high.date(), low.date(), self._rank(high)
        while day >= last:
            if rank and self._on(day):
                wall = self._reading(day, rank - 1)
                return wall if wall >= low else None
            day, rank = day - _DAY, self._per_day
        return None

    def count(self, low: datetime, high: datetime) -> int:
        """How many there are in ``low <= reading < high``."""
        if low >= high:
            return 0
        first, last = low.date(), high.date()
        days = sum(self._on(first + number * _DAY) for number in range((last - first).days))
        return days * self._per_day - self._on(first) * self._rank(low) + self._on(last) * self._rank(high)

    @property
    def _per_day(self) -> int:
        return len(self._hours) * len(self._minutes) * len(self.seconds)

    def _on(self, day: date) -> bool:
        return day.month in self._days.months and self._days.match_day(day)

    def _rank(self, wall: datetime) -> int:
        """How many times of a day, on a day that has any, come before that of `wall`."""
        rank, exact = 0, True
        for values, value in (self._hours, wall.hour), (self._minutes, wall.minute), (self.seconds, wall.second):
            place = bisect_left(values, value) if exact else 0
            rank = rank * len(values) + place
            exact = exact and place < len(values) and values[place] == value
        return rank

    def _reading(self, day: date, rank: int) -> datetime:
        """The time of `day` before which there are `rank` others."""
        rank, second = divmod(rank, len(self.seconds))
        hour, minute = divmod(rank, len(self._minutes))
        at = time(self._hours[hour], self._minutes[minute], self.seconds[second], tzinfo=UTC)
        return datetime.combine(day, at)


@lru_cache(maxsize=256)
def _days(day: str, month: str, weekday: str) -> CronSim:
    """What matches days. Shared by the many schedules that name the same ones: its sets are large."""
    return CronSim(f"0 0 {day} {month} {weekday}", _EPOCH)
