"""The plan of one turn: what is written to the ledger, and which runs start once it is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from aiolease._jobs.due import Skip, is_by_hand
from aiolease._jobs.job import Job
from aiolease.stores.batch import Again, Batch, Change
from aiolease.stores.records import Place, Request, RunKey, RunRecord, RunStatus, TermKey


@dataclass(slots=True)
class Plan:
    """One batch for the ledger, and what follows once it is written.

    Attributes:
        term: The term that writes it.
        batch: What is written.
        pending: Its changes that come from `Unwritten`, not from this plan.
        waiting: The runs that waited their turn, and start.
        overdue: The runs that waited their turn, and are too old to start.
        claims: The rows that are made, each with its job, in the order of `Batch.claims`.
        skips: The ticks that are skipped, each with its job, in the order of their claims.
        threads: How many threads the starting runs need.
        series: By job, what becomes of its series of skipped ticks, step by step. ``None``: one of its ticks is run.
        taken: By job, how many of its waiting runs are in the plan.
        served: By job that gets a place, `JobState.served` before that.
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

    def claim_run(self, job: Job, tick: datetime, *, start: bool, request: Request | None = None) -> None:
        """Claims a tick that is run: at once, or queued."""
        status: Literal["running", "queued"] = "running" if start else "queued"
        term = self.term
        record = RunRecord(
            job=job.name, tick=tick, token=term.token, holder=term.holder, status=status, request=request
        )
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
        changed = {change.key.job for change in batch.changes} | {job.name for job, _ in self.claims}
        return changed | {*batch.high_ticks} | {*batch.backfills}

    def starting(self) -> dict[RunKey, Again | None]:
        """The runs that start once it is written, each with what it is queued again with if it does not begin."""
        token = self.term.token
        waiting = {run.begun_by(token): run.again for run in self.waiting}
        claimed = [RunKey(run.job, run.tick, 1, token) for _, run in self.claims if run.status == "running"]
        return waiting | dict.fromkeys(claimed)


@dataclass(slots=True, eq=False)
class Waiting:
    """A run that is claimed and waits its turn. The ledger calls it queued, or running if the claim's answer was lost.

    `token` is that of the term that claimed it: a run that an earlier term queued is taken over as it begins. For the
    others see `RunRecord`.
    """

    job: Job
    tick: datetime
    attempt: int
    token: int
    status: RunStatus = "queued"
    not_before: datetime | None = None
    failures: int = 0
    uncounted: int = 0
    request: Request | None = None
    had_succeeded: bool = False

    @property
    def place(self) -> Place:
        """Which run it is."""
        return self.job.name, self.tick

    @property
    def key(self) -> RunKey:
        """What the ledger knows it by."""
        return RunKey(self.job.name, self.tick, self.attempt, self.token)

    def begun_by(self, token: int) -> RunKey:
        """What the ledger knows it by once a term has begun it."""
        return RunKey(self.job.name, self.tick, self.attempt, token)

    @property
    def by_hand(self) -> bool:
        """True if it waits behind all that is due."""
        return is_by_hand(self.request)

    @property
    def again(self) -> Again | None:
        """What it is queued again with if it does not begin after all."""
        if self.not_before is None:
            return None
        return Again(not_before=self.not_before, request=self.request if self.by_hand else None)


def waiting_for(job: Job, run: RunRecord) -> Waiting:
    """A run of the ledger that waits its turn."""
    return Waiting(
        job, run.tick, run.attempt, run.token, run.status, run.not_before, run.failures, run.uncounted, run.request,
        run.had_succeeded,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Series:
    """Ticks of a job that were skipped one after another for one reason: one row that grows (DESIGN rule 48)."""

    first: datetime
    last: datetime
    count: int
    reason: str
    grown: bool = False
