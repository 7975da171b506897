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
        error: What is wrong with the database, why the ledger cannot be written though the lease is kept, what was
            wrong when this process last looked (nobody leads, the leader does not run jobs of this process, jobs are
            overdue), or what made the campaign fail; ``None`` if nothing is.
    """

    state: State
    leader: str | None
    token: int | None
    last_contact: datetime | None
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What this process knows of the lease when it looks whether all is well.

    Attributes:
        holder: Who has it, by the latest reading of its row; ``None`` if nobody.
        token: The latest term; ``None`` if there never was one.
        leads: Whether it is this process.
        age: For how many seconds at least that term has gone on; 0 if nothing has been heard of it for a lease.
        vacant: For how many seconds the lease has been free, or has run out; 0 while somebody may lead.
        duration: The longest lease that this process has seen or takes itself, in seconds: timings may differ.
    """

    holder: str | None
    token: int | None
    leads: bool
    age: float
    vacant: float
    duration: float


class Lookout(Protocol):
    """Looks whether the jobs of this process are run, while it waits and while it leads."""

    @property
    def trouble(self) -> str | None:
        """What was wrong at the latest look; ``None`` if nothing was."""

    @property
    def jobs(self) -> tuple[str, ...]:
        """The names of the jobs, in their order."""

    async def look(self, store: Store, sight: Sight) -> None:
        """Looks once; raises nothing."""

    def forget(self) -> None:
        """This process neither waits nor leads: what was seen does not count any more."""
