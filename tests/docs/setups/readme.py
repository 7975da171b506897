from __future__ import annotations

from collections.abc import Iterator

from tests.docs.databases import lead_pools_there
from tests.docs.setup import Setup, Stage
from tests.docs.workers import program_of, worker_of


def the_program(stage: Stage) -> Iterator[None]:
    program_of(stage, "README.md", "an-example")
    yield


def a_worker(stage: Stage) -> Iterator[None]:
    with worker_of(stage, "README.md", "an-example", until="ran 'close_stale_sessions'", registry="jobs"):
        yield


def an_application(stage: Stage) -> Iterator[None]:
    from fastapi.testclient import TestClient

    lead_pools_there(stage)
    yield
    app = stage.names["app"]
    with TestClient(app) as client:
        health = client.get("/health").json()
        assert health["election"] in ("leading", "following"), health
    assert app.state.campaign.status().state == "stopped"


SETUPS = {
    "an-example-2": Setup(around=the_program, run=15.0),
    "three-questions": Setup(around=a_worker),
    "in-fastapi-with-a-pool": Setup(around=an_application, needs="mariadb"),
}
