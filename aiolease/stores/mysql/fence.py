"""The fence of a transaction on MySQL and MariaDB: an UPDATE that counts up, and a check that it changed one row."""

from __future__ import annotations

import math

from aiolease.stores.mysql.dialect import Bound, MySQLDialect, check
from aiolease.stores.records import RunKey, TermKey
from aiolease.stores.sql.lease import FenceStatements, of_run, of_term
from aiolease.stores.sql.statement import Statement, Values

FENCE_RESULTS = 2
"""How many results a fence has: one of its UPDATE, one of the check."""

_SCHEMA = "{schema}."
"""Stands for the database until the values are bound: its name may have what a `Statement` takes for its own signs."""


class FenceSQL:
    """The statements of the fence, for one prefix of the tables."""

    def __init__(self, dialect: MySQLDialect) -> None:
        self.without_snapshot = False
        """Whether the server has a switch that lets an UPDATE change rows that are newer than the snapshot."""
        self.limits_idle = False
        """Whether the server can end a session that is idle in a transaction which has written."""
        self.database = ""
        """The database of the fence: the user's session may have gone to another with USE."""
        self._dialect = dialect
        self._statements = FenceStatements(dialect, _SCHEMA)

    def statements(self, term: TermKey, final: RunKey | None = None) -> Bound:
        """The fence, which fails unless it changed one row. It is a write, so a cluster certifies it.

        With `final`, a second statement records that run as succeeded, and fails unless that attempt is still running.
        """
        sql, values = self._checked(self._statements.count, of_term(term))
        if final is not None:
            more, more_values = self._checked(self._statements.final, of_run(term, final))
            sql, values = f"{sql}; {more}", values + more_values
        return sql, values

    def limit_idle(self, seconds: float) -> str:
        """Makes the server end this session if it is idle in a transaction with writes; empty if it cannot."""
        variable = "@@SESSION.idle_write_transaction_timeout"
        limit = f"SET {variable} = IF({variable} = 0, {math.ceil(seconds)}, {variable}); "
        return limit if self.limits_idle else ""

    def _checked(self, statement: Statement, values: Values) -> Bound:
        update, bound = self._dialect.bind(statement, values)
        quoted = self.database.replace("`", "``").replace("%", "%%")
        update = update.replace(_SCHEMA, f"`{quoted}`.", 1)
        if self.without_snapshot:
            # Others may have written this row since the transaction's snapshot; that is no conflict.
            update = f"SET STATEMENT innodb_snapshot_isolation = OFF FOR {update}"
        return f"{update}; {check(1)}", bound
