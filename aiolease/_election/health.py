"""Whether this process is fit to lead: what it last learnt from the database, and what its application says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import anyio

from aiolease._election.sighting import ClockHistory, Reading
from aiolease._election.vacancy import Vacancy
from aiolease._interrupts import is_for_the_program
from aiolease.errors import SchemaMissing, StoreRejected, StoreUnavailable
from aiolease.events import describe
from aiolease.stores.records import Lease

Eligible = Callable[[], Awaitable[bool]]

STORE_ERRORS = (StoreUnavailable, StoreRejected, SchemaMissing)
"""All that a store raises."""


@dataclass(slots=True)
class Health:
    """What this process last learnt from the database about one lease: for people, and for its next election.

    `attempted` is set once the first attempt is over, and was not refused for good. `reading` is the latest answer: by
    it and the next it is seen that the database's clock was stepped. `since` is the local clock when the term was first
    seen. `vacancy` says for how long nobody has led.
    """

    leader: str | None = None
    token: int | None = None
    last_contact: datetime | None = None
    error: str | None = None
    reading: Reading | None = None
    since: float = 0.0
    clocks: ClockHistory = field(default_factory=ClockHistory)
    stepped_at: float | None = None
    vacancy: Vacancy = field(default_factory=Vacancy)
    attempted: asyncio.Event = field(default_factory=asyncio.Event)

    def saw(self, lease: Lease | None, received: float, took: float) -> Reading | None:
        """Notes an answer of the database, which had come by that moment of the local clock; returns the one before."""
        before = self.reading
        self.vacancy.saw(lease, received)
        if lease is not None:
            self.reading = Reading(now=lease.now, received=received, took=took)
            self.clocks.note(self.reading, lease.duration)
            if before is not None and self.reading.stepped_since(before):
                self.stepped_at = received
        self.leader = lease.holder if lease else None
        if (token := lease.token if lease else None) != self.token:
            self.token, self.since = token, received
        self.last_contact = datetime.now(UTC)
        self.error = None
        return before

    def failed(self, error: BaseException) -> None:
        """Notes that there was none."""
        self.error = describe(error)


async def is_eligible(eligible: Eligible | None, limit: float) -> tuple[bool, str]:
    """Asks the application whether this process is fit to lead; an error or a late answer means no."""
    if eligible is None:
        return True, ""
    task = asyncio.current_task()
    cancelling = task.cancelling() if task else 0
    try:
        async with asyncio.timeout(limit):
            return bool(await eligible()), "it says so"
    except asyncio.CancelledError as error:
        if task is None or task.cancelling() > cancelling:
            raise
        return False, f"its check failed: {describe(error)}"  # by something it awaited that was cancelled elsewhere
    except BaseException as error:  # the user's check may raise anything, and all of it means no
        if is_for_the_program(error):
            raise
        return False, f"its check failed: {describe(error)}"


async def ask_in_task(eligible: Eligible, limit: float) -> tuple[bool, str]:
    """As `is_eligible`, for a caller in an anyio task group.

    In a task of its own: it is the user's code, and is cancelled once, not at every await of its clean-up.
    """
    check = asyncio.create_task(is_eligible(eligible, limit))
    try:
        await asyncio.wait([check])
    except asyncio.CancelledError:
        check.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait([check], timeout=limit)
        raise
    return check.result()
