"""The running term as its body sees it: whether it may still act, its fenced transactions, and how it is ended.

Who keeps a term, renews its lease and sees its body out is `aiolease._election.leader`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any, final

from aiolease._clock import current_clock, jitter
from aiolease._election.candidate import Claim
from aiolease._election.timings import Timings
from aiolease._waiting import cancel_and_wait, wait_shielded
from aiolease.errors import CommitUnknown, LeadershipLost, LossReason, NotLeader, RunEnded, StoreUnavailable
from aiolease.events import Observer
from aiolease.stores.contract import FenceBroken, LeaseStore, Refused, Transaction
from aiolease.stores.records import RunKey, TermKey

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
"""Seconds before a connection that could not be had is tried again; doubled from the one up to the other."""

_IN_PLACE = 10.0
"""Seconds for which it is tried again at most, before the error comes out."""

_LONGEST_COMMIT = 60.0
"""Seconds that a COMMIT may take, however long the lease: a large transaction takes longer than other exchanges."""

_LEAST_EXCHANGE = 0.5
"""Seconds that an exchange which was begun in time may take, however little is left; less where leases are short."""

_ANSWERED = 0.1
"""Seconds for an answer that had come before the time was up, but was not read yet: the process had been frozen."""


@final
class Leadership:
    """The running term of this process: what the block of `leadership` is given.

    Every attribute may be read from any thread. After a fork, the child does not lead.
    """

    def __init__(
        self,
        store: LeaseStore,
        claim: Claim,
        timings: Timings,
        end: Callable[..., None],
        observer: Observer | None = None,
    ) -> None:
        assert claim.lease.holder is not None
        self._store = store
        self._lease = claim.lease
        self._holder = claim.lease.holder
        self._timings = timings
        self._end = end
        self._observer = observer
        self._clock = current_clock()
        self._pid = os.getpid()
        self._jobs: set[str] = set()  # the names of those that run in this term
        self._trouble: str | None = None  # why their ledger cannot be written
        self._deadline = claim.sent_at + timings.renew_deadline
        self._ended: LossReason | None = None
        self._over = asyncio.Event()
        # The database's clock at one moment of the local one. The answer's, not the middle of the exchange: the clock
        # is then behind by what the answer took, but never ahead, so that no job runs before its tick.
        self._database_time = (claim.lease.now, claim.received_at)

    @property
    def name(self) -> str:
        """The lease."""
        return self._lease.name

    @property
    def holder(self) -> str:
        """The unique identity of this term."""
        return self._holder

    @property
    def token(self) -> int:
        """The fencing token: the number of this term, higher than that of every earlier one."""
        return self._lease.token

    @property
    def elected_at(self) -> datetime:
        """When the term began: aware UTC, by the database's clock."""
        return self._lease.elected_at

    @property
    def is_leader(self) -> bool:
        """Whether this process may act as the leader at this moment; a hint, no proof: it may be over right after."""
        return self._ended is None and self._clock() < self._deadline and os.getpid() == self._pid

    @property
    def remaining(self) -> float:
        """Seconds that this process may still act if no further renewal succeeds; 0 when it may not."""
        return max(self._deadline - self._clock(), 0.0) if self.is_leader else 0.0

    def check(self) -> None:
        """Returns if this process may act; does no I/O, and may be called from any thread.

        Raises:
            LeadershipLost: It may not.
        """
        if not self.is_leader:
            raise LeadershipLost(self.name, self._holder, self.token, self._ended or "expired")

    def resign(self) -> None:
        """Ends the term: `is_leader` is false at once, the body is cancelled, awaited, and the lease released.

        The block then ends without an error. Idempotent; call it from any task of the loop. `serve`, `background`
        and `run_as_leader` stay out of the election until another was elected, or for twice the retry interval.
        """
        self._end("resigned")

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """A transaction that commits only if no newer term has begun: gives a connection of the pool.

        Once a newer term has begun, nothing fenced by an older term can commit. Fence and COMMIT are sent together, so
        that a process that is frozen holds up nobody. The block must not end the transaction itself.

        The connection is one of the pool's; an ``AsyncConnection`` of a SQLAlchemy engine; for a URL, one of its own:
        asyncmy's, or aiosqlite's. Waiting for it, and for the COMMIT, is bounded by `remaining`; one that cannot be
        had, or is stale, is tried again for ten seconds at most.

        Raises:
            LeadershipLost: The term is over; nothing was committed.
            TransactionEnded: The block ended the transaction.
            CommitUnknown: The answer to the COMMIT was lost.
            StoreUnavailable: No connection came in time, or the commit met a conflict: nothing was committed.
        """
        return self._transaction()

    @asynccontextmanager
    async def _transaction(
        self, final: RunKey | None = None, committed: Callable[[], None] | None = None
    ) -> AsyncIterator[Any]:
        """See `transaction`; records a run as succeeded in the same commit, and tells whoever asked of it."""
        self.check()
        # In tasks of their own: cancelled on the way, a connection would be lost to its pool, or a COMMIT torn.
        opening = asyncio.create_task(self._begin())
        cancelled = None
        try:
            await asyncio.wait([opening], timeout=max(self.remaining, self._least))
        except asyncio.CancelledError as error:
            cancelled = error  # not waited out: a pool may have no connection for long
        another = await cancel_and_wait(opening)
        cancelled = cancelled or another
        try:
            transaction = opening.result()
        except asyncio.CancelledError:
            if cancelled is not None:
                raise cancelled from None
            raise StoreUnavailable(self._store.description, "no connection in time") from None
        except Exception as error:
            if cancelled is not None:
                raise cancelled from error
            raise
        try:
            if cancelled is not None:
                raise cancelled
            yield transaction.connection
            self.check()
        except BaseException:
            # Bounded by itself, but for longer than a short lease leaves time to unwind when nothing answers. Given up,
            # it closes the connection, and the server rolls back.
            rolling_back = asyncio.create_task(transaction.roll_back())
            cancelled = await wait_shielded(rolling_back, self.remaining + self._timings.unwind / 5)
            another = await cancel_and_wait(rolling_back)
            cancelled = cancelled or another
            if cancelled is not None:
                raise cancelled from None
            raise
        await self._fenced(transaction.commit(self._term, final), unknown=True, final=final, done=committed)

    async def _begin(self) -> Transaction:
        """Begins a transaction; tries again while there is time, since nothing has taken effect (DESIGN rule 47)."""
        until, pause = self._clock() + min(self.remaining, _IN_PLACE), _FIRST_PAUSE
        while True:
            try:
                return await self._store.begin()
            except StoreUnavailable:
                if self._clock() + pause >= until:
                    raise
            await asyncio.sleep(jitter(pause / 2, pause))
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def fence(self, connection: Any) -> None:
        """Fences a transaction that the caller commits next: the last statement before its COMMIT.

        For a SQLAlchemy ``AsyncSession`` or ``AsyncConnection``, or a driver's connection, on the lease's database.
        An older term cannot commit behind it. But prefer `transaction`: between this and the COMMIT lies a round trip,
        and a process that is frozen there keeps its lock on the fence, and holds up the next claim. MariaDB is told to
        end its session after the renew deadline (``idle_write_transaction_timeout``, which the session keeps if it had
        none); MySQL knows no such limit, and holds the claim up until the process is thawed or its session ends.

        Raises:
            LeadershipLost: The term is over; roll back.
            StoreUnavailable: A conflict, or the connection is lost: roll back, and try again.
        """
        await self._fence(connection)

    async def _fence(self, connection: Any, final: RunKey | None = None) -> None:
        """See `fence`; records a run as succeeded in the same transaction."""
        self.check()
        call = self._store.fence(connection, self._term, final, within=self._timings.renew_deadline)
        await self._fenced(call, unknown=False, final=final)

    @property
    def _term(self) -> TermKey:
        return TermKey(self.name, self._holder, self.token)

    @property
    def _least(self) -> float:
        """Seconds that an exchange may take that is begun now: its end is in the time to unwind at the latest."""
        return min(_LEAST_EXCHANGE, self._timings.unwind / 2)

    async def _fenced(
        self,
        call: Coroutine[Any, Any, None],
        *,
        unknown: bool,
        final: RunKey | None,
        done: Callable[[], None] | None = None,
    ) -> None:
        """Sees an exchange with a fence to its end, and what it says of the term."""
        exchange = asyncio.create_task(call)
        cancelled = await wait_shielded(exchange, min(max(self.remaining, self._least), _LONGEST_COMMIT))
        if not exchange.done():
            # A process that was frozen finds the answer and the end of its time at once: the answer counts.
            another = await wait_shielded(exchange, min(_ANSWERED, self._timings.unwind / 5))
            cancelled = cancelled or another
            another = await cancel_and_wait(exchange)
            cancelled = cancelled or another
        trouble: Exception | None
        try:
            exchange.result()
            trouble = None
            if done is not None:
                done()
        except FenceBroken as error:
            self._end("taken", raised=True)
            trouble = LeadershipLost(self.name, self._holder, self.token, self._ended or "taken")
            trouble.__cause__ = error.__cause__
        except Refused:
            assert final is not None
            trouble = RunEnded(final.job, final.tick, final.attempt)
        except asyncio.CancelledError:
            trouble = (CommitUnknown if unknown else StoreUnavailable)(self._store.description, "no answer in time")
        except Exception as error:  # noqa: BLE001 - it is raised below
            trouble = error
        if cancelled is not None:
            raise cancelled from trouble
        if trouble is not None:
            raise trouble

    def _saw_database_time(self, now: datetime) -> None:
        """Takes the database's clock from an answer that has just come."""
        self._database_time = (now, self._clock())

    def database_now(self) -> datetime:
        """The database's clock at this moment, as measured at the latest renewal or reading; aware UTC, never ahead."""
        then, at = self._database_time
        return then + timedelta(seconds=self._clock() - at)

    def __repr__(self) -> str:
        state = f"{self.remaining:.1f} s left" if self.is_leader else (self._ended or "expired")
        return f"<Leadership {self.name!r} term {self.token}: {state}>"


_current: ContextVar[tuple[Leadership, ...]] = ContextVar("aiolease_current", default=())


def current_leadership() -> Leadership:
    """The innermost live leadership around the running task.

    Raises:
        NotLeader: There is none.
    """
    for lead in reversed(_current.get()):
        if lead.is_leader:
            return lead
    raise NotLeader


@contextmanager
def leading(lead: Leadership) -> Iterator[None]:
    """Makes `lead` the innermost leadership of the running task."""
    earlier = _current.get()
    _current.set((*earlier, lead))
    try:
        yield
    finally:
        _current.set(earlier)


def is_within(lead: Leadership) -> bool:
    """Whether the running task belongs to that term."""
    return lead in _current.get()
