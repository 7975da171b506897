"""The commands of a page: each must exist, and those of a console block are run."""

from __future__ import annotations

import functools
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.docs.page import Block
from tests.docs.running import TIME_TO_END
from tests.project import ROOT


@dataclass(slots=True, kw_only=True)
class Command:
    """One command of a block.

    Attributes:
        variables: Those that stand before it.
        words: Its program and its arguments; no ``.venv/bin/``.
        shown: The lines that the page says it prints.
    """

    variables: dict[str, str]
    words: list[str]
    shown: list[str] = field(default_factory=list)


def commands_of(block: Block) -> list[Command]:
    """The commands of a block, each one checked to exist.

    Raises:
        BrokenPage: There is none, or one of them does not exist.
    """
    commands: list[Command] = []
    console = block.language == "console"
    for line in block.text.replace("\\\n", " ").splitlines():
        if not console:
            commands += split(line)
        elif line.startswith("$ "):
            commands += split(line[2:])
        elif line.strip() and commands:
            commands[-1].shown.append(line)
    if not commands:
        raise block.broken("no command in it (in a console block a command starts with '$ ')")
    for command in commands:
        for name in command.variables:
            check_variable(block, name)
        if wrong := unknown_words(command.words):
            raise block.broken(f"{shlex.join(command.words)}: there is no {shlex.join(wrong)}")
    return commands


def split(line: str) -> Iterator[Command]:
    words = shlex.shlex(line, posix=True, punctuation_chars="&;|")
    words.whitespace_split = True
    variables: dict[str, str] = {}
    command: list[str] = []
    for word in [*words, ";"]:
        if re.fullmatch(r"[&;|]+", word):
            if command:
                yield Command(variables=variables, words=command)
            variables, command = {}, []
        elif not command and re.match(r"[A-Z_]+=", word):
            name, _, value = word.partition("=")
            variables[name] = value
        else:
            command.append(word if command else word.removeprefix(".venv/bin/"))


def arguments_of(block: Block, command: Command) -> list[str]:
    """How a command of a console block is run here.

    Raises:
        BrokenPage: It is not a Python program of the project, nor the command line.
    """
    match command.words:
        case ["aiolease", *words]:
            return [sys.executable, "-m", "aiolease", *words]
        case ["python" | "python3", *words]:
            return [sys.executable, *(str(ROOT / word) if (ROOT / word).is_file() else word for word in words)]
        case _:
            raise block.broken(f"only aiolease and Python programs are run, not {command.words[0]}")


def check_variable(block: Block, name: str) -> None:
    from aiolease import LeaseSettings

    if name not in {f"AIOLEASE_{field.upper()}" for field in LeaseSettings.model_fields}:
        raise block.broken(f"no such setting: {name}")


def unknown_words(command: list[str]) -> list[str]:
    """The words of a command that do not exist: a program, a target, an option."""
    match command:
        case ["make", *words]:
            targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
            wrong = [word for word in words if "=" not in word and word not in targets]
        case ["python" | "python3", "-m", module, *words] if importlib.util.find_spec(module.partition(".")[0]):
            wrong = unknown_options(("-m", module), words) if module.startswith("aiolease") else []
        case ["python" | "python3", path, *words] if (ROOT / path).is_file():
            wrong = unknown_options((str(ROOT / path),), words)
        case ["aiolease", *words]:
            wrong = unknown_options(("-m", "aiolease"), words)
        case ["pip" | "uv", *words] if "install" in words or "add" in words:
            wrong = [word for word in words if word.startswith(("aiolease", ".[")) and not is_requirement(word)]
        case ["cd" | "export" | "kill" | "promtool" | "uvicorn", *_] | [
            "python" | "python3",
            "worker.py",
        ]:  # the latter a page has the reader write
            wrong = []
        case ["uvicorn" | "gunicorn", "app:app", *_] | ["python", "app.py"]:  # test_served.py starts them
            wrong = []
        case _:
            wrong = command
    return wrong


def is_requirement(word: str) -> bool:
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    named = re.fullmatch(r"(?:aiolease|\.)(?:\[([\w,-]+)\])?", word)
    return named is not None and set((named[1] or "").split(",")) - {""} <= set(extras)


def unknown_options(program: tuple[str, ...], words: list[str]) -> list[str]:
    """The subcommand and the options among ``words`` that the program's help does not know."""
    commands = words[:1] if words and re.fullmatch(r"[a-z][a-z-]*", words[0]) and program[0] == "-m" else []
    options = [word.partition("=")[0] for word in words if word.startswith("-")]
    if not commands and not options:
        return []
    said = help_of(program, *commands)
    if said is None:
        return commands or options
    return [option for option in options if not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", said)]


@functools.cache
def help_of(program: tuple[str, ...], *commands: str) -> str | None:
    """What ``program --help`` prints, ``None`` if that fails."""
    arguments = [sys.executable, *program, *commands, "--help"]
    result = subprocess.run(
        arguments, cwd=ROOT, capture_output=True, text=True, timeout=TIME_TO_END, stdin=subprocess.DEVNULL, check=False
    )
    return result.stdout if result.returncode == 0 else None
