"""What SQLite says in its own words, and how its statements are executed.

SQLite has no clock to trust: it is the machine's, read by us, and a parameter of every statement. A moment is an
integer, microseconds since the epoch in UTC. Statements have their parameters by name.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from aiolease.stores.contract import Refused
from aiolease.stores.sql.dialect import Dialect, Purpose, Table
from aiolease.stores.sql.statement import NO_VALUES, Statement, Step, Values

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_LAST = (datetime(9999, 1, 1, tzinfo=UTC) - _EPOCH) // _MICROSECOND

# Where nobody has run ANALYZE, SQLite would read all runs by the primary key.
_INDEXES = {
    "unfinished": "run_unfinished",
    "unfinished_of_job": "run_unfinished",
    "queued": "run_queued",
    "later": "run_later",
    "skipped": "run_skipped",
}


def moment(value: int) -> datetime:
    """A moment as the tables keep it: microseconds since the epoch."""
    return _EPOCH + timedelta(microseconds=value)


def microseconds(at: datetime) -> int:
    """What the tables keep of a moment."""
    return (at - _EPOCH) // _MICROSECOND


class SQLiteDialect(Dialect):
    """See `Dialect`."""

    now = ":now"
    count = "count"
    greatest = "MAX"
    before_all = "-1000000000000000000"
    finished = ""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def table(self, name: Table) -> str:
        """See `Dialect.table`."""
        return f'"{self._prefix}{name}"'

    def index(self, purpose: Purpose) -> str:
        """See `Dialect.index`."""
        index = _INDEXES.get(purpose)
        return f'INDEXED BY "{self._prefix}{index}"' if index else ""

    def later(self, microseconds: str) -> str:
        """See `Dialect.later`."""
        return f":now + {microseconds}"

    def same(self, one: str, other: str) -> str:
        """See `Dialect.same`."""
        return f"{one} IS {other}"

    def unless_there(self, key: str, column: str) -> str:
        """See `Dialect.unless_there`."""
        return f"ON CONFLICT ({key}) DO NOTHING"

    def sane(self, column: str, *, ahead: bool = False) -> str:
        """See `Dialect.sane`."""
        last = str(_LAST) if ahead else ":now"
        return f"CASE WHEN typeof({column}) = 'integer' AND {column} BETWEEN 0 AND {last} THEN {column} END"

    def appended(self, column: str, line: str, most: int) -> str:
        """See `Dialect.appended`."""
        whole = f"SUBSTR(COALESCE({column} || CHAR(10), '') || {line}, -{most})"
        return f"CASE WHEN {line} IS NULL THEN {column} ELSE {whole} END"

    def newest(self, statuses: Sequence[str], offset: int = 0) -> str:
        """See `Dialect.newest`. By the primary key, from the newest row on: there is no index of those that ended."""
        named = ", ".join(f"'{status}'" for status in statuses)
        return (
            f"(SELECT n.tick FROM {self.table('run')} AS n WHERE n.lease = j.lease AND n.job = j.job "
            f"AND n.status IN ({named}) ORDER BY n.tick DESC LIMIT 1 OFFSET {offset})"
        )

    def kept(self, moment: datetime) -> int:
        """See `Dialect.kept`."""
        return microseconds(moment)

    def moment(self, value: Any) -> datetime:
        """See `Dialect.moment`."""
        return moment(value)

    def named(self, values: Values, now: int) -> dict[str, Any]:
        """The values of a statement at a moment, as SQLite takes them."""
        bound: dict[str, Any] = {"now": now}
        for name, value in values.items():
            bound[name] = microseconds(value) if isinstance(value, datetime) else value
        return bound


class Exchange:
    """Statements over a connection at one moment.

    Attributes:
        now: That moment.
    """

    def __init__(self, connection: sqlite3.Connection, dialect: SQLiteDialect, now: int) -> None:
        self.now = now
        self._connection = connection
        self._dialect = dialect

    def rows(self, statement: Statement, values: Values = NO_VALUES) -> list[tuple[Any, ...]]:
        """The rows that a statement finds."""
        return self._connection.execute(statement.text, self._dialect.named(values, self.now)).fetchall()

    def change(self, statement: Statement, values: Values) -> int:
        """Executes a statement that writes; returns how many rows it changed."""
        return self._connection.execute(statement.text, self._dialect.named(values, self.now)).rowcount

    def take(self, step: Step) -> None:
        """Executes a step of a transaction.

        Raises:
            Refused: It changed another number of rows than it must.
        """
        rows = [self._dialect.named({**step.values, **row}, self.now) for row in step.rows]
        changed = self._connection.executemany(step.statement.text, rows).rowcount
        if step.changes is not None and changed != step.changes:
            raise Refused


@contextmanager
def transaction(connection: sqlite3.Connection, mode: Literal["IMMEDIATE", "DEFERRED"] = "IMMEDIATE") -> Iterator[None]:
    """A transaction that may write from its start, or one that only reads; it ends with the block."""
    connection.execute(f"BEGIN {mode}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def writing(connection: sqlite3.Connection, dialect: SQLiteDialect, clock: Callable[[], int]) -> Iterator[Exchange]:
    """A transaction that writes; its moment is read when it has the lock."""
    with transaction(connection):
        yield Exchange(connection, dialect, clock())
