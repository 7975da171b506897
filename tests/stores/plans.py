"""A large ledger on a server or on SQLite, and how each plans the statements that stores send."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast
from uuid import uuid4

import pymysql
from pymysql.constants import CLIENT

from aiolease.stores.mysql.settling import SETTLE
from tests.servers import Server

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
            if not line.startswith(("SCAN ", "SEARCH ", "USE ")):
                unbounded = False  # a query of its own within
            if table == "aiolease_run" and not re.search(
                r"job=\? AND tick=|aiolease_run_(unfinished|queued|later)", line
            ):
                unbounded = True
                if "job=?" not in line or not re.search(r"\bLIMIT\b|tick <= :last", sql):  # the last of a step
                    yield f"reads all rows of a {'job' if 'job=?' in line else 'lease'} in {table}"
            if unbounded and "TEMP B-TREE" in line:
                yield "sorts all that it reads"

    def rows_read(self) -> int:
        return self._steps // STEPS

    def delete(self, name: str, *tables: str) -> None:
        with closing(self._connect(self.path)) as connection, connection:
            for table in tables:
                connection.execute(f"DELETE FROM aiolease_{table} WHERE name = ?", (name,))
