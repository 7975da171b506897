"""A private Prometheus, and promtool: from the Debian package ``prometheus``."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.servers import free_port
from tests.servers.machine import STOP_LIMIT

INTERVAL = 0.5
"""Seconds between two scrapes."""


def missing(program: str) -> str | None:
    """Why a program of the package cannot be run; ``None`` if it can."""
    return None if shutil.which(program) else f"{program} is not installed (Debian package prometheus)"


def promtool(*arguments: str | Path) -> str:
    """Runs promtool, which must find nothing wrong; returns what it says."""
    done = subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, timeout=100, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Prometheus:
    """One that scrapes.

    Args:
        port: Where it listens.
    """

    def __init__(self, port: int) -> None:
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=20)

    def close(self) -> None:
        self._client.close()

    def get(self, path: str, **parameters: str) -> Any:
        """What its API answers; ``None`` while it starts."""
        try:
            answer = self._client.get(path, params=parameters)
        except httpx.TransportError:
            return None
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            return None
        assert answer.status_code == httpx.codes.OK, f"{parameters}: {answer.text}"
        return answer.json()["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """What an expression is now: the labels and the value of each series."""
        found = self.get("/query", query=expression)
        return [(each["metric"], float(each["value"][1])) for each in found["result"]] if found else []

    def samples(self, expression: str) -> dict[str, list[tuple[float, float]]]:
        """What was scraped, by instance: moments and values."""
        found = self.get("/query", query=f"{expression}[10m]")
        return {
            each["metric"]["instance"]: [(at, float(value)) for at, value in each["values"]] for each in found["result"]
        }


@contextmanager
def prometheus(folder: Path, targets: Sequence[str], rules: Path) -> Iterator[Prometheus]:
    """A Prometheus that scrapes some targets, while the block runs."""
    port, settings = free_port(), folder / "prometheus.json"
    scrape = {"job_name": "fleet", "honor_labels": True, "static_configs": [{"targets": list(targets)}]}
    every = f"{INTERVAL * 1000:.0f}ms"
    settings.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": "1s"},
                "scrape_configs": [scrape],
                "rule_files": [str(rules)],
            }
        )
    )
    command = ["prometheus", f"--config.file={settings}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    server = Prometheus(port)
    try:
        yield server
    finally:
        server.close()
        process.terminate()
        try:
            process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
