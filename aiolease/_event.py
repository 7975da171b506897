"""What every event has: the lease that it is about, a line for the log, and how loud it is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

_NAMED = 10
"""How many jobs a line names at most."""

Level = str
"""A level's name, the same in loguru and in the standard library, which has no TRACE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to one lease.

    Attributes:
        lease: The lease's name.
        holder: The identity of the term or of the attempt, ``None`` where there is none.
        token: The term's number, ``None`` where there is none.
    """

    level: ClassVar[Level] = "INFO"

    lease: str
    holder: str | None = None
    token: int | None = None

    @property
    def phrase(self) -> str:
        """The line for the log; its words are stable."""
        raise NotImplementedError


def named(jobs: Collection[str]) -> str:
    """The names of jobs for a line, at most ten of them."""
    return ", ".join(list(jobs)[:_NAMED]) + (", …" if len(jobs) > _NAMED else "")
