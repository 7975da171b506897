"""The store on a SQLite file: for a laptop, and for several processes on one machine.

One thread owns the connection. Every operation is one function that runs in it from ``BEGIN`` to ``COMMIT``, so that
a cancellation tears nothing: it happens, or it does not. While others write, an operation is tried again from
outside, a fresh function each time; whoever stops waiting leaves at most one try behind.

The processes share the machine, so its wall clock is the database's: microseconds since the epoch in UTC, read when
the transaction has the lock. Nobody tells a candidate of a release, so it looks ten times a second.

A process that is stopped in the middle of a transaction keeps all others from writing until it goes on or dies.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from aiolease._clock import current_clock
from aiolease._names import check_name
from aiolease._waiting import time_limited, wait_shielded
from aiolease.errors import AioleaseError, ConfigurationError, SchemaMissing, StoreRejected, StoreUnavailable
from aiolease.stores.contract import look_limit
from aiolease.stores.records import Lease, RunKey, TermKey, readable
from aiolease.stores.sqlite.ledger import SQLiteLedger
from aiolease.stores.sqlite.transactions import (
    FenceStatements,
    SQLiteTransaction,
    fence_connection,
    moment,
    transaction,
)

T = TypeVar("T")

SCHEMA_VERSION = 2
_UPGRADED = {1}
"""The versions that lack tables, and nothing else."""

_VERSION_ROW = "schema version"

_ALL = ("lease", "fence", "job", "run", "run_unfinished", "run_queued", "run_skipped")
"""The tables, and the indexes that statements name."""
"""Where the schema's version is kept: with a space in it, it names no lease."""

_WAY_OUT = "A worker that may write the file makes it and its tables at its first start; or is the path another?"

_GLANCE = 0.1
"""Seconds between two readings of a candidate that waits for a release."""

_TRY = 0.1
"""Seconds that one try waits for another's write to end."""

_PATIENCE = 2.0
"""Seconds after which a database that stays locked is reported; the caller's own limit is usually sooner."""

_MICROSECOND = timedelta(microseconds=1)


class SQLiteStore(SQLiteLedger):
    """A `LeaseStore` and a `LedgerStore` on one SQLite file, which is made if its folder exists.

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
        self._path = Path(path).absolute()
        self.description = f"sqlite:///{self._path}"
        self._prefix = table_prefix
        self._create_tables = create_tables
        self._now: Callable[[], int] = lambda: time.time_ns() // 1000
        self._thread = _new_thread()
        self._lock = threading.Lock()  # held during each try, and during a fork
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._closed = False
        self._make_statements(
            *(f'"{table_prefix}{table}"' for table in ("lease", "fence", "run", "job", "run_unfinished"))
        )
        self._make_ledger_statements(table_prefix)
        _stores.add(self)

    def _make_statements(self, lease: str, fence: str, run: str, job: str, unfinished: str) -> None:
        mine = "name = :name AND holder = :holder AND token = :token"
        self._lease_table_sql = (
            f"CREATE TABLE IF NOT EXISTS {lease} (name TEXT NOT NULL PRIMARY KEY, holder TEXT, token INTEGER NOT NULL, "
            "beat INTEGER NOT NULL, elected_at INTEGER NOT NULL, renewed_at INTEGER NOT NULL, "
            "expires_at INTEGER NOT NULL, resign_token INTEGER) WITHOUT ROWID"
        )
        self._fence_table_sql = (
            f"CREATE TABLE IF NOT EXISTS {fence} (name TEXT NOT NULL PRIMARY KEY, holder TEXT, token INTEGER NOT NULL, "
            "fence INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID"
        )
        self._make_version_sql = (
            f"INSERT OR IGNORE INTO {lease} (name, token, beat, elected_at, renewed_at, expires_at) "
            f"VALUES ('{_VERSION_ROW}', {SCHEMA_VERSION}, 0, 0, 0, 0)"
        )
        self._upgrade_sql = f"UPDATE {lease} SET token = {SCHEMA_VERSION} WHERE name = '{_VERSION_ROW}' AND token = 1"
        self._tables_sql = f"SELECT LOWER(name) FROM sqlite_master WHERE LOWER(name) IN ({', '.join('?' * len(_ALL))})"
        self._version_sql = f"SELECT token FROM {lease} WHERE name = '{_VERSION_ROW}'"
        self._read_sql = (
            "SELECT name, holder, token, beat, elected_at, renewed_at, expires_at, resign_token "
            f"FROM {lease} WHERE name = :name"
        )
        self._make_sql = (
            # A row that vanished is made anew above the highest token that is known of it.
            f"INSERT OR IGNORE INTO {lease} (name, token, beat, elected_at, renewed_at, expires_at) "
            "SELECT :name, MAX(COALESCE(MAX(token), 0), "
            # Of the runs those are looked at that have an index: the newest of each job, and the unfinished ones.
            f"COALESCE((SELECT MAX((SELECT token FROM {run} AS r WHERE r.lease = j.lease AND r.job = j.job "
            f"ORDER BY tick DESC LIMIT 1)) FROM {job} AS j WHERE lease = :name), 0), "
            f"COALESCE((SELECT MAX(token) FROM {run} INDEXED BY {unfinished} "
            "WHERE lease = :name AND status IN ('queued', 'running')), 0)), "
            f"0, :now, :now, :now FROM {fence} WHERE name = :name"
        )
        self._claim_sql = (
            # Above the fence's, too: somebody may have set the row back by hand, or from an older backup.
            f"UPDATE {lease} SET holder = :holder, token = MAX(token, COALESCE((SELECT token FROM {fence} "
            "WHERE name = :name), 0)) + 1, beat = beat + 1, elected_at = :now, "
            "renewed_at = :now, expires_at = :now + :duration, resign_token = NULL "
            "WHERE name = :name AND token = :token AND beat = :beat "
            "AND (holder IS NULL OR expires_at <= :now OR :force)"
        )
        self._fence_sql = (
            f"INSERT INTO {fence} (name, holder, token) SELECT name, holder, token FROM {lease} WHERE name = :name "
            "ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, token = excluded.token"
        )
        # `main`: a user's connection may have a temporary table of this name, which would be found before ours.
        self._count_fence_sql = f"UPDATE main.{fence} SET fence = fence + 1 WHERE {mine}"
        self._renew_sql = (
            f"UPDATE {lease} SET beat = :beat, renewed_at = :now, expires_at = :now + :duration "
            f"WHERE {mine} AND beat < :beat"
        )
        self._release_sql = f"UPDATE {lease} SET holder = NULL, beat = beat + 1, expires_at = :now WHERE {mine}"
        self._resign_sql = f"UPDATE {lease} SET resign_token = token WHERE name = :name AND holder IS NOT NULL"

    # -- the protocol

    async def read(self, name: str) -> Lease | None:
        """See `LeaseStore.read`."""
        return await self._run(lambda connection: self._row(connection, name, self._now()))

    async def status(self, name: str) -> Lease | None:
        """Reads the row of a lease for people: see `LeaseStore.read`."""
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
            with transaction(connection):
                now, state = self._now(), seen
                if state is None:
                    connection.execute(self._make_sql, {"name": name, "now": now})
                    state = self._row(connection, name, now)
                    if state is None or state.holder is not None:
                        return state
                values = {"name": name, "holder": holder, "token": state.token, "beat": state.beat, "now": now}
                timing = {"duration": _microseconds(duration), "force": force}
                if connection.execute(self._claim_sql, values | timing).rowcount:
                    connection.execute(self._fence_sql, values)
                return self._row(connection, name, now)

        return await self._run(work)

    async def renew(self, name: str, holder: str, token: int, beat: int, duration: float) -> Lease | None:
        """See `LeaseStore.renew`."""

        def work(connection: sqlite3.Connection) -> Lease | None:
            with transaction(connection):
                now = self._now()
                values = {"name": name, "holder": holder, "token": token, "beat": beat, "now": now}
                connection.execute(self._renew_sql, values | {"duration": _microseconds(duration)})
                return self._row(connection, name, now)

        return await self._run(work)

    async def release(self, name: str, holder: str, token: int) -> bool:
        """See `LeaseStore.release`."""

        def work(connection: sqlite3.Connection) -> bool:
            with transaction(connection):
                values = {"name": name, "holder": holder, "token": token, "now": self._now()}
                return connection.execute(self._release_sql, values).rowcount > 0

        return await self._run(work)

    async def begin(self) -> SQLiteTransaction:
        """See `LeaseStore.begin`."""
        return await SQLiteTransaction.begin(self.description, self._path, self._fence_statements())

    async def fence(self, connection: Any, term: TermKey, final: RunKey | None = None, *, within: float) -> None:
        """See `LeaseStore.fence`."""
        await fence_connection(self.description, self._path, connection, term, final, self._fence_statements())

    def _fence_statements(self) -> FenceStatements:
        return FenceStatements(fence=self._count_fence_sql, final=self._final_sql, now=self._now)

    def forget(self, name: str) -> None:
        """See `LeaseStore.forget`. Candidates look by themselves."""

    async def resign(self, name: str) -> int | None:
        """See `LeaseStore.resign`."""
        check_name(name)

        def work(connection: sqlite3.Connection) -> int | None:
            with transaction(connection):
                connection.execute(self._resign_sql, {"name": name})
                lease = self._row(connection, name, self._now())
            return None if lease is None or lease.holder is None else lease.resign_token

        return await self._run(work)

    async def aclose(self) -> None:
        """Closes the connection in its thread, and ends that. What was sent before is done first."""
        if self._closed:
            return
        self._closed = True
        last = self._thread.submit(self._at_once, self._discard)

        async def ended() -> None:
            await asyncio.wrap_future(last)

        cancelled = await wait_shielded(asyncio.create_task(ended()))
        self._thread.shutdown()  # nothing is left to do in there: it ends at once
        if cancelled is not None:
            raise cancelled

    # -- the thread

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Has the thread do `work`, again while others keep the file locked."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _PATIENCE
        while True:
            if self._closed:
                raise StoreUnavailable(self.description, "this store was closed")
            try:
                return await loop.run_in_executor(self._thread, self._at_once, lambda: self._attempt(work))
            except _Locked as error:
                if loop.time() >= until:
                    raise StoreUnavailable(self.description, "database is locked") from error.__cause__
            await asyncio.sleep(random.uniform(0.002, 0.02))

    def _at_once(self, work: Callable[[], T]) -> T:
        with self._lock:
            return work()

    def _attempt(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self._connection is not None and self._file != _identity(self._path):
                self._discard()  # the file was deleted or replaced: what we have open is nobody else's any more
            if self._connection is None:
                self._connection = self._opened()
                self._file = _identity(self._path)
            return work(self._connection)
        except sqlite3.Error as error:
            if _code(error) & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
                raise _Locked from error
            self._discard()
            raise self._explained(error) from error

    def _opened(self) -> sqlite3.Connection:
        if not self._create_tables and not self._path.exists():
            raise SchemaMissing(self.description, "there is no such file", _WAY_OUT)
        mode = "rwc" if self._create_tables else "rw"
        connection = sqlite3.connect(
            f"{self._path.as_uri()}?mode={mode}", uri=True, timeout=_TRY, isolation_level=None, check_same_thread=False
        )
        try:
            # A claim survives a power loss, so that no token is handed out twice.
            connection.execute("PRAGMA synchronous = FULL")
            self._find_tables(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _find_tables(self, connection: sqlite3.Connection) -> None:
        version, complete = self._version(connection)
        if version in {None, *_UPGRADED} or (version == SCHEMA_VERSION and not complete):
            self._make_tables(connection, version)
            version, _ = self._version(connection)
        if version != SCHEMA_VERSION:
            raise SchemaMissing(self.description, self._of_version(version), _WAY_OUT)

    def _make_tables(self, connection: sqlite3.Connection, version: int | None) -> None:
        problem = self._of_version(version) if version in _UPGRADED else f"the tables {self._prefix}* are missing"
        if not self._create_tables:
            raise SchemaMissing(self.description, f"{problem}, and create_tables=False", _WAY_OUT)
        tables = (self._lease_table_sql, self._fence_table_sql, *self._ledger_tables_sql)
        try:
            if version is None:
                connection.execute("PRAGMA journal_mode = WAL")
            with transaction(connection):
                for statement in (*tables, self._make_version_sql, self._upgrade_sql):
                    connection.execute(statement)
        except sqlite3.Error as error:
            if _code(error) & 0xFF != sqlite3.SQLITE_READONLY:
                raise
            raise SchemaMissing(self.description, f"{problem}, and the file may not be written", _WAY_OUT) from error

    def _of_version(self, version: int | None) -> str:
        return f"the tables {self._prefix}* are of version {version}, this aiolease needs {SCHEMA_VERSION}"

    def _version(self, connection: sqlite3.Connection) -> tuple[int | None, bool]:
        """The version of the tables, and whether all are there, with their indexes."""
        names = [f"{self._prefix}{table}".lower() for table in _ALL]
        found = {name for (name,) in connection.execute(self._tables_sql, names)}
        row = connection.execute(self._version_sql).fetchone() if names[0] in found else None
        return (row and row[0]), row is not None and len(found) == len(names)

    def _row(self, connection: sqlite3.Connection, name: str, now: int) -> Lease | None:
        row: tuple[Any, ...] | None = connection.execute(self._read_sql, {"name": name}).fetchone()
        if row is None:
            return None
        with readable(self.description, "the row of a lease"):
            return Lease(
                name=row[0],
                holder=row[1],
                token=int(row[2]),
                beat=int(row[3]),
                elected_at=moment(row[4]),
                renewed_at=moment(row[5]),
                expires_at=moment(row[6]),
                resign_token=row[7],
                now=moment(now),
            )

    def _discard(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _explained(self, error: sqlite3.Error) -> AioleaseError:
        """What an error of SQLite means to the caller. Whatever is not known to be final may pass."""
        code, text = _code(error), str(error)
        final = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}
        if code == sqlite3.SQLITE_READONLY_DBMOVED:
            return StoreUnavailable(self.description, text)
        if code & 0xFF in final | {sqlite3.SQLITE_READONLY}:
            return StoreRejected(self.description, text)
        if code & 0xFF == sqlite3.SQLITE_CANTOPEN and (problem := _unusable(self._path)):
            return StoreRejected(self.description, f"{text}: {problem}")
        if text.startswith(("no such table", "no such column")):
            return SchemaMissing(self.description, text, _WAY_OUT)
        return StoreUnavailable(self.description, text)


class _Locked(Exception):
    """Others kept the file locked during one try."""


def _moved_on(lease: Lease | None, found: Lease | None) -> bool:
    """Whether a candidate that knows of `lease` should hear of `found`: not of a mere renewal or expiry."""
    if lease is None or found is None:
        return lease is not found
    return found.holder is None or found.token != lease.token


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", None) or sqlite3.SQLITE_ERROR


def _identity(path: Path) -> tuple[int, int] | None:
    # Never by opening it: closing any descriptor of the file would drop all locks that SQLite has on it.
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _unusable(path: Path) -> str | None:
    """Why a file cannot be opened, if waiting will not mend it; ``None`` if nothing speaks against it."""
    effective = os.access in os.supports_effective_ids
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    if path.exists() and not path.is_file():
        return "it is not a file"
    # A folder that may not be written will not do: SQLite keeps two more files beside the database.
    for place, rights in ((path.parent, os.W_OK | os.X_OK), (path, os.R_OK)):
        if place.exists() and not os.access(place, rights, effective_ids=effective):
            return f"no permission on {place}"
    return None


def _microseconds(seconds: float) -> int:
    return timedelta(seconds=seconds) // _MICROSECOND


# -- forks. SQLite keeps its own account of the locks that a process has, and a child inherits the account without the
# locks: on a file that its parent had open, what it commits is lost for everybody else. So a fork finds no connection
# open; parent and child each open their own when they next need one.


def _new_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="aiolease-sqlite")


_stores: weakref.WeakSet[SQLiteStore] = weakref.WeakSet()
_forking: list[SQLiteStore] = []


def _before_fork() -> None:
    for store in list(_stores):
        store._lock.acquire()
        _forking.append(store)
        store._discard()


def _after_fork_in_parent() -> None:
    while _forking:
        _forking.pop()._lock.release()


def _after_fork_in_child() -> None:
    for store in _forking:
        store._thread = _new_thread()
    _after_fork_in_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
