"""Deletes old runs on MySQL and MariaDB, with statements of their own because of the binary log.

In a binary log of statements a DELETE with a LIMIT is unsafe, and the server warns each time. So the oldest rows are
read first, then deleted by their key.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiolease.stores.mysql.dialect import MySQLDialect, packet
from aiolease.stores.mysql.session import MySQLSession
from aiolease.stores.sql.ledger import THIS_JOB, step_of
from aiolease.stores.sql.recording import AT_ONCE, cut
from aiolease.stores.sql.statement import Statement

_JOBS_AT_ONCE = 50
"""How many jobs one packet reads."""


class Pruning:
    """Deletes the oldest finished runs of jobs."""

    def __init__(self, dialect: MySQLDialect, session: MySQLSession) -> None:
        self._dialect = dialect
        self._session = session
        # Rows of skipped ticks first: an index finds them, and those of the runs are looked for among them.
        self._skipped = _Kind(dialect, f"status = 'skipped' {dialect.finished}", "unfinished")
        # MySQL would skip through the other index, and sort.
        self._finished = _Kind(dialect, "status IN ('succeeded', 'failed', 'lost')", "PRIMARY")

    async def prune(self, name: str, jobs: Sequence[str], keep: int) -> list[str]:
        """See `LedgerStore.prune`."""
        if not jobs:
            return []
        more = await self._prune(self._skipped, name, jobs, keep)
        ready = [job for job in jobs if job not in more]
        return more + await self._prune(self._finished, name, ready, keep)

    async def _prune(self, kind: _Kind, name: str, jobs: Sequence[str], keep: int) -> list[str]:
        # Only some rows at once: the claims of ticks wait until the deletion is committed.
        step = step_of(AT_ONCE, jobs)
        more: list[str] = []
        for some in cut(jobs, _JOBS_AT_ONCE):
            asked = ({"lease": name, "job": job, "keep": keep, "step": step} for job in some)
            found = await self._session.run(*packet(self._dialect.bind(kind.old, values) for values in asked))
            deletes = []
            for job, [(first, last, count, spared)] in zip(some, found, strict=True):
                if count:
                    values = {"lease": name, "job": job, "first": first, "last": last, "spared": spared}
                    deletes.append(self._dialect.bind(kind.delete, values))
                if count == step:
                    more.append(job)
            if deletes:
                await self._session.run(*packet([("START TRANSACTION", ()), *deletes, ("COMMIT", ())]))
        return more


class _Kind:
    """The statements for one kind of rows: skipped ticks, or finished runs.

    Attributes:
        old: Reads, of the oldest rows beyond `keep`, the first and the last tick and their number; and the tick of the
            newest success.
        delete: Deletes the rows from one tick to another, except the newest success.
    """

    def __init__(self, dialect: MySQLDialect, status: str, index: str) -> None:
        table = dialect.table("run")
        these, by_tick = f"{THIS_JOB} AND {status}", f"{table} FORCE INDEX ({index})"
        success = f"(SELECT MAX(tick) FROM {table} WHERE {THIS_JOB} AND status = 'succeeded' {dialect.finished})"
        newest = f"SELECT tick FROM {by_tick} WHERE {these} ORDER BY tick DESC LIMIT 1 OFFSET :keep"
        self.old = Statement(
            f"SELECT MIN(tick), MAX(tick), COUNT(*), {success} FROM (SELECT tick FROM {by_tick} "
            f"WHERE tick <= (SELECT tick FROM ({newest}) AS kept) AND {these} "
            f"AND NOT {dialect.same('tick', success)} ORDER BY tick LIMIT :step) AS old"
        )
        self.delete = Statement(
            f"DELETE FROM {table} WHERE {these} AND tick BETWEEN :first AND :last "
            f"AND NOT {dialect.same('tick', ':spared')}"
        )
