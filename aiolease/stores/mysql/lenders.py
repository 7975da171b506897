"""Lends connections for transactions from pools of asyncmy and aiomysql; see `network.lending` for others."""

from __future__ import annotations

import asyncio
from typing import Any

from aiolease.stores.mysql.unofficial import wake_pool


class PoolLender:
    """A pool of asyncmy or aiomysql."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._waking: set[asyncio.Task[None]] = set()

    async def lend(self) -> Any:
        """See `Lender.lend`."""
        return await self._pool.acquire()

    async def raw(self, connection: Any) -> Any:
        """See `Lender.raw`."""
        return connection

    def ended(self, connection: Any) -> bool:
        """See `Lender.ended`."""
        return False

    async def give_back(self, connection: Any, *, broken: bool) -> None:
        """See `Lender.give_back`."""
        if broken:
            connection.close()
        # Not awaited: the result waits for any connecting in the pool, and the commit would seem to take that long.
        self._pool.release(connection)
        if broken:
            waking = asyncio.create_task(wake_pool(self._pool))
            self._waking.add(waking)
            waking.add_done_callback(self._waking.discard)
