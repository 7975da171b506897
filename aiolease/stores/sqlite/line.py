"""The candidates of this process that wait for the lock of one lease: a thread gets it for one after the other.

Nothing can interrupt a thread that waits for a lock. So it is a daemon, and neither `aclose` nor the end of the program
waits for it. If its candidate stops waiting, the thread serves the next one for the same lease. If there is none, it
frees the lock as soon as it has it, and ends.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from aiolease._waiting import ended
from aiolease.stores.records import Lease
from aiolease.stores.sqlite.lockfile import Lock, LockFile

CLAIMS_WITHIN = 1.0
"""Seconds after which a candidate that has the lock, and has not claimed, lets others have it."""

MOST = 32
"""Leases for whose locks one process waits, each by a thread; and whose locks one store holds, each by an open file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Woken:
    """What a candidate gets for its wait.

    Attributes:
        lock: The lock, which it has to free.
        read: Whether the row was read since; not if the database was locked, or did not answer.
        row: The row.
    """

    lock: Lock
    read: bool
    row: Lease | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Turn:
    """A candidate in a line.

    Attributes:
        served: Has the end of its wait; ``None`` if the file cannot be locked.
        look: Reads the row.
        settled: Is set when its loop has heard of the lock.
    """

    served: asyncio.Future[Woken | None]
    look: Callable[[], Lease | None]
    settled: threading.Event = field(default_factory=threading.Event)

    def serve(self, lock: Lock | None) -> None:
        """Hands on what the thread has got."""
        woken = None
        if lock is not None:
            try:
                woken = Woken(lock=lock, read=True, row=self.look())
            except Exception:  # noqa: BLE001 - the candidate reads the row itself, and is told what is wrong
                woken = Woken(lock=lock, read=False)
        try:
            self.served.get_loop().call_soon_threadsafe(self._settle, woken)
        except RuntimeError:  # the loop was closed meanwhile
            _free(woken)
            return
        if woken is not None and not self.settled.wait(CLAIMS_WITHIN):
            _free(woken)  # the loop stands still, or runs now and then: others may have the lock

    def _settle(self, woken: Woken | None) -> None:
        self.settled.set()
        if self.served.done():  # its candidate does not wait any more; for the others here the thread waits again
            _free(woken)
        else:
            self.served.set_result(woken)


def _free(woken: Woken | None) -> None:
    if woken is not None:
        woken.lock.free()


async def wait_in_line(file: LockFile, seconds: float, look: Callable[[], Lease | None]) -> Woken | None:
    """Waits for a lock, behind those of this process that came before.

    Args:
        file: What is locked.
        seconds: The longest wait.
        look: Reads the row; called in the thread that has got the lock.

    Returns:
        The lock; ``None`` if the file cannot be locked, or this process waits for too many others.

    Raises:
        TimeoutError: Others have had it all the time.
    """
    served: asyncio.Future[Woken | None] = asyncio.get_running_loop().create_future()
    turn = _Turn(served, look)
    if not _join(file, turn):
        return None
    try:
        await ended(served, seconds)
    except asyncio.CancelledError:
        if served.done():
            _free(served.result())
        raise
    finally:
        # Nothing else: this may be a garbage collector's, that closes what a closed loop has left, under any lock.
        served.cancel()
    if served.cancelled():
        raise TimeoutError
    return served.result()


class _Line:
    """The candidates of one process that wait for one lock. A thread gets it for one after the other."""

    def __init__(self, file: LockFile) -> None:
        self.turns: list[_Turn] = []
        self._file = file

    def start(self) -> bool:
        """Starts the thread; returns whether the process can start one."""
        try:
            threading.Thread(target=self._run, name="aiolease-sqlite-lock", daemon=True).start()
        except RuntimeError:
            return False
        return True

    def _run(self) -> None:
        # No lock is kept in a variable over the next wait: a loop that is closed before it has served a turn has the
        # last reference to a lock, which so is freed.
        try:
            while self._serve(self._file.wait()):
                pass
        finally:
            with _guard:
                if _lines.get(self._file) is self:  # out of memory: the next candidate starts another thread
                    del _lines[self._file]

    def still_waiting(self) -> list[_Turn]:
        """The candidates that have not stopped waiting."""
        return [turn for turn in self.turns if not turn.served.done()]

    def _serve(self, lock: Lock | None) -> bool:
        """Hands on a lock, or tells all that there is none; returns whether anybody still waits."""
        with _guard:
            waiting = self.still_waiting()
            turns = waiting[:1] if lock is not None else waiting
            self.turns = waiting[len(turns) :]
            others = bool(self.turns)
            if not others:
                _lines.pop(self._file, None)
        if lock is not None and not turns:
            lock.free()
        for turn in turns:
            turn.serve(lock)
        return others


def _join(file: LockFile, turn: _Turn) -> bool:
    with _guard:
        line = _lines.get(file)
        if line is None:
            line = _Line(file)
            if len(_lines) >= MOST or not line.start():
                return False
            _lines[file] = line
        line.turns = [*line.still_waiting(), turn]
    return True


_lines: dict[LockFile, _Line] = {}  # those that have a thread
_guard = threading.Lock()  # for the lines; never held while anything waits


def _after_fork_in_child() -> None:
    _lines.clear()  # a child has none of its parent's threads
    _guard.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_after_fork_in_child)
