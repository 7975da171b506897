"""How PostgreSQL is sent the statements of the ledger: a batch is one message, one fenced transaction.

What follows an error in a message is not done, and nothing of what was before it is kept. A step that must change so
many rows is a statement that raises an error unless it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from aiolease._waiting import time_limited
from aiolease.errors import AioleaseError
from aiolease.stores.batch import JobDefinition
from aiolease.stores.contract import FenceBroken, Refused
from aiolease.stores.postgresql.dialect import FENCE_CHECK, Bound, PostgreSQLDialect
from aiolease.stores.postgresql.errors import failed_check, refuses
from aiolease.stores.postgresql.fence import FenceSQL
from aiolease.stores.postgresql.links import Row
from aiolease.stores.postgresql.session import PostgreSQLSession
from aiolease.stores.records import TermKey
from aiolease.stores.sql.ledger import PruneStatements, step_of
from aiolease.stores.sql.recording import AT_ONCE, Enrolling, cut
from aiolease.stores.sql.statement import Asked, Step

ASK_LIMIT = 10.0
"""Seconds that a question which has no limit of its caller's may take."""

_AT_ONCE = 100
"""How many questions of one form are one statement."""


class PostgreSQLLedger:
    """See `aiolease.stores.sql.sending.Sending`."""

    def __init__(
        self,
        store: str,
        dialect: PostgreSQLDialect,
        fence: FenceSQL,
        *,
        leader: PostgreSQLSession,
        people: PostgreSQLSession,
    ) -> None:
        """Makes it.

        Args:
            store: The store's description, for errors.
            dialect: How statements get their values.
            fence: What each transaction of the leader starts with.
            leader: The connection for what the leader reads and writes.
            people: That for what people ask.
        """
        self._store = store
        self._dialect = dialect
        self._fence = fence
        self._leader = leader
        self._people = people
        self._enrolling = Enrolling(dialect)
        self._pruning = PruneStatements(dialect)

    async def read(self, asked: Sequence[Asked]) -> list[list[Row]]:
        """See `Sending.read`."""
        return await self._read(self._leader, asked)

    async def look(self, asked: Sequence[Asked]) -> list[list[Row]]:
        """See `Sending.look`."""
        return await time_limited(ASK_LIMIT, self._store, self._read(self._people, asked))

    async def _read(self, session: PostgreSQLSession, asked: Sequence[Asked]) -> list[list[Row]]:
        groups = [list(group) for _, group in groupby(asked, key=lambda each: id(each[0]))]
        parts = [part for group in groups for part in cut(group, _AT_ONCE)]
        found = await session.fetch_each([self._union(part) for part in parts])
        results: list[list[Row]] = []
        for part, rows in zip(parts, found, strict=True):
            shares: list[list[Row]] = [[] for _ in part]
            for number, *row in rows:
                shares[number].append(tuple(row))
            results += shares
        return results

    def _union(self, asked: Sequence[Asked]) -> Bound:
        """Questions of one form as one statement, each row with its question's number before it."""
        sql, parameters = list[str](), list[object]()
        for number, (statement, values) in enumerate(asked):
            text, given = self._dialect.bind(statement, values, first=len(parameters) + 1)
            sql.append(f"(SELECT {number}, asked.* FROM ({text}) AS asked)")
            parameters += given
        return " UNION ALL ".join(sql), tuple(parameters)

    async def enroll(self, term: TermKey, jobs: Sequence[JobDefinition]) -> None:
        """See `Sending.enroll`."""
        for start in range(0, max(len(jobs), 1), AT_ONCE):
            await self._fenced(term, self._enrolling.steps(term, jobs[start : start + AT_ONCE]))

    async def record(self, term: TermKey, steps: Iterable[Step]) -> None:
        """See `Sending.record`."""
        await self._fenced(term, steps)

    async def prune(self, name: str, jobs: Sequence[str], keep: int) -> list[str]:
        """See `Sending.prune`. A transaction for each statement: what the leader writes must not wait for all."""
        step, more = step_of(AT_ONCE, jobs), []
        for job in jobs:
            values = {"lease": name, "job": job, "keep": keep, "step": step}
            for statement in self._pruning.each:
                sql, parameters = self._dialect.bind(statement, values)
                deleted = f"WITH deleted AS ({sql} RETURNING 1) SELECT count(*) FROM deleted"
                [(count,)] = await self._leader.fetch((deleted, parameters))
                if count == step:
                    more.append(job)
                    break
        return more

    async def ask(self, asked: Sequence[Asked]) -> list[Row]:
        """See `Sending.ask`."""
        statements = [self._dialect.bind(*each) for each in asked]
        if len(statements) == 1:
            return await time_limited(ASK_LIMIT, self._store, self._people.fetch(statements[0]))
        # So that the leader cannot see to it between two of them.
        return (await time_limited(ASK_LIMIT, self._store, self._people.fetch_together(statements)))[-1]

    async def _fenced(self, term: TermKey, steps: Iterable[Step]) -> None:
        message = "; ".join([self._fence.of_leader(term), *map(self._dialect.literal_step, steps)])
        try:
            # Not repeated: if the first was executed, the second is refused, and nobody knows why.
            await self._leader.send(message, repeat=False)
        except AioleaseError as error:
            check = failed_check(error.__cause__)
            if check == FENCE_CHECK:
                raise FenceBroken from error
            if check is not None or refuses(error.__cause__):
                raise Refused from error
            raise
