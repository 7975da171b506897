"""A database for what is tried on each kind of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.servers import Server


@pytest.fixture(params=["sqlite", "mariadb", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database, of each kind in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/shop.db"
        return
    server, name = request.getfixturevalue(request.param), f"shop_{uuid4().hex[:12]}"
    assert isinstance(server, Server)
    server.recover()
    server.create_database(name)
    yield server.url(name)
    server.drop_database(name)
