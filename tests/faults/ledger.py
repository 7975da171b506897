"""The runs and the ledger of a run with real processes: what was found in the end, and what is wrong with it.

The audit is the simulation's. What it cannot know, since it is told no moment at which a statement took effect, is
shown here by an order that is certain: whoever writes down that it is about to send a statement sends it after that.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from aiolease.stores.records import JobRecord, RunRecord
from tests.faults.jobs import MAX_RUNNING, rules
from tests.faults.journal import Line
from tests.simulation.audit import Books, Rules, audit
from tests.simulation.checker import Run, Violation

Tick = tuple[str, str]
"""A job, and a tick as the journal writes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """An effect of a final transaction."""

    token: int
    job: str
    tick: str
    attempt: int


@dataclass(slots=True, kw_only=True)
class Found:
    """What is in the database in the end.

    Attributes:
        effects: Those of commits, as (token, n), in the order of their insertion.
        payments: Those of final transactions, in the same order.
        jobs: The ledger's rows of the jobs.
        runs: And of their runs.
        due_by: A moment by the database's clock, up to which everything due must have been claimed.
    """

    effects: Sequence[tuple[int, int]] = ()
    payments: Sequence[Payment] = ()
    jobs: Mapping[str, JobRecord] = field(default_factory=dict)
    runs: Sequence[RunRecord] = ()
    due_by: datetime | None = None


def run_of(line: Line) -> Run:
    """The run that a line is about."""
    return Run(line.facts["job"], datetime.fromisoformat(line.facts["tick"]), line.facts["attempt"])


def wrong_runs(lines: Sequence[Line], found: Found, *, steps: bool, in_order: bool) -> Iterator[tuple[float, str]]:
    """Whatever is wrong with the runs, the ledger and the effects of final transactions."""
    end = lines[-1].at
    begun, over = dict[Run, int](), dict[Run, str]()
    paid = dict[tuple[str, datetime], Payment]()
    for payment in found.payments:
        tick = payment.job, datetime.fromisoformat(payment.tick)
        if tick in paid:
            yield end, f"{payment} is the second of its tick: {paid[tick]}"
        paid[tick] = payment
    for line in lines:
        if line.kind == "begun" and line.token is not None:
            begun[run_of(line)] = line.token
        elif line.kind == "over":
            over[run_of(line)] = line.facts["how"]
    # They were paused for the end only, when nothing but what had been claimed was to be run.
    books = Books(jobs=found.jobs, runs=found.runs, begun=begun, over=over, paid=paid)
    try:
        audit(books, _meddled(rules(steps=steps), lines), now=found.due_by)
    except Violation as violation:
        yield end, str(violation)
    left = [row for row in found.runs if row.status in {"queued", "running"}]
    if left:
        first = f"{Run(left[0].job, left[0].tick, left[0].attempt)} is {left[0].status}"
        yield end, f"{len(left)} runs have not ended, but it has been waited for their end: {first}"
    yield from _wrong_payments(lines, found, in_order)
    yield from _written_too_late(lines, found)
    yield from _too_many(lines)


def _meddled(of_jobs: Mapping[str, Rules], lines: Sequence[Line]) -> Mapping[str, Rules]:
    """The rules, but for what a person has made due again."""
    spans = defaultdict(list)
    for line in lines:
        if line.kind == "meddled":
            moments = datetime.fromisoformat(line.facts["since"]), datetime.fromisoformat(line.facts["until"])
            spans[line.facts["job"]].append(moments)
    return {job: replace(rule, meddled=spans[job]) for job, rule in of_jobs.items()}


def _wrong_payments(lines: Sequence[Line], found: Found, in_order: bool) -> Iterator[tuple[float, str]]:
    """What was acknowledged is there, what was refused is not, and nothing of an older term behind a newer."""
    end = lines[-1].at
    tokens = [payment.token for payment in found.payments]
    if in_order and tokens != sorted(tokens):
        yield end, "a payment of an older term comes after one of a newer"
    there = Counter((payment.job, payment.tick, payment.attempt) for payment in found.payments)
    doubted = set()
    for line in lines:
        if line.kind not in {"paid", "unpaid", "doubt"}:
            continue
        key = line.facts["job"], line.facts["tick"], line.facts["attempt"]
        if line.kind == "doubt":
            doubted.add(key)
        if line.kind == "paid" and not there[key]:
            yield line.at, f"{line.process}: the acknowledged payment of {run_of(line)} is not there"
        if line.kind == "unpaid" and there[key] and key not in doubted:
            yield line.at, f"{line.process}: the refused payment of {run_of(line)} is there"


def _written_too_late(lines: Sequence[Line], found: Found) -> Iterator[tuple[float, str]]:
    """Every claim and every payment that is there was sent by a term before a newer one had begun.

    A statement is written down before it is sent, and a body after its claim took effect: so there is no doubt about
    one that was written down behind the beginning of a newer body.
    """
    newest, claimed, paying = 0, set[Tick](), set[tuple[str, str, int]]()
    late = dict[object, Line]()
    for line in lines:
        token = line.token or 0
        if line.kind == "began":
            newest = max(newest, token)
        elif line.kind == "recording" and token < newest:
            late.update(dict.fromkeys(((job, tick) for job, tick in line.facts["claims"]), line))
        elif line.kind == "recording":
            claimed.update((job, tick) for job, tick in line.facts["claims"])
        elif line.kind == "paying":
            key = line.facts["job"], line.facts["tick"], line.facts["attempt"]
            if token < newest:
                late[key] = line
            else:
                paying.add(key)
    end = lines[-1].at
    for row in found.runs:
        tick = row.job, row.tick.isoformat()
        if tick not in claimed:
            at, by = (late[tick].at, late[tick]) if tick in late else (end, "nobody")
            yield at, f"{row.job} {row.tick:%H:%M:%S.%f} was claimed, but by no term before a newer had begun: {by}"
    for payment in found.payments:
        key = payment.job, payment.tick, payment.attempt
        if key not in paying:
            at, by = (late[key].at, late[key]) if key in late else (end, "nobody")
            yield at, f"{payment} is there, but no term sent it before a newer had begun: {by}"


def _too_many(lines: Sequence[Line]) -> Iterator[tuple[float, str]]:
    """No more runs go on at once in a process than may."""
    going_on: defaultdict[str, int] = defaultdict(int)
    for line in lines:
        if line.kind == "began":
            going_on[line.process] = 0
        elif line.kind == "over":
            going_on[line.process] -= 1
        elif line.kind == "begun":
            going_on[line.process] += 1
            if going_on[line.process] > MAX_RUNNING:
                yield line.at, f"{line.process} runs {going_on[line.process]} at once"
