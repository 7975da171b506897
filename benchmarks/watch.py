"""One term, watched: when it began, and for how long the loop stood still since."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiolease import JobRegistry
from aiolease.events import Elected, Event
from benchmarks import former
from benchmarks.candidates import BenchmarkFailed

PROBE: Final = 0.005
PATIENCE: Final = 120.0


class Watch:
    """Runs the jobs of one term, and notes when it began, and how long the loop stood still since.

    Attributes:
        elected: When the term began.
        blocked: The longest that the loop stood still, in seconds.
        computed: The longest that it computed meanwhile.
        began: Set as the term begins.
    """

    def __init__(self) -> None:
        self.elected = 0.0
        self.blocked = 0.0
        self.computed = 0.0
        self.began = asyncio.Event()

    def observe(self, event: Event) -> None:
        if isinstance(event, Elected):
            self.elected, self.blocked, self.computed = time.perf_counter(), 0.0, 0.0
            self.began.set()

    async def probe(self) -> None:
        while True:
            before, cpu = time.perf_counter(), time.thread_time()
            await asyncio.sleep(PROBE)
            self.blocked = max(self.blocked, time.perf_counter() - before - PROBE)
            self.computed = max(self.computed, time.thread_time() - cpu)

    async def during(self, jobs: JobRegistry, target: Any, wait: Callable[[], Awaitable[object]]) -> None:
        """Runs the jobs of one term until a wait is over, which begins with the election.

        Raises:
            BenchmarkFailed: It is not over in time.
        """
        gc.collect()  # what was written before is not this term's to tidy up
        probe = asyncio.create_task(self.probe())
        try:
            await self.undisturbed(jobs, target, wait)
        finally:
            probe.cancel()

    async def undisturbed(self, jobs: JobRegistry, target: Any, wait: Callable[[], Awaitable[object]]) -> None:
        """The same, but that nobody asks how long the loop stands still, which costs time of the processor."""
        try:
            async with (
                asyncio.timeout(PATIENCE),
                jobs.background(target, former.LEASE, drain_timeout=0, on_event=self.observe),
            ):
                await self.began.wait()
                await wait()
        except TimeoutError:
            raise BenchmarkFailed(f"a term was not over within {PATIENCE:g} s") from None
