"""One process that wants to lead, does work while it does, and writes down all of it.

Started by the harness with its settings as JSON. Its work is fenced commits, and plain steps at short intervals, the
last of them while it unwinds. SIGTERM ends it in an orderly way, SIGUSR1 has it resign.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from aiolease import CommitUnknown, Leadership, LeadershipLost, run_as_leader
from tests.faults.journal import Journal

Driver = Literal["url", "asyncmy", "aiomysql", "sqlalchemy"]
Breakage = Literal["", "releases first", "goes on", "unfenced"]

LEASE = 3.0
STEP = 0.02
UNWIND = 0.15
"""Seconds that a body goes on with its steps once it is cancelled, of the 0.5 that a lease of 3 s leaves it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the harness tells a worker.

    Attributes:
        process: Its name; a worker that is started again has a new one.
        journal: The file that all processes append to.
        url: The database.
        driver: What it hands to `run_as_leader`: the URL, or a pool of that kind.
        breakage: A rule that it breaks, to show that the checker sees it.
    """

    process: str
    journal: str
    url: str
    driver: Driver = "url"
    breakage: Breakage = ""

    def dumps(self) -> str:
        return json.dumps(asdict(self))


class Work:
    """The body of a term: steps, and fenced commits beside them."""

    def __init__(self, settings: Settings, journal: Journal) -> None:
        self._settings = settings
        self._journal = journal
        self.lead: Leadership | None = None

    async def body(self, lead: Leadership) -> None:
        self.lead = lead
        self._journal.write("began", lead.token)
        # No task group: before Python 3.13 one whose child fails leaves its parent looking cancelled from outside.
        commits = asyncio.create_task(self._commits(lead))
        steps = asyncio.create_task(self._steps(lead.token, "step", None))
        try:
            await asyncio.wait([commits])
        finally:
            commits.cancel()
            steps.cancel()
            unwinding = asyncio.create_task(self._steps(lead.token, "unwinding", UNWIND))
            while not (commits.done() and unwinding.done()):  # not torn, should it be cancelled again
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([commits, unwinding])
            self._journal.write("ended", lead.token)
        commits.result()

    def resign(self) -> None:
        if self.lead is not None:
            self.lead.resign()

    async def deaf(self, lead: Leadership) -> None:
        """A body that goes on after its loss."""
        self._journal.write("began", lead.token)
        steps = asyncio.create_task(self._steps(lead.token, "step", 10 * LEASE))
        while not steps.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([steps])
        self._journal.write("ended", lead.token)

    async def _steps(self, token: int, kind: str, seconds: float | None) -> None:
        until = None if seconds is None else time.monotonic() + seconds
        while until is None or time.monotonic() < until:
            self._journal.write(kind, token)
            await asyncio.sleep(STEP)

    async def _commits(self, lead: Leadership) -> None:
        inherited = False
        for n in range(1, 1_000_000):
            facts: dict[str, Any] = {"n": n}
            try:
                async with lead.transaction() as connection:
                    if not inherited:
                        facts["inherited"] = await self._inherited(connection, lead.token)
                    await self._insert(connection, lead.token, n)
                    await asyncio.sleep(0.5 if self._settings.breakage == "unfenced" else random.uniform(0.0, 0.02))
                    self._journal.write("committing", lead.token, n=n)
            except LeadershipLost:
                self._journal.write("refused", lead.token, n=n)
                raise
            except CommitUnknown as error:
                self._journal.write("unknown", lead.token, n=n, why=str(error))
            except asyncio.CancelledError:
                self._journal.write("cancelled", lead.token, n=n)  # its outcome may be any
                raise
            except Exception as error:  # noqa: BLE001 - a driver's, or the store's: the next one may succeed
                self._journal.write("refused", lead.token, n=n, why=f"{type(error).__name__}: {error}")
                await asyncio.sleep(0.1)
            else:
                inherited = True
                self._journal.write("committed", lead.token, **facts)
            await asyncio.sleep(random.uniform(0.0, 0.03))

    async def _inherited(self, connection: Any, token: int) -> int:
        """How many rows of older terms there are, once this one has begun: there must never be more."""
        sql = f"SELECT COUNT(*) FROM effects WHERE token < {token:d}"
        return int((await self._execute(connection, sql))[0])

    async def _insert(self, connection: Any, token: int, n: int) -> None:
        process = self._settings.process
        await self._execute(
            connection, f"INSERT INTO effects (process, token, n) VALUES ('{process}', {token:d}, {n:d})"
        )

    async def _execute(self, connection: Any, sql: str) -> Any:
        if self._settings.driver == "sqlalchemy":
            from sqlalchemy import text

            result = await connection.execute(text(sql))
            return result.fetchone() if result.returns_rows else None
        if self._settings.url.startswith("sqlite"):
            async with connection.execute(sql) as cursor:
                return await cursor.fetchone()
        async with connection.cursor() as cursor:
            await cursor.execute(sql)
            return await cursor.fetchone()


@asynccontextmanager
async def target(settings: Settings) -> AsyncIterator[Any]:
    """What the worker hands to aiolease."""
    login, _, database = settings.url.removeprefix("mysql://").rpartition("/")
    user, _, address = login.partition("@")
    host, _, port = address.partition(":")
    parameters: dict[str, Any] = {"host": host, "user": user, "connect_timeout": 2}
    match settings.driver:
        case "asyncmy":
            import asyncmy

            async with asyncmy.create_pool(minsize=0, port=int(port), db=database, **parameters) as pool:
                yield pool
        case "aiomysql":
            import aiomysql

            async with aiomysql.create_pool(minsize=0, port=int(port), db=database, **parameters) as pool:
                yield pool
        case "sqlalchemy":
            from sqlalchemy.ext.asyncio import create_async_engine

            url = settings.url.replace("mysql://", "mysql+asyncmy://")
            engine = create_async_engine(url, connect_args={"connect_timeout": 2})
            try:
                yield engine
            finally:
                await engine.dispose()
        case _:
            yield settings.url


async def lead_for_ever(settings: Settings, journal: Journal) -> None:
    """The program of a worker. One that runs jobs has the same arguments, and writes records of the same kinds."""
    work = Work(settings, journal)
    body: Callable[[Leadership], Awaitable[None]] = work.deaf if settings.breakage == "goes on" else work.body
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, work.resign)
    async with target(settings) as database:
        await run_as_leader(database, body, lease_duration=LEASE, on_event=journal.observe)


PROGRAMS: dict[str, Callable[[Settings, Journal], Awaitable[None]]] = {"leader": lead_for_ever}


def break_it(breakage: Breakage) -> None:
    """Breaks a rule of the package in this process."""
    from aiolease._leadership import Leadership, _Tenure
    from aiolease.stores._transactions import FenceSQL

    if breakage == "releases first":
        end, tasks = _Tenure.end, set()

        def end_and_release(self: _Tenure, *args: Any, **options: Any) -> None:
            end(self, *args, **options)
            tasks.add(asyncio.ensure_future(self.release()))

        _Tenure.end = end_and_release  # type: ignore[method-assign]
    if breakage == "unfenced":
        FenceSQL.statements = lambda self, term, final=None: ("DO 0", ())  # type: ignore[method-assign]
        Leadership.check = lambda self: None  # type: ignore[method-assign]


def end_with_the_harness() -> None:
    """Ends this process when the harness is gone, and its end of the pipe with it."""
    sys.stdin.read()
    os._exit(3)


async def live(journal: Journal) -> None:
    """Signs of life: where they fail, the machine did not let this process run."""
    while True:
        journal.write("alive")
        await asyncio.sleep(0.05)


async def main(settings: Settings) -> None:
    loop = asyncio.get_running_loop()
    journal = Journal(settings.journal, settings.process)
    program = asyncio.ensure_future(PROGRAMS["leader"](settings, journal))
    living = asyncio.ensure_future(live(journal))
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        program.cancel()

    loop.add_signal_handler(signal.SIGTERM, terminate)
    journal.write("started")
    try:
        await program
    except asyncio.CancelledError:
        if not terminated:
            raise
    finally:
        living.cancel()
        journal.write("stopped")
        journal.close()


if __name__ == "__main__":
    threading.Thread(target=end_with_the_harness, daemon=True).start()
    given = Settings(**json.loads(sys.argv[1]))
    break_it(given.breakage)
    asyncio.run(main(given))
