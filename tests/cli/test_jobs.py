"""The command line about jobs: their history, and what a person may ask of them."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import datetime, timedelta
from typing import Any

import pytest

from aiolease import JobRegistry, JobRun, leadership, open_store
from aiolease.stores import Store
from aiolease.stores.batch import Batch, Change, JobDefinition
from aiolease.stores.records import RunKey, RunRecord, RunStatus, TermKey
from tests.campaigns import LIMIT
from tests.cli.commands import Aiolease, facts, in_thread, program


class Books:
    """A ledger whose leader this test plays: a term of the lease 'default', and the jobs 'report' and 'sweep'."""

    def __init__(self, store: Store, term: TermKey, now: datetime) -> None:
        self.store, self.term, self.now = store, term, now

    @classmethod
    async def of(cls, store: Store) -> Books:
        row = await store.claim("default", "somebody", 60, seen=None, force=False)
        assert row is not None
        term = TermKey("default", "somebody", row.token)
        jobs = [("report", "cron 0 9 * * *", "America/New_York"), ("sweep", "every 30s", "")]
        await store.enroll(term, [JobDefinition(job=job, schedule=text, timezone=zone) for job, text, zone in jobs])
        return cls(store, term, row.now.replace(microsecond=0))

    async def claim(self, minutes: float, status: RunStatus = "running", **facts: Any) -> RunRecord:
        """A tick of 'report' so long ago; gives its row."""
        tick = self.now - timedelta(minutes=minutes)
        run = RunRecord(job="report", tick=tick, token=self.term.token, holder="somebody", status=status, **facts)
        await self.store.record(self.term, Batch(claims=[run], high_ticks={"report": tick}))
        return run

    async def end(self, run: RunRecord, status: RunStatus, error: str | None = None, attempt: int = 1) -> None:
        key = RunKey("report", run.tick, run.attempt, run.token)
        change = Change(key=key, was="running", status=status, attempt=attempt, error=error)
        await self.store.record(self.term, Batch(changes=[change]))


def table(text: str) -> list[list[str]]:
    """The cells of a table; columns are apart by two spaces or more."""
    return [re.split(r"  +", line) for line in text.splitlines()]


def shown(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


async def test_history_shows_what_became_of_each_tick(aiolease: Aiolease, any_url: str) -> None:
    """`aiolease history` has a line for each tick, the newest last: how its run ended, and why, or since when."""
    async with open_store(any_url) as store:
        books = await Books.of(store)
        await books.end(await books.claim(60), "succeeded")
        await books.end(await books.claim(50), "failed", "ValueError:\tno\x1b[31m such\ncustomer ☃")
        first = books.now - timedelta(minutes=40)
        await books.claim(30, "skipped", tick_from=first, count=3, error="its last run has not ended")
        late = books.now - timedelta(minutes=20)
        await books.claim(20, "skipped", tick_from=late, count=1, error="more than 60 s late")
        await books.end(await books.claim(15), "lost", "lost with term 1")
        await books.end(await books.claim(10), "queued", attempt=2)
        await books.claim(5)
        run = await in_thread(aiolease, "history", "report")
    assert (run.status, run.err) == (0, "")
    ticks = [shown(books.now - timedelta(minutes=minutes)) for minutes in (60, 50, 30, 20, 15, 10, 5)]
    took = re.compile(r"\d+\.\d\d s( so far)?")
    cells = [[took.sub(r"T\1", cell) for cell in row] for row in table(run.out)]
    assert cells == [
        ["tick (UTC)", "status", "attempt", "term", "took"],
        [ticks[0], "succeeded", "1", "1", "T"],
        [ticks[1], "failed", "1", "1", "T", "ValueError: no [31m such customer ☃"],
        [ticks[2], "skipped", "1", "1", f"3 ticks since {shown(first)}: its last run has not ended"],
        [ticks[3], "skipped", "1", "1", "more than 60 s late"],
        [ticks[4], "lost", "1", "1", "lost with term 1"],
        [ticks[5], "queued", "2", "1"],
        [ticks[6], "running", "1", "1", "T so far"],
    ]


async def test_history_as_json_is_whole(aiolease: Aiolease, any_url: str) -> None:
    """`--json` gives every row with all of its fields; a table shows the start of a long error only."""
    error = "StatementFailed: " + "x" * 500
    async with open_store(any_url) as store:
        books = await Books.of(store)
        await books.end(await books.claim(60), "failed", error)
        first = books.now - timedelta(minutes=40)
        await books.claim(30, "skipped", tick_from=first, count=3, error="its last run has not ended")
        stored = await store.history("default", "report")
        run = await in_thread(aiolease, "history", "report", "--json")
        lines = (await in_thread(aiolease, "history", "report")).out.splitlines()
    assert (run.status, run.err) == (0, "")
    told = json.loads(run.out)
    moments = ("tick", "started_at", "finished_at", "tick_from")
    read = [row | {key: row[key] and datetime.fromisoformat(row[key]) for key in moments} for row in told]
    assert [RunRecord(**row) for row in read] == stored
    assert (told[0]["error"], told[1]["count"]) == (error, 3)
    assert told[1]["tick_from"] == first.isoformat()
    assert lines[1].endswith(error[:120] + "…")


async def test_history_shows_the_last_runs_only(aiolease: Aiolease, url: str) -> None:
    """`-n` says how many lines, 20 without it."""
    async with open_store(url) as store:
        books = await Books.of(store)
        for minutes in range(25, 0, -1):
            await books.end(await books.claim(minutes), "succeeded")
        for arguments, count in (((), 20), (("-n", "3"), 3), (("-n1",), 1), (("-n", "1000"), 25)):
            rows = table((await in_thread(aiolease, "history", "report", *arguments)).out)
            assert len(rows) == 1 + count
            assert rows[-1][0] == shown(books.now - timedelta(minutes=1))
            told = json.loads((await in_thread(aiolease, "history", "report", "--json", *arguments)).out)
            assert len(told) == count


async def test_history_of_a_job_that_has_not_run(aiolease: Aiolease, url: str) -> None:
    """A job that is known and has not run is told of in a sentence, and is an empty list for programs."""
    async with open_store(url) as store:
        await Books.of(store)
    run = await in_thread(aiolease, "history", "sweep")
    assert (run.status, run.out, run.err) == (0, "'sweep' of 'default' has not run yet\n", "")
    assert json.loads((await in_thread(aiolease, "history", "sweep", "--json")).out) == []


async def test_an_error_may_have_what_the_terminal_has_not(url: str) -> None:
    """A history is printed on a terminal that has ASCII only, too."""
    async with open_store(url) as store:
        books = await Books.of(store)
        await books.end(await books.claim(60), "failed", "ValueError: ☃ " + "x" * 200)
    result = await asyncio.to_thread(program, "history", "report", PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, "")
    assert "ValueError: \\u2603 xxx" in result.stdout


async def test_status_lists_the_jobs(aiolease: Aiolease, any_url: str) -> None:
    """`aiolease status` shows every job that the database knows: its schedule, its last tick, and what it is doing."""
    async with open_store(any_url) as store:
        books = await Books.of(store)
        await books.claim(60, "queued")
        await books.claim(30, "queued")
        await books.claim(5)
        await store.trigger("default", "report")
        await store.pause("default", "sweep")
        run = await in_thread(aiolease, "status")
        told = json.loads((await in_thread(aiolease, "status", "--json")).out)
        stock = await store.take_stock("default")
    assert (run.status, run.err) == (0, "")
    lease, jobs = run.out.split("\n\n")
    assert facts(lease)["leader"] == "somebody"
    paused_at = stock.jobs["sweep"].paused_at
    assert paused_at is not None
    last, since = shown(books.now - timedelta(minutes=5)), f"paused since {shown(paused_at)} UTC"
    assert table(jobs) == [
        ["job", "schedule", "last tick (UTC)", "state"],
        ["report", "cron 0 9 * * * America/New_York", last, "running, 2 queued, triggered"],
        ["sweep", "every 30s", "none yet", since],
    ]
    report, sweep = told["jobs"]
    assert (report["job"], report["running"], report["queued"], report["paused_at"]) == ("report", 1, 2, None)
    assert datetime.fromisoformat(report["high_tick"]) == books.now - timedelta(minutes=5)
    assert datetime.fromisoformat(report["requested_at"]) == stock.jobs["report"].requested_at
    assert (sweep["running"], sweep["timezone"], datetime.fromisoformat(sweep["paused_at"])) == (0, "", paused_at)


async def test_status_as_json(aiolease: Aiolease, url: str) -> None:
    """`--json` says who leads for programs, with the same keys whether somebody leads, led, or never did."""
    told = []
    told.append(json.loads((await in_thread(aiolease, "status", "--json")).out))
    async with leadership(url) as lead:
        told.append(json.loads((await in_thread(aiolease, "status", "--json")).out))
    told.append(json.loads((await in_thread(aiolease, "status", "--json")).out))
    assert [(row["name"], row["led"], row["holder"], row["token"]) for row in told] == [
        ("default", False, None, None),
        ("default", True, lead.holder, 1),
        ("default", False, None, 1),
    ]
    assert told[0].keys() == told[1].keys() == told[2].keys()
    assert datetime.fromisoformat(told[1]["elected_at"]) == lead.elected_at
    assert datetime.fromisoformat(told[0]["now"]).utcoffset() == timedelta()
    assert told[0]["jobs"] == []


async def test_trigger_has_the_leader_run_a_job(aiolease: Aiolease, any_url: str) -> None:
    """`aiolease trigger` prints the tick that the run has: the job's, the history's, even while it is paused."""
    ran: asyncio.Queue[datetime] = asyncio.Queue()
    jobs = JobRegistry()

    @jobs.cron("0 0 1 1 *", name="report")
    async def report(run: JobRun) -> None:
        ran.put_nowait(run.tick)

    async with jobs.background(any_url, lease_duration=3) as campaign, asyncio.timeout(LIMIT):
        async with open_store(any_url) as store:
            while not (await store.take_stock("default")).jobs:
                await asyncio.sleep(0.01)
        assert campaign.is_leader
        assert (await in_thread(aiolease, "pause", "report")).status == 0
        run = await in_thread(aiolease, "trigger", "report")
        tick = await ran.get()
        while "succeeded" not in (history := (await in_thread(aiolease, "history", "report")).out):
            await asyncio.sleep(0.01)
    milliseconds = f"{tick.microsecond // 1000:03}"
    at = f"{shown(tick)}.{milliseconds}" if tick.microsecond else shown(tick)
    when = "at the next heartbeat of a leader that has it"
    said = f"triggered 'report' of 'default': it runs {when}, as the tick {at} UTC\n"
    assert (run.status, run.out, run.err) == (0, said, "")
    assert table(history)[1][0] == at


async def test_trigger_waits_for_a_leader(aiolease: Aiolease, url: str) -> None:
    """Where nobody leads `trigger` says so, and a second request is the first one."""
    async with open_store(url) as store:
        books = await Books.of(store)
        await store.release("default", "somebody", books.term.token)
    runs = [await in_thread(aiolease, "trigger", "report") for _ in range(2)]
    assert runs[0].out.startswith("triggered 'report' of 'default': it runs when somebody leads, as the tick ")
    assert runs[0].out == runs[1].out


async def test_pause_and_resume_say_what_happened(aiolease: Aiolease, any_url: str) -> None:
    """`aiolease pause` and `resume` change one job of one lease, and say so when there was nothing to change."""
    async with open_store(any_url) as store:
        await Books.of(store)

        async def paused() -> dict[str, datetime | None]:
            return {name: job.paused_at for name, job in (await store.take_stock("default")).jobs.items()}

        run = await in_thread(aiolease, "pause", "report")
        said = "paused 'report' of 'default': its ticks are not run; what is running or queued goes on\n"
        assert (run.status, run.out, run.err) == (0, said, "")
        at = await paused()
        assert at["report"] is not None
        assert at["sweep"] is None
        run = await in_thread(aiolease, "pause", "report")
        said = f"'report' of 'default' was paused already, since {shown(at['report'])} UTC\n"
        assert (run.status, run.out, run.err) == (0, said, "")
        assert await paused() == at
        run = await in_thread(aiolease, "resume", "report")
        said = (
            "resumed 'report' of 'default': it runs from its next tick on, seen at the next heartbeat; "
            f"those since {shown(at['report'])} UTC are not made up for\n"
        )
        assert (run.status, run.out, run.err) == (0, said, "")
        assert await paused() == {"report": None, "sweep": None}
        run = await in_thread(aiolease, "resume", "report")
        assert (run.status, run.out, run.err) == (0, "'report' of 'default' was not paused\n", "")


async def test_the_lease_of_a_job_is_an_option_or_a_variable(
    aiolease: Aiolease, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job's lease is that of ``--lease``, else that of AIOLEASE_NAME, else the default one."""
    async with open_store(url) as store:
        for name in ("default", "from-variable", "from-option"):
            row = await store.claim(name, "somebody", 60, seen=None, force=False)
            assert row is not None
            await store.enroll(
                TermKey(name, "somebody", row.token), [JobDefinition(job="report", schedule="every 30s", timezone="")]
            )
    for variable, arguments, name in (
        ("", (), "default"),
        ("from-variable", (), "from-variable"),
        ("from-variable", ("--lease", "from-option"), "from-option"),
    ):
        monkeypatch.setenv("AIOLEASE_NAME", variable)
        for command in ("history", "trigger", "pause", "resume"):
            assert f"'report' of '{name}'" in (await in_thread(aiolease, command, "report", *arguments)).out


@pytest.mark.parametrize("command", ["history", "trigger", "pause", "resume"])
async def test_a_job_that_nobody_knows_is_trouble(aiolease: Aiolease, any_url: str, command: str) -> None:
    """A job that no leader of this lease ever had: a line on the standard error that names both, and status 1."""
    async with open_store(any_url) as store:
        await Books.of(store)
    for arguments in (("reprot",), ("report", "--lease", "other")):
        run = await in_thread(aiolease, command, *arguments)
        assert (run.status, run.out) == (1, "")
        assert run.err.startswith(f"aiolease: job '{arguments[0]}': ")
        assert repr(arguments[-1] if "--lease" in arguments else "default") in run.err
        assert run.err.count("\n") == 1
