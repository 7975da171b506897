"""Version 0.1.0, as it was: its package from the project's history, to be run by processes of their own."""

from __future__ import annotations

import functools
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

from tests.project import ROOT

COMMIT = "d730ad6f238bc370cb847582136b8fae49c6a1d0"


@functools.cache
def _kept() -> tempfile.TemporaryDirectory[str]:
    packed = subprocess.run(
        ["git", "archive", COMMIT, "aiolease", "schema.sql"], cwd=ROOT, check=False, capture_output=True
    )
    if packed.returncode:
        pytest.skip(f"version 0.1.0 is not in the history of this checkout: {packed.stderr.decode().strip()}")
    folder = tempfile.TemporaryDirectory(prefix="aiolease-0.1.0-")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder.name, filter="data")
    return folder


def folder() -> Path:
    """Where it is unpacked, for the time of this process; skips the test where there is no history."""
    return Path(_kept().name)


def environment() -> dict[str, str]:
    """What makes a Python process import it."""
    return {**os.environ, "PYTHONPATH": str(folder()), "PYTHONWARNINGS": "ignore"}


_MAKE = """
import asyncio, sys
import aiolease
from aiolease.stores import open_store

assert aiolease.__file__.startswith(sys.argv[2]), aiolease.__file__

async def main():
    async with open_store(sys.argv[1]) as store:
        await store.status("cron")

asyncio.run(main())
"""


def make_tables(url: str) -> None:
    """Has it make its tables in an empty database."""
    command = [sys.executable, "-c", _MAKE, url, str(folder())]
    made = subprocess.run(command, env=environment(), cwd=folder(), check=False, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
