"""The statements of the lease and of the fence, each once."""

from __future__ import annotations

from aiolease.stores.records import RunKey, TermKey
from aiolease.stores.seen import TERMS
from aiolease.stores.sql.dialect import Dialect
from aiolease.stores.sql.rows import Rows
from aiolease.stores.sql.statement import Statement

TERM = "name = :name AND holder = :holder AND token = :token"
"""The rows of a lease, or of a fence, that belong to a term."""


class LeaseStatements:
    """The statements of the lease, in the words of one database.

    Attributes:
        read: Rows by their names.
        make: A row where there is none.
        claim: Takes a row that is in the state that was seen.
        fence_of_claim: The fence of a term that has just begun; in one transaction with `claim`.
        renew: Extends a term's lease.
        release: Clears the holder.
        resign: Asks the term to resign.
    """

    def __init__(self, dialect: Dialect, rows: Rows) -> None:
        lease, fence, now = dialect.table("lease"), dialect.table("fence"), dialect.now
        expires = dialect.later(":duration")
        self.read = Statement(f"SELECT {rows.lease_columns} FROM {lease} WHERE name IN ([:name])")
        self.make = Statement(
            # A row that vanished is made anew above the highest token that is known of it.
            f"INSERT INTO {lease} (name, token, beat, elected_at, renewed_at, expires_at) "
            f"SELECT :name, {_highest_token(dialect)}, 0, {now}, {now}, {now} "
            f"FROM {fence} AS f WHERE f.name = :name {dialect.unless_there('name', f'{lease}.beat')}"
        )
        self.claim = Statement(
            # Above the fence's, too: somebody may have set the row back by hand, or from an older backup.
            f"UPDATE {lease} SET holder = :holder, token = {dialect.greatest}(token, "
            f"COALESCE((SELECT f.token FROM {fence} AS f WHERE f.name = :name), 0)) + 1, beat = beat + 1, "
            f"elected_at = {now}, renewed_at = {now}, expires_at = {expires}, resign_token = NULL "
            "WHERE name = :name AND token = :token AND beat = :beat "
            f"AND (holder IS NULL OR expires_at <= {now} OR :force)"
        )
        self.fence_of_claim = Statement(
            f"INSERT INTO {fence} (name, holder, token) SELECT name, holder, token FROM {lease} WHERE name = :name "
            "ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, token = excluded.token"
        )
        self.renew = Statement(
            f"UPDATE {lease} SET beat = :beat, renewed_at = {now}, expires_at = {expires} WHERE {TERM} AND beat < :beat"
        )
        self.release = Statement(f"UPDATE {lease} SET holder = NULL, beat = beat + 1, expires_at = {now} WHERE {TERM}")
        self.resign = Statement(f"UPDATE {lease} SET resign_token = token WHERE name = :name AND holder IS NOT NULL")


def _highest_token(dialect: Dialect) -> str:
    run, job = dialect.table("run"), dialect.table("job")
    # Of the runs those are looked at that have an index: the newest of each job, and the unfinished ones.
    newest = (
        f"SELECT r.token FROM {run} AS r WHERE r.lease = j.lease AND r.job = j.job "
        "ORDER BY r.lease DESC, r.job DESC, r.tick DESC LIMIT 1"
    )
    return (
        f"{dialect.greatest}(COALESCE(MAX(f.token), 0), "
        f"COALESCE((SELECT t.token FROM {run} AS t WHERE t.lease = :name AND t.job = '{TERMS}' "
        "ORDER BY t.lease DESC, t.job DESC, t.tick DESC LIMIT 1), 0), "
        f"COALESCE((SELECT MAX(({newest})) FROM {job} AS j WHERE j.lease = :name), 0), "
        f"COALESCE((SELECT MAX(u.token) FROM {run} AS u {dialect.index('unfinished')} "
        "WHERE u.lease = :name AND u.status IN ('queued', 'running')), 0))"
    )


class FenceStatements:
    """What a fence sends. It may go over a user's connection, where a bare name may mean another table.

    Attributes:
        count: Changes one row if the term is the latest; being a write, a cluster certifies it.
        final: Records a run of the term as succeeded; changes one row if the run is the running one.
    """

    def __init__(self, dialect: Dialect, schema: str) -> None:
        """Makes them.

        Args:
            dialect: The words of the database.
            schema: Where the tables are, as it stands before a table's name, with the point.
        """
        self.count = Statement(f"UPDATE {schema}{dialect.table('fence')} SET fence = fence + 1 WHERE {TERM}")
        # A run that goes on has no `not_before` to be cleared: its start did that.
        self.final = Statement(
            f"UPDATE {schema}{dialect.table('run')} SET status = 'succeeded', finished_at = {dialect.now}, "
            "error = NULL WHERE lease = :lease AND job = :job AND tick = :tick AND attempt = :attempt "
            "AND token = :token AND status = 'running'"
        )


def of_term(term: TermKey) -> dict[str, object]:
    """The parameters of `FenceStatements.count`."""
    return {"name": term.name, "holder": term.holder, "token": term.token}


def of_run(term: TermKey, run: RunKey) -> dict[str, object]:
    """The parameters of `FenceStatements.final`."""
    return {"lease": term.name, "job": run.job, "tick": run.tick, "attempt": run.attempt, "token": run.token}
