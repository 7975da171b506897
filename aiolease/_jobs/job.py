"""A job as it is registered: its function, its schedule, and what becomes of its ticks and runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from aiolease._functions import is_async
from aiolease._jobs.due import Missed
from aiolease._jobs.schedule import Every, Schedule
from aiolease.errors import InvalidJob

Overlap = Literal["skip", "allow"]

_CHOICES = {"missed": ("once", "all", "skip"), "overlap": ("skip", "allow"), "rerun_lost": (False, True)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A function and its schedule, as they were registered. For `argument` see `aiolease._functions.argument`.

    Attributes:
        one_by_one: Whether a run that waits is not begun beside another one.
        threaded: Whether its runs need a thread.
    """

    name: str
    function: Callable[..., object]
    schedule: Schedule
    argument: str | None
    overlap: Overlap = "skip"
    timeout: float | None = None
    missed: Missed = "once"
    max_age: float | None = None
    rerun_lost: bool = False
    retries: int = 0
    backoff: float | Callable[[int], float] = 60.0
    jitter: float = 0.0
    late_after: float | None = None

    one_by_one: bool = field(init=False)
    threaded: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "one_by_one", self.overlap == "skip" or self.missed == "all")
        object.__setattr__(self, "threaded", not is_async(self.function))


class JobOptions(TypedDict, total=False):
    """The options of a job, whatever its schedule.

    Attributes:
        missed: What becomes of ticks that fell due while nobody led: ``"once"`` runs the newest of them, ``"all"``
            every one, one after another, at most the last 1000, ``"skip"`` none. Ticks younger than two leases are due
            and not missed: the newest of them is run whatever this says. With ``"all"``, ticks that fall due while the
            missed ones are run follow them, and are not skipped: a job that takes longer than its interval falls behind
            then. ``"once"`` by default.
        max_age: Seconds after which a tick is skipped that has not been begun; ``None``, the default, for no limit.
        overlap: What becomes of a tick while the job's last run goes on: ``"skip"`` it, the default, or ``"allow"``
            both.
        timeout: Seconds after which a run is cancelled, and has failed; ``None``, the default, for no limit.
        rerun_lost: Whether a run whose term ended under it is begun again in the next, five times in all: at least
            once. Otherwise, by default, it is ``lost``: at most once. See `JobRun.transaction` for exactly once.
        retries: How often a run that has failed, or took longer than its `timeout`, is tried again: 0 by default. While
            it waits it is queued in the ledger, and outlives its leader. With ``overlap="skip"`` newer ticks are
            skipped meanwhile. A run that was lost is no try: `rerun_lost` counts those. `GiveUp` ends it at once.
        backoff: Seconds until the first retry, doubled for each further one, with 10 % of jitter, at most an hour: 60
            by default. Or a function: it is given how often the run has failed, from 1, and gives back the seconds.
        jitter: Each tick starts up to so many seconds late, by an amount that is fixed for lease, job and tick: 0 by
            default. Of `every` it is less than the interval.
        late_after: Seconds after which a tick that nobody has run is told as overdue by the processes that wait;
            ``None``, the default, for two leases, or `max_age`.
    """

    missed: Missed
    max_age: float | None
    overlap: Overlap
    timeout: float | None
    rerun_lost: bool
    retries: int
    backoff: float | Callable[[int], float]
    jitter: float
    late_after: float | None


def check_options(job: str, options: JobOptions) -> None:
    """Returns if all of it can work.

    Raises:
        InvalidJob: It names the option.
    """
    for option, choices in _CHOICES.items():
        value = options.get(option, choices[0])
        if not any(value is choice or value == choice for choice in choices):
            raise InvalidJob(job, f"{option}={value!r}: use {' or '.join(repr(choice) for choice in choices)}")
    for option in ("max_age", "timeout", "late_after"):
        seconds = options.get(option)
        if seconds is not None and not (isinstance(seconds, int | float) and 0 < seconds < math.inf):
            raise InvalidJob(job, f"{option}={seconds!r}: use a finite, positive number of seconds")
    retries, backoff, jitter = options.get("retries", 0), options.get("backoff", 0.0), options.get("jitter", 0.0)
    if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
        raise InvalidJob(job, f"retries={retries!r}: use a whole number from 0")
    if not callable(backoff) and not is_duration(backoff):
        raise InvalidJob(job, f"backoff={backoff!r}: use a number of seconds from 0, or a function that gives one")
    if callable(backoff) and is_async(backoff):
        raise InvalidJob(job, "backoff: use a plain function, it is not awaited")
    if not is_duration(jitter):
        raise InvalidJob(job, f"jitter={jitter!r}: use a finite number of seconds from 0")


def is_duration(seconds: object) -> bool:
    """True for a finite number of seconds from 0."""
    return isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds < math.inf


def check_jitter(job: str, jitter: float, schedule: Schedule) -> None:
    """Returns if ticks do not overtake one another.

    Raises:
        InvalidJob: The jitter is not below the interval.
    """
    if isinstance(schedule, Every) and jitter >= schedule.interval.total_seconds():
        problem = f"jitter={jitter!r}: use less than the interval of {schedule.interval.total_seconds():g} s"
        raise InvalidJob(job, problem)
