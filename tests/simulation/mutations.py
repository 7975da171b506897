"""The rules, broken one by one: a checker that does not notice is worth nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

from aiolease._candidate import Candidate, Claim
from aiolease._fence import RunKey, Term
from aiolease._leadership import Leadership, _Tenure
from aiolease._lease import Lease, Sighting
from aiolease._settings import Timings
from tests.simulation.network import Server


def _release_before_the_body_ended() -> AbstractContextManager[Any]:
    end = _Tenure.end

    def mutated(tenure: _Tenure, reason: Any, **how: bool) -> None:
        first = tenure._reason is None and not tenure._body_ended
        end(tenure, reason, **how)
        if first:
            tenure._early = asyncio.get_running_loop().create_task(tenure.release())  # type: ignore[attr-defined]

    return patch.object(_Tenure, "end", mutated)


def _deadline_from_the_reply() -> AbstractContextManager[Any]:
    init, renewed = Leadership.__init__, _Tenure._renewed

    def started(lead: Leadership, store: Any, claim: Claim, timings: Timings, *more: Any) -> None:
        init(lead, store, replace(claim, sent_at=claim.received_at), timings, *more)

    def mutated(tenure: _Tenure, lease: Lease, _: float) -> None:
        renewed(tenure, lease, tenure._clock())

    patches = ExitStack()
    patches.enter_context(patch.object(Leadership, "__init__", started))
    patches.enter_context(patch.object(_Tenure, "_renewed", mutated))
    return patches


def _no_fence() -> AbstractContextManager[Any]:
    def mutated(_: Server, __: Term, final: RunKey | None = None) -> None:
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


def _beats_without_numbers() -> AbstractContextManager[Any]:
    renew = Server.renew

    def mutated(server: Server, name: str, holder: str, token: int, *renewal: Any) -> Lease | None:
        row = server.leases.get(name)
        if row is not None and row.held_by(holder, token):
            server.leases[name] = replace(row, beat=-1)
        return renew(server, name, holder, token, *renewal)

    return patch.object(Server, "renew", mutated)


def _own_duration() -> AbstractContextManager[Any]:
    saw = Candidate._saw

    def mutated(candidate: Candidate, lease: Lease | None, received: float) -> None:
        saw(candidate, lease, received)
        if (seen := candidate._sighting) is not None:
            own = candidate._timings.lease_duration
            candidate._sighting = replace(seen, wait=min(seen.wait, own), duration=own)

    return patch.object(Candidate, "_saw", mutated)


def _no_sighting() -> AbstractContextManager[Any]:
    return patch.object(Sighting, "claimable", lambda _, lease, __: lease.expired)


MUTATIONS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "release before the body ended": _release_before_the_body_ended,
    "deadline from the reply": _deadline_from_the_reply,
    "no fence": _no_fence,
    "expiry by the client's clock": _expiry_by_the_client_clock,
    "blind claim": _blind_claim,
    "beats without numbers": _beats_without_numbers,
    "own duration": _own_duration,
    "no sighting": _no_sighting,
}
"""By name, what breaks one rule of the package or of its database."""
