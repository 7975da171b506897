"""The lease: what its row says, when a candidate may claim it, and what a store must do. No I/O here.

The trust formula. ``t_send`` is the local clock just before a claim or a renewal was sent:

* the leader may act until ``t_send + renew_deadline``;
* the database lets another in no earlier than ``t_send + lease_duration``, since it reckons the expiry after
  the statement has arrived.

The difference is what the work has to unwind, and what clocks may drift. A server's clock that steps is met by
`Sighting`: a candidate believes the row's expiry only as far as its own clock confirms it.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, Self

from aiolease._fence import RunKey, Term, Transaction
from aiolease.errors import ConfigurationError, StoreUnavailable

MAX_NAME = 100


def check_name(name: str, field: str = "name") -> str:
    """Returns `name` if it can name a lease: 1 to 100 printable ASCII characters, no spaces.

    Raises:
        ConfigurationError: It cannot.
    """
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME or not all("!" <= char <= "~" for char in name):
        shown = "…" if "://" in str(name) else name  # a URL in the wrong place may hold a password
        raise ConfigurationError(field, shown, f"use 1 to {MAX_NAME} printable ASCII characters without spaces")
    return name


UNREADABLE = (AttributeError, TypeError, ValueError, OverflowError)
"""What making a record of a row raises if it has a value that makes none."""


@contextmanager
def readable(store: str, what: str) -> Iterator[None]:
    """Around what makes a record of a row: a value that makes none, such as a zero date, is trouble of the store's.

    Raises:
        StoreUnavailable: The row cannot be read.
    """
    try:
        yield
    except UNREADABLE as error:
        problem = f"{what} has a value that cannot be read, written by another hand: {type(error).__name__}: {error}"
        raise StoreUnavailable(store, problem) from error


def new_holder() -> str:
    """A unique identity for one attempt to claim: ``host-pid-uuid4hex``."""
    host = "".join(char if "!" <= char <= "~" else "?" for char in socket.gethostname())[:100] or "localhost"
    return f"{host}-{os.getpid()}-{uuid.uuid4().hex}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One reading of a lease's row. Every moment is aware UTC by the database's clock.

    Attributes:
        name: The lease.
        holder: Who holds it, ``None`` when it was released.
        token: The number of the latest term.
        beat: The number of the latest renewal of that term; with the token it tells one state of the row from another.
        elected_at: When the term began.
        renewed_at: When the row was claimed or last renewed.
        expires_at: When another may claim it.
        resign_token: The term that somebody asked to resign, or ``None``.
        now: The database's clock at this reading.
    """

    name: str
    holder: str | None
    token: int
    beat: int
    elected_at: datetime
    renewed_at: datetime
    expires_at: datetime
    resign_token: int | None
    now: datetime

    @property
    def expired(self) -> bool:
        """Whether it has run out by the database's clock."""
        return self.expires_at <= self.now

    @property
    def free(self) -> bool:
        """Whether it was released, or has run out by the database's clock."""
        return self.holder is None or self.expired

    @property
    def duration(self) -> float:
        """Seconds for which its holder claimed or renewed it."""
        return max((self.expires_at - self.renewed_at) / timedelta(seconds=1), 0.0)

    def held_by(self, holder: str, token: int) -> bool:
        """Whether the row still belongs to this term."""
        return self.holder == holder and self.token == token


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One answer of the database, by both clocks: what tells a step of the database's clock.

    Attributes:
        now: The database's clock when it answered.
        received: The local clock when the answer had come.
        took: Seconds that the exchange took.
    """

    now: datetime
    received: float
    took: float = 0.0

    def gained_since(self, before: Self) -> float:
        """Seconds by which the database's clock went ahead of the local one since the reading before."""
        return (self.now - before.now) / timedelta(seconds=1) - (self.received - before.received)

    def stepped_since(self, before: Self) -> bool:
        """Whether that is more than what clocks drift by, and what the two exchanges took."""
        between = self.received - before.received
        return abs(self.gained_since(before)) > between / 100 + 0.1 + before.took + self.took


_SHORTEST_LOOK, _LONGEST_LOOK = 0.5, 5.0

HIDDEN = 1 / 3
"""The share of a lease between two readings of a candidate: what two steps of the clock that cancel out hide of it."""

REMEMBERED = 1 / 2
"""The share of a lease after which a candidate's reading says nothing any more, and a step back is forgotten."""

_SLICES = 32
"""Into so many parts the time is cut for which steps are remembered: the memory of many readings stays small."""

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


class ClockHistory:
    """How far the database's clock has lately been ahead of the local one, in slices of time: the most in each."""

    def __init__(self) -> None:
        self._slices: list[tuple[float, float]] = []
        self._duration = 0.0  # the longest that was seen: the row of a released lease shows less

    def note(self, reading: Reading, duration: float) -> None:
        """Remembers a reading of a lease of that duration; forgets what is old, except for the newest of that."""
        ahead = _ahead(reading.now, reading.received - reading.took)
        self._duration = max(self._duration, duration)
        if self._slices and reading.received - self._slices[-1][0] < self._duration * REMEMBERED / _SLICES:
            began, most = self._slices[-1]
            self._slices[-1] = (began, max(most, ahead))
        else:
            self._slices.append((reading.received, ahead))
        while len(self._slices) > 1 and self._slices[1][0] < reading.received - self._duration * REMEMBERED:
            del self._slices[0]

    def setback(self, renewed_at: datetime, sent_at: float, duration: float) -> float:
        """Seconds by which the deadline of a claim or a renewal comes earlier, because the clock went back before it.

        The clock may go forward again as quickly. Candidates then let the lease run out early by what both steps hide
        of them; the leader's body is to have ended by then, if no further renewal shows that the leader lives.

        Args:
            renewed_at: The database's clock when the claim or the renewal took effect.
            sent_at: The local clock when it was sent. It took effect later, and by as much the deadline is early.
            duration: Of the lease.
        """
        most = max((ahead for _, ahead in self._slices), default=_ahead(renewed_at, sent_at))
        return min(max(most - _ahead(renewed_at, sent_at), 0.0), duration * HIDDEN)


def _ahead(database: datetime, local: float) -> float:
    return (database - _EPOCH) / timedelta(seconds=1) - local


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """The first reading of one state of the row, by the candidate's own clock (DESIGN rule 8).

    Attributes:
        token: The token that was seen.
        beat: The beat that was seen.
        seen_at: The local clock when the reply that first showed both was received.
        wait: Seconds from then after which the row is claimed if the database, too, holds it for expired.
        duration: Seconds from then after which the row is claimed whatever the database's clock says: the holder's own
            lease duration, as its row shows it.
    """

    token: int
    beat: int
    seen_at: float
    wait: float
    duration: float

    @classmethod
    def of(
        cls,
        lease: Lease,
        reading: Reading,
        earlier: Self | None = None,
        before: Reading | None = None,
        *,
        stepped_at: float | None = None,
        new_term: bool = False,
    ) -> Self:
        """The sighting of `lease`: `earlier` if the row has not changed since, else a new one.

        Args:
            lease: The row.
            reading: The answer that showed it.
            earlier: The sighting before.
            before: The answer before this one, ``None`` if this is the first.
            stepped_at: The local clock when a step of the database's clock was last seen. For one lease after it
                nothing is taken from that clock: what a step hides of two more is not seen by the leader either.
            new_term: Whether the term began since the answer before. Its leader may be a fresh process, which does not
                know that the clock went back before its claim, and takes nothing off its time for that: between two
                steps that cancel out. Until its first renewal, nothing is taken from that clock.
        """
        if earlier is not None and (earlier.token, earlier.beat) == (lease.token, lease.beat):
            return earlier
        wait = _trusted_wait(lease, lease.duration, reading, before)
        stepped = stepped_at is not None and reading.received - stepped_at < lease.duration
        if new_term or stepped or (earlier is not None and _went_back(lease, reading, before)):
            wait = lease.duration
        return cls(token=lease.token, beat=lease.beat, seen_at=reading.received, wait=wait, duration=lease.duration)

    def outlasted(self, clock: float) -> bool:
        """Whether the holder's whole lease has passed, by the local clock, without a renewal."""
        return clock - self.seen_at >= self.duration

    def due(self, clock: float) -> float:
        """Seconds until the row may become claimable, if it is not renewed; 0 when it is time to read it."""
        elapsed = clock - self.seen_at
        return max((self.wait if elapsed < self.wait else self.duration) - elapsed, 0.0)

    def claimable(self, lease: Lease, clock: float) -> bool:
        """Whether a candidate that saw this may claim `lease`, a held row: a later reading of the same state."""
        return self.outlasted(clock) or (lease.expired and clock - self.seen_at >= self.wait)


def _went_back(lease: Lease, reading: Reading, before: Reading | None) -> bool:
    """Whether a renewal that came after the reading before is older than that by the database's clock.

    Then the clock had gone back before the renewal, and has gone forward since, or it would be seen: the row runs out
    too early by that clock.
    """
    if before is None:
        return False
    return (before.now - lease.renewed_at) / timedelta(seconds=1) > 0.1 + before.took + reading.took


def _trusted_wait(lease: Lease, duration: float, reading: Reading, before: Reading | None) -> float:
    """Seconds for which a candidate takes the holder for alive: what the row says, as far as its own clock confirms it.

    1. The first reading: the database's clock may have been stepped since the renewal, and nothing here could tell. The
       whole duration.
    2. The clock was stepped between the two readings, or the one before is too old to say so: the same.
    3. Else what is left by the database's clock, and what that clock gained meanwhile. Two steps that cancel out are
       not seen. So it is not less than the duration counted from the reading before, since the renewal came after that,
       nor, where that reading is old, than two thirds of the duration. What is hidden still, the leader takes off its
       own time: see `ClockHistory.setback`.
    """
    if before is None:
        return duration
    between, gained = reading.received - before.received, reading.gained_since(before)
    if reading.stepped_since(before) or between > duration * REMEMBERED:
        return duration
    left = (lease.expires_at - lease.now) / timedelta(seconds=1)
    if not 0 < left <= duration:
        return duration
    return min(max(left + max(gained, 0.0), duration - min(between, duration * HIDDEN)), duration)


def look_limit(lease: Lease | None) -> float:
    """Seconds that one reading of a candidate which watches may take: a lost answer costs it no more."""
    return _LONGEST_LOOK if lease is None else min(max(lease.duration / 6, _SHORTEST_LOOK), _LONGEST_LOOK)


class LeaseStore(Protocol):
    """What the leader's election needs of a database. "Someone else holds it" is a return value; only trouble raises.

    Every method may raise `StoreUnavailable` (try again), `StoreRejected` or `SchemaMissing`, and nothing else.
    A method that is cancelled, or whose caller stops waiting, may still take effect later; callers must expect it.
    The methods set no limit of time: callers do, from outside, and a store then drops its connection.
    """

    @property
    def description(self) -> str:
        """Which database, for people; without a password."""

    async def read(self, name: str) -> Lease | None:
        """Reads the row; ``None`` if there is none."""

    async def watch(self, name: str, seconds: float, *, lease: Lease | None, poll: float, hint: bool) -> Lease | None:
        """Waits until the lease may have become free, at most `seconds`, then reads the row.

        Args:
            name: The lease.
            seconds: The longest wait; the reading comes soon after.
            lease: The latest reading of the row.
            poll: Seconds between two readings where the store has no better way to learn of a release.
            hint: Whether to be woken by the holder's release where the database can. A candidate that would not
                claim says no, so that it does not stand in the way of one that would.
        """

    async def claim(self, name: str, holder: str, duration: float, *, seen: Lease | None, force: bool) -> Lease | None:
        """Takes the lease for `holder` if its row still is in the state `seen`, and returns the row afterwards.

        The caller compares the row's holder with its own. Where none was seen the row is made, above the highest token
        that the database knows of this lease.

        Args:
            name: The lease.
            holder: The identity of this attempt, never used before.
            duration: How long the lease is to last, in seconds, by the database's clock.
            seen: The reading that the caller decided upon; its token and beat are compared, and swapped.
            force: Whether a row that has not run out by the database's clock may be taken too.
        """

    async def renew(self, name: str, holder: str, token: int, beat: int, duration: float) -> Lease | None:
        """Extends the term's lease if `beat` is above the row's; returns the row afterwards, ``None`` if there is none.

        The renewal took effect if and only if the row belongs to the term and shows `beat`.
        """

    async def release(self, name: str, holder: str, token: int) -> bool:
        """Clears the holder if the row still belongs to the term, then wakes the candidates; says whether it did."""

    async def begin(self) -> Transaction:
        """Begins a transaction on a connection of the user's pool; may wait for one as long as it is let."""

    async def fence(self, connection: Any, term: Term, final: RunKey | None = None, *, within: float) -> None:
        """Fences a transaction of the user's own on `connection`, who commits next.

        Args:
            connection: The user's.
            term: The term.
            final: See `Transaction.commit`.
            within: Seconds after which the server is to end the session of a process that was frozen before its
                COMMIT, where it can.

        Raises:
            FenceBroken: The term is over.
            Refused: The run is not the running one.
            StoreUnavailable: A conflict, or the connection is lost.
        """

    def forget(self, name: str) -> None:
        """The term is over and its row is not to be touched: gives up what wakes the candidates. Never waits."""

    async def resign(self, name: str) -> int | None:
        """Asks the holder's term to resign at its next renewal; returns its token, ``None`` if the lease is free."""
