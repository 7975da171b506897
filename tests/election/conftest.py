"""Fixtures of the tests of who leads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from loguru import logger


@pytest.fixture
def quiet() -> Iterator[None]:
    """Keeps the log lines of some thousand virtual leases away; `lines` has them again."""
    logger.disable("aiolease")
    yield
    logger.enable("aiolease")
