"""The heartbeat of a term: renews the lease until the body has ended, and moves the deadline (DESIGN rule 1)."""

from __future__ import annotations

import asyncio

import anyio

from aiolease._clock import ahead_of, current_clock, jitter
from aiolease._election.body import Body
from aiolease._election.claim import Claim
from aiolease._election.health import STORE_ERRORS, Health
from aiolease._election.term import Term
from aiolease._logging import emit
from aiolease._waiting import time_limited
from aiolease.errors import StoreUnavailable
from aiolease.events import Renewed, RenewFailed
from aiolease.stores.records import Lease

_FIRST_RETRY = 0.25
"""Seconds before a failed renewal is tried again; doubled up to the retry interval, with jitter."""


class Heartbeat:
    """Renews the lease of one term. Goes on while the body unwinds, so that nobody leads beside it.

    Attributes:
        renewing: Whether it goes on to renew.
        renewal: Done unless a renewal is under way.
    """

    def __init__(self, term: Term, body: Body, health: Health, claim: Claim) -> None:
        self.renewing = True
        self.renewal: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.renewal.set_result(None)
        self._term = term
        self._body = body
        self._health = health
        self._clock = current_clock()
        self._scope = anyio.CancelScope(shield=True)  # around the exchange that is under way
        self._claimed_at = claim.sent_at
        self._beat = claim.lease.beat

    async def run(self) -> None:
        """Renews for ever; after the last renewal it sleeps."""
        term, timings = self._term, self._term.timings
        due, failures = self._claimed_at + timings.heartbeat_interval, 0
        while True:
            await sleep_until(due, timings.heartbeat_interval)
            if not self.renewing or self._body.ended:
                break
            if self._clock() >= term.deadline:
                term.end("expired")
            self._beat += 1  # every attempt a new number: one that the server delayed cannot undo a later one
            sent_at = self._clock()
            try:
                with anyio.CancelScope(shield=True) as self._scope:
                    row = await self._send(self._beat)
                if self._scope.cancelled_caught:
                    break
            except STORE_ERRORS as error:
                self._health.failed(error)
                emit(RenewFailed(**term.facts(), left=term.remaining, error=str(error)), term.observer)
                failures += 1
                longest = max(min(_FIRST_RETRY * 2.0 ** min(failures - 1, 10), timings.retry_interval), 0.01)
                due = self._clock() + longest * jitter(0.5, 1.0)
                continue
            received = self._clock()
            if row is None or not row.held_by(term.key.holder, term.key.token):
                self._health.saw(row, received, received - sent_at)
                self.renewing = False
                term.end("taken")
                break
            failures = 0
            due = self._renewed(row, sent_at, received)
        await anyio.sleep_forever()

    def stop(self) -> None:
        """No further renewal; the one that is under way is cancelled."""
        self.renewing = False
        self.cancel()

    def cancel(self) -> None:
        """Cancels the renewal that is under way."""
        self._scope.cancel()

    def finish_within(self, seconds: float) -> None:
        """Gives the renewal that is under way so much time."""
        self._scope.deadline = anyio.current_time() + seconds

    async def _send(self, beat: int) -> Lease | None:
        """Sends one renewal; returns the row as it is then.

        Raises:
            StoreUnavailable: And its kin: it was not renewed, or nobody knows.
        """
        key, store, timings = self._term.key, self._term.store, self._term.timings
        call = store.renew(key.name, key.holder, key.token, beat, timings.lease_duration)
        self.renewal = asyncio.get_running_loop().create_future()
        try:
            row = await time_limited(timings.attempt, store.description, call)
        finally:
            self.renewal.set_result(None)
        if row is not None and row.held_by(key.holder, key.token) and row.beat != beat:
            self._beat = max(beat, row.beat)
            raise StoreUnavailable(store.description, "the row shows another renewal")
        return row

    def _renewed(self, row: Lease, sent_at: float, received: float) -> float:
        """Takes up a renewal; returns when the next one is due."""
        term, timings, took = self._term, self._term.timings, received - sent_at
        clock_offset = ahead_of(row.now, took)
        back = self._health.clocks.setback(row.renewed_at, sent_at, timings.lease_duration)
        self._health.saw(row, received, took)  # behind that: it is a part of the history then
        if term.lost is None:
            self._body.count_leftover()
        term.saw_database_time(row.now)
        if term.lost is None and received < term.deadline:
            term.deadline = sent_at - back + timings.renew_deadline
        emit(Renewed(**term.facts(), beat=row.beat, took=took, clock_offset=clock_offset), term.observer)
        if row.resign_token == term.key.token:
            term.end("resigned", requested=True)
        # Sooner after a step back, so that a failed renewal can still be tried again.
        return sent_at + min(timings.heartbeat_interval, (timings.renew_deadline - back) / 2)


async def sleep_until(moment: float, within: float) -> None:
    """Sleeps until a moment of the local clock; looks at that four times `within` seconds.

    In slices: a timer of the loop does not count suspended time, and a renewal would be late by all of it.
    """
    clock = current_clock()
    while (left := moment - clock()) > 0:
        await asyncio.sleep(min(left, within / 4))
