"""Sends the statements of the ledger to SQLite: each call is one function in the thread of the file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from aiolease.stores.batch import JobDefinition
from aiolease.stores.contract import FenceBroken, Refused
from aiolease.stores.records import TermKey
from aiolease.stores.sql.lease import FenceStatements, of_term
from aiolease.stores.sql.ledger import PruneStatements, step_of
from aiolease.stores.sql.recording import Enrolling
from aiolease.stores.sql.rows import Row
from aiolease.stores.sql.statement import Asked, Step
from aiolease.stores.sqlite.dialect import Exchange, SQLiteDialect, transaction, writing
from aiolease.stores.sqlite.file import File

_PRUNED_AT_ONCE = 1000


class SQLiteLedger:
    """See `aiolease.stores.sql.sending.Sending`."""

    def __init__(self, file: File, dialect: SQLiteDialect, fence: FenceStatements, clock: Callable[[], int]) -> None:
        self._file = file
        self._dialect = dialect
        self._fence = fence
        self._clock = clock
        self._enrolling = Enrolling(dialect)
        self._pruning = PruneStatements(dialect)

    async def read(self, asked: Sequence[Asked]) -> list[list[Row]]:
        """See `Sending.read`. One transaction reads all of it."""

        def work(connection: sqlite3.Connection) -> list[list[Row]]:
            with transaction(connection, "DEFERRED"):
                exchange = Exchange(connection, self._dialect, self._clock())
                return [exchange.rows(*each) for each in asked]

        return await self._file.run(work)

    async def enroll(self, term: TermKey, jobs: Sequence[JobDefinition]) -> None:
        """See `Sending.enroll`."""
        await self._fenced(term, self._enrolling.steps(term, jobs))

    async def record(self, term: TermKey, steps: Iterable[Step]) -> None:
        """See `Sending.record`."""
        await self._fenced(term, steps, _refusals)

    async def prune(self, name: str, jobs: Sequence[str], keep: int) -> list[str]:
        """See `Sending.prune`. Each job has its own transaction, so that the leader's writes do not wait for all."""
        step = step_of(_PRUNED_AT_ONCE, jobs)

        def work(connection: sqlite3.Connection, job: str) -> bool:
            values = {"lease": name, "job": job, "keep": keep, "step": step}
            with writing(connection, self._dialect, self._clock) as exchange:
                return any(exchange.change(statement, values) == step for statement in self._pruning.each)

        return [job for job in jobs if await self._file.run(partial(work, job=job))]

    async def ask(self, asked: Sequence[Asked]) -> list[Row]:
        """See `Sending.ask`."""
        *changes, last = asked

        def work(connection: sqlite3.Connection) -> list[Row]:
            if not changes:
                return Exchange(connection, self._dialect, self._clock()).rows(*last)
            with writing(connection, self._dialect, self._clock) as exchange:
                for change in changes:
                    exchange.change(*change)
                return exchange.rows(*last)

        return await self._file.run(work)

    async def look(self, asked: Sequence[Asked]) -> list[list[Row]]:
        """See `Sending.look`."""
        return await self.read(asked)

    async def _fenced(
        self,
        term: TermKey,
        steps: Iterable[Step],
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        steps = list(steps)  # it may be tried again

        def work(connection: sqlite3.Connection) -> None:
            with writing(connection, self._dialect, self._clock) as exchange, around():
                if exchange.change(self._fence.count, of_term(term)) != 1:
                    raise FenceBroken
                for step in steps:
                    exchange.take(step)

        await self._file.run(work)


@contextmanager
def _refusals() -> Iterator[None]:
    """Turns errors whose cause is the rows (a constraint, a value that does not fit) into `Refused`."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.DataError, OverflowError) as error:
        raise Refused from error
