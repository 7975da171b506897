"""What a number of repetitions says: its median and its tail."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """The least of the values that so many percent of them do not exceed: with few values, the worst of all."""
    return sorted(values)[max(math.ceil(len(values) * percent / 100) - 1, 0)]
