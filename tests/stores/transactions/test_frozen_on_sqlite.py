"""Fenced transactions on SQLite under a true fault: a process that is frozen in the midst of one."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from aiolease import StoreUnavailable, leadership
from aiolease.stores.sqlite import SQLiteStore
from tests.campaigns import LIMIT, until
from tests.project import ROOT

LEASE = 2.5

LEADER = """
import asyncio, sys
import aiosqlite
from aiolease import LeadershipLost, leadership
from aiolease.stores.contract import FenceBroken
from aiolease.stores.records import TermKey
from aiolease.stores.sqlite import SQLiteStore

path, point, lease_duration = sys.argv[1], sys.argv[2], float(sys.argv[3])

def tell(*words):
    print(*words, flush=True)

async def go_on(blocking):
    tell("ready")
    if blocking:  # the loop does not run: what comes next is the next thing that this process does
        sys.stdin.readline()
    else:
        await asyncio.to_thread(sys.stdin.readline)

async def insert(connection):
    await connection.execute("INSERT INTO work (who) VALUES ('old')")

async def lead():
    async with leadership(f"sqlite:///{path}", lease_duration=lease_duration) as lead:
        tell(lead.token)
        if point == "behind the fence":
            async with aiosqlite.connect(path) as connection:
                await insert(connection)
                await lead.fence(connection)
                await go_on(blocking=True)
                await connection.commit()
        elif point == "before":
            await go_on(blocking=True)
            async with lead.transaction() as connection:
                await insert(connection)
        else:
            async with lead.transaction() as connection:
                await insert(connection)
                await go_on(blocking=point == "within, blocking")
        tell("committed")  # before the term's end is heard of

async def lead_without_a_clock():
    store = SQLiteStore(path)
    lease = await store.claim("default", "frozen", lease_duration, seen=None, force=False)
    tell(lease.token)
    await go_on(blocking=True)
    transaction = await store.begin()
    await insert(transaction.connection)
    try:
        await transaction.commit(TermKey("default", "frozen", lease.token))
        tell("committed")
    finally:
        await store.aclose()

try:
    asyncio.run(lead_without_a_clock() if point == "before, without a clock" else lead())
    tell("ended")
except (FenceBroken, LeadershipLost) as error:
    tell(type(error).__name__)
"""


@dataclass
class Leader:
    """A process that leads, and waits for a line at some point of a transaction."""

    process: asyncio.subprocess.Process
    token: int = 0

    async def hear(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(LIMIT):
            return (await self.process.stdout.readline()).decode().strip()

    async def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        status = Path(f"/proc/{self.process.pid}/status")
        await until(lambda: "\nState:\tT" in status.read_text(), "the leader is frozen")

    async def thaw(self) -> list[str]:
        """Lets it go on from where it waited; says what it told until it ended."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        await self.process.stdin.drain()
        self.process.send_signal(signal.SIGCONT)
        told = []
        while line := await self.hear():
            told.append(line)
        async with asyncio.timeout(LIMIT):
            assert await self.process.wait() == 0
        return told

    async def kill(self) -> None:
        self.process.kill()
        async with asyncio.timeout(LIMIT):
            await self.process.wait()


@asynccontextmanager
async def leader(path: Path, point: str) -> AsyncIterator[Leader]:
    """A leader that has come to its point."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "error", "-c", LEADER, path, point, str(LEASE)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        made = Leader(process)
        made.token = int(await made.hear())
        assert await made.hear() == "ready"
        yield made
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE work (id INTEGER PRIMARY KEY, who TEXT)")
    return path


def rows(path: Path) -> list[str]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return [who for (who,) in connection.execute("SELECT who FROM work ORDER BY id")]


def locked(path: Path) -> bool:
    """Whether somebody else is writing."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0.0)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        return False


async def expired(path: Path) -> None:
    """Waits until the lease has run out; reading goes on while another writes."""
    async with contextlib.aclosing(SQLiteStore(path)) as store, asyncio.timeout(LIMIT):
        while not ((lease := await store.read("default")) and lease.expired):
            await asyncio.sleep(0.01)


async def take_over(path: Path) -> tuple[int, list[str]]:
    """Leads next, commits, and says by which token, and what it found when its term had begun."""
    async with leadership(f"sqlite:///{path}", timeout=LIMIT, lease_duration=LEASE * 4) as lead:
        async with lead.transaction() as connection:
            found = [who for (who,) in await connection.execute_fetchall("SELECT who FROM work ORDER BY id")]
            await connection.execute("INSERT INTO work (who) VALUES ('new')")
        return lead.token, found


@pytest.mark.parametrize("point", ["within", "behind the fence"])
async def test_a_leader_frozen_while_it_writes_is_followed_when_it_is_killed(file: Path, point: str) -> None:
    """Frozen in a transaction, a leader keeps all others from writing, its lease over or not; killed, it is followed.

    Nothing of it is visible.
    """
    async with leader(file, point) as old:
        await old.freeze()
        await expired(file)
        following = asyncio.create_task(take_over(file))
        async with contextlib.aclosing(SQLiteStore(file)) as store:
            seen = await store.read("default")
            with pytest.raises(StoreUnavailable, match="locked"):
                await store.claim("default", "nobody", LEASE, seen=seen, force=True)
            assert locked(file)
            assert not following.done()
            assert rows(file) == []
            again = await store.read("default")
            assert seen is not None
            assert again is not None
            assert (again.token, again.beat) == (seen.token, seen.beat)
        await old.kill()
        async with asyncio.timeout(LIMIT):
            token, found = await following
    assert (token, found) == (old.token + 1, [])
    assert rows(file) == ["new"]


@pytest.mark.parametrize("point", ["within", "within, blocking", "behind the fence"])
async def test_a_leader_thawed_in_a_transaction_commits_nothing_beside_a_newer_term(file: Path, point: str) -> None:
    """Thawed when its lease is over, a leader is refused, or has committed before the newer term could begin."""
    async with leader(file, point) as old:
        await old.freeze()
        await expired(file)
        following = asyncio.create_task(take_over(file))
        assert locked(file)
        told = await old.thaw()
        async with asyncio.timeout(LIMIT):
            token, found = await following
    assert token == old.token + 1
    assert told[-1] == "LeadershipLost"
    assert rows(file) == [*found, "new"]
    if "committed" in told:  # what was fenced may still be committed: nobody could begin a term meanwhile
        assert (point, found) == ("behind the fence", ["old"])
    elif point != "behind the fence":
        assert (told, found) == (["LeadershipLost"], [])


@pytest.mark.parametrize(
    ("point", "refused"), [("before", "LeadershipLost"), ("before, without a clock", "FenceBroken")]
)
async def test_a_leader_frozen_before_its_transaction_is_refused(file: Path, point: str, refused: str) -> None:
    """Frozen while it does not write, a leader holds up nobody; thawed beside a newer term, it commits nothing."""
    async with leader(file, point) as old:
        await old.freeze()
        assert not locked(file)
        token, found = await take_over(file)
        assert (token, found) == (old.token + 1, [])
        assert await old.thaw() == [refused]
    assert rows(file) == ["new"]
