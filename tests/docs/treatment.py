"""What is done with a block of each language."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
import yaml

from tests.docs.commands import arguments_of, check_variable, commands_of
from tests.docs.page import Block
from tests.docs.running import SQL_PROGRAM, python_arguments, run_program
from tests.docs.setup import Stage


def treat(block: Block, folder: Path, environment: dict[str, str]) -> None:
    """Runs or checks one block.

    Raises:
        BrokenPage: It does not do what the page says, or nothing says what to do with it.
    """
    match block.language:
        case "python":
            run_program(block, python_arguments(block, folder), folder, environment, block.expected)
        case "console":
            run_commands(block, folder, environment)
        case "sh":
            commands_of(block)
            if block.expected:
                raise block.broken("it shows what is printed, but is not run: make it a console block")
        case "text" if block.setup.picture:
            if not block.text.strip():
                raise block.broken("an empty picture")
        case "env":
            treat_settings(block)
        case "toml":
            tomllib.loads(block.text)
        case "json":
            json.loads(block.text)
        case "yaml":
            yaml.safe_load(block.text)
        case "sql" if block.setup.needs is not None:
            statements = [part for part in re.split(r";\s*$", block.text, flags=re.MULTILINE) if part.strip()]
            program = folder / "statements.py"
            program.write_text(f"STATEMENTS = {statements!r}\n{SQL_PROGRAM}", encoding="utf-8")
            run_program(block, [sys.executable, str(program)], folder, environment, block.expected)
        case _:
            raise block.broken(
                f"a block of {block.language or 'no language'} that nothing says how to test; see tests/docs"
            )


def run_commands(block: Block, folder: Path, environment: dict[str, str]) -> None:
    """Runs the commands of a console block, one after another, and compares what each of them prints."""
    commands = commands_of(block)
    stage = Stage(names={}, folder=folder, environment=environment)
    around = block.setup.around
    assert around is None or inspect.isgeneratorfunction(around), "the set-up of commands is no async function"
    make = cast("Callable[[Stage], Iterator[None]]", around or nothing)
    with contextlib.contextmanager(make)(stage):
        for command in commands:
            arguments = arguments_of(block, command)
            expected = [*block.setup.expect, *command.shown]
            run_program(block, arguments, folder, environment | command.variables, expected)


def nothing(_: Stage) -> Iterator[None]:
    yield


def treat_settings(block: Block) -> None:
    from aiolease import LeaseSettings

    settings = dict(line.split("=", 1) for line in block.text.splitlines() if line.strip() and line[0] != "#")
    for name in settings:
        check_variable(block, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIOLEASE_URL", "sqlite:///jobs.db")  # unless the block names another
        for name, value in settings.items():
            patch.setenv(name, value.strip("\"'"))
        LeaseSettings().options()
