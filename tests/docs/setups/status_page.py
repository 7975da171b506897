from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from tests.docs.setup import Setup, Stage


def an_application(stage: Stage) -> Iterator[None]:
    from fastapi.testclient import TestClient

    stage.environment["AIOLEASE_URL"] = "sqlite:///jobs.db"
    yield
    with TestClient(stage.names["app"]) as client:
        assert client.get("/jobs/healthz").text == "ok\n"
        page = client.get("/jobs")  # and on to /jobs/
        assert "What is wrong" in page.text
        assert client.get("/jobs/status.json").json()["campaign"]["state"] in ("leading", "following")


async def behind_a_login(stage: Stage) -> AsyncIterator[None]:
    from aiolease.testing import MemoryStore
    from tests.web.served import browsing

    stage.names.update(PASSWORDS={"alice": "secret"}, source=MemoryStore())
    yield
    async with browsing(stage.names["app"]) as client:
        for login in (None, ("alice", "wrong"), ("bob", "secret")):
            assert (await client.get("/jobs/", auth=login)).status_code == 401
        page = await client.get("/jobs/", auth=("alice", "secret"))
        assert "Have the leader resign" in page.text


async def with_operators(stage: Stage) -> AsyncIterator[None]:
    from aiolease.testing import MemoryStore
    from tests.web.served import browsing

    stage.names.update(OPERATORS={"alice"}, source=MemoryStore())
    yield
    async with browsing(stage.names["app"]) as client:
        for name, offered in (("alice", True), ("bob", False), ("", False)):
            page = await client.get("/", headers={"X-Forwarded-User": name})
            assert ("Have the leader resign" in page.text) == offered


SETUPS = {
    "in-your-application": Setup(around=an_application),
    "who-may-see-it": Setup(around=behind_a_login),
    "actions": Setup(around=with_operators),
}
