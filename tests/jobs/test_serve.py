"""Workers as processes: signals, hand-over, crashes; and the settings that a worker takes from its environment."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import pytest
import uvloop
from loguru import logger
from pydantic import Field

from aiolease import ConfigurationError, JobRegistry, LeaseSettings, leadership
from aiolease.testing import MemoryStore
from tests.printing import Printed
from tests.project import ROOT

LIMIT = 15.0
"""Seconds of real time within which everything here has to happen."""

PROGRAM = """
import asyncio, os, signal, sys, time
from loguru import logger
from aiolease import AioleaseError, JobRegistry, LeaseSettings

def say(*words):
    print(*words, f"{time.monotonic():.4f}", flush=True)

logger.remove()
logger.add(lambda line: say("log", line.rstrip()), level="INFO", format="{message}")
jobs = JobRegistry()

@jobs.every(0.1)
async def job():
    say("job begins")
    try:
        await asyncio.sleep(float(os.environ["TAKES"]))
        say("job ends")
    except asyncio.CancelledError:
        await asyncio.sleep(0.1)
        say("job was cancelled")
        raise

async def main():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    settings = LeaseSettings()
    await jobs.serve(settings.url, handle_signals=True, drain_timeout=float(os.environ["DRAIN"]), **settings.options())
    say("restored" if before == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] else "changed")

try:
    if os.environ.get("UVLOOP"):
        import uvloop
        uvloop.run(main())
    else:
        asyncio.run(main())
except AioleaseError as error:
    print("worker:", error, file=sys.stderr)
    sys.exit(1)
say("returned")
"""


class Worker:
    """A process that serves; what it prints is read as it comes."""

    def __init__(self, folder: Path, **environment: object) -> None:
        program = folder / "worker.py"
        program.write_text(PROGRAM)
        settings = {
            "AIOLEASE_URL": f"sqlite:///{folder}/jobs.db",
            "TAKES": "0.01",
            "DRAIN": "10",
            "PYTHONPATH": str(ROOT),
        }
        settings |= {name: str(value) for name, value in environment.items()}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(program)],
            env=os.environ | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.printed = Printed(self.process)

    def prints(self, text: str) -> float:
        """Waits for a line with `text`; returns when it was printed."""
        return float(self.printed.wait_for(text).rpartition(" ")[2])

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ends(self) -> tuple[int, list[str], str]:
        """Waits for its end; returns its status, all that it printed, and its errors."""
        status = self.process.wait(LIMIT)
        lines = self.printed.until_the_end()
        assert self.process.stderr is not None
        return status, [line.rpartition(" ")[0] for line in lines], self.process.stderr.read()

    def close(self) -> None:
        self.process.kill()
        self.process.wait(LIMIT)
        self.printed.close()


def place(printed: list[str], start: str) -> int:
    """Which line begins so; the line names a holder behind it, perhaps."""
    return next(number for number, line in enumerate(printed) if line.startswith(start))


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Starts workers on one file; they are gone after the test."""
    workers: list[Worker] = []

    def start(**environment: object) -> Worker:
        workers.append(Worker(tmp_path, **environment))
        return workers[-1]

    yield start
    for each in workers:
        each.close()


@pytest.mark.parametrize(
    ("number", "environment"),
    [(signal.SIGTERM, {}), (signal.SIGINT, {}), (signal.SIGTERM, {"UVLOOP": "1"}), (signal.SIGINT, {"UVLOOP": "1"})],
    ids=["SIGTERM", "SIGINT", "SIGTERM-uvloop", "SIGINT-uvloop"],
)
def test_a_signal_drains(worker: Callable[..., Worker], number: signal.Signals, environment: dict[str, str]) -> None:
    """SIGTERM and SIGINT let the running job finish, release the lease, and `serve` returns: status 0, no traceback."""
    leader = worker(TAKES=1, **environment)
    leader.prints("job begins")
    leader.signal(number)
    status, printed, errors = leader.ends()
    assert (status, errors) == (0, "")
    assert printed.count("job begins") == printed.count("job ends") == 1
    assert "job was cancelled" not in printed
    ends = [place(printed, line) for line in ("job ends", "log released 'default' (term 1)", "restored", "returned")]
    assert ends == sorted(ends)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_second_signal_cancels(worker: Callable[..., Worker], number: signal.Signals) -> None:
    """A second signal, the same or the other, cancels the running job at once; the lease is still released in order."""
    leader = worker(TAKES=100, DRAIN=100)
    leader.prints("job begins")
    leader.signal(number)
    leader.prints("a second signal cancels them")
    again = threading.Event()

    def insist() -> None:  # within a second of the first it would be the same request
        while not again.wait(0.3):
            leader.signal(signal.SIGTERM)

    insisting = threading.Thread(target=insist)
    insisting.start()
    leader.prints("again: 'default' cancels its jobs")
    again.set()
    insisting.join()
    status, printed, errors = leader.ends()
    assert (status, errors) == (0, "")
    ends = [place(printed, line) for line in ("job was cancelled", "log released 'default' (term 1)", "restored")]
    assert ends == sorted(ends)


def test_a_drain_that_takes_too_long_ends(worker: Callable[..., Worker]) -> None:
    """After `drain_timeout` the running job is cancelled, and the worker ends in order."""
    leader = worker(TAKES=100, DRAIN=0.2)
    leader.prints("job begins")
    leader.signal(signal.SIGTERM)
    status, printed, errors = leader.ends()
    assert (status, errors) == (0, "")
    assert place(printed, "job was cancelled") < place(printed, "log released 'default' (term 1)")


def test_a_signal_ends_a_follower(worker: Callable[..., Worker]) -> None:
    """A worker that waits for its election ends at once on the first signal, and takes no lease."""
    leader = worker()
    leader.prints("acquired leadership")
    follower = worker()
    follower.prints("another instance leads")
    follower.signal(signal.SIGTERM)
    status, printed, errors = follower.ends()
    assert (status, errors) == (0, "")
    assert printed[-2:] == ["restored", "returned"]
    assert not any(line.startswith("job") for line in printed)


def test_a_clean_exit_hands_over_at_once(worker: Callable[..., Worker]) -> None:
    """When the leader ends in order another leads at once, long before the lease would have expired."""
    leader = worker(AIOLEASE_LEASE_DURATION=30)
    leader.prints("job ends")
    follower = worker(AIOLEASE_LEASE_DURATION=30)
    follower.prints("another instance leads")
    leader.signal(signal.SIGTERM)
    released = leader.prints("released 'default' (term 1)")
    elected = follower.prints("acquired leadership of 'default' (term 2)")
    assert elected - released < 2
    follower.prints("job ends")
    assert leader.ends()[0] == 0


def test_a_killed_leader_is_followed_when_its_lease_expires(worker: Callable[..., Worker]) -> None:
    """After ``kill -9`` another leads when the lease has expired: not before, and not much later."""
    leader = worker(AIOLEASE_LEASE_DURATION=2)
    leader.prints("job ends")
    follower = worker(AIOLEASE_LEASE_DURATION=2)
    follower.prints("another instance leads")
    leader.signal(signal.SIGKILL)
    killed = time.monotonic()
    assert leader.process.wait(LIMIT) == -signal.SIGKILL
    elected = follower.prints("acquired leadership of 'default' (term 2)")
    assert 2 * 2 / 3 - 0.5 < elected - killed < 2 + 1
    follower.prints("job ends")


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"AIOLEASE_URL": "mysql://root:secret@127.0.0.1"}, "mysql://user:password@host:3306/database"),
        ({"AIOLEASE_URL": "shop.db"}, "sqlite:///shop.db"),
        ({"AIOLEASE_URL": "sqlite:////no/such/folder/shop.db"}, "/no/such/folder"),
        ({"AIOLEASE_LEASE_DURATION": "soon"}, "AIOLEASE_LEASE_DURATION"),
        ({"AIOLEASE_NAME": "two words"}, "two words"),
    ],
    ids=["url", "no-url", "folder", "timing", "name"],
)
def test_an_error_of_a_worker_is_one_line(environment: dict[str, str], says: str, tmp_path: Path) -> None:
    """What keeps the example worker from working is one line that says what and why, with no traceback or password."""
    result = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "worker.py")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    errors = result.stderr.splitlines()
    assert result.returncode in {1, 2}, result.stderr
    assert len(errors) == 1, result.stderr
    assert errors[0].startswith("worker: ")
    assert says in errors[0]
    assert "secret" not in result.stdout + result.stderr


# -- signals, within one process


NUMBERS = (signal.SIGTERM, signal.SIGINT)


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in NUMBERS]


@pytest.fixture
def own_handlers() -> Iterator[list[int]]:
    """An application's own handlers; gives the signals that reached them."""
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)

    before = handlers()
    for number in NUMBERS:
        signal.signal(number, note)
    yield received
    for number, handler in zip(NUMBERS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_handlers_are_restored(own_handlers: list[int], make_loop: Any) -> None:
    """While it serves with ``handle_signals=True`` signals are its own; then the application's handlers are back."""
    before, meanwhile = handlers(), []

    async def main() -> None:
        jobs = JobRegistry()

        @jobs.every(0.05)
        async def job() -> None:
            meanwhile.append(handlers())
            os.kill(os.getpid(), signal.SIGTERM)

        await jobs.serve(MemoryStore(), handle_signals=True)

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(asyncio.wait_for(main(), LIMIT))
        assert handlers() == before
        os.kill(os.getpid(), signal.SIGTERM)
    assert all(one is not other for one, other in zip(meanwhile[0], before, strict=True))
    assert own_handlers == [signal.SIGTERM]


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_handlers_are_restored_however_it_ends(own_handlers: list[int], how: str) -> None:
    """A `serve` that is cancelled, or raises, gives the signals back too."""
    before, store = handlers(), MemoryStore()
    if how == "failed":
        store.fail("read", ZeroDivisionError())
    task = asyncio.create_task(JobRegistry().serve(store, handle_signals=True))
    await asyncio.sleep(0)
    assert handlers() != before
    if how == "cancelled":
        task.cancel()
    with pytest.raises((asyncio.CancelledError, ZeroDivisionError)):
        await asyncio.wait_for(task, LIMIT)
    assert handlers() == before


async def test_no_signal_is_touched_unless_it_is_asked_for(own_handlers: list[int]) -> None:
    """Without ``handle_signals=True`` `serve` and `background` leave the application's handlers alone."""
    before, meanwhile = handlers(), []
    ran = asyncio.Event()
    jobs = JobRegistry()

    @jobs.every(0.05)
    async def job() -> None:
        meanwhile.append(handlers())
        ran.set()

    task = asyncio.create_task(jobs.serve(MemoryStore()))
    await asyncio.wait_for(ran.wait(), LIMIT)
    os.kill(os.getpid(), signal.SIGTERM)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    ran.clear()
    async with jobs.background(MemoryStore()):
        await asyncio.wait_for(ran.wait(), LIMIT)
    assert all(each == before for each in [*meanwhile, handlers()])
    assert own_handlers == [signal.SIGTERM]


# -- settings from the environment


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets variables; of ours, only a URL is set before."""
    for name in [name for name in os.environ if name.upper().startswith("AIOLEASE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AIOLEASE_URL", "sqlite:///jobs.db")

    def put(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


def test_settings_have_defaults(environment: Callable[..., None]) -> None:
    """With nothing but a URL in the environment the settings are those of `leadership`."""
    environment()
    settings = LeaseSettings()
    assert settings.url == "sqlite:///jobs.db"
    defaults = {name: each.default for name, each in inspect.signature(leadership).parameters.items()}
    assert settings.options() == {name: defaults[name] for name in settings.options()}


@pytest.mark.parametrize("empty", [False, True], ids=["not-set", "empty"])
def test_a_forgotten_url_is_refused(
    environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch, empty: bool
) -> None:
    """There is no default database: copies that each take a file of their own would each run every job."""
    if empty:
        environment(AIOLEASE_URL="")
    else:
        monkeypatch.delenv("AIOLEASE_URL")
    with pytest.raises(ConfigurationError, match="AIOLEASE_URL") as refused:
        LeaseSettings()
    assert "\n" not in str(refused.value)
    assert LeaseSettings(url="sqlite:///jobs.db").url == "sqlite:///jobs.db"


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("url", "mysql://root@db/shop", "mysql://root@db/shop"),
        ("name", "cron", "cron"),
        ("lease_duration", "60", 60.0),
        ("heartbeat_interval", "5.5", 5.5),
        ("renew_deadline", "26", 26.0),
        ("retry_interval", "0.5", 0.5),
        ("on_stall", "exit", "exit"),
    ],
)
def test_each_setting_has_a_variable(environment: Callable[..., None], variable: str, text: str, value: object) -> None:
    """``AIOLEASE_`` and the name of a setting in capitals is its variable; it alone changes."""
    plain = dict(LeaseSettings())
    environment(**{f"AIOLEASE_{variable.upper()}": text})
    settings = LeaseSettings()
    assert getattr(settings, variable) == value
    assert dict(settings) == plain | {variable: value}
    assert set(settings.options()) == set(LeaseSettings.model_fields) - {"url"}


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        *(("AIOLEASE_LEASE_DURATION", text) for text in ("soon", "-1", "nan", "1e9")),
        *(("AIOLEASE_HEARTBEAT_INTERVAL", text) for text in ("often", "20")),
        ("AIOLEASE_RENEW_DEADLINE", "29"),
        ("AIOLEASE_RETRY_INTERVAL", "31"),
        ("AIOLEASE_ON_STALL", "explode"),
        ("AIOLEASE_NAME", "two words"),
    ],
)
def test_a_wrong_value_names_its_variable(environment: Callable[..., None], variable: str, text: str) -> None:
    """A value that cannot work is a `ConfigurationError` in one line that names the variable and shows the value."""
    environment(**{variable: text})
    with pytest.raises(ConfigurationError) as refused:
        LeaseSettings()
    assert variable in str(refused.value)
    assert refused.value.__cause__ is None
    assert "\n" not in str(refused.value)


def test_an_empty_variable_is_none(environment: Callable[..., None]) -> None:
    """A variable that is set to nothing, as compose files do, leaves the default."""
    plain = LeaseSettings()
    environment(AIOLEASE_LEASE_DURATION="", AIOLEASE_NAME="")
    assert LeaseSettings() == plain


def test_a_variable_that_nothing_reads_is_named(environment: Callable[..., None]) -> None:
    """A variable that begins as ours do and is none of them is one WARNING that names it, and not its value."""
    told: list[str] = []
    logger.enable("aiolease")
    sink = logger.add(told.append, level=0, format="{level} {message}")

    class Settings(LeaseSettings):
        colour: str = "red"

    try:
        environment(AIOLEASE_URI="mysql://root:secret@db/shop", aiolease_lease="x", AIOLEASE_COLOUR="blue")
        for _ in range(3):
            assert Settings().colour == "blue"
    finally:
        logger.remove(sink)
    assert sorted(line.split()[:2] for line in told) == [["WARNING", "AIOLEASE_URI"], ["WARNING", "aiolease_lease"]]
    assert "secret" not in "".join(told)
    assert "AIOLEASE_URL" in told[0]


def test_settings_do_not_show_their_url(environment: Callable[..., None]) -> None:
    """Nothing that shows settings shows the URL, which drivers get in full."""

    class Settings(LeaseSettings):
        url: str = "mysql://root:secret@db/default"
        colour: Literal["red", "blue"] = "red"

    url = "mysql://root:secret@db/shop"
    environment(AIOLEASE_URL=url)
    for settings in (LeaseSettings(), Settings(), Settings(url=Settings.model_fields["url"].default)):
        shown = [repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()]
        shown += [json.dumps(settings.model_dump()), repr(dict(settings)), repr(vars(settings)), repr(settings.url)]
        assert "secret" not in "".join(shown)
        assert "secret" in settings.url
        assert f"{settings.url}" == str(settings.url) == json.loads(json.dumps(settings.url))
    assert LeaseSettings().url == url
    assert pickle.loads(pickle.dumps(LeaseSettings())) == LeaseSettings()


@pytest.mark.parametrize("variables", [{}, {"AIOLEASE_COLOUR": "green"}, {"AIOLEASE_LEASE_DURATION": "soon"}])
def test_no_error_of_settings_shows_the_url(environment: Callable[..., None], variables: dict[str, str]) -> None:
    """Whatever is wrong with settings, with the URL or with another of them, the error does not show the URL."""

    class Settings(LeaseSettings):
        colour: Literal["red", "blue"] = Field(default=...)

    environment(AIOLEASE_URL="mysql://root:secret@db/shop", **variables)
    makers: list[Callable[[], LeaseSettings]] = [Settings, lambda: LeaseSettings(url=["mysql://root:secret@db/shop"])]
    for make in makers:
        with pytest.raises(ConfigurationError) as refused:
            make()
        error: BaseException | None = refused.value
        while error is not None:
            assert "secret" not in f"{error} {error!r} {getattr(error, 'value', '')!r}"
            error = error.__cause__ or error.__context__


async def test_the_options_are_those_of_a_leadership(environment: Callable[..., None]) -> None:
    """An application writes ``**LeaseSettings().options()``, to `leadership` and `background` alike."""
    environment(AIOLEASE_NAME="cron", AIOLEASE_LEASE_DURATION="12", AIOLEASE_ON_STALL="exit")
    options = LeaseSettings().options()
    async with leadership(MemoryStore(), **options) as lead:
        assert lead.name == "cron"
        assert lead.remaining == pytest.approx(10, abs=0.5)
    async with JobRegistry().background(MemoryStore(), **options) as campaign:
        assert "'cron'" in repr(campaign)


def test_the_library_reads_no_environment(environment: Callable[..., None]) -> None:
    """`leadership` and the rest take what they are given; variables are for the command line and the examples."""
    environment(AIOLEASE_URL="mysql://nobody@nowhere/x", AIOLEASE_NAME="two words", AIOLEASE_LEASE_DURATION="soon")
    program = """
        import asyncio
        from aiolease import leadership
        from aiolease.testing import MemoryStore
        async def main():
            async with leadership(MemoryStore()) as lead:
                print(lead.name, round(lead.remaining))
        asyncio.run(main())
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    assert result.stdout == "default 25\n"
