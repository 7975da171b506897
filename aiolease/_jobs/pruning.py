"""Deletes old rows of finished runs, a step at a time: what is due comes first (DESIGN rules 31 and 46)."""

from __future__ import annotations

import asyncio
import math
from itertools import islice
from typing import final

from aiolease._clock import jitter
from aiolease._election.health import STORE_ERRORS
from aiolease._jobs.ledger import Ledger

_AT_ONCE = 50
"""For how many jobs old rows are deleted between two looks at what is due."""

_RESTED = 4.0
"""The next step waits this many times as long as the last one took."""

_BUSY_FOR = 1.0
"""Seconds without an idle moment after which old rows are deleted all the same."""

_AFTER_TROUBLE, _LONGEST = 1.0, 60.0
"""Seconds until the next step after one that failed; the second if it was about one job alone."""


@final
class Pruning:
    """Keeps the ledger's rows of finished runs down.

    Args:
        ledger: The ledger.
        history: How many rows of each job are kept; ``None`` for all.
    """

    def __init__(self, ledger: Ledger, history: int | None) -> None:
        self._ledger = ledger
        self._history = history
        self._clock = asyncio.get_running_loop().time
        self._next = -math.inf  # when the next step may be
        self._grown: dict[str, float] = {}  # finished rows since the last pruning
        self._at_once = _AT_ONCE
        self._full: dict[str, None] = {}  # jobs that are to be pruned, in this order

    @property
    def is_behind(self) -> bool:
        """True if no step was made for a while, since there was no idle moment."""
        return self._clock() - self._next > _BUSY_FOR

    def grew(self, job: str) -> None:
        """Counts a finished row. The count starts at a random number: nobody knows how many rows there were before."""
        if self._history is not None:
            if job not in self._grown:
                self._grown[job] = jitter(0, self._history / 10)
            grown = self._grown[job] = self._grown[job] + 1
            if grown > self._history / 10:  # a tenth of what is kept
                self._full[job] = None

    async def step(self) -> float:
        """Deletes old rows of some jobs, a step of them; returns for how long to wait for the next."""
        now, full = self._clock(), [*islice(self._full, self._at_once)]
        if not full or self._history is None:
            return math.inf
        if now >= self._next:
            try:
                left = await self._ledger.prune(full, self._history)
            except STORE_ERRORS:  # tried again later; perhaps the fault is one job's, so fewer at once
                for job in full:
                    self._full[job] = self._full.pop(job)
                self._next = now + (_LONGEST if self._at_once == 1 else _AFTER_TROUBLE)
                self._at_once = max(self._at_once // 2, 1)
            else:
                self._at_once = min(2 * self._at_once, _AT_ONCE)
                for job in full:
                    del self._full[job]
                    self._grown[job] = 0
                self._full.update(dict.fromkeys(left))  # behind the others
                after = self._clock()
                self._next = after + _RESTED * (after - now)
        return max(self._next - self._clock(), 0.0)
