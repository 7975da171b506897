"""`run_spans`: a span of OpenTelemetry around each run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from opentelemetry import trace
from opentelemetry.trace import Span, StatusCode, Tracer

from aiolease import JobRun, __version__


def run_spans(tracer: Tracer | None = None) -> Callable[[JobRun], AbstractAsyncContextManager[Span]]:
    """Makes an ``around`` of a registry: each run is a span, which the job finds as ``run.resource``.

    The span is named ``job`` and the job's name. It has the attributes ``aiolease.lease``, ``aiolease.job``,
    ``aiolease.tick`` (ISO 8601, UTC), ``aiolease.attempt`` and ``aiolease.term``. What the job raises is recorded. A
    run that is cancelled, because its term or its time is over, ends with an error, too.

    Args:
        tracer: Makes the spans; by default that of the global provider for ``aiolease``.
    """
    used = tracer or trace.get_tracer("aiolease", __version__)

    @asynccontextmanager
    async def around(run: JobRun) -> AsyncIterator[Span]:
        attributes: dict[str, str | int] = {
            "aiolease.lease": run.leadership.name,
            "aiolease.job": run.job,
            "aiolease.tick": run.tick.isoformat(),
            "aiolease.attempt": run.attempt,
            "aiolease.term": run.token,
        }
        with used.start_as_current_span(f"job {run.job}", attributes=attributes) as span:
            try:
                yield span
            except BaseException as error:
                if not isinstance(error, Exception):  # OpenTelemetry takes it for no error
                    span.set_status(StatusCode.ERROR, type(error).__name__)
                raise

    return around
