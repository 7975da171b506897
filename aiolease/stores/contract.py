"""What a store must do: the lease, the ledger, fenced transactions. No I/O here."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

from aiolease.stores.records import Batch, JobDefinition, Lease, LedgerReading, Place, RunKey, RunRecord, TermKey


class FenceBroken(Exception):
    """The fence of a transaction matched no row: its term is over. Users get `LeadershipLost` instead."""


class Refused(Exception):
    """The rows of the ledger are not as a write expected them; nothing was written. Users never see this error."""


_SHORTEST_LOOK, _LONGEST_LOOK = 0.5, 5.0


def look_limit(lease: Lease | None) -> float:
    """The time limit of one reading by a candidate that watches, in seconds: a lost answer costs it no more."""
    return _LONGEST_LOOK if lease is None else min(max(lease.duration / 6, _SHORTEST_LOOK), _LONGEST_LOOK)


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

    def forget(self, name: str) -> None:
        """Frees the lock that candidates wait in, without a release: the term is over, its row stays. Never waits."""


class LedgerStore(Protocol):
    """What the ledger needs of a database. Every method may raise as those of `LeaseStore` do."""

    async def take_stock(
        self, name: str, *, attention: bool = False, runs: bool = True, counted: bool = False
    ) -> LedgerReading:
        """Reads the ledger of a lease.

        Args:
            name: The lease.
            attention: Reads only the jobs that are, or were, paused or triggered, and no runs.
            runs: Whether to read the runs.
            counted: Counts the queued runs instead of reading them: there may be any number.
        """

    async def queued(self, name: str, jobs: Sequence[str], limit: int) -> tuple[list[RunRecord], dict[str, str]]:
        """The queued runs of some jobs with the oldest ticks, at most `limit` of each, in the order of their ticks.

        Beside them the jobs that have one which cannot be read, and why: see `LedgerReading.unreadable`.
        """

    async def look_up(self, name: str, places: Sequence[Place]) -> list[RunRecord]:
        """The rows of those ticks that have one. A row that cannot be read counts as there, and finished."""

    async def enroll(self, term: TermKey, jobs: Sequence[JobDefinition]) -> None:
        """Inserts the rows of new jobs, which count from now on; writes changed schedules into existing rows.

        A changed schedule counts from `JobDefinition.since` on.

        Raises:
            FenceBroken: The term is over.
        """

    async def record(self, term: TermKey, batch: Batch) -> None:
        """Writes a batch as a whole.

        Raises:
            FenceBroken: The term is over; nothing was written.
            Refused: The rows are not as the batch expects them; nothing was written.
            StoreUnavailable: Nobody knows whether it was written, or still will be.
        """

    async def prune(self, name: str, jobs: Sequence[str], keep: int) -> list[str]:
        """Deletes the oldest finished rows of jobs; keeps the newest by their ticks.

        `keep` of the runs are kept, beside them the newest success, and as many rows of ticks that were skipped.

        Returns:
            The jobs that may have more rows to delete: one call deletes a limited number.
        """

    async def history(self, name: str, job: str, *, limit: int = 100) -> list[RunRecord]:
        """The newest rows of a job, at most `limit`, the newest last. Those that cannot be read are left out.

        Raises:
            ConfigurationError: `limit` is not positive.
        """

    async def settle(self, name: str, job: str) -> None:
        """Repairs the rows of a job, after somebody changed them or the clock was wrong: for people (rule 50).

        The job's ticks up to this moment are settled: it goes on with the next. What waits, or runs, is recorded as
        lost. The leader learns of it at its next heartbeat, or when it tries a job that it has set aside again.

        Raises:
            InvalidJob: No leader of this lease ever had such a job.
        """

    async def trigger(self, name: str, job: str) -> datetime:
        """Asks the leader to run a job at its next heartbeat; returns the tick that the run will have.

        A request that the leader has not seen yet stands, and is returned.

        Raises:
            InvalidJob: No leader of this lease ever had such a job.
        """

    async def pause(self, name: str, job: str) -> None:
        """From now on no tick of a job is claimed; what is queued or running goes on.

        Raises:
            InvalidJob: No leader of this lease ever had such a job.
        """

    async def resume(self, name: str, job: str) -> None:
        """Ends a pause; the ticks that fell due meanwhile are not missed, and never run. Nothing if it is not paused.

        The leader learns of it at its next heartbeat, and then runs a tick that fell due since.

        Raises:
            InvalidJob: No leader of this lease ever had such a job.
        """


class Store(LeaseStore, LedgerStore, Protocol):
    """What `aiolease.stores.open_store` opens: the lease, the ledger, and what people ask of a lease from outside."""

    async def status(self, name: str) -> Lease | None:
        """Reads a lease for people, from any process; ``None`` if it never had a leader."""

    async def resign(self, name: str) -> int | None:
        """Asks the holder's term to resign at its next renewal; returns its token, ``None`` if the lease is free."""

    async def aclose(self) -> None:
        """Closes the connections."""


_PARTS = tuple(name for part in (LeaseStore, LedgerStore, Store) for name in vars(part) if not name.startswith("_"))
_SIGNS = ("claim", "renew", "release", "watch")


def is_store(target: object) -> bool:
    """Whether a target is meant to be a store: it has the methods of a lease."""
    return all(hasattr(target, method) for method in _SIGNS)


def missing_from(target: object) -> list[str]:
    """Names the parts of `Store` that a target lacks."""
    return [name for name in _PARTS if not hasattr(target, name)]
