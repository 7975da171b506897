"""How a candidate waits for a release: for the lock that the leader holds, or by looking at the row.

A leader locks a file beside the database during its term. A thread of the candidate's process waits for that lock. When
it has the lock it reads the row, and wakes the candidate within a millisecond of the release. The lock is a hint only,
and proves nothing: the candidate claims by the row. One that nobody wakes reads the row after a third of the lease.

A candidate looks at the row ten times a second instead

1. if the file cannot be locked: the platform has no `fcntl`, the process no right, or the file system no such locks;
2. if this process waits for very many leases (`line.MOST`);
3. if the lock was free though the row has a holder, until it calls `watch` again, a third of a lease later. The leader,
   if it is alive, asks for the lock at each renewal;
4. if the row has no holder;
5. in virtual time, for which no thread can wait.

The threads are in `aiolease.stores.sqlite.line`, the locks in `aiolease.stores.sqlite.lockfile`.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from functools import partial

from aiolease._clock import boot_clock, current_clock
from aiolease._waiting import time_limited
from aiolease.stores.contract import longest_wait, look_limit
from aiolease.stores.records import Lease
from aiolease.stores.sqlite.file import File
from aiolease.stores.sqlite.line import CLAIMS_WITHIN, MOST, Woken, wait_in_line
from aiolease.stores.sqlite.lockfile import Lock, LockFile

_GLANCE = 0.1
"""Seconds between two readings of a candidate that looks at the row."""


class Waiting:
    """The candidates and the leaders of one store, and the locks that they have.

    The methods that follow a statement are called by the operation itself, right after its commit.
    """

    def __init__(
        self, file: File, prefix: str, find: Callable[[str, sqlite3.Connection], Lease | None], store: str
    ) -> None:
        """Makes it.

        Args:
            file: The database.
            prefix: What the names of the tables start with.
            find: Reads the row of a lease.
            store: The database, for people.
        """
        self._file = file
        self._prefix = prefix
        self._find = find
        self._store = store
        self._held: dict[str, tuple[str, Lock]] = {}  # of leaders: by the lease, with the holder
        self._caught: dict[str, Lock] = {}  # of candidates that were woken, and are about to claim

    # -- the candidates

    async def watch(self, name: str, seconds: float, *, lease: Lease | None, poll: float, hint: bool) -> Lease | None:
        """See `LeaseStore.watch`."""
        self._give_back(name)  # it was woken, and did not win: others may have the lock
        clock = current_clock()
        until = clock() + seconds
        if not hint:
            await asyncio.sleep(max(min(poll, seconds), 0.0))
            return await self._read(name, lease)
        if lease is not None and lease.holder is not None and clock is boot_clock:
            try:
                woken = await wait_in_line(
                    self._lock_file(name),
                    longest_wait(seconds, lease, poll),
                    lambda: self._file.run_here(partial(self._find, name)),
                )
            except TimeoutError:
                return await self._read(name, lease)
            if woken is not None:
                found = await self._use(woken, name, lease)
                if _moved_on(lease, found):
                    return found
        return await self._look(name, until, lease, poll)

    async def _look(self, name: str, until: float, lease: Lease | None, poll: float) -> Lease | None:
        """Reads the row again and again, until it tells of a release or of a new term, or the time is up."""
        clock, step = current_clock(), min(poll, _GLANCE)
        while True:
            left = until - clock()
            await asyncio.sleep(max(min(step, left), 0.0))
            found = await self._read(name, lease)
            if left <= step or _moved_on(lease, found):
                return found

    async def _read(self, name: str, lease: Lease | None) -> Lease | None:
        return await time_limited(look_limit(lease), self._store, self._file.run(partial(self._find, name)))

    async def _use(self, woken: Woken, name: str, lease: Lease | None) -> Lease | None:
        """The row as it is since the candidate was woken. Keeps the lock, for a claim, only if the row was released."""
        lock, found = woken.lock, woken.row
        if not woken.read:
            try:
                found = await self._read(name, lease)
            except BaseException:
                lock.free()
                raise
        if found is None or found.holder is None:
            self._caught[name] = lock
            asyncio.get_running_loop().call_later(CLAIMS_WITHIN, self._give_back, name, lock)
        else:
            lock.free()  # the leader died, or does not have its lock, and may ask for it
        return found

    def _give_back(self, name: str, lock: Lock | None = None) -> None:
        """Frees the lock that a candidate got by waiting and has not used for a claim; if given, only `lock`."""
        if lock is None or self._caught.get(name) is lock:
            caught = self._caught.pop(name, None)
            if caught is not None:
                caught.free()

    # -- the leaders

    def saw(self, name: str, row: Lease | None) -> None:
        """Follows a reading: frees the lock of a term that ended without a release, as the row shows."""
        holder, _ = self._held.get(name, (None, None))
        if holder is not None and (row is None or row.holder != holder):
            self.left(name, holder)

    def wrote(self, name: str, holder: str, row: Lease | None) -> None:
        """Follows a claim or a renewal: a holder that leads gets the lock if it is free, another gives it up."""
        if row is None or row.holder != holder:
            self._give_back(name)
            self.left(name, holder)
            return
        _, lock = self._held.pop(name, (holder, None))
        lock = self._caught.pop(name, lock)
        if lock is not None and not lock.in_place:
            lock.free()
            lock = None
        if lock is None and len(self._held) < MOST:
            lock = self._lock_file(name).take()
        if lock is not None:
            self._held[name] = (holder, lock)

    def left(self, name: str, holder: str | None = None) -> None:
        """Follows a release: frees the lock, so that the candidate that it wakes finds the row free.

        Args:
            name: The lease.
            holder: Whose term is over; ``None`` for any, and then from any thread.
        """
        held = self._held.get(name)
        if held is not None and holder in {None, held[0]} and self._held.pop(name, None) is held:
            held[1].free()

    def close(self) -> None:
        """Frees all locks of this store."""
        for name in [*self._held, *self._caught]:
            self.left(name)
            self._give_back(name)

    def _lock_file(self, name: str) -> LockFile:
        return LockFile.of(self._file.path, self._prefix, name)


def _moved_on(lease: Lease | None, found: Lease | None) -> bool:
    """Whether `found` is news for a candidate that knows `lease`: a release or a new term, not a renewal or expiry."""
    if lease is None or found is None:
        return lease is not found
    return found.holder is None or found.token != lease.token
