"""What is built, what is public, what an import costs, and what the files must not name."""

from __future__ import annotations

import ast
import copy
import os
import pickle
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import aiolease
import aiolease.errors
from tests.project import ROOT
from tests.quick import LONG

PUBLIC = {
    # leadership
    "Leadership",
    "current_leadership",
    "leadership",
    "run_as_leader",
    # jobs
    "Campaign",
    "CampaignStatus",
    "JobRegistry",
    "JobRun",
    "JobStanding",
    # stores and settings
    "Lease",
    "LeaseSettings",
    "LeaseStore",
    "RunRecord",
    "open_store",
    # errors
    "AioleaseError",
    "CommitUnknown",
    "ConfigurationError",
    "DuplicateJob",
    "GiveUp",
    "InvalidJob",
    "InvalidSchedule",
    "LeadershipLost",
    "LeaseHeld",
    "NotLeader",
    "RequestRefused",
    "RunAlreadyEnded",
    "RunFilter",
    "SchemaMissing",
    "StoreRejected",
    "StoreUnavailable",
    "TransactionEnded",
    # events and logging
    "BodyStuck",
    "Elected",
    "Event",
    "Following",
    "JobsSeen",
    "Joined",
    "Leaderless",
    "LedgerFailed",
    "LoopBlocked",
    "Lost",
    "Notice",
    "Overdue",
    "ReleaseFailed",
    "Released",
    "RenewFailed",
    "Renewed",
    "Resigned",
    "RunFinished",
    "RunStarted",
    "TickSkipped",
    "TicksMissed",
    "UnknownJobs",
    "Waiting",
    "use_stdlib_logging",
    "__version__",
}

HEAVY = [
    "aiolease._election",
    "aiolease._jobs",
    "aiolease._views",
    "aiolease.cli",
    "aiolease.metrics",
    "aiolease.stores",
    "aiolease.testing",
    "aiolease.web",
    "aiomysql",
    "anyio",
    "argparse",
    "asyncio",
    "asyncmy",
    "jinja2",
    "loguru",
    "opentelemetry",
    "prometheus_client",
    "pydantic",
    "pydantic_settings",
    "sqlalchemy",
    "starlette",
]
"""What `import aiolease` leaves alone: imported when a name is used."""


def test_public_names_are_those_that_were_decided() -> None:
    """A name becomes public, or goes, on purpose only; each one that is listed is there."""
    assert set(aiolease.__all__) == PUBLIC
    assert [name for name in aiolease.__all__ if not hasattr(aiolease, name)] == []


def test_the_errors_are_of_one_family() -> None:
    """`AioleaseError` catches every error, and what comes of bad input is a `ValueError` too."""
    errors = {
        name: error
        for name in aiolease.__all__
        if isinstance(error := getattr(aiolease, name), type) and issubclass(error, BaseException)
    }
    assert all(issubclass(error, aiolease.AioleaseError) for error in errors.values())
    bad_input = {name for name, error in errors.items() if issubclass(error, ValueError)}
    assert bad_input == {"ConfigurationError", "DuplicateJob", "InvalidJob", "InvalidSchedule"}


@pytest.mark.parametrize(
    "error",
    [
        aiolease.LeadershipLost("cron", "host", 7, "taken"),
        aiolease.ConfigurationError("name", 1, "use another"),
        aiolease.TransactionEnded("mysql://db"),
        aiolease.NotLeader(),
        aiolease.DuplicateJob("job"),
        aiolease.CommitUnknown("mysql://db", "no answer"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("way", ["pickled", "copied"])
def test_an_error_may_be_copied_and_sent_to_another_process(error: aiolease.AioleaseError, way: str) -> None:
    """It is made again of its message and its facts: a pool of processes would break at one that is not."""
    again = pickle.loads(pickle.dumps(error)) if way == "pickled" else copy.copy(error)
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_the_version_is_that_of_the_project() -> None:
    """`aiolease.__version__` and pyproject.toml say the same."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert aiolease.__version__ == tomllib.load(file)["project"]["version"]


def test_an_import_leaves_what_is_heavy_alone() -> None:
    """A name's module is imported when the name is first used; settings, commands and drivers when they are used."""
    program = f"import sys, aiolease; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.split() == []
    assert result.stderr == ""


THREADS = """
import sys, threading
import aiolease

def use(name):
    barrier.wait()
    try:
        getattr(aiolease, name)
    except BaseException as error:
        print(name, repr(error))

names = ["Lease", "CampaignStatus", "open_store", "JobRegistry"]
barrier = threading.Barrier(len(names))
for name in names:
    threading.Thread(target=use, args=[name]).start()
"""


def test_threads_may_use_names_for_the_first_time() -> None:
    """One imports a package while another wants a module of it: none gets an error, as one process in three did."""
    for _ in range(8):
        result = subprocess.run(
            [sys.executable, "-c", THREADS], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
        )
        assert result.stdout + result.stderr == ""


LEADS = """
import asyncio, sys
from aiolease import JobRegistry
jobs, ran = JobRegistry(), asyncio.Event()
@jobs.every(0.1)
async def job():
    ran.set()
async def main():
    async with jobs.background("sqlite:///jobs.db"):
        await ran.wait()
asyncio.run(main())
print(*sys.modules)
"""

USED = {"aiolease._election", "aiolease._jobs", "aiolease.stores", "anyio", "asyncio", "loguru"}


def test_a_worker_leaves_alone_what_it_does_not_use(tmp_path: Path) -> None:
    """A leader whose jobs run has neither what is shown to people, nor other stores, nor what nobody asked for."""
    of_stores = ["memory", "mysql", "postgresql", "sql.merging", "sql.overview", "sql.requests"]
    unused = {"hashlib", "aiolease._jobs.why", *({*HEAVY} - USED), *(f"aiolease.stores.{name}" for name in of_stores)}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-c", LEADS],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert unused & {*result.stdout.split()} == set()


def test_the_wheel_holds_the_schema_the_page_and_the_types_mark(tmp_path: Path) -> None:
    """A wheel has the schema, the page and ``py.typed`` in the package, the command, and nothing of the tests."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        timeout=100,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        schema = archive.read("aiolease/schema.sql")
        (commands,) = [archive.read(name).decode() for name in names if name.endswith("entry_points.txt")]
    assert "aiolease/py.typed" in names
    page = {"static/htmx.min.js", "static/htmx-LICENSE", "static/page.css", "templates/page.html"}
    assert {f"aiolease/web/{name}" for name in page} <= names
    assert schema == (ROOT / "schema.sql").read_bytes()
    assert "aiolease = aiolease.cli:main" in commands
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "aiolease").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules


def tracked_files() -> list[Path]:
    """The project's files as git knows them, those not yet added included."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("this is no git checkout, so nothing says which files are the project's")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


MUST_NOT_NAME = {
    "a package registry's host": r"(?i)\b(pypi|pythonhosted|npmjs|debian|ubuntu)\.(org|com)\b",
    "a folder of one machine": r"(?<![\w.~-])/(?:work|root|home/\w+)/",
}


@pytest.mark.parametrize("what", MUST_NOT_NAME)
def test_no_file_names(what: str) -> None:
    """The project installs from where pip and apt-get are told to, and works in every folder."""
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked_files()
        for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), start=1)
        if re.search(MUST_NOT_NAME[what], line)
    ]
    assert found == []


@pytest.mark.parametrize("module", [aiolease, aiolease.errors])
def test_a_former_name_works_and_warns(module: Any) -> None:
    """`RunEnded`, an error, was too like `RunFinished`, an event."""
    with pytest.warns(DeprecationWarning, match="use RunAlreadyEnded") as told:
        assert module.RunEnded is aiolease.RunAlreadyEnded
    assert [Path(warning.filename) for warning in told] == [Path(__file__)]  # who uses the name, not aiolease


FILES = {
    "events.py": "it is one family",
    "testing.py": "one page of documentation, and imported as a whole",
}  # fmt: skip
"""Files of more than 300 lines, and why."""

FUNCTIONS: dict[str, str] = {}
"""Functions of more than 60 lines, and why."""


def test_rooms_are_small() -> None:
    """No file has more than 300 lines, no function more than 60, without a reason."""
    root = Path(aiolease.__file__).parent
    files, functions = [], []
    for file in sorted(root.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) > 300 and file.relative_to(root).as_posix() not in FILES:
            files.append(f"{file.name}: {lines}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in FUNCTIONS:
                first = node.body[ast.get_docstring(node) is not None and len(node.body) > 1]
                if (lines := (node.end_lineno or 0) - first.lineno + 1) > 60:
                    functions.append(f"{file.name}: {node.name} {lines}")
    assert (files, functions) == ([], [])


def test_the_tests_that_are_called_long_are_there() -> None:
    """A test that was renamed would be called quick, and nobody would notice."""
    text = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in sorted(LONG) if f"def {name}(" not in text] == []
