"""What people ask of the jobs of one lease in memory."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from aiolease.errors import InvalidJob, RequestRefused
from aiolease.stores.asking import (
    another_backfill,
    checked_end,
    is_of_range,
    line_of,
    why_not_again,
    why_not_forgotten,
)
from aiolease.stores.memory.tables import Tables
from aiolease.stores.records import MAX_EARLIER, SETTLED_BY_HAND, JobRecord, Lease, RunRecord, kept_line
from aiolease.stores.seen import TERMS, WHOLE_LEASE, TermRecord


class Requests(Tables):
    """See `JobStore`; the moment is the database's clock."""

    def settle(self, lease: str, job: str, now: datetime) -> None:
        """See `JobStore.settle`."""
        known = self._known(lease, job)
        self.jobs[job] = replace(
            known,
            known_since=now,
            schedule_since=now,
            resumed_at=now,
            high_tick=now,
            requested_at=None,
            asked_at=None,
            cancel_at=None,
            backfill_since=None,
            backfill_until=None,
        )
        for run in self.runs.of(job).values():
            if run.status in {"queued", "running"}:
                row = replace(run, status="lost", finished_at=now, error=SETTLED_BY_HAND, not_before=None)
                self.runs[job, run.tick] = row

    def trigger(self, lease: str, job: str, now: datetime) -> datetime:
        """See `JobStore.trigger`."""
        requested_at = self._known(lease, job).requested_at or now
        self.jobs[job] = replace(self.jobs[job], requested_at=requested_at)
        return requested_at

    def pause(
        self,
        lease: str,
        job: str | None,
        now: datetime,
        *,
        until: datetime | None = None,
        note: str | None = None,
    ) -> None:
        """See `JobStore.pause`."""
        until = checked_end(until, now)
        if job is not None:
            known = self._known(lease, job)
            by_the_lease = self.whole is not None and known.paused_at == self.whole.paused_at
            since = known.paused_at if known.is_paused(now) and not by_the_lease else None
            self.jobs[job] = _paused(known, since or now, until, note, now)
            return
        whole = self.whole or JobRecord(job=WHOLE_LEASE, schedule="", timezone="", known_since=now, schedule_since=now)
        since = (whole.paused_at if whole.is_paused(now) else None) or now
        self.whole = _paused(whole, since, until, note, now)
        for known in list(self.jobs.values()):
            if known.paused_at == since or not known.is_paused(now):
                self.jobs[known.job] = _paused(known, since, until, note, now)

    def resume(self, lease: str, job: str | None, now: datetime) -> None:
        """See `JobStore.resume`."""
        whole = self.whole
        if job is not None:
            known = self._known(lease, job)
            held = whole is not None and whole.is_paused(now) and _is_paused_with(known, whole)
            if known.paused_at or held:
                self.jobs[job] = _resumed(known, now)
        elif whole is not None and whole.paused_at:
            for known in list(self.jobs.values()):
                if known.paused_at == whole.paused_at:
                    self.jobs[known.job] = _resumed(known, now)
                elif _is_paused_with(known, whole) and not known.is_paused(now):
                    ended = min(now, whole.paused_until or now)
                    self.jobs[known.job] = replace(known, resumed_at=ended)
            self.whole = _resumed(whole, now)

    def rerun(self, lease: str, job: str, tick: datetime, now: datetime, *, force: bool) -> None:
        """See `JobStore.rerun`."""
        known = self._known(lease, job)
        rows = self.rows_from(job, tick, 1)
        if rows and is_of_range(rows[0], tick):
            self.backfill(lease, job, tick, tick, now)
            return
        run = self.runs.get((job, tick))
        if (reason := why_not_again(run, force=force)) is not None:
            raise RequestRefused(lease, job, reason)
        assert run is not None
        began = run.status != "skipped"
        self.runs[job, tick] = replace(
            run,
            status="queued",
            attempt=run.attempt + 1 if began else run.attempt,
            failures=0,
            uncounted=run.attempt if began else 0,
            not_before=now,
            request="rerun",
            earlier=with_line(run.earlier, line_of(run)),
            started_at=None,
            finished_at=None,
            tick_from=None,
            count=None,
        )
        self.jobs[job] = replace(known, asked_at=now)

    def backfill(self, lease: str, job: str, since: datetime, until: datetime, now: datetime) -> None:
        """See `JobStore.backfill`."""
        known = self._known(lease, job)
        if known.backfill_since is None:
            self.jobs[job] = replace(known, backfill_since=since, backfill_until=until)
        elif (known.backfill_since, known.backfill_until) != (since, until):
            raise RequestRefused(lease, job, another_backfill(known.backfill_since, known.backfill_until))

    def cancel(self, lease: str, job: str, now: datetime) -> None:
        """See `JobStore.cancel`."""
        self.jobs[job] = replace(self._known(lease, job), cancel_at=now, backfill_since=None, backfill_until=None)

    def forget_job(self, lease: str, job: str, row: Lease | None) -> None:
        """See `JobStore.forget`."""
        known = self._known(lease, job)
        leader = None if row is None or row.free else row.token
        has_said = row is not None and (TERMS, row.elected_at) in self.terms
        if (reason := why_not_forgotten(known.token, leader, has_said=has_said)) is not None:
            raise RequestRefused(lease, job, reason)
        for tick in [*self.runs.of(job)]:
            del self.runs[job, tick]
        del self.jobs[job]

    def newest(self, *, failed: bool, since: datetime | None, limit: int) -> list[RunRecord]:
        """See `JobStore.runs`."""
        found = [run for run in self.runs.every() if since is None or run.tick >= since]
        found = [run for run in found if not failed or run.status in {"failed", "lost"}]
        return sorted(found, key=lambda run: (run.tick, run.job))[-limit:]

    def newest_terms(self, limit: int) -> list[TermRecord]:
        """See `JobStore.terms`."""
        found = sorted(self.terms.values(), key=lambda run: run.tick)[-limit:]
        return [TermRecord.of(run) for run in found]

    def _known(self, lease: str, job: str) -> JobRecord:
        if job not in self.jobs:
            raise InvalidJob(job, f"no leader of {lease!r} ever had such a job")
        return self.jobs[job]


def with_line(earlier: str | None, line: str | None) -> str | None:
    """Appends a line to `RunRecord.earlier`."""
    if not (line := kept_line(line)):
        return earlier
    return (line if earlier is None else f"{earlier}\n{line}")[-MAX_EARLIER:]


def _paused(known: JobRecord, since: datetime, until: datetime | None, note: str | None, now: datetime) -> JobRecord:
    """A job with a pause. Where one before it has ended by itself, its end stays known: nothing before is missed."""
    ended = known.paused_until if known.paused_at and not known.is_paused(now) else None
    return replace(known, resumed_at=ended or known.resumed_at, paused_at=since, paused_until=until, pause_note=note)


def _resumed(known: JobRecord, now: datetime) -> JobRecord:
    ended = min(now, known.paused_until) if known.paused_at and known.paused_until else now
    return replace(known, resumed_at=ended, paused_at=None, paused_until=None, pause_note=None)


def _is_paused_with(known: JobRecord, whole: JobRecord) -> bool:
    """Whether a job came, and was not resumed by itself, since all of its lease was paused."""
    since = whole.paused_at
    return since is not None and known.known_since >= since and (known.resumed_at is None or known.resumed_at < since)
