"""A job as it is registered: its function, its schedule, and what becomes of its ticks and runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from aiolease._functions import is_async
from aiolease._jobs.due import Missed
from aiolease._jobs.schedule import Schedule
from aiolease.errors import InvalidJob

Overlap = Literal["skip", "allow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A function and its schedule, as they were registered. For `argument` see `aiolease._functions.argument`."""

    name: str
    function: Callable[..., object]
    schedule: Schedule
    argument: str | None
    overlap: Overlap = "skip"
    timeout: float | None = None
    missed: Missed = "once"
    max_age: float | None = None
    rerun_lost: bool = False

    @property
    def one_by_one(self) -> bool:
        """Whether a run that waits is not begun beside another one."""
        return self.overlap == "skip" or self.missed == "all"

    @property
    def threaded(self) -> bool:
        """Whether its runs need a thread."""
        return not is_async(self.function)


class JobOptions(NamedTuple):
    """What a job is registered with, besides its function, name and schedule."""

    missed: Missed
    max_age: float | None
    overlap: Overlap
    timeout: float | None
    rerun_lost: bool

    def check(self, job: str) -> None:
        """Returns if all of it can work.

        Raises:
            InvalidJob: It names the field.
        """
        for field, value, allowed in (
            ("missed", self.missed, ("once", "all", "skip")),
            ("overlap", self.overlap, ("skip", "allow")),
            ("rerun_lost", self.rerun_lost, (False, True)),
        ):
            if not any(value is choice or value == choice for choice in allowed):
                raise InvalidJob(job, f"{field}={value!r}: use {' or '.join(repr(choice) for choice in allowed)}")
        for field, seconds in (("max_age", self.max_age), ("timeout", self.timeout)):
            if seconds is not None and not (isinstance(seconds, int | float) and 0 < seconds < math.inf):
                raise InvalidJob(job, f"{field}={seconds!r}: use a finite, positive number of seconds")
