"""The plan of one turn: what is written to the ledger, and which runs start once it is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from aiolease._jobs.due import Skip
from aiolease._jobs.job import Job
from aiolease.stores.batch import Batch, Change
from aiolease.stores.records import RunKey, RunRecord, RunStatus, TermKey


@dataclass(slots=True)
class Plan:
    """One batch for the ledger, and what follows once it is written.

    Attributes:
        term: The term that writes it.
        batch: What is written.
        pending: Those of its changes that were to be written anyhow.
        waiting: The runs that waited their turn, and start.
        overdue: The runs that waited their turn, and are too old to start.
        claims: The rows that are made, each with its job, in the order of `Batch.claims`.
        skips: The ticks that are skipped, each with its job, in the order of their claims.
        threads: How many threads the starting runs need.
        series: By job, what becomes of its series of skipped ticks, step by step. ``None``: one of its ticks is run.
        taken: By job, how many of its waiting runs are in the plan.
        served: By job that gets a place, when it got the place before.
    """

    term: TermKey
    batch: Batch = field(default_factory=Batch)
    pending: list[Change] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)
    overdue: list[Waiting] = field(default_factory=list)
    claims: list[tuple[Job, RunRecord]] = field(default_factory=list)
    skips: list[tuple[Job, Skip]] = field(default_factory=list)
    threads: int = 0
    series: dict[str, list[Series | None]] = field(default_factory=dict)
    taken: dict[str, int] = field(default_factory=dict)
    served: dict[str, int] = field(default_factory=dict)

    def claim_run(self, job: Job, tick: datetime, *, start: bool) -> None:
        """Claims a tick that is run: at once, or queued."""
        status: Literal["running", "queued"] = "running" if start else "queued"
        term = self.term
        record = RunRecord(job=job.name, tick=tick, token=term.token, holder=term.holder, status=status)
        self.claims.append((job, record))
        self.batch.claims.append(record)

    def claim_skip(self, job: Job, skip: Skip) -> None:
        """Claims ticks that are skipped together: one row."""
        record = RunRecord(
            job=job.name, tick=skip.last, token=self.term.token, holder=self.term.holder, status="skipped",
            error=skip.reason, tick_from=skip.first, count=skip.count,
        )  # fmt: skip
        self.claims.append((job, record))
        self.batch.claims.append(record)
        self.skips.append((job, skip))

    def settle(self, job: str, last: datetime, seen: datetime | None) -> None:
        """Moves a job's high tick to `last`, from the one that was seen."""
        self.batch.high_ticks[job] = last
        self.batch.seen[job] = seen

    def jobs(self) -> set[str]:
        """The jobs that it writes of."""
        batch = self.batch
        return {change.key.job for change in batch.changes} | {job.name for job, _ in self.claims} | {*batch.high_ticks}

    def starting(self) -> list[RunKey]:
        """The runs that start once it is written."""
        token = self.term.token
        waiting = [RunKey(run.job.name, run.tick, run.attempt, token) for run in self.waiting]
        return waiting + [RunKey(run.job, run.tick, 1, token) for _, run in self.claims if run.status == "running"]


@dataclass(slots=True, eq=False)
class Waiting:
    """A run that is claimed and waits its turn: queued in the ledger, or running there if its answer was lost.

    `token` is that of the term that claimed it: a run that an earlier term queued is taken over as it begins.
    """

    job: Job
    tick: datetime
    attempt: int
    token: int
    status: RunStatus = "queued"


@dataclass(frozen=True, slots=True)
class Series:
    """Ticks of a job that were skipped one after another for one reason: one row that grows (DESIGN rule 48)."""

    first: datetime
    last: datetime
    count: int
    reason: str
    grown: bool = False
