"""How a candidate waits for a release: in the lock that the leader holds, or by polling the row.

A leader holds a ``GET_LOCK`` during its term. A candidate that waits in it wakes within a millisecond of a release. The
lock is a hint only, and proves nothing. A candidate polls instead

1. if the lock is missing, or local to one node (Galera);
2. if this process leads or waits for another lease, too;
3. for a while after a hint was wrong.

All candidates of a process poll with one statement.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from aiolease._waiting import caller, ended
from aiolease.stores.contract import longest_wait, look_limit
from aiolease.stores.mysql.drivers import Rows
from aiolease.stores.mysql.lease import LeaseSQL
from aiolease.stores.mysql.session import MySQLSession
from aiolease.stores.network.polls import Polls
from aiolease.stores.records import Lease

_LATE = 0.5
"""Seconds that a server may be late to end a wait; then the connection is discarded."""

_RACE = 1.0
"""Seconds after which a new leader has the lock that it asked for with its claim, unless another candidate held it."""

_GONE = 30.0
"""Seconds after which a candidate that did not call `watch` again is not counted any more."""


class Waiting:
    """The candidates of one process, and the lock that its session has or waits for.

    Attributes:
        rounds: Whether the server waits for whole seconds only.
        locked: The lease whose lock this session got while waiting.
        distrust_until: Until when nobody waits in a lock, in seconds by the loop's clock.
    """

    def __init__(
        self,
        sql: LeaseSQL,
        session: MySQLSession,
        polls: Polls,
        *,
        run: Callable[..., Awaitable[list[Rows]]],
        leads: Callable[[], bool],
    ) -> None:
        """Makes it.

        Args:
            sql: The statements.
            session: The connection of the leases.
            polls: Reads for the candidates that do not wait in a lock.
            run: Sends a packet over that connection; a candidate that waits there in a lock stops waiting.
            leads: Says whether this process leads any lease.
        """
        self.rounds = True
        self.locked: str | None = None
        self.distrust_until = 0.0
        self._sql = sql
        self._session = session
        self._polls = polls
        self._run = run
        self._leads = leads
        self._lock_wait: asyncio.Task[Lease | None] | None = None
        self._watched: dict[str, dict[asyncio.Task[Any], float]] = {}  # the candidates here, and when they came

    async def watch(self, name: str, seconds: float, *, lease: Lease | None, poll: float, hint: bool) -> Lease | None:
        """See `LeaseStore.watch`."""
        loop = asyncio.get_running_loop()
        if self.locked == name:  # it was woken, and did not win: others may have the lock
            await self.give_up_lock(name)
            self.distrust_until = loop.time() + _RACE
        wait = longest_wait(seconds, lease, poll)  # a release wakes nobody if a stranger has the lock
        if self.rounds:
            wait = float(math.floor(wait))
        alone = self._is_alone(name, caller(), loop.time()) and not self._leads() and self._lock_wait is None
        trusted = loop.time() >= self.distrust_until
        if not (hint and self._sql.hints and alone and wait > 0 and trusted and self._session.opened):
            return await self._polls.read(name, seconds, poll, look_limit(lease))
        self._lock_wait = asyncio.create_task(self._wait_in_lock(name, wait, lease))
        try:
            # `give_way` cancels the inner task, not this one.
            # MariaDB's own time limit follows its wall clock, which may step back: so there is a limit here, too.
            await ended(self._lock_wait, wait + _LATE)
        finally:
            waited, self._lock_wait = self._lock_wait, None
            if not waited.done():
                waited.cancel()
                await asyncio.wait([waited])
        if waited.cancelled():
            return await self._polls.read(name, 0.0, poll, look_limit(lease))
        return waited.result()

    def give_way(self) -> None:
        """Ends a wait in a lock: another lease of this process needs the connection."""
        if self._lock_wait is not None:
            self._lock_wait.cancel()

    def won(self, name: str) -> None:
        """Notes that this process leads a lease: it keeps the lock, and none of its candidates waits for it."""
        self.locked = None
        self._watched.pop(name, None)

    async def give_up_lock(self, name: str) -> None:
        """Releases a lock that this session got while waiting."""
        self.locked = None
        await self._run("DO RELEASE_LOCK(%s)", (self._sql.lock_name(name),))

    def _is_alone(self, name: str, task: asyncio.Task[Any], now: float) -> bool:
        """Notes a candidate of this process; returns whether it is the only one of the last seconds."""
        watchers = self._watched.pop(name, {})
        watchers.pop(task, None)
        watchers[task] = now
        self._watched[name] = watchers  # at the end: the oldest are in front, and only those are looked at
        while True:
            first = next(iter(self._watched))
            other, at = next(iter(self._watched[first].items()))
            if not (other.done() or now - at > _GONE):
                return (first, other) == (name, task)
            del self._watched[first][other]
            if not self._watched[first]:
                del self._watched[first]

    async def _wait_in_lock(self, name: str, seconds: float, lease: Lease | None) -> Lease | None:
        """Waits in the leader's lock, at most `seconds`; keeps it only if the row was released."""
        lock, (read, names) = self._sql.lock_name(name), self._sql.read([name])
        results = await self._session.run(f"SELECT GET_LOCK(%s, %s); {read}", (lock, seconds, *names))
        got, rows = results[0][0][0], results[1]
        found = self._sql.lease(rows[0]) if rows else None
        if got == 1:
            if found is not None and found.holder is None:
                self.locked = name
            else:
                # The lock was free though the lease has a holder: the leader died, or lost its connection.
                await self._session.run("DO RELEASE_LOCK(%s)", (lock,))
                self._distrust(lease, found)
        elif got is None:
            self._distrust(lease, found)  # GET_LOCK failed: killed, or out of memory
        return found

    def _distrust(self, before: Lease | None, found: Lease | None) -> None:
        changed = before is not None and found is not None and found.token != before.token
        young = found is not None and found.now - found.elected_at < timedelta(seconds=2 * _RACE)
        if changed or young:
            pause = _RACE  # a new leader, which is about to ask for its lock, or asks at a heartbeat
        else:
            # A heartbeat is at most 0.45 of a lease. After a longer pause a leader whose connection was new, if it
            # lives, has its lock again.
            duration = (found.expires_at - found.renewed_at).total_seconds() if found else 0.0
            pause = max(duration, 1.0) * random.uniform(0.5, 0.6)
        self.distrust_until = asyncio.get_running_loop().time() + pause
