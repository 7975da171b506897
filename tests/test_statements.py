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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast
from uuid import uuid4

import aiosqlite
import asyncmy
import pymysql
import pytest
from pymysql.constants import CLIENT

from aiolease._election.claim import new_holder
from aiolease.stores import Store, open_store
from aiolease.stores.contract import LeaseStore, LedgerStore
from aiolease.stores.mysql.settling import SETTLE
from aiolease.stores.records import Batch, Change, JobDefinition, Lease, RunKey, RunRecord, RunStatus, TermKey
from aiolease.stores.sqlite import SQLiteStore
from tests.servers import Server, TCPProxy

T = TypeVar("T")

GROWING = ("aiolease_job", "aiolease_run")
TABLES = ("aiolease_lease", "aiolease_fence", *GROWING)
JOBS = [f"job{number:02}" for number in range(50)]
BUSY, FAILING = JOBS[0], JOBS[1]
"""A job with many more runs than others, and one with as many, of which none ever succeeded."""
MANY, FEW = 3000, 800
"""How many finished runs those have, and the others."""
KEPT = 100
"""How many of them pruning leaves."""

UNFINISHED = 350
"""How many runs are queued or running."""

SHARE = 10_000
"""Rows that a server may take a statement to read, which knows no LIMIT: all of one job, and as many by mistake."""
SORTED = 3 * UNFINISHED
"""Rows that it may take a statement to sort: those that are unfinished."""
READ = 4 * UNFINISHED
"""Rows that a call may read, of whatever it is about."""
AT_ONCE = 1000
"""Rows that a statement names, or that pruning deletes in a step."""
STEPS = 40
"""What SQLite's machine does for a row, about."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST = datetime(2026, 1, 1, tzinfo=UTC)
EARLIER = "earlier-1-0123456789abcdef0123456789abcdef"
EARLIER_TOKEN = 7
Row = tuple[str, str, datetime, int, int, str, str, datetime | None, datetime | None, str | None]


def finished(lease: str, job: str, runs: int) -> Iterator[Row]:
    statuses = ["failed"] if job == FAILING else [*["succeeded"] * 16, "failed", "failed", "skipped", "lost"]
    for number in range(runs):
        tick, status = FIRST + timedelta(minutes=number), statuses[number % len(statuses)]
        error = None if status == "succeeded" else f"why it {status}"
        yield (lease, job, tick, 1, EARLIER_TOKEN, EARLIER, status, tick, tick + timedelta(seconds=1), error)


def unfinished(job: str, number: int) -> Row:
    tick = FIRST + timedelta(days=10, minutes=number)
    status = "running" if number == 0 else "queued"
    return ("big", job, tick, 1, EARLIER_TOKEN, EARLIER, status, None if number else tick, None, None)


def ledger() -> Iterator[Row]:
    """Some 50,000 runs, most of them of one lease; `UNFINISHED` are queued or running."""
    for job in JOBS:
        yield from finished("big", job, MANY if job in {BUSY, FAILING} else FEW)
        yield from (unfinished(job, number) for number in range(UNFINISHED // len(JOBS)))
    for lease in ("other-a", "other-b", "other-c", "other-d"):
        for job in JOBS[:5]:
            yield from finished(lease, job, 200)


def known() -> Iterator[tuple[str, str]]:
    """The jobs of all leases."""
    yield from (("big", job) for job in JOBS)
    yield from ((f"other-{letter}", job) for letter in "abcd" for job in JOBS[:5])
    yield from (("other-a", f"more{number:04}") for number in range(1000))


LEASES = ["big", "other-a", "other-b", "other-c", "other-d", *(f"idle-{number:03}" for number in range(300))]

RUN_COLUMNS = "lease, job, tick, attempt, token, holder, status, started_at, finished_at, error"


@dataclass
class Findings:
    """What a store sent, and what is wrong with it. A statement is known by its text without values."""

    plans: dict[str, list[str]] = field(default_factory=dict)
    """The first plan of each statement."""
    problems: dict[str, str] = field(default_factory=dict)
    """What the plan of a statement shows; the first plan that does counts."""
    reads: dict[str, tuple[int, int, list[str]]] = field(default_factory=dict)
    """How much a call reads, how much it may, and what it sent."""

    def note(self, statement: str, problems: Iterable[str], plan: Iterable[object]) -> None:
        """Takes down a plan."""
        found, known_as = list(problems), without_values(statement)
        lines = [str(row) for row in plan]
        self.plans.setdefault(known_as, lines)
        if found:
            text = [f"{'; '.join(found)}:", f"  {shorten(statement)}", *(f"    {line}" for line in lines)]
            self.problems.setdefault(known_as, "\n".join(text))

    def all_problems(self) -> Iterator[str]:
        """What the plans show, and then the calls that read too much, with the plans of all that they sent."""
        yield from self.problems.values()
        for call, (read, limit, sent) in self.reads.items():
            if read > limit:
                lines = [f"{call} reads {read} rows, and may read {limit}:"]
                for statement in sent:
                    lines += [f"  {statement}", *(f"    {line}" for line in self.plans.get(statement, []))]
                yield "\n".join(lines)


def without_values(statement: str) -> str:
    bare = re.sub(r"'(?:[^'\\]|\\.|'')*'|\b\d+\b", "?", statement)
    bare = re.sub(r"\(\?(, (\?|NULL|UTC_TIMESTAMP\(\?\)))+\)", "(?, …)", bare)  # lists, and rows to be inserted
    bare = re.sub(r"\(\?, …\)(, \(\?, …\))+", "(?, …), …", bare)
    bare = re.sub(r"( UNION ALL SELECT \?, \?, \?)+", " UNION ALL …", bare)
    return re.sub(r"( UNION ALL \(SELECT [^()]*\))+", " UNION ALL …", bare)


def shorten(statement: str, most: int = 1500) -> str:
    return statement if len(statement) <= most else f"{statement[: most // 2]} […] {statement[-most // 2 :]}"


def real_name(table: str, statement: str) -> str:
    """The table that has this alias in a statement."""
    alias = re.search(rf"(\w+)[\"`]? AS [\"`]?{re.escape(table)}\b", statement)
    return alias[1] if alias else table


class Recorder:
    """A database of one kind: fills it, and judges what a store sends there."""

    def __init__(self) -> None:
        self.findings = Findings()
        self.sent: list[str] = []

    def rows_read(self) -> int:
        """How many rows were read there so far, by anybody, and to find that out."""
        raise NotImplementedError

    def delete(self, name: str, *tables: str) -> None:
        """Deletes rows of a lease by hand."""
        raise NotImplementedError

    async def measure(self, what: str, call: Awaitable[T], *, limit: int = READ) -> T:
        """Awaits a call, which may read so many rows."""
        noise = -self.rows_read() + self.rows_read()
        self.sent.clear()
        before = self.rows_read()
        result = await call
        read = self.rows_read() - before - noise
        self.findings.reads[what] = read, limit, list(dict.fromkeys(map(without_values, self.sent)))
        return result


# -- servers


@dataclass
class PlanRow:
    """A line of EXPLAIN."""

    kind: str
    table: str
    access: str
    key: str
    rows: int
    extra: str

    @classmethod
    def of(cls, row: dict[str, Any]) -> PlanRow:
        text = {key: str(value or "") for key, value in row.items()}
        rows = int(float(text["rows"] or 0))
        return cls(text["select_type"], text["table"], text["type"], text["key"], rows, text["Extra"])

    def problems(self, statement: str) -> Iterator[str]:
        if self.kind in {"INSERT", "REPLACE"}:  # where the rows go to
            return
        table = real_name(self.table, statement)
        locks = statement.startswith(("UPDATE", "DELETE")) or "FOR UPDATE" in statement
        if table in TABLES and self.access in {"ALL", "index"} and (locks or table in GROWING):
            yield f"reads the whole of {table}"
        elif self.rows > SHARE:
            yield f"reads {self.rows} rows of {table}"
        if re.search("filesort|temporary", self.extra) and self.rows > SORTED:
            yield f"sorts {self.rows} rows of {table}"


class OnServer(Recorder):
    """A server; a proxy before it sees what is sent, and has the server explain it before it gets it."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.schema = f"test_{uuid4().hex[:12]}"
        server.create_database(self.schema)
        self._connection = pymysql.connect(
            host=server.host, port=server.port, user=server.user, database=self.schema, autocommit=True,
            read_timeout=60, ssl_disabled=True, client_flag=CLIENT.MULTI_STATEMENTS,
        )  # fmt: skip
        with self._connection.cursor() as cursor:  # the plans are those of sessions like ours
            cursor.execute(SETTLE, (600,))
            while cursor.nextset():
                pass

    def close(self) -> None:
        self._connection.close()

    def fill(self) -> None:
        rows = [
            (
                *row[:2],
                row[2].replace(tzinfo=None),
                *row[3:7],
                *(at and at.replace(tzinfo=None) for at in row[7:9]),
                row[9],
            )
            for row in ledger()
        ]
        names = [(name,) for name in LEASES]
        with self._connection.cursor() as cursor:
            cursor.execute("START TRANSACTION")
            cursor.executemany(f"INSERT INTO aiolease_run ({RUN_COLUMNS}) VALUES ({', '.join(['%s'] * 10)})", rows)
            cursor.executemany(
                "INSERT INTO aiolease_job (lease, job, schedule, timezone, known_since, schedule_since) "
                f"VALUES (%s, %s, 'every 60s', '', '{FIRST:%F}', '{FIRST:%F}')",
                list(known()),
            )
            cursor.executemany(
                "INSERT INTO aiolease_lease (name, token, beat, elected_at, renewed_at, expires_at) "
                f"VALUES (%s, {EARLIER_TOKEN}, 9, '{FIRST:%F}', '{FIRST:%F}', '{FIRST:%F}')",
                names,
            )
            cursor.executemany(f"INSERT INTO aiolease_fence (name, token) VALUES (%s, {EARLIER_TOKEN})", names)
            cursor.execute("COMMIT")
        self.analyze()

    def analyze(self) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(f"ANALYZE TABLE {', '.join(TABLES)}")
            cursor.fetchall()

    def saw(self, packet: bytes) -> None:
        """Judges the statements of a packet; called before the server has it."""
        text = packet.decode("utf-8", "replace")
        for part in re.findall(r"(?:'(?:[^'\\]|\\.|'')*'|`[^`]*`|[^;'`])+", text):
            statement = part.strip()
            if any(table in statement for table in TABLES) and not statement.startswith("CREATE"):
                self._judge(re.sub(r"^SET STATEMENT .*? FOR (?=UPDATE)", "", statement))

    def _judge(self, statement: str) -> None:
        self.sent.append(statement)
        try:
            with self._connection.cursor(pymysql.cursors.DictCursor) as cursor:
                cursor.execute(f"EXPLAIN FORMAT=TRADITIONAL {statement}")
                plan = [PlanRow.of(row) for row in cursor.fetchall()]
        except pymysql.Error as error:
            self.findings.note(statement, [f"cannot be explained: {error}"], [])
            return
        self.findings.note(statement, (problem for row in plan for problem in row.problems(statement)), plan)

    def rows_read(self) -> int:
        with self._connection.cursor() as cursor:
            cursor.execute("SHOW GLOBAL STATUS LIKE 'Handler\\_read%'")
            return sum(int(value) for _, value in cursor.fetchall())

    def delete(self, name: str, *tables: str) -> None:
        with self._connection.cursor() as cursor:
            for table in tables:
                cursor.execute(f"DELETE FROM aiolease_{table} WHERE name = %s", (name,))


# -- SQLite


class OnSQLite(Recorder):
    """A file; the cursors of this process explain what they execute, then without and afterwards with statistics."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._connect = sqlite3.connect
        self._values: dict[str, Any] = {}
        self._steps = 0

    def connect(self) -> Callable[..., sqlite3.Connection]:
        """A function that connects as `sqlite3.connect` does."""
        recorder = self

        class Cursor(sqlite3.Cursor):
            def execute(self, sql: str, parameters: Any = (), /) -> Cursor:
                recorder.saw(sql, parameters)
                return super().execute(sql, parameters)

            def executemany(self, sql: str, parameters: Iterable[Any], /) -> Cursor:
                rows = list(parameters)
                recorder.saw(sql, rows[0] if rows else ())
                return super().executemany(sql, rows)

        class Connection(sqlite3.Connection):
            def cursor(self, factory: Any = Cursor) -> Any:
                return super().cursor(factory)

            def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
                return cast(sqlite3.Cursor, self.cursor().execute(sql, parameters))

            def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
                return cast(sqlite3.Cursor, self.cursor().executemany(sql, parameters))

        def connected(*args: Any, **more: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = self._connect(*args, **{**more, "factory": Connection})
            connection.set_progress_handler(self._stepped, STEPS)
            return connection

        return connected

    def _stepped(self) -> int:
        self._steps += STEPS
        return 0

    def fill(self) -> None:
        def moment(at: datetime | None) -> int | None:
            return None if at is None else (at - EPOCH) // timedelta(microseconds=1)

        first = moment(FIRST)
        rows = [(*row[:2], moment(row[2]), *row[3:7], *map(moment, row[7:9]), row[9]) for row in ledger()]
        with closing(self._connect(self.path)) as connection, connection:
            connection.executemany(f"INSERT INTO aiolease_run ({RUN_COLUMNS}) VALUES ({', '.join('?' * 10)})", rows)
            connection.executemany(
                "INSERT INTO aiolease_job (lease, job, schedule, timezone, known_since, schedule_since) "
                f"VALUES (?, ?, 'every 60s', '', {first}, {first})",
                list(known()),
            )
            names = [(name,) for name in LEASES]
            connection.executemany(
                "INSERT INTO aiolease_lease (name, token, beat, elected_at, renewed_at, expires_at) "
                f"VALUES (?, {EARLIER_TOKEN}, 9, {first}, {first}, {first})",
                names,
            )
            connection.executemany(f"INSERT INTO aiolease_fence (name, token) VALUES (?, {EARLIER_TOKEN})", names)

    def saw(self, sql: str, values: Any) -> None:
        """Remembers a statement with its values; the values do not matter to its plan."""
        if any(table in sql for table in TABLES) and not sql.startswith("CREATE"):
            self._values.setdefault(sql, values)
            self.sent.append(sql)

    def judge(self) -> None:
        """Judges all that was sent: without statistics, as all files are, and with."""
        with closing(self._connect(self.path, isolation_level=None)) as connection:
            for statistics in (False, True):
                if statistics:
                    connection.execute("ANALYZE")
                for sql, values in self._values.items():
                    plan = [str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
                    self.findings.note(sql, self._problems(sql, plan), plan)

    @staticmethod
    def _problems(sql: str, plan: Sequence[str]) -> Iterator[str]:
        unbounded = False
        for line in plan:
            table = real_name(line.split()[1], sql) if line.startswith(("SCAN ", "SEARCH ")) else ""
            if table in TABLES and line.startswith("SCAN "):
                yield f"reads the whole of {table}"
            if table == "aiolease_run" and not re.search(r"job=\? AND tick=|aiolease_run_(unfinished|queued)", line):
                unbounded = True
                if "job=?" not in line or not re.search(r"\bLIMIT\b", sql):
                    yield f"reads all rows of a {'job' if 'job=?' in line else 'lease'} in {table}"
        if unbounded and any("TEMP B-TREE" in line for line in plan):
            yield "sorts all that it reads"

    def rows_read(self) -> int:
        return self._steps // STEPS

    def delete(self, name: str, *tables: str) -> None:
        with closing(self._connect(self.path)) as connection, connection:
            for table in tables:
                connection.execute(f"DELETE FROM aiolease_{table} WHERE name = ?", (name,))


# -- what is sent


class Called:
    """A store that remembers which of its methods were asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(self._store, name)


def methods() -> set[str]:
    """All that a store can do."""
    found = {name for protocol in (LeaseStore, LedgerStore, Store) for name in vars(protocol)}
    return {name for name in found if not name.startswith("_")} - {"description", "aclose"}


async def lead(store: Store, name: str) -> TermKey:
    lease = await store.claim(name, new_holder(), 30.0, seen=await store.read(name), force=True)
    return term_of(lease)


def term_of(lease: Lease | None) -> TermKey:
    assert lease is not None
    assert lease.holder is not None
    return TermKey(lease.name, lease.holder, lease.token)


def change(job: str, tick: datetime, token: int, was: RunStatus, status: RunStatus, **more: Any) -> Change:
    return Change(**({"key": RunKey(job, tick, 1, token), "was": was, "status": status, "attempt": 1} | more))


async def drive(store: Store, recorder: Recorder, connect: Callable[[], Awaitable[Any]]) -> None:
    """Has a store send everything that it can, while the tables are large."""
    measure = recorder.measure
    await drive_leases(store, recorder)
    term = await measure("claim", lead(store, "big"))
    await drive_ledger(store, recorder, term)
    await drive_transactions(store, recorder, term, connect)


async def drive_leases(store: Store, recorder: Recorder) -> None:
    measure = recorder.measure
    # Rows that were deleted by hand: both, the lease's, the fence's; and of a lease that is new.
    for tables in (("lease", "fence"), ("lease",), ("fence",)):
        recorder.delete("big", *tables)
        made = await measure(f"claim without rows in {tables}", lead(store, "big"))
        assert made.token > EARLIER_TOKEN
    term = await measure("claim of a new lease", lead(store, "new"))
    await measure("renew", store.renew(term.name, term.holder, term.token, 20, 30.0))
    await measure("status", store.status("big"))
    await measure("resign", store.resign(term.name))
    seen = await measure("read", store.read(term.name))
    await measure("watch", store.watch(term.name, 0.2, lease=seen, poll=0.1, hint=False))
    await measure("release", store.release(term.name, term.holder, term.token))
    # Many at one moment, in one packet; and those that only look.
    names = [f"idle-{number:03}" for number in range(40)]
    terms = await measure("claims", asyncio.gather(*(lead(store, name) for name in names)))
    renewals = (store.renew(each.name, each.holder, each.token, 20, 30.0) for each in terms)
    await measure("renewals", asyncio.gather(*renewals))
    looks = (store.watch(name, 0.2, lease=None, poll=0.1, hint=True) for name in LEASES[-100:])
    await measure("watches", asyncio.gather(*looks))
    releases = (store.release(each.name, each.holder, each.token) for each in terms)
    await measure("releases", asyncio.gather(*releases))
    store.forget("idle-000")
    seen = await store.read("idle-299")
    await measure("watch in the lock", store.watch("idle-299", 1.0, lease=seen, poll=0.5, hint=True))


async def drive_ledger(store: Store, recorder: Recorder, term: TermKey) -> None:
    measure = recorder.measure
    for how in ({}, {"counted": True}, {"attention": True}, {"runs": False}):
        await measure(f"take_stock({how})", store.take_stock("big", **how))
    await measure("queued", store.queued("big", JOBS, 3))
    ticks = [FIRST + timedelta(minutes=number) for number in (0, 100, 650, 10**6)]
    await measure("look_up", store.look_up("big", [(job, tick) for job in JOBS for tick in ticks]))
    await measure("history", store.history("big", BUSY, limit=100))
    await measure("history of one", store.history("big", FAILING, limit=1))

    more = [f"more{number:04}" for number in range(1000)]
    enrolments = [JobDefinition(job=job, schedule="every 60s", timezone="") for job in [*JOBS, *more]]
    enrolments[3] = JobDefinition(job=JOBS[3], schedule="cron 0 9 * * *", timezone="Europe/Vienna")
    await measure("enroll", store.enroll(term, enrolments), limit=8 * AT_ONCE)
    await measure("enroll none", store.enroll(term, []))

    # What an earlier term left: lost, to be run again, begun, too late.
    left = FIRST + timedelta(days=10)
    was_queued, too_late = left + timedelta(minutes=1), left + timedelta(minutes=2)
    changes = [change(job, left, EARLIER_TOKEN, "running", "lost", error="lost") for job in JOBS[:20]]
    changes += [change(job, left, EARLIER_TOKEN, "running", "queued", attempt=2, adopt=True) for job in JOBS[20:40]]
    changes += [
        change(job, was_queued, EARLIER_TOKEN, "queued", "running", adopt=True, required=True) for job in JOBS[:30]
    ]
    changes += [
        change(job, too_late, EARLIER_TOKEN, "queued", "skipped", error="late", required=True) for job in JOBS[:30]
    ]
    await measure("record what was left", store.record(term, Batch(changes=changes)))

    # Claims of many jobs at one moment, reckoned from nothing and from what was seen, and their ends.
    now = (await store.take_stock("big", attention=True)).now.replace(microsecond=0)
    for number, jobs in enumerate([JOBS[:10], [*JOBS, *more][10:1010]]):
        tick = now + timedelta(seconds=number)
        claims = [
            RunRecord(job=job, tick=tick, token=term.token, holder=term.holder, status="running") for job in jobs[2:]
        ]
        skipped: dict[str, Any] = {"status": "skipped", "error": "late", "tick_from": now, "count": 2}
        claims += [RunRecord(job=job, tick=tick, token=term.token, holder=term.holder, **skipped) for job in jobs[:2]]
        batch = Batch(claims=claims, high_ticks=dict.fromkeys(jobs, tick))
        if number:
            batch.seen = dict.fromkeys(jobs)
        await measure(f"record claims of {len(jobs)}", store.record(term, batch), limit=4 * AT_ONCE)
        ends = [change(job, tick, term.token, "running", "succeeded", required=True) for job in jobs[2:-1]]
        ends += [change(jobs[-1], tick, term.token, "running", "failed", error="it failed", required=True)]
        await measure(f"record ends of {len(jobs)}", store.record(term, Batch(changes=ends)), limit=4 * AT_ONCE)

    longer = [
        RunRecord(job=job, tick=now + timedelta(seconds=2), token=term.token, holder=term.holder, **skipped)
        for job in JOBS[:2]
    ]
    batch = Batch(claims=longer, extends={(run.job, run.tick): now for run in longer})
    await measure("record a row that grows", store.record(term, batch))

    requested = await measure("trigger", store.trigger("big", JOBS[5]))
    run = RunRecord(job=JOBS[5], tick=requested, token=term.token, holder=term.holder, status="queued")
    batch = Batch(claims=[run], requests={JOBS[5]: requested})
    await measure("record what was triggered", store.record(term, batch))
    await measure("pause", store.pause("big", JOBS[5]))
    await measure("resume", store.resume("big", JOBS[5]))
    await measure("settle", store.settle("big", BUSY))

    for job in (BUSY, FAILING):
        assert await measure(f"prune {job}", store.prune("big", [job], KEPT), limit=4 * AT_ONCE) == [job]
    assert await measure("prune nothing", store.prune("big", JOBS[10:11], FEW), limit=4 * FEW) == []
    await measure("prune those that are not full", store.prune("big", more[:50], KEPT))


async def drive_transactions(
    store: Store, recorder: Recorder, term: TermKey, connect: Callable[[], Awaitable[Any]]
) -> None:
    measure = recorder.measure
    now = (await store.take_stock("big", attention=True)).now.replace(microsecond=0)
    finals = [RunKey(job, now - timedelta(seconds=30), 1, term.token) for job in JOBS[6:8]]
    claims = [
        RunRecord(job=key.job, tick=key.tick, token=term.token, holder=term.holder, status="running") for key in finals
    ]
    await store.record(term, Batch(claims=claims))
    await measure("commit", (await store.begin()).commit(term))
    await measure("commit of a run", (await store.begin()).commit(term, finals[0]))
    connection = await connect()
    try:
        await connection.begin() if hasattr(connection, "begin") else await connection.execute("BEGIN")
        await measure("fence of a run", store.fence(connection, term, finals[1], within=5.0))
        await connection.commit()
    finally:
        await connection.ensure_closed() if hasattr(connection, "ensure_closed") else await connection.close()


# -- the rules

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
    "a pause": r"UPDATE \"?aiolease_job\"? SET paused_at = COALESCE",
    "a resumption": r"UPDATE \"?aiolease_job\"? SET resumed_at = ",
    "the settling of runs": r"UPDATE \"?aiolease_run\"?.* SET status = .*tick_from = NULL",
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
            TCPProxy(server.host, server.port) as proxy,
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
