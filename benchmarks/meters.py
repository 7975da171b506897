"""What reached a server, by its own counters: statements, writes, claims, connections, processor time and memory."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import psycopg
import pymysql
from psycopg.rows import dict_row

from benchmarks.crowd import resident
from tests.servers import PostgreSQLServer, Server

COUNTING: Final = ("--shared_preload_libraries=pg_stat_statements", "--pg_stat_statements.max=10000")
"""What a PostgreSQL needs that counts statements. It costs each a little, so only counts are taken on such a server."""

_WRITES: Final = ("Com_delete", "Com_insert", "Com_insert_select", "Com_replace", "Com_update", "Com_update_multi")
_POSTGRESQL: Final = r"""
SELECT sum(calls) AS statements,
    sum(calls) FILTER (WHERE query ~ '\m(INSERT|UPDATE|DELETE)\M' AND query !~ 'FOR UPDATE') AS writes,
    sum(calls) FILTER (WHERE query LIKE '%claimed AS (UPDATE%') AS claims,
    (SELECT count(*) - 1 FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections
FROM pg_stat_statements WHERE query NOT LIKE '%pg_stat_%'
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Running totals, except the connections. What the meter itself asks is left out."""

    at: float
    statements: int
    writes: int
    claims: int
    connections: int
    cpu: float


class Meter(Protocol):
    """Reads the counters of one server, over one connection that it does not count.

    Attributes:
        renewal: How many statements a renewal of one lease is, on average.
    """

    renewal: float

    @property
    def server(self) -> Server:
        """The server."""

    def read(self) -> Count:
        """The counts by now."""

    def resident(self) -> int:
        """KiB of the server's memory."""

    def __enter__(self) -> Meter: ...

    def __exit__(self, *exc_info: object) -> None: ...


def meter_of(server: Server) -> Meter:
    """The meter of a server; a PostgreSQL was started with `COUNTING`."""
    return PostgreSQLMeter(server) if isinstance(server, PostgreSQLServer) else MySQLMeter(server)


class MySQLMeter:
    """MariaDB or MySQL."""

    renewal = 4 / 3  # each third reads its row, too

    def __init__(self, server: Server) -> None:
        self.server = server
        self._readings = 0
        self._connection: Any = pymysql.connect(
            host=server.host, port=server.port, user=server.user, autocommit=True, read_timeout=30
        )

    def __enter__(self) -> MySQLMeter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._connection.close()

    def resident(self) -> int:
        return resident(self.server.pid)

    def read(self) -> Count:
        with self._connection.cursor() as cursor:
            cursor.execute("SHOW GLOBAL STATUS")
            status = dict(cursor.fetchall())
        self._readings += 1
        return Count(
            at=time.monotonic(),
            statements=int(status["Questions"]) - self._readings,
            writes=sum(int(status[name]) for name in _WRITES),
            claims=int(status["Com_update_multi"]),  # nothing else of aiolease's joins in an UPDATE
            connections=int(status["Threads_connected"]) - 1,
            cpu=cpu_of(self.server.pid),
        )


class PostgreSQLMeter:
    """PostgreSQL: a process for each connection, and memory that they share, which is divided evenly."""

    renewal = 1.0

    def __init__(self, server: PostgreSQLServer) -> None:
        self.server = server
        server.sql("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        self._connection = psycopg.connect(server.url("postgres"), autocommit=True, row_factory=dict_row)

    def __enter__(self) -> PostgreSQLMeter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._connection.close()

    def resident(self) -> int:
        kib = 0
        for pid in self._processes():
            with suppress(OSError):  # it has ended meanwhile
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                kib += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return kib

    def _processes(self) -> list[int]:
        return [self.server.pid, *self.server.backends()]

    def read(self) -> Count:
        row = self._connection.execute(_POSTGRESQL).fetchone()
        assert row is not None
        return Count(
            at=time.monotonic(),
            **{name: int(row[name] or 0) for name in ("statements", "writes", "claims", "connections")},
            cpu=cpu_of_all(self.server),
        )


def cpu_of_all(server: PostgreSQLServer) -> float:
    """Seconds of the processor that a server has used so far: of its own process, its sessions and its services.

    Of those that live it is read to the nanosecond: in a hundredth of a second a session does all its work of a minute.
    """
    used = cpu_of(server.pid)  # with those of children that have ended
    for pid in server.backends():
        with suppress(OSError):  # it has ended meanwhile
            used += int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    return used


def cpu_of(pid: int) -> float:
    """Seconds of the processor that a process has used so far, with its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
