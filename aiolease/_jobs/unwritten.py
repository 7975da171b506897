"""What the ledger does not know yet: changes that wait to be written, and what is not known of runs.

1. A change waits for the next batch.
2. A run is postponed: nothing of it took effect, and after a pause it is queued anew.
3. A run is in doubt: the answer to its final commit was lost. What the ledger calls it says how it ended.
4. A run was to start, and the answer to its claim was lost: the ledger may call it running, and it is not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import final

from aiolease._jobs.execution import Execution
from aiolease._jobs.plan import Plan
from aiolease.stores.batch import Change
from aiolease.stores.records import Place, RunKey, RunRecord


@final
class Unwritten:
    """What the ledger of one term does not know yet.

    Attributes:
        postponed: Runs that are to be queued anew after a pause, each with the change that queues it.
        unanswered: Runs that were to start: the ledger may call them running.
    """

    def __init__(self) -> None:
        self._changes: list[Change] = []
        self.postponed: dict[Place, Change] = {}
        self.unanswered: set[RunKey] = set()
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

    # -- runs that are postponed, or were to start

    def postpone(self, place: Place, change: Change) -> None:
        """Keeps the change that queues a run anew until it is `resumed`."""
        self.postponed[place] = change

    def resume(self, place: Place) -> bool:
        """Has a postponed run queued anew; says whether it was one."""
        if (change := self.postponed.pop(place, None)) is None:
            return False
        self.add(change)
        return True

    def may_be_claimed(self, plan: Plan) -> None:
        """Notes that the runs of a plan do not start, although the ledger may call them running."""
        self.unanswered.update(plan.starting())

    def hand_back(self) -> None:
        """Has all that did not begin queued for the next term: what is postponed, what was perhaps claimed."""
        self._changes += self.postponed.values()
        self.postponed.clear()
        self._changes += map(handed_back, self.unanswered)

    # -- final commits

    def doubt(self, place: Place, execution: Execution) -> None:
        """Keeps a run whose final commit went unanswered: it may have worked."""
        self._in_doubt[place] = execution

    def doubted(self) -> list[Place]:
        """The runs in doubt of which the ledger's word counts: no change of them waits."""
        pending = {(change.key.job, change.key.tick) for change in self._changes}
        return [place for place in self._in_doubt if place not in pending]

    def resolve(self, doubted: Iterable[Place], found: Iterable[RunRecord]) -> list[Execution]:
        """Ends the doubt about some runs, whose rows were read; returns those whose final commit has worked."""
        left = {(run.job, run.tick) for run in found if run.status in {"queued", "running"}}
        executions = [(place, self._in_doubt.pop(place)) for place in doubted]
        return [execution for place, execution in executions if place not in left]

    def start_reading(self) -> set[RunKey]:
        """Collects the runs that their final transactions end, from now on: a reading may not show it."""
        self._committed = set()
        return self._committed

    def end_reading(self) -> None:
        """Ends the collecting: what would be collected for ever would fill the memory."""
        self._committed = None

    def was_committed(self, key: RunKey) -> None:
        """Notes that a final transaction has ended a run."""
        if self._committed is not None:
            self._committed.add(key)


def handed_back(key: RunKey) -> Change:
    """A run that was claimed, and has not begun: it waits its turn again."""
    return Change(key=key, was="running", status="queued", attempt=key.attempt)


def plain(changes: Iterable[Change]) -> list[Change]:
    """The changes with their errors in ASCII: perhaps it is the text of an error that cannot be written."""
    return [replace(change, error=change.error and ascii(change.error)) for change in changes]
