"""Pauses: of one job or of the whole lease, with an end or without (DESIGN rule 36). Pure functions.

A pause with an end needs no timer: the job's ticks are settled until then. A pause of the whole lease is in the row of
each job that was known then; those that became known since have no such row, and are covered by it.
"""

from __future__ import annotations

from datetime import datetime

from aiolease.stores.records import JobRecord


def is_covered(known_since: datetime, resumed_at: datetime | None, whole: JobRecord | None) -> bool:
    """True if the pause of the whole lease holds, or held, for a job that became known since it began."""
    if whole is None or whole.paused_at is None or known_since < whole.paused_at:
        return False
    return resumed_at is None or resumed_at < whole.paused_at


def settled_until(record: JobRecord, whole: JobRecord | None) -> datetime:
    """The moment up to which nothing of a job is due any more; of a job that is paused until then it is to come."""
    if is_covered(record.known_since, record.resumed_at, whole) and whole is not None and whole.paused_until:
        return max(record.settled_until, whole.paused_until)
    return record.settled_until


def is_paused(record: JobRecord, whole: JobRecord | None) -> bool:
    """True if a job is paused, and nobody has said until when."""
    if record.paused_at is not None and record.paused_until is None:
        return True
    covered = is_covered(record.known_since, record.resumed_at, whole)
    return covered and whole is not None and whole.paused_until is None
