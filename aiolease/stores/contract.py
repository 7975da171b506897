"""What a store must do: the lease, the ledger, fenced transactions. No I/O here."""

from __future__ import annotations

from typing import Any, Protocol

from aiolease.stores.ledger import JobStore, LedgerStore
from aiolease.stores.records import Lease, RunKey, TermKey


class FenceBroken(Exception):
    """The fence of a transaction matched no row: its term is over. Users get `LeadershipLost` instead."""


class Refused(Exception):
    """The rows of the ledger are not as a write expected them; nothing was written. Users never see this error."""


_SHORTEST_LOOK, _LONGEST_LOOK = 0.5, 5.0


def look_limit(lease: Lease | None) -> float:
    """The time limit of one reading by a candidate that watches, in seconds: a lost answer costs it no more."""
    return _LONGEST_LOOK if lease is None else min(max(lease.duration / 6, _SHORTEST_LOOK), _LONGEST_LOOK)


def longest_wait(seconds: float, lease: Lease | None, poll: float) -> float:
    """How long one wait for a release may be, in seconds, where a release that wakes nobody costs time, no more.

    Args:
        seconds: What the candidate asked for.
        lease: The latest reading of the row; a third of its lease is the limit.
        poll: The limit where there is no row, and the least that the limit is.
    """
    return min(seconds, max(lease.duration / 3 if lease else poll, poll))


class Transaction(Protocol):
    """A fenced transaction. One of its methods must be called, once; both give the connection back.

    Attributes:
        connection: What the user works with.
    """

    connection: Any

    async def commit(self, term: TermKey, final: RunKey | None = None) -> None:
        """Commits if the term is the latest of its lease.

        Args:
            term: The term.
            final: A run of the term, to be recorded as succeeded by the same commit, if it is still the running one.

        Raises:
            FenceBroken: A newer term has begun; nothing was committed.
            Refused: This attempt is not the running one; nothing was committed.
            TransactionEnded: The block had ended the transaction itself.
            StoreUnavailable: A conflict; nothing was committed, and it may be tried again.
            CommitUnknown: The answer was lost.
        """

    async def roll_back(self) -> None:
        """Rolls back, with a time limit. Raises nothing."""


class LeaseStore(Protocol):
    """What the election needs of a database. "Someone else holds it" is a return value; only trouble raises.

    Every method may raise `StoreUnavailable` (try again), `StoreRejected` or `SchemaMissing`, and nothing else.
    A method that is cancelled, or whose caller stops waiting, may still take effect later; callers must expect it.
    The methods have no time limit. The caller sets one, and a store whose method is cancelled drops its connection.
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
        """Begins a transaction on a connection of the user's pool. Waits for one until the caller cancels."""

    async def fence(self, connection: Any, term: TermKey, final: RunKey | None = None, *, within: float) -> None:
        """Fences a transaction on the user's own connection. The user commits next.

        Args:
            connection: The user's connection.
            term: The term.
            final: See `Transaction.commit`.
            within: Seconds after which the server, if it can, ends the session of a process that froze before its
                COMMIT.

        Raises:
            FenceBroken: The term is over.
            Refused: This attempt is not the running one.
            StoreUnavailable: A conflict, or the connection is lost.
        """

    def abandon(self, name: str) -> None:
        """The term is over and its row is not to be touched: gives up what wakes the candidates. Never waits."""


class Store(LeaseStore, LedgerStore, JobStore, Protocol):
    """What `aiolease.stores.open_store` gives: the lease, the ledger, and what people ask of a lease from outside."""

    async def status(self, name: str) -> Lease | None:
        """Reads a lease for people, from any process; ``None`` if it never had a leader."""

    async def resign(self, name: str) -> int | None:
        """Asks the holder's term to resign at its next renewal; returns its token, ``None`` if the lease is free."""

    async def aclose(self) -> None:
        """Closes the connections."""


_PARTS = tuple(
    name for part in (LeaseStore, LedgerStore, JobStore, Store) for name in vars(part) if not name.startswith("_")
)
_SIGNS = ("claim", "renew", "release", "watch")


def is_store(target: object) -> bool:
    """Whether a target is meant to be a store: it has the methods of a lease."""
    return all(hasattr(target, method) for method in _SIGNS)


def missing_from(target: object) -> list[str]:
    """Names the parts of `Store` that a target lacks."""
    return [name for name in _PARTS if not hasattr(target, name)]
