"""What the convention of ``tests/docs`` promises, on pages of its own."""

from __future__ import annotations

import asyncio
import contextlib
import re
import textwrap
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest

from aiolease import open_store
from tests.docs import running
from tests.docs.page import BrokenPage, parse
from tests.docs.setup import Setup, Stage
from tests.docs.treatment import treat


def treat_page(page: str, folder: Path, setups: Mapping[str, Setup] | None = None) -> None:
    for number, block in enumerate(parse(textwrap.dedent(page), "page.md", setups or {})):
        inner = folder / str(number)
        inner.mkdir(exist_ok=True)
        treat(block, inner, {})


async def seven(stage: Stage) -> AsyncIterator[None]:
    seen = stage.names["seen"] = []
    stage.names["given"] = contextlib.nullcontext(7)
    yield
    await asyncio.sleep(0)
    assert seen == [7]


def doubles(stage: Stage) -> Iterator[None]:
    yield
    assert stage.names["double"](2) == 4


def is_two(stage: Stage) -> Iterator[None]:
    yield
    assert stage.names["x"] == 2


async def empty(_: Stage) -> AsyncIterator[None]:
    yield


def a_database(stage: Stage) -> Iterator[None]:
    async def make() -> None:
        async with open_store(url) as store:
            await store.resign("nightly")

    url = stage.environment["AIOLEASE_URL"] = f"sqlite:///{stage.folder}/jobs.db"
    asyncio.run(make())
    yield


GOOD_PAGES: dict[str, tuple[str, dict[str, Setup]]] = {
    "a program, its output with times and holders": (
        """
        ```python
        print("2026-11-23 10:00:00.123 | app:run:12 - waited 0.42 s for host-12-0123456789abcdef0123456789abcdef")
        print("done")
        ```

        ```text
        2025-01-01 09:00:00.000 | app:run:7 - waited 1.5 s for db-7-ffffffffffffffffffffffffffffffff
        …
        do…e
        ```
        """,
        {},
    ),
    "a program that goes on until Ctrl-C": (
        """
        ## On and on

        ```python
        import time
        print("up and running")
        time.sleep(600)
        ```
        """,
        {"on-and-on": Setup(run=20.0, expect=("up and running",))},
    ),
    "a program that ends in order at Ctrl-C": (
        """
        ## First
        ```python
        import time
        try:
            print("up")
            time.sleep(600)
        except KeyboardInterrupt:
            print("bye")
        ```
        ```text
        up
        ```
        """,
        {"first": Setup(run=20.0)},
    ),
    "a block in the loop between given names and assertions": (
        """
        ```python
        async with given as value:
            seen.append(value)
        ```
        """,
        {"": Setup(around=seven)},
    ),
    "an application with a check behind it": (
        """
        ## First

        ```python
        def double(number):
            return 1
        ```

        ```python
        def double(number):
            return 2 * number
        ```
        """,
        {"first-2": Setup(around=doubles)},
    ),
    "commands that exist": (
        """
        ```sh
        make test ARGS=-x      # the tests
        .venv/bin/pip install '.[sqlalchemy]' && .venv/bin/python tests/docs/test_docs.py
        ```
        """,
        {},
    ),
    "commands that are run": (
        """
        ```console
        $ .venv/bin/aiolease schema
        CREATE TABLE…aiolease_lease…
        $ .venv/bin/aiolease status nightly
        'nightly' never had a leader
        ```
        """,
        {"": Setup(around=a_database)},
    ),
    "a picture, data and a block within a list": (
        """
        ## Picture

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
        {"picture": Setup(picture=True)},
    ),
}

ENDLESS = Setup(run=9.0)

BROKEN_PAGES: dict[str, tuple[str, str, Setup]] = {
    "a program that raises": ("```python\nraise RuntimeError('boom')\n```", "boom", Setup()),
    "a program with a wrong status": ("```python\nimport sys; sys.exit(3)\n```", "status 3", Setup()),
    "an output that differs": (
        "```python\nprint('one')\n```\n```text\ntwo\n```",
        "did not print 'two'",
        Setup(),
    ),
    "an output in another order": (
        "```python\nprint('one'); print('two')\n```\n```text\ntwo\none\n```",
        "did not print 'one'",
        Setup(),
    ),
    "an expectation that is not met": (
        "```python\nimport time; time.sleep(600)\n```",
        "did not print 'never'",
        Setup(run=1.0, expect=("never",)),
    ),
    "a server that ends at once": ("```python\nprint('bye')\n```", "was to run until", ENDLESS),
    "an error when it is stopped": (
        "```python\nprint('up')\ntry: import time; time.sleep(9)\nfinally: 1 / 0\n```",
        "ZeroDivisionError",
        Setup(run=9.0, expect=("up",)),
    ),
    "a block in the loop that fails, at the page's line": (
        "\n```python\n\nawait missing()\n```",
        'File "page.md", line 4',
        Setup(around=empty),
    ),
    "an assertion behind a block that fails": ("```python\nx = 1\n```", "AssertionError", Setup(around=is_two)),
    "a text that nothing prints": ("```text\nhello\n```", "a block of text that nothing says how to test", Setup()),
    "a block without a language": ("```\nhello\n```", "no language", Setup()),
    "an unknown language": ("```ruby\nputs 1\n```", "a block of ruby", Setup()),
    "an SQL block without a database": ("```sql\nSELECT 1;\n```", "a block of sql", Setup()),
    "an output of commands that are not run": (
        "```sh\nmake test\n```\n```text\nhello\n```",
        "does not follow",
        Setup(),
    ),
    "an empty output": ("```python\n1\n```\n```text\n\n```", "without output", Setup()),
    "an empty picture": ("```text\n\n```", "empty picture", Setup(picture=True)),
    "a target that is not there": ("```sh\nmake sandwich\n```", "there is no sandwich", Setup()),
    "a file that is not there": ("```sh\npython examples/nothing.py\n```", "there is no", Setup()),
    "an extra that is not there": ("```sh\npip install aiolease[redis]\n```", "there is no", Setup()),
    "an extra of the checkout that is not there": ("```sh\npip install '.[redis]'\n```", "there is no", Setup()),
    "an unknown command": ("```sh\nrm -rf x\n```", "there is no rm", Setup()),
    "a console block without a command": ("```console\nhello\n```", "no command", Setup()),
    "a console block with another output": (
        "```console\n$ aiolease schema\nDROP DATABASE\n```",
        "did not print 'DROP DATABASE'",
        Setup(),
    ),
    "a console block whose command fails": (
        "```console\n$ aiolease status\n```",
        "AIOLEASE_URL",
        Setup(),
    ),
    "a console block that is not ours to run": ("```console\n$ make test\n```", "only aiolease and Python", Setup()),
    "a set-up on the page": ("<!-- test: fragment -->\n```python\n1\n```", "a hidden comment", Setup()),
    "an open fence": ("```python\nprint()\n", "nothing closes", Setup()),
}


@pytest.mark.parametrize(("page", "setups"), GOOD_PAGES.values(), ids=GOOD_PAGES)
def test_a_good_page_passes(page: str, setups: dict[str, Setup], tmp_path: Path) -> None:
    """What the convention promises is accepted."""
    treat_page(page, tmp_path, setups)


@pytest.mark.parametrize(("page", "why", "setup"), BROKEN_PAGES.values(), ids=BROKEN_PAGES)
def test_a_broken_page_fails(page: str, why: str, setup: Setup, tmp_path: Path) -> None:
    """A block that does not do what it says, or has no treatment, fails with its reason."""
    with pytest.raises(BrokenPage, match=re.escape(why)):
        treat_page(page, tmp_path, {"": setup})


def test_a_program_that_never_ends_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program without ``run=`` must end by itself."""
    monkeypatch.setattr(running, "TIME_TO_END", 0.5)
    with pytest.raises(BrokenPage, match="did not end by itself"):
        treat_page("```python\nimport time; time.sleep(600)\n```", tmp_path)


def test_settings_are_held_against_the_real_ones(tmp_path: Path) -> None:
    """A variable that `LeaseSettings` does not know fails, in an ``env`` block and before a command."""
    treat_page("```env\n# how long\nAIOLEASE_LEASE_DURATION=20\n```", tmp_path)
    for page in ("```env\nAIOLEASE_COLOUR=red\n```", "```sh\nAIOLEASE_COLOUR=red make test\n```"):
        with pytest.raises(BrokenPage, match="no such setting: AIOLEASE_COLOUR"):
            treat_page(page, tmp_path)
