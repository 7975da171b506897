"""What a log line carries: every fact of its event, the run that wrote it, the holder of a term, the database."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
from collections.abc import Iterator
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pytest
from loguru import logger

from aiolease import JobRegistry, JobRun, JobStanding, RunFilter, events, leadership
from aiolease._jobs.notices import Notices
from aiolease._logging import log_to_loguru, log_to_stdlib
from aiolease.events import (
    BodyStuck,
    Elected,
    Event,
    Following,
    JobsSeen,
    Joined,
    Leaderless,
    LedgerFailed,
    Level,
    LoopBlocked,
    Lost,
    Notice,
    Overdue,
    Released,
    ReleaseFailed,
    Renewed,
    RenewFailed,
    Resigned,
    RunFinished,
    RunStarted,
    TickSkipped,
    TicksMissed,
    UnknownJobs,
    Waiting,
)
from aiolease.testing import MemoryServer, MemoryStore, virtual_time

if TYPE_CHECKING:
    from loguru import Record

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
TERM: dict[str, Any] = {"lease": "cron", "holder": "web1-7-0123456789abcdef", "token": 7}
RUN: dict[str, Any] = {**TERM, "job": "debt_aging", "tick": NOON}

STANDING = JobStanding(job="debt_aging", schedule="cron 0 9 * * *", timezone="UTC", next_tick=NOON, failures=2)

EVENTS: list[Event] = [
    Joined(lease="cron", jobs=("debt_aging", "purge")),
    Joined(**TERM),
    Elected(**TERM, elected_at=NOON, database="memory"),
    Following(**TERM, database="memory", note="it may be alive"),
    Renewed(**TERM, beat=3, took=0.1, clock_offset=-0.2),
    RenewFailed(**TERM, left=4.5, error="gone"),
    Waiting(lease="cron", error="gone", attempts=3),
    Lost(**TERM, reason="expired"),
    Resigned(**TERM, requested=True),
    BodyStuck(**TERM, since_lost=5.0, renewing=True),
    BodyStuck(**TERM, since_lost=5.0, renewing=False),
    LoopBlocked(**TERM, stack="here"),
    Released(**TERM),
    ReleaseFailed(**TERM, error="it is read-only"),
    LedgerFailed(**TERM, error="it is locked", failures=2),
    Notice(**TERM, severity="WARNING", text="something"),
    RunStarted(**RUN, late=0.1),
    RunFinished(**RUN, status="succeeded", took=1.0),
    RunFinished(**RUN, status="lost", took=1.0),
    RunFinished(**RUN, status="failed", took=1.0, error=ValueError("no customers")),
    TickSkipped(**TERM, job="debt_aging", since=NOON, count=3, reason="too old"),
    TicksMissed(**TERM, jobs=("debt_aging", "purge"), since=NOON, count=5),
    JobsSeen(**TERM, jobs=(STANDING,), now=NOON, leading=True, clock_offset=-0.2),
    Overdue(**RUN, late=75.0),
    Leaderless(**TERM, since=NOON, lasts=42.0),
    Leaderless(lease="cron", since=NOON, lasts=42.0),
    UnknownJobs(**TERM, jobs=("debt_aging", "purge")),
]


class Odd(Exception):
    """As some drivers' errors are: it holds what cannot be pickled."""

    def __init__(self, one: object, *, two: object) -> None:
        super().__init__("odd")
        self.handle = lambda: (one, two)


@pytest.fixture
def records() -> Iterator[list[Record]]:
    """What loguru was told."""
    found: list[Record] = []
    logger.enable("aiolease")
    sink = logger.add(lambda message: found.append(message.record), level=0)
    yield found
    logger.remove(sink)


def test_every_event_is_tried() -> None:
    """The events above are all that there are."""
    kinds = {kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, Event)}
    assert {type(event) for event in EVENTS} == kinds - {Event}


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_fact_is_in_extra(event: Event, records: list[Record]) -> None:
    """Both logs carry every field of an event, an exception as its text: what a sink may pickle and serialize."""
    facts = {field.name: getattr(event, field.name) for field in fields(event)}
    if facts.get("error") is not None and not isinstance(facts["error"], str):
        facts["error"] = "ValueError: no customers"
    log_to_loguru(event)
    assert records[0]["extra"] == facts
    assert pickle.loads(pickle.dumps(records[0]["extra"])) == facts
    json.dumps(facts, default=lambda fact: fact.isoformat() if isinstance(fact, datetime) else asdict(fact))

    found: list[logging.LogRecord] = []
    handler = logging.Handler(level=1)
    handler.emit = found.append  # type: ignore[method-assign, assignment]
    log = logging.getLogger("aiolease")
    level = log.level
    log.setLevel(1)
    log.addHandler(handler)
    try:
        log_to_stdlib(event)
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    assert {name: getattr(found[0], name) for name in facts} == facts
    assert found[0].getMessage() == event.phrase


class Untold(Event):
    """An event whose phrase must not be asked for."""

    level: ClassVar[Level] = "TRACE"

    @property
    def phrase(self) -> str:
        raise AssertionError("nobody listens")


def test_a_line_that_no_sink_takes_is_not_made() -> None:
    """Phrase and facts are made for a sink that takes the line, and for none below its level."""
    found: list[str] = []
    logger.enable("aiolease")
    sink = logger.add(found.append, level="DEBUG")
    try:
        log_to_loguru(Untold(lease="cron"))
        log_to_loguru(Notice(**TERM, severity="DEBUG", text="something"))
    finally:
        logger.remove(sink)
    assert len(found) == 1
    log_to_stdlib(Untold(lease="cron"))


def test_it_is_known_whether_a_line_would_be_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """A level is heard if a sink takes it, and always by a log that is neither loguru nor the standard library's."""
    assert not ask("TRACE")
    sink = logger.add(lambda _: None, level="TRACE")
    try:
        assert ask("TRACE")
    finally:
        logger.remove(sink)
    assert not ask("TRACE")
    for level in ("a level", None):  # another loguru may keep it otherwise
        with monkeypatch.context() as patch:
            patch.setattr(logger._core, "min_level", level)  # type: ignore[attr-defined]
            assert ask("TRACE")

    monkeypatch.setattr("aiolease._logging._log", lambda _: None)
    assert ask("TRACE")
    monkeypatch.setattr("aiolease._logging._log", log_to_stdlib)
    log = logging.getLogger("aiolease")
    monkeypatch.setattr(log, "level", logging.INFO)
    log.manager._clear_cache()  # type: ignore[attr-defined]
    assert (ask("TRACE"), ask("DEBUG"), ask("INFO")) == (False, False, True)


def ask(level: str) -> bool:
    """Asks as the runs of a term do."""
    term = SimpleNamespace(observer=None)
    return Notices(cast("Any", term), set()).hears(level)


def counted(kind: type[Event], made: list[str]) -> object:
    """A kind of event that notes when one is made."""

    class Kind:
        level = kind.level

        def __new__(cls, **facts: Any) -> Any:
            made.append(kind.__name__)
            return kind(**facts)

    return Kind


@virtual_time
@pytest.mark.parametrize("observed", [False, True])
async def test_an_event_of_a_run_that_nobody_hears_is_not_made(
    monkeypatch: pytest.MonkeyPatch, *, observed: bool
) -> None:
    """A run that succeeds makes no event if neither a sink nor an observer would get it, and both otherwise."""
    made: list[str] = []
    for kind in RunStarted, RunFinished:
        monkeypatch.setattr(f"aiolease._jobs.runs.{kind.__name__}", counted(kind, made))
    ran = asyncio.Event()
    jobs, heard = JobRegistry(), list[Event]()

    @jobs.every(10)
    async def job() -> None:
        ran.set()

    monkeypatch.setattr("aiolease._logging._log", log_to_stdlib)
    monkeypatch.setattr(logging.getLogger("aiolease"), "disabled", True)
    async with jobs.background(MemoryStore(), on_event=heard.append if observed else None):
        await ran.wait()
        await asyncio.sleep(1)
    assert made == (["RunStarted", "RunFinished"] if observed else [])
    assert [type(event).__name__ for event in heard if isinstance(event, RunStarted | RunFinished)] == made


@virtual_time
async def test_a_sink_hears_each_run_from_the_moment_on_that_it_is_there() -> None:
    """A sink at INFO hears the ends of runs, one at DEBUG their starts, too; also one that comes during a run."""
    jobs, lines = JobRegistry(), list[str]()

    def listen(level: str) -> int:
        return logger.add(lambda message: lines.append(message.record["message"].split(",")[0]), level=level)

    @jobs.every(10)
    async def job() -> None:
        await asyncio.sleep(2)

    async with jobs.background(MemoryStore(MemoryServer(NOON))):
        await asyncio.sleep(11)
        sink = listen("INFO")
        await asyncio.sleep(15)
        logger.remove(sink)
        sink = listen("DEBUG")
        await asyncio.sleep(10)
        logger.remove(sink)
    assert lines == ["ran 'job' in 2.00 s"] * 2 + ["started 'job'", "ran 'job' in 2.00 s"]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_a_line_about_a_term_names_its_holder(event: Event) -> None:
    """Whoever reads that a term was won, lost or released reads which process had it."""
    if "term 7" in event.phrase:
        assert TERM["holder"] in event.phrase


@virtual_time
async def test_a_line_about_any_term_names_its_holder(records: list[Record]) -> None:
    """So do the lines that are no events of their own: a body that raised when it lost its term, a failed release."""
    store, jobs = MemoryStore(), JobRegistry()

    @jobs.every(10)
    async def nothing() -> None: ...

    async with jobs.background(store):
        await asyncio.sleep(25)
        store.fail("release", OSError("broken"), 1)
        store.down = True
        await asyncio.sleep(60)
        store.down = False
        await asyncio.sleep(60)
    told = [record for record in records if "term 1" in record["message"] or "term 2" in record["message"]]
    assert {record["level"].name for record in told} >= {"INFO", "ERROR", "WARNING"}
    for record in told:
        assert record["extra"]["holder"] in record["message"]


async def test_elections_name_their_database(tmp_path: Path, records: list[Record]) -> None:
    """Who leads and who waits say on which database: two fleets on two databases are seen at once."""
    url, waits = f"sqlite:///{tmp_path}/jobs.db", asyncio.Event()

    def heard(event: Event) -> None:
        if isinstance(event, Following):
            waits.set()

    async with leadership(url, "cron") as first:
        second = asyncio.create_task(leadership(url, "cron", on_event=heard).__aenter__())
        async with asyncio.timeout(10):
            await waits.wait()
        second.cancel()
        await asyncio.wait([second])
    lines = [record["message"] for record in records if record["level"].name == "INFO"]
    assert lines[0] == f"acquired leadership of 'cron' (term 1) as {first.holder}, on {url}"
    assert lines[1] == f"another instance leads 'cron': {first.holder}, waiting, on {url}"


# -- a planned stop


def many_jobs(count: int, **options: Any) -> JobRegistry:
    jobs = JobRegistry()
    for number in range(count):

        async def job() -> None: ...

        jobs.every(600, name=f"job_{number:02}", **options)(job)
    return jobs


def warnings(records: list[Record]) -> list[str]:
    return [record["message"] for record in records if record["level"].no >= 30]


@virtual_time
@pytest.mark.parametrize("at_once", [1000, 3], ids=["one-batch", "several-batches"])
@pytest.mark.parametrize("missed", ["once", "skip"])
async def test_a_planned_stop_of_the_fleet_is_one_line(
    records: list[Record], monkeypatch: pytest.MonkeyPatch, missed: str, at_once: int
) -> None:
    """After a stop of hours the next leader tells of all missed ticks in one line; the ledger has each job's."""
    monkeypatch.setattr("aiolease._jobs.ledger._MOST", at_once)
    store = MemoryStore(MemoryServer(NOON))
    heard: list[Event] = []
    async with many_jobs(12, missed=missed).background(store, "cron"):
        await asyncio.sleep(1300)
    await asyncio.sleep(3 * 3600)
    assert warnings(records) == []
    async with many_jobs(12, missed=missed).background(store, "cron", on_event=heard.append) as campaign:
        await asyncio.sleep(60)
        assert campaign.leadership is not None
        holder = campaign.leadership.holder
    each = 17 if missed == "once" else 18
    (line,) = warnings(records)
    assert line.startswith(
        f"skipped {12 * each} ticks of 12 jobs since 2026-01-01 12:30:00, from before this term: job_00, "
    )
    (told,) = [event for event in heard if isinstance(event, TicksMissed)]
    assert (told.holder, told.count, len(told.jobs)) == (holder, 12 * each, 12)
    skipped = [event for event in heard if isinstance(event, TickSkipped)]
    assert [(event.count, event.quiet) for event in skipped] == [(each, True)] * 12
    for number in range(12):
        rows = await store.history("cron", f"job_{number:02}")
        assert [row.count for row in rows if row.status == "skipped"] == [each]


@virtual_time
async def test_one_job_that_missed_ticks_tells_by_itself(records: list[Record]) -> None:
    """If one job has missed ticks its own line says so, with the reason; and so does each job within a term."""
    store, jobs = MemoryStore(MemoryServer(NOON)), many_jobs(1)
    async with jobs.background(store, "cron"):
        await asyncio.sleep(700)
    await asyncio.sleep(3600)
    for name in ("slow", "slower"):

        @jobs.every(20, name=name)
        async def slow() -> None:
            await asyncio.sleep(30)

    async with jobs.background(store, "cron"):
        await asyncio.sleep(45)
    assert [line.split(":")[0] for line in warnings(records)] == [
        "skipped 'job_00', 5 ticks since 2026-01-01 12",
        "skipped 'slow', 1 tick since 2026-01-01 13",
        "skipped 'slower', 1 tick since 2026-01-01 13",
    ]


@virtual_time
async def test_a_term_that_ends_at_once_tells_of_missed_ticks(
    records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written is told, even if the term is cancelled before it has written all that was missed."""
    monkeypatch.setattr("aiolease._jobs.ledger._MOST", 3)
    store = MemoryStore(MemoryServer(NOON))
    async with many_jobs(12).background(store, "cron"):
        await asyncio.sleep(700)
    await asyncio.sleep(3600)

    def stop(event: Event) -> None:
        if isinstance(event, RunStarted):
            task.cancel()

    task = asyncio.create_task(many_jobs(12).serve(store, "cron", on_event=stop))
    await asyncio.wait([task])
    (line,) = [line for line in warnings(records) if line.startswith("skipped")]
    rows = [await store.history("cron", f"job_{number:02}") for number in range(12)]
    written = [row for each in rows for row in each if row.status == "skipped"]
    assert 2 <= len(written) < 12
    assert line.startswith(f"skipped {5 * len(written)} ticks of {len(written)} jobs")


# -- the lines of a job


@virtual_time
async def test_a_job_s_own_lines_carry_its_run(records: list[Record]) -> None:
    """Each line that a job writes carries its lease, job, tick and attempt: in tasks, in threads, in two at once."""
    jobs = JobRegistry()

    @jobs.every(10)
    async def first() -> None:
        logger.info("first begins")
        await asyncio.sleep(1)
        await asyncio.create_task(inner())

    async def inner() -> None:
        logger.info("first ends")

    @jobs.every(10)
    def second() -> None:
        logger.info("second begins")

    async with jobs.background(MemoryStore(MemoryServer(NOON)), "cron"):
        await asyncio.sleep(15)
        logger.info("outside")
    lines = [record for record in records if record["message"].split()[0] in {"first", "second"}]
    assert sorted(record["message"] for record in lines) == ["first begins", "first ends", "second begins"]
    for record in lines:
        assert record["extra"].pop("tick") > NOON
        assert record["extra"] == {"lease": "cron", "job": record["message"].split()[0], "attempt": 1}
    assert [record["extra"] for record in records if record["message"] == "outside"] == [{}]


@virtual_time
async def test_the_standard_library_s_lines_carry_it_by_a_filter() -> None:
    """`RunFilter` on a handler adds the same facts to records of the standard library, and spoils none."""
    found: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = found.append  # type: ignore[method-assign, assignment]
    handler.addFilter(RunFilter())
    log = logging.getLogger("an.application")
    log.addHandler(handler)
    log.setLevel("INFO")
    jobs = JobRegistry()

    @jobs.every(10)
    async def job(run: JobRun) -> None:
        log.info("in a task")
        log.info("its own word", extra={"job": "mine"})

    @jobs.every(10)
    def threaded() -> None:
        log.info("in a thread")

    try:
        async with jobs.background(MemoryStore(), "cron"):
            await asyncio.sleep(15)
            log.info("outside")
    finally:
        log.removeHandler(handler)
    said: dict[str, Any] = {record.getMessage(): record for record in found}
    for text, name in [("in a task", "job"), ("in a thread", "threaded"), ("its own word", "mine")]:
        assert (said[text].lease, said[text].job, said[text].attempt) == ("cron", name, 1)
        assert isinstance(said[text].tick, datetime)
    assert (said["outside"].lease, said["outside"].job, said["outside"].tick) == (None, None, None)


def test_an_error_that_cannot_be_pickled_costs_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A sink with a queue gets the line of a job whose error cannot be pickled."""
    lines: list[str] = []
    logger.enable("aiolease")
    sink = logger.add(lines.append, level=0, enqueue=True, format="{message}")
    try:
        log_to_loguru(RunFinished(**RUN, status="failed", took=1.0, error=Odd(1, two=2)))
        logger.complete()
    finally:
        logger.remove(sink)
    assert "'debt_aging' failed: Odd: odd" in lines[0]
    assert "Logging error" not in capsys.readouterr().err
