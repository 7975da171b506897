from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import prometheus_client
from opentelemetry import trace

from aiolease.testing import run_job
from tests.docs.setup import Setup, Stage


def an_application(stage: Stage) -> Iterator[None]:
    from fastapi.testclient import TestClient

    stage.environment["AIOLEASE_URL"] = "sqlite:///jobs.db"
    yield
    with TestClient(stage.names["app"]) as client:
        page = client.get("/metrics")
        assert page.headers["content-type"].startswith("text/plain")
        assert 'aiolease_is_leader{lease="default"}' in page.text
        assert 'aiolease_runs_total{job="close_stale_sessions",lease="default",status="failed"} 0.0' in page.text


def on_a_free_port(stage: Stage) -> Iterator[None]:
    stage.environment["AIOLEASE_URL"] = "sqlite:///jobs.db"
    start = prometheus_client.start_http_server

    def started(port: int, addr: str) -> object:
        assert port == 9100
        return start(0, addr=addr)

    prometheus_client.start_http_server = started  # type: ignore[assignment]
    yield
    assert b'aiolease_is_leader{lease="default"}' in prometheus_client.generate_latest()


async def a_span(stage: Stage) -> AsyncIterator[None]:
    yield
    await run_job(stage.names["jobs"], "close_stale_sessions")
    assert trace.get_current_span() is trace.INVALID_SPAN


def observed(stage: Stage) -> Iterator[None]:
    yield
    assert callable(stage.names["observer"])


SETUPS = {
    "with-fastapi": Setup(around=an_application),
    "a-worker-alone": Setup(around=on_a_free_port, run=20.0, expect=("acquired leadership of 'default' (term 1)",)),
    "opentelemetry": Setup(around=observed),
    "traces": Setup(around=a_span),
}
