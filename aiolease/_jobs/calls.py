"""The calls of `leader_only` functions that run within a term, beside its jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar, final

from aiolease._election.leadership import Leadership, is_within, leading
from aiolease._interrupts import is_for_the_program
from aiolease._jobs.ending import Ending
from aiolease._waiting import ended, wait_shielded
from aiolease.errors import LeadershipLost

R = TypeVar("R")


@final
class Calls:
    """The calls within one term.

    Attributes:
        tasks: The calls that go on.
        open: False once the term drains: only calls of its own jobs are let in then.
    """

    def __init__(self, lead: Leadership, ending: Ending, wake: asyncio.Event) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()
        self.open = True
        self._lead = lead
        self._ending = ending
        self._wake = wake
        self._loop = asyncio.get_running_loop()

    @property
    def lets_in(self) -> bool:
        """True if a call may run within this term."""
        return self._lead.is_leader and not self._ending.has_begun and (self.open or is_within(self._lead))

    async def within(self, call: Callable[[], Awaitable[R]]) -> R:
        """Runs a call as a part of the term: cancelled with it, and awaited before the lease is released.

        Raises:
            LeadershipLost: The term has ended, and the call with it.
        """
        if asyncio.get_running_loop() is self._loop:
            came_out = await self._within(call)
        else:  # another scheduler's thread, with a loop of its own
            came_out = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._within(call), self._loop))
        if isinstance(came_out, _Exit):
            raise came_out.error
        return came_out

    async def _within(self, call: Callable[[], Awaitable[R]]) -> R | _Exit:
        async def run() -> R | _Exit:
            with leading(self._lead):
                try:
                    return await call()
                except (KeyboardInterrupt, SystemExit) as error:
                    if is_for_the_program(error):
                        raise
                    return _Exit(error)

        task = asyncio.create_task(run())
        self.tasks.add(task)
        task.add_done_callback(self._call_ended)
        try:
            await ended(task)
        except asyncio.CancelledError:
            if not self._ending.has_begun:  # else the term has cancelled it already
                task.cancel()
            await wait_shielded(task)
            if not task.cancelled():
                task.exception()  # read, but the cancellation is raised in its place
            raise
        if task.cancelled() and self._ending.has_begun:
            key, reason = self._lead.term.key, self._lead.term.ended
            raise LeadershipLost(key.name, key.holder, key.token, reason or "resigned")  # or its registry has left
        return task.result()

    def _call_ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        self._wake.set()


@dataclass(frozen=True, slots=True)
class _Exit:
    """A `SystemExit` or `KeyboardInterrupt` of a call. The caller raises it: raised in a task it would end the loop."""

    error: BaseException
