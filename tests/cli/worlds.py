"""A lease and its jobs as a test writes them down, in a database in memory whose clock stands still."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from aiolease.stores.memory import MemoryServer, MemoryStore
from aiolease.stores.records import JobRecord, Lease, RunRecord
from aiolease.stores.seen import TERMS, WHOLE_LEASE

NOW = datetime(2026, 11, 30, 18, 0, tzinfo=UTC)
TICK = datetime(2026, 11, 30, 14, 0, tzinfo=UTC)
LONG_AGO = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


class StoppedServer(MemoryServer):
    """A database whose clock stands still."""

    def now(self) -> datetime:
        return NOW + self.clock_offset


class World:
    """The rows of one lease, led by term 7 for a day."""

    def __init__(self) -> None:
        self.server = StoppedServer()
        self.lead()

    @asynccontextmanager
    async def open_store(self, *_: Any, **__: Any) -> AsyncIterator[MemoryStore]:
        """Stands in for `aiolease.stores.open_store`."""
        yield MemoryStore(self.server)

    def lead(
        self, *, holder: str | None = "web1-4711", expires: datetime = NOW + 24 * SECOND, name: str = "default"
    ) -> None:
        """Writes the lease's row."""
        self.server.leases[name] = Lease(
            name=name,
            holder=holder,
            token=7,
            beat=1,
            elected_at=NOW - DAY,
            renewed_at=expires - 30 * SECOND,
            expires_at=expires,
            resign_token=None,
            now=NOW,
        )

    def job(self, job: str = "report", schedule: str = "cron 0 9 * * *", **facts: Any) -> JobRecord:
        """Writes a job's row: known for long, had by the leader, its ticks settled up to today's."""
        zone = "America/New_York" if schedule.startswith("cron") else ""
        given: dict[str, Any] = {
            "known_since": LONG_AGO,
            "schedule_since": LONG_AGO,
            "high_tick": TICK,
            "token": 7,
        } | facts
        record = JobRecord(job=job, schedule=schedule, timezone=zone, **given)
        self.server.ledgers["default"].jobs[job] = record
        return record

    def pause_all(self, **facts: Any) -> None:
        given = {"paused_at": NOW - HOUR} | facts
        ledger = self.server.ledgers["default"]
        ledger.whole = replace(self.job("x"), job=WHOLE_LEASE, schedule="", timezone="", **given)
        del ledger.jobs["x"]
        for name, record in ledger.jobs.items():
            ledger.jobs[name] = replace(record, **given)

    def term(self, token: int, began: datetime, ended: datetime | None, status: str, error: str | None = None) -> None:
        """Writes a term's row."""
        key = (TERMS, began)
        self.server.ledgers["default"].terms[key] = RunRecord(
            job=TERMS,
            tick=began,
            token=token,
            holder=f"web{token}",
            status=status,  # type: ignore[arg-type]
            started_at=began,
            finished_at=ended,
            error=error,
        )

    def run(self, status: str = "succeeded", tick: datetime = TICK, job: str = "report", **facts: Any) -> RunRecord:
        """Writes a run's row: of term 7, begun 0.4 s late, 12 s long."""
        started = None if status in {"queued", "skipped"} else tick + 0.4 * SECOND
        finished = None if started is None or status == "running" else started + 12 * SECOND
        given: dict[str, Any] = {"token": 7, "holder": "web1-4711", "started_at": started, "finished_at": finished}
        record = RunRecord(job=job, tick=tick, status=status, **(given | facts))  # type: ignore[arg-type]
        self.server.ledgers["default"].of(job)[job, tick] = record
        return record
