"""Connecting that may take longer than one attempt has time for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

CONNECT_LIMIT = 10.0
"""Seconds that connecting may take, with all that is settled before the first exchange."""

_SOON = 0.5
"""Seconds that connecting may take when nothing is known of the network."""

_LATELY = 5.0
"""Seconds for which a failure that nobody waited for is the answer to the next who asks."""


class Connecting(Generic[T]):
    """Makes connections, one at a time, each in a task of its own.

    To connect takes ten round trips, an exchange takes one, and the time for an attempt is meant for an exchange. So an
    attempt that gives up leaves the connecting to the next one, which waits for the rest of it. If connecting takes
    longer than it should, the attempt that gives up ends it, for it may hang; each that was ended so makes the next one
    more patient, so that a slow network has its connection, too.
    """

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self._make = make
        self._task: asyncio.Task[T] | None = None
        self._since = self._done_at = 0.0
        self._patience = _SOON

    async def get(self) -> T | None:
        """Waits for a connection, which is the caller's then; ``None`` if somebody ended the connecting.

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
            return None  # `end` has it
        self._task = None
        return None if task.cancelled() else task.result()

    def gave_up(self) -> None:
        """Somebody does not wait any longer: ends the connecting if it takes longer than it should."""
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
        """Ends the connecting; gives a connection that was made and not taken, for the caller to close."""
        task, self._task = self._task, None
        while task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=1.0)  # again after a while: a driver may swallow the one
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
    """Whether a task has failed; asking keeps asyncio from complaining that nobody did."""
    return task.done() and not task.cancelled() and task.exception() is not None
