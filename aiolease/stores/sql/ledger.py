"""The statements that read the ledger, and that delete what is old, each once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aiolease.stores.batch import LedgerReading
from aiolease.stores.seen import TERMS, WHOLE_LEASE
from aiolease.stores.sql.dialect import Dialect
from aiolease.stores.sql.rows import Row, Rows, read_each
from aiolease.stores.sql.statement import Statement

UNFINISHED = "status IN ('queued', 'running')"
THIS_JOB = "lease = :lease AND job = :job"
NO_TERM = f"AND job <> '{TERMS}'"
IN_LINE, NOT_IN_LINE = "AND not_before IS NULL", "AND not_before IS NOT NULL"


class LedgerStatements:
    """The statements that read the ledger, in the words of one database.

    Attributes:
        clock: The database's clock.
        jobs: The jobs of a lease.
        attention: Those that somebody paused or resumed, or of which somebody asked something.
        unfinished: The queued and the running runs of a lease.
        running: The running ones.
        count_queued: How many are queued, by their jobs: those in the line, and those that have a moment before which
            they do not start.
        queued: The oldest queued runs of a job that are in the line.
        later: The others of a lease, the earliest first.
        look_up: The run of a tick.
        rows_from: The runs of a job from a tick on.
        history: The newest runs of a job.
    """

    def __init__(self, dialect: Dialect, rows: Rows) -> None:
        self._rows = rows
        job, run = dialect.table("job"), dialect.table("run")
        jobs = f"SELECT {rows.job_columns} FROM {job} WHERE lease = :lease"
        runs = f"SELECT {rows.run_columns} FROM {run}"
        unfinished = f"{runs} {dialect.index('unfinished')} WHERE lease = :lease AND {UNFINISHED}"
        queued = f"FROM {run} {dialect.index('queued')} WHERE lease = :lease AND status = 'queued' {IN_LINE}"
        later = f"FROM {run} {dialect.index('later')} WHERE lease = :lease AND status = 'queued' {NOT_IN_LINE}"
        self.clock = Statement(f"SELECT {dialect.now}")
        self.jobs = Statement(f"{jobs} ORDER BY job")
        self.attention = Statement(
            f"{jobs} AND (requested_at IS NOT NULL OR paused_at IS NOT NULL OR resumed_at IS NOT NULL "
            "OR asked_at IS NOT NULL OR cancel_at IS NOT NULL OR backfill_since IS NOT NULL) ORDER BY job"
        )
        self.unfinished = Statement(f"{unfinished} {NO_TERM} ORDER BY tick, job")
        # Of the unfinished ones, which have an index.
        self.running = Statement(f"{unfinished} AND status = 'running' {NO_TERM} ORDER BY tick, job")
        self.count_queued = Statement(
            f"SELECT job, COUNT(*), 0 {queued} GROUP BY job UNION ALL SELECT job, 0, COUNT(*) {later} GROUP BY job"
        )
        self.queued = Statement(f"SELECT {rows.run_columns} {queued} AND job = :job ORDER BY tick LIMIT :limit")
        self.later = Statement(f"SELECT {rows.run_columns} {later} ORDER BY not_before, job, tick LIMIT :limit")
        self.rows_from = Statement(f"{runs} WHERE {THIS_JOB} AND tick >= :since ORDER BY tick LIMIT :limit")
        self.look_up = Statement(f"{runs} WHERE {THIS_JOB} AND tick = :tick")
        self.history = Statement(f"{runs} WHERE {THIS_JOB} ORDER BY tick DESC LIMIT :limit")

    def reading(self, *, attention: bool, runs: bool, counted: bool) -> dict[str, Statement]:
        """What `LedgerStore.take_stock` reads, at one moment; each with the lease as its only parameter."""
        statements = {"clock": self.clock, "jobs": self.attention if attention else self.jobs}
        if runs and not attention:
            statements["unfinished"] = self.running if counted else self.unfinished
        if counted:
            statements["queued"] = self.count_queued
        return statements

    def read(self, results: Mapping[str, Sequence[Row]]) -> LedgerReading:
        """Makes the reading of what those statements found."""
        unreadable: dict[str, str] = {}
        rows = self._rows
        jobs = {job.job: job for job in read_each(results["jobs"], rows.job, unreadable)}
        counts = [(job, int(queued), int(later)) for job, queued, later in results.get("queued", ())]
        return LedgerReading(
            pause=jobs.pop(WHOLE_LEASE, None),
            jobs=jobs,
            unfinished=read_each(results.get("unfinished", ()), rows.run, unreadable),
            now=rows.moment(results["clock"][0][0]),
            queued={job: queued for job, queued, _ in counts if queued},
            later={job: later for job, _, later in counts if later},
            unreadable=unreadable,
        )


class PruneStatements:
    """Deletes the oldest finished runs of a job, in two statements.

    Not for a database whose binary log may be one of statements: a DELETE with a LIMIT is unsafe there.

    Attributes:
        each: First the rows of skipped ticks, which have an index, then those of the runs.
    """

    def __init__(self, dialect: Dialect) -> None:
        run = dialect.table("run")
        newest_success = f"(SELECT MAX(tick) FROM {run} WHERE {THIS_JOB} AND status = 'succeeded')"
        skipped = f"{run} {dialect.index('skipped')} WHERE {THIS_JOB} AND status = 'skipped'"
        finished = f"{run} WHERE {THIS_JOB} AND status IN ('succeeded', 'failed', 'lost')"
        self.each = tuple(
            Statement(
                f"DELETE FROM {run} WHERE {THIS_JOB} AND tick IN (SELECT tick FROM {kind} "
                f"AND tick <= (SELECT tick FROM {kind} ORDER BY tick DESC LIMIT 1 OFFSET :keep) "
                f"AND NOT {dialect.same('tick', newest_success)} ORDER BY tick LIMIT :step)"
            )
            for kind in (skipped, finished)
        )


def step_of(rows: int, jobs: Sequence[str]) -> int:
    """How many old rows of each of some jobs are deleted at once, if it may be so many of all; of many jobs, a few."""
    return max(rows // max(len(jobs), 1), 20)
