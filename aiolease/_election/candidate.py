"""Waiting to be elected: read, wait, and claim when the row is free.

A candidate decides on what it has seen itself (`Sighting`), claims by comparing and swapping, and knows for each of
its claims what became of it: won, not won, or unknown, when the answer was lost. An unknown claim whose holder shows
up in the row later is adopted with the clock of its own sending, or given back.
"""

from __future__ import annotations

import asyncio
from typing import Any

import anyio

from aiolease._clock import boot_clock, current_clock, jitter
from aiolease._election.claim import Claim, StayOut, new_holder
from aiolease._election.health import STORE_ERRORS, Eligible, Health, is_eligible
from aiolease._election.sighting import HIDDEN, Reading, Sighting
from aiolease._election.timings import Timings
from aiolease._election.watchdog import watchdog
from aiolease._logging import emit
from aiolease._waiting import retried, time_limited, wait_shielded
from aiolease.errors import LeaseHeld, SchemaMissing, StoreRejected, StoreUnavailable
from aiolease.events import Following, Notice, Observer, Waiting
from aiolease.stores.contract import LeaseStore
from aiolease.stores.records import Lease

_JITTER = 0.04
"""Seconds over which the candidates that wait for one expiry are spread; with what a reading takes, at most 50 ms."""

_LEAST = 0.1
"""Seconds that an exchange with the database may take even when the caller's time-out is over sooner."""

_QUIETEST = 60.0
"""Seconds between two warnings about a database that stays down."""


class Candidate:
    """One process that wants one lease, from its first reading to its election."""

    def __init__(
        self,
        store: LeaseStore,
        name: str,
        timings: Timings,
        *,
        eligible: Eligible | None = None,
        observer: Observer | None = None,
        health: Health | None = None,
        stay_out: StayOut | None = None,
        proven: bool = False,
    ) -> None:
        self._store = store
        self._name = name
        self._timings = timings
        self._eligible = eligible
        self._observer = observer
        self._health = health or Health()
        self._stay_out = stay_out
        self._clock = current_clock()
        self._lease: Lease | None = None
        self._sighting: Sighting | None = None
        self._unknown: dict[str, float] = {}  # the holders of claims whose answer was lost, and when they were sent
        self._pause = 0.0
        self._hint = True
        self._followed: int | None = None  # the term that `Following` was emitted for
        self._explained: int | None = None  # the term whose lease has run out, and is not taken over yet, as was told
        self._unfit = ""
        self._reached = False  # the database answered
        self._proven = proven  # it did all that one attempt asked for
        self._failures = 0
        self._lost_races = 0
        self._quiet_until = 0.0
        self._quiet_for = 0.5

    async def elect(self, timeout: float | None = None) -> Claim:
        """Waits until this process is elected.

        Args:
            timeout: The longest wait in seconds, ``None`` for no limit. 0 tries once, and trusts the database's clock.

        Raises:
            LeaseHeld: The wait ended.
            StoreUnavailable: The wait ended, and the database was never reached.
            StoreRejected: The first attempt was refused.
            SchemaMissing: The first attempt found no tables, and could not make them.
        """
        # What a claim and a term need is made ready before: the first shield of a process imports anyio's backend,
        # 30 ms, and the watchdog's thread takes 1 ms to start. A claim's clock runs, and others wait for a leader.
        anyio.get_cancelled_exc_class()
        if self._clock is boot_clock:
            watchdog.start()
        started = self._clock()
        until = None if timeout is None else started + timeout
        while True:
            trouble: BaseException | None = None
            try:
                claim = await self._attempt(until, trusting=timeout == 0)
            except STORE_ERRORS as error:
                trouble = error
                self._failed(error)
            else:
                self._proven, self._failures, self._quiet_for = True, 0, 0.5
                self._health.attempted.set()
                if claim is not None:
                    return claim
            now = self._clock()
            if until is not None and now >= until:
                if trouble is not None and not self._reached:
                    raise trouble
                raise LeaseHeld(self._name, self._lease.holder if self._lease else None, now - started)
            if trouble is not None:
                await asyncio.sleep(self._at_most(until, min(self._backoff(), self._look_within())))

    def _at_most(self, until: float | None, seconds: float) -> float:
        return seconds if until is None else max(min(seconds, until - self._clock()), 0.0)

    async def _attempt(self, until: float | None, *, trusting: bool) -> Claim | None:
        """One reading, and a claim if it shows the lease free; else notes how long to wait for the next."""
        limit = self._timings.attempt
        if until is not None and not trusting:
            limit = min(limit, max(until - self._clock(), _LEAST))
        pause = self._at_most(until, min(self._pause, self._look_within()))
        asked = self._clock()
        if pause > 0:
            reading = self._store.watch(
                self._name, pause, lease=self._lease, poll=self._timings.retry_interval, hint=self._hint
            )
            lease = await time_limited(pause + limit, self._store.description, reading)
        else:
            lease = await time_limited(limit, self._store.description, self._store.read(self._name))
        received = self._clock()
        took = received - asked - pause
        if took < 0:  # woken before the time was up: as long as the exchange before
            took = self._health.reading.took if self._health.reading is not None else 0.0
        self._saw(lease, received, took)
        if lease is not None and lease.holder in self._unknown:
            return await self._adopt(lease, received)
        force = self._may_claim(lease, received, trusting=trusting)
        if force is None:
            return None
        if not await self._fit():
            self._pause, self._hint = self._timings.retry_interval, False
            return None
        claim = await self._claim(lease, force=force)
        if claim is None:  # lost to another, or the row was not free after all: see it again before the next try
            self._lost_races += 1
            least = min(_JITTER * 2.0 ** min(self._lost_races - 1, 10), self._timings.retry_interval)
            released = self._lease is None or self._lease.holder is None
            self._pause = jitter(0, least) if released else max(self._pause, jitter(0, least))
        return claim

    def _look_within(self) -> float:
        """Seconds until the next reading at the latest: what steps of the database's clock hide is no longer."""
        if self._sighting is None:
            return float("inf")
        third = self._sighting.duration * HIDDEN
        return third + min(_JITTER, third / 10)  # so that the last of them is spread like the others' around the expiry

    def _saw(self, lease: Lease | None, received: float, took: float) -> None:
        self._reached = True
        known = self._health.token
        before = self._health.saw(lease, received, took)
        if lease is not None:
            # A released row is free as it stands; only of a held one is it told how long it has not changed.
            reading = Reading(now=lease.now, received=received, took=took)
            stepped_at = self._health.stepped_at
            new_term = before is not None and lease.token != known
            sighting = Sighting.of(lease, reading, self._sighting, before, stepped_at=stepped_at, new_term=new_term)
            self._sighting = None if lease.holder is None else sighting
        self._lease = lease
        if self._stay_out and lease and lease.token > self._stay_out.token:
            self._stay_out = None

    def _may_claim(self, lease: Lease | None, now: float, *, trusting: bool) -> bool | None:
        """Whether to claim: ``None`` for no, else whether by force. Sets the pause, and says once whom it waits for."""
        sighting, self._hint = self._sighting, True
        if self._stay_out is not None:
            if now < self._stay_out.until:
                self._pause, self._hint = self._stay_out.until - now, False
                return None
            self._stay_out = None
        if lease is None:
            # A row that somebody deleted under a holder that this candidate saw: the holder may not know it yet.
            if sighting is None or sighting.outlasted(now):
                return False
            self._pause, self._hint = sighting.due(now), False
            return None
        if sighting is None or (trusting and lease.free):
            return False
        if sighting.claimable(lease, now):
            return sighting.outlasted(now)
        self._pause = sighting.due(now) + jitter(0, _JITTER)
        facts: Any = {"lease": self._name, "holder": lease.holder, "token": lease.token}
        watched = f"watching it for {sighting.duration:.1f} s" if lease.expired else ""
        if self._followed != lease.token:
            note = f"its lease has run out by the database's clock, but was not released and may be alive: {watched}"
            note = note if watched else ""
            emit(Following(**facts, database=self._store.description, note=note), self._observer)
        elif watched and self._explained != lease.token:
            text = f"the lease of {lease.holder} on {self._name!r} has run out by the database's clock, but was not "
            text += f"released, and this process cannot tell yet whether it is alive: {watched}"
            emit(Notice(**facts, severity="INFO", text=text), self._observer)
        self._followed, self._explained = lease.token, lease.token if watched else self._explained
        return None

    async def _adopt(self, lease: Lease, now: float) -> Claim | None:
        """Takes up a claim whose answer was lost and that was won, as the row shows, if there is time left to lead."""
        assert lease.holder is not None
        sent_at = self._unknown.pop(lease.holder)
        claim = self._won(lease, sent_at, now)
        if now < claim.sent_at + self._timings.renew_deadline / 2:
            return claim
        # Nobody ever led by this claim, so nobody has to wait until it expires.
        await self._release(lease)
        self._pause = 0.0
        return None

    async def _fit(self) -> bool:
        fit, why = await is_eligible(self._eligible, self._timings.attempt)
        if not fit and self._unfit != why:
            text = f"this process does not claim {self._name!r}: not eligible, {why}"
            emit(Notice(lease=self._name, severity="WARNING", text=text), self._observer)
        self._unfit = "" if fit else why
        return fit

    async def _claim(self, lease: Lease | None, *, force: bool) -> Claim | None:
        holder, now, lease_duration = new_holder(), self._clock(), self._timings.lease_duration
        self._unknown = {lost: sent_at for lost, sent_at in self._unknown.items() if now < sent_at + lease_duration}
        sent_at = self._unknown[holder] = self._clock()
        call = self._store.claim(self._name, holder, self._timings.lease_duration, seen=lease, force=force)
        # In a task of its own: a cancellation that tears a claim leaves a lease that nobody knows to hold.
        task = asyncio.create_task(time_limited(self._timings.attempt, self._store.description, call))
        cancelled = await wait_shielded(task)
        if cancelled is not None:
            if task.cancelled() or task.exception() is not None:
                raise cancelled
            won = task.result()
            if won is not None and won.holder == holder:
                await self._give_back(won)
            raise cancelled
        result = task.result()
        del self._unknown[holder]
        received = self._clock()
        if result is not None and result.holder == holder:
            claim = self._won(result, sent_at, received, after_release=lease is None or lease.holder is None)
            self._health.saw(result, received, received - sent_at)
            if received < claim.sent_at + self._timings.renew_deadline:
                return claim
            # The process stood still between the two. Nobody led by this claim, so nobody has to wait for its expiry.
            await self._give_back(result)
            self._pause = 0.0
            return None
        self._saw(result, received, received - sent_at)
        self._may_claim(result, received, trusting=False)
        return None

    def _won(self, lease: Lease, sent_at: float, received: float, *, after_release: bool = False) -> Claim:
        back = self._health.clocks.setback(lease.renewed_at, sent_at, self._timings.lease_duration)
        return Claim(lease, sent_at - back, received, after_release)

    async def _give_back(self, lease: Lease) -> None:
        task = asyncio.create_task(self._release(lease))
        cancelled = await wait_shielded(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, STORE_ERRORS):
            raise error
        if cancelled is not None:
            raise cancelled

    async def _release(self, lease: Lease) -> None:
        holder = lease.holder
        assert holder is not None
        await retried(
            self._timings.attempt,
            self._store.description,
            lambda: self._store.release(self._name, holder, lease.token),
        )

    def _failed(self, error: StoreUnavailable | StoreRejected | SchemaMissing) -> None:
        """Notes a failed attempt; raises what waiting cannot mend, if it was the first."""
        self._health.failed(error)
        first = self._failures == 0 and not self._proven
        self._failures += 1
        if first and not isinstance(error, StoreUnavailable):
            raise error
        self._health.attempted.set()
        now = self._clock()
        if now >= self._quiet_until:
            emit(Waiting(lease=self._name, error=str(error), attempts=self._failures), self._observer)
            self._quiet_for = min(self._quiet_for * 2, _QUIETEST)
            self._quiet_until = now + self._quiet_for
        self._pause = 0.0

    def _backoff(self) -> float:
        longest = self._timings.retry_interval
        return min(0.25 * 2.0 ** min(self._failures, 10), longest) * jitter(0.5, 1.0)
