"""The statements of the ledger, each once: what the leader reads and tells, and what people ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aiolease.stores.records import SETTLED_BY_HAND, LedgerReading
from aiolease.stores.sql.dialect import Dialect
from aiolease.stores.sql.rows import Row, Rows, read_each
from aiolease.stores.sql.statement import Statement

UNFINISHED = "status IN ('queued', 'running')"
THIS_JOB = "lease = :lease AND job = :job"


class LedgerStatements:
    """The statements that read the ledger, and those of people, in the words of one database.

    Attributes:
        clock: The database's clock.
        jobs: The jobs of a lease.
        attention: Those that somebody triggered, paused or resumed.
        unfinished: The queued and the running runs of a lease.
        running: The running ones.
        count_queued: How many are queued, by their jobs.
        queued: The oldest queued runs of a job.
        look_up: The run of a tick.
        history: The newest runs of a job.
        settle: Sets the runs, then the row, of a job right.
        trigger: Asks for a run of a job.
        pause: Pauses a job.
        resume: Ends a pause.
        requested_at: When a job was triggered; no row if there is no such job.
    """

    def __init__(self, dialect: Dialect, rows: Rows) -> None:
        self._rows = rows
        job, run, now = dialect.table("job"), dialect.table("run"), dialect.now
        jobs = f"SELECT {rows.job_columns} FROM {job} WHERE lease = :lease"
        runs = f"SELECT {rows.run_columns} FROM {run}"
        unfinished = f"{runs} {dialect.index('unfinished')} WHERE lease = :lease AND {UNFINISHED}"
        queued = f"FROM {run} {dialect.index('queued')} WHERE lease = :lease AND status = 'queued'"
        self.clock = Statement(f"SELECT {now}")
        self.jobs = Statement(f"{jobs} ORDER BY job")
        self.attention = Statement(
            f"{jobs} AND (requested_at IS NOT NULL OR paused_at IS NOT NULL OR resumed_at IS NOT NULL) ORDER BY job"
        )
        self.unfinished = Statement(f"{unfinished} ORDER BY tick, job")
        # Searched among the unfinished ones, which have an index.
        self.running = Statement(f"{unfinished} AND status = 'running' ORDER BY tick, job")
        self.count_queued = Statement(f"SELECT job, COUNT(*) {queued} GROUP BY job")
        self.queued = Statement(f"SELECT {rows.run_columns} {queued} AND job = :job ORDER BY tick LIMIT :limit")
        self.look_up = Statement(f"{runs} WHERE {THIS_JOB} AND tick = :tick")
        self.history = Statement(f"{runs} WHERE {THIS_JOB} ORDER BY tick DESC LIMIT :limit")
        self.settle = (
            Statement(
                f"UPDATE {run} {dialect.index('unfinished_of_job')} SET status = 'lost', started_at = NULL, "
                f"finished_at = {now}, tick_from = NULL, {dialect.count} = NULL, error = '{SETTLED_BY_HAND}' "
                f"WHERE {THIS_JOB} AND {UNFINISHED}"
            ),
            Statement(
                f"UPDATE {job} SET known_since = {now}, schedule_since = {now}, resumed_at = {now}, high_tick = {now}, "
                f"requested_at = NULL, paused_at = {dialect.sane('paused_at')} WHERE {THIS_JOB}"
            ),
        )
        self.trigger = Statement(f"UPDATE {job} SET requested_at = COALESCE(requested_at, {now}) WHERE {THIS_JOB}")
        self.pause = Statement(f"UPDATE {job} SET paused_at = COALESCE(paused_at, {now}) WHERE {THIS_JOB}")
        self.resume = Statement(
            f"UPDATE {job} SET resumed_at = {now}, paused_at = NULL WHERE {THIS_JOB} AND paused_at IS NOT NULL"
        )
        self.requested_at = Statement(f"SELECT requested_at FROM {job} WHERE {THIS_JOB}")

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
        return LedgerReading(
            jobs={job.job: job for job in read_each(results["jobs"], rows.job, unreadable)},
            unfinished=read_each(results.get("unfinished", ()), rows.run, unreadable),
            now=rows.moment(results["clock"][0][0]),
            queued={job: int(count) for job, count in results.get("queued", ())},
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
    """How many old rows of each job are deleted at once, so that all jobs together delete about `rows`; at least 20."""
    return max(rows // max(len(jobs), 1), 20)
