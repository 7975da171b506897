"""What can be a job, and which options, schedules and names are refused."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import pytest

from aiolease import ConfigurationError, DuplicateJob, InvalidJob, InvalidSchedule, JobRegistry, JobRun
from tests.jobs.worlds import nothing, nothing_in_a_thread


def test_a_decorator_returns_the_function_unchanged() -> None:
    """Registering leaves a function what it was: it can be called, tested and registered elsewhere."""
    jobs = JobRegistry()
    assert jobs.every(30)(nothing) is nothing
    assert jobs.every(timedelta(minutes=5), name="again")(nothing) is nothing
    assert jobs.cron("0 9 * * *")(nothing_in_a_thread) is nothing_in_a_thread


async def two(run: JobRun, more: int) -> None: ...
async def any_number(*runs: JobRun) -> None: ...
async def any_name(**facts: object) -> None: ...
async def keyword_needed(*, shop: str) -> None: ...
async def größe() -> None: ...  # noqa: PLC2401 - that is what is refused


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    "function",
    [two, any_number, any_name, keyword_needed, generator, async_generator, größe, lambda: None, "text", min],
)
def test_what_cannot_be_a_job_is_refused(function: Any) -> None:
    """A job takes nothing or one `JobRun`, yields nothing, and has a plain name; else `InvalidJob` says so at once."""
    jobs = JobRegistry()
    with pytest.raises(InvalidJob) as refused:
        jobs.every(30)(function)
    assert isinstance(refused.value, ValueError)
    assert refused.value.job


@pytest.mark.parametrize("name", ["", "two words", "größe", "x" * 101, "line\nfeed"])
def test_a_name_is_plain(name: str) -> None:
    """A job's name is 1 to 100 printable ASCII characters without spaces: it is the ledger's key for years."""
    with pytest.raises(InvalidJob):
        JobRegistry().every(30, name=name)(nothing)


@pytest.mark.parametrize("function", [lambda: None, lambda run: None, functools.partial(two, more=1), größe])
def test_a_name_given_makes_a_job_of_what_has_none(function: Any) -> None:
    """With ``name=…`` a lambda, a partial or a function with a foreign name can be a job."""
    assert JobRegistry().every(30, name="x" * 100)(function) is function


@pytest.mark.parametrize(
    "options",
    [{"overlap": "queue"}, *({"timeout": value} for value in (0, -1, float("inf"), float("nan"), "5"))],
    ids=str,
)
def test_an_option_that_cannot_work_is_refused(options: dict[str, Any]) -> None:
    """`overlap` and `timeout` are checked at registration, and the error names the job."""
    with pytest.raises(InvalidJob, match="'nothing'"):
        JobRegistry().every(30, **options)(nothing)


def test_a_name_is_taken_once() -> None:
    """Two jobs of one registry cannot have the same name; what was refused does not take a name."""
    jobs = JobRegistry()
    with pytest.raises(InvalidJob):
        jobs.every(30, name="job")(two)
    jobs.every(30, name="job")(nothing)
    with pytest.raises(DuplicateJob) as refused:
        jobs.cron("@daily", name="job")(nothing_in_a_thread)
    assert refused.value.job == "job"
    JobRegistry().every(30, name="job")(nothing)


@pytest.mark.parametrize("interval", [0, -30, 0.0001, float("nan"), float("inf"), "30", None, True, timedelta(0)])
def test_an_interval_that_cannot_work_is_refused(interval: Any) -> None:
    """An interval is a number of seconds or a timedelta, from a millisecond."""
    with pytest.raises(InvalidSchedule):
        JobRegistry().every(interval)


@pytest.mark.parametrize("expression", ["", "* * * *", "61 * * * *", "0 0 30 2 *", "@sometimes", 5])
def test_an_expression_that_cannot_fire_is_refused(expression: Any) -> None:
    """A cron expression that is not understood or can never fire is refused when the job is registered."""
    with pytest.raises(InvalidSchedule):
        JobRegistry().cron(expression)


def test_an_unknown_zone_is_refused() -> None:
    """A time zone is checked where it is named: by the registry, or by the job."""
    with pytest.raises(InvalidSchedule, match="Mars"):
        JobRegistry(timezone="Mars/Olympus")
    with pytest.raises(InvalidSchedule, match="Mars"):
        JobRegistry().cron("@daily", timezone="Mars/Olympus")


@pytest.mark.parametrize("number", [0, -1, 1.5, "2"])
def test_a_cap_that_cannot_work_is_refused(number: Any) -> None:
    """`max_running` is a number from 1, or ``None``."""
    with pytest.raises(ConfigurationError) as refused:
        JobRegistry(max_running=number)
    assert refused.value.field == "max_running"
