"""`watch`: in place on a terminal of 80 columns, plain lines elsewhere."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiolease._views.lease import OpenLease
from aiolease._views.look import look
from aiolease.cli.watching import screen
from tests.campaigns import LIMIT
from tests.cli.terminal import Terminal
from tests.cli.worlds import DAY, HOUR, NOW, World
from tests.printing import Printed
from tests.project import ROOT

PROGRAM = ("-m", "tests.cli.watched", "watch", "--url", "sqlite:///not-used.db", "--interval", "0.1")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(*PROGRAM, folder=tmp_path)
    yield terminal
    terminal.close()


def test_watch_draws_in_place(terminal: Terminal, tmp_path: Path) -> None:
    """On a terminal of 80 columns each look is drawn over the one before; no line is wider, none is left over."""
    screen = terminal.wait_until(lambda screen: "more jobs" in screen[-1])
    assert screen[0] == "aiolease watch default".ljust(57) + "2026-11-30 18:00:00 UTC"
    assert screen[2].startswith("! 'a-job-whose-name-is-longer-than-what-a-column-holds' has failed 12 times in")
    assert screen[3].startswith("  a row: ValueError: the customer 4711 of the invoice has no address")
    assert screen[3].endswith("…")
    assert screen[4] == "! 'late' is overdue: its tick of 2026-11-30 17:21:00 UTC passed 39 min ago"
    assert screen[6].startswith("term 7 leads for 24 h, 24.0 s left: web1-4711")
    table = screen.index(next(line for line in screen if line.startswith("job ")))
    assert screen[table + 1].startswith("a-job-whose-name-is-lon…  failed 4 h ago")
    assert screen[table + 2].startswith("late ")
    assert terminal.too_wide == []
    assert all(len(line) <= 80 for line in screen)
    (tmp_path / "say").write_text("few")
    screen = terminal.wait_until(lambda screen: any(line.startswith("report ") for line in screen))
    assert [line for line in screen[-10:] if line] == []
    assert not any("job-" in line for line in screen)


async def test_a_screen_of_few_jobs(world: World) -> None:
    """A screen has who leads, what is paused and until when, and each job; no line is wider than it."""
    world.job("report")
    world.job("still", paused_at=NOW - DAY, paused_until=NOW + HOUR, pause_note="the bank is closed on this day")
    world.job("until-then", paused_at=NOW - DAY, paused_until=NOW + 2 * DAY)
    async with world.open_store() as store:
        seen = await look(OpenLease(store, "default"))
        lines = screen(seen, "default", "", 80, 24)
        world.pause_all()
        paused = screen(await look(OpenLease(store, "default")), "default", "", 80, 24)
    assert max(map(len, lines)) <= 80
    assert lines[2].startswith("term 7 leads for 24 h")
    still = next(line for line in lines if line.startswith("still"))
    assert "paused until 19:00 (the bank is" in still
    assert next(line for line in lines if line.startswith("until-then")).endswith("paused until 02 Dec")
    assert "all jobs are paused" in paused
    assert screen(None, "default", "mysql://db: refused", 80, 24)[2] == "! mysql://db: refused"


def test_watch_goes_on_without_the_database(terminal: Terminal, tmp_path: Path) -> None:
    """A database that cannot be reached is told above what was seen last; it is looked at again."""
    terminal.wait_until(lambda screen: "more jobs" in screen[-1])
    (tmp_path / "say").write_text("gone")
    screen = terminal.wait_until(lambda screen: screen[2].startswith("! mysql://db: the connection was refused"))
    assert any("a-job-whose-name" in line for line in screen)
    (tmp_path / "say").write_text("few")
    terminal.wait_until(lambda screen: not screen[2].startswith("! mysql"))


def test_watch_ends_with_ctrl_c(terminal: Terminal) -> None:
    """Ctrl-C ends it in order: status 0, no traceback, the cursor is back, and what was seen stays."""
    terminal.wait_until(lambda screen: "more jobs" in screen[-1])
    assert terminal.press_ctrl_c() == 0
    assert "Traceback" not in terminal.said
    assert terminal.said.rindex("\x1b[?25h") > terminal.said.rindex("\x1b[?25l")


def test_what_is_wrong_is_red_on_a_terminal(tmp_path: Path) -> None:
    """Colours are there on a terminal that has them, not with NO_COLOR or a dumb one."""
    cases: list[tuple[dict[str, str], bool]] = [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
    for environment, red in cases:
        terminal = Terminal(*PROGRAM, folder=tmp_path, environment=environment)
        try:
            terminal.wait_until(lambda screen: "more jobs" in screen[-1])
            assert ("\x1b[31m" in terminal.said) is red
        finally:
            terminal.close()


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *PROGRAM, *more],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_watch_prints_lines_elsewhere(tmp_path: Path) -> None:
    """Not on a terminal it prints a plain line for what has changed, and nothing while nothing has."""
    process = start(tmp_path)
    printed = Printed(process)
    try:
        printed.wait_for("2026-11-30 18:00:00 UTC  term 7 leads 'default': web1-4711")
        printed.wait_for("still: has not run yet; paused until 2026-11-30 18:01:00 UTC")
        (tmp_path / "say").write_text("gone")
        printed.wait_for("mysql://db: the connection was refused")
        (tmp_path / "say").write_text("few")
        printed.wait_for("report: has not run yet")
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 0
        lines = printed.until_the_end()
    finally:
        process.kill()
        printed.close()
    assert len(lines) == len(set(lines))  # nothing is told twice
    assert "\x1b" not in "".join(lines)
    assert all(re.match(r"2026-\d\d-\d\d \d\d:\d\d:\d\d UTC  ", line) for line in lines)


def test_watch_for_programs(tmp_path: Path) -> None:
    """With `--json` each look is one line."""
    process = start(tmp_path, "--json")
    try:
        assert process.stdout is not None
        told = [json.loads(process.stdout.readline()) for _ in range(2)]
    finally:
        process.kill()
        process.communicate()
    assert [len(each["jobs"]) for each in told] == [33, 33]
