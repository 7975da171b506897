"""How a candidate waits for a release: until the holder's NOTIFY rings, or by reading the row now and then.

A release tells the candidates in its own transaction. The connection of the leases listens meanwhile, and is free for
other exchanges; so the candidates of any number of leases may wait on one.

A bell is a hint that proves nothing, but it tells of the row as the release left it. A candidate takes that for a
reading, and claims by it: the claim fails if the row is not so. If the bell rang long after the release, because this
process or the network stood still, what it tells of the database's clock is old; then the candidate reads the row.

A bell that is not heard costs time, no more: each wait ends by a third of the lease. Nobody listens behind a pooler,
and a process listens for its first leases only; the candidates of others read the row every `poll`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from aiolease._waiting import caller
from aiolease.stores.contract import longest_wait, look_limit
from aiolease.stores.network.polls import Polls
from aiolease.stores.postgresql.links import Link
from aiolease.stores.records import Lease

MOST = 32
"""Leases of one process that listen: so many channels are named in one message."""

_GONE = 30.0
"""Seconds after which a candidate that did not come back is not listened for any more."""

_AT_ONCE = 0.05
"""Seconds after a release within which what a bell tells of it stands for a reading."""


class Waiting:
    """The candidates of one process, and their bells."""

    def __init__(
        self, polls: Polls, channel: Callable[[str], str], released: Callable[[Lease, str], Lease | None]
    ) -> None:
        """Makes it.

        Args:
            polls: What reads the rows, and has the connection listen on `wanted`.
            channel: Names the channel of a lease; by the schema of the tables, which the first connection finds out.
            released: Makes the row behind a release of one as it was read before, and of what a bell tells.
        """
        self._polls = polls
        self._channel = channel
        self._released = released
        self._ahead = math.inf  # seconds by which the database's clock was ahead of the loop's, at the latest reading
        self._bells: dict[str, _Bell] = {}  # by the lease
        self._names: dict[str, str] = {}  # of leases, by their channels
        self._watched: dict[str, float] = {}  # leases, and until when they count as watched
        self._seen: WeakKeyDictionary[asyncio.Task[Any], dict[str, int]] = WeakKeyDictionary()
        self._link: Link | None = None

    def listening(self, link: Link) -> None:
        """This is the connection that listens now, on its channels `Link.heard`."""
        self._link = link

    @property
    def wanted(self) -> list[str]:
        """The channels on which the connection should listen."""
        self._names = {self._channel(name): name for name in self._watched}
        return list(self._names)

    def ring(self, channel: str, told: str) -> None:
        """Somebody has told of a release, or the connection has ended and hears of none."""
        if (bell := self._bells.get(self._names.get(channel, ""))) is not None:
            bell.ring(told)

    async def watch(self, name: str, seconds: float, *, lease: Lease | None, poll: float, hint: bool) -> Lease | None:
        """See `LeaseStore.watch`."""
        if not (hint and self._may_listen(name, seconds)):
            return await self._read(name, seconds, poll, look_limit(lease))
        limit, clock = look_limit(lease), asyncio.get_running_loop().time
        until = clock() + longest_wait(seconds, lease, poll)
        bell, seen = self._bells.setdefault(name, _Bell()), self._seen.setdefault(caller(), {})
        if seen.get(name) != bell.count or not self._hears(name):
            # Rings have gone past, or nobody listened: the row may be free. The connection listens from here on.
            seen[name] = bell.count
            found = await self._read(name, 0.0, poll, limit)
            if _state(found) != _state(lease):
                return found
            if not self._hears(name):
                return await self._read(name, max(until - clock(), 0.0), poll, limit)
        await bell.wait(until - clock(), seen[name])
        if seen[name] != bell.count and lease is not None:
            told = self._released(lease, bell.told)
            if told is not None and abs(_ahead(told) - self._ahead) < _AT_ONCE:
                seen[name] = bell.count
                return told
        # Before the reading: a ring that comes during it may be of a later release.
        seen[name] = bell.count
        return await self._read(name, 0.0, poll, limit)

    async def _read(self, name: str, seconds: float, poll: float, limit: float) -> Lease | None:
        found = await self._polls.read(name, seconds, poll, limit)
        if found is not None:
            self._ahead = _ahead(found)
        return found

    def _hears(self, name: str) -> bool:
        return self._link is not None and self._channel(name) in self._link.heard

    def won(self, name: str) -> None:
        """This process leads a lease, and waits for it no longer."""
        self._watched.pop(name, None)

    def _may_listen(self, name: str, seconds: float) -> bool:
        if self._link is not None and self._link.pooled:
            return False
        now = asyncio.get_running_loop().time()
        for other in [other for other, until in self._watched.items() if until < now]:
            del self._watched[other]
            self._bells.pop(other, None)
            for seen in self._seen.values():
                seen.pop(other, None)
        if name not in self._watched and len(self._watched) >= MOST:
            return False
        self._watched[name] = now + seconds + _GONE
        return True


def _state(lease: Lease | None) -> tuple[int, int] | None:
    """What tells one state of a row from another."""
    return None if lease is None else (lease.token, lease.beat)


def _ahead(lease: Lease) -> float:
    """Seconds by which the database's clock, as a row that has just come shows it, is ahead of the loop's."""
    return lease.now.timestamp() - asyncio.get_running_loop().time()


class _Bell:
    """Rings, for all that wait and for those that are about to."""

    def __init__(self) -> None:
        self.count = 0
        self.told = ""  # at the latest ring
        self._rung = asyncio.Event()

    def ring(self, told: str) -> None:
        self.count += 1
        self.told = told
        rung, self._rung = self._rung, asyncio.Event()
        rung.set()

    async def wait(self, seconds: float, count: int) -> None:
        """Waits for a ring; not if there have been some since there were `count`."""
        if self.count == count and seconds > 0:
            try:
                async with asyncio.timeout(seconds):
                    await self._rung.wait()
            except TimeoutError:
                pass
