"""The invariants, proved on a journal: a stream of records in the order in which they happened, of true time.

Whoever writes the journal says what happened; this says whether it may. A kind that a journal lacks is not checked:
the tests with real processes know no true moment of a renewal. What the ledger says in the end is for `audit`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Kind = Literal[
    # of a process
    "gone",  # crashed, killed or exited: nothing of it runs any more
    "stopped",  # it stands still: a stopped process, or a suspended machine
    "resumed",  # `lasts`: how long it may take until it finds out what it missed
    "well",  # from now on it can reach the database, is fit to lead, and campaigns
    "unwell",
    # of the database: a statement took effect
    "claimed",  # `since`: the moment from which the lease counts; `lasts`: for how long
    "renewed",  # the same
    "released",
    "committed",  # a fenced transaction
    "stepped",  # the clock of the database, by `lasts` seconds
    # of a body
    "began",
    "told",  # the term has ended, and the body was cancelled; `lasts`: the time that it has to unwind
    "stuck",  # reported: it should have ended by now
    "ended",
    # of a run, with `run`
    "begun",  # its function was called
    "over",  # it has returned, or raised
    "paid",  # its effect is in the database, and counts: a final transaction took effect
]

DRIFT = 0.03
"""Two clocks that drift by 1 % each, in opposite directions, and a little more."""

POLITE = 0.7
"""How much of the time to unwind a well-behaved body takes at most; the rest is for clocks that drift."""


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt at one tick of a job."""

    job: str
    tick: datetime
    attempt: int

    def __str__(self) -> str:
        return f"{self.job} {self.tick:%H:%M:%S.%f} attempt {self.attempt}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One thing that happened. `at` and `since` are true time in seconds, the same for every process."""

    at: float
    process: str
    kind: Kind
    token: int | None = None
    since: float | None = None
    lasts: float = 0.0
    run: Run | None = None
    note: str = ""

    def __str__(self) -> str:
        term = "" if self.token is None else f" term {self.token}"
        term += "" if self.run is None else f" {self.run}"
        since = "" if self.since is None else f" since {self.since:.3f}"
        lasts = f" ({self.lasts:+.3f} s)" if self.lasts else ""
        return f"{self.at:9.3f} {self.process:>7} {self.kind}{term}{since}{lasts} {self.note}".rstrip()


class Violation(AssertionError):
    """An invariant does not hold.

    Attributes:
        trace: What had happened until then, where somebody kept it.
    """

    trace: Sequence[str] = ()


@dataclass(slots=True)
class _Body:
    token: int
    began_at: float
    told_at: float = float("inf")
    unwinds: float = 0.0
    renews: bool = False  # while it unwinds
    stuck: bool = False

    def overdue(self, at: float, share: float) -> bool:
        """Whether it has taken more than a share of its time to unwind."""
        return at > self.told_at + self.unwinds * share + 0.01


class Checker:
    """Takes records in their order, and raises `Violation` at the first that must not be.

    Args:
        takeover: The most seconds without a leader while some process is well; ``None`` does not check it.
        handover: The most seconds from a release to the next body, if some process has long been well.
        settled: For how many seconds a process must have been well to count for `handover`.
        overlapping: The jobs that may run beside themselves.
        max_running: How many runs may go on at once in a process.
    """

    def __init__(
        self,
        *,
        takeover: float | None = None,
        handover: float | None = None,
        settled: float = 0.0,
        overlapping: Collection[str] = (),
        max_running: int | None = None,
    ) -> None:
        self._max_running = max_running
        self._takeover = takeover
        self._overlapping = overlapping
        self._handover = handover
        self._settled = settled
        self._bodies: dict[str, _Body] = {}
        self._stopped: set[str] = set()
        self._resumed: dict[str, tuple[float, float]] = {}  # when, and until when it has to notice
        self._well: dict[str, float] = {}
        self._claimed = 0
        self._claimed_at: dict[int, float] = {}
        self._leases: dict[int, tuple[float, float]] = {}  # of a term: since when, and for how long
        self._begun = 0
        self._stepped_at = float("-inf")  # the clock of the database
        self._led_at = 0.0  # somebody led, or something excused that nobody did
        self._released: tuple[float, set[str]] | None = None  # and who should take over
        self._going_on: defaultdict[str, list[Run]] = defaultdict(list)  # by process
        self.begun: dict[Run, int] = {}  # every attempt whose function was called, and its term
        self.over: dict[Run, str] = {}  # how those ended that have
        self.paid: set[tuple[str, datetime]] = set()  # the ticks whose effect is there
        self.terms = 0
        self.commits = 0

    def feed(self, record: Record) -> None:
        """Checks one record against all before it.

        Raises:
            Violation: It must not be.
        """
        self._someone_leads(record.at)
        self._reported(record.at)
        getattr(self, f"_on_{record.kind}")(record)
        if len(self._bodies) > 1:
            self._one_body(record)

    def finish(self, at: float) -> None:
        """Ends the journal: until now nothing else has happened.

        Raises:
            Violation: Something should have.
        """
        self._someone_leads(at)
        self._reported(at)

    def going_on(self, process: str) -> Sequence[Run]:
        """The runs that go on in a process."""
        return self._going_on[process]

    # -- the invariants

    def _one_body(self, record: Record) -> None:
        """At most one body runs, except while a process stood still and could not know, or has reported it."""
        running = {process: body for process, body in self._bodies.items() if process not in self._stopped}
        newest = max((body.token for body in running.values()), default=0)
        for process, body in running.items():
            if body.token < newest and not self._excused(process, body, newest, record.at):
                raise Violation(f"two bodies at once: {process} still runs that of term {body.token} beside {newest}")

    def _excused(self, process: str, body: _Body, newest: int, at: float) -> bool:
        resumed_at, notice = self._resumed.get(process, (-1.0, -1.0))
        if resumed_at >= body.began_at and min(at, body.told_at) <= notice:
            return True  # it stood still at its deadline or while it unwound
        if not body.overdue(at, POLITE * (1 + DRIFT)):
            return False
        since, lasts = self._leases.get(body.token, (0.0, 0.0))
        # It was kept out as long as can be. Two steps that cancel out take up to a third off that, and a leader that
        # cannot renew tells its body as much earlier: the body is overdue all the same.
        hidden = 1 / 3 if self._stepped_at > since - lasts else 0.0
        return self._claimed_at.get(newest, at) >= since + lasts * (1 - hidden - DRIFT)

    def _reported(self, at: float) -> None:
        """A body that takes longer to unwind than it has is reported."""
        for process, body in self._bodies.items():
            stood_still = process in self._stopped or self._resumed.get(process, (-1.0, 0.0))[0] >= body.told_at
            if not body.stuck and not stood_still and body.overdue(at, 1 + DRIFT):
                raise Violation(f"{process} still runs the body of term {body.token}, and nobody has said so")

    def _someone_leads(self, at: float) -> None:
        """Somebody leads before long if anybody can, and at once after a release."""
        if any(process not in self._stopped for process in self._bodies):
            self._led_at = at
        if self._takeover is not None:
            for process, since in self._well.items():
                if at - max(since, self._led_at) > self._takeover:
                    raise Violation(f"nobody led from {self._led_at:.3f} to {at:.3f}, but {process} could have")
        if self._handover is not None and self._released is not None:
            released_at, waiting = self._released
            if at - released_at > self._handover and waiting:
                raise Violation(f"released at {released_at:.3f}, but none of {sorted(waiting)} led by {at:.3f}")

    def _written(self, record: Record) -> None:
        """A statement of a process that was not well took effect: others have to wait for its lease again."""
        if record.process not in self._well:
            self._led_at, self._released = record.at, None

    # -- what happened

    def _on_gone(self, record: Record) -> None:
        self._bodies.pop(record.process, None)
        self._going_on.pop(record.process, None)
        self._stopped.discard(record.process)
        self._on_unwell(record)

    def _on_stopped(self, record: Record) -> None:
        self._stopped.add(record.process)

    def _on_resumed(self, record: Record) -> None:
        self._stopped.discard(record.process)
        self._resumed[record.process] = (record.at, record.at + record.lasts)

    def _on_well(self, record: Record) -> None:
        self._well.setdefault(record.process, record.at)

    def _on_unwell(self, record: Record) -> None:
        self._well.pop(record.process, None)
        if self._released is not None:
            self._released = None  # it may have been the one that had won

    def _on_claimed(self, record: Record) -> None:
        assert record.token is not None
        if record.token <= self._claimed:
            raise Violation(f"token {record.token} was given after {self._claimed}")
        self._claimed = record.token
        self._claimed_at[record.token] = record.at
        if record.since is not None:
            self._kept_out(record)
        self._on_renewed(record)

    def _kept_out(self, record: Record) -> None:
        """While a body unwinds, its process goes on renewing for one lease: nobody else can claim then."""
        for process, body in self._bodies.items():
            well_since = self._well.get(process, float("inf"))
            undisturbed = body.renews and well_since <= body.told_at
            undisturbed = undisturbed and self._resumed.get(process, (-1.0, 0.0))[0] < body.began_at
            lasts = self._leases.get(body.token, (0.0, 0.0))[1]
            until = body.told_at + lasts * (1 - DRIFT)
            if undisturbed and record.token == body.token + 1 and record.process != "server" and record.at < until:
                raise Violation(f"{record.process} claimed term {record.token}, but {process} was to keep {body.token}")

    def _on_renewed(self, record: Record) -> None:
        assert record.token is not None
        if record.since is not None:
            self._leases[record.token] = (record.since, record.lasts)
            body = self._bodies.get(record.process)
            mine = body is not None and body.token == record.token and record.process in self._well
            thawed = self._resumed.get(record.process, (-1.0, -1.0))[1] + 0.5  # one may have been on its way
            if mine and body and record.at > max(body.told_at + record.lasts * (1 + DRIFT) + 1.0, thawed):
                raise Violation(f"{record.process} renews for ever for a body that does not end")
        self._written(record)

    def _on_released(self, record: Record) -> None:
        self._written(record)
        settled = {process for process, since in self._well.items() if since <= record.at - self._settled}
        self._released = (record.at, settled - {record.process})

    def _on_committed(self, record: Record) -> None:
        assert record.token is not None
        self.commits += 1
        if record.token < self._claimed:
            raise Violation(f"a commit fenced by term {record.token} took effect after term {self._claimed} had begun")

    def _on_stepped(self, record: Record) -> None:
        self._stepped_at = record.at
        self._led_at, self._released = record.at, None

    def _on_began(self, record: Record) -> None:
        assert record.token is not None
        if record.token <= self._begun:
            raise Violation(f"a body of term {record.token} began after one of term {self._begun}")
        self._begun = max(self._begun, record.token)
        self._bodies[record.process] = _Body(record.token, record.at)
        self._led_at, self._released = record.at, None
        self.terms += 1

    def _on_told(self, record: Record) -> None:
        if (body := self._bodies.get(record.process)) is not None and body.token == record.token:
            body.told_at, body.unwinds = record.at, record.lasts
            body.renews = record.note in {"resigned", "ineligible"}

    def _on_stuck(self, record: Record) -> None:
        if (body := self._bodies.get(record.process)) is not None and body.token == record.token:
            body.stuck = True

    def _on_ended(self, record: Record) -> None:
        if self._going_on[record.process]:
            going_on = ", ".join(map(str, self._going_on[record.process]))
            raise Violation(f"the body of {record.process} has ended, but not its runs: {going_on}")
        self._bodies.pop(record.process, None)

    def _on_begun(self, record: Record) -> None:
        run = record.run
        assert run is not None
        assert record.token is not None
        if run in self.begun:
            raise Violation(f"{run} ran twice")
        body = self._bodies.get(record.process)
        if body is None or body.token != record.token:
            raise Violation(f"{run} ran in {record.process}, which does not lead term {record.token}")
        if record.at > body.told_at:
            raise Violation(f"{run} ran after its term {record.token} had ended")
        if run.job not in self._overlapping and any(other.job == run.job for other in self._going_on[record.process]):
            raise Violation(f"{run} ran beside another run of its job")
        if self._max_running is not None and len(self._going_on[record.process]) >= self._max_running:
            raise Violation(f"{run} ran beside {len(self._going_on[record.process])} others")
        self.begun[run] = record.token
        self._going_on[record.process].append(run)

    def _on_over(self, record: Record) -> None:
        assert record.run is not None
        self.over[record.run] = record.note
        self._going_on[record.process].remove(record.run)

    def _on_paid(self, record: Record) -> None:
        assert record.run is not None
        self._on_committed(record)
        tick = record.run.job, record.run.tick
        if tick in self.paid:
            raise Violation(f"{record.run} had its effect twice")
        self.paid.add(tick)
