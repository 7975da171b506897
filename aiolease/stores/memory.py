"""A store in memory, for tests: the same rules as a database, without one.

One `MemoryServer` is the database; each `MemoryStore` on it stands for one process and its network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from aiolease._lease import FenceBroken, Lease, Term

T = TypeVar("T")


@dataclass(slots=True)
class Fence:
    """A row of the fence table."""

    holder: str | None
    token: int
    fence: int = 0


class MemoryServer:
    """The tables, and the clock, of a database that lives in this process.

    Attributes:
        leases: The lease table; a test may change or delete its rows by hand.
        fences: The fence table.
        clock_offset: How far the server's clock has been stepped away from the true time.
    """

    def __init__(self, start: datetime | None = None) -> None:
        self.leases: dict[str, Lease] = {}
        self.fences: dict[str, Fence] = {}
        self.clock_offset = timedelta()
        self._start = start
        self._started_at: float | None = None
        self._released = asyncio.Event()

    def now(self) -> datetime:
        """The server's clock."""
        at = asyncio.get_running_loop().time()
        if self._started_at is None:
            self._start, self._started_at = self._start or datetime.now(UTC), at
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
            fence = self.fences.get(name)
            lease = _released(name, fence.token if fence else 0, now)
            won = True
        elif seen is None:
            won = lease.holder is None
        else:
            won = (lease.token, lease.beat) == (seen.token, seen.beat) and (lease.free or force)
        if won:
            lease = replace(
                lease,
                holder=holder,
                token=lease.token + 1,
                beat=lease.beat + 1,
                elected_at=now,
                renewed_at=now,
                expires_at=now + timedelta(seconds=duration),
                resign_token=None,
            )
            self.leases[name] = lease
            earlier = self.fences.get(name)
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

    def fence(self, term: Term) -> None:
        """Counts a fenced commit.

        Raises:
            FenceBroken: The term is not the latest.
        """
        row = self.fences.get(term.name)
        if row is None or (row.holder, row.token) != (term.holder, term.token):
            raise FenceBroken
        row.fence += 1

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


class MemoryTransaction:
    """A fenced transaction in memory: its connection is a list of calls, made when it commits."""

    def __init__(self, store: MemoryStore) -> None:
        self.connection: list[Callable[[], object]] = []
        self._store = store

    async def commit(self, term: Term) -> None:
        """See `Transaction.commit`."""

        def work() -> None:
            self._store.server.fence(term)
            for call in self.connection:
                call()

        await self._store.exchange("commit", work)

    async def roll_back(self) -> None:
        """See `Transaction.roll_back`."""


class MemoryStore:
    """A `LeaseStore` on a `MemoryServer`: one process, and its way to the database."""

    description = "memory"

    def __init__(self, server: MemoryServer | None = None) -> None:
        self.server = server or MemoryServer()

    async def exchange(self, method: str, statement: Callable[[], T]) -> T:
        """Sends one statement to the server and awaits its answer; where a subclass puts its faults."""
        await asyncio.sleep(0)
        answer = statement()
        await asyncio.sleep(0)
        return answer

    async def read(self, name: str) -> Lease | None:
        """See `LeaseStore.read`."""
        return await self.exchange("read", lambda: self.server.read(name))

    async def status(self, name: str) -> Lease | None:
        """Reads the row of a lease, for people."""
        return await self.read(name)

    async def watch(self, name: str, seconds: float, *, lease: Lease | None, poll: float, hint: bool) -> Lease | None:
        """See `LeaseStore.watch`."""
        await (self.server.released(seconds) if hint else asyncio.sleep(min(seconds, poll)))
        return await self.read(name)

    async def claim(self, name: str, holder: str, duration: float, *, seen: Lease | None, force: bool) -> Lease | None:
        """See `LeaseStore.claim`."""
        return await self.exchange("claim", lambda: self.server.claim(name, holder, duration, seen, force))

    async def renew(self, name: str, holder: str, token: int, beat: int, duration: float) -> Lease | None:
        """See `LeaseStore.renew`."""
        return await self.exchange("renew", lambda: self.server.renew(name, holder, token, beat, duration))

    async def release(self, name: str, holder: str, token: int) -> bool:
        """See `LeaseStore.release`."""
        return await self.exchange("release", lambda: self.server.release(name, holder, token))

    async def begin(self) -> MemoryTransaction:
        """See `LeaseStore.begin`."""
        return await self.exchange("begin", lambda: MemoryTransaction(self))

    async def fence(self, connection: object, term: Term) -> None:
        """See `LeaseStore.fence`."""
        await self.exchange("fence", lambda: self.server.fence(term))

    def forget(self, name: str) -> None:
        """See `LeaseStore.forget`."""

    async def resign(self, name: str) -> int | None:
        """See `LeaseStore.resign`."""
        return await self.exchange("resign", lambda: self.server.resign(name))

    async def aclose(self) -> None:
        """Nothing to close."""
