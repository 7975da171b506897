"""The metrics: what each event changes, and what stands there before anything has happened."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from aiolease import ConfigurationError, StoreUnavailable, leadership, open_store
from aiolease.events import (
    Elected,
    Event,
    Joined,
    LoopBlocked,
    Lost,
    Notice,
    Released,
    ReleaseFailed,
    Resigned,
    RunFinished,
    RunStarted,
    TickSkipped,
)
from aiolease.metrics import PrometheusMetrics
from aiolease.metrics.instruments import OF_JOBS, OF_LEASES
from aiolease.testing import MemoryServer, MemoryStore
from tests.jobs.watchers import LEASE, in_every_state, registry
from tests.metrics.measured import Measured
from tests.project import ROOT
from tests.virtual import START, virtual

TERM: dict[str, Any] = {"lease": "default", "holder": "web1-7-0123456789abcdef", "token": 7}
RUN: dict[str, Any] = {**TERM, "job": "job", "tick": START}
ELECTED = Elected(**TERM, elected_at=START, database="memory")


@virtual
async def test_zeros_are_there_before_anything_has_happened() -> None:
    """Of a process that has never reached its database all metrics are exported, for its lease and its jobs."""
    seen, store = Measured(), MemoryStore()
    store.down = True
    task = asyncio.create_task(registry("a", "b").serve(store, on_event=seen))
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait([task])
    samples = seen.samples()
    assert set(samples.values()) == {0}
    names = {re.sub(r"_(bucket|count|sum)$", "", name) for name, _ in samples}
    assert names == {instrument.name for instrument in (*OF_LEASES, *OF_JOBS)}
    of_jobs = {dict(labels).get("job") for _, labels in samples}
    assert of_jobs == {None, "a", "b"}
    assert seen.value("terms_ended_total", reason="expired") == 0
    assert seen.value("runs_total", job="a", status="failed") == 0


@virtual
async def test_a_block_and_its_jobs_begin_with_zeros_too() -> None:
    """`leadership` knows its lease, and `JobRegistry.run` its jobs, before anything has happened."""
    seen, store = Measured(), MemoryStore()
    told: list[Event] = []

    def observe(event: Event) -> None:
        told.append(event)
        seen(event)

    async with leadership(store, "cron", on_event=observe) as lead:
        assert told[0] == Joined(lease="cron")
        assert seen.value("renewal_failures_total", lease="cron") == 0
        assert seen.value("runs_total", lease="cron", job="a", status="succeeded") is None
        running = asyncio.create_task(registry("a").run(lead))
        await asyncio.sleep(0)
        assert seen.value("runs_total", lease="cron", job="a", status="succeeded") == 0
        running.cancel()
        await asyncio.wait([running])


@virtual
async def test_one_of_a_fleet_leads_and_each_sees_the_term() -> None:
    """A crash moves the one from process to process; each shows the number of the latest term, and the clocks."""
    server, fleet = MemoryServer(), [Measured() for _ in range(3)]
    stores = [MemoryStore(server) for _ in fleet]
    tasks = [
        asyncio.create_task(registry("job").serve(store, on_event=seen))
        for store, seen in zip(stores, fleet, strict=True)
    ]
    await asyncio.sleep(2 * LEASE + 1)
    assert [seen.value("is_leader") for seen in fleet] == [1, 0, 0]
    assert [seen.value("term") for seen in fleet] == [1, 1, 1]
    assert (fleet[0].value("renewal_seconds_count") or 0) >= 5
    assert [seen.value("database_clock_offset_seconds") for seen in fleet] == [0, 0, 0]
    server.clock_offset -= timedelta(seconds=3)
    stores[0].down = True
    await asyncio.sleep(3 * LEASE)
    leading = [seen.value("is_leader") or 0 for seen in fleet]
    assert (leading[0], sorted(leading[1:])) == (0, [0, 1])
    assert fleet[0].value("terms_ended_total", reason="expired") == 1
    assert (fleet[0].value("renewal_failures_total") or 0) > 3
    assert [seen.value("term") for seen in fleet[1:]] == [2, 2]
    assert [seen.value("database_clock_offset_seconds") for seen in fleet[1:]] == [3, 3]
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert [seen.value("is_leader") for seen in fleet] == [0, 0, 0]


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([Lost(**TERM, reason="taken"), Released(**TERM)], "taken"),
        ([Resigned(**TERM, requested=True), ReleaseFailed(**TERM, error="gone")], "resigned"),
        ([Released(**TERM)], "ended"),
        ([ReleaseFailed(**TERM, error="gone")], "ended"),
        ([LoopBlocked(**TERM, stack="here"), Lost(**TERM, reason="expired")], "expired"),
    ],
    ids=["lost", "resigned", "released", "not released", "blocked"],
)
def test_a_term_ends_once(events: list[Any], reason: str) -> None:
    """The first event of its end counts, and says why; from then on this process does not lead."""
    seen = Measured()
    seen(ELECTED)
    assert seen.value("is_leader") == 1
    seen(events[0])
    assert seen.value("is_leader") == 0
    seen(*events[1:])
    ended = {labels["reason"]: value for name, labels, value in told(seen) if name == "aiolease_terms_ended_total"}
    assert {each for each, count in ended.items() if count} == {reason}
    assert sum(ended.values()) == 1


def test_the_end_of_an_older_term_does_not_end_a_newer() -> None:
    """A body of a lost term may unwind while this process leads again: its release says nothing of the newer term."""
    seen = Measured()
    newer = {**TERM, "token": 9}
    seen(ELECTED, Lost(**TERM, reason="expired"), Elected(**newer, elected_at=START, database="memory"))
    seen(Released(**TERM))
    assert seen.value("is_leader") == 1
    assert seen.value("terms_ended_total", reason="ended") == 0


def test_a_loop_that_was_blocked_says_nothing_of_the_loop_that_leads_now() -> None:
    """Two loops of one process: one is blocked past its deadline, the other is elected, and then the first wakes up."""
    seen = Measured()
    seen(ELECTED, LoopBlocked(**TERM, stack="here"))
    assert seen.value("is_leader") == 0
    seen(Elected(**TERM | {"token": 8}, elected_at=START, database="memory"), Lost(**TERM, reason="expired"))
    assert seen.value("is_leader") == 1


def test_runs_are_counted_by_how_they_ended() -> None:
    """A failure that is tried again is one of its own; how long a lost run would have taken nobody knows."""
    seen = Measured()
    seen(RunStarted(**RUN, late=2.0), RunFinished(**RUN, status="succeeded", took=3.0))
    seen(RunFinished(**RUN, status="failed", took=4.0, error=ValueError(), retry_at=START))
    seen(RunFinished(**RUN, status="failed", took=5.0, error=ValueError()))
    seen(RunFinished(**RUN, status="lost", took=600.0))
    seen(TickSkipped(**TERM, job="job", since=START, count=3, reason="too old"))
    counted = [seen.value("runs_total", job="job", status=each) for each in ("succeeded", "retried", "failed", "lost")]
    assert counted == [1, 1, 1, 1]
    assert seen.value("run_duration_seconds_count", job="job") == 3
    assert seen.value("run_duration_seconds_sum", job="job") == 12
    assert seen.value("run_lateness_seconds_sum", job="job") == 2
    assert seen.value("ticks_skipped_total", job="job") == 3


@virtual
async def test_how_jobs_stand_comes_from_the_looks() -> None:
    """Leader and follower show the same of each job, by their looks."""
    server, pair = MemoryServer(START), [Measured(), Measured()]
    tasks = [asyncio.create_task(in_every_state().serve(MemoryStore(server), on_event=pair[0]))]
    await asyncio.sleep(5)
    others = registry("fails", "hangs", "waits", "paused")
    tasks.append(asyncio.create_task(others.serve(MemoryStore(server), on_event=pair[1])))
    async with open_store(MemoryStore(server)) as store:
        await store.pause("default", "paused")
    await asyncio.sleep(4 * LEASE + 1)
    for seen in pair:
        assert (seen.value("job_failures_in_a_row", job="fails") or 0) >= 9
        assert seen.value("runs_running", job="hangs") == 1
        assert (seen.value("runs_queued", job="waits") or 0) >= 1
        assert [seen.value("job_paused", job=job) for job in ("paused", "waits")] == [1, 0]
        assert seen.value("job_next_tick_timestamp_seconds", job="paused") == 0
        assert (seen.value("job_next_tick_timestamp_seconds", job="waits") or 0) > START.timestamp()
        last = seen.value("job_last_success_timestamp_seconds", job="waits") or 0
        assert START.timestamp() < last < START.timestamp() + 101
        assert seen.value("job_last_success_timestamp_seconds", job="fails") == 0
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@virtual
async def test_a_ledger_that_cannot_be_written_is_counted_and_its_job_is_overdue() -> None:
    """Each failed exchange counts; the log says it now and then only."""
    server, seen = MemoryServer(), Measured()
    store = MemoryStore(server)
    task = asyncio.create_task(registry("job").serve(store, on_event=seen))
    await asyncio.sleep(LEASE)
    assert seen.value("ledger_failures_total") == 0
    store.fail("record", StoreUnavailable("memory", "a lock"), times=10_000)
    await asyncio.sleep(5 * LEASE)
    assert (seen.value("ledger_failures_total") or 0) > 30
    assert (seen.value("job_overdue_seconds", job="job") or 0) > 2 * LEASE
    assert seen.value("is_leader") == 1
    store._faults.clear()
    task.cancel()
    await asyncio.wait([task])


def test_labels_are_leases_and_jobs_and_nothing_else() -> None:
    """What happens again and again, to the same leases and jobs, makes no further series."""
    seen = Measured()

    def all_over(token: int) -> None:
        term = TERM | {"token": token, "holder": f"web{token}"}
        seen(Joined(**term, jobs=("job",)), Elected(**term, elected_at=START, database="memory"))
        run = {**term, "job": "job", "tick": START + timedelta(seconds=token)}
        seen(RunStarted(**run, late=token), RunFinished(**run, status="failed", took=token, error=ValueError(token)))
        seen(Lost(**term, reason="expired"), Notice(lease="", severity="INFO", text="of no lease"))

    all_over(1)
    before = set(seen.samples())
    for token in range(2, 50):
        all_over(token)
    assert set(seen.samples()) == before


def test_a_registry_takes_them_once() -> None:
    """One observer serves all leases of a process; a second on the same registry is refused, and says so."""
    registry = CollectorRegistry()
    PrometheusMetrics(registry)
    with pytest.raises(ConfigurationError, match="make one PrometheusMetrics for it"):
        PrometheusMetrics(registry)


@pytest.mark.parametrize("folder", ["", "missing"])
def test_the_folder_of_the_workers_must_be_there(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each event would be an error in the log, and an empty name would fill the current folder."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", folder and str(tmp_path / folder))
    with pytest.raises(ConfigurationError, match=r"PROMETHEUS_MULTIPROC_DIR=.*make this folder first"):
        PrometheusMetrics(CollectorRegistry())


def test_a_file_that_a_worker_has_only_made_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a worker starts, and for ever if it was killed then, a file of its values is empty: the others' count."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    values = MmapedDict(str(tmp_path / "counter_1.db"))  # type: ignore[no-untyped-call]
    values.write_value(mmap_key("elections", "elections_total", ["lease"], ["default"], "Counts."), 3.0, 0.0)  # type: ignore[no-untyped-call]
    values.close()  # type: ignore[no-untyped-call]
    (tmp_path / "counter_2.db").touch()
    gathered = PrometheusMetrics(CollectorRegistry()).exposed
    assert gathered.get_sample_value("elections_total", {"lease": "default"}) == 3.0


@pytest.mark.parametrize(
    ("name", "own", "others"),
    [
        ("PrometheusMetrics", "prometheus_client", "opentelemetry"),
        ("OpenTelemetryMetrics", "opentelemetry", "prometheus_client"),
        ("run_spans", "opentelemetry", "prometheus_client"),
    ],
)
def test_each_brings_only_its_own_packages(name: str, own: str, others: str) -> None:
    """An observer imports the package of its extra, and not that of the other; without it, it names the extra."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    extra = "prometheus" if own == "prometheus_client" else "otel"
    assert [re.sub(r"\W.*", "", each.replace("-", "_")) for each in extras[extra]] in ([own], [f"{own}_api"])
    program = f"import sys\nfrom aiolease.metrics import {name}\nassert {others!r} not in sys.modules\n"
    program += f"sys.modules.update({{each: None for each in sys.modules if each.startswith({own!r})}})\n"
    program += "for each in list(sys.modules):\n    if each.startswith('aiolease.metrics'): del sys.modules[each]\n"
    program += f"try:\n    from aiolease.metrics import {name}\nexcept ImportError as error:\n    print(error)\n"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert f"pip install 'aiolease[{extra}]'" in done.stdout, done.stdout + done.stderr


def told(seen: Measured) -> list[tuple[str, dict[str, str], float]]:
    return [(name, dict(labels), value) for (name, labels), value in seen.samples().items()]
