"""The metrics, each once: its name as Prometheus has it, what it counts, its labels.

Labels are names of leases and of registered jobs, and values that are listed here: so their number has a limit.
Durations are seconds, moments are seconds since the Unix epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from aiolease.errors import LossReason


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Instrument:
    """One metric.

    Attributes:
        name: Its name in Prometheus. It ends with ``_total`` if it is a counter, and names its unit.
        kind: What it is.
        text: What it says, in a sentence without a full stop.
        labels: The names of its labels.
        values: All values of its last label, where that names neither a lease nor a job.
        buckets: The upper limits of a histogram's buckets.
        together: Of a gauge: how those of the worker processes of one server become one; see prometheus_client.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ("lease",)
    values: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    together: Literal["livesum", "livemax", "livemostrecent"] = "livemostrecent"


class Sink(Protocol):
    """Where measurements go. The values of the labels come in the order of `Instrument.labels`."""

    def begin(self, instrument: Instrument, *labels: str) -> None:
        """Exports a zero, if it can and there is no value yet."""

    def add(self, instrument: Instrument, amount: float, *labels: str) -> None:
        """Adds to a counter."""

    def set(self, instrument: Instrument, value: float, *labels: str) -> None:
        """Sets a gauge."""

    def observe(self, instrument: Instrument, seconds: float, *labels: str) -> None:
        """Counts a duration in a histogram."""


_JOB = ("lease", "job")

IS_LEADER = Instrument(
    name="aiolease_is_leader", kind="gauge", text="1 while this process leads, else 0", together="livesum"
)
TERM = Instrument(
    name="aiolease_term", kind="gauge", text="The number of the latest term that was seen", together="livemax"
)
TERMS_ENDED = Instrument(
    name="aiolease_terms_ended_total",
    kind="counter",
    text="Terms of this process that have ended; the reason is ended if the body ended by itself",
    labels=("lease", "reason"),
    values=("ended", *get_args(LossReason)),
)
RENEWAL = Instrument(
    name="aiolease_renewal_seconds",
    kind="histogram",
    text="How long renewals of the lease took",
    buckets=(0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0),
)
RENEWAL_FAILURES = Instrument(
    name="aiolease_renewal_failures_total", kind="counter", text="Renewals that failed, and were tried again"
)
LEDGER_FAILURES = Instrument(
    name="aiolease_ledger_failures_total",
    kind="counter",
    text="Exchanges with the ledger that failed as it was written",
)
LOOP_BLOCKED = Instrument(
    name="aiolease_loop_blocked_total", kind="counter", text="How often the event loop was blocked past the deadline"
)
CLOCK_OFFSET = Instrument(
    name="aiolease_database_clock_offset_seconds",
    kind="gauge",
    text="How far the clock of this machine is ahead of the database's",
)
RUNS = Instrument(
    name="aiolease_runs_total",
    kind="counter",
    text="Runs that ended; retried is one that failed and is tried again",
    labels=(*_JOB, "status"),
    values=("succeeded", "failed", "retried", "lost"),
)
RUN_DURATION = Instrument(
    name="aiolease_run_duration_seconds",
    kind="histogram",
    text="How long runs took that succeeded or failed",
    labels=_JOB,
    buckets=(0.1, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0),
)
RUN_LATENESS = Instrument(
    name="aiolease_run_lateness_seconds",
    kind="histogram",
    text="How long after their moment runs began",
    labels=_JOB,
    buckets=(0.1, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0),
)
TICKS_SKIPPED = Instrument(
    name="aiolease_ticks_skipped_total", kind="counter", text="Ticks that were not run", labels=_JOB
)
LAST_SUCCESS = Instrument(
    name="aiolease_job_last_success_timestamp_seconds",
    kind="gauge",
    text="When the newest run that succeeded ended; 0 if none has",
    labels=_JOB,
)
NEXT_TICK = Instrument(
    name="aiolease_job_next_tick_timestamp_seconds",
    kind="gauge",
    text="The first tick that no leader has claimed or skipped yet; 0 if there is none, as for a paused job",
    labels=_JOB,
)
OVERDUE = Instrument(
    name="aiolease_job_overdue_seconds",
    kind="gauge",
    text="How long ago the next tick passed, if that is longer than it may be, else 0",
    labels=_JOB,
)
PAUSED = Instrument(name="aiolease_job_paused", kind="gauge", text="1 while the job is paused, else 0", labels=_JOB)
FAILURES = Instrument(
    name="aiolease_job_failures_in_a_row",
    kind="gauge",
    text="Runs that failed or were lost since the last that succeeded",
    labels=_JOB,
)
RUNNING = Instrument(name="aiolease_runs_running", kind="gauge", text="Runs that go on", labels=_JOB)
QUEUED = Instrument(name="aiolease_runs_queued", kind="gauge", text="Runs that wait", labels=_JOB)

OF_LEASES = (
    IS_LEADER, TERM, TERMS_ENDED, RENEWAL, RENEWAL_FAILURES, LEDGER_FAILURES, LOOP_BLOCKED, CLOCK_OFFSET,
)  # fmt: skip
OF_JOBS = (
    RUNS, RUN_DURATION, RUN_LATENESS, TICKS_SKIPPED,
    LAST_SUCCESS, NEXT_TICK, OVERDUE, PAUSED, FAILURES, RUNNING, QUEUED,
)  # fmt: skip
