"""Campaigns: elected, lost, and elected again, for ever.

::

    starting ──▶ following ◀──────────▶ leading
                     │                     │
                     └──▶ stopped ◀── draining        failed: an error of `background`, which goes on trying
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypedDict, final

from aiolease._clock import current_clock
from aiolease._election.candidate import Candidate
from aiolease._election.claim import StayOut
from aiolease._election.health import Eligible, Health
from aiolease._election.leader import lead
from aiolease._election.leadership import Leadership
from aiolease._election.looks import Looks
from aiolease._election.signals import handled
from aiolease._election.status import CampaignStatus, Lookout, State
from aiolease._election.timings import OnStall, Timings, check_stall
from aiolease._election.vacancy import Vacancy
from aiolease._functions import check_eligible
from aiolease._logging import emit
from aiolease._waiting import wait_shielded
from aiolease.errors import LeadershipLost
from aiolease.events import Joined, Notice, Observer, describe
from aiolease.stores import Store, Target, check_target, open_store

_ENTER_LIMIT = 5.0
"""Seconds that an application's start waits for the first attempt."""

_LONGEST_PAUSE = 60.0
"""Seconds between two tries of a campaign that keeps failing."""


class Options(TypedDict, total=False):
    """The options of `leadership` that hold for every term of a campaign."""

    lease_duration: float
    heartbeat_interval: float | None
    renew_deadline: float | None
    retry_interval: float | None
    eligible: Eligible | None
    on_stall: OnStall
    on_event: Observer | None


@final
class Campaign:
    """The part of this process in the election of one lease: `JobRegistry.background` gives it.

    Attributes:
        name: The lease.
        target: The database, as it was given; a URL may hold a password.
        lease_duration: For how long this process claims the lease, in seconds.
    """

    def __init__(
        self,
        target: Target,
        name: str,
        body: Callable[[Leadership, asyncio.Event], Awaitable[None]],
        options: Options,
        lookout: Callable[[str, Timings, Observer | None], Lookout] | None = None,
    ) -> None:
        check_target(target, name)
        known: dict[str, Any] = dict(options)
        self._eligible = known.pop("eligible", None)
        self._observer = known.pop("on_event", None)
        check_eligible(self._eligible)
        self._on_stall = check_stall(known.pop("on_stall", "log"))
        self._timings = Timings.make(**known)  # an unknown option is a TypeError
        self.target = target
        self.name = name
        self._body = body
        self.lease_duration = duration = self._timings.lease_duration
        self._health = Health(vacancy=Vacancy(duration))
        self._looks = Looks(lookout and lookout(name, self._timings, self._observer), self._health, duration)
        self._state: State = "starting"
        self._lead: Leadership | None = None
        self._failure: str | None = None
        self._proven = False
        self._stopping = asyncio.Event()
        self._election: asyncio.Timeout | None = None

    @property
    def is_leader(self) -> bool:
        """Whether this process leads at this moment; see `Leadership.is_leader`."""
        return self._lead is not None and self._lead.is_leader

    @property
    def leadership(self) -> Leadership | None:
        """The running term, ``None`` while this process does not lead."""
        return self._lead if self.is_leader else None

    def resign(self) -> None:
        """Ends the running term, if there is one; see `Leadership.resign`."""
        if self._lead is not None:
            self._lead.resign()

    def status(self) -> CampaignStatus:
        """How the campaign stands, from memory: no I/O."""
        contact = self._health
        starting = self._state == "following" and contact.last_contact is None
        return CampaignStatus(
            state="starting" if starting else self._state,
            leader=contact.leader,
            token=contact.token,
            last_contact=contact.last_contact,
            error=contact.error
            or (self._lead and self._lead.term.trouble)
            or self._looks.trouble(self._state)
            or (self._failure if self._state == "failed" else None),
        )

    def __repr__(self) -> str:
        return f"<Campaign {self.name!r}: {self._state}>"

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Ends the campaign in order: no new term, and the body is told to drain. `run` returns when it has."""
        self._stopping.set()
        if self._election is not None:
            self._election.reschedule(asyncio.get_running_loop().time())
        if self._lead is not None:
            self._state = "draining"

    async def run(self) -> None:
        """Campaigns until it is stopped. See `run_as_leader` for what it raises."""
        emit(Joined(lease=self.name, jobs=self._looks.jobs), self._observer)
        try:
            async with open_store(self.target) as store:
                stay_out: StayOut | None = None
                looking = asyncio.create_task(self._looks.go_on(store, lambda: self._state))
                try:
                    while not self._stopping.is_set():
                        stay_out = await self._one_term(store, stay_out)
                finally:
                    looking.cancel()
                    cancelled = await wait_shielded(looking)
                    if cancelled is not None:
                        raise cancelled
        except Exception:
            self._state = "failed"
            raise
        except BaseException:  # cancelled
            self._state = "stopped"
            raise
        self._state = "stopped"

    async def run_until_signalled(self, drain_timeout: float | None) -> None:
        """Campaigns until SIGTERM or SIGINT: the first request lets the body drain, the second cancels it.

        Args:
            drain_timeout: Seconds that the body takes to drain at most; ``None`` if it cannot: the first request then
                cancels it, the second cancels it again.
        """
        loop, name = asyncio.get_running_loop(), self.name
        at_once, again = asyncio.timeout(None), asyncio.timeout(None)

        def drain(number: str) -> None:
            if self._lead is None:
                doing = "this process does not lead, no job of it runs"
            elif drain_timeout is None:
                doing = "the body is cancelled"
            else:
                doing = f"running jobs have {drain_timeout:g} s, a second signal cancels them"
            say("INFO", f"{number}: {name!r} stops; {doing}")
            self.stop()
            if drain_timeout is None:
                at_once.reschedule(loop.time())

        def cancel(number: str) -> None:
            what = "its body again" if drain_timeout is None else "its jobs"
            say("WARNING", f"{number} again: {name!r} cancels {what}")
            (again if drain_timeout is None else at_once).reschedule(loop.time())

        def say(severity: str, text: str) -> None:
            emit(Notice(lease=name, severity=severity, text=text), self._observer)

        try:
            async with again, at_once:
                with handled([drain, cancel]):
                    await self.run()
        except TimeoutError:
            if not (at_once.expired() or again.expired()):
                raise

    async def _one_term(self, store: Store, stay_out: StayOut | None) -> StayOut | None:
        """Waits for the election and runs one term; returns whether to keep out of the next election."""
        candidate = Candidate(
            store,
            self.name,
            self._timings,
            eligible=self._eligible,
            observer=self._observer,
            health=self._health,
            stay_out=stay_out,
            proven=self._proven,
        )
        self._state = "following"
        try:
            async with asyncio.timeout(None) as self._election:
                claim = await candidate.elect()
        except TimeoutError:
            return None  # stopped: the loop sees it
        finally:
            self._election = None
        self._proven, self._failure = True, None
        try:
            async with lead(
                store,
                claim,
                self._timings,
                eligible=self._eligible,
                on_stall=self._on_stall,
                observer=self._observer,
                health=self._health,
            ) as running:
                self._lead, self._state = running, "draining" if self._stopping.is_set() else "leading"
                await self._body(running, self._stopping)
        except LeadershipLost as lost:
            if lost.holder != claim.lease.holder:
                raise
            if lost.__cause__ is not None:
                raised = describe(lost.__cause__)
                text = f"{self.name!r} (term {lost.token}): the body ended with {raised} (holder {lost.holder})"
                notice = Notice(lease=self.name, holder=lost.holder, token=lost.token, severity="ERROR", text=text)
                emit(notice, self._observer)
            return None
        finally:
            self._lead = None
            if self._health.leader == claim.lease.holder:
                self._health.leader = None  # this term leads no more; another one may
        return StayOut(claim.lease.token, current_clock()() + 2 * self._timings.retry_interval)

    async def _for_ever(self, entered: asyncio.Event) -> None:
        """Runs the campaign so that no failure harms its host, once the host has entered: it goes on trying."""
        pause, clock = 1.0, asyncio.get_running_loop().time
        while not self._stopping.is_set():
            began = clock()
            try:
                await self.run()
            except Exception as error:
                if clock() - began > _LONGEST_PAUSE:
                    pause = 1.0  # it had worked for a while
                if not entered.is_set():
                    raise
                self._failure, self._state = describe(error), "failed"
                text = f"the campaign for {self.name!r} failed, and is tried again in {pause:.0f} s: {describe(error)}"
                emit(Notice(lease=self.name, severity="CRITICAL", text=text), self._observer)
            try:
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            except TimeoutError:
                pause = min(pause * 2, _LONGEST_PAUSE)
        self._state = "stopped"

    @asynccontextmanager
    async def in_background(self) -> AsyncIterator[Campaign]:
        """Runs the campaign in a task of its own while the block runs; see `JobRegistry.background`.

        The task is this object's, not the entering task's: the block may be left in another one.
        """
        entered = asyncio.Event()
        task = asyncio.create_task(self._for_ever(entered), name=f"aiolease {self.name}")
        attempted = asyncio.create_task(self._health.attempted.wait())
        try:
            await asyncio.wait([task, attempted], timeout=_ENTER_LIMIT, return_when=asyncio.FIRST_COMPLETED)
            attempted.cancel()
            if task.done():
                task.result()
            entered.set()
            try:
                yield self
            except asyncio.CancelledError:
                task.cancel()
                raise
        finally:
            attempted.cancel()
            self.stop()
            try:
                await asyncio.wait([task, attempted])
            except asyncio.CancelledError:  # while it drains, or an anyio scope around the block
                task.cancel()
                await wait_shielded(task)
                raise
            finally:
                if task.done() and not task.cancelled():
                    task.exception()  # it was logged when it happened, or is being raised
