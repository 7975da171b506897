"""Telling MySQL and MariaDB of jobs: a shape of its own, since they have no upsert that both take without a warning.

An upsert that compares the new values with the old ones needs ``VALUES()``, which MySQL deprecates, or a row alias,
which MariaDB does not know. So the new values are a table that the statement makes, joined with the one that is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aiolease.stores.batch import JobDefinition
from aiolease.stores.mysql.dialect import Bound, MySQLDialect

_ASCII = "CHARACTER SET ascii) COLLATE ascii_bin"


class Enrolling:
    """Makes the rows of jobs, or gives those that are there the new schedule."""

    def __init__(self, dialect: MySQLDialect) -> None:
        self._dialect = dialect

    def statements(self, lease: str, jobs: Sequence[JobDefinition]) -> Iterator[Bound]:
        """The statements for jobs of a lease."""
        if not jobs:
            return
        source, values = self._given(jobs)
        table, now = self._dialect.table("job"), self._dialect.now
        yield (
            (
                f"UPDATE {table} AS j JOIN {source} ON j.job = given.job "
                "SET j.schedule = given.schedule, j.timezone = given.timezone, "
                f"j.schedule_since = COALESCE(given.since, {now}) "
                "WHERE j.lease = %s AND (j.schedule <> given.schedule OR j.timezone <> given.timezone)"
            ),
            (*values, lease),
        )
        yield (
            (
                f"INSERT INTO {table} (lease, job, schedule, timezone, known_since, schedule_since) "
                f"SELECT %s, given.job, given.schedule, given.timezone, {now}, {now} "
                f"FROM {source} LEFT JOIN {table} AS j ON j.lease = %s AND j.job = given.job WHERE j.job IS NULL"
            ),
            (lease, *values, lease),
        )

    def _given(self, jobs: Sequence[JobDefinition]) -> Bound:
        """The new values as a table, `given`."""
        rows = " UNION ALL SELECT ".join(
            ["%s AS job, %s AS schedule, %s AS timezone, %s AS since"] + ["%s, %s, %s, %s"] * (len(jobs) - 1)
        )
        source = (
            f"(SELECT CAST(job AS CHAR(100) {_ASCII} AS job, CAST(schedule AS CHAR(255) {_ASCII} AS schedule, "
            f"CAST(timezone AS CHAR(64) {_ASCII} AS timezone, CAST(since AS DATETIME(6)) AS since "
            f"FROM (SELECT {rows}) AS rough) AS given"
        )
        values: list[object] = []
        for job in jobs:
            # As text: what the driver makes of a moment would have the column's type guessed from the first row.
            since = job.since and str(self._dialect.kept(job.since))
            values += [job.job, job.schedule, job.timezone, since]
        return source, tuple(values)
