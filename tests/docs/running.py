"""Running a program of a page, and comparing what it prints."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from tests.docs.page import Block
from tests.docs.printed import missing
from tests.project import ROOT

TIME_TO_END = 30.0

SQL_PROGRAM = """
import asyncio, os
from urllib.parse import unquote, urlsplit
import asyncmy, asyncpg
from aiolease import open_store

async def main():
    url = urlsplit(os.environ["AIOLEASE_URL"])
    async with open_store(url.geturl()) as store:
        await store.status("docs")
    if url.scheme == "postgresql":
        conn = await asyncpg.connect(url.geturl(), ssl=False)
        for statement in STATEMENTS:
            await conn.execute(statement)
        await conn.close()
        return
    conn = await asyncmy.connect(
        host=url.hostname, port=url.port or 3306, user=unquote(url.username or ""),
        password=unquote(url.password or ""), db=url.path.lstrip("/"),
    )
    async with conn, conn.cursor() as cursor:
        for statement in STATEMENTS:
            await cursor.execute(statement)

asyncio.run(main())
"""


def python_arguments(block: Block, folder: Path) -> list[str]:
    """The command that runs a Python block: by itself, or between the halves of its set-up."""
    if block.setup.around is None:
        program = folder / "program.py"
        program.write_text(block.text, encoding="utf-8")
        return [sys.executable, str(program)]
    code = block.setup.around.__code__
    parts = folder / "parts.json"
    # Padded, so that a traceback shows the page's own line numbers.
    text = "\n" * block.line + block.text
    parts.write_text(json.dumps([block.page, text, code.co_filename, code.co_name]), encoding="utf-8")
    return [sys.executable, "-m", "tests.docs.runner", str(parts)]


def run_program(
    block: Block, arguments: list[str], folder: Path, environment: Mapping[str, str], expected: list[str]
) -> None:
    """Runs a program as the block's set-up says, and compares what it prints.

    Raises:
        BrokenPage: It does not print that, or does not end as it should.
    """
    limit = block.setup.run
    process = start(arguments, folder, environment)
    printed: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=printed.extend, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        stopped = limit is not None and stop_when_seen(limit, expected, process, printed)
        try:
            status = process.wait(TIME_TO_END)
        except subprocess.TimeoutExpired:
            how = "after Ctrl-C" if stopped else "by itself (a block that runs for ever has Setup(run=…))"
            raise block.broken(f"it did not end {how}, and printed\n{''.join(printed)}") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what it started
        process.wait()
        reader.join(5.0)
        process.stdout.close()
    said = "".join(printed)
    # A program that leaves Ctrl-C to Python ends with SIGINT, and that is in order for one that runs for ever.
    if status != 0 and not (stopped and status == -signal.SIGINT):
        raise block.broken(f"it ended with status {status} and printed\n{said}")
    if limit is not None and not stopped:
        raise block.broken(f"it was to run until it is stopped, but ended, and printed\n{said}")
    if (line := missing(expected, printed)) is not None:
        raise block.broken(f"it did not print {line!r} (in this order), but\n{said}")


def start(arguments: list[str], folder: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Starts a program in a process group of its own, with none of the caller's AIOLEASE_ variables."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AIOLEASE_")}
    path = os.pathsep.join(filter(None, [str(ROOT), clean.get("PYTHONPATH")]))
    return subprocess.Popen(
        arguments,
        cwd=folder,
        env=clean | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"} | dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def stop_when_seen(limit: float, expected: list[str], process: subprocess.Popen[str], printed: list[str]) -> bool:
    """Lets the program run until it has printed all that is expected, or its time is over; then sends Ctrl-C."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline and process.poll() is None:
        if expected and missing(expected, list(printed)) is None:
            break
        time.sleep(0.05)
    if process.poll() is not None:
        return False
    os.killpg(process.pid, signal.SIGINT)
    return True
