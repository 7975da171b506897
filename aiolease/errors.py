"""The errors of aiolease: few, each with its facts as attributes and a message that says what to do.

No driver's exception gets out of the library; where one was the reason, it is the ``__cause__``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

__all__ = [
    "AioleaseError",
    "CommitUnknown",
    "ConfigurationError",
    "DuplicateJob",
    "GiveUp",
    "InvalidJob",
    "InvalidSchedule",
    "LeadershipLost",
    "LeaseHeld",
    "LossReason",
    "NotLeader",
    "RequestRefused",
    "RunAlreadyEnded",
    "SchemaMissing",
    "StoreRejected",
    "StoreUnavailable",
    "TransactionEnded",
]

LossReason = Literal["expired", "taken", "ineligible", "resigned", "error"]

_REASONS: dict[str, str] = {
    "expired": "it could not be renewed in time",
    "taken": "the row shows that this term is over",
    "ineligible": "this process said that it is not fit to lead",
    "resigned": "it was resigned",
    "error": "the task that renews it ended unexpectedly",
}


_TABLES = (
    "Run the statements of schema.sql (`python -m aiolease schema` prints them) as a user who may create tables, "
    "or grant CREATE on this database to the application's user"
)


class AioleaseError(Exception):
    """The base of every error that aiolease raises. It can be pickled and copied."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The class makes its message of other arguments: what is made again gets the message and the facts.
        return _made_again, (type(self), self.args, self.__dict__)


def _made_again(kind: type[AioleaseError], args: tuple[Any, ...], facts: dict[str, Any]) -> AioleaseError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(facts)
    return error


class ConfigurationError(AioleaseError, ValueError):
    """A name, a URL, a timing or another setting that cannot work. Nothing was sent to the database.

    Attributes:
        field: The setting at fault, or several, joined by commas.
        value: What it was; never a password.
    """

    def __init__(self, field: str, value: object, problem: str) -> None:
        self.field = field
        self.value = value
        self.problem = problem
        super().__init__(f"{field}={value!r}: {problem}")


class InvalidSchedule(ConfigurationError):
    """A schedule that cannot work; raised when the job is registered.

    Attributes:
        field: The argument, or the field of the cron expression, at fault.
        value: Its text.
    """


class InvalidJob(AioleaseError, ValueError):
    """A function that cannot be a job: it must take nothing, or one `JobRun`.

    Attributes:
        job: The job's name.
    """

    def __init__(self, job: str, problem: str) -> None:
        self.job = job
        self.problem = problem
        super().__init__(f"job {job!r}: {problem}")


class GiveUp(AioleaseError):
    """Raised by a job whose run is not to be tried again: it has failed at once, whatever retries are left.

    Attributes:
        reason: Why.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class RequestRefused(AioleaseError):
    """What somebody asked of a job cannot be done as the ledger stands; nothing was changed.

    Attributes:
        lease: The lease.
        job: The job.
        reason: Why, and what to do.
    """

    def __init__(self, lease: str, job: str, reason: str) -> None:
        self.lease = lease
        self.job = job
        self.reason = reason
        super().__init__(f"job {job!r} of {lease!r}: {reason}")


class DuplicateJob(AioleaseError, ValueError):
    """Two jobs of one registry have the same name; give one of them another, with ``name=``.

    Attributes:
        job: The name.
    """

    def __init__(self, job: str) -> None:
        self.job = job
        super().__init__(f"a job named {job!r} is registered already; give one of them another name with name=…")


class StoreUnavailable(AioleaseError):
    """The database did not do what it was asked, and may well do so later: try again.

    Attributes:
        store: Which database, without its password.
        problem: What happened.
    """

    def __init__(self, store: str, problem: str) -> None:
        self.store = store
        self.problem = problem
        super().__init__(f"{store}: {problem}")


class StoreRejected(AioleaseError):
    """The database refuses, or is not supported, and waiting will not mend it: access denied, unknown database.

    Attributes:
        store: Which database, without its password.
        problem: What it said.
    """

    def __init__(self, store: str, problem: str) -> None:
        self.store = store
        self.problem = problem
        super().__init__(f"{store}: {problem}")


class SchemaMissing(AioleaseError):
    """The tables of aiolease are missing, or of another version, and could not be created.

    Attributes:
        store: Which database, without its password.
        problem: What is missing, and what the database said.
        statements: What makes it, for a user who may; empty if that is not known, or cannot be done.
    """

    def __init__(self, store: str, problem: str, way_out: str | None = None, *, statements: Sequence[str] = ()) -> None:
        self.store = store
        self.problem = problem
        self.statements = tuple(statements)
        super().__init__(f"{store}: {problem}. {way_out or _TABLES}")


class LeaseHeld(AioleaseError):
    """The wait ended before this process was elected: another holds the lease.

    Attributes:
        name: The lease.
        holder: Who holds it; ``None`` when it is free, but this process may not take it yet.
        waited: For how long this process tried, in seconds.
    """

    def __init__(self, name: str, holder: str | None, waited: float) -> None:
        self.name = name
        self.holder = holder
        self.waited = waited
        who = f"held by {holder}" if holder else "not free for this process"
        super().__init__(f"lease {name!r} is {who}; gave up after {waited:.1f} s. Wait longer with timeout=…")


class NotLeader(AioleaseError):
    """There is no live leadership around the running task: call this inside ``async with leadership(…)``."""

    def __init__(self) -> None:
        super().__init__("no leadership is held by the running task; call this inside `async with leadership(…)`")


class LeadershipLost(AioleaseError):
    """The term ended before its work did. What is not yet done must not be done by this process.

    Attributes:
        name: The lease.
        holder: The identity of the term that ended.
        token: Its fencing token.
        reason: ``"expired"``, ``"taken"``, ``"ineligible"``, ``"resigned"`` or ``"error"``.
    """

    def __init__(self, name: str, holder: str, token: int, reason: LossReason) -> None:
        self.name = name
        self.holder = holder
        self.token = token
        self.reason = reason
        super().__init__(f"lost leadership of {name!r} (term {token}): {reason}: {_REASONS[reason]}")


class CommitUnknown(AioleaseError):
    """A COMMIT was sent and its answer was lost: the transaction took effect as a whole, or not at all.

    Look in the database which it was, or make the work such that it may be done again.

    Attributes:
        store: Which database, without its password.
        problem: What happened.
    """

    def __init__(self, store: str, problem: str) -> None:
        self.store = store
        self.problem = problem
        super().__init__(f"{store}: the transaction was committed, or it was not: {problem}. See in the database which")


class RunAlreadyEnded(AioleaseError):
    """A final transaction of a run that is not the running attempt any more: nothing was committed.

    Its first final transaction was committed, though the answer may have been lost; or somebody called
    ``aiolease settle`` while it ran, or changed the ledger by hand.

    Attributes:
        job: The job's name.
        tick: The run's tick.
        attempt: The attempt that wanted to commit.
    """

    def __init__(self, job: str, tick: datetime, attempt: int) -> None:
        self.job = job
        self.tick = tick
        self.attempt = attempt
        super().__init__(
            f"attempt {attempt} of {job!r} at {tick:%Y-%m-%d %H:%M:%S} is over in the ledger, nothing was committed. "
            "Make one final transaction per run, the last thing it does"
        )


_ENDED = (
    "the block of a fenced transaction ended the transaction itself. Leave out commit(), rollback(), BEGIN, LOCK "
    "TABLES and DDL statements, such as CREATE or ALTER"
)
NOT_BEGUN = "fence() found no transaction on this connection. Begin one before it, or leave out autocommit"


class TransactionEnded(AioleaseError):
    """The block of a fenced transaction ended it: what it had written by then is committed or undone, unfenced.

    ``commit()``, ``rollback()``, ``BEGIN``, ``LOCK TABLES`` and every DDL statement do that: leave them out. On
    PostgreSQL a statement that failed does, whose error was swallowed; DDL does not.

    Attributes:
        store: Which database, without its password.
    """

    def __init__(self, store: str, problem: str | None = None) -> None:
        self.store = store
        super().__init__(f"{store}: {problem or _ENDED}")


def former_run_ended() -> type[RunAlreadyEnded]:
    """What a module gives that is asked for `RunEnded`, which was too like the event `RunFinished`; warns who asks."""
    warnings.warn("RunEnded has been renamed: use RunAlreadyEnded", DeprecationWarning, stacklevel=3)
    return RunAlreadyEnded


def __getattr__(name: str) -> Any:
    if name == "RunEnded":
        return former_run_ended()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
