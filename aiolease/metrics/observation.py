"""From events to measurements: what both observers share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from aiolease.events import (
    Elected,
    Event,
    Following,
    JobsSeen,
    Joined,
    LedgerFailed,
    LoopBlocked,
    Lost,
    Released,
    ReleaseFailed,
    Renewed,
    RenewFailed,
    Resigned,
    RunFinished,
    RunStarted,
    TickSkipped,
)
from aiolease.metrics import instruments as of
from aiolease.metrics.instruments import OF_JOBS, OF_LEASES, Instrument, Sink


@final
class Observation:
    """An observer that measures; one serves all leases of a process.

    Args:
        sink: Where the measurements go.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._known: set[tuple[str, ...]] = set()
        self._running: set[tuple[str, int | None]] = set()  # leases and terms of this process that have not ended

    def __call__(self, event: Event) -> None:
        """Measures an event."""
        lease, sink = event.lease, self._sink
        if not lease:
            return  # a line of the log that is about no lease
        self._know(lease)
        match event:
            case Joined(jobs=jobs):
                self._know(lease, *jobs)
            case Elected(token=token):
                self._running.add((lease, token))
                sink.set(of.IS_LEADER, 1, lease)
                sink.set(of.TERM, token or 0, lease)
            case Following(token=token):
                sink.set(of.TERM, token or 0, lease)
            case Lost() | Resigned() | Released() | ReleaseFailed():
                self._ended(event)
            case Renewed(took=took, clock_offset=offset):
                sink.observe(of.RENEWAL, took, lease)
                sink.set(of.CLOCK_OFFSET, offset, lease)
            case RenewFailed():
                sink.add(of.RENEWAL_FAILURES, 1, lease)
            case LedgerFailed():
                sink.add(of.LEDGER_FAILURES, 1, lease)
            case LoopBlocked():
                sink.add(of.LOOP_BLOCKED, 1, lease)
                if (lease, event.token) in self._running:  # it has passed its deadline, and its loop cannot say so
                    sink.set(of.IS_LEADER, 0, lease)
            case RunStarted() | RunFinished() | TickSkipped() | JobsSeen():
                self._of_jobs(event)

    def _of_jobs(self, event: RunStarted | RunFinished | TickSkipped | JobsSeen) -> None:
        lease, sink = event.lease, self._sink
        if isinstance(event, JobsSeen):
            self._stand(event)
            return
        self._know(lease, event.job)
        match event:
            case RunStarted(job=job, late=late):
                sink.observe(of.RUN_LATENESS, late, lease, job)
            case RunFinished(job=job, status=status, took=took, retry_at=retry_at):
                sink.add(of.RUNS, 1, lease, job, status if retry_at is None else "retried")
                if status != "lost":  # how long it would have taken nobody knows
                    sink.observe(of.RUN_DURATION, took, lease, job)
            case TickSkipped(job=job, count=count):
                sink.add(of.TICKS_SKIPPED, count, lease, job)

    def _stand(self, event: JobsSeen) -> None:
        """Takes over how the jobs stand."""
        lease, sink = event.lease, self._sink
        sink.set(of.CLOCK_OFFSET, event.clock_offset, lease)
        self._know(lease, *(job.job for job in event.jobs))
        for job in event.jobs:
            last_success, next_tick = job.last_success, job.next_tick
            sink.set(of.LAST_SUCCESS, last_success.timestamp() if last_success else 0, lease, job.job)
            sink.set(of.NEXT_TICK, next_tick.timestamp() if next_tick else 0, lease, job.job)
            sink.set(of.OVERDUE, job.overdue, lease, job.job)
            sink.set(of.PAUSED, int(job.paused), lease, job.job)
            sink.set(of.FAILURES, job.failures, lease, job.job)
            sink.set(of.RUNNING, job.running, lease, job.job)
            sink.set(of.QUEUED, job.queued, lease, job.job)

    def _ended(self, event: Lost | Resigned | Released | ReleaseFailed) -> None:
        """Counts the end of a term once: its first event says why, a release may follow."""
        term = (event.lease, event.token)
        if term in self._running:
            reason = event.reason if isinstance(event, Lost) else "resigned" if isinstance(event, Resigned) else "ended"
            self._running.remove(term)
            self._sink.set(of.IS_LEADER, any(lease == event.lease for lease, _ in self._running), event.lease)
            self._sink.add(of.TERMS_ENDED, 1, event.lease, reason)

    def _know(self, lease: str, *jobs: str) -> None:
        """Begins with zeros for what has not been heard of yet."""
        if (lease,) not in self._known:
            self._begin(OF_LEASES, lease)
        for job in jobs:
            if (lease, job) not in self._known:
                self._begin(OF_JOBS, lease, job)

    def _begin(self, instruments: Iterable[Instrument], *labels: str) -> None:
        self._known.add(labels)
        for instrument in instruments:
            for value in instrument.values:
                self._sink.begin(instrument, *labels, value)
            if not instrument.values:
                self._sink.begin(instrument, *labels)
