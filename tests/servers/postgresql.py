"""PostgreSQL as a private server, and PgBouncer before it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, final

import psycopg

from tests.servers.machine import (
    ENVIRONMENT,
    START_LIMIT,
    STOP_LIMIT,
    ServerFailed,
    cache_folder,
    free_port,
    made_once,
    run,
)
from tests.servers.server import Server, starter
from tests.servers.unstable import loaded, unpack

ACCOUNT = "postgres"
"""The user of the machine who runs the servers where the tests are root's, whom they refuse."""


QUICK = ("--fsync=off",)
"""For tests that make many databases: dropping one takes a hundredth of a second in place of one. What was committed
outlives a crash of the server all the same, only not one of the machine."""

BY_PASSWORD = "by_password"
"""A role; its members must log in with their passwords."""


def newest(folder: Path) -> Path | None:
    """The programs of the newest PostgreSQL in a folder."""
    found = sorted(folder.glob("usr/lib/postgresql/*/bin"), key=lambda programs: int(programs.parent.name))
    return found[-1] if found else None


def _runs(pid: int) -> bool:
    """Whether a process runs. One that has ended may stay for seconds, until the machine's first process looks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def as_account() -> list[str]:
    """What a command begins with that root may not run."""
    return ["setpriv", "--reuid", ACCOUNT, "--clear-groups"] if os.geteuid() == 0 else []


class PostgreSQLServer(Server):
    """PostgreSQL, from the Debian package ``postgresql``. Every login is trusted, but of members of `BY_PASSWORD`."""

    kind = "postgresql"
    driver_errors = psycopg.Error
    user = "postgres"
    system = "postgres"
    serial = "BIGSERIAL PRIMARY KEY"
    uuid = "gen_random_uuid()::text"
    own_id = "pg_backend_pid()"
    # Of all sessions: the drivers begin one of their own for this statement.
    in_transaction = (
        "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND state LIKE 'idle in transaction%'"
    )
    syntax_error = "syntax error"
    lock_table = "LOCK TABLE {} IN ACCESS EXCLUSIVE MODE"
    lock_wait = ("SET LOCAL lock_timeout = 500", "55P03")

    @classmethod
    def available(cls) -> str | None:
        if newest(Path("/")) is None:
            return "PostgreSQL is not installed (Debian package postgresql)"
        return None if shutil.which("setpriv") else "setpriv is not installed"

    @classmethod
    def _programs(cls) -> Path:
        """The folder of its programs."""
        folder = newest(Path("/"))
        assert folder is not None, "not installed"
        return folder

    @classmethod
    def _template(cls) -> Path:
        folder = cls._programs()
        target = cache_folder() / f"postgresql-{folder.parent.name}"
        with made_once(target) as scratch:
            if scratch is not None:
                with tempfile.TemporaryDirectory() as place:
                    made = Path(place) / "data"
                    if os.geteuid() == 0:
                        shutil.chown(place, ACCOUNT)
                    run(
                        *as_account(), folder / "initdb", f"--pgdata={made}", "--username=postgres", "--auth=trust",
                        "--encoding=UTF8", "--locale=C.UTF-8", "--wal-segsize=1", "--no-instructions",
                    )  # fmt: skip
                    shutil.copytree(made, scratch, dirs_exist_ok=True)
        return target

    def prepare(self) -> None:
        if os.geteuid() == 0:
            self.account = ACCOUNT
        super().prepare()
        self.data.chmod(0o700)
        logins = self.data / "pg_hba.conf"
        by_password = f"host all +{BY_PASSWORD} all scram-sha-256\n"  # the first line that fits is what counts
        logins.write_text(by_password + logins.read_text())

    @classmethod
    def standby_of(cls, primary: PostgreSQLServer) -> PostgreSQLServer:
        """Start a server that follows another, until ``promote``."""
        folder = cls._programs()
        standby = cls(None, primary.options, False)
        try:
            standby.account = primary.account
            if os.geteuid() == 0:
                shutil.chown(standby.folder, ACCOUNT)
            run(
                *as_account(), folder / "pg_basebackup", f"--host={primary.host}", f"--port={primary.port}",
                "--username=postgres", f"--pgdata={standby.data}", "--write-recovery-conf", "--checkpoint=fast",
                "--no-sync",
            )  # fmt: skip
            standby.launch()
        except BaseException:
            standby.close()
            raise
        return standby

    def promote(self) -> None:
        """Make a standby a primary."""
        assert self.sql("SELECT pg_promote()") == [(True,)]

    def _command(self) -> list[str]:
        return [str(self._programs() / "postgres")]

    def _arguments(self) -> list[str]:
        settings = {
            "port": self.port,
            "listen_addresses": self.host,
            "unix_socket_directories": self.folder,
            "shared_buffers": "16MB",
            "min_wal_size": "4MB",
            "max_wal_size": "64MB",
            "max_connections": 150,
            "log_line_prefix": "%m [%p] %a ",
        }
        return ["-D", str(self.data), *(f"--{name}={value}" for name, value in settings.items())]

    def backends(self) -> list[int]:
        """The processes of the server's sessions and services: each is the leader of a session of its own."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = entry.read_text().rpartition(") ")[2].split()
                if int(fields[1]) == self.pid:
                    found.append(int(entry.parent.name))
        return found

    def _signal_backends(self, how: signal.Signals) -> None:
        self._signal(self.backends(), how)

    @staticmethod
    def _signal(processes: list[int], how: signal.Signals) -> None:
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)

    def freeze(self) -> None:
        super().freeze()  # first, so that it starts no further ones
        self._signal_backends(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_backends(signal.SIGCONT)
        super().thaw()

    def stop(self) -> None:
        if self.running:
            self.thaw()
        self._end(signal.SIGINT)  # SIGTERM would wait for the clients

    def _end(self, how: signal.Signals) -> None:
        backends = self.backends() if self.running else []
        super()._end(how)
        deadline = time.monotonic() + STOP_LIMIT
        while backends and time.monotonic() < deadline:
            if how == signal.SIGKILL:
                self._signal(backends, how)
            backends = [pid for pid in backends if _runs(pid)]
            time.sleep(0.002)

    @property
    def version(self) -> str:
        return str(self.sql("SHOW server_version")[0][0])

    def url(self, database: str = "", *, user: str = "postgres", password: str = "") -> str:
        login = f"{user}:{password}" if password else user
        return f"postgresql://{login}@{self.host}:{self.port}/{database}"

    def sql(self, statement: str, database: str | None = None) -> list[tuple[Any, ...]]:
        connection = psycopg.connect(
            host=self.host, port=self.port, user=self.user, dbname=database or "postgres", autocommit=True,
            connect_timeout=10, sslmode="disable",
        )  # fmt: skip
        with connection:
            cursor = connection.execute(statement.encode())
            return list(cursor.fetchall()) if cursor.description else []

    @staticmethod
    def text(value: str) -> str:
        return "'" + value.replace("'", "''") + "'"

    def session(self, database: str | None = None) -> Any:
        return psycopg.connect(
            host=self.host, port=self.port, user=self.user, dbname=database or self.system, connect_timeout=10,
            sslmode="disable",
        )  # fmt: skip

    def sessions(self, database: str) -> dict[int, str]:
        own = f"datname = {self.text(database)} AND backend_type = 'client backend'"
        return {row[0]: str(row[1] or "") for row in self.sql(f"SELECT pid, query FROM pg_stat_activity WHERE {own}")}

    def sleeping(self, seconds: float) -> str:
        return f"SELECT pg_sleep({seconds})"

    def end_session(self, number: int) -> None:
        self.sql(f"SELECT pg_terminate_backend({number})")

    def drop_database(self, name: str) -> None:
        self.sql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def create_database(self, name: str) -> None:
        self.sql(f'CREATE DATABASE "{name}"')

    def create_user(self, name: str, password: str, grants: str) -> None:
        self.sql(f"DROP ROLE IF EXISTS {name}")
        self.sql(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
        if grants:
            self.sql(f"GRANT {grants} TO {name}")


@final
class NewPostgreSQLServer(PostgreSQLServer):
    """The newest PostgreSQL, from Debian unstable: downloaded once, unpacked beside the system."""

    _root: ClassVar[Path | None] = None
    _missing: ClassVar[str | None] = None  # kept: to find out may take as long as a network needs to say no

    @classmethod
    def available(cls) -> str | None:
        if cls._missing is None:
            try:
                cls._programs()
            except ServerFailed as error:
                cls._missing = f"a newer PostgreSQL cannot be had here: {error}"
        return cls._missing or super().available()

    @classmethod
    def _programs(cls) -> Path:
        if cls._root is None:
            root = _for_all() / "postgresql"
            with made_once(root) as folder:
                if folder is not None:
                    unpack("postgresql", folder)
                    _make_runnable(folder, root)
            cls._root = root
        folder = newest(cls._root)
        assert folder is not None, "unpacked"
        return folder


def _for_all() -> Path:
    """The cache, if the user may read there who runs the servers; not so in the home of root."""
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    own = os.geteuid() != 0 or all(folder.stat().st_mode & 0o001 for folder in (cache, *cache.parents))
    return cache if own else Path("/var/cache/aiolease-tests")


def _make_runnable(folder: Path, root: Path) -> None:
    """Puts a script in the place of each program that was unpacked: they start each other by these paths.

    Args:
        folder: Where they are.
        root: Where they will be.
    """
    programs = newest(folder)
    if programs is None:
        raise ServerFailed("Debian unstable has no PostgreSQL")
    for name in ("initdb", "pg_basebackup", "postgres"):
        program = programs / name
        real = program.rename(program.with_name(f"{name}.real"))
        loader, *arguments, _ = loaded(folder, program)
        command = [loader, *arguments, str(real)]
        words = " ".join(f"'{word}'" for word in command).replace(str(folder), str(root))
        program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        program.chmod(0o755)


@final
class PgBouncer:
    """PgBouncer before a server, from the Debian package ``pgbouncer``.

    Attributes:
        host: Where it listens.
        port: Where it listens.
    """

    host = "127.0.0.1"

    def __init__(self, server: PostgreSQLServer, mode: Literal["transaction", "session"], size: int) -> None:
        self.port = free_port()
        self._server = server
        self._folder = Path(tempfile.mkdtemp(prefix="aiolease-"))
        self._settings = {"pool_mode": mode, "default_pool_size": size}
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def available() -> str | None:
        """``None`` if it can be had here, else the reason why not."""
        found = shutil.which("pgbouncer", path=ENVIRONMENT["PATH"])
        return None if found else "pgbouncer is not installed (Debian package pgbouncer)"

    @classmethod
    @contextlib.contextmanager
    def start(
        cls, server: PostgreSQLServer, mode: Literal["transaction", "session"], *, size: int = 20
    ) -> Iterator[Self]:
        """Starts one.

        Args:
            server: What it leads to.
            mode: When a connection to the server may be another client's.
            size: How many of those it makes for a database.
        """
        bouncer = cls(server, mode, size)
        try:
            bouncer._launch()
            yield bouncer
        finally:
            bouncer._close()

    def url(self, database: str) -> str:
        """The URL of a database through it."""
        return f"postgresql://postgres@{self.host}:{self.port}/{database}"

    def _launch(self) -> None:
        users, settings = self._folder / "users.txt", self._folder / "pgbouncer.ini"
        users.write_text('"postgres" ""\n')
        own = {
            "listen_addr": self.host, "listen_port": self.port, "auth_type": "trust", "auth_file": users,
            "unix_socket_dir": self._folder, "max_client_conn": 500, **self._settings,
        }  # fmt: skip
        lines = [f"{name} = {value}" for name, value in own.items()]
        target = f"* = host={self._server.host} port={self._server.port} user=postgres"
        settings.write_text("\n".join(["[databases]", target, "[pgbouncer]", *lines, ""]))
        if os.geteuid() == 0:
            for path in (self._folder, users, settings):
                shutil.chown(path, ACCOUNT)
        command = [*as_account(), "setpriv", "--pdeathsig", "KILL", "pgbouncer", str(settings)]
        with open(self._folder / "log", "ab") as log:
            self._process = starter.submit(
                subprocess.Popen, command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=ENVIRONMENT
            ).result()
        deadline = time.monotonic() + START_LIMIT
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=5).close()
            except psycopg.Error as error:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    log_text = (self._folder / "log").read_text(errors="replace")[-2000:]
                    raise ServerFailed(f"pgbouncer did not start:\n{log_text}") from error
                time.sleep(0.02)
            else:
                return

    def _close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_LIMIT)
        shutil.rmtree(self._folder, ignore_errors=True)
