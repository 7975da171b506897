"""The rules of retries, and of what people ask for by hand, broken one by one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import patch

from aiolease._jobs import backfills, retries, runs
from aiolease._jobs import due as reckoning
from aiolease._jobs.backfill import portion
from aiolease._jobs.cancels import Cancels
from aiolease._jobs.execution import Execution, Outcome
from aiolease._jobs.job_state import JobState
from aiolease._jobs.later import Later
from aiolease._jobs.runs import Runs
from aiolease.stores.batch import Batch, Change
from aiolease.stores.records import RunRecord, TermKey
from tests.simulation.network import ArchivedLedger


def _retries_do_not_wait() -> AbstractContextManager[Any]:
    ripen = Later.ripen
    return patch.object(Later, "ripen", lambda later, now: ripen(later, now + timedelta(days=1)))


def _retries_without_end() -> AbstractContextManager[Any]:
    def mutated(jobs: Runs, execution: Any, outcome: Outcome) -> None:
        job = execution.waiting.job
        execution.waiting.job = replace(job, retries=job.retries + 1 if job.retries else 0)
        note(jobs, execution, outcome)
        execution.waiting.job = job

    note = Runs._note_failure
    return patch.object(Runs, "_note_failure", mutated)


def _failures_are_not_counted() -> AbstractContextManager[Any]:
    again = retries.tried_again

    def mutated(*args: Any) -> Change:
        change = again(*args)
        assert change.again is not None
        return replace(change, again=replace(change.again, failed=False))

    return patch.object(runs, "tried_again", mutated)


def _losses_count_as_failures() -> AbstractContextManager[Any]:
    def mutated(*args: Any, **how: Any) -> Change:
        change = lost(*args, **how)
        return change if change.again is None else replace(change, again=replace(change.again, failed=True))

    lost = reckoning.lost
    patches = ExitStack()
    for module in (reckoning, runs):
        patches.enter_context(patch.object(module, "lost", mutated))
    return patches


def _retries_are_forgotten() -> AbstractContextManager[Any]:
    def mutated(later: Later, state: JobState, run: RunRecord) -> None:
        if run.token == later._token or run.failures == 0:
            add(later, state, run)

    add = Later.add
    return patch.object(Later, "add", mutated)


def _retries_are_no_business_of_the_next_leader() -> AbstractContextManager[Any]:
    def mutated(*_: Any, **__: Any) -> None:
        return None

    return patch.object(runs, "next_start", mutated)


def _a_cancelled_run_is_tried_again() -> AbstractContextManager[Any]:
    def mutated(execution: Execution) -> None:
        """Its task is cancelled, and it is not noted why."""

    return patch.object(Execution, "cancel", mutated)


def _what_was_queued_anew_is_not_cancelled() -> AbstractContextManager[Any]:
    patches = ExitStack()
    patches.enter_context(patch.object(Cancels, "to_read", lambda *_: []))
    patches.enter_context(patch.object(Cancels, "_withdraw", lambda *_: None))
    return patches


def _a_backfill_looks_at_no_rows() -> AbstractContextManager[Any]:
    def mutated(job: Any, term: Any, _: Any, *args: Any, **how: Any) -> Any:
        return portion(job, term, [], *args, **how)

    patches = ExitStack()
    patches.enter_context(patch.object(backfills, "portion", mutated))
    patches.enter_context(_claims_over_rows())
    return patches


def _claims_over_rows() -> AbstractContextManager[Any]:
    record = ArchivedLedger.record

    def mutated(ledger: ArchivedLedger, term: TermKey, batch: Batch, now: datetime) -> None:
        for run in batch.claims:
            if run.request == "backfill":
                ledger.runs.pop((run.job, run.tick), None)
        record(ledger, term, batch, now)

    return patch.object(ArchivedLedger, "record", mutated)


def _ranges_are_not_trimmed() -> AbstractContextManager[Any]:
    record = ArchivedLedger.record

    def mutated(ledger: ArchivedLedger, term: TermKey, batch: Batch, now: datetime) -> None:
        record(ledger, term, replace(batch, trims={}), now)

    return patch.object(ArchivedLedger, "record", mutated)


def _a_run_by_hand_makes_its_job_run_twice() -> AbstractContextManager[Any]:
    return patch.object(Later, "_is_idle", lambda *_: True)


MENDING: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "retries do not wait for their moment": _retries_do_not_wait,
    "one retry too many": _retries_without_end,
    "failures are not counted": _failures_are_not_counted,
    "lost attempts are counted as failed": _losses_count_as_failures,
    "retries of an earlier term are forgotten": _retries_are_forgotten,
    "what is to be tried again is not": _retries_are_no_business_of_the_next_leader,
    "a cancelled run is tried again": _a_cancelled_run_is_tried_again,
    "what waits anew is not cancelled": _what_was_queued_anew_is_not_cancelled,
    "a backfill looks at no rows": _a_backfill_looks_at_no_rows,
    "a range that is backfilled is not trimmed": _ranges_are_not_trimmed,
    "a run by hand runs beside another": _a_run_by_hand_makes_its_job_run_twice,
}
"""By name, what breaks one rule of retries, or of what people ask for by hand."""
