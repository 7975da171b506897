"""Turns a batch of the leader into statements: those of its transaction, in their order, after the fence.

Rows that share all but their job are written by one statement: ticks that fall due together cost a few statements,
however many jobs there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from aiolease.stores.records import AHEAD, Batch, Change, JobDefinition, RunRecord, RunStatus, TermKey, kept
from aiolease.stores.sql.dialect import Dialect
from aiolease.stores.sql.ledger import THIS_JOB
from aiolease.stores.sql.statement import Statement, Step

T = TypeVar("T")

AT_ONCE = 1000
"""How many rows one statement names."""

_THESE_JOBS = "lease = :lease AND job IN ([:job])"
_STATUSES: tuple[RunStatus, ...] = ("queued", "running", "succeeded", "failed", "lost", "skipped")


class Recording:
    """The statements for batches and for new jobs, in the dialect of one database."""

    def __init__(self, dialect: Dialect) -> None:
        job, run, now, by_key = dialect.table("job"), dialect.table("run"), dialect.now, dialect.index("key")
        started = {"running": f", started_at = {now}", "queued": ", started_at = NULL, finished_at = NULL"}
        self._change = {
            (status, adopt): Statement(
                # By the key, whatever else is in the table: a scan would lock the rows of other leases.
                f"UPDATE {run} {by_key} SET status = :status, attempt = :new_attempt, error = :error"
                f"{started.get(status, f', finished_at = {now}')}"
                f"{', token = :new_token, holder = :new_holder' if adopt else ''} "
                f"WHERE {_THESE_JOBS} AND tick = :tick AND status = :was AND token = :token AND attempt = :attempt"
            )
            for status in _STATUSES
            for adopt in (True, False)
        }
        moments = {"running": f"{now}, NULL", "skipped": f"NULL, {now}"}
        self._claim = {
            status: Statement(
                f"INSERT INTO {run} (lease, job, tick, attempt, token, holder, status, started_at, finished_at, error, "
                f"tick_from, {dialect.count}) VALUES [(:lease, :job, :tick, :attempt, :token, :holder, :status, "
                f"{moments.get(status, 'NULL, NULL')}, :error, :tick_from, :count)]"
            )
            for status in _STATUSES
        }
        self._extend = Statement(
            f"UPDATE {run} {by_key} SET tick = :tick, {dialect.count} = COALESCE({dialect.count}, 1) + :count, "
            f"token = :token, holder = :holder, finished_at = {now} "
            f"WHERE {_THESE_JOBS} AND tick = :before AND status = 'skipped'"
        )
        raised = (
            f"UPDATE {job} {by_key} SET high_tick = :tick WHERE {_THESE_JOBS} "
            "AND (high_tick IS NULL OR high_tick < :tick) AND paused_at IS NULL "
            f"AND :tick <= {dialect.later(str(AHEAD * 1_000_000))}"
        )
        self._raise = Statement(raised)
        self._raise_if_seen = Statement(f"{raised} AND {dialect.same('high_tick', ':seen')}")
        self._clear_request = Statement(
            f"UPDATE {job} SET requested_at = NULL WHERE {THIS_JOB} AND requested_at = :requested_at"
        )
        self._enroll = Statement(
            f"INSERT INTO {job} (lease, job, schedule, timezone, known_since, schedule_since) "
            f"VALUES (:lease, :job, :schedule, :timezone, {now}, {now}) ON CONFLICT (lease, job) DO UPDATE "
            f"SET schedule = excluded.schedule, timezone = excluded.timezone, schedule_since = COALESCE(:since, {now}) "
            f"WHERE {job}.schedule <> excluded.schedule OR {job}.timezone <> excluded.timezone"
        )

    def enrolling(self, term: TermKey, jobs: Iterable[JobDefinition]) -> Iterator[Step]:
        """Inserts the rows of new jobs, and writes changed schedules into existing rows."""
        for job in jobs:
            values = {"lease": term.name, "job": job.job, "schedule": job.schedule, "timezone": job.timezone}
            yield Step(self._enroll, {**values, "since": job.since})

    def recording(self, term: TermKey, batch: Batch) -> Iterator[Step]:
        """Writes a batch. Changes come before claims: a run may have to end before the next one of its job begins."""
        yield from self._changing(term, batch)
        yield from self._claiming(term, batch)
        yield from self._extending(term, batch)
        yield from self._raising(term, batch)
        for job, requested_at in batch.requests.items():
            values = {"lease": term.name, "job": job, "requested_at": requested_at}
            yield Step(self._clear_request, values, changes=1)

    def _changing(self, term: TermKey, batch: Batch) -> Iterator[Step]:
        for change, jobs in _alike(batch.changes):
            values = {
                "lease": term.name,
                "tick": change.key.tick,
                "attempt": change.key.attempt,
                "token": change.key.token,
                "was": change.was,
                "status": change.status,
                "new_attempt": change.attempt,
                "new_token": term.token,
                "new_holder": term.holder,
                "error": kept(change.error),
            }
            statement = self._change[change.status, change.adopt]
            yield from _for_jobs(statement, values, jobs, checked=change.required)

    def _claiming(self, term: TermKey, batch: Batch) -> Iterator[Step]:
        by_status: defaultdict[RunStatus, list[RunRecord]] = defaultdict(list)
        for run in batch.claims:
            if (run.job, run.tick) not in batch.extends:
                by_status[run.status].append(run)
        values = {"lease": term.name, "token": term.token, "holder": term.holder}
        for status, runs in by_status.items():
            for some in cut(runs):
                rows = [
                    {
                        "job": run.job,
                        "tick": run.tick,
                        "attempt": run.attempt,
                        "error": kept(run.error),
                        "tick_from": run.tick_from,
                        "count": run.count,
                    }
                    for run in some
                ]
                yield Step(self._claim[status], {**values, "status": status}, rows, changes=len(rows))

    def _extending(self, term: TermKey, batch: Batch) -> Iterator[Step]:
        alike = defaultdict(list)
        for run in batch.claims:
            if (before := batch.extends.get((run.job, run.tick))) is not None:
                alike[before, run.tick, run.count or 1].append(run.job)
        for (before, tick, count), jobs in alike.items():
            values = {"before": before, "tick": tick, "count": count}
            of_term = {"lease": term.name, "token": term.token, "holder": term.holder}
            yield from _for_jobs(self._extend, values | of_term, jobs)

    def _raising(self, term: TermKey, batch: Batch) -> Iterator[Step]:
        alike = defaultdict(list)
        for job, tick in batch.high_ticks.items():
            alike[tick, job in batch.seen, batch.seen.get(job)].append(job)
        for (tick, compared, seen), jobs in alike.items():
            values = {"lease": term.name, "tick": tick, "seen": seen}
            yield from _for_jobs(self._raise_if_seen if compared else self._raise, values, jobs)


def _for_jobs(
    statement: Statement, values: dict[str, object], jobs: Sequence[str], *, checked: bool = True
) -> Iterator[Step]:
    for some in cut(jobs):
        yield Step(statement, values, [{"job": job} for job in some], changes=len(some) if checked else None)


def _alike(changes: Iterable[Change]) -> Iterator[tuple[Change, list[str]]]:
    """Groups changes that differ in their job only."""
    found: defaultdict[tuple[object, ...], list[Change]] = defaultdict(list)
    for change in changes:
        key = change.key
        found[
            key.tick, key.attempt, key.token, change.was, change.status, change.attempt, change.adopt, change.error,
            change.required,
        ].append(change)  # fmt: skip
    for group in found.values():
        yield group[0], [change.key.job for change in group]


def cut(rows: Sequence[T], size: int = AT_ONCE) -> Iterator[Sequence[T]]:
    """Cuts rows into parts that are small enough for one statement."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
