"""Reads the rows that the candidates of one process wait for: one statement reads all that are due at one moment."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from aiolease.errors import StoreUnavailable
from aiolease.stores.records import Lease

_LIMIT = 10.0
"""Time limit for a reading whose caller sets none, in seconds."""

Found = Mapping[str, Lease | Exception]
"""The rows of leases by their names; an error for a row that cannot be read."""


def by_name(rows: Iterable[tuple[Any, ...]], make: Callable[[tuple[Any, ...]], Lease]) -> Found:
    """Makes leases of rows, whose first column is the name. A row that cannot be read costs its own lease only."""
    found: dict[str, Lease | Exception] = {}
    for row in rows:
        try:
            found[row[0]] = make(row)
        except StoreUnavailable as error:
            found[row[0]] = error
    return found


def answer_with(answer: asyncio.Future[Lease | None], found: Lease | BaseException | None) -> None:
    """Answers a caller that may have stopped waiting."""
    if answer.done():
        return
    if isinstance(found, BaseException):
        answer.set_exception(found)
    else:
        answer.set_result(found)


class Polls:
    """The readings of the candidates of one process, in one statement for all that are due together."""

    def __init__(self, read_many: Callable[[list[str]], Awaitable[Found]], store: str = "") -> None:
        self._store = store
        self._read_many = read_many
        self._waiting: dict[asyncio.Future[Lease | None], tuple[str, float]] = {}
        self._changed = asyncio.Event()
        self._woken = False
        self._task: asyncio.Task[None] | None = None
        self._phase = random.random()  # processes of one machine must not all ask at the same moment

    def __bool__(self) -> bool:
        return bool(self._waiting)

    async def read(self, name: str, seconds: float, poll: float, limit: float = _LIMIT) -> Lease | None:
        """Waits, then reads the row.

        It waits for `seconds`, for the next poll if that comes sooner, or until a lease of this process is released.

        Raises:
            StoreUnavailable: The reading took longer than `limit` seconds. It is cancelled if nobody else waits for it.
        """
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if poll < seconds:
            # On a grid, so that all candidates with one interval read together; never on a moment that is almost now.
            due = (math.floor(loop.time() / poll + self._phase + 0.1) + 1 - self._phase) * poll
        answer: asyncio.Future[Lease | None] = loop.create_future()
        self._waiting[answer] = (name, due)
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout_at(max(due, loop.time()) + limit):
                return await answer
        except TimeoutError:
            raise StoreUnavailable(self._store, f"no answer within {limit:.2g} s") from None
        finally:
            self._waiting.pop(answer, None)
            self._changed.set()

    def wake(self) -> None:
        """Makes all candidates read now: a lease of this process was released."""
        self._woken = True
        self._changed.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            self._changed.clear()
            now = loop.time()
            soonest = min(due for _, due in self._waiting.values())
            if soonest > now and not self._woken:
                try:
                    async with asyncio.timeout_at(soonest):
                        await self._changed.wait()
                except TimeoutError:
                    pass
                continue
            batch = {answer: name for answer, (name, due) in self._waiting.items() if self._woken or due <= now + 0.01}
            self._woken = False
            await self._answer(batch)

    async def _answer(self, batch: dict[asyncio.Future[Lease | None], str]) -> None:
        query = asyncio.ensure_future(self._read_many(sorted(set(batch.values()))))
        # Each caller that stops waiting cancels its future. When all are done, the query is cancelled, too.
        await while_wanted(query, batch)
        for answer, name in batch.items():
            self._waiting.pop(answer, None)
            if answer.done():
                continue
            if query.cancelled():
                answer.cancel()
            elif (error := query.exception()) is not None:
                answer.set_exception(error)
            else:
                answer_with(answer, query.result().get(name))

    async def aclose(self) -> None:
        """Cancels the reading under way. Its callers get no answer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


async def while_wanted(query: asyncio.Future[Any], answers: dict[asyncio.Future[Any], Any]) -> None:
    """Waits for the end of a query; cancels it when no caller waits for an answer any more."""
    gone = asyncio.gather(*answers, return_exceptions=True)
    ends: list[asyncio.Future[Any]] = [query, gone]
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not query.done():
            query.cancel()
            await asyncio.wait([query])
        if not query.cancelled():
            query.exception()  # read, because there may be no caller left who reads it
