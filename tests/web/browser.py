"""A headless Chromium of this machine, and a page that uvicorn serves in a thread."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aiolease.web import status_app
from tests.campaigns import LIMIT
from tests.cli.worlds import DAY, HOUR, MINUTE, NOW, SECOND, TICK, World
from tests.project import ROOT
from tests.servers.machine import free_port

AXE = (Path(__file__).parent / "axe" / "axe.min.js").read_text(encoding="utf-8")

SLOW = 1000 * LIMIT
"""Milliseconds within which everything here has to happen."""


def chromium() -> str:
    """The browser; skips where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("there is no chromium on this machine: `make servers` installs it")
    return found


@contextmanager
def serving(source: Any, **options: Any) -> Iterator[str]:
    """Serves a page; gives its address."""
    import uvicorn

    port = free_port()
    app = status_app(source, **options)
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    deadline = time.monotonic() + LIMIT
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join(LIMIT)


def fleet(world: World) -> None:
    """A fleet as on any working day: most is well, three things are not."""
    names = "close_stale_sessions debt_aging send_reminders rebuild_search sync_stock nightly_report purge_logs".split()
    for number, name in enumerate(names):
        schedule = ("every 30s", "cron 0 9 * * *", "every 300s")[number % 3]
        step = (30 * SECOND, DAY, 5 * MINUTE)[number % 3]
        newest = TICK if schedule.startswith("cron") else NOW - NOW_PAST
        world.job(name, schedule, high_tick=newest)
        for count in range(14):
            tick = newest - count * step
            took = (2 + (7 * count + number) % 9) * SECOND
            world.run(job=name, tick=tick, started_at=tick + 0.2 * SECOND, finished_at=tick + took)
    for days in range(2):
        world.run("failed", job="nightly_report", tick=NOW - NOW_PAST - days * 30 * SECOND, error=ERROR)
    world.run("lost", job="debt_aging", tick=TICK - 3 * DAY, error="lost with term 5", finished_at=None)
    world.job("import_prices", "every 60s", high_tick=NOW - 40 * MINUTE)
    world.job(
        "mail_digest", "cron 30 6 * * MON-FRI", paused_at=NOW - 3 * HOUR, pause_note="until the template is mended"
    )
    world.run("running", job="rebuild_search", tick=NOW - 20 * SECOND)
    began = NOW - 3 * DAY
    for token, (hours, gap, status) in enumerate([(20, 0, "succeeded"), (12, 0.6, "lost"), (14, 0, "succeeded")], 4):
        ended = began + hours * HOUR
        world.term(token, began, ended, status, {"lost": "its lease expired"}.get(status))
        began = ended + gap * HOUR
    world.term(7, NOW - DAY, None, "running")


NOW_PAST = 10 * SECOND
ERROR = "ConnectionError: the mail server mx1.shop.test refused the connection, after 3 tries"

WORKER = """
from aiolease import JobRegistry

jobs = JobRegistry()

@jobs.every(1)
async def sweep() -> None: ...
"""


@contextmanager
def workers(folder: Path, url: str, count: int) -> Iterator[None]:
    """Copies of a worker, as processes, with a lease of three seconds."""
    (folder / "worker.py").write_text(WORKER, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "AIOLEASE_URL": url, "AIOLEASE_LEASE_DURATION": "3"}
    command = [sys.executable, "-m", "aiolease", "run", "worker:jobs"]
    started = [subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait(LIMIT)
