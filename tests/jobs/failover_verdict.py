"""What the ledger, the journal and the effects of a fleet must be: reckoned by arithmetic."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from aiolease.stores.records import JobRecord, RunRecord
from tests.jobs.failover_worker import GRIDS, micros

RERUN = {"again", "effect", "fenced", "one", "beside", "newest", "own"}
FINAL = RERUN - {"again"}
ALLOW = {"again", "beside", "own"}


NEWER, NOT_ENDED, NOBODY = "a newer one was due as well", "its last run has not ended", "nobody led when they fell due"
# Why ticks of a job may be skipped, by its policies.
REASONS = {
    **dict.fromkeys(("quick", "second", "slow", "shaky", "newest", "often"), (NEWER, NOT_ENDED)),
    **dict.fromkeys(("steady", "effect", "fenced", "one"), (NOT_ENDED,)),
    **dict.fromkeys(("beside", "own"), ()),
    "again": (NEWER,),
    "thread": (NEWER, NOT_ENDED, NOBODY),
}


def wrong_grid(job: str, rows: list[RunRecord], known: JobRecord) -> Iterator[str]:
    """Every tick of the grid is there exactly once: of its own, or in one range that was skipped."""
    step = round(GRIDS[job] * 1_000_000)
    end = micros(known.known_since) // step * step
    for number, row in enumerate(rows):
        last = micros(row.tick)
        first = last if row.tick_from is None else micros(row.tick_from)
        if first % step or last % step or first > last:
            yield f"not on the grid: {row}"
        if first != end + step:
            yield f"ticks are {'missing' if first > end + step else 'there twice'} behind {moment(end)}: {row}"
        end = last
        if row.status == "skipped":
            if row.count != (last - first) // step + 1 or row.tick_from is None:
                yield f"the count is wrong: {row}"
            if row.error not in REASONS[job]:
                yield f"no reason to skip: {row}"
            if row.error == NEWER and (number + 1 == len(rows) or rows[number + 1].status == "skipped"):
                yield f"the newer one has not been run: {row}"
        elif row.tick_from is not None or row.count is not None:
            yield f"a run of one tick is a range: {row}"
        if row.status in {"queued", "running"} or row.finished_at is None:
            yield f"unfinished: {row}"
        if row.status != "skipped" and row.started_at is None:
            yield f"never started: {row}"
    if not rows or known.high_tick != rows[-1].tick:
        yield f"the highest tick of {job} is {known.high_tick}, not that of {rows[-1:]}"


def wrong_runs(job: str, rows: list[RunRecord], lines: list[dict[str, Any]]) -> Iterator[str]:
    """No attempt begins twice, no tick does whose job is not to be run again, and the ledger tells how they ended."""
    begun = Counter((line["tick"], line["attempt"]) for line in lines if line["what"] == "begin")
    ends = {(line["tick"], line["attempt"]): line["how"] for line in lines if line["what"] == "end"}
    ticks = Counter(tick for tick, _ in begun.elements())
    yield from (f"{job} began {count} times: {attempt}" for attempt, count in begun.items() if count > 1)
    if job not in RERUN:
        yield from (f"{job} began {count} times: {moment(tick)}" for tick, count in ticks.items() if count > 1)
    by_tick = {micros(row.tick): row for row in rows if row.status != "skipped"}
    yield from (f"{job} ran, but was not to: {moment(tick)}" for tick in ticks if tick not in by_tick)
    for tick, row in by_tick.items():
        if (late := [attempt for at, attempt in begun if at == tick and attempt > row.attempt]) or row.attempt > 5:
            yield f"attempts {late} of {row}"
        how = ends.get((tick, row.attempt))
        if row.status in {"succeeded", "failed"} and not begun[tick, row.attempt]:
            yield f"never begun: {row}"
        if row.status == "succeeded" and job not in FINAL and how != "done":
            yield f"not succeeded, but {how}: {row}"
        if row.status == "failed" and (job != "shaky" or how != "ValueError"):
            yield f"not failed, but {how}: {row}"
        if row.status == "lost" and job in RERUN and row.attempt < 5:
            yield f"not run again: {row}"
        if row.attempt > 1 and job not in RERUN:
            yield f"run again: {row}"


def wrong_effects(rows: list[RunRecord], effects: dict[tuple[str, int], list[int]]) -> Iterator[str]:
    """What a run wrote with its final commit is there once, by the attempt that succeeded, if one did; else not."""
    for row in rows:
        there = effects.get((row.job, micros(row.tick)), [])
        if there != ([row.attempt] if row.status == "succeeded" else []):
            yield f"effects of attempts {there}: {row}"


def wrong_order(journal: list[dict[str, Any]], max_running: int, ordered: bool) -> Iterator[str]:
    """A process runs as many at once as it may, and one run of a job; a term begins nothing behind a newer one."""
    going_on: defaultdict[int, list[str]] = defaultdict(list)
    newest = 0
    for line in journal:
        jobs = going_on[line["pid"]]
        if line["what"] == "end":
            jobs.remove(line["job"])
            continue
        if max_running and len(jobs) >= max_running:
            yield f"beside {jobs}: {line}"
        if line["job"] in jobs and line["job"] not in ALLOW:
            yield f"beside itself: {line}"
        jobs.append(line["job"])
        if ordered and line["token"] < newest:
            yield f"behind term {newest}: {line}"
        newest = max(newest, line["token"])


def moment(tick: int) -> str:
    return f"{tick / 1_000_000:.3f}"
