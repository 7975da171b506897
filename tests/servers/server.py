"""One private server of any kind: its life, its faults, and what tests ask of it."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import pymysql

from tests.servers.machine import ENVIRONMENT, SMALL, START_LIMIT, STOP_LIMIT, ServerFailed, free_port

# A server is killed when the *thread* that started it ends, so all are started by one that never does.
starter = ThreadPoolExecutor(1, thread_name_prefix="server-starter")


class Server:
    """One private server: started on entry into existence, gone with its files on ``close``.

    Use as a context manager: ``with MariaDBServer.start() as server: ...``.
    """

    kind: ClassVar[Literal["mariadb", "mysql", "postgresql"]]
    driver_errors: ClassVar[type[Exception]] = pymysql.Error
    host = "127.0.0.1"
    user = "root"
    password = ""
    # How it says what the tests of several databases say.
    system = "mysql"  # a database that is always there
    serial = "BIGINT AUTO_INCREMENT PRIMARY KEY"
    uuid = "UUID()"
    own_id = "CONNECTION_ID()"
    in_transaction = "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = CONNECTION_ID()"
    syntax_error = "1064"
    lock_table = "LOCK TABLES {} WRITE"
    lock_wait = ("SET SESSION innodb_lock_wait_timeout = 1", "1205")

    def __init__(self, folder: Path | None, options: Sequence[str], faketime: bool) -> None:
        self._own_folder = folder is None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="aiolease-")) if folder is None else folder
        self.account = "root"  # which a server does not mind that is not started by root
        self.port = free_port()
        self.options = list(options)
        self.data = self.folder / "data"
        self.socket = self.folder / "sock"
        self.error_log = self.folder / "error.log"
        self._clock = self.folder / "clock" if faketime else None
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    @classmethod
    def start(cls, folder: Path | None = None, *, options: Sequence[str] = (), faketime: bool = False) -> Self:
        """Start a server on fresh data.

        Args:
            folder: Where its files go, an empty folder with a short path; a temporary one by default.
            options: Further server options; they override those set here.
            faketime: Run it on a clock that ``step_clock`` can move.

        Raises:
            ServerFailed: With the end of its error log.
        """
        server = cls(folder, options, faketime)
        try:
            server.prepare()
            server.launch()
        except BaseException:
            server.close()
            raise
        return server

    # What the kinds of server differ in.

    @classmethod
    def available(cls) -> str | None:
        """``None`` if such a server can be had here, else the reason why not."""
        raise NotImplementedError

    @classmethod
    def _template(cls) -> Path:
        """The cached data folder of a server that was never used."""
        raise NotImplementedError

    def _command(self) -> list[str]:
        """The program and the options that only this kind has."""
        raise NotImplementedError

    def _arguments(self) -> list[str]:
        """The options that say where it listens, and where it keeps its files."""
        # A tmpdir of its own: a server that starts deletes what others have in a common one.
        command = [f"--user={self.account}"]
        command += [f"--datadir={self.data}", f"--tmpdir={self.folder}", f"--socket={self.socket}"]
        command += [f"--port={self.port}", f"--bind-address={self.host}", "--skip-name-resolve"]
        return [*command, f"--pid-file={self.folder / 'pid'}", *SMALL]

    # Its life.

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The id of the running process.

        Raises:
            ServerFailed: It is not running.
        """
        if self._process is None or self._process.poll() is not None:
            raise ServerFailed(f"the {self.kind} server on port {self.port} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process exists, frozen or not."""
        return self._process is not None and self._process.poll() is None

    def prepare(self) -> None:
        shutil.copytree(self._template(), self.data)
        if self.account != "root":
            for path in (self.folder, *self.folder.rglob("*")):
                shutil.chown(path, self.account)
        if self._clock is not None:
            self.step_clock(0.0)

    def launch(self, *options: str, wait: bool = True) -> None:
        command = ["setpriv", "--pdeathsig", "KILL"]
        if self.account != "root":  # first, for a change of user forgets the signal
            command = ["setpriv", "--reuid", self.account, "--clear-groups", *command]
        if self._clock is not None:
            command += ["env", *faketime_environment(self._clock)]
        command += [*self._command(), *self._arguments(), *self.options, *options]
        with open(self.error_log, "ab") as log:
            launch = starter.submit(
                subprocess.Popen,
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=ENVIRONMENT,
            )
            self._process = launch.result()
        if wait:
            self.wait_until_up()

    def wait_until_up(self, limit: float = START_LIMIT) -> None:
        """Wait until a login over TCP succeeds.

        Raises:
            ServerFailed: It ended, or the time is over.
        """
        deadline = time.monotonic() + limit
        while True:
            try:
                self.sql("SELECT 1")
            except self.driver_errors as error:
                if self.running and time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                log = self.error_log.read_text(errors="replace")[-4000:]
                message = f"the {self.kind} server on port {self.port} did not start"
                raise ServerFailed(f"{message}:\n{log}") from error
            return

    def freeze(self) -> None:
        """Stop it in its tracks (SIGSTOP): connections stay, nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 5.0
        while "\nState:\tT" not in Path(f"/proc/{self.pid}/status").read_text():
            if time.monotonic() > deadline:
                raise ServerFailed(f"process {self.pid} did not freeze")
            time.sleep(0.001)

    def thaw(self) -> None:
        """Let a frozen server go on (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it as a crash does (SIGKILL); ``restart`` recovers what was committed."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in an orderly way (SIGTERM), frozen or not."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Start it again, on the same port and data; stop it first if it runs."""
        self.stop()
        self.launch()

    def recover(self) -> None:
        """Make it serve again, whatever a test did to it."""
        if self.running:
            self.thaw()
        else:
            self.launch()
        self.step_clock(0.0)

    def close(self) -> None:
        """End it and remove its files. Idempotent."""
        atexit.unregister(self.close)
        self._end(signal.SIGKILL)
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
            process.send_signal(signal.SIGCONT)
            try:
                process.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_LIMIT)
        for entry in Path("/proc").glob("[0-9]*"):  # Galera's helpers for state transfer
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(int(entry.name)) == process.pid:
                    os.kill(int(entry.name), signal.SIGKILL)
        if self._clock is not None:
            # Left behind by a killed server; the next process with this id would refuse to start.
            for leftover in Path("/dev/shm").glob(f"*faketime_*_{process.pid}"):
                leftover.unlink(missing_ok=True)
        self._process = None

    # What tests do with it.

    @property
    def version(self) -> str:
        """As the server gives it, for example ``10.11.19-MariaDB-0+deb12u1``."""
        return str(self.sql("SELECT VERSION()")[0][0])

    def url(self, database: str = "", *, user: str = "root", password: str = "") -> str:
        """The URL of a database on this server, as aiolease takes it."""
        login = f"{user}:{password}" if password else user
        return f"mysql://{login}@{self.host}:{self.port}/{database}"

    @staticmethod
    def text(value: str) -> str:
        """A text as it stands in a statement."""
        return f"X'{value.encode().hex()}'"

    def session(self, database: str | None = None) -> Any:
        """A blocking session of the administrator's, in a transaction from its first statement on."""
        return pymysql.connect(host=self.host, port=self.port, user=self.user, database=database or self.system)

    def sessions(self, database: str) -> dict[int, str]:
        """The sessions in a database, by id, and what each is doing."""
        return {row[0]: str(row[7] or "") for row in self.sql("SHOW PROCESSLIST") if row[3] == database}

    def sql(self, statement: str, database: str | None = None) -> list[tuple[Any, ...]]:
        """Run one statement as the administrator, on a connection of its own.

        Raises:
            pymysql.Error: As the driver gives it.
        """
        connection = pymysql.connect(
            host=self.host,
            port=self.port,
            user=self.user,
            database=database,
            autocommit=True,
            connect_timeout=10,
            read_timeout=30,
            write_timeout=10,
            ssl_disabled=True,  # making a context for TLS takes longer than all the rest
        )
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())

    def create_database(self, name: str) -> None:
        """Make an empty database."""
        self.sql(f"CREATE DATABASE `{name}`")

    def drop_database(self, name: str) -> None:
        """Drop a database, and first end the connections that could hold it up."""
        for number in self.sessions(name):
            with contextlib.suppress(pymysql.Error):  # it may have gone by itself
                self.end_session(number)
        self.sql(f"DROP DATABASE IF EXISTS `{name}`")

    def sleeping(self, seconds: float) -> str:
        """A statement that takes so long."""
        return f"DO SLEEP({seconds})"

    def end_session(self, number: int) -> None:
        """Ends a session, as an administrator does."""
        self.sql(f"KILL {number}")

    def create_user(self, name: str, password: str, grants: str) -> None:
        """Make a user who may log in over TCP and by the socket.

        Args:
            grants: What may follow ``GRANT``, for example ``SELECT, INSERT ON shop.*``.
        """
        self.sql(f"DROP USER IF EXISTS '{name}'@'%'")  # of a test that was cut off
        self.sql(f"CREATE USER '{name}'@'%' IDENTIFIED BY '{password}'")
        self.sql(f"GRANT {grants} TO '{name}'@'%'")

    def step_clock(self, seconds: float) -> None:
        """Set the server's clock to real time plus ``seconds``, from its next look at it on.

        Raises:
            ServerFailed: It was not started with ``faketime``.
        """
        if self._clock is None:
            if seconds:
                raise ServerFailed("the clock steps only with faketime=True")
            return
        fresh = self._clock.with_suffix(".new")
        fresh.write_text(f"{seconds:+.6f}\n")
        fresh.replace(self._clock)


def faketime_environment(clock: Path) -> list[str]:
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not libraries:
        raise ServerFailed("libfaketime is not installed (Debian package libfaketime)")
    return [
        f"LD_PRELOAD={libraries[0]}",
        f"FAKETIME_TIMESTAMP_FILE={clock}",
        "FAKETIME_NO_CACHE=1",
        "DONT_FAKE_MONOTONIC=1",
    ]
