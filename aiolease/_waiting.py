"""Waiting for exchanges with the database: with a time limit, or until the outcome is known, whoever cancels."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio

from aiolease.errors import StoreUnavailable

T = TypeVar("T")

_PAUSES = (0.05, 0.5)
"""Seconds before a last write that failed twice is tried again; doubled each time, up to the second number."""

_caller: ContextVar[asyncio.Task[Any] | None] = ContextVar("aiolease_caller", default=None)


@dataclass(slots=True, eq=False)
class _Limit:
    """Until when a task has time, by the loop's clock."""

    until: float
    task: asyncio.Task[Any] | None = None


_limit: ContextVar[_Limit | None] = ContextVar("aiolease_limit", default=None)

_SWALLOWED = 1.0
"""Seconds after which a cancellation that ended nothing is taken for swallowed."""


async def ended(task: asyncio.Future[Any], within: float | None = None) -> None:
    """Waits until `task` has ended, for `within` seconds at most; cancels nothing.

    As ``asyncio.wait`` does for any number of tasks. For one it takes longer than all else that an exchange adds to its
    statement (``make bench ARGS=renewal``).
    """
    if task.done():
        return
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()

    def wake(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    timer = None if within is None else loop.call_later(within, wake)
    task.add_done_callback(wake)
    try:
        await waiter
    finally:
        task.remove_done_callback(wake)
        if timer is not None:
            timer.cancel()


async def run_apart(
    call: Callable[[], Coroutine[Any, Any, T]], within: float
) -> tuple[asyncio.Task[T], asyncio.CancelledError | None]:
    """Runs an exchange in a task of its own, and waits until it has ended, for `within` seconds at most.

    Cancels nothing. As `ended`, but the last step of the task wakes the caller. A callback of the task would do that a
    turn of the loop later.

    Returns:
        The task, and the cancellation of the caller that ended the wait. In that case, and if the time was up, the task
        goes on.
    """
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    async def exchange() -> T:
        try:
            return await call()
        finally:
            wake()

    task = loop.create_task(exchange())
    task.add_done_callback(lambda _: wake())  # somebody may cancel it before its first step
    timer = loop.call_later(within, wake)
    try:
        await waiter
    except asyncio.CancelledError as error:
        return task, error
    finally:
        timer.cancel()
    return task, None


async def time_limited(seconds: float, store: str, call: Coroutine[Any, Any, T] | asyncio.Future[T]) -> T:
    """Awaits one exchange with a store for at most `seconds`.

    In a task of its own: a driver may swallow the cancellation that ends the wait (``wait_for`` of Python 3.11 does,
    when it comes with the result), or answer it with an error. Then the wait ends all the same a second later, and the
    task is left to end by itself.

    Raises:
        StoreUnavailable: It took longer. It may still take effect later.
    """
    context = copy_context()
    context.run(_caller.set, asyncio.current_task())
    limit = _Limit(asyncio.get_running_loop().time() + seconds)
    context.run(_limit.set, limit)
    if isinstance(call, asyncio.Future):
        task = call
    else:
        task = limit.task = asyncio.create_task(call, context=context)
    try:
        await ended(task, seconds)
    except asyncio.CancelledError:
        await _leave(task)
        raise
    if not task.done():
        cancelled = await _leave(task)
        if cancelled is not None:
            raise cancelled
        if not task.done() or task.cancelled() or task.exception() is not None:
            raise StoreUnavailable(store, f"no answer within {seconds:.2g} s")
    return task.result()


def time_left() -> float:
    """Seconds that the running task has left, if `time_limited` runs it; infinite for any other, whoever started it."""
    limit = _limit.get()
    if limit is None or limit.task is not asyncio.current_task():
        return math.inf
    return limit.until - asyncio.get_running_loop().time()


def caller() -> asyncio.Task[Any]:
    """The task that waits for the exchange which the running task has: what tells one candidate from another."""
    task = _caller.get() or asyncio.current_task()
    assert task is not None
    return task


async def _leave(task: asyncio.Future[Any]) -> asyncio.CancelledError | None:
    """Cancels `task`, and does not wait for it if it goes on; returns the first cancellation that arrived meanwhile."""
    task.add_done_callback(lambda task: None if task.cancelled() else task.exception())
    task.cancel()
    return await wait_shielded(task, _SWALLOWED)


async def retried(seconds: float, store: str, call: Callable[[], Coroutine[Any, Any, T]]) -> tuple[T, bool]:
    """Awaits a last write for at most `seconds`; while there is time, tries again if the store is unavailable.

    The server may have ended the connection, restart, or hand over to another. A try that gets no answer has half the
    time, so that another over a new connection has the rest.

    Returns:
        The answer, and whether an earlier try went unanswered: it may have taken effect.

    Raises:
        StoreUnavailable: No try succeeded. Each may still take effect later.
    """
    clock = asyncio.get_running_loop().time
    until, limit, pause, again = clock() + seconds, seconds / 2, 0.0, False
    while True:
        try:
            return await time_limited(limit, store, call()), again
        except StoreUnavailable:
            limit, again = until - clock() - pause, True
            if limit <= 0:
                raise
        await asyncio.sleep(pause)
        pause = min(max(2 * pause, _PAUSES[0]), _PAUSES[1])


async def wait_shielded(task: asyncio.Future[T], within: float | None = None) -> asyncio.CancelledError | None:
    """Waits until `task` has ended, however often the caller is cancelled meanwhile.

    The task must have a time limit of its own, or the wait has one by `within`. An anyio scope is kept from cancelling
    over and over by a shield. A native ``Task.cancel()`` ignores shields, so it is caught and returned: the caller has
    to raise it.

    Returns:
        The first cancellation that arrived, ``None`` if none did.
    """
    loop, cancelled = asyncio.get_running_loop(), None
    until = None if within is None else loop.time() + within
    with anyio.CancelScope(shield=True):
        while not task.done() and (until is None or loop.time() < until):
            try:
                await ended(task, None if until is None else max(until - loop.time(), 0.0))
            except asyncio.CancelledError as error:
                cancelled = cancelled or error
    return cancelled


async def cancel_and_wait(task: asyncio.Task[T]) -> asyncio.CancelledError | None:
    """Cancels `task` and waits until it has ended; it may have a result all the same.

    Returns:
        The first cancellation of the caller that arrived, ``None`` if none did.
    """
    cancelled = None
    while not task.done():
        task.cancel()
        # Again after a while: a driver may swallow the one, and wait on.
        another = await wait_shielded(task, _SWALLOWED)
        cancelled = cancelled or another
    return cancelled
