"""The private servers and the proxy do what the other tests rely on."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncmy
import asyncmy.errors
import pymysql
import pytest

from tests.servers.galera import GaleraCluster
from tests.servers.mariadb import MariaDBServer
from tests.servers.proxy import Action, TCPProxy
from tests.servers.server import Server


@asynccontextmanager
async def session(port: int, **options: Any) -> AsyncIterator[Any]:
    """A cursor on a connection of its own, everything bounded."""
    login = {"user": "root", "autocommit": True, "connect_timeout": 5, **options}
    connection = await asyncmy.connect(host="127.0.0.1", port=port, **login)
    try:
        async with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


async def ask(cursor: Any, statement: str, limit: float = 5.0) -> Any:
    """The first value of the first row."""
    async with asyncio.timeout(limit):
        await cursor.execute(statement)
        row = await cursor.fetchone()
    return row and row[0]


def gone(pid: int, limit: float = 10.0) -> bool:
    """Whether a process that is not our child ends in time."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def test_a_server_recovers_what_was_committed(mysql_server: Server, mysql_url: str) -> None:
    """A crash and an orderly stop keep port and committed rows, and a commit is flushed."""
    database = mysql_url.rpartition("/")[2]
    mysql_server.sql("CREATE TABLE kept (id INT PRIMARY KEY)", database)
    mysql_server.sql("INSERT INTO kept VALUES (1)", database)
    mysql_server.kill()
    assert not mysql_server.running
    mysql_server.restart()
    mysql_server.sql("INSERT INTO kept VALUES (2)", database)
    mysql_server.stop()
    mysql_server.recover()
    assert mysql_server.sql("SELECT id FROM kept ORDER BY id", database) == [(1,), (2,)]
    assert mysql_server.sql("SELECT @@innodb_flush_log_at_trx_commit") == [(1,)]


async def test_a_frozen_server_answers_after_the_thaw(mysql_server: Server) -> None:
    """A connection outlives SIGSTOP."""
    async with session(mysql_server.port) as cursor:
        mysql_server.freeze()
        waiting = asyncio.create_task(ask(cursor, "SELECT 7"))
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done
        mysql_server.thaw()
        assert await waiting == 7


async def test_a_user_logs_in_with_password_and_has_only_the_grants(mysql_server: Server, mysql_url: str) -> None:
    """Also on MySQL, whose passwords go over TCP without TLS only after a first login by the socket."""
    name = f"u{os.urandom(4).hex()}"
    database = mysql_url.rpartition("/")[2]
    mysql_server.create_user(name, "pass word", f"SELECT ON {database}.*")
    async with session(mysql_server.port, user=name, password="pass word", db=database) as cursor:
        assert await ask(cursor, "SELECT CURRENT_USER()") == f"{name}@%"
        with pytest.raises(asyncmy.errors.OperationalError) as denied:
            await cursor.execute("CREATE TABLE t (id INT)")
        assert denied.value.args[0] == 1142


def test_the_clock_steps(mariadb_faketime: Server) -> None:
    """Forward, backward and home again, also for a connection that is open."""
    for seconds in (0.0, 3600.0, -90.5, 0.0):
        mariadb_faketime.step_clock(seconds)
        told = mariadb_faketime.sql("SELECT UTC_TIMESTAMP(6)")[0][0].replace(tzinfo=datetime.UTC)
        off = (told - datetime.datetime.now(datetime.UTC)).total_seconds() - seconds
        assert abs(off) < 0.5
    mariadb_faketime.step_clock(60.0)
    mariadb_faketime.restart()


def test_galera_replicates_and_outlives_a_node(galera: GaleraCluster) -> None:
    """What one node commits the others have, and a crashed node joins again."""
    first, second, third = galera.nodes
    first.sql("CREATE DATABASE IF NOT EXISTS shared")
    first.sql("CREATE OR REPLACE TABLE shared.t (id INT PRIMARY KEY)")
    first.sql("INSERT INTO shared.t VALUES (1)")

    def has(node: MariaDBServer, *ids: int) -> None:
        """Waits: a node applies what another has committed a moment later."""
        until, found = time.monotonic() + 60, None
        while found != [(each,) for each in ids]:
            assert time.monotonic() < until, found
            time.sleep(0.05)
            with contextlib.suppress(pymysql.err.ProgrammingError):  # not even the table is there
                found = node.sql("SELECT id FROM shared.t ORDER BY id")

    has(second, 1)  # killed while it makes a table, MariaDB may lose that for good
    second.kill()
    has(third, 1)
    third.sql("INSERT INTO shared.t VALUES (2)")
    galera.recover()
    has(second, 1, 2)


@pytest.mark.parametrize("how", ["-SIGKILL", "an exception"])
def test_no_server_outlives_its_process(mariadb: MariaDBServer, how: str) -> None:
    """Neither a crash of the tests nor an exception leaves a server running; the latter no files either."""
    script = (
        "import os, sys\nfrom tests.servers import MariaDBServer\n"
        "server = MariaDBServer.start()\nprint(server.pid, server.folder, flush=True)\n"
        "os.kill(os.getpid(), 9) if sys.argv[1] == '-SIGKILL' else 1 / 0\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script, how], cwd=root, capture_output=True, timeout=60, check=False)
    pid, folder = done.stdout.split()
    assert done.returncode == (-9 if how == "-SIGKILL" else 1), done.stderr
    assert gone(int(pid))
    if how == "-SIGKILL":
        subprocess.run(["rm", "-r", folder], check=True)
    assert not Path(folder.decode()).exists()


async def test_a_lost_answer(mysql_server: Server, mysql_url: str) -> None:
    """The server carries the statement out, the client never learns of it."""
    database = mysql_url.rpartition("/")[2]
    mysql_server.sql("CREATE TABLE t (id INT PRIMARY KEY)", database)
    async with TCPProxy(mysql_server.host, mysql_server.port, mysql_server.kind) as proxy:
        answered = asyncio.Event()
        fates = {
            b"INSERT INTO t VALUES (1)": Action(answer="cut"),
            b"INSERT INTO t VALUES (2)": Action(query="cut"),
            b"INSERT INTO t VALUES (3)": Action(answer="swallow", answered=answered),
        }
        proxy.on_query = fates.get
        for number in (1, 2):
            async with session(proxy.port, db=database) as cursor:
                with pytest.raises(asyncmy.errors.OperationalError) as lost:
                    await ask(cursor, f"INSERT INTO t VALUES ({number})")
                assert lost.value.args[0] == 2013
        async with session(proxy.port, db=database) as cursor:
            waiting = asyncio.create_task(ask(cursor, "INSERT INTO t VALUES (3)", 0.5))
            await asyncio.wait_for(answered.wait(), 5)
            with pytest.raises(TimeoutError):
                await waiting
    assert mysql_server.sql("SELECT id FROM t ORDER BY id", database) == [(1,), (3,)]


async def test_a_held_query_arrives_late(mysql_server: Server, mysql_url: str) -> None:
    """One packet is held back until the test lets it go; other connections go on."""
    database = mysql_url.rpartition("/")[2]
    mysql_server.sql("CREATE TABLE t (id INT PRIMARY KEY)", database)
    release = asyncio.Event()
    async with TCPProxy(mysql_server.host, mysql_server.port, mysql_server.kind) as proxy:
        proxy.on_query = lambda query: Action(hold=release) if b"VALUES (1)" in query else None
        async with session(proxy.port, db=database) as late, session(proxy.port, db=database) as other:
            waiting = asyncio.create_task(ask(late, "INSERT INTO t VALUES (1)"))
            assert await ask(other, "SELECT COUNT(*) FROM t") == 0
            assert not waiting.done()
            release.set()
            await waiting
            assert await ask(other, "SELECT COUNT(*) FROM t") == 1


async def test_the_network_fails_and_heals(mariadb: MariaDBServer) -> None:
    """Delay, swallow, cut and refuse work on connections that are open, and ``heal`` ends them."""
    async with TCPProxy(mariadb.host, mariadb.port) as proxy:
        async with session(proxy.port) as cursor:
            proxy.delay(0.2)
            started = time.monotonic()
            assert await ask(cursor, "SELECT 1") == 1
            assert 0.4 <= time.monotonic() - started < 2.0
            proxy.heal()
            sent = proxy.bytes_to_server
            assert await ask(cursor, "SELECT 2") == 2
            assert proxy.bytes_to_server == sent + 4 + 1 + len("SELECT 2")
            proxy.swallow("to_server")
            with pytest.raises(TimeoutError):
                await ask(cursor, "SELECT 3", 0.2)
            assert proxy.bytes_to_server == sent + 4 + 1 + len("SELECT 2")
            proxy.heal()
        async with session(proxy.port) as cursor:
            waiting = asyncio.create_task(ask(cursor, "DO SLEEP(5)"))
            await asyncio.sleep(0)
            proxy.cut()
            with pytest.raises((asyncmy.errors.OperationalError, ConnectionResetError)):
                await waiting
        proxy.refuse()
        with pytest.raises(asyncmy.errors.OperationalError, match="111"):
            async with session(proxy.port):
                pass
        proxy.heal()
        async with session(proxy.port) as cursor:
            assert await ask(cursor, "SELECT 4") == 4
        assert proxy.connections == 3


async def test_a_proxy_before_a_dead_server_ends_connections() -> None:
    """The client sees its connection end, as with a load balancer."""
    async with TCPProxy("127.0.0.1", 1) as proxy:
        with pytest.raises(asyncmy.errors.OperationalError):
            async with session(proxy.port):
                pass
        assert proxy.connections == 1
