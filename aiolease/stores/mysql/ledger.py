"""The ledger on MySQL and MariaDB: the statements. Each batch is one packet and one fenced transaction.

Split from `aiolease.stores.mysql`, which has the lease. A check between two statements is a SELECT that raises an error
unless the statement before it changed as many rows as it should; a server does not execute what stands behind an
error in a packet, the connection is discarded, and so nothing is committed. The fence comes first: whoever writes here
waits for it, and not for each other's rows, so that two of them cannot meet in a deadlock.

Rows that share all but their job are written by one statement: ticks that fall due together cost a few statements,
however many jobs there are.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from aiolease._names import check_name
from aiolease._waiting import time_limited
from aiolease.errors import AioleaseError, InvalidJob
from aiolease.stores.contract import FenceBroken, Refused
from aiolease.stores.mysql.drivers import Rows, Session, error_number
from aiolease.stores.mysql.transactions import CHECK_FAILED, FenceSQL, check
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

Statement = tuple[str, tuple[object, ...]]

_REFUSALS = {
    *(1048, 1062, 1364),  # NULL, a row that is there, no default
    *(1264, 1265, 1292, 1366, 1406, 1411, 3140, 4025, 3819),  # a value that does not fit, or breaks a CHECK
    *(1451, 1452, 1644),  # somebody's foreign key, or trigger
}
"""Errors that say that the rows are in the way, and not that the server is."""
_FENCE_RESULTS = 4
"""SET, START TRANSACTION, the fence's UPDATE, and its check: with fewer results, it was the fence that failed."""

_UNFINISHED = "FORCE INDEX (unfinished)"
"""Where few runs of many are asked for: the servers would at times read those that are finished, or sort."""

IDLE = 60
"""``wait_timeout`` of a session that leads nothing, in seconds."""

_AT_ONCE = 1000
"""How many rows one statement names."""

_ASK_LIMIT = 10.0
"""Seconds that a question which has no limit of its caller's may take."""


class MySQLLedger:
    """The half of `MySQLStore` that is a `LedgerStore`."""

    description: str
    _fence: FenceSQL
    _other_session: Session
    _asking_session: Session

    def _name_ledger_tables(self, prefix: str) -> None:
        self._job_table, self._run_table = f"{prefix}job", f"{prefix}run"

    # -- what the leader writes

    async def take_stock(
        self, name: str, *, attention: bool = False, runs: bool = True, counted: bool = False
    ) -> LedgerReading:
        """See `LedgerStore.take_stock`."""
        sql = (
            "SELECT UTC_TIMESTAMP(6); SELECT job, schedule, timezone, known_since, schedule_since, resumed_at, "
            f"paused_at, high_tick, requested_at FROM {self._job_table} WHERE lease = %s"
        )
        if attention:
            sql += " AND (requested_at IS NOT NULL OR paused_at IS NOT NULL OR resumed_at IS NOT NULL)"
        values: list[object] = [name]
        if runs and not attention:
            status = "= 'running'" if counted else "IN ('queued', 'running')"
            sql += f"; {self._runs_sql} {_UNFINISHED} WHERE lease = %s AND status {status} ORDER BY tick, job"
            values.append(name)
        if counted:
            of_lease = f"FROM {self._run_table} {_UNFINISHED} WHERE lease = %s AND status = 'queued'"
            sql += f"; SELECT job, COUNT(*) {of_lease} GROUP BY job"
            values.append(name)
        now, jobs, *rest = await self._other_session.run(sql, values)
        unreadable: dict[str, str] = {}
        return LedgerReading(
            jobs={job.job: job for job in read_each(jobs, _job, unreadable)},
            unfinished=read_each(rest[0], _run, unreadable) if rest else [],
            now=_utc(now[0][0]),
            queued={job: int(count) for job, count in rest[-1]} if counted else {},
            unreadable=unreadable,
        )

    async def queued(self, name: str, jobs: Sequence[str], limit: int) -> tuple[list[RunRecord], dict[str, str]]:
        """See `LedgerStore.queued`."""
        unreadable: dict[str, str] = {}
        if not jobs:
            return [], unreadable
        these = f"{_UNFINISHED} WHERE lease = %s AND status = 'queued' AND job = %s"
        one = f"{self._runs_sql} {these} ORDER BY tick LIMIT {limit}"
        values = [value for job in jobs for value in (name, job)]
        results = await self._other_session.run("; ".join([one] * len(jobs)), values)
        found = read_each((row for rows in results for row in rows), _run, unreadable)
        return sorted(found, key=lambda run: (run.tick, run.job)), unreadable

    async def look_up(self, name: str, places: Sequence[Place]) -> list[RunRecord]:
        """See `LedgerStore.look_up`."""
        if not places:
            return []
        one = f"{self._runs_sql} WHERE lease = %s AND job = %s AND tick = %s"
        values = [value for job, tick in places for value in (name, job, _naive(tick))]
        results = await self._other_session.run("; ".join([one] * len(places)), values)
        return [there(place, row, _run) for place, rows in zip(places, results, strict=True) for row in rows]

    async def enroll(self, term: TermKey, jobs: Sequence[JobDefinition]) -> None:
        """See `LedgerStore.enroll`."""
        for start in range(0, max(len(jobs), 1), _AT_ONCE):
            await self._fenced(term, self._enrolling(term.name, jobs[start : start + _AT_ONCE]))

    def _enrolling(self, lease: str, jobs: Sequence[JobDefinition]) -> Iterator[Statement]:
        if not jobs:
            return
        # A table of our own making, since neither VALUES() nor a row alias is taken by both servers without a warning.
        given = " UNION ALL SELECT ".join(
            ["%s AS job, %s AS schedule, %s AS timezone, %s AS since"] + ["%s, %s, %s, %s"] * (len(jobs) - 1)
        )
        columns = "CHARACTER SET ascii) COLLATE ascii_bin"
        source = (
            f"(SELECT CAST(job AS CHAR(100) {columns} AS job, CAST(schedule AS CHAR(255) {columns} AS schedule, "
            f"CAST(timezone AS CHAR(64) {columns} AS timezone, CAST(since AS DATETIME(6)) AS since "
            f"FROM (SELECT {given}) AS rough) AS given"
        )
        values = tuple(
            value
            for job in jobs
            for value in (job.job, job.schedule, job.timezone, job.since and str(_naive(job.since)))
        )
        yield (
            (
                f"UPDATE {self._job_table} AS j JOIN {source} ON j.job = given.job "
                "SET j.schedule = given.schedule, j.timezone = given.timezone, "
                "j.schedule_since = COALESCE(given.since, UTC_TIMESTAMP(6)) "
                "WHERE j.lease = %s AND (j.schedule <> given.schedule OR j.timezone <> given.timezone)"
            ),
            (*values, lease),
        )
        yield (
            (
                f"INSERT INTO {self._job_table} (lease, job, schedule, timezone, known_since, schedule_since) "
                "SELECT %s, given.job, given.schedule, given.timezone, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6) "
                f"FROM {source} LEFT JOIN {self._job_table} AS j ON j.lease = %s AND j.job = given.job "
                "WHERE j.job IS NULL"
            ),
            (lease, *values, lease),
        )

    async def record(self, term: TermKey, batch: Batch) -> None:
        """See `LedgerStore.record`."""
        await self._fenced(term, self._recording(term, batch))

    def _recording(self, term: TermKey, batch: Batch) -> Iterator[Statement]:
        for change, jobs in _alike(batch.changes):
            yield from self._changing(term, change, jobs)
        for claims in _cut([run for run in batch.claims if (run.job, run.tick) not in batch.extends]):
            yield self._claiming(term, claims)
        yield from self._extending(term, batch)
        alike = defaultdict(list)
        for job, tick in batch.high_ticks.items():
            seen = batch.seen.get(job)
            alike[_naive(tick), job in batch.seen, seen and _naive(seen)].append(job)
        for (tick, compared, seen), jobs in alike.items():
            for some in _cut(jobs):
                yield (
                    (
                        f"UPDATE {self._job_table} FORCE INDEX (PRIMARY) SET high_tick = %s "
                        f"WHERE lease = %s AND job IN ({_places(some)}) "
                        "AND (high_tick IS NULL OR high_tick < %s) AND paused_at IS NULL "
                        f"AND %s <= UTC_TIMESTAMP(6) + INTERVAL {AHEAD} SECOND"
                        f"{' AND high_tick <=> %s' if compared else ''}"
                    ),
                    (tick, term.name, *some, tick, tick, *([seen] if compared else [])),
                )
                yield check(len(some)), ()
        for job, tick in batch.requests.items():
            yield (
                f"UPDATE {self._job_table} SET requested_at = NULL WHERE lease = %s AND job = %s AND requested_at = %s",
                (term.name, job, _naive(tick)),
            )
            yield check(1), ()

    def _changing(self, term: TermKey, change: Change, jobs: Sequence[str]) -> Iterator[Statement]:
        settings = "status = %s, attempt = %s, error = %s"
        values: list[object] = [change.status, change.attempt, kept(change.error)]
        if change.status == "running":
            settings += ", started_at = UTC_TIMESTAMP(6)"
        elif change.status == "queued":
            settings += ", started_at = NULL, finished_at = NULL"
        else:
            settings += ", finished_at = UTC_TIMESTAMP(6)"
        if change.adopt:
            settings += ", token = %s, holder = %s"
            values += [term.token, term.holder]
        key = change.key
        for some in _cut(jobs):
            yield (
                (
                    # By the key, whatever else is in the table: a scan would lock the rows of other leases.
                    f"UPDATE {self._run_table} FORCE INDEX (PRIMARY) SET {settings} "
                    f"WHERE lease = %s AND job IN ({_places(some)}) "
                    "AND tick = %s AND status = %s AND token = %s AND attempt = %s"
                ),
                (*values, term.name, *some, _naive(key.tick), change.was, key.token, key.attempt),
            )
            if change.required:
                yield check(len(some)), ()

    def _claiming(self, term: TermKey, claims: Sequence[RunRecord]) -> Statement:
        moments = {"running": "UTC_TIMESTAMP(6), NULL", "skipped": "NULL, UTC_TIMESTAMP(6)"}
        rows, values = [], []
        for run in claims:
            rows.append(f"(%s, %s, %s, %s, %s, %s, %s, {moments.get(run.status, 'NULL, NULL')}, %s, %s, %s)")
            values += [term.name, run.job, _naive(run.tick), run.attempt, term.token, term.holder, run.status]
            values += [kept(run.error), run.tick_from and _naive(run.tick_from), run.count]
        return (
            (
                f"INSERT INTO {self._run_table} (lease, job, tick, attempt, token, holder, status, started_at, "
                f"finished_at, error, tick_from, `count`) VALUES {', '.join(rows)}"
            ),
            tuple(values),
        )

    def _extending(self, term: TermKey, batch: Batch) -> Iterator[Statement]:
        alike = defaultdict(list)
        for run in batch.claims:
            if (before := batch.extends.get((run.job, run.tick))) is not None:
                alike[_naive(before), _naive(run.tick), run.count or 1].append(run.job)
        for (before, tick, count), jobs in alike.items():
            for some in _cut(jobs):
                yield (
                    (
                        f"UPDATE {self._run_table} FORCE INDEX (PRIMARY) SET tick = %s, "
                        "`count` = COALESCE(`count`, 1) + %s, token = %s, "
                        f"holder = %s, finished_at = UTC_TIMESTAMP(6) WHERE lease = %s AND job IN ({_places(some)}) "
                        "AND tick = %s AND status = 'skipped'"
                    ),
                    (tick, count, term.token, term.holder, term.name, *some, before),
                )
                yield check(len(some)), ()

    async def _fenced(self, term: TermKey, statements: Iterable[Statement]) -> None:
        # Refused, it leaves its locks until the connection is closed: if we are frozen then, the server ends it.
        packet = [("SET @@SESSION.wait_timeout = 1; START TRANSACTION", ()), self._fence.statements(term), *statements]
        packet.append((f"COMMIT; SET @@SESSION.wait_timeout = {IDLE}", ()))
        results: list[Rows] = []
        try:
            sql, values = "; ".join(sql for sql, _ in packet), [value for _, values in packet for value in values]
            # Not repeated: if the first was executed, the second is refused, and nobody knows why.
            await self._other_session.run(sql, values, results, repeat=False)
        except AioleaseError as error:
            number = error_number(error.__cause__) if error.__cause__ else None
            if number == CHECK_FAILED:
                raise (FenceBroken if len(results) < _FENCE_RESULTS else Refused) from error
            if number in _REFUSALS:
                raise Refused from error
            raise

    async def prune(self, name: str, jobs: Sequence[str], keep: int) -> list[str]:
        """See `LedgerStore.prune`."""
        if not jobs:
            return []
        # Rows of skipped ticks first: an index finds them, and those of the runs are looked for among them.
        more = await self._prune(name, jobs, keep, "status = 'skipped'", "unfinished")
        ready = [job for job in jobs if job not in more]
        # MySQL would skip through the other index, and sort.
        return more + await self._prune(name, ready, keep, "status IN ('succeeded', 'failed', 'lost')", "PRIMARY")

    async def _prune(self, name: str, jobs: Sequence[str], keep: int, kind: str, index: str) -> list[str]:
        these, by_tick = f"lease = %s AND job = %s AND {kind}", f"{self._run_table} FORCE INDEX ({index})"
        # Read first, then deleted by the key: a DELETE with a LIMIT is unsafe in a binary log of statements, and warns
        # there each time. Not too many at once: the claims of ticks wait for it.
        step = step_of(_AT_ONCE, jobs)
        success = f"(SELECT MAX(tick) FROM {self._run_table} WHERE lease = %s AND job = %s AND status = 'succeeded')"
        newest = f"SELECT tick FROM {by_tick} WHERE {these} ORDER BY tick DESC LIMIT 1 OFFSET %s"
        old = (
            f"SELECT MIN(tick), MAX(tick), COUNT(*), {success} FROM (SELECT tick FROM {by_tick} "
            f"WHERE tick <= (SELECT tick FROM ({newest}) AS kept) AND {these} AND NOT tick <=> {success} "
            f"ORDER BY tick LIMIT {step}) AS old"
        )
        delete = f"DELETE FROM {self._run_table} WHERE {these} AND tick BETWEEN %s AND %s AND NOT tick <=> %s"
        more: list[str] = []
        for some in _cut(jobs, 50):
            asked = [value for job in some for value in (name, job, name, job, keep, name, job, name, job)]
            found = await self._other_session.run("; ".join([old] * len(some)), asked)
            deleted = [
                (name, job, first, last, spared)
                for job, [(first, last, count, spared)] in zip(some, found, strict=True)
                if count
            ]
            more += [job for job, [row] in zip(some, found, strict=True) if row[2] == step]
            if deleted:
                sql = "; ".join(["START TRANSACTION", *[delete] * len(deleted), "COMMIT"])
                await self._other_session.run(sql, [value for values in deleted for value in values])
        return more

    # -- what people ask

    async def history(self, name: str, job: str, *, limit: int = 100) -> list[RunRecord]:
        """See `LedgerStore.history`."""
        check_name(name)
        sql = f"{self._runs_sql} WHERE lease = %s AND job = %s ORDER BY tick DESC LIMIT {checked_limit(limit)}"
        if not _is_name(job):
            return []
        return read_each(reversed((await self._ask(sql, (name, job)))[0]), _run, {})

    async def settle(self, name: str, job: str) -> None:
        """See `LedgerStore.settle`."""
        now = "UTC_TIMESTAMP(6)"
        sql = (
            f"UPDATE {self._run_table} SET status = 'lost', started_at = NULL, finished_at = {now}, tick_from = NULL, "
            f"`count` = NULL, error = '{SETTLED_BY_HAND}' "
            "WHERE lease = %s AND job = %s AND status IN ('queued', 'running'); "
            f"UPDATE {self._job_table} SET known_since = {now}, schedule_since = {now}, resumed_at = {now}, "
            # A date that makes none is before all others.
            f"high_tick = {now}, requested_at = NULL, paused_at = IF(paused_at < '1000-01-01', NULL, paused_at)"
        )
        await self._ask_job(sql, "job", name, job, before=(name, job))

    async def trigger(self, name: str, job: str) -> datetime:
        """See `LedgerStore.trigger`."""
        sql = f"UPDATE {self._job_table} SET requested_at = COALESCE(requested_at, UTC_TIMESTAMP(6))"
        requested_at: datetime = await self._ask_job(sql, "requested_at", name, job)
        with readable(self.description, f"the ledger of {name!r}"):
            return _utc(requested_at)

    async def pause(self, name: str, job: str) -> None:
        """See `LedgerStore.pause`."""
        sql = f"UPDATE {self._job_table} SET paused_at = COALESCE(paused_at, UTC_TIMESTAMP(6))"
        await self._ask_job(sql, "paused_at", name, job)

    async def resume(self, name: str, job: str) -> None:
        """See `LedgerStore.resume`."""
        resumed_at = "IF(paused_at IS NULL, resumed_at, UTC_TIMESTAMP(6))"  # first: assigned from left to right
        sql = f"UPDATE {self._job_table} SET resumed_at = {resumed_at}, paused_at = NULL"
        await self._ask_job(sql, "resumed_at", name, job)

    async def _ask_job(self, sql: str, column: str, name: str, job: str, before: tuple[object, ...] = ()) -> Any:
        check_name(name)
        of_job = "WHERE lease = %s AND job = %s"
        # In one transaction, so that the leader cannot see to it between the two.
        sql = f"START TRANSACTION; {sql} {of_job}; SELECT {column} FROM {self._job_table} {of_job}; COMMIT"
        rows = (await self._ask(sql, (*before, name, job, name, job)))[-2] if _is_name(job) else None
        if not rows:
            raise InvalidJob(job, f"no leader of {name!r} ever had such a job")
        return rows[0][0]

    async def _ask(self, sql: str, values: Sequence[object]) -> list[Rows]:
        return await time_limited(_ASK_LIMIT, self.description, self._asking_session.run(sql, values))

    @property
    def _runs_sql(self) -> str:
        return (
            "SELECT job, tick, attempt, token, holder, status, started_at, finished_at, error, tick_from, `count` "
            f"FROM {self._run_table}"
        )


def _is_name(job: str) -> bool:
    """Whether a job can have this name: the server would compare others by rules of its own, or not at all."""
    return bool(re.fullmatch(r"[!-~]{1,100}", job))


def _job(row: tuple[Any, ...]) -> JobRecord:
    return JobRecord(
        job=row[0],
        schedule=row[1],
        timezone=row[2],
        known_since=_utc(row[3]),
        schedule_since=_utc(row[4]),
        resumed_at=_utc_or_none(row[5]),
        paused_at=_utc_or_none(row[6]),
        high_tick=_utc_or_none(row[7]),
        requested_at=_utc_or_none(row[8]),
    )


def _run(row: tuple[Any, ...]) -> RunRecord:
    return RunRecord(
        job=row[0],
        tick=_utc(row[1]),
        attempt=int(row[2]),
        token=int(row[3]),
        holder=row[4],
        status=row[5],
        started_at=_utc_or_none(row[6]),
        finished_at=_utc_or_none(row[7]),
        error=row[8],
        tick_from=_utc_or_none(row[9]),
        count=None if row[10] is None else int(row[10]),
    )


def _alike(changes: Iterable[Change]) -> Iterator[tuple[Change, list[str]]]:
    """Changes that differ by their job only, together."""
    found: defaultdict[tuple[object, ...], list[Change]] = defaultdict(list)
    for change in changes:
        key = change.key
        found[
            key.tick, key.attempt, key.token, change.was, change.status, change.attempt, change.adopt, change.error,
            change.required,
        ].append(change)  # fmt: skip
    for group in found.values():
        yield group[0], [change.key.job for change in group]


def _cut(rows: Sequence[Any], size: int = _AT_ONCE) -> Iterator[Sequence[Any]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _places(values: Sequence[object]) -> str:
    return ", ".join(["%s"] * len(values))


def _naive(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(tzinfo=None)


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC)


def _utc_or_none(moment: datetime | None) -> datetime | None:
    return moment and _utc(moment)
