"""What a dashboard asks Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def expressions(part: Any) -> Iterator[str]:
    """Every expression of a dashboard."""
    if isinstance(part, dict):
        if isinstance(expression := part.get("expr"), str):
            yield expression
        part = list(part.values())
    if isinstance(part, list):
        for each in part:
            yield from expressions(each)
