"""How a campaign stands, for a health page, and what else looks whether all is well."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from aiolease.stores import Store

State = Literal["starting", "following", "leading", "draining", "failed", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignStatus:
    """A campaign at one moment, for a health page.

    Attributes:
        state: What it is doing; ``"starting"`` until the database has answered once. Being a follower is as healthy as
            being the leader.
        leader: The holder that was last seen in the row, ``None`` when the lease was free.
        token: The number of the latest term that was seen.
        last_contact: When the database last answered: aware UTC, by this machine's clock.
        error: What is wrong with the database, why the ledger cannot be written though the lease is kept, that the
            leader does not run jobs of this process, or what made the campaign fail; ``None`` if nothing is.
    """

    state: State
    leader: str | None
    token: int | None
    last_contact: datetime | None
    error: str | None


class Lookout(Protocol):
    """Looks whether the leader does what this process would do, while it waits."""

    trouble: str | None

    async def look(self, store: Store, holder: str, token: int, age: float) -> None:
        """Looks once; raises nothing."""

    def forget(self) -> None:
        """This process leads."""
