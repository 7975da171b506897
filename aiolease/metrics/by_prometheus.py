"""`PrometheusMetrics`: the metrics as instruments of prometheus_client."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from aiolease.errors import ConfigurationError
from aiolease.events import Event
from aiolease.metrics.instruments import OF_JOBS, OF_LEASES, Instrument
from aiolease.metrics.observation import Observation

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder in which the worker processes of one server put their values, as prometheus_client wants it."""


@final
class PrometheusMetrics:
    """An observer that fills instruments of prometheus_client: hand it in as ``on_event``. One serves all leases.

    Args:
        registry: Where the instruments are registered; that of prometheus_client by default.

    Attributes:
        registry: The same.

    Raises:
        ConfigurationError: The registry has such instruments already, or ``PROMETHEUS_MULTIPROC_DIR`` names no folder
            that this process may write.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        folder = os.environ.get(_FOLDER)
        if folder is not None and not (folder and Path(folder).is_dir() and os.access(folder, os.W_OK | os.X_OK)):
            raise ConfigurationError(_FOLDER, folder, "make this folder first, for this user to write; or unset it")
        self.registry = REGISTRY if registry is None else registry
        self._observe = Observation(_Instruments(self.registry))

    def __call__(self, event: Event) -> None:
        """Takes an event."""
        self._observe(event)

    @property
    def exposed(self) -> CollectorRegistry:
        """What to expose: see `exposed`, of `registry`."""
        return exposed(self.registry)


def exposed(registry: CollectorRegistry) -> CollectorRegistry:
    """A registry, or in prometheus_client's multi-process mode one with the values of all its processes.

    That mode is on if ``PROMETHEUS_MULTIPROC_DIR`` names a folder. There the gauges of a process that has ended are
    left out, however it ended: a worker that was killed leads no more.
    """
    folder = os.environ.get(_FOLDER)
    if folder is None:
        return registry
    gathered = CollectorRegistry()
    _LivingProcesses(gathered, folder)
    return gathered


class _LivingProcesses(MultiProcessCollector):
    """The values of all processes of a folder, without the gauges of those that have ended.

    A file is empty when a process has just made it, and for ever if the process was killed then. prometheus_client
    cannot read such a file: it is passed over.
    """

    def __init__(self, registry: CollectorRegistry, folder: str) -> None:
        self._folder = folder
        super().__init__(registry, path=folder)  # type: ignore[no-untyped-call]

    def collect(self) -> Iterable[Metric]:
        for number in {file.stem.rpartition("_")[2] for file in Path(self._folder).glob("gauge_live*.db")}:
            if number.isdecimal() and not _is_alive(int(number)):
                with suppress(FileNotFoundError):  # another worker was asked at the same moment
                    mark_process_dead(int(number), self._folder)  # type: ignore[no-untyped-call]
        files = [str(file) for file in Path(self._folder).glob("*.db") if not _is_empty(file)]
        collected: Iterable[Metric] = self.merge(files)  # type: ignore[no-untyped-call]
        return collected


def _is_empty(file: Path) -> bool:
    """Whether a file has no values yet, or is gone: another worker was asked at the same moment."""
    try:
        return file.stat().st_size == 0
    except FileNotFoundError:
        return True


def _is_alive(pid: int) -> bool:
    """Whether a process of this machine goes on; one that its parent has not taken notice of yet does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's, or there is no /proc
        return True
    return state != "Z"


class _Instruments:
    """The sink: an instrument of prometheus_client for each of ours."""

    def __init__(self, registry: CollectorRegistry) -> None:
        try:
            self._made = {each: _make(each, registry) for each in (*OF_LEASES, *OF_JOBS)}
        except ValueError as error:
            raise ConfigurationError("registry", registry, f"make one PrometheusMetrics for it: {error}") from error
        self._children: dict[tuple[Instrument, tuple[str, ...]], Any] = {}

    def _child(self, instrument: Instrument, labels: tuple[str, ...]) -> Any:
        """The instrument with these labels: of thousands of jobs it is not looked up anew each time."""
        key = (instrument, labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._made[instrument].labels(*labels)
        return child

    def begin(self, instrument: Instrument, *labels: str) -> None:
        self._child(instrument, labels)

    def add(self, instrument: Instrument, amount: float, *labels: str) -> None:
        self._child(instrument, labels).inc(amount)

    def set(self, instrument: Instrument, value: float, *labels: str) -> None:
        self._child(instrument, labels).set(value)

    def observe(self, instrument: Instrument, seconds: float, *labels: str) -> None:
        self._child(instrument, labels).observe(seconds)


def _make(instrument: Instrument, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    name, text, labels = instrument.name, instrument.text, instrument.labels
    if instrument.kind == "counter":
        return Counter(name, text, labels, registry=registry)
    if instrument.kind == "gauge":
        return Gauge(name, text, labels, registry=registry, multiprocess_mode=instrument.together)
    return Histogram(name, text, labels, registry=registry, buckets=instrument.buckets)
