"""What a term of jobs tells: its events, and lines that it tells once and not at each reading."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, final

from aiolease._election.term import Term
from aiolease._logging import emit, is_heard
from aiolease.events import Event, Level, Notice
from aiolease.stores.batch import LedgerReading


@final
class Notices:
    """Tells of one term.

    Args:
        term: The term.
        told: What this process has told of the lease, and does not tell again; kept from term to term.
    """

    def __init__(self, term: Term, told: set[str]) -> None:
        self._term = term
        self._told = told

    def facts(self) -> dict[str, Any]:
        """What every event of the term carries."""
        return self._term.facts()

    def hears(self, level: Level) -> bool:
        """True if somebody hears events of a level. A run has two, and to make them takes longer than to ask this."""
        return self._term.observer is not None or is_heard(level)

    def emit(self, event: Event) -> None:
        """Tells an event."""
        emit(event, self._term.observer)

    def tell(self, severity: Level, text: str) -> None:
        """Tells a line."""
        self.emit(Notice(**self.facts(), severity=severity, text=text))

    def tell_once(self, what: str, severity: Level, text: str) -> None:
        """Tells a line once: not if a line with the same `what` was told before."""
        if what not in self._told:
            self._told.add(what)
            self.tell(severity, text)

    def tell_again(self, what: Iterable[str]) -> None:
        """Lets `tell_once` tell these lines again."""
        if self._told:
            self._told.difference_update(what)

    def of_unknown(self, names: Iterable[str]) -> None:
        """Tells of jobs that the database knows and this process has not."""
        unknown = sorted(set(names) - self._told)
        if unknown:
            self._told.update(unknown)
            name = self._term.key.name
            self.tell(
                "WARNING",
                f"the database knows jobs of {name!r} that this process has not: {', '.join(unknown[:20])}",
            )

    def of_silent(self, silent: dict[str, datetime]) -> None:
        """Tells of jobs of which no tick is due for a while."""
        for name, until in sorted(silent.items()):
            text = (
                f"{name!r} is silent until {until:%Y-%m-%d %H:%M:%S} UTC: so far its ticks are settled, by a clock "
                f"that was ahead or by hand; `aiolease settle {name}` lets it go on now"
            )
            self.tell_once(f"{name} until {until}", "WARNING", text)

    def of_triggers(self, stock: LedgerReading, names: Iterable[str]) -> None:
        """Tells which of some jobs were triggered though this leader does not have them."""
        for name in sorted(names):
            if (requested_at := stock.jobs[name].requested_at) is not None:
                text = f"{name!r} was triggered, and this leader has no such job: it runs when a leader has it"
                self.tell_once(f"{name} {requested_at}", "WARNING", text)
