"""Fenced transactions on SQLite and in memory."""

# ruff: noqa: PT012, SIM117 - the blocks are what is tested: which is inside which, and that it raises

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiosqlite
import anyio
import pytest

from aiolease import CommitUnknown, LeadershipLost, TransactionEnded, leadership
from aiolease._clock import boot_clock
from aiolease.events import Lost
from aiolease.testing import MemoryStore, virtual_time
from tests.campaigns import LIMIT, Recorder, until
from tests.stores.mysql.connecting import SLACK
from tests.stores.transactions.lending import Boom, insert

# -- SQLite


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[Path]:
    path = tmp_path / "jobs.db"
    async with aiosqlite.connect(path) as connection:
        await connection.execute("CREATE TABLE work (id INTEGER PRIMARY KEY, who TEXT)")
        await connection.commit()
    before = set(threading.enumerate())
    yield path

    def left() -> set[str]:  # the watchdog stays for the next leader
        return {thread.name for thread in threading.enumerate() if thread not in before} - {"aiolease-watchdog"}

    await until(lambda: not left(), "no thread is left")


async def rows(path: Path) -> list[str]:
    async with aiosqlite.connect(path) as connection:
        return [row[0] for row in await connection.execute_fetchall("SELECT who FROM work ORDER BY id")]


async def new_term(connection: aiosqlite.Connection) -> None:
    await connection.execute("UPDATE aiolease_fence SET holder = 'another', token = token + 1")
    await connection.commit()


async def test_sqlite_commits_and_rolls_back(file: Path) -> None:
    """On SQLite a block commits, or is rolled back by its exception or cancellation, which come out as themselves."""
    async with leadership(f"sqlite:///{file}") as lead:
        async with lead.transaction() as connection:
            await connection.execute(insert("one"))
        assert await rows(file) == ["one"]
        with pytest.raises(Boom):
            async with lead.transaction() as connection:
                await connection.execute(insert("never"))
                raise Boom
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2), lead.transaction() as connection:
                await connection.execute(insert("never"))
                await asyncio.sleep(LIMIT)
        with anyio.move_on_after(0.2) as scope:
            async with lead.transaction() as connection:
                await connection.execute(insert("never"))
                await asyncio.sleep(LIMIT)
        assert scope.cancelled_caught
        async with lead.transaction() as connection:
            await connection.execute(insert("two"))
    assert await rows(file) == ["one", "two"]


@pytest.mark.parametrize(
    "ending", ["COMMIT", "ROLLBACK", "connection.commit", "connection.rollback", "connection.close", "ROLLBACK; BEGIN"]
)
async def test_what_ends_a_transaction_of_sqlite_is_found(file: Path, ending: str) -> None:
    """A block that ends its transaction on SQLite gets `TransactionEnded`, and what it does after is not committed."""
    async with leadership(f"sqlite:///{file}") as lead:
        with pytest.raises(TransactionEnded):
            async with lead.transaction() as connection:
                await connection.execute(insert("before"))
                if ending.startswith("connection"):
                    await getattr(connection, ending.partition(".")[2])()
                else:
                    for statement in ending.split("; "):
                        await connection.execute(statement)
                if ending != "connection.close":
                    await connection.execute(insert("after"))
        lead.check()
        with pytest.raises(Boom):
            async with lead.transaction() as connection:
                await connection.execute("ROLLBACK")
                await connection.execute(insert("beside a job that failed"))
                raise Boom
        assert {"after", "beside a job that failed"}.isdisjoint(await rows(file))


async def test_an_older_term_cannot_commit_on_sqlite(file: Path) -> None:
    """On SQLite, too, the commit of an older term is refused: here its fence was changed within the transaction."""
    with pytest.raises(LeadershipLost) as lost:
        async with leadership(f"sqlite:///{file}") as lead, lead.transaction() as connection:
            await connection.execute(insert("never"))
            await connection.execute("UPDATE aiolease_fence SET holder = 'another', token = token + 1")
    assert lost.value.reason == "taken"
    assert await rows(file) == []


async def test_sqlite_ends_a_long_transaction_by_remaining(file: Path) -> None:
    """A transaction held on SQLite ends by the time that the term has left: cancelled, undone, another may lead."""
    url, heard = f"sqlite:///{file}", Recorder()
    with pytest.raises(LeadershipLost) as lost:
        async with leadership(url, lease_duration=2.0, on_event=heard) as lead:
            async with lead.transaction() as connection:
                began, left = boot_clock(), lead.remaining
                await connection.execute(insert("never"))
                await asyncio.sleep(LIMIT)
    assert lost.value.reason == "expired"
    assert boot_clock() - began < left + SLACK
    assert await rows(file) == []
    async with leadership(url, timeout=LIMIT, lease_duration=2.0) as lead, lead.transaction() as connection:
        await connection.execute(insert("next"))
    assert await rows(file) == ["next"]


async def test_sqlite_waits_for_another_writer_by_remaining(file: Path) -> None:
    """Where another keeps the file locked, `transaction` waits by what the term has left, and can be cancelled."""
    async with leadership(f"sqlite:///{file}", lease_duration=3.0) as lead:
        async with aiosqlite.connect(file, isolation_level=None) as other:
            await other.execute("BEGIN IMMEDIATE")

            async def write(who: str) -> None:
                async with lead.transaction() as connection:
                    await connection.execute(insert(who))

            cancelled, patient = asyncio.create_task(write("never")), asyncio.create_task(write("patient"))
            await asyncio.sleep(0.3)
            cancelled.cancel()
            await asyncio.wait([cancelled], timeout=1.0)
            assert cancelled.cancelled()
            await other.execute("ROLLBACK")
            async with asyncio.timeout(LIMIT):
                await patient
    assert await rows(file) == ["patient"]


@pytest.mark.parametrize("late", [False, True])
async def test_a_file_that_nobody_waits_for_is_closed(
    file: Path, monkeypatch: pytest.MonkeyPatch, *, late: bool
) -> None:
    """A transaction that is cancelled while its file is opened leaves none open, whether it was opened by then."""
    opening, cancelled = threading.Event(), threading.Event()
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def slow(*arguments: Any, **options: Any) -> sqlite3.Connection:
        if not late:
            opened.append(connect(*arguments, **options))
        opening.set()
        assert cancelled.wait(LIMIT)
        if late:
            opened.append(connect(*arguments, **options))
        return opened[-1]

    async with leadership(f"sqlite:///{file}") as lead:
        monkeypatch.setattr(sqlite3, "connect", slow)
        begun = asyncio.create_task(lead.transaction().__aenter__())
        await until(opening.is_set, "the file is opened")
        begun.cancel()
        await asyncio.sleep(0)
        cancelled.set()
        with pytest.raises(asyncio.CancelledError):
            await begun
        monkeypatch.undo()

    def closed() -> bool:
        try:
            opened[-1].total_changes  # noqa: B018 - of a closed one it raises
        except sqlite3.ProgrammingError:
            return True
        return False

    await until(closed, "the file is closed")


async def test_fence_on_a_connection_of_aiosqlite(file: Path) -> None:
    """`fence` on a connection of aiosqlite: the term commits, and an older one does not."""
    with pytest.raises(LeadershipLost) as lost:
        async with leadership(f"sqlite:///{file}") as lead, aiosqlite.connect(file) as connection:
            await connection.execute(insert("fenced"))
            await lead.fence(connection)
            await connection.commit()
            await new_term(connection)
            await connection.execute(insert("never"))
            try:
                await lead.fence(connection)
            finally:
                await connection.rollback()
    assert lost.value.reason == "taken"
    assert await rows(file) == ["fenced"]


async def test_overlapping_transactions_on_sqlite_wait_for_each_other(file: Path) -> None:
    """Transactions of one term on SQLite that overlap run one after another, and all commit; renewals come between."""
    heard = Recorder()
    async with leadership(f"sqlite:///{file}", lease_duration=3.0, heartbeat_interval=0.1, on_event=heard) as lead:

        async def write(who: str) -> None:
            for number in range(5):
                async with lead.transaction() as connection:
                    await connection.execute(insert(f"{who} {number}"))
                    await asyncio.sleep(0.01)

        async with asyncio.timeout(LIMIT), asyncio.TaskGroup() as tasks:
            for who in "abcd":
                tasks.create_task(write(who))
    assert len(await rows(file)) == 20
    assert not heard.of(Lost)


# -- memory


@virtual_time
async def test_memory_commits_rolls_back_and_refuses() -> None:
    """In memory a transaction's calls are made when it commits, not when its block raises, and not by an older term."""
    store, made = MemoryStore(), []
    with pytest.raises(LeadershipLost) as lost:
        async with leadership(store) as lead:
            async with lead.transaction() as calls:
                calls.append(lambda: made.append("one"))
                assert made == []
            assert made == ["one"]
            with pytest.raises(Boom):
                async with lead.transaction() as calls:
                    calls.append(lambda: made.append("never"))
                    raise Boom
            await lead.fence(None)
            async with lead.transaction() as calls:
                calls.append(lambda: made.append("never"))
                store.server.fences["default"].token += 1
    assert lost.value.reason == "taken"
    assert made == ["one"]


@virtual_time
async def test_a_commit_in_memory_whose_answer_is_lost_is_unknown() -> None:
    """In memory, too, a lost answer is `CommitUnknown`, by what the term has left; the term goes on."""
    store, made = MemoryStore(), []
    async with leadership(store) as lead:
        store.lose_reply("commit")
        left, began = lead.remaining, asyncio.get_running_loop().time()
        with pytest.raises(CommitUnknown):
            async with lead.transaction() as calls:
                calls.append(lambda: made.append("perhaps"))
        assert asyncio.get_running_loop().time() - began <= left + 0.1
        assert made == ["perhaps"]
        lead.check()
