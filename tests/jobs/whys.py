"""A job whose ledger a test writes down, and what `why` says of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from aiolease._jobs.why import Facts, Why, why
from aiolease.stores.records import JobRecord, Lease, RunRecord
from aiolease.stores.seen import TermRecord

NOW = datetime(2026, 11, 30, 18, 0, tzinfo=UTC)
TICK = datetime(2026, 11, 30, 14, 0, tzinfo=UTC)
"""09:00 in New York, four hours ago."""

LONG_AGO = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)

JOB = JobRecord(
    job="report",
    schedule="cron 0 9 * * *",
    timezone="America/New_York",
    known_since=LONG_AGO,
    schedule_since=LONG_AGO,
    high_tick=TICK,
    token=7,
)


def job(**changes: Any) -> JobRecord:
    """The job: daily at 09:00 in New York, had by the leader, settled up to today's tick."""
    return replace(JOB, **changes)


def every(seconds: int, **changes: Any) -> JobRecord:
    return job(schedule=f"every {seconds}s", timezone="", **changes)


def lease(token: int = 7, *, free: bool = False, expired: datetime | None = None) -> Lease:
    """The lease: led by term 7, unless told otherwise."""
    return Lease(
        name="default",
        holder=None if free else f"web{token}",
        token=token,
        beat=5,
        elected_at=NOW - DAY,
        renewed_at=NOW - 3 * SECOND,
        expires_at=expired or (NOW - SECOND if free else NOW + 27 * SECOND),
        resign_token=None,
        now=NOW,
    )


def term(token: int, began: datetime, ended: datetime | None, status: str, error: str | None = None) -> TermRecord:
    return TermRecord(token=token, holder=f"web{token}", began_at=began, ended_at=ended, status=status, error=error)


TERM_7 = term(7, NOW - DAY, None, "running")


def run(
    status: str = "succeeded", tick: datetime = TICK, late: float = 0.4, took: float = 12, **facts: Any
) -> RunRecord:
    """A row of the job: begun `late` seconds after its tick, and `took` seconds long."""
    started = None if status in {"queued", "skipped"} else tick + timedelta(seconds=late)
    finished = None if started is None or status == "running" else started + timedelta(seconds=took)
    given: dict[str, Any] = {"started_at": started, "finished_at": finished, "token": 7, "holder": "web7", **facts}
    return RunRecord(job="report", tick=tick, status=status, **given)  # type: ignore[arg-type]


def ask(moment: datetime | None = TICK, record: JobRecord = JOB, *rows: RunRecord, **facts: Any) -> Why:
    """Asks why."""
    oldest = min((row.tick for row in rows), default=None)
    given = {"lease": lease(), "terms": [TERM_7], "oldest": oldest, **facts}
    return why(Facts(name="default", record=record, rows=rows, now=NOW, **given), moment)


def said(answer: Why) -> str:
    return " ".join(answer.sentences)
