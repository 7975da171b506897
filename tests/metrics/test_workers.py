"""Several worker processes of one server are one target: `PrometheusMetrics.exposed` has what all of them have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from aiolease import open_store
from tests.campaigns import LIMIT, until
from tests.docs.pages import blocks_of
from tests.project import ROOT
from tests.servers import free_port

APPLICATION = next(block for block in blocks_of(ROOT / "docs" / "metrics.md") if block.name == "with-fastapi")


@contextmanager
def workers(folder: Path, url: str, port: int) -> Iterator[None]:
    """The application of the page under ``uvicorn --workers 4``."""
    values = folder / "values"
    values.mkdir()
    (folder / "app.py").write_text(APPLICATION.text, encoding="utf-8")
    environment = {
        **os.environ,
        "AIOLEASE_URL": url,
        "AIOLEASE_LEASE_DURATION": "3",
        "PROMETHEUS_MULTIPROC_DIR": str(values),
    }
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "app:app",
        "--app-dir",
        str(folder),
        "--workers",
        "4",
        "--port",
        str(port),
    ]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(LIMIT)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def scrape(port: int) -> dict[str, float]:
    """The metrics of the lease; none while the server starts."""
    try:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=LIMIT).text
    except httpx.TransportError:
        return {}
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {sample.name: sample.value for sample in samples if sample.labels == {"lease": "default"}}


async def test_one_of_four_workers_leads_and_one_again_after_it_was_killed(tmp_path: Path) -> None:
    """A scrape reaches any of the workers. It finds one leader, and one again after a crash, which leaves no trace."""
    port, url = free_port(), f"sqlite:///{tmp_path / 'jobs.db'}"

    def leads(term: int) -> bool:
        values = scrape(port)
        return values.get("aiolease_is_leader") == 1 and values["aiolease_term"] >= term

    with workers(tmp_path, url, port):
        await until(lambda: leads(1), "one of the workers leads", 3 * LIMIT)
        async with open_store(url) as store:
            row = await store.status("default")
        assert row is not None
        assert row.holder is not None
        os.kill(int(row.holder.split("-")[-2]), signal.SIGKILL)
        await until(lambda: leads(row.token + 1), "another worker leads", 2 * LIMIT)
        await until(lambda: scrape(port)["aiolease_renewal_seconds_count"] > 0, "it renews its lease", 2 * LIMIT)
