"""What is built, what is public, what an import costs, and what the files must not name."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import aiolease
from tests.project import ROOT

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
    "InvalidJob",
    "InvalidSchedule",
    "LeadershipLost",
    "LeaseHeld",
    "NotLeader",
    "RunEnded",
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
    "LoopBlocked",
    "Lost",
    "Notice",
    "ReleaseFailed",
    "Released",
    "RenewFailed",
    "Renewed",
    "Resigned",
    "RunFinished",
    "RunStarted",
    "TickSkipped",
    "TicksMissed",
    "Waiting",
    "use_stdlib_logging",
    "__version__",
}

HEAVY = [
    "aiolease.cli",
    "aiolease.testing",
    "aiomysql",
    "argparse",
    "asyncmy",
    "pydantic",
    "pydantic_settings",
    "sqlalchemy",
]
"""What `import aiolease` leaves alone: imported when used."""


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


def test_the_version_is_that_of_the_project() -> None:
    """`aiolease.__version__` and pyproject.toml say the same."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert aiolease.__version__ == tomllib.load(file)["project"]["version"]


def test_an_import_leaves_what_is_heavy_alone() -> None:
    """Settings, the command line and the drivers are imported when they are used, not with the package."""
    program = f"import sys, aiolease; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.split() == []
    assert result.stderr == ""


def test_the_wheel_holds_the_schema_and_the_types_mark(tmp_path: Path) -> None:
    """A wheel has the schema and ``py.typed`` in the package, the command, and nothing of the tests."""
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
