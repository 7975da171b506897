"""Metrics and traces: observers of the events, and what is entered around each run.

============================  ==========================================================================================
`PrometheusMetrics`           an ``on_event`` that fills prometheus_client's instruments; the extra ``prometheus``
`OpenTelemetryMetrics`        the same for a meter of OpenTelemetry; the extra ``otel``
`run_spans`                   an ``around`` that makes a span of OpenTelemetry for each run; the extra ``otel``
============================  ==========================================================================================

Both observers have the same metrics, which stand in `aiolease.metrics.instruments`. They read no database. Each is
imported when it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiolease.metrics.by_opentelemetry import OpenTelemetryMetrics
    from aiolease.metrics.by_prometheus import PrometheusMetrics
    from aiolease.metrics.spans import run_spans

__all__ = ["OpenTelemetryMetrics", "PrometheusMetrics", "run_spans"]

_ROOMS = {
    "OpenTelemetryMetrics": ("by_opentelemetry", "otel"),
    "PrometheusMetrics": ("by_prometheus", "prometheus"),
    "run_spans": ("spans", "otel"),
}
"""In which file each name is, and which extra brings what that needs."""


def __getattr__(attribute: str) -> Any:
    if attribute not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")
    room, extra = _ROOMS[attribute]
    try:
        return getattr(import_module(f"{__name__}.{room}"), attribute)
    except ModuleNotFoundError as error:
        raise ImportError(f"{attribute} needs {error.name}: pip install 'aiolease[{extra}]'") from error
