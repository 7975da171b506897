"""Comparing what a page shows with what was printed."""

from __future__ import annotations

import re

VARYING = [
    (r"\x1b\[[0-9;]*m", ""),
    (r"\b\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d([.,]\d+)?)?)?(Z|[+-]\d\d:?\d\d)?", "<time>"),
    (r"\b\d\d:\d\d:\d\d([.,]\d+)?", "<time>"),
    (r"\b[\w.-]+-\d+-[0-9a-f]{32}\b", "<holder>"),
    (r"\b[0-9a-f]{32}\b", "<id>"),
    (r"\b\d+(\.\d+)? ?(s|ms|min|seconds|milliseconds)\b", "<duration>"),
    (r"\bpid \d+", "pid <n>"),
    (r"(\b[\w.]+:[\w<>]+):\d+\b", r"\1:<line>"),
    (r"\s+", " "),
]


def normal(line: str) -> str:
    """``line`` without what differs from run to run."""
    for pattern, instead in VARYING:
        line = re.sub(pattern, instead, line)
    return line.strip()


def missing(expected: list[str], printed: list[str]) -> str | None:
    """The first expected line that was not printed after those before it, ``None`` if all were."""
    rest = iter([normal(line) for line in printed])
    for line in expected:
        pattern = ".*".join(re.escape(piece.strip()) for piece in re.split(r"…|\.\.\.", normal(line)))
        if re.fullmatch(r"(\.\*)*", pattern):
            continue
        if not any(re.search(pattern, candidate) for candidate in rest):
            return line
    return None
