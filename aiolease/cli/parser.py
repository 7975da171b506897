"""The commands and their arguments. What a command does is in the rooms that are named here."""

from __future__ import annotations

import argparse
from typing import Any

from aiolease.cli import asking, running, tables
from aiolease.cli.looks import add_looking
from aiolease.cli.options import (
    MOMENTS,
    Add,
    Command,
    Parser,
    add_job,
    add_json,
    add_lease,
    add_moment,
    add_unused,
    add_url,
    duration,
    moment,
    name,
    number,
    seconds,
)


def parser() -> argparse.ArgumentParser:
    """Makes the parser of the command line."""
    from aiolease import __version__

    whole = Parser(
        prog="aiolease",
        description="Runs scheduled jobs in one of many processes; looks at leaders and jobs, asks them for something.",
        epilog="AIOLEASE_URL and AIOLEASE_NAME say which database and which lease, where the arguments do not. "
        "Exit status: 0 done or well, 1 not done or not well, 2 asked in a wrong way.",
    )
    whole.add_argument("--version", action="version", version=f"aiolease {__version__}")
    subparsers = whole.add_subparsers(title="commands", metavar="COMMAND")

    def add(command: str, run: Command, text: str, more: str = "") -> argparse.ArgumentParser:
        end = "" if text.endswith("?") else "."
        added: Any = subparsers.add_parser(command, help=text, description=f"{text[0].upper()}{text[1:]}{end} {more}")
        added.set_defaults(run=run, command=command)
        made: argparse.ArgumentParser = added
        return made

    _add_running(add)
    add_looking(add)
    _add_asking(add)
    _add_pausing(add)
    _add_mending(add)
    _add_tables(add)
    return whole


def _add_running(add: Add) -> None:
    application = "the application's registry, such as worker:jobs for `jobs = JobRegistry()` in worker.py"
    run = add(
        "run",
        running.run,
        "serve an application's jobs: the worker",
        "Modules are looked for in the current folder first. SIGTERM or Ctrl-C lets running jobs finish and hands "
        "over; a second one cancels them. Timings come from AIOLEASE_LEASE_DURATION and its kin.",
    )
    run.add_argument("application", metavar="MODULE:REGISTRY", type=name, help=application)
    run.add_argument(
        "--lease", "--name", dest="name", metavar="NAME", type=name, help="the lease, instead of AIOLEASE_NAME"
    )
    add_url(run)
    run.add_argument(
        "--drain-timeout",
        metavar="SECONDS",
        type=duration,
        default=10.0,
        help="how long running jobs may take to finish (default: %(default)s)",
    )
    coming = add(
        "next",
        running.next_,
        "print the coming ticks of an application's jobs",
        "It needs no database. The schedules are told in words, the ticks in UTC and by the job's own clock.",
    )
    coming.add_argument("application", metavar="MODULE:REGISTRY", type=name, help=application)
    coming.add_argument("job", metavar="JOB", nargs="?", type=name, help="one of its jobs; all without one")
    coming.add_argument(
        "-n",
        dest="number",
        metavar="N",
        type=number,
        default=5,
        help="so many ticks of each job (default: %(default)s)",
    )
    add_json(coming)
    add_unused(coming, "--url", "--lease")


def _add_asking(add: Add) -> None:
    trigger = add(
        "trigger",
        asking.trigger,
        "have a job run once, at the leader's next heartbeat",
        "It runs even if it is paused, but not beside a run that has not ended, unless the job allows that. "
        "Prints the tick that its run has in the history.",
    )
    add_job(trigger)
    _add_wait(trigger)
    rerun = add(
        "rerun",
        asking.rerun,
        "have one run that failed, was lost or was skipped run again",
        f"It waits behind what is due, and has all its retries again. {MOMENTS.replace('MOMENT', 'TICK')}",
    )
    rerun.add_argument("job", metavar="JOB", type=name, help="the job, as `aiolease status` names it")
    rerun.add_argument("tick", metavar="TICK", type=moment, help="the run's tick, as `aiolease history` shows it")
    rerun.add_argument("--force", action="store_true", help="even if it has succeeded")
    add_lease(rerun)
    _add_wait(rerun)
    backfill = add(
        "backfill",
        asking.backfill,
        "have the ticks of a range run that did not run",
        f"Those of the job's schedule that have no run, or were skipped; behind what is due. {MOMENTS}",
    )
    add_job(backfill)
    add_moment(backfill, "--since", "the first moment of the range", required=True)
    add_moment(backfill, "--until", "the last moment of the range; now without one")
    add_json(backfill)
    cancel = add(
        "cancel",
        asking.cancel,
        "have the leader cancel the runs of a job that go on",
        "They are failed, and not tried again; so are those that wait for a retry. A backfill ends.",
    )
    add_job(cancel)
    add_json(cancel)


def _add_wait(command: argparse.ArgumentParser) -> None:
    command.add_argument("--wait", action="store_true", help="wait for its end: exit status 0 if it has succeeded")
    command.add_argument(
        "--timeout", metavar="SECONDS", type=seconds, help="with --wait: wait no longer, and end with status 1"
    )
    add_json(command)


def _add_pausing(add: Add) -> None:
    pause = add(
        "pause",
        asking.pause,
        "run none of a job's ticks from now on",
        f"What is running or queued goes on, and `trigger` still works. {MOMENTS}",
    )
    add_job(pause, optional="all jobs of the lease")
    add_moment(pause, "--until", "when the pause ends by itself")
    pause.add_argument("--note", metavar="TEXT", help="why, for those who look")
    add_json(pause)
    resume = add(
        "resume",
        asking.resume,
        "end a pause: run the job from its next tick on",
        "The leader learns of it at its next heartbeat, and then runs a tick that fell due since. The ticks of the "
        "pause are not made up for.",
    )
    add_job(resume, optional="the pause of all jobs of the lease")
    add_json(resume)
    resign = add(
        "resign",
        asking.resign,
        "ask the leader to resign: another leads after its next heartbeat",
        "Runs that go on are cancelled then, and recorded as lost.",
    )
    add_lease(resign, named=True)
    add_json(resign)


def _add_mending(add: Add) -> None:
    settle = add(
        "settle",
        asking.settle,
        "set a job's rows right that another hand, or a clock that was wrong, has left",
        "Its ticks up to now are settled, it goes on with the next. What waits or runs of it is recorded as lost.",
    )
    add_job(settle)
    add_json(settle)
    forget = add(
        "forget",
        asking.forget,
        "take a job that is gone, and its runs, out of the database",
        "It is refused while the leader has the job.",
    )
    add_job(forget)
    add_json(forget)


def _add_tables(add: Add) -> None:
    schema = add("schema", tables.schema, "print the statements that make the tables", "It needs no database.")
    schema.add_argument(
        "--dialect", choices=tables.DIALECTS, default="mysql", help="of which database (default: %(default)s)"
    )
    add_unused(schema, "--url", "--lease")
    migrate = add(
        "migrate",
        tables.migrate,
        "bring the tables to this version, or make them",
        "Workers of the version before may go on meanwhile. A worker does it by itself at its start, if it may.",
    )
    add_url(migrate)
    add_unused(migrate, "--lease")
    migrate.add_argument(
        "--check", action="store_true", help="change nothing: print the statements that are missing, status 1 if any"
    )
    add_json(migrate)
