"""aiolease beside its peers on one PostgreSQL, by turns, where they do the same thing.

`leading`: asyncpg-lock elects, too; APScheduler's event broker notifies, too. `workers`: procrastinate's periodic tasks
and APScheduler run jobs on a schedule in several processes. The peers are installed by the extra ``bench-peers``, in an
environment of their own: see ``make peers``.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from benchmarks.databases import Database, PostgreSQLDatabase
from benchmarks.report import Table

_NEEDED: Final = {"apscheduler": "4.", "asyncpg-lock": "", "procrastinate": ""}


def measurable(table: Table, databases: Sequence[Database]) -> list[PostgreSQLDatabase]:
    """Where the peers can be measured; the notes of the table say which they are, or why they are left out."""
    problem = _missing()
    if problem is not None:
        table.notes[:] = [f"left out: {problem}; `make peers` installs the peers"]
        return []
    table.notes.append(", ".join(f"{name} {version(name)}" for name in _NEEDED))
    return [database for database in databases if isinstance(database, PostgreSQLDatabase)]


def _missing() -> str | None:
    for name, begins in _NEEDED.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            return f"{name} is not installed"
        if not found.startswith(begins):
            return f"this is {name} {found}"
    return None


def lock_key(name: str) -> int:
    """The key of the advisory lock for a lease of that name, and the number of its sequence of terms."""
    return zlib.crc32(name.encode())
