"""Fenced transactions on PostgreSQL: fence and COMMIT travel in one message.

Between the last check of a process and its COMMIT it may be frozen for an hour. So the fence is a statement of the
transaction itself, and the COMMIT follows it without a round trip: a frozen process holds no lock that a claim needs.
The fence raises an error unless the row of the term is there, and a server does not execute what stands behind an error
in a message. It has given back all locks by then.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiolease.errors import (
    NOT_BEGUN,
    AioleaseError,
    CommitUnknown,
    ConfigurationError,
    StoreUnavailable,
    TransactionEnded,
)
from aiolease.stores.contract import FenceBroken, Refused
from aiolease.stores.network.lending import ROLLBACK_LIMIT, behind
from aiolease.stores.postgresql.dialect import BEGUN_CHECK, FENCE_CHECK
from aiolease.stores.postgresql.errors import (
    CONFLICTS,
    HAS_FAILED,
    INTERRUPTED,
    code_of,
    failed_check,
    refuses,
    translate,
)
from aiolease.stores.postgresql.fence import MARK, STILL_BEGUN, FenceSQL
from aiolease.stores.postgresql.lenders import Beginning
from aiolease.stores.postgresql.talks import Talk, talk_over
from aiolease.stores.records import RunKey, TermKey

_FAILED = (
    "a statement of the transaction failed, and its error was swallowed: PostgreSQL undoes the whole transaction then. "
    "Let the error leave the block, or put the statement into a savepoint"
)


class PostgreSQLTransaction:
    """One transaction on a connection of the user's pool."""

    def __init__(  # noqa: PLR0917
        self, store: str, lender: Beginning, connection: Any, raw: Any, talk: Talk, fence: FenceSQL
    ) -> None:
        self.connection = connection
        self._fence = fence
        self._store = store
        self._lender = lender
        self._raw = raw
        self._talk = talk

    @classmethod
    async def begin(cls, store: str, lender: Beginning, talk: Talk, fence: FenceSQL) -> PostgreSQLTransaction:
        """Lends a connection and begins.

        Raises:
            StoreUnavailable: The pool, or the database, does not give one.
        """
        connection = None
        try:
            connection = await lender.lend()
            await lender.begin(connection, MARK)
            raw = await lender.raw(connection)
        except BaseException as error:
            if connection is not None:
                await lender.give_back(connection, broken=True)
            if isinstance(error, Exception):
                raise translate(store, getattr(error, "orig", None) or error) from error
            raise
        return cls(store, lender, connection, raw, talk, fence)

    async def commit(self, term: TermKey, final: RunKey | None = None) -> None:
        """See `Transaction.commit`: fence and COMMIT in one message.

        What a deferred constraint of the user's says there comes out as it is.
        """
        if self._lender.ended(self.connection):
            await self.roll_back()
            raise TransactionEnded(self._store)
        broken = True
        try:
            await self._talk.send(self._raw, f"{STILL_BEGUN}; {self._fence.statements(term, final)}; COMMIT")
            self._lender.over(self.connection)
            broken = False
        except Exception as error:
            broken = not await self._roll_back()
            raise self._outcome(error) from error
        finally:
            await self._lender.give_back(self.connection, broken=broken)

    def _outcome(self, error: Exception) -> Exception:
        """What an error of that message means."""
        code, check = code_of(error), failed_check(error)
        if self._talk.is_busy(error):
            return StoreUnavailable(self._store, f"nothing was committed: {translate(self._store, error)}")
        if code is None or code[:2] == "08" or code in INTERRUPTED:
            return CommitUnknown(self._store, str(translate(self._store, error)))
        if code == HAS_FAILED or check == BEGUN_CHECK:
            return TransactionEnded(self._store, _FAILED if code == HAS_FAILED else None)
        if check is not None:
            return FenceBroken() if check == FENCE_CHECK else Refused()
        if code in CONFLICTS:
            text = f"{str(error).strip()} ({code}); nothing was committed, try the transaction again"
            return StoreUnavailable(self._store, text)
        # A constraint that was deferred, or somebody's trigger, speaks at the COMMIT.
        return error if refuses(error) else translate(self._store, error)

    async def roll_back(self) -> None:
        """Undoes it, and gives the connection back. Bounded, and raises nothing."""
        done = False
        try:
            done = await self._roll_back()
        finally:
            await self._lender.give_back(self.connection, broken=not done)

    async def _roll_back(self) -> bool:
        try:
            async with asyncio.timeout(ROLLBACK_LIMIT):
                if self._talk.in_transaction(self._raw):
                    await self._talk.send(self._raw, "ROLLBACK")
            self._lender.over(self.connection)
        except (Exception, asyncio.CancelledError):  # noqa: BLE001 - closed instead; what the server said still counts
            return False
        return True


async def fence_connection(
    store: str, connection: Any, fence: FenceSQL, term: TermKey, final: RunKey | None, *, within: float
) -> None:
    """Fences a transaction that the user commits: a driver's connection, or SQLAlchemy's connection or session.

    Raises:
        FenceBroken: The term is over.
        Refused: The run is not the running one.
        TransactionEnded: The connection is in no transaction, and commits each statement by itself; or in one that has
            failed.
        StoreUnavailable: A conflict, or the connection is lost; the transaction has to be rolled back, and tried again.
    """
    if hasattr(connection, "flush"):  # a session: what it still holds back must not come after the fence
        await connection.flush()  # the user's own SQL: what it raises comes out as it is
    try:
        raw = await behind(connection, _has_begun)
        talk = talk_over(raw)
        if talk is None:
            problem = "use a connection to the lease's database, or a session"
            raise ConfigurationError("connection", f"<{type(connection).__name__}>", problem)
        if not (talk.in_transaction(raw) or talk.will_begin(raw)):
            raise TransactionEnded(store, NOT_BEGUN)  # the fence would be over with its statement, and guard nothing
        await talk.send(raw, f"{fence.limit_idle(within)}; {fence.statements(term, final)}")
    except AioleaseError:
        raise
    except Exception as error:
        error = getattr(error, "orig", None) or error
        check = failed_check(error)
        if check is not None:
            raise (FenceBroken if check == FENCE_CHECK else Refused) from error
        if code_of(error) == HAS_FAILED:
            raise TransactionEnded(store, _FAILED) from error
        raise translate(store, error) from error


def _has_begun(raw: Any) -> bool:
    talk = talk_over(raw)
    return talk is None or talk.in_transaction(raw)
