from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

from aiolease import JobRegistry
from tests.docs.setup import Setup, Stage

TICK = datetime(2026, 11, 30, 14, 0, tzinfo=UTC)


def runs(stage: Stage) -> None:
    """A run that succeeds, and one that fails."""
    import asyncio

    from aiolease.testing import run_job

    jobs: JobRegistry = stage.names["jobs"]

    @jobs.every(60)
    async def broken() -> None:
        raise ValueError

    async def both() -> None:
        await run_job(jobs, "close_stale_sessions", tick=TICK)
        try:
            await run_job(jobs, "broken", tick=TICK)
        except ValueError:
            return
        raise AssertionError

    asyncio.run(both())


def healthchecks(stage: Stage) -> Iterator[None]:
    """A service that keeps what it hears, and that is down for the end of the first run."""
    import httpx

    told: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        told.append(f"{request.method} {request.url.path} {request.url.params['rid'][:8]}")
        if len(told) == 2:
            raise httpx.ConnectError("down")
        return httpx.Response(200)

    stage.environment["HEALTHCHECKS"] = "https://hc.test/key"
    yield
    client = httpx.AsyncClient

    class Fake(ModuleType):
        HTTPError = httpx.HTTPError

        @staticmethod
        def AsyncClient(**options: Any) -> httpx.AsyncClient:  # noqa: N802 - the name of what it stands for
            return client(transport=httpx.MockTransport(answer), **options)

    stage.names["httpx"] = Fake("httpx")
    runs(stage)
    rid = told[0][-8:]
    assert told == [
        f"POST /key/close_stale_sessions/start {rid}",
        f"POST /key/close_stale_sessions {rid}",
        f"POST /key/broken/start {rid}",
        f"POST /key/broken/fail {rid}",
    ]


def sentry(stage: Stage) -> Iterator[None]:
    """Stands in for Sentry's package."""
    told: list[dict[str, Any]] = []

    def capture_checkin(**facts: Any) -> str:
        told.append(facts)
        return f"check-in {len(told)}"

    crons: Any = ModuleType("sentry_sdk.crons")
    crons.capture_checkin = capture_checkin
    there = {name: sys.modules.get(name) for name in ("sentry_sdk", "sentry_sdk.crons")}
    sys.modules |= {"sentry_sdk": ModuleType("sentry_sdk"), "sentry_sdk.crons": crons}
    try:
        yield
        runs(stage)
    finally:
        for name, module in there.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    assert [(each["monitor_slug"], each["status"], each.get("check_in_id")) for each in told] == [
        ("close_stale_sessions", "in_progress", None),
        ("close_stale_sessions", "ok", "check-in 1"),
        ("broken", "in_progress", None),
        ("broken", "error", "check-in 3"),
    ]


SETUPS = {"healthchecks": Setup(around=healthchecks), "sentry": Setup(around=sentry)}
