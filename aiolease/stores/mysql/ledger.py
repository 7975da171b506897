"""The ledger on MySQL and MariaDB. Each batch is one packet and one fenced transaction.

A check between two statements raises an error unless the statement before it changed as many rows as it should; a
server does not execute what stands behind an error in a packet, the connection is discarded, and so nothing is
committed. The fence comes first: whoever writes here waits for it, and not for each other's rows, so that two of them
cannot meet in a deadlock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from aiolease._names import check_name
from aiolease._waiting import time_limited
from aiolease.errors import AioleaseError, InvalidJob
from aiolease.stores.contract import FenceBroken, Refused
from aiolease.stores.mysql.dialect import CHECK_FAILED, Bound, MySQLDialect, packet
from aiolease.stores.mysql.drivers import Rows, error_number
from aiolease.stores.mysql.enrolling import Enrolling
from aiolease.stores.mysql.fence import FENCE_RESULTS, FenceSQL
from aiolease.stores.mysql.pruning import Pruning
from aiolease.stores.mysql.session import Session
from aiolease.stores.records import (
    Batch,
    JobDefinition,
    LedgerReading,
    Place,
    RunRecord,
    TermKey,
    checked_limit,
)
from aiolease.stores.sql.ledger import LedgerStatements
from aiolease.stores.sql.recording import AT_ONCE, Recording
from aiolease.stores.sql.rows import Rows as Records
from aiolease.stores.sql.rows import read_each, readable, there
from aiolease.stores.sql.statement import Statement

_REFUSALS = {
    *(1048, 1062, 1364),  # NULL, a row that is there, no default
    *(1264, 1265, 1292, 1366, 1406, 1411, 3140, 4025, 3819),  # a value that does not fit, or breaks a CHECK
    *(1451, 1452, 1644),  # somebody's foreign key, or trigger
}
"""Errors that say that the rows are in the way, and not that the server is."""

IDLE = 60
"""``wait_timeout`` of a session that leads nothing, in seconds."""

ASK_LIMIT = 10.0
"""Seconds that a question which has no limit of its caller's may take."""

# Refused, a transaction leaves its locks until the connection is closed: if we are frozen then, the server ends it.
_BEGIN = "SET @@SESSION.wait_timeout = 1; START TRANSACTION"
_BEGIN_RESULTS = 2
_COMMIT = f"COMMIT; SET @@SESSION.wait_timeout = {IDLE}"


class MySQLLedger:
    """The half of `MySQLStore` that is a `LedgerStore`."""

    description: str

    def __init__(
        self, dialect: MySQLDialect, records: Records, fence: FenceSQL, *, leader: Session, people: Session
    ) -> None:
        """Makes it.

        Args:
            dialect: How statements get their values.
            records: What rows become.
            fence: What each transaction starts with.
            leader: The connection for what the leader reads and writes.
            people: That for what people ask.
        """
        self._dialect = dialect
        self._records = records
        self._fence = fence
        self._other_session = leader
        self._asking_session = people
        self._ledger = LedgerStatements(dialect, records)
        self._recording = Recording(dialect)
        self._enrolling = Enrolling(dialect)
        self._pruning = Pruning(dialect, leader)

    # -- what the leader reads and writes

    async def take_stock(
        self, name: str, *, attention: bool = False, runs: bool = True, counted: bool = False
    ) -> LedgerReading:
        """See `LedgerStore.take_stock`."""
        reading = self._ledger.reading(attention=attention, runs=runs, counted=counted)
        sent = packet(self._dialect.bind(statement, {"lease": name}) for statement in reading.values())
        found = dict(zip(reading, await self._other_session.run(*sent), strict=True))
        return self._ledger.read(found, found["clock"][0][0])

    async def queued(self, name: str, jobs: Sequence[str], limit: int) -> tuple[list[RunRecord], dict[str, str]]:
        """See `LedgerStore.queued`."""
        unreadable: dict[str, str] = {}
        if not jobs:
            return [], unreadable
        asked = ({"lease": name, "job": job, "limit": limit} for job in jobs)
        sent = packet(self._dialect.bind(self._ledger.queued, values) for values in asked)
        results = await self._other_session.run(*sent)
        found = read_each((row for rows in results for row in rows), self._records.run, unreadable)
        return sorted(found, key=lambda run: (run.tick, run.job)), unreadable

    async def look_up(self, name: str, places: Sequence[Place]) -> list[RunRecord]:
        """See `LedgerStore.look_up`."""
        if not places:
            return []
        asked = ({"lease": name, "job": job, "tick": tick} for job, tick in places)
        sent = packet(self._dialect.bind(self._ledger.look_up, values) for values in asked)
        results = await self._other_session.run(*sent)
        return [
            there(place, row, self._records.run) for place, rows in zip(places, results, strict=True) for row in rows
        ]

    async def enroll(self, term: TermKey, jobs: Sequence[JobDefinition]) -> None:
        """See `LedgerStore.enroll`."""
        for start in range(0, max(len(jobs), 1), AT_ONCE):
            await self._fenced(term, self._enrolling.statements(term.name, jobs[start : start + AT_ONCE]))

    async def record(self, term: TermKey, batch: Batch) -> None:
        """See `LedgerStore.record`."""
        await self._fenced(term, map(self._dialect.bind_step, self._recording.recording(term, batch)))

    async def _fenced(self, term: TermKey, statements: Iterable[Bound]) -> None:
        sent = packet([(_BEGIN, ()), self._fence.statements(term), *statements, (_COMMIT, ())])
        results: list[Rows] = []
        try:
            # Not repeated: if the first was executed, the second is refused, and nobody knows why.
            await self._other_session.run(*sent, results, repeat=False)
        except AioleaseError as error:
            number = error_number(error.__cause__) if error.__cause__ else None
            if number == CHECK_FAILED:
                raise (FenceBroken if len(results) < _BEGIN_RESULTS + FENCE_RESULTS else Refused) from error
            if number in _REFUSALS:
                raise Refused from error
            raise

    async def prune(self, name: str, jobs: Sequence[str], keep: int) -> list[str]:
        """See `LedgerStore.prune`."""
        return await self._pruning.prune(name, jobs, keep)

    # -- what people ask

    async def history(self, name: str, job: str, *, limit: int = 100) -> list[RunRecord]:
        """See `LedgerStore.history`."""
        values = {"lease": check_name(name), "job": job, "limit": checked_limit(limit)}
        if not _is_name(job):
            return []
        rows = (await self._ask(self._dialect.bind(self._ledger.history, values)))[0]
        return read_each(reversed(rows), self._records.run, {})

    async def settle(self, name: str, job: str) -> None:
        """See `LedgerStore.settle`."""
        await self._ask_job(name, job, *self._ledger.settle)

    async def trigger(self, name: str, job: str) -> datetime:
        """See `LedgerStore.trigger`."""
        requested_at = await self._ask_job(name, job, self._ledger.trigger)
        with readable(self.description, f"the ledger of {name!r}"):
            return self._records.moment(requested_at)

    async def pause(self, name: str, job: str) -> None:
        """See `LedgerStore.pause`."""
        await self._ask_job(name, job, self._ledger.pause)

    async def resume(self, name: str, job: str) -> None:
        """See `LedgerStore.resume`."""
        await self._ask_job(name, job, self._ledger.resume)

    async def _ask_job(self, name: str, job: str, *statements: Statement) -> Any:
        """Changes a job; returns when it was triggered, as the table keeps it."""
        values = {"lease": check_name(name), "job": job}
        changes = [self._dialect.bind(statement, values) for statement in (*statements, self._ledger.requested_at)]
        # In one transaction, so that the leader cannot see to it between the two.
        sent = packet([("START TRANSACTION", ()), *changes, ("COMMIT", ())])
        rows = (await self._ask(sent))[-2] if _is_name(job) else None
        if not rows:
            raise InvalidJob(job, f"no leader of {name!r} ever had such a job")
        return rows[0][0]

    async def _ask(self, sent: Bound) -> list[Rows]:
        return await time_limited(ASK_LIMIT, self.description, self._asking_session.run(*sent))


def _is_name(job: str) -> bool:
    """Whether a job can have this name: the server would compare others by rules of its own, or not at all."""
    return bool(re.fullmatch(r"[!-~]{1,100}", job))
