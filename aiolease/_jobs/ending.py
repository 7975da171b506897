"""Ends the runs and calls of a term: cancels them, again after half the time to unwind, and awaits them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, final

import anyio

from aiolease._election.term import Term


@final
class Ending:
    """Whether the jobs of a term are being ended; shared by all that runs within it.

    Attributes:
        reason: Why they are being ended; ``None`` while they are not.
    """

    def __init__(self) -> None:
        self.reason: str | None = None

    @property
    def has_begun(self) -> bool:
        """True once the jobs are being ended."""
        return self.reason is not None

    def begin(self, term: Term) -> None:
        """Notes that the jobs are being ended, and why."""
        self.reason = term.ended or ("the term was ended" if term.is_led else "expired")


async def cancel_all(tasks: Callable[[], set[asyncio.Task[Any]]], term: Term) -> asyncio.CancelledError | None:
    """Cancels tasks once, and again after half the time to unwind; returns when all have ended.

    Args:
        tasks: Returns the tasks that have not ended yet.
        term: Resigned with the second cancellation: from then on the leader measures and reports how long they take.

    Returns:
        The first cancellation of the caller that arrived, ``None`` if none did.
    """
    clock, cancelled = asyncio.get_running_loop().time, None
    again: float | None = clock() + term.timings.unwind / 2
    for task in tasks():
        task.cancel()
    # Shielded, so that an anyio scope around it does not cancel the wait over and over.
    with anyio.CancelScope(shield=True):
        while busy := tasks():
            try:
                await asyncio.wait(busy, timeout=None if again is None else max(again - clock(), 0.0))
            except asyncio.CancelledError as error:
                cancelled = cancelled or error
            if again is not None and clock() >= again:
                again = None
                for task in tasks():
                    task.cancel()
                term.end("resigned")
    return cancelled
