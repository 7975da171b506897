"""Metrics on a registry of their own, and what they show."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from aiolease.events import Event
from aiolease.metrics import PrometheusMetrics


class Measured:
    """An observer, and a reading of what it exports."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = PrometheusMetrics(self.registry)

    def __call__(self, *events: Event) -> None:
        for event in events:
            self.metrics(event)

    def value(self, name: str, lease: str = "default", **labels: str) -> float | None:
        """One sample, without ``aiolease_`` in its name; ``None`` if it is not exported."""
        return self.registry.get_sample_value(f"aiolease_{name}", {"lease": lease, **labels})

    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """All of them, by name and labels."""
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if not sample.name.endswith("_created")
        }
