"""A row that somebody changed by hand sets its own job aside, and all others go on (rule 44)."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pymysql
import pytest
from loguru import logger

from aiolease import ConfigurationError, InvalidJob, JobRegistry, JobRun, StoreUnavailable
from aiolease._jobs import quarantine
from aiolease.stores import open_store
from aiolease.stores.batch import Batch
from aiolease.stores.contract import Refused
from aiolease.stores.records import TermKey
from aiolease.testing import MemoryServer
from tests.jobs.worlds import Line, Work, registry, world
from tests.servers import Server
from tests.virtual import START, lines, virtual

if TYPE_CHECKING:
    from loguru import Message


LIMIT = 60.0

NOW = "UTC_TIMESTAMP(6)"
ZERO = "'0000-00-00 00:00:00'"
RUN = "INSERT INTO aiolease_run (lease, job, tick, attempt, token, holder, status, started_at, error) VALUES"
TICK = f"FROM_UNIXTIME(UNIX_TIMESTAMP({NOW}) DIV 1"
MYSQL = [
    *(
        f"UPDATE aiolease_job SET {column} = {ZERO} WHERE job = '{{job}}'"
        for column in ("known_since", "schedule_since")
    ),
    *(f"UPDATE aiolease_job SET {column} = {ZERO} WHERE job = '{{job}}'" for column in ("resumed_at", "paused_at")),
    *(f"UPDATE aiolease_job SET {column} = {ZERO} WHERE job = '{{job}}'" for column in ("high_tick", "requested_at")),
    "UPDATE aiolease_job SET known_since = '9999-12-31 23:59:59.999999' WHERE job = '{job}'",
    "UPDATE aiolease_job SET resumed_at = '9999-12-31 23:59:59.999999' WHERE job = '{job}'",
    "UPDATE aiolease_job SET requested_at = '9999-12-31 23:59:59.999999' WHERE job = '{job}'",
    f"UPDATE aiolease_job SET high_tick = {NOW} + INTERVAL 1 DAY WHERE job = '{{job}}'",
    "UPDATE aiolease_job SET high_tick = high_tick - INTERVAL 3 SECOND WHERE job = '{job}'",
    f"UPDATE aiolease_job SET high_tick = {NOW} - INTERVAL 1 HOUR WHERE job = '{{job}}'",
    "UPDATE aiolease_job SET high_tick = '1000-01-01' WHERE job = '{job}'",
    "UPDATE aiolease_job SET high_tick = NULL WHERE job = '{job}'",
    "UPDATE aiolease_job SET schedule = '', timezone = 'Nowhere' WHERE job = '{job}'",
    "DELETE FROM aiolease_job WHERE job = '{job}'",
    "UPDATE aiolease_run SET status = 'running', started_at = " + ZERO + " WHERE job = '{job}'",
    "UPDATE aiolease_run SET status = 'queued', token = 0, tick_from = " + ZERO + " WHERE job = '{job}'",
    "UPDATE aiolease_run SET status = '' WHERE job = '{job}'",
    "UPDATE aiolease_run SET attempt = 4294967295, status = 'running', token = 1 WHERE job = '{job}'",
    f"{RUN} ('default', '{{job}}', {ZERO}, 1, 1, '', 'queued', NULL, NULL)",
    f"{RUN} ('default', '{{job}}', '9999-12-31', 1, 18446744073709551615, '', 'running', NULL, NULL)",
    f"{RUN} ('default', '{{job}}', '1000-01-01', 4294967295, 0, '', 'queued', NULL, NULL)",
    *(
        f"{RUN} ('default', '{{job}}', {NOW} + INTERVAL {n} SECOND - INTERVAL MICROSECOND({NOW}) MICROSECOND, "
        "1, 1, '', 'skipped', NULL, 'by hand')"
        for n in (3, 5)
    ),
    *(
        f"{RUN} ('default', '{{job}}', {NOW} + INTERVAL {n} SECOND - INTERVAL MICROSECOND({NOW}) MICROSECOND, "
        f"1, 1, '', 'succeeded', {ZERO}, NULL)"
        for n in (3, 5)
    ),
    "UPDATE aiolease_run SET error = REPEAT('x', 1000), `count` = 18446744073709551615 WHERE job = '{job}'",
]
"""What a person can write into a row of one job, with a client and a mode that takes all."""

JOB_COLUMNS = ("known_since", "schedule_since", "resumed_at", "paused_at", "high_tick", "requested_at")
SQLITE = [
    *(f"UPDATE aiolease_job SET {column} = 'soon' WHERE job = '{{job}}'" for column in JOB_COLUMNS),
    *(f"UPDATE aiolease_job SET {column} = x'00ff' WHERE job = '{{job}}'" for column in JOB_COLUMNS),
    *(f"UPDATE aiolease_job SET {column} = 9223372036854775807 WHERE job = '{{job}}'" for column in JOB_COLUMNS),
    *(f"UPDATE aiolease_job SET {column} = -62135596800000000 WHERE job = '{{job}}'" for column in JOB_COLUMNS),
    *(f"UPDATE aiolease_job SET {column} = 1.5 WHERE job = '{{job}}'" for column in JOB_COLUMNS),
    "UPDATE aiolease_job SET high_tick = high_tick - 3000000 WHERE job = '{job}'",
    "UPDATE aiolease_job SET high_tick = NULL WHERE job = '{job}'",
    "UPDATE aiolease_job SET schedule = 7, timezone = x'00' WHERE job = '{job}'",
    "UPDATE aiolease_job SET schedule = x'00ff' WHERE job = '{job}'",
    f"UPDATE aiolease_job SET timezone = '{'A' * 5000}', schedule = 'every {'9' * 5000}s' WHERE job = '{{job}}'",
    "UPDATE aiolease_job SET job = x'00ff' WHERE job = '{job}'",
    "DELETE FROM aiolease_job WHERE job = '{job}'",
    *(
        f"UPDATE aiolease_run SET status = 'queued', {column} = 'x' WHERE job = '{{job}}'"
        for column in ("attempt", "token", "started_at", "finished_at", "tick_from")
    ),
    *(
        f"UPDATE aiolease_run SET status = 'running', {column} = 'x' WHERE job = '{{job}}'"
        for column in ("attempt", "token", "started_at", "finished_at", "tick_from")
    ),
    "UPDATE aiolease_run SET status = x'ff' WHERE job = '{job}'",
    f"{RUN.replace(', started_at, error', '')} ('default', '{{job}}', 'never', 1, 1, '', 'queued')",
]


async def poisoned(url: str, poison: list[str], write: Callable[[str], object]) -> None:
    """Serves one job for each poison, and a good one: this goes on, and settled by command the others do again."""
    succeeded: dict[str, int] = defaultdict(int)
    changed = asyncio.Event()
    jobs = JobRegistry()

    async def work(run: JobRun) -> None:
        succeeded[run.job] += 1
        changed.set()

    async def more(names: list[str], times: int) -> None:
        aims = {name: succeeded[name] + times for name in names}
        while any(succeeded[name] < aim for name, aim in aims.items()):
            changed.clear()
            await changed.wait()

    bad = [f"bad{number}" for number in range(len(poison))]
    for name in [*bad, "good"]:
        jobs.every(1, name=name)(work)

    @asynccontextmanager
    async def serving() -> AsyncIterator[None]:
        task = asyncio.create_task(jobs.serve(url, lease_duration=6))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async with asyncio.timeout(LIMIT), open_store(url) as store:
        async with serving():
            await more([*bad, "good"], 2)
            for name, statement in zip(bad, poison, strict=True):
                await asyncio.to_thread(write, statement.format(job=name))
            await more(["good"], 4)
        async with serving():  # a leader that begins beside such rows
            await more(["good"], 3)
            for name in bad:
                await store.settle("default", name)
            await more(bad, 2)
        for name in bad:  # the rows that can be read are there
            assert "succeeded" in {row.status for row in await store.history("default", name)}


async def test_whatever_a_person_writes_into_one_jobs_rows_the_others_go_on(
    mysql_server: Server, mysql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On MariaDB and MySQL, each column, all at once."""
    monkeypatch.setattr(quarantine, "_ASIDE", 2.0)

    def write(statement: str) -> None:
        with (
            closing(
                pymysql.connect(
                    unix_socket=str(mysql_server.socket),
                    user="root",
                    database=mysql_url.rsplit("/", 1)[1],
                    init_command="SET sql_mode = ''",
                    autocommit=True,
                )
            ) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(statement)

    await poisoned(mysql_url, MYSQL, write)


async def test_whatever_a_person_writes_into_one_jobs_rows_the_others_go_on_on_sqlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On SQLite a column takes any type."""
    monkeypatch.setattr(quarantine, "_ASIDE", 2.0)
    file = tmp_path / "jobs.db"

    def write(statement: str) -> None:
        with closing(sqlite3.connect(file, timeout=10)) as connection, connection:
            connection.execute(statement)

    await poisoned(f"sqlite:///{file}", SQLITE, write)


@virtual
async def test_a_high_tick_that_was_set_back_holds_up_nobody(log: list[Message]) -> None:
    """The rows that are there settle their ticks, and the job goes on with those that have none."""
    async with world() as here:
        jobs, work, other = JobRegistry(), Work(), Work()
        jobs.every(10, name="job", missed="all")(work)
        jobs.every(10, name="other")(other)
        here.start(jobs)
        await here.until(305)
        rows = here.server.ledgers["default"].runs
        for tick in (100, 110, 150):  # deleted: they are run once more, as nothing tells of them
            del rows["job", START + timedelta(seconds=tick)]
        here.jobs["job"] = replace(here.jobs["job"], high_tick=START + timedelta(seconds=50))
        await here.until(701)
        assert other.ticks == [float(tick) for tick in range(10, 701, 10)]
        again = sorted(tick for tick in set(work.ticks) if work.ticks.count(tick) > 1)
        assert again == [100, 110, 150]
        assert set(work.ticks) == {float(tick) for tick in range(10, 701, 10)}
        assert not lines(log, "CRITICAL")


class Stubborn(Line):
    """A database that refuses each batch with one of some jobs."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server)
        self.bad: set[str] = set()

    async def record(self, term: TermKey, batch: Batch) -> None:
        jobs = {run.job for run in batch.claims} | {change.key.job for change in batch.changes} | {*batch.high_ticks}
        if jobs & self.bad:
            await self.exchange("record", lambda: None)
            raise Refused
        await super().record(term, batch)


@virtual
async def test_a_refused_batch_is_narrowed_down_to_the_jobs_at_fault(log: list[Message]) -> None:
    """Two jobs of twenty are set aside, told once, tried again each minute, and go on once they can be written."""
    async with world() as here:
        works = {f"job{number:02}": Work() for number in range(20)}
        jobs = JobRegistry()
        for name, work in works.items():
            jobs.every(10, name=name)(work)
        store = Stubborn(here.server)
        async with jobs.background(store) as campaign:
            await here.until(55)
            store.bad = {"job03", "job17"}
            await here.until(401)
            good = [work.ticks for name, work in works.items() if name not in store.bad]
            assert all(ticks[-1] == 400 for ticks in good)
            assert all(len(ticks) >= 38 for ticks in good)  # the others may have lost a place in time, no tick
            assert works["job03"].ticks[-1] == works["job17"].ticks[-1] == 50
            told = lines(log, "CRITICAL")
            assert [line.partition(":")[0] for line in told] == [
                f"'{name}' is set aside, the other jobs go on" for name in sorted(store.bad)
            ]
            error = campaign.status().error
            assert error is not None
            assert "set aside, since their rows are in the way: 'job03', 'job17'" in error
            store.bad = set()
            await here.until(501)
            assert works["job03"].ticks[-1] == works["job17"].ticks[-1] == 500
            assert campaign.status().error is None


@virtual
@pytest.mark.parametrize("mended", ["by command", "by hand"])
async def test_a_clock_that_was_ahead_is_told_and_can_be_mended(mended: str, log: list[Message]) -> None:
    """The job says until when it is silent; `settle`, or its row set right by hand, has it go on at a heartbeat."""
    async with world() as here:
        work = Work()
        process = here.start(registry(work, 10))
        await here.until(5)
        here.step(7200)
        await here.until(60)
        await process.end()
        here.step(-7200)
        here.start(registry(work, 10))
        await here.until(100)
        silent = [line for line in lines(log, "WARNING") if "is silent until" in line]
        assert len(silent) == 1
        assert "`aiolease settle job`" in silent[0]
        ran = len(work.ticks)
        if mended == "by command":
            await here.someone().settle("default", "job")
        else:  # found by the simulation: the leader saw it after an hour
            known = here.jobs["job"]
            here.jobs["job"] = replace(known, high_tick=known.known_since)
        await here.until(130)
        assert len(work.ticks) > ran + 1


async def test_settle_knows_its_job_and_history_its_limit(tmp_path: Path) -> None:
    """It is an error to settle a job that does not exist, or to ask for no rows."""
    async with open_store(f"sqlite:///{tmp_path / 'jobs.db'}") as store:
        with pytest.raises(InvalidJob):
            await store.settle("default", "unknown")
        with pytest.raises(ConfigurationError, match="limit"):
            await store.history("default", "unknown", limit=0)


FUTURE = """INSERT OR IGNORE INTO aiolease_run (lease, job, tick, attempt, token, holder, status, started_at)
WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 100)
SELECT 'default', 'bad', (CAST(strftime('%s', 'now') AS INTEGER) + n) * 1000000, 1, 1, '', 'succeeded', 'garbage'
FROM n"""
GONE = """INSERT INTO aiolease_job (lease, job, schedule, timezone, known_since, schedule_since)
SELECT lease, 'gone', schedule, timezone, 1, 1 FROM aiolease_job WHERE job = 'good';
INSERT INTO aiolease_run (lease, job, tick, attempt, token, holder, status, started_at)
VALUES ('default', 'gone', 1000000, 1, 1, 'x', 'running', 1);
CREATE TRIGGER refusing BEFORE UPDATE ON aiolease_run WHEN NEW.job = 'gone' BEGIN SELECT RAISE(ABORT, 'no'); END"""


@pytest.mark.parametrize(
    "script",
    [FUTURE, f"UPDATE aiolease_job SET schedule = 'every 2s' WHERE job = 'bad'; {FUTURE}", GONE],
    ids=["rows of ticks to come that cannot be read", "such rows, of a schedule that is changed", "a job that is gone"],
)
async def test_rows_in_the_way_of_what_is_to_be_written_stop_no_other_job(tmp_path: Path, script: str) -> None:
    """Found by an attack: each of these stopped every job of the lease for good."""
    url, runs, ran = f"sqlite:///{tmp_path}/jobs.db", Counter[str](), asyncio.Event()
    jobs = JobRegistry()

    async def work(run: JobRun) -> None:
        runs[run.job] += 1
        ran.set()

    async def until(number: int) -> None:
        while runs["good"] < number:
            ran.clear()
            await ran.wait()

    for name in ("good", "bad"):
        jobs.every(1, name=name)(work)
    async with asyncio.timeout(LIMIT):
        async with jobs.background(url, lease_duration=6.0):
            await until(1)
        with closing(sqlite3.connect(tmp_path / "jobs.db", timeout=5)) as connection, connection:
            connection.executescript(script)
        async with jobs.background(url, lease_duration=6.0):
            await until(runs["good"] + 4)


async def test_the_ends_of_other_jobs_are_written_though_those_of_one_are_refused(
    tmp_path: Path, log: list[Message]
) -> None:
    """At the end of a term one job's row cannot be written: what the others did is in the ledger, and not run again."""
    path, jobs = tmp_path / "jobs.db", JobRegistry()
    begun, go_on = set[str](), asyncio.Event()

    async def work(run: JobRun) -> None:
        begun.add(run.job)
        await go_on.wait()

    for name in ("a", "bad", "c"):
        jobs.every(3600, name=name, rerun_lost=True)(work)
    async with asyncio.timeout(LIMIT), open_store(f"sqlite:///{path}") as store:
        async with jobs.background(store):
            while len((await store.take_stock("default")).jobs) < 3:
                await asyncio.sleep(0.05)
            for name in ("a", "bad", "c"):
                await store.trigger("default", name)
            while len(begun) < 3:
                await asyncio.sleep(0.05)
            with closing(sqlite3.connect(path, timeout=5)) as connection:
                connection.execute(
                    "CREATE TRIGGER refusing BEFORE UPDATE ON aiolease_run WHEN NEW.job = 'bad' "
                    "BEGIN SELECT RAISE(ABORT, 'no'); END"
                )
            asyncio.get_running_loop().call_soon(go_on.set)
        rows = {name: (await store.history("default", name))[-1].status for name in ("a", "bad", "c")}
    assert rows == {"a": "succeeded", "bad": "running", "c": "succeeded"}
    assert [line for line in lines(log, "WARNING") if "could not write how the last runs" in line and "bad" in line]


@virtual
async def test_a_job_that_cannot_be_pruned_holds_up_none_of_the_others() -> None:
    """One of sixty jobs cannot be pruned: it does not keep the others from being pruned."""
    async with world() as here:
        jobs = JobRegistry(history=10)
        for number in range(60):
            jobs.every(60, name=f"job{number:02}")(Work())
        process = here.start(jobs)
        plain = process.store.prune

        async def prune(name: str, names: Sequence[str], keep: int) -> list[str]:
            if "job00" in names:
                raise StoreUnavailable("memory", "a row is locked")
            return await plain(name, names, keep)

        process.store.prune = prune  # type: ignore[method-assign, assignment]
        await here.until(7200)
        assert len(here.records("job00")) > 100
        assert max(len(here.records(f"job{number:02}")) for number in range(1, 60)) <= 20


@pytest.mark.parametrize("when", ["as it goes on", "as it ends"])
async def test_a_batch_that_is_larger_than_a_packet_is_written_in_parts(mysql_server: Server, when: str) -> None:
    """Six hundred jobs fail together, each with a text of three kilobytes: the server takes one megabyte at once."""
    names = {f"job{number}" for number in range(600)}
    jobs = JobRegistry()
    together, begun = asyncio.Event(), set[str]()

    def register(name: str) -> None:
        @jobs.every(3600, name=name)
        async def job() -> None:
            begun.add(name)
            if begun == names:
                together.set()
            await together.wait()
            raise RuntimeError(f"{name}: " + "\N{SNOWMAN}" * 1000)

    async def statuses() -> Counter[str]:
        runs = [run for name in names for run in await store.history("default", name)]
        assert all((run.error or "").startswith("RuntimeError") for run in runs if run.status == "failed")
        return Counter(run.status for run in runs)

    for name in names:
        register(name)
    logger.disable("aiolease")  # which would say it six hundred times
    server = type(mysql_server).start(options=["--max-allowed-packet=1M"])
    try:
        server.create_database("packets")
        url = f"mysql://{server.user}@{server.host}:{server.port}/packets"
        async with open_store(url) as store, asyncio.timeout(LIMIT):
            async with jobs.background(store):
                while len((await store.take_stock("default")).jobs) < len(names):
                    await asyncio.sleep(0.05)
                for name in names:
                    await store.trigger("default", name)
                await together.wait()
                while when == "as it goes on" and (await statuses()) != {"failed": len(names)}:
                    await asyncio.sleep(0.05)
            assert (await statuses()) == {"failed": len(names)}
    finally:
        server.close()
        logger.enable("aiolease")
