"""The fence of a transaction on PostgreSQL: the row of the term is locked, or an error ends the transaction.

A claim updates the row, so it waits for those that have locked it; and who wants to lock it behind a claim finds
another term there. The row is locked and not counted up, as on other databases: a transaction that sees a snapshot
(REPEATABLE READ, SERIALIZABLE) may lock a row that others have locked since, but none that others have written since.
So fenced transactions of one term are no conflict for each other, at any isolation level, and commit together.

What the leader writes itself locks the row in the same way: alone, it would wait until for a moment no transaction of
a user has the row, and where many overlap there is none. Of two such transactions of the leader one waits, by a lock of
their own, so they meet in no deadlock.
"""

from __future__ import annotations

import math

from aiolease.stores.postgresql.dialect import BEGUN_CHECK, FENCE_CHECK, PostgreSQLDialect, checked, quoted
from aiolease.stores.postgresql.settling import DURABLE
from aiolease.stores.records import RunKey, TermKey
from aiolease.stores.sql.lease import TERM, FenceStatements, of_run, of_term
from aiolease.stores.sql.statement import Statement

_MARK = "aiolease.transaction"

MARK = f"SET LOCAL {_MARK} = 'begun'"
"""Marks a transaction at its beginning, without a query: it may still choose its isolation level.

No savepoint: that would have a transaction id of its own, and another for each transaction that writes.
"""

STILL_BEGUN = (
    f"SELECT CASE WHEN current_setting('{_MARK}', true) = 'begun' THEN 1 "
    f"ELSE CAST('{BEGUN_CHECK}: ended, ' || coalesce(current_setting('{_MARK}', true), '') AS integer) END"
)
"""Fails unless the transaction that was marked goes on: what is local to a transaction ends with it."""

_TURN = Statement("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))")
"""Waits until no other transaction has this lock, and has it until its own end."""

_IDLE = "idle_in_transaction_session_timeout"


class FenceSQL:
    """The statements of the fence, for one prefix of the tables."""

    def __init__(self, dialect: PostgreSQLDialect) -> None:
        self._dialect = dialect
        self.home = None

    @property
    def home(self) -> str | None:
        """The schema of the tables: on a user's connection a bare name may mean another table."""
        return self._home

    @home.setter
    def home(self, home: str | None) -> None:
        self._home = home
        schema = f"{quoted(home)}." if home and not self._dialect.schema else ""
        self._final = FenceStatements(self._dialect, schema).final
        row = f"SELECT '1' FROM {schema}{self._dialect.table('fence')} WHERE {TERM} FOR SHARE"
        # There is one such row at most. A count of it would take longer to plan and to run.
        self._lock = Statement(f"SELECT CAST(COALESCE(({row}), '{FENCE_CHECK}: no row') AS integer)")

    def of_leader(self, term: TermKey) -> str:
        """The fence of what the leader writes itself: one such transaction of a lease at a time."""
        turn = {"key": f"aiolease {self._home}.{self._dialect.prefix}{term.name}"}
        return f"{self._dialect.literal(_TURN, turn)}; {self._locked(term)}"

    def _locked(self, term: TermKey) -> str:
        """Locks the row of a term, which others may lock, too; fails unless it is there."""
        return self._dialect.literal(self._lock, of_term(term))

    def statements(self, term: TermKey, final: RunKey | None) -> str:
        """The fence of a user's transaction. With `final`, that run is recorded as succeeded behind it."""
        parts = [DURABLE, self._locked(term)]
        if final is not None:
            parts.append(checked(self._dialect.literal(self._final, of_run(term, final)), 1))
        return "; ".join(parts)

    @staticmethod
    def limit_idle(seconds: float) -> str:
        """Has the server end this session if it is idle in this transaction for so long, or sooner if it would."""
        limit = math.ceil(seconds * 1000)
        return (
            f"SELECT set_config('{_IDLE}', '{limit}', true) "
            f"FROM (SELECT current_setting('{_IDLE}')::interval AS found) AS own "
            f"WHERE found = INTERVAL '0' OR found > {limit} * INTERVAL '1 millisecond'"
        )
