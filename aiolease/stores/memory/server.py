"""The database in memory: its tables, its clock, and what it does with a lease."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from aiolease.errors import ConfigurationError
from aiolease.stores.batch import Batch, Change, JobDefinition
from aiolease.stores.contract import FenceBroken
from aiolease.stores.memory.ledger import Ledger
from aiolease.stores.records import Lease, RunKey, TermKey

VIRTUAL_START = datetime(2026, 1, 1, tzinfo=UTC)
"""What the clock shows at first in virtual time."""


@dataclass(slots=True)
class Fence:
    """A row of the fence table."""

    holder: str | None
    token: int
    fence: int = 0


class MemoryServer:
    """The tables and the clock of a database that lives in this process.

    Args:
        start: What its clock shows when it is first read; aware. By default the true time; in virtual time midnight of
            1 January 2026 in UTC. From then on it runs with the loop's clock.

    Attributes:
        leases: The lease table; a test may change or delete its rows by hand.
        fences: The fence table.
        ledgers: The jobs and runs of each lease.
        clock_offset: How far the server's clock has been stepped away from the true time.

    Raises:
        ConfigurationError: `start` has no time zone.
    """

    def __init__(self, start: datetime | None = None) -> None:
        if start is not None and start.tzinfo is None:
            raise ConfigurationError("start", start, "give it a time zone, tzinfo=UTC for example")
        self.leases: dict[str, Lease] = {}
        self.fences: dict[str, Fence] = {}
        self.ledgers: defaultdict[str, Ledger] = defaultdict(Ledger)
        self.clock_offset = timedelta()
        self._start = start and start.astimezone(UTC)
        self._started_at: float | None = None
        self._released = asyncio.Event()

    def now(self) -> datetime:
        """The server's clock: aware UTC."""
        loop = asyncio.get_running_loop()
        at = loop.time()
        if self._started_at is None:
            default = VIRTUAL_START if hasattr(loop, "boot_clock") else datetime.now(UTC)
            self._start, self._started_at = self._start or default, at
        assert self._start is not None
        return self._start + timedelta(seconds=at - self._started_at) + self.clock_offset

    def read(self, name: str) -> Lease | None:
        """One row as a query would see it now."""
        lease = self.leases.get(name)
        return None if lease is None else replace(lease, now=self.now())

    def claim(self, name: str, holder: str, duration: float, seen: Lease | None, force: bool) -> Lease | None:
        """See `LeaseStore.claim`."""
        now, lease = self.now(), self.read(name)
        if lease is None:
            if seen is not None:
                return None
            # A row that vanished is made anew above the highest token that is known of it.
            fence, ledger = self.fences.get(name), self.ledgers[name]
            runs = (*ledger.runs.every(), *ledger.terms.every())
            known = max([fence.token if fence else 0, *(run.token for run in runs)])
            lease = _released(name, known, now)
            won = True
        elif seen is None:
            won = lease.holder is None
        else:
            won = (lease.token, lease.beat) == (seen.token, seen.beat) and (lease.free or force)
        if won:
            earlier = self.fences.get(name)
            lease = replace(
                lease,
                holder=holder,
                token=max(lease.token, earlier.token if earlier else 0) + 1,
                beat=lease.beat + 1,
                elected_at=now,
                renewed_at=now,
                expires_at=now + timedelta(seconds=duration),
                resign_token=None,
            )
            self.leases[name] = lease
            self.fences[name] = Fence(holder, lease.token, earlier.fence if earlier else 0)
        return lease

    def renew(self, name: str, holder: str, token: int, beat: int, duration: float) -> Lease | None:
        """See `LeaseStore.renew`."""
        lease = self.read(name)
        if lease is not None and lease.held_by(holder, token) and lease.beat < beat:
            expires_at = lease.now + timedelta(seconds=duration)
            lease = self.leases[name] = replace(lease, beat=beat, renewed_at=lease.now, expires_at=expires_at)
        return lease

    def release(self, name: str, holder: str, token: int) -> bool:
        """See `LeaseStore.release`."""
        lease = self.read(name)
        if lease is None or not lease.held_by(holder, token):
            return False
        self.leases[name] = replace(lease, holder=None, beat=lease.beat + 1, expires_at=lease.now)
        self.wake()
        return True

    def resign(self, name: str) -> int | None:
        """See `LeaseStore.resign`."""
        lease = self.leases.get(name)
        if lease is None or lease.holder is None:
            return None
        self.leases[name] = replace(lease, resign_token=lease.token)
        return lease.token

    def fence(self, term: TermKey, final: RunKey | None = None) -> None:
        """Counts a fenced commit, and records a run as succeeded.

        Raises:
            FenceBroken: The term is not the latest.
            Refused: This attempt is not the running one.
        """
        batch = Batch()
        if final is not None:
            change = Change(key=final, was="running", status="succeeded", attempt=final.attempt, required=True)
            batch.changes.append(change)
        self.record(term, batch)

    def enroll(self, term: TermKey, jobs: Sequence[JobDefinition]) -> None:
        """See `LedgerStore.enroll`."""
        self.fence(term)
        self.ledgers[term.name].enroll(jobs, self.now())

    def have(self, term: TermKey, jobs: Sequence[str]) -> None:
        """See `LedgerStore.have`."""
        self.fence(term)
        self.ledgers[term.name].have(term, jobs)

    def record(self, term: TermKey, batch: Batch) -> None:
        """See `LedgerStore.record`."""
        row = self.fences.get(term.name)
        if row is None or (row.holder, row.token) != (term.holder, term.token):
            raise FenceBroken
        self.ledgers[term.name].record(term, batch, self.now())
        row.fence += 1

    def take(self, name: str, holder: str = "another", duration: float = 30.0) -> Lease:
        """Gives a lease to another holder, whoever has it now: a newer term begins at once, and nobody is told.

        That holder does not renew it: after `duration`, in seconds, it is free again. Call it in the loop.
        """
        lease = self.claim(name, holder, duration, self.read(name), force=True)
        assert lease is not None
        return lease

    def step_clock(self, seconds: float) -> None:
        """Sets the server's clock forward, or back, by some seconds; every process's own goes on as before."""
        self.clock_offset += timedelta(seconds=seconds)

    def wake(self) -> None:
        """Wakes every watching candidate."""
        self._released.set()
        self._released = asyncio.Event()

    async def released(self, seconds: float) -> None:
        """Waits until a lease is released, at most `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._released.wait()
        except TimeoutError:
            pass


def _released(name: str, token: int, now: datetime) -> Lease:
    return Lease(
        name=name,
        holder=None,
        token=token,
        beat=0,
        elected_at=now,
        renewed_at=now,
        expires_at=now,
        resign_token=None,
        now=now,
    )
