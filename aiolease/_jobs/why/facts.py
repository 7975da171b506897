"""What `why` reckons from: the rows of one job around a moment, and who led. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from aiolease._jobs.in_words import moment_text, span, tick_text
from aiolease._jobs.schedule import Schedule, read_schedule
from aiolease._jobs.standing import is_silent
from aiolease.stores.records import JobRecord, Lease, RunRecord
from aiolease.stores.seen import TermRecord

Verdict = Literal[
    "succeeded",
    "failed",
    "lost",
    "skipped",
    "running",
    "queued",
    "in the future",
    "not due",
    "not known yet",
    "another schedule",
    "paused",
    "nobody leads",
    "the leader has no such job",
    "set aside",
    "held",
    "due now",
    "triggered",
    "not claimed",
    "settled by hand",
    "no row",
]
"""What became of a tick, for programs: the status of its row, or why it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a job. All moments are of the database's clock.

    Attributes:
        name: The lease.
        record: The job.
        now: The database's clock at the reading.
        lease: The row of the lease; ``None`` if nobody ever led.
        pause: See `LedgerReading.pause`.
        rows: The job's rows around the moment that is asked about, in the order of their ticks.
        oldest: The tick of its oldest row; ``None`` if it has no rows.
        terms: The newest terms of the lease, the newest last.
        unreadable: Why the job is set aside, if it is.
        busy: How many runs of all jobs of the lease go on.
    """

    name: str
    record: JobRecord
    now: datetime
    lease: Lease | None = None
    pause: JobRecord | None = None
    rows: Sequence[RunRecord] = ()
    oldest: datetime | None = None
    terms: Sequence[TermRecord] = ()
    unreadable: str | None = None
    busy: int = 0

    @property
    def schedule(self) -> Schedule | None:
        """The job's schedule; ``None`` if this version does not know such a text."""
        return read_schedule(self.record.schedule, self.record.timezone)

    @property
    def led(self) -> bool:
        """Whether somebody leads now."""
        return self.lease is not None and not self.lease.free

    def at(self, moment: datetime) -> str:
        """A moment in UTC, and by the job's own clock."""
        return moment_text(moment, self.record.timezone)

    def command(self, words: str, tick: datetime | None = None) -> str:
        """A command line about the job, to be copied."""
        lease = "" if self.name == "default" else f" --lease {self.name}"
        moment = "" if tick is None else f" '{tick_text(tick) if not tick.microsecond else tick.isoformat()}'"
        return f"aiolease {words} {self.record.job}{moment}{lease}"


@dataclass(slots=True)
class Why:
    """Why a job ran, or did not run, at a moment.

    Attributes:
        moment: The moment that was asked about, or the tick that it stands for.
        verdict: What became of it.
        sentences: The answer for people, in the order in which it is to be read.
        commands: What may be done about it, each with its command.
    """

    moment: datetime
    verdict: Verdict
    sentences: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


def with_last_end(terms: Sequence[TermRecord], lease: Lease | None) -> list[TermRecord]:
    """Adds the end of the latest term as its lease shows it: the next leader records that, and there is none yet."""
    if lease is None or not lease.free:
        return [*terms]
    status, error = ("succeeded", "released") if lease.holder is None else ("lost", "its lease expired")
    return [
        replace(term, ended_at=lease.expires_at, status=status, error=error)
        if (term.token, term.status) == (lease.token, "running")
        else term
        for term in terms
    ]


def led_at(facts: Facts, moment: datetime) -> TermRecord | None:
    """The term in which a moment lies, by the ledger; ``None`` if there is none, or if that is not known any more."""
    for term in reversed(facts.terms):
        if term.began_at <= moment:
            return term if term.ended_at is None or moment < term.ended_at else None
    return None


def tell_of_leader(facts: Facts, moment: datetime) -> str:
    """Who led at a moment in the past; empty if that is not known."""
    if not facts.terms or moment < facts.terms[0].began_at:
        return ""
    term = led_at(facts, moment)
    if term is None:
        before = max((each for each in facts.terms if each.began_at <= moment), key=lambda each: each.began_at)
        after = next((each for each in facts.terms if each.began_at > moment), None)
        since = f"term {before.token} ended at {facts.at(before.ended_at or before.began_at)}"
        why = f" ({before.error})" if before.error else ""
        until = f"term {after.token} began at {facts.at(after.began_at)}" if after else "no other has begun"
        return f"Nobody led at that moment: {since}{why}, and {until}."
    if term.status == "running" and not _goes_on(facts, term):
        return (
            f"Term {term.token} ({term.holder}) had begun before. How it ended is not recorded yet: it may have been "
            "dead when the tick fell due."
        )
    if term.status == "lost" and (sign := _of_death(facts, term, moment)):
        return f"Term {term.token} ({term.holder}) {sign}: it may have been dead when the tick fell due."
    if term.status == "lost" and term.ended_at is not None:
        why = f": {term.error}" if term.error else ""
        return f"Term {term.token} ({term.holder}) led then; it was lost at {facts.at(term.ended_at)}{why}."
    return f"Term {term.token} ({term.holder}) led at that moment."


def _of_death(facts: Facts, term: TermRecord, moment: datetime) -> str:
    """What shows that a lost term may have been over at a moment before its recorded end; empty if nothing does."""
    lease, ended = facts.lease, term.ended_at
    if ended is None:
        return ""
    if any(term.began_at < other.began_at <= ended for other in facts.terms):
        return f"did not record its end, which the next leader found at {facts.at(ended)}"
    if lease is not None and lease.free and lease.token == term.token and lease.renewed_at < moment:
        return f"renewed its lease for the last time at {facts.at(lease.renewed_at)}"
    return ""


def _goes_on(facts: Facts, term: TermRecord) -> bool:
    return facts.lease is not None and not facts.lease.free and facts.lease.token == term.token


def tell_of_silence(facts: Facts) -> list[str]:
    """Tells that the leader has missed a renewal; nothing if it has not."""
    lease = facts.lease
    if lease is None or not is_silent(lease):
        return []
    silent = (lease.now - lease.renewed_at).total_seconds()
    text = (
        f"The leader, {lease.holder} (term {lease.token}), has not renewed its lease for {span(silent)}: it may be "
        f"dead, frozen, or cut off from the database. If it stays so, another may lead from "
        f"{facts.at(lease.expires_at)} on."
    )
    return [text]


def tell_who_leads(facts: Facts) -> str:
    """Who leads now, or since when nobody does."""
    lease = facts.lease
    if lease is None:
        return f"Nobody ever led {facts.name!r}: start a worker that has this job."
    if lease.holder is None:
        return (
            f"Nobody leads {facts.name!r} now: term {lease.token} was released at {facts.at(lease.expires_at)}, and "
            "no process has taken over."
        )
    if lease.expired:
        return (
            f"Nobody leads {facts.name!r} now: {lease.holder} (term {lease.token}) did not renew its lease, which "
            f"expired at {facts.at(lease.expires_at)}."
        )
    return f"Term {lease.token} ({lease.holder}) leads {facts.name!r} now, since {facts.at(lease.elected_at)}."
