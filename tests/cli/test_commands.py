"""The command line: what it prints, its exit status, and that it shows no password."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiolease import leadership, open_store
from tests.campaigns import LIMIT
from tests.cli.commands import Aiolease, facts, in_thread, led, program
from tests.project import ROOT
from tests.servers import Server

# -- schema


def test_schema_prints_the_file() -> None:
    """`aiolease schema` prints schema.sql to the letter: it can be piped to a client. It needs no database."""
    result = program("schema", AIOLEASE_URL="nonsense", AIOLEASE_LEASE_DURATION="nonsense")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == (ROOT / "schema.sql").read_text(encoding="utf-8")


def test_a_reader_that_has_seen_enough_is_no_trouble() -> None:
    """When the reader of a pipe ends early, as `head` does, there is no traceback."""
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [sys.executable, "-m", "aiolease", "schema"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    os.close(write)
    assert (result.returncode, result.stderr) == (1, "")


# -- status


def test_status_of_a_lease_that_never_was(aiolease: Aiolease, url: str) -> None:
    """A lease that nobody ever held is told of in a sentence."""
    run = aiolease("status", "other")
    assert (run.status, run.out, run.err) == (0, "'other' never had a leader\n", "")


async def test_status_says_who_leads(aiolease: Aiolease, url: str) -> None:
    """`aiolease status` prints the leader, its term and when its lease expires, by the database's clock."""
    async with leadership(url) as lead:
        run = await in_thread(aiolease, "status")
    assert (run.status, run.err) == (0, "")
    said = facts(run.out)
    assert (said["lease"], said["leader"], said["term"]) == ("default", lead.holder, "1")
    assert said["elected"].startswith(f"{lead.elected_at:%Y-%m-%d %H:%M:%S} UTC, ")
    assert said["elected"].endswith(" s ago")
    assert "unless renewed" in said["expires"]
    assert "resign" not in said


async def test_status_of_a_released_lease(aiolease: Aiolease, url: str) -> None:
    """A lease whose leader ended in order is free, and says so."""
    await led(url)
    run = await in_thread(aiolease, "status")
    assert facts(run.out)["leader"] == "nobody, it was released"
    assert "expires" not in facts(run.out)


async def test_status_of_an_expired_lease(aiolease: Aiolease, url: str) -> None:
    """A leader that vanished is named, and since when its lease has run out."""
    async with open_store(url) as store:
        row = await store.claim("default", "somebody", 0.001, seen=None, force=False)
        assert row is not None
        while not (await store.status("default")).expired:  # type: ignore[union-attr]
            await asyncio.sleep(0.001)
    run = await in_thread(aiolease, "status")
    said = facts(run.out)
    assert said["leader"] == "nobody, somebody did not renew it"
    assert said["expired"].endswith(" ago")


async def test_the_name_is_an_argument_or_a_variable(
    aiolease: Aiolease, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is the argument's, else that of AIOLEASE_NAME, else the default one."""
    for name in ("default", "from-variable", "from-argument"):
        await led(url, name)
    assert facts((await in_thread(aiolease, "status")).out)["lease"] == "default"
    monkeypatch.setenv("AIOLEASE_NAME", "from-variable")
    assert facts((await in_thread(aiolease, "status")).out)["lease"] == "from-variable"
    assert facts((await in_thread(aiolease, "status", "from-argument")).out)["lease"] == "from-argument"


async def test_the_url_is_an_argument_or_a_variable(
    aiolease: Aiolease, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is that of ``--url``, else that of AIOLEASE_URL."""
    await led(url)
    monkeypatch.setenv("AIOLEASE_URL", "sqlite:////no/such/folder/x.db")
    assert (await in_thread(aiolease, "status")).status == 1
    run = await in_thread(aiolease, "status", "--url", url)
    assert (run.status, facts(run.out)["term"]) == (0, "1")


def test_who_looks_makes_nothing(aiolease: Aiolease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of a file that is not there fails and says so, and the file is not made."""
    monkeypatch.setenv("AIOLEASE_URL", "sqlite:///aiolease.db")
    for command in (
        *("status", "check --json", "runs", "resign", "resume", "pause --note x"),
        *("history job", "trigger job", "pause job", "resume job", "why job", "rerun job yesterday", "cancel job"),
        *("backfill job --since yesterday", "forget job", "settle job"),
    ):
        run = aiolease(*command.split())
        assert (run.status, "aiolease.db" in run.out + run.err) == (1, True), command
        assert run.out == "" or command.startswith("check")
    assert list(tmp_path.iterdir()) == []


def test_a_forgotten_url_is_one_line_and_status_2(tmp_path: Path) -> None:
    """Without a database to ask there is one line that says what to set, status 2, and no file is made."""
    result = program("status")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("aiolease: AIOLEASE_URL")
    assert "--url" in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_variable_that_nothing_reads_is_named(url: str) -> None:
    """A misspelt variable is a WARNING on the standard error that names it; the command does what it can."""
    result = program("status", AIOLEASE_NAM="cron")
    assert result.returncode == 0
    assert "WARNING" in result.stderr
    assert "AIOLEASE_NAM " in result.stderr


@pytest.mark.parametrize("mysql_server", ["mariadb", "mysql9", "postgresql"], indirect=True)
async def test_status_of_a_server(aiolease: Aiolease, mysql_url: str, mysql_server: Server) -> None:
    """On a server `status` and `resign` work as on a file, and `status` makes no tables there either."""
    run = await in_thread(aiolease, "status", "--url", mysql_url)
    assert (run.status, run.out) == (1, "")
    assert "python -m aiolease schema" in run.err
    async with leadership(mysql_url, lease_duration=3, timeout=LIMIT) as lead:
        run = await in_thread(aiolease, "status", "--url", mysql_url)
        assert (run.status, run.err) == (0, "")
        assert facts(run.out)["leader"] == lead.holder
        run = await in_thread(aiolease, "resign", "--url", mysql_url)
        assert (run.status, run.err) == (0, "")
        await asyncio.wait_for(asyncio.Event().wait(), LIMIT)
    assert facts((await in_thread(aiolease, "status", "--url", mysql_url)).out)["leader"] == "nobody, it was released"


# -- resign


async def test_resign_ends_the_leaders_term(aiolease: Aiolease, url: str) -> None:
    """`aiolease resign` has the leader resign at its next heartbeat; until then `status` shows that it was asked."""
    seen = []
    async with leadership(url, lease_duration=3) as lead:
        run = await in_thread(aiolease, "resign")
        seen.append(facts((await in_thread(aiolease, "status")).out))
        await asyncio.wait_for(asyncio.Event().wait(), LIMIT)
    assert (run.status, run.err) == (0, "")
    assert run.out == "asked the leader of 'default' (term 1) to resign; it does so at its next heartbeat\n"
    assert seen[0]["leader"] == lead.holder
    assert seen[0]["resign"] == "was asked for"


async def test_resign_without_a_leader_is_trouble(aiolease: Aiolease, url: str) -> None:
    """Where nobody leads there is nothing to resign: a line on the standard error, and status 1."""
    await led(url)
    for name in ("default", "never-was"):
        run = await in_thread(aiolease, "resign", name)
        assert (run.status, run.out) == (1, "")
        assert run.err == f"aiolease: nobody leads {name!r}, there is nothing to resign\n"


# -- trouble


@pytest.mark.parametrize(
    "arguments",
    [
        ("statsu",),
        ("status", "one", "two"),
        ("status", "--wrong"),
        ("status", "--url"),
        ("status", "two words"),
        ("status", ""),
        ("status", "größe"),
        ("schema", "default"),
        ("history",),
        ("history", "job", "default"),
        ("history", "two words"),
        ("history", ""),
        ("history", "job", "-n", "0"),
        ("history", "job", "-n", "-3"),
        ("history", "job", "-n", "many"),
        ("history", "job", "-n", "9" * 5000),
        ("trigger",),
        ("trigger", "größe"),
        ("trigger", "job", "--timeout", "0"),
        ("rerun", "job"),
        ("rerun", "job", "soon"),
        ("backfill", "job"),
        ("backfill", "job", "--since", "never"),
        ("pause", "job", "--until", "whenever"),
        ("runs", "--since", "13:99"),
        ("why",),
        ("why", "job", "2026-02-30"),
        ("watch", "--interval", "0"),
        ("watch", "two words"),
        ("check", "--max-age", "job"),
        ("forget",),
        ("next",),
        ("run", "worker:jobs", "--drain-timeout", "long"),
        ("migrate", "--wrong"),
        ("status", "one", "--lease", "other"),
        ("pause", "job", "--lease", "two words"),
        ("resume", "job", "--lease"),
        ("resume", "job", "--url", "nonsense"),
        ("status", "--url", "nonsense"),
        ("status", "--url", "mysql://db"),
        ("status", "--url", "oracle://db/shop"),
    ],
    ids=lambda arguments: " ".join(arguments)[:40],
)
def test_a_wrong_use_is_one_line_and_status_2(aiolease: Aiolease, arguments: tuple[str, ...]) -> None:
    """What is asked in a wrong way gets one line on the standard error, and status 2."""
    run = aiolease(*arguments)
    assert (run.status, run.out) == (2, "")
    assert run.err.startswith("aiolease: ")
    assert run.err.count("\n") == 1


@pytest.mark.parametrize("variable", ["AIOLEASE_URL", "AIOLEASE_NAME", "AIOLEASE_LEASE_DURATION"])
def test_a_wrong_variable_is_one_line_and_status_2(variable: str, url: str) -> None:
    """A variable that cannot work is a wrong use as well, and no traceback."""
    result = program("status", **{variable: "no such thing"})
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("aiolease: ")
    assert result.stderr.count("\n") == 1


def test_an_unreachable_database_is_one_line_and_status_1() -> None:
    """A database that cannot be reached is trouble: one line that says which and why, and status 1."""
    result = program("status", AIOLEASE_URL="mysql://root:secret@127.0.0.1:1/shop")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("aiolease: mysql://root@127.0.0.1:1/shop: ")
    assert result.stderr.count("\n") == 1
    assert "secret" not in result.stderr


def test_a_file_that_is_no_database_is_one_line_and_status_1(aiolease: Aiolease, tmp_path: Path) -> None:
    """Another kind of file is refused in one line, and left as it is."""
    file = tmp_path / "notes.txt"
    file.write_text("remember the milk\n" * 100)
    run = aiolease("status", "--url", f"sqlite:///{file}")
    assert (run.status, run.out) == (1, "")
    assert run.err.count("\n") == 1
    assert file.read_text() == "remember the milk\n" * 100


def urls() -> Iterator[tuple[str, ...]]:
    yield "status", "mysql://root:secret@db/shop"
    yield "status", "default", "mysql://root:secret@db/shop"
    yield ("mysql://root:secret@db/shop",)
    yield "history", "mysql://root:secret@db/shop"
    yield "trigger", "job", "mysql://root:secret@db/shop"
    yield "pause", "job", "--lease", "mysql://root:secret@db/shop"
    yield "history", "job", "-n", "mysql://root:secret@db/shop"
    yield "why", "job", "mysql://root:secret@db/shop"
    yield "pause", "job", "--until", "mysql://root:secret@db/shop"
    yield "check", "--max-age", "job=mysql://root:secret@db/shop"
    yield "run", "mysql://root:secret@db/shop"
    yield "next", "mysql://root:secret@db/shop"
    yield "status", "--uri=mysql://root:secret@db/shop"
    for url in (
        "mysql://root:secret@127.0.0.1:1/shop",
        "mysql://root:secret@127.0.0.1:port/shop",
        "mysql://root:secret@127.0.0.1/",
        "mysql://root:secret@127.0.0.1/shop?parameter=1",
        "mysql://root:secret/more@127.0.0.1/shop",
        "mysql://root:sec/secret@127.0.0.1/shop",
        "mysql://root:secret?more@127.0.0.1/shop",
        "mysql://root:12/secret@127.0.0.1/shop",
        "mysql://root:se#secret@127.0.0.1/shop",
        "mysql://root:[secret@127.0.0.1/shop",
        "postgres://root:secret@db/shop",
        "sqlite://root:secret@db/shop.db",
        "root:secret@db/shop",
    ):
        yield "status", "--url", url


@pytest.mark.parametrize("arguments", [*urls()], ids=" ".join)
def test_no_password_is_shown(aiolease: Aiolease, url: str, arguments: tuple[str, ...]) -> None:
    """However wrong a URL is, and wherever it was put, no part of its password is printed."""
    run = aiolease(*arguments)
    assert run.status in {1, 2}
    assert "secret" not in run.out + run.err
    assert run.err.count("\n") == 1


COMMANDS = (
    "run next status watch page check runs history why trigger rerun backfill cancel pause resume resign settle forget "
    "schema migrate"
).split()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_there_is_help(aiolease: Aiolease, command: str) -> None:
    """Every command explains itself."""
    run = aiolease(*command.split(), "--help")
    assert (run.status, run.err) == (0, "")
    assert run.out.startswith("usage: aiolease")
    assert "?." not in run.out


def test_the_help_of_resign_names_its_price(aiolease: Aiolease) -> None:
    """It waits for no run: who reads the help at night knows that before."""
    assert "cancelled then, and recorded as lost." in " ".join(aiolease("resign", "--help").out.split())


def test_every_command_is_in_the_help(aiolease: Aiolease) -> None:
    """The help lists all commands; each one of a lease takes ``--url`` and ``--lease``."""
    assert re.findall(r"^    (\w+) ", aiolease("--help").out, re.MULTILINE) == COMMANDS
    for command in COMMANDS:
        said = aiolease(command, "--help").out
        assert ("--url" in said and "--lease" in said) == (command not in {"next", "schema", "migrate"})


def test_a_script_may_give_url_and_lease_to_every_command(aiolease: Aiolease, url: str) -> None:
    """Where they have no meaning they are taken, too."""
    text = aiolease("schema").out
    assert aiolease("schema", "--url", url, "--lease", "cron").out == text
    for command in set(COMMANDS) - {"page", "watch"}:  # they go on for ever
        assert "unrecognized" not in aiolease(command, "--url", url, "--lease", "cron").err
