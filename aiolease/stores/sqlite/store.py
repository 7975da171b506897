"""The store on a SQLite file: for a laptop, and for several processes on one machine.

Every operation is one function in the thread that owns the connection: see `aiolease.stores.sqlite.file`. The processes
share the machine, so the machine's wall clock is the database's clock. It is read once the transaction has the lock, as
microseconds since the epoch in UTC. How candidates wait for a release is in `aiolease.stores.sqlite.waiting`.

A process that is stopped in the middle of a transaction keeps all others from writing until it goes on or dies.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from aiolease._names import check_name
from aiolease.errors import ConfigurationError
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
from aiolease.stores.sqlite.waiting import Waiting


class SQLiteStore(SQLLedger):
    """A `Store` on one SQLite file. The file is created if its folder exists.

    Args:
        path: The file; a relative path starts at the folder that is current now.
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
        self._waiting = Waiting(self._file, table_prefix, self._find, self.description)
        self._now: Callable[[], int] = lambda: time.time_ns() // 1000
        self._dialect = SQLiteDialect(table_prefix)
        self._records = Rows(self._dialect)
        self._lease = LeaseStatements(self._dialect, self._records)
        # `main`: a user's connection may have a temporary table of this name, which SQLite would find first.
        self._fence = FenceStatements(self._dialect, "main.")
        ledger = SQLiteLedger(self._file, self._dialect, self._fence, self._clock)
        super().__init__(self._dialect, self._records, ledger)

    async def read(self, name: str) -> Lease | None:
        """See `LeaseStore.read`."""
        return await self._file.run(partial(self._find, name))

    async def status(self, name: str) -> Lease | None:
        """See `Store.status`."""
        return await self.read(check_name(name))

    async def watch(self, name: str, seconds: float, *, lease: Lease | None, poll: float, hint: bool) -> Lease | None:
        """See `LeaseStore.watch`."""
        return await self._waiting.watch(name, seconds, lease=lease, poll=poll, hint=hint)

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
                row = self._row(exchange, name)
            self._waiting.wrote(name, holder, row)
            return row

        return await self._file.run(work)

    async def renew(self, name: str, holder: str, token: int, beat: int, duration: float) -> Lease | None:
        """See `LeaseStore.renew`."""
        values = {"name": name, "holder": holder, "token": token, "beat": beat, "duration": microseconds(duration)}

        def work(connection: sqlite3.Connection) -> Lease | None:
            with writing(connection, self._dialect, self._clock) as exchange:
                exchange.change(self._lease.renew, values)
                row = self._row(exchange, name)
            self._waiting.wrote(name, holder, row)
            return row

        return await self._file.run(work)

    async def release(self, name: str, holder: str, token: int) -> bool:
        """See `LeaseStore.release`."""

        def work(connection: sqlite3.Connection) -> bool:
            with writing(connection, self._dialect, self._clock) as exchange:
                released = exchange.change(self._lease.release, {"name": name, "holder": holder, "token": token}) > 0
            self._waiting.left(name, holder)
            return released

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
        """See `LeaseStore.abandon`."""
        self._waiting.left(name)

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
        """See `Store.aclose`. Operations sent before are done first."""
        try:
            await self._file.aclose()
        finally:
            self._waiting.close()

    def _clock(self) -> int:
        return self._now()

    def _find(self, name: str, connection: sqlite3.Connection) -> Lease | None:
        row = self._row(Exchange(connection, self._dialect, self._clock()), name)
        self._waiting.saw(name, row)
        return row

    def _row(self, exchange: Exchange, name: str) -> Lease | None:
        found = exchange.rows(self._lease.read, {"name": name})
        return self._records.lease(found[0], self.description) if found else None
