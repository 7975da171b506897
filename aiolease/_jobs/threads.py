"""The threads of ``def`` jobs: one for each run. A thread cannot be cancelled, only awaited or left behind."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from typing import final

from aiolease._forks import end_child
from aiolease._waiting import ended


@final
class JobThread:
    """A call in a thread of its own, which starts at once.

    Attributes:
        ended: Done when the call has ended, with its result or its exception. Do not cancel it.

    Raises:
        RuntimeError: The process can start no more threads. The call has not begun.
    """

    def __init__(self, call: Callable[[], object], name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[object] = self._loop.create_future()
        work = (call, copy_context(), os.getpid())
        self._thread = threading.Thread(target=self._work, args=work, name=f"aiolease job {name}", daemon=True)
        self._thread.start()
        stand_still_for = getattr(self._loop, "stand_still_for", None)
        if stand_still_for is not None:  # virtual time, see `aiolease.testing`
            stand_still_for(self.ended, f"the job {name!r}")

    @property
    def is_alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    def _work(self, call: Callable[[], object], context: Context, pid: int) -> None:
        result: object = None
        error: BaseException | None = None
        try:
            result = context.run(call)
        except StopIteration as raised:
            error = RuntimeError(f"the job raised {raised!r}")
        except BaseException as raised:  # noqa: BLE001 - it is the run's
            error = raised
        if os.getpid() != pid:
            end_child(error)
        with suppress(RuntimeError):  # the loop may have been closed meanwhile
            self._loop.call_soon_threadsafe(self._settle, result, error)

    def _settle(self, result: object, error: BaseException | None) -> None:
        if error is None:
            self.ended.set_result(result)
        else:
            self.ended.set_exception(error)

    async def outwait(self, seconds: float) -> bool:
        """Waits for the end for at most `seconds`, however often it is cancelled; returns whether it has ended."""
        until, call = self._loop.time() + seconds, self.ended
        while not call.done() and (left := until - self._loop.time()) > 0:
            try:
                await ended(call, left)
            except asyncio.CancelledError:
                continue  # the second cancellation; the thread has been told already
        if call.done():
            call.exception()
            return True
        call.add_done_callback(lambda future: None if future.cancelled() else future.exception())
        return False


@final
class LeftThreads:
    """The threads of a registry's jobs that did not end with their term, and were left behind."""

    def __init__(self) -> None:
        self._by_job: dict[str, set[JobThread]] = {}

    def add(self, job: str, thread: JobThread) -> None:
        """Leaves a thread of a job behind."""
        self._by_job.setdefault(job, set()).add(thread)

    def has(self, job: str) -> bool:
        """True while a thread of a job goes on."""
        threads = self._by_job.get(job)
        return threads is not None and any(thread.is_alive for thread in threads)

    def count(self) -> int:
        """How many threads go on."""
        return sum(thread.is_alive for threads in self._by_job.values() for thread in threads)
