"""Connecting, which may go on longer than the attempt that started it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

CONNECT_LIMIT = 10.0
"""Seconds that connecting may take, with the settings that are sent before the first exchange."""

_SOON = 0.5
"""Seconds that connecting may take before it is known how fast the network is."""

_LATELY = 5.0
"""A failure that nobody waited for is given to the next caller, if it is no older than these seconds."""


class Connecting(Generic[T]):
    """Makes connections, one at a time, each in a task of its own.

    To connect takes ten round trips. An exchange takes one, and the time limit of an attempt is made for an exchange.

    1. An attempt whose time is over leaves the connecting running. The next attempt waits for it.
    2. If connecting has taken longer than `_patience` by then, the attempt cancels it, because it may hang.
    3. After each cancellation `_patience` grows, so that a slow network gets its connection, too.
    """

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self._make = make
        self._task: asyncio.Task[T] | None = None
        self._since = self._done_at = 0.0
        self._patience = _SOON

    async def get(self) -> T | None:
        """Waits for a connection and hands it to the caller; ``None`` if somebody ended the connecting.

        Raises:
            Exception: What connecting failed with. `TimeoutError` after `CONNECT_LIMIT`.
        """
        loop = asyncio.get_running_loop()
        task = self._task
        if task is None or (_failed(task) and loop.time() - self._done_at > _LATELY):
            self._since = loop.time()
            task = self._task = asyncio.create_task(self._run())
            task.add_done_callback(_failed)
        try:
            await asyncio.wait([task])
        except BaseException:
            self.gave_up()
            raise
        if self._task is not task:
            return None  # `end` took it
        self._task = None
        return None if task.cancelled() else task.result()

    def gave_up(self) -> None:
        """A caller stopped waiting: cancels the connecting if it takes longer than it should."""
        if (
            self.under_way
            and self._task is not None
            and asyncio.get_running_loop().time() - self._since > self._patience
        ):
            self._patience = min(self._patience * 4, CONNECT_LIMIT)
            self._task.cancel()

    @property
    def under_way(self) -> bool:
        """Whether connecting goes on."""
        return self._task is not None and not self._task.done()

    async def end(self) -> T | None:
        """Cancels the connecting; returns a connection that nobody took, for the caller to close."""
        task, self._task = self._task, None
        while task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=1.0)  # then cancel again: a driver may swallow one cancellation
        return None if task is None or task.cancelled() or task.exception() is not None else task.result()

    async def _run(self) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_LIMIT):
                connection = await self._make()
        finally:
            self._done_at = loop.time()
        self._patience = max(_SOON, 2 * (self._done_at - self._since))
        return connection


def _failed(task: asyncio.Task[T]) -> bool:
    """Whether a task has failed. Reading the exception keeps asyncio from logging that nobody read it."""
    return task.done() and not task.cancelled() and task.exception() is not None
