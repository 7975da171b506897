"""Schedules and moments in words."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from aiolease._jobs.in_words import in_words, local_text, moment_text, span, tick_text
from aiolease._jobs.schedule import Cron, Every


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("* * * * *", "every minute"),
        ("*/5 * * * *", "every 5 minutes"),
        ("0 * * * *", "every hour on the hour"),
        ("30 * * * *", "every hour at minute 30"),
        ("5,35 * * * *", "every hour at minutes 5 and 35"),
        ("10-12 * * * *", "every hour at minutes 10 to 12"),
        ("0 */2 * * *", "every 2 hours on the hour, every day"),
        ("*/5 */2 * * *", "every 5 minutes of hours 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20 and 22, every day"),
        ("* 3 * * *", "every minute of hour 3, every day"),
        ("0 9 * * *", "at 09:00, every day"),
        ("@daily", "at 00:00, every day"),
        ("0 9,17 * * 1-5", "at 09:00 and 17:00, Monday to Friday"),
        ("*/15 9-17 * * MON-FRI", "every 15 minutes from 09:00 to 17:59, Monday to Friday"),
        ("0 9-17 * * *", "every hour from 09:00 to 17:00, every day"),
        ("*/20 1,5,9 * * 0,6", "every 20 minutes of hours 1, 5 and 9, on Saturday and Sunday"),
        ("0 9 * * 7", "at 09:00, on Sunday"),
        ("0 9 1 * *", "at 09:00, on day 1 of the month"),
        ("0 9 1,15 * *", "at 09:00, on days 1 and 15 of the month"),
        ("0 9 1 * MON", "at 09:00, on day 1 of the month and on Monday"),
        ("0 9 */10 * MON", "at 09:00, on days 1, 11, 21 and 31 of the month if it is Monday"),
        ("0 9 * * MON#2", "at 09:00, on the second Monday of the month"),
        ("0 9 * * FRIL", "at 09:00, on the last Friday of the month"),
        ("0 9 L * *", "at 09:00, on the last day of the month"),
        ("0 9 LW 1,7 *", "at 09:00, on the last weekday of the month, in January and July"),
        ("0 0 1 1 *", "at 00:00, on day 1 of the month, in January"),
        ("* * * * * *", "every second"),
        ("*/10 * * * * *", "every 10 seconds"),
        ("30 */5 * * * *", "at second 30, every 5 minutes"),
        ("15 0 9 * * *", "at 09:00:15, every day"),
    ],
)
def test_cron(expression: str, words: str) -> None:
    """What an expression means, and by whose clock."""
    assert in_words(Cron(expression)) == f"{words}, by UTC"
    assert in_words(Cron(expression, "Asia/Tokyo")) == f"{words}, by the clock of Asia/Tokyo"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.5, "every 0.5 seconds"),
        (1, "every second"),
        (30, "every 30 seconds"),
        (60, "every minute"),
        (90, "every 90 seconds"),
        (300, "every 5 minutes"),
        (3600, "every hour, on the hour"),
        (7200, "every 2 hours"),
        (86_400, "every day, at 00:00 UTC"),
        (604_800, "every 7 days, at 00:00 UTC"),
    ],
)
def test_intervals(seconds: float, words: str) -> None:
    """What an interval means."""
    assert in_words(Every(seconds)) == words


def test_moments() -> None:
    """A moment is told in UTC, and by the job's own clock, with the weekday if its date is another there."""
    moment = datetime(2026, 11, 30, 2, 0, tzinfo=UTC)
    assert moment_text(moment) == "2026-11-30 02:00:00 UTC"
    assert moment_text(moment, "UTC") == "2026-11-30 02:00:00 UTC"
    assert moment_text(moment, "America/New_York") == "2026-11-30 02:00:00 UTC (Sun 21:00 America/New_York)"
    assert local_text(moment.replace(hour=14, second=5), "America/New_York") == "09:00:05"
    assert moment_text(moment, "Mars/Olympus") == "2026-11-30 02:00:00 UTC"  # a row of another hand
    assert tick_text(moment.replace(microsecond=123_456)) == "2026-11-30 02:00:00.123"


def test_spans() -> None:
    """A length of time is as coarse as people need it."""
    assert [span(seconds) for seconds in (-1, 0.44, 119, 120, 7199, 7200, 172_799, 172_800)] == [
        "0.0 s", "0.4 s", "119.0 s", "2 min", "120 min", "2 h", "48 h", "2 days",
    ]  # fmt: skip
