"""Series of skipped ticks: ticks of one job that follow one another and have one reason are one row (DESIGN rule 48).

The first of them makes the row; those after it extend the row. The series ends when a tick of the job is run, when a
tick is skipped for another reason, or when its row may be gone. If the row has grown, its end is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from aiolease._jobs.due import Skip
from aiolease._jobs.job_state import JobState, JobStates
from aiolease._jobs.plan import Plan, Series


@final
class SkippedSeries:
    """The series of skipped ticks of one registry's jobs."""

    def __init__(self, jobs: JobStates) -> None:
        self._jobs = jobs
        self._over: list[tuple[str, Skip]] = []

    def plan(self, plan: Plan, state: JobState, skipped: Sequence[Skip], *, runs: bool) -> None:
        """Has skipped ticks that continue the series extend its row.

        Args:
            plan: The plan that writes them.
            state: How the job stands.
            skipped: Its skipped ticks, in their order.
            runs: True if later ticks of the job are run: that ends the series.
        """
        if not skipped and state.series is None:
            return
        steps: list[Series | None] = []
        for number, skip in enumerate(skipped):
            before = state.series
            if number == 0 and before is not None and continues(state, skip):
                plan.batch.extends[state.job.name, skip.last] = before.last
                steps.append(Series(before.first, skip.last, before.count + skip.count, skip.reason, grown=True))
            else:
                steps.append(Series(skip.first, skip.last, skip.count, skip.reason))
        plan.series[state.job.name] = [*steps, None] if runs else steps

    def written(self, plan: Plan) -> None:
        """Notes what a plan that was written made of the series."""
        for name, steps in plan.series.items():
            state = self._jobs[name]
            for series in steps:
                if series is None or not series.grown:
                    self.end(state)
                state.series = series

    def refused(self, plan: Plan) -> None:
        """Ends the series that a refused plan was to extend: perhaps the row is gone."""
        for name, _ in plan.batch.extends:
            self.end(self._jobs[name])

    def read(self, state: JobState) -> None:
        """Keeps the series after a reading only if its last tick is the newest settled one: its row may be lost."""
        if state.series is not None and (
            state.job.name in self._jobs.aside or state.settled_until != state.series.last
        ):
            self.end(state)

    def end(self, state: JobState) -> None:
        """Ends the series of a job."""
        series, state.series = state.series, None
        if series is not None and series.grown:
            self._over.append((state.job.name, Skip(series.first, series.last, series.count, series.reason)))

    def end_all(self) -> None:
        """Ends all series: the term is over."""
        for state in self._jobs.values():
            self.end(state)

    def take_over(self) -> list[tuple[str, Skip]]:
        """The series that have ended since the last call, and were longer than was told."""
        over, self._over = self._over, []
        return over


def continues(state: JobState, skip: Skip) -> bool:
    """True if skipped ticks follow directly on the job's series, for the same reason."""
    series = state.series
    return series is not None and series.last == state.settled_until and series.reason == skip.reason
