"""The verdict on a run: the journal, and what is in the database in the end.

What the journal says of bodies, tokens, hand-overs and runs is told to the checker that the simulation has too; what it
says of commits is compared with the rows that are there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.faults.jobs import OVERLAPPING
from tests.faults.journal import Line
from tests.faults.ledger import Found, run_of, wrong_runs
from tests.simulation.checker import Checker, Record, Violation

NOTICE = 0.3
"""Seconds within which a process that was frozen finds that its term is over, and a body that was told stops."""

STARVED = 0.2
"""Seconds between two signs of life of a process; more means that the machine did not let it run."""

HANDOVER = 1.5
"""Seconds from a release to the next body."""

SETTLED = 2.0
"""Seconds for which a candidate has to be well before that is asked of it."""

Span = tuple[float, float]


@dataclass(slots=True)
class Verdict:
    """What a run has shown.

    Attributes:
        violations: What must not be, with the moment of each.
        terms: How many bodies began.
        commits: How many fenced commits were acknowledged.
        refused: How many were refused or given up.
        takeover: The longest time without a leader while some worker was well, and when it ended.
        handover: The longest time from a release to the next body, with candidates that were well, and when it ended.
        starved: The longest time for which the machine did not let a worker run.
        ticks: How many ticks the ledger tells of.
        statuses: How many runs ended how.
        paid: How many effects of final transactions are there.
        faults: What showed of every fault, by kind, that it bit: nothing if it did not.
    """

    violations: list[tuple[float, str]] = field(default_factory=list)
    terms: int = 0
    commits: int = 0
    refused: int = 0
    takeover: float = 0.0
    handover: float = 0.0
    starved: float = 0.0
    ticks: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    paid: int = 0
    faults: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def __str__(self) -> str:
        return (
            f"{sum(map(len, self.faults.values()))} faults, {self.terms} terms, {self.commits} commits, "
            f"{self.refused} refused, {self.ticks} ticks, {self.paid} paid, {self.statuses['lost']} lost, "
            f"worst takeover {self.takeover:.2f} s, worst hand-over {self.handover * 1000:.0f} ms, "
            f"longest starved {self.starved:.2f} s, {len(self.violations)} violations"
        )


class _Measuring(Checker):
    """The checker, which also says how close to its bounds a run has come."""

    worst_takeover = 0.0
    worst_handover = 0.0

    def _on_began(self, record: Record) -> None:
        if self._well and not any(process not in self._stopped for process in self._bodies):
            waited = record.at - max(min(self._well.values()), self._led_at)
            self.worst_takeover = max(self.worst_takeover, waited)
        if self._released is not None and self._released[1]:
            self.worst_handover = max(self.worst_handover, record.at - self._released[0])
        super()._on_began(record)


def judge(lines: Iterable[Line], found: Found, *, steps: bool, takeover: float, in_order: bool = True) -> Verdict:
    """Proves the invariants.

    Args:
        lines: Of all processes.
        found: What is in the database in the end.
        steps: Whether the database's clock was stepped.
        takeover: The most seconds without a leader while some worker is well.
        in_order: Whether rows are in the order of their insertion: on a cluster every node numbers its own.
    """
    ordered = sorted(lines, key=lambda line: line.at)
    frozen, starved = _frozen(ordered)
    verdict = Verdict(starved=starved)
    checker = _Measuring(takeover=takeover, handover=HANDOVER, settled=SETTLED, overlapping=OVERLAPPING)
    at = ordered[0].at
    try:
        for record in _told(ordered, frozen):
            at = record.at
            checker.feed(record)
        checker.finish(ordered[-1].at)
    except Violation as violation:
        verdict.violations.append((at, str(violation)))
    verdict.terms, verdict.takeover, verdict.handover = checker.terms, checker.worst_takeover, checker.worst_handover
    verdict.violations += _working_on(ordered, frozen)
    verdict.violations += _wrong_effects(ordered, found.effects, in_order)
    verdict.violations += wrong_runs(ordered, found, steps=steps, in_order=in_order)
    for line in ordered:
        if line.kind == "exited":
            verdict.violations.append((line.at, f"{line.process} ended by itself: {line.facts['status']}"))
        if line.kind == "healed":
            verdict.faults[line.facts["what"]].append(line.facts.get("bit", ""))
        verdict.commits += line.kind == "committed"
        verdict.refused += line.kind in ("refused", "unknown", "cancelled")
    verdict.violations.sort(key=lambda violation: violation[0])
    verdict.ticks = sum(row.count or 1 for row in found.runs)
    verdict.statuses = Counter(row.status for row in found.runs)
    verdict.paid = len(found.payments)
    return verdict


def _frozen(lines: Sequence[Line]) -> tuple[dict[str, list[Span]], float]:
    """When each process stood still, by the harness or since the machine was busy; and the longest of the latter."""
    spans: dict[str, list[Span]] = defaultdict(list)
    gaps: dict[str, list[Span]] = defaultdict(list)
    since: dict[str, float] = {}
    alive: dict[str, float] = {}
    for line in lines:
        who = line.process
        if line.kind == "frozen":
            since[who] = line.at
        elif line.kind in ("thawed", "killed") and who in since:
            spans[who].append((since.pop(who), line.at))
        elif line.kind == "alive":
            if line.at - alive.get(who, line.at) > STARVED:
                gaps[who].append((alive[who], line.at))
            alive[who] = line.at
    for who, start in since.items():
        spans[who].append((start, lines[-1].at))
    merged: dict[str, list[Span]] = defaultdict(list)
    for who in {*spans, *gaps}:
        for start, end in sorted([*spans[who], *gaps[who]]):
            if merged[who] and start <= merged[who][-1][1]:
                merged[who][-1] = (merged[who][-1][0], max(end, merged[who][-1][1]))
            else:
                merged[who].append((start, end))
    starved = [b - a for who in gaps for a, b in gaps[who] if not any(a <= d and c <= b for c, d in spans[who])]
    return merged, max(starved, default=0.0)


def _told(lines: Sequence[Line], frozen: dict[str, list[Span]]) -> list[Record]:
    """The same in the words of the checker."""
    records = [*_bodies(lines), *_health(lines)]
    for process, spans in frozen.items():
        for start, end in spans:
            records.append(Record(at=start, process=process, kind="stopped"))
            records.append(Record(at=end, process=process, kind="resumed", lasts=NOTICE))
    return sorted(records, key=lambda record: record.at)


def _bodies(lines: Sequence[Line]) -> Iterator[Record]:
    for line in lines:
        match line.kind:
            case "began" | "ended" | "released":
                yield Record(at=line.at, process=line.process, kind=line.kind, token=line.token)
            case "lost" | "resigned":
                # However long it takes to unwind: a worker's body is polite, and no excuse for another beside it.
                yield Record(at=line.at, process=line.process, kind="told", token=line.token, lasts=float("inf"))
            case "killed" | "exited" | "stopped":
                yield Record(at=line.at, process=line.process, kind="gone")
            case "begun" | "over":
                how = line.facts.get("how", "")
                yield Record(
                    at=line.at, process=line.process, kind=line.kind, token=line.token, run=run_of(line), note=how
                )
            case "stepped":
                yield Record(at=line.at, process=line.process, kind="stepped", lasts=line.facts["seconds"])


def _health(lines: Sequence[Line]) -> Iterator[Record]:
    """Which worker could lead: one that runs, and that no fault befalls, itself or with all others."""
    running: dict[int, str] = {}
    faults: dict[int, set[int]] = defaultdict(set)
    well: set[str] = set()
    finishing = False
    for line in lines:
        number = int(line.process[1 : line.process.index(".")]) if "." in line.process else -1
        if line.kind == "started":
            running[number] = line.process
        elif line.kind in ("killed", "exited", "stopped"):
            running.pop(number, None)
        elif line.kind == "finishing":
            finishing = True
        elif line.kind == "fault":
            for hit in line.facts["hits"]:
                faults[hit].add(line.facts["number"])
        elif line.kind == "healed":
            for hit in line.facts["hits"]:
                faults[hit].discard(line.facts["number"])
        else:
            continue
        now = {process for worker, process in running.items() if not faults[worker] and not finishing}
        yield from (Record(at=line.at, process=process, kind="unwell") for process in well - now)
        yield from (Record(at=line.at, process=process, kind="well") for process in now - well)
        well = now


def _working_on(lines: Sequence[Line], frozen: dict[str, list[Span]]) -> Iterator[tuple[float, str]]:
    """A body that was told that its term is over stops its work, and only unwinds."""
    told: dict[tuple[str, int | None], float] = {}
    for line in lines:
        term = line.process, line.token
        if line.kind in ("lost", "resigned"):
            told[term] = line.at
        elif line.kind == "step" and term in told:
            since = max([told[term], *(end for _, end in frozen[line.process] if end <= line.at)])
            if line.at > since + NOTICE and not any(start <= line.at <= end for start, end in frozen[line.process]):
                yield (
                    line.at,
                    f"{line.process} works on, {line.at - told.pop(term):.3f} s after it lost term {line.token}",
                )


def _wrong_effects(
    lines: Sequence[Line], rows: Sequence[tuple[int, int]], in_order: bool
) -> Iterator[tuple[float, str]]:
    """Nothing of an older term is committed once a newer has begun; what was acknowledged is there, and no more."""
    end, there, tokens = lines[-1].at, set(rows), sorted(token for token, _ in rows)
    if len(there) != len(rows):
        yield end, "an effect is there twice"
    if in_order and tokens != [token for token, _ in rows]:
        yield end, "a row of an older term comes after one of a newer"
    for line in lines:
        if line.token is None or "n" not in line.facts:
            continue
        effect = line.token, line.facts["n"]
        if line.kind == "committed" and effect not in there:
            yield line.at, f"{line.process}: the acknowledged commit {effect} is not there"
        if line.kind == "refused" and effect in there:
            yield line.at, f"{line.process}: the refused commit {effect} is there"
        if (inherited := line.facts.get("inherited")) is not None:
            older = bisect_left(tokens, line.token)
            if older != inherited:
                found = f"term {line.token} found {inherited} effects of older terms when it began"
                yield line.at, f"{found}, in the end there are {older}"
