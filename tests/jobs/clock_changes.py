"""Moments at which clocks of several time zones change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# Where clocks were changed: the zone, the instant, and what is odd about it.
CHANGES = [
    ("America/New_York", utc("2025-03-09T07:00")),
    ("America/New_York", utc("2025-11-02T06:00")),
    ("Europe/London", utc("2025-03-30T01:00")),
    ("Europe/London", utc("2025-10-26T01:00")),
    ("Australia/Lord_Howe", utc("2025-04-05T15:00")),  # half an hour
    ("Australia/Lord_Howe", utc("2025-10-04T15:30")),
    ("Antarctica/Troll", utc("2025-03-30T01:00")),  # two hours
    ("Antarctica/Troll", utc("2025-10-26T01:00")),
    ("Antarctica/Casey", utc("2010-03-04T15:00")),  # three hours
    ("America/Recife", utc("2000-10-08T03:00")),  # and back after a week
    ("America/Recife", utc("2000-10-15T02:00")),
    ("America/Sao_Paulo", utc("2018-11-04T03:00")),  # midnight is skipped
    ("America/Sao_Paulo", utc("2019-02-17T02:00")),  # the hour before midnight is repeated
    ("Asia/Kathmandu", utc("1985-12-31T18:30")),  # a quarter of an hour, for good
    ("Africa/Casablanca", utc("2025-02-23T02:00")),  # put back for Ramadan
    ("Africa/Casablanca", utc("2025-04-06T02:00")),
    ("Africa/Casablanca", utc("1985-12-31T23:00")),  # at the turn of the year
    ("Pacific/Apia", utc("2011-12-30T10:00")),  # a whole day is skipped
    ("Pacific/Chatham", utc("2025-04-05T14:00")),  # a change at a quarter to
    ("Pacific/Chatham", utc("2025-09-27T14:00")),
]
ZONES = sorted({zone for zone, _ in CHANGES} | {"UTC"})
