"""The command line: who leads, what the jobs did, and how to ask a leader for something.

The database and the lease come from the environment (`LeaseSettings`), or from the arguments. Commands about the lease
take its name as their argument (``aiolease status NAME``), those about a job take the job's (``aiolease history JOB
--lease NAME``). A command is a function of `aiolease.cli.commands`, and a few lines in `_parser`.

Exit status: 0 it did what was asked, 1 it did not, 2 it was asked in a wrong way. Errors are one line on the standard
error; no password is shown.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from aiolease.cli import commands
from aiolease.cli.printing import trouble
from aiolease.errors import AioleaseError, ConfigurationError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status.

    Args:
        arguments: Those of the process by default.
    """
    parsed = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = parsed.run
    try:
        status = run(parsed)
        sys.stdout.flush()
        return status
    except ConfigurationError as error:
        return trouble(error, 2)
    except AioleaseError as error:
        return trouble(error, 1)
    except BrokenPipeError:  # the reader, `head` say, has seen enough; nor may the interpreter write at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and repeats no URL: it may hold a password."""

    def error(self, message: str) -> NoReturn:
        self.exit(trouble(f"{_without_urls(message)}; see {self.prog} --help", 2))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="aiolease",
        description="Looks at leases, their leaders and their jobs, and asks leaders for something.",
        epilog="AIOLEASE_URL and AIOLEASE_NAME say which database and which lease, where the arguments do not. "
        "Exit status: 0 done, 1 not done, 2 asked in a wrong way.",
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str, more: str = "") -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = subparsers.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}"
        )
        command.set_defaults(run=run)
        return command

    status = add(
        "status",
        commands.status,
        "print who leads, and the jobs",
        "All that it says is by the database's clock, in UTC.",
    )
    _add_lease(status)
    _add_json(status)
    history = add(
        "history",
        commands.history,
        "print what became of a job's ticks, the newest last",
        "One line for each tick, or for each range of ticks that were skipped together: the tick, what became of it, "
        "the attempt, the term that ran it, how long it took, and the error or the reason.",
    )
    _add_job(history)
    history.add_argument(
        "-n", dest="number", metavar="N", type=_number, default=20, help="at most so many lines (default: %(default)s)"
    )
    _add_json(history)
    _add_job(
        add(
            "trigger",
            commands.trigger,
            "have a job run once, at the leader's next heartbeat",
            "It runs even if it is paused, but not beside a run that has not ended, unless the job allows that. "
            "Prints the tick that its run has in the history.",
        )
    )
    _add_job(
        add(
            "pause",
            commands.pause,
            "run none of a job's ticks from now on",
            "What is running or queued goes on, and `trigger` still works.",
        )
    )
    _add_job(
        add(
            "resume",
            commands.resume,
            "end a pause: run the job from its next tick on",
            "The leader learns of it at its next heartbeat, and then runs a tick that fell due since. The ticks of the "
            "pause are not made up for.",
        )
    )
    _add_job(
        add(
            "settle",
            commands.settle,
            "set a job's rows right that another hand, or a clock that was wrong, has left",
            "Its ticks up to now are settled, it goes on with the next. What waits or runs of it is recorded as lost.",
        )
    )
    _add_lease(add("resign", commands.resign, "ask the leader to resign: another leads after its next heartbeat"))
    add("schema", commands.schema, "print the statements that make the tables on MySQL or MariaDB")
    return parser


def _add_lease(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", nargs="?", metavar="NAME", type=_name, help="the lease, instead of AIOLEASE_NAME")
    _add_url(command)


def _add_job(command: argparse.ArgumentParser) -> None:
    command.add_argument("job", metavar="JOB", type=_name, help="the job, as `aiolease status` names it")
    command.add_argument(
        "--lease", dest="name", metavar="NAME", type=_name, help="the job's lease, instead of AIOLEASE_NAME"
    )
    _add_url(command)


def _add_url(command: argparse.ArgumentParser) -> None:
    command.add_argument("--url", metavar="URL", help="the database, instead of AIOLEASE_URL")


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print it as JSON, for programs: whole, times in ISO 8601")


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError("use a whole number from 1")
    return int(text)


def _name(text: str) -> str:
    if "://" in text:
        raise argparse.ArgumentTypeError("this is a URL, give it with --url")
    return text


def _without_urls(text: str) -> str:
    return re.sub(r"\b([\w+]+)://[^\s'\"]*", r"\1://…", text)
