"""Runs the command line as a person does, and reads what it printed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from aiolease import Leadership, leadership
from aiolease.cli import main
from tests.campaigns import LIMIT
from tests.project import ROOT


class Run:
    """What one command gave."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        try:
            self.status: object = main(arguments)
        except SystemExit as ended:
            self.status = ended.code
        self.out, self.err = capsys.readouterr()


Aiolease = Callable[..., Run]


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line as people do."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "aiolease", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def facts(text: str) -> dict[str, str]:
    """The lines of a status, by their first word."""
    return {first: rest.strip() for first, _, rest in (line.partition(" ") for line in text.splitlines())}


async def led(url: str, name: str = "default", *, lease_duration: float = 30.0) -> Leadership:
    """A term that has ended in order."""
    async with leadership(url, name, timeout=LIMIT, lease_duration=lease_duration) as lead:
        pass
    return lead


async def in_thread(aiolease: Aiolease, *arguments: str) -> Run:
    return await asyncio.to_thread(aiolease, *arguments)
