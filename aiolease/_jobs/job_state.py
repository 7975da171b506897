"""How each job of a registry stands in the running term: one record for each job, which the planner's parts share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import final

from aiolease._jobs.job import Job
from aiolease._jobs.plan import Series
from aiolease.events import describe
from aiolease.stores.batch import LedgerReading

NEVER = datetime.min.replace(tzinfo=UTC)
"""Before every tick."""


@final
class JobStates(dict[str, "JobState"]):
    """The jobs of one registry by name, and how each of them stands.

    Attributes:
        aside: The jobs of which nothing is planned for now. `aiolease._jobs.quarantine` says which.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        super().__init__((job.name, JobState(job)) for job in jobs)
        self.aside: set[str] = set()
        self._at_fault: dict[str, str] = {}

    def known(self, names: Iterable[str]) -> set[str]:
        """Those of some jobs that are of this registry."""
        return self.keys() & set(names)

    def unknown(self, stock: LedgerReading) -> set[str]:
        """The jobs that the ledger knows, and this registry does not."""
        return stock.jobs.keys() - self.keys()

    def cannot_be_planned(self, name: str, error: Exception) -> None:
        """Notes that planning a job failed: it is to be set aside."""
        self._at_fault[name] = describe(error)

    def take_faults(self) -> dict[str, str]:
        """The jobs whose planning failed since the last call, and why."""
        found, self._at_fault = self._at_fault, {}
        return found


@dataclass(slots=True, eq=False)
class JobState:
    """How one job stands.

    Attributes:
        job: The job.
        settled_until: The moment up to which its ticks are claimed, skipped, or not to be run.
        high_tick: As the ledger has it.
        there: Ticks above the high tick that have a row all the same; ``None`` if none is known.
        lined_up: True while its next tick is on the heap.
        held: True while its ticks wait until the earlier ones have been run.
        paused: True while somebody has paused it.
        refused: How often a batch with its trigger was refused.
        going_on: How many of its runs go on, running or waiting.
        running: How many of these run.
        served: When one of its runs last got a place: the number of the place.
        in_line: True while it is in line for a place.
        unread: How many of its runs are queued in the ledger and have not been read: those with the newest ticks.
        inherited: True once a run of an earlier term was unfinished; reset when no run is left.
        backlog: True once a run had to wait; reset when no run is left.
        series: The ticks that were skipped last, if none has been run since.
        busy_until: When its last run ended, if ticks that fell due before that were put off.
    """

    job: Job
    settled_until: datetime = NEVER
    high_tick: datetime | None = None
    there: set[datetime] | None = None
    lined_up: bool = False
    held: bool = False
    paused: bool = False
    refused: int = 0
    going_on: int = 0
    running: int = 0
    served: int = 0
    in_line: bool = False
    unread: int = 0
    inherited: bool = False
    backlog: bool = False
    series: Series | None = None
    busy_until: datetime | None = None

    def note_row(self, tick: datetime) -> None:
        """Notes that a tick above the high tick has a row: it is settled."""
        if self.there is None:
            self.there = set()
        self.there.add(tick)
