"""A thousand seeds of everything that can go wrong, and the proof that the checker would have noticed."""

from __future__ import annotations

import pytest

from tests.simulation.checker import Violation
from tests.simulation.faults import simulate, violation
from tests.simulation.mutations import MUTATIONS

BATCH = 100


@pytest.mark.parametrize("start", range(0, 1000, BATCH))
def test_the_invariants_hold_whatever_happens(start: int) -> None:
    """No two bodies, no commit of an older term, no token twice, and a leader before long: for a thousand seeds."""
    failed = [(seed, found) for seed, found in map(violation, range(start, start + BATCH)) if found]
    told = "\n".join(f"{found}: python -m tests.simulation --seed {seed} --trace" for seed, found in failed)
    assert not failed, told


def test_a_seed_replays() -> None:
    """The same seed is the same journal, and much happens in it."""
    worlds = [simulate(7), simulate(7)]
    assert worlds[0].journal == worlds[1].journal
    assert len({record.kind for record in worlds[0].journal}) > 8


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_rule_is_noticed(mutation: str) -> None:
    """Each rule that is broken on purpose is found within 300 seeds."""
    with MUTATIONS[mutation]():
        for seed in range(300):
            try:
                simulate(seed)
            except Violation as found:
                print(f"{mutation}: caught at seed {seed}: {found}")
                return
    pytest.fail(f"{mutation}: not caught")
