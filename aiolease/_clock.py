"""The clock of every deadline, which counts the time that a machine was suspended (DESIGN rule 9), and the jitter.

``time.monotonic`` stands still while a Linux machine sleeps, so a process that was suspended for an hour would
believe in its lease for as long again. ``CLOCK_BOOTTIME`` goes on.

A loop of `aiolease.testing` brings both of its own, so that every run of a test is the same.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import partial

Clock = Callable[[], float]

replaced: ContextVar[Clock | None] = ContextVar("aiolease_clock", default=None)
"""A clock for the running task and its children, set by `aiolease.testing` to let machines of one simulation drift."""


def _boot_clock() -> Clock:
    for name in ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC_RAW"):  # Linux, macOS
        number = getattr(time, name, None)
        if number is None:
            continue
        try:
            time.clock_gettime(number)
        except OSError:  # a sandbox that knows the name, but not the clock
            continue
        return partial(time.clock_gettime, number)
    return time.monotonic


boot_clock: Clock = _boot_clock()
"""Seconds since some moment in the past, from any thread; counts suspension."""


def current_clock() -> Clock:
    """The clock of the running task: a replaced one, the one of a virtual loop, else `boot_clock`."""
    clock = replaced.get()
    if clock is None:
        clock = getattr(asyncio.get_running_loop(), "boot_clock", None)
    return clock or boot_clock


def ahead_of(database_now: datetime, took: float) -> float:
    """Seconds by which this machine's wall clock is ahead of the database's, accurate to half of `took`.

    Args:
        database_now: The database's clock, as an answer that has just come shows it.
        took: From the sending of the question to its answer, in seconds.
    """
    wall_clock = getattr(asyncio.get_running_loop(), "wall_clock", None)
    now = datetime.now(UTC) if wall_clock is None else wall_clock()
    return float((now - database_now).total_seconds() - took / 2)


def jitter(low: float, high: float) -> float:
    """Seconds between the two, at random, so that processes do not act all at once; in virtual time always the same."""
    return getattr(asyncio.get_running_loop(), "jitter", random.uniform)(low, high)
