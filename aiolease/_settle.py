"""Waiting that cannot be torn: for exchanges with the database whose outcome must be known, or bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import anyio

from aiolease.errors import StoreUnavailable

T = TypeVar("T")


async def bounded(seconds: float, store: str, call: Awaitable[T]) -> T:
    """Awaits one exchange with a store for at most `seconds`.

    Raises:
        StoreUnavailable: It took longer. It may still take effect later.
    """
    try:
        async with asyncio.timeout(seconds):
            return await call
    except TimeoutError:
        raise StoreUnavailable(store, f"no answer within {seconds:.2g} s") from None


async def settled(task: asyncio.Task[T]) -> asyncio.CancelledError | None:
    """Waits until `task` has ended, however often the caller is cancelled meanwhile.

    The task must be bounded by itself. An anyio scope is kept from cancelling over and over by a shield; a native
    ``Task.cancel()`` ignores shields, so it is caught and handed back: the caller has to raise it.

    Returns:
        The last cancellation that arrived, ``None`` if none did.
    """
    cancelled = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
    return cancelled
