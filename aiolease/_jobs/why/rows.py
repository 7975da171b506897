"""What became of a tick that has a row in the ledger, in sentences. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from aiolease._jobs.due import CANCELLED
from aiolease._jobs.in_words import joined, moment_text, span
from aiolease._jobs.why.clocks import is_tick, of_a_tick
from aiolease._jobs.why.facts import Facts, Why, led_at, tell_of_leader, tell_of_silence, tell_who_leads
from aiolease.stores.records import SETTLED_BY_HAND, RunRecord

_LATE = timedelta(seconds=5)
"""From here on it is told why a run began late."""

_ASKED = {
    "trigger": "Somebody triggered it at {at}: that is no tick of its schedule.",
    "rerun": "It fell due at {at}, and somebody asked for this run again.",
    "backfill": "It fell due at {at}, and somebody asked for it later, with a backfill.",
}


def tell_row(facts: Facts, row: RunRecord, why: Why) -> None:
    """Tells what became of a row."""
    why.verdict = row.status
    if row.status == "skipped":
        _tell_skipped(facts, row, why)
        return
    why.sentences.append(_of_its_tick(facts, row))
    if (schedule := facts.schedule) is not None and (note := of_a_tick(schedule, row.tick)):
        why.sentences.append(note)
    if row.errors:
        why.sentences.append(f"It was begun before, and ended so: {'; '.join(row.errors)}.")
    tell = {
        "succeeded": _tell_succeeded,
        "failed": _tell_failed,
        "lost": _tell_lost,
        "running": _tell_running,
        "queued": _tell_queued,
    }[row.status]
    tell(facts, row, why)


def _of_its_tick(facts: Facts, row: RunRecord) -> str:
    at = facts.at(row.tick)
    if row.request is not None:
        return _ASKED[row.request].format(at=at)
    schedule = facts.schedule
    if schedule is not None and row.tick > facts.record.schedule_since and not is_tick(schedule, row.tick):
        return f"{at} is no tick of its schedule: somebody triggered it."
    return f"It fell due at {at}."


def _attempt(row: RunRecord) -> str:
    return f"Attempt {row.attempt}" if row.attempt > 1 else "It"


def _begun(facts: Facts, row: RunRecord) -> str:
    if row.started_at is None:
        return f"{_attempt(row)} was to run in term {row.token} ({row.holder})"
    late = row.started_at - row.tick
    behind = "" if row.attempt > 1 or row.request is not None else f", {span(late.total_seconds())} late"
    return f"{_attempt(row)} began at {facts.at(row.started_at)}{behind}, in term {row.token} ({row.holder})"


def _ended(row: RunRecord, how: str) -> str:
    if row.started_at is None or row.finished_at is None:
        return how
    return f"{how} after {span((row.finished_at - row.started_at).total_seconds())}"


def _why_late(facts: Facts, row: RunRecord) -> list[str]:
    """Why the first attempt at a tick of the schedule began late; nothing if it did not."""
    if row.started_at is None or row.attempt > 1 or row.request is not None or row.started_at - row.tick < _LATE:
        return []
    if facts.terms and row.tick >= facts.terms[0].began_at:
        led = led_at(facts, row.tick)
        if led is None or led.token != row.token:
            return [f"It began so late because the leader changed. {tell_of_leader(facts, row.tick)}"]
    before = [
        run
        for run in facts.rows
        if run.tick < row.tick and run.finished_at is not None and row.tick < run.finished_at <= row.started_at
    ]
    if before and before[-1].finished_at is not None:
        ended = facts.at(before[-1].finished_at)
        return [f"It waited for the run before it: that of {facts.at(before[-1].tick)} ended at {ended}."]
    return ["It waited for its turn: for a place under max_running, for a thread, or for the job's own jitter."]


def _tell_succeeded(facts: Facts, row: RunRecord, why: Why) -> None:
    why.sentences.append(f"{_begun(facts, row)}, and {_ended(row, 'succeeded')}.")
    why.sentences += _why_late(facts, row)


def _tell_failed(facts: Facts, row: RunRecord, why: Why) -> None:
    if row.started_at is None:
        why.sentences.append(f"It waited to be tried again, and has failed for good: {row.error or 'lost'}.")
    elif row.error == CANCELLED:
        why.sentences.append(f"{_begun(facts, row)}. Somebody cancelled it: it has {_ended(row, 'failed')}.")
    else:
        why.sentences.append(f"{_begun(facts, row)}, and {_ended(row, 'failed')}: {row.error or 'it is not said why'}.")
        if row.failures:
            why.sentences.append(f"It had failed {_times(row.failures)} before that, and is not tried again.")
    why.sentences += _why_late(facts, row)
    why.commands.append(f"{facts.command('rerun', row.tick)}  # runs it again")


def _tell_lost(facts: Facts, row: RunRecord, why: Why) -> None:
    if row.error == SETTLED_BY_HAND:
        why.verdict = "settled by hand"
        at = "" if row.finished_at is None else f" at {facts.at(row.finished_at)}"
        why.sentences.append(f"It had not ended when somebody called `aiolease settle`{at}: it was recorded as lost.")
    else:
        why.sentences.append(f"{_begun(facts, row)}. It was {row.error or 'lost'}: how far it came nobody knows.")
        if (note := _end_of_term(facts, row.token)) and row.started_at is not None:
            why.sentences.append(note)
    why.commands.append(
        f"{facts.command('rerun', row.tick)}  # runs it again; a job with rerun_lost=True does so itself"
    )


def _end_of_term(facts: Facts, token: int) -> str:
    for term in facts.terms:
        if term.token == token and term.ended_at is not None:
            how = "ended in order" if term.status == "succeeded" else "was lost"
            return (
                f"Term {token} {how}{f': {term.error}' if term.error else ''}, recorded at {facts.at(term.ended_at)}."
            )
    return ""


def _tell_running(facts: Facts, row: RunRecord, why: Why) -> None:
    since = "" if row.started_at is None else f", {span((facts.now - row.started_at).total_seconds())} ago"
    why.sentences.append(f"{_begun(facts, row)}{since if row.attempt > 1 else ''}, and has not ended.")
    why.sentences += _why_late(facts, row)
    if not facts.led or (facts.lease is not None and facts.lease.token != row.token):
        why.sentences.append(
            f"That term is over, so its process is dead or unwinding. {tell_who_leads(facts)} The leader records it "
            "as lost, or runs it again if the job has rerun_lost=True."
        )
    elif facts.record.cancel_at is not None:
        why.sentences.append(
            f"Somebody asked to cancel it at {facts.at(facts.record.cancel_at)}; the leader does so at its next beat."
        )
    elif silence := tell_of_silence(facts):
        why.sentences += silence
    else:
        why.commands.append(f"{facts.command('cancel')}  # ends it: it is failed then")


def _tell_queued(facts: Facts, row: RunRecord, why: Why) -> None:
    waits = row.not_before
    if waits is not None and waits > facts.now:
        rest = span((waits - facts.now).total_seconds())
        kind = "failed and is tried again" if row.failures else "waits"
        why.sentences.append(f"It {kind}: attempt {row.attempt} may begin at {facts.at(waits)}, in {rest}.")
    elif waits is not None and row.request in {"rerun", "backfill"}:
        why.sentences.append(
            f"It has waited since {facts.at(waits)}: what was asked for by hand waits behind everything that is due."
        )
    elif waits is not None:
        why.sentences.append(f"Attempt {row.attempt} might have begun at {facts.at(waits)}, and waits for its turn.")
    elif row.attempt > 1:
        why.sentences.append(f"It was lost with its term, and waits to be run again as attempt {row.attempt}.")
    else:
        why.sentences.append("It has been claimed, and waits for its turn.")
    why.sentences += tell_of_silence(facts) or _what_it_waits_for(facts, row)


def _what_it_waits_for(facts: Facts, row: RunRecord) -> list[str]:
    if not facts.led:
        return [f"{tell_who_leads(facts)} It runs when somebody leads."]
    if facts.lease is not None and facts.record.token not in {None, facts.lease.token}:
        return [f"{tell_who_leads(facts)} That process has no such job: it runs when a leader has it."]
    if row.not_before is not None and row.not_before > facts.now:
        return []
    if going_on := [run for run in facts.rows if run.status == "running" and run.tick != row.tick]:
        return [
            f"Before it the run of {facts.at(going_on[0].tick)} goes on: if it runs one at a time, it follows that."
        ]
    if facts.busy:
        what = "1 run goes on" if facts.busy == 1 else f"{facts.busy} runs go on"
        return [f"{what} in this lease: it waits for a place under max_running, or for a thread."]
    return ["Nothing else goes on in this lease, so it should begin within seconds."]


_NOT_ENDED, _NEWER, _TRIGGERED = "its last run has not ended", "a newer one was due as well", "triggered while"
_BECAME = {
    "succeeded": "it has succeeded",
    "failed": "it has failed",
    "lost": "it was lost",
    "skipped": "it was skipped, too",
    "running": "it goes on",
    "queued": "it waits",
}
"""What became of a run, by its status."""

_REASONS = {
    _NOT_ENDED: "A job does not run beside itself unless it has overlap='allow'.",
    "its last run waits to be tried again": "A failed run holds its job until then, unless it has overlap='allow'.",
    "nobody led when they fell due": "The job has missed='skip'; 'once' or 'all' would have run it later.",
    _NEWER: "Of several that are due only the newest is run, unless it has missed='all'.",
    "were missed": "After an outage the last 1000 are run, no more.",
    "of its runs wait": "It falls due faster than it can run.",
    "s late": "The job has a max_age: what cannot begin in time is skipped.",
    CANCELLED: "Somebody cancelled it before it had begun.",
}
"""Reasons that the ledger gives, and what lies behind them."""


def _tell_skipped(facts: Facts, row: RunRecord, why: Why) -> None:
    reason = row.error or "it is not said why"
    if reason.startswith(_TRIGGERED):
        _tell_trigger_skipped(facts, row, why)
        return
    why.sentences.append(f"{_fell_due(facts, row, why)}: {reason}.")
    why.sentences += [text for sign, text in _REASONS.items() if reason.endswith(sign)][:1]
    if reason.endswith(_NEWER):
        newer = next((run for run in facts.rows if run.tick > row.tick and run.request is None), None)
        if newer is not None:
            why.sentences.append(f"The newest was that of {facts.at(newer.tick)}: {_BECAME[newer.status]}.")
    if reason == _NOT_ENDED:
        first = row.tick_from or row.tick
        why.sentences += _what_went_on(facts, [run for run in facts.rows if run.tick < first], first)
    elif reason.endswith(("s late", "nobody led when they fell due", _NEWER, "were missed")):
        why.sentences += [text for text in [tell_of_leader(facts, why.moment)] if text]
    if can_be_rerun(facts, row, why.moment):
        why.commands.append(f"{facts.command('rerun', why.moment)}  # runs it after all")
    else:
        why.sentences.append("It was a tick of a former schedule, so it cannot be run again.")
        why.commands.append(f"{facts.command('trigger')}  # runs the job once, now")


def _fell_due(facts: Facts, row: RunRecord, why: Why) -> str:
    """The beginning of a sentence: a tick fell due, alone or in a range, and was skipped."""
    if row.tick_from is None or row.count is None or row.count < 2:
        return f"It fell due at {facts.at(row.tick)}, and was skipped"
    of = f"one of {row.count} ticks from {moment_text(row.tick_from)} to {facts.at(row.tick)} that were skipped"
    if why.moment > facts.record.schedule_since or why.moment in {row.tick, row.tick_from}:
        return f"It fell due at {facts.at(why.moment)}, {of}"
    return f"If it fell due at {facts.at(why.moment)}, by the schedule that it had then, it was {of}"


def can_be_rerun(facts: Facts, row: RunRecord, tick: datetime) -> bool:
    """False for a tick of a range which the schedule of now does not know: ranges are taken apart by that."""
    schedule = facts.schedule
    alone = row.tick_from in {None, row.tick}
    return alone or schedule is None or is_tick(schedule, tick)


def _tell_trigger_skipped(facts: Facts, row: RunRecord, why: Why) -> None:
    seen = row.finished_at or row.tick
    why.sentences.append(
        f"Somebody triggered it at {facts.at(row.tick)}. The leader saw that at {facts.at(seen)} and skipped it: a run "
        "of the job had not ended."
    )
    begun = [run for run in facts.rows if run.started_at is not None and run.started_at <= seen]
    why.sentences += [_REASONS[_NOT_ENDED], *_what_went_on(facts, begun, seen)]
    why.commands.append(f"{facts.command('trigger')}  # triggers it again")


def _what_went_on(facts: Facts, runs: Sequence[RunRecord], at: datetime) -> list[str]:
    """Those of some runs that had not ended at a moment."""
    found = []
    for run in runs:
        if run.started_at is None or (run.finished_at is not None and run.finished_at < at):
            continue
        until = "goes on still" if run.finished_at is None else f"ended at {moment_text(run.finished_at)}"
        found.append(f"that of {facts.at(run.tick)}, which began at {moment_text(run.started_at)} and {until}")
    if not found:
        return []
    one = len(found) == 1
    return [f"The {'run' if one else 'runs'} that had not ended {'was' if one else 'were'} {joined(found)}."]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
