"""The arguments that commands share, and how they are read."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NoReturn

from aiolease.cli.moments import HELP, moment_of, seconds_of
from aiolease.cli.printing import trouble

Command = Callable[[argparse.Namespace], int]
Add = Callable[[str, Command, str, str], argparse.ArgumentParser]
"""Adds a command: its name, what it does, a sentence about it, and more."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and repeats no URL: it may hold a password."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with status 2."""
        self.exit(trouble(f"{_without_urls(message)}; see {self.prog} --help", 2))


def add_lease(command: argparse.ArgumentParser, *, named: bool = False) -> None:
    """Adds which lease of which database; `named` if its name may be given without the option, too."""
    if named:
        command.add_argument("lease", nargs="?", metavar="NAME", type=name, help="the lease, instead of AIOLEASE_NAME")
    command.add_argument("--lease", dest="name", metavar="NAME", type=name, help="the lease, instead of AIOLEASE_NAME")
    add_url(command)


def add_url(command: argparse.ArgumentParser) -> None:
    """Adds which database."""
    command.add_argument("--url", metavar="URL", help="the database, instead of AIOLEASE_URL")


def add_unused(command: argparse.ArgumentParser, *options: str) -> None:
    """Takes options that have no meaning for a command, so that a script may give them to every one."""
    for option in options:
        command.add_argument(option, help=argparse.SUPPRESS)


def add_job(command: argparse.ArgumentParser, *, optional: str = "") -> None:
    """Adds a job and its lease.

    Args:
        command: The command.
        optional: What it is about if no job is given; empty if one must be.
    """
    text = "the job, as `aiolease status` names it"
    if optional:
        command.add_argument("job", metavar="JOB", nargs="?", type=name, help=f"{text}; {optional} without one")
    else:
        command.add_argument("job", metavar="JOB", type=name, help=text)
    add_lease(command)


def add_json(command: argparse.ArgumentParser) -> None:
    """Adds that what is printed is for programs."""
    command.add_argument("--json", action="store_true", help="print it as JSON, for programs: whole, times in ISO 8601")


def add_number(command: argparse.ArgumentParser, default: int, what: str) -> None:
    """Adds how many lines there are at most."""
    command.add_argument(
        "-n", dest="number", metavar="N", type=number, default=default, help=f"{what} (default: %(default)s)"
    )


def add_moment(command: argparse.ArgumentParser, option: str, text: str, *, required: bool = False) -> None:
    """Adds a moment as an option."""
    command.add_argument(option, metavar="MOMENT", type=moment, required=required, help=text)


def number(text: str) -> int:
    """A whole number from 1."""
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not int(text):
        raise argparse.ArgumentTypeError("use a whole number from 1")
    return int(text)


def port(text: str) -> int:
    """The number of a port."""
    if (found := number(text)) > 65_535:
        raise argparse.ArgumentTypeError("use a number up to 65535")
    return found


def name(text: str) -> str:
    """The name of a lease or a job; it is checked when it is used."""
    if "://" in text:
        raise argparse.ArgumentTypeError("this is a URL, give it with --url")
    return text


def moment(text: str) -> datetime:
    """A moment as people type it."""
    try:
        return moment_of(text, datetime.now(UTC))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def seconds(text: str) -> float:
    """A duration as people type it, in seconds; not zero."""
    try:
        if (found := seconds_of(text)) > 0:
            return found
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    raise argparse.ArgumentTypeError("use more than 0 seconds")


def duration(text: str) -> float:
    """A duration as people type it, in seconds; it may be zero."""
    try:
        return seconds_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def age(text: str) -> tuple[str, float]:
    """A job and how old its last success may be."""
    job, separator, rest = text.rpartition("=")
    if not separator or not job:
        raise argparse.ArgumentTypeError("write JOB=SECONDS, such as report=90000 or report=25h")
    return name(job), seconds(rest)


MOMENTS = f"A MOMENT is {HELP}."


def _without_urls(text: str) -> str:
    return re.sub(r"\b([\w+]+)://[^\s'\"]*", r"\1://…", text)
