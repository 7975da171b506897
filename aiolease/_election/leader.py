"""One term of leadership: the body runs, the lease is renewed, and the body has ended before another may lead.

::

            claim won                          body ended
    ──────────────────▶ leading ───────────────────────────────▶ released
                           │                                         ▲
                           │ not renewed by the deadline, taken,     │
                           │ ineligible, resigned                    │
                           ▼                                         │
                        unwinding: cancelled once, again after half ─┘
                        the time, then reported; still renewing

The body runs in the task that entered the block. All else runs in a keeper, a task of its own with an anyio task
group: it must outlive every cancellation of the body, or the lease would lapse under a body that unwinds.

Not promised: a frozen process or a blocking thread may run on for a while after its lease.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any, TypedDict

import anyio
import anyio.lowlevel

from aiolease._clock import boot_clock, current_clock, jitter
from aiolease._election.candidate import STORE_ERRORS, Claim, Eligible, Health, is_eligible
from aiolease._election.leadership import Leadership, leading
from aiolease._election.timings import OnStall, Timings
from aiolease._election.watchdog import end_process, watched
from aiolease._logging import emit
from aiolease._waiting import retried, time_limited, wait_shielded
from aiolease.errors import LeadershipLost, LossReason, StoreUnavailable
from aiolease.events import (
    BodyStuck,
    Elected,
    Event,
    LoopBlocked,
    Lost,
    Notice,
    Observer,
    Released,
    Renewed,
    RenewFailed,
    Resigned,
    describe,
)
from aiolease.stores.contract import LeaseStore
from aiolease.stores.records import Lease

_FIRST_RETRY = 0.25
"""Seconds before a failed renewal is tried again; doubled up to the retry interval, with jitter."""


class _Facts(TypedDict):
    lease: str
    holder: str
    token: int


class Leader:
    """Keeps one term: renews its lease, ends it in time, and sees its body out."""

    def __init__(
        self,
        store: LeaseStore,
        claim: Claim,
        timings: Timings,
        *,
        eligible: Eligible | None,
        on_stall: OnStall,
        observer: Observer | None,
        contact: Health,
    ) -> None:
        host = asyncio.current_task()
        assert host is not None
        self.lead = Leadership(store, claim, timings, self.end, observer)
        self._store = store
        self._claim = claim
        self._timings = timings
        self._eligible = eligible
        self._on_stall = on_stall
        self._observer = observer
        self._contact = contact
        self._clock = current_clock()
        self._host = host
        self._cancelling = host.cancelling()
        self._cancels = 0
        self._leftover = 0
        self._message = f"the term of {claim.lease.name!r} is over"  # known again by its identity
        self._reason: LossReason | None = None
        self._ended_at = 0.0
        self._body_ended, self._left_at = False, 0.0
        self._wake = asyncio.Event()
        self._left = asyncio.Event()
        self._renewal = anyio.CancelScope(shield=True)
        self._renewing = True
        self._beat = claim.lease.beat

    # -- what ends a term

    def end(self, reason: LossReason, *, requested: bool = False, raised: bool = False) -> None:
        """Ends the term, once: from now on it is not led, and the body is cancelled. Never waits.

        If the loss is being `raised` to the body itself, that unwinds it: a cancellation would tear its clean-up.
        """
        if self._reason is not None or self._body_ended:
            return
        self._reason = self.lead._ended = reason
        self.lead._over.set()
        self._ended_at = self._clock()
        self._count_leftover()
        # Not if the loss is on its way to the body, or if somebody cancels everything: that would tear its clean-up.
        unwinding = raised and asyncio.current_task() is self._host
        if not unwinding and not (reason == "error" and self._host.cancelling() > self._cancelling):
            self._cancel_body()
        self._wake.set()
        if reason == "resigned":
            self._emit(Resigned(**self.facts(), requested=requested))
        else:
            self._emit(Lost(**self.facts(), reason=reason))

    def _cancel_body(self) -> None:
        # As by Task.cancel(): once, so that the clean-up of the body may await.
        if not self._body_ended and self._host.cancel(self._message):
            self._cancels += 1

    def body_has_ended(self) -> None:
        """The body has left the block: nothing of it is cancelled any more."""
        late = self._reason is None and self._clock() >= self.lead._deadline
        if late:  # the loop was blocked past the deadline, or the body found out by itself
            self._reason, self._ended_at = "expired", self._clock()
            self._count_leftover()
        self._body_ended, self._left_at = True, self._clock()
        self.lead._ended = self._reason or "resigned"
        self.lead._over.set()
        self._left.set()
        if self._reason in ("expired", "taken"):
            self._renewal.cancel()
        else:  # it may finish: cancelled, it would cost the connection; but the release needs its half of the time
            self._renewal.deadline = anyio.current_time() + self._timings.attempt / 2
        if late:
            self._emit(Lost(**self.facts(), reason="expired"))

    # -- the keeper

    async def keep(self) -> None:
        """Renews, and guards the deadline, until the body has ended.

        Somebody who cancels every task, as `asyncio.run` does in the end, ends the term by that, but not the keeping:
        while the body unwinds nobody may lead beside it.
        """
        async with anyio.create_task_group() as tasks:
            for task in (self._renew, self._guard, self._stay_eligible):
                tasks.start_soon(self._or_end, task, tasks.cancel_scope)
            while not self._body_ended:
                try:
                    await self._left.wait()
                except asyncio.CancelledError:
                    self.keeper_failed(None)
            tasks.cancel_scope.cancel()

    async def _or_end(self, task: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
        """Runs a task of the keeper; if it ends for any reason but its own, the term ends, and it is run again."""
        while True:
            try:
                await task()
            except asyncio.CancelledError:
                if scope.cancel_called:
                    raise
                self.keeper_failed(None)
            except Exception as raised:  # noqa: BLE001 - a bug here must end the term, not hang it
                self.keeper_failed(raised)
                await anyio.sleep(self._timings.heartbeat_interval)

    def keeper_failed(self, error: BaseException | None) -> None:
        """Ends the term because nobody would renew it any more; nothing if the body has ended, or the term has."""
        if self._body_ended or (self._reason is not None and error is None):
            return
        text = f"the keeper of {self.lead.name!r} failed: {describe(error) if error else 'it was cancelled'}"
        self._emit(Notice(**self.facts(), severity="ERROR", text=text))
        self.end("error")

    async def _guard(self) -> None:
        """The timer of the deadline, then of the body's clean-up. It never waits for the database."""
        while self._reason is None:
            left = self.lead._deadline - self._clock()
            if left <= 0:
                self.end("expired")
                break
            await self._woken(left)
        unwind, lease = self._timings.unwind, self._timings.lease_duration
        await self._sleep_until(self._ended_at + unwind / 2)
        self._cancel_body()
        await self._sleep_until(self._ended_at + unwind)
        self._emit(BodyStuck(**self.facts(), since_lost=self._clock() - self._ended_at, renewing=self._renewing))
        await self._sleep_until(self._ended_at + lease)
        self._renewing = False
        self._renewal.cancel()
        self._emit(BodyStuck(**self.facts(), since_lost=self._clock() - self._ended_at, renewing=False))
        await anyio.sleep_forever()

    async def _woken(self, seconds: float) -> None:
        """Sleeps until it is over, or the watchdog finds that more time has passed than the loop's timers know."""
        self._wake.clear()
        with anyio.move_on_after(seconds):
            await self._wake.wait()

    async def _sleep_until(self, moment: float) -> None:
        # In slices: a timer of the loop does not count suspended time, and a renewal would be late by all of it.
        while (left := moment - self._clock()) > 0:
            await anyio.sleep(min(left, self._timings.heartbeat_interval / 4))

    async def _renew(self) -> None:
        """The heartbeat. Goes on while the body unwinds, so that nobody leads beside it."""
        due, failures = self._claim.sent_at + self._timings.heartbeat_interval, 0
        while True:
            await self._sleep_until(due)
            if not self._renewing or self._body_ended:
                break
            if self._clock() >= self.lead._deadline:
                self.end("expired")
            self._beat += 1  # every attempt a new number: one that the server delayed cannot undo a later one
            sent_at = self._clock()
            try:
                with anyio.CancelScope(shield=True) as self._renewal:
                    lease = await self._send(self._beat)
                if self._renewal.cancelled_caught:
                    break
                if lease is not None and lease.held_by(self.lead.holder, self.lead.token) and lease.beat != self._beat:
                    self._beat = max(self._beat, lease.beat)
                    raise StoreUnavailable(self._store.description, "the row shows another renewal")
            except STORE_ERRORS as error:
                self._renewal_failed(error)
                failures += 1
                longest = max(min(_FIRST_RETRY * 2.0 ** min(failures - 1, 10), self._timings.retry_interval), 0.01)
                due = self._clock() + longest * jitter(0.5, 1.0)
                continue
            received = self._clock()
            back = 0.0
            if lease is not None:
                back = self._contact.clocks.setback(lease.renewed_at, sent_at, self._timings.lease_duration)
            self._contact.saw(lease, received, received - sent_at)
            if lease is None or not lease.held_by(self.lead.holder, self.lead.token):
                self._renewing = False
                self.end("taken")
                break
            failures = 0
            # Sooner after a step back, so that a failed renewal can still be tried again.
            due = sent_at + min(self._timings.heartbeat_interval, (self._timings.renew_deadline - back) / 2)
            self._renewed(lease, sent_at, back)
        await anyio.sleep_forever()

    async def _send(self, beat: int) -> Lease | None:
        lead, lease_duration = self.lead, self._timings.lease_duration
        call = self._store.renew(lead.name, lead.holder, lead.token, beat, lease_duration)
        return await time_limited(self._timings.attempt, self._store.description, call)

    def _renewed(self, lease: Lease, sent_at: float, back: float) -> None:
        received = self._clock()
        took = received - sent_at
        if self._reason is None:
            self._count_leftover()
        self.lead._saw_database_time(lease.now)
        if self._reason is None and received < self.lead._deadline:
            self.lead._deadline = sent_at - back + self._timings.renew_deadline
        self._emit(Renewed(**self.facts(), beat=lease.beat, took=took))
        if lease.resign_token == self.lead.token:
            self.end("resigned", requested=True)

    def _renewal_failed(self, error: BaseException) -> None:
        self._contact.failed(error)
        self._emit(RenewFailed(**self.facts(), left=self.lead.remaining, error=str(error)))

    async def _stay_eligible(self) -> None:
        while self._eligible is not None:
            await anyio.sleep(self._timings.heartbeat_interval)
            # In a task of its own: it is the user's code, and is cancelled once, not at every await of its clean-up.
            check = asyncio.create_task(is_eligible(self._eligible, self._timings.attempt))
            try:
                await asyncio.wait([check])
            except asyncio.CancelledError:
                check.cancel()
                with anyio.CancelScope(shield=True):
                    await asyncio.wait([check], timeout=self._timings.attempt)
                raise
            fit, why = check.result()
            if not fit:
                text = f"this process is not eligible to lead {self.lead.name!r} any more: {why}"
                self._emit(Notice(**self.facts(), severity="WARNING", text=text))
                self.end("ineligible")
                break
        await anyio.sleep_forever()

    # -- the end

    async def release(self) -> None:
        """Frees the lease, now that the body has ended. Bounded; if it fails, the lease expires by itself."""
        lead = self.lead
        if self._reason == "taken" or os.getpid() != lead._pid:
            self._store.forget(lead.name)
            return
        limit = max(self._left_at + self._timings.attempt - self._clock(), self._timings.attempt / 2)
        if self._reason == "expired":  # the database does not answer: this is no time to wait for it
            limit = min(limit, self._timings.unwind / 5)
        try:
            released, again = await retried(
                limit, self._store.description, lambda: self._store.release(lead.name, lead.holder, lead.token)
            )
        except STORE_ERRORS as error:
            self._store.forget(lead.name)
            text = (
                f"could not release {lead.name!r} (term {lead.token}) as {lead.holder}, it expires by itself: {error}"
            )
            self._emit(Notice(**self.facts(), severity="WARNING", text=text))
        else:
            if released or (again and self._clock() < lead._deadline):  # ours until then: an earlier try released it
                self._emit(Released(**self.facts()))

    async def outcome(self, error: BaseException | None, cancelled: asyncio.CancelledError | None) -> None:
        """Decides what leaves the block; returns if the block is to end without an error of ours.

        Cancellation from outside goes before loss, loss before the body's exception.
        """
        lead, reason = self.lead, self._reason
        for _ in range(self._cancels):
            if self._host.cancelling() > self._cancelling:
                self._host.uncancel()
        outside = asyncio.current_task() is self._host and self._cancelled_from_outside(error)
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise error
        if cancelled is not None and asyncio.current_task() is not self._host:
            raise cancelled from error
        if reason is None:
            if cancelled is not None and not isinstance(error, asyncio.CancelledError):
                raise cancelled from error  # it came while the lease was being released
            if error is not None:
                raise error
            return
        own = isinstance(error, LeadershipLost) and error.holder == lead.holder
        # An anyio scope around the block may have been cancelled while this was shielded from it.
        await anyio.lowlevel.checkpoint_if_cancelled()
        if outside:
            raise (error if isinstance(error, asyncio.CancelledError) else cancelled) or asyncio.CancelledError()
        if reason == "resigned":
            if error is None or own or isinstance(error, asyncio.CancelledError):
                return
            raise error
        if own:
            assert error is not None
            raise error
        # A cancellation may carry what it replaced: a COMMIT whose answer was lost.
        cause = error.__cause__ if isinstance(error, asyncio.CancelledError) else error
        if isinstance(cause, LeadershipLost) and cause.holder == lead.holder:
            cause = cause.__cause__
        raise LeadershipLost(lead.name, lead.holder, lead.token, reason) from cause

    def _count_leftover(self) -> None:
        """Notes how often the host was cancelled before our doing, but for what it has not heard of yet.

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

    def facts(self) -> _Facts:
        """What every event of this term carries."""
        return {"lease": self.lead.name, "holder": self.lead.holder, "token": self.lead.token}

    def _emit(self, event: Event) -> None:
        emit(event, self._observer)

    # -- the watchdog's side; `_next_deadline` and `_blocked` are called from its thread

    def watching(self) -> AbstractContextManager[None]:
        """Has a thread watch the loop, unless the time is not the machine's own."""
        if self._clock is not boot_clock:
            return nullcontext()
        grace = self._timings.unwind / 5
        return watched(self._clock, self._next_deadline, grace=grace, wake=self._wake.set, blocked=self._blocked)

    def _next_deadline(self) -> float:
        """The moment by which the loop should have ended the term or, once it has, the body; never, once that has."""
        if self._body_ended:
            return float("inf")
        # Half the time to unwind, so that the report, or the exit, comes before another may lead.
        return self.lead._deadline if self._reason is None else self._ended_at + self._timings.unwind / 2

    def _blocked(self, stack: str) -> None:
        """The loop did not answer past the deadline."""
        event = LoopBlocked(**self.facts(), stack=stack)
        if self._on_stall == "exit":
            end_process(lambda: self._emit(event), grace=self._timings.unwind / 5)
        self._emit(event)


@asynccontextmanager
async def hold(
    store: LeaseStore,
    claim: Claim,
    timings: Timings,
    *,
    eligible: Eligible | None = None,
    on_stall: OnStall = "log",
    observer: Observer | None = None,
    contact: Health | None = None,
) -> AsyncIterator[Leadership]:
    """Runs the block as one term, and releases the lease when it has ended.

    Raises:
        LeadershipLost: The term ended before the block did.
    """
    tenure = Leader(
        store,
        claim,
        timings,
        eligible=eligible,
        on_stall=on_stall,
        observer=observer,
        contact=contact or Health(),
    )
    error: BaseException | None = None
    with tenure.watching():
        keeper = asyncio.create_task(tenure.keep())
        keeper.add_done_callback(lambda task: tenure.keeper_failed(None if task.cancelled() else task.exception()))
        try:
            since = tenure.lead.elected_at
            emit(Elected(**tenure.facts(), elected_at=since, database=store.description), observer)
            with leading(tenure.lead):
                yield tenure.lead
        except BaseException as raised:  # noqa: BLE001 - it is raised again by `outcome`, or belongs to the loss
            error = raised
        tenure.body_has_ended()
        cancelled = await wait_shielded(keeper)
    releasing = asyncio.create_task(tenure.release())
    another = await wait_shielded(releasing)
    cancelled = cancelled or another
    if not releasing.cancelled() and (trouble := releasing.exception()) is not None:
        text = f"could not release {tenure.lead.name!r}, it expires by itself: {describe(trouble)}"
        emit(Notice(**tenure.facts(), severity="ERROR", text=text), observer)
    await tenure.outcome(error, cancelled)
