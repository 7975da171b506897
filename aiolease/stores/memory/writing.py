"""What a leader's batch makes of the rows of one lease in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Generic, TypeVar, final

from aiolease.stores.batch import Again, Batch, Change
from aiolease.stores.contract import Refused
from aiolease.stores.memory.requests import with_line
from aiolease.stores.memory.tables import Tables
from aiolease.stores.records import AHEAD, JobRecord, Place, RunRecord, TermKey, kept
from aiolease.stores.seen import TERMS

K = TypeVar("K")
R = TypeVar("R", JobRecord, RunRecord)


@final
class _Beside(Generic[K, R]):
    """The rows of a table as they become, if the batch is not refused: what is written so far, else what is there.

    Args:
        find: Finds a row that is there; ``None`` if there is none.

    Attributes:
        written: What is written so far.
    """

    __slots__ = ("_find", "written")

    def __init__(self, find: Callable[[K], R | None]) -> None:
        self.written: dict[K, R] = {}
        self._find: Callable[[K], R | None] = find

    def get(self, key: K) -> R | None:
        """A row; ``None`` if there is none."""
        row = self.written.get(key)
        return self._find(key) if row is None else row

    def __setitem__(self, key: K, row: R) -> None:
        self.written[key] = row


_Rows = _Beside[Place, RunRecord]


class Writing:
    """Writes a batch beside the rows, so that one which is refused leaves nothing."""

    def __init__(self, tables: Tables, term: TermKey, now: datetime) -> None:
        self._tables = tables
        self._term = term
        self._now = now
        self._latest = now + timedelta(seconds=AHEAD)
        self._jobs = _Beside(tables.jobs.get)
        self._runs = _Beside(tables.runs.find)
        self._terms = _Beside(tables.terms.find)
        self._gone = set[Place]()

    def take(self, batch: Batch) -> None:
        """Writes all of a batch.

        Raises:
            Refused: The rows are not as it takes them to be.
        """
        for change in batch.changes:
            _change(self._of(change.key.job), self._term, change, self._now)
        for place, trimmed in batch.trims.items():
            row = self._runs.get(place)
            if row is None or row.status != "skipped" or (row.count or 1) <= trimmed.count:
                raise Refused
            self._runs[place] = replace(row, tick_from=trimmed.tick_from, count=trimmed.count)
        for run in batch.claims:
            self._claim(run, batch.extends.get((run.job, run.tick)))
        for name, tick in batch.high_ticks.items():
            self._raise(name, tick, batch.seen)
        self._see_to(batch)

    def keep(self) -> None:
        """Writes over the rows that are there."""
        self._tables.jobs.update(self._jobs.written)
        for place, run in self._runs.written.items():
            self._tables.runs[place] = run
        for place, run in self._terms.written.items():
            self._tables.terms[place] = run
        for place in self._gone:
            del self._tables.runs[place]

    def _of(self, job: str) -> _Rows:
        return self._terms if job == TERMS else self._runs

    def _job(self, name: str) -> JobRecord:
        job = self._jobs.get(name)
        if job is None:
            raise Refused
        return job

    def _see_to(self, batch: Batch) -> None:
        """What was asked of jobs."""
        for name, requested_at in batch.requests.items():
            job = self._job(name)
            if job.requested_at != requested_at:
                raise Refused
            self._jobs[name] = replace(job, requested_at=None)
        for name, backfilled in batch.backfills.items():
            job = self._job(name)
            if job.backfill_since != backfilled.seen:
                raise Refused
            until = None if backfilled.since is None else job.backfill_until
            self._jobs[name] = replace(job, backfill_since=backfilled.since, backfill_until=until)
        for name, cancel_at in batch.cancels.items():
            if (known := self._jobs.get(name)) is not None and known.cancel_at == cancel_at:
                self._jobs[name] = replace(known, cancel_at=None)
        for name, asked_at in batch.asked.items():
            if (known := self._jobs.get(name)) is not None and known.asked_at == asked_at:
                self._jobs[name] = replace(known, asked_at=None)

    def _claim(self, run: RunRecord, before: datetime | None) -> None:
        rows, now = self._of(run.job), self._now
        place = run.job, run.tick
        if rows.get(place) is not None:
            raise Refused
        if before is not None:
            row = rows.get((run.job, before))
            if row is None or row.status != "skipped":
                raise Refused
            self._gone.add((run.job, before))
            run = replace(run, tick_from=row.tick_from, count=(row.count or 1) + (run.count or 1))
        values = {
            "token": self._term.token,
            "holder": self._term.holder,
            "error": kept(run.error),
            "started_at": now if run.status == "running" else None,
            "finished_at": now if run.status == "skipped" else None,
        }
        rows[place] = _changed(run, values)

    def _raise(self, name: str, tick: datetime, seen: dict[str, datetime | None]) -> None:
        job = self._job(name)
        if job.is_paused(self._now) or (job.high_tick and job.high_tick >= tick):
            raise Refused
        if tick > self._latest or job.high_tick != seen.get(name, job.high_tick):
            raise Refused
        self._jobs[name] = _changed(job, {"high_tick": tick})


def _change(rows: _Rows, term: TermKey, change: Change, now: datetime) -> None:
    key = change.key
    place = key.job, key.tick
    run = rows.get(place)
    if run is None or run.status != change.was or run.token != key.token or run.attempt != key.attempt:
        if change.required:
            raise Refused
        return
    values: dict[str, object] = {
        "status": change.status,
        "attempt": change.attempt,
        "error": kept(change.error),
        "not_before": None,
    }
    if change.adopt:
        values |= {"token": term.token, "holder": term.holder}
    if change.status == "queued":
        again = change.again or Again()
        values |= {
            "started_at": None,
            "finished_at": None,
            "tick_from": None,
            "count": None,
            "not_before": again.not_before,
            "failures": run.failures + again.failed,
            "uncounted": run.uncounted + again.uncounted,
            "request": again.request or run.request,
            "earlier": with_line(run.earlier, again.line),
        }
    else:
        values["started_at" if change.status == "running" else "finished_at"] = now
    rows[place] = _changed(run, values)


class _Slots:
    """The slots of a kind of record: reads all of them at once, and writes each, which a frozen record forbids."""

    def __init__(self, kind: type[JobRecord | RunRecord]) -> None:
        names = kind.__slots__
        self.places = {name: place for place, name in enumerate(names)}
        self.read: Callable[[object], tuple[object, ...]] = attrgetter(*names)
        self.writers: list[Callable[[object, object], None]] = [getattr(kind, name).__set__ for name in names]


_SLOTS: Mapping[type, _Slots] = {kind: _Slots(kind) for kind in (JobRecord, RunRecord)}


def _changed(record: R, values: Mapping[str, object]) -> R:
    """As `dataclasses.replace`, which takes many times as long: most that a run costs here would be that."""
    kind = type(record)
    slots: _Slots = _SLOTS[kind]
    row = [*slots.read(record)]
    for name, value in values.items():
        row[slots.places[name]] = value
    changed = object.__new__(kind)
    for write, value in zip(slots.writers, row, strict=True):
        write(changed, value)
    return changed
