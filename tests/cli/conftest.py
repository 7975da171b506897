"""Databases for the command line, and the command itself."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from aiolease import open_store
from tests.cli.commands import Aiolease, Run
from tests.cli.worlds import NOW, World
from tests.servers import Server


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder, and none of our variables."""
    for name in [name for name in os.environ if name.upper().startswith("AIOLEASE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A SQLite file with aiolease's tables in AIOLEASE_URL; nobody has led."""
    url = f"sqlite:///{tmp_path}/jobs.db"

    async def make() -> None:
        async with open_store(url) as store:
            assert await store.status("default") is None

    asyncio.run(make())
    monkeypatch.setenv("AIOLEASE_URL", url)
    return url


@pytest.fixture(params=["sqlite", "mariadb", "mysql9", "postgresql"])
def any_url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each kind of database in turn, fresh, in AIOLEASE_URL."""
    if request.param == "sqlite":
        yield request.getfixturevalue("url")
        return
    server, name = request.getfixturevalue(request.param), f"test_{uuid4().hex[:12]}"
    assert isinstance(server, Server)
    server.recover()
    server.create_database(name)
    monkeypatch.setenv("AIOLEASE_URL", server.url(name))
    yield server.url(name)
    server.recover()
    server.drop_database(name)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A lease in memory, at a moment that stands still, which every command finds."""
    world = World()
    monkeypatch.setenv("AIOLEASE_URL", "sqlite:///not-used.db")
    monkeypatch.setattr("aiolease.cli.lease.open_store", world.open_store)
    monkeypatch.setattr("aiolease._views.look.local_clock", lambda: NOW)
    return world


@pytest.fixture
def aiolease(capsys: pytest.CaptureFixture[str]) -> Aiolease:
    """Runs the command line in this process."""
    return lambda *arguments: Run(capsys, *arguments)
