"""Private database servers for tests and benchmarks.

Every server is started from the machine's binaries on a free loopback port, keeps its files in a
temporary folder, and is ended by process id. None outlives this process: the kernel kills it when we
die (``setpriv --pdeathsig``). Functions here block; an async test calls the slow ones through
``asyncio.to_thread``. All durations are seconds.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import fcntl
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, final

import pymysql

__all__ = [
    "Action",
    "GaleraCluster",
    "MariaDBServer",
    "MySQLServer",
    "Server",
    "ServerFailed",
    "TCPProxy",
    "cache_folder",
    "free_port",
]

Side = Literal["to_server", "to_client"]
Direction = Literal["both", "to_server", "to_client"]
Fate = Literal["forward", "swallow", "cut"]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

START_LIMIT = 60.0
STOP_LIMIT = 30.0
DOWNLOAD_LIMIT = 300.0

# Full durability as in production (each commit is flushed, which is the default), on small files.
SMALL = (
    "--innodb-buffer-pool-size=16M",
    "--innodb-data-file-path=ibdata1:5M:autoextend",
    "--innodb-autoextend-increment=1",
)

# A server is killed when the *thread* that started it ends, so all are started by one that never does.
_starter = ThreadPoolExecutor(1, thread_name_prefix="server-starter")
_handed_out: set[int] = set()
# The folders of daemons are not on every user's path.
_ENVIRONMENT = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin"}


class ServerFailed(Exception):
    """A server did not start, did not stop, or cannot be had here."""


def cache_folder() -> Path:
    """Where templates of data folders and downloaded servers are kept between test runs."""
    default = Path.home() / ".cache" / "aiolease-tests"
    return Path(os.environ.get("AIOLEASE_TEST_CACHE", default))


def free_port() -> int:
    """A loopback port that nobody listens on, below the range of outgoing connections.

    A port from that range could be taken by a client while the server is down for a restart.
    """
    for _ in range(200):
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            if port not in _handed_out:
                _handed_out.add(port)
                return port
    raise ServerFailed("no free loopback port between 15000 and 32000")


@contextlib.contextmanager
def made_once(target: Path) -> Iterator[Path | None]:
    """Give a scratch folder to fill, which then becomes ``target``; ``None`` if that exists.

    A lock file keeps a second test run waiting while the first one makes it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(target.name + ".lock"), "w") as lock:
        deadline = time.monotonic() + DOWNLOAD_LIMIT
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ServerFailed(f"another process has been making {target} for too long") from None
                time.sleep(0.1)
        if target.exists():
            yield None
            return
        scratch = target.with_name(target.name + ".part")
        shutil.rmtree(scratch, ignore_errors=True)  # of one that was killed
        scratch.mkdir()
        try:
            yield scratch
            scratch.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def run(*command: str | Path, limit: float = 120.0) -> str:
    """Run a program to its end and return what it said.

    Raises:
        ServerFailed: It is not there, failed, or took too long.
    """
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, check=False, env=_ENVIRONMENT
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerFailed(f"{command[0]}: {error}") from error
    text = (done.stdout + done.stderr).decode(errors="replace")
    if done.returncode:
        told = [line for line in text.splitlines() if line.startswith("E: ")] or [text[-2000:]]
        raise ServerFailed(f"{command[0]} exited with {done.returncode}: {told[-1]}")
    return text


class Server:
    """One private server: started on entry into existence, gone with its files on ``close``.

    Use as a context manager: ``with MariaDBServer.start() as server: ...``.
    """

    kind: ClassVar[Literal["mariadb", "mysql"]]
    host = "127.0.0.1"
    user = "root"
    password = ""

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
            server._prepare()
            server._launch()
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

    def _prepare(self) -> None:
        shutil.copytree(self._template(), self.data)
        if self.account != "root":
            for path in (self.folder, *self.folder.rglob("*")):
                shutil.chown(path, self.account)
        if self._clock is not None:
            self.step_clock(0.0)

    def _launch(self, *options: str, wait: bool = True) -> None:
        command = ["setpriv", "--pdeathsig", "KILL"]
        if self.account != "root":  # first, for a change of user forgets the signal
            command = ["setpriv", "--reuid", self.account, "--clear-groups", *command]
        if self._clock is not None:
            command += ["env", *_faketime_environment(self._clock)]
        program, *arguments = self._command()
        command += [program, *arguments, f"--user={self.account}"]
        # A tmpdir of its own: a server that starts deletes what others have in a common one.
        command += [f"--datadir={self.data}", f"--tmpdir={self.folder}", f"--socket={self.socket}"]
        command += [f"--port={self.port}", f"--bind-address={self.host}", "--skip-name-resolve"]
        command += [f"--pid-file={self.folder / 'pid'}", *SMALL, *self.options, *options]
        with open(self.error_log, "ab") as log:
            launch = _starter.submit(
                subprocess.Popen,
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=_ENVIRONMENT,
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
                self.sql("DO 0")
            except pymysql.Error as error:
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
        self._launch()

    def recover(self) -> None:
        """Make it serve again, whatever a test did to it."""
        if self.running:
            self.thaw()
        else:
            self._launch()
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
        for row in self.sql("SHOW PROCESSLIST"):
            if row[3] == name:
                with contextlib.suppress(pymysql.Error):  # it may have gone by itself
                    self.sql(f"KILL {row[0]}")
        self.sql(f"DROP DATABASE IF EXISTS `{name}`")

    def create_user(self, name: str, password: str, grants: str) -> None:
        """Make a user who may log in over TCP and by the socket.

        Args:
            grants: What may follow ``GRANT``, for example ``SELECT, INSERT ON shop.*``.
        """
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


def _faketime_environment(clock: Path) -> list[str]:
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not libraries:
        raise ServerFailed("libfaketime is not installed (Debian package libfaketime)")
    return [
        f"LD_PRELOAD={libraries[0]}",
        f"FAKETIME_TIMESTAMP_FILE={clock}",
        "FAKETIME_NO_CACHE=1",
        "DONT_FAKE_MONOTONIC=1",
    ]


class MariaDBServer(Server):
    """MariaDB, from the Debian package ``mariadb-server``."""

    kind = "mariadb"

    @classmethod
    def available(cls) -> str | None:
        for program in ("mariadbd", "mariadb-install-db", "setpriv"):
            if shutil.which(program, path=_ENVIRONMENT["PATH"]) is None:
                return f"{program} is not installed (Debian package mariadb-server)"
        return None

    @classmethod
    def _template(cls) -> Path:
        version = run("mariadbd", "--version").split()[2]
        target = cache_folder() / f"mariadb-{version}"
        with made_once(target) as folder:
            if folder is not None:
                run(
                    "mariadb-install-db",
                    "--no-defaults",
                    f"--datadir={folder}",
                    "--user=root",
                    "--auth-root-authentication-method=normal",
                    "--skip-test-db",
                    "--skip-name-resolve",
                    "--innodb-log-file-size=4M",
                    *SMALL,
                )
        return target

    def _command(self) -> list[str]:
        return [
            "mariadbd",
            "--no-defaults",
            "--innodb-log-file-size=4M",
            "--innodb-temp-data-file-path=ibtmp1:2M:autoextend",
        ]


@final
class MySQLServer(Server):
    """MySQL 9, from Debian unstable: downloaded once, unpacked beside the system, which it leaves alone."""

    kind = "mysql"
    _root: ClassVar[Path | None] = None

    @classmethod
    def available(cls) -> str | None:
        try:
            cls._template()
        except ServerFailed as error:
            return f"MySQL 9 cannot be had here: {error}"
        return None

    @classmethod
    def _template(cls) -> Path:
        root = cache_folder() / "mysql"
        with made_once(root) as folder:
            if folder is not None:
                _unpack_from_unstable("mysql-server-core", folder)
        cls._root = root
        target = root.with_name("mysql-data")
        with made_once(target) as folder:
            if folder is not None:
                # Made beside the folder, for the server wants an empty one.
                script = target.with_suffix(".sql")
                script.write_text(
                    "CREATE USER 'root'@'127.0.0.1';\nGRANT ALL ON *.* TO 'root'@'127.0.0.1' WITH GRANT OPTION;\n"
                )
                run(
                    *cls._program(root),
                    "--initialize-insecure",
                    "--user=root",
                    f"--init-file={script}",
                    f"--datadir={folder}",
                    *SMALL,
                )
        return target

    @staticmethod
    def _program(root: Path) -> list[str]:
        libraries = next((root / "usr/lib").glob("*-linux-gnu*"))
        loader = next((root / "usr").glob("lib*/ld-linux-*"))
        return [
            *(str(loader), "--library-path", str(libraries), str(root / "usr/sbin/mysqld")),
            *("--no-defaults", "--innodb-redo-log-capacity=8M"),
            *(f"--basedir={root / 'usr'}", f"--lc-messages-dir={root / 'usr/share/mysql'}"),
            *(f"--character-sets-dir={root / 'usr/share/mysql/charsets'}",),
            *(f"--plugin-dir={root / 'usr/lib/mysql/plugin'}",),
            *("--secure-file-priv=NULL", "--mysqlx=OFF", "--disable-log-bin"),
        ]

    def _command(self) -> list[str]:
        assert self._root is not None, "set by _template"
        return self._program(self._root)

    def create_user(self, name: str, password: str, grants: str) -> None:
        """Make a user who may log in over TCP without TLS, until the server is restarted.

        The first login with ``caching_sha2_password`` needs a secure channel, here the socket.
        """
        super().create_user(name, password, grants)
        pymysql.connect(unix_socket=str(self.socket), user=name, password=password).close()


def _unpack_from_unstable(package: str, folder: Path) -> None:
    """Download a package with all that it needs by a private apt, and unpack it into a folder.

    The mirror is the one that this machine's apt is set up with; apt checks the signatures.
    """
    state = folder / "apt"
    for name in ("lists/partial", "archives/partial"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()
    (state / "sources.list").write_text(f"deb {_debian_source()} sid main\n")
    options = [
        f"Dir::Etc::SourceList={state / 'sources.list'}",
        "Dir::Etc::SourceParts=-",
        f"Dir::State={state}",
        f"Dir::State::Lists={state / 'lists'}",
        f"Dir::State::Status={state / 'status'}",
        f"Dir::Cache={state}",
        "Acquire::Languages=none",
        "Acquire::Retries=1",
        "Acquire::http::Timeout=20",
        "Acquire::https::Timeout=20",
        "APT::Update::Error-Mode=any",
        "APT::Sandbox::User=root",
        "APT::Install-Recommends=false",
    ]
    apt = ["apt-get", *(f"-o{option}" for option in options)]
    run(*apt, "update")
    run(*apt, "--yes", "--download-only", "install", package, limit=DOWNLOAD_LIMIT)
    for archive in sorted((state / "archives").glob("*.deb")):
        run("dpkg-deb", "--extract", archive, folder)
    shutil.rmtree(state)


def _debian_source() -> str:
    """The Debian mirror of this machine's apt, with the keyring option in front."""
    apt = Path("/etc/apt")
    for file in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]:
        if file.is_file():
            lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
            found = re.search(r"\b\w+:/+\S+/debian/?(?!\S)", "\n".join(lines))
            if found:
                keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
                option = f"[signed-by={keyring}] " if keyring.exists() else ""
                return option + found[0]
    raise ServerFailed("apt is not set up with a Debian mirror")


@final
class GaleraCluster:
    """Several MariaDB servers that replicate to each other synchronously, all on loopback.

    Attributes:
        nodes: The servers; each has the whole API, and ``restart`` lets it join the others again.
    """

    def __init__(self, count: int, options: Sequence[str]) -> None:
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(count)]
        self.nodes: list[MariaDBServer] = []
        for address in addresses:
            provider = [f"gmcast.listen_addr=tcp://{address}", f"ist.recv_addr=127.0.0.1:{free_port()}"]
            provider += ["gcache.size=16M", "socket.checksum=1"]
            node_options = [
                "--wsrep-on=ON",
                f"--wsrep-provider={_galera_library()}",
                f"--wsrep-provider-options={';'.join(provider)}",
                f"--wsrep-cluster-address=gcomm://{','.join(addresses)}",
                "--wsrep-node-address=127.0.0.1",
                "--wsrep-sst-method=rsync",
                f"--wsrep-sst-receive-address=127.0.0.1:{free_port()}",
                "--binlog-format=ROW",
                "--innodb-autoinc-lock-mode=2",
            ]
            node = MariaDBServer(None, [*node_options, *options], faketime=False)
            if os.geteuid() == 0:
                node.account = "nobody"  # as whom rsync receives the state if root starts it
            self.nodes.append(node)

    @classmethod
    def available(cls) -> str | None:
        """``None`` if a cluster can be had here, else the reason why not."""
        if _galera_library() is None:
            return "libgalera_smm.so is not installed (Debian package galera-4)"
        if shutil.which("rsync") is None:
            return "rsync is not installed"
        return MariaDBServer.available()

    @classmethod
    def start(cls, nodes: int = 3, *, options: Sequence[str] = ()) -> Self:
        """Start a cluster on fresh data; returns when all nodes are synced.

        Raises:
            ServerFailed: With the end of the error log of the node that did not start.
        """
        cluster = cls(nodes, options)
        try:
            for number, node in enumerate(cluster.nodes):
                node._prepare()
                node._launch(*([] if number else ["--wsrep-new-cluster"]))
            cluster.wait_until_synced()
        except BaseException:
            cluster.close()
            raise
        return cluster

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End all nodes and remove their files. Idempotent."""
        for node in self.nodes:
            node.close()

    def wait_until_synced(self, limit: float = START_LIMIT) -> None:
        """Wait until every node sees all others and takes statements.

        Raises:
            ServerFailed: The time is over.
        """
        deadline = time.monotonic() + limit
        for node in self.nodes:
            while (seen := self.status(node)) != ("Primary", len(self.nodes), "Synced"):
                if time.monotonic() > deadline:
                    raise ServerFailed(f"the Galera node on port {node.port} is not synced: {seen}")
                time.sleep(0.05)

    @staticmethod
    def status(node: MariaDBServer) -> tuple[str, int, str]:
        """How a node sees its cluster: its component, the nodes in it, and its own state."""
        status = dict(node.sql("SHOW STATUS LIKE 'wsrep%'"))
        size = int(status["wsrep_cluster_size"])
        return status["wsrep_cluster_status"], size, status["wsrep_local_state_comment"]

    def recover(self) -> None:
        """Make all nodes serve again, whatever a test did to them, unless it ended them all."""
        for node in self.nodes:
            if node.running:
                node.thaw()
        for node in self.nodes:
            if not node.running:
                node.restart()
        self.wait_until_synced()


def _galera_library() -> Path | None:
    return next(iter(sorted(Path("/usr").glob("lib*/galera*/libgalera_smm.so"))), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What a proxy does with one query and with the server's answer to it.

    ``forward`` is the ordinary case. ``swallow``: the bytes vanish, and so does all that follows in that
    direction of the connection, which stays open. ``cut``: the connection ends instead.

    Attributes:
        hold: Keep the query, and what the client sends after it, until this is set.
        query: What becomes of the query itself.
        answer: What becomes of the answer; with ``cut`` the server has carried the query out.
        answered: Set when the first bytes of the answer have come from the server.
    """

    hold: asyncio.Event | None = None
    query: Fate = "forward"
    answer: Fate = "forward"
    answered: asyncio.Event | None = None


@final
class TCPProxy:
    """A proxy before a MySQL server that makes the network's faults, on demand and at once.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        on_query: Called with the text of every query (COM_QUERY); what it returns happens to that one.
            Queries within TLS or the compressed protocol are not seen.
        connections: How many were accepted since the start.
        live: How many are open now.
        bytes_to_server: How many bytes were passed on.
        swallowed: How many bytes have vanished on their way to either side.
    """

    def __init__(self, host: str, port: int) -> None:
        self.port = free_port()
        self.on_query: Callable[[bytes], Action | None] | None = None
        self.connections = 0
        self.bytes_to_server = 0
        self.swallowed: dict[Side, int] = {"to_server": 0, "to_client": 0}
        self._target = (host, port)
        self._delays: dict[Side, float] = {"to_server": 0.0, "to_client": 0.0}
        self._swallowed: set[Side] = set()
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._links: dict[asyncio.Task[None], _Link] = {}

    async def __aenter__(self) -> Self:
        self.refuse(False)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        tasks = [*self._links, *([self._accepting] if self._accepting else [])]
        self.refuse(True)
        self.cut()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def live(self) -> int:
        return len(self._links)

    def delay(self, seconds: float, direction: Direction = "both") -> None:
        """Hold every piece of data back by so much, in order; 0 ends it."""
        self._delays.update(dict.fromkeys(_sides(direction), seconds))

    def swallow(self, direction: Direction = "both") -> None:
        """Let the bytes vanish, of old connections and new, until ``heal``."""
        self._swallowed.update(_sides(direction))

    def cut(self) -> None:
        """Reset all connections of now, on both sides."""
        for link in self._links.values():
            link.reset()

    def refuse(self, refused: bool = True) -> None:
        """Refuse new connections, as a closed port does, or take them again. Call it in the event loop."""
        if self._accepting is not None:
            self._accepting.cancel()
            self._accepting = None
        if self._listener is not None:
            # Before it is closed, and not as the task ends: the next socket may have its number by then.
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        if not refused:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=100)
            self._listener.setblocking(False)
            self._accepting = asyncio.ensure_future(self._accept(self._listener))

    def heal(self) -> None:
        """End delays, swallowing and refusal. What was swallowed stays lost."""
        self.delay(0.0)
        self._swallowed.clear()
        for link in self._links.values():
            link.lost.clear()
        if self._listener is None:
            self.refuse(False)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            self.connections += 1
            link = _Link(client)
            task = asyncio.create_task(self._serve(link))
            self._links[task] = link
            task.add_done_callback(self._links.pop)

    async def _serve(self, link: _Link) -> None:
        pumps: list[asyncio.Task[None]] = []
        try:
            client = await link.adopt(asyncio.open_connection(sock=link.client))
            server = await link.adopt(asyncio.open_connection(*self._target))
            pumps = [
                asyncio.create_task(self._pump_queries(link, client[0], server[1])),
                asyncio.create_task(self._pump_answers(link, server[0], client[1])),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass  # the server is down: the client sees its connection end
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            link.close()

    async def _pump_queries(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            header = await reader.readexactly(4)
            packet = await reader.readexactly(int.from_bytes(header[:3], "little"))
            if header[3] == 0 and packet[:1] == b"\x03" and self.on_query is not None:
                action = self.on_query(packet[1:]) or Action()
                if action.hold is not None:
                    await action.hold.wait()
                if action.query == "cut":
                    link.reset()
                    return
                if action.query == "swallow":
                    link.lost.add("to_server")
                link.action = action
            await self._pass(link, "to_server", header + packet, writer)
            if header == b"\x20\x00\x00\x01":  # the client asks for TLS: no packets from here on
                while data := await reader.read(65536):
                    await self._pass(link, "to_server", data, writer)
                return

    async def _pump_answers(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            action, link.action = link.action, Action()
            if action.answered is not None:
                action.answered.set()
            if action.answer == "cut":
                link.reset()
                return
            if action.answer == "swallow":
                link.lost.add("to_client")
            await self._pass(link, "to_client", data, writer)

    async def _pass(self, link: _Link, side: Side, data: bytes, writer: asyncio.StreamWriter) -> None:
        if self._delays[side]:
            await asyncio.sleep(self._delays[side])
        if side in self._swallowed or side in link.lost:
            self.swallowed[side] += len(data)
            return
        if side == "to_server":
            self.bytes_to_server += len(data)
        writer.write(data)
        await writer.drain()


@final
class _Link:
    """One proxied connection: its two sockets, and what was asked for it alone."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.action = Action()
        self.lost: set[Side] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def adopt(self, opening: Awaitable[Streams]) -> Streams:
        streams = await asyncio.wait_for(opening, 5.0)
        self._writers.append(streams[1])
        return streams

    def close(self) -> None:
        """End both sides in an orderly way, after what was written. Idempotent."""
        for writer in self._writers:
            writer.close()
        if not self._writers:
            self.client.close()

    def reset(self) -> None:
        """End both sides with a TCP reset, as a crashed host's network does. Idempotent."""
        for writer in self._writers:
            peer = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):  # it is closed already
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        if not self._writers:
            self.client.close()


def _sides(direction: Direction) -> tuple[Side, ...]:
    return ("to_server", "to_client") if direction == "both" else (direction,)
