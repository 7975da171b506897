"""A terminal of 80 by 24 for a program: what it shows is what a person would see."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

from tests.campaigns import LIMIT
from tests.project import ROOT


class Terminal:
    """Runs a Python program in a pseudo-terminal.

    Attributes:
        said: All that it wrote.
        screen: The lines that are shown.
        too_wide: Lines that ran over the right edge.
    """

    def __init__(
        self,
        *arguments: str,
        folder: Path,
        columns: int = 80,
        rows: int = 24,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.columns, self.rows = columns, rows
        self.said = ""
        self.too_wide: list[str] = []
        self.screen = [""] * rows
        self._row = self._column = 0
        self._rest = ""
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        clean = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env=clean | {"PYTHONPATH": str(ROOT), "TERM": "xterm"} | (environment or {}),
            start_new_session=True,
        )
        os.close(theirs)

    def wait_until(self, shown: Callable[[list[str]], bool]) -> list[str]:
        """Waits until the screen is as wanted; gives it."""
        until = time.monotonic() + LIMIT
        while not shown(self.screen):
            assert time.monotonic() < until, "\n".join(self.screen)
            self._read(0.1)
        return self.screen

    def press_ctrl_c(self) -> int:
        """Does what a terminal does on Ctrl-C, and gives the exit status."""
        os.killpg(self.process.pid, signal.SIGINT)
        until = time.monotonic() + LIMIT
        while self.process.poll() is None and time.monotonic() < until:
            self._read(0.1)
        self._read(0.1)
        return self.process.wait(LIMIT)

    def close(self) -> None:
        """Ends what still runs."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._ours)

    def _read(self, seconds: float) -> None:
        readable, _, _ = select.select([self._ours], [], [], seconds)
        if not readable:
            return
        try:
            text = os.read(self._ours, 65_536).decode(errors="replace")
        except OSError:  # the program has closed it
            return
        self.said += text
        self._show(self._rest + text)

    def _show(self, text: str) -> None:
        self._rest = ""
        while text:
            if text[0] == "\x1b":
                found = re.match(r"\x1b\[(\??[\d;]*)([A-Za-z])", text)
                if found is None:
                    self._rest = text
                    return
                self._obey(found[1], found[2])
                text = text[found.end() :]
                continue
            if text[0] == "\n":
                self._row, self._column = min(self._row + 1, self.rows - 1), self._column
            elif text[0] == "\r":
                self._column = 0
            else:
                self._put(text[0])
            text = text[1:]

    def _obey(self, arguments: str, command: str) -> None:
        match command, arguments:
            case "H", "":
                self._row = self._column = 0
            case "K", "":
                self.screen[self._row] = self.screen[self._row][: self._column]
            case "J", "":
                self.screen[self._row] = self.screen[self._row][: self._column]
                self.screen[self._row + 1 :] = [""] * (self.rows - self._row - 1)
            case "J", "2":
                self.screen = [""] * self.rows
            case "m" | "h" | "l", _:
                pass
            case _:
                raise AssertionError(f"the terminal does not know {arguments}{command}")

    def _put(self, char: str) -> None:
        if self._column >= self.columns:
            self.too_wide.append(self.screen[self._row])
            return
        line = self.screen[self._row].ljust(self._column)
        self.screen[self._row] = line[: self._column] + char + line[self._column + 1 :]
        self._column += 1
