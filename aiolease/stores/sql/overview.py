"""The statement that reads how the jobs of a lease stand."""

from __future__ import annotations

from collections.abc import Sequence

from aiolease.stores.seen import MOST_FAILURES, WHOLE_LEASE, JobSeen, Overview
from aiolease.stores.sql.dialect import Dialect
from aiolease.stores.sql.ledger import UNFINISHED
from aiolease.stores.sql.rows import Row, Rows, read_each
from aiolease.stores.sql.statement import Asked, Statement

_FAILED = ("failed", "lost")
_ENDED = ("succeeded", *_FAILED)


class OverviewStatements:
    """Reads how all jobs of a lease stand, or one of them, in one statement.

    A job whose newest run has succeeded costs a few rows, whatever the tables hold. Of one that fails its failures are
    counted, unless there are `MOST_FAILURES` of them in a row.

    Attributes:
        clock: The database's clock, for a lease without jobs.
    """

    def __init__(self, dialect: Dialect, rows: Rows) -> None:
        self._rows = rows
        job, run = dialect.table("job"), dialect.table("run")
        success = dialect.newest(["succeeded"])
        counted = " + ".join(
            f"(SELECT COUNT(*) FROM {run} AS f {dialect.index('ended')} WHERE f.lease = j.lease AND f.job = j.job "
            f"AND f.status = '{status}' {dialect.finished} AND (s.tick IS NULL OR f.tick > s.tick))"
            for status in _FAILED
        )
        many = " OR ".join(
            f"{dialect.newest([status], MOST_FAILURES - 1)} > COALESCE(s.tick, {dialect.before_all})"
            for status in _FAILED
        )
        unfinished = (
            "SELECT job, SUM(CASE WHEN status = 'running' THEN 1 ELSE 0 END) AS running, "
            f"SUM(CASE WHEN status = 'queued' THEN 1 ELSE 0 END) AS queued FROM {run} "
            f"{dialect.index('unfinished')} WHERE lease = :lease AND {UNFINISHED} GROUP BY job"
        )
        every = (
            f"SELECT {rows.seen_columns}, s.finished_at, CASE WHEN r.status IS NULL OR r.status = 'succeeded' THEN 0 "
            f"WHEN {many} THEN {MOST_FAILURES} ELSE {counted} END, u.running, u.queued, {dialect.now} "
            f"FROM {job} AS j LEFT JOIN {run} AS s ON s.lease = j.lease AND s.job = j.job AND s.tick = {success} "
            f"LEFT JOIN {run} AS r ON r.lease = j.lease AND r.job = j.job AND r.tick = {dialect.newest(_ENDED)} "
            f"LEFT JOIN ({unfinished}) AS u ON u.job = j.job WHERE j.lease = :lease"
        )
        self._every = Statement(f"{every} ORDER BY j.job")
        self._one = Statement(f"{every} AND j.job IN (:job, '{WHOLE_LEASE}') ORDER BY j.job")
        self.clock = Statement(f"SELECT {dialect.now}")

    def asking(self, name: str, jobs: Sequence[str] | None) -> Asked:
        """What reads the jobs, or more of them."""
        if jobs is not None and len(jobs) == 1:
            return self._one, {"lease": name, "job": jobs[0]}
        return self._every, {"lease": name}

    def read(self, found: Sequence[Row], now: object, jobs: Sequence[str] | None) -> Overview:
        """Makes it of what was found, at a moment as the database gives it."""
        unreadable: dict[str, str] = {}
        seen = {each.record.job: each for each in read_each(found, self._rows.seen, unreadable)}
        whole: JobSeen | None = seen.pop(WHOLE_LEASE, None)
        if jobs is not None:
            seen = {job: each for job, each in seen.items() if job in set(jobs)}
        moment = self._rows.moment(now)
        return Overview(jobs=seen, now=moment, pause=whole.record if whole else None, unreadable=unreadable)
