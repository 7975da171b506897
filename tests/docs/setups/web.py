from __future__ import annotations

from collections.abc import Iterator

from tests.docs.setup import Setup, Stage


def an_application(stage: Stage) -> Iterator[None]:
    from fastapi.testclient import TestClient

    stage.environment["AIOLEASE_URL"] = "sqlite:///jobs.db"
    yield
    app = stage.names["app"]
    with TestClient(app) as client:
        health = client.get("/health").json()
        assert health["election"] in ("leading", "following"), health
    assert app.state.campaign.status().state == "stopped"


SETUPS = {"fastapi": Setup(around=an_application)}
