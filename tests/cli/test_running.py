"""`run` and `next`: the commands that import an application."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.campaigns import LIMIT
from tests.cli.commands import Aiolease, program
from tests.printing import Printed
from tests.project import ROOT

WORKER = """
from aiolease import JobRegistry

jobs = JobRegistry(timezone="America/New_York")

class App:
    inner = jobs

@jobs.every(1)
async def tick() -> None:
    print("ticked", flush=True)

@jobs.cron("0 9 * * MON-FRI")
async def report() -> None: ...

number = 3
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder, of a name that is used once."""
    name = f"worker_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(WORKER)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "aiolease", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )


# -- next


def test_next_tells_what_a_schedule_means(aiolease: Aiolease, worker: str) -> None:
    """`next` prints each job's schedule in words and its coming ticks, in UTC and by its own clock; no database."""
    run = aiolease("next", f"{worker}:jobs", "-n", "2")
    assert (run.status, run.err) == (0, "")
    lines = run.out.splitlines()
    assert lines[0] == "report: at 09:00, Monday to Friday, by the clock of America/New_York"
    assert "UTC (09:00 America/New_York), in " in lines[1]
    assert lines[3] == ""
    assert lines[4] == "tick: every second"
    assert len(lines) == 7


def test_next_of_one_job_for_programs(aiolease: Aiolease, worker: str) -> None:
    """One job may be named; `--json` has its schedule, the words, and the ticks."""
    [told] = json.loads(aiolease("next", f"{worker}:jobs", "report", "--json").out)
    assert (told["job"], told["schedule"], told["timezone"]) == ("report", "cron 0 9 * * MON-FRI", "America/New_York")
    assert told["words"].startswith("at 09:00")
    ticks = [datetime.fromisoformat(text) for text in told["ticks"]]
    assert len(ticks) == 5
    assert ticks == sorted(ticks)
    assert ticks[0] > datetime.now(UTC)
    run = aiolease("next", f"{worker}:jobs", "reprot")
    assert (run.status, run.out) == (2, "")
    assert "it has no job 'reprot'" in run.err


@pytest.mark.parametrize("path", ["", ":jobs", ":App.inner"])
def test_how_a_registry_is_named(aiolease: Aiolease, worker: str, path: str) -> None:
    """MODULE:REGISTRY, with dots; the registry may be left out if a module has only one."""
    assert aiolease("next", f"{worker}{path}").status == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nosuchmodule:jobs", "there is no module 'nosuchmodule' in "),
        ("nosuchpackage.worker:jobs", "there is no module 'nosuchpackage' in "),
        ("{worker}:nothing", "has no name 'nothing': name its JobRegistry"),
        ("{worker}:number", "has a int named 'number': name its JobRegistry"),
        ("{worker}.py:jobs", "name a module as `import` does, such as {worker}:jobs"),
        ("./{worker}:jobs", "name a module as `import` does"),
        (":jobs", "name a module"),
        ("json", "name its JobRegistry, as json:jobs; it has none"),
    ],
)
@pytest.mark.parametrize("command", ["next", "run"])
@pytest.mark.usefixtures("url")
def test_what_is_no_registry(aiolease: Aiolease, worker: str, command: str, text: str, said: str) -> None:
    """A wrong name is one line that says what to write, and status 2."""
    run = aiolease(command, text.format(worker=worker))
    assert (run.status, run.out, run.err.count("\n")) == (2, "", 1)
    assert said.format(worker=worker) in run.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("import nosuchmodule", "ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit('no configuration')", "SystemExit: no configuration"),
        ("from aiolease import JobRegistry; JobRegistry().cron('0 25 * * *')", "InvalidSchedule: hour='25': use 0-23"),
    ],
)
def test_an_application_that_cannot_be_imported(aiolease: Aiolease, tmp_path: Path, line: str, said: str) -> None:
    """What an import raises is one line, with where; status 1, and no traceback."""
    name = f"broken_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(f"\n\n{line}\n")
    run = aiolease("next", f"{name}:jobs")
    assert (run.status, run.out, run.err.count("\n")) == (1, "", 1)
    assert run.err.startswith(f"aiolease: cannot import '{name}': {said}")
    assert run.err.endswith(f" ({name}.py, line 3)\n")


def test_what_is_heavy_stays_out() -> None:
    """`--version`, the help and `next` import no driver and no settings: they are quick, and need no database."""
    heavy = ["asyncmy", "aiomysql", "sqlalchemy", "pydantic", "pydantic_settings", "sqlite3"]
    for arguments in (["--version"], [], ["next", "examples.jobs_for_a_test"]):
        code = (
            "import sys, contextlib\n"
            "sys.modules['examples.jobs_for_a_test'] = m = type(sys)('m')\n"
            "import aiolease\n"
            "m.jobs = aiolease.JobRegistry(); m.jobs.every(5, name='x')(lambda: None)\n"
            "from aiolease.cli import main\n"
            f"with contextlib.suppress(SystemExit): main({arguments!r})\n"
            f"print(*[name for name in {heavy!r} if name in sys.modules])"
        )
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=True
        )
        assert result.stdout.splitlines()[-1] == "", arguments


def test_the_version_and_the_help(aiolease: Aiolease) -> None:
    """`--version` prints it; without a command the help is printed."""
    import aiolease as package

    run = aiolease("--version")
    assert (run.status, run.out, run.err) == (0, f"aiolease {package.__version__}\n", "")
    assert aiolease().out == aiolease("--help").out
    assert aiolease().status == 0


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("aiolease ba", {"backfill"}),
        ("aiolease re", {"rerun", "resign", "resume"}),
        ("aiolease pause --u", {"--until", "--url"}),
    ],
)
def test_a_shell_is_given_completions(tmp_path: Path, line: str, completions: set[str]) -> None:
    """With the extra `completion` commands and options are completed; without it nothing happens."""
    pytest.importorskip("argcomplete")
    answer = tmp_path / "answer"
    program(
        PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path]),
        _ARGCOMPLETE="1",
        _ARGCOMPLETE_STDOUT_FILENAME=str(answer),
        _ARGCOMPLETE_IFS=" ",
        COMP_LINE=line,
        COMP_POINT=str(len(line)),
    )
    assert {word.strip() for word in answer.read_text().split()} == completions


# -- run


def test_run_is_the_worker(worker: str, url: str, tmp_path: Path) -> None:
    """`run` serves the jobs of an application in the current folder; SIGTERM ends it in order, and it hands over."""
    process = start(tmp_path, "run", f"{worker}:jobs", "--name", "shop", AIOLEASE_URL=url, AIOLEASE_LEASE_DURATION="6")
    printed = Printed(process)
    try:
        printed.wait_for("acquired leadership of 'shop' (term 1)")
        printed.wait_for("ticked")
        told = json.loads(program("status", "shop", "--json", AIOLEASE_URL=url).stdout)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0
        lines = printed.until_the_end()
    finally:
        process.kill()
        process.communicate()
    assert any("released 'shop'" in line for line in lines)
    assert "Traceback" not in "".join(lines)
    expires, renewed = (datetime.fromisoformat(told[field]) for field in ("expires_at", "renewed_at"))
    assert (expires - renewed).total_seconds() == 6  # the timings are those of the environment


def test_run_without_a_database(worker: str, tmp_path: Path) -> None:
    """A forgotten AIOLEASE_URL is one line and status 2; a file that cannot be is one line and status 1."""
    for more, status in (((), 2), (("--url", "sqlite:////no/such/folder/jobs.db"), 1)):
        process = start(tmp_path, "run", worker, *more)
        out, _ = process.communicate(timeout=LIMIT)
        assert process.returncode == status
        assert "Traceback" not in out
        assert out.splitlines()[-1].startswith("aiolease: ")
