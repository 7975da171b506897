"""Why a moment has no row in the ledger, in sentences. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from aiolease._jobs.in_words import in_words, span
from aiolease._jobs.schedule import Schedule
from aiolease._jobs.standing import JobStanding, standing
from aiolease._jobs.why.clocks import by_its_own_clock, never_shown, of_a_tick, of_no_tick
from aiolease._jobs.why.facts import Facts, Verdict, Why, tell_of_leader, tell_of_silence, tell_who_leads
from aiolease.stores.seen import JobSeen

_SOON = timedelta(seconds=15)
"""So long after a tick a leader may be about to claim it: after a beat of the default lease, and a while."""


def tell_no_tick(facts: Facts, schedule: Schedule, why: Why) -> None:
    """Tells of a moment at which the job is not due."""
    moment = why.moment
    if _tell_before(facts, moment, why):
        return
    why.verdict = "not due"
    why.sentences.append(
        f"It is not due at {facts.at(moment)}: its schedule is `{facts.record.schedule}`, {in_words(schedule)}."
    )
    if facts.record.schedule_since > facts.record.known_since:
        why.sentences.append(
            f"It has had this schedule since {facts.at(facts.record.schedule_since)}; before, it had another."
        )
    if note := of_no_tick(schedule, moment):
        why.sentences.append(note)
    start = max(facts.record.schedule_since, moment - timedelta(days=3660))
    before, after = schedule.latest_between(start, moment), schedule.next_after(moment)
    said = [f"the one before is {facts.at(before)}"] if before else []
    said += [f"the next is {facts.at(after)}"] if after else []
    if said:
        text = ", ".join(said)
        why.sentences.append(f"{text[0].upper()}{text[1:]}.")
    if (meant := by_its_own_clock(schedule, moment)) is not None:
        why.sentences.append(
            f"Moments are in UTC here. If {moment:%H:%M} by the clock of {schedule.timezone} is meant, that is "
            f"{facts.at(meant)}."
        )
        why.commands.append(f"{facts.command('why', meant)}  # asks about that")
        return
    if note := never_shown(schedule, moment):
        why.sentences.append(note)
    if before is not None:
        why.commands.append(f"{facts.command('why', before)}  # asks about the one before")


def tell_future(facts: Facts, why: Why) -> None:
    """Tells of a tick that is still to come."""
    why.verdict = "in the future"
    rest = span((why.moment - facts.now).total_seconds())
    why.sentences.append(f"It falls due at {facts.at(why.moment)}, in {rest}.")
    if (schedule := facts.schedule) is not None and (note := of_a_tick(schedule, why.moment)):
        why.sentences.append(note)
    if pause := tell_pause(facts, why.moment):
        why.sentences.append(f"{pause} So it will not be run, unless it is resumed before.")
        why.commands += resumes(facts, why.moment)
    if not facts.led:
        why.sentences.append(f"{tell_who_leads(facts)} It is run only if somebody leads by then, or later, as missed.")
    elif _is_without(facts):
        why.sentences.append(f"{tell_who_leads(facts)} That process has no such job.")


def tell_triggered(facts: Facts, why: Why) -> None:
    """Tells of a trigger that no leader has claimed yet."""
    _say(why, "triggered", f"Somebody triggered it at {facts.at(why.moment)}, and no leader has claimed that yet.")
    if not facts.led:
        why.sentences.append(f"{tell_who_leads(facts)} It runs when somebody leads.")
    elif _is_without(facts):
        why.sentences.append(f"{tell_who_leads(facts)} That process has no such job: it runs when a leader has it.")
    else:
        why.sentences += tell_of_silence(facts) or ["The leader sees it at its next heartbeat."]


def tell_unclaimed(facts: Facts, why: Why) -> None:
    """Tells of a tick that fell due, and has no row."""
    if _tell_before(facts, why.moment, why) or _tell_settled(facts, why):
        return
    tick, record = why.moment, facts.record
    why.sentences.append(f"It fell due at {facts.at(tick)}, and nobody has claimed it.")
    if pause := tell_pause(facts, tick):
        _say(why, "paused", pause, "The ticks of a pause are not made up for.")
        why.commands += resumes(facts, why.moment)
    elif facts.unreadable is not None:
        _say(why, "set aside", f"The leader has set the job aside: {facts.unreadable}.")
        why.commands.append(f"{facts.command('settle')}  # sets its rows right")
    elif not facts.led:
        since = facts.lease.expires_at if facts.lease is not None else tick
        _say(why, "nobody leads", tell_who_leads(facts), tell_of_leader(facts, tick) if tick < since else "")
        why.sentences.append("When somebody leads it is run, or skipped with a reason, as `missed` and `max_age` say.")
    elif _is_without(facts):
        has = (
            "no leader has said that it has it"
            if record.token is None
            else f"the last that had it was term {record.token}"
        )
        _say(why, "the leader has no such job", tell_who_leads(facts))
        why.sentences.append(
            f"That process has no such job ({has}): it runs another application, or another version of this one. "
            "Give the two different names of their leases, or deploy the version that has the job."
        )
        why.commands.append(f"aiolease resign{_lease(facts)}  # has another process lead, if one is waiting")
    elif going_on := [run for run in facts.rows if run.status in {"running", "queued"} and run.tick < tick]:
        what = "goes on" if going_on[-1].status == "running" else "waits"
        _say(why, "held", f"Its run of {facts.at(going_on[-1].tick)} {what} still.")
        why.sentences.append("When that has ended this one follows, or is recorded as skipped.")
        why.sentences += tell_of_silence(facts)
    elif facts.now - tick < _SOON:
        due = f"It has been due for {span((facts.now - tick).total_seconds())}"
        silence = tell_of_silence(facts)
        _say(why, "due now", f"{due}{'.' if silence else ': the leader is about to claim it.'}", *silence)
    else:
        _tell_not_claimed(facts, why)


def _tell_not_claimed(facts: Facts, why: Why) -> None:
    """Tells of a tick that a leader should have claimed long ago."""
    tick = why.moment
    _say(why, "not claimed", tell_who_leads(facts))
    why.sentences.append(
        f"It has been due for {span((facts.now - tick).total_seconds())}. The leader does not lack the job: "
        "look into its log for CRITICAL lines. It may be stuck; or the job has a jitter as long as that."
    )
    if silence := tell_of_silence(facts):
        why.sentences += silence
    elif facts.lease is not None:
        age = span((facts.now - facts.lease.renewed_at).total_seconds())
        why.sentences.append(
            f"It renewed its lease {age} ago; if it is dead, that ends at {facts.at(facts.lease.expires_at)}."
        )
    why.commands.append(f"aiolease resign{_lease(facts)}  # has another process lead")


def _tell_before(facts: Facts, moment: datetime, why: Why) -> bool:
    """Tells of a moment before the job, or its schedule, or after which somebody settled it; returns if it is one."""
    record = facts.record
    settled = record.known_since == record.schedule_since == record.resumed_at
    if moment > max(record.known_since, record.schedule_since):
        return False
    if settled and moment <= record.known_since:
        _say(
            why,
            "settled by hand",
            f"Somebody called `aiolease settle` at {facts.at(record.known_since)}: all ticks up to that moment are "
            "settled, and this one has no row.",
        )
    elif moment <= record.known_since:
        _say(
            why,
            "not known yet",
            f"The database first saw this job at {facts.at(record.known_since)}: no leader had it before. A new job "
            "starts with its next tick.",
        )
    else:
        _say(
            why,
            "another schedule",
            f"Its schedule was changed at {facts.at(record.schedule_since)}. The one that it had at "
            f"{facts.at(moment)} is not kept, and there is no row of that moment.",
        )
    if (schedule := facts.schedule) is not None and (first := schedule.next_after(record.schedule_since)) is not None:
        now = " now" if record.schedule_since > record.known_since else ""
        why.sentences.append(
            f"The first tick of the schedule that it has{now}, {in_words(schedule)}, "
            f"{'was' if first <= facts.now else 'is'} {facts.at(first)}."
        )
    return True


def _tell_settled(facts: Facts, why: Why) -> bool:
    """Tells of a tick that is settled without a row; returns if it is."""
    tick, record = why.moment, facts.record
    ends = [end for end in (record.resumed_at, _ended_pause(facts)) if end is not None and tick <= end]
    at, paused = f"It fell due at {facts.at(tick)}", ""
    if ends and not _rows_between(facts, tick, max(ends)):
        paused = f"the pause ended at {facts.at(max(ends))}"
        if facts.oldest is None or facts.oldest <= max(ends):  # else what there was is perhaps pruned
            text = f"{at}, and was paused then: {paused}. The ticks of a pause are not made up for."
            _say(why, "paused", text)
            why.commands.append(_backfill(facts, tick))
            return True
    if not paused and (record.high_tick is None or tick > record.high_tick):
        return False
    if facts.oldest is None or tick < facts.oldest:
        kept = "it has no rows" if facts.oldest is None else f"the oldest row is that of {facts.at(facts.oldest)}"
        also = f" Perhaps it was paused: {paused}." if paused else ""
        _say(why, "no row", f"{at}. What became of it is not kept any more: {kept}.{also}")
    else:
        until = facts.at(record.high_tick or tick)
        text = f"{at}. The ticks of the job are settled up to {until}, but this one has no row: it was deleted."
        _say(why, "no row", text)
        why.commands.append(_backfill(facts, tick))
    why.sentences += [text for text in [tell_of_leader(facts, tick)] if text]
    return True


def _rows_between(facts: Facts, after: datetime, until: datetime) -> bool:
    """Whether a tick of the schedule was claimed in between: then the pause had not begun."""
    return any(after < run.tick <= until and run.request is None for run in facts.rows)


def _ended_pause(facts: Facts) -> datetime | None:
    """When a pause that is over ended by itself."""
    until = facts.record.paused_until
    return until if until is not None and until <= facts.now else None


def tell_pause(facts: Facts, tick: datetime) -> str:
    """The pause that goes on, and keeps a tick from being run; empty if none does."""
    stands = _standing(facts, tick)
    if stands.paused_since is None:
        return ""
    what = "The whole lease" if stands.paused_with_all else "The job"
    until = "until somebody resumes it" if stands.paused_until is None else f"until {facts.at(stands.paused_until)}"
    note = f" ({stands.pause_note})" if stands.pause_note else ""
    return f"{what} is paused, since {facts.at(stands.paused_since)}, {until}{note}."


def _standing(facts: Facts, tick: datetime) -> JobStanding:
    return standing(JobSeen(record=facts.record), facts.pause, max(facts.now, tick), lease_duration=0.0)


def _lease(facts: Facts) -> str:
    return "" if facts.name == "default" else f" --lease {facts.name}"


def resumes(facts: Facts, tick: datetime) -> list[str]:
    """What ends a pause: that of the whole lease, or of the job only."""
    if not _standing(facts, tick).paused_with_all:
        return [f"{facts.command('resume')}  # ends the pause"]
    return [
        f"aiolease resume{_lease(facts)}  # ends the pause of all jobs",
        f"{facts.command('resume')}  # of this one only",
    ]


def _is_without(facts: Facts) -> bool:
    """Whether the leader has said which jobs it has, and this one is not among them."""
    return facts.lease is not None and facts.record.token is not None and facts.record.token != facts.lease.token


def _backfill(facts: Facts, tick: datetime) -> str:
    moment = f"'{tick:%Y-%m-%d %H:%M:%S}'"
    return f"{facts.command('backfill')} --since {moment} --until {moment}  # runs it after all"


def _say(why: Why, verdict: Verdict, *sentences: str) -> None:
    why.verdict = verdict
    why.sentences += [text for text in sentences if text]
