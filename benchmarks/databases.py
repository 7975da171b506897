"""The databases that are measured: private servers as the tests start them, and a SQLite file.

Each also gives the bare driver, on the same kind of connection as aiolease makes: what aiolease adds is told as a
ratio to that.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, Protocol, final

import asyncmy
import asyncpg
import psycopg

from tests.servers import MariaDBServer, MySQLServer, PostgreSQLServer, Server, ServerFailed

Kind = Literal["mariadb", "mysql", "postgresql", "sqlite"]
KINDS: Final[tuple[Kind, ...]] = ("mariadb", "mysql", "postgresql", "sqlite")
Driver = Literal["asyncpg", "psycopg"]


class Bare(Protocol):
    """A connection of the bare driver, in autocommit."""

    async def run(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """Runs one statement to its end; its parameters are as the driver writes them, but ``%s`` on servers."""


class Database(Protocol):
    """Where leases are kept."""

    @property
    def kind(self) -> Kind:
        """How it is asked for on the command line."""

    @property
    def label(self) -> str:
        """The kind, and the driver where several are measured."""

    @property
    def version(self) -> str:
        """The server's, or the library's."""

    def fresh(self, name: str) -> str:
        """Makes an empty database and gives its URL."""

    def bare(self, name: str) -> AbstractAsyncContextManager[Bare]:
        """Connects to a database that `fresh` has made."""

    def expiry(self, name: str, lease: str) -> float:
        """When a lease in that database expires, as its row has it: seconds since the epoch. Blocks."""


@final
class ServerDatabase:
    """MariaDB or MySQL."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.kind: Kind = server.kind
        self.label: str = server.kind
        self.version = server.version

    def fresh(self, name: str) -> str:
        self.server.create_database(name)
        return self.server.url(name)

    @asynccontextmanager
    async def bare(self, name: str) -> AsyncIterator[Bare]:
        server = self.server
        connection = await asyncmy.connect(
            host=server.host, port=server.port, user=server.user, database=name, autocommit=True
        )
        try:
            yield _BareServer(connection)
        finally:
            await connection.ensure_closed()

    def expiry(self, name: str, lease: str) -> float:
        rows = self.server.sql(f"SELECT expires_at FROM aiolease_lease WHERE name = '{lease}'", name)
        expires_at: datetime = rows[0][0]
        return expires_at.replace(tzinfo=UTC).timestamp()


@final
class _BareServer:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def run(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        async with self._connection.cursor() as cursor:
            await cursor.execute(sql, parameters or None)


@final
class PostgreSQLDatabase:
    """PostgreSQL, through one of its drivers."""

    kind: Kind = "postgresql"

    def __init__(self, server: PostgreSQLServer, driver: Driver = "asyncpg") -> None:
        self.server = server
        self.driver: Driver = driver
        self.label = "postgresql" if driver == "asyncpg" else f"postgresql, {driver}"
        self.version = server.version

    def by(self, driver: Driver) -> PostgreSQLDatabase:
        """The same server through another driver; its databases have other names."""
        return PostgreSQLDatabase(self.server, driver)

    def name(self, name: str) -> str:
        """What a database is called on the server."""
        return name if self.driver == "asyncpg" else f"{name}_{self.driver}"

    def fresh(self, name: str) -> str:
        self.server.create_database(self.name(name))
        return self.server.url(self.name(name)).replace("://", f"+{self.driver}://", 1)

    @asynccontextmanager
    async def connection(self, name: str) -> AsyncIterator[Any]:
        """A connection of the driver's own kind, in autocommit."""
        url = self.server.url(self.name(name))
        connection: Any
        if self.driver == "asyncpg":
            connection = await asyncpg.connect(url)
        else:
            connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
        try:
            yield connection
        finally:
            await connection.close()

    @asynccontextmanager
    async def bare(self, name: str) -> AsyncIterator[Bare]:
        async with self.connection(name) as connection:
            yield _BareAsyncpg(connection) if self.driver == "asyncpg" else _BareServer(connection)

    def expiry(self, name: str, lease: str) -> float:
        rows = self.server.sql(f"SELECT expires_at FROM aiolease_lease WHERE name = '{lease}'", self.name(name))
        expires_at: datetime = rows[0][0]
        return expires_at.timestamp()


@final
class _BareAsyncpg:
    """asyncpg prepares each statement once, and numbers the parameters."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def run(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        for number in range(1, len(parameters) + 1):
            sql = sql.replace("%s", f"${number}", 1)
        await self._connection.execute(sql, *parameters)


def by_each_driver(databases: Sequence[Database]) -> Iterator[Database]:
    """The databases, PostgreSQL once for each of its drivers."""
    for database in databases:
        yield database
        if isinstance(database, PostgreSQLDatabase):
            yield database.by("psycopg")


@final
class FileDatabase:
    """SQLite."""

    kind: Kind = "sqlite"
    label = "sqlite"
    version = sqlite3.sqlite_version

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.db"

    def fresh(self, name: str) -> str:
        return f"sqlite:///{self._file(name)}"

    @asynccontextmanager
    async def bare(self, name: str) -> AsyncIterator[Bare]:
        with ThreadPoolExecutor(1) as thread:
            bare = _BareFile(self._file(name), thread)
            await bare.open()
            try:
                yield bare
            finally:
                await bare.close()

    def expiry(self, name: str, lease: str) -> float:
        with closing(sqlite3.connect(self._file(name))) as connection:
            row = connection.execute("SELECT expires_at FROM aiolease_lease WHERE name = ?", (lease,)).fetchone()
        return float(row[0]) / 1_000_000


@final
class _BareFile:
    """In a thread, as any asynchronous program has to."""

    def __init__(self, file: Path, thread: ThreadPoolExecutor) -> None:
        self._file = file
        self._thread = thread
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        def work() -> None:
            self._connection = sqlite3.connect(self._file, timeout=5, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")

        await self._in_thread(work)

    async def run(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        def work() -> None:
            assert self._connection is not None
            self._connection.execute(sql, parameters)

        await self._in_thread(work)

    async def close(self) -> None:
        assert self._connection is not None
        await self._in_thread(self._connection.close)

    async def _in_thread(self, work: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, work)


_PROGRAMS: Final = {"mariadb": MariaDBServer, "mysql": MySQLServer, "postgresql": PostgreSQLServer}


@contextmanager
def open_databases(kinds: Sequence[Kind]) -> Iterator[tuple[list[Database], dict[Kind, str]]]:
    """Starts what can be had of these kinds; also says why the others cannot. All are gone after the block."""
    with ExitStack() as stack:
        databases: list[Database] = []
        missing: dict[Kind, str] = {}
        for kind in kinds:
            if kind == "sqlite":
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="aiolease-bench-"))
                databases.append(FileDatabase(Path(folder)))
                continue
            program: type[Server] = _PROGRAMS[kind]
            if reason := program.available():
                missing[kind] = reason
                continue
            try:
                server = stack.enter_context(program.start())
                found = PostgreSQLDatabase(server) if isinstance(server, PostgreSQLServer) else ServerDatabase(server)
                databases.append(found)
            except ServerFailed as error:
                missing[kind] = str(error)
        yield databases, missing
