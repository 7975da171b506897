"""What a job's function is given, by its signature, and what can say whether a process is fit to lead."""

from __future__ import annotations

import asyncio
import functools
import typing
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Optional
from unittest.mock import AsyncMock

import pytest

import aiolease
from aiolease import ConfigurationError, InvalidJob, JobRegistry, JobRun, leadership, run_as_leader
from aiolease.testing import MemoryStore
from tests.jobs.worlds import a_term, memory
from tests.virtual import virtual

if TYPE_CHECKING:
    import aiolease as checked


got: list[Any] = []


async def plain(run) -> None:  # type: ignore[no-untyped-def]
    got.append(run)


async def annotated(run: JobRun) -> None:
    got.append(run)


async def by_a_module(run: aiolease.JobRun) -> None:
    got.append(run)


async def optional(run: Optional[JobRun] = None) -> None:  # noqa: UP045 - that is what is tried
    got.append(run)


async def or_none(run: JobRun | None = None) -> None:
    got.append(run)


async def in_a_union(run: typing.Union["JobRun", str] = "") -> None:  # noqa: UP007, UP037 - that is what is tried
    got.append(run)


async def with_a_note(run: Annotated[JobRun, "the run"]) -> None:
    got.append(run)


async def by_keyword(*, run: JobRun) -> None:
    got.append(run)


async def by_keyword_or_none(*, days: int = 30, run: JobRun | None = None) -> None:
    got.append(run)


async def behind_a_default(days: int = 30, run: JobRun | None = None) -> None:
    got.append(run)


async def before_a_default(run: JobRun, days: int = 30) -> None:
    got.append(run)


async def unannotated_before_a_default(run, days=30) -> None:  # type: ignore[no-untyped-def]
    got.append(run)


async def positional(run: JobRun, /) -> None:
    got.append(run)


async def for_type_checkers(run: checked.JobRun | None = None) -> None:
    got.append(run)


def in_a_thread(run: JobRun) -> None:
    got.append(run)


class Purge:
    async def method(self, run: JobRun) -> None:
        got.append(run)

    async def __call__(self, run: JobRun) -> None:
        got.append(run)


async def of_a_shop(shop: str, run: JobRun) -> None:
    got.append((shop, run)[1])


def hands_on(function: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> None:
        await function(*args, **kwargs)

    return wrapper


TAKES = [
    plain, annotated, by_a_module, optional, or_none, in_a_union, with_a_note, by_keyword, by_keyword_or_none,
    behind_a_default, before_a_default, unannotated_before_a_default, positional, for_type_checkers, in_a_thread,
    Purge().method, Purge(), functools.partial(of_a_shop, "berlin"), functools.partial(of_a_shop, shop="berlin"),
    hands_on(annotated), hands_on(by_keyword),
]  # fmt: skip


async def purge(days=30) -> None:  # type: ignore[no-untyped-def]
    got.append(days)


async def purge_annotated(days: int = 30, *, dry: bool = False) -> None:
    got.append(days)


async def purge_maybe(days: int | None = 30) -> None:
    got.append(days)


async def many_runs(days: int = 30, runs: list[JobRun] = []) -> None:  # noqa: B006 - never changed
    got.append(days)


def purge_in_a_thread(days: int = 30) -> None:
    got.append(days)


def gives_a_session(function: Callable[..., Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    @functools.wraps(function)
    async def wrapper() -> None:
        await function(30)

    return wrapper


async def of_a_session(session: int) -> None:
    got.append(session)


class Days:
    async def method(self, days: int = 30) -> None:
        got.append(days)


TAKES_NOTHING = [
    purge, purge_annotated, purge_maybe, many_runs, purge_in_a_thread, gives_a_session(of_a_session), Days().method,
    functools.partial(of_a_session, 30), functools.partial(of_a_session, session=30), hands_on(purge),
]  # fmt: skip


def given_to(function: Any) -> list[Any]:
    """What a job gets at its first tick."""
    jobs = JobRegistry()
    jobs.every(10, name="job")(function)
    got.clear()

    @virtual
    async def test() -> None:
        async with a_term(jobs, memory()):
            await asyncio.sleep(15)

    test()
    return got


@pytest.mark.parametrize("function", TAKES, ids=lambda function: getattr(function, "__name__", repr(function))[:40])
def test_a_job_that_asks_for_its_run_gets_it(function: Any) -> None:
    """A parameter without a default, or one that is annotated as `JobRun`, gets the run, however it is written."""
    (run,) = given_to(function)
    assert isinstance(run, JobRun)


@pytest.mark.parametrize(
    "function", TAKES_NOTHING, ids=lambda function: getattr(function, "__name__", repr(function))[:40]
)
def test_a_default_stays_what_it_is(function: Any) -> None:
    """A parameter with a default that is no `JobRun` keeps its default: no run is put in its place."""
    assert given_to(function) == [30]


async def two_runs(run: JobRun, other: JobRun) -> None: ...
async def needs_more(run: JobRun, days: int) -> None: ...
async def needs_a_keyword(run: JobRun, *, days: int) -> None: ...
async def unannotated_keyword(*, run) -> None: ...  # type: ignore[no-untyped-def]
async def not_first(days: int = 30, run: JobRun | None = None, /) -> None: ...


@pytest.mark.parametrize("function", [two_runs, needs_more, needs_a_keyword, unannotated_keyword, not_first])
def test_a_function_that_needs_anything_else_is_no_job(function: Any) -> None:
    """What could not be called with nothing, or with one run, is refused when it is registered."""
    with pytest.raises(InvalidJob):
        JobRegistry().every(10)(function)


def plain_answer() -> bool:
    return True


class PlainAnswer:
    def __call__(self) -> bool:
        return True


@pytest.mark.parametrize(
    "eligible",
    [plain_answer, lambda: True, PlainAnswer(), True, functools.partial(bool, 1)],
    ids=lambda given: type(given).__name__,
)
async def test_a_plain_function_cannot_say_who_is_fit(eligible: Any) -> None:
    """A function whose answer cannot be awaited is refused by the call itself, wherever `eligible` is taken."""
    store, jobs = MemoryStore(), JobRegistry()

    async def body(lead: object) -> None: ...

    with pytest.raises(ConfigurationError, match="async def"):
        leadership(store, eligible=eligible)
    for call in (run_as_leader(store, body, eligible=eligible), jobs.serve(store, eligible=eligible)):
        with pytest.raises(ConfigurationError, match="async def"):
            await call
    with pytest.raises(ConfigurationError, match="async def"):
        async with jobs.background(store, eligible=eligible):
            pytest.fail("it was entered")
    assert store.sent == []


async def fit() -> bool:
    return True


class Health:
    async def fit(self) -> bool:
        return True

    async def __call__(self) -> bool:
        return True


@functools.wraps(fit)
def decorated() -> Awaitable[bool]:
    return fit()


@pytest.mark.parametrize(
    "eligible",
    [None, fit, Health().fit, Health(), functools.partial(fit), decorated, AsyncMock(return_value=True)],
    ids=lambda given: type(given).__name__,
)
@virtual
async def test_all_that_is_asynchronous_can_say_who_is_fit(eligible: Any) -> None:
    """A coroutine function, a method, an object, a partial or a decorated function: each is asked."""
    async with leadership(MemoryStore(), eligible=eligible) as lead:
        await asyncio.sleep(30)
        assert lead.is_leader
