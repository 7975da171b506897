"""What several tests of jobs share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.jobs.failover_fleet import Place
from tests.servers import Server


@pytest.fixture(params=["mariadb", "mysql9", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A fresh database of each kind."""
    if request.param == "sqlite":
        yield Place(f"sqlite:///{tmp_path}/jobs.db", None)
        return
    server = request.getfixturevalue(request.param)
    assert isinstance(server, Server)
    server.recover()
    name = f"test_{uuid4().hex[:12]}"
    server.create_database(name)
    yield Place(server.url(name), server)
    server.drop_database(name)
