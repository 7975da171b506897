"""The running term: which one it is, until when it may be trusted, why it is over, and what the database's clock says.

The leader that keeps a term (`aiolease._election.leader`) is the one place that changes it. The body, its jobs and its
transactions read it, and ask for its end with `Term.end`. Everything here may be read from any thread.
"""

from __future__ import annotations

import asyncio
import os
from datetime import datetime, timedelta
from typing import Any, Protocol, final

from aiolease._clock import current_clock
from aiolease._election.claim import Claim
from aiolease._election.timings import Timings
from aiolease.errors import LeadershipLost, LossReason
from aiolease.events import Observer
from aiolease.stores import Store
from aiolease.stores.records import TermKey


class End(Protocol):
    """Ends a term, once; see `aiolease._election.leader.Leader.end`."""

    def __call__(self, reason: LossReason, *, requested: bool = False, raised: bool = False) -> None:
        """Ends it: from now on it is not led, and its body is cancelled. Never waits.

        Args:
            reason: Why.
            requested: True if somebody asked for it through the database.
            raised: True if the caller raises `LeadershipLost` in the body itself: that unwinds it, and a cancellation
                would interrupt its clean-up.
        """


@final
class Term:
    """One running term.

    Attributes:
        key: What the database knows it by.
        elected_at: When it began, by the database's clock: aware UTC.
        after_release: True if it is known that the term before it was released, or that there was none.
        store: Where its lease and its ledger are.
        timings: Its durations.
        observer: What hears of its events.
        end: Ends it.
        deadline: The local clock until which this process may act, if no further renewal succeeds.
        lost: Why it ended before its body did; ``None`` if it did not.
        over: Set once it has ended.
        jobs: The names of the jobs that run in it. Written by what runs them.
        trouble: Why their ledger cannot be written; ``None`` if it can. Written by what runs them.
    """

    __slots__ = (
        "_clock", "_database_time", "_pid", "after_release", "deadline", "elected_at", "end", "jobs", "key", "lost",
        "observer", "over", "store", "timings", "trouble",
    )  # fmt: skip

    def __init__(
        self,
        store: Store,
        claim: Claim,
        timings: Timings,
        end: End,
        observer: Observer | None,
    ) -> None:
        lease = claim.lease
        assert lease.holder is not None
        self.key = TermKey(lease.name, lease.holder, lease.token)
        self.elected_at = lease.elected_at
        self.after_release = claim.after_release
        self.store = store
        self.timings = timings
        self.observer = observer
        self.end = end
        self.deadline = claim.sent_at + timings.renew_deadline
        self.lost: LossReason | None = None
        self.over = asyncio.Event()
        self.jobs: set[str] = set()
        self.trouble: str | None = None
        self._clock = current_clock()
        self._pid = os.getpid()
        self._database_time = (lease.now, claim.received_at)

    @property
    def is_led(self) -> bool:
        """Whether this process may act as the leader at this moment. After a fork the child may not."""
        return not self.over.is_set() and self._clock() < self.deadline and self.in_its_process

    @property
    def in_its_process(self) -> bool:
        """Whether this is the process that was elected, and no child that it forked."""
        return os.getpid() == self._pid

    @property
    def remaining(self) -> float:
        """Seconds that this process may still act if no further renewal succeeds; 0 when it may not."""
        return max(self.deadline - self._clock(), 0.0) if self.is_led else 0.0

    @property
    def ended(self) -> LossReason | None:
        """Why it is over, ``None`` if it is not: a body that has returned has resigned."""
        return (self.lost or "resigned") if self.over.is_set() else None

    @property
    def loss(self) -> LeadershipLost:
        """The error that says why this process may not act."""
        return LeadershipLost(self.key.name, self.key.holder, self.key.token, self.ended or "expired")

    def check(self) -> None:
        """Returns if this process may act as the leader; no I/O.

        Raises:
            LeadershipLost: It may not.
        """
        if not self.is_led:
            raise self.loss

    def is_own(self, error: BaseException | None) -> bool:
        """Whether an error says that this term is over, and not another one."""
        return isinstance(error, LeadershipLost) and TermKey(error.name, error.holder, error.token) == self.key

    def saw_database_time(self, now: datetime) -> None:
        """Takes the database's clock from an answer that has just come.

        The answer's time, not the middle of the exchange: the clock is then behind by what the answer took, but never
        ahead, so that no job runs before its tick.
        """
        self._database_time = (now, self._clock())

    def database_now(self) -> datetime:
        """The database's clock at this moment, as measured at the latest renewal or reading; aware UTC, never ahead."""
        then, at = self._database_time
        return then + timedelta(seconds=self._clock() - at)

    def facts(self) -> dict[str, Any]:
        """What every event of this term carries."""
        return {"lease": self.key.name, "holder": self.key.holder, "token": self.key.token}
