"""The commands that only look, and their arguments."""

from __future__ import annotations

from aiolease.cli import looking, serving, watching
from aiolease.cli.options import (
    MOMENTS,
    Add,
    add_job,
    add_json,
    add_lease,
    add_moment,
    add_number,
    age,
    moment,
    name,
    number,
    port,
    seconds,
)

_HISTORY = (
    "One line for each tick, or for each range of ticks that were skipped together: the tick, what became of it, "
    "the attempt, the term that ran it, how long it took, and the error or the reason."
)


def add_looking(add: Add) -> None:
    """Adds the commands that only look."""
    status = add(
        "status",
        looking.status,
        "print what is wrong, who leads, and how the jobs stand",
        "All that it says is by the database's clock, in UTC; next ticks by the job's own clock, too.",
    )
    add_lease(status, named=True)
    add_json(status)
    watch = add(
        "watch",
        watching.watch,
        "show the status live, until Ctrl-C",
        "On a terminal it draws in place; elsewhere it prints a line for each change.",
    )
    add_lease(watch, named=True)
    watch.add_argument(
        "--interval", metavar="SECONDS", type=seconds, default=2.0, help="between two looks (default: %(default)s)"
    )
    add_json(watch)
    _add_page(add)
    _add_check(add)
    _add_runs(add)


def _add_page(add: Add) -> None:
    page = add(
        "page",
        serving.page,
        "serve the status page, until Ctrl-C",
        "It only shows, to all who reach it. It needs the extra `web`, and uvicorn.",
    )
    add_lease(page, named=True)
    page.add_argument("--host", default="127.0.0.1", help="the address that it listens on (default: %(default)s)")
    page.add_argument("--port", metavar="N", type=port, default=8321, help="its port (default: %(default)s)")
    page.add_argument(
        "--refresh", metavar="SECONDS", type=seconds, default=2.0, help="how old it may be (default: %(default)s)"
    )


def _add_check(add: Add) -> None:
    check = add(
        "check",
        looking.check,
        "print one line for a probe: is all well?",
        "Exit status 0 if somebody leads, every job is in time, none has failed, and the clocks are together; else 1.",
    )
    add_lease(check, named=True)
    check.add_argument(
        "--max-age",
        metavar="JOB=SECONDS",
        type=age,
        action="append",
        default=[],
        help="how old the last success of a job may be, such as report=25h; once for each job",
    )
    check.add_argument(
        "--failures",
        metavar="N",
        type=number,
        default=1,
        help="a job is not well if it failed so many times in a row (default: %(default)s)",
    )
    add_json(check)


def _add_runs(add: Add) -> None:
    runs = add(
        "runs", looking.runs, "print what became of ticks, over all jobs, the newest last", f"{_HISTORY} {MOMENTS}"
    )
    add_job(runs, optional="all jobs")
    runs.add_argument("--failed", action="store_true", help="only runs that failed, or were lost")
    add_moment(runs, "--since", "only ticks from this moment on")
    add_number(runs, 20, "at most so many lines")
    add_json(runs)
    history = add("history", looking.history, "print what became of a job's ticks, the newest last", _HISTORY)
    add_job(history)
    add_number(history, 20, "at most so many lines")
    add_json(history)
    why = add(
        "why",
        looking.why_,
        "tell why a job ran, or did not run, at a moment",
        f"From its schedule, its runs and the terms, in sentences; and what may be done about it. {MOMENTS}",
    )
    why.add_argument("job", metavar="JOB", type=name, help="the job, as `aiolease status` names it")
    why.add_argument("moment", metavar="MOMENT", nargs="?", type=moment, help="when; its latest tick without one")
    add_lease(why)
    add_json(why)
