"""The stretches of time between two changes of a zone's clock. Within one, the wall clock neither jumps nor repeats.

A wall-clock reading is kept as if it were UTC: an aware datetime, the instant plus the offset of the zone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache

_SECOND = timedelta(seconds=1)
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A time between two changes of a zone's clock, cut at the turn of a UTC year.

    Attributes:
        start: Its first instant.
        end: The first instant after it.
        offset: What the wall clock shows more than UTC.
        reached: The reading of the clock just before `start`. If the clock was put forward, it skips the readings from
            here to ``start + offset``. If it was put back, it shows the readings from there to here again.
    """

    start: datetime
    end: datetime
    offset: timedelta
    reached: datetime


@lru_cache(maxsize=1024)
def stretches(zone: tzinfo, year: int) -> tuple[Stretch, ...]:
    """The stretches of a UTC year. It begins two days earlier: no clock is put back by more than a few hours."""
    first, end = datetime(year, 1, 1, tzinfo=UTC), datetime(year + 1, 1, 1, tzinfo=UTC)
    start = first - 2 * _DAY
    offset = _offset(zone, start)
    reached = start + offset
    found: list[Stretch] = []
    for change, changed in (*_changes(zone, start, end), (end, offset)):
        if change > first:
            if start < first:  # under way at the turn of the year: nothing jumps here
                start, reached = first, max(reached, first + offset)
            found.append(Stretch(start=start, end=change, offset=offset, reached=reached))
        start, reached, offset = change, change + offset, changed
    return tuple(found)


def _changes(zone: tzinfo, start: datetime, end: datetime) -> Iterator[tuple[datetime, timedelta]]:
    """When a zone's offset changes, and to what. A look at each day finds all: those of one zone are days apart."""
    moment, offset = start, _offset(zone, start)
    while moment < end:
        if _offset(zone, moment + _DAY) == offset:
            moment += _DAY
            continue
        low, high = 0, 86_400
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _offset(zone, moment + middle * _SECOND) == offset else (low, middle)
        moment += high * _SECOND
        offset = _offset(zone, moment)
        if moment < end:
            yield moment, offset


def _offset(zone: tzinfo, moment: datetime) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta()
