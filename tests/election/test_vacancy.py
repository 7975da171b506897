"""For how long nobody has led is reckoned from readings of the row, by the clock of this process alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from aiolease._election.vacancy import Vacancy
from aiolease.stores.records import Lease
from tests.virtual import HOUR, START

HELD = Lease(
    name="default",
    holder="a",
    token=3,
    beat=7,
    elected_at=START,
    renewed_at=START,
    expires_at=START + timedelta(seconds=30),
    resign_token=None,
    now=START,
)
FREE = replace(HELD, holder=None, beat=8, expires_at=START)


def lasts(*readings: tuple[float, Lease | None], gap: float = 30) -> float:
    vacancy = Vacancy(gap)
    for received, lease in readings:
        vacancy.saw(lease, received)
    return vacancy.lasts


def test_a_free_row_is_free_from_when_it_was_seen() -> None:
    """Whether it was released, or there is none; however long before that was."""
    for row in (FREE, None):
        assert lasts((100, row)) == 0
        assert lasts((100, row), (110, row), (125, row)) == 25
    assert lasts((100, HELD), (105, FREE), (125, FREE)) == 20


def test_a_held_row_is_free_once_it_has_not_changed_for_its_duration() -> None:
    """The holder's own duration counts, as its row shows it."""
    assert lasts((100, HELD), (110, HELD), (130, HELD)) == 0
    assert lasts((100, HELD), (120, HELD), (140, HELD)) == 10
    long = replace(HELD, expires_at=START + timedelta(seconds=60))
    assert lasts((100, long), (120, long), (140, long), (165, long)) == 5


def test_a_change_of_the_row_begins_anew() -> None:
    """A renewal, another holder, a release."""
    for changed in (replace(HELD, beat=8), replace(HELD, token=4), replace(HELD, holder="b")):
        assert lasts((100, HELD), (120, HELD), (140, changed), (160, changed)) == 0
        assert lasts((100, HELD), (120, HELD), (140, changed), (160, changed), (175, changed)) == 5


def test_the_clock_of_the_database_is_not_asked() -> None:
    """A step makes a lease look expired that is not, or alive that has run out."""
    for step in (HOUR, -HOUR):
        stepped = replace(HELD, now=START + step)
        assert lasts((100, HELD), (110, stepped), (129, stepped)) == 0
        assert lasts((100, HELD), (110, stepped), (139, stepped)) == 9


def test_what_was_not_seen_does_not_count() -> None:
    """While the database was away, or this process stood still, nobody could lead, or it does not know who did."""
    assert lasts((100, FREE), (700, FREE)) == 0
    assert lasts((100, HELD), (700, HELD), (720, HELD)) == 20
    assert lasts((100, FREE), (129, FREE), (158, FREE)) == 58


def test_nothing_is_known_before_the_first_reading() -> None:
    """A process that was never answered does not say that nobody leads."""
    assert lasts() == 0
    assert Vacancy().heard_at == float("-inf")
