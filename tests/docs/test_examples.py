"""The examples, as a person runs them: programs of their own, on an embedded and on a real database."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import alone
from journal import open_journal
from shop import Shop, ShopError
from shop_database import open_database
from tests.servers import MariaDBServer, free_port

EXAMPLES = Path(__file__).parents[2] / "examples"
LIMIT = 30.0


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIOLEASE_")}
    return kept | {"PYTHONPATH": str(EXAMPLES.parent)} | variables


def worker(folder: Path, *arguments: str, **variables: str) -> AbstractContextManager[subprocess.Popen[str]]:
    return python(folder, str(EXAMPLES / "worker.py"), *arguments, **variables)


@contextmanager
def python(folder: Path, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(**variables),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
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


def test_one_worker_leads_and_the_other_follows_it(url: str, tmp_path: Path) -> None:
    """A worker runs its jobs at once; when Ctrl-C ends it the other leads; after a kill a third leads in time."""
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


def test_jobs_run_where_nobody_leads(url: str, tmp_path: Path) -> None:
    """`alone.py`, which `fleet.py` compares with, runs the same jobs on every kind of database, until Ctrl-C."""
    log = tmp_path / "journal"
    with python(tmp_path, str(EXAMPLES / "alone.py"), "--journal", str(log), AIOLEASE_URL=url) as process:
        for line in ("closed", "aged the debts", "posting", r"queued [\d,]+ price", "purged"):
            says(process, line)
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 0
    ends = [event for event in map(json.loads, log.read_text().splitlines()) if event["event"] == "RunFinished"]
    assert len(ends) >= 3
    assert {event["status"] for event in ends} == {"succeeded"}


async def test_visitors_leave_though_a_driver_swallows_their_cancellation(tmp_path: Path) -> None:
    """Found in CI: `asyncio.wait_for` of Python 3.11, in asyncmy, swallowed the one cancellation of a worker's end."""

    class WithDeafDriver(Shop):
        swallowed = False

        async def _welcome(self, dice: random.Random) -> int:
            entered.set()
            try:
                await asyncio.sleep(LIMIT)
            except asyncio.CancelledError:
                self.swallowed = True
            raise ShopError("the answer came all the same")

    entered = asyncio.Event()
    async with open_database(f"sqlite:///{tmp_path}/shop.db") as database:
        shop = WithDeafDriver(database, 1, timedelta(minutes=15))
        async with asyncio.timeout(LIMIT), shop.visitors(pause=0):
            await entered.wait()
        assert shop.swallowed


async def test_a_timer_ends_though_a_driver_swallows_its_cancellation() -> None:
    """The same of `alone.py`: found in CI, where it outlived its Ctrl-C."""
    entered = asyncio.Event()

    async def deaf() -> None:
        entered.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(LIMIT)

    async with open_journal(None) as journal:
        timer = asyncio.create_task(alone.timer(1, deaf, "deaf", journal))
        async with asyncio.timeout(LIMIT):
            await entered.wait()
            timer.cancel()
            await asyncio.wait([timer])


DYING: dict[str, str] = {
    "written": "await shop.Shop.write_letters(run.context)",
    "posted": """
        letters = await shop.Shop.write_letters(run.context)
        assert letters
        async with run.transaction(final=True) as connection:
            await shop.Shop.post(run.context, letters, connection)
            os.kill(os.getpid(), signal.SIGKILL)""",
    "committed": "await send_notifications(run)",
}
"""What a worker does of `send_notifications` before it is killed."""


def rows(url: str, sql: str) -> list[tuple[Any, ...]]:
    async def ask() -> list[tuple[Any, ...]]:
        async with open_database(url) as database, database.transaction() as do:
            return [*(await do.execute(sql)).rows]

    return asyncio.run(ask())


def history(url: str) -> list[dict[str, Any]]:
    """What the ledger says of `send_notifications`."""
    command = [sys.executable, "-m", "aiolease", "history", "send_notifications", "--json", "-n", "1000"]
    result = subprocess.run(
        command, env=environment(AIOLEASE_URL=url), capture_output=True, text=True, timeout=LIMIT, check=True
    )
    found = json.loads(result.stdout)
    assert isinstance(found, list)
    return found


def assert_each_was_sent_once(url: str) -> None:
    """Whatever is marked as sent left the house once, and nothing else did."""
    sent = rows(url, "SELECT id FROM shop_notification WHERE state = 'sent' AND sent_at IS NOT NULL ORDER BY id")
    posted = rows(url, "SELECT notification_id FROM shop_outbox ORDER BY notification_id")
    assert len(posted) > 200  # of a new shop's 300 most are due, and most arrive
    assert posted == sent


@pytest.mark.parametrize("moment", DYING)
def test_a_notification_is_sent_once_wherever_its_worker_dies(moment: str, url: str, tmp_path: Path) -> None:
    """Killed in `send_notifications`, a worker's run is another's to repeat, unless it had committed: exactly once."""
    program = f"""if True:
    import functools, os, signal, sys
    import shop, worker
    send_notifications = worker.send_notifications

    @functools.wraps(send_notifications)
    async def dying(run):
        {DYING[moment]}
        os.kill(os.getpid(), signal.SIGKILL)

    worker.send_notifications = dying
    sys.exit(worker.start())
    """
    paths = f"{EXAMPLES.parent}{os.pathsep}{EXAMPLES}"
    options = {"AIOLEASE_URL": url, "AIOLEASE_LEASE_DURATION": "2"}
    with python(tmp_path, "-c", program, "--fast", PYTHONPATH=paths, **options) as first:
        assert first.wait(LIMIT) == -signal.SIGKILL
    [killed] = history(url)
    posted = rows(url, "SELECT id FROM shop_outbox")
    if moment == "committed":
        assert killed["status"] == "succeeded"
        assert_each_was_sent_once(url)
    else:
        assert (killed["status"], killed["attempt"], posted) == ("running", 1, [])
    with worker(tmp_path, "--fast", "--pause", "60", **options) as second:
        for _ in range(1 if moment == "committed" else 2):  # the repeated one, and one that finds what that left
            says(second, "ran 'send_notifications' in")
        second.send_signal(signal.SIGINT)
        assert second.wait(LIMIT) == 0
    assert_each_was_sent_once(url)
    run = history(url)[0]
    assert (run["tick"], run["status"]) == (killed["tick"], "succeeded")
    assert run["attempt"] == (1 if moment == "committed" else 2)
    if moment == "committed":
        assert run == killed


def test_a_notification_is_sent_once_whenever_its_workers_die(url: str, tmp_path: Path) -> None:
    """Leaders that are killed at any moment of `send_notifications`, one after another, send nothing twice."""
    options = {"AIOLEASE_URL": url, "AIOLEASE_LEASE_DURATION": "1", "LOGURU_LEVEL": "DEBUG"}
    dice = random.Random(1)
    for _ in range(4):
        with worker(tmp_path, "--fast", "--pause", "0.1", **options) as process:
            says(process, "started 'send_notifications'")
            time.sleep(dice.uniform(0, 0.06))
            process.kill()
    with worker(tmp_path, "--fast", "--pause", "60", **options) as last:
        for _ in range(2):
            says(last, "ran 'send_notifications' in")
        last.send_signal(signal.SIGINT)
        assert last.wait(LIMIT) == 0
    assert_each_was_sent_once(url)
    told = history(url)
    assert {run["status"] for run in told} <= {"succeeded", "skipped", "lost"}
    assert all(run["attempt"] == 5 for run in told if run["status"] == "lost")


@pytest.mark.parametrize(
    "variables",
    [
        {"AIOLEASE_URL": "mysql://nobody:s3cr3t@127.0.0.1:notaport/shop"},
        {"AIOLEASE_URL": "oracle://nobody:s3cr3t@127.0.0.1/shop"},
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


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_fleet_is_compared_with_one_that_has_no_leader(url: str, tmp_path: Path) -> None:
    """Without a leader each process runs each tick; what both cost at the database is shown, and nothing else."""
    options = ["--compare", "--seconds", "2", "--workers", "2", "--url", url]
    command = [sys.executable, str(EXAMPLES / "fleet.py"), *options]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=90, check=False
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    found = re.search(r"connections +(\d+) +(\d+)\n", result.stdout)
    assert found, result.stdout
    assert min(map(int, found.groups())) > 0


@pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
def test_a_fleet_shows_its_takeovers(url: str, tmp_path: Path) -> None:
    """A fleet whose leader is killed now and then shows each takeover, runs no tick twice, and leaves nobody behind."""
    command = [sys.executable, str(EXAMPLES / "fleet.py"), "--seconds", "12", "--workers", "3", "--every", "3"]
    if not url.startswith("sqlite"):
        command += ["--url", url]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=90, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"term \d+: .* after SIG", result.stdout)
    assert "none of them more than once" in result.stdout
    assert re.search(r"in the ledger as well: \d+ runs? lost .*, \d+ ticks? skipped", result.stdout)
