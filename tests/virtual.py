"""What tests in virtual time share: the moment at which the server's clock starts, and the lines that were logged."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ParamSpec

from aiolease.testing import virtual_time

if TYPE_CHECKING:
    from loguru import Message


P = ParamSpec("P")

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
LIMIT = 10.0
"""Seconds of real time within which everything here has to happen."""


def virtual(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A test in virtual time that ends within a virtual day, and leaves no task behind."""

    @functools.wraps(test)
    async def bounded(*args: P.args, **kwargs: P.kwargs) -> None:
        async with asyncio.timeout(86_400):
            await test(*args, **kwargs)
        for _ in range(3):  # what was cancelled, or has its result, may end
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    return virtual_time(bounded)


def lines(log: list[Message], level: str) -> list[str]:
    return [each.record["message"] for each in log if each.record["level"].name == level]


def failures(log: list[Message]) -> list[str]:
    """What was logged at ERROR, without the ticks."""
    return [line.partition(" (tick ")[0] for line in lines(log, "ERROR")]


SHORT: dict[str, Any] = {"lease_duration": 0.6}


async def until(condition: Callable[[], object]) -> None:
    """Waits for what other tasks or threads do, and fails after `LIMIT`."""
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.005)
