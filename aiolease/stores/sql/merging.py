"""The newest runs of all jobs of a lease, merged: no index has all runs of a lease by their ticks.

Such an index would cost each run. So the newest tick of each job is looked up, and then pages of the newest rows of
those jobs that can have any among them, until no page can have another.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from aiolease.stores.records import RunRecord
from aiolease.stores.sql.dialect import Dialect
from aiolease.stores.sql.recording import cut
from aiolease.stores.sql.rows import Rows, read_each
from aiolease.stores.sql.sending import Sending
from aiolease.stores.sql.statement import Asked, Statement

_FAILED = ("failed", "lost")
_SMALLEST = 10
"""Rows of a page, at least."""
_AT_ONCE = 100
"""Pages in one exchange."""

_FIRST, _LAST = datetime(1000, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)


class Newest:
    """Reads the newest runs of a lease."""

    def __init__(self, dialect: Dialect, rows: Rows, sending: Sending) -> None:
        self._rows = rows
        self._sending = sending
        job, run = dialect.table("job"), dialect.table("run")
        newest = (
            f"(SELECT n.tick FROM {run} AS n WHERE n.lease = j.lease AND n.job = j.job "
            "ORDER BY n.lease DESC, n.job DESC, n.tick DESC LIMIT 1)"
        )
        page = (
            "WHERE lease = :lease AND job = :job AND tick < :before AND tick >= :since {status} "
            "ORDER BY tick DESC LIMIT :limit"
        )
        columns = f"SELECT {rows.run_columns} FROM {run}"
        by_status = f"AND status = :status {dialect.finished}"
        self._ticks, self._failed_ticks = (
            Statement(f"SELECT j.job, {tick} FROM {job} AS j WHERE j.lease = :lease")
            for tick in (newest, dialect.newest(_FAILED))
        )
        self._page = Statement(f"{columns} {page.format(status='')}")
        self._failed_page = Statement(f"{columns} {dialect.index('ended')} {page.format(status=by_status)}")

    async def read(self, name: str, *, failed: bool, since: datetime | None, limit: int) -> list[RunRecord]:
        """See `JobStore.runs`."""
        first = since or _FIRST
        open_at = dict.fromkeys(await self._sources(name, first, limit, failed=failed), _LAST)
        size = min(max(2 * limit // max(len(open_at), 1), _SMALLEST), limit)
        found: list[RunRecord] = []
        while open_at:
            full: dict[tuple[str, str | None], datetime] = {}
            for sources in cut(list(open_at), _AT_ONCE):
                asked = [self._asked(name, source, open_at[source], first, size) for source in sources]
                for source, rows in zip(sources, await self._sending.look(asked), strict=True):
                    runs = read_each(rows, self._rows.run, {})
                    found += runs
                    if len(rows) == size and runs:
                        full[source] = min(run.tick for run in runs)
            found = sorted(found, key=lambda run: (run.tick, run.job))[-limit:]
            open_at = {source: at for source, at in full.items() if len(found) < limit or at > found[0].tick}
        return found

    async def _sources(
        self, name: str, since: datetime, limit: int, *, failed: bool
    ) -> Sequence[tuple[str, str | None]]:
        """The jobs that can have rows among the newest, with each status that is asked for."""
        [rows] = await self._sending.look([(self._failed_ticks if failed else self._ticks, {"lease": name})])
        ticks = [(self._rows.moment(tick), job) for job, tick in rows if tick is not None]
        jobs = [job for tick, job in sorted(ticks)[-limit:] if tick >= since]
        return [(job, status) for job in jobs for status in (_FAILED if failed else (None,))]

    def _asked(self, name: str, source: tuple[str, str | None], before: datetime, since: datetime, size: int) -> Asked:
        job, status = source
        values = {"lease": name, "job": job, "before": before, "since": since, "limit": size}
        return (self._page, values) if status is None else (self._failed_page, {**values, "status": status})
