"""A term inside another construct (a group, a timeout), and what both raise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

from aiolease import Leadership, Lease, current_leadership, leadership
from aiolease.events import Event, Lost, Resigned
from aiolease.testing import MemoryServer, MemoryStore
from tests.election.terms import LONG

LEASE = 30.0
UNWIND = 5.0


class Boom(Exception):
    """What a body, or its neighbour, raises."""


class Inside:
    """A body in a construct of its own, and a term that ends under it."""

    def __init__(self) -> None:
        self.server = MemoryServer()
        self.store = MemoryStore(self.server)
        self.fit = True
        self.events: list[Event] = []
        self.on_end: list[Callable[[], object]] = []
        self.children = 0
        self.tidied = False

    async def eligible(self) -> bool:
        return self.fit

    def observe(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Lost | Resigned):
            for call in self.on_end:
                call()

    @property
    def row(self) -> Lease:
        return self.server.leases["cron"]

    def seen(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    def lead(self, **options: Any) -> AbstractAsyncContextManager[Leadership]:
        return leadership(self.store, "cron", eligible=self.eligible, on_event=self.observe, **options)

    def end(self, how: str, lead: Leadership) -> None:
        """Ends the term: at once if it is resigned, else with the next heartbeat, or the deadline."""
        match how:
            case "resigned":
                asyncio.get_running_loop().call_soon(lead.resign)
            case "expired":
                self.store.lose_request("renew", 1000)
            case "taken":
                self.server.leases["cron"] = replace(self.row, holder="intruder", token=self.row.token + 1)
            case "ineligible":
                self.fit = False

    async def child(self) -> None:
        """A task of the body that takes a while to unwind; the lease is kept for it."""
        self.children += 1
        holder = current_leadership().holder
        try:
            await asyncio.sleep(LONG)
        finally:
            await asyncio.sleep(0)
            await asyncio.sleep(0.5)
            assert self.row.holder in (holder, "intruder")
            self.children -= 1
