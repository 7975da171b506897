"""Turns a batch of the leader into statements: those of its transaction, in their order, after the fence.

Rows that share all but their job are written by one statement: ticks that fall due together cost a few statements,
however many jobs there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from aiolease.stores.batch import Batch, Change, JobDefinition
from aiolease.stores.records import AHEAD, MAX_EARLIER, RunRecord, RunStatus, TermKey, kept, kept_line
from aiolease.stores.sql.dialect import Dialect
from aiolease.stores.sql.ledger import THIS_JOB
from aiolease.stores.sql.statement import Statement, Step

T = TypeVar("T")

AT_ONCE = 1000
"""How many rows one statement names."""

_THESE_JOBS = "lease = :lease AND job IN ([:job])"
_STATUSES: tuple[RunStatus, ...] = ("queued", "running", "succeeded", "failed", "lost", "skipped")


class Enrolling:
    """The statement for new jobs and for changed schedules, in the dialect of one database."""

    def __init__(self, dialect: Dialect) -> None:
        job, now = dialect.table("job"), dialect.now
        self._enroll = Statement(
            f"INSERT INTO {job} (lease, job, schedule, timezone, known_since, schedule_since) "
            f"VALUES (:lease, :job, :schedule, :timezone, {now}, {now}) ON CONFLICT (lease, job) DO UPDATE "
            f"SET schedule = excluded.schedule, timezone = excluded.timezone, schedule_since = COALESCE(:since, {now}) "
            f"WHERE {job}.schedule <> excluded.schedule OR {job}.timezone <> excluded.timezone"
        )

    def steps(self, term: TermKey, jobs: Iterable[JobDefinition]) -> Iterator[Step]:
        """Inserts the rows of new jobs, and writes changed schedules into existing rows."""
        for job in jobs:
            values = {"lease": term.name, "job": job.job, "schedule": job.schedule, "timezone": job.timezone}
            yield Step(self._enroll, {**values, "since": job.since})


class Recording:
    """The statements for batches, in the dialect of one database."""

    def __init__(self, dialect: Dialect) -> None:
        job, run, now, by_key = dialect.table("job"), dialect.table("run"), dialect.now, dialect.index("key")
        both = (True, False)
        self._change = {
            (status, adopt): _changing(dialect, status, adopt=adopt) for status in _STATUSES for adopt in both
        }
        self._again = {adopt: _changing(dialect, "queued", adopt=adopt, again=True) for adopt in both}
        self._claim = {
            (status, asked): _claiming(dialect, status, asked=asked) for status in _STATUSES for asked in both
        }
        self._trim = Statement(
            f"UPDATE {run} {by_key} SET tick_from = :tick_from, {dialect.count} = :count "
            f"WHERE {THIS_JOB} AND tick = :tick AND status = 'skipped' AND COALESCE({dialect.count}, 1) > :count"
        )
        self._extend = Statement(
            f"UPDATE {run} {by_key} SET tick = :tick, {dialect.count} = COALESCE({dialect.count}, 1) + :count, "
            f"token = :token, holder = :holder, finished_at = {now} "
            f"WHERE {_THESE_JOBS} AND tick = :before AND status = 'skipped'"
        )
        raised = (
            f"UPDATE {job} {by_key} SET high_tick = :tick WHERE {_THESE_JOBS} "
            "AND (high_tick IS NULL OR high_tick < :tick) "
            f"AND (paused_at IS NULL OR paused_until <= {now}) "
            f"AND :tick <= {dialect.later(str(AHEAD * 1_000_000))}"
        )
        self._raise = Statement(raised)
        self._raise_if_seen = Statement(f"{raised} AND {dialect.same('high_tick', ':seen')}")
        self._clear_request = Statement(
            f"UPDATE {job} SET requested_at = NULL WHERE {THIS_JOB} AND requested_at = :requested_at"
        )
        self._backfilled = Statement(
            f"UPDATE {job} SET backfill_since = :since WHERE {THIS_JOB} AND backfill_since = :seen"
        )
        self._all_backfilled = Statement(
            f"UPDATE {job} SET backfill_since = NULL, backfill_until = NULL WHERE {THIS_JOB} AND backfill_since = :seen"
        )
        self._clear_cancel = Statement(f"UPDATE {job} SET cancel_at = NULL WHERE {THIS_JOB} AND cancel_at = :moment")
        self._clear_asked = Statement(f"UPDATE {job} SET asked_at = NULL WHERE {THIS_JOB} AND asked_at = :moment")
        self._have = Statement(f"UPDATE {job} {by_key} SET token = :token WHERE {_THESE_JOBS}")
        # A leader of version 0.1.0 begins and ends runs without knowing of the column.
        self._tidy = Statement(
            f"UPDATE {run} {dialect.index('later')} SET not_before = NULL WHERE lease = :lease "
            "AND not_before IS NOT NULL AND status IN ('running', 'succeeded', 'failed', 'lost', 'skipped')"
        )
        self._tidies = bool(dialect.finished)

    def recording(self, term: TermKey, batch: Batch) -> Iterator[Step]:
        """Writes a batch. Changes come before claims: a run may have to end before the next one of its job begins."""
        yield from self._changing(term, batch)
        for (job, tick), trimmed in batch.trims.items():
            values = {"lease": term.name, "job": job, "tick": tick}
            yield Step(self._trim, {**values, "tick_from": trimmed.tick_from, "count": trimmed.count}, changes=1)
        yield from self._claiming(term, batch)
        yield from self._extending(term, batch)
        yield from self._raising(term, batch)
        yield from self._seeing_to(term, batch)

    def having(self, term: TermKey, jobs: Sequence[str]) -> Iterator[Step]:
        """Notes that the leader of a term has jobs; sets right what a leader of an older version left."""
        yield from _for_jobs(self._have, {"lease": term.name, "token": term.token}, jobs, checked=False)
        if self._tidies:
            yield Step(self._tidy, {"lease": term.name})

    def _seeing_to(self, term: TermKey, batch: Batch) -> Iterator[Step]:
        """What was asked of jobs."""
        for job, requested_at in batch.requests.items():
            values = {"lease": term.name, "job": job, "requested_at": requested_at}
            yield Step(self._clear_request, values, changes=1)
        for job, backfilled in batch.backfills.items():
            statement = self._all_backfilled if backfilled.since is None else self._backfilled
            moments = {"seen": backfilled.seen, "since": backfilled.since}
            yield Step(statement, {"lease": term.name, "job": job, **moments}, changes=1)
        for statement, moments_of in ((self._clear_cancel, batch.cancels), (self._clear_asked, batch.asked)):
            for job, moment in moments_of.items():
                yield Step(statement, {"lease": term.name, "job": job, "moment": moment})

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
            if change.status == "queued" and (again := change.again) is not None:
                statement = self._again[change.adopt]
                values |= {
                    "not_before": again.not_before,
                    "failed": int(again.failed),
                    "uncounted": int(again.uncounted),
                    "request": again.request,
                    "line": kept_line(again.line),
                }
            yield from _for_jobs(statement, values, jobs, checked=change.required)

    def _claiming(self, term: TermKey, batch: Batch) -> Iterator[Step]:
        alike: defaultdict[tuple[RunStatus, bool], list[RunRecord]] = defaultdict(list)
        for run in batch.claims:
            if (run.job, run.tick) not in batch.extends:
                alike[run.status, run.request is not None or run.not_before is not None].append(run)
        values = {"lease": term.name, "token": term.token, "holder": term.holder}
        for (status, asked), runs in alike.items():
            for some in cut(runs):
                rows = [
                    {
                        "job": run.job,
                        "tick": run.tick,
                        "attempt": run.attempt,
                        "error": kept(run.error),
                        "tick_from": run.tick_from,
                        "count": run.count,
                        "not_before": run.not_before,
                        "request": run.request,
                    }
                    for run in some
                ]
                yield Step(self._claim[status, asked], {**values, "status": status}, rows, changes=len(rows))

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


def _changing(dialect: Dialect, status: RunStatus, *, adopt: bool, again: bool = False) -> Statement:
    """Changes rows; those that are queued for a further attempt have more to write."""
    now = dialect.now
    started = {
        "running": f", started_at = {now}, not_before = NULL",
        "queued": f", started_at = NULL, finished_at = NULL, tick_from = NULL, {dialect.count} = NULL, not_before = ",
    }
    moments = started.get(status, f", finished_at = {now}, not_before = NULL")
    if again:
        moments += (
            ":not_before, failures = failures + :failed, uncounted = uncounted + :uncounted, "
            f"request = COALESCE(:request, request), earlier = {dialect.appended('earlier', ':line', MAX_EARLIER)}"
        )
    elif status == "queued":
        moments += "NULL"
    return Statement(
        # By the key, whatever else is in the table: a scan would lock the rows of other leases.
        f"UPDATE {dialect.table('run')} {dialect.index('key')} SET status = :status, attempt = :new_attempt, "
        f"error = :error{moments}{', token = :new_token, holder = :new_holder' if adopt else ''} "
        f"WHERE {_THESE_JOBS} AND tick = :tick AND status = :was AND token = :token AND attempt = :attempt"
    )


def _claiming(dialect: Dialect, status: RunStatus, *, asked: bool) -> Statement:
    """Makes rows; those that somebody asked for have two columns more, so that all others cost what they did."""
    moments = {"running": f"{dialect.now}, NULL", "skipped": f"NULL, {dialect.now}"}.get(status, "NULL, NULL")
    columns, values = (", not_before, request", ", :not_before, :request") if asked else ("", "")
    return Statement(
        f"INSERT INTO {dialect.table('run')} (lease, job, tick, attempt, token, holder, status, started_at, "
        f"finished_at, error, tick_from, {dialect.count}{columns}) VALUES [(:lease, :job, :tick, :attempt, :token, "
        f":holder, :status, {moments}, :error, :tick_from, :count{values})]"
    )


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
            change.required, change.again,
        ].append(change)  # fmt: skip
    for group in found.values():
        yield group[0], [change.key.job for change in group]


def cut(rows: Sequence[T], size: int = AT_ONCE) -> Iterator[Sequence[T]]:
    """Cuts rows into parts that are small enough for one statement."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
