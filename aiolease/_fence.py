"""What a write is fenced by: the term, and for a run's last write its attempt. No I/O here.

Split from `aiolease._lease`: a candidate and a heartbeat know nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Term:
    """One term, as the fence table knows it."""

    name: str
    holder: str
    token: int


class FenceBroken(Exception):
    """The fence of a transaction matched no row: its term is over. Never gets out; see `LeadershipLost`."""


@dataclass(frozen=True, slots=True)
class RunKey:
    """One attempt at one tick by one term: what a change of a run's row is conditional on, with its status."""

    job: str
    tick: datetime
    attempt: int
    token: int


class Refused(Exception):
    """The rows of the ledger are not as a write took them to be; nothing of it was written. Never gets out."""


class Transaction(Protocol):
    """A fenced transaction. One of its methods must be called, once; both give the connection back.

    Attributes:
        connection: What the user works with.
    """

    connection: Any

    async def commit(self, term: Term, final: RunKey | None = None) -> None:
        """Commits if the term is the latest of its lease.

        Args:
            term: The term.
            final: A run of the term, to be recorded as succeeded by the same commit, if it is still the running one.

        Raises:
            FenceBroken: It is not; nothing was committed.
            Refused: The run is not the running one; nothing was committed.
            TransactionEnded: The transaction had been ended.
            StoreUnavailable: A conflict; nothing was committed, and it may be tried again.
            CommitUnknown: The answer was lost.
        """

    async def roll_back(self) -> None:
        """Undoes it. Bounded, and raises nothing."""
