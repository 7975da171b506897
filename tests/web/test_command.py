"""`aiolease page`: the page alone, as a process."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from aiolease import open_store
from tests.campaigns import LIMIT
from tests.cli.commands import program
from tests.project import ROOT
from tests.servers.machine import free_port
from tests.web.served import answer_of


def test_the_page_is_served_alone(tmp_path: Path) -> None:
    """It says where it is, answers there, and ends in order with SIGTERM."""
    url, port = f"sqlite:///{tmp_path}/jobs.db", free_port()

    async def make() -> None:
        async with open_store(url) as store:
            await store.status("cron")

    asyncio.run(make())
    command = [sys.executable, "-W", "error", "-m", "aiolease", "page", "cron", "--url", url, "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert f"the page of 'cron' is at http://127.0.0.1:{port}/" in process.stdout.readline()
            page = answer_of(f"http://127.0.0.1:{port}/")
            assert "&#39;cron&#39; never had a leader" in page.text
            assert httpx.get(f"http://127.0.0.1:{port}/healthz").text == "ok\n"
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=LIMIT)
            assert (process.returncode, told) == (0, "")
        finally:
            process.kill()


@pytest.mark.parametrize("missing", ["uvicorn", "starlette", "jinja2"])
def test_what_is_missing_is_named(missing: str, tmp_path: Path) -> None:
    """One line, with what to install; no traceback."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{missing!r}] = None\n")
    result = program("page", AIOLEASE_URL="sqlite:///jobs.db", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert f"needs {missing}" in result.stderr
    assert "pip install 'aiolease[web]' uvicorn" in result.stderr


def test_a_port_is_checked() -> None:
    """As other options: one line, status 2."""
    result = program("page", "--port", "65536", AIOLEASE_URL="sqlite:///jobs.db")
    assert (result.returncode, "65535" in result.stderr) == (2, True)
