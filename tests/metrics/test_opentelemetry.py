"""OpenTelemetry: the same metrics as Prometheus, and a span around each run."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, Tracer
from prometheus_client import REGISTRY, CollectorRegistry

from aiolease import JobRegistry, JobRun, LeadershipLost, leadership
from aiolease.events import Joined, Renewed
from aiolease.metrics import OpenTelemetryMetrics, run_spans
from aiolease.testing import MemoryStore, run_job
from tests.jobs.watchers import LEASE, registry
from tests.metrics.measured import Measured
from tests.virtual import virtual

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def exported() -> Iterator[tuple[OpenTelemetryMetrics, CollectorRegistry]]:
    """An observer, and what OpenTelemetry's own exporter to Prometheus makes of it."""
    reader = PrometheusMetricReader(disable_target_info=True)
    provider = MeterProvider([reader])
    yield OpenTelemetryMetrics(provider.get_meter("aiolease")), REGISTRY
    provider.shutdown()


def test_it_exports_the_same_as_prometheus(exported: tuple[OpenTelemetryMetrics, CollectorRegistry]) -> None:
    """Names, labels and values are the same, so that one dashboard and one set of alerts serve both."""
    observer, collected = exported
    seen = Measured()

    @virtual
    async def term() -> None:
        def both(event: Any) -> None:
            seen(event)
            observer(event)
            if isinstance(event, Joined):
                assert exports(collected) == pytest.approx(without_empty_histograms(seen.samples()))

        task = asyncio.create_task(registry("a", "b").serve(MemoryStore(), on_event=both))
        await asyncio.sleep(5 * LEASE)
        task.cancel()
        await asyncio.wait([task])

    term()
    assert exports(collected) == pytest.approx(without_empty_histograms(seen.samples()))


def exports(collected: CollectorRegistry) -> Samples:
    """What the exporter shows of ours, without the labels that it adds."""
    theirs: Samples = {}
    for metric in collected.collect():
        for sample in metric.samples:
            labels = {name: value for name, value in sample.labels.items() if not name.startswith("otel_")}
            if sample.name.startswith("aiolease"):
                theirs[sample.name, tuple(sorted(labels.items()))] = sample.value
    return theirs


def without_empty_histograms(samples: Samples) -> Samples:
    """OpenTelemetry exports no histogram without a value."""
    return {key: value for key, value in samples.items() if not is_empty_histogram(key, samples)}


def test_the_names_leave_their_unit_to_the_exporter() -> None:
    """They are those of Prometheus with a dot, and without the unit and ``_total``."""
    reader = InMemoryMetricReader()
    observer = OpenTelemetryMetrics(MeterProvider([reader]).get_meter("aiolease"))
    observer(Joined(lease="cron", jobs=("job",)))
    observer(Renewed(lease="cron", beat=1, took=0.1, clock_offset=0.0))
    read = json.loads(reader.get_metrics_data().to_json())  # type: ignore[union-attr]
    (scope,) = read["resource_metrics"][0]["scope_metrics"]
    units = {metric["name"]: metric["unit"] for metric in scope["metrics"]}
    assert units["aiolease.renewal"] == units["aiolease.database_clock_offset"] == "s"
    assert units["aiolease.runs"] == units["aiolease.is_leader"] == ""


def is_empty_histogram(key: tuple[str, tuple[tuple[str, str], ...]], samples: Samples) -> bool:
    """Whether a sample belongs to a histogram without a value."""
    name, labels = key
    family = re.fullmatch(r"(.+)_(bucket|count|sum)", name)
    if family is None:
        return False
    without_limit = tuple(label for label in labels if label[0] != "le")
    return samples[f"{family[1]}_count", without_limit] == 0


class Traced:
    """A tracer, and the spans that it has ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer: Tracer = provider.get_tracer("test")

    @property
    def span(self) -> ReadableSpan:
        (span,) = self._exporter.get_finished_spans()
        return span


@virtual
async def test_a_run_is_a_span() -> None:
    """It has the facts of the run, and is the parent of what the job traces itself, in a thread too."""
    traced = Traced()
    jobs = JobRegistry(around=run_spans(traced.tracer))
    current: list[object] = []

    @jobs.every(30)
    def report(run: JobRun) -> None:
        current.append(trace.get_current_span())
        run.resource.set_attribute("rows", 3)

    await run_job(jobs, "report", attempt=2)
    span = traced.span
    assert current[0] is not trace.INVALID_SPAN
    assert span.name == "job report"
    assert span.attributes is not None
    facts = {name.removeprefix("aiolease."): value for name, value in span.attributes.items()}
    assert (facts["lease"], facts["job"], facts["attempt"], facts["term"], facts["rows"]) == (
        "default", "report", 2, 1, 3,
    )  # fmt: skip
    assert str(facts["tick"]).endswith("+00:00")
    assert span.status.status_code is StatusCode.UNSET


@virtual
async def test_a_run_that_fails_marks_its_span() -> None:
    """What the job raises is recorded, and is the run's failure all the same."""
    traced = Traced()
    jobs = JobRegistry(around=run_spans(traced.tracer))

    @jobs.every(30)
    async def fails() -> None:
        raise ValueError("no such customer")

    with pytest.raises(ValueError, match="no such customer"):
        await run_job(jobs, "fails")
    span = traced.span
    assert span.status.status_code is StatusCode.ERROR
    assert [event.name for event in span.events] == ["exception"]


@virtual
async def test_a_run_that_is_cancelled_with_its_term_marks_its_span() -> None:
    """A cancellation is no error for OpenTelemetry; a run that is lost must not look like one that went well."""
    traced, store = Traced(), MemoryStore()
    jobs = JobRegistry(around=run_spans(traced.tracer))

    @jobs.every(30)
    async def hangs() -> None:
        await asyncio.sleep(10_000)

    async def term() -> None:
        async with leadership(store) as lead:
            asyncio.get_running_loop().call_later(2 * LEASE, setattr, store, "down", True)
            await jobs.run(lead)

    with pytest.raises(LeadershipLost):
        await term()
    assert (traced.span.status.status_code, traced.span.status.description) == (StatusCode.ERROR, "CancelledError")
