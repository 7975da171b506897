"""The statements of a lease as PostgreSQL gets them, and the channel on which its release is told.

Each is one statement, a transaction of its own: nothing lies between two of them in which a process may be frozen. At
READ COMMITTED an UPDATE that waited for a row looks at its condition again, with the row as it is then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from aiolease.stores.postgresql.batches import Claim, Renewal
from aiolease.stores.postgresql.dialect import Bound, LeaseDialect
from aiolease.stores.records import Lease
from aiolease.stores.sql.dialect import microseconds
from aiolease.stores.sql.lease import TERM, LeaseStatements
from aiolease.stores.sql.rows import Rows
from aiolease.stores.sql.statement import Statement

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ENDLESS = 2**63


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
        lease = dialect.table("lease")
        # The clock is read once for all of a statement, before any wait for a row: what expires by it expires early.
        clock = f"(SELECT {dialect.now} AS now) AS clock"
        expires = "clock.now + :duration * INTERVAL '1 microsecond'"
        columns = rows.lease_columns.removesuffix(dialect.now)
        self._claim, self._claim_all = _claims(dialect, columns, clock)
        self._renew = Statement(
            f"UPDATE {lease} AS l SET beat = :beat, renewed_at = clock.now, expires_at = {expires} FROM {clock} "
            f"WHERE {TERM} AND beat < :beat RETURNING name, clock.now, resign_token"
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
            "RETURNING name, clock.now, resign_token"
        )
        self._release_unheard = Statement(f"{self._shared.release.text} RETURNING 1")
        self._release = Statement(
            f"WITH released AS ({self._shared.release.text} RETURNING token, beat, expires_at) "
            "SELECT pg_notify(:channel, concat_ws(' ', token, beat, CAST(extract(epoch FROM expires_at) * 1000000 "
            "AS bigint))) FROM released"
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
        some = {"name": "", "holder": "", "token": 0, "beat": 0, "duration": 0, "force": False, "released": False}
        some |= {"patience": "", "channel": ""}
        bound = [self._dialect.bind(each, some) for each in (self._claim, self._renew, self._release)]
        return [sql for sql, _ in (self.read([""]), *bound)]

    def read(self, names: Sequence[str]) -> Bound:
        """Reads rows."""
        return self._dialect.bind(self._shared.read, rows=[{"name": name} for name in names])

    @staticmethod
    def released(lease: Lease, told: str) -> Lease | None:
        """The row behind the release that a notification tells of; ``None`` if it tells of no release of this term."""
        try:
            token, beat, at = map(int, told.split())
            now = _EPOCH + timedelta(microseconds=at)
        except (ValueError, OverflowError):
            return None
        if token != lease.token or not lease.beat < beat < _ENDLESS:
            return None
        return replace(lease, holder=None, beat=beat, expires_at=now, now=now)

    def make(self, name: str) -> Bound:
        """Makes the row of a lease where it is missing."""
        return self._dialect.bind(self._shared.make, {"name": name})

    def claim(self, claim: Claim, patience: float) -> Bound:
        """Claims a row that is in the state that was seen, and fences its term; gives the row, or none.

        It waits for `patience` seconds where somebody has locked one of the rows.
        """
        values = {
            "name": claim.name,
            "holder": claim.holder,
            "token": claim.seen.token,
            "beat": claim.seen.beat,
            "duration": microseconds(claim.duration),
            "force": claim.force,
            "released": claim.seen.holder is None,
            "patience": str(round(patience * 1000)),
        }
        return self._dialect.bind(self._claim, values)

    def claim_all(self, claims: Sequence[Claim]) -> Bound:
        """Claims many rows, each in the state that was seen, and fences their terms; gives the rows that it claimed."""
        values = {
            "names": [claim.name for claim in claims],
            "holders": [claim.holder for claim in claims],
            "tokens": [claim.seen.token for claim in claims],
            "beats": [claim.seen.beat for claim in claims],
            "durations": [microseconds(claim.duration) for claim in claims],
            "forces": [claim.force for claim in claims],
            "releases": [claim.seen.holder is None for claim in claims],
        }
        return self._dialect.bind(self._claim_all, values)

    def renew(self, renewal: Renewal) -> Bound:
        """Extends a term's lease; gives what `renewed` reads, or nothing."""
        values = {
            "name": renewal.name,
            "holder": renewal.holder,
            "token": renewal.token,
            "beat": renewal.beat,
            "duration": microseconds(renewal.duration),
        }
        return self._dialect.bind(self._renew, values)

    def renew_all(self, renewals: Sequence[Renewal]) -> Bound:
        """Extends many terms' leases; gives what `renewed` reads of those that it extended."""
        values = {
            "names": [renewal.name for renewal in renewals],
            "holders": [renewal.holder for renewal in renewals],
            "tokens": [renewal.token for renewal in renewals],
            "beats": [renewal.beat for renewal in renewals],
            "durations": [microseconds(renewal.duration) for renewal in renewals],
        }
        return self._dialect.bind(self._renew_all, values)

    def renewed(self, renewal: Renewal, row: Lease, told: tuple[Any, ...]) -> Lease:
        """The row of a term after a renewal that told this: the lease, the database's clock, who is to resign."""
        _, now, resign_token = told
        resigns = resign_token == renewal.token
        return row.renewed(renewal.beat, self._dialect.moment(now), renewal.duration, resigns=resigns)

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


def _claims(dialect: LeaseDialect, columns: str, clock: str) -> tuple[Statement, Statement]:
    """The claim of one lease, which waits for its row, and that of many."""
    lease, fence = dialect.table("lease"), dialect.table("fence")
    # Who saw the row released, as anybody may notify, claims no row that has a holder: that one may be alive.
    # It is joined before the row is locked, so that the claim has its own patience by then.
    impatient = f"(SELECT {dialect.now} AS now, set_config('lock_timeout', :patience, true)) AS clock"
    fenced = (
        f"fenced AS (INSERT INTO {fence} AS f (name, holder, token) SELECT name, holder, token FROM claimed "
        "ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, token = excluded.token "
        "WHERE f.token < excluded.token RETURNING f.name) "
    )
    # Of two that wrote the fence, the one that would lower it does nothing at all.
    won = (
        f"SELECT {columns}CASE WHEN name IN (SELECT fenced.name FROM fenced) THEN now "
        "ELSE CAST('aiolease: the fence is ahead of ' || name AS timestamptz) END FROM claimed"
    )
    one = Statement(
        # Above the fence's token, too: somebody may have set the row back by hand, or from an older backup.
        f"WITH claimed AS (UPDATE {lease} AS l SET holder = :holder, token = GREATEST(l.token, "
        f"COALESCE((SELECT f.token FROM {fence} AS f WHERE f.name = :name), 0)) + 1, beat = l.beat + 1, "
        "elected_at = clock.now, renewed_at = clock.now, expires_at = clock.now "
        f"+ :duration * INTERVAL '1 microsecond', resign_token = NULL FROM {impatient} "
        "WHERE l.name = :name AND l.token = :token AND l.beat = :beat "
        "AND (l.holder IS NULL OR NOT :released AND (l.expires_at <= clock.now OR :force)) "
        f"RETURNING l.*, clock.now), {fenced}{won}"
    )
    # The same of many leases: those that somebody has locked, or their fences, are passed over.
    many = Statement(
        "WITH asked AS (SELECT * FROM unnest(:names, :holders, :tokens, :beats, :durations, :forces, :releases) "
        "AS asked (of_lease, new_holder, seen_token, seen_beat, lasting, forced, released)), free AS (SELECT l.name AS "
        f"of_lease FROM {lease} AS l JOIN asked ON asked.of_lease = l.name ORDER BY l.name FOR UPDATE OF l SKIP "
        f"LOCKED), fences AS (SELECT f.name AS of_lease, f.token AS fence_token FROM {fence} AS f JOIN free "
        "ON free.of_lease = f.name ORDER BY f.name FOR UPDATE OF f SKIP LOCKED), "
        f"claimed AS (UPDATE {lease} AS l SET holder = new_holder, token = GREATEST(l.token, "
        "COALESCE(fence_token, 0)) + 1, beat = l.beat + 1, elected_at = clock.now, renewed_at = clock.now, "
        "expires_at = clock.now + lasting * INTERVAL '1 microsecond', resign_token = NULL "
        f"FROM asked JOIN free USING (of_lease) LEFT JOIN fences USING (of_lease), {clock} "
        "WHERE l.name = of_lease AND l.token = seen_token AND l.beat = seen_beat "
        "AND (l.holder IS NULL OR NOT released AND (l.expires_at <= clock.now OR forced)) AND (fence_token IS NOT NULL "
        f"OR NOT EXISTS (SELECT 1 FROM {fence} AS f WHERE f.name = of_lease)) "
        f"RETURNING l.*, clock.now), {fenced}{won}"
    )
    return one, many
