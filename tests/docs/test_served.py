"""The applications of the pages, started for real as their pages say: several processes, of which one leads."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from aiolease import open_store
from tests.campaigns import LIMIT
from tests.docs.commands import Command, split
from tests.docs.page import Block
from tests.docs.pages import blocks_of, pages
from tests.docs.setup import Stage
from tests.docs.treatment import nothing
from tests.docs.workers import running, wait_for
from tests.servers.machine import free_port
from tests.web.served import answer_of

LED, FOLLOWED, RELEASED = "acquired leadership of 'default'", "another instance leads 'default'", "released 'default'"


def served() -> Iterator[tuple[Block, Command, Command | None]]:
    """Each application of the pages, each way to start it, and the command that serves the page beside it."""
    for page in pages():
        for block, below in pairwise(blocks_of(page)):
            if block.setup.served:
                commands = [command for line in below.text.splitlines() for command in split(line)]
                beside = next((command for command in commands if command.words[0] == "aiolease"), None)
                yield from ((block, command, beside) for command in commands if command is not beside)


SERVED = [*served()]


def arguments_of(command: Command, port: int) -> list[str]:
    """The command, to be served on a port; a program of its own has it from the environment."""
    program, *words = command.words
    if program == "python":
        return [sys.executable, *words]
    at = ["--bind", f"127.0.0.1:{port}"] if program == "gunicorn" else ["--port", str(port)]
    return [sys.executable, "-m", program, *words, *at]


def skip_without(text: str, command: Command) -> None:
    """Skips where the framework, the server, or its class of workers is not installed."""
    given = " ".join(arguments_of(command, 0))
    names = re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE)
    names += re.findall(r"(?<=-m )\w+|(?<=--worker-class )\w+", given)
    if missing := {name for name in names if name != "work" and importlib.util.find_spec(name) is None}:
        pytest.skip(f"not installed: {', '.join(sorted(missing))}; `pip install -e '.[test]'` brings them")


def count(text: str, logs: list[list[str]]) -> int:
    return sum(text in line for printed in logs for line in printed)


async def holder(url: str) -> str | None:
    async with open_store(url) as store:
        lease = await store.status("default")
    assert lease is not None
    return lease.holder


@pytest.mark.parametrize(
    ("block", "command", "beside"), SERVED, ids=[f"{block.name}-{command.words[0]}" for block, command, _ in SERVED]
)
def test_one_process_of_an_application_leads(
    block: Block, command: Command, beside: Command | None, tmp_path: Path
) -> None:
    """The others follow it, the page is there, and SIGTERM ends all in order: the lease is free.

    Where each process is a program of its own, another one leads as soon as the leader has ended.
    """
    skip_without(block.text, command)
    (tmp_path / "app.py").write_text(block.text, encoding="utf-8")
    url = f"sqlite:///{tmp_path}/jobs.db"
    stage = Stage(names={}, folder=tmp_path, environment={"AIOLEASE_URL": url, "HOME": str(tmp_path)})
    workers = re.findall(r"--workers (\d+)", " ".join(command.words))
    ports = [free_port() for _ in range(1 if workers else 2)]
    with ExitStack() as stack:
        stack.enter_context(contextmanager(block.setup.around or nothing)(stage))  # type: ignore[arg-type]
        started = []
        for port in ports:
            stage.environment["PORT"] = str(port)
            started.append(stack.enter_context(running(arguments_of(command, port), stage)))
        logs = [printed for _, printed in started]
        wait_for(LED, *logs)
        wait_for(FOLLOWED, *logs, times=int(workers[0]) - 1 if workers else 1)
        assert count(LED, logs) == 1

        of_page = ports[0]
        if beside is not None:
            of_page = free_port()
            stack.enter_context(running(arguments_of(beside, of_page), stage))
        page, *others = block.setup.served
        for path in others:
            assert answer_of(f"http://127.0.0.1:{ports[0]}{path}").status_code == 200
        shown = answer_of(f"http://127.0.0.1:{of_page}{page}")
        assert (shown.status_code, "close_stale_sessions" in shown.text) == (200, True)
        facts = answer_of(f"http://127.0.0.1:{of_page}{page}status.json").json()
        assert (facts["led"], facts["token"], facts["campaign"] is None) == (True, 1, beside is not None)

        leader = os.getpgid(int(facts["holder"].rsplit("-", 2)[1]))
        started.sort(key=lambda each: each[0].pid != leader)
        assert started[0][0].pid == leader
        for process, _ in started:
            process.terminate()
            assert process.wait(LIMIT) == 0, logs
            if len(started) > 1:
                wait_for(LED, *logs, times=2)
    assert count(RELEASED, logs) == count(LED, logs)
    assert count("Traceback", logs) == 0
    assert asyncio.run(holder(url)) is None
