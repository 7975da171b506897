"""A program for a test: ``aiolease watch`` over a lease in memory that changes as a file says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import aiolease._views.lease
import aiolease._views.look
from aiolease.cli import main
from aiolease.errors import StoreUnavailable
from tests.cli.worlds import DAY, MINUTE, NOW, TICK, World

ERROR = "ValueError: the customer 4711 of the invoice has no address to which it could be sent; see the log\x1b[2J"


def world() -> World:
    """Jobs enough for two screens, and names, errors and notes that are wider than one."""
    made = World()
    for number in range(30):
        made.job(f"job-{number:02}", "every 60s", high_tick=NOW - MINUTE)
        made.run(job=f"job-{number:02}", tick=NOW - MINUTE)
    made.job("a-job-whose-name-is-longer-than-what-a-column-holds")
    for days in range(12):
        made.run(
            "failed", tick=TICK - days * DAY, job="a-job-whose-name-is-longer-than-what-a-column-holds", error=ERROR
        )
    made.job("late", "every 60s", high_tick=NOW - 40 * MINUTE)
    made.job("still", paused_at=NOW - DAY, paused_until=NOW + MINUTE, pause_note="x" * 100)
    return made


class Changing(World):
    """A world that obeys a file."""

    def __init__(self, made: World, file: Path) -> None:
        self.server, self.file = made.server, file

    def obey(self) -> None:
        match self.file.read_text() if self.file.exists() else "":
            case "few":
                self.server.ledgers["default"].jobs = {}
                self.server.ledgers["default"].runs.clear()
                self.job("report")
            case "gone":
                raise StoreUnavailable("mysql://db", "the connection was refused")


def run() -> int:
    """Runs the command line on it."""
    changing = Changing(world(), Path("say"))
    look = aiolease._views.look.look

    async def looked(lease: aiolease._views.lease.OpenLease) -> aiolease._views.look.Seen:
        changing.obey()
        return await look(lease)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aiolease.cli.lease.open_store", changing.open_store)
        patch.setattr("aiolease.cli.watching.look", looked)
        patch.setattr("aiolease._views.look.local_clock", lambda: NOW)
        return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run())
