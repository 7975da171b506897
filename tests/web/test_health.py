"""For probes: whether this process is well, whoever leads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

from aiolease import ConfigurationError, JobRegistry
from aiolease.errors import StoreUnavailable
from aiolease.events import Elected
from aiolease.stores.memory import MemoryServer, MemoryStore
from aiolease.web import status_app
from tests.campaigns import LIMIT, Recorder
from tests.cli.worlds import World
from tests.web.served import browsing, page_of

T = TypeVar("T")


class BreakableStore(MemoryStore):
    """A database that can be gone."""

    gone = False

    async def exchange(self, method: str, statement: Callable[[], T]) -> T:
        if self.gone:
            raise StoreUnavailable("mysql://db", "the connection was refused")
        return await super().exchange(method, statement)


async def healthy(client: httpx.AsyncClient, status: int) -> str:
    """Waits until the health is as expected."""
    async with asyncio.timeout(LIMIT):
        while (answer := await client.get("/healthz")).status_code != status:
            await asyncio.sleep(0.02)
    return answer.text


async def test_a_follower_is_as_healthy_as_the_leader() -> None:
    """A probe that wants the leader would take all others out of the load balancer."""
    server, heard = MemoryServer(), Recorder()
    async with (
        JobRegistry().background(MemoryStore(server), "cron", on_event=heard) as first,
        JobRegistry().background(MemoryStore(server), "cron") as second,
    ):
        await heard.first(Elected)
        for campaign in (first, second):
            async with browsing(status_app(campaign)) as client:
                answer = await client.get("/healthz")
                assert (answer.status_code, answer.text) == (200, "ok\n")
                status = (await client.get("/status.json")).json()
                assert status["campaign"]["leads"] == (campaign is first)
                assert f"<dd>{status['campaign']['state']}</dd>" in (await client.get("/")).text
                assert status["name"] == "cron"
        with pytest.raises(ConfigurationError, match="the campaign is for 'cron'"):
            status_app(first, name="other")


async def test_a_campaign_without_its_database_is_not_healthy() -> None:
    """Once nothing was heard of it for two leases; it is again when the database is back."""
    store = BreakableStore(MemoryServer())
    async with (
        JobRegistry().background(store, lease_duration=0.3) as campaign,
        browsing(status_app(campaign)) as client,
    ):
        assert await healthy(client, 200) == "ok\n"
        store.gone = True
        assert "the connection was refused" in await healthy(client, 503)
        assert (await client.get("/livez")).status_code == 200  # a restart would mend nothing
        store.gone = False
        await healthy(client, 200)
    async with browsing(status_app(campaign)) as client:
        assert "has stopped" in await healthy(client, 503)


async def test_a_campaign_that_failed_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody expected: it goes on trying, and the probe has the reason."""
    store = BreakableStore(MemoryServer())
    async with (
        JobRegistry().background(store, lease_duration=0.3) as campaign,
        browsing(status_app(campaign)) as client,
    ):

        async def broken(*_: object, **__: object) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(store, "renew", broken)
        monkeypatch.setattr(store, "watch", broken)
        monkeypatch.setattr(store, "read", broken)
        assert "a bug" in await healthy(client, 503)


async def test_metrics_are_those_of_prometheus(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the registry that is given, of the default one, of all processes in the multi-process mode."""
    prometheus_client = pytest.importorskip("prometheus_client")
    registry = prometheus_client.CollectorRegistry()
    prometheus_client.Counter("ours", "A counter of this test.", registry=registry).inc(3)
    async with page_of(world, metrics=registry) as client:
        answer = await client.get("/metrics")
        assert "ours_total 3.0" in answer.text
        assert answer.headers["content-type"].startswith("text/plain; version=")
        opened = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        assert opened.text.endswith("# EOF\n")
    async with page_of(world) as client:
        assert "python_info" in (await client.get("/metrics")).text
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
        assert "python_info" not in (await client.get("/metrics")).text


async def test_without_prometheus_there_are_no_metrics(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page works without it, and says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
    async with page_of(world) as client:
        answer = await client.get("/metrics")
    assert (answer.status_code, "pip install" in answer.text) == (404, True)
