"""The terms that one registry leads in this process: a runner for each."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, final

from aiolease._election.leadership import Leadership
from aiolease._jobs.job import Job
from aiolease._jobs.run import Around
from aiolease._jobs.runner import Runner
from aiolease._jobs.threads import LeftThreads
from aiolease.errors import ConfigurationError


@final
class Terms:
    """The running terms of a registry, and what it keeps from one term to the next.

    Args:
        max_running: See `JobRegistry`, as for the others.
        max_threads: See `JobRegistry`.
        history: See `JobRegistry`.
        around: See `JobRegistry`.

    Attributes:
        running: The terms.

    Raises:
        ConfigurationError: One of them cannot work.
    """

    def __init__(
        self,
        *,
        max_running: int | None,
        max_threads: int | None,
        history: int | None,
        around: Around | None = None,
    ) -> None:
        for field, value in (("max_running", max_running), ("history", history), ("max_threads", max_threads)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ConfigurationError(field, value, "use a whole number from 1, or None for no limit")
        if around is not None and not callable(around):
            raise ConfigurationError("around", around, "use a function that gives an async context manager of a run")
        self.running: list[Runner] = []
        self._max_running = max_running
        self._max_threads = max_threads
        self._history = history
        self._around = around
        self._left = LeftThreads()
        self._told: dict[str, set[str]] = {}  # by lease

    @property
    def open(self) -> Runner | None:
        """The latest term that lets calls in; ``None`` if none does."""
        return next((term for term in reversed(self.running) if term.calls.lets_in), None)

    async def run(
        self,
        jobs: Mapping[str, Job],
        lead: Leadership,
        stopping: asyncio.Event,
        *,
        context: Any,
        drain_timeout: float,
    ) -> None:
        """Runs jobs in a term until it is over, or until told to stop.

        Raises:
            LeadershipLost: The term has ended already.
            ConfigurationError: Jobs of these names run in this term already.
        """
        lead.check()
        names = set(jobs)
        if twice := sorted(lead.term.jobs & names):
            raise ConfigurationError("lead", lead.token, f"jobs of these names run in this term already: {twice}")
        term = Runner(
            lead,
            jobs.values(),
            self._left,
            max_running=self._max_running,
            max_threads=self._max_threads,
            history=self._history,
            context=context,
            around=self._around,
            told=self._told.setdefault(lead.name, set()),
        )
        self.running.append(term)
        lead.term.jobs |= names
        try:
            await term.run(stopping, drain_timeout)
        finally:
            self.running.remove(term)
            lead.term.jobs -= names
