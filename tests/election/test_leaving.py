"""Which exception leaves the block of `leadership`, for each way to end it.

The order of precedence: what ends the process, cancellation from outside, the loss of the lease, the body's exception.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import anyio
import pytest
import uvloop

from aiolease import Leadership, LeadershipLost, NotLeader, current_leadership, leadership
from aiolease.events import Event, Lost, Released, Resigned
from aiolease.testing import MemoryStore, run_virtual
from tests.election.leaving import LEASE, Boom
from tests.election.terms import LONG

pytestmark = pytest.mark.usefixtures("quiet")


PASSING = ("lets it through", "swallows it")
RAISING = ("raises", "raises a group")
EXITING = ("exits", "is interrupted")
REASONS = {"expired": "expired", "silent": "expired", "taken": "taken", "ineligible": "ineligible", "broken": "error"}
OUTSIDES = ("native", "anyio", "timeout", "group", "child")


@dataclass(frozen=True)
class Case:
    """One way to leave.

    Attributes:
        outside: What cancels from outside, if anything.
        ending: What ends the term: "expired" (renewals are not answered), "silent" (neither is the release), …
        body: What the body does when it is cancelled, or when its time has come.
        order: When the cancellation from outside comes.
    """

    outside: str
    ending: str
    body: str
    order: str

    def __str__(self) -> str:
        return f"{self.outside}, {self.ending}, {self.body}, {self.order}"

    @property
    def leaves(self) -> str:
        """The rule: what must leave the block."""
        own = "nothing" if self.body in PASSING else "its own"
        if self.body in EXITING:
            return "its own"
        if self.outside != "none":
            if self.ending != "none" or (self.order == "releasing" and self.outside != "anyio"):
                return "cancelled"
            if self.order != "releasing" and self.body == "lets it through":
                return "cancelled"
            return own  # of anyio's, that came while the lease was being released, the next await will tell
        if self.ending in REASONS:
            return "lost"
        return own


def cases() -> Iterator[Case]:
    bodies = (*PASSING, *RAISING, *EXITING)
    for ending, body in itertools.product(("none", "resigned", *REASONS), bodies):
        yield Case("none", ending, body, "never")
    for outside, ending, body in itertools.product(OUTSIDES, ("none", "resigned", *REASONS), bodies):
        orders = ["first"] if ending == "none" else ["first", "together", "second"]
        if ending != "taken":  # then there is nothing to release
            orders.append("releasing")
        for order in orders:
            yield Case(outside, ending, body, order)


class _Store(MemoryStore):
    """Tells when a release has begun."""

    releasing: Callable[[], object] | None = None

    async def release(self, name: str, holder: str, token: int) -> bool:
        if self.releasing is not None:
            asyncio.get_running_loop().call_soon(self.releasing)
        return await super().release(name, holder, token)


class Scene:
    """One case, played."""

    def __init__(self, case: Case, lease: float = LEASE) -> None:
        self.case, self.lease = case, lease
        self.tick = lease / 150  # a small part of the time to unwind
        self.store = _Store()
        self.fit = True
        self.events: list[Event] = []
        self.ended, self.triggered = asyncio.Event(), asyncio.Event()
        self.own: BaseException | None = None
        self.outcome: BaseException | None = None
        self.left: BaseException | None = None
        self.lead: Leadership | None = None
        self.fire: Callable[[], object] = lambda: None
        self.cancelled_at: float | None = None

    # -- what happens to the body

    def trigger(self) -> None:
        """Cancels from outside, once."""
        if not self.triggered.is_set():
            self.triggered.set()
            self.fire()

    def cause(self) -> None:
        """Makes the term end, now or in time."""
        assert self.lead is not None
        server = self.store.server
        match self.case.ending:
            case "resigned":
                asyncio.get_running_loop().call_soon(self.lead.resign)
            case "expired":
                self.store.lose_request("renew", 1000)
            case "silent":
                self.store.down = True
            case "taken":
                row = server.leases["cron"]
                server.leases["cron"] = replace(row, holder="intruder", token=row.token + 1)
            case "ineligible":
                self.fit = False
            case "broken":
                self.store.fail("renew", RuntimeError("a bug in the store"), 1000)

    async def eligible(self) -> bool:
        return self.fit

    def observe(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Lost | Resigned):
            self.ended.set()
            if self.case.order == "together":
                self.trigger()
            elif self.case.order == "second":
                asyncio.get_running_loop().call_later(self.tick, self.trigger)

    # -- the body

    async def body(self, lead: Leadership) -> None:
        self.lead, case = lead, self.case
        if case.order == "releasing":
            self.store.latency, self.store.releasing = self.tick, self.trigger
        if case.order == "first":
            asyncio.get_running_loop().call_later(self.tick, self.trigger)
        else:
            self.cause()
        try:
            await asyncio.sleep(LONG if case.ending != "none" or case.order == "first" else self.tick)
        except asyncio.CancelledError as cancelled:
            self.cancelled_at = asyncio.get_running_loop().time()
            if case.order == "first":
                self.cause()
            await self.tidy_up()
            if case.body == "lets it through":
                self.own = cancelled
                raise
        match case.body:
            case "raises":
                self.own = Boom("body")
            case "raises a group":
                self.own = ExceptionGroup("body", [Boom("one"), Boom("two")])
            case "exits":
                self.own = SystemExit(3)
            case "is interrupted":
                self.own = KeyboardInterrupt()
        if self.own is not None:
            raise self.own

    async def tidy_up(self) -> None:
        """Goes on until all that was planned has happened, whatever is cancelled meanwhile."""
        awaited = [self.ended] if self.case.ending != "none" else []
        if self.case.order in ("first", "together", "second"):
            awaited.append(self.triggered)
        loop, pauses = asyncio.get_running_loop(), 0
        until = loop.time() + 2 * self.lease
        with anyio.CancelScope(shield=True):
            while pauses < 3 and loop.time() < until:
                try:
                    await asyncio.sleep(self.tick / 2)
                    pauses += all(event.is_set() for event in awaited)
                except asyncio.CancelledError:
                    pass
        assert pauses == 3, "what was planned has not happened"

    # -- the block, and what is around it

    async def block(self) -> None:
        try:
            async with leadership(
                self.store, "cron", lease_duration=self.lease, eligible=self.eligible, on_event=self.observe
            ) as lead:
                await self.body(lead)
        except BaseException as error:
            self.outcome = error
            if not isinstance(error, SystemExit | KeyboardInterrupt):  # they would end the loop
                raise

    async def around(self) -> None:
        loop, case = asyncio.get_running_loop(), self.case
        match case.outside:
            case "anyio":
                with anyio.CancelScope() as scope:
                    self.fire = scope.cancel
                    await self.block()
            case "timeout":
                async with asyncio.timeout(None) as limit:
                    self.fire = lambda: limit.reschedule(loop.time())
                    await self.block()
            case "group" | "child":
                failing: asyncio.Future[None] = loop.create_future()
                self.fire = lambda: failing.set_exception(Boom("sibling"))

                async def sibling() -> None:
                    await failing

                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(sibling())
                    if case.outside == "group":
                        await self.block()
                    else:
                        await asyncio.wait([tasks.create_task(self.block())])
                    if not failing.done():
                        failing.set_result(None)
            case _:
                await self.block()

    async def play(self) -> None:
        """Runs the case in a task of its own, and checks that the task is as it was before."""
        task = asyncio.current_task()
        assert task is not None
        cancels = 0
        if self.case.outside == "native":

            def cancel() -> None:
                nonlocal cancels
                cancels += 1
                task.cancel()

            self.fire = cancel
        try:
            await self.around()
        except BaseException as error:  # noqa: BLE001 - whatever leaves is looked at
            self.left = error
        assert task.cancelling() == cancels
        for _ in range(cancels):
            task.uncancel()
        with pytest.raises(NotLeader):
            current_leadership()
        await asyncio.sleep(0)
        await asyncio.sleep(self.tick)

    # -- the rules

    def check(self, *, released: bool = True, answered: bool = True) -> None:
        case, lead, outcome = self.case, self.lead, self.outcome
        assert lead is not None
        assert not lead.is_leader
        assert (case.outside != "none") == self.triggered.is_set()
        if case.leaves == "nothing":
            assert outcome is None
        elif case.leaves == "its own":
            assert outcome is self.own
        elif case.leaves == "cancelled":
            assert type(outcome) is asyncio.CancelledError
            self.check_outside()
        else:
            assert type(outcome) is LeadershipLost
            assert (outcome.name, outcome.holder, outcome.token) == ("cron", lead.holder, lead.token)
            assert outcome.reason == REASONS[case.ending]
            assert outcome.__cause__ is (self.own if case.body in RAISING else None)
            assert self.left is outcome
        assert [type(event) for event in self.events if isinstance(event, Lost | Resigned)] == (
            [] if case.ending == "none" else [Resigned] if case.ending == "resigned" else [Lost]
        )
        assert [event.reason for event in self.events if isinstance(event, Lost)] == (
            [REASONS[case.ending]] if case.ending in REASONS else []
        )
        if not released:
            return
        holder = {"taken": "intruder", "silent": lead.holder}.get(case.ending)
        assert self.store.server.leases["cron"].holder == holder
        if answered:
            assert sum(isinstance(event, Released) for event in self.events) == (holder is None)

    def check_outside(self) -> None:
        """What cancelled from outside sees its own cancellation, and nothing else."""
        match self.case.outside:
            case "native":
                assert type(self.left) is asyncio.CancelledError
            case "anyio":
                assert self.left is None
            case "timeout":
                assert type(self.left) is TimeoutError
            case _:
                assert isinstance(self.left, ExceptionGroup)
                assert [str(error) for error in self.left.exceptions] == ["sibling"]


async def play_alone(case: Case) -> None:
    scene = Scene(case)
    async with asyncio.timeout(10 * LONG):
        await asyncio.create_task(scene.play())
    assert asyncio.all_tasks() == {asyncio.current_task()}
    scene.check()


@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_what_leaves_the_block(case: Case) -> None:
    """Cancellation from outside goes before loss, loss before the body's exception, which comes out as itself."""
    run_virtual(play_alone(case))


def eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    if sys.version_info >= (3, 12):
        loop.set_task_factory(asyncio.eager_task_factory)
    return loop


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
    "eager tasks": eager_loop,
}


def essential(case: Case) -> bool:
    """Whether a case is also played in real time, together with others."""
    return case.ending in ("none", "resigned", "expired", "ineligible") and case.body in (*PASSING, "raises")


@pytest.mark.parametrize("loop_factory", LOOPS.values(), ids=LOOPS)
def test_what_leaves_the_block_in_real_time(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """The same holds on real loops, uvloop's included."""

    async def main() -> None:
        scenes = [Scene(case, lease=6.0) for case in filter(essential, cases())]
        async with asyncio.timeout(60):
            failures = await asyncio.gather(*(scene.play() for scene in scenes), return_exceptions=True)
        for scene, failure in zip(scenes, failures, strict=True):
            assert failure is None, f"{scene.case}: {failure!r}"
            try:
                # After an expiry the release is given a tenth of a second: on a busy machine it may miss that. Its
                # answer may come too late there, if the release was cancelled.
                scene.check(released=scene.case.ending != "expired", answered=False)
            except AssertionError as error:
                raise AssertionError(f"{scene.case}: {scene.outcome!r}") from error
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
