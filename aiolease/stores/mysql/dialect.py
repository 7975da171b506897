"""The SQL dialect of MySQL and MariaDB, and how a statement gets its values: ``%s``, bound by the driver."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from aiolease.stores.sql.dialect import Dialect, Purpose, Table
from aiolease.stores.sql.statement import NO_VALUES, ONCE, Statement, Step, Values

Bound = tuple[str, tuple[object, ...]]
"""One statement or several, as the drivers take them, and their values."""

# Where few runs of many are asked for, the servers would at times read those that are finished, or sort. What is
# written is found by its key, whatever else is in the table: a scan would lock the rows of other leases.
_INDEXES = {"key": "PRIMARY"} | dict.fromkeys(
    ("unfinished", "unfinished_of_job", "queued", "later", "ended"), "unfinished"
)


class MySQLDialect(Dialect):
    """See `Dialect`."""

    now = "UTC_TIMESTAMP(6)"
    count = "`count`"
    greatest = "GREATEST"
    before_all = "CAST('1000-01-01' AS DATETIME(6))"
    finished = "AND not_before IS NULL"

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def table(self, name: Table) -> str:
        """See `Dialect.table`."""
        return f"{self._prefix}{name}"

    def index(self, purpose: Purpose) -> str:
        """See `Dialect.index`."""
        index = _INDEXES.get(purpose)
        return f"FORCE INDEX ({index})" if index else ""

    def later(self, microseconds: str) -> str:
        """See `Dialect.later`."""
        return f"UTC_TIMESTAMP(6) + INTERVAL {microseconds} MICROSECOND"

    def same(self, one: str, other: str) -> str:
        """See `Dialect.same`."""
        return f"{one} <=> {other}"

    def unless_there(self, key: str, column: str) -> str:
        """See `Dialect.unless_there`."""
        return f"ON DUPLICATE KEY UPDATE {column} = {column}"

    def sane(self, column: str, *, ahead: bool = False) -> str:
        """See `Dialect.sane`. A date that makes none is before all others."""
        return f"IF({column} < '1000-01-01', NULL, {column})"

    def appended(self, column: str, line: str, most: int) -> str:
        """See `Dialect.appended`."""
        return f"IF({line} IS NULL, {column}, RIGHT(CONCAT_WS('\n', {column}, {line}), {most}))"

    def newest(self, statuses: Sequence[str], offset: int = 0) -> str:
        """See `Dialect.newest`. An index has the runs of one status by their ticks."""
        each = [
            # Written so that MySQL, too, finds that the index has them in this order.
            f"(SELECT n.tick FROM {self.table('run')} AS n FORCE INDEX (unfinished) WHERE n.lease = :lease "
            f"AND n.job = j.job AND n.status = '{status}' AND n.not_before IS NULL "
            f"ORDER BY n.job DESC, n.tick DESC LIMIT 1 OFFSET {offset})"
            for status in statuses
        ]
        if len(each) == 1:
            return each[0]
        return f"GREATEST({', '.join(f'COALESCE({one}, {self.before_all})' for one in each)})"

    def kept(self, moment: datetime) -> datetime:
        """See `Dialect.kept`. A moment without a time zone was read from the tables, and is left as it is."""
        return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)

    def moment(self, value: Any) -> datetime:
        """See `Dialect.moment`."""
        moment: datetime = value.replace(tzinfo=UTC)
        return moment

    def bind(self, statement: Statement, values: Values = NO_VALUES, rows: Sequence[Values] = ONCE) -> Bound:
        """A statement with its values: see `Statement.positional`."""
        return statement.positional(values, rows, self.kept)

    def bind_step(self, step: Step) -> Bound:
        """A step with its values, followed by the check of how many rows it changed."""
        sql, values = self.bind(step.statement, step.values, step.rows)
        return (sql if step.changes is None else f"{sql}; {check(step.changes)}"), values


def check(count: int) -> str:
    """A statement that fails unless the one before it changed `count` rows.

    It adds 1 to the largest number if it did not. It is no SELECT, because a session with ``sql_select_limit = 0``
    would not evaluate that; and a subquery that fails takes the server longer than all else that a check does.
    """
    return f"SET @aiolease_check = 9223372036854775807 + (ROW_COUNT() <> {count})"


CHECK_FAILED = 1690
"""The server's error when a check fails: a number is out of range."""


def packet(statements: Iterable[Bound]) -> Bound:
    """Joins several statements to one packet."""
    parts = list(statements)
    return "; ".join(sql for sql, _ in parts), tuple(value for _, values in parts for value in values)
