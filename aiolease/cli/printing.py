"""Text on a terminal, a pipe or a log: lines, tables, JSON, colours where there are any."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime

_RED, _PLAIN = "\x1b[31m", "\x1b[0m"


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table with a head."""
    for line in table(head, rows):
        print_line(line)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table with a head."""
    cells = [head, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def print_json(value: object) -> None:
    """Prints a value for programs."""
    print_line(json.dumps(value, indent=2, default=datetime.isoformat))


def print_line(text: str) -> None:
    """Prints a line; what this terminal does not have, a job's error may."""
    print(printable(text), flush=True)


def printable(text: str) -> str:
    """A text in the characters that the terminal has."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def print_wrong(text: str) -> None:
    """Prints a line about something that is wrong."""
    print_line(red(text))


def red(text: str) -> str:
    """A text in red, on a terminal that has colours."""
    return f"{_RED}{text}{_PLAIN}" if _has_colours() else text


def _has_colours() -> bool:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in {None, "dumb"}
    return not plain and sys.stdout.isatty()


def trouble(problem: object, status: int) -> int:
    """Tells of a problem in one line, and returns `status`."""
    print(f"aiolease: {_with_utc(' '.join(str(problem).split()))}", file=sys.stderr)
    return status


def _with_utc(text: str) -> str:
    """A text whose moments are written as everywhere: a store writes them as Python does."""
    return re.sub(r"\b(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(\.\d+)?\+00:00", r"\1 UTC", text)
