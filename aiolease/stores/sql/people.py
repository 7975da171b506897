"""What people ask of the jobs of a lease on a database that takes SQL, and what is made of the answers."""

from __future__ import annotations

import re
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from aiolease._names import check_name
from aiolease.errors import InvalidJob, RequestRefused
from aiolease.stores.asking import (
    another_backfill,
    checked_end,
    checked_moment,
    checked_note,
    checked_span,
    is_of_range,
    line_of,
    why_not_again,
    why_not_forgotten,
)
from aiolease.stores.records import RunRecord, checked_limit, kept_line
from aiolease.stores.seen import TERMS, TermRecord
from aiolease.stores.sql.dialect import Dialect
from aiolease.stores.sql.ledger import LedgerStatements
from aiolease.stores.sql.rows import Rows, read_each, readable
from aiolease.stores.sql.sending import Sending
from aiolease.stores.sql.statement import Statement

if TYPE_CHECKING:
    from aiolease.stores.sql.merging import Newest
    from aiolease.stores.sql.requests import PauseStatements, RequestStatements

_TRIES = 3
"""How often a run that somebody changed meanwhile is looked at again."""

_STEP = 1000
"""How many rows are deleted at once."""


class SQLRequests:
    """A `JobStore`; how its statements are sent is the database's own part."""

    description: str

    def __init__(self, dialect: Dialect, rows: Rows, sending: Sending) -> None:
        self._rows = rows
        self._sending = sending
        self._ledger = LedgerStatements(dialect, rows)
        self._words = dialect

    # Made when somebody asks: a worker that nobody asks for anything has neither the statements nor their modules.

    @cached_property
    def _requests(self) -> RequestStatements:
        from aiolease.stores.sql.requests import RequestStatements

        return RequestStatements(self._words)

    @cached_property
    def _pauses(self) -> PauseStatements:
        from aiolease.stores.sql.requests import PauseStatements

        return PauseStatements(self._words)

    @cached_property
    def _newest(self) -> Newest:
        from aiolease.stores.sql.merging import Newest

        return Newest(self._words, self._rows, self._sending)

    async def history(self, name: str, job: str, *, limit: int = 100) -> list[RunRecord]:
        """See `JobStore.history`."""
        values = {"lease": check_name(name), "job": job, "limit": checked_limit(limit)}
        rows = await self._sending.ask([(self._ledger.history, values)]) if _is_name(job) else []
        return read_each(reversed(rows), self._rows.run, {})

    async def settle(self, name: str, job: str) -> None:
        """See `JobStore.settle`."""
        await self._ask_job(name, job, *self._requests.settle)

    async def trigger(self, name: str, job: str) -> datetime:
        """See `JobStore.trigger`."""
        requested_at = await self._ask_job(name, job, self._requests.trigger)
        with readable(self.description, f"the ledger of {name!r}"):
            return self._rows.moment(requested_at)

    async def pause(
        self, name: str, job: str | None = None, *, until: datetime | None = None, note: str | None = None
    ) -> None:
        """See `JobStore.pause`."""
        values: dict[str, object] = {"lease": check_name(name), "note": checked_note(note)}
        if until is not None:
            [[now]] = await self._sending.ask([(self._ledger.clock, {})])
            until = checked_end(until, self._rows.moment(now))
        if job is not None:
            await self._ask_job(name, job, self._pauses.pause, until=until, note=values["note"])
        else:
            values |= {"until": until}
            await self._sending.ask([*((each, values) for each in self._pauses.pause_all), (self._ledger.clock, {})])

    async def resume(self, name: str, job: str | None = None) -> None:
        """See `JobStore.resume`."""
        if job is not None:
            await self._ask_job(name, job, self._pauses.resume)
        else:
            values = {"lease": check_name(name)}
            await self._sending.ask([*((each, values) for each in self._pauses.resume_all), (self._ledger.clock, {})])

    async def rerun(self, name: str, job: str, tick: datetime, *, force: bool = False) -> None:
        """See `JobStore.rerun`."""
        at = checked_moment("tick", tick)
        await self._ask_job(name, job)
        where = {"lease": name, "job": job, "tick": at}
        for _ in range(_TRIES):
            asked = {"lease": name, "job": job, "since": at, "limit": 1}
            rows = read_each(await self._sending.ask([(self._ledger.rows_from, asked)]), self._rows.run_or_sign, {})
            if rows and is_of_range(rows[0], at):
                await self.backfill(name, job, at, at)
                return
            run = rows[0] if rows and rows[0].tick == at else None
            if (reason := why_not_again(run, force=force)) is not None:
                raise RequestRefused(name, job, reason)
            assert run is not None
            began = run.status != "skipped"
            values = {
                **where,
                "was": run.status,
                "token": run.token,
                "attempt": run.attempt,
                "new_attempt": run.attempt + 1 if began else run.attempt,
                "uncounted": run.attempt if began else 0,
                "line": kept_line(line_of(run)),
            }
            asked_all = [*((each, values) for each in self._requests.rerun), (self._ledger.look_up, where)]
            found = read_each(await self._sending.ask(asked_all), self._rows.run_or_sign, {})
            if found and (found[0].status, found[0].attempt) == ("queued", values["new_attempt"]):
                return
        raise RequestRefused(name, job, "this run is being changed; look at it, and ask again")

    async def backfill(self, name: str, job: str, since: datetime, until: datetime) -> None:
        """See `JobStore.backfill`."""
        first, last = checked_span(since, until)
        values = {"lease": check_name(name), "job": job, "since": first, "until": last}
        asked = [(self._requests.backfill, values), (self._requests.backfilling, values)]
        rows = await self._sending.ask(asked) if _is_name(job) else []
        if not rows:
            raise _unknown(name, job)
        with readable(self.description, f"the ledger of {name!r}"):
            found = [self._rows.moment(moment) for moment in rows[0]]
        if found != [first, last]:  # as it is, too, if the same was asked before
            raise RequestRefused(name, job, another_backfill(*found))

    async def cancel(self, name: str, job: str) -> None:
        """See `JobStore.cancel`."""
        await self._ask_job(name, job, self._requests.cancel)

    async def forget(self, name: str, job: str) -> None:
        """See `JobStore.forget`."""
        await self._ask_job(name, job)
        where = {"lease": name, "job": job}
        while rows := await self._sending.ask([(self._requests.standing, where)]):
            token, leader, has_said = rows[0]
            if (reason := why_not_forgotten(token, leader, has_said=bool(has_said))) is not None:
                raise RequestRefused(name, job, reason)
            [[last]] = await self._sending.ask([(self._requests.last_of, {**where, "step": _STEP})])
            change = (self._requests.forget, {**where, "token": token})
            if last is not None:
                change = (self._requests.forget_runs, {**where, "last": last})
            await self._sending.ask([change, (self._ledger.clock, {})])

    async def runs(
        self, name: str, *, failed: bool = False, since: datetime | None = None, limit: int = 100
    ) -> list[RunRecord]:
        """See `JobStore.runs`."""
        first = None if since is None else checked_moment("since", since)
        return await self._newest.read(check_name(name), failed=failed, since=first, limit=checked_limit(limit))

    async def terms(self, name: str, *, limit: int = 100) -> list[TermRecord]:
        """See `JobStore.terms`."""
        values = {"lease": check_name(name), "job": TERMS, "limit": checked_limit(limit)}
        rows = await self._sending.ask([(self._ledger.history, values)])
        return [TermRecord.of(run) for run in read_each(reversed(rows), self._rows.run, {})]

    async def _ask_job(self, name: str, job: str, *changes: Statement, **more: object) -> Any:
        """Changes a job; returns when it was triggered, as the table keeps it."""
        values = {"lease": check_name(name), "job": job, **more}
        asked = [(statement, values) for statement in (*changes, self._requests.requested_at)]
        rows = await self._sending.ask(asked) if _is_name(job) else []
        if not rows:
            raise _unknown(name, job)
        return rows[0][0]


def _unknown(name: str, job: str) -> InvalidJob:
    return InvalidJob(job, f"no leader of {name!r} ever had such a job")


def _is_name(job: str) -> bool:
    """Whether a job can have this name: a server would compare others by rules of its own, or not at all."""
    return bool(re.fullmatch(r"[!-~]{1,100}", job))
