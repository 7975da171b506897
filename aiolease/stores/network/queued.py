"""What the leases of one process ask for, in a queue: a task sends it as soon as the connection is free."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Queue(ABC, Generic[Asked, Answer]):
    """A queue of requests, and the task that sends them.

    Attributes:
        waiting: What waits to be sent, by what its caller waits for.
    """

    def __init__(self, gave_up: Callable[[], None]) -> None:
        """Makes it; `gave_up` is called when a caller stops waiting for its turn."""
        self.waiting: dict[asyncio.Future[Answer], Asked] = {}
        self._gave_up = gave_up
        self._task: asyncio.Task[None] | None = None

    @property
    def sending(self) -> bool:
        """Whether the task is at work."""
        return self._task is not None and not self._task.done()

    async def ask(self, asked: Asked) -> Answer:
        """Waits for the answer. A caller that stops waiting before its turn has sent nothing."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.waiting[answer] = asked
        if not self.sending:
            self._start()
        try:
            return await answer
        except asyncio.CancelledError:
            if self.waiting.pop(answer, None) is not None:
                self._gave_up()
            raise

    def _start(self) -> None:
        self._task = asyncio.create_task(self._send_all())
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self.waiting and task is self._task:  # somebody cancelled it who cancels all tasks of the loop
            self._start()

    async def _send_all(self) -> None:
        while self.waiting:
            await self.send_next()

    @abstractmethod
    async def send_next(self) -> None:
        """Takes some of what waits, sends it, and answers its callers."""

    async def aclose(self) -> None:
        """Waits until nothing is under way. Call it once the connection is closed: then everything fails at once."""
        if self._task is not None:
            await asyncio.wait([self._task])
