"""A session of MySQL or MariaDB: an exchange is a packet of statements."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiolease.stores.mysql.drivers import Driver, Execute, Rows, execute
from aiolease.stores.network.session import Session


class MySQLSession(Session):
    """See `Session`."""

    def __init__(self, driver: Driver, prepare: Callable[[Execute], Awaitable[None]], stuck: float) -> None:
        async def settle(connection: Any) -> None:
            await prepare(functools.partial(self._prepared, connection))

        super().__init__(driver, settle, stuck)
        self._cursor = driver.cursor

    async def _prepared(self, connection: Any, sql: str, parameters: Sequence[object] = ()) -> list[Rows]:
        return await self.measured(execute(connection, self._cursor, sql, parameters))

    async def run(
        self,
        sql: str,
        parameters: Sequence[object] = (),
        results: list[Rows] | None = None,
        *,
        repeat: bool = True,
    ) -> list[Rows]:
        """Sends statements in one packet; returns the rows of each: see `execute`.

        Args:
            sql: The statements, with ``%s`` for the parameters.
            parameters: Bound by the driver.
            results: Takes each result as it comes in, so that after an error the caller sees how many statements ran.
            repeat: See `Session.exchange`.

        Raises:
            StoreUnavailable: And `StoreRejected`, `SchemaMissing`: see `Session.exchange`.
        """
        found: list[Rows] = [] if results is None else results

        async def work(connection: Any) -> list[Rows]:
            found.clear()  # of a try that the server undid
            return await execute(connection, self._cursor, sql, parameters, found)

        return await self.exchange(work, repeat=repeat)
