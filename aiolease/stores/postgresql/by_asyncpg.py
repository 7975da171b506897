"""asyncpg: connections of our own, and what is sent over a user's."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

import asyncpg

from aiolease.stores.network.connecting import CONNECT_LIMIT
from aiolease.stores.network.resolve import LookupLoop
from aiolease.stores.postgresql.links import Link, Ring, Row, listening
from aiolease.stores.postgresql.unofficial import forget_transaction, give_loop, listens_on, remember_transaction

OURS = {
    "connection_class": asyncpg.Connection,
    "record_class": asyncpg.Record,
    "command_timeout": None,  # a limit of the user's is for the user's statements
    "statement_cache_size": 0,  # behind a pooler, a prepared statement is another session's
}
"""What a connection of our own is made with, whatever the pool's."""


class AsyncpgLink(Link):
    """See `Link`. Statements are prepared once, and then cost one round trip each."""

    def __init__(self, raw: asyncpg.Connection) -> None:
        super().__init__(raw)
        give_loop(raw, asyncio.get_running_loop())
        self._prepared: dict[str, Any] = {}
        self._count = 0  # of the statements prepared so far
        self._rings: dict[str, Ring] = {}
        raw.add_termination_listener(self._ended)

    @property
    def backend(self) -> int:
        """See `Link.backend`."""
        return int(self.raw.get_server_pid())

    @property
    def version(self) -> int:
        """See `Link.version`."""
        return int(self.raw.get_server_version().major)

    def reported(self, name: str) -> str:
        """See `Link.reported`."""
        return str(getattr(self.raw.get_settings(), name, ""))

    def in_transaction(self) -> bool:
        """See `Link.in_transaction`."""
        return bool(self.raw.is_in_transaction())

    async def query(self, sql: str, parameters: Sequence[object]) -> list[Row]:
        """See `Link.query`."""
        if self.pooled or len(sql) > _LONGEST:
            return [tuple(row) for row in await self.raw.fetch(sql, *parameters)]
        if sql not in self._prepared:
            await self._prepare(sql)
        return [tuple(row) for row in await self._prepared[sql].fetch(*parameters)]

    async def _prepare(self, sql: str) -> None:
        if len(self._prepared) >= _MOST:
            self._prepared.clear()
        self._count += 1
        # With a name: without its cache, asyncpg has a statement without a name parsed and planned for each use.
        self._prepared[sql] = await self.raw.prepare(sql, name=f"aiolease_{self._count}")

    async def get_ready(self, statements: Sequence[str]) -> None:
        """See `Link.get_ready`."""
        if not self.pooled:
            for sql in statements:
                await self._prepare(sql)

    async def tell(self, message: str) -> None:
        """See `Link.tell`."""
        await self.raw.execute(message)

    async def hear(self, channels: Sequence[str], ring: Ring, *, instead: Collection[str]) -> None:
        """See `Link.hear`."""
        self._rings |= dict.fromkeys(channels, ring)
        await self.raw.execute(listening(channels, instead))
        listens_on(self.raw, channels, instead)
        for channel in channels:
            await self.raw.add_listener(channel, self._notified)
        for channel in instead:
            self._rings.pop(channel, None)

    def _notified(self, _connection: Any, _pid: int, channel: str, payload: object) -> None:
        if (ring := self._rings.get(channel)) is not None:
            ring(channel, str(payload))

    def _ended(self, _connection: Any) -> None:
        self.heard.clear()
        rings, self._rings = self._rings, {}
        for channel, ring in rings.items():
            ring(channel, "")

    def drop(self) -> None:
        """See `Link.drop`."""
        self._ended(None)
        with suppress(Exception):
            self.raw.terminate()

    async def close(self) -> None:
        """See `Link.close`."""
        self._ended(None)
        await self.raw.close()


_MOST, _LONGEST = 50, 5_000
"""How many statements are prepared over one connection, and of how many characters."""


async def send(raw: Any, message: str) -> None:
    """See `Talk.send`."""
    await raw.execute(message)


def in_transaction(raw: Any) -> bool:
    """See `Talk.in_transaction`."""
    return bool(raw.is_in_transaction())


def will_begin(raw: Any) -> bool:
    """See `Talk.will_begin`. asyncpg has each statement committed by itself."""
    return False


async def is_primary(raw: Any) -> bool:
    """See `Talk.is_primary`."""
    return not await raw.fetchval("SELECT pg_is_in_recovery()")


async def begin(raw: Any, first: str) -> None:
    """See `Talk.begin`. asyncpg is told of a transaction of its own: within it, one that the user opens is a savepoint.

    Its `start` would take a round trip more, for the first statement.
    """
    transaction = raw.transaction()
    await raw.execute(f"BEGIN; {first}")
    remember_transaction(raw, transaction)


def ended(raw: Any) -> None:
    """See `Talk.ended`."""
    forget_transaction(raw)


def drop(raw: Any) -> None:
    """See `Talk.drop`."""
    with suppress(Exception):
        raw.terminate()


async def close(raw: Any) -> None:
    """See `Talk.close`."""
    await raw.close()


def is_busy(error: BaseException) -> bool:
    """See `Talk.is_busy`."""
    return isinstance(error, asyncpg.InterfaceError) and "another operation is in progress" in str(error)


def in_time(hosts: int = 1, limit: float = CONNECT_LIMIT) -> dict[str, Any]:
    """What has asyncpg connect within so many seconds, each of several hosts in its part of them.

    And has it look up their names in no thread of the application's: by itself, it asks the default executor.
    """
    return {"timeout": limit, "loop": LookupLoop(limit / hosts)}


async def connect(limit: float, **parameters: Any) -> Any:
    """Makes a connection; closes what is half made when it is cancelled."""
    made = await asyncpg.connect(**parameters, **in_time(limit=limit))
    give_loop(made, asyncio.get_running_loop())
    return made
