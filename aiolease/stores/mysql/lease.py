"""The statements of a lease on MySQL and MariaDB, and the name of the lock that its leader holds.

Both servers run them without a warning. Drivers count changed rows, not matched ones. So a decision rests on such a
count only where the statement changes each row that it matches, as a renewal does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from aiolease.stores.mysql.dialect import Bound, MySQLDialect, packet
from aiolease.stores.records import Lease, TermKey
from aiolease.stores.sql.dialect import microseconds
from aiolease.stores.sql.lease import LeaseStatements
from aiolease.stores.sql.rows import Rows
from aiolease.stores.sql.statement import Statement

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class LeaseSQL:
    """The statements of the leases of one prefix.

    Attributes:
        database: The database of the session, as the server names it.
        hints: Whether leaders hold locks, and candidates wait in them.
    """

    def __init__(self, store: str, prefix: str, dialect: MySQLDialect, rows: Rows) -> None:
        self.database = ""
        self.hints = True
        self._store = store
        self._prefix = prefix
        self._dialect = dialect
        self._rows = rows
        self._shared = LeaseStatements(dialect, rows)
        lease, fence, now = dialect.table("lease"), dialect.table("fence"), dialect.now
        fence_token = f"(SELECT f.token FROM {fence} AS f WHERE f.name = l.name)"
        # The answer to an UPDATE has a number of its own: the renewal says so when it was, and whether to resign.
        told = f"2 * TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {now}) + (resign_token <=> token)"
        self._renew = Statement(f"{self._shared.renew.text} AND LAST_INSERT_ID({told})")
        # A leader without its lock asks for it with its claim or a renewal, without waiting; twice would stack it.
        # As `lock_name` has it. Bytes: a database's name that is not ASCII has no characters in common with the column.
        lock = "CONCAT('aiolease-', LEFT(SHA2(CONCAT(CAST(:key AS BINARY), name), 256), 40))"
        locked = f"IF(IS_USED_LOCK({lock}) = CONNECTION_ID(), 1, GET_LOCK({lock}, 0))"
        self._read_and_lock = Statement(
            f"SELECT {rows.lease_columns}, IF((name, holder, token) IN ([(:name, :holder, :token)]), {locked}, NULL) "
            f"FROM {lease}"
        )
        self._named = Statement(" WHERE name IN ([:name])")
        # If somebody set the row back, by hand or from an older backup, its token is raised to that of its fence.
        self._raise_token = Statement(
            f"UPDATE {lease} AS l SET l.token = {fence_token}, l.beat = l.beat + 1 WHERE l.name = :name "
            f"AND (l.holder IS NULL OR l.expires_at <= {now}) AND l.token < {fence_token}"
        )
        self._make_fence = Statement(
            f"INSERT INTO {fence} (name, token) SELECT l.name, l.token FROM {lease} AS l WHERE l.name = :name "
            f"{dialect.unless_there('name', f'{fence}.fence')}"
        )
        # One statement writes lease and fence, and commits by itself.
        self._claim = Statement(
            f"UPDATE {lease} AS l JOIN {fence} AS f ON f.name = l.name "
            f"SET l.holder = :holder, l.token = :token, l.beat = :beat, l.elected_at = {now}, l.renewed_at = {now}, "
            f"l.expires_at = {dialect.later(':duration')}, l.resign_token = NULL, f.holder = :holder, f.token = :token "
            "WHERE l.name = :name AND l.token = :seen_token AND l.beat = :seen_beat AND f.token <= l.token "
            f"AND (l.holder IS NULL OR l.expires_at <= {now} OR :force)"
        )

    def lease(self, row: tuple[Any, ...]) -> Lease:
        """Makes a lease of a row.

        Raises:
            StoreUnavailable: The row cannot be read.
        """
        return self._rows.lease(row, self._store)

    def has_lock(self, row: tuple[Any, ...]) -> bool:
        """Whether `read_and_lock` gave this row to a session that has the lock of the term, or needs none."""
        return not self.hints or row[-1] == 1

    @staticmethod
    def renewed(told: int) -> tuple[datetime, bool]:
        """When a renewal took effect by the database's clock, and whether the term is asked to resign."""
        return _EPOCH + timedelta(microseconds=told >> 1), bool(told & 1)

    def lock_name(self, name: str) -> str:
        """The name of the lock of a lease's leader. Lock names are server-wide; MySQL allows 64 characters."""
        return f"aiolease-{hashlib.sha256(f'{self._key}{name}'.encode()).hexdigest()[:40]}"

    @property
    def _key(self) -> str:
        return f"{self.database}\0{self._prefix}\0"

    def read(self, names: Sequence[str]) -> Bound:
        """Reads rows."""
        return self._dialect.bind(self._shared.read, rows=[{"name": name} for name in names])

    def read_and_lock(self, terms: Sequence[TermKey]) -> Bound:
        """Reads rows and, where they belong to the terms, takes the locks for them."""
        if not self.hints:
            return self.read([term.name for term in terms])
        rows = [{"name": term.name, "holder": term.holder, "token": term.token} for term in terms]
        read, values = self._dialect.bind(self._read_and_lock, {"key": self._key}, rows)
        named, names = self._dialect.bind(self._named, rows=[{"name": term.name} for term in terms])
        return f"{read}{named}", values + names

    def make(self, name: str) -> Bound:
        """Makes the rows of a lease and of its fence, where they are missing: three statements."""
        statements = (self._shared.make, self._raise_token, self._make_fence)
        return packet(self._dialect.bind(statement, {"name": name}) for statement in statements)

    def claim(self, name: str, holder: str, duration: float, *, seen: Lease, force: bool) -> Bound:
        """Claims a row that is in the state that was seen."""
        values = {
            "name": name,
            "holder": holder,
            "token": seen.token + 1,
            "beat": seen.beat + 1,
            "duration": microseconds(duration),
            "seen_token": seen.token,
            "seen_beat": seen.beat,
            "force": int(force),
        }
        return self._dialect.bind(self._claim, values)

    def renew(self, name: str, holder: str, token: int, beat: int, duration: float) -> Bound:
        """Extends a term's lease; the answer to it says what `renewed` reads."""
        values = {"name": name, "holder": holder, "token": token, "beat": beat, "duration": microseconds(duration)}
        return self._dialect.bind(self._renew, values)

    def release(self, name: str, holder: str, token: int) -> Bound:
        """Clears the holder."""
        return self._dialect.bind(self._shared.release, {"name": name, "holder": holder, "token": token})

    def resign(self, name: str) -> Bound:
        """Asks the term to resign, and reads the row."""
        return packet([self._dialect.bind(self._shared.resign, {"name": name}), self.read([name])])
