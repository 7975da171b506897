"""A binary log in STATEMENT form takes what a leader writes, and is not flooded by warnings."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from aiolease import leadership, open_store
from aiolease.stores import Store
from aiolease.stores.batch import Again, Backfilled, Batch, JobDefinition
from aiolease.stores.records import TermKey
from tests.servers import MariaDBServer, MySQLServer, Server
from tests.stores.ledgers import change, claiming, run


def unsafe(server: Server) -> list[str]:
    """The lines of the server's log that call a statement unsafe."""
    return [line for line in server.error_log.read_text(errors="replace").splitlines() if "unsafe" in line.lower()]


async def ask_everything(store: Store, term: TermKey, now: datetime) -> None:
    """What people ask of a job, and what the leader makes of it."""
    await store.have(term, ["job"])
    await store.pause("made", "job", note="by itself")
    await store.pause("made", until=now + timedelta(hours=1))
    await store.resume("made")
    await store.rerun("made", "job", now - timedelta(seconds=1))
    [waiting], _ = await store.later("made", 9)
    again = change(waiting, "queued", attempt=9, again=Again(not_before=now, failed=True, line="no"))
    await store.backfill("made", "job", now, now)
    backfilled = {"job": Backfilled(seen=now, since=None)}
    asked = run(term, "job", now, "queued", request="backfill", not_before=now)
    await store.record(term, Batch(changes=[again], claims=[asked], backfills=backfilled))
    await store.cancel("made", "job")
    await store.settle("made", "job")


@pytest.mark.parametrize("kind", [MariaDBServer, MySQLServer])
async def test_what_a_leader_writes_again_and_again_is_safe_for_a_log_of_statements(kind: type[Server]) -> None:
    """Claims, renewals, ticks, their ends, pruning and a final release: no statement is unsafe, none is refused."""
    if reason := kind.available():
        pytest.skip(reason)
    options = ["--log-bin=binlog", "--server-id=1", "--binlog-format=STATEMENT"]
    more = ["--log-warnings=9"] if kind is MariaDBServer else ["--log-error-verbosity=3"]
    with kind.start(options=options + more) as server:
        server.create_database("statements")
        async with open_store(server.url("statements")) as store:
            async with leadership(store, "made", timeout=20):
                pass  # the tables, and the row of a lease that was not there: once
            before = len(unsafe(server))
            async with leadership(store, "made", timeout=20) as lead:
                term = TermKey("made", lead.holder, lead.token)
                await store.enroll(term, [JobDefinition(job="job", schedule="every 30s", timezone="")])
                now = (await store.take_stock("made")).now
                for number in range(20, 0, -1):
                    row = run(term, "job", now - timedelta(seconds=number))
                    await store.record(term, claiming(row))
                    await store.record(term, Batch(changes=[change(row, "failed", error="no")]))
                assert await store.renew("made", lead.holder, lead.token, 50, 30.0) is not None
                await store.trigger("made", "job")
                await store.pause("made", "job")
                await store.resume("made", "job")
                await store.prune("made", ["job"], 5)
                assert len(await store.history("made", "job")) == 5
                await ask_everything(store, term, now)
            await store.forget("made", "job")
        assert unsafe(server)[before:] == []
        # The log would tell: what is unsafe warns there.
        server.sql("CREATE TABLE t (id INT PRIMARY KEY)", "statements")
        server.sql("INSERT INTO t VALUES (1), (2)", "statements")
        server.sql("DELETE FROM t LIMIT 1", "statements")
        assert unsafe(server)[before:] != []
