"""The rules, broken one by one: a checker that does not notice is worth nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

from aiolease import BodyStuck, StoreUnavailable
from aiolease._election import candidate, health, sighting
from aiolease._election.candidate import Candidate
from aiolease._election.claim import Claim
from aiolease._election.heartbeat import Heartbeat
from aiolease._election.leader import Leader
from aiolease._election.sighting import HIDDEN, ClockHistory, Reading, Sighting
from aiolease._election.term import Term
from aiolease._jobs import changed, claims, runs, waiting_line
from aiolease._jobs import due as reckoning
from aiolease._jobs.execution import Outcome
from aiolease._jobs.job_state import JobState
from aiolease._jobs.places import Places
from aiolease._jobs.plan import Plan
from aiolease._jobs.planner import Planner
from aiolease._jobs.requests import Requests
from aiolease._jobs.runner import Runner
from aiolease._jobs.runs import Runs
from aiolease._jobs.waiting_line import WaitingLine
from aiolease._jobs.writing import Writing
from aiolease._waiting import wait_shielded
from aiolease.stores import Store
from aiolease.stores.batch import Batch, Change, LedgerReading
from aiolease.stores.memory import writing as memory
from aiolease.stores.records import Lease, RunKey, RunRecord, RunStatus, TermKey
from tests.simulation.network import ArchivedLedger, Server
from tests.simulation.process import SimLoop


def _release_before_the_body_ended() -> AbstractContextManager[Any]:
    end = Leader.end

    def mutated(keeper: Leader, reason: Any, **how: bool) -> None:
        first = keeper.term.lost is None and not keeper.body.ended
        end(keeper, reason, **how)
        if first:
            keeper._early = asyncio.get_running_loop().create_task(keeper.release())  # type: ignore[attr-defined]

    return patch.object(Leader, "end", mutated)


def _deadline_from_the_reply() -> AbstractContextManager[Any]:
    init, renewed = Term.__init__, Heartbeat._renewed

    def started(term: Term, store: Store, claim: Claim, *args: Any) -> None:
        init(term, store, replace(claim, sent_at=claim.received_at), *args)

    def mutated(heartbeat: Heartbeat, lease: Lease, sent_at: float, received: float) -> float:
        due = renewed(heartbeat, lease, sent_at, received)
        if heartbeat._term.lost is None:
            heartbeat._term.deadline += received - sent_at
        return due

    patches = ExitStack()
    patches.enter_context(patch.object(Term, "__init__", started))
    patches.enter_context(patch.object(Heartbeat, "_renewed", mutated))
    return patches


def _no_fence() -> AbstractContextManager[Any]:
    def mutated(_: Server, __: TermKey, final: RunKey | None = None) -> None:
        """Every commit is let through."""

    return patch.object(Server, "fence", mutated)


def _expiry_by_the_client_clock() -> AbstractContextManager[Any]:
    def mutated(server: Server) -> datetime:
        machine, now = server.sender.machine, server.sender.world.now
        return datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=now * machine.rate + machine.skew)

    return patch.object(Server, "now", mutated)


def _blind_claim() -> AbstractContextManager[Any]:
    claim = Server.claim

    def mutated(server: Server, name: str, holder: str, duration: float, _: Lease | None, __: bool) -> Lease | None:
        return claim(server, name, holder, duration, server.read(name), force=True)

    return patch.object(Server, "claim", mutated)


def _and_renewals_seem_young(mutation: AbstractContextManager[Any]) -> AbstractContextManager[Any]:
    """With a broken rule that candidates mostly make up for, since they look at the age of a renewal."""
    patches = ExitStack()
    patches.enter_context(mutation)
    patches.enter_context(patch.object(sighting, "_went_back", lambda *_: False))
    return patches


def _beats_without_numbers() -> AbstractContextManager[Any]:
    renew = Server.renew

    def mutated(server: Server, name: str, holder: str, token: int, *renewal: Any) -> Lease | None:
        row = server.leases.get(name)
        if row is not None and row.held_by(holder, token):
            server.leases[name] = replace(row, beat=-1)
        return renew(server, name, holder, token, *renewal)

    return _and_renewals_seem_young(patch.object(Server, "renew", mutated))


def _own_duration() -> AbstractContextManager[Any]:
    saw = Candidate._saw

    def mutated(candidate: Candidate, lease: Lease | None, received: float, took: float) -> None:
        saw(candidate, lease, received, took)
        if (seen := candidate._sighting) is not None:
            own = candidate._timings.lease_duration
            candidate._sighting = replace(seen, wait=min(seen.wait, own), duration=own)

    return patch.object(Candidate, "_saw", mutated)


def _a_cancellation_is_swallowed() -> AbstractContextManager[Any]:
    async def mutated(task: asyncio.Task[Any], within: float | None = None) -> None:
        await wait_shielded(task, within)

    return patch.object(candidate, "wait_shielded", mutated)


def _not_released() -> AbstractContextManager[Any]:
    async def mutated(keeper: Leader) -> None:
        keeper._store.abandon(keeper.term.key.name)

    return patch.object(Leader, "release", mutated)


def _no_sighting() -> AbstractContextManager[Any]:
    return patch.object(Sighting, "claimable", lambda _, lease, __: lease.expired)


def _waits(mutated: Callable[..., float]) -> AbstractContextManager[Any]:
    """With another reckoning of how long a candidate takes the holder for alive."""
    trusted = sighting._trusted_wait

    def wait(lease: Lease, duration: float, reading: Reading, before: Reading | None) -> float:
        return min(mutated(trusted, lease, duration, reading, before), duration)

    return patch.object(sighting, "_trusted_wait", wait)


def _left(lease: Lease) -> float:
    return (lease.expires_at - lease.now) / timedelta(seconds=1)


def _a_first_reading_is_trusted() -> AbstractContextManager[Any]:
    def mutated(trusted: Any, lease: Lease, duration: float, reading: Reading, before: Reading | None) -> float:
        if before is None and 0 < _left(lease) <= duration:
            return _left(lease)
        return trusted(lease, duration, reading, before)  # type: ignore[no-any-return]

    return _waits(mutated)


def _a_step_is_trusted() -> AbstractContextManager[Any]:
    def mutated(trusted: Any, lease: Lease, duration: float, reading: Reading, before: Reading | None) -> float:
        small = before is None or abs(reading.gained_since(before)) <= 0.1
        return trusted(lease, duration, reading, before) if small or _left(lease) <= 0 else _left(lease)

    patches = ExitStack()
    patches.enter_context(_waits(mutated))
    patches.enter_context(patch.object(Reading, "stepped_since", lambda *_: False))
    return patches


def _what_two_steps_hide_is_trusted() -> AbstractContextManager[Any]:
    def mutated(trusted: Any, lease: Lease, duration: float, reading: Reading, before: Reading | None) -> float:
        wait: float = trusted(lease, duration, reading, before)
        small = before is not None and abs(reading.gained_since(before)) <= 0.1
        return _left(lease) if small and 0 < _left(lease) <= duration else wait

    return _and_renewals_seem_young(_waits(mutated))


def _a_candidate_reads_rarely() -> AbstractContextManager[Any]:
    def mutated(trusted: Any, lease: Lease, duration: float, reading: Reading, before: Reading | None) -> float:
        """As the rule has it, but for its limit on how old the reading before may be."""
        wait: float = trusted(lease, duration, reading, before)
        if before is None or reading.stepped_since(before) or not 0 < _left(lease) <= duration:
            return wait
        if (between := reading.received - before.received) < duration * HIDDEN:
            return wait
        return max(_left(lease) + max(reading.gained_since(before), 0.0), duration - between)

    patches = ExitStack()
    patches.enter_context(_waits(mutated))
    patches.enter_context(patch.object(Candidate, "_look_within", lambda _: float("inf")))
    return patches


def _a_leader_ignores_steps() -> AbstractContextManager[Any]:
    return _and_renewals_seem_young(patch.object(ClockHistory, "setback", lambda *_: 0.0))


def _unfenced_claims() -> AbstractContextManager[Any]:
    def mutated(server: Server, term: TermKey, batch: Batch) -> None:
        server.ledgers[term.name].record(term, batch, server.now())

    return patch.object(Server, "record", mutated)


def _runs_before_the_claim_is_answered() -> AbstractContextManager[Any]:
    carry_out = Writing.carry_out

    async def mutated(writing: Writing, plan: Any) -> None:
        try:
            await carry_out(writing, plan)
        except StoreUnavailable:
            for run in writing._written(plan):
                writing._runs.start(run)

    return patch.object(Writing, "carry_out", mutated)


def _a_new_leader_starts_from_now() -> AbstractContextManager[Any]:
    take = Planner.take

    def mutated(planner: Planner, stock: LedgerReading, **known: Any) -> Any:
        jobs = {name: replace(record, known_since=stock.now) for name, record in stock.jobs.items()}
        return take(planner, replace(stock, jobs=jobs), **known)

    return patch.object(Planner, "take", mutated)


def _claims_over_claims() -> AbstractContextManager[Any]:
    record = ArchivedLedger.record

    def mutated(ledger: ArchivedLedger, term: TermKey, batch: Batch, now: datetime) -> None:
        for name in batch.high_ticks:
            ledger.jobs[name] = replace(ledger.jobs[name], high_tick=None)
        for run in batch.claims:
            ledger.runs.pop((run.job, run.tick), None)
        record(ledger, term, batch, now)

    return patch.object(ArchivedLedger, "record", mutated)


def _unconditional_changes() -> AbstractContextManager[Any]:
    change = memory._change

    def mutated(runs: Any, term: TermKey, it: Change, now: datetime) -> None:
        if (row := runs.get((it.key.job, it.key.tick))) is not None:
            key = replace(it.key, token=row.token, attempt=row.attempt)
            change(runs, term, replace(it, key=key, was=row.status), now)

    return patch.object(memory, "_change", mutated)


def _final_without_a_condition() -> AbstractContextManager[Any]:
    fence = Server.fence

    def mutated(server: Server, term: TermKey, _: RunKey | None = None) -> None:
        fence(server, term)

    return patch.object(Server, "fence", mutated)


def _lost_runs_are_forgotten() -> AbstractContextManager[Any]:
    take = Planner.take

    def mutated(planner: Planner, stock: LedgerReading, **known: Any) -> Any:
        mine = [run for run in stock.unfinished if run.token == planner._term.token]
        return take(planner, replace(stock, unfinished=mine), **known)

    return patch.object(Planner, "take", mutated)


def _rerun_as_the_same_attempt() -> AbstractContextManager[Any]:
    def mutated(key: RunKey, *, rerun: bool, adopt: bool = False) -> Change:
        status: RunStatus = "queued" if rerun else "lost"
        return Change(key=key, was="running", status=status, attempt=key.attempt, adopt=adopt)

    return patch.object(reckoning, "lost", mutated)


def _released_before_the_runs_ended() -> AbstractContextManager[Any]:
    end = Runner._end

    async def mutated(jobs: Runner) -> asyncio.CancelledError | None:
        ending = asyncio.get_running_loop().create_task(end(jobs))
        jobs._ending_apart = ending  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        return None

    return patch.object(Runner, "_end", mutated)


def _ticks_by_the_client_clock() -> AbstractContextManager[Any]:
    def mutated(_: Term) -> datetime:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        machine, now = loop.process.machine, loop.process.world.now
        return datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=now * machine.rate + machine.skew)

    return patch.object(Term, "database_now", mutated)


def _everybody_is_fit() -> AbstractContextManager[Any]:
    async def mutated(*_: Any) -> tuple[bool, str]:
        return True, ""

    patches = ExitStack()
    patches.enter_context(patch.object(candidate, "is_eligible", mutated))
    patches.enter_context(patch.object(health, "is_eligible", mutated))
    return patches


def _renews_for_ever() -> AbstractContextManager[Any]:
    async def mutated(keeper: Leader) -> None:
        while keeper.term.lost is None:
            if (left := keeper.term.deadline - keeper._clock()) <= 0:
                keeper.end("expired")
            else:
                await keeper._woken(left)
        keeper._emit(BodyStuck(**keeper.term.facts(), since_lost=0.0, renewing=True))
        await asyncio.Event().wait()

    return patch.object(Leader, "_guard", mutated)


def _no_heartbeat_while_unwinding() -> AbstractContextManager[Any]:
    end = Leader.end

    def mutated(keeper: Leader, reason: Any, **how: bool) -> None:
        end(keeper, reason, **how)
        keeper.heartbeat.renewing = False

    return patch.object(Leader, "end", mutated)


def _unlimited_running() -> AbstractContextManager[Any]:
    init = Places.__init__

    def mutated(places: Places, **options: Any) -> None:
        init(places, **options | {"max_running": 1000})

    return patch.object(Places, "__init__", mutated)


def _triggers_are_cleared() -> AbstractContextManager[Any]:
    def mutated(requests: Requests, plan: Plan, *_: Any) -> int:
        plan.batch.requests |= requests._triggered
        return 0

    return patch.object(Requests, "plan", mutated)


def _no_run_is_too_old() -> AbstractContextManager[Any]:
    patches = ExitStack()
    due = reckoning.due
    for module in (changed, claims):
        patches.enter_context(patch.object(module, "due", lambda *args, **how: due(*args, **how | {"max_age": None})))
    patches.enter_context(patch.object(waiting_line, "overdue", lambda *_: None))
    patches.enter_context(patch.object(runs, "overdue", lambda *_: None))
    return patches


def _all_ends_are_losses() -> AbstractContextManager[Any]:
    finished = Runs._finished

    def mutated(jobs: Runs, task: asyncio.Task[Outcome]) -> None:
        changes = jobs._unwritten.changes
        before = len(changes)
        finished(jobs, task)
        for number in range(before, len(changes)):
            if changes[number].status == "succeeded":
                changes[number] = replace(changes[number], status="lost")

    return patch.object(Runs, "_finished", mutated)


def _late_reruns_are_skipped() -> AbstractContextManager[Any]:
    too_late = reckoning.too_late

    def mutated(key: RunKey, why: str) -> Change:
        return replace(too_late(key, why), status="skipped", attempt=key.attempt)

    return patch.object(waiting_line, "too_late", mutated)


def _high_ticks_are_not_compared() -> AbstractContextManager[Any]:
    record = ArchivedLedger.record

    def mutated(ledger: ArchivedLedger, term: TermKey, batch: Batch, now: datetime) -> None:
        record(ledger, term, replace(batch, seen={}), now)

    return patch.object(ArchivedLedger, "record", mutated)


def _a_former_schedule_is_forgotten() -> AbstractContextManager[Any]:
    return patch.object(Planner, "plan_changed", lambda *_: None)


def _skipped_ticks_are_not_added_up() -> AbstractContextManager[Any]:
    record = ArchivedLedger.record

    def mutated(ledger: ArchivedLedger, term: TermKey, batch: Batch, now: datetime) -> None:
        record(ledger, term, batch, now)
        for run in batch.claims:
            if (run.job, run.tick) in batch.extends:
                ledger.runs[run.job, run.tick] = replace(ledger.runs[run.job, run.tick], count=run.count)

    return patch.object(ArchivedLedger, "record", mutated)


def _places_do_not_go_round() -> AbstractContextManager[Any]:
    def mutated(_: WaitingLine, plan: Plan, state: JobState) -> None:
        plan.threads += state.job.threaded

    return patch.object(WaitingLine, "serve", mutated)


def _newer_ticks_go_first() -> AbstractContextManager[Any]:
    add = WaitingLine.add

    def mutated(line: WaitingLine, state: JobState, run: RunRecord) -> None:
        add(line, state, run)
        line._runs[state.job.name].reverse()

    return patch.object(WaitingLine, "add", mutated)


def _a_row_that_is_there_stops_its_job() -> AbstractContextManager[Any]:
    async def mutated(writing: Writing, _: Plan) -> None:
        writing._quarantine.refused = None

    return patch.object(Writing, "narrow_down", mutated)


MUTATIONS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "release before the body ended": _release_before_the_body_ended,
    "deadline from the reply": _deadline_from_the_reply,
    "no fence": _no_fence,
    "expiry by the client's clock": _expiry_by_the_client_clock,
    "blind claim": _blind_claim,
    "beats without numbers": _beats_without_numbers,
    "own duration": _own_duration,
    "no sighting": _no_sighting,
    "a first reading is trusted": _a_first_reading_is_trusted,
    "a step of the clock is trusted": _a_step_is_trusted,
    "what two steps hide is trusted": _what_two_steps_hide_is_trusted,
    "a candidate reads rarely": _a_candidate_reads_rarely,
    "a leader ignores steps back": _a_leader_ignores_steps,
    "a clean end is not released": _not_released,
    "a candidate swallows a cancellation": _a_cancellation_is_swallowed,
    "claims of ticks without a fence": _unfenced_claims,
    "runs begin before the claim is answered": _runs_before_the_claim_is_answered,
    "a new leader starts from now": _a_new_leader_starts_from_now,
    "ticks are claimed over claims": _claims_over_claims,
    "changes of runs without a condition": _unconditional_changes,
    "a final commit without a condition": _final_without_a_condition,
    "runs of older terms are forgotten": _lost_runs_are_forgotten,
    "a run is begun again as the same attempt": _rerun_as_the_same_attempt,
    "released before the runs ended": _released_before_the_runs_ended,
    "ticks by the client's clock": _ticks_by_the_client_clock,
    "everybody is fit to lead": _everybody_is_fit,
    "renews for ever for a body that hangs": _renews_for_ever,
    "no heartbeat while a body unwinds": _no_heartbeat_while_unwinding,
    "any number runs at once": _unlimited_running,
    "triggers are cleared and not run": _triggers_are_cleared,
    "no run is too old": _no_run_is_too_old,
    "what has succeeded is recorded as lost": _all_ends_are_losses,
    "what comes too late to be run again is skipped": _late_reruns_are_skipped,
    "high ticks are not compared": _high_ticks_are_not_compared,
    "the ticks of a schedule that is changed are forgotten": _a_former_schedule_is_forgotten,
    "skipped ticks are not added up": _skipped_ticks_are_not_added_up,
    "places do not go round the jobs": _places_do_not_go_round,
    "newer ticks go first": _newer_ticks_go_first,
    "a row that is there stops its job": _a_row_that_is_there_stops_its_job,
}
"""By name, what breaks one rule of the package or of its database."""
