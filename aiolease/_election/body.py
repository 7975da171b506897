"""The body of a term, the user's block: it is cancelled when its term ends, and what leaves it is decided here.

The body runs in the task that entered the block, the host. That task may be cancelled by others too, before, after and
at the same moment. What leaves the block must say which it was.
"""

from __future__ import annotations

import asyncio
from typing import Any

import anyio.lowlevel

from aiolease._election.term import Term


class Body:
    """The body of one term.

    Attributes:
        ended: Whether it has left the block.
        left: Set once it has.
    """

    def __init__(self, term: Term) -> None:
        host = asyncio.current_task()
        assert host is not None
        self.ended = False
        self.left = asyncio.Event()
        self._term = term
        self._host = host
        self._cancelling = host.cancelling()
        self._cancels = 0  # ours
        self._leftover = 0
        self._message = f"the term of {term.key.name!r} is over"  # known again by its identity

    @property
    def is_running_task(self) -> bool:
        """Whether the running task is the body's."""
        return asyncio.current_task() is self._host

    @property
    def cancelled_by_others(self) -> bool:
        """Whether its task counts a cancellation that was not there when it entered the block."""
        return self._host.cancelling() > self._cancelling

    def cancel(self) -> None:
        """Cancels it as ``Task.cancel()`` does: once for each call, so that its clean-up may await."""
        if not self.ended and self._host.cancel(self._message):
            self._cancels += 1

    def has_left(self) -> None:
        """It has left the block: nothing of it is cancelled any more."""
        self.ended = True
        self.left.set()

    async def leave(self, error: BaseException | None, cancelled: asyncio.CancelledError | None) -> None:
        """Raises what is to leave the block; returns if the block is to end without an error of ours.

        1. `KeyboardInterrupt` and its kin come out.
        2. A cancellation from outside goes before a loss.
        3. A loss goes before what the body raised, which becomes its cause.
        4. After `Leadership.resign` there is no error but the body's own.

        Args:
            error: What the body raised.
            cancelled: A cancellation that came while the lease was being released.
        """
        term, reason = self._term, self._term.lost
        for _ in range(self._cancels):
            if self.cancelled_by_others:
                self._host.uncancel()
        outside = self.is_running_task and self._cancelled_from_outside(error)
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise error
        if cancelled is not None and not self.is_running_task:
            raise cancelled from error
        if reason is None:
            if cancelled is not None and not isinstance(error, asyncio.CancelledError):
                raise cancelled from error
            if error is not None:
                raise error
            return
        # An anyio scope around the block may have been cancelled while this was shielded from it.
        await anyio.lowlevel.checkpoint_if_cancelled()
        if outside:
            raise (error if isinstance(error, asyncio.CancelledError) else cancelled) or asyncio.CancelledError()
        if reason == "resigned":
            if error is None or term.is_own(error) or isinstance(error, asyncio.CancelledError):
                return
            raise error
        if error is not None and term.is_own(error):
            raise error
        # A cancellation may carry what it replaced: a COMMIT whose answer was lost.
        cause = error.__cause__ if isinstance(error, asyncio.CancelledError) else error
        if cause is not None and term.is_own(cause):
            cause = cause.__cause__
        raise term.loss from cause

    def count_leftover(self) -> None:
        """Notes how often the host was cancelled before our doing, except for what it has not heard of yet.

        How much that is, nobody can say: an inner time-out and somebody outside may have come at once, when a process
        is thawed. What was counted at the last heartbeat holds then.
        """
        waiter: Any = getattr(self._host, "_fut_waiter", None)  # as anyio looks at a task
        under_way = waiter is not None and (
            waiter.cancelled()
            or getattr(waiter, "cancelling", int)() > 0  # a task
            or getattr(waiter, "_cancel_requested", False)  # of asyncio.gather
        )
        pending = getattr(self._host, "_must_cancel", False) or under_way
        if not pending:
            self._leftover = self._host.cancelling() - self._cancelling

    def _cancelled_from_outside(self, error: BaseException | None) -> bool:
        """Whether somebody else cancelled the host too.

        Its count alone does not tell: before Python 3.13 a task group whose child fails leaves one behind. What was
        counted when the term ended is not believed if the body was left by our own cancellation, and by no other.
        """
        counted = self._host.cancelling() - self._cancelling
        if not isinstance(error, asyncio.CancelledError) or counted != self._leftover:
            return counted > 0
        chain: BaseException | None = error
        while chain is not None:
            if isinstance(chain, asyncio.CancelledError) and not any(part is self._message for part in chain.args):
                return counted > 0
            chain = chain.__context__
        return False
