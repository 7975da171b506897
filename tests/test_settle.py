"""A wait with a time limit ends in time, whatever happens to the exchange."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from aiolease import StoreUnavailable, leadership
from aiolease._waiting import time_limited
from aiolease.stores.records import Lease
from aiolease.testing import MemoryStore, virtual_time


class Stubborn(MemoryStore):
    """A store whose driver swallows every cancellation while it reads, and goes on waiting."""

    async def read(self, name: str) -> Lease | None:
        while self.down:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.5)
        return await super().read(name)


async def swallows(answer: asyncio.Event) -> str:
    while not answer.is_set():
        with suppress(asyncio.CancelledError):
            await answer.wait()
    return "answer"


@virtual_time
async def test_an_exchange_that_swallows_its_cancellation_is_left_behind() -> None:
    """The wait ends about as its limit is over, though the driver goes on; its late end harms nobody."""
    clock, answer = asyncio.get_running_loop().time, asyncio.Event()
    began = clock()
    with pytest.raises(StoreUnavailable, match="no answer within 3 s"):
        await time_limited(3.0, "memory", swallows(answer))
    assert clock() - began < 5
    answer.set()
    await asyncio.sleep(1)


@virtual_time
async def test_a_caller_that_is_cancelled_does_not_wait_for_a_driver_that_swallows_it() -> None:
    """Cancelled, the caller ends soon, and as cancelled."""
    clock, answer = asyncio.get_running_loop().time, asyncio.Event()
    task = asyncio.create_task(time_limited(300.0, "memory", swallows(answer)))
    await asyncio.sleep(1)
    task.cancel()
    began = clock()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert clock() - began < 2
    answer.set()
    await asyncio.sleep(1)


@virtual_time
async def test_a_cancellation_that_a_driver_answers_with_an_error_is_not_lost() -> None:
    """If a driver turns a cancellation into an error of its own, the caller is still cancelled."""

    async def turns_it_into_an_error() -> None:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            raise StoreUnavailable("memory", "cannot connect") from None

    task = asyncio.create_task(time_limited(300.0, "memory", turns_it_into_an_error()))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@virtual_time
async def test_an_answer_that_comes_with_the_cancellation_counts() -> None:
    """An answer that comes just as the limit is over counts."""

    async def just_in_time() -> str:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            return "answer"
        return "late"

    assert await time_limited(3.0, "memory", just_in_time()) == "answer"


@pytest.mark.parametrize("timeout", [0, 5.0])
@virtual_time
async def test_an_election_with_a_limit_ends_though_the_driver_hangs(timeout: float) -> None:
    """`leadership(timeout=…)` is over in time, though no cancellation ends what the driver waits for."""
    store, clock = Stubborn(), asyncio.get_running_loop().time
    store.down = True
    began = clock()
    with pytest.raises(StoreUnavailable):
        async with leadership(store, timeout=timeout):
            pass
    assert clock() - began < timeout + 12
    store.down = False
    await asyncio.sleep(1)
