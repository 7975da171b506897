"""The ledger of one lease in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from aiolease.stores.batch import Batch, JobDefinition, LedgerReading
from aiolease.stores.memory.requests import Requests
from aiolease.stores.memory.writing import Writing
from aiolease.stores.records import JobRecord, RunRecord, TermKey
from aiolease.stores.seen import MOST_FAILURES, JobSeen, Overview

_UNFINISHED = {"queued", "running"}


class Ledger(Requests):
    """What a leader reads and writes of one lease: see `LedgerStore`."""

    def stock(self, now: datetime, *, attention: bool, runs: bool = True, counted: bool = False) -> LedgerReading:
        """See `LedgerStore.take_stock`."""
        if attention:
            jobs = [job for job in self.jobs.values() if _needs_attention(job)]
            return LedgerReading(jobs={job.job: job for job in jobs}, unfinished=[], now=now, pause=self.whole)
        read = {"running"} if counted else {"queued", "running"}
        unfinished = [run for run in self.runs.every() if runs and run.status in read]
        unfinished.sort(key=lambda run: (run.tick, run.job))
        waiting = [run for run in self.runs.every() if counted and run.status == "queued"]
        return LedgerReading(
            jobs=dict(self.jobs),
            unfinished=unfinished,
            now=now,
            queued=dict(Counter(run.job for run in waiting if run.not_before is None)),
            later=dict(Counter(run.job for run in waiting if run.not_before is not None)),
            pause=self.whole,
        )

    def queued(self, jobs: Sequence[str], limit: int) -> tuple[list[RunRecord], dict[str, str]]:
        """See `LedgerStore.queued`."""
        found: dict[str, list[RunRecord]] = {job: [] for job in jobs}
        rows = (run for job in found for run in self.runs.of(job).values())
        queued = [run for run in rows if run.status == "queued" and run.not_before is None]
        for run in sorted(queued, key=lambda run: run.tick):
            if len(found[run.job]) < limit:
                found[run.job].append(run)
        return sorted((run for runs in found.values() for run in runs), key=lambda run: (run.tick, run.job)), {}

    def enroll(self, jobs: Sequence[JobDefinition], now: datetime) -> None:
        """See `LedgerStore.enroll`."""
        for job in jobs:
            known = self.jobs.get(job.job)
            if known is None or (known.schedule, known.timezone) != (job.schedule, job.timezone):
                new = JobRecord(
                    job=job.job, schedule=job.schedule, timezone=job.timezone, known_since=now, schedule_since=now
                )
                self.jobs[job.job] = (
                    new
                    if known is None
                    else replace(known, schedule=job.schedule, timezone=job.timezone, schedule_since=job.since or now)
                )

    def later(self, limit: int) -> tuple[list[RunRecord], dict[str, str]]:
        """See `LedgerStore.later`."""
        found = [(run.not_before, run.job, run.tick) for run in self.runs.every() if run.status == "queued"]
        ready = sorted((moment, job, tick) for moment, job, tick in found if moment is not None)
        return [self.runs[job, tick] for _, job, tick in ready[:limit]], {}

    def have(self, term: TermKey, jobs: Sequence[str]) -> None:
        """See `LedgerStore.have`."""
        for job in set(jobs) & set(self.jobs):
            self.jobs[job] = replace(self.jobs[job], token=term.token)

    def overview(self, jobs: Sequence[str] | None, now: datetime) -> Overview:
        """See `LedgerStore.overview`."""
        asked = sorted(self.jobs if jobs is None else set(jobs) & set(self.jobs))
        seen = {job: self._seen(job, self.history(job)) for job in asked}
        return Overview(jobs=seen, now=now, pause=self.whole, unreadable={})

    def _seen(self, job: str, rows: Sequence[RunRecord]) -> JobSeen:
        ended = [run for run in rows if run.status in {"succeeded", "failed", "lost"}]
        succeeded = [run for run in ended if run.status == "succeeded"]
        failures = [run for run in ended if not succeeded or run.tick > succeeded[-1].tick]
        return JobSeen(
            record=self.jobs[job],
            last=ended[-1] if ended else None,
            last_success=succeeded[-1].finished_at if succeeded else None,
            failures=min(len(failures), MOST_FAILURES),
            running=sum(run.status == "running" for run in rows),
            queued=sum(run.status == "queued" for run in rows),
        )

    def record(self, term: TermKey, batch: Batch, now: datetime) -> None:
        """See `LedgerStore.record`: writes beside the rows first, so that a batch which is refused leaves nothing."""
        writing = Writing(self, term, now)
        writing.take(batch)
        writing.keep()

    def prune(self, jobs: Sequence[str], keep: int) -> list[str]:
        """See `LedgerStore.prune`."""
        for job in jobs:
            rows = self.of(job)
            ended = sorted(tick for tick, run in rows.of(job).items() if run.status not in _UNFINISHED)
            skipped = [tick for tick in ended if rows[job, tick].status == "skipped"]
            run = [tick for tick in ended if rows[job, tick].status != "skipped"]
            success = max((tick for tick in run if rows[job, tick].status == "succeeded"), default=None)
            for ticks in run, skipped:
                for tick in ticks[: max(len(ticks) - keep, 0)]:
                    if tick != success:
                        del rows[job, tick]
        return []


def _needs_attention(job: JobRecord) -> bool:
    moments = (job.requested_at, job.paused_at, job.resumed_at, job.asked_at, job.cancel_at, job.backfill_since)
    return any(moment is not None for moment in moments)
