"""Leader election and scheduled jobs for async Python, on the MySQL, MariaDB, PostgreSQL or SQLite that people run.

A fleet of identical processes agrees, through one row of the database, on one leader; jobs run only there::

    async with leadership(pool) as lead:      # waits until elected
        await jobs.run(lead)                  # cancelled when the lease is lost

    await jobs.serve("sqlite:///jobs.db")     # the same for ever: elected, lost, elected again

The specification in brief:

* A claim or a renewal that was sent at the local time ``t`` lets this process act until ``t + renew_deadline`` (25 s),
  by a clock that counts suspension. The database lets another in no earlier than ``t + lease_duration`` (30 s), by its
  own clock and by that of the one who waits. What lies between is the time that cancelled work has to unwind.
* The work is cancelled, awaited, and only then is the lease released; it is renewed until then. A waiting process takes
  over within milliseconds of a release, and as the lease expires after a crash.
* Every term has a token, higher than all before it.
* A failed renewal is tried again until the deadline. Only a row that shows the term to be over ends it at once.
* Once a newer term has begun, nothing fenced by an older term can commit. Before a run starts, its tick is claimed in a
  fenced transaction, in the ledger: a tick is run once, whatever becomes of its leader, and none is lost in a failover.

Not promised: a process that is frozen, or blocked in a thread, may run on for a while after its lease. After a crash
nobody leads until the lease has expired. Nothing is balanced: the first process up may win every lease.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from aiolease._election.campaign import Campaign
    from aiolease._election.elect import leadership, run_as_leader
    from aiolease._election.leadership import Leadership, current_leadership
    from aiolease._election.status import CampaignStatus
    from aiolease._jobs.registry import JobRegistry
    from aiolease._jobs.run import JobRun
    from aiolease._jobs.standing import JobStanding
    from aiolease._logging import RunFilter, use_stdlib_logging
    from aiolease._settings import LeaseSettings
    from aiolease.errors import (
        AioleaseError,
        CommitUnknown,
        ConfigurationError,
        DuplicateJob,
        GiveUp,
        InvalidJob,
        InvalidSchedule,
        LeadershipLost,
        LeaseHeld,
        NotLeader,
        RequestRefused,
        RunAlreadyEnded,
        SchemaMissing,
        StoreRejected,
        StoreUnavailable,
        TransactionEnded,
    )
    from aiolease.events import (
        BodyStuck,
        Elected,
        Event,
        Following,
        JobsSeen,
        Joined,
        Leaderless,
        LedgerFailed,
        LoopBlocked,
        Lost,
        Notice,
        Overdue,
        Released,
        ReleaseFailed,
        Renewed,
        RenewFailed,
        Resigned,
        RunFinished,
        RunStarted,
        TickSkipped,
        TicksMissed,
        UnknownJobs,
        Waiting,
    )
    from aiolease.stores import open_store
    from aiolease.stores.contract import LeaseStore
    from aiolease.stores.records import Lease, RunRecord

__version__ = "0.1.0"

__all__ = [
    "AioleaseError",
    "BodyStuck",
    "Campaign",
    "CampaignStatus",
    "CommitUnknown",
    "ConfigurationError",
    "DuplicateJob",
    "Elected",
    "Event",
    "Following",
    "GiveUp",
    "InvalidJob",
    "InvalidSchedule",
    "JobRegistry",
    "JobRun",
    "JobStanding",
    "JobsSeen",
    "Joined",
    "Leaderless",
    "Leadership",
    "LeadershipLost",
    "Lease",
    "LeaseHeld",
    "LeaseSettings",
    "LeaseStore",
    "LedgerFailed",
    "LoopBlocked",
    "Lost",
    "NotLeader",
    "Notice",
    "Overdue",
    "ReleaseFailed",
    "Released",
    "RenewFailed",
    "Renewed",
    "RequestRefused",
    "Resigned",
    "RunAlreadyEnded",
    "RunFilter",
    "RunFinished",
    "RunRecord",
    "RunStarted",
    "SchemaMissing",
    "StoreRejected",
    "StoreUnavailable",
    "TickSkipped",
    "TicksMissed",
    "TransactionEnded",
    "UnknownJobs",
    "Waiting",
    "__version__",
    "current_leadership",
    "leadership",
    "open_store",
    "run_as_leader",
    "use_stdlib_logging",
]


_HOMES: Final = {
    "Campaign": "_election.campaign",
    "CampaignStatus": "_election.status",
    "JobRegistry": "_jobs.registry",
    "JobRun": "_jobs.run",
    "JobStanding": "_jobs.standing",
    "Leadership": "_election.leadership",
    "Lease": "stores.records",
    "LeaseSettings": "_settings",
    "LeaseStore": "stores.contract",
    "RunFilter": "_logging",
    "RunRecord": "stores.records",
    "current_leadership": "_election.leadership",
    "leadership": "_election.elect",
    "open_store": "stores",
    "run_as_leader": "_election.elect",
    "use_stdlib_logging": "_logging",
}
"""Where the public names are that are neither errors nor events."""


def __getattr__(attribute: str) -> Any:
    """Imports what a name needs when the name is first used, as anyio does."""
    if attribute == "RunEnded":  # the former name of RunAlreadyEnded; this warns
        from aiolease.errors import former_run_ended

        return former_run_ended()
    if attribute in {"errors", "events", "stores"}:
        return import_module(f"aiolease.{attribute}")
    if attribute in __all__:
        if attribute in _HOMES:
            import_module("aiolease.stores")  # the package before its modules: else two threads may lock each other out
        for home in (_HOMES[attribute],) if attribute in _HOMES else ("errors", "events"):
            found = getattr(import_module(f"aiolease.{home}"), attribute, None)
            if found is not None:
                globals()[attribute] = found
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
