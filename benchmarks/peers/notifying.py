"""How long a notification takes from one connection to another: bare, by APScheduler's event broker, of a release."""

from __future__ import annotations

import asyncio
import importlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg

from aiolease import open_store
from aiolease._election.claim import new_holder
from benchmarks.crowd import apart

Notify = Callable[[], Awaitable[float]]
"""Makes one, and returns the seconds that it took."""

LISTENED = 0.02
"""Seconds after which a store that was told to watch has read the row and listens."""


async def notifications(url: str, times: int) -> dict[str, list[float]]:
    """So many of each, by turns; the first of each are not counted."""
    async with AsyncExitStack() as stack:
        notify = {
            "bare": await stack.enter_async_context(_bare(url)),
            "APScheduler's event broker": await stack.enter_async_context(_broker(url)),
            "aiolease: a release": await stack.enter_async_context(_release(url)),
        }
        took: dict[str, list[float]] = {name: [] for name in notify}
        for number in range(times + 10):
            for name, one in notify.items():
                seconds = await one()
                if number >= 10:
                    took[name].append(seconds)
    return took


@asynccontextmanager
async def _bare(url: str) -> AsyncIterator[Notify]:
    sender, receiver = await asyncpg.connect(url), await asyncpg.connect(url)
    heard = asyncio.Event()
    await receiver.add_listener("bare", lambda *_: heard.set())

    async def notify() -> float:
        heard.clear()
        started = time.perf_counter()
        sending: asyncio.Task[Any] = asyncio.create_task(sender.execute("SELECT pg_notify('bare', '')"))
        await heard.wait()
        took = time.perf_counter() - started
        await sending
        return took

    yield notify
    await receiver.close()
    await sender.close()


@asynccontextmanager
async def _broker(url: str) -> AsyncIterator[Notify]:
    started: Any = importlib.import_module("apscheduler").SchedulerStarted
    kind: Any = importlib.import_module("apscheduler.eventbrokers.asyncpg").AsyncpgEventBroker
    heard = asyncio.Event()
    async with AsyncExitStack() as stack:
        sender, receiver = kind(url), kind(url)
        for broker in (sender, receiver):
            await broker.start(stack, logging.getLogger("peers"))
        receiver.subscribe(lambda _: heard.set(), {started}, is_async=False, one_shot=False)

        async def notify() -> float:
            heard.clear()
            began = time.perf_counter()
            await sender.publish(started())
            await heard.wait()
            return time.perf_counter() - began

        yield notify


@asynccontextmanager
async def _release(url: str) -> AsyncIterator[Notify]:
    async with open_store(url) as leader, open_store(apart(url, 1)) as candidate:

        async def notify() -> float:
            holder, lease = new_holder(), await candidate.read("bench")
            while lease is None or lease.holder != holder:
                lease = await leader.claim("bench", holder, 30.0, seen=lease, force=False)
            watching = asyncio.create_task(candidate.watch("bench", 10.0, lease=lease, poll=10.0, hint=True))
            await asyncio.sleep(LISTENED)
            started = time.perf_counter()
            releasing = asyncio.create_task(leader.release("bench", holder, lease.token))
            seen = await watching
            took = time.perf_counter() - started
            await releasing
            assert seen is not None
            assert seen.holder is None
            return took

        yield notify
