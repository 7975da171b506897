"""Tells of skipped ticks once they are written: ticks before the term in one line, a series at its start and end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import final

from aiolease._jobs.due import Skip
from aiolease._jobs.notices import Notices
from aiolease._jobs.pruning import Pruning
from aiolease.events import TickSkipped, TicksMissed


@final
class Skips:
    """The skipped ticks of one term.

    Args:
        notices: Tells of them.
        pruning: Counts their rows.
        elected_at: When the term began.
    """

    def __init__(self, notices: Notices, pruning: Pruning, elected_at: datetime) -> None:
        self._notices = notices
        self._pruning = pruning
        self._elected_at = elected_at
        self._missed: list[TickSkipped] = []  # not told yet: ticks from before this term

    def written(self, job: str, skip: Skip, *, grows: bool = False) -> None:
        """Tells of ticks that were skipped together, at once or with the others from before the term.

        Args:
            job: Their job.
            skip: The ticks.
            grows: True if they extended an existing row: then no line is logged, and no row is counted.
        """
        facts = self._notices.facts() | {"job": job, "since": skip.first, "count": skip.count, "reason": skip.reason}
        event = TickSkipped(**facts, quiet=grows)
        if grows:
            self._notices.emit(event)
            return
        if skip.first <= self._elected_at:  # nobody led: after a stop this is so for most jobs at once
            self._missed.append(event)
        else:
            self._notices.emit(event)
        self._pruning.grew(job)

    def tell_missed(self) -> None:
        """Tells of the ticks that nobody ran before this term, of all jobs in one line."""
        missed, self._missed = self._missed, []
        jobs = tuple(sorted({each.job for each in missed}))
        for each in missed:
            self._notices.emit(replace(each, quiet=len(jobs) > 1))
        if len(jobs) > 1:
            since, count = min(each.since for each in missed), sum(each.count for each in missed)
            self._notices.emit(TicksMissed(**self._notices.facts(), jobs=jobs, since=since, count=count))

    def tell_series(self, over: Iterable[tuple[str, Skip]]) -> None:
        """Tells of series of skipped ticks that are over: how many ticks they were in the end."""
        for job, skip in over:
            first, last = f"{skip.first:%Y-%m-%d %H:%M:%S}", f"{skip.last:%Y-%m-%d %H:%M:%S}"
            text = f"skipped {job!r}, {skip.count} ticks since {first}: {skip.reason} (until {last}, and now no more)"
            self._notices.tell("WARNING", text)
