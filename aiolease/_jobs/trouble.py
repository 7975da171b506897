"""Failed exchanges with the ledger: how long to wait before the next one, what is told, what the status says."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import final

from aiolease._election.term import Term
from aiolease._jobs.notices import Notices
from aiolease.events import LedgerFailed

_QUIETEST = 60.0
"""Seconds between two warnings about a ledger that cannot be written, at most."""

_FIRST_PAUSE = 0.05
"""Seconds to wait before the next exchange, doubled for each failure in a row; after a first failure none."""


@final
class Trouble:
    """What is wrong with the ledger of a term. The status shows it, through `Term.trouble`.

    Attributes:
        failures: How many exchanges in a row failed; successful readings do not reset it.
        why: Why the latest one failed.
    """

    def __init__(self, term: Term, notices: Notices) -> None:
        self.failures = 0
        self.why = ""
        self._term = term
        self._notices = notices
        self._warned_at = -math.inf

    def failed(self, why: str) -> float:
        """Notes an exchange that failed; returns for how long to wait before the next."""
        retry_interval, now = self._term.timings.retry_interval, asyncio.get_running_loop().time()
        self.failures += 1
        self.why = why
        quiet = self.failures == 1 or now - self._warned_at < min(retry_interval * self.failures, _QUIETEST)
        if not quiet:
            self._warned_at = now
        event = LedgerFailed(**self._notices.facts(), error=why, failures=self.failures, quiet=quiet)
        self._term.trouble = event.phrase
        self._notices.emit(event)
        return 0.0 if self.failures == 1 else min(_FIRST_PAUSE * 2.0 ** min(self.failures, 10), retry_interval)

    def worked(self, *, aside: Iterable[str], silent: Iterable[str]) -> None:
        """Notes that the ledger can be written.

        Args:
            aside: The jobs that are set aside all the same.
            silent: The jobs of which no tick is due for a while.
        """
        self.failures = 0
        them, others = (", ".join(map(repr, sorted(names))) for names in (aside, silent))
        troubles = [f"set aside, since their rows are in the way: {them}"] if them else []
        troubles += [f"silent, since their ticks are settled ahead of the clock: {others}"] if others else []
        self._term.trouble = "; ".join(troubles) or None
