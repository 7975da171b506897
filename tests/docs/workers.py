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
from tests.docs.running import ROOT, start
from tests.docs.setup import Stage

LIMIT = 20.0


@contextmanager
def worker_of(stage: Stage, page: str, block: str, until: str) -> Iterator[None]:
    """Runs a program of a page beside the block of this set-up, from the moment at which it printed ``until``."""
    (text,) = [found.text for found in blocks_of(ROOT / page) if found.name == block and found.language == "python"]
    program = stage.folder / "worker.py"
    program.write_text(text, encoding="utf-8")
    process = start([sys.executable, str(program)], stage.folder, stage.environment)
    assert process.stdout is not None
    printed: list[str] = []
    reader = threading.Thread(target=printed.extend, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        deadline = time.monotonic() + LIMIT
        while not any(until in line for line in printed):
            assert time.monotonic() < deadline, f"the worker did not print {until!r}, but\n{''.join(printed)}"
            time.sleep(0.05)
        yield
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(LIMIT) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(5.0)
        process.stdout.close()
