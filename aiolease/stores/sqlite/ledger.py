"""The ledger on a SQLite file: the part of its store that keeps jobs and runs."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from functools import partial
from typing import Any

from aiolease._names import check_name
from aiolease.errors import InvalidJob
from aiolease.stores.contract import FenceBroken, Refused
from aiolease.stores.records import (
    Batch,
    JobDefinition,
    LedgerReading,
    Place,
    RunRecord,
    TermKey,
    checked_limit,
)
from aiolease.stores.sql.lease import FenceStatements, of_term
from aiolease.stores.sql.ledger import LedgerStatements, PruneStatements, step_of
from aiolease.stores.sql.recording import Recording
from aiolease.stores.sql.rows import Rows, read_each, readable, there
from aiolease.stores.sql.statement import Statement, Step
from aiolease.stores.sqlite.dialect import Exchange, SQLiteDialect, transaction, writing
from aiolease.stores.sqlite.file import File

_PRUNED_AT_ONCE = 1000


class SQLiteLedger:
    """What makes a store on SQLite a `LedgerStore`. Each method is one function in the store's thread."""

    description: str
    _now: Callable[[], int]
    _file: File
    _dialect: SQLiteDialect
    _rows: Rows
    _fence: FenceStatements

    def __init__(self) -> None:
        self._ledger = LedgerStatements(self._dialect, self._rows)
        self._recording = Recording(self._dialect)
        self._pruning = PruneStatements(self._dialect)

    async def take_stock(
        self, name: str, *, attention: bool = False, runs: bool = True, counted: bool = False
    ) -> LedgerReading:
        """See `LedgerStore.take_stock`."""
        statements = self._ledger.reading(attention=attention, runs=runs, counted=counted)

        def work(connection: sqlite3.Connection) -> LedgerReading:
            with transaction(connection, "DEFERRED"):  # all readings are of one moment
                exchange = Exchange(connection, self._dialect, self._now())
                found = {what: exchange.rows(statement, {"lease": name}) for what, statement in statements.items()}
                now = self._now()
            return self._ledger.read(found, now)

        return await self._file.run(work)

    async def queued(self, name: str, jobs: Sequence[str], limit: int) -> tuple[list[RunRecord], dict[str, str]]:
        """See `LedgerStore.queued`."""
        asked = [{"lease": name, "job": job, "limit": limit} for job in jobs]

        def work(connection: sqlite3.Connection) -> tuple[list[RunRecord], dict[str, str]]:
            unreadable: dict[str, str] = {}
            with transaction(connection, "DEFERRED"):
                exchange = Exchange(connection, self._dialect, self._now())
                rows = [row for values in asked for row in exchange.rows(self._ledger.queued, values)]
            found = read_each(rows, self._rows.run, unreadable)
            return sorted(found, key=lambda run: (run.tick, run.job)), unreadable

        return await self._file.run(work)

    async def look_up(self, name: str, places: Sequence[Place]) -> list[RunRecord]:
        """See `LedgerStore.look_up`."""

        def work(connection: sqlite3.Connection) -> list[RunRecord]:
            found = []
            with transaction(connection, "DEFERRED"):
                exchange = Exchange(connection, self._dialect, self._now())
                for job, tick in places:
                    rows = exchange.rows(self._ledger.look_up, {"lease": name, "job": job, "tick": tick})
                    found += [there((job, tick), row, self._rows.run) for row in rows]
            return found

        return await self._file.run(work)

    async def enroll(self, term: TermKey, jobs: Sequence[JobDefinition]) -> None:
        """See `LedgerStore.enroll`."""
        await self._fenced(term, self._recording.enrolling(term, jobs))

    async def record(self, term: TermKey, batch: Batch) -> None:
        """See `LedgerStore.record`."""
        await self._fenced(term, self._recording.recording(term, batch), _refusals)

    async def _fenced(
        self,
        term: TermKey,
        steps: Iterable[Step],
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        steps = list(steps)  # it may be tried again

        def work(connection: sqlite3.Connection) -> None:
            with writing(connection, self._dialect, self._now) as exchange, around():
                if exchange.change(self._fence.count, of_term(term)) != 1:
                    raise FenceBroken
                for step in steps:
                    exchange.take(step)

        await self._file.run(work)

    async def prune(self, name: str, jobs: Sequence[str], keep: int) -> list[str]:
        """See `LedgerStore.prune`."""
        step = step_of(_PRUNED_AT_ONCE, jobs)

        def work(connection: sqlite3.Connection, job: str) -> bool:
            values = {"lease": name, "job": job, "keep": keep, "step": step}
            with writing(connection, self._dialect, self._now) as exchange:
                return any(exchange.change(statement, values) == step for statement in self._pruning.each)

        # A transaction for each: what the leader writes must not wait for all of them.
        return [job for job in jobs if await self._file.run(partial(work, job=job))]

    async def history(self, name: str, job: str, *, limit: int = 100) -> list[RunRecord]:
        """See `LedgerStore.history`."""
        values = {"lease": check_name(name), "job": job, "limit": checked_limit(limit)}

        def work(connection: sqlite3.Connection) -> list[RunRecord]:
            rows = Exchange(connection, self._dialect, self._now()).rows(self._ledger.history, values)
            return read_each(reversed(rows), self._rows.run, {})

        return await self._file.run(work)

    async def settle(self, name: str, job: str) -> None:
        """See `LedgerStore.settle`."""
        await self._ask_job(name, job, *self._ledger.settle)

    async def trigger(self, name: str, job: str) -> datetime:
        """See `LedgerStore.trigger`."""
        requested_at = await self._ask_job(name, job, self._ledger.trigger)
        with readable(self.description, f"the ledger of {name!r}"):
            return self._rows.moment(requested_at)

    async def pause(self, name: str, job: str) -> None:
        """See `LedgerStore.pause`."""
        await self._ask_job(name, job, self._ledger.pause)

    async def resume(self, name: str, job: str) -> None:
        """See `LedgerStore.resume`."""
        await self._ask_job(name, job, self._ledger.resume)

    async def _ask_job(self, name: str, job: str, *statements: Statement) -> Any:
        """Changes a job; returns when it was triggered, as the table keeps it."""
        values = {"lease": check_name(name), "job": job}

        def work(connection: sqlite3.Connection) -> Any:
            with writing(connection, self._dialect, self._now) as exchange:
                for statement in statements:
                    exchange.change(statement, values)
                rows = exchange.rows(self._ledger.requested_at, values)
            if not rows:
                raise InvalidJob(job, f"no leader of {name!r} ever had such a job")
            return rows[0][0]

        return await self._file.run(work)


@contextmanager
def _refusals() -> Iterator[None]:
    """Rows that are in the way, by a constraint or a value that does not fit, refuse a batch."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.DataError, OverflowError) as error:
        raise Refused from error
