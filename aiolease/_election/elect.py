"""The entries: `leadership` is one election and one term, `run_as_leader` goes on for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Unpack

from aiolease._election.campaign import Campaign, Options
from aiolease._election.candidate import Candidate
from aiolease._election.health import Eligible, Health
from aiolease._election.leader import lead
from aiolease._election.leadership import Leadership
from aiolease._election.timings import OnStall, Timings, check_stall, check_wait
from aiolease._functions import check_eligible
from aiolease._logging import emit
from aiolease.events import Joined, Observer
from aiolease.stores import Target, check_target, open_store


def leadership(
    target: Target,
    name: str = "default",
    *,
    timeout: float | None = None,
    lease_duration: float = 30.0,
    heartbeat_interval: float | None = None,
    renew_deadline: float | None = None,
    retry_interval: float | None = None,
    eligible: Eligible | None = None,
    on_stall: OnStall = "log",
    on_event: Observer | None = None,
) -> AbstractAsyncContextManager[Leadership]:
    """Waits until this process is elected, and runs the block as its term. All durations are seconds.

    When the term ends before the block does, the block is cancelled once, as by ``Task.cancel()``, and leaves with
    `LeadershipLost`; the lease is released only after it has ended. Cancellation from outside goes before loss, loss
    before the block's own exception, which otherwise comes out as itself. After `Leadership.resign` there is no error.

    Args:
        target: A pool of asyncmy, aiomysql, asyncpg or psycopg, a SQLAlchemy `AsyncEngine` on one of them, a URL, or a
            store.
        name: The lease: 1 to 100 printable ASCII characters, no spaces. Applications that share a schema need two.
        timeout: The longest wait for the election; ``None`` waits without limit, 0 tries once. A single try has no time
            to check the database's clock against its own: if that was stepped forward, it may take a living lease.
            A limit that is not above `lease_duration` may run out each time before a dead leader's lease can be taken.
        lease_duration: How long a crashed leader keeps others out.
        heartbeat_interval: Between two renewals; a third of the lease by default, at most half of `renew_deadline`.
        renew_deadline: How long after the sending of its last successful renewal the leader may act; five sixths of the
            lease by default, at most 0.9 of it. The rest is what the block has to unwind.
        retry_interval: The longest pause between attempts; min(2 s, lease/15) by default.
        eligible: An ``async def`` function that says whether this process is fit to lead. Asked before each claim and
            at each heartbeat; an exception or no answer within half a heartbeat means no.
        on_stall: What a blocked event loop leads to at the deadline: ``"log"``, or ``"exit"`` with status 70.
        on_event: Called with every event; must be quick. See `aiolease.events`.

    Raises:
        ConfigurationError: A setting cannot work; raised by the call itself.
        LeaseHeld: The time-out is over.
        StoreUnavailable: The time-out is over, and the database was never reached.
        StoreRejected: The database refused the first attempt: access denied, unknown database.
        SchemaMissing: The tables are missing and cannot be created.
        LeadershipLost: The term ended before the block.
    """
    check_target(target, name)
    check_stall(on_stall)
    check_wait(timeout)
    check_eligible(eligible)
    timings = Timings.make(
        lease_duration=lease_duration,
        heartbeat_interval=heartbeat_interval,
        renew_deadline=renew_deadline,
        retry_interval=retry_interval,
    )

    @asynccontextmanager
    async def term() -> AsyncIterator[Leadership]:
        emit(Joined(lease=name), on_event)
        async with open_store(target) as store:
            health = Health()
            candidate = Candidate(store, name, timings, eligible=eligible, observer=on_event, health=health)
            claim = await candidate.elect(timeout)
            async with lead(
                store, claim, timings, eligible=eligible, on_stall=on_stall, observer=on_event, health=health
            ) as leadership:
                yield leadership

    return term()


async def run_as_leader(
    target: Target,
    body: Callable[[Leadership], Awaitable[object]],
    name: str = "default",
    *,
    handle_signals: bool = False,
    **options: Unpack[Options],
) -> None:
    """Runs ``await body(lead)`` in every term of this process, for ever: elected, lost, elected again.

    A body that returns ends its term as if it had resigned. What it raises comes out. Options as for `leadership`.

    Args:
        target: See `leadership`, as for the options.
        body: What runs in each term.
        name: The lease.
        handle_signals: Whether SIGTERM and SIGINT end it: the first cancels the body once, which still leads while it
            unwinds, and a second, a second later or more, cancels it again. `run_as_leader` then returns. See
            `JobRegistry.serve`.
        **options: See `leadership`.

    Raises:
        ConfigurationError: A setting cannot work.
        StoreRejected: And `SchemaMissing`: by the first attempt only; later they are logged and tried again.
    """

    async def run(lead: Leadership, _: asyncio.Event) -> None:
        await body(lead)

    campaign = Campaign(target, name, run, options)
    await (campaign.run_until_signalled(None) if handle_signals else campaign.run())
