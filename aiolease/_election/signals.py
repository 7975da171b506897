"""SIGTERM and SIGINT for a program of its own, and a forked child that is not touched by them (DESIGN rule 42).

A loop that handles signals has a handler that does nothing, and a descriptor into which the interpreter writes the
number of each signal. A forked child inherits both: a signal to the child would be ignored there, and would reach the
loop of its parent. So a child gets back the handlers from before, and the descriptor is taken away.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from aiolease.errors import ConfigurationError

_NUMBERS = (signal.SIGTERM, signal.SIGINT)

_SAME = 1.0
"""Seconds within which a further signal is the same request: a process group gets one from each that stops it."""

_earlier: list[dict[signal.Signals, Any]] = []
"""The handlers from before, of each block that handles signals now."""

_masks = threading.local()


@contextmanager
def handled(steps: Sequence[Callable[[str], None]]) -> Iterator[None]:
    """Takes SIGTERM and SIGINT until the block ends; then the handlers from before are back.

    Args:
        steps: What the first request does, what the second does, …, each called in the loop with the signal's name.
            Requests beyond are ignored.

    Raises:
        ConfigurationError: This is not the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ConfigurationError("handle_signals", True, "only the main thread of a process gets signals")
    loop, left, latest = asyncio.get_running_loop(), list(steps), float("-inf")

    def received(number: signal.Signals) -> None:
        nonlocal latest
        if left and loop.time() - latest >= _SAME:
            latest = loop.time()
            left.pop(0)(number.name)

    earlier = {number: signal.getsignal(number) for number in _NUMBERS}
    _earlier.append(earlier)
    for number in _NUMBERS:
        loop.add_signal_handler(number, received, number)
    try:
        yield
    finally:
        for number in _NUMBERS:
            loop.remove_signal_handler(number)
        _restore(earlier)
        _earlier.remove(earlier)


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        if handler is not None:  # one that was installed from C cannot be put back from here
            signal.signal(number, handler)


def _before_fork() -> None:
    # A signal that comes between the fork and `_after_fork_in_child` waits until the child can take it.
    if _earlier:
        _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, _NUMBERS)


def _after_fork_in_parent() -> None:
    before = _masks.__dict__.pop("before", None)
    if before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _after_fork_in_child() -> None:
    if _earlier:
        signal.set_wakeup_fd(-1)
    while _earlier:
        _restore(_earlier.pop())
    _after_fork_in_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
