"""Waiting that cannot be torn: for exchanges with the database whose outcome must be known, or bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import anyio

from aiolease.errors import StoreUnavailable

T = TypeVar("T")

_SWALLOWED = 1.0
"""Seconds after which a cancellation that ended nothing is taken for swallowed."""


async def bounded(seconds: float, store: str, call: Awaitable[T]) -> T:
    """Awaits one exchange with a store for at most `seconds`.

    Raises:
        StoreUnavailable: It took longer. It may still take effect later.
    """
    task = asyncio.current_task()
    cancelling = task.cancelling() if task else 0
    try:
        async with asyncio.timeout(seconds):
            answer = await call
    except TimeoutError:
        raise StoreUnavailable(store, f"no answer within {seconds:.2g} s") from None
    if task is not None and task.cancelling() > cancelling:
        # Python 3.11's wait_for, with which drivers connect, swallows a cancellation that comes with the result.
        raise asyncio.CancelledError
    return answer


async def settled(task: asyncio.Task[T], within: float | None = None) -> asyncio.CancelledError | None:
    """Waits until `task` has ended, however often the caller is cancelled meanwhile.

    The task must be bounded by itself, or the wait by `within`. An anyio scope is kept from cancelling over and over by
    a shield; a native ``Task.cancel()`` ignores shields, so it is caught and handed back: the caller has to raise it.

    Returns:
        The first cancellation that arrived, ``None`` if none did.
    """
    loop, cancelled = asyncio.get_running_loop(), None
    until = None if within is None else loop.time() + within
    with anyio.CancelScope(shield=True):
        while not task.done() and (until is None or loop.time() < until):
            try:
                await asyncio.wait([task], timeout=None if until is None else max(until - loop.time(), 0.0))
            except asyncio.CancelledError as error:
                cancelled = cancelled or error
    return cancelled


async def given_up(task: asyncio.Task[T]) -> asyncio.CancelledError | None:
    """Cancels `task` and waits until it has ended; it may have a result all the same.

    Returns:
        The first cancellation of the caller that arrived, ``None`` if none did.
    """
    cancelled = None
    while not task.done():
        task.cancel()
        # Again after a while: a driver may swallow the one, and wait on.
        another = await settled(task, _SWALLOWED)
        cancelled = cancelled or another
    return cancelled
