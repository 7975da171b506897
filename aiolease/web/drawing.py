"""Small pictures as SVG: the terms as a line of time, the last runs of a job. Pure; no style of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from markupsafe import Markup

from aiolease._jobs.in_words import moment_text, span
from aiolease.stores.records import RunRecord
from aiolease.stores.seen import TermRecord

_WIDTH = 1000
"""Of the line of time, in its own units; the page stretches it."""

_NARROWEST = 3
_BAR, _GAP, _HEIGHT = 4, 1, 16
_KINDS = {"succeeded": "ok", "failed": "bad", "lost": "lost"}


@dataclass(frozen=True, slots=True)
class Stretch:
    """A term on the line of time.

    Attributes:
        x: Where it begins.
        width: How long it is.
        kind: ``"now"`` if it goes on, ``"lost"``, or ``"past"``.
        text: Which term it is, and how it ended, in a line.
    """

    x: float
    width: float
    kind: str
    text: str


def lasted(term: TermRecord, now: datetime) -> float:
    """For how long a term has gone on, in seconds."""
    return max(((term.ended_at or now) - term.began_at).total_seconds(), 0.0)


def ended(term: TermRecord) -> str:
    """How a term ended, in a few words."""
    if term.status == "running":
        return "goes on"
    how = "ended in order" if term.status == "succeeded" else "was lost"
    return f"{how}: {term.error}" if term.error else how


def line_of_time(terms: Sequence[TermRecord], now: datetime) -> list[Stretch]:
    """The terms between the beginning of the first and now. Where none is, nobody led."""
    if not terms:
        return []
    first = terms[0].began_at
    scale = _WIDTH / max((now - first).total_seconds(), 1.0)
    found = []
    for term in terms:
        x = min((term.began_at - first).total_seconds() * scale, _WIDTH - _NARROWEST)
        width = min(max(lasted(term, now) * scale, _NARROWEST), _WIDTH - x)
        kind = {"running": "now", "lost": "lost"}.get(term.status, "past")
        text = f"term {term.token}, {term.holder}: {span(lasted(term, now))} since {_second(term.began_at)}"
        found.append(Stretch(round(x, 1), round(width, 1), kind, f"{text}, {ended(term)}"))
    return found


def _second(moment: datetime) -> str:
    return moment_text(moment.replace(microsecond=0))


def sparkline(runs: Iterable[RunRecord]) -> Markup:
    """The last runs of a job as bars, the newest at the right; the longer a run took the higher is its bar."""
    return _drawn(tuple((run.status, _took(run)) for run in runs))


def _took(run: RunRecord) -> float:
    if run.started_at is None or run.finished_at is None:
        return 0.0
    return round(max((run.finished_at - run.started_at).total_seconds(), 0.0), 2)


@lru_cache(maxsize=4096)
def _drawn(runs: tuple[tuple[str, float], ...]) -> Markup:
    if not runs:
        return Markup("")
    longest = max(took for _, took in runs) or 1.0
    paths: dict[str, str] = {}
    for number, (status, took) in enumerate(runs):
        height = 4 + round((_HEIGHT - 4) * took / longest)
        kind = _KINDS.get(status, "lost")
        x = number * (_BAR + _GAP)
        # Who sees no colours sees that a failed run hangs from above.
        top = 0 if kind != "ok" else _HEIGHT - height
        paths[kind] = paths.get(kind, "") + f"M{x} {top}h{_BAR}v{height}h-{_BAR}z"
    width = len(runs) * (_BAR + _GAP) - _GAP
    drawn = Markup("").join(Markup('<path class="{}" d="{}"/>').format(kind, path) for kind, path in paths.items())
    failed = sum(status != "succeeded" for status, _ in runs)
    told = "1 run" if len(runs) == 1 else f"the last {len(runs)} runs"
    label = f"{told}: {f'{failed} failed or lost' if failed else 'all succeeded'}"
    return Markup(
        '<svg class="spark" role="img" aria-label="{}" viewBox="0 0 {} {}" width="{}" height="{}">{}</svg>'
    ).format(label, width, _HEIGHT, width, _HEIGHT, drawn)
