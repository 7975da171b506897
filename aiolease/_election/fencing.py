"""Fenced transactions: nothing that an older term sent can commit once a newer one has begun (DESIGN rule 19).

Each exchange is a task of its own. Cancelled on the way, a connection would be lost to its pool, or a COMMIT torn.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from aiolease._clock import current_clock, jitter
from aiolease._election.term import Term
from aiolease._waiting import cancel_and_wait, run_apart, wait_shielded
from aiolease.errors import CommitUnknown, RunAlreadyEnded, StoreUnavailable
from aiolease.stores.contract import FenceBroken, Refused, Transaction
from aiolease.stores.records import RunKey

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
"""Seconds before a connection that could not be had is tried again; doubled from the one up to the other."""

_IN_PLACE = 10.0
"""Seconds for which it is tried again at most, before the error comes out."""

_LONGEST_COMMIT = 60.0
"""Seconds that a COMMIT may take, however long the lease: a large transaction takes longer than other exchanges."""

_LEAST_EXCHANGE = 0.5
"""Seconds that an exchange which was begun in time may take, however little is left; less where leases are short."""

_ANSWERED = 0.1
"""Seconds for an answer that had come before the time was up, but was not read yet: the process had been frozen."""


@asynccontextmanager
async def transaction(
    term: Term, final: RunKey | None = None, committed: Callable[[], None] | None = None
) -> AsyncIterator[Any]:
    """A transaction that commits only if no newer term has begun; gives its connection. See `Leadership.transaction`.

    Args:
        term: The term.
        final: A run to be recorded as succeeded by the same commit.
        committed: Called at once when it is known to be committed.

    Raises:
        RunAlreadyEnded: The run of `final` is not the running one; nothing was committed.
        LeadershipLost: And the other errors of `Leadership.transaction`.
    """
    term.check()
    begun = await _begun(term)
    try:
        yield begun.connection
        term.check()
    except BaseException:
        cancelled = await _roll_back(term, begun)
        if cancelled is not None:
            raise cancelled from None
        raise
    await _exchange(term, partial(begun.commit, term.key, final), commits=True, final=final, done=committed)


async def fence(term: Term, connection: Any, final: RunKey | None = None) -> None:
    """Fences a transaction that the caller commits next: see `Leadership.fence`.

    Args:
        term: The term.
        connection: The caller's.
        final: A run to be recorded as succeeded in the same transaction.

    Raises:
        RunAlreadyEnded: The run of `final` is not the running one; roll back.
        LeadershipLost: And the other errors of `Leadership.fence`.
    """
    term.check()
    call = partial(term.store.fence, connection, term.key, final, within=term.timings.renew_deadline)
    await _exchange(term, call, commits=False, final=final)


async def _begun(term: Term) -> Transaction:
    """Begins a transaction while there is time; a cancelled caller does not wait until a pool has a connection."""
    opening, cancelled = await run_apart(partial(_begin, term), max(term.remaining, _least(term)))
    another = await cancel_and_wait(opening)
    cancelled = cancelled or another
    try:
        begun = opening.result()
    except asyncio.CancelledError:
        if cancelled is not None:
            raise cancelled from None
        raise StoreUnavailable(term.store.description, "no connection in time") from None
    except Exception as error:
        if cancelled is not None:
            raise cancelled from error
        raise
    if cancelled is not None:
        await _roll_back(term, begun)
        raise cancelled
    return begun


async def _roll_back(term: Term, begun: Transaction) -> asyncio.CancelledError | None:
    """Rolls back; returns the first cancellation that arrived meanwhile.

    It has a time limit of its own, but that is longer than a short lease leaves when nothing answers. Cancelled, it
    closes the connection, and the server rolls back.
    """
    rolling_back = asyncio.create_task(begun.roll_back())
    cancelled = await wait_shielded(rolling_back, term.remaining + term.timings.unwind / 5)
    another = await cancel_and_wait(rolling_back)
    return cancelled or another


async def _begin(term: Term) -> Transaction:
    """Begins a transaction; tries again while there is time, since nothing has taken effect (DESIGN rule 47)."""
    clock = current_clock()
    until, pause = clock() + min(term.remaining, _IN_PLACE), _FIRST_PAUSE
    while True:
        try:
            return await term.store.begin()
        except StoreUnavailable:
            if clock() + pause >= until:
                raise
        await asyncio.sleep(jitter(pause / 2, pause))
        pause = min(2 * pause, _LONGEST_PAUSE)


def _least(term: Term) -> float:
    """Seconds that an exchange may take that is begun now: its end is in the time to unwind at the latest."""
    return min(_LEAST_EXCHANGE, term.timings.unwind / 2)


async def _exchange(
    term: Term,
    call: Callable[[], Coroutine[Any, Any, None]],
    *,
    commits: bool,
    final: RunKey | None,
    done: Callable[[], None] | None = None,
) -> None:
    """Waits for the end of an exchange with a fence, within a time limit, and raises what it says of the term."""
    within = min(max(term.remaining, _least(term)), _LONGEST_COMMIT)
    until = asyncio.get_running_loop().time() + within
    exchange, cancelled = await run_apart(call, within)
    if cancelled is not None:
        await wait_shielded(exchange, until - asyncio.get_running_loop().time())
    if not exchange.done():
        # A process that was frozen finds the answer and the end of its time at once: the answer counts.
        another = await wait_shielded(exchange, min(_ANSWERED, term.timings.unwind / 5))
        cancelled = cancelled or another
        another = await cancel_and_wait(exchange)
        cancelled = cancelled or another
    trouble: Exception | None
    try:
        exchange.result()
        trouble = None
        if done is not None:
            done()
    except FenceBroken as error:
        term.end("taken", raised=True)
        trouble = term.loss
        trouble.__cause__ = error.__cause__
    except Refused:
        assert final is not None
        trouble = RunAlreadyEnded(final.job, final.tick, final.attempt)
    except asyncio.CancelledError:
        trouble = (CommitUnknown if commits else StoreUnavailable)(term.store.description, "no answer in time")
    except Exception as error:  # noqa: BLE001 - it is raised below
        trouble = error
    if cancelled is not None:
        raise cancelled from trouble
    if trouble is not None:
        raise trouble
