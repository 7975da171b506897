"""The application: its routes, and the headers of every answer."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aiolease import Campaign, ConfigurationError
from aiolease._names import check_name
from aiolease.stores import check_target
from aiolease.web.actions import Actions, Allow
from aiolease.web.health import Health
from aiolease.web.pages import Pages
from aiolease.web.readings import Readings

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    # Not "no-referrer": with that a browser names no origin for a form of this page.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_STATIC = {file.name: file for file in (Path(__file__).parent / "static").iterdir()}


def status_app(
    source: Any,
    *,
    allow: Allow | None = None,
    refresh: float = 2.0,
    name: str | None = None,
    metrics: Any = None,
) -> Starlette:
    """Makes the status page: an ASGI application, to be served alone or mounted in another under any path.

    Every link is relative, so a proxy may take a prefix away. The database is read while somebody looks, once for all
    open pages of the process.

    Args:
        source: A `Campaign`, from which the lease is known; a store, a URL, or what else `open_store` takes.
        allow: Says who may do something. Called with the request and one of ``"trigger"``, ``"pause"``, ``"resume"``,
            ``"rerun"``, ``"cancel"``, ``"resign"``; plain or async. What is false refuses; a text is the name of the
            person, for the log. The job is ``request.query_params.get("job")``. ``None``: the page only shows.
        refresh: Seconds within which a change is on every open page.
        name: The lease, if the source is no campaign; ``"default"`` if it is not given.
        metrics: What ``/metrics`` shows: a ``PrometheusMetrics``, or a registry of prometheus_client. The default
            registry if it is not given.

    Raises:
        ConfigurationError: The source or a setting cannot work.
    """
    if not (isinstance(refresh, int | float) and 0.1 <= refresh < math.inf):
        raise ConfigurationError("refresh", refresh, "use a finite number of seconds, from 0.1")
    if isinstance(source, Campaign):
        if name not in {None, source.name}:
            raise ConfigurationError("name", name, f"the campaign is for {source.name!r}")
        lease = source.name
    else:
        lease = check_name(name if name is not None else "default")
        check_target(source, lease)
    readings = Readings(source, lease, refresh)
    actions = Actions(readings, allow)
    pages, health = Pages(readings, actions), Health(readings, metrics)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await readings.aclose()

    routes = [
        Route("/", pages.lease),
        Route("/runs", pages.job),
        Route("/do/{action}", actions.do, methods=["POST"]),
        Route("/healthz", health.healthz),
        Route("/livez", health.livez),
        Route("/status.json", health.status),
        Route("/metrics", health.metrics),
        Route("/static/{file}", _static),
    ]
    return Starlette(routes=routes, middleware=[Middleware(_Outermost)], lifespan=lifespan)


async def _static(request: Request) -> Response:
    """A file of the page. Its address changes with the version."""
    if (file := _STATIC.get(request.path_params["file"])) is None:
        raise HTTPException(404)
    return FileResponse(file, headers={"Cache-Control": "public, max-age=86400"})


class _Outermost:
    """Takes a path as any host spells it, and adds our headers to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for header, value in _HEADERS.items():
                    headers.setdefault(header, value)
            await send(message)

        if scope["type"] != "http":  # the lifespan, of which a server tells
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        inner = path.removeprefix(scope.get("root_path", ""))
        asked = (scope.get("raw_path") or b"/").partition(b"?")[0].decode("ascii", "replace")
        app = self._app
        if inner in {"", "/"} and not asked.endswith("/"):
            # Without it the relative links of the page would lead beside it.
            app = RedirectResponse(f"{asked.rpartition('/')[2]}/")
        elif len(inner) > 1 and inner.endswith("/"):  # Litestar adds one to every path
            scope = {**scope, "path": path[:-1]}
        await app(scope, receive, sending)
