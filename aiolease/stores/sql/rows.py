"""Which columns the statements read, and how a row becomes a record: by name, once for all databases. No I/O here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from aiolease.errors import StoreUnavailable
from aiolease.stores.records import JobRecord, Lease, Place, RunRecord
from aiolease.stores.seen import MOST_FAILURES, JobSeen
from aiolease.stores.sql.dialect import Dialect

T = TypeVar("T")

Row = tuple[Any, ...]
_Makes = Mapping[str, Callable[[Any], Any] | None]
"""By column, the function that turns its value into the attribute; ``None`` if the value stays as it is."""


UNREADABLE = (AttributeError, TypeError, ValueError, OverflowError)
"""What turning a row into a record raises if a value cannot be read."""


class Rows:
    """The columns of the tables, and how a row becomes a record. Each column is an attribute of the record.

    Attributes:
        lease_columns: What a statement that reads leases selects; last the database's clock.
        job_columns: Of jobs.
        run_columns: Of runs.
        seen_columns: Of a job, and of a run of it: see `seen`.
        moment: Makes an aware moment of what the tables keep.
    """

    def __init__(self, dialect: Dialect) -> None:
        moment, moment_or_none = dialect.moment, _or_none(dialect.moment)
        self.moment = moment
        self._lease: _Makes = {
            "name": None,
            "holder": None,
            "token": int,
            "beat": int,
            "elected_at": moment,
            "renewed_at": moment,
            "expires_at": moment,
            "resign_token": _or_none(int),
            "now": moment,
        }
        self._job: _Makes = {
            "job": _text,
            "schedule": str,
            "timezone": str,
            "known_since": moment,
            "schedule_since": moment,
            "resumed_at": moment_or_none,
            "paused_at": moment_or_none,
            "high_tick": moment_or_none,
            "requested_at": moment_or_none,
            "paused_until": moment_or_none,
            "pause_note": None,
            "asked_at": moment_or_none,
            "cancel_at": moment_or_none,
            "backfill_since": moment_or_none,
            "backfill_until": moment_or_none,
            "token": _or_none(int),
        }
        self._run: _Makes = {
            "job": None,
            "tick": moment,
            "attempt": int,
            "token": int,
            "holder": None,
            "status": None,
            "started_at": moment_or_none,
            "finished_at": moment_or_none,
            "error": None,
            "tick_from": moment_or_none,
            "count": _or_none(int),
            "not_before": moment_or_none,
            "failures": int,
            "uncounted": int,
            "request": None,
            "earlier": None,
        }
        named = _Named(dialect, frozenset({moment, moment_or_none}))
        self.lease_columns, self.job_columns, self.run_columns = map(named, (self._lease, self._job, self._run))
        self.seen_columns = f"{named(self._job, 'j.')}, {named(self._run, 'r.')}"

    def lease(self, row: Row, store: str) -> Lease:
        """Makes a lease of a row; further columns are left out.

        Raises:
            StoreUnavailable: The row cannot be read; `store` is the store's description.
        """
        with readable(store, "the row of a lease"):
            return Lease(**_record(self._lease, row))

    def job(self, row: Row) -> JobRecord:
        """Makes a job of a row; raises what `UNREADABLE` lists."""
        return JobRecord(**_record(self._job, row))

    def run(self, row: Row) -> RunRecord:
        """Makes a run of a row; raises what `UNREADABLE` lists."""
        return RunRecord(**_record(self._run, row))

    def seen(self, row: Row) -> JobSeen:
        """Makes how a job stands of a row; raises what `UNREADABLE` lists.

        Behind `seen_columns` come: when the newest success ended, the failures since, what is running, what is queued.
        """
        job, run = row[: len(self._job)], row[len(self._job) :]
        last_success, failures, running, queued = run[len(self._run) : len(self._run) + 4]
        return JobSeen(
            record=self.job(job),
            last=None if run[0] is None else self.run(run),
            last_success=None if last_success is None else self.moment(last_success),
            failures=min(int(failures or 0), MOST_FAILURES),
            running=int(running or 0),
            queued=int(queued or 0),
        )

    def run_or_sign(self, row: Row) -> RunRecord:
        """Makes a run of a row; of one that cannot be read, that it is there, and finished.

        Raises what `UNREADABLE` lists if its tick cannot be read.
        """
        return there((row[0], self.moment(row[1])), row, self.run)


class _Named:
    """Names columns as a statement selects them."""

    def __init__(self, dialect: Dialect, moments: frozenset[Callable[[Any], Any]]) -> None:
        self._dialect = dialect
        self._moments = moments
        self._own_words = {"now": dialect.now, "count": dialect.count}

    def __call__(self, makes: _Makes, alias: str = "") -> str:
        return ", ".join(
            self._dialect.as_read(f"{alias}{column}")
            if make in self._moments and column != "now"
            else f"{alias}{self._own_words.get(column, column)}"
            for column, make in makes.items()
        )


def _record(makes: _Makes, row: Row) -> dict[str, Any]:
    return {column: make(value) if make else value for (column, make), value in zip(makes.items(), row, strict=False)}


def _or_none(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else make(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("its job is no text")
    return value


def read_each(rows: Iterable[Row], make: Callable[[Row], T], unreadable: dict[str, str]) -> list[T]:
    """Turns rows into records; their first column is the job. Notes the jobs of unreadable rows, and why."""
    found = []
    for row in rows:
        try:
            found.append(make(row))
        except UNREADABLE as error:
            unreadable[str(row[0])] = f"a row has a value that cannot be read: {type(error).__name__}: {error}"
    return found


def there(place: Place, row: Row, make: Callable[[Row], RunRecord]) -> RunRecord:
    """The record of a row that was looked up. A row that cannot be read counts as there, and finished."""
    try:
        return make(row)
    except UNREADABLE:
        return RunRecord(job=place[0], tick=place[1], token=0, holder="", status="lost")


@contextmanager
def readable(store: str, what: str) -> Iterator[None]:
    """Turns an unreadable value of a row, such as a zero date, into `StoreUnavailable`.

    Raises:
        StoreUnavailable: The row cannot be read.
    """
    try:
        yield
    except UNREADABLE as error:
        problem = f"{what} has a value that cannot be read, written by another hand: {type(error).__name__}: {error}"
        raise StoreUnavailable(store, problem) from error
