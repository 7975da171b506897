"""The ledger on a SQLite file: the part of its store that keeps jobs and runs."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from aiolease._names import check_name
from aiolease.errors import InvalidJob
from aiolease.stores.contract import FenceBroken, Refused
from aiolease.stores.records import (
    AHEAD,
    SETTLED_BY_HAND,
    Batch,
    Change,
    JobDefinition,
    JobRecord,
    LedgerReading,
    Place,
    RunRecord,
    TermKey,
    checked_limit,
    kept,
    read_each,
    readable,
    step_of,
    there,
)
from aiolease.stores.sqlite.transactions import microseconds, moment, transaction

T = TypeVar("T")

_JOB = "job, schedule, timezone, known_since, schedule_since, resumed_at, paused_at, high_tick, requested_at"
_RUN = "job, tick, attempt, token, holder, status, started_at, finished_at, error, tick_from, count"
_UNFINISHED = "('queued', 'running')"
_FINISHED = "('succeeded', 'failed', 'lost')"
_PRUNED_AT_ONCE = 1000


class SQLiteLedger:
    """What makes a store on SQLite a `LedgerStore`. Each method is one function in the store's thread."""

    description: str
    _now: Callable[[], int]
    _count_fence_sql: str

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        raise NotImplementedError

    def _make_ledger_statements(self, prefix: str) -> None:
        job, run = f'"{prefix}job"', f'"{prefix}run"'
        this_job = "lease = :lease AND job = :job"
        this_run = f"{this_job} AND tick = :tick AND attempt = :attempt AND token = :token"
        self._ledger_tables_sql = (
            (
                f"CREATE TABLE IF NOT EXISTS {job} (lease TEXT NOT NULL, job TEXT NOT NULL, schedule TEXT NOT NULL, "
                "timezone TEXT NOT NULL, known_since INTEGER NOT NULL, schedule_since INTEGER NOT NULL, "
                "resumed_at INTEGER, paused_at INTEGER, high_tick INTEGER, requested_at INTEGER, "
                "PRIMARY KEY (lease, job)) WITHOUT ROWID"
            ),
            (
                f"CREATE TABLE IF NOT EXISTS {run} (lease TEXT NOT NULL, job TEXT NOT NULL, tick INTEGER NOT NULL, "
                "attempt INTEGER NOT NULL, token INTEGER NOT NULL, holder TEXT NOT NULL, status TEXT NOT NULL, "
                "started_at INTEGER, finished_at INTEGER, error TEXT, tick_from INTEGER, count INTEGER, "
                "PRIMARY KEY (lease, job, tick)) WITHOUT ROWID"
            ),
            # SQLite takes the primary key, and so reads all runs of a lease, where it has an index on (lease, status).
            (
                f'CREATE INDEX IF NOT EXISTS "{prefix}run_unfinished" ON {run} (lease, tick, job) '
                f"WHERE status IN {_UNFINISHED}"
            ),
            # With the status, so that the rows themselves need not be looked up to be counted.
            (
                f'CREATE INDEX IF NOT EXISTS "{prefix}run_queued" ON {run} (lease, job, tick, status) '
                "WHERE status = 'queued'"
            ),
            f"CREATE INDEX IF NOT EXISTS \"{prefix}run_skipped\" ON {run} (lease, job, tick) WHERE status = 'skipped'",
        )
        self._jobs_sql = f"SELECT {_JOB} FROM {job} WHERE lease = :lease ORDER BY job"
        self._attention_sql = (
            f"SELECT {_JOB} FROM {job} WHERE lease = :lease "
            "AND (requested_at IS NOT NULL OR paused_at IS NOT NULL OR resumed_at IS NOT NULL) ORDER BY job"
        )
        self._unfinished_sql = (
            f"SELECT {_RUN} FROM {run} WHERE lease = :lease AND status IN {_UNFINISHED} ORDER BY tick, job"
        )
        self._running_sql = (  # of the unfinished ones, which have an index
            f"SELECT {_RUN} FROM {run} WHERE lease = :lease AND status IN {_UNFINISHED} AND status = 'running' "
            "ORDER BY tick, job"
        )
        # Where nobody has run ANALYZE, SQLite would read all runs by the primary key.
        of_queued = f"FROM {run} INDEXED BY \"{prefix}run_queued\" WHERE lease = :lease AND status = 'queued'"
        self._count_queued_sql = f"SELECT job, COUNT(*) {of_queued} GROUP BY job"
        self._queued_sql = f"SELECT {_RUN} {of_queued} AND job = :job ORDER BY tick LIMIT :limit"
        self._look_up_sql = f"SELECT {_RUN} FROM {run} WHERE {this_job} AND tick = :tick"
        self._history_sql = f"SELECT {_RUN} FROM {run} WHERE {this_job} ORDER BY tick DESC LIMIT :limit"
        self._settle_sql = (
            (
                f"UPDATE {run} SET status = 'lost', started_at = NULL, finished_at = :now, tick_from = NULL, "
                f"count = NULL, error = '{SETTLED_BY_HAND}' WHERE {this_job} AND tick IN (SELECT tick FROM {run} "
                f'INDEXED BY "{prefix}run_unfinished" WHERE {this_job} AND status IN {_UNFINISHED})'
            ),
            (
                f"UPDATE {job} SET known_since = :now, schedule_since = :now, resumed_at = :now, high_tick = :now, "
                "requested_at = NULL, paused_at = "
                "CASE WHEN typeof(paused_at) = 'integer' AND paused_at BETWEEN 0 AND :now THEN paused_at END "
                f"WHERE {this_job}"
            ),
        )
        self._enroll_sql = (
            f"INSERT INTO {job} (lease, job, schedule, timezone, known_since, schedule_since) "
            "VALUES (:lease, :job, :schedule, :timezone, :now, :now) ON CONFLICT (lease, job) DO UPDATE "
            "SET schedule = excluded.schedule, timezone = excluded.timezone, schedule_since = COALESCE(:since, :now) "
            "WHERE schedule <> excluded.schedule OR timezone <> excluded.timezone"
        )
        self._change_sql = (
            f"UPDATE {run} SET status = :status, attempt = :new_attempt, error = :error, "
            "token = CASE WHEN :adopt THEN :new_token ELSE token END, "
            "holder = CASE WHEN :adopt THEN :new_holder ELSE holder END, "
            "started_at = CASE :status WHEN 'running' THEN :now WHEN 'queued' THEN NULL ELSE started_at END, "
            f"finished_at = CASE WHEN :status IN {_UNFINISHED} THEN NULL ELSE :now END "
            f"WHERE {this_run} AND status = :was"
        )
        self._claim_run_sql = (
            f"INSERT INTO {run} (lease, {_RUN}) VALUES (:lease, :job, :tick, :attempt, :token, :holder, :status, "
            "CASE :status WHEN 'running' THEN :now END, CASE :status WHEN 'skipped' THEN :now END, "
            ":error, :tick_from, :count) ON CONFLICT (lease, job, tick) DO NOTHING"
        )
        self._extend_sql = (
            f"UPDATE {run} SET tick = :tick, count = COALESCE(count, 1) + COALESCE(:count, 1), token = :token, "
            f"holder = :holder, finished_at = :now WHERE {this_job} AND tick = :before AND status = 'skipped'"
        )
        self._raise_sql = (
            f"UPDATE {job} SET high_tick = :tick WHERE {this_job} AND paused_at IS NULL "
            "AND (high_tick IS NULL OR high_tick < :tick) AND :tick <= :limit "
            "AND (NOT :compared OR high_tick IS :seen)"
        )
        self._seen_sql = f"UPDATE {job} SET requested_at = NULL WHERE {this_job} AND requested_at = :requested_at"
        newest_success = f"SELECT MAX(tick) FROM {run} WHERE {this_job} AND status = 'succeeded'"
        # Rows of skipped ticks first: they have an index, and those of the runs are looked for among them.
        skipped = f"{run} INDEXED BY \"{prefix}run_skipped\" WHERE {this_job} AND status = 'skipped'"
        self._prune_sql = [
            (
                f"DELETE FROM {run} WHERE {this_job} AND tick IN (SELECT tick FROM {kind} "
                f"AND tick <= (SELECT tick FROM {kind} ORDER BY tick DESC LIMIT 1 OFFSET :keep) "
                f"AND tick IS NOT ({newest_success}) ORDER BY tick LIMIT :step)"
            )
            for kind in (skipped, f"{run} WHERE {this_job} AND status IN {_FINISHED}")
        ]
        self._job_sql = f"SELECT {_JOB} FROM {job} WHERE {this_job}"
        self._trigger_sql = f"UPDATE {job} SET requested_at = COALESCE(requested_at, :now) WHERE {this_job}"
        self._pause_sql = f"UPDATE {job} SET paused_at = COALESCE(paused_at, :now) WHERE {this_job}"
        self._resume_sql = (
            f"UPDATE {job} SET resumed_at = :now, paused_at = NULL WHERE {this_job} AND paused_at IS NOT NULL"
        )
        self._final_sql = (
            f"UPDATE main.{run} SET status = 'succeeded', finished_at = :now, error = NULL "
            f"WHERE {this_run} AND status = 'running'"
        )

    # -- the protocol

    async def take_stock(
        self, name: str, *, attention: bool = False, runs: bool = True, counted: bool = False
    ) -> LedgerReading:
        """See `LedgerStore.take_stock`."""

        def work(connection: sqlite3.Connection) -> LedgerReading:
            values = {"lease": name}
            with transaction(connection, "DEFERRED"):  # both readings are of one moment
                jobs = connection.execute(self._attention_sql if attention else self._jobs_sql, values).fetchall()
                unread = attention or not runs
                runs_sql = self._running_sql if counted else self._unfinished_sql
                unfinished = [] if unread else connection.execute(runs_sql, values).fetchall()
                queued = connection.execute(self._count_queued_sql, values).fetchall() if counted else []
                now = moment(self._now())
            unreadable: dict[str, str] = {}
            return LedgerReading(
                jobs={job.job: job for job in read_each(jobs, _job_record, unreadable)},
                unfinished=read_each(unfinished, _run_record, unreadable),
                now=now,
                queued=dict(queued),
                unreadable=unreadable,
            )

        return await self._run(work)

    async def queued(self, name: str, jobs: Sequence[str], limit: int) -> tuple[list[RunRecord], dict[str, str]]:
        """See `LedgerStore.queued`."""
        asked = [{"lease": name, "job": job, "limit": limit} for job in jobs]

        def work(connection: sqlite3.Connection) -> tuple[list[RunRecord], dict[str, str]]:
            unreadable: dict[str, str] = {}
            with transaction(connection, "DEFERRED"):
                rows = [row for values in asked for row in connection.execute(self._queued_sql, values)]
            found = read_each(rows, _run_record, unreadable)
            return sorted(found, key=lambda run: (run.tick, run.job)), unreadable

        return await self._run(work)

    async def look_up(self, name: str, places: Sequence[Place]) -> list[RunRecord]:
        """See `LedgerStore.look_up`."""

        def work(connection: sqlite3.Connection) -> list[RunRecord]:
            found = []
            with transaction(connection, "DEFERRED"):
                for job, tick in places:
                    values = {"lease": name, "job": job, "tick": microseconds(tick)}
                    found += [
                        there((job, tick), row, _run_record) for row in connection.execute(self._look_up_sql, values)
                    ]
            return found

        return await self._run(work)

    async def enroll(self, term: TermKey, jobs: Sequence[JobDefinition]) -> None:
        """See `LedgerStore.enroll`."""

        def work(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                self._count_fence(connection, term)
                common = {"lease": term.name, "now": self._now()}
                rows = [
                    {
                        "job": job.job,
                        "schedule": job.schedule,
                        "timezone": job.timezone,
                        "since": job.since and microseconds(job.since),
                    }
                    for job in jobs
                ]
                connection.executemany(self._enroll_sql, [common | row for row in rows])

        await self._run(work)

    async def record(self, term: TermKey, batch: Batch) -> None:
        """See `LedgerStore.record`."""

        def work(connection: sqlite3.Connection) -> None:
            with transaction(connection), _refusals():
                self._count_fence(connection, term)
                now = self._now()
                for change in batch.changes:
                    changed = connection.execute(self._change_sql, _change_values(term, change, now)).rowcount
                    if change.required and not changed:
                        raise Refused
                new: list[dict[str, Any]] = []
                longer: list[dict[str, Any]] = []
                for run in batch.claims:
                    before = batch.extends.get((run.job, run.tick))
                    values = _claim_values(term, run, now) | {"before": before and microseconds(before)}
                    (longer if before else new).append(values)
                _all(connection, self._claim_run_sql, new)
                _all(connection, self._extend_sql, longer)
                limit = now + AHEAD * 1_000_000
                high = [(job, _high_values(batch, job) | {"limit": limit}) for job in batch.high_ticks]
                seen = [(job, {"requested_at": microseconds(at)}) for job, at in batch.requests.items()]
                for sql, rows in ((self._raise_sql, high), (self._seen_sql, seen)):
                    _all(connection, sql, [{"lease": term.name, "job": job} | more for job, more in rows])

        await self._run(work)

    async def prune(self, name: str, jobs: Sequence[str], keep: int) -> list[str]:
        """See `LedgerStore.prune`."""

        def work(connection: sqlite3.Connection, job: str) -> bool:
            with transaction(connection):
                values = {"lease": name, "job": job, "keep": keep, "step": step}
                return any(connection.execute(sql, values).rowcount == step for sql in self._prune_sql)

        step = step_of(_PRUNED_AT_ONCE, jobs)
        # A transaction for each: what the leader writes must not wait for all of them.
        return [job for job in jobs if await self._run(partial(work, job=job))]

    async def history(self, name: str, job: str, *, limit: int = 100) -> list[RunRecord]:
        """See `LedgerStore.history`."""
        values = {"lease": check_name(name), "job": job, "limit": checked_limit(limit)}

        def work(connection: sqlite3.Connection) -> list[RunRecord]:
            return read_each(reversed(connection.execute(self._history_sql, values).fetchall()), _run_record, {})

        return await self._run(work)

    async def settle(self, name: str, job: str) -> None:
        """See `LedgerStore.settle`."""
        await self._update(name, job, *self._settle_sql)

    async def trigger(self, name: str, job: str) -> datetime:
        """See `LedgerStore.trigger`."""
        requested_at = (await self._update(name, job, self._trigger_sql)).requested_at
        assert requested_at is not None
        return requested_at

    async def pause(self, name: str, job: str) -> None:
        """See `LedgerStore.pause`."""
        await self._update(name, job, self._pause_sql)

    async def resume(self, name: str, job: str) -> None:
        """See `LedgerStore.resume`."""
        await self._update(name, job, self._resume_sql)

    # -- the thread

    def _count_fence(self, connection: sqlite3.Connection, term: TermKey) -> None:
        values = {"name": term.name, "holder": term.holder, "token": term.token}
        if connection.execute(self._count_fence_sql, values).rowcount != 1:
            raise FenceBroken

    async def _update(self, name: str, job: str, *statements: str) -> JobRecord:
        """Changes one job, and returns it afterwards."""

        def work(connection: sqlite3.Connection) -> JobRecord:
            values = {"lease": check_name(name), "job": job}
            with transaction(connection):
                now = self._now()
                for sql in statements:
                    connection.execute(sql, values | {"now": now})
                row = connection.execute(self._job_sql, values).fetchone()
            if row is None:
                raise InvalidJob(job, f"no leader of {name!r} ever had such a job")
            with readable(self.description, f"the ledger of {name!r}"):
                return _job_record(row)

        return await self._run(work)


@contextmanager
def _refusals() -> Iterator[None]:
    """Rows that are in the way, by a constraint or a value that does not fit, refuse a batch."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.DataError, OverflowError) as error:
        raise Refused from error


def _all(connection: sqlite3.Connection, sql: str, rows: list[dict[str, Any]]) -> None:
    """Executes a statement that must write one row each time."""
    if rows and connection.executemany(sql, rows).rowcount != len(rows):
        raise Refused


def _change_values(term: TermKey, change: Change, now: int) -> dict[str, Any]:
    key = change.key
    return {
        "lease": term.name,
        "job": key.job,
        "tick": microseconds(key.tick),
        "attempt": key.attempt,
        "token": key.token,
        "was": change.was,
        "status": change.status,
        "new_attempt": change.attempt,
        "adopt": change.adopt,
        "new_token": term.token,
        "new_holder": term.holder,
        "error": kept(change.error),
        "now": now,
    }


def _claim_values(term: TermKey, run: RunRecord, now: int) -> dict[str, Any]:
    return {
        "lease": term.name,
        "job": run.job,
        "tick": microseconds(run.tick),
        "attempt": run.attempt,
        "token": term.token,
        "holder": term.holder,
        "status": run.status,
        "error": kept(run.error),
        "tick_from": run.tick_from and microseconds(run.tick_from),
        "count": run.count,
        "now": now,
    }


def _high_values(batch: Batch, job: str) -> dict[str, object]:
    seen = batch.seen.get(job)
    return {
        "tick": microseconds(batch.high_ticks[job]),
        "compared": job in batch.seen,
        "seen": seen and microseconds(seen),
    }


def _job_record(row: tuple[Any, ...]) -> JobRecord:
    if not isinstance(row[0], str):
        raise TypeError("its job is no text")
    return JobRecord(
        job=row[0],
        schedule=str(row[1]),
        timezone=str(row[2]),
        known_since=moment(row[3]),
        schedule_since=moment(row[4]),
        resumed_at=_moment(row[5]),
        paused_at=_moment(row[6]),
        high_tick=_moment(row[7]),
        requested_at=_moment(row[8]),
    )


def _run_record(row: tuple[Any, ...]) -> RunRecord:
    return RunRecord(
        job=row[0],
        tick=moment(row[1]),
        attempt=int(row[2]),
        token=int(row[3]),
        holder=row[4],
        status=row[5],
        started_at=_moment(row[6]),
        finished_at=_moment(row[7]),
        error=row[8],
        tick_from=_moment(row[9]),
        count=row[10],
    )


def _moment(value: int | None) -> datetime | None:
    return None if value is None else moment(value)
