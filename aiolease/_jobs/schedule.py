"""When jobs fall due: pure functions from a moment to ticks, no clock and no I/O (DESIGN rule 24).

`Every` is arithmetic on a grid. `Cron` leaves to cronsim what an expression means (which fields, which days), and
places the ticks in time itself: cronsim's own walk, started inside a repeated hour, returns ticks of the past, and its
rules for the changes of the clock do not hold for six fields.

An expression names readings of a wall clock. Time is cut into stretches between two changes of that clock, and within
a stretch the readings run straight. What happens at a change follows Debian's cron:

* a job with a fixed hour and minute (neither field begins with ``*``) is due once for each reading: at the first of two
  equal readings, and, for readings that the clock skips, once at the moment at which it jumps;
* any other job follows elapsed time: it is due at every such reading that the clock really shows.

So the ticks of a schedule are one sequence, whatever moment it is looked at from. A wall-clock reading is kept as if it
were UTC: an aware datetime, the instant plus the offset of the zone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Protocol, final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from aiolease._jobs.cron import no_such_day, split
from aiolease._jobs.stretches import Stretch, stretches
from aiolease._jobs.walls import Walls
from aiolease.errors import InvalidSchedule

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_END = datetime(9998, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_DAY = timedelta(days=1)
_SHORTEST, _LONGEST = timedelta(milliseconds=1), timedelta(days=36_525)

# From here on a cron expression must fire. Fixed, so that it is valid or not whatever the date is today.
_REFERENCE = datetime(2025, 1, 1, tzinfo=UTC)
# Years without a tick after which there is none to come. The rarest that do come, such as a 29th of February on a
# Sunday or a February with five Mondays, are 40 years apart.
_HORIZON = 50


class Schedule(Protocol):
    """A fixed sequence of ticks. Moments and ticks are aware; ticks are in UTC."""

    @property
    def expression(self) -> str:
        """The canonical text, such as ``every 30s`` or ``cron 0 9 * * *``: equal texts in one zone, equal ticks."""

    @property
    def timezone(self) -> str:
        """The zone whose wall clock it follows; empty if it follows none."""

    def next_after(self, moment: datetime) -> datetime | None:
        """The first tick strictly after `moment`; ``None`` only if there is none any more."""

    def latest_between(self, after: datetime, until: datetime) -> datetime | None:
        """The newest tick with ``after < tick <= until``, found without walking through those before it."""

    def count_between(self, after: datetime, until: datetime) -> int:
        """How many ticks there are with ``after < tick <= until``, found without walking through them."""


@lru_cache(maxsize=4096)
def read_schedule(expression: str, timezone: str) -> Schedule | None:
    """The schedule of a canonical text, such as the ledger keeps; ``None`` if this version does not know it."""
    try:
        if found := re.fullmatch(r"every (\d+)(?:\.(\d{1,6}))?s", expression):
            fraction = int((found[2] or "").ljust(6, "0"))
            return Every(timedelta(seconds=int(found[1]), microseconds=fraction))
        return Cron(expression.removeprefix("cron "), timezone) if expression.startswith("cron ") else None
    except (InvalidSchedule, OverflowError, ValueError, TypeError):  # it may be of another hand: no text, or too long
        return None


def means_the_same(one: Schedule, other: Schedule, now: datetime) -> bool:
    """Whether two schedules are one in different words (DESIGN rule 50).

    Zones are compared by what their clocks show, from the year before `now` to ten years after it.
    """
    if (one.expression, one.timezone) == (other.expression, other.timezone):
        return True
    return isinstance(one, Cron) and isinstance(other, Cron) and one.means_the_same(other, now)


def ticks_between(schedule: Schedule, after: datetime, until: datetime) -> Iterator[datetime]:
    """The ticks with ``after < tick <= until``, oldest first."""
    tick = schedule.next_after(after)
    while tick is not None and tick <= until:
        yield tick
        tick = schedule.next_after(tick)


@final
class Every:
    """A tick every `interval`, in seconds or as a timedelta, on a grid anchored at the Unix epoch.

    The interval is a whole number of microseconds, so the grid does not drift.

    Raises:
        InvalidSchedule: The interval is not a number, or not between a millisecond and a hundred years.
    """

    __slots__ = ("expression", "interval", "timezone")

    def __init__(self, interval: float | timedelta) -> None:
        if isinstance(interval, bool) or not isinstance(interval, int | float | timedelta):
            raise InvalidSchedule("interval", interval, "give seconds as a number, or a timedelta")
        try:
            self.interval = interval if isinstance(interval, timedelta) else timedelta(seconds=interval)
        except (OverflowError, ValueError):  # infinite, not a number, or beyond what a timedelta holds
            self.interval = timedelta()
        if not _SHORTEST <= self.interval <= _LONGEST:
            raise InvalidSchedule("interval", interval, "use 0.001 seconds to 36525 days")
        seconds, fraction = divmod(self.interval, _SECOND)
        decimals = f".{fraction.microseconds:06}".rstrip("0") if fraction else ""
        self.expression = f"every {seconds}{decimals}s"
        self.timezone = ""

    def __repr__(self) -> str:
        return f"<{self.expression}>"

    def next_after(self, moment: datetime) -> datetime | None:
        """The first tick strictly after `moment`; ``None`` after the year 9999."""
        try:
            return _EPOCH + ((moment - _EPOCH) // self.interval + 1) * self.interval
        except OverflowError:
            return None

    def latest_between(self, after: datetime, until: datetime) -> datetime | None:
        """The newest tick with ``after < tick <= until``."""
        if not self.count_between(after, until):
            return None
        return _EPOCH + (until - _EPOCH) // self.interval * self.interval

    def count_between(self, after: datetime, until: datetime) -> int:
        """How many ticks there are with ``after < tick <= until``."""
        return max(0, (until - _EPOCH) // self.interval - (after - _EPOCH) // self.interval)


@final
class Cron:
    """The ticks of a cron expression by the wall clock of a time zone, from 1970 to 9997.

    Args:
        expression: Five fields, six with the second first, or a name such as ``@daily``.
        timezone: A name of the time zone database.

    Raises:
        InvalidSchedule: The zone is unknown, a field is not understood, or the expression can never fire.
    """

    __slots__ = ("_answered", "_fixed", "_walls", "_zone", "expression", "timezone")

    def __init__(self, expression: str, timezone: str = "UTC") -> None:
        fields = split(expression)
        self._zone = _zone(timezone)
        self._walls = walls = Walls(fields)
        self._fixed = not fields[1].startswith("*") and not fields[2].startswith("*")
        self.expression = " ".join(["cron", *fields[walls.seconds == (0,) :]])
        self.timezone = timezone
        self._answered: tuple[datetime | None, datetime | None] = (None, None)
        if self.next_after(_REFERENCE) is None:
            if walls.first(_REFERENCE, _REFERENCE + _HORIZON * 366 * _DAY) is None:
                raise no_such_day(fields)
            raise InvalidSchedule("hour", fields[2], f"can never fire: the clocks of {timezone} skip it on those days")

    def __repr__(self) -> str:
        return f"<{self.expression} {self.timezone}>"

    def means_the_same(self, other: Cron, now: datetime) -> bool:
        """See `means_the_same`."""
        if self._walls.meaning != other._walls.meaning:
            return False
        years = range(now.year - 1, now.year + 11)
        mine, others = ([stretches(zone, year) for year in years] for zone in (self._zone, other._zone))
        # What is due at the changes of a clock: of no interest where there are none.
        return mine == others and (self._fixed == other._fixed or all(len(each) == 1 for each in mine))

    def next_after(self, moment: datetime) -> datetime | None:
        """The first tick strictly after `moment`; ``None`` if none comes within fifty years.

        A leader asks for the tick after the same moment three times: when it waits for the tick, when the tick is due,
        and when the tick before it has been written. So the last answer is kept.
        """
        asked, tick = self._answered
        if asked != moment:
            tick = self._first_after(moment)
            self._answered = moment, tick
        return tick

    def _first_after(self, moment: datetime) -> datetime | None:
        low = _second_after(moment)
        for year in range(low.year, min(low.year + _HORIZON, _END.year)):
            for stretch in stretches(self._zone, year):
                if stretch.end > low:
                    jump, first, end = self._readings(stretch, low, stretch.end)
                    if jump is not None:
                        return jump
                    if (wall := self._walls.first(first, end)) is not None:
                        return wall - stretch.offset
        return None

    def latest_between(self, after: datetime, until: datetime) -> datetime | None:
        """The newest tick with ``after < tick <= until``; it takes time by the days without a tick."""
        low, high = _second_after(after), _second_after(until)
        for year in range(high.year, low.year - 1, -1):
            for stretch in reversed(stretches(self._zone, year)):
                jump, first, end = self._readings(stretch, low, high)
                if (wall := self._walls.last(first, end)) is not None:
                    return wall - stretch.offset
                if jump is not None:
                    return jump
        return None

    def count_between(self, after: datetime, until: datetime) -> int:
        """How many ticks there are with ``after < tick <= until``; it takes time by the days, not by the ticks."""
        low, high, count = _second_after(after), _second_after(until), 0
        for year in range(low.year, high.year + 1):
            for stretch in stretches(self._zone, year):
                jump, first, end = self._readings(stretch, low, high)
                count += self._walls.count(first, end) + (jump is not None)
        return count

    def _readings(self, stretch: Stretch, low: datetime, high: datetime) -> tuple[datetime | None, datetime, datetime]:
        """What is due in the part of a stretch that lies in ``low <= instant < high``.

        Returns:
            The jump that starts the stretch, if it is a tick; and from which reading, and up to which, those of the
            expression are ticks, the last one excluded.
        """
        shown = stretch.start + stretch.offset
        first = max(stretch.start, low) + stretch.offset
        end = min(stretch.end, high) + stretch.offset
        if not self._fixed:
            return None, first, end
        if low <= stretch.start < high and self._walls.first(stretch.reached, shown) is not None:
            return stretch.start, max(first, shown + _SECOND), end  # what is due at that very moment is the same tick
        return None, max(first, stretch.reached), end


def _second_after(moment: datetime) -> datetime:
    """The first whole second strictly after `moment`."""
    return _EPOCH + ((min(max(moment, _EPOCH), _END - _SECOND) - _EPOCH) // _SECOND + 1) * _SECOND


def _zone(name: str) -> tzinfo:
    if not isinstance(name, str):
        raise InvalidSchedule("timezone", name, "give the name of a time zone, such as 'Europe/London'")
    if name == "UTC":  # needs no time zone database
        return UTC
    if name == "localtime":
        raise InvalidSchedule("timezone", name, "it is another zone on every machine: name the one you mean")
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:  # OSError: the name of a folder, such as 'America'
        problem = "unknown time zone; names look like 'Europe/London'"
        if not available_timezones():
            problem = "this machine has no time zone database: install the package tzdata"
        raise InvalidSchedule("timezone", name, problem) from error
