"""What is SQLite's own: files, rights, locks, and several processes on one file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import stat
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from aiolease._election.claim import new_holder
from aiolease.errors import ConfigurationError, SchemaMissing, StoreRejected, StoreUnavailable
from aiolease.stores import Store, check_target, open_store
from aiolease.stores.memory import MemoryStore
from aiolease.stores.sqlite import SQLiteStore
from aiolease.stores.sqlite import file as sqlite_file
from tests.stores.databases import Make, claim, execute, finished, renew, row, run_script, state

# -- SQLite's own


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[Callable[..., SQLiteStore]]:
    """Opens handles on one file, with SQLiteStore's own arguments."""
    async with AsyncExitStack() as stack:

        def make(path: Path = tmp_path / "leases.db", **options: Any) -> SQLiteStore:
            store = SQLiteStore(path, **options)
            stack.push_async_callback(store.aclose)
            return store

        yield make


async def test_sqlite_keeps_microseconds_by_the_clock_of_the_machine(sqlite: Make, tmp_path: Path) -> None:
    """Every moment comes from one clock, read in the transaction; a step of it shows at once."""
    store = sqlite()
    moment = 1_700_000_000_123_456
    store._now = lambda: moment
    won = await claim(cast(Store, store), "cron", 10.0)
    assert won.now == won.renewed_at == datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)
    assert execute(tmp_path / "leases.db", "SELECT expires_at FROM aiolease_lease WHERE name = 'cron'") == [
        (moment + 10_000_000,)
    ]
    moment += 9_999_999
    assert not (await row(cast(Store, store), "cron")).expired
    moment += 1
    assert (await row(cast(Store, store), "cron")).expired
    moment -= 3_600_000_000
    renewed = await renew(cast(Store, store), won, won.beat + 1, 5.0)
    assert renewed is not None
    assert (renewed.now, renewed.expires_at - renewed.renewed_at) == (
        won.now - timedelta(seconds=3590),
        timedelta(seconds=5),
    )


async def test_sqlite_says_what_waiting_cannot_mend(sqlite: Make, tmp_path: Path) -> None:
    """A missing folder, a folder, and a file that is no database are refused, for good."""
    (tmp_path / "text").write_text("not a database, but long enough to have been one\n" * 100)
    for path in (tmp_path / "none" / "leases.db", tmp_path, tmp_path / "text", tmp_path / "text" / "leases.db"):
        store = sqlite(path)
        for _ in range(2):
            with pytest.raises(StoreRejected, match=str(path)) as caught:
                await store.read("cron")
            assert isinstance(caught.value.__cause__, sqlite3.Error)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("path", ["", ":memory:", "a\0b"])
def test_sqlite_wants_a_file(path: str) -> None:
    """What no other process could open is refused when the store is made."""
    with pytest.raises(ConfigurationError, match="path"):
        SQLiteStore(path)


async def test_sqlite_takes_any_file_name(sqlite: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanks and the marks of a URL are part of the name; a relative path stays what it was."""
    monkeypatch.chdir(tmp_path)
    for name in ("a b.db", "50%.db", "a?mode=memory", "a#b", "ü.db", "%41.db", "a&b=c"):
        store = sqlite(Path(name))
        monkeypatch.chdir("/")
        await claim(cast(Store, store), "cron")
        assert (tmp_path / name).is_file()
        monkeypatch.chdir(tmp_path)


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder, and no right that a plain user would not have."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


async def test_sqlite_says_which_right_is_missing(unprivileged: Path) -> None:
    """Without rights on file or folder it is refused; tables that could only be missing are said to be missing."""
    path = unprivileged / "leases.db"

    async def attempt() -> object:
        async with aclosing(SQLiteStore(path)) as store:
            return await store.claim("cron", "h", 30.0, seen=await store.read("cron"), force=True)

    unprivileged.chmod(0o555)
    with pytest.raises(StoreRejected, match="permission"):
        await attempt()
    unprivileged.chmod(0o755)
    path.touch()
    path.chmod(0o444)
    with pytest.raises(SchemaMissing, match="may not be written"):
        await attempt()
    path.chmod(0)
    with pytest.raises(StoreRejected, match="permission"):
        await attempt()
    path.chmod(0o644)
    await attempt()
    path.chmod(0o444)
    with pytest.raises(StoreRejected, match="readonly"):
        await attempt()


async def test_sqlite_that_stays_locked_is_unavailable(
    sqlite: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that others keep locked is waited for a while, then reported; reading goes on, and so does all after."""
    monkeypatch.setattr(sqlite_file, "_PATIENCE", 0.3)
    store = sqlite()
    won = await claim(cast(Store, store), "cron")
    with contextlib.closing(sqlite3.connect(tmp_path / "leases.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        connection = store._file.connection
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match="database is locked") as caught:
            await renew(cast(Store, store), won, won.beat + 1)
        assert 0.2 < time.monotonic() - started < 5
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert state(await store.read("cron")) == state(won)
        # A write that is wanted no more is given up; one that is wanted is done as soon as the other ends.
        dropped = asyncio.create_task(store.release("cron", str(won.holder), won.token))
        await asyncio.sleep(0.05)
        dropped.cancel()
        renewing = asyncio.create_task(renew(cast(Store, store), won, won.beat + 2))
        await asyncio.sleep(0.05)
        other.execute("COMMIT")
    renewed = await renewing
    assert renewed is not None
    assert store._file.connection is connection
    with pytest.raises(asyncio.CancelledError):
        await dropped


async def test_sqlite_waits_for_a_lock_elsewhere(sqlite: Make, tmp_path: Path) -> None:
    """Waiting for another's write does not hold up the event loop, and the clock is read when the wait is over."""
    store = sqlite()
    won = await claim(cast(Store, store), "cron")
    readings: list[int] = []

    def now() -> int:
        readings.append(time.time_ns() // 1000)
        return readings[-1]

    store._now = now
    with contextlib.closing(sqlite3.connect(tmp_path / "leases.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        renewing = asyncio.create_task(renew(cast(Store, store), won, won.beat + 1))
        turns = 0
        started = time.monotonic()
        while time.monotonic() - started < 0.3:
            await asyncio.sleep(0.001)
            turns += 1
        assert not renewing.done()
        assert readings == []
        other.execute("COMMIT")
    await renewing
    assert len(readings) == 1
    assert turns > 50


async def test_sqlite_leaves_a_schema_alone_that_is_there(sqlite: Make, tmp_path: Path) -> None:
    """Where the tables exist, opening them changes neither schema nor journal mode."""
    path = tmp_path / "leases.db"
    await claim(cast(Store, sqlite()), "cron")
    assert execute(path, "PRAGMA journal_mode") == [("wal",)]
    before = execute(path, "PRAGMA schema_version")
    for create_tables in (True, False):
        assert (await row(cast(Store, sqlite(create_tables=create_tables)), "cron")).token == 1
    assert execute(path, "PRAGMA schema_version") == before


async def test_sqlite_in_rollback_mode_works_too(tmp_path: Path) -> None:
    """A file whose owner wants no write-ahead log is left as it is, and readers and writers still meet in order."""
    path = tmp_path / "leases.db"
    async with aclosing(SQLiteStore(path)) as store:
        await store.read("cron")
    assert execute(path, "PRAGMA journal_mode = DELETE") == [("delete",)]
    async with aclosing(SQLiteStore(path)) as one, aclosing(SQLiteStore(path)) as two:
        for term in range(1, 21):
            seen = await one.read("cron")
            leases = await asyncio.gather(
                *(store.claim("cron", new_holder(), 30.0, seen=seen, force=False) for store in (one, two))
            )
            assert leases[0] is not None
            assert leases[0].token == term
            assert await two.release("cron", str((await row(cast(Store, one), "cron")).holder), term)
    assert execute(path, "PRAGMA journal_mode") == [("delete",)]


@pytest.mark.parametrize("version", [0, 3])
async def test_sqlite_refuses_another_version(sqlite: Make, tmp_path: Path, version: int) -> None:
    """Tables of another version are not touched; the error names both versions."""
    path = tmp_path / "leases.db"
    await sqlite().read("cron")
    execute(path, f"UPDATE aiolease_lease SET token = {version} WHERE name = 'schema version'")
    execute(path, "DROP TABLE aiolease_fence")
    with pytest.raises(SchemaMissing, match=f"version {version}.* needs 2"):
        await sqlite().read("cron")
    assert execute(path, "SELECT COUNT(*) FROM sqlite_master WHERE name LIKE '%fence'") == [(0,)]


async def test_sqlite_without_a_file_makes_none_unasked(sqlite: Make, tmp_path: Path) -> None:
    """`create_tables=False` does not make the file either."""
    with pytest.raises(SchemaMissing):
        await sqlite(create_tables=False).read("cron")
    assert list(tmp_path.iterdir()) == []


async def test_sqlite_tables_that_vanish_are_missed(sqlite: Make, tmp_path: Path) -> None:
    """A table that was dropped under a store is an error, and made anew when it is next needed."""
    store = sqlite()
    won = await claim(cast(Store, store), "cron")
    execute(tmp_path / "leases.db", "DROP TABLE aiolease_lease")
    with pytest.raises(SchemaMissing, match="no such table"):
        await store.read("cron")
    assert (await claim(cast(Store, store), "cron")).token == won.token + 1


async def test_sqlite_notices_that_its_file_was_replaced(sqlite: Make, tmp_path: Path) -> None:
    """A leader whose file was deleted and made again sees the new file, as all others do."""
    first, second = sqlite(), sqlite()
    old = await claim(cast(Store, first), "cron")
    for file in tmp_path.iterdir():
        file.unlink()
    won = await claim(cast(Store, second), "cron")
    assert won.holder != old.holder
    assert state(await renew(cast(Store, first), old, old.beat + 1)) == state(won)


async def test_sqlite_leaves_nothing_running(tmp_path: Path) -> None:
    """After `aclose` there is no thread, and beside the database only the file of a lock; a second one does nothing."""
    before = threading.enumerate()
    store = SQLiteStore(tmp_path / "leases.db")
    await claim(cast(Store, store), "cron")
    assert len(threading.enumerate()) == len(before) + 1
    await store.aclose()
    await store.aclose()
    assert threading.enumerate() == before
    database, lock = sorted(path.name for path in tmp_path.iterdir())
    assert (database, lock.rpartition("-")[0]) == ("leases.db", "leases.db-aiolease")
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.read("cron")
    await SQLiteStore(tmp_path / "unused.db").aclose()
    assert not (tmp_path / "unused.db").exists()


async def test_sqlite_is_closed_though_closing_is_cancelled(tmp_path: Path) -> None:
    """A cancellation comes out of `aclose`, after it has done its work; what was under way is done."""
    for turns in range(6):
        before = threading.enumerate()
        store = SQLiteStore(tmp_path / f"{turns}.db")
        claiming = asyncio.create_task(store.claim("cron", "h", 30.0, seen=None, force=False))
        await asyncio.sleep(0)
        closing = asyncio.create_task(store.aclose())
        for _ in range(turns):
            await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        if turns:  # else it was cancelled before it began
            assert threading.enumerate() == before
            lease = await claiming
            assert lease is not None
            assert lease.holder == "h"
        claiming.cancel()
        await asyncio.gather(claiming, return_exceptions=True)
        await store.aclose()
        assert threading.enumerate() == before


async def test_sqlite_survives_the_loss_of_its_connection(sqlite: Make) -> None:
    """An error other than a lock costs the connection, and only that."""
    store = sqlite()
    won = await claim(cast(Store, store), "cron")
    assert store._file.connection is not None
    store._file.connection.close()
    with pytest.raises(StoreUnavailable):
        await store.read("cron")
    assert state(await store.read("cron")) == state(won)


# -- SQLite among processes


WORKER = """
import asyncio, os, sys, time
from aiolease._election.claim import new_holder
from aiolease.errors import StoreUnavailable
from aiolease.stores.sqlite import SQLiteStore

async def main(path, seconds):
    store, flag, until = SQLiteStore(path), path + ".led", time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            seen = await store.read("cron")
            if seen is not None and seen.holder is not None:
                seen = await store.watch("cron", 0.01, lease=seen, poll=0.002, hint=True)
            if seen is not None and not seen.free:
                continue
            holder = new_holder()
            lease = await store.claim("cron", holder, 5.0, seen=seen, force=False)
            if lease.holder != holder:
                continue
        except StoreUnavailable as error:
            print("unavailable", error, file=sys.stderr)
            continue
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))  # fails if another leads
        print(lease.token, flush=True)
        assert (await store.renew("cron", holder, lease.token, lease.beat + 1, 5.0)).held_by(holder, lease.token)
        os.unlink(flag)
        assert await store.release("cron", holder, lease.token)
    await store.aclose()

asyncio.run(main(sys.argv[1], float(sys.argv[2])))
"""


def test_sqlite_among_processes(tmp_path: Path) -> None:
    """Four processes that take turns never lead at once, and never get the same token, nor leave one out."""
    workers = [run_script(WORKER, tmp_path / "leases.db", "2") for _ in range(4)]
    tokens = [int(line) for worker in workers for line in finished(worker).split()]
    assert len(tokens) > 20
    assert sorted(tokens) == list(range(1, len(tokens) + 1))


def test_sqlite_outlives_its_processes(tmp_path: Path) -> None:
    """A process that is killed in the midst of its writes holds nobody else up, and no token comes twice."""
    path = tmp_path / "leases.db"
    tokens: list[int] = []
    for _ in range(3):
        victim = run_script(WORKER, path, "30")
        assert victim.stdout is not None
        assert victim.stdout.readline()
        time.sleep(0.1)
        victim.send_signal(signal.SIGKILL)
        out, _ = victim.communicate(timeout=10)
        tokens += [int(line) for line in out.split()]
        Path(f"{path}.led").unlink(missing_ok=True)
        # What it held is given back by hand, where a candidate would wait.
        execute(path, "UPDATE aiolease_lease SET holder = NULL, beat = beat + 1 WHERE name = 'cron'")
    tokens += [int(line) for line in finished(run_script(WORKER, path, "0.5")).split()]
    assert tokens == sorted(set(tokens))
    assert execute(path, "PRAGMA integrity_check") == [("ok",)]


FORKER = """
import asyncio, os, sys
from aiolease.stores.sqlite import SQLiteStore

store = SQLiteStore(sys.argv[1])

def claim(name):
    return asyncio.run(store.claim(name, "h", 30.0, seen=None, force=False)).token

claim("parent-1")
inherited = store._file.connection
go_on, closed = os.pipe()
child = os.fork()
if child == 0:
    claim("child-1")
    assert store._file.connection is not inherited
    os.read(go_on, 1)
    claim("child-2")
    asyncio.run(store.aclose())
    os._exit(0)
claim("parent-2")
asyncio.run(store.aclose())
os.write(closed, b"!")
assert os.waitpid(child, 0)[1] == 0
"""


def test_sqlite_after_a_fork(tmp_path: Path) -> None:
    """A child has a connection of its own, and what it commits is there for all, also when its parent is gone."""
    path = tmp_path / "leases.db"
    finished(run_script(FORKER, path))
    assert stat.S_ISREG(path.stat().st_mode)
    names = [name for (name,) in execute(path, "SELECT name FROM aiolease_lease WHERE holder = 'h' ORDER BY name")]
    assert names == ["child-1", "child-2", "parent-1", "parent-2"]


async def test_a_url_opens_sqlite(tmp_path: Path) -> None:
    """`sqlite:////absolute.db` names the file."""
    async with open_store(f"sqlite:///{tmp_path}/leases.db") as store:
        await claim(store, "cron")
    assert (tmp_path / "leases.db").is_file()


async def test_a_store_that_lacks_a_part_is_refused(tmp_path: Path) -> None:
    """An object that has a lease but no ledger is no target: it is refused when it is opened, not when a job runs."""

    class OnlyLease:
        def __init__(self) -> None:
            whole = MemoryStore()
            self.claim, self.renew, self.release, self.watch = whole.claim, whole.renew, whole.release, whole.watch

    with pytest.raises(ConfigurationError, match=r"<OnlyLease>.*lacks .*take_stock.*aclose"):
        async with open_store(OnlyLease()):
            pass
    with pytest.raises(ConfigurationError, match="lacks"):
        check_target(OnlyLease(), "cron")
    for whole in (MemoryStore(), SQLiteStore(tmp_path / "leases.db")):
        async with aclosing(whole), open_store(whole) as opened:
            assert opened is whole
