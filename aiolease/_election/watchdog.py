"""A thread that sees what the event loop cannot: that it is blocked, or that the machine was asleep.

One thread per process, however many terms. Past the deadline of a term it asks the loop for a sign of life, again and
again until the body has ended. That also wakes the term's own guard after a suspension (an asyncio timer does not count
suspended time). If no sign comes, the stack of the loop's thread is reported, and on request the process ends.

A report has a thread of its own, for it calls what is not ours: a log that may hang on what blocks the loop, an
observer that may raise anything. Neither keeps the watchdog from the other terms of the process.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from aiolease._clock import Clock

EXIT_STATUS = 70
"""EX_SOFTWARE of sysexits.h."""

_SLICE = 1.0
"""The longest sleep of the thread, in seconds: how late a suspension is noticed."""


class _Watch:
    """The deadline of one term, and what is known of its loop."""

    def __init__(
        self, clock: Clock, deadline: Callable[[], float], wake: Callable[[], None], blocked: Callable[[str], None]
    ) -> None:
        self._clock = clock
        self._deadline = deadline
        self._wake = wake
        self._blocked = blocked
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._asked_at: float | None = None
        self._answered = False
        self._reported = False

    def look(self, grace: float) -> float:
        """Checks the deadline; returns the seconds until the next look."""
        left = self._deadline() - self._clock()
        if left > 0:
            self._asked_at, self._answered, self._reported = None, False, False
            return min(left, _SLICE)
        if self._asked_at is None or self._answered:
            # Again and again, as long as the body goes on: a clean-up may await once, and block then.
            self._reported = self._answered = False
            # Suspended time must not count against the loop here: a plain monotonic clock.
            self._asked_at = time.monotonic()
            try:
                self._loop.call_soon_threadsafe(self._answer)
            except RuntimeError:  # the loop is closed, so it blocks nothing
                self._asked_at = None
                return _SLICE
            return grace
        silent = time.monotonic() - self._asked_at
        if self._reported:
            return _SLICE
        if silent < grace:
            return grace - silent
        self._reported = True
        try:
            threading.Thread(target=self._report, name="aiolease-report", daemon=True).start()
        except RuntimeError:  # the process may have no more threads; it must be ended all the same
            self._report()
        return _SLICE

    def _report(self) -> None:
        frame = sys._current_frames().get(self._thread)
        self._blocked("".join(traceback.format_stack(frame, limit=12) if frame else ["the thread is gone"]).rstrip())

    def _answer(self) -> None:
        self._answered = True
        self._wake()


class _Watchdog:
    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets everything: after a fork there is no thread, and the lock may be held by one that is gone."""
        self._changed = threading.Condition()
        self._watches: dict[_Watch, float] = {}
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread, if it does not run; it then sleeps until there is something to watch."""
        with self._changed:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="aiolease-watchdog", daemon=True)
                self._thread.start()

    def add(self, watch: _Watch, grace: float) -> None:
        """Watches from now on."""
        self.start()
        with self._changed:
            self._watches[watch] = grace
            self._changed.notify()

    def remove(self, watch: _Watch) -> None:
        """Watches no more. The thread, which would take time from the loop, finds that out by itself."""
        with self._changed:
            self._watches.pop(watch, None)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._watches:
                    self._changed.wait()
            self._round()

    def _round(self) -> None:
        """Looks at each once, and sleeps. In a frame of its own, which keeps no term that is over for long."""
        with self._changed:
            watches = list(self._watches.items())
        # Outside the lock, for which the loops wait.
        pause = _SLICE
        for watch, grace in watches:
            with suppress(BaseException):  # whatever is wrong with one term, the others are watched
                pause = min(pause, watch.look(grace))
        with self._changed:
            if list(self._watches.items()) == watches:
                self._changed.wait(pause)


watchdog = _Watchdog()
os.register_at_fork(after_in_child=watchdog.reset)


@contextmanager
def watched(
    clock: Clock,
    deadline: Callable[[], float],
    *,
    grace: float,
    wake: Callable[[], None],
    blocked: Callable[[str], None],
) -> Iterator[None]:
    """Watches the running loop until the block ends.

    Args:
        clock: The clock of the deadline.
        deadline: The moment by which the loop should have acted; called from the thread.
        grace: How long after it the loop may stay silent, in seconds.
        wake: Called in the loop when the deadline has passed, on any clock.
        blocked: Called once for each time that the loop stays silent, from a thread of its own, with the loop's stack;
            it may hang. What it raises ends that thread and nothing else, `SystemExit` included.
    """
    watch = _Watch(clock, deadline, wake, blocked)
    watchdog.add(watch, grace)
    try:
        yield
    finally:
        watchdog.remove(watch)


def end_process(report: Callable[[], None], grace: float) -> None:
    """Ends the process, whatever happens: nothing of it may go on, and a blocked loop cannot unwind.

    Args:
        report: Says why; it may hang, if what blocks the loop is the log itself, and raise.
        grace: How long it may take, in seconds.
    """

    def last_words() -> None:
        report()
        sys.stdout.flush()
        sys.stderr.flush()

    try:
        teller = threading.Thread(target=last_words, daemon=True)
        teller.start()
        teller.join(grace)
    finally:
        os._exit(EXIT_STATUS)
