"""The lock of a leader, on a file beside the database: it holds the lock during its term, and candidates wait for it.

The lock is one of `flock`. The kernel frees it when its process ends, however that ends. It belongs to the opened file
and not to the process. So two stores of one process exclude each other, and closing another descriptor frees nothing.

The database itself is never locked, or opened, here: closing any descriptor of it would drop the locks that SQLite has
on it. The file stays when the lock is freed: a process that waits for it would otherwise wait for a deleted file, and
the next leader lock another one of the same name.
"""

from __future__ import annotations

import os
import stat
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from zlib import crc32

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class Lock:
    """A lock that this process has, until it is freed."""

    def __init__(self, path: str) -> None:
        """Opens the file, and locks nothing yet.

        Raises:
            OSError: It cannot be opened.
        """
        self._path = path
        self._descriptor = -1
        _opened.add(self)
        # For reading only: another user's process may do that, and NFS then refuses the lock, which it would emulate.
        # Strangers may have access to the folder: what they put there is neither followed nor waited for.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)

    def acquire(self, *, wait: bool) -> bool:
        """Locks the file; returns whether it did. With `wait` it blocks until then, and nothing can interrupt it."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # somebody else has it, or it cannot be locked
            self.free()
            return False
        return True

    @property
    def in_place(self) -> bool:
        """False once it is freed, or its file was deleted or replaced: nobody waits for it any more."""
        with suppress(OSError):
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._path))
        return False

    def free(self) -> None:
        """Frees the lock; nothing if it is free already. Never waits."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):
                # Closing alone is not enough if a child that was not forked by Python has the open file, too.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def forget(self) -> None:
        """In a forked child: closes its copy, so that the lock goes with the parent, and does not free the parent's."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.free()


@dataclass(frozen=True, slots=True)
class LockFile:
    """The file whose lock the leader of a lease holds.

    Attributes:
        database: The database.
        suffix: What follows the database's name in the name of the file.
    """

    database: Path
    suffix: str

    @classmethod
    def of(cls, database: Path, prefix: str, lease: str) -> Self:
        """The file of a lease, which may have any name, among the tables of a prefix.

        Two leases of equal checksums share a file: candidates of one of them then read after a third of a lease only.
        """
        return cls(database, f"-aiolease-{crc32(f'{prefix} {lease}'.encode()):08x}")

    def take(self) -> Lock | None:
        """Takes the lock if it is free."""
        return self._locked(wait=False)

    def wait(self) -> Lock | None:
        """Takes the lock when it is free; ``None`` if it cannot be locked. Blocks, without limit."""
        return self._locked(wait=True)

    def _locked(self, *, wait: bool) -> Lock | None:
        if fcntl is None:
            return None
        with suppress(OSError):  # no right, no space, a name that is too long
            lock = self._open()
            if lock.acquire(wait=wait):
                return lock
        return None

    def _open(self) -> Lock:
        # All paths that lead to one database must lead to one lock.
        database = os.path.realpath(self.database)
        path = f"{database}{self.suffix}"
        with suppress(FileNotFoundError):
            return Lock(path)
        with suppress(FileExistsError):  # another process has just made it
            _make(path, os.stat(database))
        return Lock(path)


def _make(path: str, like: os.stat_result) -> None:
    """Makes an empty file with another's rights and, if this process may set that, its owner."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with suppress(OSError):  # as it is, it serves this user's processes
            if os.geteuid() == 0:
                os.fchown(descriptor, like.st_uid, like.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(like.st_mode) & 0o666)
    finally:
        os.close(descriptor)


_opened: weakref.WeakSet[Lock] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for lock in list(_opened):
        lock.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
