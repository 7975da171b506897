"""The examples, as a person runs them: programs of their own, on an embedded and on a real database."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.servers import MariaDBServer, free_port

EXAMPLES = Path(__file__).parents[1] / "examples"
LIMIT = 30.0


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIOLEASE_")}
    return kept | {"PYTHONPATH": str(EXAMPLES.parent)} | variables


@contextmanager
def worker(folder: Path, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(EXAMPLES / "worker.py"), *arguments]
    process = subprocess.Popen(
        command, cwd=folder, env=environment(**variables), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def says(process: subprocess.Popen[str], pattern: str) -> str:
    """Waits for a line of the log that matches."""
    assert process.stderr is not None
    seen = []
    until = time.monotonic() + LIMIT
    for line in process.stderr:
        seen.append(line)
        if re.search(pattern, line):
            return line
        assert time.monotonic() < until, "".join(seen)
    raise AssertionError("".join(seen))


@pytest.mark.parametrize("database", ["sqlite", "mariadb"])
def test_one_worker_leads_and_the_other_follows_it(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A worker runs its jobs at once; when Ctrl-C ends it the other leads; after a kill a third leads in time."""
    url = "sqlite:///shop.db"
    if database == "mariadb":
        server = request.getfixturevalue("mariadb")
        assert isinstance(server, MariaDBServer)
        url = server.url(request.getfixturevalue("own_database"))
    options = {"AIOLEASE_URL": url, "AIOLEASE_LEASE_DURATION": "3"}
    with worker(tmp_path, "--fast", **options) as first, worker(tmp_path, "--fast", **options) as second:
        leader, other = first, second
        line = says(first, "acquired leadership|another instance leads")
        if "another" in line:
            leader, other = second, first
            says(leader, "acquired leadership")
        else:
            says(other, "another instance leads")
        says(leader, r"ran '\w+' in")
        leader.send_signal(signal.SIGINT)
        says(leader, r"released 'default' \(term 1\)")
        assert leader.wait(LIMIT) == 0
        says(other, r"acquired leadership of 'default' \(term 2\)")
        with worker(tmp_path, "--fast", **options) as third:
            says(third, "another instance leads")
            other.kill()
            says(third, r"acquired leadership of 'default' \(term 3\)")
            says(third, r"ran '\w+' in")


@pytest.mark.parametrize(
    "variables",
    [
        {"AIOLEASE_URL": "mysql://nobody:s3cr3t@127.0.0.1:notaport/shop"},
        {"AIOLEASE_URL": "postgres://nobody:s3cr3t@127.0.0.1/shop"},
        {"AIOLEASE_URL": "mysql://nobody:s3cr3t@127.0.0.1/"},
        {"AIOLEASE_NAME": "two words"},
        {"AIOLEASE_NAME": "x" * 101},
        {"AIOLEASE_NAME": "münchen"},
        {"AIOLEASE_HEARTBEAT_INTERVAL": "20"},
        {"AIOLEASE_LEASE_DURATION": "soon"},
        {"AIOLEASE_URL": "sqlite:////no/such/folder/shop.db"},
        {"AIOLEASE_URL": "mysql://nobody:s3cr3t@127.0.0.1:{port}/shop"},
        {"AIOLEASE_URL": "mysql://root@127.0.0.1:{port}/no_such_database"},
    ],
    ids=lambda variables: ",".join(f"{name[9:].lower()}={value[:28]}" for name, value in variables.items()),
)
def test_what_cannot_work_is_one_line(mariadb: MariaDBServer, tmp_path: Path, variables: dict[str, str]) -> None:
    """A worker that cannot work says why in one line, shows no password and no traceback, and fails."""
    mariadb.recover()
    given = {name: value.replace("{port}", str(mariadb.port)) for name, value in variables.items()}
    with worker(tmp_path, **given) as process:
        _, said = process.communicate(timeout=LIMIT)
    assert process.returncode in {1, 2}
    complaints = [line for line in said.splitlines() if line.startswith("worker: ")]
    assert len(complaints) == 1
    assert "Traceback" not in said
    assert "s3cr3t" not in said


def test_an_unreachable_host_is_waited_for(tmp_path: Path) -> None:
    """A worker whose database is down says so in one line, and goes on trying."""
    url = f"mysql://root@127.0.0.1:{free_port()}/shop"
    with worker(tmp_path, AIOLEASE_URL=url) as process:
        says(process, "waiting for the database|worker: ")


def test_a_fleet_shows_its_takeovers(tmp_path: Path) -> None:
    """A fleet whose leader is killed now and then shows each takeover, runs no tick twice, and leaves nobody behind."""
    command = [sys.executable, str(EXAMPLES / "fleet.py"), "--seconds", "12", "--workers", "3", "--every", "3"]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=90, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"term \d+: .* after SIG", result.stdout)
    assert "none of them more than once" in result.stdout
