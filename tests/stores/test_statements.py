"""What the stores ask of the database does not grow with the tables: the plan of every statement, on a large ledger.

Everything that a store sends is taken where it leaves the process: the packets to a server by a proxy, the statements
to SQLite by the cursor. So a new statement is judged without being listed here, if only a call in `drive` sends it, and
no public method of a store may be left out there. An EXPLAIN knows of no LIMIT: so the rows that a call reads are
counted, too.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiosqlite
import asyncmy
import pytest

from aiolease.stores import Store, open_store
from aiolease.stores.batch import Batch, JobDefinition
from aiolease.stores.records import RunRecord
from aiolease.stores.sqlite import SQLiteStore
from tests.servers import Server, TCPProxy
from tests.stores.driving import Called, change, drive, lead, methods
from tests.stores.plans import JOBS, Findings, OnServer, OnSQLite

KINDS = {
    "the making of a row anew": r"INSERT (OR IGNORE )?INTO \"?aiolease_lease.*SELECT.*MAX.*aiolease_run",
    "a claim": r"UPDATE .*aiolease_lease.*resign_token = NULL",
    "a renewal": r"UPDATE .*aiolease_lease.* SET beat = .* AND beat < ",
    "a release": r"UPDATE .*aiolease_lease.* SET holder = NULL",
    "a resignation": r"UPDATE .*aiolease_lease.* SET resign_token = token",
    "a reading of a lease": r"SELECT name, .*FROM \"?aiolease_lease",
    "a fence": r"UPDATE .*aiolease_fence.* SET fence = fence \+ ",
    "the enrolment of jobs": r"INSERT INTO \"?aiolease_job",
    "the jobs": r"SELECT .*known_since.* FROM \"?aiolease_job",
    "jobs that need attention": r"FROM \"?aiolease_job.*requested_at IS NOT NULL OR paused_at IS NOT NULL",
    "the unfinished runs": r"SELECT job, .*status IN .*ORDER BY tick, job",
    "the running runs": r"SELECT job, .*status = .*ORDER BY tick, job",
    "the number of queued runs": r"SELECT job, COUNT\(\*\).*GROUP BY job",
    "the queued runs of a job": r"SELECT .*aiolease_run.*status = .* ORDER BY tick LIMIT",
    "a run by its place": r"SELECT .*aiolease_run\"? WHERE lease = \S+ AND job = \S+ AND tick = \S+$",
    "a claim of a tick": r"INSERT INTO \"?aiolease_run",
    "skipped ticks that go on": r"UPDATE \"?aiolease_run\"?.* SET tick = ",
    "a change of a run": r"UPDATE \"?aiolease_run\"?.* SET status = .*attempt = ",
    "the success of a final transaction": r"UPDATE .*aiolease_run[\"`]? SET status = \S+ finished_at = .*error = NULL",
    "a high tick": r"UPDATE \"?aiolease_job\"?.* SET high_tick",
    "a request that was seen": r"UPDATE \"?aiolease_job\"? SET requested_at = NULL",
    "a request": r"UPDATE \"?aiolease_job\"? SET requested_at = COALESCE",
    "a pause": r"UPDATE \"?aiolease_job\"?.* SET resumed_at = .*paused_until = .*pause_note = .* job = ",
    "a pause of all": r"UPDATE \"?aiolease_job\"?.* SET resumed_at = .*pause_note = .* job <> ",
    "a resumption": r"UPDATE \"?aiolease_job\"?.* SET resumed_at = .*paused_at = NULL",
    "a resumption of all": r"UPDATE \"?aiolease_job\"?.* SET resumed_at = .*paused_at = NULL.* job <> ",
    "what comes later": r"SELECT .*aiolease_run.*not_before IS NOT NULL ORDER BY not_before",
    "the rows from a tick on": r"SELECT .*aiolease_run\"? WHERE .* AND tick >= \S+ ORDER BY tick LIMIT",
    "the jobs that a leader has": r"UPDATE \"?aiolease_job\"?.* SET token = ",
    "a run that is tried again": r"UPDATE \"?aiolease_run\"?.* SET status = .*failures = failures \+ ",
    "a run that is asked for": r"INSERT INTO \"?aiolease_run.*not_before, request",
    "a range that is trimmed": r"UPDATE \"?aiolease_run\"?.* SET tick_from = ",
    "an overview": r"SELECT j\.job, .*LEFT JOIN",
    "the newest rows of a job": r"SELECT .*aiolease_run.*tick < \S+ AND tick >= \S+ .*ORDER BY tick DESC LIMIT",
    "a run by hand": r"UPDATE \"?aiolease_run\"?.* SET status = .*request = ",
    "a request for a backfill": r"UPDATE \"?aiolease_job\"? SET backfill_since = ",
    "a request to cancel": r"UPDATE \"?aiolease_job\"? SET cancel_at = ",
    "forgetting": r"DELETE FROM \"?aiolease_job",
    "the settling of runs": r"UPDATE \"?aiolease_run\"? (?:INDEXED BY|FORCE INDEX) \S+ SET .*error = \S+ not_before",
    "the settling of a job": r"UPDATE \"?aiolease_job\"? SET known_since = ",
    "a pruning": r"DELETE FROM \"?aiolease_run",
    "a history": r"FROM \"?aiolease_run.* ORDER BY tick DESC LIMIT",
}
"""What every store sends: a test that sees less than this sees nothing."""


def judge(findings: Findings, called: Called) -> None:
    """Fails with everything that is wrong."""
    assert called.names >= methods(), f"`drive` does not call {methods() - called.names}"
    sent = sorted(findings.plans)
    missing = [kind for kind, form in KINDS.items() if not any(re.search(form, statement) for statement in sent)]
    assert not missing, "\n".join([f"not sent, or sent unseen: {missing}. Seen were:", *sent])
    problems = list(findings.all_problems())
    assert not problems, "\n".join([f"{len(problems)} statements or calls grow with the tables:", *problems])


@asynccontextmanager
async def recorded(server: Server) -> AsyncIterator[tuple[OnServer, TCPProxy, Store]]:
    """A store that has its tables, of which nothing is recorded yet."""
    recorder = OnServer(server)
    try:
        async with (
            TCPProxy(server.host, server.port, server.kind) as proxy,
            open_store(f"mysql://root@127.0.0.1:{proxy.port}/{recorder.schema}") as store,
        ):
            await store.read("big")
            yield recorder, proxy, store
    finally:
        recorder.close()
        server.drop_database(recorder.schema)


async def test_no_statement_grows_with_the_tables(mysql_server: Server) -> None:
    """No statement reads a whole table, or all rows of a lease; none sorts what has no bound."""
    async with recorded(mysql_server) as (recorder, proxy, store):

        async def connect() -> Any:
            return await asyncmy.connect(host="127.0.0.1", port=proxy.port, user="root", db=recorder.schema)

        await asyncio.to_thread(recorder.fill)
        proxy.on_query = recorder.saw
        called = Called(store)
        await drive(cast(Store, called), recorder, connect)
        judge(recorder.findings, called)


async def test_what_a_leader_writes_locks_no_other_leases_rows(mysql_server: Server) -> None:
    """Small tables are read as a whole if the server may choose, and an UPDATE locks all that it reads."""
    async with recorded(mysql_server) as (recorder, proxy, store):
        terms = [await lead(store, name) for name in ("big", "other-a")]
        for term in terms:
            await store.enroll(term, [JobDefinition(job=job, schedule="every 60s", timezone="") for job in JOBS])
        recorder.analyze()
        proxy.on_query = recorder.saw
        now = (await store.take_stock("big", attention=True)).now
        for term in terms:
            runs = [
                RunRecord(job=job, tick=now, token=term.token, holder=term.holder, status="running") for job in JOBS
            ]
            await store.record(term, Batch(claims=runs, high_ticks=dict.fromkeys(JOBS, now)))
        recorder.analyze()
        for term in terms:
            ends = [change(job, now, term.token, "running", "succeeded", required=True) for job in JOBS]
            await store.record(term, Batch(changes=ends))
            await store.prune(term.name, JOBS, 1)
    updates = [text for statement, text in recorder.findings.problems.items() if statement.startswith("UPDATE")]
    assert not updates, "\n".join(updates)


async def test_no_statement_grows_with_the_tables_on_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, whether or not somebody had SQLite gather statistics."""
    recorder = OnSQLite(tmp_path / "leases.db")

    async def connect() -> Any:
        return await aiosqlite.connect(recorder.path, isolation_level=None)

    async with aclosing(SQLiteStore(recorder.path)) as first:
        await first.read("big")
    await asyncio.to_thread(recorder.fill)
    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", recorder.connect())
        async with aclosing(SQLiteStore(recorder.path)) as store:
            called = Called(cast(Store, store))
            await drive(cast(Store, called), recorder, connect)
    recorder.judge()
    judge(recorder.findings, called)
