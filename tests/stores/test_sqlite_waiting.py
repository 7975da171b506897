"""How candidates on SQLite wait: woken by a release, quiet otherwise, whatever becomes of the lock."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from aiolease.errors import StoreUnavailable
from aiolease.stores import Store
from aiolease.stores.records import Lease
from aiolease.stores.sqlite import SQLiteStore, line, waiting
from aiolease.stores.sqlite.lockfile import LockFile
from aiolease.testing import run_virtual
from tests.campaigns import LIMIT, Journal, campaign, leader_process, until
from tests.stores.databases import claim, finished, free, renew, row, run_script

LONG = 2 * LIMIT
"""Seconds of a wait, and between two polls, by which nothing here could be in time."""


class Handle(SQLiteStore):
    """A store that counts its operations."""

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(path, **options)
        self.count = 0
        self._now = self._counted

    def _counted(self) -> int:
        self.count += 1
        return time.time_ns() // 1000


Open = Callable[..., Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "leases.db"


@pytest.fixture
async def handle(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    """Opens handles, each of which stands for a process; closes them in the end. A claim may come late."""
    monkeypatch.setattr(waiting, "CLAIMS_WITHIN", LONG)
    async with AsyncExitStack() as stack:

        def make(at: Path = path) -> Any:
            store = Handle(at)
            stack.push_async_callback(store.aclose)
            return store

        yield make


def lock_of(path: Path, name: str = "cron") -> LockFile:
    return LockFile.of(path, "aiolease_", name)


def is_free(path: Path, name: str = "cron") -> bool:
    lock = lock_of(path, name).take()
    if lock is not None:
        lock.free()
    return lock is not None


def threads() -> int:
    """How many threads wait for a lock here."""
    return sum(thread.name == "aiolease-sqlite-lock" for thread in threading.enumerate())


def turns() -> int:
    """How many candidates wait for a lock here."""
    return sum(len(waiters.still_waiting()) for waiters in line._lines.values())


def watching(store: Store, lease: Lease, seconds: float = LONG) -> asyncio.Task[Lease | None]:
    return asyncio.create_task(store.watch(lease.name, seconds, lease=lease, poll=LONG, hint=True))


async def seen(call: asyncio.Future[Lease | None]) -> Lease:
    async with asyncio.timeout(LIMIT):
        lease = await call
    assert lease is not None
    return lease


# -- woken, and quiet


async def test_a_candidate_reads_once_when_it_is_woken(handle: Open) -> None:
    """It does not look while it waits; a release wakes it, and it claims by what it reads then."""
    leader, candidate = handle(), handle()
    for _ in range(2):
        won = await claim(leader, "cron")
        known, before = await row(candidate, "cron"), candidate.count
        watch = watching(candidate, known)
        await asyncio.sleep(0.3)  # three looks of a candidate that looks
        assert candidate.count == before
        await free(leader, won)
        assert (await seen(watch)).holder is None
        assert candidate.count == before + 1
        leader, candidate = candidate, leader


async def test_the_thread_that_has_the_lock_reads_the_row(handle: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate that is woken knows the row: it need not ask for it first."""
    leader, candidate = handle(), handle()
    won = await claim(leader, "cron")
    await candidate.read("cron")
    monkeypatch.setattr(candidate._file, "run", None)
    watch = watching(candidate, won)
    await free(leader, won)
    assert (await seen(watch)).holder is None
    monkeypatch.undo()


async def test_a_candidate_that_nobody_wakes_reads_once(handle: Open) -> None:
    """Its wait ends by a third of the lease."""
    leader, candidate = handle(), handle()
    won = await claim(leader, "cron", 1.5)
    before = candidate.count
    lease = await asyncio.wait_for(candidate.watch("cron", LONG, lease=won, poll=0.1, hint=True), LIMIT)
    assert (lease.holder, candidate.count) == (won.holder, before + 1)


async def test_leases_of_one_file_have_locks_of_their_own(handle: Open, path: Path) -> None:
    """A release wakes who waits for that lease. One file for each lease is left beside the database."""
    leader, candidate = handle(), handle()
    one, two = await claim(leader, "one"), await claim(leader, "two/../'\"")
    first, second = watching(candidate, one), watching(candidate, two)
    await free(leader, one)
    assert (await seen(first)).name == "one"
    assert not second.done()
    await free(leader, two)
    assert (await seen(second)).name == two.name
    assert len(list(path.parent.glob("leases.db-aiolease-*"))) == 2


async def test_candidates_of_one_process_are_woken_one_by_one(handle: Open) -> None:
    """A release wakes one. If that one leads, its release wakes the other; also where they share a store."""
    leader, candidate = handle(), handle()
    won = await claim(leader, "cron")
    watches = {watching(candidate, won), watching(candidate, won)}
    await until(lambda: turns() == 2, "both wait")
    assert threads() == 1
    await free(leader, won)
    async with asyncio.timeout(LIMIT):
        (woken,), waiters = await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)
    again = await claim(candidate, "cron")
    (other,) = waiters
    assert not other.done()
    assert (await seen(woken)).token == won.token
    await free(candidate, again)
    assert (await seen(other)).token == again.token


async def test_all_paths_to_a_database_lead_to_one_lock(
    handle: Open, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path and a link meet in one file, which has the rights of the database."""
    await (first := handle()).read("cron")
    path.chmod(0o640)
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.db"
    link.symlink_to(path)
    monkeypatch.chdir(tmp_path)
    for leader, candidate in ((first, handle(link)), (handle(link), handle(Path("leases.db")))):
        won = await claim(leader, "cron")
        watch = watching(candidate, won)
        await free(leader, won)
        assert (await seen(watch)).holder is None
        await candidate.aclose()  # and frees the lock that it has for a claim
    (file,) = tmp_path.glob("**/*-aiolease-*")
    assert file.name.startswith("leases.db-")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


# -- where there is no lock


def no_fcntl(path: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("aiolease.stores.sqlite.lockfile.fcntl", None)


def no_locks(path: Path, patch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    patch.setattr("fcntl.flock", refuse)


def no_file(path: Path, patch: pytest.MonkeyPatch) -> None:
    Path(f"{path}{lock_of(path).suffix}").symlink_to("/dev/null")  # as a stranger would


def no_thread(path: Path, patch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    patch.setattr(threading.Thread, "start", refuse)


@pytest.mark.parametrize("missing", [no_fcntl, no_locks, no_file, no_thread])
async def test_without_a_lock_candidates_look(
    handle: Open, path: Path, missing: Callable[[Path, pytest.MonkeyPatch], None]
) -> None:
    """Whatever is missing, a lease is won, and its release is seen ten times sooner than by a third of the lease."""
    leader, candidate = handle(), handle()
    await leader.read("cron")
    await candidate.read("cron")  # each has its thread for the file
    with pytest.MonkeyPatch.context() as patch:
        missing(path, patch)
        won = await claim(leader, "cron", 6 * LIMIT)
        watch = watching(candidate, won)
        await asyncio.sleep(0)
        await free(leader, won)
        assert (await seen(watch)).holder is None


def test_in_virtual_time_candidates_look(path: Path) -> None:
    """A thread cannot wait in virtual time: there a release is seen within a tenth of a second."""

    async def main() -> float:
        leader, candidate = SQLiteStore(path), SQLiteStore(path)
        won = await claim(cast(Store, leader), "cron")
        watch = watching(cast(Store, candidate), won)
        await asyncio.sleep(5)
        await free(cast(Store, leader), won)
        released = asyncio.get_running_loop().time()
        await watch
        await leader.aclose()
        await candidate.aclose()
        return asyncio.get_running_loop().time() - released

    assert run_virtual(main()) <= 0.2
    assert threads() == 0


# -- a hint that was wrong


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_leader_that_died_or_froze_is_followed_at_its_expiry(
    handle: Open, path: Path, end: signal.Signals
) -> None:
    """The kernel frees the lock of the dead: its candidates are woken, and look until the lease expires, quietly.

    The lock of a frozen one is not free, which keeps nobody out.
    """
    candidate, journal = handle(), Journal()
    timings: dict[str, Any] = {"lease_duration": 1.5, "retry_interval": 0.2}
    async with leader_process(f"sqlite:///{path}", **timings) as process:
        held = await row(candidate, "default")
        async with campaign(candidate, journal=journal, **timings):
            await until(turns, "it waits for the lock")
            before = candidate.count
            process.send_signal(end)
            assert (await journal.leader()).token == held.token + 1
            assert candidate.count < before + 100


async def test_a_candidate_that_does_not_win_frees_the_lock(handle: Open, path: Path) -> None:
    """Another who claims first has the lock from its next renewal on, though one that was woken had it."""
    leader, candidate, other = handle(), handle(), handle()
    won = await claim(leader, "cron")
    watch = watching(candidate, won)
    await free(leader, won)
    released = await seen(watch)
    assert not is_free(path)
    another = await claim(other, "cron")
    lost = await candidate.claim("cron", "h", 30.0, seen=released, force=False)
    assert lost.holder == another.holder
    assert is_free(path)
    await renew(other, another, another.beat + 1)
    assert not is_free(path)


async def test_a_candidate_that_does_not_claim_frees_the_lock(
    handle: Open, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was woken, and then finds that it is not eligible, or is gone, wakes another before long."""
    monkeypatch.setattr(waiting, "CLAIMS_WITHIN", 0.05)
    leader, candidate = handle(), handle()
    won = await claim(leader, "cron")
    watch = watching(candidate, won)
    await free(leader, won)
    await seen(watch)
    await until(lambda: is_free(path), "the lock is freed")


async def test_a_candidate_that_cannot_read_frees_the_lock(handle: Open, path: Path) -> None:
    """The lock goes to the next if the one that was woken loses its database."""
    leader, candidate = handle(), handle()
    won = await claim(leader, "cron")
    watch = watching(candidate, won)
    await until(turns, "it waits for the lock")
    await candidate.aclose()
    await free(leader, won)
    with pytest.raises(StoreUnavailable):
        await seen(watch)
    assert is_free(path)


# -- the lock of a leader


async def test_the_lock_lasts_as_long_as_the_term(handle: Open, path: Path) -> None:
    """It is freed by a release, by `abandon`, by a reading that shows another holder, and by `aclose`."""
    leader, other = handle(), handle()
    await free(leader, await claim(leader, "cron"))
    assert is_free(path)
    for end in (lambda: leader.abandon("cron"), lambda: leader.read("cron"), leader.aclose):
        await claim(leader, "cron", force=True)
        assert not is_free(path)
        taken = await claim(other, "cron", force=True)
        assert not is_free(path)
        if (call := end()) is not None:
            await call
        assert is_free(path)
        await renew(other, taken, taken.beat + 1)
        assert not is_free(path)
        await free(other, taken)


async def test_a_lock_whose_file_is_deleted_is_taken_anew(handle: Open, path: Path) -> None:
    """Somebody who tidies up takes the lock from its leader until the next renewal."""
    leader = handle()
    won = await claim(leader, "cron")
    for file in path.parent.glob("*-aiolease-*"):
        file.unlink()
    assert is_free(path)
    await renew(leader, won, won.beat + 1)
    assert not is_free(path)


async def test_a_process_locks_a_limited_number_of_files(
    handle: Open, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Very many leases use up neither descriptors nor threads. Candidates look at those that are too many."""
    monkeypatch.setattr(waiting, "MOST", 2)
    monkeypatch.setattr(line, "MOST", 1)
    leader, candidate = handle(), handle()
    leases = [await claim(leader, name, 6 * LIMIT) for name in ("one", "two", "three")]
    assert [is_free(path, lease.name) for lease in leases] == [False, False, True]
    watches = [watching(candidate, lease) for lease in leases]
    await until(turns, "one of them waits for a lock")
    for lease, watch in zip(reversed(leases), reversed(watches), strict=True):
        assert threads() == 1
        await free(leader, lease)
        assert (await seen(watch)).holder is None


# -- the threads


async def test_a_thread_outlives_its_candidate_and_serves_the_next(handle: Open, path: Path) -> None:
    """What was cancelled leaves at most one thread. It serves who comes next, else frees the lock, and ends."""
    leader = handle()
    won = await claim(leader, "cron")
    for _ in range(5):
        candidate = handle()
        watch = watching(candidate, won)
        await until(turns, "it waits for the lock")
        watch.cancel()
        await asyncio.wait([watch])
        await candidate.aclose()
        assert threads() == 1
    woken = watching(candidate := handle(), won)
    await free(leader, won)
    assert (await seen(woken)).holder is None
    again = await claim(candidate, "cron")
    await until(lambda: threads() == 0, "a leader has no thread")
    gone = watching(leader, again)
    await until(turns, "it waits for the lock")
    gone.cancel()
    await asyncio.wait([gone])
    await free(candidate, again)
    await until(lambda: threads() == 0 and is_free(path), "the thread frees the lock, and ends")


WAITER = """
import asyncio, sys
from aiolease.stores.sqlite import SQLiteStore

async def main():
    store = SQLiteStore(sys.argv[1])
    watch = asyncio.create_task(store.watch("cron", 600, lease=await store.read("cron"), poll=600, hint=True))
    await asyncio.sleep(0.2)
    assert not watch.done()
    if "close" in sys.argv:
        watch.cancel()
        await store.aclose()

asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["close", "just end"])
async def test_a_program_ends_though_it_waits(handle: Open, path: Path, how: str) -> None:
    """The thread holds up neither `aclose` nor the end of the loop and of the interpreter."""
    leader = handle()
    await claim(leader, "cron")
    await asyncio.to_thread(finished, run_script(WAITER, path, how))
    assert not is_free(path)


FORKER = """
import asyncio, os, sys, time
from aiolease.stores.sqlite import SQLiteStore

store = SQLiteStore(sys.argv[1])
asyncio.run(store.claim("cron", "h", 30.0, seen=None, force=False))
if (child := os.fork()) == 0:
    store.abandon("cron")
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
if (child := os.fork()) == 0:
    time.sleep(600)
print(child, flush=True)
time.sleep(600)
"""


async def test_a_forked_child_neither_frees_its_parents_lock_nor_keeps_it(path: Path) -> None:
    """A child that ends leaves its parent the lock, and one that goes on does not have it when the parent has died."""
    parent = run_script(FORKER, path)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        assert not is_free(path)
        parent.kill()
        parent.wait(LIMIT)
        await until(lambda: is_free(path), "the lock is free though the child runs")
    finally:
        os.kill(child, signal.SIGKILL)
        parent.kill()
        parent.communicate()


# -- what a program leaves behind


async def test_a_loop_that_stands_still_keeps_the_lock_from_nobody(
    handle: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A candidate was woken, and its loop does not run: after a while others have the lock, and are woken."""
    monkeypatch.setattr(line, "CLAIMS_WITHIN", 0.05)
    leader, sleepy, other = handle(), handle(), handle()
    won, loop = await claim(leader, "cron"), asyncio.new_event_loop()

    async def begin_to_wait() -> None:
        known = await row(sleepy, "cron")
        loop.create_task(sleepy.watch("cron", LONG, lease=known, poll=LONG, hint=True))
        await until(turns, "it waits for the lock")

    await asyncio.to_thread(loop.run_until_complete, begin_to_wait())
    watch = watching(other, await row(other, "cron"))
    await until(lambda: turns() == 2, "both wait for the lock")
    await free(leader, won)
    assert (await seen(watch)).holder is None
    await asyncio.to_thread(loop.run_until_complete, _cancel_all(loop))
    loop.close()


async def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    others = asyncio.all_tasks(loop) - {asyncio.current_task(loop)}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def test_a_collector_of_garbage_waits_for_nothing(handle: Open, path: Path) -> None:
    """It may close what a closed loop has left of a wait, in the midst of anything: so that takes no lock of ours."""
    await claim(handle(), "cron")
    wait = line.wait_in_line(lock_of(path), LONG, lambda: None)
    loop = asyncio.new_event_loop()

    async def begin() -> None:
        wait.send(None)

    await asyncio.to_thread(loop.run_until_complete, begin())
    loop.close()
    closing = threading.Thread(target=wait.close, daemon=True)
    with line._guard:
        closing.start()
        closing.join(LIMIT)
        assert not closing.is_alive()


async def test_a_thread_that_fails_leaves_no_line(handle: Open, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next candidate has a thread of its own, and is woken."""
    monkeypatch.setattr(threading, "excepthook", lambda *_: None)
    leader, candidate = handle(), handle()
    won = await claim(leader, "cron")
    with monkeypatch.context() as patched:
        patched.setattr(LockFile, "wait", lambda *_: 1 / 0)
        with pytest.raises(TimeoutError):
            await line.wait_in_line(lock_of(path), 0.2, lambda: None)
    watch = watching(candidate, await row(candidate, "cron"))
    await until(turns, "it waits for the lock")
    await free(leader, won)
    assert (await seen(watch)).holder is None
