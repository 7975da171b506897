"""No line that aiolease logs shows what a variable held, on any target, wherever an error comes from."""

# ruff: noqa: SIM117 - which block is inside which is what is tested

from __future__ import annotations

import asyncio
import re
import sqlite3
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiomysql
import asyncmy
import pytest
from loguru import logger
from sqlalchemy.ext.asyncio import create_async_engine

from aiolease import (
    Campaign,
    ConfigurationError,
    JobRegistry,
    JobRun,
    Leadership,
    StoreRejected,
    StoreUnavailable,
    leadership,
    open_store,
    stores,
)
from aiolease._election import fencing
from aiolease._tracebacks import hide_values
from aiolease.events import Event, RunFinished
from aiolease.testing import MemoryStore, virtual_time
from tests.campaigns import LIMIT, Recorder, database_of
from tests.servers import Server, TCPProxy
from tests.stores.mysql.secured import Secured

SECRET = "s3cr3tpassword"

VALUE = re.compile(r"^[ |]*(->|└) ", re.MULTILINE)
"""How loguru shows what a variable held, under the line of its frame."""


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What a sink writes that shows as much as loguru can: by default it does so, too."""
    lines: list[str] = []
    logger.enable("aiolease")
    layout = "{level} {message} {extra}\n{exception}"
    sink = logger.add(lines.append, level=0, diagnose=True, backtrace=True, format=layout)
    yield lines
    logger.remove(sink)


def failures(told: list[str]) -> list[str]:
    return [line for line in told if line.startswith("ERROR '") and "' failed: " in line]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that cannot be had is asked for again for a second: what is shown then is the same."""
    monkeypatch.setattr(fencing, "_IN_PLACE", 1.0)


# -- every kind of target


def user_of(url: str) -> str:
    return f"u_{database_of(url)[-10:]}"


@asynccontextmanager
async def target_of(kind: str, server: Server, url: str, proxy: TCPProxy) -> AsyncIterator[Any]:
    """A target behind a proxy, with a password."""
    user, database = user_of(url), database_of(url)
    server.create_user(user, SECRET, f"ALL ON {database}.*")
    url = f"mysql://{user}:{SECRET}@127.0.0.1:{proxy.port}/{database}"
    login = {"host": "127.0.0.1", "port": proxy.port, "user": user, "password": SECRET, "db": database}
    try:
        if kind.startswith("engine"):
            engine = create_async_engine(url.replace("mysql:", f"mysql+{kind.removeprefix('engine-')}:"))
            yield engine
            await engine.dispose()
        elif kind == "url":
            yield url
        else:
            pool = await {"asyncmy": asyncmy, "aiomysql": aiomysql}[kind].create_pool(minsize=0, maxsize=8, **login)
            yield pool
            pool.close()
            await pool.wait_closed()
    finally:
        server.sql(f"DROP USER '{user}'@'%'")


def jobs_that_meet_an_outage(cut: Callable[[], object], *, among: int = 5) -> JobRegistry:
    """Jobs that meet one outage, when all of them run: straight, logged by itself, as cause or context, in a group."""
    jobs, arrived, down = JobRegistry(), 0, asyncio.Event()

    async def use(run: JobRun) -> None:
        nonlocal arrived
        if down.is_set():
            return
        arrived += 1
        if arrived == among:
            cut()
            down.set()
        await down.wait()
        async with run.transaction():
            pass

    @jobs.every(1)
    async def straight(run: JobRun) -> None:
        await use(run)

    @jobs.every(1)
    async def logs_it_itself(run: JobRun) -> None:
        try:
            await use(run)
        except StoreUnavailable:
            logger.exception("'mine' failed: ")
            raise

    @jobs.every(1)
    async def as_a_cause(run: JobRun) -> None:
        try:
            await use(run)
        except StoreUnavailable as error:
            raise LookupError("no customers") from error

    @jobs.every(1)
    async def as_a_context(run: JobRun) -> None:
        try:
            await use(run)
        except StoreUnavailable:
            raise LookupError("no customers")  # noqa: B904 - a context is what is wanted

    @jobs.every(1)
    async def in_a_group(run: JobRun) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(use(run))

    return jobs


async def see_all_fail(jobs: JobRegistry, lead: Leadership, heard: Recorder, mend: Callable[[], object]) -> None:
    running = asyncio.create_task(jobs.run(lead))
    try:
        async with asyncio.timeout(LIMIT):
            while {each.job for each in heard.of(RunFinished) if each.status == "failed"} != set(jobs.registered):
                await heard.next(RunFinished)
            mend()
            while heard.last(RunFinished)[1].status != "succeeded":
                await heard.next(RunFinished)
    finally:
        running.cancel()
        await asyncio.wait([running])


def assert_safe(told: list[str]) -> None:
    for line in told:
        assert SECRET not in line
        assert not VALUE.search(line) or "'mine'" in line, line  # what a job logs itself shows its own frames
    for line in failures(told):
        assert 'File "' in line
        assert __file__ in line


@pytest.mark.parametrize("mysql_server", ["mariadb"], indirect=True)
@pytest.mark.parametrize("kind", ["asyncmy", "aiomysql", "engine-asyncmy", "engine-aiomysql", "url"])
async def test_an_outage_shows_no_password(mysql_server: Server, mysql_url: str, kind: str, told: list[str]) -> None:
    """The traceback of a job that meets an outage shows no variable, the driver's password least of all."""
    async with TCPProxy(mysql_server.host, mysql_server.port, mysql_server.kind) as proxy:
        async with target_of(kind, mysql_server, mysql_url, proxy) as target:
            heard = Recorder()

            def cut() -> None:
                proxy.refuse()
                proxy.cut()

            async with leadership(target, on_event=heard) as lead:
                await see_all_fail(jobs_that_meet_an_outage(cut), lead, heard, proxy.heal)
    assert len(failures(told)) >= 5
    assert_safe(told)
    where = rf"on mysql://{user_of(mysql_url)}@127\.0\.0\.1:{proxy.port}/{database_of(mysql_url)} "
    assert re.match(
        rf"INFO acquired leadership of 'default' \(term 1\) as \S+, {where}",
        next(line for line in told if line.startswith("INFO")),
    )


async def test_a_ca_that_vanishes_shows_no_password(secured: Secured, tmp_path: Path, told: list[str]) -> None:
    """The same where the file of the CA that a URL names vanishes while jobs run."""
    whole, ca, heard = secured.authority.ca.read_bytes(), tmp_path / "ca.pem", Recorder()
    ca.write_bytes(whole)
    user = f"u_{secured.database[-10:]}"
    secured.server.create_user(user, SECRET, f"ALL ON {secured.database}.*")
    url = f"mysql://{user}:{SECRET}@localhost:{secured.server.port}/{secured.database}?ssl_ca={ca}"
    try:
        async with leadership(url, on_event=heard) as lead:
            await see_all_fail(jobs_that_meet_an_outage(ca.unlink), lead, heard, lambda: ca.write_bytes(whole))
    finally:
        secured.server.sql(f"DROP USER '{user}'@'%'")
    assert len(failures(told)) >= 5
    assert any(str(ca) in line for line in failures(told))
    assert_safe(told)


async def test_an_outage_of_sqlite_shows_no_variables(tmp_path: Path, told: list[str]) -> None:
    """The same on SQLite, where every write of a fence fails for a while."""
    url, heard = f"sqlite:///{tmp_path}/jobs.db", Recorder()
    failing = "CREATE TRIGGER broken BEFORE UPDATE ON aiolease_fence BEGIN SELECT RAISE(ABORT, 'disk full'); END"

    def execute(sql: str) -> None:
        with closing(sqlite3.connect(tmp_path / "jobs.db", timeout=LIMIT)) as connection:
            connection.execute(sql)

    async with leadership(url, on_event=heard) as lead:
        jobs = jobs_that_meet_an_outage(lambda: execute(failing))
        await see_all_fail(jobs, lead, heard, lambda: execute("DROP TRIGGER broken"))
    assert len(failures(told)) >= 5
    assert_safe(told)


# -- every place that logs an error


def in_a_library(password: str) -> None:
    """Fails as a driver would, with a password in its frame, its cause, its context and its group."""
    try:
        try:
            raise KeyError(len(password))
        except KeyError as error:
            raise ConnectionError("gone" * bool(password)) from error
    except ConnectionError as error:
        group = BaseExceptionGroup("several", [error, ValueError(1 if password else 0)])
        raise group  # noqa: B904 - a context is what is wanted


@virtual_time
async def test_nothing_that_fails_shows_a_value(told: list[str]) -> None:
    """A job, in a task and in a thread, an observer, a check of fitness and a body: none shows what variables held."""

    async def check() -> bool:
        in_a_library(SECRET)
        return True

    def observe(event: Event) -> None:
        in_a_library(SECRET)

    jobs = JobRegistry()

    @jobs.every(10)
    async def in_a_task() -> None:
        in_a_library(SECRET)

    @jobs.every(10)
    def in_a_thread() -> None:
        in_a_library(SECRET)

    @jobs.every(10, timeout=1)
    async def clumsy() -> None:
        try:
            await asyncio.sleep(5)
        finally:
            in_a_library(SECRET)

    @jobs.every(10)
    async def cancelled() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            in_a_library(SECRET)

    store = MemoryStore()
    async with jobs.background(store, on_event=observe):
        await asyncio.sleep(35)
        store.server.leases.clear()  # taken: the jobs are cancelled, and raise meanwhile
        await asyncio.sleep(60)
    async with jobs.background(store, "unfit", eligible=check):
        await asyncio.sleep(60)

    text = "\n".join(told)
    for part in ("'in_a_task' failed", "'in_a_thread' failed", "'clumsy' failed", "'cancelled' raised", "an observer"):
        assert part in text
    assert "its check failed" in text
    assert_safe(told)


@virtual_time
async def test_what_nobody_expected_shows_no_value(told: list[str]) -> None:
    """A defect of a store or a driver ends a term, or stops a campaign for a while, and shows no values either."""

    class Broken(MemoryStore):
        broken = ""

        async def renew(self, *args: Any, **kwargs: Any) -> Any:
            if self.broken == "renew":
                in_a_library(SECRET)
            return await super().renew(*args, **kwargs)

        async def read(self, *args: Any, **kwargs: Any) -> Any:
            if self.broken == "read":
                in_a_library(SECRET)
            return await super().read(*args, **kwargs)

        async def release(self, *args: Any, **kwargs: Any) -> Any:
            if self.broken:
                in_a_library(SECRET)
            return await super().release(*args, **kwargs)

    store, jobs = Broken(), JobRegistry()

    @jobs.every(3600)
    async def job() -> None: ...

    async with jobs.background(store):
        await asyncio.sleep(5)
        store.broken = "renew"
        await asyncio.sleep(20)
        store.broken = "read"
        await asyncio.sleep(60)
    text = "\n".join(told)
    for part in (
        "the keeper of 'default' failed",
        "could not release 'default'",
        "CRITICAL the campaign for 'default'",
    ):
        assert part in text
    assert_safe(told)


def test_a_loop_of_causes_and_a_class_of_its_own_are_no_trouble() -> None:
    """What a job raises may be its own cause, or have methods of its own; its values are hidden all the same."""

    class Odd(Exception):
        def with_traceback(self, _: Any) -> Any:
            raise AssertionError("not to be called")

    def fail() -> None:
        secret = SECRET
        raise Odd(len(secret))

    try:
        fail()
    except Odd as error:
        first = error
    second = ValueError("another")
    first.__cause__, second.__cause__ = second, first
    hide_values(first)
    for step, _ in traceback.walk_tb(first.__traceback__):
        assert step.f_locals == {}
        assert step.f_globals.keys() == {"__name__", "__builtins__"} or step.f_globals.keys() == {"__name__"}
        assert step.f_back is None
    assert [step.name for step in traceback.extract_tb(first.__traceback__)][-1] == "fail"
    assert [step.line for step in traceback.extract_tb(first.__traceback__)][-1] == "raise Odd(len(secret))"


@pytest.mark.parametrize("mysql_server", ["mariadb"], indirect=True)
@pytest.mark.parametrize("driver", [asyncmy, aiomysql])
async def test_a_password_that_cannot_be_sent_is_not_shown(mysql_server: Server, driver: Any, told: list[str]) -> None:
    """A character that a driver cannot encode is not named: it is one of the password."""
    login = {"host": mysql_server.host, "port": mysql_server.port, "user": "root", "password": "pa€s"}
    pool = await driver.create_pool(minsize=0, maxsize=1, db="mysql", **login)
    with pytest.raises((StoreUnavailable, StoreRejected)) as refused:
        async with leadership(pool, timeout=0.5):
            pass
    pool.close()
    await pool.wait_closed()
    for text in [*told, str(refused.value), repr(refused.value)]:
        assert "€" not in text
        assert "20ac" not in text


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")
def test_no_object_shows_its_target(tmp_path: Path) -> None:
    """The `repr` of what is made from a target, and the error for a target that cannot be used, show no password."""
    url = f"mysql://app:{SECRET}@db/shop"
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/x.db?password={SECRET}")

    async def main() -> list[object]:
        async with open_store(url) as store:
            campaign = Campaign(url, "cron", lambda lead, stopping: asyncio.sleep(0), {})
            return [store, store._driver, campaign, *stores._open.values(), leadership(url)]  # type: ignore[attr-defined]

    assert SECRET not in "".join(map(repr, asyncio.run(main())))
    with pytest.raises(ConfigurationError) as refused:
        leadership(engine)
    assert SECRET not in f"{refused.value} {refused.value!r} {refused.value.value}"


# -- which frames are shown


def frames(line: str) -> list[tuple[str, str]]:
    """File and function of each frame of the last traceback of a line."""
    last = line.rpartition("Traceback (most recent call last):")[2]
    return [(Path(file).name, name) for file, name in re.findall(r'File "(.+?)", line \d+, in (\S+)', last)]


@virtual_time
async def test_a_job_s_traceback_is_its_own_frames(told: list[str]) -> None:
    """A traceback begins with the job's frame; ours come only where the error arose in them."""
    jobs, here = JobRegistry(), Path(__file__).name

    @jobs.leader_only
    async def tidy() -> None:
        raise LookupError("nothing to tidy")

    @jobs.every(10)
    async def calls_one_of_ours() -> None:
        await tidy()

    @jobs.every(10)
    async def its_own(run: JobRun) -> None:
        async with run.transaction():
            raise LookupError("no customers")

    @jobs.every(10)
    def in_a_thread() -> None:
        raise LookupError("no customers")

    @jobs.every(10)
    async def of_ours(run: JobRun) -> None:
        async with run.transaction():
            store.down = True

    store = MemoryStore()
    async with jobs.background(store):
        await asyncio.sleep(15)
    shown = {line.split("'")[1]: frames(line) for line in failures(told)}
    assert shown["calls_one_of_ours"] == [(here, "calls_one_of_ours"), (here, "tidy")]
    assert shown["its_own"] == [(here, "its_own")]
    assert shown["in_a_thread"] == [(here, "in_a_thread")]
    assert shown["of_ours"][0] == (here, "of_ours")
    assert len(shown["of_ours"]) > 1


@virtual_time
async def test_an_exception_handler_still_gets_the_exception(told: list[str]) -> None:
    """A record keeps the exception itself, with a traceback that formats: error trackers group by it."""
    jobs, seen = JobRegistry(), []
    sink = logger.add(lambda message: seen.append(message.record["exception"]), filter=lambda r: bool(r["exception"]))

    @jobs.every(10)
    async def job() -> None:
        raise LookupError("no customers")

    try:
        async with jobs.background(MemoryStore()):
            await asyncio.sleep(15)
    finally:
        logger.remove(sink)
    assert seen
    assert seen[0].type is LookupError
    text = "".join(traceback.format_exception(seen[0].type, seen[0].value, seen[0].traceback))
    assert 'raise LookupError("no customers")' in text
