"""For how long nobody has led is reckoned from readings of the row, by the clock of this process alone."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

from aiolease._clock import current_clock
from aiolease._election.health import Health
from aiolease._election.looks import Looks
from aiolease._election.status import Sight, State
from aiolease._election.vacancy import Vacancy
from aiolease.stores import Store
from aiolease.stores.records import Lease
from aiolease.testing import MemoryStore
from tests.virtual import HOUR, START, virtual

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


def test_the_longest_lease_that_was_seen_is_known() -> None:
    """Processes of one lease may differ in their timings; a released row says nothing of them."""
    vacancy = Vacancy()
    for number, row in enumerate((HELD, replace(HELD, beat=8, expires_at=START + timedelta(seconds=60)), HELD, FREE)):
        vacancy.saw(row, number)
    assert vacancy.longest == 60


def test_nothing_is_known_before_the_first_reading() -> None:
    """A process that was never answered does not say that nobody leads."""
    assert lasts() == 0
    assert Vacancy().heard_at == float("-inf")


class Watcher:
    """Keeps what it is shown."""

    jobs = ()

    def __init__(self) -> None:
        self.trouble: str | None = "all is wrong"
        self.seen: list[Sight | None] = []

    async def look(self, store: Store, sight: Sight) -> None:
        self.seen.append(sight)

    def forget(self) -> None:
        self.seen.append(None)


@virtual
async def test_a_look_knows_what_was_heard_of_the_lease() -> None:
    """Nothing before the first answer; how old the term is, as long as there are answers; nothing while it drains."""
    watcher, health = Watcher(), Health()
    looks = Looks(watcher, health, 30)
    states: list[State] = ["following"]
    task = asyncio.create_task(looks.go_on(MemoryStore(), lambda: states[-1]))
    await asyncio.sleep(31)
    assert watcher.seen == [None]
    health.saw(HELD, current_clock()(), 0)
    await asyncio.sleep(60)
    known, stale = watcher.seen[1:]
    assert known == Sight(holder="a", token=3, leads=False, age=29, vacant=0, duration=30)
    assert stale == Sight(holder="a", token=3, leads=False, age=0, vacant=0, duration=30)
    health.saw(HELD, current_clock()(), 0)
    for state in ("leading", "draining", "failed"):
        states.append(state)
        await asyncio.sleep(30)
        assert looks.trouble(state) == "all is wrong"
        assert looks.trouble("following") is None
    assert [sight and sight.leads for sight in watcher.seen[3:]] == [True, None, None]
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
