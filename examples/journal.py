"""How an example process tells what it does: log lines for people, and a journal for programs.

The journal has one JSON object a line. Every line has ``event``, ``pid`` and ``at``, the seconds of the machine's
monotonic clock, which all its processes share; the rest are the event's facts. Once a second ``Cost`` says how many
statements the process has sent to SQLite so far, and how many connections it has open there.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from loguru import logger

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def log_to_stderr() -> None:
    """Sets up the log: an application's business, a library never does it."""
    logger.remove()
    logger.add(
        sys.stderr,
        level=os.environ.get("LOGURU_LEVEL", "INFO"),
        format="<dim>{time:HH:mm:ss.SSS}</dim> <level>{level: <8} {message}</level>",
        backtrace=False,
        diagnose=False,  # or a traceback would show the values of variables, passwords too
    )


class Journal:
    """Writes to `file`, or nothing at all without one."""

    def __init__(self, file: int | None) -> None:
        self._file = file

    def record(self, event: DataclassInstance) -> None:
        """Writes an event, a dataclass: its name and its fields."""
        self.write(type(event).__name__, **{field.name: getattr(event, field.name) for field in fields(event)})

    def write(self, event: str, **facts: object) -> None:
        if self._file is None:
            return
        line = {"event": event, "pid": os.getpid(), "at": time.monotonic(), **facts}
        try:
            os.write(self._file, f"{json.dumps(line, default=str)}\n".encode())
        except BlockingIOError:
            pass  # nobody reads just now, and a leader must not wait for its reader
        except BrokenPipeError:
            # The reader is gone, and with it whoever started this process to watch it: an orderly end.
            self._file = None
            signal.raise_signal(signal.SIGTERM)


@asynccontextmanager
async def open_journal(path: str | None) -> AsyncIterator[Journal]:
    """Opens a journal that goes on at the end of a file, ``-`` for standard output, or ``None`` for nowhere."""
    if path is None:
        yield Journal(None)
        return
    cost = _count_sqlite()
    file = os.dup(1) if path == "-" else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.set_blocking(file, os.isatty(file))
    journal = Journal(file)
    telling = asyncio.create_task(_tell(journal, cost))
    try:
        yield journal
    finally:
        telling.cancel()
        await asyncio.wait([telling])
        os.close(file)


class _Cost:
    statements = 0
    connections = 0


def _count_sqlite() -> _Cost:
    """Counts what this process sends to SQLite from now on, whichever library sends it."""
    cost = _Cost()
    connect: Callable[..., sqlite3.Connection] = sqlite3.connect

    class Connection(sqlite3.Connection):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.set_trace_callback(self._count)
            cost.connections += 1

        def close(self) -> None:
            super().close()
            cost.connections -= 1

        def _count(self, _: str) -> None:
            cost.statements += 1

    def counted(*arguments: Any, **options: Any) -> sqlite3.Connection:
        return connect(*arguments, **{"factory": Connection, **options})

    sqlite3.connect = counted  # type: ignore[assignment]  # a measuring device, for examples only
    return cost


async def _tell(journal: Journal, cost: _Cost) -> None:
    while True:
        journal.write("Cost", statements=cost.statements, connections=cost.connections)
        await asyncio.sleep(1)
