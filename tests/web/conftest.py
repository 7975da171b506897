"""A lease in memory, whose clock stands still, for the page."""

from __future__ import annotations

import pytest

from tests.cli.worlds import NOW, World


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A lease in memory, at a moment that stands still."""
    monkeypatch.setattr("aiolease._views.look.local_clock", lambda: NOW)
    return World()
