"""Every fenced code block of README.md is run, or held against what it speaks of.

A block is treated by its language, and by an HTML comment above it, which a reader of the page does not see:
``<!-- test: word option=value … -->``, with quotes as in a shell. A block without a treatment fails.

``python``
    Nothing said: a complete program. It runs in an empty folder and must end by itself, with status 0, in 30 s.
    ``fragment``: not a program; it runs inside an event loop, ``await`` and ``async with`` may stand at the top level.
    The comment's further lines are Python that runs before the block, in the same namespace; those below a line
    ``---`` run after it: names that the block takes as given, and assertions on what it did.
``sh``, ``console`` (``$ `` starts a command; what follows is its output)
    Each command must exist: a target of the Makefile, a file of the project with such options, a subcommand of
    ``aiolease``, an extra. With ``run=…`` the commands, which are then Python programs, are run as well.
``text``
    ``output``: what the block above printed. Every line must occur, in this order; times, durations, holders and
    line numbers may differ, and ``…`` stands for anything. ``picture``: a drawing, not empty.
``mermaid``
    ``picture``.
``env``
    ``AIOLEASE_…=value`` lines; `LeaseSettings` must know and accept them.
``toml``, ``json``
    It must parse.
``sql``
    With ``needs=…``: its statements run on that database, where aiolease's tables have been made.

Options of what runs: ``run=5s``: it would go on for ever, so it is stopped with Ctrl-C once all that is expected was
printed, and fails if that took longer, or if it does not end in order; ``expect="…"`` (again and again): this must be
printed, as in an ``output`` block; ``needs=mariadb``: a fixture of that name, a server; AIOLEASE_URL names a fresh
database on it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.servers import Server

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
TIME_TO_END = 30.0

RUNNER = """
import ast, asyncio, inspect, json, sys

mode, *parts = json.load(open(sys.argv[1], encoding="utf-8"))
names = sys.modules["__main__"].__dict__
flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT if mode == "fragment" else 0
codes = [compile(text, "README.md", "exec", flags=flags, dont_inherit=True) for text in parts]

async def run():
    for code in codes:
        result = eval(code, names)
        if code.co_flags & inspect.CO_COROUTINE:
            await result

if mode == "fragment":
    asyncio.run(run())
else:
    for code in codes:
        exec(code, names)
"""

SQL_PROGRAM = """
import asyncio, os
from urllib.parse import unquote, urlsplit
import asyncmy
from aiolease import open_store

async def main():
    url = urlsplit(os.environ["AIOLEASE_URL"])
    async with open_store(url.geturl()) as store:
        await store.status("readme")
    conn = await asyncmy.connect(
        host=url.hostname, port=url.port or 3306, user=unquote(url.username or ""),
        password=unquote(url.password or ""), db=url.path.lstrip("/"),
    )
    async with conn, conn.cursor() as cursor:
        for statement in STATEMENTS:
            await cursor.execute(statement)

asyncio.run(main())
"""


class BrokenReadme(AssertionError):
    """A block of the page does not do what it says; the message starts with its line."""

    def __init__(self, line: int, why: str) -> None:
        super().__init__(f"README.md:{line}: {why}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A comment ``<!-- test: … -->``, with the Python that it holds."""

    line: int = 0
    words: tuple[str, ...] = ()
    run: float | None = None
    expect: tuple[str, ...] = ()
    needs: str | None = None
    before: str = ""
    after: str = ""


@dataclass(slots=True, kw_only=True)
class Block:
    """A fenced block; ``line`` is that of its fence, ``output`` the lines it must print besides those of its mark."""

    line: int
    language: str
    text: str
    mark: Mark
    output: list[str] = field(default_factory=list)

    @property
    def expected(self) -> list[str]:
        return [*self.mark.expect, *self.output]


# ---------------------------------------------------------------------------------------------- reading the page


def parse_mark(line: int, comment: str) -> Mark:
    """The mark in ``comment``, the text between ``<!-- test:`` and ``-->``, which starts at ``line``."""
    head, _, code = comment.partition("\n")
    before, divided, after = code.partition("---\n")
    words: list[str] = []
    expect: list[str] = []
    run = needs = None
    for word in shlex.split(head):
        option, assigned, value = word.partition("=")
        if not assigned:
            if word not in ("fragment", "output", "picture"):
                raise BrokenReadme(line, f"unknown word in a test mark: {word}")
            words.append(word)
        elif option == "run" and re.fullmatch(r"\d+(\.\d+)?s", value):
            run = float(value[:-1])
        elif option == "expect":
            expect.append(value)
        elif option == "needs":
            needs = value
        else:
            raise BrokenReadme(line, f"unknown option in a test mark: {word}")
    return Mark(
        line=line,
        words=tuple(words),
        run=run,
        expect=tuple(expect),
        needs=needs,
        # Padded, so that a traceback shows the page's own line numbers.
        before="\n" * line + before if before.strip() else "",
        after="\n" * (line + before.count("\n") + 1) + after if divided and after.strip() else "",
    )


def parse(page: str) -> list[Block]:
    """The blocks of a page, each ``output`` block already joined to the block that prints it."""
    blocks: list[Block] = []
    mark: Mark | None = None
    lines = iter(enumerate(page.splitlines(), start=1))
    for number, line in lines:
        if opening := re.match(r"\s*<!--\s*test:(.*)", line):
            if mark is not None:
                raise BrokenReadme(mark.line, "a test mark without a block below it")
            comment = [opening[1]]
            while "-->" not in comment[-1]:
                comment.append(next(lines, (0, "-->"))[1])
            comment[-1] = comment[-1].partition("-->")[0]
            mark = parse_mark(number, "\n".join(comment))
        elif fence := re.match(r"(?P<indent>\s*)(?P<ticks>`{3,}|~{3,})\s*(?P<language>[^\s`]*)", line):
            text: list[str] = []
            for _, inner in lines:
                if inner.strip() == fence["ticks"]:
                    break
                text.append(inner.removeprefix(fence["indent"]))
            else:
                raise BrokenReadme(number, "a fence that nothing closes")
            block = Block(
                line=number, language=fence["language"], text="\n".join(text) + "\n", mark=mark or Mark(line=number)
            )
            mark = None
            if block.language == "text" and "output" in block.mark.words:
                join_output(blocks, block)
            else:
                blocks.append(block)
        elif line.strip() and mark is not None:
            raise BrokenReadme(mark.line, "a test mark without a block below it")
    if mark is not None:
        raise BrokenReadme(mark.line, "a test mark without a block below it")
    return blocks


def join_output(blocks: list[Block], output: Block) -> None:
    """Hand the lines of ``output`` to the block that prints them: the last one, if that one runs."""
    printed = [line for line in output.text.splitlines() if line.strip()]
    runs = blocks and (blocks[-1].language == "python" or blocks[-1].mark.run is not None)
    if not runs:
        raise BrokenReadme(output.line, "an output block that does not follow a block that runs")
    if not printed:
        raise BrokenReadme(output.line, "an output block without output")
    blocks[-1].output += printed


# ------------------------------------------------------------------------------------- comparing what was printed


VARYING = [
    (r"\x1b\[[0-9;]*m", ""),
    (r"\b\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d([.,]\d+)?)?)?(Z|[+-]\d\d:?\d\d)?", "<time>"),
    (r"\b\d\d:\d\d:\d\d([.,]\d+)?", "<time>"),
    (r"\b[\w.-]+-\d+-[0-9a-f]{32}\b", "<holder>"),
    (r"\b[0-9a-f]{32}\b", "<id>"),
    (r"\b\d+(\.\d+)? ?(s|ms|seconds|milliseconds)\b", "<duration>"),
    (r"\bpid \d+", "pid <n>"),
    (r"(\b[\w.]+:[\w<>]+):\d+\b", r"\1:<line>"),
    (r"\s+", " "),
]


def normal(line: str) -> str:
    """``line`` without what differs from run to run."""
    for pattern, instead in VARYING:
        line = re.sub(pattern, instead, line)
    return line.strip()


def missing(expected: list[str], printed: list[str]) -> str | None:
    """The first expected line that was not printed after those before it, ``None`` if all were."""
    rest = iter([normal(line) for line in printed])
    for line in expected:
        pattern = ".*".join(re.escape(piece.strip()) for piece in re.split(r"…|\.\.\.", normal(line)))
        if re.fullmatch(r"(\.\*)*", pattern):
            continue
        if not any(re.search(pattern, candidate) for candidate in rest):
            return line
    return None


def run_program(block: Block, arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Run a program as the block's mark says, and compare what it prints."""
    mark = block.mark
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AIOLEASE_")}
    path = os.pathsep.join(filter(None, [str(ROOT), clean.get("PYTHONPATH")]))
    process = subprocess.Popen(
        arguments,
        cwd=folder,
        env=clean | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    printed: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=printed.extend, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        stopped = stop_when_seen(block, process, printed) if mark.run is not None else False
        try:
            status = process.wait(TIME_TO_END)
        except subprocess.TimeoutExpired:
            how = "after Ctrl-C" if stopped else "by itself (a block that runs for ever is marked run=…)"
            raise BrokenReadme(block.line, f"it did not end {how}, and printed\n{''.join(printed)}") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what it started
        process.wait()
        reader.join(5.0)
        process.stdout.close()
    said = "".join(printed)
    # A program that leaves Ctrl-C to Python ends with SIGINT, and that is in order for one that runs for ever.
    if status != 0 and not (stopped and status == -signal.SIGINT):
        raise BrokenReadme(block.line, f"it ended with status {status} and printed\n{said}")
    if mark.run is not None and not stopped:
        raise BrokenReadme(block.line, f"it was to run until it is stopped, but ended, and printed\n{said}")
    if (line := missing(block.expected, printed)) is not None:
        raise BrokenReadme(block.line, f"it did not print {line!r} (in this order), but\n{said}")


def stop_when_seen(block: Block, process: subprocess.Popen[str], printed: list[str]) -> bool:
    """Let the program run until it printed all that is expected, or its time is over; then press Ctrl-C."""
    assert block.mark.run is not None
    deadline = time.monotonic() + block.mark.run
    while time.monotonic() < deadline and process.poll() is None:
        if block.expected and missing(block.expected, list(printed)) is None:
            break
        time.sleep(0.05)
    if process.poll() is not None:
        return False
    os.killpg(process.pid, signal.SIGINT)
    return True


# ---------------------------------------------------------------------------------------------- the treatments


def treat(block: Block, folder: Path, environment: dict[str, str]) -> None:
    """Run or check one block.

    Raises:
        BrokenReadme: it does not do what the page says, or nothing says what to do with it.
    """
    match block.language:
        case "python":
            treat_python(block, folder, environment)
        case "sh" | "bash" | "shell" | "console":
            treat_commands(block, folder, environment)
        case "text" | "mermaid" if "picture" in block.mark.words:
            if not block.text.strip():
                raise BrokenReadme(block.line, "an empty picture")
        case "env":
            treat_settings(block)
        case "toml":
            tomllib.loads(block.text)
        case "json":
            json.loads(block.text)
        case "sql" if block.mark.needs is not None:
            statements = [part for part in re.split(r";\s*$", block.text, flags=re.MULTILINE) if part.strip()]
            program = folder / "statements.py"
            program.write_text(f"STATEMENTS = {statements!r}\n{SQL_PROGRAM}", encoding="utf-8")
            run_program(block, [sys.executable, str(program)], folder, environment)
        case _:
            raise BrokenReadme(
                block.line,
                f"a block of {block.language or 'no language'} that nothing says how to test; see tests/test_readme.py",
            )


def treat_python(block: Block, folder: Path, environment: dict[str, str]) -> None:
    mark = block.mark
    fragment = "fragment" in mark.words
    if fragment or mark.before or mark.after:
        parts = folder / "parts.json"
        text = "\n" * block.line + block.text
        mode = "fragment" if fragment else "program"
        parts.write_text(json.dumps([mode, mark.before, text, mark.after]), encoding="utf-8")
        arguments = [sys.executable, "-c", RUNNER, str(parts)]
    else:
        program = folder / "program.py"
        program.write_text(block.text, encoding="utf-8")
        arguments = [sys.executable, str(program)]
    run_program(block, arguments, folder, environment)


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


def treat_commands(block: Block, folder: Path, environment: dict[str, str]) -> None:
    commands = list(commands_of(block))
    if not commands:
        raise BrokenReadme(block.line, "no command in it (in a console block a command starts with '$ ')")
    for variables, command in commands:
        for name in variables:
            check_variable(block, name)
        check_command(block, command)
    if block.mark.run is None:
        if block.expected:
            raise BrokenReadme(block.line, "it shows what is printed, but is not marked run=…")
        return
    for variables, command in commands:
        program, *arguments = command
        if program not in ("python", "python3"):
            raise BrokenReadme(block.line, f"only Python programs are run, not {program}")
        found = [str(ROOT / word) if (ROOT / word).is_file() else word for word in arguments]
        run_program(block, [sys.executable, *found], folder, environment | variables)


def commands_of(block: Block) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Each command with its variables. The other lines of a console block become the block's output."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        block.output[:0] = [line for line in lines if line.strip() and not line.startswith("$ ")]
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    for line in lines:
        words = shlex.shlex(line, posix=True, punctuation_chars="&;|")
        words.whitespace_split = True
        variables: dict[str, str] = {}
        command: list[str] = []
        for word in [*words, ";"]:
            if re.fullmatch(r"[&;|]+", word):
                if command:
                    yield variables, command
                variables, command = {}, []
            elif not command and re.match(r"[A-Z_]+=", word):
                name, _, value = word.partition("=")
                variables[name] = value
            else:
                command.append(word)


def check_variable(block: Block, name: str) -> None:
    from aiolease import LeaseSettings

    known = {f"AIOLEASE_{field.upper()}" for field in LeaseSettings.model_fields}
    if name not in known:
        raise BrokenReadme(block.line, f"no such setting: {name}")


def check_command(block: Block, command: list[str]) -> None:
    """Check that what ``command`` names is there."""
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
            wrong = [word for word in words if word.startswith("aiolease") and not is_requirement(word)]
        case ["cd" | "kill", *_]:
            wrong = []
        case _:
            wrong = command
    if wrong:
        raise BrokenReadme(block.line, f"{shlex.join(command)}: there is no {shlex.join(wrong)}")


def is_requirement(word: str) -> bool:
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    named = re.fullmatch(r"aiolease(?:\[([\w,-]+)\])?", word)
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


# --------------------------------------------------------------------------------------------------- the page


@pytest.fixture
def environment(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """The variables of what the block of this test needs: the URL of a fresh database."""
    block = request.node.callspec.params["block"]
    if block.mark.needs is None:
        yield {}
        return
    server = request.getfixturevalue(block.mark.needs)
    assert isinstance(server, Server)
    name = f"readme_{block.line}"
    server.create_database(name)
    yield {"AIOLEASE_URL": server.url(name)}
    server.drop_database(name)


def blocks_of_readme() -> list[Block]:
    return parse(README.read_text("utf-8")) if README.is_file() else []


@pytest.mark.parametrize("block", blocks_of_readme(), ids=lambda block: f"line-{block.line}-{block.language}")
def test_every_block_of_the_readme_does_what_it_says(block: Block, tmp_path: Path, environment: dict[str, str]) -> None:
    """Every code block of README.md runs, or is held against what it speaks of."""
    treat(block, tmp_path, environment)


def test_the_readme_has_programs() -> None:
    """The page is there and shows at least one complete program with what it prints."""
    assert any(block.language == "python" and block.output for block in blocks_of_readme())


# --------------------------------------------------------------------------------- the harness, on pages of its own


def treat_page(page: str, folder: Path) -> None:
    for number, block in enumerate(parse(textwrap.dedent(page))):
        inner = folder / str(number)
        inner.mkdir(exist_ok=True)
        treat(block, inner, {})


GOOD_PAGES = {
    "a program, its output with times and holders": """
        ```python
        print("2026-11-23 10:00:00.123 | app:run:12 - waited 0.42 s for host-12-0123456789abcdef0123456789abcdef")
        print("done")
        ```

        <!-- test: output -->
        ```text
        2025-01-01 09:00:00.000 | app:run:7 - waited 1.5 s for db-7-ffffffffffffffffffffffffffffffff
        …
        do…e
        ```
        """,
    "a program that goes on until Ctrl-C": """
        <!-- test: run=20s expect="up and running" -->
        ```python
        import time
        print("up and running")
        time.sleep(600)
        ```
        """,
    "a program that ends in order at Ctrl-C": """
        <!-- test: run=20s -->
        ```python
        import time
        try:
            print("up")
            time.sleep(600)
        except KeyboardInterrupt:
            print("bye")
        ```
        <!-- test: output -->
        ```text
        up
        ```
        """,
    "a fragment between given names and assertions": """
        <!-- test: fragment
        import contextlib
        seen = []
        given = contextlib.nullcontext(7)
        ---
        import asyncio
        await asyncio.sleep(0)
        assert seen == [7]
        -->
        ```python
        async with given as value:
            seen.append(value)
        ```
        """,
    "an application with a check behind it": """
        <!-- test:
        ---
        assert double(2) == 4
        -->
        ```python
        def double(number):
            return 2 * number
        ```
        """,
    "commands that exist": """
        ```sh
        make test ARGS=-x      # the tests
        pip install 'aiolease[sqlalchemy]' && python tests/test_readme.py
        ```
        """,
    "a picture, data and a block within a list": """
        <!-- test: picture -->
        ```text
        a ──▶ b
        ```
        1. as follows

           ```json
           {"a": 1}
           ```
        ```toml
        a = 1
        ```
        """,
}

BROKEN_PAGES = {
    "a program that raises": ("```python\nraise RuntimeError('boom')\n```", "boom"),
    "a program with a wrong status": ("```python\nimport sys; sys.exit(3)\n```", "status 3"),
    "an output that differs": (
        "```python\nprint('one')\n```\n<!-- test: output -->\n```text\ntwo\n```",
        "did not print 'two'",
    ),
    "an output in another order": (
        "```python\nprint('one'); print('two')\n```\n<!-- test: output -->\n```text\ntwo\none\n```",
        "did not print 'one'",
    ),
    "an expectation that is not met": (
        '<!-- test: run=1s expect="never" -->\n```python\nimport time; time.sleep(600)\n```',
        "did not print 'never'",
    ),
    "a server that ends at once": ("<!-- test: run=9s -->\n```python\nprint('bye')\n```", "was to run until"),
    "an error when it is stopped": (
        "<!-- test: run=9s expect=up -->\n```python\nprint('up')\ntry: import time; time.sleep(9)\nfinally: 1 / 0\n```",
        "ZeroDivisionError",
    ),
    "a fragment that fails, at the page's line": (
        "<!-- test: fragment -->\n```python\n\nawait missing()\n```",
        'File "README.md", line 4',
    ),
    "an assertion behind a block that fails": (
        "<!-- test:\n---\nassert x == 2\n-->\n```python\nx = 1\n```",
        "AssertionError",
    ),
    "a text without a mark": ("```text\nhello\n```", "a block of text that nothing says how to test"),
    "a block without a language": ("```\nhello\n```", "no language"),
    "an unknown language": ("```ruby\nputs 1\n```", "a block of ruby"),
    "an SQL block without a database": ("```sql\nSELECT 1;\n```", "a block of sql"),
    "an output of nothing": ("<!-- test: output -->\n```text\nhello\n```", "does not follow"),
    "an empty output": ("```python\n1\n```\n<!-- test: output -->\n```text\n\n```", "without output"),
    "a target that is not there": ("```sh\nmake sandwich\n```", "there is no sandwich"),
    "a file that is not there": ("```sh\npython examples/nothing.py\n```", "there is no"),
    "an extra that is not there": ("```sh\npip install aiolease[redis]\n```", "there is no"),
    "an unknown command": ("```sh\nrm -rf x\n```", "there is no rm"),
    "a console block without a command": ("```console\nhello\n```", "no command"),
    "a console output that nobody compares": ("```console\n$ make test\nall is well\n```", "not marked run"),
    "a mark without a block": ("<!-- test: fragment -->\nText.\n", "without a block"),
    "a mark at the end": ("<!-- test: fragment -->\n", "without a block"),
    "an unknown word": ("<!-- test: skip -->\n```python\n1\n```", "unknown word"),
    "an unknown option": ("<!-- test: run=soon -->\n```python\n1\n```", "unknown option"),
    "an open fence": ("```python\nprint()\n", "nothing closes"),
}


@pytest.mark.parametrize("page", GOOD_PAGES.values(), ids=GOOD_PAGES)
def test_a_good_page_passes(page: str, tmp_path: Path) -> None:
    """What the convention promises is accepted."""
    treat_page(page, tmp_path)


@pytest.mark.parametrize(("page", "why"), BROKEN_PAGES.values(), ids=BROKEN_PAGES)
def test_a_broken_page_fails(page: str, why: str, tmp_path: Path) -> None:
    """A block that does not do what it says, or has no treatment, fails with its reason."""
    with pytest.raises(BrokenReadme, match=re.escape(why)):
        treat_page(page, tmp_path)


def test_a_program_that_never_ends_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program without ``run=`` must end by itself."""
    monkeypatch.setattr(sys.modules[__name__], "TIME_TO_END", 0.5)
    with pytest.raises(BrokenReadme, match="did not end by itself"):
        treat_page("```python\nimport time; time.sleep(600)\n```", tmp_path)


def test_settings_are_held_against_the_real_ones(tmp_path: Path) -> None:
    """A variable that `LeaseSettings` does not know fails, in an ``env`` block and before a command."""
    treat_page("```env\n# how long\nAIOLEASE_LEASE_DURATION=20\n```", tmp_path)
    for page in ("```env\nAIOLEASE_COLOUR=red\n```", "```sh\nAIOLEASE_COLOUR=red make test\n```"):
        with pytest.raises(BrokenReadme, match="no such setting: AIOLEASE_COLOUR"):
            treat_page(page, tmp_path)
