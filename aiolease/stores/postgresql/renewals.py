"""Batches the renewals of one process: those that are due while another is under way share one statement and commit.

A process has one connection for all its leases. Hundreds of renewals that were sent one by one would wait for each
other's commits. A row that a stranger has locked is passed over, so that the other leases do not wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from aiolease.errors import StoreUnavailable
from aiolease.stores.network.polls import while_wanted
from aiolease.stores.network.queued import Queue
from aiolease.stores.records import Lease

_MOST = 500
"""How many leases one statement renews at most: they take the server some 20 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """What `LeaseStore.renew` was asked for."""

    name: str
    holder: str
    token: int
    beat: int
    duration: float


class Renewals(Queue[Renewal, "Lease | None"]):
    """Sends the renewals of one process, as soon as the connection is free."""

    def __init__(
        self,
        description: str,
        send: Callable[[Sequence[Renewal]], Awaitable[Mapping[str, Lease]]],
        read: Callable[[Sequence[str]], Awaitable[Mapping[str, Lease]]],
        gave_up: Callable[[], None],
    ) -> None:
        """Makes it.

        Args:
            description: The store's, for errors.
            send: Renews leases, and returns the rows of those that it renewed.
            read: Reads the rows of leases.
            gave_up: Called when a caller stops waiting for its turn.
        """
        super().__init__(gave_up)
        self._description = description
        self._send = send
        self._read = read

    async def send_next(self) -> None:
        """See `Queue.send_next`. A row that somebody has locked is `StoreUnavailable` for its caller."""
        batch = dict(islice(self.waiting.items(), _MOST))
        for answer in batch:
            del self.waiting[answer]
        query = asyncio.ensure_future(self._renew({renewal.name: renewal for renewal in batch.values()}))
        try:
            await while_wanted(query, batch)
        finally:
            cancelled = StoreUnavailable(self._description, "cancelled")
            error = cancelled if query.cancelled() else query.exception()
            for answer, renewal in batch.items():
                self._answer(answer, renewal, error or query.result())

    def _answer(
        self, answer: asyncio.Future[Lease | None], renewal: Renewal, result: BaseException | Mapping[str, Lease]
    ) -> None:
        if answer.done():
            return
        if isinstance(result, BaseException):
            answer.set_exception(result)
            return
        row = result.get(renewal.name)
        if row is not None and row.held_by(renewal.holder, renewal.token) and row.beat < renewal.beat:
            answer.set_exception(StoreUnavailable(self._description, "another session has locked the row of the lease"))
        else:
            answer.set_result(row)

    async def _renew(self, renewals: Mapping[str, Renewal]) -> Mapping[str, Lease]:
        """Renews; returns the rows of all leases as they are then."""
        rows = await self._send(list(renewals.values()))
        left = [name for name in renewals if name not in rows]
        return {**rows, **await self._read(left)} if left else rows
