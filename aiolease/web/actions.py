"""What a person asks for on a page, and who may. Nothing is asked for without `allow`.

A request must pass, in this order:

1. It comes from a page of the same origin, as the browser says.
2. It holds the token that is in the browser's cookie. Another site can neither read nor set it.
3. `allow` says yes.

Then the store is asked, as the command line asks it, and the log says who did it.
"""

from __future__ import annotations

import inspect
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, Final, Literal, final, get_args
from urllib.parse import parse_qs, urlencode

from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response

from aiolease import AioleaseError, InvalidJob, Notice, RequestRefused
from aiolease._jobs.in_words import one_line
from aiolease._logging import emit
from aiolease.stores import Store
from aiolease.web.readings import Readings
from aiolease.web.rendering import render

Action = Literal["trigger", "pause", "resume", "rerun", "cancel", "resign"]

Allow = Callable[[Request, str], object | Awaitable[object]]
"""Says whether a request may do something; see `status_app`."""

ACTIONS: Final[tuple[Action, ...]] = get_args(Action)

DONE: Final = {
    "trigger": "Asked for: it runs at the next heartbeat of a leader that has it.",
    "pause": "Paused: what is running or queued goes on.",
    "resume": "Resumed: it runs from the next tick on. Those of the pause are not made up for.",
    "rerun": "Asked for: it runs again, behind what is due.",
    "cancel": "Asked for: the leader cancels the runs at its next heartbeat.",
    "resign": "Asked for: the leader resigns at its next heartbeat, and another process leads.",
}
"""What a page says after an action."""

_WITHOUT_JOB = {"pause", "resume", "resign"}
_COOKIE = "aiolease-token"
_LARGEST = 16_384
"""Bytes of a form, at most."""

HOURS: Final = {"1": "1 hour", "4": "4 hours", "24": "1 day", "168": "1 week"}
"""For how long a pause may last; without any it lasts until somebody ends it."""

_STATUSES: Final[dict[type[Exception], int]] = {
    InvalidJob: 404, RequestRefused: 409, ValueError: 400, OverflowError: 400,
}  # fmt: skip
"""What an error is to the browser: the first of its classes."""


@final
class Actions:
    """The actions of one page.

    Args:
        readings: Have the lease.
        allow: Says who may do something; ``None``: nobody.
    """

    def __init__(self, readings: Readings, allow: Allow | None) -> None:
        self._readings = readings
        self._allow = allow

    async def allowed(self, request: Request, actions: Iterable[str]) -> set[str]:
        """What of some actions this person may do, so that a page offers it."""
        return {action for action in actions if await self._who(request, action)} if self._allow else set()

    def token(self, request: Request) -> str:
        """The token for the forms of a page; empty if there are no actions."""
        if self._allow is None:
            return ""
        token = request.cookies.get(_COOKIE, "")
        return token if re.fullmatch(r"[A-Za-z0-9_-]{43}", token) else secrets.token_urlsafe(32)

    def keep(self, request: Request, response: Response, token: str) -> None:
        """Has the browser keep the token of a page."""
        if token:
            secure = request.url.scheme == "https"
            response.set_cookie(_COOKIE, token, path="/", secure=secure, httponly=True, samesite="lax")

    async def do(self, request: Request) -> Response:
        """Does one action: ``POST /do/{action}``, its job in the query, its token in the form."""
        action = request.path_params["action"]
        if self._allow is None or action not in ACTIONS:
            return _refuse(404, "There is no such action on this page.")
        if not _same_origin(request):
            return _refuse(403, "This request does not come from this page.")
        form = await _form(request)
        token = request.cookies.get(_COOKIE, "")
        if form is None or not token or not secrets.compare_digest(token.encode(), form.get("token", "").encode()):
            return _refuse(403, "This form is too old, or not of this page. Open the page again, and try once more.")
        who, job = await self._who(request, action), request.query_params.get("job") or None
        if not who:
            self._log("WARNING", f"refused to {_words(action, job, self._readings.name)} on the page")
            return _refuse(403, f"You may not {action} here.")
        return await self._done(action, job, form, who)

    async def _done(self, action: str, job: str | None, form: dict[str, str], who: str) -> Response:
        """Does one action for a person who may, and answers."""
        try:
            if not await self._ask(action, job, form):
                return _refuse(409, "Nobody leads, so nobody can resign.")
        except (AioleaseError, ValueError, OverflowError) as error:
            status = next((code for kind, code in _STATUSES.items() if isinstance(error, kind)), 503)
            return _refuse(status, one_line(str(error), 500))
        self._log("INFO", f"{one_line(who)!r} asked on the page to {_words(action, job, self._readings.name)}")
        back = f"../runs?{urlencode({'job': job})}&" if job else "../?"
        return RedirectResponse(f"{back}done={action}", 303)

    async def _ask(self, action: str, job: str | None, form: dict[str, str]) -> bool:
        """Asks the store; false if nobody leads who could resign."""
        lease = await self._readings.lease()
        name = lease.name
        if job is None and action not in _WITHOUT_JOB:
            raise ValueError("name the job")
        asked: dict[str, Callable[[Store], Any]] = {
            "resign": lambda store: store.resign(name),
            "trigger": lambda store: store.trigger(name, str(job)),
            "resume": lambda store: store.resume(name, job),
            "cancel": lambda store: store.cancel(name, str(job)),
        }
        if action == "rerun":
            tick = datetime.fromisoformat(form.get("tick", ""))
            asked["rerun"] = lambda store: store.rerun(name, str(job), tick)
        if action == "pause":
            until, note = await self._end(form), form.get("note") or None
            asked["pause"] = lambda store: store.pause(name, job, until=until, note=note)
        answer = await lease.ask(asked[action])
        self._readings.expire()
        return action != "resign" or answer is not None

    async def _end(self, form: dict[str, str]) -> datetime | None:
        """When a pause ends that lasts for some hours."""
        if form.get("hours") not in HOURS:
            return None
        lease = await self._readings.lease()
        overview = await lease.ask(lambda store: store.overview(lease.name, []))
        return overview.now + timedelta(hours=float(form["hours"]))

    async def _who(self, request: Request, action: str) -> str | None:
        """Who asks; ``None`` if that person may not."""
        assert self._allow is not None
        answer = self._allow(request, action)
        if inspect.isawaitable(answer):
            answer = await answer
        if not answer:
            return None
        if isinstance(answer, str):
            return answer
        user = request.scope.get("user")
        known = getattr(user, "display_name", "") if user is not None else ""
        return str(known) if known else (request.client.host if request.client else "somebody")

    def _log(self, severity: Literal["INFO", "WARNING"], text: str) -> None:
        emit(Notice(lease=self._readings.name, severity=severity, text=text))


def _words(action: str, job: str | None, lease: str) -> str:
    """What is done, for the log."""
    if action == "resign":
        return f"have the leader of {lease!r} resign"
    return f"{action} {one_line(job)!r} of {lease!r}" if job else f"{action} all jobs of {lease!r}"


def _same_origin(request: Request) -> bool:
    """Whether a request comes from a page of its own origin, as far as the browser says.

    1. ``Sec-Fetch-Site`` says it. No script can set it, and it holds behind a proxy that changes the host, too.
    2. An older browser, or one without TLS, names the origin: it must be the host that is asked.
    3. If neither header is there, a program asks, and no browser. It needs the token all the same.
    """
    if (site := request.headers.get("sec-fetch-site")) is not None:
        return site == "same-origin"
    if (origin := request.headers.get("origin")) is not None:
        return origin.partition("://")[2] == request.headers.get("host") != ""
    return True


async def _form(request: Request) -> dict[str, str] | None:
    """The fields of a form; ``None`` if it is none, is too long, or does not come to its end."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        return None
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > _LARGEST:
                return None
    except ClientDisconnect:
        return None
    fields = parse_qs(body.decode(errors="replace"))
    return {field: values[-1] for field, values in fields.items()}


def _refuse(status: int, text: str) -> Response:
    return render("refused.html", status, title="Not done", text=text, base="../")
