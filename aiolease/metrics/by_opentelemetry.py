"""`OpenTelemetryMetrics`: the metrics as instruments of an OpenTelemetry meter."""

from __future__ import annotations

from typing import Any, final

from opentelemetry import metrics
from opentelemetry.metrics import Meter

from aiolease import __version__
from aiolease.events import Event
from aiolease.metrics.instruments import OF_JOBS, OF_LEASES, Instrument
from aiolease.metrics.observation import Observation


@final
class OpenTelemetryMetrics:
    """An observer that fills instruments of a meter: hand it in as ``on_event``. One serves all leases.

    The names are those of Prometheus with a dot behind ``aiolease``, and without the unit and ``_total``, which an
    exporter to Prometheus adds: ``aiolease.run_duration``, in seconds. Histograms begin with their first value,
    and not with a zero.

    Args:
        meter: Makes the instruments; by default that of the global provider for ``aiolease``.
    """

    def __init__(self, meter: Meter | None = None) -> None:
        self._observe = Observation(_Instruments(meter or metrics.get_meter("aiolease", __version__)))

    def __call__(self, event: Event) -> None:
        """Takes an event."""
        self._observe(event)


class _Instruments:
    """The sink: an instrument of the meter for each of ours."""

    def __init__(self, meter: Meter) -> None:
        self._made = {each: _make(each, meter) for each in (*OF_LEASES, *OF_JOBS)}

    def begin(self, instrument: Instrument, *labels: str) -> None:
        if instrument.kind == "counter":
            self.add(instrument, 0, *labels)
        elif instrument.kind == "gauge":
            self.set(instrument, 0, *labels)

    def add(self, instrument: Instrument, amount: float, *labels: str) -> None:
        self._made[instrument].add(amount, _attributes(instrument, labels))

    def set(self, instrument: Instrument, value: float, *labels: str) -> None:
        self._made[instrument].set(float(value), _attributes(instrument, labels))

    def observe(self, instrument: Instrument, seconds: float, *labels: str) -> None:
        self._made[instrument].record(seconds, _attributes(instrument, labels))


def _attributes(instrument: Instrument, labels: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(instrument.labels, labels, strict=True))


def _make(instrument: Instrument, meter: Meter) -> Any:
    name = instrument.name.removesuffix("_total").removesuffix("_seconds").replace("aiolease_", "aiolease.", 1)
    unit, text = "s" if instrument.name.endswith("_seconds") else "", instrument.text
    if instrument.kind == "counter":
        return meter.create_counter(name, unit, text)
    if instrument.kind == "gauge":
        return meter.create_gauge(name, unit, text)
    return meter.create_histogram(name, unit, text, explicit_bucket_boundaries_advisory=instrument.buckets)
