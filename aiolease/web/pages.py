"""The page of the lease and those of its jobs: from a reading to what a template shows. As text they are `_views`'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, final
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from aiolease import AioleaseError, JobStanding, RunRecord
from aiolease._jobs.in_words import in_words, moment_text, one_line, span
from aiolease._jobs.schedule import read_schedule
from aiolease._views.look import Seen
from aiolease._views.telling import JOBS, RUNS, ago, described, job_row, run_row
from aiolease.web.actions import ACTIONS, DONE, HOURS, Actions
from aiolease.web.drawing import ended, lasted, line_of_time, sparkline
from aiolease.web.readings import JobShown, Latest, Readings, Shown
from aiolease.web.rendering import render

_ROWS = 100
"""So many jobs are on one page."""

_LISTED = 8
"""So many terms are listed below the line of time."""

_TICKS = 5
"""So many next ticks are on the page of a job."""

_LONGEST = 100
"""Characters of a search: no name of a job has more."""

STATES: Final[dict[str, Callable[[JobStanding], object]]] = {
    "failing": lambda job: job.failures,
    "overdue": lambda job: job.overdue,
    "running": lambda job: job.running,
    "waiting": lambda job: job.queued,
    "paused": lambda job: job.paused,
}
"""The states by which jobs are filtered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What a person looks for on the page of the lease."""

    text: str
    state: str
    page: int

    @classmethod
    def of(cls, request: Request) -> Query:
        """The query of a request; what it does not know it leaves out."""
        asked = request.query_params
        page, state = asked.get("page", "1"), asked.get("state", "")
        return cls(
            text=asked.get("q", "").strip()[:_LONGEST],
            state=state if state in STATES else "",
            page=max(int(page), 1) if page.isascii() and page.isdigit() and len(page) < 6 else 1,
        )

    def url(self, **other: object) -> str:
        """A link to the same page with other values."""
        values = {"q": self.text, "state": self.state, "page": self.page} | other
        return f"?{urlencode({field: value for field, value in values.items() if value not in {'', 1}})}"

    def found(self, jobs: Sequence[JobStanding]) -> list[JobStanding]:
        """Those of the jobs that are looked for."""
        text, state = self.text.lower(), STATES.get(self.state)
        named = (job for job in jobs if text in job.job.lower() or text in job.schedule.lower())
        return [job for job in named if state is None or state(job)]


@final
class Pages:
    """The pages of one lease."""

    def __init__(self, readings: Readings, actions: Actions) -> None:
        self._readings = readings
        self._actions = actions

    async def lease(self, request: Request) -> Response:
        """The page of the lease: what is wrong, who leads, how the jobs stand."""
        latest, query = await self._readings.latest(), Query.of(request)
        values: dict[str, Any] = {"query": query, "url": query.url(), "page": None}
        if latest.shown is not None:
            values["page"] = self._lease_facts(latest.shown, query)
        return await self._answer(request, latest, "lease.html", values)

    async def job(self, request: Request) -> Response:
        """The page of a job: its runs and errors, and why it ran or did not."""
        latest, name = await self._readings.latest(), request.query_params.get("job", "")
        if latest.shown is not None and name not in latest.shown.seen.overview.jobs:
            text = f"No leader of {self._readings.name!r} ever had this job."
            if (problem := latest.shown.seen.overview.unreadable.get(name)) is not None:
                text = f"{name!r} is set aside, its rows cannot be read: {one_line(problem)}; aiolease settle {name}"
            return render("refused.html", 404, title="Not found", text=text, base="")
        moment = _moment(request.query_params.get("at", ""))
        at = {"at": moment.isoformat()} if moment is not None else {}
        values: dict[str, Any] = {"name": name, "url": f"runs?{urlencode({'job': name} | at)}", "page": None}
        if latest.shown is not None:
            try:
                of_job = await self._readings.job(latest.shown, name, moment)
            except AioleaseError as error:
                values["trouble"] = one_line(str(error), 500)
            else:
                values["page"] = _job_facts(latest.shown, name, of_job, moment)
        return await self._answer(request, latest, "job.html", values)

    async def _answer(self, request: Request, latest: Latest, template: str, values: dict[str, Any]) -> Response:
        """The whole page, or for a page that is open only what changes in it."""
        token, live = self._actions.token(request), request.headers.get("hx-request") == "true"
        problem = values.pop("trouble", "") or latest.problem
        title = values.pop("title", None) or _title(self._readings.name, latest, problem)
        status = 200 if latest.shown is not None or live else 503
        response = render(
            f"live_{template}" if live else template,
            status,
            live=live,
            title=title,
            lease=self._readings.name,
            now="" if latest.shown is None else _second(latest.shown.seen.now),
            problem=one_line(problem, 500),
            stale=span(latest.age) if problem and latest.shown is not None else "",
            every=max(round(1000 * latest.due) + 20, 250),
            token=token,
            allowed=await self._actions.allowed(request, {"rerun"} if live else ACTIONS),
            done=DONE.get(request.query_params.get("done", ""), ""),
            hours=HOURS,
            base="",
            **values,
        )
        response.headers["Vary"] = "HX-Request"
        self._actions.keep(request, response, token)
        return response

    def _lease_facts(self, shown: Shown, query: Query) -> dict[str, Any]:
        """What the page of the lease shows of a reading."""
        seen, found = shown.seen, query.found(shown.jobs)
        pages = max(-(-len(found) // _ROWS), 1)
        page = min(query.page, pages)
        first = (page - 1) * _ROWS
        rows = found[first : first + _ROWS]
        counts = {state: sum(bool(is_so(job)) for job in seen.jobs) for state, is_so in STATES.items()}
        return {
            "wrong": shown.wrong,
            "led": seen.led,
            "campaign": self._campaign(),
            "database": shown.database,
            "described": [*described(seen)],
            "resigning": seen.lease is not None and seen.led,
            "paused": seen.pause is not None,
            "stretches": line_of_time(shown.terms, seen.now),
            "since": _second(shown.terms[0].began_at) if shown.terms else "",
            "terms": [_term_row(term, seen.now) for term in reversed(shown.terms[-_LISTED:])],
            "head": ["last runs" if title == "ended" else title for title in JOBS],
            "jobs": [_job_cells(shown, job) for job in rows],
            "all": len(seen.jobs),
            "filters": [(state, count, query.url(state=state, page=1)) for state, count in counts.items()],
            "every_job": query.url(state="", page=1),
            "told": f"{first + 1} to {first + len(rows)} of {len(found)}" if pages > 1 else "",
            "before": query.url(page=page - 1) if page > 1 else "",
            "after": query.url(page=page + 1) if page < pages else "",
        }

    def _campaign(self) -> str:
        """How the campaign of this process stands, in a line."""
        if self._readings.campaign is None:
            return ""
        status = self._readings.campaign.status()
        return f"{status.state}{f': {one_line(status.error, 300)}' if status.error else ''}"


def _title(lease: str, latest: Latest, problem: str) -> str:
    """What the tab of a browser says, and what is read out when it changes."""
    if problem or latest.shown is None:
        return f"{lease}: the database does not answer"
    seen = latest.shown.seen
    if seen.lease is None:
        return f"{lease}: nobody has led yet"
    wrong = len(latest.shown.wrong)
    state = "all is well" if not wrong else f"{wrong} wrong"
    led = f", term {seen.lease.token} leads" if seen.led else ", nobody leads"
    return f"{lease}: {state}{led}"


def _term_row(term: Any, now: datetime) -> tuple[str, ...]:
    return str(term.token), term.holder, _second(term.began_at), span(lasted(term, now)), one_line(ended(term))


def _job_cells(shown: Shown, job: JobStanding) -> dict[str, Any]:
    """A row of the table of jobs: the cells of the command line's, and a picture."""
    _, schedule, last, status, success, coming, state = job_row(shown.seen, job)
    return {
        "name": job.job,
        "url": f"runs?{urlencode({'job': job.job})}",
        "schedule": schedule,
        "last": last,
        "status": status,
        "picture": sparkline(shown.trails.get(job.job, ())),
        "success": success,
        "next": coming,
        "state": state,
        "kind": _kind(job),
    }


def _kind(job: JobStanding) -> str:
    """How loud a job is on the page."""
    return next((state for state, is_so in STATES.items() if is_so(job)), "fine")


def _job_facts(shown: Shown, name: str, of_job: JobShown, moment: datetime | None) -> dict[str, Any]:
    """What the page of a job shows of a reading."""
    seen = shown.seen
    job = next(each for each in seen.jobs if each.job == name)
    schedule = read_schedule(job.schedule, job.timezone)
    ticks, tick = list[str](), job.next_tick
    while tick is not None and len(ticks) < _TICKS:
        ticks.append(moment_text(tick, job.timezone))
        tick = schedule.next_after(tick) if schedule is not None else None
    return {
        "wrong": [wrong for wrong in shown.wrong if wrong.job == name],
        "kind": _kind(job),
        "facts": [
            ("schedule", f"{job.schedule} {job.timezone}".strip()),
            ("in words", in_words(schedule) if schedule is not None else "not known to this version"),
            ("state", job_row(seen, job)[-1] or "fine"),
            ("last success", "never" if job.last_success is None else ago(job.last_success, seen.now)),
            ("next ticks", ticks[0] if ticks else "none"),
            *(("", tick) for tick in ticks[1:]),
        ],
        "picture": sparkline(shown.trails.get(name, ())),
        "paused": job.paused,
        "asked": moment is not None,
        "why": of_job.why,
        "head": RUNS,
        "runs": [_run_cells(seen, name, run, job.timezone) for run in reversed(of_job.runs)],
    }


def _run_cells(seen: Seen, job: str, run: RunRecord, timezone: str) -> dict[str, Any]:
    tick, status, attempt, term, took, text = run_row(run, seen.now, timezone)
    at = run.tick.isoformat()
    return {
        "tick": tick,
        "at": at,
        "url": f"runs?{urlencode({'job': job, 'at': at})}#why",
        "status": status,
        "attempt": attempt,
        "term": term,
        "took": took,
        "text": text,
        "again": status in {"failed", "lost", "skipped"},
    }


def _moment(text: str) -> datetime | None:
    """The moment of a link to a run; ``None`` if there is none."""
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def _second(moment: datetime) -> str:
    return moment_text(moment.replace(microsecond=0))
