"""The machine that all absolute times belong to."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.databases import Database

PACKAGES = ("asyncmy", "asyncpg", "psycopg", "anyio")


def facts(databases: Sequence[Database]) -> dict[str, str]:
    """What one has to know about it, as lines for people."""
    return {
        "machine": f"{os.cpu_count()} cores, {_processor()}, {platform.system()} {platform.release()}",
        "python": ", ".join([platform.python_version(), *(f"{name} {version(name)}" for name in PACKAGES)]),
        "load": load(),
        **{database.kind: database.version for database in databases},
    }


def load() -> str:
    """The load averages of the last 1, 5 and 15 minutes."""
    return " ".join(f"{average:.2f}" for average in os.getloadavg())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
