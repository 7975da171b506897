"""The ledger of one lease in memory."""

from __future__ import annotations

from collections import ChainMap, Counter, defaultdict
from collections.abc import MutableMapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from aiolease.errors import InvalidJob
from aiolease.stores.batch import Batch, Change, JobDefinition, LedgerReading
from aiolease.stores.contract import Refused
from aiolease.stores.records import AHEAD, SETTLED_BY_HAND, JobRecord, Place, RunRecord, TermKey, kept


class Ledger:
    """The rows of one lease in the tables of jobs and of runs.

    Attributes:
        jobs: By their names.
        runs: By their job and tick.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, JobRecord] = {}
        self.runs: dict[tuple[str, datetime], RunRecord] = {}

    def stock(self, now: datetime, *, attention: bool, runs: bool = True, counted: bool = False) -> LedgerReading:
        """See `LedgerStore.take_stock`."""
        if attention:
            jobs = [job for job in self.jobs.values() if job.requested_at or job.paused_at or job.resumed_at]
            return LedgerReading(jobs={job.job: job for job in jobs}, unfinished=[], now=now)
        read = {"running"} if counted else {"queued", "running"}
        unfinished = [run for run in self.runs.values() if runs and run.status in read]
        unfinished.sort(key=lambda run: (run.tick, run.job))
        queued = Counter(run.job for run in self.runs.values() if run.status == "queued") if counted else {}
        return LedgerReading(jobs=dict(self.jobs), unfinished=unfinished, now=now, queued=dict(queued))

    def queued(self, jobs: Sequence[str], limit: int) -> tuple[list[RunRecord], dict[str, str]]:
        """See `LedgerStore.queued`."""
        found: dict[str, list[RunRecord]] = {job: [] for job in jobs}
        queued = [run for run in self.runs.values() if run.status == "queued" and run.job in found]
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

    def record(self, term: TermKey, batch: Batch, now: datetime) -> None:
        """See `LedgerStore.record`: writes beside the rows first, so that a batch which is refused leaves nothing."""
        jobs, runs = ChainMap({}, self.jobs), ChainMap({}, self.runs)
        for change in batch.changes:
            _change(runs, term, change, now)
        gone = set[Place]()
        for run in batch.claims:
            if (run.job, run.tick) in runs:
                raise Refused
            if (before := batch.extends.get((run.job, run.tick))) is not None:
                row = runs.get((run.job, before))
                if row is None or row.status != "skipped":
                    raise Refused
                gone.add((run.job, before))
                run = replace(run, tick_from=row.tick_from, count=(row.count or 1) + (run.count or 1))  # noqa: PLW2901
            runs[run.job, run.tick] = replace(
                run,
                token=term.token,
                holder=term.holder,
                error=kept(run.error),
                started_at=now if run.status == "running" else None,
                finished_at=now if run.status == "skipped" else None,
            )
        for name, tick in batch.high_ticks.items():
            job = jobs.get(name)
            if job is None or job.paused_at or (job.high_tick and job.high_tick >= tick):
                raise Refused
            if tick > now + timedelta(seconds=AHEAD) or job.high_tick != batch.seen.get(name, job.high_tick):
                raise Refused
            jobs[name] = replace(job, high_tick=tick)
        for name, requested_at in batch.requests.items():
            job = jobs.get(name)
            if job is None or job.requested_at != requested_at:
                raise Refused
            jobs[name] = replace(job, requested_at=None)
        self.jobs.update(jobs.maps[0])
        self.runs.update(runs.maps[0])
        for place in gone:
            del self.runs[place]

    def prune(self, jobs: Sequence[str], keep: int) -> list[str]:
        """See `LedgerStore.prune`."""
        finished = defaultdict(list)
        succeeded: dict[str, datetime] = {}
        for run in self.runs.values():
            if run.status not in {"queued", "running"}:
                finished[run.job, run.status == "skipped"].append(run.tick)
            if run.status == "succeeded":
                succeeded[run.job] = max(run.tick, succeeded.get(run.job, run.tick))
        for job in jobs:
            for ticks in sorted(finished[job, False]), sorted(finished[job, True]):
                for tick in ticks[: max(len(ticks) - keep, 0)]:
                    if tick != succeeded.get(job):
                        del self.runs[job, tick]
        return []

    def history(self, job: str, limit: int | None = None) -> list[RunRecord]:
        """See `LedgerStore.history`; all rows by default."""
        found = sorted((run for run in self.runs.values() if run.job == job), key=lambda run: run.tick)
        return found if limit is None else found[-limit:]

    def settle(self, lease: str, job: str, now: datetime) -> None:
        """See `LedgerStore.settle`."""
        known = self._known(lease, job)
        self.jobs[job] = replace(
            known, known_since=now, schedule_since=now, resumed_at=now, high_tick=now, requested_at=None
        )
        for place, run in self.runs.items():
            if run.job == job and run.status in {"queued", "running"}:
                self.runs[place] = replace(run, status="lost", finished_at=now, error=SETTLED_BY_HAND)

    def trigger(self, lease: str, job: str, now: datetime) -> datetime:
        """See `LedgerStore.trigger`."""
        requested_at = self._known(lease, job).requested_at or now
        self.jobs[job] = replace(self.jobs[job], requested_at=requested_at)
        return requested_at

    def pause(self, lease: str, job: str, now: datetime) -> None:
        """See `LedgerStore.pause`."""
        known = self._known(lease, job)
        self.jobs[job] = replace(known, paused_at=known.paused_at or now)

    def resume(self, lease: str, job: str, now: datetime) -> None:
        """See `LedgerStore.resume`."""
        if (known := self._known(lease, job)).paused_at:
            self.jobs[job] = replace(known, paused_at=None, resumed_at=now)

    def _known(self, lease: str, job: str) -> JobRecord:
        if job not in self.jobs:
            raise InvalidJob(job, f"no leader of {lease!r} ever had such a job")
        return self.jobs[job]


def _change(
    runs: MutableMapping[tuple[str, datetime], RunRecord], term: TermKey, change: Change, now: datetime
) -> None:
    key = change.key
    run = runs.get((key.job, key.tick))
    if run is None or (run.status, run.token, run.attempt) != (change.was, key.token, key.attempt):
        if change.required:
            raise Refused
        return
    ended = change.status not in {"queued", "running"}
    runs[key.job, key.tick] = replace(
        run,
        status=change.status,
        attempt=change.attempt,
        token=term.token if change.adopt else run.token,
        holder=term.holder if change.adopt else run.holder,
        error=kept(change.error),
        started_at=now if change.status == "running" else None if change.status == "queued" else run.started_at,
        finished_at=now if ended else None if change.status == "queued" else run.finished_at,
    )
