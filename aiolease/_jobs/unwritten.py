"""What the ledger does not know yet: changes that wait to be written, and what is not known of runs.

1. A change waits for the next batch.
2. A run is postponed: nothing of it took effect, and after a pause it is queued anew.
3. A run is in doubt: the answer to its final commit was lost. The ledger says how it ended.
4. A run was to start, and the answer to its claim was lost: the ledger may call it running, but it is not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import final

from aiolease._jobs.execution import Execution
from aiolease._jobs.plan import Plan
from aiolease.stores.batch import Again, Change
from aiolease.stores.records import Place, RunKey, RunRecord


@final
class Unwritten:
    """What the ledger of one term does not know yet.

    Attributes:
        postponed: Runs that are to be queued anew after a pause, each with the change that queues it.
        unanswered: Runs that were to start, each with what it is queued again with: the ledger may call them running.
    """

    def __init__(self) -> None:
        self._changes: list[Change] = []
        self.postponed: dict[Place, Change] = {}
        self.unanswered: dict[RunKey, Again | None] = {}
        self._in_doubt: dict[Place, Execution] = {}
        self._committed: set[RunKey] | None = None

    @property
    def changes(self) -> list[Change]:
        """The changes that wait, in their order."""
        return self._changes

    def add(self, change: Change) -> None:
        """Has a change written with the next batch."""
        self._changes.append(change)

    def next_changes(self, aside: Collection[str], most: int) -> list[Change]:
        """The changes that go into the next batch: at most so many, none of a job that is set aside."""
        return [change for change in self._changes if change.key.job not in aside][:most]

    def written(self, changes: Iterable[Change]) -> None:
        """Forgets changes that were written."""
        done = set(map(id, changes))
        self._changes = [change for change in self._changes if id(change) not in done]

    def forget_job(self, job: str) -> None:
        """Forgets the changes of a job, whose rows cannot be written."""
        self._changes = [change for change in self._changes if change.key.job != job]

    def withdraw(self, job: str, why: str) -> bool:
        """Has the runs of a job fail that are to be begun anew; returns True if some are to be queued at all."""
        found = False
        for place, change in [*self.postponed.items()]:
            if place[0] == job:
                del self.postponed[place]
                self._changes.append(change)
        for number, change in enumerate(self._changes):
            if change.key.job != job or change.status != "queued":
                continue
            found = True
            if change.attempt > change.key.attempt:  # else it has not begun, and goes back to where it was
                failed = Change(key=change.key, was=change.was, status="failed", attempt=change.key.attempt, error=why)
                self._changes[number] = failed
        return found

    # -- runs that are postponed, or were to start

    def postpone(self, place: Place, change: Change) -> None:
        """Keeps the change that queues a run anew until it is `resumed`."""
        self.postponed[place] = change

    def resume(self, place: Place) -> bool:
        """Queues a postponed run again; returns False if the run is not postponed."""
        if (change := self.postponed.pop(place, None)) is None:
            return False
        self.add(change)
        return True

    def may_be_claimed(self, plan: Plan) -> None:
        """Notes that the runs of a plan do not start, although the ledger may call them running."""
        self.unanswered.update(plan.starting())

    def hand_back(self) -> None:
        """Queues for the next term what has not begun: postponed runs, and runs that were perhaps claimed."""
        self._changes += self.postponed.values()
        self.postponed.clear()
        self._changes += [handed_back(key, again) for key, again in self.unanswered.items()]

    # -- final commits

    def doubt(self, place: Place, execution: Execution) -> None:
        """Keeps a run whose final commit went unanswered: it may have worked."""
        self._in_doubt[place] = execution

    def doubted(self) -> list[Place]:
        """The runs in doubt that the ledger can decide: none of their changes waits to be written."""
        pending = {(change.key.job, change.key.tick) for change in self._changes}
        return [place for place in self._in_doubt if place not in pending]

    def resolve(self, doubted: Iterable[Place], found: Iterable[RunRecord]) -> list[Execution]:
        """Ends the doubt about some runs, whose rows were read; returns those whose final commit has worked."""
        done = {(run.job, run.tick) for run in found if run.status == "succeeded"}
        executions = [(place, self._in_doubt.pop(place)) for place in doubted]
        return [execution for place, execution in executions if place in done]

    def start_reading(self) -> set[RunKey]:
        """Collects the runs that their final transactions end, from now on: a reading may not show it."""
        self._committed = set()
        return self._committed

    def end_reading(self) -> None:
        """Ends the collecting, which would otherwise fill the memory."""
        self._committed = None

    def was_committed(self, key: RunKey) -> None:
        """Notes that a final transaction has ended a run."""
        if self._committed is not None:
            self._committed.add(key)


def handed_back(key: RunKey, again: Again | None) -> Change:
    """A run that was claimed, and has not begun: it waits its turn again."""
    return Change(key=key, was="running", status="queued", attempt=key.attempt, again=again)


def plain(changes: Iterable[Change]) -> list[Change]:
    """The changes with their errors in ASCII: perhaps it is the text of an error that cannot be written."""
    return [
        replace(
            change,
            error=change.error and ascii(change.error),
            again=change.again and replace(change.again, line=change.again.line and ascii(change.again.line)),
        )
        for change in changes
    ]
