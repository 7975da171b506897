"""One process's way to a database in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime

from aiolease._names import check_name
from aiolease._waiting import time_limited
from aiolease.stores.batch import Batch, JobDefinition, LedgerReading
from aiolease.stores.contract import look_limit
from aiolease.stores.memory.people import MemoryRequests
from aiolease.stores.records import Lease, Place, RunKey, RunRecord, TermKey
from aiolease.stores.seen import Overview


class MemoryTransaction:
    """A fenced transaction in memory: its connection is a list of calls, made when it commits."""

    def __init__(self, store: MemoryStore) -> None:
        self.connection: list[Callable[[], object]] = []
        self._store = store

    async def commit(self, term: TermKey, final: RunKey | None = None) -> None:
        """See `Transaction.commit`."""

        def work() -> None:
            self._store.server.fence(term, final)
            for call in self.connection:
                call()

        await self._store.exchange("commit", work)

    async def roll_back(self) -> None:
        """See `Transaction.roll_back`."""


class MemoryStore(MemoryRequests):
    """A `LeaseStore` on a `MemoryServer`: one process, and its way to the database."""

    description = "memory"

    async def read(self, name: str) -> Lease | None:
        """See `LeaseStore.read`."""
        return await self.exchange("read", lambda: self.server.read(name))

    async def status(self, name: str) -> Lease | None:
        """Reads the row of a lease, for people."""
        return await self.read(check_name(name))

    async def watch(self, name: str, seconds: float, *, lease: Lease | None, poll: float, hint: bool) -> Lease | None:
        """See `LeaseStore.watch`."""
        await (self.server.released(seconds) if hint else asyncio.sleep(min(seconds, poll)))
        return await time_limited(look_limit(lease), self.description, self.read(name))

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

    async def fence(self, connection: object, term: TermKey, final: RunKey | None = None, *, within: float) -> None:
        """See `LeaseStore.fence`."""
        await self.exchange("fence", lambda: self.server.fence(term, final))

    async def take_stock(
        self, name: str, *, attention: bool = False, runs: bool = True, counted: bool = False
    ) -> LedgerReading:
        """See `LedgerStore.take_stock`."""
        ledger, now = self.server.ledgers[name], self.server.now
        return await self.exchange(
            "take_stock", lambda: ledger.stock(now(), attention=attention, runs=runs, counted=counted)
        )

    async def queued(self, name: str, jobs: Sequence[str], limit: int) -> tuple[list[RunRecord], dict[str, str]]:
        """See `LedgerStore.queued`."""
        return await self.exchange("take_stock", lambda: self.server.ledgers[name].queued(jobs, limit))

    async def look_up(self, name: str, places: Sequence[Place]) -> list[RunRecord]:
        """See `LedgerStore.look_up`."""
        runs = self.server.ledgers[name].runs
        return await self.exchange("take_stock", lambda: [runs[place] for place in places if place in runs])

    async def enroll(self, term: TermKey, jobs: Sequence[JobDefinition]) -> None:
        """See `LedgerStore.enroll`."""
        await self.exchange("enroll", lambda: self.server.enroll(term, jobs))

    async def record(self, term: TermKey, batch: Batch) -> None:
        """See `LedgerStore.record`."""
        await self.exchange("record", lambda: self.server.record(term, batch))

    async def prune(self, name: str, jobs: Sequence[str], keep: int) -> list[str]:
        """See `LedgerStore.prune`."""
        return await self.exchange("prune", lambda: self.server.ledgers[name].prune(jobs, keep))

    async def later(self, name: str, limit: int) -> tuple[list[RunRecord], dict[str, str]]:
        """See `LedgerStore.later`."""
        return await self.exchange("take_stock", lambda: self.server.ledgers[name].later(limit))

    async def rows_from(self, name: str, job: str, since: datetime, limit: int) -> list[RunRecord]:
        """See `LedgerStore.rows_from`."""
        return await self.exchange("take_stock", lambda: self.server.ledgers[name].rows_from(job, since, limit))

    async def have(self, term: TermKey, jobs: Sequence[str]) -> None:
        """See `LedgerStore.have`."""
        await self.exchange("enroll", lambda: self.server.have(term, jobs))

    async def overview(self, name: str, jobs: Sequence[str] | None = None) -> Overview:
        """See `LedgerStore.overview`."""
        server = self.server
        return await self.exchange("overview", lambda: server.ledgers[name].overview(jobs, server.now()))

    def abandon(self, name: str) -> None:
        """See `LeaseStore.abandon`."""

    async def resign(self, name: str) -> int | None:
        """See `LeaseStore.resign`."""
        check_name(name)
        return await self.exchange("resign", lambda: self.server.resign(name))

    async def aclose(self) -> None:
        """Nothing to close."""
