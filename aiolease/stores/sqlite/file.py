"""One SQLite file in one process: opens it, tries again while it is locked, translates its errors, survives forks.

One thread works on the connection. Every operation is one function that runs in this thread from ``BEGIN`` to
``COMMIT``, so a cancellation cannot stop it half-way. While others write, the function is tried again from the event
loop. A caller that stops waiting leaves at most one try behind. Another thread may borrow the connection between two
operations.

SQLite keeps a list of the locks that its process has. A forked child inherits the list, but not the locks: what it
commits to a file that its parent had open is lost for everybody else. So the connection is closed before each fork.
Parent and child open their own when they next need one.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from aiolease._waiting import wait_shielded
from aiolease.errors import AioleaseError, SchemaMissing, StoreRejected, StoreUnavailable
from aiolease.stores.sqlite.schema import WAY_OUT

T = TypeVar("T")

_TRY = 0.1
"""Seconds that one try waits for the write of another process to end."""

_PATIENCE = 2.0
"""Seconds after which a database that stays locked is reported; the caller's own limit is usually sooner."""


class File:
    """A file, and the thread that works on it.

    Attributes:
        path: Where it is.
        connection: The open connection; ``None`` before the first operation, after an error, and after a fork.
    """

    def __init__(self, path: Path, find: Callable[[sqlite3.Connection], None], *, create: bool) -> None:
        """Knows it.

        Args:
            path: Where it is.
            find: Looks for the tables over each new connection.
            create: Whether to make the file.
        """
        self.path = path
        self.connection: sqlite3.Connection | None = None
        self._description = f"sqlite:///{path}"
        self._find = find
        self._create = create
        self._thread = _new_thread()
        self._lock = threading.Lock()  # held during each try, and during a fork
        self._opened_file: tuple[int, int] | None = None
        self._closed = False
        _files.add(self)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `work` in the thread. Tries it again while others keep the file locked.

        Raises:
            StoreUnavailable: Others kept it locked for long, the store was closed, or another error that may pass.
            StoreRejected: The file cannot be used, and waiting does not help.
            SchemaMissing: The tables are missing, or of another version.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + _PATIENCE
        while True:
            if self._closed:
                raise StoreUnavailable(self._description, "this store was closed")
            try:
                return await loop.run_in_executor(self._thread, self._at_once, lambda: self._attempt(work))
            except _Locked as error:
                if loop.time() >= until:
                    raise StoreUnavailable(self._description, "database is locked") from error.__cause__
            await asyncio.sleep(random.uniform(0.002, 0.02))

    def run_here(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `work` in the calling thread, which is none of an event loop: waits until the file's own has paused.

        Raises:
            StoreUnavailable: As `run`; a file that others keep locked is not tried again.
            StoreRejected: As `run`.
            SchemaMissing: As `run`.
        """

        def attempt() -> T:
            if self._closed:
                raise StoreUnavailable(self._description, "this store was closed")
            return self._attempt(work)

        try:
            return self._at_once(attempt)
        except _Locked as error:
            raise StoreUnavailable(self._description, "database is locked") from error.__cause__

    async def aclose(self) -> None:
        """Closes the connection in its thread, then ends the thread. Operations sent before are done first."""
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

    def _at_once(self, work: Callable[[], T]) -> T:
        with self._lock:
            return work()

    def _attempt(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self.connection is not None and self._opened_file != _identity(self.path):
                self._discard()  # the file was deleted or replaced, and nobody else sees the one that is open here
            if self.connection is None:
                self.connection = self._opened()
                self._opened_file = _identity(self.path)
            return work(self.connection)
        except sqlite3.Error as error:
            if _code(error) & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
                raise _Locked from error
            self._discard()
            raise self._explained(error) from error

    def _opened(self) -> sqlite3.Connection:
        if not self._create and not self.path.exists():
            raise SchemaMissing(self._description, "there is no such file", WAY_OUT)
        mode = "rwc" if self._create else "rw"
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?mode={mode}", uri=True, timeout=_TRY, isolation_level=None, check_same_thread=False
        )
        try:
            # A claim survives a power loss, so that no token is handed out twice.
            connection.execute("PRAGMA synchronous = FULL")
            self._find(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _discard(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()

    def _explained(self, error: sqlite3.Error) -> AioleaseError:
        """Turns an error of SQLite into one of aiolease's. One that is not known to be final is `StoreUnavailable`."""
        code, text = _code(error), str(error)
        final = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}
        if code == sqlite3.SQLITE_READONLY_DBMOVED:
            return StoreUnavailable(self._description, text)
        if code & 0xFF in final | {sqlite3.SQLITE_READONLY}:
            return StoreRejected(self._description, text)
        if code & 0xFF == sqlite3.SQLITE_CANTOPEN and (problem := _unusable(self.path)):
            return StoreRejected(self._description, f"{text}: {problem}")
        if text.startswith(("no such table", "no such column")):
            return SchemaMissing(self._description, text, WAY_OUT)
        return StoreUnavailable(self._description, text)

    # -- forks

    def hold(self) -> None:
        """Before a fork: waits until no try is under way, and closes the connection."""
        self._lock.acquire()
        self._discard()

    def go_on(self, *, in_child: bool) -> None:
        """After a fork, in parent and child. A child gets a new thread: it has none of its parent's."""
        if in_child:
            self._thread = _new_thread()
        self._lock.release()


class _Locked(Exception):
    """Others kept the file locked during one try."""


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", None) or sqlite3.SQLITE_ERROR


def _identity(path: Path) -> tuple[int, int] | None:
    # The file is never opened for this: closing any descriptor of it would drop all locks that SQLite has on it.
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _unusable(path: Path) -> str | None:
    """Why a file cannot be opened, if waiting does not help; ``None`` if it seems usable."""
    effective = os.access in os.supports_effective_ids
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    if path.exists() and not path.is_file():
        return "it is not a file"
    # The folder must be writable, too: SQLite keeps two more files beside the database.
    for place, rights in ((path.parent, os.W_OK | os.X_OK), (path, os.R_OK)):
        if place.exists() and not os.access(place, rights, effective_ids=effective):
            return f"no permission on {place}"
    return None


def _new_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="aiolease-sqlite")


_files: weakref.WeakSet[File] = weakref.WeakSet()
_forking: list[File] = []


def _before_fork() -> None:
    for file in list(_files):
        file.hold()
        _forking.append(file)


def _after_fork(*, in_child: bool) -> None:
    while _forking:
        _forking.pop().go_on(in_child=in_child)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=lambda: _after_fork(in_child=False),
        after_in_child=lambda: _after_fork(in_child=True),
    )
