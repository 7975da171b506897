"""A process of the fleet that Prometheus scrapes: one job is well, one raises each time."""

from __future__ import annotations

import asyncio
import sys

from prometheus_client import start_http_server

from aiolease import JobRegistry
from aiolease.metrics import PrometheusMetrics

jobs = JobRegistry()


@jobs.every(1)
async def works() -> None: ...


@jobs.every(1)
async def fails() -> None:
    raise ValueError("no such customer")


async def main(url: str, port: int) -> None:
    metrics = PrometheusMetrics()
    start_http_server(port, addr="127.0.0.1", registry=metrics.exposed)
    await jobs.serve(url, on_event=metrics, lease_duration=3.0)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
