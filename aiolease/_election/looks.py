"""Once per lease this process looks whether all is well: as a candidate that waits, and as the leader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import final

from aiolease._clock import current_clock
from aiolease._election.health import Health
from aiolease._election.status import Lookout, Sight, State
from aiolease.stores import Store


@final
class Looks:
    """The looks of one campaign.

    Args:
        lookout: What looks; ``None`` if nothing does.
        health: What was learnt of the lease.
        lease_duration: Seconds between two looks.
    """

    def __init__(self, lookout: Lookout | None, health: Health, lease_duration: float) -> None:
        self._lookout = lookout
        self._health = health
        self._lease_duration = lease_duration
        self._looked_as: State | None = None

    @property
    def jobs(self) -> tuple[str, ...]:
        """The names of the jobs that are looked at, in their order."""
        return () if self._lookout is None else self._lookout.jobs

    def trouble(self, state: State) -> str | None:
        """What was wrong at the latest look, if that was in the same state."""
        return self._lookout.trouble if self._lookout is not None and self._looked_as == state else None

    async def go_on(self, store: Store, state: Callable[[], State]) -> None:
        """Looks until it is cancelled.

        Args:
            store: What is looked at.
            state: Gives the state of the campaign.
        """
        while self._lookout is not None:
            await asyncio.sleep(self._lease_duration)
            self._looked_as = current = state()
            if current not in {"following", "leading"} or self._health.last_contact is None:
                self._lookout.forget()
            else:
                await self._lookout.look(store, self._sight(leads=current == "leading"))

    def _sight(self, *, leads: bool) -> Sight:
        health, now = self._health, current_clock()()
        return Sight(
            holder=health.leader,
            token=health.token,
            leads=leads,
            # Of a process that stood still, or lost its database, nobody knows who leads by now.
            age=now - health.since if now - health.vacancy.heard_at <= self._lease_duration else 0.0,
            vacant=health.vacancy.lasts,
            duration=max(self._lease_duration, health.vacancy.longest),
        )
