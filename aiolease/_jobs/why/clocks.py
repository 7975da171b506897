"""What a change of a zone's clock has to do with a moment: hours that were skipped, or shown twice. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo

from aiolease._jobs.in_words import moment_text, zone_of
from aiolease._jobs.schedule import Schedule
from aiolease._jobs.stretches import Stretch, stretches

_MOMENT = timedelta(microseconds=1)
_DAY = timedelta(days=1)
_NOTHING = timedelta()


def is_tick(schedule: Schedule, moment: datetime) -> bool:
    """Whether a schedule falls due at exactly this moment."""
    return schedule.next_after(moment - _MOMENT) == moment


def of_a_tick(schedule: Schedule, tick: datetime) -> str:
    """What the clock had to do with a tick of the schedule; empty if nothing."""
    zone = zone_of(schedule.timezone)
    if zone is None:
        return ""
    stretch = _stretch(zone, tick)
    if tick == stretch.start and stretch.reached < stretch.start + stretch.offset:
        return (
            f"At this moment the clock of {schedule.timezone} was put forward from {stretch.reached:%H:%M} to "
            f"{stretch.start + stretch.offset:%H:%M}: what falls due at a reading in between falls due here."
        )
    if (again := _second_showing(zone, tick)) is not None and is_tick(schedule, again):
        return ""
    if again is not None:
        return (
            f"The clock of {schedule.timezone} showed {_wall(zone, tick):%H:%M} twice on this day, and a fixed time "
            f"is due once: this is the first; at {moment_text(again)} it was shown again."
        )
    return ""


def of_no_tick(schedule: Schedule, moment: datetime) -> str:
    """Why a schedule is not due at a moment, if a change of the clock is the reason; empty if it is not."""
    zone = zone_of(schedule.timezone)
    if zone is None:
        return ""
    stretch, name = _stretch(zone, moment), schedule.timezone
    shown = stretch.start + stretch.offset
    wall = moment + stretch.offset
    if wall < stretch.reached:  # put back: it shows again what it had shown
        first = moment - (stretch.reached - shown)
        if is_tick(schedule, first):
            return (
                f"The clock of {name} was put back at {moment_text(stretch.start)} and showed {wall:%H:%M} a second "
                f"time. A fixed time is due once, at the first: {moment_text(first)}."
            )
    gap = shown - stretch.reached
    skipped = moment + stretch.offset - gap  # what it would have shown
    jumped = is_tick(schedule, stretch.start)
    if gap > _NOTHING and stretch.reached <= skipped < shown and (jumped or is_tick(schedule, moment - _DAY)):
        due = " A fixed time in between was due once, at that moment." if jumped else ""
        return (
            f"The clock of {name} was put forward at {moment_text(stretch.start)}, from {stretch.reached:%H:%M} to "
            f"{shown:%H:%M}: it never showed {skipped:%H:%M} on this day.{due}"
        )
    return ""


def by_its_own_clock(schedule: Schedule, moment: datetime) -> datetime | None:
    """The tick that is meant if somebody gave a reading of the job's own clock instead of UTC."""
    zone = zone_of(schedule.timezone)
    if zone is None or schedule.timezone == "UTC":
        return None
    meant = moment.replace(tzinfo=zone).astimezone(UTC)
    return meant if is_tick(schedule, meant) else None


def never_shown(schedule: Schedule, moment: datetime) -> str:
    """Tells that somebody gave a reading of the job's own clock which it skipped; empty if it did not."""
    zone = zone_of(schedule.timezone)
    if zone is None or schedule.timezone == "UTC":
        return ""
    meant = moment.replace(tzinfo=zone)
    if meant.astimezone(UTC).astimezone(zone).replace(tzinfo=None) == moment.replace(tzinfo=None):
        return ""
    jump = _stretch(zone, meant.astimezone(UTC) + timedelta(hours=1)).start
    due = ": a fixed time in between was due at that moment" if is_tick(schedule, jump) else ""
    return (
        f"If {moment:%H:%M} by the clock of {schedule.timezone} is meant: it was put forward at {moment_text(jump)} "
        f"and never showed that{due}."
    )


def _stretch(zone: tzinfo, moment: datetime) -> Stretch:
    return next(each for each in stretches(zone, moment.astimezone(UTC).year) if moment < each.end)


def _wall(zone: tzinfo, moment: datetime) -> datetime:
    return moment + _stretch(zone, moment).offset


def _second_showing(zone: tzinfo, moment: datetime) -> datetime | None:
    """When the clock shows again what it shows at `moment`; ``None`` if it does not."""
    stretch = _stretch(zone, moment)
    following = _stretch(zone, stretch.end)
    back = stretch.offset - following.offset
    if back <= _NOTHING or moment + back < stretch.end:
        return None
    return moment + back
