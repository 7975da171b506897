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
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from functools import partial

import anyio

from aiolease._clock import boot_clock, current_clock
from aiolease._election.body import Body
from aiolease._election.claim import Claim
from aiolease._election.health import STORE_ERRORS, Eligible, Health, ask_in_task
from aiolease._election.heartbeat import Heartbeat, sleep_until
from aiolease._election.leadership import Leadership, leading
from aiolease._election.term import Term
from aiolease._election.timings import OnStall, Timings
from aiolease._election.watchdog import end_process, watched
from aiolease._logging import emit
from aiolease._waiting import retried, wait_shielded
from aiolease.errors import LossReason
from aiolease.events import (
    BodyStuck,
    Elected,
    Event,
    LoopBlocked,
    Lost,
    Notice,
    Observer,
    Released,
    ReleaseFailed,
    Resigned,
    describe,
)
from aiolease.stores import Store


@asynccontextmanager
async def lead(
    store: Store,
    claim: Claim,
    timings: Timings,
    *,
    eligible: Eligible | None = None,
    on_stall: OnStall = "log",
    observer: Observer | None = None,
    health: Health | None = None,
) -> AsyncIterator[Leadership]:
    """Runs the block as one term, and releases the lease when it has ended.

    Raises:
        LeadershipLost: The term ended before the block did.
    """
    leader = Leader(
        store, claim, timings, eligible=eligible, on_stall=on_stall, observer=observer, health=health or Health()
    )
    term, error = leader.term, None
    with leader.watching():
        keeper = asyncio.create_task(leader.keep())
        keeper.add_done_callback(lambda task: leader.keeper_failed(None if task.cancelled() else task.exception()))
        try:
            emit(Elected(**term.facts(), elected_at=term.elected_at, database=store.description), observer)
            leadership = Leadership(term)
            with leading(leadership):
                yield leadership
        except BaseException as raised:  # noqa: BLE001 - `Body.leave` raises it again, or it belongs to the loss
            error = raised
        leader.body_has_ended()
        cancelled = await wait_shielded(leader.heartbeat.renewal)  # no other follows
        # At once, though the keeper still has its tasks to end: another waits to lead.
        releasing = asyncio.create_task(leader.release())
        for task in (releasing, keeper):
            another = await wait_shielded(task)
            cancelled = cancelled or another
    if releasing.cancelled() or (trouble := releasing.exception()) is not None:
        why = "it was cancelled" if releasing.cancelled() else describe(trouble)
        emit(ReleaseFailed(**term.facts(), error=why), observer)
    await leader.body.leave(error, cancelled)


class Leader:
    """Keeps one term: renews its lease, ends it in time, and sees its body out."""

    def __init__(
        self,
        store: Store,
        claim: Claim,
        timings: Timings,
        *,
        eligible: Eligible | None,
        on_stall: OnStall,
        observer: Observer | None,
        health: Health,
    ) -> None:
        self.term = Term(store, claim, timings, self.end, observer)
        self.body = Body(self.term)
        self._store = store
        self._timings = timings
        self._eligible = eligible
        self._on_stall = on_stall
        self._clock = current_clock()
        self._ended_at = self._left_at = 0.0
        self._wake = asyncio.Event()
        self.heartbeat = Heartbeat(self.term, self.body, health, claim)

    # -- what ends a term

    def end(self, reason: LossReason, *, requested: bool = False, raised: bool = False) -> None:
        """Ends the term, once: see `aiolease._election.term.End`."""
        term, body = self.term, self.body
        if term.lost is not None or body.ended:
            return
        self._note_end(reason)
        # Do not cancel a body that is about to receive LeadershipLost, nor one that somebody cancels who cancels
        # everything: it would interrupt its clean-up.
        unwinding = raised and body.is_running_task
        if not unwinding and not (reason == "error" and body.cancelled_by_others):
            body.cancel()
        self._wake.set()
        if reason == "resigned":
            self._emit(Resigned(**term.facts(), requested=requested))
        else:
            self._emit(Lost(**term.facts(), reason=reason))

    def body_has_ended(self) -> None:
        """The body has left the block: the term is over, whatever it was."""
        term = self.term
        late = term.lost is None and self._clock() >= term.deadline
        if late:  # the loop was blocked past the deadline, or the body found out by itself
            self._note_end("expired")
        self._left_at = self._clock()
        self.body.has_left()
        term.over.set()
        if term.lost in {"expired", "taken"}:
            self.heartbeat.cancel()
        else:  # it may finish: cancelled, it would cost the connection; but the release needs its half of the time
            self.heartbeat.finish_within(self._timings.attempt / 2)
        if late:
            self._emit(Lost(**term.facts(), reason="expired"))

    def _note_end(self, reason: LossReason) -> None:
        self.term.lost = reason
        self.term.over.set()
        self._ended_at = self._clock()
        self.body.count_leftover()

    # -- the keeper

    async def keep(self) -> None:
        """Renews, and guards the deadline, until the body has ended.

        Somebody who cancels every task, as `asyncio.run` does in the end, ends the term by that, but not the keeping:
        while the body unwinds nobody may lead beside it.
        """
        async with anyio.create_task_group() as tasks:
            for task in (self.heartbeat.run, self._guard, self._stay_eligible):
                tasks.start_soon(self._or_end, task, tasks.cancel_scope)
            while not self.body.ended:
                try:
                    await self.body.left.wait()
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
        if self.body.ended or (self.term.lost is not None and error is None):
            return
        text = f"the keeper of {self.term.key.name!r} failed: {describe(error) if error else 'it was cancelled'}"
        self._emit(Notice(**self.term.facts(), severity="ERROR", text=text))
        self.end("error")

    async def _guard(self) -> None:
        """The timer of the deadline, then of the body's clean-up. It never waits for the database."""
        while self.term.lost is None:
            left = self.term.deadline - self._clock()
            if left <= 0:
                self.end("expired")
                break
            await self._woken(left)
        unwind, lease, within = self._timings.unwind, self._timings.lease_duration, self._timings.heartbeat_interval
        await sleep_until(self._ended_at + unwind / 2, within)
        self.body.cancel()
        await sleep_until(self._ended_at + unwind, within)
        self._body_is_stuck()
        await sleep_until(self._ended_at + lease, within)
        self.heartbeat.stop()
        self._body_is_stuck()
        await anyio.sleep_forever()

    def _body_is_stuck(self) -> None:
        since_lost = self._clock() - self._ended_at
        self._emit(BodyStuck(**self.term.facts(), since_lost=since_lost, renewing=self.heartbeat.renewing))

    async def _woken(self, seconds: float) -> None:
        """Sleeps until it is over, or the watchdog finds that more time has passed than the loop's timers know."""
        self._wake.clear()
        with anyio.move_on_after(seconds):
            await self._wake.wait()

    async def _stay_eligible(self) -> None:
        while self._eligible is not None:
            await anyio.sleep(self._timings.heartbeat_interval)
            fit, why = await ask_in_task(self._eligible, self._timings.attempt)
            if not fit:
                text = f"this process is not eligible to lead {self.term.key.name!r} any more: {why}"
                self._emit(Notice(**self.term.facts(), severity="WARNING", text=text))
                self.end("ineligible")
                break
        await anyio.sleep_forever()

    # -- the end

    async def release(self) -> None:
        """Frees the lease within a time limit. If that fails, the lease expires by itself."""
        term, key = self.term, self.term.key
        if term.lost == "taken" or not term.in_its_process:
            self._store.abandon(key.name)
            return
        try:
            try:
                released, again = await self._send_release()
            except asyncio.CancelledError:  # by somebody who cancels every task, once, as `asyncio.run` does in the end
                released, again = (await self._send_release())[0], True
        except STORE_ERRORS as error:
            self._store.abandon(key.name)
            self._emit(ReleaseFailed(**term.facts(), error=str(error)))
            return
        if released or (again and self._clock() < term.deadline):  # ours until then: an earlier try released it
            self._emit(Released(**term.facts()))
        elif term.lost != "expired":
            self._emit(ReleaseFailed(**term.facts(), error="its row is not this term's any more"))

    async def _send_release(self) -> tuple[bool, bool]:
        """Sends it while there is time; see `retried`."""
        key, left = self.term.key, self._left_at + self._timings.attempt - self._clock()
        limit = max(left, self._timings.attempt / 2)
        if self.term.lost == "expired":  # the database does not answer: this is no time to wait for it
            limit = min(limit, self._timings.unwind / 5)
        release = partial(self._store.release, key.name, key.holder, key.token)
        return await retried(limit, self._store.description, release)

    def _emit(self, event: Event) -> None:
        emit(event, self.term.observer)

    # -- the watchdog's side; `_next_deadline` and `_blocked` are called from its thread

    def watching(self) -> AbstractContextManager[None]:
        """Has a thread watch the loop, unless the time is not the machine's own."""
        if self._clock is not boot_clock:
            return nullcontext()
        grace = self._timings.unwind / 5
        return watched(self._clock, self._next_deadline, grace=grace, wake=self._wake.set, blocked=self._blocked)

    def _next_deadline(self) -> float:
        """The moment by which the loop should have ended the term or, once it has, the body; never, once that has."""
        if self.body.ended:
            return float("inf")
        # Half the time to unwind, so that the report, or the exit, comes before another may lead.
        return self.term.deadline if self.term.lost is None else self._ended_at + self._timings.unwind / 2

    def _blocked(self, stack: str) -> None:
        """The loop did not answer past the deadline."""
        event = LoopBlocked(**self.term.facts(), stack=stack)
        if self._on_stall == "exit":
            end_process(lambda: self._emit(event), grace=self._timings.unwind / 5)
        self._emit(event)
