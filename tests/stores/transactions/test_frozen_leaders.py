"""A leader that is frozen in a transaction holds up nobody."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aiolease import leadership
from aiolease._clock import boot_clock
from aiolease.stores.network.lending import EngineLender
from tests.campaigns import LIMIT, proxy_of, until
from tests.project import ROOT
from tests.servers import Action, Server
from tests.stores.mysql.connecting import SLACK
from tests.stores.transactions.lending import COMMIT, Work, insert, lent, one_server

LEASE = 1.2
"""Seconds; of the one that is frozen, and of the one that follows."""

WORKER = """
import asyncio, json, os, signal, sys
import asyncmy
from aiolease import leadership, CommitUnknown, LeadershipLost, StoreUnavailable
from aiolease.stores.mysql import transactions as _transactions

url, port, database, point, lease, loops = sys.argv[1:]
port, lease, loops = int(port), float(lease), int(loops)

def tell(*what):
    print(json.dumps(what), flush=True)

def stop(here):
    if here == point:
        tell("stopping")
        os.kill(os.getpid(), signal.SIGSTOP)

execute = _transactions.execute
async def watched(connection, cursor, sql, parameters=(), results=None):
    if "; COMMIT " in sql:
        stop("before the packet")
    answer = await execute(connection, cursor, sql, parameters, *([] if results is None else [results]))
    if "; COMMIT " in sql:
        stop("after the answer")
    return answer
_transactions.execute = watched

async def main():
    async with asyncmy.create_pool(host="127.0.0.1", port=port, user="root", db=database, maxsize=2) as pool:
        try:
            async with leadership(pool, timeout=20, lease_duration=lease) as lead:
                tell("leading", lead.token)
                for number in range(loops):
                    outcome = "committed"
                    try:
                        async with lead.transaction() as connection:
                            stop("begun")
                            async with connection.cursor() as cursor:
                                await cursor.execute("SELECT COUNT(*) FROM work")
                                await cursor.execute(f"INSERT INTO work (who) VALUES ('old {number}')")
                                stop("written")
                    except (CommitUnknown, StoreUnavailable) as error:
                        outcome = type(error).__name__
                    except asyncio.CancelledError:  # by the loss, perhaps behind the COMMIT
                        tell("cancelled", number)
                        raise
                    tell(outcome, number)
                await asyncio.sleep(30)
        except LeadershipLost as error:
            tell("LeadershipLost", error.reason)
asyncio.run(main())
"""


@dataclass
class Worker:
    """A leader in a process of its own, and what it told."""

    process: asyncio.subprocess.Process
    told: list[list[Any]] = field(default_factory=list)

    async def hear(self, word: str) -> list[Any]:
        assert self.process.stdout is not None
        async with asyncio.timeout(LIMIT):
            while line := await self.process.stdout.readline():
                self.told.append(json.loads(line))
                if self.told[-1][0] == word:
                    return self.told[-1]
        raise AssertionError(f"the worker ended, and told only {self.told}")

    async def end(self) -> None:
        """Hears all that it has to tell, until it ends by itself."""
        assert self.process.stdout is not None
        async with asyncio.timeout(LIMIT):
            while line := await self.process.stdout.readline():
                self.told.append(json.loads(line))
            assert await self.process.wait() == 0

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def stopped(self) -> None:
        path = Path(f"/proc/{self.process.pid}/status")
        await until(lambda: "\nState:\tT" in path.read_text(), "the worker is frozen")


@asynccontextmanager
async def worker(url: str, point: str, *, port: int = 0, loops: int = 1) -> AsyncIterator[Worker]:
    address, _, database = url.rpartition("/")
    port = port or int(address.rpartition(":")[2])
    arguments = (url, str(port), database, point, str(LEASE), str(loops))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", WORKER, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield Worker(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def take_over(url: str, frozen_at: float) -> int:
    """Leads in the frozen one's place, commits, and says by which token. It must not take longer than the lease."""
    async with lent("asyncmy", url) as lend, leadership(lend.target, timeout=LIMIT, lease_duration=LEASE) as lead:
        assert boot_clock() - frozen_at < LEASE + SLACK + 0.4, "the frozen leader held up the takeover"
        async with lead.transaction() as connection:
            await lend.run(connection, insert("new"))
        return lead.token


@pytest.mark.parametrize(
    ("mysql_server", "point"),
    [
        ("mariadb", "begun"),
        ("mariadb", "written"),
        ("mariadb", "before the packet"),
        ("mariadb", "after the answer"),
        ("mariadb_snapshot", "before the packet"),
        ("mysql9", "before the packet"),
    ],
    indirect=["mysql_server"],
)
async def test_a_frozen_leader_holds_up_nobody_and_commits_nothing(mysql_url: str, work: Work, point: str) -> None:
    """A leader that is frozen anywhere in a transaction is followed when its lease expires.

    Thawed, it gets `LeadershipLost` and nothing of it is visible, unless it had committed before the newer term began.
    """
    async with worker(mysql_url, point) as old:
        _, token = await old.hear("leading")
        await old.hear("stopping")
        await old.stopped()
        assert await take_over(mysql_url, boot_clock()) == token + 1
        at_takeover = work.rows()
        old.send(signal.SIGCONT)
        await old.end()
    assert work.rows() == at_takeover == (["old 0", "new"] if point == "after the answer" else ["new"])
    assert old.told[-1][0] == "LeadershipLost"
    if point != "after the answer":  # what the server has refused, or was never asked, is not unknown
        assert not {"committed", "CommitUnknown"} & {told[0] for told in old.told}


@one_server
async def test_a_leader_frozen_behind_its_commit_has_committed(
    mysql_server: Server, mysql_url: str, work: Work
) -> None:
    """A leader that is frozen after it has sent its COMMIT holds up nobody: it is committed before the newer term."""
    async with (
        proxy_of(mysql_server) as proxy,
        worker(mysql_url, "", port=proxy.port) as old,
    ):
        answered = asyncio.Event()

        def freeze(query: bytes) -> Action | None:
            if COMMIT not in query:
                return None
            old.send(signal.SIGSTOP)
            return Action(answered=answered)

        await old.hear("leading")
        proxy.on_query = freeze
        async with asyncio.timeout(LIMIT):
            await answered.wait()
        await take_over(mysql_url, boot_clock())
        at_takeover = work.rows()
        proxy.on_query = None  # the release that it tries is let through
        old.send(signal.SIGCONT)
        await old.end()
    assert work.rows() == at_takeover == ["old 0", "new"]
    assert old.told[-1][0] == "LeadershipLost"


@pytest.mark.parametrize(
    ("mysql_server", "seed"),
    [("mariadb", 0), ("mariadb_snapshot", 1), ("mysql9", 2)],
    indirect=["mysql_server"],
)
async def test_a_leader_frozen_at_random_holds_up_nobody(mysql_url: str, work: Work, seed: int) -> None:
    """Frozen at any moment of a stream of transactions, a leader delays no takeover, and commits nothing after it."""
    dice = random.Random(seed)
    async with worker(mysql_url, "", loops=1_000_000) as old:
        await old.hear("committed")
        await asyncio.sleep(dice.uniform(0.0, 0.3))
        old.send(signal.SIGSTOP)
        await old.stopped()
        await take_over(mysql_url, boot_clock())
        at_takeover = work.rows()
        old.send(signal.SIGCONT)
        await old.end()
    assert work.rows() == at_takeover
    assert at_takeover[-1] == "new"
    assert old.told[-1][0] == "LeadershipLost"
    known = {f"old {number}" for outcome, number in old.told if outcome == "committed"}
    unknown = {f"old {number}" for outcome, number in old.told if outcome in {"CommitUnknown", "cancelled"}}
    assert known <= set(at_takeover) - {"new"} <= known | unknown


@one_server
async def test_a_committed_transaction_succeeds_whatever_comes_after(mysql_url: str, work: Work) -> None:
    """A session that dies between its COMMIT and its return to the pool of an engine takes nothing back."""
    give_back = EngineLender.give_back

    async def late(self: EngineLender, connection: Any, *, broken: bool) -> None:
        raw = await self.raw(connection)
        work.server.sql(f"KILL {raw.thread_id()}")
        await give_back(self, connection, broken=broken)

    async with lent("engine-asyncmy", mysql_url) as lend, leadership(lend.target, timeout=LIMIT) as lead:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(EngineLender, "give_back", late)
            async with lead.transaction() as connection:
                await lend.run(connection, insert("committed"))
        await lend.whole()
    assert work.rows() == ["committed"]
