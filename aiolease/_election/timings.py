"""How long everything may take: the timings of a lease, and their checks. The environment is read in `_environment`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from aiolease.errors import ConfigurationError

OnStall = Literal["log", "exit"]

MAX_LEASE = 86_400.0
"""A day, in seconds. A longer lease would mean a longer outage after every crash."""


LONGEST_EXCHANGE = 10.0
"""Seconds after which an answer is taken for lost. A lease of an hour must not make a process wait for ten minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """The timings of one lease in seconds, checked when made (DESIGN rule 17).

    Attributes:
        lease_duration: How long a claim or a renewal keeps others out.
        heartbeat_interval: Between two renewals.
        renew_deadline: How long after its last successful renewal was sent a leader may act.
        retry_interval: The longest pause between two attempts, and between two polls of a candidate.
    """

    lease_duration: float
    heartbeat_interval: float
    renew_deadline: float
    retry_interval: float

    @classmethod
    def make(
        cls,
        *,
        lease_duration: float = 30.0,
        heartbeat_interval: float | None = None,
        renew_deadline: float | None = None,
        retry_interval: float | None = None,
    ) -> Timings:
        """Fills in what is ``None``: a third, five sixths, and min(2 s, a fifteenth) of the lease.

        Raises:
            ConfigurationError: A timing is not finite and positive, or they cannot work together.
        """
        lease = _seconds("lease_duration", lease_duration)
        if not 0.1 <= lease <= MAX_LEASE:
            raise ConfigurationError("lease_duration", lease_duration, f"use 0.1 to {MAX_LEASE:.0f} seconds")
        given = {
            "heartbeat_interval": lease / 3 if heartbeat_interval is None else heartbeat_interval,
            "renew_deadline": lease * 5 / 6 if renew_deadline is None else renew_deadline,
            "retry_interval": min(2.0, lease / 15) if retry_interval is None else retry_interval,
        }
        timings = cls(lease_duration=lease, **{field: _seconds(field, value) for field, value in given.items()})
        heartbeat, deadline = timings.heartbeat_interval, timings.renew_deadline
        if heartbeat > deadline / 2:
            raise ConfigurationError(
                "heartbeat_interval,renew_deadline",
                (heartbeat, deadline),
                f"heartbeat_interval={heartbeat:g} must be at most half of renew_deadline={deadline:g}, "
                "so that one failed renewal can be tried again",
            )
        if deadline > lease * 0.9 * (1 + 1e-9):
            raise ConfigurationError(
                "renew_deadline,lease_duration",
                (deadline, lease),
                f"renew_deadline={deadline:g} must be at most 0.9 of lease_duration={lease:g}, "
                "so that the work has time to unwind before another may lead",
            )
        if timings.retry_interval > lease:
            raise ConfigurationError(
                "retry_interval,lease_duration",
                (timings.retry_interval, lease),
                f"retry_interval={timings.retry_interval:g} must be at most lease_duration={lease:g}",
            )
        return timings

    @property
    def unwind(self) -> float:
        """Seconds that a cancelled body has before another may lead."""
        return self.lease_duration - self.renew_deadline

    @property
    def attempt(self) -> float:
        """The most that one exchange with the database may take, in seconds, however long the lease."""
        return min(self.heartbeat_interval / 2, LONGEST_EXCHANGE)


def _seconds(field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(field, value, "use a number of seconds")
    if not math.isfinite(value) or value <= 0:
        raise ConfigurationError(field, value, "use a finite, positive number of seconds")
    return float(value)


def check_wait(timeout: float | None) -> float | None:
    """Checks how long a candidate is to wait: ``None``, or seconds from 0.

    Raises:
        ConfigurationError: It is negative or no number.
    """
    if timeout is None or (isinstance(timeout, int | float) and not isinstance(timeout, bool) and timeout == 0):
        return timeout
    return _seconds("timeout", timeout)


def check_stall(on_stall: str) -> OnStall:
    """Checks what a blocked event loop leads to.

    Raises:
        ConfigurationError: It is neither ``"log"`` nor ``"exit"``.
    """
    if on_stall == "log":
        return "log"
    if on_stall == "exit":
        return "exit"
    raise ConfigurationError("on_stall", on_stall, 'use "log" or "exit"')
