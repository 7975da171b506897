"""The tables of jobs and of runs of one lease in memory."""

from __future__ import annotations

from collections.abc import MutableMapping
from datetime import datetime

from aiolease.stores.records import JobRecord, Place, RunRecord
from aiolease.stores.seen import TERMS


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
        self.runs: dict[Place, RunRecord] = {}
        self.terms: dict[Place, RunRecord] = {}
        self.whole: JobRecord | None = None

    def of(self, job: str) -> MutableMapping[Place, RunRecord]:
        """Where the rows of a job are."""
        return self.terms if job == TERMS else self.runs

    def history(self, job: str, limit: int | None = None) -> list[RunRecord]:
        """See `JobStore.history`; all rows by default."""
        found = sorted((run for run in self.runs.values() if run.job == job), key=lambda run: run.tick)
        return found if limit is None else found[-limit:]

    def rows_from(self, job: str, since: datetime, limit: int) -> list[RunRecord]:
        """See `LedgerStore.rows_from`."""
        return [run for run in self.history(job) if run.tick >= since][:limit]
