"""Why a job ran, or did not run, at a moment: from schedule, ledger and terms, in sentences. Pure, for people.

`why` decides what a moment stands for: a row, a tick without a row, or neither. Then it is told

* `rows`: what became of a tick that has a row;
* `gaps`: why there is none: not due, before the job was known, paused, nobody led, the leader lacked the job;
* `clocks`: hours that a change of the clock skipped, or showed twice;
* `facts`: what it is reckoned from.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from aiolease._jobs.schedule import Schedule
from aiolease._jobs.why.clocks import is_tick
from aiolease._jobs.why.facts import Facts, Verdict, Why, with_last_end
from aiolease._jobs.why.gaps import resumes, tell_future, tell_no_tick, tell_pause, tell_triggered, tell_unclaimed
from aiolease._jobs.why.rows import can_be_rerun, tell_row
from aiolease.stores.records import RunRecord

__all__ = [
    "Facts",
    "Verdict",
    "Why",
    "can_be_rerun",
    "is_tick",
    "latest",
    "reading_start",
    "run_meant",
    "why",
    "with_last_end",
]

_MOMENT = timedelta(microseconds=1)


def why(facts: Facts, moment: datetime | None = None) -> Why:
    """Tells why a job ran, or did not run.

    Args:
        facts: What is known of it.
        moment: When; its latest tick if none is given. A tick within the same minute, second or millisecond is meant,
            too, if the moment has no seconds, or no parts of them.
    """
    facts, schedule = replace(facts, terms=with_last_end(facts.terms, facts.lease)), facts.schedule
    asked, row = run_meant(facts, moment if moment is not None else latest(facts))
    answer = Why(moment=asked, verdict="no row")
    if row is not None:
        answer.moment = row.tick if row.tick_from is None else asked
        tell_row(facts, row, answer)
        if answer.moment == latest(facts) and (pause := tell_pause(facts, answer.moment)):
            answer.sentences.append(f"{pause} Ticks after this one are not run.")
            answer.commands += resumes(facts, answer.moment)
    elif asked == facts.record.requested_at:
        tell_triggered(facts, answer)
    elif schedule is None:
        answer.sentences.append(
            f"There is no row of {facts.at(asked)}, and this version does not know its schedule, "
            f"`{facts.record.schedule}`: ask with the version that the leader has."
        )
    elif not is_tick(schedule, asked):
        tell_no_tick(facts, schedule, answer)
    elif asked > facts.now:
        tell_future(facts, answer)
    else:
        tell_unclaimed(facts, answer)
    return answer


def run_meant(facts: Facts, moment: datetime, *, only_runs: bool = False) -> tuple[datetime, RunRecord | None]:
    """The tick that somebody means with a moment, and its row: ``None`` if it has none.

    In a range of ticks that were skipped together the row is that of the range.

    Args:
        facts: What is known of the job.
        moment: The moment.
        only_runs: True if a run is meant: also one a while after the moment, if the moment itself has none.
    """
    schedule = facts.schedule
    row = _row_of(facts, moment)
    if row is None and (schedule is None or not is_tick(schedule, moment)):
        moment = _nearby(facts, schedule, moment) or moment
        row = _row_of(facts, moment)
    if row is None and only_runs and (run := _nearby(facts, None, moment)) is not None:
        return run, _row_of(facts, run)
    return moment, row


def latest(facts: Facts) -> datetime:
    """The latest tick of a job: of its schedule since that holds, of a row, or of a trigger; else the first to come."""
    schedule, since = facts.schedule, facts.record.schedule_since
    found = [run.tick for run in facts.rows if run.tick <= facts.now]
    tick = None if schedule is None else schedule.latest_between(since, facts.now)
    found += [each for each in (tick, facts.record.requested_at) if each is not None]
    if found:
        return max(found)
    return (schedule.next_after(facts.now) if schedule is not None else None) or facts.now


def reading_start(schedule: Schedule | None, moment: datetime) -> datetime:
    """From where on rows are to be read to tell of a moment: those of its tick, and of the tick before."""
    before = None if schedule is None else schedule.latest_between(moment - timedelta(days=400), moment - _MOMENT)
    return before or moment


def _row_of(facts: Facts, moment: datetime) -> RunRecord | None:
    """The row of a tick, or of a range of skipped ones in which it lies."""
    for run in facts.rows:
        if run.tick == moment or (run.tick_from is not None and run.tick_from <= moment <= run.tick):
            return run if moment in {run.tick, run.tick_from} or _may_be_tick(facts, moment) else None
    return None


def _may_be_tick(facts: Facts, moment: datetime) -> bool:
    """False if the job was not due at a moment. Of a former schedule, or one of another version, that is not known."""
    schedule = facts.schedule
    return schedule is None or moment <= facts.record.schedule_since or is_tick(schedule, moment)


def _nearby(facts: Facts, schedule: Schedule | None, moment: datetime) -> datetime | None:
    """The tick that is meant by a moment that leaves out seconds, or parts of one."""
    width = timedelta(minutes=1) if moment.second == 0 else timedelta(seconds=1)
    if moment.microsecond:
        width = timedelta(milliseconds=1)
    tick = None if schedule is None else schedule.next_after(moment - _MOMENT)
    found = [*(run.tick for run in facts.rows), tick, facts.record.requested_at]
    return min((each for each in found if each is not None and moment <= each < moment + width), default=None)
