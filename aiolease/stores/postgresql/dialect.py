"""What PostgreSQL says in its own words, and how a statement gets its values.

A statement that is sent alone has parameters, each with its type: the server does not guess any. Several statements in
one message of the simple protocol can have none, so there the values are literals, quoted here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import count
from typing import Any

from aiolease.errors import ConfigurationError
from aiolease.stores.sql.dialect import Dialect, Purpose, Table
from aiolease.stores.sql.statement import NO_VALUES, ONCE, Statement, Step, Values

Bound = tuple[str, tuple[object, ...]]
"""A statement with its parameters."""

FENCE_CHECK, STEP_CHECK, BEGUN_CHECK = "aiolease fence", "aiolease check", "aiolease transaction"
"""What the error of a check quotes."""

CHECK_FAILED = "22P02"
"""The code of that error: a text that is no number."""

_TYPES = ((str, "text"), (bool, "boolean"), (int, "bigint"), (datetime, "timestamptz"))


class PostgreSQLDialect(Dialect):
    """See `Dialect`.

    The clock is that of the moment at which the server got the statement's message: one reading for all of a statement,
    as on MySQL, and a new one for the next. `now()` would stand still during a transaction.
    """

    now = "statement_timestamp()"
    count = "count"
    greatest = "GREATEST"
    before_all = "TIMESTAMPTZ '-infinity'"
    finished = ""

    def __init__(self, prefix: str) -> None:
        """Takes the prefix of the tables, which may name their schema: ``ops.aiolease_``.

        Raises:
            ConfigurationError: It cannot stand before a table's name.
        """
        if not re.fullmatch(r"([A-Za-z0-9_]{1,63}\.)?[A-Za-z0-9_]{1,40}", prefix):
            problem = "use 1 to 40 letters, digits and underscores, perhaps behind a schema and a point"
            raise ConfigurationError("table_prefix", prefix, problem)
        schema, _, self.prefix = prefix.rpartition(".")
        self.schema = schema or None
        """Where the tables are, ``None`` if the session's search path says it."""
        self.narrow = False
        """Whether the database's encoding lacks characters: then texts are kept in ASCII, as Python escapes it."""

    def table(self, name: Table) -> str:
        """See `Dialect.table`."""
        schema = f"{quoted(self.schema)}." if self.schema else ""
        return f"{schema}{self.bare(name)}"

    def bare(self, name: Table) -> str:
        """The name of a table without its schema."""
        return quoted(f"{self.prefix}{name}")

    def index(self, purpose: Purpose) -> str:
        """See `Dialect.index`."""
        return ""

    def later(self, microseconds: str) -> str:
        """See `Dialect.later`."""
        return f"{self.now} + {microseconds} * INTERVAL '1 microsecond'"

    def same(self, one: str, other: str) -> str:
        """See `Dialect.same`."""
        return f"{one} IS NOT DISTINCT FROM {other}"

    def unless_there(self, key: str, column: str) -> str:
        """See `Dialect.unless_there`."""
        return f"ON CONFLICT ({key}) DO NOTHING"

    def sane(self, column: str, *, ahead: bool = False) -> str:
        """See `Dialect.sane`."""
        last = "TIMESTAMPTZ '9999-01-01 00:00:00+00'" if ahead else self.now
        return f"CASE WHEN {column} BETWEEN TIMESTAMPTZ '1000-01-01 00:00:00+00' AND {last} THEN {column} END"

    def appended(self, column: str, line: str, most: int) -> str:
        """See `Dialect.appended`."""
        whole = f"RIGHT(COALESCE({column} || chr(10), '') || {line}, {most})"
        return f"CASE WHEN {line} IS NULL THEN {column} ELSE {whole} END"

    def newest(self, statuses: Sequence[str], offset: int = 0) -> str:
        """See `Dialect.newest`. By the primary key, from the newest row on."""
        named = ", ".join(f"'{status}'" for status in statuses)
        return (
            f"(SELECT n.tick FROM {self.table('run')} AS n WHERE n.lease = j.lease AND n.job = j.job "
            f"AND n.status IN ({named}) ORDER BY n.lease DESC, n.job DESC, n.tick DESC LIMIT 1 OFFSET {offset})"
        )

    def as_read(self, moment: str) -> str:
        """See `Dialect.as_read`. As text: one that Python has no moment for costs its row alone, not the statement."""
        return f"{moment}::text AS {moment.replace('.', '_')}_as_text"

    def kept(self, moment: datetime) -> datetime:
        """See `Dialect.kept`."""
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)

    def moment(self, value: Any) -> datetime:
        """See `Dialect.moment`."""
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        aware: datetime = moment.astimezone(UTC)
        return aware

    def bind(
        self, statement: Statement, values: Values = NO_VALUES, rows: Sequence[Values] = ONCE, *, first: int = 1
    ) -> Bound:
        """A statement with parameters: ``$1::bigint``; from another `first` number on, behind another statement."""
        text, given = statement.positional(values, rows, self.kept)
        parameters = tuple(self._sendable(value) for value in given if value is not None)
        return _with_parameters(text, tuple(map(_type, given)), first), parameters

    def literal(self, statement: Statement, values: Values = NO_VALUES, rows: Sequence[Values] = ONCE) -> str:
        """A statement with its values in it."""
        text, given = statement.positional(values, rows, self.kept)
        parts = text.split("%s")
        literals = map(quote, map(self._sendable, given))
        return parts[0] + "".join(f"{value}{part}" for part, value in zip(parts[1:], literals, strict=True))

    def literal_step(self, step: Step) -> str:
        """A step with its values in it, which fails unless it changes as many rows as it must."""
        sql = self.literal(step.statement, step.values, step.rows)
        return sql if step.changes is None else checked(sql, step.changes)

    def _sendable(self, value: object) -> object:
        """A value without what no text of the database can have: the error of a job may."""
        if not isinstance(value, str):
            return value
        value = value.replace("\0", "\ufffd")
        return value.encode("ascii", "backslashreplace").decode() if self.narrow else value


class LeaseDialect(PostgreSQLDialect):
    """For the lease: its clock is that of the moment at which it is read, behind all waits."""

    now = "clock_timestamp()"


def checked(change: str, count: int) -> str:
    """A change as a statement that raises an error unless it changes so many rows."""
    return f"WITH changed AS ({change} RETURNING 1) {check('changed', count, STEP_CHECK)}"


def check(source: str, count: int, name: str) -> str:
    """A query that raises `CHECK_FAILED`, with `name` in its text, unless its source has so many rows.

    The text is made of the count, so that the server cannot find out before it has counted that it is no number.
    """
    return (
        f"SELECT CASE WHEN count(*) = {count} THEN 1 ELSE CAST('{name}: ' || count(*) || ' rows' AS integer) END "
        f"FROM {source}"
    )


def quoted(name: str) -> str:
    """A name of a table or a schema, as it stands in a statement."""
    return '"' + name.replace('"', '""') + '"'


def quote(value: object) -> str:
    """A value as a literal, whatever the session's settings of strings and dates are."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int):
        return str(value) if value >= 0 else f"({value})"
    if isinstance(value, datetime):
        return f"TIMESTAMPTZ '{value.isoformat(sep=' ')}'"
    if not isinstance(value, str):
        raise TypeError(f"no literal of a {type(value).__name__}")
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'" if "\\" in escaped else f"'{escaped}'"


@lru_cache(maxsize=64)
def _with_parameters(text: str, types: tuple[str | None, ...], first: int) -> str:
    """A statement with its parameters by number, each with its type; a value without a type stands there as NULL."""
    parts, numbers = text.split("%s"), count(first)
    named = ("NULL" if kind is None else f"${next(numbers)}::{kind}" for kind in types)
    return parts[0] + "".join(f"{name}{part}" for name, part in zip(named, parts[1:], strict=True))


def _type(value: object) -> str | None:
    for kind, name in _TYPES:
        if isinstance(value, kind):
            return name
    if isinstance(value, list):
        return f"{_type(value[0])}[]"
    if value is None:
        return None
    raise TypeError(f"no parameter of a {type(value).__name__}")
