"""What people ask of a database in memory, from one process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import TypeVar

from aiolease._names import check_name
from aiolease.stores.asking import checked_moment, checked_note, checked_span
from aiolease.stores.memory.ledger import Ledger
from aiolease.stores.memory.server import MemoryServer
from aiolease.stores.records import RunRecord, checked_limit
from aiolease.stores.seen import TermRecord

T = TypeVar("T")


class MemoryRequests:
    """A `JobStore` on a `MemoryServer`."""

    def __init__(self, server: MemoryServer | None = None) -> None:
        self.server = server or MemoryServer()

    async def exchange(self, method: str, statement: Callable[[], T]) -> T:
        """Sends one statement to the server and awaits its answer; where a subclass puts its faults."""
        await asyncio.sleep(0)
        answer = statement()
        await asyncio.sleep(0)
        return answer

    async def history(self, name: str, job: str, *, limit: int = 100) -> list[RunRecord]:
        """See `JobStore.history`."""
        checked_limit(limit)
        return await self._ask("history", name, lambda ledger, _: ledger.history(job, limit))

    async def settle(self, name: str, job: str) -> None:
        """See `JobStore.settle`."""
        await self._ask("settle", name, lambda ledger, now: ledger.settle(name, job, now))

    async def trigger(self, name: str, job: str) -> datetime:
        """See `JobStore.trigger`."""
        return await self._ask("trigger", name, lambda ledger, now: ledger.trigger(name, job, now))

    async def pause(
        self, name: str, job: str | None = None, *, until: datetime | None = None, note: str | None = None
    ) -> None:
        """See `JobStore.pause`."""
        noted = checked_note(note)
        await self._ask("pause", name, lambda ledger, now: ledger.pause(name, job, now, until=until, note=noted))

    async def resume(self, name: str, job: str | None = None) -> None:
        """See `JobStore.resume`."""
        await self._ask("resume", name, lambda ledger, now: ledger.resume(name, job, now))

    async def rerun(self, name: str, job: str, tick: datetime, *, force: bool = False) -> None:
        """See `JobStore.rerun`."""
        at = checked_moment("tick", tick)
        await self._ask("rerun", name, lambda ledger, now: ledger.rerun(name, job, at, now, force=force))

    async def backfill(self, name: str, job: str, since: datetime, until: datetime) -> None:
        """See `JobStore.backfill`."""
        first, last = checked_span(since, until)
        await self._ask("backfill", name, lambda ledger, now: ledger.backfill(name, job, first, last, now))

    async def cancel(self, name: str, job: str) -> None:
        """See `JobStore.cancel`."""
        await self._ask("cancel", name, lambda ledger, now: ledger.cancel(name, job, now))

    async def forget(self, name: str, job: str) -> None:
        """See `JobStore.forget`."""
        read = self.server.read
        await self._ask("forget", name, lambda ledger, _: ledger.forget_job(name, job, read(name)))

    async def runs(
        self, name: str, *, failed: bool = False, since: datetime | None = None, limit: int = 100
    ) -> list[RunRecord]:
        """See `JobStore.runs`."""
        first = None if since is None else checked_moment("since", since)
        checked_limit(limit)
        return await self._ask("runs", name, lambda ledger, _: ledger.newest(failed=failed, since=first, limit=limit))

    async def terms(self, name: str, *, limit: int = 100) -> list[TermRecord]:
        """See `JobStore.terms`."""
        checked_limit(limit)
        return await self._ask("terms", name, lambda ledger, _: ledger.newest_terms(limit))

    async def _ask(self, method: str, name: str, question: Callable[[Ledger, datetime], T]) -> T:
        check_name(name)
        server = self.server
        return await self.exchange(method, lambda: question(server.ledgers[name], server.now()))
