"""The registry: which jobs there are, and the ways to run them: in one term, for ever, behind an application."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar, Unpack, final

from aiolease._election.campaign import Campaign, Options
from aiolease._election.leadership import Leadership
from aiolease._functions import argument, is_async
from aiolease._jobs.job import Job, JobOptions, check_jitter, check_options
from aiolease._jobs.lookout import Lookout
from aiolease._jobs.rivals import alone_on
from aiolease._jobs.run import Around, JobRun
from aiolease._jobs.schedule import Cron, Every, Schedule
from aiolease._jobs.terms import Terms
from aiolease._logging import emit
from aiolease._names import check_name
from aiolease.errors import ConfigurationError, DuplicateJob, InvalidJob
from aiolease.events import Joined, Notice
from aiolease.stores import Target

P = ParamSpec("P")
R = TypeVar("R")
JobFunction = TypeVar("JobFunction", bound=Callable[..., object])


@final
class JobRegistry:
    """The jobs of an application. Make one, decorate functions, and `run`, `serve` or put it in the `background`.

    Args:
        timezone: The zone of `cron` expressions that name none of their own, such as ``"America/New_York"``.
        max_running: How many runs may go on at once; those beyond wait their turn. ``None`` for no limit.
        max_threads: How many ``def`` jobs may run in threads at once, those that an earlier term left behind included;
            those beyond wait their turn. As with `max_running`, each lease that the registry leads counts by itself.
        around: What is entered around every run, in the run's own task: a function of the `JobRun` that gives an async
            context manager, for traces, sessions, check-ins. What it yields is ``run.resource``; what it raises is the
            run's failure; it is cancelled and awaited like the job, and counts for the job's `timeout`.
        history: How many finished runs of each job the ledger keeps, and up to a tenth more for a while. ``None`` for
            all: then the table grows for ever.

    Raises:
        ConfigurationError: One of them cannot work.
    """

    def __init__(
        self,
        timezone: str = "UTC",
        max_running: int | None = None,
        history: int | None = 100,
        max_threads: int | None = 32,
        around: Around | None = None,
    ) -> None:
        self._terms = Terms(max_running=max_running, max_threads=max_threads, history=history, around=around)
        Cron("@daily", timezone)  # refuses an unknown zone
        self._timezone = timezone
        self.around = around
        self.registered: dict[str, Job] = {}
        """The jobs by name: for aiolease itself."""

    def every(
        self,
        interval: float | timedelta,
        *,
        name: str | None = None,
        **options: Unpack[JobOptions],
    ) -> Callable[[JobFunction], JobFunction]:
        """Registers a job that runs every `interval`: seconds, or a timedelta.

        Ticks lie on a grid that is anchored at the Unix epoch, so that a new leader keeps the rhythm.

        Args:
            interval: From 1 ms.
            name: The job's name, ``__name__`` by default: the ledger's key. Keep it for years.
            **options: See `JobOptions`: ``missed``, ``max_age``, ``overlap``, ``timeout``, ``rerun_lost``,
                ``retries``, ``backoff``, ``jitter``, ``late_after``.

        Raises:
            InvalidSchedule: The interval cannot work.
            InvalidJob: The function cannot be a job.
            DuplicateJob: The name is taken.
        """
        return self._register(Every(interval), name, options)

    def cron(
        self,
        expression: str,
        *,
        timezone: str | None = None,
        name: str | None = None,
        **options: Unpack[JobOptions],
    ) -> Callable[[JobFunction], JobFunction]:
        """Registers a job by a cron expression.

        Days match if either field of days does, unless one begins with ``*``: then both must. The first Monday of a
        month is ``0 9 * * MON#1``, and not ``0 9 1-7 * MON``. ``L`` is the last day of the month, ``LW`` its last
        weekday, ``FRIL`` its last Friday; ranges may wrap (``22-2``, ``FRI-MON``).

        A job is of fixed time if neither minute nor hour begins with ``*``: it runs once for each reading of the clock
        on the days on which the clocks change. Others follow elapsed time.

        Args:
            expression: Five fields, six with seconds first, or a name such as ``@hourly``.
            timezone: The zone of the expression; the registry's by default.
            name: See `every`, as for the options.
            **options: See `every`.

        Raises:
            InvalidSchedule: The expression cannot work, can never fire, or its zone is unknown.
            InvalidJob: The function cannot be a job.
            DuplicateJob: The name is taken.
        """
        return self._register(Cron(expression, timezone or self._timezone), name, options)

    def _register(
        self, schedule: Schedule, name: str | None, options: JobOptions
    ) -> Callable[[JobFunction], JobFunction]:
        if unknown := options.keys() - JobOptions.__annotations__.keys():
            raise TypeError(f"a job has no option {', '.join(sorted(unknown))}")

        def register(function: JobFunction) -> JobFunction:
            key = name if name is not None else getattr(function, "__name__", "")
            if not key or key == "<lambda>":
                raise InvalidJob(key or repr(function), "it has no name of its own, give it one with name=…")
            try:
                check_name(key)
            except ConfigurationError as error:
                raise InvalidJob(key, f"{error.problem}; give it another name with name=…") from None
            check_options(key, options)
            check_jitter(key, options.get("jitter", 0.0), schedule)
            if key in self.registered:
                raise DuplicateJob(key)
            for term in self._terms.running:
                text = f"{key!r} was registered while the jobs run: it starts with the next term"
                emit(Notice(**term.lead.term.facts(), severity="WARNING", text=text), term.lead.term.observer)
            given = argument(key, function, JobRun)
            self.registered[key] = Job(name=key, function=function, schedule=schedule, argument=given, **options)
            return function

        return register

    def __repr__(self) -> str:
        return f"<JobRegistry of {len(self.registered)} jobs{', leading' if self.is_leader else ''}>"

    @property
    def is_leader(self) -> bool:
        """Whether a term of this registry runs in this process."""
        return any(term.lead.is_leader for term in self._terms.running)

    def leader_only(self, function: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R | None]]:
        """Makes a coroutine function run only where this registry leads, for calls that every process makes.

        While a term of this registry runs in this process, a call runs within that term, and is cancelled with it:
        its caller gets `LeadershipLost`. Otherwise it returns ``None`` at once, with a DEBUG line.

        Raises:
            InvalidJob: It is not a coroutine function; nothing else could be cancelled.
        """
        if not is_async(function):
            raise InvalidJob(getattr(function, "__name__", repr(function)), "leader_only needs an `async def` function")

        @functools.wraps(function)
        async def call(*args: P.args, **kwargs: P.kwargs) -> R | None:
            term = self._terms.open
            if term is None:
                called = getattr(function, "__name__", repr(function))
                text = f"{called!r} was not called: this process does not lead"
                emit(Notice(lease="", severity="DEBUG", text=text))
                return None
            return await term.calls.within(functools.partial(function, *args, **kwargs))

        return call

    async def run(self, lead: Leadership, *, context: Any = None, drain_timeout: float | None = None) -> None:
        """Runs the jobs as they fall due, until it is cancelled: by the end of the term, or from outside.

        Await it in the block itself: of a task of its own the block, and so the release, would not await the end.

        Args:
            lead: The term, from ``async with leadership(…) as lead``.
            context: Any object; jobs find it as ``run.context``.
            drain_timeout: Deprecated, and without effect: this ends by being cancelled, and then nothing drains.

        Raises:
            LeadershipLost: The term has ended already.
            ConfigurationError: Jobs of these names run in this term already.
        """
        term = lead.term
        emit(Joined(**term.facts(), jobs=tuple(sorted(self.registered))), term.observer)
        await self._terms.run(self.registered, lead, asyncio.Event(), context=context, drain_timeout=0.0)

    def _campaign(self, target: Target, name: str, context: Any, drain_timeout: float, options: Options) -> Campaign:
        if not (isinstance(drain_timeout, int | float) and 0 <= drain_timeout < math.inf):
            raise ConfigurationError("drain_timeout", drain_timeout, "use a finite number of seconds, from 0")
        return Campaign(
            target,
            name,
            functools.partial(self._terms.run, self.registered, context=context, drain_timeout=drain_timeout),
            options,
            functools.partial(Lookout, self.registered),
        )

    async def serve(
        self,
        target: Target,
        name: str = "default",
        *,
        context: Any = None,
        drain_timeout: float = 10.0,
        handle_signals: bool = False,
        **options: Unpack[Options],
    ) -> None:
        """Runs the jobs in every term of this process, for ever: elected, lost, elected again.

        Args:
            target: See `leadership`, as for the options.
            name: The lease.
            context: Any object; jobs find it as ``run.context``.
            drain_timeout: Seconds that running jobs may take to finish after the first signal.
            handle_signals: Whether SIGTERM and SIGINT end it: the first lets running jobs finish and releases the
                lease, a second cancels them, if it comes a second later or more: those of a process group are one
                request. `serve` then returns, and handlers set with `signal` are back. A forked child gets back those
                handlers, too. For programs of their own, not for a web server.
            **options: See `leadership`.

        Raises:
            ConfigurationError: A setting cannot work, or another registry with other jobs does the same on this lease.
            StoreRejected: And `SchemaMissing`: by the first attempt only; later they are logged and tried again.
        """
        campaign = self._campaign(target, name, context, drain_timeout, options)
        with alone_on(target, name, self.registered):
            await (campaign.run_until_signalled(drain_timeout) if handle_signals else campaign.run())

    @asynccontextmanager
    async def background(
        self,
        target: Target,
        name: str = "default",
        *,
        context: Any = None,
        drain_timeout: float = 10.0,
        **options: Unpack[Options],
    ) -> AsyncIterator[Campaign]:
        """Does the same as `serve` behind an application, while the block runs: for a lifespan, or a fixture.

        Enters after the first attempt, or after 5 s. From then on no failure of it harms the block: it is logged as
        CRITICAL, `Campaign.status` says ``"failed"``, and it is tried again. Leaving the block drains; being cancelled
        does not. The block may be left in another task than it was entered in.

        Args:
            target: See `serve`, as for the other arguments.
            name: The lease.
            context: Any object; jobs find it as ``run.context``.
            drain_timeout: Seconds that running jobs may take to finish when the block ends.
            **options: See `leadership`.

        Raises:
            ConfigurationError: A setting cannot work, or another registry with other jobs does the same on this lease.
            StoreRejected: The database refused the first attempt.
            SchemaMissing: The tables are missing and cannot be created.
        """
        campaign = self._campaign(target, name, context, drain_timeout, options)
        with alone_on(target, name, self.registered):
            async with campaign.in_background():
                yield campaign
