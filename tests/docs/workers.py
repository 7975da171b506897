"""A worker that a page has the reader start in another terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.docs.pages import blocks_of
from tests.docs.running import start
from tests.docs.setup import Stage
from tests.project import ROOT

LIMIT = 30.0
NEWEST = 40
"""So many lines of a program a failure shows: a server starts what dies again and again."""


def program_of(stage: Stage, page: str, block: str, name: str = "worker.py") -> None:
    """Saves a program of a page, as the page tells the reader to."""
    (text,) = [found.text for found in blocks_of(ROOT / page) if found.name == block and found.language == "python"]
    (stage.folder / name).write_text(text, encoding="utf-8")


@contextmanager
def running(arguments: list[str], stage: Stage) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Runs a program while the block lasts; gives it, and the lines that it prints. Ends all that is left of it."""
    process = start(arguments, stage.folder, stage.environment)
    assert process.stdout is not None
    printed: list[str] = []
    reader = threading.Thread(target=printed.extend, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        yield process, printed
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(5.0)
        process.stdout.close()


def wait_for(text: str, *logs: list[str], times: int = 1) -> None:
    """Waits until the programs have printed something so many times in all."""
    deadline = time.monotonic() + LIMIT
    while sum(text in line for printed in logs for line in printed) < times:
        told = "".join(line for printed in logs for line in printed[-NEWEST:])
        assert time.monotonic() < deadline, f"{text!r} was not printed {times} times, but\n{told}"
        time.sleep(0.05)


@contextmanager
def worker_of(
    stage: Stage, page: str, block: str, until: str, *, killed: bool = False, registry: str | None = None
) -> Iterator[list[str]]:
    """Runs a program of a page beside a block, from the moment at which it printed ``until``; gives what it prints.

    At the end it is stopped with Ctrl-C, or ``killed``. One that only has a ``registry`` is served by the command line.
    """
    program_of(stage, page, block)
    served = ["-m", "aiolease", "run", f"worker:{registry}", "--url", "sqlite:///jobs.db"]
    arguments = [sys.executable, *(["worker.py"] if registry is None else served)]
    with running(arguments, stage) as (process, printed):
        wait_for(until, printed)
        yield printed
        if not killed:
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(LIMIT) == 0
