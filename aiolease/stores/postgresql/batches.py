"""Batches what the leases of one process write: what is due while another write is under way shares a statement.

A process has one connection for all its leases. Hundreds of renewals or claims that were sent one by one would wait for
each other's commits. A row that a stranger has locked is passed over, so that the other leases do not wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from aiolease.errors import AioleaseError, StoreUnavailable
from aiolease.stores.network.polls import Found, answer_with, while_wanted
from aiolease.stores.network.queued import Queue
from aiolease.stores.records import Lease

_MOST = 500
"""How many leases one statement writes at most: they take the server some 20 ms."""


class Write(Protocol):
    """What one lease writes."""

    @property
    def name(self) -> str:
        """The lease."""

    def is_due(self, row: Lease | None) -> bool:
        """Whether it would still change this row: it was passed over."""


W = TypeVar("W", bound=Write)


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """What `LeaseStore.renew` was asked for."""

    name: str
    holder: str
    token: int
    beat: int
    duration: float

    def is_due(self, row: Lease | None) -> bool:
        """See `Write.is_due`."""
        return row is not None and row.held_by(self.holder, self.token) and row.beat < self.beat


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What `LeaseStore.claim` was asked for, of a row that is there."""

    name: str
    holder: str
    duration: float
    seen: Lease
    force: bool

    def is_due(self, row: Lease | None) -> bool:
        """See `Write.is_due`."""
        unchanged = row is not None and (row.token, row.beat) == (self.seen.token, self.seen.beat)
        return row is not None and unchanged and (row.free or self.force)


class PassedOver(StoreUnavailable):
    """Somebody has locked the row of the lease, or of its fence."""


class Batches(Queue[W, "Lease | None"], Generic[W]):
    """Sends the writes of one kind of one process, as soon as the connection is free; answers with the rows then."""

    def __init__(
        self,
        description: str,
        send: Callable[[Sequence[W]], Awaitable[Found]],
        read: Callable[[list[str]], Awaitable[Found]],
        gave_up: Callable[[], None],
    ) -> None:
        """Makes it.

        Args:
            description: The store's, for errors.
            send: Writes, at most once for each lease, and returns the rows of those that it changed.
            read: Reads the rows of leases.
            gave_up: Called when a caller stops waiting for its turn.
        """
        super().__init__(gave_up)
        self._description = description
        self._send = send
        self._read = read

    async def send_next(self) -> None:
        """See `Queue.send_next`. A write that is passed over is `PassedOver` for its caller."""
        batch: dict[str, asyncio.Future[Lease | None]] = {}
        for answer, write in self.waiting.items():
            if len(batch) < _MOST:
                batch.setdefault(write.name, answer)
        writes = {answer: self.waiting.pop(answer) for answer in batch.values()}
        query = asyncio.ensure_future(self._write(list(writes.values())))
        try:
            await while_wanted(query, writes)
        finally:
            cancelled = StoreUnavailable(self._description, "cancelled")
            error = cancelled if query.cancelled() else query.exception()
            for answer, write in writes.items():
                answer_with(answer, error or self._outcome(write, query.result()))

    def _outcome(self, write: W, found: Found) -> Lease | Exception | None:
        row = found.get(write.name)
        if not isinstance(row, Exception) and write.is_due(row):
            return PassedOver(self._description, "another session has locked the row of the lease")
        return row

    async def _write(self, writes: Sequence[W]) -> Found:
        """Writes; returns the rows of all leases as they are then."""
        found = dict(await self._send(writes))
        left = [write.name for write in writes if write.name not in found]
        if left:
            try:
                found.update(await self._read(left))
            except AioleaseError as error:  # what was written is known all the same
                found.update(dict.fromkeys(left, error))
        return found
