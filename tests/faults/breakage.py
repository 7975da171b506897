"""Rules of the package, broken one by one in a worker: a checker that does not notice is worth nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

from aiolease._election.leader import Leader
from aiolease._election.term import Term
from aiolease._jobs.planner import Planner
from aiolease.errors import AioleaseError
from aiolease.stores.batch import Batch, LedgerReading
from aiolease.stores.contract import Refused
from aiolease.stores.records import RunKey, TermKey

Breakage = Literal[
    "",
    "releases first",  # the lease is free while the body unwinds
    "goes on",  # the body ignores its loss; the worker's own doing
    "unfenced",  # commits are not fenced
    "unclaimed",  # a run begins without a row in the ledger
    "unfenced claims",  # the ledger's transactions are not fenced; and take a while, for a freeze to strike them
    "forgets",  # a new term starts from now
    "unfinished",  # a final transaction does not record that the run has succeeded
]


def break_it(breakage: Breakage) -> None:
    """Breaks a rule in this process. Those of the jobs are broken for MySQL and MariaDB only."""
    from aiolease.stores.mysql.fence import FenceSQL
    from aiolease.stores.mysql.ledger import MySQLLedger
    from aiolease.stores.sql.ledger_store import SQLLedger

    statements = FenceSQL.statements
    match breakage:
        case "releases first":
            _release_first()
        case "unfenced":
            FenceSQL.statements = lambda self, term, final=None: ("DO 0", ())  # type: ignore[method-assign]
            Term.check = lambda self: None  # type: ignore[method-assign]
        case "unclaimed":
            SQLLedger.record = _without_claims(SQLLedger.record)  # type: ignore[method-assign]
        case "unfenced claims":
            MySQLLedger._fenced = _without_fence  # type: ignore[assignment, method-assign]
        case "forgets":
            Planner.take = _forgetting(Planner.take)  # type: ignore[method-assign]
        case "unfinished":

            def without(fence: FenceSQL, term: TermKey, final: RunKey | None = None) -> Any:
                return statements(fence, term)

            FenceSQL.statements = without  # type: ignore[assignment, method-assign]


def _release_first() -> None:
    end, tasks = Leader.end, set()

    def end_and_release(self: Leader, *args: Any, **options: Any) -> None:
        end(self, *args, **options)
        tasks.add(asyncio.ensure_future(self.release()))

    Leader.end = end_and_release  # type: ignore[method-assign]


def _without_claims(record: Callable[..., Awaitable[None]]) -> Any:
    async def recording(ledger: Any, term: TermKey, batch: Batch) -> None:
        await record(ledger, term, replace(batch, claims=[], high_ticks={}))

    return recording


async def _without_fence(ledger: Any, _: TermKey, statements: Iterable[tuple[str, tuple[object, ...]]]) -> None:
    packet = [("START TRANSACTION", ()), *statements, ("COMMIT", ())]
    sql, values = "; ".join(sql for sql, _ in packet), [value for _, values in packet for value in values]
    sending = asyncio.ensure_future(ledger._other_session.run(sql, values))
    _sending.add(sending)  # it goes on when nobody waits for it any more, as what is under way to a server does
    try:
        await asyncio.shield(sending)
    except AioleaseError as error:
        raise Refused from error


_sending: set[asyncio.Future[Any]] = set()


def _forgetting(take: Callable[..., Any]) -> Any:
    def forgetting(planner: Planner, stock: LedgerReading, **known: Any) -> Any:
        jobs = {name: replace(record, known_since=stock.now) for name, record in stock.jobs.items()}
        return take(planner, replace(stock, jobs=jobs), **known)

    return forgetting
