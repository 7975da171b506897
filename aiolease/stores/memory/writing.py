"""What a leader's batch makes of the rows of one lease in memory."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import MutableMapping
from dataclasses import replace
from datetime import datetime, timedelta

from aiolease.stores.batch import Again, Batch, Change
from aiolease.stores.contract import Refused
from aiolease.stores.memory.requests import with_line
from aiolease.stores.memory.tables import Tables
from aiolease.stores.records import AHEAD, JobRecord, Place, RunRecord, TermKey, kept
from aiolease.stores.seen import TERMS


class Writing:
    """Writes a batch beside the rows, so that one which is refused leaves nothing."""

    def __init__(self, tables: Tables, term: TermKey, now: datetime) -> None:
        self._tables = tables
        self._term = term
        self._now = now
        self._jobs = ChainMap[str, JobRecord]({}, tables.jobs)
        self._runs = ChainMap[Place, RunRecord]({}, tables.runs)
        self._terms = ChainMap[Place, RunRecord]({}, tables.terms)
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
        self._tables.jobs.update(self._jobs.maps[0])
        self._tables.runs.update(self._runs.maps[0])
        self._tables.terms.update(self._terms.maps[0])
        for place in self._gone:
            del self._tables.runs[place]

    def _of(self, job: str) -> MutableMapping[Place, RunRecord]:
        return self._terms if job == TERMS else self._runs

    def _job(self, name: str) -> JobRecord:
        if name not in self._jobs:
            raise Refused
        return self._jobs[name]

    def _see_to(self, batch: Batch) -> None:
        """What was asked of jobs."""
        for name, requested_at in batch.requests.items():
            if self._job(name).requested_at != requested_at:
                raise Refused
            self._jobs[name] = replace(self._job(name), requested_at=None)
        for name, backfilled in batch.backfills.items():
            job = self._job(name)
            if job.backfill_since != backfilled.seen:
                raise Refused
            until = None if backfilled.since is None else job.backfill_until
            self._jobs[name] = replace(job, backfill_since=backfilled.since, backfill_until=until)
        for name, cancel_at in batch.cancels.items():
            if name in self._jobs and self._jobs[name].cancel_at == cancel_at:
                self._jobs[name] = replace(self._jobs[name], cancel_at=None)
        for name, asked_at in batch.asked.items():
            if name in self._jobs and self._jobs[name].asked_at == asked_at:
                self._jobs[name] = replace(self._jobs[name], asked_at=None)

    def _claim(self, run: RunRecord, before: datetime | None) -> None:
        rows, now = self._of(run.job), self._now
        if (run.job, run.tick) in rows:
            raise Refused
        if before is not None:
            row = rows.get((run.job, before))
            if row is None or row.status != "skipped":
                raise Refused
            self._gone.add((run.job, before))
            run = replace(run, tick_from=row.tick_from, count=(row.count or 1) + (run.count or 1))
        rows[run.job, run.tick] = replace(
            run,
            token=self._term.token,
            holder=self._term.holder,
            error=kept(run.error),
            started_at=now if run.status == "running" else None,
            finished_at=now if run.status == "skipped" else None,
        )

    def _raise(self, name: str, tick: datetime, seen: dict[str, datetime | None]) -> None:
        job, now = self._job(name), self._now
        if job.is_paused(now) or (job.high_tick and job.high_tick >= tick):
            raise Refused
        if tick > now + timedelta(seconds=AHEAD) or job.high_tick != seen.get(name, job.high_tick):
            raise Refused
        self._jobs[name] = replace(job, high_tick=tick)


def _change(rows: MutableMapping[Place, RunRecord], term: TermKey, change: Change, now: datetime) -> None:
    key = change.key
    run = rows.get((key.job, key.tick))
    if run is None or (run.status, run.token, run.attempt) != (change.was, key.token, key.attempt):
        if change.required:
            raise Refused
        return
    changed = replace(
        run,
        status=change.status,
        attempt=change.attempt,
        token=term.token if change.adopt else run.token,
        holder=term.holder if change.adopt else run.holder,
        error=kept(change.error),
        not_before=None,
    )
    if change.status == "queued":
        again = change.again or Again()
        changed = replace(
            changed,
            started_at=None,
            finished_at=None,
            tick_from=None,
            count=None,
            not_before=again.not_before,
            failures=run.failures + again.failed,
            uncounted=run.uncounted + again.uncounted,
            request=again.request or run.request,
            earlier=with_line(run.earlier, again.line),
        )
    elif change.status == "running":
        changed = replace(changed, started_at=now)
    else:
        changed = replace(changed, finished_at=now)
    rows[key.job, key.tick] = changed
