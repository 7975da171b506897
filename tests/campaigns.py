"""Campaigns under test: processes that want a lease on a server, what they tell, and who led when.

Several handles on one database stand for several processes; a true process is started where that matters.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiolease import Leadership, run_as_leader
from aiolease._clock import boot_clock
from aiolease.events import Elected, Event
from tests.project import ROOT
from tests.servers import Action, Server, TCPProxy

LIMIT = 20.0
"""Seconds within which everything here has to happen."""


E = TypeVar("E", bound=Event)

_handles: Counter[str] = Counter()


def apart(url: str) -> str:
    """Another spelling of a URL, which gets a store of its own: one process has one store per URL."""
    _handles[url] += 1
    harmless = "sslmode=disable" if url.startswith("postgresql") else "charset=utf8mb4"
    return f"{url}?{'&'.join([harmless] * _handles[url])}"


def through(url: str, port: int) -> str:
    """The URL of the same database behind a proxy."""
    login, _, database = url.rpartition("/")
    return f"{login.rpartition(':')[0]}:{port}/{database}"


def database_of(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]


class Recorder:
    """Keeps the events of one candidate with the moments of their arrival; a test waits for the next of a kind."""

    def __init__(self) -> None:
        self.events: list[tuple[float, Event]] = []
        self._changed = asyncio.Event()

    def __call__(self, event: Event) -> None:
        self.events.append((boot_clock(), event))
        self._changed.set()

    def of(self, kind: type[E]) -> list[E]:
        return [event for _, event in self.events if isinstance(event, kind)]

    def last(self, kind: type[E]) -> tuple[float, E]:
        """The newest of a kind, and when it came."""
        return next((at, event) for at, event in reversed(self.events) if isinstance(event, kind))

    async def next(self, kind: type[E], count: int = 1, *, limit: float = LIMIT) -> E:
        """Waits until `count` more of a kind have come; returns the last of them."""
        wanted = len(self.of(kind)) + count
        async with asyncio.timeout(limit):
            while len(found := self.of(kind)) < wanted:
                self._changed.clear()
                await self._changed.wait()
        return found[wanted - 1]

    async def first(self, kind: type[E], *, limit: float = LIMIT) -> E:
        """The first of a kind, which may have come already."""
        return self.of(kind)[0] if self.of(kind) else await self.next(kind, limit=limit)


@dataclass(slots=True)
class Term:
    """One body that ran, by the local clock."""

    who: str
    token: int
    began: float
    ended: float | None = None


@dataclass(slots=True)
class Journal:
    """Who led when, of all candidates for one lease."""

    terms: list[Term] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def running(self) -> list[Term]:
        return [term for term in self.terms if term.ended is None]

    async def body(self, who: str, lead: Leadership, until: Awaitable[object] | None = None) -> None:
        """A body that runs until it is cancelled, or until something happens."""
        term = Term(who, lead.token, boot_clock())
        self.terms.append(term)
        self.changed.set()
        try:
            await (until if until is not None else asyncio.Event().wait())
        finally:
            term.ended = boot_clock()
            self.changed.set()

    async def leader(self, above: int = 0, *, but: str | None = None, limit: float = LIMIT) -> Term:
        """Waits until a body of a term above a token runs, of another candidate than `but`."""
        async with asyncio.timeout(limit):
            while True:
                for term in self.running:
                    if term.token > above and term.who != but:
                        return term
                self.changed.clear()
                await self.changed.wait()

    def check(self) -> None:
        """Never two bodies at once, and tokens that rise."""
        for earlier, later in zip(self.terms, self.terms[1:], strict=False):
            assert earlier.ended is not None, f"{later} began while {earlier} ran"
            assert earlier.ended <= later.began, f"{later} began while {earlier} ran"
            assert earlier.token < later.token


@asynccontextmanager
async def campaign(
    target: Any, name: str = "default", *, journal: Journal | None = None, who: str = "", **options: Any
) -> AsyncIterator[Recorder]:
    """One process that wants the lease for ever, while the block runs."""
    heard, journal = Recorder(), journal or Journal()

    async def body(lead: Leadership) -> None:
        await journal.body(who, lead)

    task = asyncio.create_task(run_as_leader(target, body, name, on_event=heard, **options))
    try:
        yield heard
    finally:
        task.cancel()
        async with asyncio.timeout(LIMIT):
            while not task.done():  # whatever cancels the test meanwhile
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([task])
        if not task.cancelled():
            task.result()


@asynccontextmanager
async def leader_process(url: str, name: str = "default", **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that leads when the block is entered, and leaves its own block when it reads a line."""
    script = (
        "import asyncio, sys\n"
        "from aiolease import leadership\n"
        "async def main():\n"
        f"    async with leadership({url!r}, {name!r}, timeout=20, **{options!r}):\n"
        "        print('leading', flush=True)\n"
        "        await asyncio.to_thread(sys.stdin.readline)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "error", "-c", script),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(LIMIT):
            assert await process.stdout.readline() == b"leading\n"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def sessions(server: Server, url: str) -> dict[int, str]:
    """The connections to a database, by id, and what each is doing."""
    return server.sessions(database_of(url))


async def until(condition: Callable[[], object], what: str, limit: float = LIMIT) -> None:
    """Waits until a condition outside this process is true."""
    deadline = boot_clock() + limit
    while not condition():
        assert boot_clock() < deadline, f"not so within {limit:g} s: {what}"
        await asyncio.sleep(0.01)


def row(server: Server, url: str, name: str = "default") -> dict[str, Any]:
    """The row of a lease, as the administrator sees it."""
    columns = ("holder", "token", "beat", "elected_at", "renewed_at", "expires_at")
    statement = f"SELECT {', '.join(columns)} FROM aiolease_lease WHERE name = {server.text(name)}"
    rows = server.sql(statement, database_of(url))
    return dict(zip(columns, rows[0], strict=True)) if rows else {}


def counter(server: Server, *names: str) -> int:
    """The sum of some of the server's counters."""
    listed = ", ".join(f"'{name}'" for name in names)
    return sum(int(value) for _, value in server.sql(f"SHOW GLOBAL STATUS WHERE Variable_name IN ({listed})"))


async def spend(server: Server, seconds: float, *names: str) -> int:
    """How much the server's counters grow in some seconds, without the queries of this function."""
    before = counter(server, *names)
    itself = counter(server, *names) - before
    await asyncio.sleep(seconds)
    return counter(server, *names) - before - 2 * itself


async def elected(heard: Recorder) -> Elected:
    return await heard.first(Elected)


def proxy_of(server: Server) -> TCPProxy:
    """A proxy before a server."""
    return TCPProxy(server.host, server.port, server.kind)


@asynccontextmanager
async def proxied(server: Server, url: str) -> AsyncIterator[tuple[TCPProxy, str]]:
    """A proxy before the server, and the URL of the database behind it."""
    async with TCPProxy(server.host, server.port, server.kind) as proxy:
        yield proxy, through(url, proxy.port)


def once(statement: bytes, action: Action) -> Callable[[bytes], Action | None]:
    """A fault that happens to one query: the next that holds some text."""
    left = [action]

    def choose(query: bytes) -> Action | None:
        return left.pop() if left and statement in query else None

    return choose


def kill_sessions(server: Server, url: str) -> set[int]:
    """Ends all connections to a database, as an administrator does; gives their ids."""
    killed = set(sessions(server, url))
    for number in killed:
        with contextlib.suppress(server.driver_errors):  # gone by itself
            server.end_session(number)
    return killed


@contextmanager
def full_executor() -> Iterator[None]:
    """The loop's default executor is busy with an application's threads, and stays so."""
    loop, over = asyncio.get_running_loop(), threading.Event()
    executor = ThreadPoolExecutor(1)
    loop.set_default_executor(executor)
    busy = [loop.run_in_executor(None, over.wait) for _ in range(3)]
    try:
        yield
    finally:
        over.set()
        executor.shutdown()
        for future in busy:
            future.cancel()
