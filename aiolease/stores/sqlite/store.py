"""The store on a SQLite file: for a laptop, and for several processes on one machine.

Every operation is one function in the thread that owns the connection: see `aiolease.stores.sqlite.file`. The processes
share the machine, so its wall clock is the database's: microseconds since the epoch in UTC, read when the transaction
has the lock. Nobody tells a candidate of a release, so it looks ten times a second.

A process that is stopped in the middle of a transaction keeps all others from writing until it goes on or dies.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from aiolease._clock import current_clock
from aiolease._names import check_name
from aiolease._waiting import time_limited
from aiolease.errors import ConfigurationError
from aiolease.stores.contract import look_limit
from aiolease.stores.records import Lease, RunKey, TermKey
from aiolease.stores.sql.dialect import microseconds
from aiolease.stores.sql.lease import FenceStatements, LeaseStatements
from aiolease.stores.sql.ledger_store import SQLLedger
from aiolease.stores.sql.rows import Rows
from aiolease.stores.sqlite.dialect import Exchange, SQLiteDialect, writing
from aiolease.stores.sqlite.file import File
from aiolease.stores.sqlite.ledger import SQLiteLedger
from aiolease.stores.sqlite.schema import SQLiteSchema
from aiolease.stores.sqlite.transactions import Fence, SQLiteTransaction

_GLANCE = 0.1
"""Seconds between two readings of a candidate that waits for a release."""


class SQLiteStore(SQLLedger):
    """A `Store` on one SQLite file, which is made if its folder exists.

    Args:
        path: The file; a relative path is taken from the folder that is current now.
        table_prefix: What the names of the tables start with.
        create_tables: Whether to create the file and the tables if they are missing.

    Raises:
        ConfigurationError: The path names no file that processes could share, or the prefix cannot name a table.
    """

    def __init__(self, path: str | Path, *, table_prefix: str = "aiolease_", create_tables: bool = True) -> None:
        if str(path) in {"", ".", ":memory:"} or "\0" in str(path):
            raise ConfigurationError("path", str(path), "name a file that the processes share")
        if not re.fullmatch(r"[A-Za-z0-9_]{1,40}", table_prefix):
            raise ConfigurationError("table_prefix", table_prefix, "use 1 to 40 letters, digits and underscores")
        path = Path(path).absolute()
        self.description = f"sqlite:///{path}"
        self._schema = SQLiteSchema(self.description, table_prefix, create=create_tables)
        self._file = File(path, self._schema.find, create=create_tables)
        self._now: Callable[[], int] = lambda: time.time_ns() // 1000
        self._dialect = SQLiteDialect(table_prefix)
        self._records = Rows(self._dialect)
        self._lease = LeaseStatements(self._dialect, self._records)
        # `main`: a user's connection may have a temporary table of this name, which would be found before ours.
        self._fence = FenceStatements(self._dialect, "main.")
        ledger = SQLiteLedger(self._file, self._dialect, self._fence, self._clock)
        super().__init__(self._dialect, self._records, ledger)

    async def read(self, name: str) -> Lease | None:
        """See `LeaseStore.read`."""

        def work(connection: sqlite3.Connection) -> Lease | None:
            return self._row(Exchange(connection, self._dialect, self._clock()), name)

        return await self._file.run(work)

    async def status(self, name: str) -> Lease | None:
        """See `Store.status`."""
        return await self.read(check_name(name))

    async def watch(self, name: str, seconds: float, *, lease: Lease | None, poll: float, hint: bool) -> Lease | None:
        """See `LeaseStore.watch`."""
        clock = current_clock()
        until = clock() + seconds
        step = min(poll, _GLANCE) if hint else poll
        while True:
            left = until - clock()
            await asyncio.sleep(max(min(step, left), 0.0))
            found = await time_limited(look_limit(lease), self.description, self.read(name))
            if not hint or left <= step or _moved_on(lease, found):
                return found

    async def claim(self, name: str, holder: str, duration: float, *, seen: Lease | None, force: bool) -> Lease | None:
        """See `LeaseStore.claim`."""

        def work(connection: sqlite3.Connection) -> Lease | None:
            with writing(connection, self._dialect, self._clock) as exchange:
                state = seen
                if state is None:
                    exchange.change(self._lease.make, {"name": name})
                    state = self._row(exchange, name)
                    if state is None or state.holder is not None:
                        return state
                values = {"name": name, "holder": holder, "token": state.token, "beat": state.beat}
                if exchange.change(self._lease.claim, {**values, "duration": microseconds(duration), "force": force}):
                    exchange.change(self._lease.fence_of_claim, {"name": name})
                return self._row(exchange, name)

        return await self._file.run(work)

    async def renew(self, name: str, holder: str, token: int, beat: int, duration: float) -> Lease | None:
        """See `LeaseStore.renew`."""
        values = {"name": name, "holder": holder, "token": token, "beat": beat, "duration": microseconds(duration)}

        def work(connection: sqlite3.Connection) -> Lease | None:
            with writing(connection, self._dialect, self._clock) as exchange:
                exchange.change(self._lease.renew, values)
                return self._row(exchange, name)

        return await self._file.run(work)

    async def release(self, name: str, holder: str, token: int) -> bool:
        """See `LeaseStore.release`."""

        def work(connection: sqlite3.Connection) -> bool:
            with writing(connection, self._dialect, self._clock) as exchange:
                return exchange.change(self._lease.release, {"name": name, "holder": holder, "token": token}) > 0

        return await self._file.run(work)

    async def begin(self) -> SQLiteTransaction:
        """See `LeaseStore.begin`."""
        return await SQLiteTransaction.begin(self._file.path, self._fencing())

    async def fence(self, connection: Any, term: TermKey, final: RunKey | None = None, *, within: float) -> None:
        """See `LeaseStore.fence`."""
        await self._fencing().put_on(connection, self._file.path, term, final)

    def _fencing(self) -> Fence:
        return Fence(self.description, self._fence, self._dialect, self._clock)

    def abandon(self, name: str) -> None:
        """See `LeaseStore.abandon`. Candidates look by themselves."""

    async def resign(self, name: str) -> int | None:
        """See `Store.resign`."""
        check_name(name)

        def work(connection: sqlite3.Connection) -> int | None:
            with writing(connection, self._dialect, self._clock) as exchange:
                exchange.change(self._lease.resign, {"name": name})
                lease = self._row(exchange, name)
            return None if lease is None or lease.holder is None else lease.resign_token

        return await self._file.run(work)

    async def migrate(self, *, check: bool) -> list[str]:
        """See `aiolease.stores.migrate`."""
        if check and not self._file.path.exists():
            with closing(sqlite3.connect(":memory:")) as empty:
                return self._schema.missing(empty)
        file = File(self._file.path, lambda _: None, create=not check)
        try:
            return await file.run(self._schema.missing if check else self._schema.upgrade)
        finally:
            await file.aclose()

    async def aclose(self) -> None:
        """See `Store.aclose`. What was sent before is done first."""
        await self._file.aclose()

    def _clock(self) -> int:
        return self._now()

    def _row(self, exchange: Exchange, name: str) -> Lease | None:
        found = exchange.rows(self._lease.read, {"name": name})
        return self._records.lease(found[0], self.description) if found else None


def _moved_on(lease: Lease | None, found: Lease | None) -> bool:
    """Whether a candidate that knows of `lease` should hear of `found`: not of a mere renewal or expiry."""
    if lease is None or found is None:
        return lease is not found
    return found.holder is None or found.token != lease.token
