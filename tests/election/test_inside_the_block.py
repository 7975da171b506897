"""A term ends, whatever its body is inside of: groups, timeouts, other terms."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import anyio
import pytest

from aiolease import Leadership, LeadershipLost, NotLeader, current_leadership, leadership
from aiolease.events import Event, Lost, Released, Resigned
from aiolease.testing import MemoryStore, run_virtual, virtual_time
from tests.election.leaving import LEASE, UNWIND, Boom, Inside
from tests.election.terms import LONG

pytestmark = pytest.mark.usefixtures("quiet")


Around = Callable[["Inside"], AbstractAsyncContextManager[object]]


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
