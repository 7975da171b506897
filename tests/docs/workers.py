"""A worker that a page has the reader start in another terminal."""

from __future__ import annotations

import os
import signal
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


def program_of(stage: Stage, page: str, block: str) -> None:
    """Saves a program of a page as ``worker.py``, as the page tells the reader to."""
    (text,) = [found.text for found in blocks_of(ROOT / page) if found.name == block and found.language == "python"]
    (stage.folder / "worker.py").write_text(text, encoding="utf-8")


@contextmanager
def worker_of(
    stage: Stage, page: str, block: str, until: str, *, killed: bool = False, registry: str | None = None
) -> Iterator[list[str]]:
    """Runs a program of a page beside a block, from the moment at which it printed ``until``; gives what it prints.

    At the end it is stopped with Ctrl-C, or ``killed``. One that only has a ``registry`` is served by the command line.
    """
    program_of(stage, page, block)
    served = ["-m", "aiolease", "run", f"worker:{registry}", "--url", "sqlite:///jobs.db"]
    process = start([sys.executable, *(["worker.py"] if registry is None else served)], stage.folder, stage.environment)
    assert process.stdout is not None
    printed: list[str] = []
    reader = threading.Thread(target=printed.extend, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        deadline = time.monotonic() + LIMIT
        while not any(until in line for line in printed):
            assert time.monotonic() < deadline, f"the worker did not print {until!r}, but\n{''.join(printed)}"
            time.sleep(0.05)
        yield printed
        if not killed:
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(LIMIT) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(5.0)
        process.stdout.close()
