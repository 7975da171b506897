"""The last writes of a term: how its last runs ended, so that the next leader knows (DESIGN rule 40)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import final

from aiolease._election.health import STORE_ERRORS
from aiolease._election.term import Term
from aiolease._jobs.ledger import Ledger
from aiolease._jobs.notices import Notices
from aiolease._waiting import cancel_and_wait, ended, retried
from aiolease.stores.batch import Batch, Change
from aiolease.stores.contract import FenceBroken, Refused


@final
class LastWrites:
    """The last exchange of a term with its ledger. Its time limit starts when it is made.

    Args:
        term: The term.
        ledger: Says how much goes into one batch.
        notices: Tells what could not be written.
    """

    def __init__(self, term: Term, ledger: Ledger, notices: Notices) -> None:
        self._term = term
        self._ledger = ledger
        self._notices = notices
        self._clock = asyncio.get_running_loop().time
        self._lost = term.ended in {"expired", "taken"}
        self._until = self._clock() + term.timings.attempt
        self._changes: Sequence[Change] = ()
        self._matter = False
        self._written = 0
        self._unwritable: set[str] = set()  # jobs whose changes were refused

    async def outwait(self, batch: asyncio.Task[None]) -> bool:
        """Waits for a batch that is under way, for half of the time limit; returns whether it was written."""
        if not self._lost:
            await ended(batch, self._term.timings.attempt / 2)
        await cancel_and_wait(batch)
        return not batch.cancelled() and batch.exception() is None

    async def write(self, changes: Sequence[Change], of_term: Sequence[Change]) -> None:
        """Writes changes in the rest of the time; raises nothing.

        None of them refuses a batch: after a lost answer it is written again.

        Args:
            changes: Of runs.
            of_term: Of the row of the term: nothing is told if only these are not written.
        """
        if self._term.ended == "taken" or not (changes or of_term):
            return
        self._changes, self._matter = [*changes, *of_term], bool(changes)
        limit = self._until - self._clock()
        if self._lost:  # the database does not answer: this is no time to wait for it
            limit = min(limit, self._term.timings.unwind / 5)
        try:
            await retried(limit, self._term.store.description, self._write_all)
        except FenceBroken:
            pass
        except STORE_ERRORS as error:
            self._not_written(str(error))
        if self._unwritable:
            self._not_written(f"the rows of {', '.join(sorted(self._unwritable))} cannot be written")

    async def _write_all(self) -> None:
        while self._written < len(self._changes):
            some = self._changes[self._written : self._written + self._ledger.most]
            try:
                await self._write(some)
            except STORE_ERRORS:
                self._ledger.smaller_batches()
                raise
            self._written += len(some)

    async def _write(self, changes: Sequence[Change]) -> None:
        """Writes changes. If the rows of one job cannot be written, writes those of the others."""
        try:
            await self._term.store.record(self._term.key, Batch(changes=[*changes]))
        except Refused:
            jobs = sorted({change.key.job for change in changes})
            if len(jobs) == 1:
                self._unwritable.add(jobs[0])
                return
            half = set(jobs[len(jobs) // 2 :])
            await self._write([change for change in changes if change.key.job not in half])
            await self._write([change for change in changes if change.key.job in half])

    def _not_written(self, why: str) -> None:
        if not self._matter:
            return
        name = self._term.key.name
        text = f"could not write how the last runs of {name!r} ended, the next term calls them lost: {why}"
        self._notices.tell("WARNING", text)
