"""Batches the writes of the leases of one process: those that are ready at one moment share one packet and one commit.

A process has one connection for all its leases. A thousand renewals that fall due together would miss their deadlines
if they were sent one by one, because each would wait for the commits of all others. In batches they cost a few commits.

1. A batch has writes of one kind. The most urgent kind goes first: a renewal never queues behind a thousand claims, and
   never shares a transaction with a claim that waits for a fence.
2. A batch is sorted by the names of the leases, so that two processes that claim the same leases do not deadlock.
3. If a stranger holds a row locked, the other leases must not suffer. Every write except an insert locks its rows
   first, with NOWAIT. A batch that meets a locked row is sent again in smaller batches, until the locked row is alone.
4. A claim that meets a locked row is then tried a few times more, because other candidates lock that row, too.
5. A process with one lease waits for its row.
6. The rows that a batch is to read once it is committed are read by one statement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from typing import Any, Protocol

from aiolease.errors import StoreUnavailable
from aiolease.stores.mysql.dialect import Bound
from aiolease.stores.mysql.drivers import Rows, error_number
from aiolease.stores.network.polls import while_wanted
from aiolease.stores.network.queued import Queue
from aiolease.stores.records import TermKey

_MOST = 100
"""How many writes one packet has at most: they take the server some 10 ms."""

_LOCKED = frozenset({1205, 3572})
"""The errors for a locked row: MariaDB's, and MySQL's."""

_PAUSE = 0.02
"""Seconds after which a locked row is tried again: an exchange that was cancelled may still hold it."""

_CLAIM_PAUSES = (0.02, 0.1, 0.5)
"""Seconds after which a claim that met a locked row is tried again. Few, because each failure costs the connection."""


class Run(Protocol):
    """Sends a packet; see `Session.run`."""

    def __call__(self, sql: str, parameters: tuple[object, ...], *, repeat: bool) -> Coroutine[Any, Any, list[Rows]]:
        """Sends it."""


class Kind(IntEnum):
    """What a write is for. The lowest goes first."""

    RENEW = 0
    RELEASE = 1
    CLAIM = 2
    MAKE = 3

    @property
    def is_of_own_rows(self) -> bool:
        """Whether only this process writes the rows: a renewal and a release are of its own term."""
        return self in {Kind.RENEW, Kind.RELEASE}

    @property
    def repeats(self) -> bool:
        """Whether it may be sent twice. A release may not: its caller wants to know whether this release did it."""
        return self is not Kind.RELEASE

    @property
    def locks_first(self) -> bool:
        """Whether its rows exist already, and are locked before they are written."""
        return self is not Kind.MAKE


@dataclass(frozen=True, slots=True)
class Write:
    """What one lease writes, and what it reads once that is committed.

    Attributes:
        kind: What it is for.
        name: The lease.
        sql: The statements that write, joined by semicolons.
        parameters: The parameters of `sql`.
        after: The statements that follow the commit.
        after_parameters: The parameters of `after`.
        reads: The term whose row is read behind that, ``None`` if none is: its rows are the last result.
    """

    kind: Kind
    name: str
    sql: str
    parameters: tuple[object, ...]
    after: str = ""
    after_parameters: tuple[object, ...] = ()
    reads: TermKey | None = None


class Writes(Queue[Write, list[Rows]]):
    """Sends the writes of one process, as soon as the connection is free."""

    def __init__(
        self,
        description: str,
        run: Run,
        *,
        gave_up: Callable[[], None],
        has_others: Callable[[str], bool],
        read: Callable[[Sequence[TermKey]], Bound],
        table: str,
        fence_table: str,
    ) -> None:
        """Makes it.

        Args:
            description: The store's, for errors.
            run: Sends a packet.
            gave_up: Called when a caller stops waiting for its turn.
            has_others: Says whether this process has other leases than this one.
            read: The statements that read the rows of terms; the rows of the last one begin with the lease's name.
            table: The table of the leases.
            fence_table: The table of the fences.
        """
        super().__init__(gave_up)
        self._description = description
        self._run = run
        self._has_others = has_others
        self._read = read
        # Each row by its key: a range would also lock the rows between, which may be another process's.
        self._lock_sql = f"(SELECT 1 FROM {table} WHERE name = %s FOR UPDATE NOWAIT)"
        self._lock_fence_sql = f"(SELECT 1 FROM {fence_table} WHERE name = %s FOR UPDATE NOWAIT)"
        self._one_is_under_way = False
        self._most = _MOST
        self._failures: dict[str, int] = {}  # by lease, how many of its batches failed in a row

    async def send(self, write: Write) -> list[Rows]:
        """Sends a write, alone or in a batch; returns the results of its statements, and of those after the commit.

        A caller that stops waiting before its turn has written nothing.
        """
        pauses = _CLAIM_PAUSES if write.kind is Kind.CLAIM else ()
        for pause in pauses:
            try:
                return await self._send(write)
            except StoreUnavailable as error:
                if not (_is_locked(error) and self._has_others(write.name)):
                    raise
            await asyncio.sleep(pause)
        return await self._send(write)

    async def _send(self, write: Write) -> list[Rows]:
        if not (self.sending or self._one_is_under_way or self._turn(write)[1]):
            return await self._send_one(write)
        return await self.ask(write)

    async def _send_one(self, write: Write) -> list[Rows]:
        """Sends a write at once, without the queue, when nothing else waits: most processes have one lease."""
        self._one_is_under_way = True
        try:
            sql, parameters, skipped = self._packet([write])
            return (await self._run(sql, parameters, repeat=write.kind.repeats))[skipped:]
        finally:
            self._one_is_under_way = False

    async def send_next(self) -> None:
        """See `Queue.send_next`."""
        first = min(map(self._turn, self.waiting.values()))
        alike = (answer for answer, write in self.waiting.items() if self._turn(write) == first)
        batch = {answer: self.waiting[answer] for answer in islice(alike, self._most)}
        for answer in batch:
            del self.waiting[answer]
        await self._exchange(dict(sorted(batch.items(), key=lambda item: item[1].name)))

    def _turn(self, write: Write) -> tuple[Kind, int]:
        """The order of sending, lowest first. Writes with the same turn share a batch."""
        return write.kind, self._failures.get(write.name, 0)

    async def _exchange(self, batch: dict[asyncio.Future[list[Rows]], Write]) -> None:
        writes = list(batch.values())
        sql, parameters, skipped = self._packet(writes)
        query = asyncio.ensure_future(self._run(sql, parameters, repeat=writes[0].kind.repeats))
        try:
            await while_wanted(query, batch)
        finally:
            error = query.exception() if not query.cancelled() else StoreUnavailable(self._description, "cancelled")
            if error is not None:
                self._failed(batch, error)
        if error is not None:
            if len(batch) > 1 and _is_locked(error):
                await asyncio.sleep(_PAUSE)
            return
        self._most = min(self._most * 2, _MOST)
        for write in writes:
            self._failures.pop(write.name, None)
        for answer, share in zip(batch, _share_out(writes, query.result()[skipped:]), strict=True):
            if not answer.done():
                answer.set_result(share)

    def _failed(self, batch: dict[asyncio.Future[list[Rows]], Write], error: BaseException) -> None:
        if len(batch) > 1:
            self._most = max(self._most // 8, 1)
            for write in batch.values():
                if _is_locked(error) or not write.kind.is_of_own_rows:  # which row is locked is not known yet
                    self._failures[write.name] = self._failures.get(write.name, 0) + 1
            if _is_locked(error):
                self.waiting.update((answer, write) for answer, write in batch.items() if not answer.done())
                return
        for answer in batch:
            if not answer.done():
                answer.set_exception(error)

    def _packet(self, writes: list[Write]) -> tuple[str, tuple[object, ...], int]:
        """The statements, their parameters, and how many results come before those of the writes."""
        alone = len(writes) == 1
        kind = writes[0].kind
        locked = [write for write in writes if write.sql] if kind.locks_first else []
        if alone and not self._has_others(writes[0].name):
            locked = []
        lock = [self._lock_sql, self._lock_fence_sql] if kind is Kind.CLAIM else [self._lock_sql]
        before = [] if alone else ["START TRANSACTION"]
        before += [" UNION ALL ".join(lock * len(locked))] if locked else []
        reads = [write.reads for write in writes if write.reads is not None]
        read, terms = self._read(reads) if reads else ("", ())
        parts = [
            *before,
            *(write.sql for write in writes if write.sql),
            *([] if alone else ["COMMIT AND NO CHAIN NO RELEASE"]),  # whatever the session's completion_type is
            *(write.after for write in writes if write.after),
            *([read] if read else []),
        ]
        parameters: list[object] = [write.name for write in locked for _ in lock]
        parameters += (parameter for write in writes for parameter in write.parameters)
        parameters += (parameter for write in writes for parameter in write.after_parameters)
        return "; ".join(parts), (*parameters, *terms), len(before)


def _is_locked(error: BaseException) -> bool:
    return isinstance(error, StoreUnavailable) and error_number(error.__cause__ or error) in _LOCKED


def _share_out(writes: list[Write], results: list[Rows]) -> list[list[Rows]]:
    """Each write's part of the results."""
    rest = iter(results)
    shares = [list(islice(rest, _statements(write.sql))) for write in writes]
    if len(writes) > 1:
        next(rest)  # the COMMIT's
    for write, share in zip(writes, shares, strict=True):
        share.extend(islice(rest, _statements(write.after)))
    rows = {row[0]: row for row in results[-1]}
    for write, share in zip(writes, shares, strict=True):
        if write.reads is not None:
            share.append([rows[write.name]] if write.name in rows else [])
    return shares


def _statements(sql: str) -> int:
    return sql.count(";") + 1 if sql else 0
