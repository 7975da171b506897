"""Says in the ledger which jobs a term has, and that it is there: its row (`aiolease.stores.seen.TERMS`).

It is for people, and for processes that wait. Nothing that runs depends on it: it is written when there is nothing else
to write, and what goes wrong with it costs the jobs nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import final

from aiolease._election.health import STORE_ERRORS
from aiolease._election.term import Term
from aiolease._jobs.ledger import Ledger
from aiolease.stores.batch import Batch, Change
from aiolease.stores.contract import Refused
from aiolease.stores.records import RunKey, RunRecord
from aiolease.stores.seen import TERMS

_AT_ONCE = 1000
"""How many jobs are written at once."""

_KEPT, _READ = 100, 1000
"""How many rows of terms are kept; how many are read, to find those whose end nobody has written."""

_BUSY_FOR = 1.0
"""Seconds after which it is written although there is something else to write."""

_AFTER_TROUBLE, _TRIES = 1.0, 5
"""Seconds until it is tried again, doubled each time; and how often it is tried in all."""

_RELEASED, _UNKNOWN_END = "released", "its end was not recorded"


@final
class Tenure:
    """The row of one term, and its jobs.

    Args:
        term: The term.
        ledger: Is written.
        jobs: The names of its jobs.
    """

    def __init__(self, term: Term, ledger: Ledger, jobs: Iterable[str]) -> None:
        self._term = term
        self._ledger = ledger
        self._jobs = sorted(jobs)
        self._left = self._jobs
        self._key = RunKey(TERMS, term.elected_at, 1, term.key.token)
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        self._next_at = -math.inf
        self._failures = 0
        self._done = not self._jobs
        self._has_row = False

    @property
    def until_next(self) -> float:
        """Seconds until it is to be written; infinite if it is."""
        return math.inf if self._done else max(self._next_at - self._clock(), 0.0)

    @property
    def is_behind(self) -> bool:
        """True if there was no idle moment to write it in for a while."""
        return self.until_next <= 0 and self._clock() - self._began > _BUSY_FOR

    async def begin(self) -> None:
        """Writes the next part of it.

        Raises:
            FenceBroken: The term is over.
        """
        try:
            if self._left:
                await self._ledger.have(self._left[:_AT_ONCE])
                self._left = self._left[_AT_ONCE:]
                if self._left:
                    return
            await self._write_row()
        except (*STORE_ERRORS, Refused):
            self._failures += 1
            self._done = self._failures >= _TRIES
            self._next_at = self._clock() + _AFTER_TROUBLE * 2.0**self._failures

    async def _write_row(self) -> None:
        """Writes the row of this term, and the ends of earlier ones that could not do so; deletes old ones."""
        terms = await self._ledger.terms(_READ)
        key, batch = self._key, Batch()
        for other in terms:
            if other.status == "running" and other.token < key.token:
                batch.changes.append(self._end_of_former(RunKey(TERMS, other.began_at, 1, other.token)))
        # It may be there: the answer was lost, or another registry of this term has written it.
        if all((other.token, other.began_at) != (key.token, key.tick) for other in terms):
            batch.claims.append(
                RunRecord(job=TERMS, tick=key.tick, token=key.token, holder=self._term.key.holder, status="running")
            )
        if batch:
            await self._ledger.record(batch)
        self._has_row = self._done = True
        if len(terms) >= _KEPT:
            await self._ledger.prune([TERMS], _KEPT)

    def _end_of_former(self, key: RunKey) -> Change:
        """The end of an earlier term that has not recorded it. The lease has shown whether the latest one released."""
        if self._term.after_release and key.token == self._key.token - 1:
            return Change(key=key, was="running", status="succeeded", attempt=1, error=_RELEASED)
        return Change(key=key, was="running", status="lost", attempt=1, error=_UNKNOWN_END)

    def end(self, *, beside: bool) -> list[Change]:
        """What is to be written as the term ends; nothing if its row could not be written, or others go on in it.

        Args:
            beside: True if other changes are to be written. The end by itself is no reason to delay the release: the
                next leader records it.
        """
        others = self._term.jobs - set(self._jobs)
        if not beside or not self._has_row or others:
            return []
        reason = self._term.ended
        if reason in {None, "resigned"}:
            ended = "resigned" if reason else _RELEASED
            return [Change(key=self._key, was="running", status="succeeded", attempt=1, error=ended)]
        return [Change(key=self._key, was="running", status="lost", attempt=1, error=reason)]
