"""What is in `examples/deploy`, and a loop that is stuck, as a probe sees it."""

from __future__ import annotations

import asyncio
import configparser
import re
import shutil
import subprocess
import threading
from pathlib import Path

import httpx
import pytest

from aiolease.stores.memory import MemoryServer, MemoryStore
from aiolease.web import status_app
from tests.campaigns import LIMIT
from tests.project import ROOT
from tests.web.browser import serving

DEPLOY = ROOT / "examples" / "deploy"
DRAIN, BEAT, CANCELLED = 10, 10, 15
"""Seconds: the default drain, the default heartbeat, and what is left for a job that is cancelled."""


def test_a_stuck_loop_does_not_answer_the_probe_of_liveness() -> None:
    """And answers once it runs again: nothing else is asked of it."""
    held, loops = threading.Event(), list[asyncio.AbstractEventLoop]()

    class Store(MemoryStore):
        async def status(self, name: str) -> None:
            loops.append(asyncio.get_running_loop())

    with serving(Store(MemoryServer())) as address:
        httpx.get(f"{address}healthz", timeout=LIMIT)
        assert httpx.get(f"{address}livez", timeout=LIMIT).status_code == 200
        loops[0].call_soon_threadsafe(held.wait, LIMIT)
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(f"{address}livez", timeout=0.5)
        held.set()
        assert httpx.get(f"{address}livez", timeout=LIMIT).status_code == 200


def test_the_deployment_leaves_time_to_drain_and_asks_no_probe_for_the_leader() -> None:
    """Its probes are paths of the page; the grace period is longer than all that a stop may take."""
    text = (DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")
    paths = {str(getattr(route, "path", "")) for route in status_app(MemoryStore()).routes}
    probes = dict(re.findall(r"(\w+)Probe:\n +httpGet: \{path: /jobs(/\w+), port: http\}", text))
    assert probes == {"startup": "/livez", "liveness": "/livez", "readiness": "/healthz"}
    assert set(probes.values()) <= paths
    before = number(text, r'command: \[sleep, "(\d+)"\]')
    assert number(text, r"terminationGracePeriodSeconds: (\d+)") >= before + DRAIN + BEAT + CANCELLED


def test_the_unit_leaves_time_to_drain_and_has_a_watchdog(tmp_path: Path) -> None:
    """Only the worker itself gets the signal: a second SIGTERM would cancel its jobs."""
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "aiolease-worker.service")
    service = unit["Service"]
    assert (service["Type"], service["KillMode"], service["Restart"]) == ("notify", "mixed", "always")
    assert int(service["TimeoutStopSec"]) >= DRAIN + BEAT + CANCELLED
    assert int(service["WatchdogSec"]) == 30
    if (verify := shutil.which("systemd-analyze")) is not None:
        copy = tmp_path / "worker.service"
        copy.write_text((DEPLOY / "aiolease-worker.service").read_text().replace(service["ExecStart"], "/bin/true"))
        said = subprocess.run([verify, "verify", copy], capture_output=True, text=True, timeout=LIMIT, check=False)
        assert (said.returncode, said.stderr) == (0, "")


def number(text: str, pattern: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, pattern
    return int(found[1])
