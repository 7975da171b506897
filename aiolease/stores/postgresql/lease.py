"""The statements of a lease as PostgreSQL gets them, and the channel on which its release is told.

Each is one statement, a transaction of its own: nothing lies between two of them in which a process may be frozen. At
READ COMMITTED an UPDATE that waited for a row looks at its condition again, with the row as it is then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from aiolease.stores.postgresql.dialect import Bound, LeaseDialect
from aiolease.stores.postgresql.renewals import Renewal
from aiolease.stores.records import Lease
from aiolease.stores.sql.dialect import microseconds
from aiolease.stores.sql.lease import TERM, LeaseStatements
from aiolease.stores.sql.rows import Rows
from aiolease.stores.sql.statement import Statement


class LeaseSQL:
    """The statements of the leases of one prefix.

    Attributes:
        home: The schema of the tables, as the session found it.
    """

    def __init__(self, store: str, dialect: LeaseDialect, rows: Rows) -> None:
        self.home: str | None = None
        self._store = store
        self._dialect = dialect
        self._rows = rows
        self._shared = LeaseStatements(dialect, rows)
        lease, fence = dialect.table("lease"), dialect.table("fence")
        # The clock is read once for all of a statement, before any wait for a row: what expires by it expires early.
        clock = f"(SELECT {dialect.now} AS now) AS clock"
        # It is joined before the row is locked, so that the claim has its own patience by then.
        impatient = f"(SELECT {dialect.now} AS now, set_config('lock_timeout', :patience, true)) AS clock"
        expires = "clock.now + :duration * INTERVAL '1 microsecond'"
        columns = rows.lease_columns.removesuffix(dialect.now)
        self._claim = Statement(
            # Above the fence's token, too: somebody may have set the row back by hand, or from an older backup.
            f"WITH claimed AS (UPDATE {lease} AS l SET holder = :holder, token = GREATEST(l.token, "
            f"COALESCE((SELECT f.token FROM {fence} AS f WHERE f.name = :name), 0)) + 1, beat = l.beat + 1, "
            f"elected_at = clock.now, renewed_at = clock.now, expires_at = {expires}, resign_token = NULL "
            f"FROM {impatient} WHERE l.name = :name AND l.token = :token AND l.beat = :beat "
            "AND (l.holder IS NULL OR l.expires_at <= clock.now OR :force) RETURNING l.*, clock.now), "
            f"fenced AS (INSERT INTO {fence} AS f (name, holder, token) SELECT name, holder, token FROM claimed "
            "ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, token = excluded.token "
            "WHERE f.token < excluded.token RETURNING 1) "
            # Of two that wrote the fence, the one that would lower it does nothing at all.
            "SELECT " + columns + "CASE WHEN (SELECT count(*) FROM fenced) = 1 THEN now "
            "ELSE CAST('aiolease: the fence is ahead of ' || name AS timestamptz) END FROM claimed"
        )
        self._renew = Statement(
            f"UPDATE {lease} AS l SET beat = :beat, renewed_at = clock.now, expires_at = {expires} FROM {clock} "
            f"WHERE {TERM} AND beat < :beat RETURNING {columns}clock.now"
        )
        # Rows that somebody has locked are passed over. They are locked by their names, as two processes may have them.
        self._renew_all = Statement(
            "WITH asked AS (SELECT * FROM unnest(:names, :holders, :tokens, :beats, :durations) "
            "AS asked (of_lease, of_holder, of_token, new_beat, lasting)), free AS (SELECT l.name AS of_lease "
            f"FROM {lease} AS l JOIN asked ON asked.of_lease = l.name ORDER BY l.name FOR UPDATE OF l SKIP LOCKED) "
            f"UPDATE {lease} AS l SET beat = new_beat, renewed_at = clock.now, "
            "expires_at = clock.now + lasting * INTERVAL '1 microsecond' "
            f"FROM asked JOIN free USING (of_lease), {clock} "
            "WHERE name = of_lease AND holder = of_holder AND token = of_token AND beat < new_beat "
            f"RETURNING {columns}clock.now"
        )
        self._release_unheard = Statement(f"{self._shared.release.text} RETURNING 1")
        self._release = Statement(
            f"WITH released AS ({self._release_unheard.text}) SELECT pg_notify(:channel, '') FROM released"
        )

    def lease(self, row: tuple[Any, ...]) -> Lease:
        """Makes a lease of a row.

        Raises:
            StoreUnavailable: The row cannot be read.
        """
        return self._rows.lease(row, self._store)

    def channel(self, name: str) -> str:
        """The channel of a lease: at most 63 bytes, and the database's own."""
        key = f"{self.home}\0{self._dialect.prefix}\0{name}".encode()
        return f"aiolease_{hashlib.sha256(key).hexdigest()[:40]}"

    @property
    def urgent(self) -> list[str]:
        """The statements by which a lease is read, won, kept and given up."""
        some = {"name": "", "holder": "", "token": 0, "beat": 0, "duration": 0, "force": False}
        some |= {"patience": "", "channel": ""}
        bound = [self._dialect.bind(each, some) for each in (self._claim, self._renew, self._release)]
        return [sql for sql, _ in (self.read([""]), *bound)]

    def read(self, names: Sequence[str]) -> Bound:
        """Reads rows."""
        return self._dialect.bind(self._shared.read, rows=[{"name": name} for name in names])

    def make(self, name: str) -> Bound:
        """Makes the row of a lease where it is missing."""
        return self._dialect.bind(self._shared.make, {"name": name})

    def claim(self, name: str, holder: str, duration: float, *, seen: Lease, force: bool, patience: float) -> Bound:
        """Claims a row that is in the state that was seen, and fences its term; gives the row, or none.

        It waits for `patience` seconds where somebody has locked one of the rows.
        """
        values = {
            "name": name,
            "holder": holder,
            "token": seen.token,
            "beat": seen.beat,
            "duration": microseconds(duration),
            "force": force,
            "patience": str(round(patience * 1000)),
        }
        return self._dialect.bind(self._claim, values)

    def renew(self, name: str, holder: str, token: int, beat: int, duration: float) -> Bound:
        """Extends a term's lease; gives the row, or none."""
        values = {"name": name, "holder": holder, "token": token, "beat": beat, "duration": microseconds(duration)}
        return self._dialect.bind(self._renew, values)

    def renew_all(self, renewals: Sequence[Renewal]) -> Bound:
        """Extends many terms' leases; gives the rows of those that it extended."""
        values = {
            "names": [renewal.name for renewal in renewals],
            "holders": [renewal.holder for renewal in renewals],
            "tokens": [renewal.token for renewal in renewals],
            "beats": [renewal.beat for renewal in renewals],
            "durations": [microseconds(renewal.duration) for renewal in renewals],
        }
        return self._dialect.bind(self._renew_all, values)

    def release(self, name: str, holder: str, token: int) -> Bound:
        """Clears the holder, and tells the candidates; gives a row if it did."""
        values = {"name": name, "holder": holder, "token": token, "channel": self.channel(name)}
        return self._dialect.bind(self._release, values)

    def release_unheard(self, name: str, holder: str, token: int) -> Bound:
        """Clears the holder, and tells nobody; gives a row if it did."""
        return self._dialect.bind(self._release_unheard, {"name": name, "holder": holder, "token": token})

    def resign(self, name: str) -> list[Bound]:
        """Asks the term to resign, and reads the row."""
        return [self._dialect.bind(self._shared.resign, {"name": name}), self.read([name])]
