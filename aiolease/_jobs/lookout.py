"""A process that waits for its election sees whether the leader runs its jobs (DESIGN rule 43).

Two applications that use one lease by mistake elect one leader, and the jobs of the other never run. The ledger shows
it in two ways:

1. The leader makes the rows of its jobs as its term begins: a job without a row is none of its.
2. A row may be left from an earlier leader. Then no tick of the job is claimed in this term, though one fell due longer
   ago than two leases.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from aiolease._election.health import STORE_ERRORS
from aiolease._election.timings import Timings
from aiolease._jobs.job import Job
from aiolease._jobs.schedule import means_the_same, read_schedule
from aiolease._logging import emit
from aiolease._waiting import time_limited
from aiolease.events import Observer, UnknownJobs
from aiolease.stores import Store
from aiolease.stores.records import JobRecord


class Lookout:
    """Looks at the ledger for one registry and one lease.

    Attributes:
        trouble: What is wrong, ``None`` if nothing was at the latest look.
    """

    def __init__(self, jobs: Mapping[str, Job], lease: str, timings: Timings, observer: Observer | None) -> None:
        self.trouble: str | None = None
        self._jobs = jobs
        self._lease = lease
        self._timings = timings
        self._observer = observer
        self._told: tuple[str, ...] = ()

    async def look(self, store: Store, holder: str, token: int, age: float) -> None:
        """Looks once, in one statement, and tells what has changed; raises nothing.

        Args:
            store: The store; it has a ledger, like all that `open_store` makes.
            holder: The leader.
            token: The leader's term.
            age: For how many seconds at least it has led.
        """
        if not self._jobs or age < self._timings.lease_duration / 2:  # it may still be making the rows
            return
        try:
            reading = store.take_stock(self._lease, runs=False)
            stock = await time_limited(self._timings.attempt, store.description, reading)
        except STORE_ERRORS:
            return  # the candidate tells of it
        began = stock.now - timedelta(seconds=age)
        late = stock.now - timedelta(seconds=2 * self._timings.lease_duration)
        unknown = tuple(
            name
            for name, job in sorted(self._jobs.items())
            if name not in stock.unreadable and _is_unknown(job, stock.jobs.get(name), began, late)
        )
        event = UnknownJobs(lease=self._lease, holder=holder, token=token, jobs=unknown)
        self.trouble = event.phrase if unknown else None
        if unknown and unknown != self._told:
            emit(event, self._observer)
        self._told = unknown

    def forget(self) -> None:
        """This process leads: nothing is wrong."""
        self.trouble, self._told = None, ()


def _is_unknown(job: Job, row: JobRecord | None, began: datetime, late: datetime) -> bool:
    """Whether the leader of a term that began at a moment does not run a job: it left a tick that came by another."""
    if row is None:
        return True
    schedule = job.schedule
    known = read_schedule(row.schedule, row.timezone)
    same = known is not None and means_the_same(known, schedule, began)  # else another version leads
    if row.paused_at is not None or not same or job.missed == "all":  # its ticks may follow one after another
        return False
    tick = schedule.next_after(max(row.settled_until, began))
    return tick is not None and tick <= late
