"""The watchdog's thread sees a blocked loop at any moment until the body has ended, and each time anew."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
import weakref

from aiolease._election.watchdog import watched
from tests.campaigns import until

LIMIT = 30.0


async def test_a_loop_that_blocks_after_it_answered_is_reported_each_time() -> None:
    """Past the deadline the loop is asked again and again: it may await once, then block, and do so a second time."""
    alive, stalls = asyncio.Event(), list[str]()
    reported = threading.Event()

    def blocked(stack: str) -> None:
        stalls.append(stack)
        reported.set()

    clock = asyncio.get_running_loop().time
    with watched(clock, lambda: 0.0, grace=0.05, wake=alive.set, blocked=blocked):
        for stall in (1, 2, 3):
            alive.clear()
            await asyncio.wait_for(alive.wait(), LIMIT)
            reported.clear()
            assert reported.wait(LIMIT), f"stall {stall} was not seen"
            assert len(stalls) == stall
            assert "reported.wait" in stalls[-1]


async def test_a_term_that_is_over_is_not_kept() -> None:
    """The thread holds nothing of the last term, though it has nothing else to look at."""

    class Term:
        def blocked(self, stack: str) -> None:
            """Never."""

    term = Term()
    with watched(lambda: 0.0, lambda: 1.0, grace=1.0, wake=lambda: None, blocked=term.blocked):
        await asyncio.sleep(0.1)  # the thread looks at it
    kept = weakref.ref(term)
    del term

    def gone() -> bool:
        gc.collect()
        return kept() is None

    await until(gone, "the term is gone")


def test_a_clean_up_that_awaits_once_and_then_blocks_ends_the_process() -> None:
    """With `on_stall="exit"` a body that blocks in the middle of its clean-up does not outlive its lease."""
    program = """
        import asyncio, time
        from contextlib import suppress
        from aiolease import leadership
        from aiolease.testing import MemoryStore

        async def main():
            store = MemoryStore()
            async with leadership(store, lease_duration=1.0, on_stall="exit"):
                store.down = True
                try:
                    await asyncio.sleep(60)
                finally:
                    until = time.monotonic() + 0.15  # past half of the time to unwind: it was asked, and has answered
                    while time.monotonic() < until:
                        with suppress(asyncio.CancelledError):
                            await asyncio.sleep(0.01)
                    time.sleep(60)

        asyncio.run(main())
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert run.returncode == 70, run.stderr
    assert "the event loop is blocked" in run.stderr
