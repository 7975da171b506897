"""What a process prints, read as it comes: a test waits for a line."""

from __future__ import annotations

import queue
import subprocess
import threading
import time

import pytest

from tests.campaigns import LIMIT


class Printed:
    """The lines that a process has printed and a test has waited for."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.lines: list[str] = []
        self._process = process
        self._unseen: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._unseen.put(line.rstrip())
        self._unseen.put(None)

    def wait_for(self, text: str) -> str:
        """Waits for a line with `text`, after those that were waited for."""
        until = time.monotonic() + LIMIT
        while True:
            try:
                line = self._unseen.get(timeout=max(until - time.monotonic(), 0))
            except queue.Empty:
                line = None
            if line is None:
                pytest.fail(f"did not print {text!r}, but: {self.lines}")
            self.lines.append(line)
            if text in line:
                return line

    def until_the_end(self) -> list[str]:
        """All lines, once the process has ended."""
        while (line := self._unseen.get(timeout=LIMIT)) is not None:
            self.lines.append(line)
        return self.lines

    def close(self) -> None:
        """Waits for the reading to end, and closes the pipes; the process has ended."""
        self._reader.join(LIMIT)
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()
