"""What leaves the block of `leadership`, whatever ends it, from within and from without.

The order of precedence: what ends the process, cancellation from outside, the loss of the lease, the body's exception.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import anyio
import pytest
import uvloop
from loguru import logger

from aiolease import (
    CommitUnknown,
    JobRegistry,
    Leadership,
    LeadershipLost,
    Lease,
    NotLeader,
    current_leadership,
    leadership,
)
from aiolease.events import BodyStuck, Elected, Event, Lost, Released, Renewed, RenewFailed, Resigned
from aiolease.testing import MemoryServer, MemoryStore, run_virtual, virtual_time

LONG = 3600.0
LEASE = 30.0
UNWIND = 5.0

PASSING = ("lets it through", "swallows it")
RAISING = ("raises", "raises a group")
EXITING = ("exits", "is interrupted")
REASONS = {"expired": "expired", "silent": "expired", "taken": "taken", "ineligible": "ineligible", "broken": "error"}
OUTSIDES = ("native", "anyio", "timeout", "group", "child")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Keeps the log lines of a thousand terms away."""
    logger.disable("aiolease")
    yield
    logger.enable("aiolease")


@contextmanager
def losing() -> Iterator[pytest.ExceptionInfo[LeadershipLost]]:
    """The block inside is left by its loss alone: what the body asserts while it unwinds counts."""
    with pytest.raises(LeadershipLost) as lost:
        yield lost
    if lost.value.__cause__ is not None:
        raise lost.value.__cause__


class Boom(Exception):
    """What a body, or its neighbour, raises."""


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
    """Whether a case is among those that are played in real time, all at once."""
    return case.ending in ("none", "resigned", "expired", "ineligible") and case.body in (*PASSING, "raises")


@pytest.mark.parametrize("loop_factory", LOOPS.values(), ids=LOOPS)
def test_what_leaves_the_block_in_real_time(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """The same holds on real loops, uvloop's included."""

    async def main() -> None:
        scenes = [Scene(case, lease=3.0) for case in filter(essential, cases())]
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


# -- inside the block

Around = Callable[["Inside"], AbstractAsyncContextManager[object]]


class Inside:
    """A body in a construct of its own, and a term that ends under it."""

    def __init__(self) -> None:
        self.server = MemoryServer()
        self.store = MemoryStore(self.server)
        self.fit = True
        self.events: list[Event] = []
        self.on_end: list[Callable[[], object]] = []
        self.children = 0
        self.tidied = False

    async def eligible(self) -> bool:
        return self.fit

    def observe(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Lost | Resigned):
            for call in self.on_end:
                call()

    @property
    def row(self) -> Lease:
        return self.server.leases["cron"]

    def seen(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    def lead(self, **options: Any) -> AbstractAsyncContextManager[Leadership]:
        return leadership(self.store, "cron", eligible=self.eligible, on_event=self.observe, **options)

    def end(self, how: str, lead: Leadership) -> None:
        """Ends the term: at once if it is resigned, else with the next heartbeat, or the deadline."""
        match how:
            case "resigned":
                asyncio.get_running_loop().call_soon(lead.resign)
            case "expired":
                self.store.lose_request("renew", 1000)
            case "taken":
                self.server.leases["cron"] = replace(self.row, holder="intruder", token=self.row.token + 1)
            case "ineligible":
                self.fit = False

    async def child(self) -> None:
        """A task of the body that takes a while to unwind; the lease is kept for it."""
        self.children += 1
        holder = current_leadership().holder
        try:
            await asyncio.sleep(LONG)
        finally:
            await asyncio.sleep(0)
            await asyncio.sleep(0.5)
            assert self.row.holder in (holder, "intruder")
            self.children -= 1


@asynccontextmanager
async def nothing(scene: Inside) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def asyncio_timeout(scene: Inside) -> AsyncIterator[None]:
    async with asyncio.timeout(LONG):
        yield


@asynccontextmanager
async def asyncio_timeout_that_fires(scene: Inside) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(LONG) as limit:
        scene.on_end.append(lambda: limit.reschedule(loop.time()))
        yield


@asynccontextmanager
async def anyio_move_on_after(scene: Inside) -> AsyncIterator[None]:
    with anyio.move_on_after(LONG):
        yield


@asynccontextmanager
async def anyio_move_on_after_that_fires(scene: Inside) -> AsyncIterator[None]:
    with anyio.move_on_after(LONG) as scope:
        scene.on_end.append(scope.cancel)
        yield
    await asyncio.sleep(LONG)  # the cancellation may have been taken for its own; the second is not


@asynccontextmanager
async def anyio_fail_after(scene: Inside) -> AsyncIterator[None]:
    with anyio.fail_after(LONG):
        yield


@asynccontextmanager
async def anyio_shield(scene: Inside) -> AsyncIterator[None]:
    with anyio.CancelScope(shield=True):
        yield


@asynccontextmanager
async def anyio_task_group(scene: Inside) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(shielded, scene.child)
        yield


async def shielded(call: Callable[[], Awaitable[None]]) -> None:
    """Lets a child of an anyio task group await while it is being cancelled."""
    task = asyncio.ensure_future(call())
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait([task])
        raise


@asynccontextmanager
async def asyncio_task_group(scene: Inside) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        for _ in range(2):
            tasks.create_task(scene.child())
        yield


@asynccontextmanager
async def everything(scene: Inside) -> AsyncIterator[None]:
    async with (
        asyncio_timeout(scene),
        anyio_task_group(scene),
        anyio_move_on_after(scene),
        asyncio_task_group(scene),
        anyio_fail_after(scene),
        asyncio_timeout(scene),
    ):
        yield


AROUNDS: list[Around] = [
    nothing,
    asyncio_timeout,
    asyncio_timeout_that_fires,
    anyio_move_on_after,
    anyio_move_on_after_that_fires,
    anyio_fail_after,
    anyio_shield,
    anyio_task_group,
    asyncio_task_group,
    everything,
]


@pytest.mark.parametrize("how", ["resigned", "expired", "taken", "ineligible"])
@pytest.mark.parametrize("around", AROUNDS, ids=lambda around: around.__name__)
@virtual_time
async def test_a_term_ends_through_whatever_the_body_is_in(around: Around, how: str) -> None:
    """The cancellation that ends a term passes every scope, timeout and group inside, and each has unwound."""
    scene, task = Inside(), asyncio.current_task()
    assert task is not None
    error: LeadershipLost | None = None
    try:
        async with scene.lead() as lead:
            try:
                async with around(scene):
                    await asyncio.sleep(1)
                    scene.end(how, lead)
                    await asyncio.sleep(LONG)
            finally:
                assert not lead.is_leader
                await asyncio.sleep(0)
                await asyncio.sleep(1)
                assert scene.row.holder in (lead.holder, "intruder")
                scene.tidied = True
    except LeadershipLost as lost:
        error = lost
    assert task.cancelling() == 0
    assert asyncio.all_tasks() == {task}
    assert scene.tidied
    assert scene.children == 0
    if how == "resigned":
        assert error is None
    else:
        assert error is not None
        assert (error.reason, error.token, error.holder) == (how, lead.token, lead.holder)
        assert error.__cause__ is None
    assert scene.row.holder == ("intruder" if how == "taken" else None)
    await asyncio.sleep(0)
    await asyncio.sleep(1)


@pytest.mark.parametrize("kind", ["asyncio.timeout", "anyio.fail_after", "anyio.move_on_after"])
@virtual_time
async def test_a_timeout_inside_the_block_is_its_own(kind: str) -> None:
    """A timeout inside the block that fires while the term runs is the body's affair: the term goes on."""
    scene, task = Inside(), asyncio.current_task()
    assert task is not None
    async with scene.lead() as lead:
        for _ in range(3):
            if kind == "anyio.move_on_after":
                with anyio.move_on_after(1) as scope:
                    await asyncio.sleep(LONG)
                assert scope.cancelled_caught
            else:
                with pytest.raises(TimeoutError):  # noqa: PT012 - the block is what is tested
                    if kind == "asyncio.timeout":
                        async with asyncio.timeout(1):
                            await asyncio.sleep(LONG)
                    else:
                        with anyio.fail_after(1):
                            await asyncio.sleep(LONG)
            assert lead.is_leader
            await asyncio.sleep(LEASE)
        assert task.cancelling() == 0
    assert scene.row.holder is None


@pytest.mark.parametrize("group", ["asyncio", "anyio"])
@pytest.mark.parametrize("when", ["before", "while it unwinds"])
@virtual_time
async def test_a_child_that_fails(group: str, when: str) -> None:
    """What a group in the body raises is the body's exception: itself if nothing was lost, else the loss's cause."""
    scene = Inside()

    async def failing() -> None:
        if when == "before":
            raise Boom("child")
        try:
            await asyncio.sleep(LONG)
        finally:
            raise Boom("child")

    raised: BaseException | None = None
    with pytest.raises((LeadershipLost, ExceptionGroup)) as left:  # noqa: PT012 - the block is what is tested
        async with scene.lead() as lead:
            if when != "before":
                scene.end("expired", lead)
            try:
                if group == "asyncio":
                    async with asyncio.TaskGroup() as native:
                        native.create_task(failing())
                        await asyncio.sleep(LONG)
                else:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(failing)
                        await asyncio.sleep(LONG)
            except BaseException as error:
                raised = error
                raise
    assert isinstance(raised, ExceptionGroup)
    if when == "before":
        assert left.value is raised
    else:
        assert isinstance(left.value, LeadershipLost)
        assert left.value.__cause__ is raised
    assert scene.row.holder is None


@pytest.mark.parametrize(
    "error",
    [StopIteration(1), StopAsyncIteration(), RuntimeError("no"), TimeoutError(), KeyError("x"), Boom()],
    ids=repr,
)
@virtual_time
async def test_any_exception_of_the_body_comes_out_as_itself(error: Exception) -> None:
    """The body's own exception leaves the block as it is, also one that generators treat in a way of their own."""
    scene = Inside()
    raised: BaseException | None = None
    try:
        async with scene.lead():
            raise error
    except BaseException as left:  # noqa: BLE001 - whatever leaves is looked at
        raised = left
    assert raised is error
    assert raised.__cause__ is None
    assert scene.row.holder is None
    assert not scene.seen(Lost)


class Nest:
    """Two leaderships, one in the other."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.fit = {"outer": True, "inner": True}
        self.left: dict[str, BaseException | None] = {"outer": None, "inner": None}
        self.lost: dict[str, asyncio.Event] = {"outer": asyncio.Event(), "inner": asyncio.Event()}
        self.released: list[str] = []

    def lead(self, name: str) -> AbstractAsyncContextManager[Leadership]:
        async def eligible() -> bool:
            return self.fit[name]

        return leadership(self.store, name, eligible=eligible, on_event=self.observe)

    def observe(self, event: Event) -> None:
        if isinstance(event, Lost):
            self.lost[event.lease].set()
        if isinstance(event, Released):
            self.released.append(event.lease)

    async def play(self, first: tuple[str, ...], second: str | None) -> None:
        try:
            async with self.lead("outer"):
                try:
                    async with self.lead("inner"):
                        for name in first:
                            self.fit[name] = False
                        try:
                            await asyncio.sleep(LONG)
                        finally:
                            if second is not None:
                                self.fit[second] = False
                                while not self.lost[second].is_set():
                                    with suppress(asyncio.CancelledError):
                                        await asyncio.sleep(0.1)
                except BaseException as error:
                    self.left["inner"] = error
                    raise
        except BaseException as error:  # noqa: BLE001 - whatever leaves is looked at
            self.left["outer"] = error


@pytest.mark.parametrize(
    ("first", "second", "inner"),
    [
        (("outer",), None, asyncio.CancelledError),
        (("inner",), None, LeadershipLost),
        (("outer", "inner"), None, asyncio.CancelledError),
        (("outer",), "inner", asyncio.CancelledError),
        (("inner",), "outer", asyncio.CancelledError),
    ],
    ids=["outer", "inner", "both", "outer, then inner", "inner, then outer"],
)
@virtual_time
async def test_nested_leaderships(first: tuple[str, ...], second: str | None, inner: type[BaseException]) -> None:
    """For an inner leadership the loss of an outer one is cancellation from outside; each leaves with its own."""
    nest, task = Nest(), asyncio.current_task()
    assert task is not None
    await nest.play(first, second)
    assert type(nest.left["inner"]) is inner
    outer = nest.left["outer"]
    assert isinstance(outer, LeadershipLost)
    assert outer.name == ("outer" if "outer" in (*first, second) else "inner")
    if outer.name == "inner":
        assert outer is nest.left["inner"]
    assert nest.released == ["inner", "outer"]
    assert task.cancelling() == 0
    assert asyncio.all_tasks() == {task}
    await asyncio.sleep(1)


@virtual_time
async def test_the_loss_of_an_inner_leadership_may_be_caught() -> None:
    """When the inner of two leaderships is lost, the outer goes on, and is the current one again."""
    nest = Nest()
    async with nest.lead("outer") as outer:
        with pytest.raises(LeadershipLost):  # noqa: PT012 - the block is what is tested
            async with nest.lead("inner") as inner:
                assert current_leadership() is inner
                nest.fit["inner"] = False
                await asyncio.sleep(LONG)
        assert current_leadership() is outer
        await asyncio.sleep(5 * LEASE)
        assert outer.is_leader
    assert nest.released == ["inner", "outer"]


@virtual_time
async def test_check_raises_what_leaves_the_block() -> None:
    """`check` after the loss raises the `LeadershipLost` of the term, and this very error leaves the block."""
    scene = Inside()
    checked: LeadershipLost | None = None
    with pytest.raises(LeadershipLost) as left:  # noqa: PT012 - the block is what is tested
        async with scene.lead() as lead:
            lead.check()
            scene.end("ineligible", lead)
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(LONG)
            try:
                lead.check()
            except LeadershipLost as error:
                checked = error
                raise
    assert left.value is checked
    assert left.value.reason == "ineligible"
    assert scene.row.holder is None


@pytest.mark.parametrize("then", ["check", "return", "raise"])
def test_a_body_that_stood_still_past_the_deadline(then: str) -> None:
    """A body that ends past the deadline has lost the lease, even if nothing else ran since; it is reported once."""

    async def main() -> None:
        scene, loop, boom = Inside(), asyncio.get_running_loop(), Boom()
        with pytest.raises(LeadershipLost) as left:  # noqa: PT012 - the block is what is tested
            async with scene.lead() as lead:
                loop.advance(LEASE - UNWIND + 0.1)  # type: ignore[attr-defined]
                assert not lead.is_leader
                if then == "check":
                    lead.check()
                if then == "raise":
                    raise boom
        assert left.value.reason == "expired"
        assert left.value.__cause__ is (boom if then == "raise" else None)
        assert len(scene.seen(Lost)) == 1
        assert scene.row.holder is None
        await asyncio.sleep(1)

    run_virtual(main())


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("who", ["the body", "a task", "a child of asyncio", "a child of anyio"])
@pytest.mark.parametrize("then", ["waits", "returns", "raises", "checks"])
@virtual_time
async def test_resigning(then: str, who: str, times: int) -> None:
    """`resign` ends the term at once and the block without an error, whoever calls it, before any await, and twice."""
    scene, task, boom = Inside(), asyncio.current_task(), Boom()
    assert task is not None
    raised: BaseException | None = None

    async def resign() -> None:
        lead = current_leadership()
        for _ in range(times):
            lead.resign()
            assert not lead.is_leader
            assert lead.remaining == 0
        with pytest.raises(NotLeader):
            current_leadership()
        with pytest.raises(LeadershipLost, match="resigned"):
            lead.check()

    async def go_on(lead: Leadership) -> None:
        match then:
            case "waits":
                await asyncio.sleep(LONG)
            case "raises":
                raise boom
            case "checks":
                lead.check()

    try:
        async with scene.lead() as lead:
            match who:
                case "the body":
                    await resign()
                    await go_on(lead)
                case "a task":
                    helper = asyncio.create_task(resign())
                    try:
                        await asyncio.sleep(LONG)
                    except asyncio.CancelledError:
                        await helper
                        if then == "waits":
                            raise
                    await go_on(lead)
                case "a child of asyncio":
                    async with asyncio.TaskGroup() as native:
                        native.create_task(resign())
                        await asyncio.sleep(LONG)
                case "a child of anyio":
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(resign)
                        await asyncio.sleep(LONG)
    except Boom as error:
        raised = error
    assert raised is (boom if then == "raises" and who in ("the body", "a task") else None)
    assert task.cancelling() == 0
    assert asyncio.all_tasks() == {task}
    assert scene.row.holder is None
    assert len(scene.seen(Resigned)) == 1
    assert not scene.seen(Lost)
    lead.resign()  # too late, and harmless
    assert len(scene.seen(Resigned)) == 1
    await asyncio.sleep(0)
    await asyncio.sleep(1)


@virtual_time
async def test_a_keeper_that_is_cancelled_ends_the_term() -> None:
    """If the task that renews is cancelled by a stranger, the body is cancelled and the loss has the reason "error"."""
    scene = Inside()
    with pytest.raises(LeadershipLost) as left:  # noqa: PT012 - the block is what is tested
        async with scene.lead():
            others = asyncio.all_tasks() - {asyncio.current_task()}
            assert others
            for task in others:
                task.cancel()
            await asyncio.sleep(LONG)
    assert left.value.reason == "error"
    assert scene.row.holder is None
    assert asyncio.all_tasks() == {asyncio.current_task()}


# -- cancelled once, and what happens while a body unwinds


@pytest.mark.parametrize("how", ["resigned", "expired", "taken", "ineligible"])
@virtual_time
async def test_clean_up_may_await(how: str) -> None:
    """The body is cancelled once: its clean-up may await, several times, for nearly half the time to unwind."""
    scene = Inside()
    done: list[str] = []
    try:
        async with scene.lead() as lead:
            scene.end(how, lead)
            try:
                await asyncio.sleep(LONG)
            finally:
                for _ in range(10):
                    await asyncio.sleep(0)
                await scene.store.read("cron")
                async with asyncio.timeout(1), asyncio.TaskGroup() as tasks:
                    tasks.create_task(asyncio.sleep(0.5))
                await asyncio.sleep(UNWIND / 2 - 0.6)
                done.append("all")
    except LeadershipLost:
        pass
    assert done == ["all"]
    assert not scene.seen(BodyStuck)


@pytest.mark.parametrize("how", ["resigned", "expired", "ineligible"])
@virtual_time
async def test_a_body_that_does_not_end(how: str) -> None:
    """It is cancelled again after half the time to unwind, then reported; the lease is kept for a lease's time more."""
    scene, loop = Inside(), asyncio.get_running_loop()
    cancelled: list[float] = []
    stuck: list[tuple[float, BodyStuck]] = []
    renewed: list[float] = []
    released: list[float] = []
    rows: dict[float, Lease] = {}
    ended = 0.0

    def observe(event: Event) -> None:
        nonlocal ended
        scene.observe(event)
        now = loop.time()
        if isinstance(event, Lost | Resigned):
            ended = now
            scene.store._faults.clear()  # the database answers again, too late
        if isinstance(event, BodyStuck):
            stuck.append((now - ended, event))
        if isinstance(event, Renewed) and ended:
            renewed.append(now - ended)
        if isinstance(event, Released):
            released.append(now - ended)

    try:
        async with leadership(scene.store, "cron", eligible=scene.eligible, on_event=observe) as lead:
            scene.end(how, lead)
            while not ended or loop.time() < ended + 3 * LEASE:
                try:
                    await asyncio.sleep(0.5)
                    if ended:
                        rows[loop.time() - ended] = scene.row
                except asyncio.CancelledError:
                    cancelled.append(loop.time() - ended)
    except LeadershipLost as lost:
        assert how != "resigned"
        assert lost.__cause__ is None  # noqa: PT017 - the other way out has no error
    assert cancelled == pytest.approx([0, UNWIND / 2], abs=0.01)
    assert [at for at, _ in stuck] == pytest.approx([UNWIND, LEASE], abs=0.01)
    assert [event.renewing for _, event in stuck] == [True, False]
    assert [event.level for _, event in stuck] == ["CRITICAL"] * 2
    assert [event.since_lost for _, event in stuck] == pytest.approx([UNWIND, LEASE], abs=0.01)
    phrase = (
        f"'cron' (term {lead.token}): the body has not ended, 5.0 s after the lease was lost (holder {lead.holder})"
    )
    assert stuck[0][1].phrase == phrase
    # Renewed at every heartbeat, and no longer than one more lease.
    assert len(renewed) >= 2
    assert renewed[-1] <= LEASE
    assert LEASE - renewed[-1] <= LEASE / 3 + 0.1
    before = [row for at, row in sorted(rows.items()) if at <= renewed[-1]]
    beats = [row.beat for row in before]
    assert beats == sorted(beats)
    assert beats[-1] > beats[0]
    assert before[-1].expires_at > before[0].expires_at
    after = [row for at, row in rows.items() if at > LEASE + 0.1]
    assert {row.beat for row in after} == {after[0].beat}
    # And never released before its end.
    assert {row.holder for row in rows.values()} == {lead.holder}
    assert released == pytest.approx([3 * LEASE], abs=1)


@pytest.mark.parametrize("how", ["resigned", "expired", "ineligible", "returns", "raises"])
@virtual_time
async def test_nobody_leads_while_a_body_unwinds(how: str) -> None:
    """The lease is released when the body has ended, not before: a waiting process starts then, and at once."""
    scene, loop = Inside(), asyncio.get_running_loop()
    first_left, second_in = 0.0, 0.0

    async def second() -> None:
        nonlocal second_in
        async with leadership(MemoryStore(scene.server), "cron"):
            second_in = loop.time()

    try:
        async with scene.lead() as lead:
            other = asyncio.create_task(second())
            await asyncio.sleep(1)
            scene.end(how, lead)
            try:
                if how in ("returns", "raises"):
                    await asyncio.sleep(1)
                else:
                    await asyncio.sleep(LONG)
            finally:
                until = loop.time() + (UNWIND - 1 if how == "expired" else LEASE)
                while loop.time() < until:
                    with suppress(asyncio.CancelledError):
                        await asyncio.sleep(1)
                assert second_in == 0.0
                first_left = loop.time()
            if how == "raises":
                raise Boom
    except (LeadershipLost, Boom):
        pass
    async with asyncio.timeout(2 * LEASE):
        await other
    # A renewal that is being lost is waited for: half a heartbeat at most.
    assert first_left <= second_in <= first_left + (LEASE / 6 + 1.1 if how == "expired" else 0.05)
    kinds = [type(event) for event in scene.events if isinstance(event, Elected | Lost | Resigned | Released)]
    assert kinds[0] is Elected
    assert kinds[-1] is Released


@virtual_time
async def test_ending_the_term_never_waits_for_the_database() -> None:
    """The body is cancelled at the deadline while a renewal hangs, and what hangs does not hold up the block's end."""
    scene, loop = Inside(), asyncio.get_running_loop()
    scene.store.lose_request("renew", 100)
    scene.store.lose_request("release", 100)
    started = loop.time()
    with losing():
        async with scene.lead():
            try:
                await asyncio.sleep(LONG)
            finally:
                cancelled = loop.time() - started
    assert cancelled == pytest.approx(LEASE - UNWIND, abs=0.01)
    assert loop.time() - started <= LEASE - UNWIND + UNWIND / 5 + 0.01  # a last try to release
    assert scene.row.holder is not None  # left to expire


def test_release_follows_the_end_of_the_body_in_real_time() -> None:
    """On a real loop, too, a stuck body keeps its lease, and the block is left as soon as the body ends."""

    async def main() -> None:
        store, beats = MemoryStore(), set()
        started = time.monotonic()
        with losing():
            async with leadership(store, "cron", lease_duration=0.6) as lead:
                store.fail("renew", RuntimeError("a bug"), 1)
                while (store.server.leases["cron"].holder == lead.holder) and time.monotonic() - started < 0.8:
                    try:
                        await asyncio.sleep(0.02)
                        beats.add(store.server.leases["cron"].beat)
                    except asyncio.CancelledError:
                        pass
                assert store.server.leases["cron"].holder == lead.holder
        assert time.monotonic() - started < 2
        assert store.server.leases["cron"].holder is None
        assert asyncio.all_tasks() == {asyncio.current_task()}

    for loop_factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())


# -- a count of cancellations that somebody left behind


async def _fail() -> None:
    await asyncio.sleep(0.01)
    raise ValueError


async def _leave_a_cancellation_behind() -> None:
    """A task group whose child fails while it waits: before Python 3.13 its parent counts as cancelled for ever."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_fail())
    except* ValueError:
        pass


@virtual_time
async def test_a_resignation_after_a_failed_child_is_no_cancellation() -> None:
    """What a task group has left behind is not taken for a cancellation from outside: `resign` ends well."""
    async with leadership(MemoryStore()) as lead:
        await _leave_a_cancellation_behind()
        lead.resign()
        await asyncio.sleep(60)


@virtual_time
async def test_a_loss_after_a_failed_child_is_a_loss() -> None:
    """Nor does it hide a loss: else `run_as_leader` would leave the election for good."""
    store = MemoryStore()
    with losing():
        async with leadership(store):
            await _leave_a_cancellation_behind()
            store.down = True
            await asyncio.sleep(60)


@virtual_time
async def test_a_cancellation_that_is_under_way_goes_before_a_loss() -> None:
    """One from outside still does, also if the term is lost while the body unwinds from it."""
    store = MemoryStore()

    async def lead() -> None:
        async with leadership(store):
            await _leave_a_cancellation_behind()
            try:
                await asyncio.sleep(3600)
            finally:
                store.down = True
                await asyncio.sleep(60)

    task = asyncio.create_task(lead())
    await asyncio.sleep(5)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


@pytest.mark.parametrize("clean_up", [0.0, LONG])
@pytest.mark.parametrize("late", [0.5, 40.0])
@virtual_time
async def test_a_cancellation_goes_before_a_commit_that_is_refused(late: float, clean_up: float) -> None:
    """A task that is cancelled while its commit is under way ends as cancelled, though the fence refuses the commit."""
    store, loop = MemoryStore(), asyncio.get_running_loop()

    async def commit() -> None:
        async with leadership(store) as lead:
            try:
                async with lead.transaction():
                    store.delay("commit", late)
                    store.server.take("default")
            finally:
                await asyncio.sleep(clean_up)  # a long one is cut short by the term

    task = asyncio.create_task(commit())
    while not any(method == "commit" for method, _ in store.sent):
        await asyncio.sleep(0.1)
    loop.call_soon(task.cancel)
    await asyncio.wait([task])
    assert task.cancelled(), f"the cancellation was swallowed by {task.exception()!r}"


@pytest.mark.parametrize("inner", [False, True])
@virtual_time
async def test_a_thawed_process_hears_the_cancellation_from_outside(inner: bool) -> None:
    """A process that was frozen finds a cancellation, an inner time-out and its end at once: it ends as cancelled."""
    loop = asyncio.get_running_loop()

    async def lead() -> None:
        async with leadership(MemoryStore()) as lead, asyncio.timeout(20 if inner else None):
            answer = loop.create_future()
            loop.call_later(18, answer.set_result, None)
            loop.call_later(21, lead.resign)
            await answer
            await asyncio.sleep(LONG)

    task = asyncio.create_task(lead())
    loop.call_later(19, task.cancel)
    await asyncio.sleep(15)
    loop.advance(10)  # type: ignore[attr-defined]
    await asyncio.wait([task])
    assert task.cancelled(), "the cancellation was swallowed"


@virtual_time
async def test_a_gathering_that_was_cancelled_from_outside_is_not_a_loss() -> None:
    """A body waits in `asyncio.gather` for children that end in order, and the lease is lost meanwhile: cancelled."""
    store = MemoryStore()

    async def child() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(LONG)
        await asyncio.sleep(11)

    async def lead() -> None:
        async with leadership(store):
            await asyncio.gather(child(), child())

    task = asyncio.create_task(lead())
    await asyncio.sleep(5)
    task.cancel()
    await asyncio.sleep(1)
    store.server.take("default")
    await asyncio.wait([task])
    assert task.cancelled(), f"the cancellation was swallowed by {task.exception()!r}"


# -- a long lease


@virtual_time
async def test_leaving_takes_no_longer_with_a_longer_lease() -> None:
    """With a lease of an hour and a network that swallows everything, the block is left within 45 s.

    Whatever was under way: a renewal, the release, and what a job's run has still to write.
    """
    store, jobs, loop, ran = MemoryStore(), JobRegistry(), asyncio.get_running_loop(), asyncio.Event()

    @jobs.every(60)
    async def tidy() -> None:
        ran.set()
        await asyncio.sleep(LONG)

    heard: list[Event] = []
    async with leadership(store, lease_duration=LONG, on_event=heard.append) as lead:
        running = asyncio.create_task(jobs.run(lead, drain_timeout=0.0))
        await ran.wait()
        for method in ("renew", "release", "record", "read"):
            store.lose_request(method, 1000)
        while not any(isinstance(event, RenewFailed) for event in heard):
            await asyncio.sleep(1.0)
        began = loop.time()
        running.cancel()
        await asyncio.wait([running])
    assert loop.time() - began < 45.0
    left = store.server.read("default")
    assert left is not None
    assert left.holder is not None  # it expires by itself


@virtual_time
async def test_a_commit_without_an_answer_does_not_take_as_long_as_the_lease() -> None:
    """With a lease of an hour, a COMMIT whose answer is lost is `CommitUnknown` within a minute or so."""
    store, loop = MemoryStore(), asyncio.get_running_loop()
    async with leadership(store, lease_duration=LONG) as lead:
        store.lose_reply("commit")
        began = loop.time()
        with pytest.raises(CommitUnknown):
            async with lead.transaction():
                pass
        assert loop.time() - began < 90.0


@virtual_time
async def test_a_candidate_asks_again_soon_whatever_the_lease() -> None:
    """With a lease of an hour, a candidate whose first answer is lost leads within a quarter of a minute."""
    store, loop = MemoryStore(), asyncio.get_running_loop()
    store.lose_reply("read")
    began = loop.time()
    async with leadership(store, lease_duration=LONG):
        assert loop.time() - began < 15.0
