"""The running term as its body sees it: a face over `Term`, and which term the running task belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, final

from aiolease._election import fencing
from aiolease._election.term import Term
from aiolease.errors import NotLeader


@final
class Leadership:
    """The running term of this process: what the block of `leadership` is given.

    Every attribute may be read from any thread. After a fork, the child does not lead.
    """

    def __init__(self, term: Term) -> None:
        self.term = term
        """What this is a face of: for aiolease itself."""

    @property
    def name(self) -> str:
        """The lease."""
        return self.term.key.name

    @property
    def holder(self) -> str:
        """The unique identity of this term."""
        return self.term.key.holder

    @property
    def token(self) -> int:
        """The fencing token: the number of this term, higher than that of every earlier one."""
        return self.term.key.token

    @property
    def elected_at(self) -> datetime:
        """When the term began: aware UTC, by the database's clock."""
        return self.term.elected_at

    @property
    def is_leader(self) -> bool:
        """Whether this process may act as the leader at this moment; a hint, no proof: it may be over right after."""
        return self.term.is_led

    @property
    def remaining(self) -> float:
        """Seconds that this process may still act if no further renewal succeeds; 0 when it may not."""
        return self.term.remaining

    def check(self) -> None:
        """Returns if this process may act; does no I/O, and may be called from any thread.

        Raises:
            LeadershipLost: It may not.
        """
        self.term.check()

    def resign(self) -> None:
        """Ends the term: `is_leader` is false at once, the body is cancelled, awaited, and the lease released.

        The block then ends without an error. Idempotent; call it from any task of the loop. `serve`, `background`
        and `run_as_leader` stay out of the election until another was elected, or for twice the retry interval.
        """
        self.term.end("resigned")

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """A transaction that commits only if no newer term has begun: gives a connection of the pool.

        Once a newer term has begun, nothing fenced by an older term can commit. Fence and COMMIT are sent together, so
        that a process that is frozen holds up nobody. The block must not end the transaction itself.

        The connection is one of the pool's; an ``AsyncConnection`` of a SQLAlchemy engine; for a URL, one of its own:
        asyncmy's, asyncpg's, psycopg's or aiosqlite's. Waiting for it, and for the COMMIT, is limited by `remaining`;
        one that cannot be had, or is stale, is tried again for ten seconds at most.

        Raises:
            LeadershipLost: The term is over; nothing was committed.
            TransactionEnded: The block ended the transaction.
            CommitUnknown: The answer to the COMMIT was lost.
            StoreUnavailable: No connection came in time, or the commit met a conflict: nothing was committed.
        """
        return fencing.transaction(self.term)

    async def fence(self, connection: Any) -> None:
        """Fences a transaction that the caller commits next: the last statement before its COMMIT.

        For a SQLAlchemy ``AsyncSession`` or ``AsyncConnection``, or a driver's connection, on the lease's database.
        An older term cannot commit behind it. But prefer `transaction`: between this and the COMMIT lies a round trip,
        and a process that is frozen there keeps its lock on the fence, and holds up the next claim. MariaDB and
        PostgreSQL are told to end its session after the renew deadline (``idle_write_transaction_timeout``, which
        MariaDB's session keeps if it had none; ``idle_in_transaction_session_timeout``, for this transaction only).
        MySQL knows no such limit, and holds the claim up until the process is thawed or its session ends.

        Raises:
            LeadershipLost: The term is over; roll back.
            StoreUnavailable: A conflict, or the connection is lost: roll back, and try again.
        """
        await fencing.fence(self.term, connection)

    def database_now(self) -> datetime:
        """The database's clock at this moment, as measured at the latest renewal or reading; aware UTC, never ahead."""
        return self.term.database_now()

    def __repr__(self) -> str:
        state = f"{self.remaining:.1f} s left" if self.is_leader else (self.term.ended or "expired")
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
