"""A session of PostgreSQL: settled when it is made, and what an exchange may be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from aiolease.stores.network.session import Session
from aiolease.stores.postgresql.connectors import Connector
from aiolease.stores.postgresql.dialect import Bound
from aiolease.stores.postgresql.links import Link, Row
from aiolease.stores.postgresql.settling import Measured


class PostgreSQLSession(Session):
    """See `Session`; its connections are `Link`s."""

    def __init__(
        self, connector: Connector, prepare: Callable[[Link, Measured], Awaitable[None]], stuck: float
    ) -> None:
        async def settle(link: Link) -> None:
            await prepare(link, self.measured)

        super().__init__(connector, settle, stuck)

    async def fetch(self, asked: Bound, *, repeat: bool = True) -> list[Row]:
        """Sends one statement, a transaction of its own; gives its rows."""
        return await self.exchange(lambda link: link.fetch(*asked), repeat=repeat)

    async def fetch_each(self, asked: Sequence[Bound]) -> list[list[Row]]:
        """Sends statements that only read, one after the other; gives the rows of each."""
        return await self.exchange(lambda link: link.fetch_each(asked))

    async def fetch_together(self, asked: Sequence[Bound]) -> list[list[Row]]:
        """Sends statements in one transaction; gives the rows of each."""
        return await self.exchange(lambda link: link.fetch_together(asked))

    async def send(self, message: str, *, repeat: bool = True) -> None:
        """Sends statements in one message, as one transaction."""
        await self.exchange(lambda link: link.send(message), repeat=repeat)
