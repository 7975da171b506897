"""The rows of the database in memory: kept by job, and changed without `dataclasses.replace`."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from aiolease.stores.memory.ledger import Ledger
from aiolease.stores.memory.tables import Runs
from aiolease.stores.memory.writing import _changed
from aiolease.stores.records import Place, RunRecord

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)

TICKS = [NOON + timedelta(seconds=number) for number in range(4)]

places = st.tuples(st.sampled_from(["one", "other"]), st.sampled_from(TICKS))


def at(number: int) -> datetime:
    return NOON + timedelta(seconds=number)


def a_run(place: Place, attempt: int = 1) -> RunRecord:
    job, tick = place
    return RunRecord(job=job, tick=tick, attempt=attempt, token=7, holder="web1", status="succeeded")


@given(st.lists(st.tuples(places, st.booleans())))
def test_rows_are_a_mapping(steps: list[tuple[Place, bool]]) -> None:
    """Rows are kept by job, and are found as in a dict by job and tick."""
    rows, model = Runs(), dict[Place, RunRecord]()
    for number, (place, writes) in enumerate(steps):
        if writes:
            rows[place] = model[place] = a_run(place, number)
        elif place in model:
            del rows[place], model[place]
        assert rows.find(place) == rows.get(place) == model.get(place)
        assert (place in rows) == (place in model)
    assert dict(rows) == model
    assert len(rows) == len(model)
    assert sorted(rows.every(), key=repr) == sorted(model.values(), key=repr)
    for job in "one", "other":
        assert rows.of(job) == {tick: run for (name, tick), run in model.items() if name == job}


def test_a_changed_row_is_another_row() -> None:
    """A row is changed as by `dataclasses.replace`: the row that was read before stays as it was."""
    run = a_run(("one", NOON))
    changed = _changed(run, {"status": "lost", "error": "gone", "count": None})
    assert changed == replace(run, status="lost", error="gone", count=None)
    assert run == a_run(("one", NOON))


def test_pruning_looks_at_the_rows_of_its_jobs_only() -> None:
    """What the pruning of some jobs takes does not depend on how many rows the others have."""

    class Counted(dict[datetime, RunRecord]):
        looks = 0

        def items(self) -> object:  # type: ignore[override]
            Counted.looks += 1
            return super().items()

    ledger = Ledger()
    for job in "one", "other":
        for number in range(5):
            ledger.runs[job, at(number)] = a_run((job, at(number)))
    ledger.runs._by_job["other"] = Counted(ledger.runs._by_job["other"])
    assert ledger.prune(["one"], 2) == []
    assert [run.tick for run in ledger.history("one")] == [at(3), at(4)]
    assert len(ledger.history("other")) == 5
    assert Counted.looks == 0
