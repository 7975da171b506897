"""The tables of jobs and of runs of one lease in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from datetime import datetime
from itertools import chain
from types import MappingProxyType
from typing import final

from aiolease.stores.records import JobRecord, Place, RunRecord
from aiolease.stores.seen import TERMS

_NONE: Mapping[datetime, RunRecord] = MappingProxyType({})


@final
class Runs(MutableMapping[Place, RunRecord]):
    """Rows of runs by job and tick. Those of a job are together: what is asked of one job looks at no other rows."""

    __slots__ = ("_by_job",)

    def __init__(self) -> None:
        self._by_job: dict[str, dict[datetime, RunRecord]] = {}

    def of(self, job: str) -> Mapping[datetime, RunRecord]:
        """The rows of a job, by their ticks."""
        return self._by_job.get(job, _NONE)

    def every(self) -> Iterator[RunRecord]:
        """All rows, those of a job one after another."""
        return chain.from_iterable(rows.values() for rows in self._by_job.values())

    def find(self, place: Place) -> RunRecord | None:
        """The row of a job's tick; ``None`` if there is none."""
        job, tick = place
        rows = self._by_job.get(job)
        return None if rows is None else rows.get(tick)

    def __getitem__(self, place: Place) -> RunRecord:
        job, tick = place
        return self._by_job[job][tick]

    def __setitem__(self, place: Place, run: RunRecord) -> None:
        job, tick = place
        rows = self._by_job.get(job)
        if rows is None:
            rows = self._by_job[job] = {}
        rows[tick] = run

    def __delitem__(self, place: Place) -> None:
        job, tick = place
        rows = self._by_job[job]
        del rows[tick]
        if not rows:
            del self._by_job[job]

    def __iter__(self) -> Iterator[Place]:
        return ((job, tick) for job, rows in self._by_job.items() for tick in rows)

    def __len__(self) -> int:
        return sum(map(len, self._by_job.values()))


class Tables:
    """The rows of one lease.

    Attributes:
        jobs: By their names.
        runs: By their job and tick.
        terms: The rows of the terms in which jobs were run, by job and tick as well.
        whole: The row that keeps the pause of the whole lease; ``None`` if there never was one.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, JobRecord] = {}
        self.runs = Runs()
        self.terms = Runs()
        self.whole: JobRecord | None = None

    def of(self, job: str) -> Runs:
        """Where the rows of a job are."""
        return self.terms if job == TERMS else self.runs

    def history(self, job: str, limit: int | None = None) -> list[RunRecord]:
        """See `JobStore.history`; all rows by default."""
        found = sorted(self.runs.of(job).values(), key=lambda run: run.tick)
        return found if limit is None else found[-limit:]

    def rows_from(self, job: str, since: datetime, limit: int) -> list[RunRecord]:
        """See `LedgerStore.rows_from`."""
        found = sorted(self.of(job).of(job).values(), key=lambda run: run.tick)
        return [run for run in found if run.tick >= since][:limit]
