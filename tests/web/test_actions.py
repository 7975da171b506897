"""Actions: only with `allow`, only from the page itself, each in the log with who."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import httpx
import pytest
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import Request

from aiolease.stores.memory import MemoryStore
from aiolease.web import status_app
from tests.cli.worlds import DAY, NOW, TICK, World
from tests.web.served import ORIGIN, browsing, page_of, token_in

if TYPE_CHECKING:
    from loguru import Message

OF_A_BROWSER = {"Origin": ORIGIN, "Sec-Fetch-Site": "same-origin"}


@asynccontextmanager
async def opened(world: World, allow: Any = lambda *_: "alice", **options: Any) -> AsyncIterator[Form]:
    """A person who has opened the page."""
    async with page_of(world, allow=allow, **options) as client:
        yield Form(client, token_in((await client.get("/")).text))


class Form:
    """Sends the forms of a page."""

    def __init__(self, client: httpx.AsyncClient, token: str) -> None:
        self.client, self.token = client, token

    async def send(
        self, action: str, job: str = "", *, headers: dict[str, str] = OF_A_BROWSER, **fields: str
    ) -> httpx.Response:
        query = f"?{urlencode({'job': job})}" if job else ""
        data = {"token": self.token} | fields
        return await self.client.post(f"/do/{action}{query}", data=data, headers=headers)


def shop(world: World) -> None:
    world.job("report")
    world.run("failed", error="ValueError: no such customer")
    world.run("running", tick=TICK - DAY)


def asked(world: World) -> Any:
    return world.server.ledgers["default"].jobs["report"]


async def test_each_action_is_done_and_in_the_log(world: World, log: list[Message]) -> None:
    """Trigger, pause, resume, rerun, cancel, resign; each by the person whom `allow` names."""
    shop(world)
    async with opened(world) as form:
        answer = await form.send("trigger", "report")
        assert (answer.status_code, answer.headers["location"]) == (303, "../runs?job=report&done=trigger")
        assert asked(world).requested_at == NOW
        assert "it runs at the next heartbeat" in (await form.client.get("/runs?job=report&done=trigger")).text
        await form.send("pause", "report", note="see the ticket", hours="4")
        assert (asked(world).pause_note, asked(world).paused_until) == ("see the ticket", NOW + timedelta(hours=4))
        await form.send("resume", "report")
        assert not asked(world).is_paused(NOW)
        await form.send("rerun", "report", tick=TICK.isoformat())
        assert world.server.ledgers["default"].of("report")["report", TICK].status == "queued"
        await form.send("cancel", "report")
        assert asked(world).cancel_at == NOW
        assert (await form.send("pause")).headers["location"] == "../?done=pause"
        assert asked(world).is_paused(NOW)
        await form.send("resume")
        assert not asked(world).is_paused(NOW)
        assert (await form.send("resign")).status_code == 303
        assert world.server.leases["default"].resign_token == 7
    actions = ["trigger", "pause", "resume", "rerun", "cancel"]
    of_all = ["pause all jobs of 'default'", "resume all jobs of 'default'", "have the leader of 'default' resign"]
    assert [line.strip() for line in log] == [
        f"INFO 'alice' asked on the page to {what}"
        for what in [*(f"{each} 'report' of 'default'" for each in actions), *of_all]
    ]


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.test"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://other.page.test"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "https://evil.test"},
        {"Origin": "http://page.test:81"},
        {"Origin": "null"},
        {"Origin": "http://[::1"},
    ],
)
async def test_a_form_of_another_origin_does_nothing(world: World, headers: dict[str, str]) -> None:
    """Even if it should have the token, and the browser the cookie."""
    shop(world)
    async with opened(world) as form:
        assert (await form.send("trigger", "report", headers=headers)).status_code == 403
    assert asked(world).requested_at is None


@pytest.mark.parametrize(
    "headers",
    [
        OF_A_BROWSER,
        {"Origin": ORIGIN},
        {},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://before-the-proxy.test"},
    ],
)
async def test_a_form_of_the_page_is_heeded(world: World, headers: dict[str, str]) -> None:
    """From browsers new and old, from a program that has the cookie, behind a proxy that changes the host."""
    shop(world)
    async with opened(world) as form:
        assert (await form.send("trigger", "report", headers=headers)).status_code == 303
    assert asked(world).requested_at == NOW


@pytest.mark.parametrize("forged", ["", "x" * 43, "of another browser"])
async def test_a_forged_form_does_nothing(world: World, forged: str) -> None:
    """Without the token, with one that was made up, with one of another browser."""
    shop(world)
    async with opened(world) as form, opened(world) as other:
        answer = await form.send("trigger", "report", token=other.token if forged == "of another browser" else forged)
        assert answer.status_code == 403
        form.client.cookies.clear()
        assert (await form.send("trigger", "report")).status_code == 403
    assert asked(world).requested_at is None


async def test_a_wrong_method_does_nothing(world: World) -> None:
    """A link, a picture or a prefetch asks for nothing; nor does a body that no form sends."""
    shop(world)
    async with opened(world) as form:
        for method in ("GET", "HEAD", "PUT", "DELETE"):
            answer = await form.client.request(method, "/do/trigger?job=report", headers=OF_A_BROWSER)
            assert answer.status_code == 405
        answer = await form.client.post("/do/trigger?job=report", json={"token": form.token}, headers=OF_A_BROWSER)
        assert answer.status_code == 403
        assert (await form.send("trigger", "report", note="x" * 20_000)).status_code == 403
    assert asked(world).requested_at is None


async def test_a_form_that_breaks_off_does_nothing(world: World) -> None:
    """Nor is it an error for the log of the server."""
    shop(world)
    page = status_app(MemoryStore(world.server), allow=lambda *_: True)
    told: list[Any] = [{"type": "http.request", "body": b"token=", "more_body": True}, {"type": "http.disconnect"}]
    sent: list[Any] = []

    async def receive() -> Any:
        return told.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/x-www-form-urlencoded")]
    scope = {"type": "http", "method": "POST", "path": "/do/trigger", "query_string": b"job=report", "headers": headers}
    await page(scope, receive, send)
    assert sent[0]["status"] == 403
    assert asked(world).requested_at is None


async def test_without_allow_there_are_no_actions(world: World) -> None:
    """The page only shows: no form, no cookie, and a post finds nothing."""
    shop(world)
    async with page_of(world) as client:
        for path in ("/", "/runs?job=report"):
            page = await client.get(path)
            assert 'method="post"' not in page.text
            assert "set-cookie" not in page.headers
        answer = await client.post("/do/trigger?job=report", data={"token": "x"}, headers=OF_A_BROWSER)
    assert answer.status_code == 404
    assert asked(world).requested_at is None


async def test_allow_decides_by_request_and_action(world: World, log: list[Message]) -> None:
    """What it does not allow is neither offered nor done, and the log says so. It may be async."""
    shop(world)

    async def allow(request: Request, action: str) -> bool:
        return action == "pause" and request.query_params.get("job") != "report"

    async with opened(world, allow) as form:
        page = (await form.client.get("/")).text
        assert "do/pause" in page
        assert "do/resign" not in page
        assert "do/" not in (await form.client.get("/runs?job=report")).text
        assert (await form.send("trigger", "report")).status_code == 403
        assert (await form.send("pause", "report")).status_code == 403
        assert (await form.send("pause")).status_code == 303
    assert asked(world).is_paused(NOW)  # with all
    assert [line.strip() for line in log] == [
        "WARNING refused to trigger 'report' of 'default' on the page",
        "WARNING refused to pause 'report' of 'default' on the page",
        "INFO '192.0.2.7' asked on the page to pause all jobs of 'default'",
    ]


async def test_the_log_has_the_user_of_the_authentication(world: World, log: list[Message]) -> None:
    """Starlette's middleware sets it; a name cannot write lines of its own, and need not be a text."""
    from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser

    names: list[Any] = ["bob\nINFO forged", 4711]

    class Backend(AuthenticationBackend):
        async def authenticate(self, conn: Any) -> tuple[AuthCredentials, SimpleUser]:
            return AuthCredentials(), SimpleUser(names[0])

    shop(world)
    page = status_app(MemoryStore(world.server), allow=lambda *_: True, refresh=0.1)
    async with browsing(AuthenticationMiddleware(page, backend=Backend())) as client:
        form = Form(client, token_in((await client.get("/")).text))
        await form.send("trigger", "report")
        del names[0]
        assert (await form.send("pause", "report")).status_code == 303
    assert [line.strip() for line in log] == [
        "INFO 'bob INFO forged' asked on the page to trigger 'report' of 'default'",
        "INFO '4711' asked on the page to pause 'report' of 'default'",
    ]


@pytest.mark.parametrize(
    ("action", "job", "fields", "status", "text"),
    [
        ("trigger", "no-such", {}, 404, "no leader of"),
        ("trigger", "", {}, 400, "name the job"),
        ("rerun", "report", {"tick": (TICK - DAY).isoformat()}, 409, "this run goes on"),
        ("rerun", "report", {"tick": "yesterday"}, 400, "isoformat"),
        ("rerun", "report", {"tick": "2026-11-30T14:00:00"}, 400, "time zone"),
        ("rerun", "report", {"tick": "0001-01-01T00:00:00+14:00"}, 400, "out of range"),
        ("pause", "report", {"note": "x" * 300}, 400, "255 characters"),
        ("forget", "report", {}, 404, "no such action"),
    ],
)
async def test_what_cannot_be_done_is_told(  # noqa: PLR0917 - its parameters
    world: World, action: str, job: str, fields: Any, status: int, text: str
) -> None:
    """With the reason, as a page."""
    shop(world)
    async with opened(world) as form:
        answer = await form.send(action, job, **fields)
    assert (answer.status_code, text in answer.text) == (status, True), answer.text


async def test_nobody_resigns_where_nobody_leads(world: World) -> None:
    """The page says so, as the command line does."""
    world.lead(holder=None, expires=NOW - DAY)
    async with opened(world) as form:
        answer = await form.send("resign")
    assert (answer.status_code, "Nobody leads" in answer.text) == (409, True)


async def test_the_cookie_is_kept_from_others(world: World) -> None:
    """Scripts do not read it, other sites do not send it; with TLS it goes by TLS only."""
    async with page_of(world, allow=lambda *_: True) as client:
        cookie = (await client.get("/")).headers["set-cookie"]
        assert "HttpOnly; Path=/; SameSite=lax" in cookie
        assert "Secure" not in cookie
        client.cookies.clear()
        assert "Secure" in (await client.get("https://page.test/")).headers["set-cookie"]
