"""Sends the statements of the ledger to MySQL and MariaDB: each batch is one packet and one fenced transaction.

A check behind a statement raises an error unless the statement changed the right number of rows. After an error the
server executes nothing more of the packet, and aiolease discards the connection: so nothing is committed.

The fence comes first. Two writers of one lease wait for each other there, before either has locked a row of the ledger,
so they cannot deadlock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aiolease._waiting import time_limited
from aiolease.errors import AioleaseError
from aiolease.stores.batch import JobDefinition
from aiolease.stores.contract import FenceBroken, Refused
from aiolease.stores.mysql.dialect import CHECK_FAILED, Bound, MySQLDialect, packet
from aiolease.stores.mysql.drivers import Rows, error_number
from aiolease.stores.mysql.enrolling import Enrolling
from aiolease.stores.mysql.fence import FENCE_RESULTS, FenceSQL
from aiolease.stores.mysql.pruning import Pruning
from aiolease.stores.mysql.session import MySQLSession
from aiolease.stores.records import TermKey
from aiolease.stores.sql.recording import AT_ONCE
from aiolease.stores.sql.statement import Asked, Step

_REFUSALS = {
    *(1048, 1062, 1364),  # NULL, a row that is there, no default
    *(1264, 1265, 1292, 1366, 1406, 1411, 3140, 4025, 3819),  # a value that does not fit, or breaks a CHECK
    *(1451, 1452, 1644),  # somebody's foreign key, or trigger
}
"""Errors whose cause is the rows, not the server."""

IDLE = 60
"""``wait_timeout`` of a session while this process leads nothing, in seconds."""

ASK_LIMIT = 10.0
"""Time limit for exchanges whose caller sets none, in seconds."""

# A refused transaction keeps its locks until the connection is closed. If this process is frozen just then, the server
# ends the session after a second.
_BEGIN = "SET @@SESSION.wait_timeout = 1; START TRANSACTION"
_BEGIN_RESULTS = 2
_COMMIT = f"COMMIT; SET @@SESSION.wait_timeout = {IDLE}"


class MySQLLedger:
    """See `aiolease.stores.sql.sending.Sending`."""

    def __init__(
        self, store: str, dialect: MySQLDialect, fence: FenceSQL, *, leader: MySQLSession, people: MySQLSession
    ) -> None:
        """Makes it.

        Args:
            store: The store's description, for errors.
            dialect: Binds values to statements.
            fence: The first statement of each transaction of the leader.
            leader: The connection for the leader's reads and writes.
            people: The connection for what people ask, as the command line does.
        """
        self._store = store
        self._dialect = dialect
        self._fence = fence
        self._other_session = leader
        self._asking_session = people
        self._enrolling = Enrolling(dialect)
        self._pruning = Pruning(dialect, leader)

    async def read(self, asked: Sequence[Asked]) -> list[Rows]:
        """See `Sending.read`."""
        return await self._other_session.run(*packet(self._dialect.bind(*each) for each in asked))

    async def enroll(self, term: TermKey, jobs: Sequence[JobDefinition]) -> None:
        """See `Sending.enroll`."""
        for start in range(0, max(len(jobs), 1), AT_ONCE):
            await self._fenced(term, self._enrolling.statements(term.name, jobs[start : start + AT_ONCE]))

    async def record(self, term: TermKey, steps: Iterable[Step]) -> None:
        """See `Sending.record`."""
        await self._fenced(term, map(self._dialect.bind_step, steps))

    async def prune(self, name: str, jobs: Sequence[str], keep: int) -> list[str]:
        """See `Sending.prune`."""
        return await self._pruning.prune(name, jobs, keep)

    async def ask(self, asked: Sequence[Asked]) -> Rows:
        """See `Sending.ask`."""
        statements = [self._dialect.bind(*each) for each in asked]
        if len(statements) > 1:  # so that the leader cannot act between two of them
            statements = [("START TRANSACTION", ()), *statements, ("COMMIT", ())]
        asking = self._asking_session.run(*packet(statements))
        results = await time_limited(ASK_LIMIT, self._store, asking)
        return results[-2] if len(statements) > 1 else results[0]

    async def look(self, asked: Sequence[Asked]) -> list[Rows]:
        """See `Sending.look`."""
        asking = self._asking_session.run(*packet(self._dialect.bind(*each) for each in asked))
        return await time_limited(ASK_LIMIT, self._store, asking)

    async def _fenced(self, term: TermKey, statements: Iterable[Bound]) -> None:
        sent = packet([(_BEGIN, ()), self._fence.statements(term), *statements, (_COMMIT, ())])
        results: list[Rows] = []
        try:
            # Not repeated: if the first was executed after all, the second would be refused, and nobody would know why.
            await self._other_session.run(*sent, results, repeat=False)
        except AioleaseError as error:
            number = error_number(error.__cause__) if error.__cause__ else None
            if number == CHECK_FAILED:
                raise (FenceBroken if len(results) < _BEGIN_RESULTS + FENCE_RESULTS else Refused) from error
            if number in _REFUSALS:
                raise Refused from error
            raise
