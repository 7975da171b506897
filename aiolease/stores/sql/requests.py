"""The statements of what people ask of jobs, each once."""

from __future__ import annotations

from aiolease.stores.records import MAX_EARLIER, SETTLED_BY_HAND
from aiolease.stores.seen import TERMS, WHOLE_LEASE
from aiolease.stores.sql.dialect import Dialect
from aiolease.stores.sql.ledger import THIS_JOB, UNFINISHED
from aiolease.stores.sql.statement import Statement

_WHOLE = f"lease = :lease AND job = '{WHOLE_LEASE}'"
_OTHERS = f"lease = :lease AND job <> '{WHOLE_LEASE}'"


class RequestStatements:
    """What people ask, in the words of one database.

    Attributes:
        settle: Sets the runs, then the row, of a job right.
        trigger: Asks for a run of a job.
        requested_at: When a job was triggered; no row if there is no such job.
        rerun: Queues a further attempt of a run, then tells the leader to read it.
        backfill: Asks for a backfill, if none is under way.
        backfilling: Which backfill a job has.
        cancel: Asks for the runs of a job to be cancelled, and ends its backfill: one that is asked for next is new.
        standing: The last term that had a job, the one that leads, and whether that has its row.
        last_of: The last tick of some of the oldest runs of a job.
        forget_runs: Deletes the runs of a job up to a tick.
        forget: Deletes a job, if it is still one of that term.
    """

    def __init__(self, dialect: Dialect) -> None:
        job, run, now = dialect.table("job"), dialect.table("run"), dialect.now
        lease, by_key = dialect.table("lease"), dialect.index("key")
        self.settle = (
            Statement(
                f"UPDATE {run} {dialect.index('unfinished_of_job')} SET status = 'lost', started_at = NULL, "
                f"finished_at = {now}, tick_from = NULL, {dialect.count} = NULL, error = '{SETTLED_BY_HAND}', "
                f"not_before = NULL WHERE {THIS_JOB} AND {UNFINISHED} "
                # Both, said so that an index finds those of the job.
                "AND ((not_before IS NULL AND job = :job) OR not_before IS NOT NULL)"
            ),
            Statement(
                f"UPDATE {job} SET known_since = {now}, schedule_since = {now}, resumed_at = {now}, high_tick = {now}, "
                f"requested_at = NULL, paused_at = {dialect.sane('paused_at')}, "
                f"paused_until = {dialect.sane('paused_until', ahead=True)}, asked_at = NULL, cancel_at = NULL, "
                f"backfill_since = NULL, backfill_until = NULL WHERE {THIS_JOB}"
            ),
        )
        self.trigger = Statement(f"UPDATE {job} SET requested_at = COALESCE(requested_at, {now}) WHERE {THIS_JOB}")
        self.requested_at = Statement(f"SELECT requested_at FROM {job} WHERE {THIS_JOB}")
        self.rerun = (
            Statement(
                f"UPDATE {run} {by_key} SET status = 'queued', attempt = :new_attempt, failures = 0, "
                f"uncounted = :uncounted, not_before = {now}, request = 'rerun', "
                f"earlier = {dialect.appended('earlier', ':line', MAX_EARLIER)}, started_at = NULL, "
                f"finished_at = NULL, tick_from = NULL, {dialect.count} = NULL "
                f"WHERE {THIS_JOB} AND tick = :tick AND status = :was AND token = :token AND attempt = :attempt"
            ),
            Statement(f"UPDATE {job} SET asked_at = {now} WHERE {THIS_JOB}"),
        )
        self.backfill = Statement(
            f"UPDATE {job} SET backfill_since = :since, backfill_until = :until "
            f"WHERE {THIS_JOB} AND backfill_since IS NULL"
        )
        self.backfilling = Statement(f"SELECT backfill_since, backfill_until FROM {job} WHERE {THIS_JOB}")
        self.cancel = Statement(
            f"UPDATE {job} SET cancel_at = {now}, backfill_since = NULL, backfill_until = NULL WHERE {THIS_JOB}"
        )
        self.standing = Statement(
            f"SELECT j.token, l.token, r.tick IS NOT NULL FROM {job} AS j LEFT JOIN {lease} AS l ON l.name = j.lease "
            f"AND l.holder IS NOT NULL AND l.expires_at > {now} LEFT JOIN {run} AS r ON r.lease = j.lease "
            f"AND r.job = '{TERMS}' AND r.tick = l.elected_at AND r.token = l.token "
            "WHERE j.lease = :lease AND j.job = :job"
        )
        # No DELETE with a LIMIT: it is unsafe in a binary log of statements.
        self.last_of = Statement(
            f"SELECT MAX(tick) FROM (SELECT tick FROM {run} WHERE {THIS_JOB} ORDER BY tick LIMIT :step) AS oldest"
        )
        self.forget_runs = Statement(f"DELETE FROM {run} WHERE {THIS_JOB} AND tick <= :last")
        self.forget = Statement(f"DELETE FROM {job} WHERE {THIS_JOB} AND {dialect.same('token', ':token')}")


class PauseStatements:
    """Pausing and resuming a job, or all of a lease, each in one transaction.

    A pause of the whole lease is a row of its own. The jobs that it pauses get the moment of that row, and are known by
    it; one that is paused by itself has another.

    Attributes:
        pause: Pauses a job.
        resume: Ends the pause of a job.
        pause_all: Pauses all jobs of a lease.
        resume_all: Ends that.
    """

    def __init__(self, dialect: Dialect) -> None:
        job, now, by_key = dialect.table("job"), dialect.now, dialect.index("key")
        update = f"UPDATE {job} {by_key} SET"
        paused = f"(paused_at IS NOT NULL AND (paused_until IS NULL OR paused_until > {now}))"
        ended = f"paused_at IS NOT NULL AND paused_until <= {now}"

        def whole(column: str, more: str = "") -> str:
            # Aggregated, so that a server makes it a table of its own, which reads no table that it writes; a LIMIT
            # would be unsafe in a binary log of statements.
            one = f"SELECT MAX({column}) AS {column} FROM {job} WHERE {_WHOLE}{more}"
            return f"(SELECT w.{column} FROM ({one}) AS w)"

        # A server takes these one after another, with what those before have set. Of a pause that has ended by itself
        # the end stays known.
        before = f"{update} resumed_at = CASE WHEN {ended} THEN paused_until ELSE resumed_at END, paused_at ="
        after = "paused_until = :until, pause_note = :note WHERE"
        resumed = (
            f"{update} resumed_at = CASE WHEN {ended} THEN paused_until ELSE {now} END, "
            "paused_at = NULL, paused_until = NULL, pause_note = NULL WHERE"
        )
        since, until = whole("paused_at"), whole("paused_until")
        since_if_paused = whole("paused_at", f" AND (paused_until IS NULL OR paused_until > {now})")
        self.pause = Statement(
            f"{before} CASE WHEN {paused} AND NOT {dialect.same('paused_at', since)} THEN paused_at ELSE {now} END, "
            f"{after} {THIS_JOB}"
        )
        self.resume = Statement(
            f"{resumed} {THIS_JOB} AND (paused_at IS NOT NULL OR "
            f"known_since >= {since_if_paused} AND (resumed_at IS NULL OR resumed_at < {since}))"
        )
        self.pause_all = (
            Statement(
                f"INSERT INTO {job} (lease, job, schedule, timezone, known_since, schedule_since) "
                f"VALUES (:lease, '{WHOLE_LEASE}', '', '', {now}, {now}) "
                f"{dialect.unless_there('lease, job', 'schedule')}"
            ),
            Statement(f"{before} CASE WHEN {paused} THEN paused_at ELSE {now} END, {after} {_WHOLE}"),
            Statement(f"{before} {since}, {after} {_OTHERS} AND (paused_at = {since} OR NOT {paused})"),
        )
        self.resume_all = (
            Statement(f"{resumed} {_OTHERS} AND paused_at = {since}"),
            Statement(
                f"{update} resumed_at = CASE WHEN {until} <= {now} THEN {until} ELSE {now} END WHERE {_OTHERS} "
                f"AND known_since >= {since} AND (resumed_at IS NULL OR resumed_at < {since}) AND NOT {paused}"
            ),
            Statement(f"{resumed} {_WHOLE} AND paused_at IS NOT NULL"),
        )
