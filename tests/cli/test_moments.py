"""Moments and durations as people type them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from aiolease.cli.moments import moment_of, seconds_of

NOW = datetime(2026, 11, 30, 12, 15, 46, 765_432, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2026-11-30 02:00", "2026-11-30T02:00:00"),
        ("2026-11-30T02:00", "2026-11-30T02:00:00"),
        ("2026-11-30T02:00:13.250", "2026-11-30T02:00:13.250"),
        ("2026-11-30T02:00:00Z", "2026-11-30T02:00:00"),
        ("2026-11-30T02:00:00+02:00", "2026-11-30T00:00:00"),
        ("2026-11-30 02:00:00 UTC", "2026-11-30T02:00:00"),
        ("  2026-11-30   02:00 ", "2026-11-30T02:00:00"),
        ("2026-11-30 02:00 America/New_York", "2026-11-30T07:00:00"),
        ("2026-11-30", "2026-11-30T00:00:00"),
        ("02:00", "2026-11-30T02:00:00"),
        ("2:00", "2026-11-30T02:00:00"),
        ("02:00:13", "2026-11-30T02:00:13"),
        ("02:00 America/New_York", "2026-11-30T07:00:00"),
        ("today 02:00", "2026-11-30T02:00:00"),
        ("yesterday 23:30", "2026-11-29T23:30:00"),
        ("yesterday", "2026-11-29T00:00:00"),
        ("tomorrow 02:00", "2026-12-01T02:00:00"),
        ("yesterday 23:30 Asia/Tokyo", "2026-11-29T14:30:00"),
        ("now", "2026-11-30T12:15:46"),
        ("2h ago", "2026-11-30T10:15:46"),
        ("2 hours ago", "2026-11-30T10:15:46"),
        ("1h30m ago", "2026-11-30T10:45:46"),
        ("-2h", "2026-11-30T10:15:46"),
        ("-1d", "2026-11-29T12:15:46"),
        ("+90", "2026-11-30T12:17:16"),
        ("in 2 min", "2026-11-30T12:17:46"),
    ],
)
def test_moments(text: str, meant: str) -> None:
    """What people type, and what they mean: UTC unless a zone follows."""
    assert moment_of(text, NOW) == datetime.fromisoformat(meant).replace(tzinfo=UTC)
    assert moment_of(text, NOW).utcoffset() == timedelta()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "25:00",
        "2026-13-01",
        "2 fortnights ago",
        "02:00 Mars/Olympus",
        "ago",
        "-",
        "99999999d ago",
        "1h x ago",
    ],
)
def test_what_is_no_moment(text: str) -> None:
    """What is not understood is a `ValueError` that says what would be."""
    with pytest.raises(ValueError, match=r"moment|duration|unit|zone|far"):
        moment_of(text, NOW)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5", 1.5), ("90s", 90), ("15m", 900), ("1h30m", 5400), ("2 days", 172_800)]
)
def test_durations(text: str, seconds: float) -> None:
    """Seconds, or numbers with units."""
    assert seconds_of(text) == seconds
