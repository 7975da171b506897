"""A campaign may be cancelled at every await."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from aiolease import Leadership, leadership, run_as_leader
from aiolease.testing import MemoryServer, MemoryStore, run_virtual
from tests.election.terms import HEARTBEAT, LEASE, clock, virtual_loop

pytestmark = pytest.mark.usefixtures("quiet")


class SlowStore(MemoryStore):
    """Every exchange yields to the loop several times, before and after the server acts."""

    async def exchange(self, method: str, statement: Callable[[], Any]) -> Any:
        for _ in range(6):
            await asyncio.sleep(0)
        answer = await super().exchange(method, statement)
        for _ in range(6):
            await asyncio.sleep(0)
        return answer


async def one_term(store: MemoryStore) -> None:
    async with leadership(store) as lead:
        await work(lead)


async def campaign(store: MemoryStore) -> None:
    await run_as_leader(store, work)


async def work(lead: Leadership) -> None:
    for _ in range(15):
        await asyncio.sleep(0)
    virtual_loop().advance(HEARTBEAT + 0.001)  # a renewal falls due
    for _ in range(30):
        await asyncio.sleep(0)


async def cancelled_after(steps: int, kind: str, play: Callable[[MemoryStore], Awaitable[None]], held: bool) -> bool:
    """Cancels after so many steps of the loop; says whether it was over before."""
    loop, server = asyncio.get_running_loop(), MemoryServer()
    holder: Leadership | None = None
    if held:
        holding = leadership(MemoryStore(server))
        holder = await holding.__aenter__()
        await asyncio.sleep(1)
    before = asyncio.all_tasks()
    scope: anyio.CancelScope | None = None
    over = True

    async def main() -> None:
        nonlocal scope
        if kind == "native":
            await play(SlowStore(server))
            return
        with anyio.CancelScope() as scope:
            await play(SlowStore(server))
        assert over or scope.cancelled_caught or play is one_term
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)

    task = asyncio.create_task(main())

    def step(left: int) -> None:
        nonlocal over
        if left > 0 and not task.done():
            loop.call_soon(step, left - 1)
        elif kind == "native":
            over = not task.cancel()
        elif scope is not None:
            over = task.done()
            scope.cancel()

    await asyncio.sleep(0)
    loop.call_soon(step, steps)
    async with asyncio.timeout(3 * LEASE):
        await asyncio.wait([task])
    if kind == "native" and not over:
        assert task.cancelled(), "the cancellation was swallowed"
    else:
        task.result()
    assert asyncio.all_tasks() == before
    if holder is not None:
        assert server.leases["default"].holder == holder.holder
        await holding.__aexit__(None, None, None)
        return over
    row = server.leases.get("default")
    assert row is None or row.holder is None
    started = clock()
    async with asyncio.timeout(3 * LEASE), leadership(SlowStore(server)) as lead:
        assert lead.is_leader
        assert clock() - started < 1
    return over


@pytest.mark.parametrize("kind", ["native", "anyio"])
@pytest.mark.parametrize("play", [one_term, campaign], ids=lambda play: play.__name__)
@pytest.mark.parametrize("held", [False, True], ids=["free", "held"])
def test_cancellation_at_every_await(kind: str, play: Callable[[MemoryStore], Awaitable[None]], held: bool) -> None:
    """Cancellation anywhere in a campaign leaves no task and no lease behind, and is not swallowed."""
    over = []
    for steps in range(40 if held else 200):
        try:
            over.append(run_virtual(cancelled_after(steps, kind, play, held)))
        except BaseException as error:
            error.add_note(f"cancelled after {steps} steps")
            raise
    if play is one_term and not held:
        assert over[-1], "the whole of the campaign was covered"
        assert not over[70]
